"""What a proxy answers by itself, without a word of the sidecar's: the table and how it is made.

docs/reference/proxy-answers.md is `page()`; `python -m tests.e2e.own_answers` prints it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from authsidecar.decision.model import Proxy
from authsidecar.decision.proxies.replies import EXPOSED

TRAEFIK, NGINX, CADDY, ENVOY = Proxy.TRAEFIK, Proxy.NGINX, Proxy.CADDY, Proxy.ENVOY
HAPROXY = Proxy.HAPROXY

NAMES = {
    TRAEFIK: "Traefik",
    NGINX: "nginx",
    CADDY: "Caddy",
    ENVOY: "Envoy",
    HAPROXY: "HAProxy",
}

ASKED = "-"
"""The sidecar was asked: what the client sees is the sidecar's answer, or Coolify's."""

PASSED = "passes"
"""Nobody was asked, and the backend has answered."""

CLOSED = "no answer"
"""The connection was closed without one."""


class While(Enum):
    """What is not as usual."""

    USUAL = ""
    SIDECAR_AWAY = "the sidecar is unreachable"
    SIDECAR_503 = "the sidecar says 503"
    SIDECAR_SILENT = "the sidecar does not answer"
    COOLIFY_AWAY = "Coolify is unreachable"


@dataclass(frozen=True, slots=True)
class Row:
    """One request, and what each proxy makes of it by itself.

    Attributes:
        name: unique.
        start: the request line without its version.
        lines: header lines beside those of `usual`.
        usual: Host, Authorization and Connection go along.
        during: what is not as usual.
        version: of the request line.
        sees: what `seen` makes of each proxy's answer.
    """

    name: str
    start: str
    sees: Mapping[Proxy, str]
    lines: tuple[str, ...] = ()
    usual: bool = True
    during: While = While.USUAL
    version: str = "HTTP/1.1"
    body: bytes = field(default=b"", repr=False)

    def request(self, host: str, authorization: str) -> bytes:
        """The bytes; `host` is where the proxy listens, `authorization` a token's."""
        usual = (f"Host: {host}", f"Authorization: {authorization}", "Connection: close")
        lines = (*(usual if self.usual else ()), *(line.format(host=host) for line in self.lines))
        head = (f"{self.start.format(host=host)} {self.version}", *lines)
        return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + self.body


def seen(answer: bytes) -> str:
    """An answer in a few words: status, body, and what its header lacks or has.

    *Whole* is JSON with a code, its Content-Type, both CORS headers and `Cache-Control: no-store`.
    """
    if not answer:
        return CLOSED
    head, _, body = answer.partition(b"\r\n\r\n")
    start, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    code = _code(body)
    readable = (
        headers.get("access-control-allow-origin") == "*"
        and headers.get("access-control-expose-headers") == ", ".join(EXPOSED)
    )  # fmt: skip
    kind = headers.get("content-type", "").partition(";")[0]
    words = [start.split(" ")[1] + (f" `{code}`" if code else "")]
    if code and readable and kind == "application/json" and "no-store" in str(headers):
        words.append("whole")
    else:
        words.append(
            "JSON" if code else "HTML" if b"<html" in body else "text" if body else "empty"
        )
        words.append("a script may read it" if readable else "no CORS")
    if retry := headers.get("retry-after"):
        words.append(f"`Retry-After: {retry}`")
    if "allow" in headers:
        words.append("`Allow`")
    return ", ".join(words)


def _code(body: bytes) -> str | None:
    try:
        return json.loads(body)["code"]
    except (ValueError, KeyError, TypeError):
        return None


AMBIGUOUS = "400 `ambiguous_target`, whole"
UNREADABLE = "400 `request_unreadable`, whole"
TEXT = "400, text, no CORS"
HTML = "400, HTML, no CORS"
EMPTY = "400, empty, no CORS"
NOT_ALLOWED = "405 `method_not_allowed`, whole, `Allow`"
LONG = "414 `target_too_long`, whole"
LARGE = "431 `headers_too_large`, whole"
LARGE_TEXT = "431, text, no CORS"
NO_SITE = "404, empty, no CORS"
UNANSWERED = "502 `backend_unavailable`, whole"
DOWN = "503 `authorization_unavailable`, whole, `Retry-After: 5`"


def each(common: str, **but: str) -> dict[Proxy, str]:
    """The same for all, but for these."""
    return {proxy: but.get(proxy.value, common) for proxy in NAMES}


ROWS = (
    Row(
        "a dot segment in the path",
        "GET /api/v1/x/../teams",
        each(
            ASKED,
            nginx=AMBIGUOUS,
            caddy=AMBIGUOUS,
        ),
    ),
    Row("a doubled slash", "GET //api/v1/teams", each(ASKED, nginx=AMBIGUOUS, caddy=AMBIGUOUS)),
    Row(
        "an escaped slash",
        "GET /api%2Fv1%2Fteams",
        each(ASKED, nginx=AMBIGUOUS, caddy=AMBIGUOUS, haproxy=AMBIGUOUS),
    ),
    Row(
        "an escaped slash outside of the API",
        "GET /x%2Fy",
        each(ASKED, nginx=AMBIGUOUS, caddy=AMBIGUOUS, haproxy=AMBIGUOUS),
    ),
    Row(
        "a raw backslash",
        "GET /api\\v1\\teams",
        each(ASKED, nginx=AMBIGUOUS, caddy=AMBIGUOUS, haproxy=AMBIGUOUS),
    ),
    Row(
        "a raw `#`",
        "GET /api/v1/teams#x",
        each(AMBIGUOUS, traefik=EMPTY, envoy=UNREADABLE, haproxy=HTML),
    ),
    Row(
        "raw bytes past ASCII",
        "GET /api/v1/pr\xc3\xbcf",
        each(ASKED, caddy=AMBIGUOUS, envoy=UNREADABLE, haproxy=HTML),
    ),
    Row(
        "an escape that is none",
        "GET /api/v1/%zz",
        each(TEXT, nginx=UNREADABLE, envoy=ASKED, haproxy=HTML),
    ),
    Row(
        "an escaped NUL",
        "GET /api/v1/teams%00",
        each(ASKED, nginx=UNREADABLE, envoy=UNREADABLE, haproxy=AMBIGUOUS),
    ),
    Row(
        "a blank in the target",
        "GET /api/v1/te ams",
        each(TEXT, nginx=UNREADABLE, envoy=UNREADABLE, haproxy=HTML),
    ),
    Row(
        "a target without a leading slash",
        "GET api/v1/teams",
        each(TEXT, nginx=UNREADABLE, envoy=UNREADABLE, haproxy=HTML),
    ),
    Row(
        "another site in the target",
        "GET http://evil.test/api/v1/teams",
        each(
            "404, text, no CORS",
            nginx=ASKED,
            caddy="200, empty, no CORS",
            envoy=NO_SITE,
            haproxy=HTML,
        ),
    ),
    Row(
        "a target of 20 KB",
        f"GET /api/v1/{'x' * 20_000}",
        each(ASKED, nginx=LONG, haproxy=HTML),
    ),
    Row(
        "a target of 70 KB",
        f"GET /api/v1/{'x' * 70_000}",
        each(ASKED, nginx=LONG, caddy=LARGE_TEXT, envoy=LARGE, haproxy=HTML),
    ),
    Row(
        "TRACE",
        "TRACE /api/v1/teams",
        each(ASKED, nginx=NOT_ALLOWED, caddy=NOT_ALLOWED, haproxy=NOT_ALLOWED),
    ),
    Row(
        "CONNECT", "CONNECT {host}", each(NOT_ALLOWED, traefik="501, empty, no CORS", envoy=NO_SITE)
    ),
    Row("a made-up method", "FOO /api/v1/teams", each(ASKED, envoy=UNREADABLE)),
    Row(
        "a method in lower case",
        "get /api/v1/teams",
        each(ASKED, nginx=UNREADABLE, envoy=UNREADABLE),
    ),
    Row(
        "an unknown version",
        "GET /api/v1/teams",
        each(
            "505, text, no CORS",
            nginx="505 `request_unreadable`, whole",
            envoy=ASKED,
            haproxy=ASKED,
        ),
        version="HTTP/9.9",
    ),
    Row(
        "no Host",
        "GET /api/v1/teams",
        each(TEXT, nginx=UNREADABLE, envoy=UNREADABLE, haproxy=UNREADABLE),
        ("Connection: close",),
        usual=False,
    ),
    Row(
        "two Hosts",
        "GET /api/v1/teams",
        each(TEXT, nginx=UNREADABLE, envoy=ASKED, haproxy=HTML),
        ("Host: evil.test",),
    ),
    Row(
        "a Host that is no site",
        "GET /api/v1/teams",
        each(
            "404, text, no CORS",
            nginx=ASKED,
            caddy="200, empty, no CORS",
            envoy=NO_SITE,
            haproxy="503, HTML, no CORS",
        ),
        ("Host: evil.test", "Connection: close"),
        usual=False,
    ),
    Row(
        "two Authorization lines",
        "GET /api/v1/teams",
        each(ASKED, nginx=UNREADABLE),
        ("Authorization: Bearer 1|a",),
    ),
    Row(
        "a header without a colon",
        "GET /api/v1/teams",
        each(TEXT, nginx=ASKED, envoy=UNREADABLE, haproxy=HTML),
        ("X-Custom",),
    ),
    Row(
        "a blank before the colon",
        "GET /api/v1/teams",
        each(TEXT, nginx=UNREADABLE, envoy=UNREADABLE, haproxy=HTML),
        ("X-Custom : 1",),
    ),
    Row(
        "a header of 40 KB",
        "GET /api/v1/teams",
        each(ASKED, nginx=LARGE, caddy=LARGE_TEXT, haproxy=HTML),
        (f"X-Custom: {'x' * 40_000}",),
    ),
    Row(
        "a header of 62 KB",
        "GET /api/v1/teams",
        each(LARGE, traefik=ASKED, caddy=LARGE_TEXT, haproxy=HTML),
        (f"X-Custom: {'x' * 62_000}",),
    ),
    Row(
        "a header of 2 MB",
        "GET /api/v1/teams",
        each(LARGE_TEXT, nginx=LARGE, envoy=LARGE, haproxy=HTML),
        (f"X-Custom: {'x' * 2_000_000}",),
    ),
    Row(
        "105 headers",
        "GET /api/v1/teams",
        each(ASKED, envoy=LARGE, haproxy=HTML),
        tuple(f"X-{n}: 1" for n in range(105)),
    ),
    Row(
        "Content-Length and Transfer-Encoding",
        "POST /api/v1/projects",
        each(ASKED, nginx=UNREADABLE, envoy=UNREADABLE),
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        body=b"0\r\n\r\n",
    ),
    Row(
        "two different Content-Lengths",
        "POST /api/v1/projects",
        each(TEXT, nginx=UNREADABLE, envoy=UNREADABLE, haproxy=HTML),
        ("Content-Length: 5", "Content-Length: 6"),
        body=b"hello!",
    ),
    Row(
        "an unknown Transfer-Encoding",
        "POST /api/v1/projects",
        each(
            "501, text, no CORS",
            nginx="501 `request_unreadable`, whole",
            envoy="501 `request_unreadable`, whole",
            haproxy=HTML,
        ),
        ("Transfer-Encoding: rot13",),
    ),
    Row(
        "a chunk that is none",
        "POST /api/v1/projects",
        each(UNREADABLE, traefik="500, text, a script may read it", caddy=UNANSWERED, haproxy=HTML),
        ("Transfer-Encoding: chunked",),
        body=b"zz\r\n",
    ),
    Row(
        "a body of 3 GB",
        "POST /api/v1/projects",
        each(ASKED, nginx="413 `body_too_large`, whole"),
        ("Host: {host}", "Content-Length: 3000000000", "Connection: close"),
        usual=False,
    ),
    Row(
        "the sidecar is unreachable",
        "GET /api/v1/teams",
        each(DOWN, traefik="500, empty, a script may read it"),
        during=While.SIDECAR_AWAY,
    ),
    Row(
        "the sidecar says 503",
        "GET /api/v1/teams",
        each(ASKED, envoy=DOWN),
        during=While.SIDECAR_503,
    ),
    Row(
        "the sidecar is silent",
        "GET /api/v1/teams",
        each(DOWN, traefik="500, empty, a script may read it"),
        during=While.SIDECAR_SILENT,
    ),
    Row(
        "Coolify is unreachable",
        "GET /api/v1/teams",
        each(
            UNANSWERED,
            traefik="502, text, a script may read it",
            envoy="503 `backend_unavailable`, whole",
            haproxy="503 `backend_unavailable`, whole",
        ),
        during=While.COOLIFY_AWAY,
    ),
    Row(
        "Coolify is unreachable, outside of the API",
        "GET /login",
        each(
            "502, text, no CORS",
            nginx="502, HTML, no CORS",
            caddy="502, empty, no CORS",
            envoy="503 `backend_unavailable`, whole",
            haproxy="503 `backend_unavailable`, whole",
        ),
        during=While.COOLIFY_AWAY,
    ),
)


SHOWN, BROKEN = "the refusal", "the refusal, or a broken connection"
UPLOADS = {
    5_000_000: {TRAEFIK: SHOWN, NGINX: SHOWN, CADDY: BROKEN, ENVOY: BROKEN, HAPROXY: BROKEN},
    50_000_000: {TRAEFIK: BROKEN, NGINX: SHOWN, CADDY: BROKEN, ENVOY: BROKEN, HAPROXY: BROKEN},
}
"""What a client sees that is refused while it sends so many bytes, and reads only afterwards."""

SILENT = {
    TRAEFIK: CLOSED,
    NGINX: "504 `backend_unavailable`, whole",
    CADDY: CLOSED,
    ENVOY: "504 `backend_unavailable`, whole",
    HAPROXY: "504 `backend_unavailable`, whole",
}
"""What a client sees within 70 seconds while Coolify takes a request and does not answer."""


def page() -> str:
    """docs/reference/proxy-answers.md."""
    return "\n".join([*_intro(), *_table(), *_bodies(), *_limits(), ""])


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(first: str) -> Iterable[str]:
    yield from ("", _line(first, *NAMES.values()), "|---" * (1 + len(NAMES)) + "|")


def _intro() -> Iterable[str]:
    yield from (
        "# What a proxy answers by itself",
        "",
        "<!-- Written by `python -m tests.e2e.own_answers`; a test holds it to the proxies. -->",
        "",
        "Every answer to a client of the guarded host that the sidecar does not write, with the",
        "shipped configuration of each proxy (`tests/e2e/test_own_answers.py`). `-`: the sidecar",
        "is asked, and the answer is its own or Coolify's.",
        "",
        "*Whole* is what the sidecar's own refusals are, but for the `decision_id`: JSON with",
        "`message` and `code`, `Content-Type: application/json`, `Access-Control-Allow-Origin: *`,",
        "`Access-Control-Expose-Headers` and `Cache-Control: no-store`. *A script may read it*:",
        "both CORS headers, but no JSON. *No CORS*: a browser's script sees a network error. What",
        "is not whole the proxy cannot be made to say without a cost to other sites.",
        "",
        "HEAD is answered as GET is, with the same header and no body, whoever refuses it.",
    )


def _table() -> Iterable[str]:
    yield from _head("the client sends, or")
    for row in ROWS:
        yield _line(row.name, *(row.sees[proxy] for proxy in NAMES))
    silent = "Coolify is silent for a minute"
    yield _line(silent, *(SILENT[p] if SILENT[p] != CLOSED else "waits on" for p in NAMES))


def _bodies() -> Iterable[str]:
    yield from (
        "",
        "## Bodies that are refused",
        "",
        "What a client sees that reads only after it has sent everything, or gives up.",
        "One that reads the answer all the same sees the refusal everywhere.",
    )
    yield from _head("a refused body of")
    for size, sees in UPLOADS.items():
        yield _line(f"{size // 1_000_000} MB", *(sees[proxy] for proxy in NAMES))
    yield from (
        "",
        "nginx reads on and throws away. Traefik reads bodies of 0.1 to 10 MB below `/api` whole",
        "before it asks (`authsidecar-whole`), if their length is announced. To others it answers",
        "at once and soon closes, as Caddy, Envoy and HAProxy do: none of them can read on within",
        "a bound. A body over 2048 MB is too large for nginx, as for Coolify's own; the others",
        "have no limit.",
    )


def _limits() -> Iterable[str]:
    yield from (
        "",
        "## Codes that only proxies say",
        "",
        "`authorization_unavailable`, `backend_unavailable` and `body_too_large`: see",
        "[reason codes](reason-codes.md). Caddy says `backend_unavailable` for a broken chunk,",
        "too, because it notices on the way to Coolify.",
    )


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201  # that is what it is for
