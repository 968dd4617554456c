"""Two sorts of plots as SVG text: bars with their spread, and lines over a logarithmic axis."""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH = 720
LEFT = 250
"""Pixels for the names beside the bars."""

RIGHT = 60
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#17becf")

Bar = tuple[str, float, float, float]
"""Name, median, least, greatest."""

Points = Sequence[tuple[float, float]]


def bars(title: str, rows: Sequence[Bar], mark: tuple[float, str] | None = None) -> str:
    """A bar for each row with a line from the least to the greatest.

    Args:
        title: above the plot.
        rows: at least one.
        mark: a value to draw a dashed line at, and what it is called.
    """
    most = max([*(high for *_, high in rows), mark[0] if mark else 0]) or 1
    scale = (WIDTH - LEFT - RIGHT) / most
    body = []
    for number, (name, value, low, high) in enumerate(rows):
        y = 46 + 28 * number
        end = LEFT + value * scale
        body += [
            _text(LEFT - 8, y + 13, name, "end"),
            f'<rect x="{LEFT}" y="{y}" width="{value * scale:.1f}" height="18" fill="#1f77b4"/>',
            _line(LEFT + low * scale, y + 9, LEFT + high * scale, y + 9, "#222"),
            _text(max(end, LEFT + high * scale) + 6, y + 13, f"{value:.2f}"),
        ]
    height = 60 + 28 * len(rows)
    if mark:
        x = LEFT + mark[0] * scale
        body += [
            _line(x, 40, x, height - 14, "#d62728", dash=True),
            _text(x, 36, mark[1], "middle"),
        ]
    return _svg(title, height, body)


def lines(title: str, series: Mapping[str, Points], x_name: str, y_name: str) -> str:
    """A line for each series; both axes are logarithmic, so no value may be 0.

    Args:
        title: above the plot.
        series: by name, each with at least one point.
        x_name: what x is.
        y_name: what y is.
    """
    left, top, right, bottom = 60, 40, WIDTH - 290, 330
    xs = sorted({x for points in series.values() for x, _ in points})
    ys = [y for points in series.values() for _, y in points]
    ticks = _decades(min(ys), max(ys))

    def x_at(x: float) -> float:
        span = math.log(xs[-1] / xs[0]) or 1
        return left + (right - left) * math.log(x / xs[0]) / span

    def y_at(y: float) -> float:
        return bottom - (bottom - top) * math.log(y / ticks[0]) / math.log(ticks[-1] / ticks[0])

    body = []
    for tick in ticks:
        body += [
            _line(left, y_at(tick), right, y_at(tick), "#ddd"),
            _text(left - 6, y_at(tick) + 4, f"{tick:g}", "end"),
        ]
    body += [_text(x_at(x), bottom + 18, f"{x:,.0f}", "middle") for x in xs]
    body += [_text((left + right) / 2, bottom + 38, x_name, "middle"), _text(8, top - 8, y_name)]
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in points)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [
            f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3" fill="{colour}"/>'
            for x, y in points
        ]
        y = top + 20 * number
        body += [
            f'<rect x="{right + 20}" y="{y - 9}" width="10" height="10" fill="{colour}"/>',
            _text(right + 36, y, name),
        ]
    return _svg(title, bottom + 50, body)


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten, and twice and five times them, around the values."""
    steps = [m * 10.0**e for e in range(-6, 10) for m in (1, 2, 5)]
    first = max(i for i, s in enumerate(steps) if s <= low)
    last = min(i for i, s in enumerate(steps) if s >= high)
    return steps[first : max(last, first + 1) + 1]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dash: bool = False) -> str:
    dashes = ' stroke-dasharray="5 4"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashes}/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: int, body: Sequence[str]) -> str:
    size = f'width="{WIDTH}" height="{height}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<rect {size} fill="#fff"/>',
        f'<text x="8" y="18" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    return "\n".join([*head, *body, "</svg>\n"])
