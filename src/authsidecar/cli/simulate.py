"""`simulate`: what a change would have done to the decisions that were made."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from authsidecar.cli.decisions import DAY, last, receipt_data, span_text, what
from authsidecar.cli.errors import MisconfiguredError, RefusedError
from authsidecar.cli.explain import BUDGET_MS
from authsidecar.cli.options import Command
from authsidecar.cli.output import printable
from authsidecar.cli.session import Session, on_registry
from authsidecar.decision.model import Limit
from authsidecar.times import UnixMs, rfc3339

if TYPE_CHECKING:
    from authsidecar.admin.simulate import Flip, SimulatedChange, Simulation
    from authsidecar.decision.allowlist import Allowlist

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
    from authsidecar.admin.simulate import simulate as ask
    from authsidecar.store.decisions import DecisionStore
    from authsidecar.store.keys import Keys
    from authsidecar.store.receipt_reader import Reader

    change = _change(session, allowlist_text, limits, routes)
    keys = Keys(session.settings.redis.prefix)
    since = UnixMs(await session.registry.now() - span_ms)
    store = DecisionStore(session.client, keys, budget_ms=BUDGET_MS)
    progress = session.out.progress
    try:
        found = await ask(
            Reader(session.client, keys, since).pages(),
            change,
            registry=session.registry,
            store=store,
            progress=lambda done: progress(f"{done} receipts judged"),
        )
    finally:
        await store.close()
    progress("")
    session.out.result(_data(found), _text(found, span_ms))
    if found.flips:
        raise RefusedError(
            f"{len(found.flips)} kinds of decisions would have been others: about "
            f"{sum(one.decisions for one in found.flips):.0f} decisions"
        )


def _change(
    session: Session, allowlist_text: str | None, limits: tuple[str, ...], routes: str | None
) -> "SimulatedChange":
    from dataclasses import replace

    from authsidecar.admin.simulate import SimulatedChange
    from authsidecar.run.errors import StartError
    from authsidecar.run.rules import rules

    settings = session.settings
    if routes is not None:
        settings = settings.model_copy(
            update={"coolify": settings.coolify.model_copy(update=_routes(routes))}
        )
    try:
        found = rules(settings)
    except StartError as error:
        raise MisconfiguredError(str(error)) from None
    changed = dict(found.limits)
    for text in limits:
        scope, limit = _limit(text)
        if limit is None:
            changed.pop(scope, None)
        else:
            changed[scope] = limit
    return SimulatedChange(
        replace(found, limits=changed),
        None if allowlist_text is None else _allowlist(allowlist_text),
    )


def _allowlist(text: str) -> "Allowlist":
    from authsidecar.decision.allowlist import AllowlistError, parse

    try:
        return parse(text)
    except AllowlistError as error:
        raise click.BadParameter(str(error), param_hint="--allowlist") from None


def _routes(text: str) -> dict[str, str]:
    """The settings that a release line or a file of routes stands for."""
    from authsidecar.decision.routes import RELEASES

    if text in RELEASES:
        return {"routes": text}
    if not Path(text).is_file():
        raise click.BadParameter(
            f"{text!a} is neither a file nor one of {', '.join(RELEASES)}", param_hint="--routes"
        )
    return {"extra_routes": text}


def _limit(text: str) -> tuple[str, Limit | None]:
    from authsidecar.config.buckets import SCOPES
    from authsidecar.decision.restrictions import parse_rate

    scope, equals, rate = text.partition("=")
    if not equals or scope not in SCOPES:
        raise click.BadParameter(
            f"{text!a} is not SCOPE=N with one of {', '.join(SCOPES)}", param_hint="--limit"
        )
    if rate == "off":
        return scope, None
    try:
        return scope, parse_rate(rate if "/" in rate else f"{rate}/60s")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--limit") from None


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
