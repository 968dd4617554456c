"""`sync coolify`: follow Coolify's own tokens, users, teams and settings."""

import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from authsidecar.cli.errors import MisconfiguredError, RefusedError
from authsidecar.cli.options import Command, Group, given
from authsidecar.cli.output import printable
from authsidecar.cli.session import Session, changing, load_settings, on_registry, operator
from authsidecar.cli.streams import done, write

if TYPE_CHECKING:
    from authsidecar.coolify.sync import SyncOptions


@click.group(cls=Group)
def sync() -> None:
    """Follow tokens, users, teams and settings that are managed elsewhere."""


@sync.group(cls=Group, invoke_without_command=True)
@click.option("--once", is_flag=True, help="One round, then end.")
@click.option("--dry-run", is_flag=True, help="Say what a round would change; change nothing.")
@click.option("--allow-empty", is_flag=True, help="Believe an emptied database: remove it all.")
@click.pass_context
def coolify(context: click.Context, once: bool, dry_run: bool, allow_empty: bool) -> None:
    """Follow Coolify's database until SIGTERM or Ctrl-C.

    Needs sync.dsn: a role that may read a few columns is enough. Several may run at a time; one
    of them follows, and another takes over if it ends.

    \b
    Examples:
      authsidecar sync coolify --once --dry-run
      authsidecar sync coolify
      authsidecar sync coolify install-triggers --dsn-file owner-dsn.txt
    """
    if context.invoked_subcommand is not None:
        return
    if dry_run:
        _dry_run(allow_empty=allow_empty)
    elif once:
        _once(allow_empty=allow_empty)
    else:
        _follow(allow_empty=allow_empty)


@on_registry
async def _dry_run(session: Session, *, allow_empty: bool) -> None:
    from authsidecar.coolify.sync import planned
    from authsidecar.store.keys import Keys

    options = _options(session, allow_empty=allow_empty)
    keys = Keys(session.settings.redis.prefix)
    counts = {"+": 0, "-": 0, "~": 0}
    items: list[dict[str, object]] = []
    with _explained():
        async for change in planned(options, session.client, keys):
            counts[change.sign] += 1
            if session.out.is_json:
                items.append(
                    {"change": change.sign, "noun": change.entity, "fact": printable(change.text)}
                )
            else:
                write(f"{change.sign} {change.entity} {printable(change.text)}")
    new, gone, changed = counts["+"], counts["-"], counts["~"]
    session.out.result(
        {"items": items, "new": new, "gone": gone, "changed": changed},
        f"{new} new, {gone} gone, {changed} changed; nothing was written",
    )


@on_registry
@changing
async def _once(session: Session, *, allow_empty: bool) -> None:
    from authsidecar.coolify.sync import Follower
    from authsidecar.run.parts import logger
    from authsidecar.store.keys import Keys

    options = _options(session, allow_empty=allow_empty)
    keys = Keys(session.settings.redis.prefix)
    log = logger(session.settings)
    follower = Follower(options, session.client, keys, log, _progress(session))
    with _explained():
        applied = await follower.once()
    counts = {f"{noun}_{what}": n for (noun, what), n in sorted(applied.items()) if n}
    words = ", ".join(f"{n} {noun} {what}" for (noun, what), n in sorted(applied.items()) if n)
    session.out.result({"applied": counts}, words or "nothing to change")


@on_registry
async def _follow(session: Session, *, allow_empty: bool) -> None:
    import asyncio

    from authsidecar.coolify.source import driver
    from authsidecar.coolify.sync import Follower
    from authsidecar.run.life import log_ignored_signals
    from authsidecar.run.parts import logger
    from authsidecar.store.keys import Keys
    from authsidecar.tasks import end

    options = _options(session, allow_empty=allow_empty)
    with _explained():
        driver()
    log = logger(session.settings)
    keys = Keys(session.settings.redis.prefix)
    follower = Follower(options, session.client, keys, log, _progress(session))
    task = asyncio.create_task(follower.run())
    stop = asyncio.Event()
    log_ignored_signals(log)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    task.add_done_callback(lambda _: stop.set())
    await stop.wait()
    if task.done() and not task.cancelled():
        task.result()  # it ends by itself only by a defect, which ends the command
    await end([task])
    log.event("info", "stopped")
    log.flush()


@coolify.command("install-triggers", cls=Command)
@click.option(
    "--dsn-file", metavar="F|-", help="Whose table owner's DSN it is; sync.dsn if not given."
)
def install_triggers(dsn_file: str | None) -> None:
    """Have Coolify's database notify us of changes (sync.instant).

    The role of sync.dsn may only read; this needs the owner of the tables, once. Coolify's own
    statements can't fail because of these triggers.

    \b
    Examples:
      authsidecar sync coolify install-triggers --dsn-file owner-dsn.txt
    """
    from authsidecar.coolify import triggers

    dsn = _dsn(dsn_file)
    _run(lambda: triggers.run(dsn, triggers.installing()))
    with done():
        write("triggers installed; set sync.instant: true")


@coolify.command("remove-triggers", cls=Command)
@click.option(
    "--dsn-file", metavar="F|-", help="Whose table owner's DSN it is; sync.dsn if not given."
)
def remove_triggers(dsn_file: str | None) -> None:
    """Remove all that install-triggers made.

    \b
    Examples:
      authsidecar sync coolify remove-triggers --dsn-file owner-dsn.txt
    """
    from authsidecar.coolify import triggers

    dsn = _dsn(dsn_file)
    _run(lambda: triggers.run(dsn, triggers.removing()))
    with done():
        write("triggers removed")


@coolify.command("release", cls=Command)
@on_registry
@changing
async def release(session: Session) -> None:
    """Manage tokens and settings here again, from what was synced last.

    End every sync first (`sync coolify`, and `serve` with sync.source): while one runs, which
    would take the state back, this is refused.

    \b
    Examples:
      authsidecar sync coolify release
    """
    import asyncio
    import time

    from authsidecar.coolify.lease import LEASE_MS, RENEW_S
    from authsidecar.coolify.status import release as let_go
    from authsidecar.store.keys import Keys

    keys = Keys(session.settings.redis.prefix)
    patience = time.monotonic() + LEASE_MS / 1000 + RENEW_S  # one that was killed seems to run
    while (released := await let_go(session.client, keys, operator())) is None:
        if time.monotonic() > patience:
            raise RefusedError(
                "a sync is running and would take the state back: end every `sync coolify`, and "
                "`serve` with sync.source, first; nothing was changed"
            )
        await asyncio.sleep(RENEW_S)
    text = "the state is managed here from now on" if released else "no sync owned the state"
    session.out.result({"released": released}, text)


def _options(session: Session, *, allow_empty: bool) -> "SyncOptions":
    from dataclasses import replace

    from authsidecar.coolify.sync import SyncOptions

    options = SyncOptions.of(session.settings)
    if options is None:
        raise MisconfiguredError(
            "sync.dsn: is missing, and so is sync.host; "
            "allowed: postgresql://USER:PASSWORD@HOST[:PORT]/DATABASE"
        )
    return replace(options, allow_empty=options.allow_empty or allow_empty)


def _dsn(dsn_file: str | None) -> str:
    """Whom to install as: a DSN is never an argument, it would show in the process list."""
    if dsn_file is None:
        dsn = load_settings(given()).sync.url
        if dsn is None:
            raise click.UsageError("--dsn-file is missing, and so is sync.dsn")
        return dsn.get_secret_value()
    try:
        text = sys.stdin.read() if dsn_file == "-" else _read(dsn_file)
    except OSError as error:
        raise RefusedError(f"cannot read {dsn_file}: {error.strerror}") from None
    return text.strip()


def _read(path: str) -> str:
    return Path(path).read_text("utf-8", "replace")


def _progress(session: Session) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        session.out.progress(f"sync: {100 * done // max(total, 1)} %{end}")

    return show


@contextlib.contextmanager
def _explained() -> Any:
    """Say in one line what keeps a sync from working."""
    from authsidecar.coolify.source import SourceError
    from authsidecar.coolify.sync import BusyError, DoubtError

    try:
        yield
    except SourceError as error:
        raise RefusedError(f"sync.dsn: {error}; nothing was changed") from None
    except BusyError as error:
        raise RefusedError(f"{error}; stop it first, or let it do the work") from None
    except DoubtError as error:
        raise RefusedError(
            f"{error}, but here there are some; nothing was changed. If Coolify was really "
            "emptied, use --allow-empty"
        ) from None


def _run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    import asyncio

    from authsidecar.coolify.source import SourceError

    try:
        asyncio.run(work())
    except SourceError as error:
        raise RefusedError(f"Coolify's database: {error}; nothing was changed") from None
