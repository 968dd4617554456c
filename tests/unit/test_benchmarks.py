"""What benchmarks print and publish is what was measured and simulated."""

import random
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from authsidecar.decision.model import Limit
from authsidecar.decision.ratelimit import sliding_window
from authsidecar.times import UnixMs
from benchmarks import before, bench, proxies, report, results
from benchmarks.load import NUMBER, numbered, read_result
from benchmarks.meter import Reading, Round, cost
from benchmarks.nginx_lua import rendered
from benchmarks.results import Growth, Run, Spread
from benchmarks.simulate_failover import LIMIT, WINDOW_MS, Counter, Scenario, simulate
from benchmarks.soak import deviation


def rounds(*rates: float, p99_ms: float = 2.0, commands: float = 0.3) -> dict[int, list[Round]]:
    one = Round(0.0, 1.0, p99_ms, 40.0, 10.0, commands, 0.03)
    return {c: [replace(one, per_second=rate) for rate in rates] for c in (1, 32, 256)}


MAIN_ALONE = {32: rounds(5_000, 2_000, 4_000)[32]}


RUN = Run(
    machine={"processor": "2 cores, some model", "python": "3.11"},
    method={"load": "wrk", "rounds": "3 of 2 s at 32 connections"},
    rounds={
        "empty": rounds(30_000, 10_000, 20_000, p99_ms=1.0),
        "allow": rounds(18_000, 6_000, 12_000),
        "allow-quiet": rounds(20_000, 6_000, 13_000),
        "restricted": MAIN_ALONE,
        "flood": rounds(24_000, 8_000, 12_000, commands=0.02),
        "naive": rounds(6_000, 1_500, 5_000),
    },
    skipped={"nginx-lua": "no nginx"},
    growth=[Growth("tokens", {1_000_000: Spread(0.97, 0.9, 1.0)}, {1_000_000: 380.5})],
    record_bytes=1_400.0,
)


def test_a_ratio_is_taken_within_a_round():
    """A machine that was slow for one round, for both alike, does not move the ratio."""
    assert RUN.ratio("allow") == Spread(0.6, 0.6, 0.6)
    assert RUN.ratio("allow", to="naive") == Spread(3.0, 12 / 5, 4.0)


def test_targets_say_what_is_met_and_what_is_not():
    """Each of the issue's targets is judged by its own figure."""
    met = {t.text: t.met for t in results.targets(RUN)}
    assert met == {
        "allowed / empty handler >= 1.1": False,
        "allowed, CPU µs a request <= 32": False,
        "allowed / the same without lines >= 0.9": True,
        "restricted token, CPU / an unrestricted one <= 1.05": True,
        "allowed / naive version >= 3": True,
        "over the limit, a line each / empty handler >= 0.75": True,
        "over the limit, commands a request <= 0.01": False,
        "p99 at 256, allowed / empty handler <= 2": True,
        "throughput, 1,000,000 tokens / the fewest >= 0.95": True,
        "bytes of Redis a token <= 500": True,
    }


def test_targets_follow_who_takes_part():
    """Against nginx and the commit before there is a target where these were measured."""
    more = {
        "nginx-lua": rounds(18_000, 6_000, 12_000),
        "before": rounds(9_000, 3_000, 6_000),
        "never-seen": MAIN_ALONE,
        "before-never-seen": {32: [replace(r, server_us=39.0) for r in MAIN_ALONE[32]]},
    }
    found = results.targets(replace(RUN, rounds={**RUN.rounds, **more}, skipped={}))
    assert {t.text: (t.found, t.met) for t in found if "nginx" in t.text or "before" in t.text} == {
        "allowed / nginx with Lua >= 1": (1.0, True),
        "allowed, one connection / nginx with Lua >= 0.8": (1.0, True),
        "allowed, CPU / the commit before": (1.0, None),
        "a path never seen, CPU / the commit before <= 1.05": (pytest.approx(40 / 39), True),
    }


def test_json_holds_the_whole_run():
    """What is read back is what was written."""
    assert results.from_json(results.to_json(RUN)) == RUN


def test_the_table_names_who_was_skipped_and_why():
    """A contestant that cannot run is not silently absent."""
    text = results.table(RUN)
    assert re.search(r"nginx with Lua.*skipped: no nginx", text)
    assert re.search(r"allowed, as it ships +12,000 +0\.60 +0\.60-0\.60", text)
    assert "NOT MET over the limit, commands a request <= 0.01: 0.02" in text


@dataclass
class Asked:
    """A contestant whose rounds are made up; at 1,000 connections `failing` of them fail."""

    name: str
    failing: int

    def round(self, connections: int, seconds: float) -> Round:
        if connections == 1000 and self.failing:
            raise RuntimeError(f"{self.failing} connections failed")
        return rounds(30_000)[32][0]


def measured(**failing: int) -> Run:
    """The run of contestants of which some fail at 1,000 connections."""
    names = ("empty", "allow", "allow-quiet", "restricted", "flood", "naive")
    found: Any = {name: Asked(name, failing.get(name, 0)) for name in names}
    return bench.measure(found, {1: (1, 1), 32: (1, 1), 256: (1, 1), 1000: (3, 1)})


def test_a_run_goes_on_without_another_server_that_fails():
    """An empty handler that can't hold 1,000 connections has no figure there, and it is said."""
    run = measured(empty=25)
    assert set(run.rounds["empty"]) == {1, 32, 256}
    assert results.from_json(results.to_json(run)).failed == run.failed
    text, page = results.table(run), report.page(run)
    assert "empty aiohttp handler, 1000 connections: 25 connections failed" in text
    assert re.search(r"empty aiohttp handler .* 1\.00 / 2\.00 +failed\n", text)
    assert re.search(r"allowed, as it ships .* 1\.00 / 2\.00\n", text)
    assert "empty aiohttp handler, 1000 connections: 25 connections failed." in page
    assert set(report.images(run)) == {"throughput.svg", "latency.svg"}


def test_a_run_ends_where_a_sidecar_fails():
    """What is this tree's has no excuse."""
    with pytest.raises(RuntimeError, match=r"^allow, 1000 connections: 1 connections failed$"):
        measured(allow=1)


def test_a_round_costs_what_the_counters_grew_by():
    """CPU and commands are divided by the requests of that very round."""
    measured = read_result("RESULT 2000 1000000 900 3000 0\nSTATUS 0\n")
    before, after = Reading(1.0, 5.0, 100, 10), Reading(1.5, 5.02, 700, 50)
    approx: Any = pytest.approx
    assert cost(measured, before, after) == Round(
        2000.0, 0.9, 3.0, approx(250.0), approx(10.0), 0.3, 0.02, 2000
    )


def test_failed_connections_are_no_measurement():
    """wrk goes on when connections fail; the run does not."""
    with pytest.raises(RuntimeError, match="3 connections failed"):
        read_result("RESULT 2000 1000000 900 3000 3\nSTATUS 0\n")


def test_the_page_has_every_figure_and_its_plots_are_xml():
    """The generated page shows the run's ratios, and browsers can draw its images."""
    page = report.page(RUN)
    assert "| allowed, as it ships | 12,000 | 0.60 | 0.60 - 0.60 |" in page
    assert "1,000,000: 0.97 (0.90 - 1.00)" in page
    assert "380 bytes at 1,000,000 tokens." in page
    images = report.images(RUN)
    assert set(images) == set(re.findall(r"\(img/(.*?)\)", page))
    for image in images.values():
        ET.fromstring(image)


def test_capacity_is_reckoned_from_the_cost_of_a_check():
    """40 us at 60 % use are 15,000 checks a second; a fleet is rounded up."""
    text = report.capacity(RUN)
    assert "25,000 checks a second for each sidecar core, 100,000 for one Redis" in text
    assert "| 10,000 | 1 | 10% | 1 | 1 |" in text
    assert "| 1,000,000 | - | too small | 67 | 17 |" in text


def test_nginx_is_configured_for_this_run_alone():
    """Every file and address of the contestant is the run's own."""
    files = rendered(Path("/run/bench"), 4242, Path("/run/redis/s"))
    conf, check = files["nginx.conf"], files["check.lua"]
    assert "listen 127.0.0.1:4242" in conf
    assert conf.count("{") == conf.count("}")
    assert "content_by_lua_file /run/bench/check.lua" in conf
    assert 'red:connect("unix:/run/redis/s")' in check
    assert check.count("red:evalsha") == 1
    assert "access_log /dev/stdout;" in conf
    assert "{{" not in check


def test_memory_is_flat_only_if_it_stays():
    """Warming up and a moment's peak are no growth; a slow climb is."""
    warming = [float(n) for n in range(60)]
    assert deviation([*warming, *([100.0] * 25), 180.0, *([101.0] * 40)], 60) == 0.01
    assert deviation([*warming, *(100 + n / 10 for n in range(100))], 60) > 0.05


def test_simulated_counter_is_the_model():
    """Also when the clock jumps backwards, the quick counter admits what the model admits."""
    rng = random.Random(3)
    limit = Limit(LIMIT, WINDOW_MS)
    counter, state, now = Counter(), (), 0
    for _ in range(3_000):
        jump = rng.random() < 0.01
        now += rng.randrange(-5_000, 5_000) if jump else rng.randrange(300)
        (state,), admitted, (counted,) = sliding_window.charge((state,), (limit,), UnixMs(now))
        assert counter.admit(now) == admitted
        if not admitted:
            assert counter.retry_at() == counted.reset_at


def test_a_failover_admits_what_was_lost_and_no_more():
    """A burst loses the lag's worth of admissions; simulate() raises if more come on top."""
    found = simulate(Scenario(bursts=True, lag_ms=10), 20)
    assert max(one.extra for one in found) == 10


def test_without_lag_or_clock_difference_a_failover_changes_nothing():
    """The simulation's excess comes from what it simulates."""
    assert {(f.extra, f.bound) for f in simulate(Scenario(bursts=True), 10)} == {(0, 0)}


def test_a_page_without_its_marks_is_not_overwritten():
    """A block that was edited away is an error, not a silent loss."""
    with pytest.raises(ValueError, match="no block capacity"):
        report.filled("# Scaling\n", "capacity", "x")


def test_a_commit_before_is_compared_pair_by_pair():
    """The ratio is of the rounds that met the same machine; what was free stays without one."""
    one = Round(0.0, 1.0, 2.0, 0.0, 0.0, 0.3, 0.03)
    now, then = (
        [replace(one, server_us=us) for us in row] for row in ((30, 90, 20), (60, 100, 50))
    )
    text = before.table(("now", "012345678"), {"allowed": (now, then)})
    assert re.search(r"allowed, 3 pairs +now +012345678 +ratio +spread +best", text)
    assert re.search(r"CPU of the sidecar.* 30.0 +60.0 +0.50 +0.40-0.90 +0.40\n", text)
    assert re.search(r"CPU of Redis.* 0.0 +0.0\n", text)


def test_the_source_of_a_commit_is_its_own(tmp_path):
    """What is measured as the commit before is what git has, and a typing error is named."""
    assert (before.source("HEAD", tmp_path) / "authsidecar/__main__.py").exists()
    with pytest.raises(SystemExit, match=r"--before no-such: .*no-such"):
        before.source("no-such", tmp_path)


def test_a_request_that_has_a_number_never_comes_again():
    """What a cache of whole requests is measured with is new each time, also in the next run."""
    sent = [f"GET /{NUMBER} HTTP/1.1".encode(), b"GET / HTTP/1.1"]
    seen = [request for _ in range(3) for request in numbered(sent)]
    assert len({request for request in seen if request != sent[1]}) == 3
    assert sent[0] not in seen


def behind_nginx() -> proxies.Found:
    one = Round(0.0, 1.0, 2.0, 0.0, 10.0, 7.0, 0.9, 500)

    def rounds_of(*figures: tuple[float, float]) -> list[proxies.Behind]:
        made = (replace(one, per_second=rate, server_us=us) for rate, us in figures)
        return [proxies.Behind(round_, 80.0) for round_ in made]

    return {
        "nginx": {
            32: {
                "nobody": rounds_of((4_000, 1), (1_000, 1), (2_000, 1)),
                "sidecar": rounds_of((2_000, 60), (600, 90), (1_000, 50)),
                "before": rounds_of((1_000, 100), (500, 180), (900, 90)),
            }
        }
    }


def test_behind_a_proxy_ratios_are_within_a_round():
    """The table has who is asked, against nobody and the commit before; JSON holds it all."""
    found = behind_nginx()
    assert proxies.cells(found["nginx"][32], "sidecar") == [
        *("1,000", "0.50", "1.00", "2.00"),
        *("60.0", "0.56", "80.0"),
    ]
    text = proxies.table(found)
    assert text.startswith("nginx, 32 connections ")
    assert re.search(r"nobody is asked +2,000 +1.00 +1.00 +2.00 +80.0", text)
    assert proxies.from_json(proxies.to_json(found)) == found


def test_the_page_says_what_proxies_cost_and_what_each_number_is_good_for():
    """Each figure that the page shows is among those that it explains."""
    page = report.page(RUN, behind_nginx())
    assert "| nginx, 32 | the sidecar | 1,000 | 0.50 | 1.00 | 2.00 | 60.0 | 0.56 | 80.0 |" in page
    explained = page.partition("## What each number is good for")[2]
    for figure in ("CPU µs a request", "Redis CPU µs", "without log lines", "behind a proxy"):
        assert f"{figure}" in explained
    assert "## Behind a proxy" not in report.page(RUN)
