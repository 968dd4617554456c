"""Results on standard output, for people or as JSON; notes on standard error."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence

import click

from authsidecar.cli.options import Options
from authsidecar.cli.streams import is_terminal, tell, write


class Output:
    """Writes what a command has to say, as the global options ask for it.

    Attributes:
        is_json: whether a script reads it.
    """

    def __init__(self, options: Options) -> None:
        """Nothing is written yet."""
        self.is_json = options.json
        self._quiet = options.quiet

    def result(self, data: Mapping[str, object], text: str, *, quiet: str | None = None) -> None:
        """Write the one result of a command.

        Args:
            data: for --json.
            text: for people.
            quiet: what is left of it with --quiet; None: nothing.

        Raises:
            OutputError: it can't be written.
        """
        if self.is_json:
            write(json.dumps(data))
        elif not self._quiet:
            write(text)
        elif quiet is not None:
            write(quiet)

    def listing(
        self, columns: Sequence[str], items: Iterable[Mapping[str, object]], *, empty: str
    ) -> None:
        """Write a list: a table for people, its items whole for --json.

        Args:
            columns: the keys that the table shows, in order.
            items: what is listed.
            empty: what is said to people if there is none.

        Raises:
            OutputError: it can't be written.
        """
        rows = list(items)
        if self.is_json:
            write(json.dumps({"items": rows}))
        elif rows:
            write(self._table(columns, rows))
        else:
            self.note(empty)

    def note(self, text: str) -> None:
        """Tell people something beside the result; scripts have no use for it."""
        if not (self._quiet or self.is_json):
            tell(text)

    def warn(self, text: str) -> None:
        """Tell of what is legal but unwise."""
        if self._quiet:
            return
        if self.is_json:
            tell(json.dumps({"warning": text}))
        else:
            label = styled("warning:", is_terminal(sys.stderr), fg="yellow")
            tell(f"{label} {text}")

    def progress(self, text: str) -> None:
        """Rewrite the last line of a terminal; nothing anywhere else."""
        if not (self._quiet or self.is_json) and is_terminal(sys.stderr):
            tell(f"\r\x1b[K{text}", newline=False)

    def _table(self, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> str:
        head = [column.replace("_", " ").upper() for column in columns]
        cells = [[cell(row[column]) for column in columns] for row in rows]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in (head, *cells)
        ]
        return "\n".join([styled(lines[0], is_terminal(sys.stdout), bold=True), *lines[1:]])


def cell(value: object) -> str:
    """A value as a table shows it; nothing in it can steer a terminal."""
    match value:
        case None:
            return "-"
        case bool():
            return "on" if value else "off"
        case list():
            return " ".join(map(cell, value))
        case _:
            return printable(str(value))


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would not print."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def styled(text: str, terminal: bool, *, fg: str | None = None, bold: bool | None = None) -> str:
    """The text in colour, on a terminal whose user has not asked for none (NO_COLOR)."""
    if not terminal or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return click.style(text, fg=fg, bold=bold)
