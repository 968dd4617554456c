"""Use cases of the instance's settings: the API switch, the MCP switches, the allowlist."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from redis.asyncio import Redis

from authsidecar.admin.refusal import Refusal, absent
from authsidecar.decision.addresses import parse_address
from authsidecar.decision.allowlist import (
    Allowlist,
    AllowlistError,
    parse,
    parse_lenient,
    wildcards,
)
from authsidecar.decision.checks import PRIVILEGED
from authsidecar.decision.model import Address, TeamId, TokenId
from authsidecar.decision.permissions import ROOTS
from authsidecar.store.keys import Keys
from authsidecar.store.last_used import last_use
from authsidecar.store.registry import Registry
from authsidecar.store.trials import Trial, Tried
from authsidecar.times import rfc3339


@dataclass(frozen=True, slots=True)
class Saved:
    """An allowlist that was saved.

    Attributes:
        allowlist: as it is stored.
        warnings: what is legal but unwise about it, one line each.
        trial: how long it stays unless it is confirmed, or None: it stays.
    """

    allowlist: Allowlist
    warnings: tuple[str, ...]
    trial: Trial | None = None


async def switch_api(registry: Registry, *, on: bool, within_ms: int | None = None) -> Trial | None:
    """Turn the API on or off for everyone, from the very next request on.

    Args:
        registry: where it is stored.
        on: which of the two.
        within_ms: in how many milliseconds it is turned back unless it is confirmed; None: never.
    """
    if within_ms is not None:
        return await registry.trials.begin("api_enabled", int(on), within_ms)
    await registry.set_instance(api_enabled=on)
    return None


async def confirm_api(registry: Registry) -> Trial | Refusal:
    """Keep the API as it was switched."""
    trial = await _pending(registry, "api_enabled")
    if trial is None or not await registry.trials.confirm(trial):
        return Refusal("there is nothing to confirm; `authsidecar api status` says how it is")
    return trial


async def confirm_allowlist(registry: Registry, caller: Address | None) -> Trial | Refusal:
    """Keep the allowlist that was set, for somebody whom it admits."""
    nothing = "there is nothing to confirm; `authsidecar allowlist show` says how it is"
    trial = await _pending(registry, "allowlist")
    if trial is None:
        return Refusal(nothing)
    if caller is None:
        return Refusal("your own address is not known: name it by --my-ip; nothing was confirmed")
    if not parse_lenient(trial.value)[0].admits(caller):
        return Refusal(
            f"{caller} is on no entry of the new list, so you may be locked out; nothing was "
            f"confirmed, and the list before is back at {rfc3339(trial.until)}"
        )
    return trial if await registry.trials.confirm(trial) else Refusal(nothing)


async def _pending(registry: Registry, setting: Tried) -> Trial | None:
    return next((one for one in await registry.trials.pending() if one.setting == setting), None)


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
    registry: Registry,
    text: str,
    *,
    caller: Address | None,
    force: bool,
    callers: Callers,
    within_ms: int | None = None,
) -> Saved | Refusal:
    """Save who may call, unless a bad entry or the caller's own exclusion forbids it.

    Args:
        registry: where it is stored.
        text: comma-separated addresses and networks; empty for everyone.
        caller: who must not be locked out; None if that is not known.
        force: save it even so.
        callers: asked where the caller is not known: if all that it tells of stay allowed, the
            caller is taken to be one of them.
        within_ms: in how many milliseconds the list before is back unless this one is confirmed,
            so that a caller who is not known may try it; None: never.
    """
    checked = await check_allowlist(
        text, caller=caller, force=force or (within_ms is not None and caller is None),
        callers=callers,
    )  # fmt: skip
    if isinstance(checked, Refusal):
        return checked
    if within_ms is None:
        await registry.set_instance(allowlist=checked.allowlist.text)
        return checked
    trial = await registry.trials.begin("allowlist", checked.allowlist.text, within_ms)
    return replace(checked, trial=trial)


async def check_allowlist(
    text: str, *, caller: Address | None, force: bool, callers: Callers
) -> Saved | Refusal:
    """What `set_allowlist` would save, and nothing is; the arguments are its own."""
    try:
        allowlist = parse(text)
    except AllowlistError as error:
        return Refusal(f"{error}; nothing was saved")
    warnings = [about(entry) for entry in wildcards(allowlist)]
    if not force and not _admits_all(allowlist):
        guarded = _keeps(allowlist, caller) if caller else _keeps_all(allowlist, await callers())
        if isinstance(guarded, Refusal):
            return guarded
        warnings += guarded
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


def about(entry: str) -> str:
    """What is unwise about an entry that admits everyone, or a whole family of addresses."""
    if entry == "0.0.0.0":
        return "0.0.0.0 admits everyone, IPv4 and IPv6"
    family = "IPv6" if ":" in entry else "IPv4"
    return f"{entry} admits every {family} address"
