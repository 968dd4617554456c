"""Charts as SVG that the server draws: no script, no inline style, a title and a description.

A chart is as wide as its place; its text keeps its size, since positions are parts of the whole
and only the plot within is stretched. Colours come from classes of `style.css`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, floor, log10
from typing import Final

from markupsafe import Markup

from authsidecar.times import UnixMs

LEFT: Final = 9.0
"""Where the plot begins, in percent of the chart's width."""

TOP: Final = 6.0
"""The same of its height."""

WIDTH: Final = 90.0
HEIGHT: Final = 78.0

_PLOT: Final = 1000
"""Units of the plot in each direction."""


@dataclass(frozen=True, slots=True)
class ChartLine:
    """One line of a chart.

    Attributes:
        name: what it shows.
        css: its class: `line`, `good-line` or `bad-line`.
        values: from left to right; None is a gap.
        dashed: told apart without colours.
    """

    name: str
    css: str
    values: Sequence[float | None]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over a time.

    Attributes:
        key: names it among those of its page: letters.
        title: what it shows.
        description: the same in a sentence, with the figures that matter.
        lines: all of the same length.
        times: when each value begins, in milliseconds.
        step_ms: for how long it holds.
    """

    key: str
    title: str
    description: str
    lines: Sequence[ChartLine]
    times: Sequence[UnixMs]
    step_ms: int


def draw(chart: Chart) -> Markup:
    """The chart as an SVG element."""
    most = max(_known(line.values for line in chart.lines), default=0.0)
    marks = scale(most)
    top = marks[-1]
    parts = [
        Markup(
            '<svg class="chart fluid" role="img" aria-labelledby="{key}-title {key}-text" '
            'xmlns="http://www.w3.org/2000/svg">'
            '<title id="{key}-title">{title}</title><desc id="{key}-text">{text}</desc>'
        ).format(key=chart.key, title=chart.title, text=chart.description),
        *(_mark(mark, top) for mark in marks),
        *_times(chart),
        Markup(
            '<svg x="{}%" y="{}%" width="{}%" height="{}%" viewBox="0 0 {} {}" '
            'preserveAspectRatio="none" overflow="visible">'
        ).format(LEFT, TOP, WIDTH, HEIGHT, _PLOT, _PLOT),
        *(_path(line, top) for line in chart.lines),
        Markup("</svg></svg>"),
    ]
    return Markup("").join(parts)


def legend(chart: Chart) -> Markup:
    """What each line is: its name beside a piece of it."""
    items = Markup("").join(
        Markup(
            '<li><svg class="chart swatch" width="24" height="10" aria-hidden="true">'
            '<path class="{}" d="M0 5h24"{}/></svg> {}</li>'
        ).format(line.css, _dashes(line), line.name)
        for line in chart.lines
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def meter(part: float, *, over: bool = False) -> Markup:
    """How much of something there is, as a bar; what it says stands beside it in words.

    Args:
        part: of the whole, 0 to 1; more is drawn as the whole.
        over: the bar has the colour of a warning.
    """
    width = f"{100 * min(max(part, 0.0), 1.0):.1f}%"
    return Markup(
        '<svg class="meter{}" aria-hidden="true"><rect width="100%" height="100%" rx="3"/>'
        '<rect class="fill" width="{}" height="100%" rx="3"/></svg>'
    ).format(" over" if over else "", width)


def scale(most: float) -> list[float]:
    """Round marks from 0 to one that is not below a value, three to six of them.

    >>> scale(7)
    [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    if most <= 0:
        return [0.0, 0.5, 1.0]
    power = 10.0 ** floor(log10(most / 4))
    step = next(n * power for n in (1, 2, 5, 10) if n * power * 5 >= most)
    return [n * step for n in range(ceil(most / step - 1e-9) + 1)]


def short(value: float) -> str:
    """A number in a few characters.

    >>> short(1500), short(0.25), short(20)
    ('1.5k', '0.25', '20')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _known(values: Iterable[Sequence[float | None]]) -> Iterator[float]:
    return (one for many in values for one in many if one is not None)


def _mark(mark: float, top: float) -> Markup:
    y = f"{TOP + HEIGHT * (1 - mark / top):.2f}%"
    return Markup(
        '<line class="axis" x1="{left}%" x2="{right}%" y1="{y}" y2="{y}"/>'
        '<text x="{label}%" y="{y}" dy="4" text-anchor="end">{text}</text>'
    ).format(left=LEFT, right=LEFT + WIDTH, label=LEFT - 1, y=y, text=short(mark))


def _times(chart: Chart) -> Iterator[Markup]:
    """Five moments below the plot, in UTC."""
    if not chart.times:
        return
    start, end = chart.times[0], chart.times[-1] + chart.step_ms
    form = "%H:%M" if end - start <= 25 * 3_600_000 else "%a %d"
    for n in range(5):
        anchor = {0: "start", 4: "end"}.get(n, "middle")
        at = datetime.fromtimestamp((start + (end - start) * n // 4) / 1000, UTC)
        yield Markup('<text x="{}%" y="97%" text-anchor="{}">{}</text>').format(
            LEFT + WIDTH * n / 4, anchor, at.strftime(form)
        )


def _path(line: ChartLine, top: float) -> Markup:
    return Markup(
        '<path class="{}" vector-effect="non-scaling-stroke" stroke-linecap="round"{} d="{}"/>'
    ).format(line.css, _dashes(line), _steps(line.values, top))


def _steps(values: Sequence[float | None], top: float) -> str:
    """The way of a line; a gap lifts the pen, and a lone value is a dot."""
    width = _PLOT / max(1, len(values) - 1)
    words: list[str] = []
    drawn = False
    for n, value in enumerate(values):
        if value is None:
            drawn = False
            continue
        place = f"{n * width:.1f} {_PLOT * (1 - value / top):.1f}"
        words.append(f"L{place}" if drawn else f"M{place}h0")
        drawn = True
    return "".join(words)


def _dashes(line: ChartLine) -> Markup:
    return Markup(' stroke-dasharray="6 4"') if line.dashed else Markup("")
