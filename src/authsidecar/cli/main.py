"""The entry point: options that every command knows, and what an error looks like."""

import os
import sys

import click

from authsidecar import __version__


@click.group()
@click.version_option(__version__, prog_name="authsidecar")
@click.option("--config", "config", metavar="FILE", help="Configuration file (YAML).")
@click.pass_context
def cli(context: click.Context, config: str | None) -> None:
    """Guard Coolify's API at the reverse proxy."""
    context.obj = config


@cli.command()
@click.pass_obj
def serve(config: str | None) -> None:
    """Answer the reverse proxy until SIGTERM."""
    import uvloop  # noqa: PLC0415

    from authsidecar.config import ConfigError, load  # noqa: PLC0415
    from authsidecar.sidecar import StartError, logger  # noqa: PLC0415
    from authsidecar.sidecar import serve as run  # noqa: PLC0415

    try:
        settings = load(config, os.environ)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    try:
        uvloop.run(run(settings, logger(settings)))
    except StartError as error:
        click.echo(f"authsidecar: {error}", err=True)
        sys.exit(1)


def main() -> None:
    """Run the command line."""
    cli()
