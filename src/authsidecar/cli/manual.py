"""The manual page authsidecar(1), from the commands themselves.

`python -m authsidecar.cli.manual man/authsidecar.1` brings the page up to date.
"""

import sys
from collections.abc import Iterable, Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Final

import click

from authsidecar import __version__
from authsidecar.cli.main import cli

EXIT_CODES: Final = (
    ("0", "done; of explain and allowlist check: allowed"),
    ("1", "refused or failed; standard error says why"),
    ("2", "wrong usage, or a configuration that cannot be used"),
    ("130", "interrupted"),
)

FILES: Final = (("/etc/authsidecar/config.yaml", "the configuration, where nothing names another"),)

ENVIRONMENT: Final = (
    ("AUTHSIDECAR_CONFIG", "the configuration file, where --config names none"),
    ("AUTHSIDECAR_SECTION__NAME", "a setting: `check-config` names those that it can't use"),
    ("NO_COLOR", "no colours on a terminal"),
)


def manual() -> str:
    """The page, as roff: every command's own help, and the options of all once."""
    context = _context(cli, "authsidecar")
    head = cleandoc(cli.help or "").partition("\n")
    lines = [
        f'.TH AUTHSIDECAR 1 "" "authsidecar {__version__}" "User Commands"',
        *(".SH NAME", f"authsidecar \\- {_escaped(head[0].rstrip('.'))}"),
        *(".SH SYNOPSIS", ".B authsidecar", _escaped(" ".join(cli.collect_usage_pieces(context)))),
        *(".SH DESCRIPTION", *_text(head[2])),
        *(".SH OPTIONS", "They may stand before or after the name of a command."),
        *_items(_records(cli, context)),
        ".SH COMMANDS",
        *_commands(cli, "authsidecar"),
        *(".SH EXIT STATUS", *_items(EXIT_CODES)),
        *(".SH ENVIRONMENT", *_items(ENVIRONMENT)),
        *(".SH FILES", *_items(FILES)),
    ]
    return "\n".join(lines) + "\n"


def _commands(group: click.Group, path: str) -> Iterator[str]:
    for name in sorted(group.commands):
        command, words = group.commands[name], f"{path} {name}"
        if not isinstance(command, click.Group) or command.invoke_without_command:
            context = _context(command, words)
            usage = " ".join(command.collect_usage_pieces(context))
            yield f".SS {_escaped(f'{words} {usage}')}"
            yield from _text(cleandoc(command.help or ""))
            everywhere = set(_records(cli, _context(cli, path)))
            yield from _items(one for one in _records(command, context) if one not in everywhere)
        if isinstance(command, click.Group):
            yield from _commands(command, words)


def _context(command: click.Command, words: str) -> click.Context:
    """As a run of the command has it: click remembers a command's help option from it."""
    return click.Context(command, info_name=words, **cli.context_settings)


def _records(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1]:  # an argument is in the synopsis
            yield record


def _text(text: str) -> Iterator[str]:
    """Paragraphs; the lines of one that begins with click's \\b are kept as they stand."""
    for paragraph in text.strip().split("\n\n"):
        lines = [_escaped(line) for line in paragraph.splitlines() if line != "\b"]
        yield ".PP"
        yield from (".nf", *lines, ".fi") if paragraph.startswith("\b") else lines


def _items(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, meaning in items:
        yield from (".TP", f".B {_escaped(term)}", _escaped(meaning))


def _escaped(text: str) -> str:
    """Text that roff prints as it is."""
    plain = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{plain}" if plain.startswith((".", "'")) else plain


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(manual())
