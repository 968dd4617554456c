"""Use cases of the instance's settings: the API switch, the MCP switches, the allowlist."""

from dataclasses import dataclass

from authsidecar.allowlist import Allowlist, AllowlistError, parse, wildcards
from authsidecar.model import Address, TeamId
from authsidecar.refusal import Refusal
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
        return Refusal(f"there is no team {team}; `authsidecar team list` shows them")
    return None


async def set_allowlist(
    registry: Registry, text: str, *, caller: Address | None, force: bool
) -> Saved | Refusal:
    """Save who may call, unless a bad entry or the caller's own exclusion forbids it.

    Args:
        registry: where it is stored.
        text: comma-separated addresses and networks; empty for everyone.
        caller: who must not be locked out; None if that is not known.
        force: save it even so.
    """
    try:
        allowlist = parse(text)
    except AllowlistError as error:
        return Refusal(f"{error}; nothing was saved")
    if caller is not None and not force and not allowlist.admits(caller):
        return Refusal(
            f"this list would lock you out: {caller} is on no entry of it; add it, "
            "or use --force; nothing was saved"
        )
    await registry.set_instance(allowlist=allowlist.text)
    warnings = [_about(entry) for entry in wildcards(allowlist)]
    if caller is None and not force and not allowlist.everyone:
        warnings.append("your own address is not known, so it was not checked; name it by --my-ip")
    return Saved(allowlist, tuple(warnings))


def _about(entry: str) -> str:
    if entry == "0.0.0.0":
        return "0.0.0.0 admits everyone, IPv4 and IPv6"
    family = "IPv6" if ":" in entry else "IPv4"
    return f"{entry} admits every {family} address"
