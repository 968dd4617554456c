"""The scenario table: what a client asks, and what it sees through each proxy.

`but` holds the differences that are allowed, each with the proxy that makes it. The table in
docs/reference/scenarios.md is `page()`; `python -m tests.e2e.scenarios` prints it.
"""

from collections.abc import Iterable, Mapping

from authsidecar.decision.model import Proxy
from tests.e2e.scenarios.outcomes import OUTCOMES
from tests.e2e.scenarios.requests import HEADERS, METHODS, TARGETS
from tests.e2e.scenarios.table import Scenario

PROXIES = (Proxy.TRAEFIK, Proxy.NGINX, Proxy.CADDY, Proxy.ENVOY, Proxy.HAPROXY)

GROUPS: Mapping[str, tuple[Scenario, ...]] = {
    "Outcomes": OUTCOMES,
    "Targets": TARGETS,
    "Methods": METHODS,
    "Headers": HEADERS,
}
SCENARIOS = tuple(row for rows in GROUPS.values() for row in rows)

DOWN = "`authorization_unavailable`"

LIMITS = (
    (
        "Traefik",
        (
            "shows the RateLimit fields on refusals only: ForwardAuth copies nothing to the client "
            "on success, so there Coolify's own count stays"
        ),
        "`test_scenarios.py`",
    ),
    (
        "Traefik",
        "answers 500 with an empty body while the sidecar is unreachable",
        "`test_sidecar_down.py`",
    ),
    (
        "Traefik",
        (
            "waits 30 seconds, its fixed limit, for a sidecar that is frozen; the sidecar's own "
            "deadline answers long before for a Redis that is"
        ),
        "`test_sidecar_down.py` (slow)",
    ),
    (
        "Traefik",
        "sets no request id: a subrequest that it repeats on a stale connection costs two units",
        "`test_one_unit.py`",
    ),
    (
        "Envoy",
        (
            "says a 503 in its own words (`authorization_unavailable`, `Retry-After: 5`), and "
            "answers one when a connection to the sidecar breaks: it does not repeat"
        ),
        "`test_one_unit.py`",
    ),
    (
        "Envoy",
        "gives a client on loopback the host's own address",
        "`test_scenarios.py`",
    ),
    (
        "Traefik, Caddy, HAProxy",
        "may close the connection on a client that still sends its body when it is refused",
        "`test_scenarios.py`",
    ),
    (
        "all",
        "a body that turns a permitted POST into the GET of the same path is Coolify's to check",
        "`test_seam_fuzz.py`",
    ),
)


def page() -> str:
    """docs/reference/scenarios.md."""
    return "\n".join([*_intro(), *_tables(), *_gone(), *_limits(), ""])


def _intro() -> Iterable[str]:
    yield from (
        "# What a client sees through each proxy",
        "",
        "<!-- Written by `python -m tests.e2e.scenarios`; a test holds it to the table. -->",
        "",
        "Each row is sent through the shipped configuration of each proxy to a real sidecar, a",
        "real Redis and a backend that routes as Laravel does (`tests/e2e/test_scenarios.py`, in",
        "`make test`). A refusal reaches the client whole: status, JSON body, `WWW-Authenticate`,",
        "`Retry-After`, `Allow`, the RateLimit fields, `Access-Control-Allow-Origin` (a browser",
        "may read it) and `Access-Control-Expose-Headers`. *The proxy's own* is a refusal in which",
        "the sidecar had no word: see [what a proxy answers by itself](proxy-answers.md). `=`",
        "stands for the row's own outcome.",
        "",
        "*Proves*: C1 to C9 are the checks in their order, C0 is what cannot be read. P and B are",
        "numbers of the project's lists of pitfalls (advisories and complaints about others) and",
        "of bypasses that were measured on plausible proxy configurations.",
    )


def _tables() -> Iterable[str]:
    names = {Proxy.NGINX: "nginx", Proxy.HAPROXY: "HAProxy"}
    titles = (names.get(proxy, proxy.value.capitalize()) for proxy in PROXIES)
    head = "| scenario | proves | outcome | " + " | ".join(titles) + " |"
    for title, rows in GROUPS.items():
        yield from ("", f"## {title}", "", head, "|---" * (3 + len(PROXIES)) + "|")
        for row in rows:
            cells = (str(row.but[proxy]) if proxy in row.but else "=" for proxy in PROXIES)
            yield f"| {row.name} | {row.proves} | {row.sees} | " + " | ".join(cells) + " |"


def _gone() -> Iterable[str]:
    yield from (
        "",
        "## Without the sidecar",
        "",
        "Under load (`tests/e2e/test_sidecar_down.py`); nothing reaches the backend unjudged.",
        "",
        "| the sidecar is | Traefik | nginx, Caddy, HAProxy | Envoy |",
        "|---|---|---|---|",
        f"| killed | 500, empty | 503 {DOWN} | 503 {DOWN} |",
        f"| frozen | 500, empty, after 30 s | 503 {DOWN} within 2 s | 503 {DOWN} within 2 s |",
        "| back | serves within 1 s | serves within 1 s | serves within 1 s |",
        "| without Redis | 503 `store_unavailable` | 503 `store_unavailable` | 503 " + f"{DOWN} |",
    )


def _limits() -> Iterable[str]:
    yield from (
        "",
        "## Known limits",
        "",
        "| proxy | limit | held by |",
        "|---|---|---|",
        *(f"| {proxy} | {limit} | {test} |" for proxy, limit, test in LIMITS),
    )
