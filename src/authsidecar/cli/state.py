"""`state export|import`."""

from typing import Any, BinaryIO

import click

from authsidecar.cli import streams
from authsidecar.cli.errors import RefusedError
from authsidecar.cli.options import Group
from authsidecar.cli.output import printable
from authsidecar.cli.session import Session, changing, done, on_registry
from authsidecar.cli.streams import tell
from authsidecar.cli.tokens import Input


@click.group(cls=Group)
def state() -> None:
    """Write all state down, and bring it back: to move to another Redis, or to back it up."""


@state.command()
@click.option("--counters", is_flag=True, help="With what has used up limits by now.")
@on_registry
async def export(session: Session, counters: bool) -> None:
    """Write all state as JSON lines on standard output.

    Users, teams, members, tokens, restrictions, limits, the allowlist, the switches, what was
    used of budgets, and which warnings went out. Of secrets it has digests only; mail addresses
    are in it. What is changed meanwhile may be in it or not.

    \b
    Examples:
      authsidecar state export > state.jsonl
      authsidecar state export --counters > state.jsonl
    """
    from authsidecar.admin.state_export import export_state
    from authsidecar.store.keys import Keys

    exported = await export_state(
        session.client,
        Keys(session.settings.redis.prefix),
        streams.write,
        counters=counters,
        progress=lambda keys: session.out.progress(f"{keys:,} keys"),
    )
    streams.keep()
    session.out.progress("")
    for name in exported.unknown:
        session.out.warn(f"the key {name} is not known, and not in the file")
    if (more := exported.unknown_count - len(exported.unknown)) > 0:
        session.out.warn(f"{more} more keys are not known, and not in the file")
    session.out.note(f"{exported.total} keys written")


@state.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--merge", is_flag=True, help="Where there is state already; what is there stays.")
@on_registry
async def import_(session: Session, file: BinaryIO, merge: bool) -> None:
    """Bring the state of a file into Redis; - reads it from standard input.

    Into an empty prefix, or with --merge beside what is there: a key that is another there stays
    as it is and is named. An import that was interrupted is done again with --merge.

    \b
    Examples:
      authsidecar state import state.jsonl
      authsidecar --config other.yaml state import - < state.jsonl
    """
    from authsidecar.coolify.status import read_owner
    from authsidecar.store.keys import Keys

    keys = Keys(session.settings.redis.prefix)
    if await read_owner(session.client, keys) is not None:
        raise RefusedError(
            "Coolify owns the state here; take it back first with `authsidecar sync coolify "
            "release`, or use another redis.prefix"
        )
    await changing(_import)(session, file, merge)


async def _import(session: Session, file: BinaryIO, merge: bool) -> None:
    from authsidecar.admin.state_import import import_state
    from authsidecar.store.keys import Keys

    report = done(
        await import_state(
            session.client,
            Keys(session.settings.redis.prefix),
            Input(file),
            merge=merge,
            progress=lambda lines: session.out.progress(f"{lines:,} lines"),
        )
    )
    session.out.progress("")
    problems: list[dict[str, Any]] = [
        {"line": number, "reason": reason} for number, reason in report.problems
    ]
    if not session.out.is_json:
        for one in problems:
            tell(f"line {one['line']}: {printable(one['reason'])}")
        for name in report.kept_keys:
            tell(f"kept as it is: {printable(name)}")
    session.out.result(
        {
            "added": report.added,
            "unchanged": report.unchanged,
            "kept": report.kept,
            "refused": report.refused,
            "unknown": report.unknown,
            "kept_keys": report.kept_keys,
            "errors": problems,
        },
        f"{report.added} added, {report.unchanged} unchanged, {report.kept} kept as they are, "
        f"{report.refused} refused, {report.unknown} unknown",
    )
    if not report.whole:
        raise RefusedError(
            "the file does not end as it should, so lines are missing or too many; what it has was "
            "imported"
        )
    if report.refused or report.unknown:
        raise RefusedError(
            f"{report.refused + report.unknown} lines were not imported; all others were"
        )
