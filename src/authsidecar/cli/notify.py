"""`notify`: warn before tokens expire."""

import signal
from typing import TYPE_CHECKING

import click

from authsidecar.cli.errors import MisconfiguredError, RefusedError
from authsidecar.cli.options import Command
from authsidecar.cli.session import Session, changing, on_registry

if TYPE_CHECKING:
    from authsidecar.expiry.rounds import WarningOptions


@click.command(cls=Command)
@click.option("--once", is_flag=True, help="Send what is due, then end.")
def notify(once: bool) -> None:
    """Warn by mail and webhook before tokens expire, until SIGTERM or Ctrl-C.

    Needs mail.host or mail.webhook_url. `serve` does the same by itself where they are set;
    several may run at a time, and each warning goes out once.

    \b
    Examples:
      authsidecar notify
      authsidecar notify --once
    """
    if once:
        _once()
    else:
        _for_ever()


@on_registry
@changing
async def _once(session: Session) -> None:
    from collections import Counter

    from authsidecar.coolify.status import read_owner
    from authsidecar.expiry.rounds import Rounds, WarningResult
    from authsidecar.run.parts import logger
    from authsidecar.store.keys import Keys

    options, keys = _options(session), Keys(session.settings.redis.prefix)
    log = logger(session.settings)
    results: Counter[WarningResult] = Counter()
    if not options.synced and await read_owner(session.client, keys) is not None:
        session.out.note("tokens are Coolify's, which warns about them itself (mail.synced_tokens)")
    for channel in options.channels:
        rounds = Rounds(channel, options, session.client, keys, log=log, count=lambda _: None)
        results += await rounds.once()
    counts = {result.value: results[result] for result in WarningResult}
    session.out.result(counts, ", ".join(f"{n} {name}" for name, n in counts.items()))
    if results[WarningResult.FAILED] or results[WarningResult.REFUSED]:
        raise RefusedError("not every warning went out; the log says why, the next run tries again")


@on_registry
async def _for_ever(session: Session) -> None:
    import asyncio

    from authsidecar.expiry.rounds import warning
    from authsidecar.observe.background import Background
    from authsidecar.run.life import log_ignored_signals
    from authsidecar.run.parts import logger
    from authsidecar.store.keys import Keys

    options, keys = _options(session), Keys(session.settings.redis.prefix)
    log = logger(session.settings)
    stop = asyncio.Event()
    log_ignored_signals(log)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with warning(
        options, session.client, keys, log, lambda _: None, background=Background(log)
    ):
        log.event("info", "warning_of_expiry", lead_times_hours=list(options.leads))
        await stop.wait()
    log.event("info", "stopped")
    log.flush()


def _options(session: Session) -> "WarningOptions":
    from authsidecar.expiry.rounds import NoDriverError, WarningOptions

    try:
        options = WarningOptions.of(session.settings)
    except NoDriverError as error:
        raise RefusedError(str(error)) from None
    if not options.channels:
        raise MisconfiguredError(
            "mail.host: is missing, and so is mail.webhook_url; "
            "allowed: a host name or an address (or a URL for the other)"
        )
    return options
