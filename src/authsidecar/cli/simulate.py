"""`simulate`: what a change would have done to the decisions that were made."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from authsidecar.cli.decisions import DAY, last, receipt_data, sources, span_text, what
from authsidecar.cli.errors import MisconfiguredError, RefusedError
from authsidecar.cli.options import Command
from authsidecar.cli.output import printable
from authsidecar.cli.session import Session, on_registry
from authsidecar.times import rfc3339

if TYPE_CHECKING:
    from authsidecar.admin.simulate import Flip, SimulatedChange, Simulation

SHOWN: Final = 50
"""How many groups of decisions are shown to people; --json has all."""


@click.command(cls=Command)
@click.option("--allowlist", "allowlist_text", metavar="TEXT", help="With this allowlist.")
@click.option(
    "--limit",
    "limits",
    metavar="SCOPE=N[/TIME]",
    multiple=True,
    help="With this limit, as user=100 or address=30/10s; may be given again. user=off: none.",
)
@click.option(
    "--routes",
    metavar="RELEASE|FILE",
    help="With the routes of this release line of Coolify, or with this file of your own ones.",
)
@last(DAY)
@on_registry
async def simulate(
    session: Session,
    allowlist_text: str | None,
    limits: tuple[str, ...],
    routes: str | None,
    span_ms: int,
) -> None:
    """Say which decisions would have been others under another configuration.

    --config names it; the other options change it further. What was decided is read from the
    receipts: every refusal, and a share of the admissions, so that admissions that would be refused
    are an estimate. Nothing is changed.

    The exit code is 0 if nothing would flip, 1 if anything would.

    \b
    Examples:
      authsidecar simulate --config new.yaml --last 24h
      authsidecar simulate --allowlist "192.0.2.0/24" --last 7d
      authsidecar simulate --limit user=100 --routes 4.4
    """
    from authsidecar.admin.questions import WouldFlip

    change = _change(session, allowlist_text, limits, routes)
    progress = session.out.progress
    async with sources(session, lambda done: progress(f"{done} receipts judged")) as found_in:
        found = await WouldFlip(change, span_ms)(found_in)
    progress("")
    session.out.result(_data(found), _text(found, span_ms))
    if found.flips:
        raise RefusedError(
            f"{len(found.flips)} kinds of decisions would have been others: about "
            f"{sum(one.decisions for one in found.flips):.0f} decisions"
        )


def _change(
    session: Session, allowlist: str | None, limits: tuple[str, ...], routes: str | None
) -> "SimulatedChange":
    from authsidecar.admin.refusal import Refusal
    from authsidecar.admin.what_if import RoutesNow, WhatIf, changed
    from authsidecar.run.errors import StartError
    from authsidecar.run.terms import terms

    try:
        now = terms(session.settings)
    except StartError as error:
        raise MisconfiguredError(str(error)) from None
    release, own = _routes(routes)
    rates = dict(map(_limit, limits))
    wanted = WhatIf(allowlist, rates, release, own)
    found = changed(now.rules, RoutesNow(now.release, now.extra_routes), wanted)
    if isinstance(found, Refusal):
        raise click.UsageError(found.why)
    return found


def _routes(text: str | None) -> tuple[str | None, str | None]:
    """The release line, or the text of the file of routes, that an option names."""
    from authsidecar.decision.routes import RELEASES

    if text is None or text in RELEASES:
        return text, None
    try:
        return None, Path(text).read_text("utf-8")
    except (OSError, ValueError):
        raise click.BadParameter(
            f"{text!a} is neither one of {', '.join(RELEASES)} nor a file that can be read",
            param_hint="--routes",
        ) from None


def _limit(text: str) -> tuple[str, str]:
    scope, equals, rate = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!a} is not SCOPE=N[/TIME]", param_hint="--limit")
    return scope, rate


def _data(found: "Simulation") -> dict[str, Any]:
    return {
        "judged": found.judged,
        "decisions_estimate": round(found.decisions),
        "flips": [
            {
                "would_be": one.direction,
                "token": one.token,
                "route": one.route,
                "code": one.code,
                "receipts": one.receipts,
                "decisions": round(one.decisions),
                "estimated": one.estimated,
                "example": receipt_data(one.example),
            }
            for one in found.flips
        ],
        "unknown": [
            {"why": one.why, "decisions_estimate": round(one.decisions)} for one in found.unknown
        ],
    }


def _text(found: "Simulation", span_ms: int) -> str:
    head = f"judged {found.judged} receipts of the last {span_text(span_ms)}"
    lines = [f"{head}, which stand for about {found.decisions:.0f} decisions"]
    for direction, words in (
        ("refused", "would be refused that was admitted"),
        ("admitted", "would be admitted that was refused"),
    ):
        flips = [one for one in found.flips if one.direction == direction]
        lines += ["", f"{words}: {'nothing' if not flips else ''}".rstrip()]
        lines += [printable(line) for one in flips[:SHOWN] for line in _flip(one)]
        if len(flips) > SHOWN:
            lines.append(f"  and {len(flips) - SHOWN} more kinds (--json has them)")
    if found.unknown:
        lines += ["", "what can't be known:"]
        lines += [f"  {one.why} (about {one.decisions:.0f})" for one in found.unknown]
    return "\n".join(lines)


def _flip(one: "Flip") -> list[str]:
    count = f"about {one.decisions:.0f}, estimated" if one.estimated else f"{one.decisions:.0f}"
    token = "no token" if one.token is None else f"token {one.token}"
    example = one.example
    such = f"such as {example.id} of {rfc3339(example.at)}: {what(example)}"
    return [
        f"  {token}  {one.route}  {one.code}: {count}",
        f"    {such} from {example.address or '-'}",
    ]
