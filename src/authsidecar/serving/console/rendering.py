"""Templates, and the files that go with them; read from the package once."""

import json
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from authsidecar.admin.tokens import DAY_MS
from authsidecar.serving.console import BASE
from authsidecar.serving.console.charts import draw, legend, meter, short
from authsidecar.times import UnixMs, date_of, for_people, parse_rfc3339, rfc3339

_HERE: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file that pages name.

    Attributes:
        body: its bytes.
        content_type: of them.
        version: names these bytes.
    """

    body: bytes
    content_type: str
    version: str


def render(template: str, **context: object) -> str:
    """A template, filled; texts are escaped, and a name that is not given is a defect."""
    return _environment().get_template(template).render(**context)


def prepare() -> None:
    """Read and compile every template: not on the event loop, which has requests to decide."""
    static_files()
    for name in _environment().list_templates():
        _environment().get_template(name)


@cache
def static_files() -> Mapping[str, StaticFile]:
    """The files that pages name, by name."""
    return {path.name: _static_file(path) for path in sorted((_HERE / "static").iterdir())}


def _static_file(path: Path) -> StaticFile:
    body = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return StaticFile(body, kind, sha256(body).hexdigest()[:16])


def _url(name: str) -> str:
    """Where a file is, under a name of its own for each content: browsers keep it."""
    return f"{BASE}/static/{name}?v={static_files()[name].version}"


def _time(text: str | None, absent: str = "never") -> Markup:
    """A time (RFC 3339) in UTC; the page's script shows it in the reader's zone."""
    if text is None:
        return Markup('<span class="none">{}</span>').format(absent)
    shown = for_people(parse_rfc3339(text))
    return Markup('<time datetime="{}" title="{}">{}</time>').format(text, shown, shown)


def _days_after(text: str, now: UnixMs) -> float:
    """How many days lie between a time and now; below 0: it has passed."""
    return (parse_rfc3339(text) - now) / DAY_MS


def _query(given: Mapping[str, str]) -> str:
    """The filters of a list as its next page's query has them."""
    return urlencode({name: value for name, value in given.items() if value})


def _moment(at: UnixMs) -> Markup:
    """The same of a time in milliseconds."""
    return _time(rfc3339(at))


def _facts(value: object) -> str:
    """Plain values as JSON that people read."""
    return "nothing" if value is None else json.dumps(value, indent=2, ensure_ascii=False)


def _text(value: str) -> Markup:
    """A foreign text, kept from turning what stands around it (bidirectional characters)."""
    return Markup("<bdi>{}</bdi>").format(value)


def _words(text: str) -> Markup:
    """A text whose code stands in backticks, as reason codes are explained."""
    parts = text[:1].upper() + text[1:]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if n % 2 else escape(part)
        for n, part in enumerate(parts.split("`"))
    )


def _figure(value: float | None, unit: str = "") -> str:
    """A measured number in a few characters; None: nobody has measured."""
    if value is None:
        return "-"
    return f"{short(value)} {unit}" if unit else short(value)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals |= {"base": BASE, "static": _url}
    environment.filters |= {"words": _words, "moment": _moment, "day": date_of}
    environment.filters |= {
        "time": _time,
        "text": _text,
        "facts": _facts,
        "query": _query,
        "days_after": _days_after,
    }
    environment.filters |= {"chart": draw, "legend": legend, "meter": meter, "figure": _figure}
    return environment
