"""`check-config` and `config schema|example`."""

import json
import os
from typing import TYPE_CHECKING

import click

from authsidecar.cli.errors import MisconfiguredError
from authsidecar.cli.options import Command, Group, given
from authsidecar.cli.output import Output
from authsidecar.cli.streams import write

if TYPE_CHECKING:
    from authsidecar.config import Settings


@click.command("check-config", cls=Command)
@click.option("--connect", is_flag=True, help="Ask Redis as well, as `serve` does at its start.")
def check_config(connect: bool) -> None:
    """Read the whole configuration, and say every problem at once.

    What `serve` can't start with is refused: files that are named and can't be read, a Redis
    server or a driver that is not installed. Nothing is connected to without --connect. The exit
    code is 2 if there are problems; what is legal but unwise is warned of.

    \b
    Examples:
      authsidecar check-config
      authsidecar check-config --connect
      authsidecar check-config --config ./config.yaml --json
    """
    from authsidecar.config import ConfigError, Settings, load, warnings
    from authsidecar.run.errors import StartError
    from authsidecar.run.preconditions import problems as found
    from authsidecar.run.rules import routes

    options = given()
    out = Output(options)
    problems: list[str] = []
    unwise: tuple[str, ...] = ()
    try:
        settings = load(options.config, os.environ)
        unwise = warnings(settings)
        problems += found(settings)
        if connect and not problems:
            problems += _connecting(settings)
    except ConfigError as error:
        problems += error.problems
        try:
            if error.coolify:
                routes(Settings(coolify=error.coolify))
        except StartError as also:
            problems.append(str(also))
    data = {"valid": not problems, "problems": problems, "warnings": list(unwise)}
    if not options.json:
        for line in unwise:
            out.warn(line)
    if options.json or not problems:
        out.result(data, "the configuration can be used")
    if problems:
        raise MisconfiguredError(*problems)


def _connecting(settings: "Settings") -> list[str]:
    """What keeps Redis from being used."""
    import asyncio

    from authsidecar.run.errors import StartError
    from authsidecar.run.redis_at_start import store

    async def ask() -> None:
        async with store(settings):
            pass

    try:
        asyncio.run(ask())
    except StartError as error:
        return [str(error)]
    return []


@click.group(cls=Group)
def config() -> None:
    """Describe the configuration."""


@config.command()
def schema() -> None:
    """Write the JSON schema of the configuration file, for editors.

    \b
    Example:
      authsidecar config schema > authsidecar.schema.json
    """
    from authsidecar.config import json_schema

    write(json.dumps(json_schema(), indent=2))


@config.command()
def example() -> None:
    """Write an example file: every setting with its default.

    \b
    Example:
      authsidecar config example > config.yaml
    """
    from authsidecar.config import example as text

    write(text(), newline=False)
