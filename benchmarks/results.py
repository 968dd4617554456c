"""What a run found: the table, the ratios within it, the targets; and all of it as JSON.

A ratio is taken within one round, where both sides met the same machine, and then the median of
the rounds' ratios is the result.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.meter import Round

EMPTY = "empty"

CONTESTANTS = {
    EMPTY: "empty aiohttp handler",
    "allow": "allowed, as it ships",
    "before": "- by the commit before",
    "allow-quiet": "- without log lines",
    "nginx-lua": "nginx with Lua: token and limit",
    "never-seen": "allowed, a path never seen",
    "before-never-seen": "- by the commit before",
    "restricted": "allowed, a restricted token",
    "counted": "- with two counters of its own",
    "limited": "allowed, four limits",
    "isolated": "allowed, team isolation",
    "aiohttp": "allowed, on aiohttp's own server",
    "flood": "over the limit: 429, a line each",
    "flood-quiet": "- without log lines",
    "bad-token": "unknown tokens: 429, a line each",
    "naive": "naive: two trips, no cache",
    "limits": "limits: moving window alone",
}
"""Names as they are shown; the order of the table."""

MAIN = 32
"""The number of connections that ratios are taken at."""


@dataclass(frozen=True)
class Spread:
    """A median with the least and the greatest of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Target:
    """What is wanted, what was found, and whether that is enough; None: it is only told."""

    text: str
    found: float
    met: bool | None

    @property
    def word(self) -> str:
        """How it is shown."""
        return {True: "met", False: "NOT MET", None: "told"}[self.met]


@dataclass(frozen=True)
class Growth:
    """One thing grown: throughput against the small one, in turns, at each size.

    Attributes:
        what: "tokens", "allowlist" or "routes".
        ratios: by size.
        sizes: in Redis, bytes each, by size; empty where nothing of the sort was measured.
    """

    what: str
    ratios: Mapping[int, Spread]
    sizes: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """All that one run found.

    Attributes:
        machine: what it ran on, by name.
        method: how it was measured, by name.
        rounds: by contestant, then by number of connections, in the order of time.
        skipped: contestants that cannot run here, and why.
        failed: why contestants have no rounds, by contestant, then by number of connections.
        growth: what was grown, or nothing.
        record_bytes: resident memory of the process for each cached token, or None.
    """

    machine: Mapping[str, str]
    method: Mapping[str, str]
    rounds: Mapping[str, Mapping[int, Sequence[Round]]]
    skipped: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    growth: Sequence[Growth] = ()
    record_bytes: float | None = None

    def of(self, name: str, what: str, connections: int = MAIN) -> Spread:
        """A figure of a contestant: the name of a field of Round."""
        return Spread.of([getattr(r, what) for r in self.rounds[name][connections]])

    def ratio(
        self, name: str, what: str = "per_second", to: str = EMPTY, connections: int = MAIN
    ) -> Spread:
        """A figure as a ratio to another contestant's of the same round."""
        pairs = zip(self.rounds[name][connections], self.rounds[to][connections], strict=True)
        return Spread.of([getattr(a, what) / getattr(b, what) for a, b in pairs])

    @property
    def connections(self) -> list[int]:
        """The numbers of connections that anybody was measured with."""
        return sorted({number for by in self.rounds.values() for number in by})

    def latency(self, name: str, connections: int) -> str:
        """p50 and p99 in milliseconds, as they are shown."""
        if connections in self.failed.get(name, ()):
            return "failed"
        if connections not in self.rounds[name]:
            return "-"
        p50, p99 = (self.of(name, w, connections).median for w in ("p50_ms", "p99_ms"))
        return f"{p50:.2f} / {p99:.2f}"


def table(run: Run) -> str:
    """What is printed: a line for each contestant, then the latencies, then the targets."""
    heads = f"{'req/s':>8}{'ratio':>7}{'spread':>12}{'CPU us':>8}{'Redis us':>9}"
    lines = [f"{f'{MAIN} connections':38}{heads}{'commands':>9}{'scripts':>8}"]
    for name, title in CONTESTANTS.items():
        if name in run.skipped:
            lines.append(f"{title:38}skipped: {run.skipped[name]}")
        if name not in run.rounds:
            continue
        ratio = run.ratio(name)
        cpu, redis, commands, scripts = (
            run.of(name, what).median for what in ("server_us", "redis_us", "commands", "scripts")
        )
        lines.append(
            f"{title:38}{run.of(name, 'per_second').median:8,.0f}{ratio.median:7.2f}"
            f"{ratio.low:7.2f}-{ratio.high:.2f}{cpu:8.1f}{redis:9.1f}{commands:9.3f}{scripts:8.3f}"
        )
    connections = run.connections
    lines += [
        "",
        "".join([f"{'p50 / p99 in ms, at connections':38}", *map("{:>18}".format, connections)]),
    ]
    for name, title in CONTESTANTS.items():
        if len(run.rounds.get(name, ())) > 1:
            cells = (run.latency(name, c) for c in connections)
            lines.append("".join([f"{title:38}", *map("{:>18}".format, cells)]))
    lines += ["", *failures(run), *growth_lines(run), *(target_line(t) for t in targets(run))]
    return "\n".join(lines)


def failures(run: Run) -> list[str]:
    """A line for each contestant that failed at a number of connections."""
    return [
        f"{CONTESTANTS[name]}, {connections} connections: {why}"
        for name, by_connections in run.failed.items()
        for connections, why in by_connections.items()
    ]


def growth_lines(run: Run) -> list[str]:
    """A line for each thing that was grown."""
    lines = []
    for grown in run.growth:
        cells = (f"{n:,}: {s.median:.2f}" for n, s in grown.ratios.items())
        lines.append(f"{grown.what}, throughput against the fewest: {', '.join(cells)}")
        lines += [f"  {size:.0f} bytes of Redis each at {n:,}" for n, size in grown.sizes.items()]
    if run.record_bytes is not None:
        lines.append(f"a cached token: {run.record_bytes:.0f} bytes of the process")
    return lines


def target_line(target: Target) -> str:
    """A target as it is printed."""
    return f"{target.word:8}{target.text}: {target.found:.3g}"


def targets(run: Run) -> list[Target]:
    """The targets that this run can speak of."""

    def at_least(text: str, found: float, least: float) -> Target:
        return Target(f"{text} >= {least:g}", found, found >= least)

    def at_most(text: str, found: float, most: float) -> Target:
        return Target(f"{text} <= {most:g}", found, found <= most)

    def ratio(name: str, to: str, what: str = "per_second", connections: int = MAIN) -> float:
        return run.ratio(name, what, to, connections).median

    found = [
        at_least("allowed / empty handler", ratio("allow", EMPTY), 1.1),
        at_most("allowed, CPU µs a request", run.of("allow", "server_us").median, 32),
        at_least("allowed / the same without lines", ratio("allow", "allow-quiet"), 0.9),
        at_most(
            "restricted token, CPU / an unrestricted one",
            ratio("restricted", "allow", "server_us"),
            1.05,
        ),
        at_least("allowed / naive version", ratio("allow", "naive"), 3),
        at_least("over the limit, a line each / empty handler", ratio("flood", EMPTY), 0.75),
        at_most("over the limit, commands a request", run.of("flood", "commands").median, 0.01),
    ]
    if 256 in run.rounds[EMPTY]:
        tail = ratio("allow", EMPTY, "p99_ms", 256)
        found.append(at_most("p99 at 256, allowed / empty handler", tail, 2))
    if "nginx-lua" in run.rounds:
        found.append(at_least("allowed / nginx with Lua", ratio("allow", "nginx-lua"), 1))
    if 1 in run.rounds.get("nginx-lua", ()):
        one = ratio("allow", "nginx-lua", connections=1)
        found.append(at_least("allowed, one connection / nginx with Lua", one, 0.8))
    if "before" in run.rounds:
        found += [
            Target("allowed, CPU / the commit before", ratio("allow", "before", "server_us"), None),
            at_most(
                "a path never seen, CPU / the commit before",
                ratio("never-seen", "before-never-seen", "server_us"),
                1.05,
            ),
        ]
    for grown in run.growth:
        if grown.what == "tokens":
            most = max(grown.ratios)
            found.append(
                at_least(
                    f"throughput, {most:,} tokens / the fewest", grown.ratios[most].median, 0.95
                )
            )
            found.append(at_most("bytes of Redis a token", grown.sizes[most], 500))
    return found


def to_json(run: Run) -> str:
    """The run as JSON, with its targets beside it."""
    return json.dumps({**asdict(run), "targets": [asdict(t) for t in targets(run)]}, indent=1)


def from_json(text: str) -> Run:
    """The run that `to_json` wrote."""
    data = json.loads(text)
    return Run(
        machine=data["machine"],
        method=data["method"],
        rounds={
            name: {int(c): [Round(**r) for r in rounds] for c, rounds in by.items()}
            for name, by in data["rounds"].items()
        },
        skipped=data["skipped"],
        failed={name: _by_number(by, str) for name, by in data["failed"].items()},
        growth=[
            Growth(
                g["what"],
                _by_number(g["ratios"], lambda s: Spread(**s)),
                _by_number(g["sizes"], float),
            )
            for g in data["growth"]
        ],
        record_bytes=data["record_bytes"],
    )


def _by_number(found: Mapping[str, Any], read: Callable[[Any], Any]) -> dict[int, Any]:
    return {int(number): read(value) for number, value in found.items()}


def load(file: Path) -> Run:
    """The run in a file."""
    return from_json(file.read_text())
