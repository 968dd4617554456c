"""`api enable|disable|status`."""

import click

from authsidecar.cli.options import Group
from authsidecar.cli.session import Session, on_own_registry, on_registry


@click.group(cls=Group)
def api() -> None:
    """Switch the API on and off, from the very next request on."""


@api.command()
@on_own_registry
async def enable(session: Session) -> None:
    """Switch the API on.

    \b
    Example:
      authsidecar api enable
    """
    await _switch(session, on=True)


@api.command()
@on_own_registry
async def disable(session: Session) -> None:
    """Switch the API off: every request that needs a token is refused, but for the switches.

    \b
    Example:
      authsidecar api disable
    """
    await _switch(session, on=False)


@api.command()
@on_registry
async def status(session: Session) -> None:
    """Say whether the API is on.

    \b
    Example:
      authsidecar api status --json
    """
    _tell(session, on=(await session.registry.instance()).api_enabled)


async def _switch(session: Session, *, on: bool) -> None:
    from authsidecar.admin.settings import switch_api

    await switch_api(session.registry, on=on)
    _tell(session, on=on)


def _tell(session: Session, *, on: bool) -> None:
    word = "on" if on else "off"
    session.out.result({"api_enabled": on}, f"the API is {word}", quiet=word)
