"""Use cases of the instance's settings: the API switch, the MCP switches, the allowlist."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

from authsidecar.admin.refusal import Refusal, absent
from authsidecar.decision.addresses import parse_address
from authsidecar.decision.allowlist import Allowlist, AllowlistError, parse, wildcards
from authsidecar.decision.checks import PRIVILEGED
from authsidecar.decision.model import Address, TeamId, TokenId
from authsidecar.decision.permissions import ROOTS
from authsidecar.store.keys import Keys
from authsidecar.store.last_used import last_use
from authsidecar.store.registry import Registry


@dataclass(frozen=True, slots=True)
class Saved:
    """An allowlist that was saved.

    Attributes:
        allowlist: as it is stored.
        warnings: what is legal but unwise about it, one line each.
    """

    allowlist: Allowlist
    warnings: tuple[str, ...]


async def switch_api(registry: Registry, *, on: bool) -> None:
    """Turn the API on or off for everyone, from the very next request on."""
    await registry.set_instance(api_enabled=on)


async def switch_mcp(registry: Registry, *, on: bool, team: TeamId | None) -> Refusal | None:
    """Turn MCP on or off, for the whole instance or for one team."""
    if team is None:
        await registry.set_instance(mcp_enabled=on)
    elif not await registry.set_team_mcp(team, on):
        return Refusal(absent("team", team))
    return None


Callers = Callable[[], Awaitable[Mapping[TokenId, Address]]]
"""Tells from where tokens with full rights were last used."""


async def root_callers(
    registry: Registry, client: "Redis", keys: Keys, instance_team: TeamId
) -> Mapping[TokenId, Address]:
    """From where the instance team's root tokens were last used, of those that can be used."""
    now = await registry.now()
    tokens = [
        one
        async for one in registry.tokens(team=instance_team)
        if not ROOTS.isdisjoint(one.permissions) and (one.expires_at or now) >= now
    ]
    roles = await registry.roles((instance_team, one.user) for one in tokens)
    usable = [one.id for one in tokens if roles.get((instance_team, one.user)) in PRIVILEGED]
    uses = await last_use(client, keys, usable)
    found = {token: parse_address(use.client) for token, use in uses.items()}
    return {token: address for token, address in found.items() if address is not None}


async def set_allowlist(
    registry: Registry, text: str, *, caller: Address | None, force: bool, callers: Callers
) -> Saved | Refusal:
    """Save who may call, unless a bad entry or the caller's own exclusion forbids it.

    Args:
        registry: where it is stored.
        text: comma-separated addresses and networks; empty for everyone.
        caller: who must not be locked out; None if that is not known.
        force: save it even so.
        callers: asked where the caller is not known: if all that it tells of stay allowed, the
            caller is taken to be one of them.
    """
    try:
        allowlist = parse(text)
    except AllowlistError as error:
        return Refusal(f"{error}; nothing was saved")
    warnings = [_about(entry) for entry in wildcards(allowlist)]
    if not force and not _admits_all(allowlist):
        guarded = _keeps(allowlist, caller) if caller else _keeps_all(allowlist, await callers())
        if isinstance(guarded, Refusal):
            return guarded
        warnings += guarded
    await registry.set_instance(allowlist=allowlist.text)
    return Saved(allowlist, tuple(warnings))


def _admits_all(allowlist: Allowlist) -> bool:
    """Whether nobody can be locked out: the list admits both families whole."""
    whole = {":" in entry for entry in wildcards(allowlist)}
    return allowlist.everyone or len(whole) == 2


def _keeps(allowlist: Allowlist, caller: Address) -> Refusal | list[str]:
    """What is to be said of a list that a known caller saves, or why it is not saved."""
    if allowlist.admits(caller):
        return []
    return Refusal(
        f"this list would lock you out: {caller} is on no entry of it; add it, "
        "or use --force; nothing was saved"
    )


def _keeps_all(allowlist: Allowlist, callers: Mapping[TokenId, Address]) -> Refusal | list[str]:
    """The same of a caller who is not known: one of those who call with full rights."""
    unknown = "your own address is not known"
    cure = "name it by --my-ip, or use --force; nothing was saved"
    if not callers:
        return Refusal(f"{unknown}, so this list could lock you out: {cure}")
    for token, address in callers.items():
        if not allowlist.admits(address):
            return Refusal(
                f"{unknown}, and root token {token} was last used from {address}, which is on no "
                f"entry of this list: {cure}"
            )
    places = ", ".join(dict.fromkeys(map(str, callers.values())))
    return [f"{unknown}; root tokens were last used from {places}, which stays allowed"]


def _about(entry: str) -> str:
    if entry == "0.0.0.0":
        return "0.0.0.0 admits everyone, IPv4 and IPv6"
    family = "IPv6" if ":" in entry else "IPv4"
    return f"{entry} admits every {family} address"
