"""`make bench-proxies`: what a check costs behind real proxies, booted from the files of deploy/.

Each proxy runs two or three times, side by side: in front of the sidecar, of the naive version, and
of the sidecar of the commit before. Nobody is asked on a path that the same file leaves unguarded.
All take turns, so ratios are within one round.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from authsidecar.decision.model import Proxy
from authsidecar.demo.proxies import ProxyUnavailableError, find_binary, start_proxy
from benchmarks import before, cores, requests
from benchmarks.bench import SAMPLE, Contestant, Server, Servers
from benchmarks.meter import Meter, Round, cpu_s
from benchmarks.results import MAIN, Spread

PROXIES = (Proxy.TRAEFIK, Proxy.NGINX, Proxy.CADDY, Proxy.ENVOY)
CONNECTIONS = (1, MAIN)
CLIENTS = 50
"""Users whose tokens take turns."""

GUARDED, UNGUARDED = "/api/v1/servers", "/login"

ASKED = {
    "nobody": "nobody is asked",
    "sidecar": "the sidecar",
    "before": "- of the commit before",
    "naive": "the naive version",
}
"""Whom a proxy asks before it passes a request on; the order of the table."""


@dataclass(frozen=True)
class Behind:
    """One round behind a proxy; CPU of the round is that of whoever is asked.

    Attributes:
        round: requests a second, latencies, CPU of the sidecar or the naive version.
        proxy_us: CPU microseconds of the proxy, a request.
    """

    round: Round
    proxy_us: float


Found = Mapping[str, Mapping[int, Mapping[str, Sequence[Behind]]]]
"""Rounds by proxy, number of connections and who is asked."""


async def behind(
    proxy: Proxy, asked: Mapping[str, Server], backend: Server, directory: Path, rounds: int
) -> dict[int, dict[str, list[Behind]]]:
    """Measure one proxy in front of each of these; it asks nobody on an unguarded path.

    Args:
        proxy: one that is installed.
        asked: servers by their names in ASKED, with "sidecar".
        backend: what is guarded.
        directory: for files and logs.
        rounds: of each, of a second.
    """
    found: dict[int, dict[str, list[Behind]]] = {}
    async with AsyncExitStack() as stack:
        one: dict[str, tuple[Contestant, psutil.Process]] = {}
        for name, server in asked.items():
            place = directory / f"{proxy.value}-{name}"
            place.mkdir()
            running = await start_proxy(
                proxy,
                authz=f"127.0.0.1:{server.port}",
                backend=f"127.0.0.1:{backend.port}",
                directory=place,
            )
            stack.push_async_callback(running.stop)
            port = int(running.url.rpartition(":")[2])
            meter = Meter(server.pid, server.redis.pid, server.redis.url)
            process = psutil.Process(running.process.pid)
            one[name] = (
                Contestant(port, requests.of_clients(port, GUARDED, CLIENTS), 200, meter),
                process,
            )
            if name == "sidecar":
                sent = requests.of_clients(port, UNGUARDED, CLIENTS)
                one["nobody"] = Contestant(port, sent, 200, meter), process
        names = list(one)
        for connections in CONNECTIONS:
            for turn in range(rounds):
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    contestant, process = one[name]
                    spent = cpu_s(process)
                    measured = await asyncio.to_thread(contestant.round, connections, 1)
                    spent = cpu_s(process) - spent
                    here = found.setdefault(connections, {}).setdefault(name, [])
                    # Those that only look at the answers, before and after, are among its requests.
                    asked_for = measured.requests + CLIENTS + 2 * SAMPLE
                    here.append(Behind(measured, spent * 1e6 / asked_for))
    return found


def table(found: Found) -> str:
    """What is printed: by proxy and number of connections, a line for each that is asked."""
    lines = []
    for proxy, by_connections in found.items():
        for connections, by_name in by_connections.items():
            title = f"{proxy}, {connections} connection{'s' if connections > 1 else ''}"
            heads = f"{'req/s':>8}{'ratio':>7}{'p50 ms':>8}{'p99 ms':>8}{'CPU us':>8}"
            lines.append(f"{title:28}{heads}{'of before':>10}{'proxy us':>9}")
            for name, asked in ASKED.items():
                if name in by_name:
                    row = cells(by_name, name)
                    widths = (8, 7, 8, 8, 8, 10, 9)
                    text = "".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True))
                    lines.append(f"{asked:28}{text}")
    return "\n".join(lines)


def cells(by_name: Mapping[str, Sequence[Behind]], name: str) -> list[str]:
    """One line's cells: requests a second, as a ratio to those where nobody is asked, p50, p99, CPU
    of who is asked, that as a ratio to the commit before, CPU of the proxy."""

    def median(what: str) -> float:
        return Spread.of([getattr(one.round, what) for one in by_name[name]]).median

    def ratio(what: str, to: str) -> float:
        pairs = zip(by_name[name], by_name[to], strict=True)
        return Spread.of([getattr(a.round, what) / getattr(b.round, what) for a, b in pairs]).median

    alone = name == "nobody"
    compared = name == "sidecar" and "before" in by_name
    return [
        f"{median('per_second'):,.0f}",
        f"{ratio('per_second', 'nobody'):.2f}",
        f"{median('p50_ms'):.2f}",
        f"{median('p99_ms'):.2f}",
        "" if alone else f"{median('server_us'):.1f}",
        f"{ratio('server_us', 'before'):.2f}" if compared else "",
        f"{Spread.of([one.proxy_us for one in by_name[name]]).median:.1f}",
    ]


def to_json(found: Found) -> str:
    """The rounds as JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(one) for key, one in value.items()}
        return [asdict(one) for one in value]

    return json.dumps(plain(found), indent=1)


def from_json(text: str) -> Found:
    """The rounds that `to_json` wrote."""
    return {
        proxy: {
            int(connections): {
                name: [Behind(Round(**one["round"]), one["proxy_us"]) for one in rounds]
                for name, rounds in by_name.items()
            }
            for connections, by_name in by_connections.items()
        }
        for proxy, by_connections in json.loads(text).items()
    }


def main() -> None:
    """Run, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each, of a second; 5")
    parser.add_argument("--before", metavar="COMMIT", help="the sidecar of an earlier commit, too")
    parser.add_argument(
        "--proxy", action="append", choices=[p.value for p in PROXIES], help="this one; all"
    )
    parser.add_argument("--json", type=Path, help="where the result is written")
    arguments = parser.parse_args()
    cores.leave()
    found = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        source = before.source(arguments.before, directory) if arguments.before else None
        servers = stack.enter_context(Servers(directory))
        asked = {"sidecar": servers.sidecar("sidecar"), "naive": servers.other("naive")}
        if source is not None:
            asked["before"] = servers.sidecar("before", source)
        backend = servers.other("backend", on_servers_core=False)
        for proxy in map(Proxy, arguments.proxy or PROXIES):
            try:
                find_binary(proxy)
            except ProxyUnavailableError as error:
                print(f"{proxy.value}: skipped: {error}")
                continue
            found[proxy.value] = asyncio.run(
                behind(proxy, asked, backend, directory, arguments.rounds)
            )
            print(table({proxy.value: found[proxy.value]}), flush=True)
    if arguments.json:
        arguments.json.write_text(to_json(found))


if __name__ == "__main__":
    main()
