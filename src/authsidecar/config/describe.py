"""The configuration described for people and editors, from the model alone.

`python -m authsidecar.config.describe docs/reference/configuration.md` brings that page up to date.
"""

import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from authsidecar.config.catalogue import SETTINGS, Setting
from authsidecar.config.sections import Settings

MARK: Final = (
    "<!-- Below: written by `python -m authsidecar.config.describe`; a test holds it. -->\n"
)

_EXAMPLE_HEAD: Final = """\
# Every setting of authsidecar with its default. All of them are optional.
#
# Each can be set by the environment as well, which wins over this file: redis.url by
# AUTHSIDECAR_REDIS__URL, or by AUTHSIDECAR_REDIS__URL_FILE, the path of a file with the value.
# The environment's API_RATE_LIMIT is the default of limits.user.limit.
# `authsidecar check-config` says what is wrong or unwise.
"""


def json_schema() -> dict[str, Any]:
    """Give the JSON schema (draft 2020-12) of the file, for editors."""
    schema = Settings.model_json_schema(mode="validation")
    # Half a bucket is legal: the other half keeps its default.
    schema["$defs"]["Bucket"].pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def example() -> str:
    """Write config.example.yaml: every setting with its default, unit and bounds."""
    blocks = [_EXAMPLE_HEAD]
    for section, settings in _by_section():
        if section is None:
            blocks += ["\n".join(_lines(one, "")) + "\n" for one in settings]
        else:
            about = textwrap.wrap(_about(section), 96)
            body = [line for one in settings for line in _lines(one, "  ")]
            blocks.append(
                "\n".join([f"# {line}" for line in about] + [f"{section}:", *body]) + "\n"
            )
    return "\n".join(blocks)


def _about(section: str) -> str:
    return inspect.getdoc(Settings.model_fields[section].annotation) or ""


def _by_section() -> Iterator[tuple[str | None, list[Setting]]]:
    """Group the settings as the file does; None for those outside sections."""
    for section, group in groupby(
        SETTINGS.values(), key=lambda one: one.path[0] if len(one.path) > 1 else None
    ):
        yield section, list(group)


def _lines(setting: Setting, indent: str) -> Iterator[str]:
    if len(setting.path) == 3:
        if SETTINGS[setting.path[:-1]].default is not None:
            yield f"{indent}  {setting.path[-1]}: {_yaml(setting.default)}"
        return
    allowed = "" if setting.kind == "bucket" else f" Allowed: {setting.allowed}."
    for line in textwrap.wrap(setting.description + allowed, 96 - len(indent)):
        yield f"{indent}# {line}"
    on = setting.kind == "bucket" and setting.default is not None
    yield f"{indent}{setting.path[-1]}:" + ("" if on else f" {_yaml(setting.default)}")


def _yaml(value: Any) -> str:
    """Write a default as JSON, which is YAML; whole numbers of seconds without a point."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)


def reference() -> str:
    """Write the tables of docs/reference/configuration.md, one for each section."""
    tables: dict[str | None, list[str]] = {None: []}
    for section, settings in _by_section():
        tables.setdefault(section, []).extend(_row(one) for one in settings)
    head = "| key | type | default | environment | what |\n|---|---|---|---|---|"
    return "\n".join(
        "\n".join([_title(section), head, *rows]) + "\n" for section, rows in tables.items()
    )


def _title(section: str | None) -> str:
    return f"### {section}\n\n{_about(section)}\n" if section else "### Outside sections\n"


def _row(setting: Setting) -> str:
    what = f"{setting.description} Allowed: {setting.allowed}.".replace("[", "\\[")
    return (
        f"| `{setting.key}` | {setting.kind} | `{_default(setting)}` | `{setting.variable}` "
        f"| {what} |"
    )


def _default(setting: Setting) -> str:
    if setting.kind == "bucket" and setting.default is not None:
        return f"{setting.default.limit} in {setting.default.window_seconds:g} s"
    return _yaml(setting.default)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(f"{page.read_text().partition(MARK)[0]}{MARK}\n{reference()}")
