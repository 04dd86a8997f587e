"""Runs the official Python SDK, unmodified, against a running service and compares the results.

    drive.py BASE_URL API_KEY

`run`, in the same directory, creates the environment and starts the service. The steps up to
`stop_and_404` are the snippets of the SDK's documentation. The later steps cover what users and
workers of the SDK do beyond them.
"""

import asyncio
import faulthandler
import json
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from urllib.parse import urlsplit

BASE_URL, API_KEY = sys.argv[1:3]

# Settings of the hosted service in the caller's environment must not reach the SDK.
for name in [name for name in os.environ if name.startswith("XPANDER_")]:
    del os.environ[name]
os.environ["XPANDER_BASE_URL"] = BASE_URL
os.environ["XPANDER_API_KEY"] = API_KEY

# The SDK puts the organization into every path if the host name contains `agent-controller`.
# This host name is invented.
CONTROLLER = "agent-controller.test"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = f"127.0.0.1,localhost,{CONTROLLER}"
resolve = socket.getaddrinfo


def resolve_controller(host, *rest, **options):
    here = host in (CONTROLLER, CONTROLLER.encode())
    return resolve("127.0.0.1" if here else host, *rest, **options)


socket.getaddrinfo = resolve_controller

# Without a limit, the test would wait forever for an event stream that the server does not close.
LIMIT_SECONDS = 120
faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)

from httpx_sse import SSEError  # noqa: E402
from xpander_sdk import (  # noqa: E402
    AgentExecutionStatus,
    Configuration,
    MCPServerAuthType,
    MCPServerDetails,
    ModuleException,
    OutputFormat,
    Principal,
    PrincipalKind,
    Task,
    Tasks,
    TaskUpdateEventType,
    Tokens,
    User,
)
from xpander_sdk.core.xpander_api_client import APIClient  # noqa: E402
from xpander_sdk.models.activity import AgentActivityThreadMessage  # noqa: E402
from xpander_sdk.models.shared import ExecutionTokens, ThinkMode  # noqa: E402
from xpander_sdk.modules.backend.utils.mcp_oauth import push_event  # noqa: E402
from xpander_sdk.modules.backend.utils.tool_call_events import (  # noqa: E402
    report_tool_call_request,
)
from xpander_sdk.modules.tasks.models.task import (  # noqa: E402
    AttachmentKind,
    AttachmentRef,
    ExecutionMetricsReport,
)

Status = AgentExecutionStatus
Event = TaskUpdateEventType

cfg = Configuration(api_key=API_KEY, base_url=BASE_URL)
tasks = Tasks(configuration=cfg)


# What the steps say


@contextmanager
def step(name):
    began = time.monotonic()
    try:
        yield
    except BaseException:
        print(f"FAILED  {name}", flush=True)
        raise
    print(f"ok      {name} ({(time.monotonic() - began) * 1000:.0f} ms)", flush=True)


def same(what, got, want):
    assert got == want, f"{what}: got {got!r}, want {want!r}"


def holds(what, condition, got=None):
    assert condition, f"{what}: got {got!r}"


def refused(what, status, call):
    """The call raises the SDK's exception with this status and the service's `detail`."""
    try:
        call()
    except ModuleException as error:
        same(f"{what}: status, with {error.description!r}", error.status_code, status)
        detail = json.loads(error.description)["detail"]
        holds(f"{what}: detail is a text", isinstance(detail, str) and detail, detail)
        return detail
    raise AssertionError(f"{what}: it was not refused")


def ids(items):
    return [item.id for item in items]


def roles_and_texts(task):
    log = task.get_activity_log()
    # The SDK returns the raw text of a response that it cannot parse.
    holds("the activity log is understood", not isinstance(log, str), log)
    same("the activity log's id", log.id, task.id)
    messages = [entry for entry in log.messages if isinstance(entry, AgentActivityThreadMessage)]
    holds("message ids are unique", len({message.id for message in messages}) == len(messages), ids(messages))
    times = [message.created_at for message in messages]
    same("messages are in the order of time", times, sorted(times))
    return [(message.role, message.content.text) for message in messages]


# Plain HTTP, for requests that the SDK has no call for

plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def rest(method, path, body=None):
    request = urllib.request.Request(
        BASE_URL + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"x-api-key": API_KEY, "content-type": "application/json"},
    )
    try:
        with plain.open(request, timeout=20) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from None


def invoke(agent, text, **fields):
    return rest("POST", f"/v1/agents/{agent}/invoke/async", {"input": {"text": text}, **fields})


def raw_status(task_id):
    """The answer that `Tasks.get` is made from, before the SDK drops what it has no field for."""
    return asyncio.run(APIClient(configuration=cfg).make_request(f"/agent-execution/{task_id}/status"))


# The snippets of the documentation


def snippets():
    user = User(id="u1", email="u1@example.com", first_name="Ada", timezone="Europe/Berlin")

    with step("create"):
        t = tasks.create(
            agent_id="agent-1", prompt="Reply with exactly FIRST", source="sdk", user_details=user
        )
        holds("id", isinstance(t.id, str) and t.id, t.id)
        holds("organization_id", isinstance(t.organization_id, str) and t.organization_id, t.organization_id)
        same("agent_id", t.agent_id, "agent-1")
        same("status", t.status, Status.Pending)
        same("input.text", t.input.text, "Reply with exactly FIRST")
        same("input.user", t.input.user, user)
        same("source", t.source, "sdk")
        same("result", t.result, None)
        same("started_at, finished_at", (t.started_at, t.finished_at), (None, None))
        same("parent_execution", t.parent_execution, None)
        same("sub_executions", t.sub_executions, [])
        same("is_manually_stopped", t.is_manually_stopped, False)
        age = datetime.now(timezone.utc) - t.created_at
        holds("created_at is now", abs(age) < timedelta(minutes=1), t.created_at)

    with step("continue_thread"):
        t2 = tasks.create(agent_id="agent-1", existing_task_id=t.id, prompt="Reply with exactly SECOND")
        same("id", t2.id, t.id)
        same("created_at", t2.created_at, t.created_at)
        same("input.text", t2.input.text, "Reply with exactly SECOND")
        same("status", t2.status, Status.Pending)
        same("source, where the caller names none", t2.source, "sdk")

    with step("list"):
        items = tasks.list(agent_id="agent-1", filters={"status": Status.Pending.value})
        same("ids", ids(items), [t.id])
        item = items[0]
        same("agent_id", item.agent_id, "agent-1")
        same("organization_id", item.organization_id, t.organization_id)
        same("user_id, of the first turn", item.user_id, "u1")
        same("status", item.status, Status.Pending)
        same("title", item.title, "Reply with exactly SECOND")
        same("result", item.result, None)
        same("created_at", item.created_at, t.created_at)
        holds("updated_at", item.updated_at >= item.created_at, item.updated_at)
        same("source_node_type", item.source_node_type, "sdk")
        same("parent_task_id, triggering_agent_id", (item.parent_task_id, item.triggering_agent_id), (None, None))
        same("another status", tasks.list(agent_id="agent-1", filters={"status": "completed"}), [])
        same("another agent", tasks.list(agent_id="no-such-agent"), [])

    with step("list_user"):
        elsewhere = tasks.create(agent_id="agent-2", prompt="elsewhere", user_details=user)
        mine = tasks.list_user_tasks(user_id="u1")
        same("ids, newest first", ids(mine), [elsewhere.id, t.id])
        same("user ids", [item.user_id for item in mine], ["u1", "u1"])
        same("another user", tasks.list_user_tasks(user_id="u2"), [])

    with step("get"):
        full = tasks.get(t.id)
        loaded = items[0].load(configuration=cfg)
        fields = ["id", "agent_id", "organization_id", "created_at", "status", "result", "source", "title"]
        for field in fields:
            same(f"{field} of get and load", getattr(loaded, field), getattr(full, field))
        same("input.text", full.input.text, "Reply with exactly SECOND")
        same("created_at", full.created_at, t.created_at)

    with step("set_status_save_reload"):
        full.set_status(Status.Executing)
        same("status", full.status, Status.Executing)
        holds("started_at", full.started_at and full.started_at >= full.created_at, full.started_at)
        same("finished_at", full.finished_at, None)
        full.result = "SECOND"
        full.internal_status = "2 turns"
        full.status = Status.Completed
        full.save()
        full.reload()
        same("result, internal_status", (full.result, full.internal_status), ("SECOND", "2 turns"))
        same("status", full.status, Status.Completed)
        holds("finished_at", full.finished_at and full.finished_at >= full.started_at, full.finished_at)
        (item,) = tasks.list(agent_id="agent-1", filters={"internal_status": "2 turns"})
        same("in the list", (item.id, item.status.value, item.result), (t.id, "completed", "SECOND"))

    with step("update"):
        u = tasks.update(task_id=t.id, status=Status.Completed, result="done")
        same("id, status, result", (u.id, u.status, u.result), (t.id, Status.Completed, "done"))
        same("internal_status stays", u.internal_status, "2 turns")
        same("input.text stays", u.input.text, "Reply with exactly SECOND")
        u = tasks.update(
            task_id=t.id,
            source="webhook",
            last_executed_node_id="node-7",
            tool_call_payload_extension={"tenant": {"id": 7}},
        )
        same("source", u.source, "webhook")
        same("last_executed_node_id", u.last_executed_node_id, "node-7")
        same("payload_extension", u.payload_extension, {"tenant": {"id": 7}})
        same("result stays", u.result, "done")
        (item,) = tasks.list(agent_id="agent-1")
        same("source_node_type", item.source_node_type, "webhook")

    with step("activity_log"):
        # The first turn has no reported outcome.
        want = [
            ("user", "Reply with exactly FIRST"),
            ("user", "Reply with exactly SECOND"),
            ("agent", "done"),
        ]
        same("roles and texts", roles_and_texts(full), want)

    with step("events"):
        # The synchronous call returns nothing until the server closes the stream.
        s = tasks.create(agent_id="agent-1", prompt="hi", events_streaming=True)
        same("events_streaming", (s.events_streaming, full.events_streaming), (True, False))

        def work():
            time.sleep(0.5)
            worker = tasks.get(s.id)
            worker.set_status(Status.Executing)
            worker.set_status(Status.Completed, "hello")

        worker = threading.Thread(target=work)
        worker.start()
        seen = list(s.events())
        worker.join()
        holds("types", seen and seen[-1].type == Event.TaskFinished, [e.type.value for e in seen])
        same("one task", {e.task_id for e in seen}, {s.id})
        same("result", seen[-1].data.result, "hello")

    with step("metrics_and_external"):
        full = tasks.get(t.id)
        same("tokens, before any report", full.tokens, None)
        full.source = full.source or "sdk"
        full.tokens = Tokens(prompt_tokens=1, completion_tokens=2)
        full.report_metrics(configuration=cfg)
        full.reload()
        same("tokens", full.tokens, Tokens(prompt_tokens=1, completion_tokens=2))
        holds("duration", isinstance(full.duration, float) and full.duration >= 0, full.duration)
        same("status, result stay", (full.status, full.result), (Status.Completed, "done"))
        tokens = rest("GET", f"/v1/tasks/{t.id}")["tokens"]
        want = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        same("tokens over REST", {name: tokens.get(name) for name in want}, want)
        ext = Task.report_external_task(
            configuration=cfg, agent_id="agent-1", id="ext-1", input="in", result="out", is_success=True
        )
        same("id, agent_id", (ext.id, ext.agent_id), ("ext-1", "agent-1"))
        same("status, result", (ext.status, ext.result), (Status.Completed, "out"))
        same("input.text", ext.input.text, "in")

    with step("stop_and_404"):
        full = tasks.create(agent_id="agent-1", prompt="to be stopped")
        full.stop()
        same("status", full.status, Status.Stopped)
        same("is_manually_stopped", full.is_manually_stopped, True)
        holds("finished_at", full.finished_at and full.finished_at >= full.created_at, full.finished_at)
        refused("get", 404, lambda: tasks.get("no-such-task"))

    return t.organization_id


# Beyond the snippets


def as_upstream_tests_it():
    """The checks of the SDK's own integration tests, configured from the environment."""

    async def run():
        tasks = Tasks()
        created = await tasks.acreate(agent_id="upstream", prompt="hi")
        same("status", created.status, Status.Pending)
        listed = await tasks.alist(agent_id="upstream")
        same("ids", ids(listed), [created.id])
        same("load without a configuration", (await listed[0].aload()).id, created.id)
        updated = await tasks.aupdate(task_id=created.id, source="sdk", status=Status.Executing)
        same("status, source", (updated.status, updated.source), (Status.Executing, "sdk"))
        stopped = await tasks.astop(task_id=updated.id)
        same("status", stopped.status, Status.Stopped)
        # The copy from before the stop is saved: no change of status is forbidden.
        updated.status = Status.Paused
        await updated.asave()
        same("status", updated.status, Status.Paused)
        holds("paused_at", updated.paused_at is not None, updated.paused_at)
        same("finished_at", updated.finished_at, None)
        await updated.astop()
        same("status", updated.status, Status.Stopped)

        streamed = await tasks.acreate(agent_id="upstream", prompt="what can you do", events_streaming=True)
        # A reader that connects after the creation gets the event too. Then it disconnects early.
        stream = streamed.aevents()
        async for event in stream:
            same("task_id", event.task_id, streamed.id)
            same("organization_id", event.organization_id, streamed.organization_id)
            if event.type == Event.TaskCreated:
                break
        else:
            raise AssertionError("the stream ended without task_created")
        await stream.aclose()

    with step("as the SDK's own tests use it"):
        asyncio.run(run())


def everything_in_a_create():
    with step("create with everything"):
        secrets = ["oidc-4711", "user-token-4711", "mcp-key-4711", "mcp-header-4711", "mcp-secret-4711"]
        t = tasks.create(
            agent_id="everything",
            existing_task_id="thread-of-mine.é",
            prompt="all of it",
            file_urls=["https://example.com/a.csv"],
            attachments=[AttachmentRef(url="https://example.com/a.csv", mime="text/csv", kind=AttachmentKind.text)],
            user_details=User(
                id="u9", email="u9@example.com", last_name="Lovelace", additional_attributes={"plan": "pro"}
            ),
            principal=Principal(kind=PrincipalKind.user, id="u9"),
            agent_version="3",
            tool_call_payload_extension={"headers": {"x": 1}},
            source="mobile-app",
            worker_id="worker-1",
            output_format=OutputFormat.Json,
            output_schema={"type": "object"},
            additional_context="context",
            instructions_override="instructions",
            test_run_node_id="node-1",
            user_oidc_token=secrets[0],
            expected_output="expected",
            mcp_servers=[
                MCPServerDetails(
                    name="search",
                    url="https://mcp.example.com/",
                    auth_type=MCPServerAuthType.APIKey,
                    api_key=secrets[2],
                    headers={"authorization": secrets[3]},
                    client_secret=secrets[4],
                )
            ],
            triggering_agent_id="boss",
            title="An explicit title",
            think_mode=ThinkMode.Harder,
            disable_attachment_injection=True,
            return_metrics=True,
            user_tokens={"https://mcp.example.com/": secrets[1]},
            llm_model_provider="anthropic",
            llm_model_name="model-1",
            llm_reasoning_effort="high",
            harness_cli="codex",
            tool_call_limit=5,
            permission_mode="full",
        )
        want = {
            "id": "thread-of-mine.é",
            "agent_version": "3",
            "payload_extension": {"headers": {"x": 1}},
            "source": "mobile-app",
            "output_format": OutputFormat.Json,
            "output_schema": {"type": "object"},
            "additional_context": "context",
            "instructions_override": "instructions",
            "test_run_node_id": "node-1",
            "expected_output": "expected",
            "triggering_agent_id": "boss",
            "title": "An explicit title",
            "think_mode": ThinkMode.Harder,
            "disable_attachment_injection": True,
            "events_streaming": False,
            "return_metrics": True,
            "llm_model_provider": "anthropic",
            "llm_model_name": "model-1",
            "user_oidc_token": None,
            "user_tokens": None,
        }
        for of, task in (("created", t), ("got", tasks.get(t.id))):
            for field, value in want.items():
                same(f"{field} as {of}", getattr(task, field), value)
            same(f"llm_reasoning_effort as {of}", task.llm_reasoning_effort.value, "high")
            same(f"input.files as {of}", task.input.files, ["https://example.com/a.csv"])
            same(f"additional_attributes as {of}", task.input.user.additional_attributes, {"plan": "pro"})
            same(f"mcp_servers as {of}", [server.name for server in task.mcp_servers], ["search"])
        (item,) = tasks.list(agent_id="everything", filters={"triggering_agent_id": "boss", "user_id": "u9"})
        same("title in the list", item.title, "An explicit title")
        same("source_node_type in the list", item.source_node_type, "mobile-app")
        answer = json.dumps(raw_status(t.id))
        for secret in secrets:
            holds("a secret is not shown", secret not in answer, secret)

    with step("create with nothing"):
        t = tasks.create(agent_id="nothing")
        same("input", (t.input.text, t.input.files, t.input.user), ("", [], None))
        (item,) = tasks.list(agent_id="nothing")
        same("title, user_id", (item.title, item.user_id), (None, None))


def filters_of_lists():
    with step("filters of lists"):
        agent = "filters"
        user = User(id="filter user", email="f@example.com")
        a = tasks.create(agent_id=agent, prompt="a", user_details=user)
        b = tasks.create(agent_id=agent, prompt="b", triggering_agent_id="boss-agent")
        c = tasks.create(agent_id=agent, prompt="c")
        tasks.update(task_id=a.id, status=Status.Completed, result="A")
        c.internal_status = "waits for Bob & co"
        c.status = Status.Executing
        c.save()
        everything = [c.id, b.id, a.id]
        cases = [
            (None, everything),
            ({}, everything),
            ({"status": Status.Completed.value}, [a.id]),
            ({"status": Status.Completed}, [a.id]),  # sent as `AgentExecutionStatus.Completed`
            ({"status": Status.Completed, "user_id": None}, [a.id]),  # sent as `user_id=`
            ({"status": Status.Failed}, []),
            ({"status": None, "user_id": None, "parent_task_id": None}, everything),
            ({"user_id": "filter user"}, [a.id]),
            ({"user_id": "nobody"}, []),
            ({"triggering_agent_id": "boss-agent"}, [b.id]),
            ({"internal_status": "waits for Bob & co"}, [c.id]),
            ({"internal_status": "waits"}, []),
            ({"parent_task_id": a.id}, []),
            ({"status": Status.Executing, "internal_status": "waits for Bob & co"}, [c.id]),
            ({"status": Status.Executing, "user_id": "filter user"}, []),
            ({"color": "red"}, everything),
        ]
        for filters, want in cases:
            same(f"ids with {filters}", ids(tasks.list(agent_id=agent, filters=filters)), want)
        user_cases = [
            (None, [a.id]),
            ({"status": Status.Completed, "internal_status": None}, [a.id]),
            ({"status": Status.Pending.value}, []),
        ]
        for filters, want in user_cases:
            got = ids(tasks.list_user_tasks(user_id="filter user", filters=filters))
            same(f"ids of the user with {filters}", got, want)

    with step("pages of lists"):
        # More than a page of the REST list. Without a limit, the SDK expects all tasks.
        newest_first = [invoke("pages", f"number {n}")["id"] for n in range(25)][::-1]
        same("ids without a page", ids(tasks.list(agent_id="pages")), newest_first)
        for page, want in ((1, newest_first[:10]), (2, newest_first[10:20]), (3, newest_first[20:]), (4, [])):
            got = tasks.list(agent_id="pages", filters={"page": page, "per_page": 10})
            same(f"ids of page {page}", ids(got), want)


def conversation():
    with step("a follow-up turn"):
        t = tasks.create(
            agent_id="talk", prompt="Say ONE", user_details=User(id="u3", email="u3@example.com")
        )
        tasks.update(task_id=t.id, status=Status.Executing)
        first = tasks.update(task_id=t.id, status=Status.Completed, result="ONE")
        (before,) = tasks.list(agent_id="talk")
        same("result after the first turn", before.result, "ONE")
        again = tasks.create(agent_id="talk", existing_task_id=t.id, prompt="Say TWO")
        for of, task in (("created", again), ("got", tasks.get(t.id))):
            same(f"id as {of}", task.id, t.id)
            same(f"created_at as {of}", task.created_at, t.created_at)
            same(f"status as {of}", task.status, Status.Pending)
            same(f"result as {of}", task.result, None)
            same(f"times as {of}", (task.started_at, task.paused_at, task.finished_at), (None, None, None))
            same(f"input.text as {of}", task.input.text, "Say TWO")
        listed = tasks.list(agent_id="talk")
        same("the list does not grow", ids(listed), [t.id])
        same("in the list", (listed[0].status.value, listed[0].result), ("pending", None))
        same("title", listed[0].title, "Say TWO")
        same("created_at", listed[0].created_at, before.created_at)
        holds("updated_at", listed[0].updated_at > before.updated_at, listed[0].updated_at)
        same("user_id stays", listed[0].user_id, "u3")
        tasks.update(task_id=t.id, status=Status.Executing)
        same("result while it runs", tasks.get(t.id).result, None)
        running = [("user", "Say ONE"), ("agent", "ONE"), ("user", "Say TWO")]
        same("the log while it runs", roles_and_texts(again), running)
        second = tasks.update(task_id=t.id, status=Status.Completed, result="TWO")
        same("result", second.result, "TWO")
        holds("finished_at", second.finished_at > first.finished_at, second.finished_at)

    with step("the activity log after two turns"):
        same("roles and texts", roles_and_texts(second), [*running, ("agent", "TWO")])

    with step("an id of another agent's task"):
        refused("create", 409, lambda: tasks.create(agent_id="talk-2", existing_task_id=t.id, prompt="mine"))
        same("the task stays", tasks.get(t.id).agent_id, "talk")
        same("no task of the other agent", tasks.list(agent_id="talk-2"), [])

    with step("what a save cannot change"):
        # `save` sends the whole local copy, which may be stale.
        copy = tasks.get(t.id)
        copy.agent_id = "other"
        copy.organization_id = "other"
        copy.parent_execution = "other"
        copy.sub_executions = ["other"]
        copy.created_at = datetime(2001, 1, 1, tzinfo=timezone.utc)
        copy.finished_at = datetime(2001, 1, 1, tzinfo=timezone.utc)
        copy.is_manually_stopped = True
        copy.input.text = "other"
        copy.source = copy.title = copy.result = None
        copy.internal_status = "saved"
        copy.save()
        after = tasks.get(t.id)
        for field in ("agent_id", "organization_id", "parent_execution", "sub_executions", "created_at",
                      "finished_at", "is_manually_stopped", "source", "title", "result", "status"):
            same(field, getattr(after, field), getattr(second, field))
        same("input.text", after.input.text, "Say TWO")
        same("internal_status", after.internal_status, "saved")


def sub_tasks():
    with step("a tree of sub-tasks"):
        root = invoke("planner", "plan")["id"]
        left = invoke("researcher", "look it up", parent_execution_id=root, triggering_agent_id="planner")["id"]
        right = invoke("writer", "write it down", parent_execution_id=root, triggering_agent_id="planner")["id"]
        leaf = invoke("reader", "read it", parent_execution_id=left, triggering_agent_id="researcher")["id"]
        tree = {root: (None, [left, right]), left: (root, [leaf]), right: (root, []), leaf: (left, [])}
        for task_id, (parent, children) in tree.items():
            task = tasks.get(task_id)
            same(f"parent_execution of {task.input.text}", task.parent_execution, parent)
            same(f"sub_executions of {task.input.text}", task.sub_executions, children)
            same(f"source of {task.input.text}", task.source, "api")

        def finished(task_id):
            over_rest = rest("GET", f"/v1/tasks/{task_id}")["finished_sub_executions"]
            same("finished_sub_executions on both surfaces", raw_status(task_id)["finished_sub_executions"], over_rest)
            return over_rest

        same("finished, at first", (finished(root), finished(left)), ([], []))
        tasks.update(task_id=right, status=Status.Failed, result="no pen")
        tasks.get(leaf).set_status(Status.Completed, "read")
        same("finished, the first", (finished(root), finished(left)), ([right], [leaf]))
        tasks.get(left).set_status(Status.Completed, "found")
        same("finished, all", set(finished(root)), {left, right})
        same("sub_executions stay", tasks.get(root).sub_executions, [left, right])

        by_parent = {"parent_task_id": root}
        (item,) = tasks.list(agent_id="researcher", filters=by_parent)
        same("in the list", (item.id, item.parent_task_id, item.triggering_agent_id), (left, root, "planner"))
        same("of another agent", tasks.list(agent_id="reader", filters=by_parent), [])
        same("its own", ids(tasks.list(agent_id="reader", filters={"parent_task_id": left})), [leaf])
        # A worker that saves a parent also sends its sub-tasks. They stay unchanged.
        worker = tasks.get(root)
        worker.set_status(Status.Executing)
        worker.set_status(Status.Completed, "planned")
        same("sub_executions after a save", worker.sub_executions, [left, right])


def stops():
    with step("stop twice, then go on"):
        t = tasks.create(agent_id="stops", prompt="run")
        tasks.update(task_id=t.id, status=Status.Executing)
        stopped = tasks.stop(t.id)
        same("status", stopped.status, Status.Stopped)
        same("is_manually_stopped", stopped.is_manually_stopped, True)
        holds("finished_at", stopped.finished_at is not None, stopped.finished_at)
        again = tasks.stop(t.id)
        same("status again", (again.status, again.is_manually_stopped), (Status.Stopped, True))
        same("finished_at again", again.finished_at, stopped.finished_at)
        same("in the list", ids(tasks.list(agent_id="stops", filters={"status": "stopped"})), [t.id])
        # What this sends still says `is_manually_stopped: true` and has the time of the stop.
        again.set_status(Status.Executing)
        for of, task in (("saved", again), ("got", tasks.get(t.id))):
            same(f"status as {of}", task.status, Status.Executing)
            same(f"is_manually_stopped as {of}", task.is_manually_stopped, False)
            same(f"finished_at as {of}", task.finished_at, None)
            holds(f"started_at as {of}", task.started_at is not None, task.started_at)
        again.set_status(Status.Stopped)
        same("status without a person's stop", (again.status, again.is_manually_stopped), (Status.Stopped, False))
        # Stop is no delete, though its method is DELETE.
        same("the task is still there", ids(tasks.list(agent_id="stops")), [t.id])


def refusals():
    with step("an unknown task"):
        known = tasks.create(agent_id="refusals", prompt="known", events_streaming=True)
        ghost = known.model_copy(update={"id": "no-such-task"})
        detail = refused("get", 404, lambda: tasks.get("no-such-task"))
        calls = {
            "load": lambda: Task.load("no-such-task", cfg),
            "update": lambda: tasks.update(task_id="no-such-task", status=Status.Executing),
            "stop": lambda: tasks.stop("no-such-task"),
            "save": ghost.save,
            "reload": ghost.reload,
            "activity log": ghost.get_activity_log,
        }
        for what, call in calls.items():
            same(f"{what}: detail", refused(what, 404, call), detail)
        no_stream("events of an unknown task", ghost)

    with step("a wrong key"):
        stranger = Configuration(api_key="not-the-key-of-anyone-at-all", base_url=BASE_URL)
        theirs = Tasks(configuration=stranger)
        calls = {
            "list": lambda: theirs.list("refusals"),
            "list_user": lambda: theirs.list_user_tasks("u1"),
            "get": lambda: theirs.get(known.id),
            "get of an unknown task": lambda: theirs.get("no-such-task"),
            "create": lambda: theirs.create(agent_id="refusals", prompt="mine"),
            "update": lambda: theirs.update(task_id=known.id, status=Status.Failed),
            "stop": lambda: theirs.stop(known.id),
            "report": lambda: Task.report_external_task(configuration=stranger, agent_id="refusals", id="x"),
        }
        for what, call in calls.items():
            same(f"{what}: detail", refused(what, 401, call), "Invalid or missing API key")
        no_stream("events", known.model_copy(update={"configuration": stranger}))
        same("nothing happened", ids(tasks.list(agent_id="refusals")), [known.id])
        same("nothing happened to it", tasks.get(known.id).status, Status.Pending)


def no_stream(what, task):
    """The SDK does not look at a stream's status, only at its content type."""
    try:
        events = list(task.events())
    except SSEError:
        return
    raise AssertionError(f"{what}: got a stream with {events!r}")


def reports():
    with step("metrics, as a worker reports them"):
        t = tasks.create(agent_id="metrics", prompt="count")
        worker = tasks.get(t.id)
        worker.set_status(Status.Executing)
        worker.result = "counted"
        worker.status = Status.Completed
        worker.save()
        # Saving replaced the local copy by the service's. A worker restores its own counts
        # before it reports them.
        worker.tokens = Tokens(prompt_tokens=40, completion_tokens=2, cache_read_tokens=30)
        worker.used_tools = ["search"]
        worker.report_metrics()  # configured from the environment
        got = tasks.get(t.id)
        same("prompt_tokens", got.tokens.prompt_tokens, 40)
        same("completion_tokens", got.tokens.completion_tokens, 2)
        same("total_tokens", got.tokens.total_tokens, 42)
        same("status, result stay", (got.status, got.result), (Status.Completed, "counted"))

        # `report_metrics` always sends a duration of 0. Its request has a field for another one.
        report = ExecutionMetricsReport(
            execution_id=t.id,
            source="sdk",
            memory_thread_id=t.id,
            task="count",
            status="completed",
            duration=2.5,
            ai_model="model-1",
            result="counted",
            llm_tokens=ExecutionTokens(worker=Tokens(prompt_tokens=50, completion_tokens=3)),
        )
        send = APIClient(configuration=cfg).make_request
        asyncio.run(send("/agents-metrics/metrics/execution", "POST", payload=report.model_dump_safe()))
        got = tasks.get(t.id)
        same("tokens", (got.tokens.prompt_tokens, got.tokens.completion_tokens), (50, 3))
        same("duration", got.duration, 2.5)
        tokens = rest("GET", f"/v1/tasks/{t.id}")["tokens"]
        same("total_tokens over REST", tokens["total_tokens"], 53)

    with step("an external task, reported twice"):
        ext = Task.report_external_task(
            configuration=cfg,
            agent_id="external",
            id="ext-2",
            input="question",
            llm_response={"choices": [1]},
            tokens=Tokens(prompt_tokens=7, completion_tokens=1),
            result="answer",
            duration=1.5,
            used_tools=["search"],
        )
        same("status, result", (ext.status, ext.result), (Status.Completed, "answer"))
        same("tokens, duration", (ext.tokens.total_tokens, ext.duration), (8, 1.5))
        holds("finished_at", ext.finished_at is not None, ext.finished_at)
        holds("source", isinstance(ext.source, str) and ext.source, ext.source)
        again = Task.report_external_task(
            configuration=cfg, agent_id="external", id="ext-2", input="question", result="it broke", is_success=False
        )
        same("id, created_at", (again.id, again.created_at), (ext.id, ext.created_at))
        holds("status", again.status in (Status.Failed, Status.Error), again.status)
        same("result", again.result, "it broke")
        (item,) = tasks.list(agent_id="external")
        same("in the list", (item.id, item.status, item.result), ("ext-2", again.status, "it broke"))
        other = Task.report_external_task(configuration=cfg, agent_id="external", input="no id", result="fine")
        holds("an id is made up", other.id and other.id != "ext-2", other.id)
        same("the list", ids(tasks.list(agent_id="external")), [other.id, "ext-2"])
        same("its log", roles_and_texts(other), [("user", "no id"), ("agent", "fine")])


def event_streams(organization):
    async def run():
        # Every event stream has the organization in its path. Without a configured organization,
        # the path is `/None/...`. The service accepts only the caller's own organization.
        tasks = Tasks(configuration=Configuration(api_key=API_KEY, base_url=BASE_URL, organization_id=organization))

        async def follow(task, act):
            """All events until the stream is closed. Calls `act` once the reader listens."""
            seen, acted = [], False
            async for event in task.aevents():
                seen.append(event)
                same("task_id", event.task_id, task.id)
                same("organization_id", event.organization_id, organization)
                holds("time has a zone", event.time.tzinfo is not None, event.time)
                if event.type == Event.TaskCreated and not acted:
                    acted = True
                    await act()
            return [event for event in seen if event.type != Event.Connected]

        async def create(prompt, **fields):
            return await tasks.acreate(agent_id="streams", prompt=prompt, events_streaming=True, **fields)

        with step("an event stream"):
            task, other = await create("greet"), await create("another")

            async def work():
                worker = await tasks.aget(task.id)
                await worker.aset_status(Status.Executing)
                await push_event(other, "not yours", Event.Chunk)
                await push_event(worker, "Hel", Event.Chunk)
                await push_event(worker, "lo\nworld", Event.Chunk)
                await report_tool_call_request(worker, "r1", "search", payload={"q": "é"})
                await worker.aset_status(Status.Completed, "Hello\nworld")

            seen = await follow(task, work)
            want = [Event.TaskCreated, Event.TaskUpdated, Event.Chunk, Event.Chunk, Event.ToolCallRequest,
                    Event.TaskFinished]
            same("types", [event.type.value for event in seen], [type.value for type in want])
            created, updated, chunk, chunk_2, call, finished = (event.data for event in seen)
            for what, data, status in (("created", created, Status.Pending), ("updated", updated, Status.Executing),
                                       ("finished", finished, Status.Completed)):
                holds(f"the snapshot when {what} is a task", isinstance(data, Task), data)
                same(f"the snapshot's id and status when {what}", (data.id, data.status), (task.id, status))
            same("results", (created.result, updated.result, finished.result), (None, None, "Hello\nworld"))
            holds("finished_at", finished.finished_at is not None, finished.finished_at)
            same("chunks", (chunk, chunk_2), ("Hel", "lo\nworld"))
            same("tool call", (call["request_id"], call["payload"]), ("r1", {"q": "é"}))

        with step("an event stream of a finished task"):
            seen = [event async for event in task.aevents()]
            holds("it ends with task_finished", seen[-1].type == Event.TaskFinished, seen)
            same("status, result", (seen[-1].data.status, seen[-1].data.result), (Status.Completed, "Hello\nworld"))

        with step("an event stream of a follow-up turn"):
            again = await create("greet again", existing_task_id=task.id)

            async def work_again():
                await tasks.aupdate(task_id=task.id, status=Status.Completed, result="Hello again")

            seen = await follow(again, work_again)
            want = [Event.TaskCreated.value, Event.TaskFinished.value]
            same("types", [event.type.value for event in seen], want)
            same("text, status", (seen[0].data.input.text, seen[0].data.status), ("greet again", Status.Pending))
            same("result", seen[-1].data.result, "Hello again")

        with step("an event stream of a stopped task"):
            async def stop():
                await tasks.astop(other.id)

            seen = await follow(other, stop)
            types = [event.type for event in seen]
            same("types", (types[0], types[-1]), (Event.TaskCreated, Event.TaskFinished))
            last = seen[-1].data
            same("status", (last.status, last.is_manually_stopped), (Status.Stopped, True))

    asyncio.run(run())


def organization_in_the_path(organization):
    base_url = f"http://{CONTROLLER}:{urlsplit(BASE_URL).port}"
    config = Configuration(api_key=API_KEY, base_url=base_url, organization_id=organization)
    same("the SDK puts it there", config.get_full_url(), f"{base_url}/{organization}")

    with step("the organization in every path"):
        there = Tasks(configuration=config)
        t = there.create(
            agent_id="there", prompt="over there", events_streaming=True,
            user_details=User(id="u-there", email="there@example.com"),
        )
        same("organization_id", t.organization_id, organization)
        same("list", ids(there.list(agent_id="there", filters={"status": Status.Pending})), [t.id])
        same("list_user", ids(there.list_user_tasks(user_id="u-there")), [t.id])
        same("the same task without it", tasks.get(t.id).input.text, "over there")
        asyncio.run(push_event(t, "nobody listens", Event.Chunk))
        t.set_status(Status.Executing)
        same("update", there.update(task_id=t.id, status=Status.Completed, result="there").result, "there")
        t.reload()
        same("get", (t.status, t.result), (Status.Completed, "there"))
        t.tokens = Tokens(prompt_tokens=3)
        t.report_metrics(configuration=config)
        same("metrics", there.get(t.id).tokens.prompt_tokens, 3)
        same("activity log", roles_and_texts(t), [("user", "over there"), ("agent", "there")])
        seen = list(t.events())
        holds("events", seen and seen[-1].type == Event.TaskFinished, seen)
        ext = Task.report_external_task(configuration=config, agent_id="there", id="ext-3", input="in", result="out")
        same("report", (ext.id, ext.result), ("ext-3", "out"))
        running = there.create(agent_id="there", prompt="stop me")
        same("stop", there.stop(running.id).status, Status.Stopped)
        same("all of them", len(tasks.list(agent_id="there")), 3)

    with step("another organization in the path"):
        foreign = "00000000-0000-4000-8000-000000000000"
        theirs = Tasks(configuration=Configuration(api_key=API_KEY, base_url=base_url, organization_id=foreign))
        calls = {
            "list": lambda: theirs.list("there"),
            "get": lambda: theirs.get(t.id),
            "create": lambda: theirs.create(agent_id="there", prompt="mine"),
            "stop": lambda: theirs.stop(t.id),
        }
        for what, call in calls.items():
            refused(what, 404, call)
        foreign_task = t.model_copy(update={"configuration": theirs.configuration})
        no_stream("events", foreign_task)
        same("nothing happened", len(tasks.list(agent_id="there")), 3)


def main():
    with step("setup"):
        # Any task shows the organization. Only event streams need it.
        cfg.organization_id = tasks.create(agent_id="whoami", prompt="whoami").organization_id
    organization = snippets()
    same("the organization", organization, cfg.organization_id)
    os.environ["XPANDER_ORGANIZATION_ID"] = organization
    as_upstream_tests_it()
    everything_in_a_create()
    filters_of_lists()
    conversation()
    sub_tasks()
    stops()
    refusals()
    reports()
    event_streams(organization)
    organization_in_the_path(organization)


if __name__ == "__main__":
    main()
