"""`allowlist show|set|confirm|check`."""

import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from authsidecar.cli.errors import RefusedError
from authsidecar.cli.options import ADDRESS, Group
from authsidecar.cli.session import Session, done, on_own_registry, on_registry
from authsidecar.cli.trials import CONFIRM_WITHIN, until, until_text
from authsidecar.decision.addresses import parse_address
from authsidecar.decision.model import Address, TeamId, TokenId

if TYPE_CHECKING:
    from authsidecar.decision.allowlist import Allowlist


@click.group(cls=Group)
def allowlist() -> None:
    """Say from which addresses the API may be called."""


@allowlist.command()
@on_registry
async def show(session: Session) -> None:
    """Show the allowlist.

    \b
    Example:
      authsidecar allowlist show
    """
    found = (await session.registry.instance()).allowlist
    text = "\n".join(found.entries) or ("everyone" if found.everyone else "nobody")
    trials = await session.registry.trials.pending()
    trial = next((one for one in trials if one.setting == "allowlist"), None)
    session.out.result({**_data(found), **until(trial)}, text, quiet=text)
    if trial is not None:
        session.out.note(f"this list is in force{until_text(trial, 'allowlist')}")


@allowlist.command("set")
@click.argument("text")
@click.option("--my-ip", type=ADDRESS, metavar="A", help="Your address: it must stay allowed.")
@click.option("--force", is_flag=True, help="Save a list that locks you out, or may.")
@CONFIRM_WITHIN
@on_own_registry
async def set_(
    session: Session, text: str, my_ip: Address | None, force: bool, confirm_within: int | None
) -> None:
    """Save the allowlist: addresses and networks, separated by commas; "" admits everyone.

    A list that would lock you out is refused. Your address is --my-ip, or on a terminal that of
    your SSH session. Where it is not known (in a container, under sudo, in a script), the list is
    refused too, unless it admits the addresses from which the instance team's root tokens were
    last used.

    With --confirm-within the list before is back after that time, whatever becomes of this
    command, unless `allowlist confirm` is given from an address that the new list admits.

    \b
    Examples:
      authsidecar allowlist set "192.0.2.0/24, 2001:db8::/32" --my-ip 192.0.2.7
      authsidecar allowlist set "192.0.2.0/24" --confirm-within 120s
      authsidecar allowlist set ""
    """
    from authsidecar.admin.settings import set_allowlist

    caller = my_ip or _ssh_client()
    saved = done(
        await set_allowlist(
            session.registry,
            text,
            caller=caller,
            force=force,
            callers=partial(_callers, session),
            within_ms=confirm_within,
        )
    )
    for warning in saved.warnings:
        session.out.warn(warning)
    found = saved.allowlist
    text = "\n".join(found.entries) or "everyone"
    trial = saved.trial
    said = f"saved{until_text(trial, 'allowlist')}:\n{text}"
    session.out.result({**_data(found), **until(trial)}, said)


@allowlist.command()
@click.option("--my-ip", type=ADDRESS, metavar="A", help="Your address: the list must admit it.")
@on_own_registry
async def confirm(session: Session, my_ip: Address | None) -> None:
    """Keep the list that was set with --confirm-within.

    Your address is --my-ip, or on a terminal that of your SSH session; the new list must admit it.

    \b
    Example:
      authsidecar allowlist confirm --my-ip 192.0.2.7
    """
    from authsidecar.admin.settings import confirm_allowlist

    done(await confirm_allowlist(session.registry, my_ip or _ssh_client()))
    found = (await session.registry.instance()).allowlist
    text = "\n".join(found.entries) or "everyone"
    session.out.result(_data(found), f"confirmed:\n{text}")


@allowlist.command()
@click.argument("address", type=ADDRESS)
@on_registry
async def check(session: Session, address: Address) -> None:
    """Say whether an address may call: exit code 0 if so, 1 if not.

    \b
    Example:
      authsidecar allowlist check 192.0.2.7
    """
    allowed = (await session.registry.instance()).allowlist.admits(address)
    word = "allowed" if allowed else "not allowed"
    session.out.result({"address": str(address), "allowed": allowed}, f"{address} is {word}")
    if not allowed:
        raise RefusedError(
            f"{address} is on no entry of the allowlist; `authsidecar allowlist set` changes it"
        )


def _data(found: "Allowlist") -> dict[str, Any]:
    return {"text": found.text, "everyone": found.everyone, "entries": list(found.entries)}


def _ssh_client() -> Address | None:
    """The address that an operator's SSH session comes from, if this is one's terminal."""
    found = os.environ.get("SSH_CLIENT") or os.environ.get("SSH_CONNECTION") or ""
    words = found.split()
    return parse_address(words[0]) if words and sys.stdin.isatty() else None


async def _callers(session: Session) -> "Mapping[TokenId, Address]":
    """From where the instance team's root tokens were last used."""
    from authsidecar.admin.settings import root_callers
    from authsidecar.store.keys import Keys

    keys = Keys(session.settings.redis.prefix)
    team = TeamId(session.settings.coolify.instance_team)
    return await root_callers(session.registry, session.client, keys, team)
