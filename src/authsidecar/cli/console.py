"""`console`: a link that signs in to the console."""

from ipaddress import ip_address
from typing import TYPE_CHECKING

import click

from authsidecar.cli.errors import RefusedError
from authsidecar.cli.options import Command
from authsidecar.cli.session import Session, on_registry, operator
from authsidecar.times import UnixMs, for_people, rfc3339

if TYPE_CHECKING:
    from authsidecar.config import Settings


@click.command(cls=Command)
@click.option("--read-only", is_flag=True, help="For somebody who may look, and change nothing.")
@on_registry
async def console(session: Session, read_only: bool) -> None:
    """Print a link that signs in to the console: it works once, for five minutes.

    \b
    Examples:
      authsidecar console
      authsidecar console --read-only
    """
    from authsidecar.store.console_sessions import LINK_MS, ConsoleSessions
    from authsidecar.store.keys import Keys
    from authsidecar.store.management_keys import Scope

    place = url(session.settings)
    kept = ConsoleSessions(session.client, Keys(session.settings.redis.prefix))
    scope = Scope.READ if read_only else Scope.WRITE
    link = f"{place}/sign-in?link={await kept.make_link(operator(), scope)}"
    until = UnixMs(await session.registry.now() + LINK_MS)
    data = {"url": link, "scope": scope.value, "expires_at": rfc3339(until)}
    session.out.result(data, link, quiet=link)
    session.out.note(f"It works once, until {for_people(until)}.")


def url(settings: "Settings") -> str:
    """Where a browser finds the console.

    Raises:
        RefusedError: it is nowhere.
    """
    section = settings.management
    if not section.console:
        raise RefusedError("management.console: is false, so there is no console")
    host, port = section.endpoint.host, section.endpoint.port
    secure = section.tls_cert_file is not None
    if port == 0:
        raise RefusedError("management.address: has no port of its own; give it one")
    if host is None or _is(host, "is_unspecified"):
        host = "localhost"
    elif not secure and host != "localhost" and not _is(host, "is_loopback"):
        raise RefusedError(
            f"the console is served over loopback alone until management.tls_cert_file is set, and "
            f"management.address is {section.address}"
        )
    if secure and section.console_hosts:
        host = section.console_hosts[0]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if secure else 'http'}://{shown}:{port}/console"


def _is(host: str, what: str) -> bool:
    try:
        return bool(getattr(ip_address(host), what))
    except ValueError:
        return False
