"""The commands' part of docs/reference/cli.md, from the commands themselves.

`python -m authsidecar.cli.reference docs/reference/cli.md` brings the page up to date.
"""

import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

from authsidecar.cli.main import cli

MARK = "<!-- Below: written by `python -m authsidecar.cli.reference`; a test holds it. -->\n"

WIDTH = 92


def reference() -> str:
    """Every command's own help, without the options that all of them have."""
    return "\n".join(_sections(cli, "authsidecar"))


def _sections(group: click.Group, path: str) -> Iterator[str]:
    for name in sorted(group.commands):
        command, words = group.commands[name], f"{path} {name}"
        if isinstance(command, click.Group) and command.invoke_without_command:
            yield f"## {words}\n\n```text\n{_help(command, words)}\n```\n"
            yield from _sections(command, words)
        elif isinstance(command, click.Group):
            # Since Python 3.13 the compiler itself takes the indentation off.
            yield f"## {words}\n\n{cleandoc(command.help or '')}\n"
            yield from _sections(command, words)
        else:
            level = "##" if path == "authsidecar" else "###"
            yield f"{level} {words}\n\n```text\n{_help(command, words)}\n```\n"


def _help(command: click.Command, words: str) -> str:
    context = click.Context(command, info_name=words, terminal_width=WIDTH, **cli.context_settings)
    everywhere = {option.opts[0] for option in cli.params if isinstance(option, click.Option)}
    lines = [
        line
        for line in command.get_help(context).splitlines()
        if not {*line.split()[:1]} & {*everywhere, "--help", "-h,"}
    ]
    if lines[-1] == "Options:":
        lines.pop()
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(page.read_text().partition(MARK)[0] + MARK + "\n" + reference())
