"""The overview: the whole fleet's charts, refusals, processes and warnings."""

import pytest

from authsidecar.observe.metrics import Sums
from authsidecar.observe.tallies import BOUNDS_S
from authsidecar.store.fleet import FleetWriter
from tests.support.console import HOSTILE, Browser


async def decided(console: Browser, *processes: tuple[str, str]) -> None:
    """Have processes (a version, a configuration) each admit 30 requests and refuse 10."""
    for number, (version, config) in enumerate(processes):
        sums = Sums({}, [0] * (len(BOUNDS_S) + 1))
        writer = FleetWriter(
            console.redis,
            console.sidecar.keys,
            lambda: sums,  # noqa: B023  # called at once
            version=version,
            config=lambda: config,  # noqa: B023  # the same
            now=console.sidecar.decisions.now,
        )
        writer._self["pid"] = number
        writer._self["host"] = HOSTILE
        sums = Sums({"none": 30, "token_unknown": 10}, [0, 40] + [0] * (len(BOUNDS_S) - 1))
        await writer.write()


async def test_before_anything_is_counted_it_says_so(console):
    """An empty page says what to do first."""
    page = await console.get()
    assert page.has("management.fleet_counters")
    assert "<svg" not in page.text.partition("<main")[2]


@pytest.mark.parametrize("span", ["hour", "day", "week", "year"])
async def test_it_shows_what_all_processes_decided(console, span):
    """Figures of two processes together, whichever time is looked at."""
    await decided(console, ("1.0", "c0ffee"), ("1.0", "c0ffee"))
    page = await console.get(f"?span={span}")
    shown = "hour" if span == "year" else span
    assert page.has(f"In the last {shown}, 60 requests were admitted and 20 refused.")
    assert page.text.count('class="chart fluid"') == 2
    assert "/console/decisions?code=token_unknown" in page.text
    assert "side by side" not in page.text
    assert "style=" not in page.text
    assert "<script>alert" not in page.text
    assert len(page.text) < 100_000


async def test_processes_that_differ_are_told_with_what_to_do(console):
    """One that was forgotten at an upgrade, or did not read its file again."""
    await decided(console, ("1.0", "c0ffee"), ("1.1", "decaf0"))
    page = await console.get()
    assert page.has("processes of the versions 1.0, 1.1 run side by side: finish the upgrade")
    assert page.has("bring the files into line")
