"""`api enable|disable|confirm|status`."""

from typing import TYPE_CHECKING

import click

from authsidecar.cli.options import Group
from authsidecar.cli.session import Session, done, on_own_registry, on_registry
from authsidecar.cli.trials import CONFIRM_WITHIN, until, until_text

if TYPE_CHECKING:
    from authsidecar.store.trials import Trial


@click.group(cls=Group)
def api() -> None:
    """Switch the API on and off, from the very next request on."""


@api.command()
@CONFIRM_WITHIN
@on_own_registry
async def enable(session: Session, confirm_within: int | None) -> None:
    """Switch the API on.

    \b
    Example:
      authsidecar api enable
    """
    await _switch(session, on=True, within_ms=confirm_within)


@api.command()
@CONFIRM_WITHIN
@on_own_registry
async def disable(session: Session, confirm_within: int | None) -> None:
    """Switch the API off: every request that needs a token is refused, but for the switches.

    \b
    Examples:
      authsidecar api disable
      authsidecar api disable --confirm-within 5m
    """
    await _switch(session, on=False, within_ms=confirm_within)


@api.command()
@on_own_registry
async def confirm(session: Session) -> None:
    """Keep the API as it was switched with --confirm-within.

    \b
    Example:
      authsidecar api confirm
    """
    from authsidecar.admin.settings import confirm_api

    done(await confirm_api(session.registry))
    _tell(session, on=(await session.registry.instance()).api_enabled)


@api.command()
@on_registry
async def status(session: Session) -> None:
    """Say whether the API is on.

    \b
    Example:
      authsidecar api status --json
    """
    trials = await session.registry.trials.pending()
    trial = next((one for one in trials if one.setting == "api_enabled"), None)
    _tell(session, on=(await session.registry.instance()).api_enabled, trial=trial)


async def _switch(session: Session, *, on: bool, within_ms: int | None) -> None:
    from authsidecar.admin.settings import switch_api

    trial = await switch_api(session.registry, on=on, within_ms=within_ms)
    _tell(session, on=on, trial=trial)


def _tell(session: Session, *, on: bool, trial: "Trial | None" = None) -> None:
    word = "on" if on else "off"
    data = {"api_enabled": on, **until(trial)}
    session.out.result(data, f"the API is {word}{until_text(trial, 'api')}", quiet=word)
