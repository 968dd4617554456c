"""`serve` and `demo`: the commands that keep running."""

from importlib import import_module

import click

from authsidecar.cli.errors import RefusedError
from authsidecar.cli.options import Command, given
from authsidecar.cli.session import load_settings


@click.command(cls=Command)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Processes; wins over listen.workers.",
)
def serve(workers: int | None) -> None:
    """Answer the reverse proxy until SIGTERM or Ctrl-C.

    \b
    Examples:
      authsidecar serve
      AUTHSIDECAR_REDIS__URL=redis://127.0.0.1:6379/0 authsidecar serve --workers 2
    """
    settings = load_settings(given())
    if workers is not None:
        listen = settings.listen.model_copy(update={"workers": workers})
        settings = settings.model_copy(update={"listen": listen})
    import uvloop

    from authsidecar.config import warnings
    from authsidecar.sidecar import StartError, logger
    from authsidecar.sidecar import serve as run

    log = logger(settings)
    for line in warnings(settings):
        log.event("warning", "unwise", setting=line)
    try:
        uvloop.run(run(settings, log))
    except StartError as error:
        raise RefusedError(str(error)) from None


@click.command(cls=Command)
@click.option("--check", is_flag=True, help="Send the requests, compare, and stop everything.")
@click.pass_context
def demo(context: click.Context, check: bool) -> None:
    """See it work, with nothing to install or set up.

    Everything is started here: Redis, a proxy, a stand-in for Coolify, the sidecar. With --check
    the requests are sent, what is expected is compared with what is seen, and the exit code is 0
    only if all agree; nothing is left running.

    \b
    Examples:
      authsidecar demo
      authsidecar demo --check
    """
    try:
        run = import_module("authsidecar.demo.run").run
    except ImportError as error:
        raise RefusedError(
            f"the demo needs {error.name}: pip install 'authsidecar[demo]'"
        ) from None
    import asyncio
    import inspect

    answer = run(check=check)
    context.exit(asyncio.run(answer) if inspect.iscoroutine(answer) else answer)
