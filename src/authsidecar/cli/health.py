"""`health`: is the sidecar of this configuration ready?"""

import json
from typing import TYPE_CHECKING, Any, Final

import click

from authsidecar.cli.errors import MisconfiguredError, RefusedError
from authsidecar.cli.options import Command, given
from authsidecar.cli.output import Output
from authsidecar.cli.session import load_settings

if TYPE_CHECKING:
    from authsidecar.config.values import ListenAddress

PATIENCE_S: Final = 2.0
"""How long an answer may take, in seconds."""

_ANYWHERE: Final = {None: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where a listener on all interfaces is reached from the same machine."""


@click.command(cls=Command)
def health() -> None:
    """Ask the running sidecar of this configuration whether it is ready.

    It asks /readyz at management.address, for health checks of containers and services: the exit
    code is 0 if it is ready and 1 if not, whatever the reason.

    \b
    Examples:
      authsidecar health
      authsidecar health --config /etc/authsidecar/config.yaml
    """
    options = given()
    try:
        section = load_settings(options).management
    except MisconfiguredError as error:  # a health check knows no other code
        raise RefusedError(error.problems[0]) from None
    missing = _missing(section.endpoint, tls=section.tls_cert_file is not None)
    if missing:
        why = ", ".join(f"{part}: {kind}" for part, kind in missing.items())
        raise RefusedError(f"not ready ({why})")
    Output(options).result({"ready": True}, "ready")


def _missing(endpoint: "ListenAddress", *, tls: bool) -> dict[str, str]:
    """What the sidecar says is missing; empty if it is ready.

    Its certificate is not judged: nothing secret is sent, and one that has expired is no reason to
    end the container that answers.

    Raises:
        RefusedError: it does not answer.
    """
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    if endpoint.port == 0:
        raise RefusedError("management.address: has port 0, so nobody knows where to ask")
    host = _ANYWHERE.get(endpoint.host, endpoint.host or "")
    if tls:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection: HTTPConnection = HTTPSConnection(
            host, endpoint.port, timeout=PATIENCE_S, context=context
        )
    else:
        connection = HTTPConnection(host, endpoint.port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RefusedError(f"{endpoint}: no answer ({why}); is the sidecar running?") from None
    finally:
        connection.close()
    return {} if answer.status == 200 else _missing_parts(body, answer.status)


def _missing_parts(body: bytes, status: int) -> dict[str, str]:
    try:
        found: Any = json.loads(body)["missing"]
        return {str(part): str(kind) for part, kind in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"answer": str(status)}
