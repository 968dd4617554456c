"""`decisions tail|show|top|export|report`: what was decided, from the receipts."""

import csv
import io
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from authsidecar.cli.completion import templates
from authsidecar.cli.errors import MisconfiguredError, RefusedError
from authsidecar.cli.explain import BUDGET_MS, TAKEN_AS_RIGHT, as_data, trace
from authsidecar.cli.options import ADDRESS, SPAN, TEAM_ID, TOKEN_ID, USER_ID, Group, NamedType
from authsidecar.cli.output import cell, printable
from authsidecar.cli.session import Session, on_registry
from authsidecar.cli.streams import write
from authsidecar.times import UnixMs, rfc3339

if TYPE_CHECKING:
    from authsidecar.admin.decisions import Filter, Shown
    from authsidecar.admin.questions import Sources
    from authsidecar.admin.refusal_report import Count, RefusalReport
    from authsidecar.decision.authorize import Rules
    from authsidecar.observe.receipts import Receipt
    from authsidecar.store.decisions import DecisionStore
    from authsidecar.store.keys import Keys

F = TypeVar("F", bound=Callable[..., Any])

EVERY_S: Final = 0.5
"""The time between two looks of `tail`, in seconds."""

BEFORE: Final = 10
"""How many earlier decisions `tail` begins with."""

DAY: Final = "24h"
HOUR: Final = "1h"

BY: Final = ("token", "user", "address", "route", "code")


def last(default: str) -> Callable[[F], F]:
    """The option that says how far back to look."""
    return click.option(
        "--last",
        "span_ms",
        type=SPAN,
        metavar="TIME",
        default=default,
        show_default=True,
        help="How far back: a number with s, m, h or d.",
    )


def _filters(function: F) -> F:
    """The options that say which decisions are wanted; the command is given a Filter's fields."""
    options = (
        click.option("--deny", is_flag=True, help="Refusals alone."),
        click.option("--code", metavar="CODE", help="Of this reason."),
        click.option("--token", type=TOKEN_ID, metavar="ID", help="Of this token, right or wrong."),
        click.option("--user", type=USER_ID, metavar="ID", help="Of this user's tokens."),
        click.option("--team", type=TEAM_ID, metavar="ID", help="Of this team's tokens."),
        click.option("--address", type=ADDRESS, metavar="A", help="From this address."),
        click.option(
            "--route",
            metavar="TEMPLATE",
            shell_complete=templates,
            help="Of this template, or 'METHOD TEMPLATE'.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.group(cls=Group)
def decisions() -> None:
    """See what was decided, and why: refusals, and a share of the admissions.

    Receipts of decisions are kept for a week; docs/reference/receipts.md says which.
    """


@decisions.command()
@_filters
@last(HOUR)
@click.option("--no-follow", is_flag=True, help="End with the latest one.")
@on_registry
async def tail(session: Session, /, span_ms: int, no_follow: bool, **wanted: Any) -> None:
    """Show decisions as they are made, beginning with the last ten. With --json, one a line.

    \b
    Examples:
      authsidecar decisions tail --deny
      authsidecar decisions tail --token 67 --route "POST /api/v1/projects"
    """
    import asyncio

    from authsidecar.store.receipt_reader import Reader

    takes = _filter(wanted).takes
    reader = Reader(session.client, _keys(session), await _since(session, span_ms))
    before: deque[Receipt] = deque(maxlen=BEFORE)
    async for page in reader.pages():
        before.extend(one for one in page.receipts if takes(one))
    for one in sorted(before, key=lambda one: one.at):
        _write_line(session, one)
    while not no_follow:
        await asyncio.sleep(EVERY_S)
        for one in (await reader.read()).receipts:
            if takes(one):
                _write_line(session, one)


@decisions.command()
@click.argument("decision_id", metavar="ID")
@on_registry
async def show(session: Session, decision_id: str) -> None:
    """Explain one decision: each check then and now, what its reason means, and what to do.

    ID is the `decision_id` of the answer's body, or its X-Auth-Decision-Id.

    \b
    Example:
      authsidecar decisions show 69278a10c0ffee12340000002a
    """
    from authsidecar.admin.decisions import not_kept
    from authsidecar.admin.decisions import show as ask

    store = _store(session)
    try:
        found = await ask(
            decision_id,
            client=session.client,
            keys=_keys(session),
            rules=_rules(session),
            store=store,
            registry=session.registry,
        )
    finally:
        await store.close()
    if found is None:
        raise RefusedError(not_kept(printable(decision_id)))
    session.out.result(_shown_data(found), _shown(found))


@decisions.command()
@_filters
@last(DAY)
@click.option(
    "--by",
    type=NamedType("what is counted", BY),
    default="token",
    show_default=True,
    help="What is counted.",
)
@click.option(
    "--most",
    type=click.IntRange(1, 10_000),
    metavar="N",
    default=10,
    show_default=True,
    help="How many are shown.",
)
@on_registry
async def top(session: Session, /, span_ms: int, by: str, most: int, **wanted: Any) -> None:
    """Show who, or what, is refused most.

    \b
    Examples:
      authsidecar decisions top --by address
      authsidecar decisions top --by route --code permission_missing --last 7d
    """
    from authsidecar.admin.questions import MostRefused

    async with sources(session) as found_in:
        question = MostRefused(_filter(wanted), by, most, span_ms)  # type: ignore[arg-type]
        counts = await question(found_in)
    session.out.listing(
        (by, "refused", "codes", "example"),
        [_count_data(one) | {by: one.value} for one in counts],
        empty=f"nothing was refused in the last {span_text(span_ms)}",
    )


@decisions.command()
@_filters
@last(DAY)
@on_registry
async def export(session: Session, /, span_ms: int, **wanted: Any) -> None:
    """Write the receipts as lines of JSON, whether or not with --json.

    \b
    Example:
      authsidecar decisions export --deny --last 7d > refusals.jsonl
    """
    from authsidecar.admin.decisions import matching

    since = await _since(session, span_ms)
    async for one in matching(session.client, _keys(session), since, _filter(wanted)):
        write(json.dumps(receipt_data(one)))


@decisions.command()
@last(DAY)
@click.option("--csv", "as_csv", is_flag=True, help="Write comma-separated values.")
@on_registry
async def report(session: Session, span_ms: int, as_csv: bool) -> None:
    """Report what was refused: by token, owner, address, route and code.

    What Coolify refuses anyway is counted apart. With `enforcement: report` these are the requests
    that would be refused if you enforced now.

    \b
    Examples:
      authsidecar decisions report --last 24h
      authsidecar decisions report --last 7d --csv > report.csv
    """
    from authsidecar.admin.questions import AllRefused

    async with sources(session) as found_in:
        found = await AllRefused(span_ms)(found_in)
    if as_csv:
        write(_report_csv(found), newline=False)
    else:
        session.out.result(_report_data(found), _report_text(found))


# ------------------------------------------------------------------------------------ what it needs


def _filter(wanted: dict[str, Any]) -> "Filter":
    from authsidecar.admin.decisions import Filter

    return Filter(**wanted)


def _keys(session: Session) -> "Keys":
    from authsidecar.store.keys import Keys

    return Keys(session.settings.redis.prefix)


def _store(session: Session) -> "DecisionStore":
    from authsidecar.store.decisions import DecisionStore

    return DecisionStore(session.client, _keys(session), budget_ms=BUDGET_MS)


@asynccontextmanager
async def sources(
    session: Session, progress: Callable[[int], None] = lambda _: None
) -> "AsyncIterator[Sources]":
    """What questions to all receipts are answered from."""
    from authsidecar.admin.questions import Sources

    store = _store(session)
    try:
        yield Sources(session.client, _keys(session), session.registry, store, progress)
    finally:
        await store.close()


def _rules(session: Session) -> "Rules":
    from authsidecar.run.errors import StartError
    from authsidecar.run.rules import rules

    try:
        return rules(session.settings)
    except StartError as error:
        raise MisconfiguredError(str(error)) from None


async def _since(session: Session, span_ms: int) -> UnixMs:
    return UnixMs(await session.registry.now() - span_ms)


def span_text(span_ms: int) -> str:
    """A span of time as --last takes it."""
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)):
        if span_ms % length == 0:
            return f"{span_ms // length}{unit}"
    return f"{span_ms // 1000}s"


# ---------------------------------------------------------------------------------- how it is shown


def receipt_data(one: "Receipt") -> dict[str, Any]:
    """A receipt as --json shows it: times are texts."""
    from authsidecar.observe.receipts import as_mapping

    found = as_mapping(one)
    for name in ("at", "expires_at"):
        if name in found:
            found[name] = rfc3339(found[name])
    for counter in found.get("counters", ()):
        counter["reset_at"] = rfc3339(counter["reset_at"])
    return found


def _write_line(session: Session, one: "Receipt") -> None:
    write(json.dumps(receipt_data(one)) if session.out.is_json else _line(one))


def _line(one: "Receipt") -> str:
    """A decision in one line, for people."""
    answer = "200 allowed" if one.code is None else f"{one.status} {one.code}"
    words = [rfc3339(one.at), answer.ljust(24), what(one), who(one), one.address or "-", one.id]
    if one.detail:
        words.append(one.detail)
    return printable("  ".join(words))


def what(one: "Receipt") -> str:
    """The method, and the path as far as it was kept."""
    if one.method is None:
        return "unreadable"
    return f"{one.method} {one.path or one.route or '-'}"


def who(one: "Receipt") -> str:
    """The token and its owner, as far as they are known."""
    if one.token is not None:
        return f"token {one.token} of user {one.user}, team {cell(one.team)}"
    return "no token" if one.claimed is None else f"token {one.claimed}, not proven"


def _shown(found: "Shown") -> str:
    one = found.receipt
    head = [
        f"decision {one.id} of {rfc3339(one.at)}",
        f"{what(one)} from {one.address or '-'}, {who(one)}, by {one.proxy or 'none'}",
        f"release {one.release}, configuration {one.config}",
    ]
    if one.reported:
        head.append("it passed all the same: enforcement is report")
    parts = [printable(line) for line in head]
    if found.then.rows:
        parts += ["", "then:", trace(found.then)]
    else:
        parts += ["", "then: allowed, by a configuration that differs from this one"]
    if found.now is None:
        parts += ["", "now: it could not be read, so it can't be judged again"]
    else:
        parts += ["", "now:", trace(found.now)]
        if one.claimed is not None:
            parts.append(TAKEN_AS_RIGHT)
    if found.advice is not None:
        parts += ["", found.advice.meaning, "", f"What to do: {found.advice.what_to_do}"]
    return "\n".join(parts)


def _shown_data(found: "Shown") -> dict[str, Any]:
    advice = found.advice
    return {
        "receipt": receipt_data(found.receipt),
        "then": as_data(found.then),
        "now": None if found.now is None else as_data(found.now),
        "meaning": None if advice is None else advice.meaning,
        "what_to_do": None if advice is None else advice.what_to_do,
    }


def _count_data(one: "Count") -> dict[str, Any]:
    return {
        "refused": one.refused + one.refused_by_coolify_too,
        "refused_by_coolify_too": one.refused_by_coolify_too,
        "codes": [f"{code} ({count})" for code, count in one.codes.items()],
        "example": one.example,
    }


def _report_data(found: "RefusalReport") -> dict[str, Any]:
    return {
        "since": rfc3339(found.since),
        "until": rfc3339(found.until),
        "refused": found.refused,
        "refused_by_coolify_too": found.refused_by_coolify_too,
        "reported": found.reported,
        "admitted_estimate": round(found.admitted),
        "dropped": found.dropped,
        **{
            f"by_{by}": [
                {
                    "value": one.value,
                    "refused": one.refused,
                    "refused_by_coolify_too": one.refused_by_coolify_too,
                    "codes": dict(one.codes),
                    "example": one.example,
                }
                for one in counts
            ]
            for by, counts in found.counts.items()
        },
    }


_WORDS: Final = {"user": "owner"}


def _report_text(found: "RefusalReport") -> str:
    lines = [
        f"from {rfc3339(found.since)} to {rfc3339(found.until)}",
        f"refused where Coolify would not:  {found.refused}",
        f"refused by Coolify as well:       {found.refused_by_coolify_too}",
        f"of these passed (report only):    {found.reported}",
        f"admitted, about:                  {found.admitted:.0f}",
    ]
    if found.dropped:
        lines.append(f"receipts that were not kept:      {found.dropped}")
    for by, counts in found.counts.items():
        if not counts:
            continue
        lines += ["", f"by {_WORDS.get(by, by)}  (sidecar alone / Coolify too)"]
        for one in counts[:BEFORE]:
            codes = ", ".join(f"{code} {count}" for code, count in one.codes.items())
            numbers = f"{one.refused} / {one.refused_by_coolify_too}"
            lines.append(f"  {numbers:>13}  {printable(one.value)}: {codes}; {one.example}")
        if len(counts) > BEFORE:
            lines.append(f"  and {len(counts) - BEFORE} more")
    return "\n".join(lines)


def _report_csv(found: "RefusalReport") -> str:
    from authsidecar.admin.refusal_report import Count

    out = io.StringIO()
    names = [one.name for one in fields(Count)]
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(names)
    for counts in found.counts.values():
        for one in counts:
            codes = " ".join(f"{code}={count}" for code, count in one.codes.items())
            values = {name: getattr(one, name) for name in names} | {"codes": codes}
            rows.writerow([values[name] for name in names])
    return out.getvalue()
