"""Charts that the server draws."""

from xml.etree import ElementTree as ET

import pytest

from authsidecar.serving.console.charts import Chart, ChartLine, draw, legend, meter, scale, short
from authsidecar.times import UnixMs

SVG = "{http://www.w3.org/2000/svg}"
START = 1_800_000_000_000
HOSTILE = '</title><script>alert(1)</script> "&'


def chart(*values: float | None, title: str = "Rates", step_ms: int = 900_000) -> Chart:
    """One line, five slots of 15 minutes."""
    times = [UnixMs(START + n * step_ms) for n in range(len(values))]
    return Chart("rates", title, "It is so.", (ChartLine("all", "line", values),), times, step_ms)


def drawn(given: Chart) -> ET.Element:
    return ET.fromstring(draw(given))


def test_a_chart_says_what_it_shows():
    """A title and a description that screen readers are pointed at, whatever is in them."""
    root = drawn(chart(1, 2, title=HOSTILE))
    names = root.get("aria-labelledby").split()
    said = {one.get("id"): one.text for one in root if one.get("id")}
    assert [said[name] for name in names] == [HOSTILE, "It is so."]
    assert root.get("role") == "img"
    assert not list(root.iter(f"{SVG}script"))


def test_nothing_of_it_needs_an_inline_style():
    """The console's policy lets no style attribute work."""
    for text in (draw(chart(1, None, 2)), legend(chart(1)), meter(0.5)):
        assert "style=" not in text


def test_a_line_goes_from_left_to_right_and_up():
    """The highest mark is the top of the plot, 0 the bottom."""
    (path,) = drawn(chart(0, 4, 2)).iter(f"{SVG}path")
    assert path.get("d") == "M0.0 1000.0h0L500.0 0.0L1000.0 500.0"


def test_a_gap_lifts_the_pen():
    """What nobody has counted is not drawn as nothing."""
    (path,) = drawn(chart(4, None, 4, 4)).iter(f"{SVG}path")
    assert path.get("d") == "M0.0 0.0h0M666.7 0.0h0L1000.0 0.0"


def test_marks_and_moments_are_written_beside_the_plot():
    """Values from 0 to a round one, and five times of the day."""
    texts = [one.text for one in drawn(chart(0, 7, 1, 0)).iter(f"{SVG}text")]
    assert texts == ["0", "2", "4", "6", "8", "08:00", "08:15", "08:30", "08:45", "09:00"]


def test_a_week_is_marked_by_days():
    """Hours would not tell which day it is."""
    day = 86_400_000
    texts = [one.text for one in drawn(chart(*[1] * 7, step_ms=day)).iter(f"{SVG}text")]
    assert texts[-5:] == ["Fri 15", "Sun 17", "Mon 18", "Wed 20", "Fri 22"]


@pytest.mark.parametrize("values", [(), (None, None), (0, 0)])
def test_nothing_can_be_drawn(values):
    """Without a value there are axes alone."""
    assert drawn(chart(*values)) is not None


@pytest.mark.parametrize("most", [0.0003, 0.03, 0.7, 1, 4, 7, 39, 40, 41, 99, 100, 12345, 1e9])
def test_a_scale_is_round_and_holds_all(most):
    """Three to six marks, the last one not below the highest value and not far above."""
    marks = scale(most)
    assert marks[0] == 0
    assert most <= marks[-1] * (1 + 1e-9) <= most * 2.01
    assert 3 <= len(marks) <= 6


def test_numbers_are_short():
    """They stand in the narrow room beside the plot."""
    given = (0, 0.0005, 0.25, 20, 999, 1500, 12_345, 2_000_000, 3e9)
    found = [short(one) for one in given]
    assert found == ["0", "0.0005", "0.25", "20", "999", "1.5k", "12.3k", "2M", "3G"]


@pytest.mark.parametrize(("part", "width"), [(-1, "0.0%"), (0.375, "37.5%"), (7, "100.0%")])
def test_a_meter_is_never_longer_than_the_whole(part, width):
    """Who is over a limit has a full bar, in another colour."""
    assert f'width="{width}"' in meter(part)
    assert "over" in meter(part, over=True)
