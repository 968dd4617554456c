"""What a stranger's worst request costs, against a plain one: processor time within one run."""

from collections.abc import AsyncIterator, Callable
from itertools import repeat
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.support import seed
from tests.support.decisions import world
from tests.support.sidecar import SidecarProcess, start_sidecar
from tests.support.wire import ask_all, subrequest

SIZE = 16 * 1024
WORST = 6.0
"""How much more the worst request of 16 KiB may cost than a plain one."""

ROUNDS = 5
REQUESTS = 320
"""Of each sort in a round."""

CONNECTIONS = 32

PLAIN = subrequest(authorization=seed.bearer(67))


def filled(start: bytes, with_: bytes, size: int = SIZE) -> bytes:
    """As much as fits of one thing, again and again."""
    return start + with_ * ((size - len(start)) // len(with_))


def query(with_: bytes) -> bytes:
    return subrequest(uri=filled(b"/api/v1/teams?", with_))


def path(with_: bytes) -> bytes:
    return subrequest(uri=filled(b"/api/v1/", with_))


def hops(one: bytes) -> bytes:
    return subrequest(client=filled(b"192.0.2.1", b", " + one))


HEADERS = 180

SHAPES = {
    "query %&": query(b"%&"),
    "query &;": query(b"&;"),
    "query [&": query(b"[&"),
    "query &": query(b"&"),
    "query %26": query(b"%26"),
    "query _method[": query(b"&_method["),
    "query ;_method[": query(b";_method["),
    "query ;_method[a": query(b";_method[%5"),
    "query blanks": query(b"%20"),
    "query blanks before a dot": query(b"&%20%20.metho"),
    "query plus": query(b"+"),
    "query method": query(b"method"),
    "query of few _method[": query(b";_method[%5%5%5%5"),
    "query of few _method[x": query(b"xxxxxxxx;_method[xx"),
    "query of few blanks": query(b"aaaaa;" + b"%20" * 6),
    "query of few almost": query(b";%5f%6d%65%74%68%6"),
    "query =": query(b"a=&"),
    "query escapes": query(b"%5f%6d"),
    "path escapes": path(b"%61"),
    "path escapes of ü": path(b"%C3%BC"),
    "path segments": path(b"a/"),
    "path escaped segments": path(b"%61/"),
    "path dots": path(b"../"),
    "path escaped dots": path(b"%2e%2e/"),
    "path slashes": path(b"//"),
    "path of parameters": subrequest(uri=filled(b"/api/v1/projects/", b"u/")),
    "path long": path(b"a"),
    "path long, as Envoy sends it": subrequest(
        None, None, line=b"GET /authz/envoy" + filled(b"/api/v1/", b"%61") + b" HTTP/1.1"
    ),
    "query as Envoy sends it": subrequest(
        None, None, line=b"GET /authz/envoy" + filled(b"/api/v1/teams?", b"%&") + b" HTTP/1.1"
    ),
    "target repeated with an id": subrequest(
        uri=filled(b"/api/v1/teams?", b"a"),
        proxy="nginx",
        headers=[("X-Authz-Request-Id", "1" * 32)],
    ),
    "token": subrequest(authorization=filled(b"Bearer 67|", b"x")),
    "token of 4 KiB": subrequest(authorization=filled(b"Bearer 67|", b"x", 4096)),
    "token of 32 KiB": subrequest(authorization=filled(b"Bearer 67|", b",", 32_000)),
    "token of blanks": subrequest(authorization=filled(b"Bearer", b" ", 32_000) + b"|"),
    "hops": hops(b"192.0.2.7"),
    "hops of IPv6": hops(b"[2001:db8:1:2:3:4:5:6]:443"),
    "hops that are empty": hops(b""),
    "hops, trusted": hops(b"10.1.2.3"),
    "hops that are no address": hops(b"1.2.3.4.5"),
    "many hops lines": subrequest(
        headers=[("X-Forwarded-For", f"10.0.0.{i}") for i in range(HEADERS)]
    ),
    "a cookie": subrequest(headers=[("Cookie", filled(b"a=", b"b; c="))]),
    "names": subrequest(headers=[(f"X-{i}-" + "a" * 70, "b") for i in range(HEADERS)]),
    "names with _": subrequest(headers=[(f"X_{i}_" + "_" * 70, "b") for i in range(HEADERS)]),
    "names with .": subrequest(headers=[(f"X.{i}." + "_." * 35, "b") for i in range(HEADERS)]),
    "names of the same family": subrequest(
        headers=[(f"X-Auth_{i}-" + "_" * 70, "b") for i in range(HEADERS)]
    ),
    "names almost of the family": subrequest(
        headers=[(f"X_Http_{i}-" + "_." * 35, "b") for i in range(HEADERS)]
    ),
    "the same name": subrequest(headers=[("Origin", "a" * 80) for _ in range(HEADERS)]),
    "a long name": subrequest(headers=[(filled(b"X_", b"_"), b"b")]),
    "method": subrequest(method=filled(b"G", b"E")),
    "request id": subrequest(proxy="nginx", headers=[("X-Authz-Request-Id", filled(b"a", b"b"))]),
}


@pytest.fixture
async def process(redis_client: Redis, tmp_path: Path) -> AsyncIterator[SidecarProcess]:
    """As it ships, but with limits that nobody meets and hops that are trusted."""
    await world(redis_client)
    unix = redis_client.connection_pool.connection_kwargs["path"]
    made = start_sidecar(
        tmp_path,
        f"unix://{unix}",
        LISTEN__MEMO_ENTRIES="0",  # a plain one is read as well: remembered, it costs a third
        LIMITS__USER="100000",
        LIMITS__UNKNOWN="100000",
        LIMITS__FAILED="100000",
        TRUSTED_HOPS="10.0.0.0/8",
    )
    yield made
    made.stop()


def spent(process: SidecarProcess) -> int:
    """Nanoseconds of the processor that it has used."""
    return int((Path("/proc") / str(process.pid) / "schedstat").read_text().split()[0])


@pytest.mark.slow
@pytest.mark.alone
async def test_the_worst_request_costs_a_few_plain_ones(
    process: SidecarProcess, tell: Callable[[str], None]
) -> None:
    """Whatever a caller without a token fills 16 KiB with."""
    cost: dict[str, list[float]] = {"plain": [], **{name: [] for name in SHAPES}}

    async def measure(request: bytes) -> float:
        before = spent(process)
        await ask_all(process.port, repeat(request, REQUESTS), connections=CONNECTIONS)
        return (spent(process) - before) / REQUESTS / 1000

    await measure(PLAIN)
    for _ in range(ROUNDS):
        cost["plain"].append(await measure(PLAIN))
        for name, request in SHAPES.items():
            cost[name].append(await measure(request))
    plain = min(cost.pop("plain"))
    ratios = {name: min(times) / plain for name, times in cost.items()}
    worst = sorted(ratios.items(), key=lambda one: -one[1])
    tell(
        f"plain: {plain:.0f} us; worst 16 KiB: "
        + ", ".join(f"{name} {ratio:.1f}" for name, ratio in worst[:8])
    )
    assert worst[0][1] <= WORST, worst[:8]
