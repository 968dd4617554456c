"""Log lines at a bounded pace: how many, and what is said of those left out."""

from collections.abc import Mapping

import pytest

from authsidecar.observe import log_pace
from authsidecar.observe.log_pace import LogPace
from tests.support.waiting import eventually


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(log_pace, "time", clock)
    return clock


def lines(written: list[Mapping[str, object]], of: str) -> list[Mapping[str, object]]:
    return [line for line in written if line["of"] == of]


def test_one_line_a_second_says_how_many_were_left_out(clock: Clock) -> None:
    """Each cause has a pace of its own."""
    written: list[Mapping[str, object]] = []
    pace = LogPace(written.append)
    for second in range(3):
        for number in range(10):
            for cause in ("a", "b"):
                pace.line(cause, lambda c=cause, n=number, s=second: {"of": c, "n": (s, n)})
        clock.now += 1
    for cause in ("a", "b"):
        assert lines(written, cause) == [
            {"of": cause, "n": (0, 0)},
            {"of": cause, "n": (1, 0), "left_out": 9},
            {"of": cause, "n": (2, 0), "left_out": 9},
        ]


def test_more_lines_a_second_where_that_is_asked_for(clock: Clock) -> None:
    """The first ones of each second."""
    written: list[Mapping[str, object]] = []
    pace = LogPace(written.append, lines=3)
    for _ in range(2):
        for number in range(5):
            pace.line("a", lambda n=number: {"n": n})
        clock.now += 1
    assert written == [{"n": 0}, {"n": 1}, {"n": 2}, {"n": 0, "left_out": 2}, {"n": 1}, {"n": 2}]


def test_fields_are_made_for_lines_that_are_written_only(clock: Clock) -> None:
    """A flood costs no rendering."""
    made = 0

    def fields() -> dict:
        nonlocal made
        made += 1
        return {}

    pace = LogPace(lambda _: None)
    for _ in range(1000):
        pace.line("a", fields)
    assert made == 1


def test_causes_are_remembered_up_to_a_bound(clock: Clock) -> None:
    """All beyond it share a pace; none is remembered for long after it went quiet."""
    written: list[Mapping[str, object]] = []
    pace = LogPace(written.append, remembered=4)
    for number in range(100):
        pace.line(number, lambda n=number: {"n": n})
    assert [line["n"] for line in written] == [0, 1, 2, 3, 4]
    assert len(pace._held) == 5
    clock.now += 1.5
    pace.line(200, lambda: {"n": 200})
    assert written[-1] == {"n": 200}


def test_the_end_tells_of_what_was_left_out(clock: Clock) -> None:
    """The last one has the line, with the number of the others."""
    written: list[Mapping[str, object]] = []
    pace = LogPace(written.append)
    for number in range(10):
        pace.line("a", lambda n=number: {"n": n})
    pace.close()
    pace.close()
    assert written == [{"n": 0}, {"n": 9, "left_out": 8}]


async def test_a_flood_that_ends_is_told_of_within_a_second_or_two() -> None:
    """Nobody has to cause another line for that."""
    written: list[Mapping[str, object]] = []
    pace = LogPace(written.append)
    for number in range(10):
        pace.line("a", lambda n=number: {"n": n})

    async def told() -> bool:
        return len(written) > 1

    await eventually(told, "the last line")
    assert written == [{"n": 0}, {"n": 9, "left_out": 8}]
