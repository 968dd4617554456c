"""`check-config` and `config schema|example`."""

import json
import os

import click

from authsidecar.cli.errors import MisconfiguredError
from authsidecar.cli.options import Command, Group, given
from authsidecar.cli.output import Output
from authsidecar.cli.streams import write


@click.command("check-config", cls=Command)
def check_config() -> None:
    """Read the whole configuration, and say every problem at once.

    Files that it names are read as well; nothing is connected to. The exit code is 2 if there are
    problems; what is legal but unwise is warned of.

    \b
    Examples:
      authsidecar check-config
      authsidecar check-config --config ./config.yaml --json
    """
    from authsidecar.config import ConfigError, Settings, load, warnings
    from authsidecar.sidecar import StartError, routes

    options = given()
    out = Output(options)
    problems: list[str] = []
    unwise: tuple[str, ...] = ()
    settings: Settings | None
    try:
        settings = load(options.config, os.environ)
        unwise = warnings(settings)
    except ConfigError as error:
        problems += error.problems
        settings = Settings(coolify=error.coolify) if error.coolify else None
    try:
        if settings is not None:
            routes(settings)
    except StartError as error:
        problems.append(str(error))
    data = {"valid": not problems, "problems": problems, "warnings": list(unwise)}
    if not options.json:
        for line in unwise:
            out.warn(line)
    if options.json or not problems:
        out.result(data, "the configuration can be used")
    if problems:
        raise MisconfiguredError(*problems)


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
