"""`serve` and `demo`: the commands that keep running."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING

import click

from authsidecar.cli.errors import MisconfiguredError, RefusedError
from authsidecar.cli.options import Command, Options, given
from authsidecar.cli.session import load_settings

if TYPE_CHECKING:
    from authsidecar.config import Settings


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
    options = given()
    try:
        _serve(options, workers)
    except (RefusedError, MisconfiguredError) as error:
        from authsidecar.run.life import leave, unread

        if unread():
            leave(1 if isinstance(error, RefusedError) else 2)
        raise


def _serve(options: Options, workers: int | None) -> None:
    import os

    from authsidecar.config import has_file, load, load_again
    from authsidecar.run import garbage
    from authsidecar.run.life import ignore_signals
    from authsidecar.run.notify_socket import NotifySocket

    ignore_signals()
    manager = NotifySocket.taken(os.environ)

    def with_workers(settings: "Settings") -> "Settings":
        if workers is None:
            return settings
        listen = settings.listen.model_copy(update={"workers": workers})
        return settings.model_copy(update={"listen": listen})

    read_again = load_again if has_file(options.config, os.environ) else load

    def reread() -> "Settings":
        return with_workers(read_again(options.config, os.environ))

    settings = with_workers(load_settings(options))
    several = settings.listen.workers > 1
    with _shared_metrics() if several else nullcontext():
        with garbage.none_of_imports():
            from authsidecar.config import warnings
            from authsidecar.observe.log import take_over
            from authsidecar.run.errors import StartError
            from authsidecar.run.life import run
            from authsidecar.run.parts import logger
            from authsidecar.run.preconditions import problems
            from authsidecar.run.redis_at_start import preflight
            from authsidecar.run.sidecar import serve
            from authsidecar.serving.listeners import ListenError, listening
            from authsidecar.serving.socket_activation import handed_over

        log = logger(settings)
        take_over(log)
        for line in warnings(settings):
            log.event("warning", "unwise", setting=line)
        try:
            if found := problems(settings):
                raise RefusedError("; ".join(found))
            with listening(settings, handed_over(os.environ)) as listeners:
                if several:
                    from authsidecar.run.workers import supervise

                    run(preflight(settings))
                    supervise(settings, reread, listeners, log, manager)
                else:
                    run(serve(settings, log, listeners, manager=manager, load=reread))
        except (StartError, ListenError) as error:
            raise RefusedError(str(error)) from None
        finally:
            log.flush()  # before the last line, and before the process ends without asking


@contextmanager
def _shared_metrics() -> "Iterator[None]":
    """A directory in which worker processes sum their metrics; it must be known this early."""
    import os
    import tempfile

    from authsidecar.run.shared_memory import directory

    try:
        made = tempfile.TemporaryDirectory(prefix="authsidecar-metrics-", dir=directory())
    except OSError as error:
        raise RefusedError(
            f"the workers' metrics find no room ({error.strerror}): mount a tmpfs at /dev/shm, "
            "or set TMPDIR to a directory that can be written"
        ) from None
    with made as name:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = name
        yield


@click.command(cls=Command)
@click.option("--check", is_flag=True, help="Send the requests, compare, and stop everything.")
@click.option(
    "--traffic/--no-traffic", default=True, help="Send requests of some clients meanwhile; default."
)
@click.pass_context
def demo(context: click.Context, check: bool, traffic: bool) -> None:
    """See it work, with nothing to install or set up.

    Everything is started here: Redis, a proxy, a stand-in for Coolify, the sidecar. With --check
    the requests are sent, what is expected is compared with what is seen, and the exit code is 0
    only if all agree; nothing is left running.

    \b
    Examples:
      authsidecar demo
      authsidecar demo --no-traffic
      authsidecar demo --check
    """
    try:
        run = import_module("authsidecar.demo.run").run
    except ImportError as error:
        from authsidecar import extras

        raise RefusedError(f"the demo needs {error.name}: {extras.command('demo')}") from None
    import asyncio
    import inspect

    answer = run(check=check, traffic=traffic)
    context.exit(asyncio.run(answer) if inspect.iscoroutine(answer) else answer)
