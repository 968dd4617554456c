"""`doctor`: examine the operator's own proxy, and the echo that some probes need."""

from typing import TYPE_CHECKING

import click

from authsidecar.cli.errors import RefusedError
from authsidecar.cli.options import Command, Group, NamedType, given
from authsidecar.cli.session import Session, on_registry
from authsidecar.cli.streams import write
from authsidecar.decision.addresses import parse_address
from authsidecar.decision.model import Proxy

if TYPE_CHECKING:
    from authsidecar.doctor.running import Examination, Resolved

PROXY = NamedType(
    "a proxy", tuple(proxy.value for proxy in Proxy if proxy is not Proxy.DIRECT), Proxy
)


@click.group(cls=Group, invoke_without_command=True)
@click.option("--proxy", type=PROXY, help="Which proxy it is.")
@click.option("--url", metavar="URL", help="The site, through the proxy: http(s)://host[:port].")
@click.option("--echo-url", metavar="URL", help="The same, with `doctor echo` as its backend.")
@click.option("--from-trusted-hop", is_flag=True, help="This machine is where the CDN would be.")
@click.option("--insecure", is_flag=True, help="Take any certificate.")
@click.option(
    "--resolve",
    metavar="HOST:PORT:ADDRESS",
    multiple=True,
    callback=lambda _context, _option, given: dict(map(_resolved, given)),
    help="Connect to this address instead of what the name resolves to; may be given again.",
)
@click.pass_context
def doctor(  # noqa: PLR0917  # click passes a value for each option
    context: click.Context,
    proxy: Proxy | None,
    url: str | None,
    echo_url: str | None,
    from_trusted_hop: bool,
    insecure: bool,
    resolve: "Resolved",
) -> None:
    """Find faults in the configuration of the proxy in front of the sidecar.

    Sends about forty requests through your own running proxy; the sidecar, which must run with
    the same configuration, says what it saw of each. Says what fails, what that lets happen and
    the line to change. Exit code 1 if anything fails. Nothing is let through that has a route.

    \b
    Examples:
      authsidecar doctor --proxy traefik --url https://coolify.example.com
      authsidecar doctor --proxy nginx --url http://127.0.0.1 --echo-url http://127.0.0.1:8081
      authsidecar doctor --proxy caddy --url https://coolify.example.com \\
        --resolve coolify.example.com:443:127.0.0.1
    """
    if context.invoked_subcommand is not None:
        return
    if proxy is None or url is None:
        raise click.UsageError("say --proxy and --url, or a command: echo", context)
    from authsidecar.doctor.running import Examination

    examine(Examination(proxy, url, echo_url, from_trusted_hop, insecure, resolve))


def _resolved(text: str) -> tuple[tuple[str, int], str]:
    """One --resolve as curl takes it: host and port, and the address to connect to."""
    host, _, rest = text.partition(":")
    port, _, address = rest.partition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.BadParameter(f"{text!a} is not HOST:PORT:ADDRESS")
    found = parse_address(address.removeprefix("[").removesuffix("]"))
    if found is None:
        raise click.BadParameter(f"{address!a} in {text!a} is not an IP address")
    return (host.lower(), int(port)), str(found)


@on_registry
async def examine(session: Session, what: "Examination") -> None:
    """Run the examination and tell of it."""
    from dataclasses import replace

    from authsidecar.doctor.running import ProxyUnreachableError
    from authsidecar.doctor.running import examine as run
    from authsidecar.store.keys import Keys

    endpoint = session.settings.management.endpoint
    if endpoint.port:  # 0 is any free port: nobody else knows which
        what = replace(what, management=(endpoint.host or "127.0.0.1", endpoint.port))
    try:
        report = await run(session.client, Keys(session.settings.redis.prefix), what)
    except ValueError as error:
        raise click.UsageError(f"--url or --echo-url: {error}") from None
    except ProxyUnreachableError as error:
        raise RefusedError(str(error)) from None
    session.out.result(report.document(), report.text(), quiet=report.summary())
    if report.failed:
        names = ", ".join(finding.probe.name for finding in report.failed)
        raise RefusedError(f"{len(report.failed)} probes failed ({names}); change those lines")


@doctor.command(cls=Command)
@click.option(
    "--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT", help="Where."
)
def echo(listen: str) -> None:
    """Serve a backend that answers with the request it got, until Ctrl-C.

    Put it in the place of Coolify in a second copy of the proxy's configuration, and give that
    address as --echo-url. It guards nothing and has nothing to guard.

    \b
    Example:
      authsidecar doctor echo --listen 127.0.0.1:9000
    """
    import asyncio
    import json
    import signal

    from authsidecar.doctor.echo import echoing

    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise click.UsageError(f"--listen: {listen!a} is not HOST:PORT")
    options = given()

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with echoing(host.strip("[]"), int(port)) as address:
            write(json.dumps({"listening": address}) if options.json else address)
            await stop.wait()

    try:
        asyncio.run(run())
    except OSError as error:
        raise RefusedError(f"--listen: cannot listen on {listen}: {error.strerror}") from None
