"""Made-up requests: mostly near a real route, since what is far from all routes proves little."""

import re
import string
from dataclasses import dataclass
from urllib.parse import quote

from hypothesis import strategies as st

from tests.e2e.seam.oracle import CALLERS, ROWS, Caller

EVIL = "evil"


@dataclass(frozen=True, slots=True)
class Probe:
    """One client request, raw."""

    caller: Caller | None
    method: str
    target: str
    lines: tuple[str, ...]
    body: bytes


WORDS = (
    *("teams", "current", "members", "applications", "servers", "projects", "envs", "bulk", "1"),
    *("deploy", "enable", "disable", "mcp", "health", "validate", "feedback", "api", "v1", "x.y"),
)


def usually(common: st.SearchStrategy, rare: st.SearchStrategy) -> st.SearchStrategy:
    """Three times in four the first."""
    return st.one_of(common, common, common, rare)


# Strategies are made once, here: making them for each draw took most of a run's time.
PLAIN = st.text(string.ascii_lowercase + string.digits + "-_", min_size=1)
LETTERS = st.one_of(
    st.sampled_from("üß日本é\u0301٣Ⅷ🚀€\u3000İ\u0131K\u00a0#: +@&(),.-_"),
    st.characters(categories=["L", "M", "N", "S", "Zs"]),
)
ODD_LETTERS = st.one_of(
    st.sampled_from("\u202e\u2028\u0085\u200b\uff0f\uff0e\u2024\u2215\ufeff%/;?\\\x00"),
    st.characters(exclude_categories=["Cs"]),
)
ODD_BYTES = st.sampled_from((b"\xc0\xaf", b"\xc3", b"\xbc", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"))


TEXT = usually(st.text(LETTERS, min_size=1), st.text(ODD_LETTERS, min_size=1))
TENTH, TWENTIETH = st.integers(0, 9), st.integers(0, 19)
UNESCAPED = st.sampled_from(("", "~!*'()", "@:&+,"))


@st.composite
def names(draw: st.DrawFn) -> str:
    """A name as a client spells it: of any script, percent-encoded, and now and then wrongly."""
    data = draw(TEXT)[:40].encode()
    if draw(TENTH) == 7:
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(ODD_BYTES) + data[at:]
    spelled = quote(data, safe=draw(UNESCAPED))
    return re.sub("%..", lambda e: e[0].lower(), spelled) if draw(st.booleans()) else spelled


SEGMENT = st.one_of(st.sampled_from(WORDS), PLAIN, names())
METHODS = st.sampled_from(("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "FOO"))
WANTED = st.sampled_from(
    ("GET", "GET", "DELETE", "PATCH", "PUT", "HEAD", "get", "delete", "OPTIONS", "")
)
OVERRIDE_KEY = st.sampled_from(
    (
        *("_method", "%5fmethod", "%5Fmethod", "_%6dethod", ".method", "+_method", "%20_method"),
        *(
            "_method%00",
            "_method%00x",
            "_method[]",
            "_method[",
            "%2emethod",
            "_METHOD",
            "_method.x",
        ),
    )
)
NOISE = st.text("/%.;?#\\&=_-apimcv12teams05fFindex.ph\xe9 ", min_size=1, max_size=30)
INSERTED = st.sampled_from(
    (
        *("/", "//", "/./", "/../", "/x/../", "/..;/", "/.;/", "%2f", "%2F", "%5c", "\\", "%00"),
        *("%0a", "%0d%0a", ";x=1", "%3b", "%3f", "?", "#", "%23", "%2e%2e/", "%252f", "%25", "%"),
        *(".", "%2e", "%20", "\t", "\xe9", "%ff", "%c3%a9", "|", "index.php", "/index.php"),
        *("%C3", "%A9", "%E6%97%A5", "%CC%81", "%F0%9F%9A%80", "%C0%AF", "%ED%A0%80", "\xc3\xa9"),
        *("%E2%80%AE", "%E2%80%A8", "%C2%85", "%EF%BC%8F", "%E2%88%95", "%C0%AE%C0%AE/"),
    )
)
PREFIX = st.sampled_from(
    (
        *("/index.php", "/%69ndex.php", "/index%2ephp", "/index.php/", "/INDEX.PHP", "/x/.."),
        *("/x/%2e%2e", "/.", "//", "/login/..", "/%2e", "http://127.0.0.1", "http://evil.test"),
        *("/index.php%2f..", "/index.php;", "///", "/api/..", "/mcp/../"),
    )
)


ROOTS = st.sampled_from(("/", ""))
BENDS = st.sampled_from((0, 0, 0, 0, 1, 1, 2, 3))
BEND = st.integers(0, 7)
EARLY = st.sampled_from((1, 1, 2, 5, None))
ENDS = st.sampled_from(("/", "//", "/.", "%2f", "/%2e", "%20", "%00", ";"))
QUERY = usually(st.just(False), st.just(True))
BEFORE = st.sampled_from(("", "a=1&", "a=1;"))
OTHER_QUERIES = ("?page=2&per_page=50", "?%5b%5d=%2F")


def target(draw: st.DrawFn, template: str) -> str:
    """A route's target, spelled oddly or not; or noise."""
    if draw(TWENTIETH) == 7:
        return draw(ROOTS) + draw(NOISE)
    segments = template.split("/")[1:]
    path = "".join(f"/{draw(SEGMENT) if part[0] == '{' else part}" for part in segments)
    for _ in range(draw(BENDS)):
        path = bent(draw, path)
    return path + (query(draw) if draw(QUERY) else "")


def bent(draw: st.DrawFn, path: str) -> str:
    """The same path after one of the tricks that somebody was once fooled by."""
    at = draw(st.integers(0, len(path)))
    match draw(BEND):
        case 0 | 1 | 2:  # escape a character: most often what decides about a prefix
            early = draw(EARLY)
            at = min(at if early is None else early, len(path) - 1)
            escape = f"%{ord(path[at]):02x}"
            return path[:at] + (escape.upper() if draw(st.booleans()) else escape) + path[at + 1 :]
        case 3:
            return path[:at] + draw(INSERTED) + path[at:]
        case 4:
            return draw(PREFIX) + path
        case 5:
            return path + draw(ENDS)
        case 6:
            return path[:at] + path[at:].upper()
        case _:
            return path[:at] + path[at + 1 :]


def query(draw: st.DrawFn) -> str:
    """Most often one that overrides the method."""
    override = f"?{draw(BEFORE)}{draw(OVERRIDE_KEY)}={draw(WANTED)}"
    return draw(st.sampled_from((override, *OTHER_QUERIES)))


IDENTITY_LINES = tuple(
    f"{name}: {EVIL}"
    for name in (
        *("X-Auth-User-Id", "x-auth-team-id", "X-Auth-Permissions", "X_Auth_User_Id"),
        *("X.Auth.Team.Id", "X-Auth_Token.Id", "X-AUTH-TEAM-ROLE", "X-Auth-Read-Sensitive"),
    )
)
OTHER_LINES = (
    *("X-Forwarded-Uri: /api/health", "X-Forwarded-Method: GET", "X-Forwarded-Uri: "),
    *("X-Forwarded-Method: OPTIONS", "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Prefix: /api"),
    *("X_Forwarded_Uri: /api/health", "X.Forwarded.Method: GET", "X-Original-Url: /api/health"),
    *("X-Real-Ip: 6.6.6.6", "X-Authz-Request-Id: 1", "X-Request-Id: 1", "X-Authz-Status: 200"),
    *("Origin: https://app.test", "Access-Control-Request-Method: DELETE", "User-Agent: "),
    *("Connection: close, X-Auth-User-Id", "Connection: close, X-Forwarded-Uri, Authorization"),
    *("Upgrade: websocket", "Upgrade: h2c", "Accept: text/html", "Cookie: laravel_session=1"),
)
OVERRIDE_NAME = st.sampled_from(
    (
        *("X-HTTP-Method-Override", "x-http-method-override", "X_HTTP_Method_Override"),
        *("X.HTTP.Method.Override", "X-HTTP_Method-Override", "X-HTTP-Method.Override"),
    )
)


KNOWN = st.sampled_from((*IDENTITY_LINES, *OTHER_LINES))
LINES = usually(st.just([]), st.lists(KNOWN, min_size=1, max_size=4, unique=True))


def headers(draw: st.DrawFn) -> tuple[str, ...]:
    """Lines that a client may not say, or that say nothing."""
    lines = draw(LINES)
    if draw(TENTH) == 7:
        lines = [*lines, f"{draw(OVERRIDE_NAME)}: {draw(WANTED)}"]
    connections = [line for line in lines if line.startswith("Connection:")]
    return tuple(line for line in lines if line not in connections[1:])


FORM_KEY = usually(st.just("_method"), OVERRIDE_KEY)
JSON_TYPE = st.sampled_from(("application/json", "application/vnd.api+json"))
FORM = st.integers(0, 6)


def body(draw: st.DrawFn) -> tuple[tuple[str, ...], bytes]:
    """A body's headers and bytes; each form in which Laravel looks for `_method`."""
    wanted = draw(WANTED)
    match draw(FORM):
        case 0 | 1:
            form = f"{draw(FORM_KEY)}={wanted}"
            return ("Content-Type: application/x-www-form-urlencoded",), form.encode()
        case 2:
            part = f'Content-Disposition: form-data; name="_method"\r\n\r\n{wanted}'
            return ("Content-Type: multipart/form-data; boundary=b",), (
                f"--b\r\n{part}\r\n--b--\r\n".encode()
            )
        case 3:
            return (f"Content-Type: {draw(JSON_TYPE)}",), f'{{"_method": "{wanted}"}}'.encode()
        case 4:
            return ("Content-Type: text/plain",), b"_method=DELETE"
        case _:
            return (), b""


ROW = st.sampled_from(ROWS)
CALLER = {
    row: usually(
        st.sampled_from([caller for caller in CALLERS if caller.may(row)] or CALLERS),
        st.sampled_from((None, *CALLERS)),
    )
    for row in ROWS
}
METHOD = {
    row: st.one_of(st.just(row.method), st.just(row.method), st.just("POST"), METHODS)
    for row in ROWS
}


@st.composite
def probes(draw: st.DrawFn) -> Probe:
    """Any of them; most tokens may have the route that the target is made from."""
    row = draw(ROW)
    method = draw(METHOD[row])
    lines, content = body(draw) if method in {"POST", "PUT", "PATCH"} else ((), b"")
    return Probe(
        caller=draw(CALLER[row]),
        method=method,
        target=target(draw, row.path),
        lines=(*headers(draw), *lines),
        body=content,
    )
