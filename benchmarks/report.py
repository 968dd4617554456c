"""`make bench-report`: the pages of docs/explanation that a result fills.

benchmarks.md is written whole; scaling.md has blocks between two marks each, of which this writes
the inside.
"""

import argparse
import math
from pathlib import Path

from authsidecar.store.calls import BATCH, IN_FLIGHT
from benchmarks import plots, proxies, results
from benchmarks.results import CONTESTANTS, MAIN, Run, failures, targets
from benchmarks.simulate_failover import table as failover_table

DOCS = Path(__file__).parents[1] / "docs/explanation"

HEAD = """# Benchmarks

<!-- Written by `make bench-report`; edit benchmarks/report.py instead. -->

**In short:** what one check costs, against an aiohttp handler that does nothing, on the same
machine in the same minute. Requests a second say something about this machine only; the ratios are
what to compare.

"""

METHOD = Path(__file__).with_name("method.md")


def page(run: Run, behind: proxies.Found | None = None) -> str:
    """docs/explanation/benchmarks.md of a run.

    Args:
        run: what `bench --json` wrote.
        behind: what `proxies --json` wrote.
    """
    facts = ", ".join(f"{name} {value}" for name, value in run.machine.items())
    parts = [
        HEAD,
        f"Measured on: {facts}. Load: {run.method['load']}; {run.method['rounds']}.\n\n",
        f"## At {MAIN} connections\n\n",
        "![throughput as a ratio to the empty handler](img/throughput.svg)\n\n",
        _throughput(run),
        "\n| target | found | |\n|---|---|---|\n",
        *(
            f"| {t.text} | {t.found:.3g} | { {True: 'met', False: 'not met', None: ''}[t.met] } |\n"
            for t in targets(run)
        ),
        "\n## Latency\n\n![p99 over connections](img/latency.svg)\n\n",
        _latency(run),
    ]
    if behind:
        parts += ["\n## Behind a proxy\n\n", _behind(behind)]
    if run.growth:
        parts += ["\n## Growth\n\n![throughput as things grow](img/growth.svg)\n\n", _growth(run)]
    return "".join([*parts, "\n", METHOD.read_text()])


def _throughput(run: Run) -> str:
    lines = [
        "| | requests/s | ratio | least - greatest | CPU µs | Redis CPU µs | commands | scripts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, title in CONTESTANTS.items():
        if name in run.skipped:
            lines.append(f"| {title} | skipped: {run.skipped[name]} | | | | | | |")
        if name in run.rounds:
            ratio = run.ratio(name)
            figures = (run.of(name, w).median for w in ("server_us", "redis_us"))
            counts = (run.of(name, w).median for w in ("commands", "scripts"))
            cells = [
                f"{run.of(name, 'per_second').median:,.0f}",
                f"{ratio.median:.2f}",
                f"{ratio.low:.2f} - {ratio.high:.2f}",
                *(f"{figure:.1f}" for figure in figures),
                *(f"{count:.3f}" for count in counts),
            ]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _latency(run: Run) -> str:
    connections = run.connections
    heads = " | ".join(f"p50 / p99 ms at {c}" for c in connections)
    lines = [f"| | {heads} |", "|---" * (len(connections) + 1) + "|"]
    for name, title in CONTESTANTS.items():
        if len(run.rounds.get(name, ())) > 1:
            cells = (run.latency(name, c) for c in connections)
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join([*lines, *("\n" + line + "." for line in failures(run))]) + "\n"


def _behind(found: proxies.Found) -> str:
    lines = [
        "The shipped files of each proxy, with keep-alive from the client. The ratio is to a path",
        "that the same file leaves unguarded; CPU is that of whoever is asked, and of the proxy.",
        "Traefik keeps two idle connections to the sidecar, which no setting of `forwardAuth`",
        "changes: at 32 connections more than half of its questions open a new one.",
        "",
        "| proxy | asked | requests/s | ratio | p50 ms | p99 ms | CPU µs | of before | proxy µs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for proxy, by_connections in found.items():
        for connections, by_name in by_connections.items():
            for name, asked in proxies.ASKED.items():
                if name in by_name:
                    row = " | ".join(proxies.cells(by_name, name))
                    lines.append(f"| {proxy}, {connections} | {asked} | {row} |")
    return "\n".join(lines) + "\n"


def _growth(run: Run) -> str:
    lines = [
        "Throughput of the allow path as a ratio to a sidecar with 1,000 tokens, ten allowlist",
        "entries and Coolify 4.0's 147 routes; a thousand tokens take turns in both.",
        "",
        "| what grew | ratio at each size |",
        "|---|---|",
    ]
    for grown in run.growth:
        cells = ", ".join(
            f"{n:,}: {s.median:.2f} ({s.low:.2f} - {s.high:.2f})" for n, s in grown.ratios.items()
        )
        lines.append(f"| {grown.what} | {cells} |")
    sizes = [item for grown in run.growth for item in grown.sizes.items()]
    lines += [
        "",
        "A token needs in Redis, with all indexes (each expires, so that it is in all of them) and",
        "its share of 10,000 users in 1,000 teams:",
        ", ".join(f"{size:.0f} bytes at {n:,} tokens" for n, size in sizes) + ".",
    ]
    if run.record_bytes is not None:
        lines.append(f"In a process it needs {run.record_bytes:.0f} bytes once it is cached.")
    return "\n".join(lines) + "\n"


def images(run: Run) -> dict[str, str]:
    """The plots of the page, by file name."""
    titles = {name: title for name, title in CONTESTANTS.items() if name in run.rounds}
    ratios = {name: run.ratio(name) for name in titles}
    rows = [(titles[n], s.median, s.low, s.high) for n, s in ratios.items()]
    p99 = {
        title: [(c, run.of(name, "p99_ms", c).median) for c in sorted(run.rounds[name])]
        for name, title in titles.items()
        if len(run.rounds[name]) > 1
    }
    found = {
        "throughput.svg": plots.bars(
            f"Throughput at {MAIN} connections, empty handler = 1", rows, (1.1, "1.1")
        ),
        "latency.svg": plots.lines("p99 in milliseconds", p99, "connections", "ms"),
    }
    if run.growth:
        series = {g.what: [(n, s.median) for n, s in g.ratios.items()] for g in run.growth}
        found["growth.svg"] = plots.lines(
            "Throughput as things grow, the small one = 1", series, "how many", "ratio"
        )
    return found


def capacity(run: Run) -> str:
    """The block of scaling.md that a run fills: what a core does, and what a fleet needs."""
    core, redis = (1e6 / run.of("allow", w).median for w in ("server_us", "redis_us"))
    alone, node = (1e6 / run.of("allow", w, 1).median for w in ("server_us", "redis_us"))
    lines = [
        f"Measured on {run.machine['processor']}, every check on, {MAIN} connections:",
        f"{core:,.0f} checks a second for each sidecar core, {redis:,.0f} for one Redis, which so",
        f"serves {redis / core:.1f} sidecar cores. Where no two requests share a call it is",
        f"{alone:,.0f} and {node:,.0f}. A fleet whose cores are used to {LOADED:.0%}:",
        "",
        "| checks a second | one Redis: sidecar cores | its use | Cluster: cores | primaries |",
        "|---|---|---|---|---|",
    ]
    for wanted in (1_000, 10_000, 100_000, 1_000_000, 10_000_000):
        used = wanted / redis
        single = f"{cores(wanted, core):,} | {used:.0%}" if used <= LOADED else "- | too small"
        lines.append(
            f"| {wanted:,} | {single} | {cores(wanted, alone):,} | {cores(wanted, node):,} |"
        )
    return "\n".join(lines) + "\n"


def cores(wanted: float, each: float) -> int:
    """How many cores do so many a second, if none is used beyond LOADED."""
    return math.ceil(wanted / (each * LOADED))


def trips() -> str:
    """The block of scaling.md about distance: latency, and what a process can do at the most."""
    lines = [
        "| round trip to Redis | a check waits for Redis | checks a second a process and primary |",
        "|---|---|---|",
    ]
    for where, ms in DISTANCES:
        most = BATCH * IN_FLIGHT / ms * 1000
        lines.append(f"| {where}: {ms:g} ms | {ms:g} to {2 * ms:g} ms | {most:,.0f} at most |")
    return "\n".join(lines) + "\n"


DISTANCES = (
    ("same machine", 0.1),
    ("same zone", 0.5),
    ("another zone", 2),
    ("another region", 30),
)

LOADED = 0.6
"""The share of a core that a fleet is planned to use."""


def filled(text: str, block: str, content: str) -> str:
    """The text with the inside of `<!-- BLOCK -->` ... `<!-- /BLOCK -->` replaced.

    Raises:
        ValueError: the marks are not there.
    """
    begin, end = f"<!-- {block} -->\n", f"<!-- /{block} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"no block {block}")
    return f"{before}{begin}{content}{end}{after}"


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, nargs="?", help="what bench --json wrote")
    parser.add_argument("behind", type=Path, nargs="?", help="what proxies --json wrote")
    arguments = parser.parse_args()
    result, behind = arguments.result, arguments.behind
    scaling = DOCS / "scaling.md"
    text = filled(scaling.read_text(), "failover", failover_table())
    text = filled(text, "trips", trips())
    if result is not None:
        run = results.load(result)
        (DOCS / "img").mkdir(exist_ok=True)
        for name, image in images(run).items():
            (DOCS / "img" / name).write_text(image)
        found = None if behind is None else proxies.from_json(behind.read_text())
        (DOCS / "benchmarks.md").write_text(page(run, found))
        text = filled(text, "capacity", capacity(run))
    scaling.write_text(text)


if __name__ == "__main__":
    main()
