"""Spans of decisions, as a collector gets them from a real sidecar."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support import seed
from tests.support.redis import RedisProcess, free_port, start_redis
from tests.support.seed import bearer
from tests.support.sidecar import Answer, SidecarProcess, start_sidecar
from tests.support.waiting import eventually
from tests.support.wire import Wire, ask, subrequest

UNSAMPLED, SAMPLED = "00", "01"


class Collector:
    """An OTLP receiver over HTTP that keeps what it is posted."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def take(self, request: web.Request) -> web.Response:
        assert request.headers["Content-Type"] == "application/x-protobuf"
        self.bodies.append(await request.read())
        return web.Response(content_type="application/x-protobuf")

    @property
    def spans(self) -> list:
        """Every span, with its attributes as a dict beside it."""
        return [
            (
                span,
                {one.key: one.value.string_value or one.value.int_value for one in span.attributes},
            )
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def of(self, trace: int) -> list:
        return [found for found in self.spans if found[0].trace_id == trace.to_bytes(16)]

    async def until(self, count: int, trace: int) -> list:
        """The spans of a trace, once there are so many."""

        async def there() -> bool:
            return len(self.of(trace)) >= count

        await eventually(there, f"{count} spans")
        return self.of(trace)


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    one = start_redis(tmp_path_factory.mktemp("redis"))
    yield one
    one.stop()


@pytest.fixture(scope="module")
def sidecar(server, port: int, tmp_path_factory) -> Iterator[SidecarProcess]:
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")  # milliseconds, for five seconds
    one = start_sidecar(
        tmp_path_factory.mktemp("sidecar"),
        server.url,
        REDIS__BUDGET_MS="250",
        TRACES__ENDPOINT=f"http://127.0.0.1:{port}/v1/traces",
        LIMITS__USER="100000",
        LOG__FORMAT="json",
    )
    monkeypatch.undo()
    yield one
    one.stop()


@pytest.fixture
async def collector(port: int) -> AsyncIterator[Collector]:
    one = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", one.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield one
    await runner.cleanup()


@pytest.fixture
async def token(server) -> int:
    from redis.asyncio import Redis

    async with Redis.from_url(server.url) as client:
        await client.flushall()
        registry = seed.registry(client)
        await registry.set_instance(api_enabled=True)
        await seed.user(registry, 1, t0="owner")
        await registry.put_tokens([seed.token(7, user=1, team=0)])
    return 7


def asks(token: int, trace: int, flags: str = SAMPLED, uri: str = "/api/v1/teams") -> bytes:
    """As nginx asks: an id and a `traceparent` that are new each time."""
    headers = [
        ("X-Authz-Request-Id", f"{trace:032x}"),
        ("traceparent", f"00-{trace:032x}-{trace + 1:016x}-{flags}"),
    ]
    return subrequest(uri=uri, authorization=bearer(token), proxy="nginx", headers=headers)


def decision_of(answer: Answer) -> str | None:
    found = answer.header("X-Auth-Decision-Id")
    return found or json.loads(answer.header("X-Authz-Body") or "{}")["decision_id"]


async def test_a_decision_is_a_span_under_the_requests_own(sidecar, collector, token) -> None:
    """Whether it is read, or remembered: the third of the same request is."""
    async with Wire(sidecar.port) as wire:
        answers = [await wire.ask(asks(token, trace)) for trace in range(1, 5)]
    assert [answer.status for answer in answers] == [200] * 4
    for trace, answer in enumerate(answers, 1):
        found = await collector.until(2, trace)
        (span, said), *others = [one for one in found if one[0].name == "authorize"]
        assert not others
        assert span.parent_span_id == (trace + 1).to_bytes(8)
        assert span.kind == span.SPAN_KIND_SERVER
        assert said == {
            "authsidecar.decision_id": decision_of(answer),
            "authsidecar.proxy": "nginx",
            "authsidecar.outcome": "allow",
            "http.request.method": "GET",
            "http.route": "/api/v1/teams",
        }
        trips = [one for one in found if one[0].name != "authorize"]
        assert "redis charge" in {trip.name for trip, _ in trips}
        for trip, about in trips:
            assert trip.parent_span_id == span.span_id
            assert trip.kind == trip.SPAN_KIND_CLIENT
            assert about["db.system.name"] == "redis"
            assert span.start_time_unix_nano <= trip.start_time_unix_nano
            assert trip.start_time_unix_nano <= trip.end_time_unix_nano <= span.end_time_unix_nano


async def test_a_refusal_says_its_code_and_no_span_a_secret(sidecar, collector, token) -> None:
    """Nothing of the token, the path or the address is in what is sent."""
    unknown, nowhere = await ask(
        sidecar.port, asks(8, 11), asks(token, 12, uri="/api/v1/nowhere?secret=planted")
    )
    for trace, code, status, answer in (
        (11, "token_unknown", 401, unknown),
        (12, "route_unknown", 404, nowhere),
    ):
        found = await collector.until(1, trace)
        ((span, said),) = [one for one in found if one[0].name == "authorize"]
        assert said["authsidecar.code"] == code
        assert said["http.response.status_code"] == status
        assert said["authsidecar.decision_id"] == decision_of(answer)
        assert span.status.code == span.status.STATUS_CODE_UNSET  # the client's fault
    sent = b"".join(collector.bodies)
    for secret in (b"planted", b"nowhere", b"secret", b"192.0.2.1"):
        assert secret not in sent


async def test_what_is_not_sampled_is_not_traced(sidecar, collector, token) -> None:
    await ask(
        sidecar.port,
        *(asks(token, 20, UNSAMPLED) for _ in range(4)),
        subrequest(authorization=bearer(token)),
        asks(token, 21),
    )
    await collector.until(2, 21)
    assert collector.of(20) == []
    assert {span.trace_id for span, _ in collector.spans} == {(21).to_bytes(16)}


async def test_a_decision_that_redis_keeps_from_being_made_has_failed(
    sidecar, server, collector, token
) -> None:
    """The trip says with what."""
    server.freeze()
    try:
        (answer,) = await ask(sidecar.port, asks(token, 31))
    finally:
        server.thaw()
    assert answer.header("X-Authz-Status") == "503"
    found = await collector.until(2, 31)
    assert all(span.status.code == span.status.STATUS_CODE_ERROR for span, _ in found)
    assert {said.get("error.type") for _, said in found} - {None} == {"timeout"}


async def test_a_collector_that_is_away_harms_no_request(sidecar, port, token) -> None:
    """Nobody waits for it, one line says so, another when it is back."""
    (answer,) = await ask(sidecar.port, asks(token, 41))
    assert answer.status == 200

    async def told(event: str) -> bool:
        await ask(sidecar.port, asks(token, 42))
        await asyncio.sleep(0.05)
        return f'"event": "{event}"' in sidecar.log_path.read_text()

    await eventually(lambda: told("traces_lost"), "a line")
    assert sidecar.log_path.read_text().count("traces_lost") == 1
    assert str(port) not in sidecar.log_path.read_text()
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await eventually(lambda: told("traces_exported"), "a line")
    await collector.until(2, 42)
    await runner.cleanup()
