"""Records the responses of FastAPI and pydantic in a table.

The hosted API that the service replaces is a FastAPI service. So FastAPI and pydantic define its
validation errors, and what it accepts as an integer, a boolean or JSON. This script runs an app
with the signatures of two of its endpoints and sends it every case below. It writes the responses
to `tests/it/contract/fastapi_answers.json`, and a Rust test compares them with those of the
service. The script needs no server and no network.

    python3.11 -m venv venv
    venv/bin/pip install fastapi==0.165.0 starlette==1.10.0 \\
        pydantic==2.14.3 pydantic_core==2.50.4 httpx==0.28.1
    venv/bin/python3 tests/contract/fastapi_answers.py           # writes the table
    venv/bin/python3 tests/contract/fastapi_answers.py --check   # exits 1 if the table differs

The Python version matters too. The messages and positions of `json_invalid` come from its `json`
module, and Python 3.13 changed the message for a trailing comma.

A row has these fields:

- `name` and `method`
- `target`: path and query, byte for byte as on the wire
- `content_type`: null if there is no such header
- `body`: null if there is none. Bytes that are not UTF-8 are in `body_base64`, without a `body`.
- `status`
- `answer`: the body of an error, `page` and `per_page` of a list, null for an accepted task

The table has no cases that FastAPI itself answers with 500:

- NaN, an infinite number (for example 1e400) or a lone surrogate, if the error echoes it
- bytes that are neither JSON by content type nor UTF-8
- an echo about 950 levels deep
"""

import base64
import importlib.metadata
import json
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import Any, Dict, List, Optional
from urllib.parse import unquote

from fastapi import FastAPI, Query
from pydantic import BaseModel

# Starlette warns at import that it prefers the successor of httpx. Both send these requests alike.
warnings.filterwarnings("ignore", message="Using `httpx` with `starlette.testclient` is deprecated")
from fastapi.testclient import TestClient  # noqa: E402

PYTHON = (3, 11)
PACKAGES = {
    "fastapi": "0.165.0",
    "starlette": "1.10.0",
    "pydantic": "2.14.3",
    "pydantic_core": "2.50.4",
    "httpx": "0.28.1",
}
TABLE = Path(__file__).resolve().parent.parent / "it" / "contract" / "fastapi_answers.json"

# --- The app -------------------------------------------------------------------------------------

app = FastAPI()


class Status(str, Enum):
    pending = "pending"
    executing = "executing"
    paused = "paused"
    error = "error"
    failed = "failed"
    completed = "completed"
    stopped = "stopped"


@app.get("/v1/agents/{agent_id}/tasks")
def get_agent_tasks(
    agent_id: str,
    page: int = Query(1, ge=1),
    per_page: int = Query(20, ge=1, le=50),
    user_id: str = Query(None),
    parent_task_id: str = Query(None),
    triggering_agent_id: str = Query(None),
    status: Status = Query(None),
    internal_status: str = Query(None),
):
    return {"page": page, "per_page": per_page}


class OutputFormat(str, Enum):
    text = "text"
    markdown = "markdown"
    json = "json"
    voice = "voice"


class ThinkMode(str, Enum):
    default = "default"
    harder = "harder"


class ReasoningEffort(str, Enum):
    low = "low"
    medium = "medium"
    high = "high"
    xhigh = "xhigh"


class User(BaseModel):
    id: Optional[str] = None
    first_name: Optional[str] = None
    last_name: Optional[str] = None
    email: str
    additional_attributes: Optional[Dict[str, Any]] = None
    role: Optional[str] = "member"
    is_super_admin: Optional[bool] = False
    timezone: Optional[str] = None


class AgentExecutionInput(BaseModel):
    text: Optional[str] = ""
    files: Optional[List[str]] = []
    user: Optional[User] = None


class AgentExecutionRequest(BaseModel):
    input: AgentExecutionInput
    id: Optional[str] = None
    payload_extension: Optional[Dict[str, Any]] = None
    parent_execution_id: Optional[str] = None
    worker_id: Optional[str] = None
    source: Optional[str] = None
    output_format: Optional[OutputFormat] = OutputFormat.text
    output_schema: Optional[Dict[str, Any]] = None
    run_locally: Optional[bool] = False
    additional_context: Optional[str] = None
    expected_output: Optional[str] = None
    events_streaming: Optional[bool] = False
    mcp_servers: Optional[List[Dict[str, Any]]] = []
    triggering_agent_id: Optional[str] = None
    title: Optional[str] = None
    think_mode: Optional[ThinkMode] = ThinkMode.default
    disable_attachment_injection: Optional[bool] = False
    instructions_override: Optional[str] = None
    test_run_node_id: Optional[str] = None
    user_oidc_token: Optional[str] = None
    user_tokens: Optional[Dict[str, Any]] = None
    return_metrics: bool = False
    llm_model_provider: Optional[str] = None
    llm_model_name: Optional[str] = None
    llm_reasoning_effort: Optional[ReasoningEffort] = None


@app.post("/v1/agents/{agent_id}/invoke/async")
def invoke(agent_id: str, body: AgentExecutionRequest, version: str = Query(None)):
    return {}


# --- The cases -----------------------------------------------------------------------------------

cases: list[dict[str, Any]] = []


def lists(name, query, agent_id="a1"):
    """A GET of the list. `query` starts with `?`, so an empty query differs from no query."""
    cases.append(
        {
            "name": name.replace(" ", "_"),
            "method": "GET",
            "target": f"/v1/agents/{agent_id}/tasks{query}",
            "content_type": None,
            "body": None,
        }
    )


def posts(name, body, content_type="application/json", target="/v1/agents/a1/invoke/async"):
    """A POST of a task. `body` is text, bytes that are not UTF-8, or None."""
    case = {"name": name.replace(" ", "_"), "method": "POST", "target": target, "content_type": content_type}
    if isinstance(body, bytes):
        case["body_base64"] = base64.b64encode(body).decode("ascii")
    else:
        case["body"] = body
    cases.append(case)


def posts_field(name, key, value):
    """A valid body except for one top-level field, given as JSON text."""
    posts(name, f'{{"input":{{}},"{key}":{value}}}')


def posts_input(name, key, value):
    """A valid body except for one field of `input`, given as JSON text."""
    posts(name, f'{{"input":{{"{key}":{value}}}}}')


def list_cases():
    lists("no query", "")
    lists("question mark and nothing else", "?")
    lists("page and per_page plain", "?page=2&per_page=5")

    # Accepted integers, in the parameter without an upper bound.
    for name, value in [
        ("plus sign encoded", "%2B1"),
        ("plus sign bare is a space", "+1"),
        ("only a bare plus", "+"),
        ("only an encoded plus", "%2B"),
        ("only a minus", "-"),
        ("two plus signs", "%2B%2B1"),
        ("plus minus", "%2B-1"),
        ("minus plus", "-%2B1"),
        ("two minus signs", "--1"),
        ("sign and then space", "-%201"),
        ("encoded space before", "%201"),
        ("encoded space after", "1%20"),
        ("spaces around", "%20%201+%20"),
        ("only a space", "%20"),
        ("space inside", "1%200"),
        ("tab and newline around", "%091%0A"),
        ("carriage return vertical tab form feed", "%0D%0B1%0C"),
        ("non-breaking space before", "%C2%A01"),
        ("non-breaking space after", "1%C2%A0"),
        ("next line u0085 before", "%C2%851"),
        ("ogham space u1680 before", "%E1%9A%801"),
        ("em space u2003 before", "%E2%80%831"),
        ("line separator u2028 before", "%E2%80%A81"),
        ("narrow no-break space u202f after", "1%E2%80%AF"),
        ("ideographic space u3000 after", "1%E3%80%80"),
        ("zero width space u200b before", "%E2%80%8B1"),
        ("mongolian vowel separator u180e before", "%E1%A0%8E1"),
        ("byte order mark before", "%EF%BB%BF1"),
        ("file separator u001c before", "%1C1"),
        ("unit separator u001f after", "1%1F"),
        ("underscore inside", "1_0"),
        ("two underscores together", "1__0"),
        ("underscores apart", "1_0_0"),
        ("underscore before", "_1"),
        ("underscore after", "1_"),
        ("underscore alone", "_"),
        ("underscore after the sign", "-_1"),
        ("underscore among leading zeros", "0_0_7"),
        ("two underscores among leading zeros", "0__7"),
        ("underscore ends leading zeros", "00_"),
        ("underscore before decimal point", "1_.0"),
        ("underscore in the integer part of a decimal", "1_0.0"),
        ("underscore in the decimals", "1.0_0"),
        ("leading zeros", "007"),
        ("leading zeros and plus", "%2B007"),
        ("leading zeros and minus", "-007"),
        ("twenty leading zeros", "000000000000000000005"),
        ("minus zero", "-0"),
        ("plus zero", "%2B0"),
        ("zero zero", "00"),
        ("zero", "0"),
        ("minus one", "-1"),
        ("zero minus one", "0-1"),
        ("zero minus zero one", "0-01"),
        ("minus zero minus one", "-0-1"),
        ("decimal zero", "1.0"),
        ("decimal zero zero", "1.00"),
        ("decimal zero and space", "1.0%20"),
        ("space before decimal point", "1%20.0"),
        ("decimal point last", "1."),
        ("decimal point first", ".0"),
        ("decimal point alone", "."),
        ("zero point zero", "0.0"),
        ("minus one point zero", "-1.0"),
        ("two decimal points", "1.0.0"),
        ("decimal half", "1.5"),
        ("decimal hardly", "1.0000000000000000000001"),
        ("exponent", "1e2"),
        ("hexadecimal", "0x10"),
        ("octal", "0o7"),
        ("binary", "0b1"),
        ("thousands comma", "1,000"),
        ("trailing letter", "10L"),
        ("arabic digit", "%D9%A3"),
        ("full-width digit", "%EF%BC%91"),
        ("superscript digit", "%C2%B2"),
        ("ascii and arabic digit", "1%D9%A3"),
        ("minus sign u2212", "%E2%88%921"),
        ("empty", ""),
        ("letters", "abc"),
        ("true", "true"),
        ("null", "null"),
        ("None", "None"),
        ("NaN", "NaN"),
        ("inf", "inf"),
        ("quoted", "%221%22"),
        ("list", "%5B1%5D"),
        ("nul byte alone", "%00"),
        ("nul byte after", "1%00"),
        ("nul byte before", "%001"),
        ("invalid utf-8 byte", "%FF"),
        ("invalid utf-8 byte after a digit", "1%FF"),
        ("percent alone", "%"),
        ("percent after a digit", "1%"),
        ("percent and no hex digits", "1%zz"),
        ("percent and one hex digit", "1%3"),
        ("percent encoded twice", "%2531"),
        ("percent encoded digit", "%31"),
        ("equals sign first", "=2"),
        ("equals sign inside", "2=3"),
        ("question mark inside", "2?per_page=3"),
        ("slash inside", "1/2"),
        ("emoji", "%F0%9F%98%80"),
        ("two", "2"),
        ("fifty one", "51"),
        ("one thousand", "1000"),
        ("i64 max", "9223372036854775807"),
        ("i64 max and one", "9223372036854775808"),
        ("i64 max and one point zero", "9223372036854775808.0"),
        ("i64 max and one with underscores", "9_223_372_036_854_775_808"),
        ("i64 min", "-9223372036854775808"),
        ("i64 min less one", "-9223372036854775809"),
        ("u64 max", "18446744073709551615"),
        ("u64 max and one", "18446744073709551616"),
        ("23 digits", "12345678901234567890123"),
        ("100 digits", "1234567890" * 10),
        ("minus 100 digits", "-" + "1234567890" * 10),
        ("4300 digits", "9" * 4300),
        ("4301 digits", "9" * 4301),
        ("minus 4300 digits", "-" + "9" * 4300),
        ("minus 4301 digits", "-" + "9" * 4301),
        ("plus 4300 digits", "%2B" + "9" * 4300),
        ("plus 4301 digits", "%2B" + "9" * 4301),
        ("space 4300 digits", "%20" + "9" * 4300),
        ("space 4301 digits", "%20" + "9" * 4301),
        ("4301 digits space", "9" * 4301 + "%20"),
        ("4301 digits and a letter", "9" * 4301 + "a"),
        ("4300 digits and a letter", "9" * 4300 + "a"),
        ("4300 digits point zero", "9" * 4300 + ".0"),
        ("4301 digits point zero", "9" * 4301 + ".0"),
        ("4301 digits with one underscore", "9" * 4300 + "_9"),
        ("4301 letters", "a" * 4301),
        ("4300 zeros and a one", "0" * 4300 + "1"),
        ("4301 digits after a zero", "0" + "9" * 4301),
        ("one point 4301 zeros", "1." + "0" * 4301),
    ]:
        lists(f"page {name}", f"?page={value}")
    lists("page no equals sign", "?page")

    # The parameter with a lower and an upper bound.
    for name, value in [
        ("zero", "0"),
        ("minus one", "-1"),
        ("one", "1"),
        ("fifty", "50"),
        ("fifty one", "51"),
        ("one thousand", "1000"),
        ("fifty point zero", "50.0"),
        ("fifty one point zero", "51.0"),
        ("fifty one point five", "51.5"),
        ("plus and leading zeros and spaces", "%20%2B0050%20"),
        ("underscore inside", "5_0"),
        ("underscore inside and too large", "5_1"),
        ("bare plus before", "+5"),
        ("only a bare plus", "+"),
        ("exponent", "1e1"),
        ("empty", ""),
        ("arabic digit", "%D9%A3"),
        ("true", "true"),
        ("nul byte", "%00"),
        ("i64 max", "9223372036854775807"),
        ("i64 max and one", "9223372036854775808"),
        ("i64 min less one", "-9223372036854775809"),
        ("u64 max and one", "18446744073709551616"),
        ("23 digits", "12345678901234567890123"),
        ("minus 23 digits", "-12345678901234567890123"),
        ("4300 digits", "9" * 4300),
        ("4301 digits", "9" * 4301),
        ("minus 4300 digits", "-" + "9" * 4300),
        ("minus 4301 digits", "-" + "9" * 4301),
    ]:
        lists(f"per_page {name}", f"?per_page={value}")
    lists("per_page no equals sign", "?per_page")

    # The enumeration.
    for value in Status:
        lists(f"status {value.value}", f"?status={value.value}")
    for name, value in [
        ("unknown word", "running"),
        ("upper case", "COMPLETED"),
        ("first letter upper case", "Completed"),
        ("space before", "%20completed"),
        ("space after", "completed+"),
        ("empty", ""),
        ("number", "1"),
        ("comma list", "completed,failed"),
        ("name of the class", "Status.completed"),
        ("quoted", "%22completed%22"),
        ("null", "null"),
        ("nul byte after", "completed%00"),
        ("percent encoded letter", "c%6Fmpleted"),
        ("invalid utf-8 byte", "%FF"),
        ("invalid utf-8 truncated four byte sequence", "%F0%9F%98"),
        ("invalid utf-8 truncated then letter", "%E2%82x"),
        ("invalid utf-8 encoded surrogate", "%ED%A0%80"),
        ("invalid utf-8 overlong nul", "%C0%80"),
        ("invalid utf-8 beyond unicode", "%F5%80%80%80"),
        ("percent alone", "%"),
        ("percent and no hex digits", "%zz"),
        ("emoji", "%F0%9F%98%80"),
        ("quote and backslash", "a%22b%5C'c"),
        ("control characters", "%01%1F%7F%C2%80"),
        ("line separators u2028 u2029", "%E2%80%A8%E2%80%A9"),
        ("html", "%3Cscript%3E%26"),
    ]:
        lists(f"status {name}", f"?status={value}")
    lists("status no equals sign", "?status")

    # Repeated parameters.
    for name, query in [
        ("page valid then valid", "page=2&page=3"),
        ("page valid then invalid", "page=2&page=x"),
        ("page invalid then valid", "page=x&page=2"),
        ("page valid then empty", "page=2&page="),
        ("page valid then without equals sign", "page=2&page"),
        ("page empty then valid", "page=&page=2"),
        ("page with another between", "page=0&per_page=5&page=4"),
        ("page plain and encoded name", "page=2&p%61ge=3"),
        ("status valid then invalid", "status=completed&status=running"),
        ("status invalid then valid", "status=running&status=completed"),
        ("status valid then valid", "status=failed&status=completed"),
        ("status valid then empty", "status=failed&status="),
        ("per_page both invalid", "per_page=0&per_page=51"),
        ("user_id twice", "user_id=a&user_id=b"),
    ]:
        lists(f"repeated {name}", f"?{query}")

    # Several errors: their order.
    for name, query in [
        ("reverse of declaration", "status=x&per_page=0&page=0"),
        ("of different kinds", "status=&per_page=51&page="),
        ("page and per_page", "per_page=abc&page=1.5"),
        ("one valid between", "status=X&per_page=10&page=-1"),
        ("repeats of each", "status=x&page=a&per_page=b&status=y&page=c&per_page=d"),
        ("and unknown parameters", "limit=x&status=x&offset=-1&page=x"),
    ]:
        lists(f"several faults {name}", f"?{query}")

    # Names and separators.
    for name, query in [
        ("unknown parameter", "limit=5&offset=x"),
        ("unknown parameter without a value", "foo"),
        ("name in upper case", "PAGE=0&Per_Page=x"),
        ("name with a hyphen", "per-page=x"),
        ("name in camel case", "perPage=x"),
        ("name with brackets", "page[]=x"),
        ("name with encoded brackets", "page%5B%5D=x"),
        ("name with brackets and index", "page[0]=x"),
        ("name percent encoded", "%70%61%67%65=3"),
        ("name with encoded underscore", "per%5Fpage=3"),
        ("name percent encoded and value bad", "%70age=x"),
        ("name with a space before", "%20page=x"),
        ("name with a bare plus before", "+page=x"),
        ("name with a space after", "page%20=x"),
        ("name with a nul byte", "page%00=x"),
        ("name with an invalid utf-8 byte", "page%FF=x"),
        ("name empty", "=x"),
        ("name and value empty", "="),
        ("name percent encoded twice", "%2570age=x"),
        ("encoded equals sign in name", "page%3D2"),
        ("encoded ampersand in value", "page=2%26per_page=x"),
        ("semicolon as separator", "page=2;per_page=3"),
        ("semicolon in a text filter", "user_id=a;page=x"),
        ("html ampersand", "page=2&amp;per_page=x"),
        ("comma as separator", "page=2,per_page=3"),
        ("empty pairs", "&&page=2&&&per_page=3&"),
        ("only ampersands", "&&&"),
        ("another question mark first", "?page=x"),
        ("encoded question mark", "%3Fpage=x"),
    ]:
        lists(f"names {name}", f"?{query}")

    # Text filters accept any text.
    for name, query in [
        ("all empty", "user_id=&parent_task_id=&triggering_agent_id=&internal_status="),
        ("without equals sign", "user_id&internal_status"),
        ("numbers and words", "user_id=5&parent_task_id=true&triggering_agent_id=null&internal_status=1.5"),
        ("space and plus", "user_id=a+b%20c%2Bd"),
        ("percent encoded utf-8", "user_id=%C3%A9%F0%9F%98%80&internal_status=%E2%82%AC"),
        ("invalid utf-8", "user_id=%FF&internal_status=%C3%28"),
        ("invalid utf-8 encoded surrogate", "user_id=%ED%A0%80"),
        ("nul byte", "user_id=%00&internal_status=a%00b"),
        ("control characters", "user_id=%0A%0D%09%7F"),
        ("percent that encodes nothing", "user_id=100%&internal_status=%zz"),
        ("sql", "user_id=%27%20OR%20%271%27%3D%271"),
        ("1000 characters", "internal_status=" + "x" * 1000),
        ("task id not a uuid", "parent_task_id=not-a-uuid"),
        ("text good and page bad", "user_id=u&internal_status=waiting&page=0"),
    ]:
        lists(f"text filters {name}", f"?{query}")

    for name, agent_id in AGENT_IDS:
        lists(f"agent id {name}", "?page=1", agent_id)
    lists("agent id odd and page bad", "?page=0", "a%20b")


AGENT_IDS = [
    ("with spaces", "%20a%20b%20"),
    ("a space only", "%20"),
    ("a bare plus", "a+b"),
    ("not a uuid", "agent"),
    ("unreserved characters", "a-b._~c"),
    ("sub-delimiters", "!$&'()*+,;="),
    ("colon and at", "a:b@c"),
    ("percent encoded utf-8", "%C3%A9%F0%9F%98%80"),
    ("invalid utf-8", "a%FFb"),
    ("nul byte", "a%00b"),
    ("newline", "a%0Ab"),
    ("encoded question mark and hash", "a%3Fb%23c"),
    ("encoded percent", "100%25"),
    ("encoded percent before digits", "a%2541"),
    ("backslash encoded", "a%5Cb"),
    ("tasks", "tasks"),
    ("300 characters", "x" * 300),
]

# Numbers that another implementation may echo differently, as JSON text.
ECHOED_NUMBERS = [
    "5",
    "0",
    "-0",
    "-0.0",
    "0.0",
    "1.0",
    "1.10",
    "100e-2",
    "1e2",
    "1E+2",
    "1e15",
    "1e16",
    "123456789012345678.0",
    "9007199254740993",
    "9007199254740993.0",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "1" + "0" * 30,
    "1" + "0" * 4299,
    "1e22",
    "1e23",
    "0.0001",
    "0.00001",
    "1e-7",
    "5e-324",
    "1e-400",
    "-1e-400",
    "1.7976931348623157e308",
    "0.1",
    "0.30000000000000004",
    "3.141592653589793238462643",
    "2.5e-8",
]


def body_cases():
    # No body, and bodies that are not objects.
    posts("body none and no content type", None, None)
    posts("body none with json content type", None)
    posts("body none with text content type", None, "text/plain")
    posts("body empty string", "")
    posts("body empty string and no content type", "", None)
    for name, text in [
        ("one space", " "),
        ("newline", "\n"),
        ("spaces tabs and newlines", " \t\r\n \n"),
        ("non-breaking space", "\u00a0"),
        ("vertical tab", "\u000b"),
        ("form feed", "\u000c"),
        ("nul character", "\u0000"),
        ("null", "null"),
        ("null between spaces", " \n null \t"),
        ("true", "true"),
        ("false", "false"),
        ("one", "1"),
        ("zero", "0"),
        ("negative fraction", "-1.5"),
        ("string", '"x"'),
        ("empty string literal", '""'),
        ("string holding an object", '"{\\"input\\":{}}"'),
        ("empty list", "[]"),
        ("list with a good object", '[{"input":{}}]'),
        ("list of pairs", '[["input",{}]]'),
        ("empty object", "{}"),
        ("smallest good object", '{"input":{}}'),
        ("good object in spaces", ' \t\r\n{ "input" \n: { } }\r\n '),
        ("object with other keys only", '{"Input":{},"text":"x"}'),
        ("everything given and good", GOOD),
        ("everything optional null", NULLS),
    ]:
        posts(f"body {name}", text)

    # Broken JSON: message and position.
    for name, text in [
        # objects
        ("object opened", "{"),
        ("object opened and spaces", "{  \n"),
        ("object truncated in key", '{"inp'),
        ("object truncated after key", '{"input"'),
        ("object truncated after key and spaces", '{"input"  '),
        ("object truncated after colon", '{"input":'),
        ("object truncated after colon and spaces", '{"input":  '),
        ("object truncated after value", '{"input":1'),
        ("object truncated after value and spaces", '{"input":1  '),
        ("object truncated after comma", '{"input":1,'),
        ("object truncated after comma and spaces", '{"input":1,  '),
        ("object truncated inside object", '{"input":{'),
        ("object one brace short", '{"input":{}'),
        ("object one brace too many", '{"input":{}}}'),
        ("object missing colon", '{"input" {}}'),
        ("object equals sign for colon", '{"input"={}}'),
        ("object two colons", '{"input"::{}}'),
        ("object missing value", '{"input":}'),
        ("object missing value before comma", '{"input":,"id":"x"}'),
        ("object missing comma", '{"input":{} "id":"x"}'),
        ("object missing comma and spaces", '{"input":{}   "id":"x"}'),
        ("object semicolon for comma", '{"input":{};"id":"x"}'),
        ("object two commas", '{"input":{},,"id":"x"}'),
        ("object trailing comma", '{"input":{},}'),
        ("object trailing comma and spaces", '{"input":{} , \n }'),
        ("object only a comma", "{,}"),
        ("object leading comma", '{,"input":{}}'),
        ("object key without quotes", "{input:{}}"),
        ("object key in single quotes", "{'input':{}}"),
        ("object key a number", "{1:2}"),
        ("object key null", "{null:1}"),
        ("object key a list", "{[]:1}"),
        ("object second key without quotes", '{"input":{}, id:"x"}'),
        ("object closed by a bracket", '{"input":{}]'),
        ("object of values only", '{"input","id"}'),
        # arrays
        ("array opened", "["),
        ("array opened and spaces", "[  "),
        ("array truncated after value", "[1"),
        ("array truncated after value and spaces", "[1  "),
        ("array truncated after comma", "[1,"),
        ("array truncated after comma and spaces", "[1,  "),
        ("array trailing comma", "[1,]"),
        ("array trailing comma and spaces", "[1 , ]"),
        ("array only a comma", "[,]"),
        ("array leading comma", "[,1]"),
        ("array two commas", "[1,,2]"),
        ("array missing comma", "[1 2]"),
        ("array closed by a brace", "[1}"),
        ("array with a colon", '["a":1]'),
        ("array nested and truncated", "[[[["),
        # strings
        ("string opened", '"'),
        ("string unterminated", '"abc'),
        ("string unterminated after spaces", '  "abc'),
        ("string unterminated by an escaped quote", '"abc\\"'),
        ("string unterminated after a backslash", '"abc\\'),
        ("string value unterminated", '{"input":{"text":"hello}}'),
        ("string in single quotes", "'x'"),
        ("string value in single quotes", "{\"input\":{\"text\":'x'}}"),
        ("string value in curly quotes", '{"input":{"text":\u201cx\u201d}}'),
        ("string newline inside", '{"input":{"text":"a\nb"}}'),
        ("string tab inside", '{"input":{"text":"a\tb"}}'),
        ("string nul inside", '{"input":{"text":"a\u0000b"}}'),
        ("string control u001f inside", '"\u001f"'),
        ("string carriage return inside a key", '{"inp\rut":1}'),
        ("string control and never terminated", '"a\n'),
        ("string bad escape", '"\\x41"'),
        ("string bad escape later", '{"input":{"text":"ab\\q cd"}}'),
        ("string bad escape in a key", '{"in\\put":1}'),
        ("string escaped single quote", "\"\\'\""),
        ("string escaped upper case u", '"\\U0041"'),
        ("string escaped newline", '"\\\n"'),
        ("string bad u escape", '"\\u12G4"'),
        ("string short u escape", '"\\u12"'),
        ("string u escape without digits", '"ab\\u"'),
        ("string u escape truncated", '"\\u123'),
        ("string u escape truncated after four digits", '"\\u1234'),
        ("string u escape cut after u", '"abc\\u'),
        ("string u escape with a sign", '"\\u+123"'),
        ("string u escape with a space", '"\\u 123"'),
        ("string u escape with an underscore", '"\\u1_23"'),
        ("string u escape with full-width digits", '"\\u\uff11\uff12\uff13\uff14"'),
        ("string short second u escape of a pair", '"\\ud83d\\u12"'),
        ("string bad second u escape of a pair", '"\\ud83d\\uZZZZ x"'),
        # numbers
        ("number leading zero", "01"),
        ("number leading zero negative", "-01"),
        ("number leading zero as a value", '{"input":007}'),
        ("number decimal point last", "1."),
        ("number decimal point last as a value", '{"input":1.}'),
        ("number decimal point first", ".5"),
        ("number plus sign", "+1"),
        ("number minus alone", "-"),
        ("number minus as a value", '{"input":-}'),
        ("number minus decimal point", "-.5"),
        ("number minus minus", "--1"),
        ("number minus space", "- 1"),
        ("number exponent empty", "1e"),
        ("number exponent sign only", "1e+"),
        ("number exponent fraction", "1e1.5"),
        ("number hexadecimal", "0x10"),
        ("number underscore", "1_000"),
        ("number full-width digit", "\uff11"),
        ("number arabic digit after a digit", "1\u0663"),
        ("number two decimal points", "1.2.3"),
        # words
        ("word true upper case", "True"),
        ("word None", "None"),
        ("word null upper case", "NULL"),
        ("word undefined", "undefined"),
        ("word nul", "nul"),
        ("word nulls", "nulls"),
        ("word truefalse", "truefalse"),
        ("word nan lower case", "nan"),
        ("word minus nan", "-NaN"),
        ("word Na", "Na"),
        ("word Infinit", "Infinit"),
        ("word minus Infinit", "-Infinit"),
        ("word inf", "inf"),
        ("word plus infinity", "+Infinity"),
        ("word bare", "hello"),
        ("word as a value", '{"input":hello}'),
        # extra data
        ("extra object", '{"input":{}}{"input":{}}'),
        ("extra object on the next line", '{"input":{}}\n{"input":{}}\n'),
        ("extra word", '{"input":{}} x'),
        ("extra comma", '{"input":{}},'),
        ("extra number", "1 2"),
        ("extra nul character", '{"input":{}}\u0000'),
        ("extra non-breaking space", '{"input":{}}\u00a0'),
        ("extra after spaces and newlines", "{}  \r\n\r\n  x"),
        ("extra after a string", '"a""b"'),
        # comments, other formats
        ("comment of a line", '// x\n{"input":{}}'),
        ("comment inside", '{"input":{} /* x */}'),
        ("comment hash", '# x\n{"input":{}}'),
        ("comment after", '{"input":{}} // x'),
        ("form", "input=x&id=1"),
        ("xml", "<input/>"),
        ("yaml", "input:\n  text: x\n"),
        ("xssi prefix", ")]}',\n{}"),
        ("byte order mark in the middle", '{\ufeff"input":{}}'),
        ("byte order mark twice", '\ufeff\ufeff{"input":{}}'),
        # whether the position counts characters, and how it counts a newline
        ("after two byte characters", '{"\u00e9\u00e9":"\u00e9" x'),
        ("after three byte characters", '{"\u20ac\u20ac":"\u20ac" x'),
        ("after four byte characters", '{"\U0001f600\U0001f600":"\U0001f600" x'),
        ("unterminated after four byte characters", '{"input":{"text":"\U0001f600","files":["\U0001f600'),
        ("bad escape after four byte characters", '"\U0001f600\\q"'),
        ("control character after four byte characters", '"\U0001f600\n"'),
        ("extra data after combining characters", '"e\u0301" x'),
        ("after an escaped surrogate pair", '"\\ud83d\\ude00" x'),
        ("after newlines", '{\n  "input": {\n    "text": oops\n  }\n}\n'),
        ("after carriage returns and newlines", '{\r\n  "input": {\r\n    "text": oops\r\n  }\r\n}\r\n'),
        ("after a byte order mark", '\ufeff{"input":{},}'),
        # deeply nested
        ("nested missing comma", '{"input":{"files":["a" "b"]}}'),
        ("nested missing colon", '{"input":{"user":{"email" "x"}}}'),
        ("nested trailing comma in array", '{"input":{"files":["a",]}}'),
        ("nested trailing comma in object", '{"input":{"user":{"email":"x",}}}'),
        ("nested closed in the wrong order", '{"input":{"files":["a"}]}'),
        ("nested 300 arrays never closed", "[" * 300),
        ("nested after wrong types", '{"input":5,"id":5,'),
    ]:
        posts(f"broken {name}", text)

    # JSON that only some parsers accept.
    for name, text in [
        ("NaN in a free object", '{"input":{},"payload_extension":{"a":NaN}}'),
        ("Infinity in a free object", '{"input":{},"payload_extension":{"a":Infinity}}'),
        ("minus Infinity in a free object", '{"input":{},"payload_extension":{"a":-Infinity}}'),
        ("NaN in an unknown key", '{"input":{},"x":NaN}'),
        ("1e400 in a free object", '{"input":{},"payload_extension":{"a":1e400}}'),
        ("minus 1e400 in a list of objects", '{"input":{},"mcp_servers":[{"a":-1e400}]}'),
        ("number of 4300 digits in a free object", '{"input":{},"payload_extension":{"a":' + "9" * 4300 + "}}"),
        ("number of 4301 digits in a free object", '{"input":{},"payload_extension":{"a":' + "9" * 4301 + "}}"),
        ("number of minus 4300 digits", '{"input":{},"x":-' + "9" * 4300 + "}"),
        ("number of minus 4301 digits", '{"input":{},"x":-' + "9" * 4301 + "}"),
        ("number of 4301 digits alone", "9" * 4301),
        ("number of 4301 digits before a syntax error", "[" + "9" * 4301 + ",]"),
        ("number of 4301 digits after a syntax error", "[,]" + "9" * 4301),
        ("fraction of 5000 digits", '{"input":{},"x":0.' + "3" * 5000 + "}"),
        ("integer part of 5000 digits and a fraction", '{"input":{},"x":' + "3" * 5000 + ".5}"),
        ("duplicate input bad then good", '{"input":5,"input":{}}'),
        ("duplicate input good then bad", '{"input":{},"input":5}'),
        ("duplicate keys echoed", '{"a":1,"b":2,"a":3}'),
        ("duplicate keys do not merge", '{"input":{"text":5},"input":{"files":null}}'),
        ("duplicate key one of them escaped", '{"id":5,"i\\u0064":"x","input":{}}'),
        ("key escaped", '{"\\u0069nput":{}}'),
        ("key empty", '{"":1}'),
        ("key with a nul character", '{"input\\u0000":{}}'),
        ("key proto", '{"__proto__":{"input":{}}}'),
        ("nested 100 deep in a free object", '{"input":{},"payload_extension":{"a":' + "[" * 100 + "]" * 100 + "}}"),
        ("nested 20000 deep", "[" * 20000),
        ("nested 20000 deep in a free object", '{"input":{},"payload_extension":{"a":' + "[" * 20000 + "]" * 20000 + "}}"),
        ("byte order mark before a good object", '\ufeff{"input":{}}'),
        ("byte order mark alone", "\ufeff"),
        ("byte order mark and spaces", "\ufeff  "),
        ("byte order mark before an empty object", "\ufeff{}"),
        ("space before a byte order mark", ' \ufeff{"input":{}}'),
        ("delete and c1 controls in a string", '{"input":"\u007f\u0080\u009f"}'),
    ]:
        posts(f"lenient {name}", text)

    # Bytes.
    good = '{"input":{"text":"h\u00e9"}}'
    for name, raw in [
        ("invalid utf-8 in a string", b'{"input":{"text":"\xff"}}'),
        ("invalid utf-8 alone", b"\xff"),
        ("invalid utf-8 after a syntax error", b"{oops \xff}"),
        ("invalid utf-8 after a good object", b'{"input":{}}\xff'),
        ("invalid utf-8 truncated at the end", b'{"input":"\xe2\x82'),
        ("invalid utf-8 overlong", b'{"input":"\xc0\x80"}'),
        ("latin-1", good.encode("latin-1")),
        ("utf-16 with byte order mark", b"\xff\xfe" + good.encode("utf-16-le")),
        ("utf-16 big endian with byte order mark", b"\xfe\xff" + good.encode("utf-16-be")),
        ("utf-16 little endian without byte order mark", good.encode("utf-16-le")),
        ("utf-16 big endian without byte order mark", good.encode("utf-16-be")),
        ("utf-16 little endian empty object", "{}".encode("utf-16-le")),
        ("utf-16 broken json", '{"input":\U0001f600}'.encode("utf-16-le")),
        ("utf-16 odd number of bytes", good.encode("utf-16-le") + b"x"),
        ("utf-32 with byte order mark", b"\xff\xfe\x00\x00" + good.encode("utf-32-le")),
        ("utf-32 little endian without byte order mark", good.encode("utf-32-le")),
        ("utf-32 big endian without byte order mark", good.encode("utf-32-be")),
        ("utf-8 byte order mark in two pieces", b"\xef\xbb{}"),
        ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00"),
    ]:
        posts(f"bytes {name}", raw)
    posts("bytes utf-8 with charset latin-1", good, "application/json; charset=latin-1")
    posts("bytes latin-1 with charset latin-1", good.encode("latin-1"), "application/json; charset=latin-1")

    # Content types, with a valid body and with an invalid one.
    for content_type in [
        None,
        "",
        "text/plain",
        "text/plain; charset=utf-8",
        "text/json",
        "text/html",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "application/xml",
        "application/vnd.api+json",
        "application/problem+json; charset=utf-8",
        "application/+json",
        "application/geo+json+x",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "application/json ; charset=utf-8",
        "application/json;",
        "application/json; charset=utf-16",
        "application/json; boundary",
        "APPLICATION/JSON",
        "Application/Vnd.Api+JSON",
        "application/jsonx",
        "application/json5",
        "application/x-json",
        "application/x-ndjson",
        "application/json-patch",
        "application/json/x",
        "application /json",
        "application/ json",
        "application/json, text/plain",
        "application/json,",
        '"application/json"',
        "application",
        "application/",
        "/json",
        "json",
        "*/*",
        "image/svg+json",
        ";application/json",
    ]:
        shown = "none" if content_type is None else content_type or "empty"
        posts(f"content type {shown} with good json", '{"input":{}}', content_type)
        posts(f"content type {shown} with broken json", '{"input":{}', content_type)
    for name, content_type, body in [
        ("none with bad values", None, '{"input":5}'),
        ("text with spaces only", "text/plain", "  "),
        ("text with a null", "text/plain", "null"),
        ("text with non-ascii", "text/plain", "\u00e9\u20ac\U0001f600"),
        ("text with controls and quotes", "text/plain", 'a"b\\c\n\u0000\u007f'),
        ("text with a byte order mark", "text/plain", "\ufeff{}"),
        ("form with a form", "application/x-www-form-urlencoded", "input=%7B%7D&id=1+2"),
        (
            "multipart with a multipart body",
            "multipart/form-data; boundary=x",
            '--x\r\nContent-Disposition: form-data; name="input"\r\n\r\n{}\r\n--x--\r\n',
        ),
        ("vendor json with bad values", "application/vnd.api+json", '{"input":5}'),
    ]:
        posts(f"content type {name}", body, content_type)

    # `input`, its text and files.
    for name, body in [
        ("missing among others", '{"id":"x","title":"t"}'),
        ("missing and others wrong", '{"id":1,"run_locally":"maybe"}'),
        ("null", '{"input":null}'),
        ("string", '{"input":"x"}'),
        ("string holding json", '{"input":"{}"}'),
        ("number", '{"input":5}'),
        ("true", '{"input":true}'),
        ("empty list", '{"input":[]}'),
        ("list of objects", '{"input":[{"text":"x"}]}'),
        ("with unknown keys", '{"input":{"x":1,"Text":5}}'),
        ("everything null", '{"input":{"text":null,"files":null,"user":null}}'),
        ("everything wrong", '{"input":{"user":1,"files":2,"text":3}}'),
        ("string with escapes", '{"input":"\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\\u007f\\u00e9\\u20ac\\ud83d\\ude00"}'),
        ("string with separators", '{"input":"\u2028\u2029<>&\'"}'),
        ("object echoed whole", '{"x":{"b":[1,2.50,null,true,"\\u00e9",{"c":{}}],"a":[]},"y":""}'),
        ("list echoed whole", '{"input":[1,2.50,null,[true,"\\u00e9",{"c":{}}],-0]}'),
        ("list nested 100 deep echoed", '{"input":' + "[" * 100 + "]" * 100 + "}"),
    ]:
        posts(f"input {name}", body)
    for name, value in [
        ("empty", '""'),
        ("string", '"x"'),
        ("escapes", '"\\u0000\\n\\ud83d\\ude00"'),
        ("null", "null"),
        ("true", "true"),
        ("false", "false"),
        ("list", '["x"]'),
        ("empty list", "[]"),
        ("object", '{"a":"x"}'),
        ("empty object", "{}"),
    ]:
        posts_input(f"text {name}", "text", value)
    for number in ECHOED_NUMBERS:
        shown = number if len(number) < 40 else f"of {len(number)} digits"
        posts_input(f"text number {shown}", "text", number)
    for name, value in [
        ("null", "null"),
        ("empty", "[]"),
        ("one", '["a"]'),
        ("string", '"a"'),
        ("empty string", '""'),
        ("number", "1"),
        ("false", "false"),
        ("object", '{"0":"a"}'),
        ("empty object", "{}"),
        ("numbers and nulls among strings", '["a",1,"b",null,1.5,true,[],{}]'),
        ("nested list", '[["a"]]'),
        ("twelve numbers", "[0,1,2,3,4,5,6,7,8,9,10,11]"),
    ]:
        posts_input(f"files {name}", "files", value)

    # `input.user`.
    for name, value in [
        ("null", "null"),
        ("empty object", "{}"),
        ("list", "[]"),
        ("list of pairs", '[["email","x"]]'),
        ("string", '"x"'),
        ("number", "0"),
        ("false", "false"),
        ("email only", '{"email":"not an address"}'),
        ("email empty", '{"email":""}'),
        ("email missing", '{"id":"1","role":"admin"}'),
        ("email null", '{"email":null}'),
        ("email number", '{"email":5}'),
        ("email list", '{"email":["a"]}'),
        ("email missing and others wrong", '{"timezone":[],"is_super_admin":"maybe","id":1}'),
        ("everything null but email", '{"id":null,"first_name":null,"last_name":null,"email":"x","additional_attributes":null,"role":null,"is_super_admin":null,"timezone":null}'),
        ("everything good", '{"id":"1","first_name":"a","last_name":"b","email":"x","additional_attributes":{"a":[1]},"role":"r","is_super_admin":"yes","timezone":"UTC"}'),
        ("everything wrong and backwards", '{"timezone":1,"is_super_admin":2,"role":3,"additional_attributes":4,"email":5,"last_name":6,"first_name":7,"id":8}'),
        ("additional_attributes list", '{"email":"x","additional_attributes":[]}'),
        ("additional_attributes string", '{"email":"x","additional_attributes":"a"}'),
        ("unknown keys", '{"email":"x","name":5}'),
    ]:
        posts_input(f"user {name}", "user", value)

    # All fields at once, and each string field alone.
    posts("all fields wrong in order", ALL_WRONG)
    posts("all fields wrong and backwards", json.dumps(dict(reversed(json.loads(ALL_WRONG).items()))))
    posts("all fields null", '{"input":null,' + NULLS.split(",", 1)[1].replace("}", ',"return_metrics":null}'))
    for i, key in enumerate(STRINGS):
        posts_field(f"string {key} wrong", key, ["5", "true", "[]", "{}", "1.5"][i % 5])
    posts("all strings numbers", json.dumps({"input": {}} | {key: n for n, key in enumerate(STRINGS)}))
    posts("all strings empty", json.dumps({"input": {}} | dict.fromkeys(STRINGS, "")))

    # Enumerations.
    for key, good_value in [("output_format", "markdown"), ("think_mode", "harder"), ("llm_reasoning_effort", "xhigh")]:
        for name, value in [
            ("good", f'"{good_value}"'),
            ("null", "null"),
            ("unknown word", '"nope"'),
            ("upper case", f'"{good_value.upper()}"'),
            ("space before", f'" {good_value}"'),
            ("empty", '""'),
            ("number", "1"),
            ("fraction", "1.50"),
            ("true", "true"),
            ("list", f'["{good_value}"]'),
            ("object", "{}"),
        ]:
            posts_field(f"enum {key} {name}", key, value)
    for key, enum in [("output_format", OutputFormat), ("think_mode", ThinkMode), ("llm_reasoning_effort", ReasoningEffort)]:
        for value in enum:
            posts_field(f"enum {key} value {value.value}", key, f'"{value.value}"')

    # Booleans.
    for value in ["true", "false", "null"]:
        posts_field(f"bool {value}", "run_locally", value)
    for value in [
        *["0", "1", "2", "-1", "-0", "256", "4294967297", "18446744073709551617", "1" + "0" * 30],
        *["9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809"],
        *["0.0", "-0.0", "1.0", "0.5", "1.5", "2.0", "-1.0", "1e0", "10e-1", "1e-400", "1.0000000000000001"],
        *["1e18", "9.2e18", "9223372036854774784.0", "9223372036854775807.0", "-9223372036854775808.0", "1e19", "1e300"],
    ]:
        posts_field(f"bool number {value}", "run_locally", value)
    for value in [
        *["true", "TRUE", "True", "tRuE", "false", "FALSE", "yes", "Yes", "no", "NO", "on", "oN", "off", "OFF"],
        *["1", "0", "t", "T", "f", "F", "y", "Y", "n", "N"],
        *["maybe", "2", "-1", "01", "00", "1.0", "+1", "null", "None", "ok", "enabled", "tru", "truee"],
    ]:
        posts_field(f"bool string {value}", "run_locally", f'"{value}"')
    for name, value in [
        ("string empty", '""'),
        ("string of a space", '" "'),
        ("string space before true", '" true"'),
        ("string space after true", '"true "'),
        ("string newline after true", '"true\\n"'),
        ("string full-width one", '"\uff11"'),
        ("string full-width true", '"\uff34\uff32\uff35\uff25"'),
        ("string off with a ligature", '"o\ufb00"'),
        ("string kelvin sign", '"o\u212a"'),
        ("list empty", "[]"),
        ("list of true", "[true]"),
        ("object empty", "{}"),
        ("object with true", '{"a":true}'),
    ]:
        posts_field(f"bool {name}", "run_locally", value)
    for name, value in [
        ("true", "true"),
        ("null", "null"),
        ("number 0", "0"),
        ("number 1.0", "1.0"),
        ("number 2", "2"),
        ("number 0.5", "0.5"),
        ("string on", '"on"'),
        ("string empty", '""'),
        ("string maybe", '"maybe"'),
        ("list empty", "[]"),
    ]:
        posts_field(f"bool not optional {name}", "return_metrics", value)

    # Objects and lists of objects.
    for key in ["payload_extension", "output_schema", "user_tokens"]:
        for name, value in [
            ("null", "null"),
            ("empty", "{}"),
            ("list", "[]"),
            ("list of pairs", '[["a",1]]'),
            ("string", '"{}"'),
            ("number", "1"),
            ("true", "true"),
        ]:
            posts_field(f"object {key} {name}", key, value)
    posts_field("object of everything", "payload_extension", '{"":null,"a":[1,{"b":[]}],"c":1.5,"\\u0000":"\\ud83d\\ude00"}')
    for name, value in [
        ("null", "null"),
        ("empty", "[]"),
        ("objects", '[{},{"a":1}]'),
        ("object", "{}"),
        ("object with keys", '{"0":{}}'),
        ("string", '"x"'),
        ("number", "5"),
        ("true", "true"),
        ("with others among them", '[{},1,"x",null,[],{"a":1},true]'),
        ("nested list", "[[{}]]"),
    ]:
        posts_field(f"list of objects {name}", "mcp_servers", value)

    # Unknown keys, query and path.
    posts("unknown keys ignored", '{"input":{},"agent_id":5,"status":"running","Return_Metrics":"maybe","a b":[null]}')
    posts("unknown keys echoed with a missing one", '{"agent_id":5,"é":"é"}')
    for name, query in [
        ("plain", "?version=3"),
        ("empty", "?version="),
        ("twice", "?version=1&version=2"),
        ("unknown parameter", "?versions=x&page=x"),
        ("invalid utf-8", "?version=%FF"),
    ]:
        posts(f"version {name}", '{"input":{}}', target=f"/v1/agents/a1/invoke/async{query}")
    posts("version plain and body bad", '{"input":5}', target="/v1/agents/a1/invoke/async?version=3")
    for name, agent_id in AGENT_IDS:
        posts(f"post agent id {name}", '{"input":{}}', target=f"/v1/agents/{agent_id}/invoke/async")
    posts("post agent id odd and body bad", "{}", target="/v1/agents/a%20b/invoke/async")


STRINGS = [
    name
    for name, field in AgentExecutionRequest.model_fields.items()
    if field.annotation == Optional[str]
]
NULLS = '{"input":{},' + ",".join(
    f'"{name}":null' for name in AgentExecutionRequest.model_fields if name not in ("input", "return_metrics")
) + "}"
GOOD = json.dumps(
    {
        "input": {"text": "Read this", "files": ["https://example.com/a.pdf"], "user": {"email": "a@example.com"}},
        **dict.fromkeys(STRINGS, "x"),
        "payload_extension": {"a": 1},
        "output_format": "json",
        "output_schema": {"type": "object"},
        "run_locally": True,
        "events_streaming": True,
        "mcp_servers": [{"url": "https://example.com"}],
        "think_mode": "harder",
        "disable_attachment_injection": True,
        "user_tokens": {"a": "b"},
        "return_metrics": True,
        "llm_reasoning_effort": "high",
    }
)
ALL_WRONG = json.dumps(
    {
        "input": {"text": 1, "files": ["a", 2, None], "user": {"id": 3, "role": [], "is_super_admin": "maybe"}},
        "id": 4,
        "payload_extension": [5],
        "parent_execution_id": True,
        "worker_id": [],
        "source": {},
        "output_format": "pdf",
        "output_schema": "{}",
        "run_locally": "maybe",
        "additional_context": 6.5,
        "expected_output": False,
        "events_streaming": 2,
        "mcp_servers": [{}, 7, "x"],
        "triggering_agent_id": 8,
        "title": ["t"],
        "think_mode": "hard",
        "disable_attachment_injection": [],
        "instructions_override": 9,
        "test_run_node_id": 10,
        "user_oidc_token": 11,
        "user_tokens": "t",
        "return_metrics": None,
        "llm_model_provider": 12,
        "llm_model_name": 13,
        "llm_reasoning_effort": 14,
    }
)


# --- The responses -------------------------------------------------------------------------------


class OnTheWire:
    """Passes the target to the app unchanged. The client would repair it and decode it twice."""

    def __init__(self, app):
        self.app = app
        self.target = b"/"

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            path, _, query = self.target.partition(b"?")
            scope |= {"path": unquote(path.decode("ascii")), "raw_path": path, "query_string": query}
        await self.app(scope, receive, send)


def answered():
    wire = OnTheWire(app)
    client = TestClient(wire, raise_server_exceptions=False)
    rows = []
    for case in cases:
        wire.target = case["target"].encode("ascii")
        if "body_base64" in case:
            content = base64.b64decode(case["body_base64"])
        else:
            content = None if case["body"] is None else case["body"].encode("utf-8")
        headers = {} if case["content_type"] is None else {"content-type": case["content_type"]}
        response = client.request(case["method"], "/", content=content, headers=headers)
        if response.status_code >= 500:
            raise SystemExit(f"{case['name']}: FastAPI itself answers {response.status_code}; leave the case out")
        answer = response.json()
        if response.is_success:
            answer = {"page": answer["page"], "per_page": answer["per_page"]} if case["method"] == "GET" else None
        rows.append(case | {"status": response.status_code, "answer": answer})
    return rows


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        raise SystemExit(f"usage: {sys.argv[0]} [--check]")
    if sys.version_info[:2] != PYTHON:
        raise SystemExit(f"needs Python {PYTHON[0]}.{PYTHON[1]}, this is {sys.version.split()[0]}")
    for package, version in PACKAGES.items():
        if (found := importlib.metadata.version(package)) != version:
            raise SystemExit(f"needs {package} {version}, this is {found}")

    list_cases()
    body_cases()
    names = [case["name"] for case in cases]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise SystemExit(f"names used twice: {repeated}")
    if unprintable := [name for name in names if not (name.isascii() and name.isprintable())]:
        raise SystemExit(f"names that do not read well: {unprintable}")

    rows = answered()
    table = "[\n" + ",\n".join(json.dumps(row, separators=(",", ":"), allow_nan=False) for row in rows) + "\n]\n"
    if sys.argv[1:] == ["--check"]:
        old = TABLE.read_text(encoding="ascii").splitlines() if TABLE.exists() else []
        new = table.splitlines()
        if old != new:
            changed = [line for line in new if line not in set(old)]
            print(f"{TABLE} is out of date; run this script without --check", file=sys.stderr)
            for line in changed[:10]:
                print(line[:300], file=sys.stderr)
            raise SystemExit(1)
        return
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(table, encoding="ascii")
    lists_count = sum(case["method"] == "GET" for case in cases)
    print(f"{lists_count} query cases and {len(cases) - lists_count} body cases")


if __name__ == "__main__":
    main()
