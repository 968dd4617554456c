"""The sidecar of an earlier commit beside that of this tree: what a change costs or saves.

The two take turns, a second each, so that a machine with much else to do is as busy for one as for
the other; what counts is the ratio of a pair, and of all pairs the median. Where the machine is so
busy that the median strays, look at the best round of each: what else runs only adds to a request.
"""

import io
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.meter import Round
from benchmarks.results import Spread

ROOT = Path(__file__).parents[1]

COMPARED = {
    "server_us": "CPU of the sidecar, µs a request",
    "redis_us": "CPU of Redis, µs a request",
    "per_second": "requests a second",
    "p99_ms": "p99, ms",
}
"""Figures of a round that are shown, and how they are called."""


def source(commit: str, directory: Path) -> Path:
    """Write `src` of a commit into a directory: what PYTHONPATH has to name.

    Raises:
        SystemExit: git knows no such commit.
    """
    command = ("git", "archive", commit, "src")
    made = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if made.returncode:
        raise SystemExit(f"--before {commit}: {made.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(directory, filter="data")
    return directory / "src"


def table(
    names: tuple[str, str], found: Mapping[str, tuple[Sequence[Round], Sequence[Round]]]
) -> str:
    """What is printed: by what was asked, each figure of the two, and their ratio.

    Args:
        names: of the two, at most nine characters each.
        found: by what was asked, the rounds of the one and of the other, in the order of time.
    """
    lines = []
    for asked, both in found.items():
        pairs = f"{len(both[0])} pairs"
        heads = f"{names[0]:>10}{names[1]:>11}{'ratio':>7}{'spread':>12}{'best':>7}"
        lines.append(f"{asked + ', ' + pairs:44}{heads}")
        for field, title in COMPARED.items():
            mine, theirs = ([getattr(one, field) for one in rounds] for rounds in both)
            cells = "".join(f"{Spread.of(v).median:{w},.1f}" for v, w in ((mine, 10), (theirs, 11)))
            if not min(theirs):  # Redis has nothing to do in a flood
                lines.append(f"  {title:42}{cells}")
                continue
            ratio = Spread.of([a / b for a, b in zip(mine, theirs, strict=True)])
            compared = f"{ratio.median:7.2f}{ratio.low:7.2f}-{ratio.high:.2f}"
            best = max if field == "per_second" else min
            lines.append(f"  {title:42}{cells}{compared}{best(mine) / best(theirs):7.2f}")
    return "\n".join(lines)
