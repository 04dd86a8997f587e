#!/bin/sh
# Exports and imports one task of TURNS turns of MIB MiB each, and compares. Fails if one of the
# commands takes 100 MiB or more of memory.
#
# Usage: tests/scale/transfer.sh [TURNS [MIB]]    (default: 20 turns of 4 MiB)
# Needs the program in PROGRAM (default: target/release/task-history), PostgreSQL, python3, and disk
# space for five times TURNS x MIB.
set -eu

turns=${1:-20}
mib=${2:-4}
program=$(realpath "${PROGRAM:-target/release/task-history}")
directory=$(mktemp -d "${TMPDIR:-/var/tmp}/task-history-scale-XXXXXX")
chmod 755 "$directory"
server=
trap 'test -z "$server" || kill "$server"; wait; rm -rf "$directory"' EXIT INT TERM
cd "$directory"

TASK_HISTORY_LISTEN=127.0.0.1:0 "$program" --data-dir data > serve.log 2>&1 &
server=$!
until grep -q '^Listening on' serve.log; do
    kill -0 "$server" || { cat serve.log; exit 1; }
    sleep 0.1
done

python3 - "$program" "$turns" "$mib" <<'PYTHON'
import hashlib, os, subprocess, sys

program, turns, mib = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
LIMIT = 100 << 10  # KiB
AT = "2026-01-01T00:00:00Z"


def lines():
    yield b'{"export":{"version":2}}\n'
    yield (f'{{"task":{{"id":"scale","agent_id":"a","source":"api","created_at":"{AT}",'
           f'"updated_at":"{AT}","turns":{turns},"last_event":{turns}}}}}\n').encode()
    for number in range(1, turns + 1):
        text = chr(ord("a") + number % 26) * (mib << 20)
        yield (f'{{"turn":{{"number":{number},"input":{{"text":"{text}","files":null,"user":null}},'
               f'"status":"completed","created_at":"{AT}"}}}}\n').encode()


def end(process, what):
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    print(f"{what}: exit code {code}, at most {usage.ru_maxrss >> 10} MiB, "
          f"{usage.ru_utime + usage.ru_stime:.1f} s of processor time")
    if code != 0 or usage.ru_maxrss >= LIMIT:
        sys.exit(f"{what} failed, or took 100 MiB or more")


written = hashlib.sha256()
process = subprocess.Popen([program, "import", "--data-dir", "data"], stdin=subprocess.PIPE)
for line in lines():
    written.update(line)
    process.stdin.write(line)
process.stdin.close()
end(process, "import")

read = hashlib.sha256()
process = subprocess.Popen([program, "export", "--data-dir", "data"], stdout=subprocess.PIPE)
while chunk := process.stdout.read(1 << 16):
    read.update(chunk)
end(process, "export")
if read.digest() != written.digest():
    sys.exit("the export is not what was imported")
print(f"{turns} turns of {mib} MiB are the same after import and export.")
PYTHON
