"""What the demo prints: the commands to try, and the table of what was expected and seen."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Final

from click import style

from authsidecar.decision.model import Proxy
from authsidecar.demo.answers import ScenarioResult
from authsidecar.demo.scenarios import ANYTHING, Scenario

NAMES: Final[Mapping[Proxy, str]] = {Proxy.TRAEFIK: "Traefik", Proxy.NGINX: "nginx"}

_COLOURS: Final = {"2": "green", "4": "yellow"}


def commands(
    urls: Mapping[Proxy, str], scenarios: Iterable[Scenario], log: str, console: str
) -> str:
    """What to type into another terminal, and what will be answered.

    Args:
        urls: where each proxy listens.
        scenarios: in this order; some build on those before.
        log: the file that the sidecar's decisions go to.
        console: the link that signs in to the console.
    """
    choices = [
        f"P={url}   # {NAMES[proxy]}" for proxy, url in sorted(urls.items(), key=_traefik_first)
    ]
    lines = [
        "Traefik and nginx guard a stand-in for Coolify. In another terminal, choose one:",
        "",
        *choices,
        "",
        "Then try (with -i you see the status and the headers):",
        "",
    ]
    for scenario in scenarios:
        lines += [_promise(scenario), scenario.curl("$P"), ""]
    lines += [
        f"Every decision: tail -f {log}",
        f"The console (this link works once, for five minutes): {console}",
        "Ctrl-C ends everything and removes its files.",
    ]
    return "\n".join(lines)


def _traefik_first(item: tuple[Proxy, str]) -> bool:
    return item[0] is not Proxy.TRAEFIK


def _promise(scenario: Scenario) -> str:
    answer = _in_prose(scenario.expected)
    colour = _COLOURS.get(answer[0])
    return f"# {scenario.name} -> {style(answer, fg=colour)}, because {scenario.because}"


def _in_prose(expected: str) -> str:
    """An expectation within a sentence: what may be anything is not said."""
    return re.sub(rf":? {re.escape(ANYTHING)}", "", expected).removesuffix(".")


def comparison(results: Sequence[ScenarioResult], urls: Mapping[Proxy, str]) -> str:
    """A table for each proxy, and one line at the end that says how many agree."""
    lines: list[str] = []
    widths = [
        max(len(result.scenario.name) for result in results),
        max(len(result.expected) for result in results),
    ]
    for proxy, rows in groupby(results, key=lambda result: result.proxy):
        heading = _row("     ", ("request", "expected", "seen"), widths)
        lines += [f"{NAMES[proxy]} at {urls[proxy]}", heading]
        for row in rows:
            lines.append(_row(_mark(row), (row.scenario.name, row.expected, row.seen), widths))
        lines.append("")
    good = sum(result.agrees for result in results)
    lines.append(f"{good} of {len(results)} answers are as expected.")
    return "\n".join(lines)


def _row(mark: str, texts: tuple[str, str, str], widths: Sequence[int]) -> str:
    name, expected, seen = texts
    return f"{mark} {name:<{widths[0]}}  {expected:<{widths[1]}}  {seen}"


def _mark(result: ScenarioResult) -> str:
    return style("ok   ", fg="green") if result.agrees else style("WRONG", fg="red", bold=True)
