"""The management listener: metrics that parse and never grow, health, readiness."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

import authsidecar
from authsidecar.decision.model import Proxy
from authsidecar.expiry.rounds import WarningResult
from authsidecar.store.trips import KINDS
from tests.integration.test_order_of_checks import ELSEWHERE_TESTED, REFUSALS
from tests.support.redis import RedisProcess, start_redis
from tests.support.seed import bearer
from tests.support.sidecar import SidecarProcess, get, start_sidecar
from tests.support.waiting import until
from tests.support.wire import ask, ask_all, subrequest
from tests.support.world import READ, World, address, populate, world_of

NAMES = {
    "authsidecar_receipts_written": set(),
    "authsidecar_receipts_dropped": {"cause"},
    "authsidecar_fleet_counts_dropped": set(),
    "authsidecar_canary_uses": set(),
    "authsidecar_decisions": {"proxy", "outcome", "reason"},
    "authsidecar_decision_seconds": {"proxy", "outcome"},
    "authsidecar_store_trip_seconds": {"operation"},
    "authsidecar_store_errors": {"kind"},
    "authsidecar_redis_connections": {"state"},
    "authsidecar_event_loop_lag_seconds": set(),
    "authsidecar_cache_lookups": {"result"},
    "authsidecar_near_limit": {"limit"},
    "authsidecar_warnings": {"result"},
    "authsidecar_connections_dropped": {"cause"},
    "authsidecar_log_lines_dropped": set(),
    "authsidecar_background_failing": {"task"},
    "authsidecar_background_failures": {"task"},
    "authsidecar_ready": set(),
    "authsidecar_build_info": {"version"},
    "authsidecar_config_info": {"digest"},
    "process_cpu_seconds": set(),
    "process_resident_memory_bytes": set(),
    "process_open_fds": set(),
    "process_max_fds": set(),
    "process_start_time_seconds": set(),
}
"""The names and labels of the public interface."""

SYNC = {
    f"authsidecar_sync_{name}" for name in ("age_seconds", "kept_rounds", "odd_rows", "problem")
}
"""What is told of a synchronisation with Coolify's database."""

PROXIES = tuple(proxy.value for proxy in Proxy if proxy is not Proxy.DIRECT)
SEED = 20261124


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = start_redis(tmp_path_factory.mktemp("redis"))
    populate(server)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def sidecar(
    server: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SidecarProcess]:
    sidecar = start_sidecar(
        tmp_path_factory.mktemp("sidecar"),
        server.url,
        LOG__DECISIONS="none",
        LIMITS__FAILED="3",
        LIMITS__UNKNOWN="3",
        LIMITS__HEALTH="3",
    )
    yield sidecar
    assert sidecar.stop() == 0
    assert '"defect"' not in sidecar.log


def scrape(sidecar: SidecarProcess, accept: str = "text/plain"):
    answer = get(sidecar.management_port, "/metrics", {"Accept": accept})
    assert answer.status == 200
    parse = (
        parse_openmetrics if "openmetrics" in (answer.header("Content-Type") or "") else parse_text
    )
    return {family.name: family for family in parse(answer.body.decode())}


def series(families) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in families.values()
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain"),
        ("text/plain", "text/plain"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text"),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2",
            "application/openmetrics-text",
        ),
    ],
)
async def test_metrics_parse_in_both_formats(
    accept: str, content_type: str, sidecar: SidecarProcess
) -> None:
    """The official parser reads what the Accept header asks for; names and labels are fixed."""
    await ask_all(sidecar.port, [subrequest(authorization=bearer(READ)), subrequest()])
    answer = get(sidecar.management_port, "/metrics", {"Accept": accept})
    assert (answer.header("Content-Type") or "").startswith(content_type)
    families = scrape(sidecar, accept)
    assert set(NAMES) <= set(families)
    assert {name for name in families if name not in NAMES} <= SYNC
    for name, labels in NAMES.items():
        for sample in families[name].samples:
            assert set(sample.labels) - {"le"} == labels
    assert families["authsidecar_build_info"].samples[0].labels == {
        "version": authsidecar.__version__
    }
    assert families["authsidecar_decisions"].type == "counter"
    assert families["authsidecar_decision_seconds"].type == "histogram"


async def test_every_decision_is_counted_once(sidecar: SidecarProcess) -> None:
    """By proxy, outcome and reason, on any proxy, allowed or refused."""

    def count(**labels: str) -> float:
        return sum(
            sample.value
            for sample in scrape(sidecar)["authsidecar_decisions"].samples
            if sample.name.endswith("_total") and sample.labels == labels
        )

    cases = {
        ("caddy", "allow", "none"): subrequest(authorization=bearer(READ), proxy="caddy"),
        ("nginx", "deny", "method_not_allowed"): subrequest("TRACE", proxy="nginx"),
        ("haproxy", "deny", "token_missing"): subrequest(client=address(), proxy="haproxy"),
        ("none", "deny", "route_unknown"): subrequest(proxy="nobody"),
        (
            "traefik",
            "deny",
            "request_unreadable",
        ): b"GET /authz/traefik HTTP/1.1\r\nno colon\r\n\r\n",
        ("traefik", "deny", "headers_too_large"): subrequest(headers=[("X-Long", "x" * 40_000)]),
    }
    for (proxy, outcome, reason), request in cases.items():
        before = count(proxy=proxy, outcome=outcome, reason=reason)
        for _ in range(3):  # some end their connection
            await ask(sidecar.port, request)
        assert count(proxy=proxy, outcome=outcome, reason=reason) - before == 3


def test_what_an_alert_looks_for_is_there_before_it_happens(sidecar: SidecarProcess) -> None:
    """Prometheus sees no increase of a series that begins above 0."""
    families = scrape(sidecar)
    kinds = {sample.labels["kind"] for sample in families["authsidecar_store_errors"].samples}
    assert kinds == {*KINDS} - {"open"}
    results = {sample.labels["result"] for sample in families["authsidecar_warnings"].samples}
    assert results == {*WarningResult}


async def warm_up(sidecar: SidecarProcess, server: RedisProcess) -> None:
    """Make the sidecar say every reason it knows, on every proxy."""
    for proxy in PROXIES:
        for _, _, refusal in REFUSALS.values():
            async with world_of(sidecar, server) as world:
                await refusal(Through(world, proxy))
        async with world_of(sidecar, server) as world:
            through = Through(world, proxy)
            await through.ask(token=READ)
            client = address()
            for _ in range(4):
                for uri in ("/api/health", "/api/v1/no", "/api/v1/teams"):
                    await through.ask(uri=uri, client=client)


class Through(World):
    """A world whose requests come by one proxy, Envoy's with their own request line."""

    proxy: str

    def __init__(self, world: World, proxy: str) -> None:
        super().__init__(world.sidecar, world.client)
        object.__setattr__(self, "proxy", proxy)

    async def ask(self, method="GET", uri="/api/v1/teams", **how):
        if self.proxy == "envoy":
            how["line"] = f"{method} /authz/envoy{uri or ''} HTTP/1.1"
        return await super().ask(method, uri, proxy=self.proxy, **how)


def junk(random_: random.Random) -> bytes:
    """One random request: path, method, token, address, proxy and headers."""

    def word() -> str:
        return f"{random_.getrandbits(48):x}"

    path = "/".join(
        random_.choice(("api", "v1", "teams", "mcp", "projects", word(), "%2e", "..", ""))
        for _ in range(random_.randrange(1, 6))
    )
    method = random_.choice(("GET", "POST", "DELETE", "OPTIONS", "PURGE", word().upper(), word()))
    token = random_.choice(
        (
            None,
            bearer(READ),
            f"Bearer {random_.getrandbits(40)}|{word()}",
            f"Bearer {word()}",
            word(),
        )
    )
    client = random_.choice((f"10.{random_.randrange(256)}.7.{random_.randrange(256)}", word()))
    proxy = random_.choice(PROXIES)
    line = f"GET /authz/envoy/{path}?{word()} HTTP/1.1" if proxy == "envoy" else None
    headers = [(f"X-{word()}", word()), ("User-Agent", word()), ("X-Authz-Request-Id", word())]
    return subrequest(
        method,
        f"/{path}?{word()}={word()}",
        authorization=token,
        client=client,
        proxy=proxy,
        headers=headers,
        line=line,
    )


async def test_random_requests_never_add_a_series(
    sidecar: SidecarProcess, server: RedisProcess
) -> None:
    """Pitfall 40: 10,000 random paths, methods and tokens leave the number of series unchanged."""
    await warm_up(sidecar, server)
    before = series(scrape(sidecar))
    chance = random.Random(SEED)
    answers = await ask_all(sidecar.port, (junk(chance) for _ in range(10_000)))
    after = series(scrape(sidecar))
    assert {answer.status for answer in answers} >= {200, 400, 401, 404, 405}
    assert after - before == set()
    assert len(after) == len(before)


async def test_label_values_are_closed_sets(sidecar: SidecarProcess) -> None:
    """Proxies, outcomes, reasons, operations, scopes: words that this program knows."""
    await ask_all(sidecar.port, [subrequest(authorization=bearer(READ)), subrequest("TRACE")])
    reasons = {*REFUSALS, *ELSEWHERE_TESTED, "none"}
    for family in scrape(sidecar).values():
        for labels in (sample.labels for sample in family.samples):
            assert labels.get("proxy", "envoy") in {*PROXIES, "direct", "none"}
            assert labels.get("outcome", "allow") in {"allow", "deny"}
            assert labels.get("reason", "none") in reasons
            assert labels.get("result", "hit") in {"hit", "miss", "stale", *WarningResult}
            assert re.fullmatch(r"[a-z_]+", labels.get("operation", "x"))
            assert re.fullmatch(r"[a-z_]+", labels.get("kind", "x"))


async def test_health_and_readiness(tmp_path: Path) -> None:
    """Alive without Redis, ready only with it, and what is missing is said in JSON."""
    server = start_redis(tmp_path / "redis")
    sidecar = start_sidecar(tmp_path, server.url, REDIS__BUDGET_MS="100")

    def look(path: str):
        answer = get(sidecar.management_port, path, {})
        assert answer.header("Content-Type") == "application/json; charset=utf-8"
        assert answer.header("Cache-Control") == "no-store"
        said = json.loads(answer.body)
        assert path != "/readyz" or re.fullmatch("[0-9a-f]{16}", said.pop("config_digest"))
        return answer.status, said

    assert look("/healthz") == (200, {"status": "ok"})
    assert look("/readyz") == (200, {"status": "ready", "missing": {}})
    assert scrape(sidecar)["authsidecar_ready"].samples[0].value == 1

    def until_missing(missing: dict[str, str]) -> None:
        """Return once that is what is missing; an answer is repeated for a second."""
        what = (503, {"status": "not ready", "missing": missing})
        until(lambda: look("/readyz") == what, f"missing {missing}")
        assert scrape(sidecar)["authsidecar_ready"].samples[0].value == 0

    server.kill()
    assert look("/healthz") == (200, {"status": "ok"})
    until_missing({"redis": "connection"})
    server.start()
    until(lambda: look("/readyz")[0] == 200, "ready")
    server.freeze()
    until_missing({"redis": "timeout"})
    server.thaw()
    until(lambda: look("/readyz")[0] == 200, "ready")
    assert get(sidecar.management_port, "/authz/traefik", {}).status == 404
    assert get(sidecar.port, "/metrics", {}).status == 404
    assert sidecar.stop() == 0
    server.stop()
