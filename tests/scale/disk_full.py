#!/usr/bin/env python3
"""Fills the disk below a running service, and checks what its clients see.

Writes are refused with 503, and readiness is red, until there is room again. What was refused is
not there, what was acknowledged is, and reads go on all the while.

Usage: tests/scale/disk_full.py [MIB]    (default: 300, the size of the disk)
Needs root, to mount a small file system, and the program in PROGRAM (default:
target/release/task-history).
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

KEY = "bootstrap-key-for-the-full-disk"
LIMIT = 60  # seconds for anything that must happen


def request(base, method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"x-api-key": KEY, "content-type": "application/json"}
    message = urllib.request.Request(base + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(message, timeout=LIMIT) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def until(what, condition):
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > LIMIT:
            sys.exit(f"{what} does not happen within {LIMIT} s")
        time.sleep(0.1)


def check(disk, base):
    acknowledged, refused = [], []

    def invoke():
        task = f"t{len(acknowledged) + len(refused)}"
        text = base64.b64encode(os.urandom(300_000)).decode()
        body = {"id": task, "input": {"text": text}}
        status, _ = request(base, "POST", "/v1/agents/a/invoke/async", body)
        if status not in (200, 503):
            sys.exit(f"a write is answered with {status}")
        (acknowledged if status == 200 else refused).append(task)
        return status

    def is_ready():
        return request(base, "GET", "/readyz")[0] == 200

    if invoke() != 200 or not is_ready():
        sys.exit("the service does not work before the disk is full")
    fill = os.path.join(disk, "fill")
    with open(fill, "wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 20)) == 1 << 20:
                pass
        except OSError:
            pass
    until("a refusal", lambda: invoke() == 503)
    until("the end of readiness", lambda: not is_ready())
    if request(base, "GET", "/v1/tasks")[0] != 200:
        sys.exit("nothing can be read")
    os.remove(fill)
    until("readiness", is_ready)
    until("a write", lambda: invoke() == 200)
    for task in acknowledged:
        if request(base, "GET", f"/v1/tasks/{task}")[0] != 200:
            sys.exit(f"{task} was acknowledged and is lost")
    for task in refused:
        if request(base, "GET", f"/v1/tasks/{task}")[0] != 404:
            sys.exit(f"{task} was refused and is there")
    print(f"{len(acknowledged)} writes acknowledged and kept, {len(refused)} refused")


def main():
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    program = os.path.abspath(os.environ.get("PROGRAM", "target/release/task-history"))
    if os.geteuid() != 0:
        sys.exit("a small file system can only be mounted by root: run this as root")
    with tempfile.TemporaryDirectory(prefix="task-history-scale-") as disk:
        os.chmod(disk, 0o755)
        options = f"size={size}m,mode=0755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
        try:
            environment = {
                "PATH": os.environ["PATH"],
                "TASK_HISTORY_BOOTSTRAP_KEY": KEY,
                "TASK_HISTORY_LISTEN": "127.0.0.1:0",
            }
            command = [program, "--data-dir", os.path.join(disk, "data")]
            service = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            try:
                line = service.stdout.readline()
                if not line.startswith("Listening on "):
                    sys.exit(f"the service does not start: {line}")
                check(disk, line.split()[2].rstrip(","))
            finally:
                service.terminate()
                service.wait(LIMIT)
        finally:
            subprocess.run(["umount", disk], check=True)


main()
