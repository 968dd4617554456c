"""`allowlist show|set|check`."""

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from authsidecar.addresses import parse_address
from authsidecar.cli.errors import RefusedError
from authsidecar.cli.options import ADDRESS, Group
from authsidecar.cli.session import Session, done, on_own_registry, on_registry
from authsidecar.model import Address

if TYPE_CHECKING:
    from authsidecar.allowlist import Allowlist


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
    session.out.result(_data(found), text, quiet=text)


@allowlist.command("set")
@click.argument("text")
@click.option("--my-ip", type=ADDRESS, metavar="A", help="Your address: it must stay allowed.")
@click.option("--force", is_flag=True, help="Save a list that locks you out.")
@on_own_registry
async def set_(session: Session, text: str, my_ip: Address | None, force: bool) -> None:
    """Save the allowlist: addresses and networks, separated by commas; "" admits everyone.

    A list that would lock you out is refused. Your address is --my-ip, or on a terminal that of
    your SSH session.

    \b
    Examples:
      authsidecar allowlist set "192.0.2.0/24, 2001:db8::/32" --my-ip 192.0.2.7
      authsidecar allowlist set ""
    """
    from authsidecar.settings import set_allowlist

    caller = my_ip or _ssh_client()
    saved = done(await set_allowlist(session.registry, text, caller=caller, force=force))
    for warning in saved.warnings:
        session.out.warn(warning)
    found = saved.allowlist
    text = "\n".join(found.entries) or "everyone"
    session.out.result(_data(found), f"saved:\n{text}")


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
    words = os.environ.get("SSH_CLIENT", "").split()
    return parse_address(words[0]) if words and sys.stdin.isatty() else None
