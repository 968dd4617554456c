"""`explain`: what a request would be answered, check by check, and nothing consumed."""

import sys
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from authsidecar.cli.completion import methods, templates
from authsidecar.cli.errors import MisconfiguredError, RefusedError
from authsidecar.cli.options import ADDRESS, TOKEN_ID, Command
from authsidecar.cli.output import printable, styled
from authsidecar.cli.session import Session, interruptible, on_silent_registry
from authsidecar.cli.streams import is_terminal
from authsidecar.decision.addresses import Networks
from authsidecar.decision.model import Address, Deny, TokenId

if TYPE_CHECKING:
    from authsidecar.admin.explain import Explanation
    from authsidecar.decision.authorize import Rules

BUDGET_MS: Final = 5000
"""What one trip to Redis may take, in milliseconds: a person waits longer than a request."""

LONGEST_TOKEN: Final = 8192

MARKS: Final = {"pass": ("ok", "green"), "fail": ("FAIL", "red"), "skipped": ("-", None)}


@click.command(cls=Command)
@click.argument("method", shell_complete=methods, required=False)
@click.argument("target", shell_complete=templates, required=False)
@click.option(
    "--token-file",
    type=click.File("rb"),
    metavar="F|-",
    help="File with the token; - is standard input. A token is never an argument.",
)
@click.option(
    "--as-token",
    type=TOKEN_ID,
    metavar="ID",
    help="As if this token's right secret were sent: for who has none.",
)
@click.option(
    "--decision", metavar="ID", help="The request of this decision, in place of METHOD TARGET."
)
@click.option(
    "--client-ip",
    type=ADDRESS,
    metavar="A",
    default="127.0.0.1",
    show_default=True,
    help="The client's address.",
)
@click.option(
    "--header",
    "others",
    metavar="NAME:VALUE",
    multiple=True,
    callback=lambda _context, _option, given: tuple(map(_header, given)),
    help="Another header of the client's; may be given again. Never the token.",
)
@click.option(
    "--peer", type=ADDRESS, metavar="A", help="Who asks the sidecar; else a trusted peer."
)
@on_silent_registry
async def explain(  # noqa: PLR0917  # click passes by name
    session: Session,
    method: str | None,
    target: str | None,
    token_file: BinaryIO | None,
    as_token: int | None,
    decision: str | None,
    client_ip: Address,
    others: tuple[tuple[bytes, bytes], ...],
    peer: Address | None,
) -> None:
    """Say what a request would be answered now, and why. Nothing is counted.

    The exit code is 0 if it is allowed, 1 if it is refused.

    \b
    Examples:
      authsidecar explain GET /api/v1/teams --token-file token.txt
      authsidecar explain GET /api/v1/teams --as-token 67
      authsidecar explain --decision 69278a10c0ffee12340000002a
      authsidecar explain POST "/api/v1/deploy?uuid=x" --token-file - --client-ip 192.0.2.7
    """
    from authsidecar.admin.explain import as_if_known, untrusted_peer
    from authsidecar.admin.explain import explain as ask
    from authsidecar.run.errors import StartError
    from authsidecar.run.rules import rules
    from authsidecar.store.decisions import DecisionStore
    from authsidecar.store.keys import Keys

    if as_token is not None and (token_file is not None or decision is not None):
        raise click.UsageError("--as-token, --token-file and --decision exclude one another")
    if (decision is None) == (method is None or target is None):
        raise click.UsageError("give METHOD and TARGET, or --decision ID")
    settings = session.settings
    try:
        decided_by = rules(settings)
    except StartError as error:
        raise MisconfiguredError(str(error)) from None
    if decision is not None:
        await _explain_decision(session, decision, decided_by)
        return
    assert method is not None  # noqa: S101  # just looked at
    assert target is not None  # noqa: S101
    if peer is not None and peer not in Networks.of(settings.peer_networks):
        found = untrusted_peer(peer)
    else:
        credential = None
        if as_token is not None:
            credential = await as_if_known(TokenId(as_token), session.registry)
            if credential is None:
                raise RefusedError(f"there is no token {as_token}")
        store = DecisionStore(session.client, Keys(settings.redis.prefix), budget_ms=BUDGET_MS)
        found = await ask(
            (method.encode("utf-8", "surrogateescape"), target.encode("utf-8", "surrogateescape")),
            _authorization(token_file),
            client_ip,
            hops=Networks.of(settings.hop_networks),
            rules=decided_by,
            store=store,
            registry=session.registry,
            others=others,
            as_token=credential,
        )
        await store.close()
    said, data = f"{method} {printable(target)}\n{trace(found)}", as_data(found)
    if as_token is not None:
        said, data = f"{said}\n{TAKEN_AS_RIGHT}", {**data, "secret": "taken as right"}
    session.out.result(data, said)
    _refuse(found)


TAKEN_AS_RIGHT: Final = "The secret was taken as right: nobody has shown it."


async def _explain_decision(session: Session, decision: str, decided_by: "Rules") -> None:
    """Explain the request of a decision as it would be answered now."""
    from authsidecar.admin.decisions import not_kept, show
    from authsidecar.cli.decisions import what
    from authsidecar.store.decisions import DecisionStore
    from authsidecar.store.keys import Keys

    keys = Keys(session.settings.redis.prefix)
    store = DecisionStore(session.client, keys, budget_ms=BUDGET_MS)
    shown = await show(
        decision,
        client=session.client,
        keys=keys,
        rules=decided_by,
        store=store,
        registry=session.registry,
    )
    await store.close()
    if shown is None:
        raise RefusedError(not_kept(printable(decision)))
    if shown.now is None:
        raise RefusedError(
            f"the request of decision {decision} could not be read ({shown.receipt.code}), "
            "so it can't be judged again; `authsidecar decisions show` has what was kept"
        )
    text = f"{printable(what(shown.receipt))}\n{trace(shown.now)}\n{TAKEN_AS_RIGHT}"
    session.out.result({**as_data(shown.now), "secret": "taken as right"}, text)
    _refuse(shown.now)


def _refuse(found: "Explanation") -> None:
    """End with what refuses it, if anything does."""
    from authsidecar.admin.explain import HINTS, Result

    if isinstance(found.verdict, Deny):
        # A full counter can stand behind another failure, and decides then.
        why = [row.detail for row in found.rows if row.result is Result.FAIL][-1]
        hint = HINTS.get(found.verdict.reason.code)
        raise RefusedError(f"{found.status} {found.code}: {why}" + (f"; {hint}" if hint else ""))


def _header(text: str) -> tuple[bytes, bytes]:
    """A header of the command line as name and value; a token has no place there."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.BadParameter(f"{printable(text)!r} is not NAME:VALUE")
    if name.strip().lower() == "authorization":
        raise click.BadParameter("a token is never an argument: use --token-file")
    return name.strip().encode(), value.strip().encode("utf-8", "surrogateescape")


def _authorization(file: BinaryIO | None) -> list[bytes]:
    """The header that a client would send with this file's token; none without a file."""
    if file is None:
        return []
    with interruptible():
        token = file.read(LONGEST_TOKEN).strip()
    if not token:
        raise click.BadParameter("the file holds no token", param_hint="--token-file")
    return [token if token.lower().startswith(b"bearer ") else b"Bearer " + token]


def as_data(found: "Explanation") -> dict[str, Any]:
    """An explanation as --json shows it."""
    return {
        "outcome": "deny" if isinstance(found.verdict, Deny) else "allow",
        "status": found.status,
        "code": found.code,
        "checks": [
            {"name": row.name, "result": row.result, "detail": row.detail} for row in found.rows
        ],
    }


def trace(found: "Explanation") -> str:
    """An explanation for people: a line a check, then the answer."""
    terminal = is_terminal(sys.stdout)
    lines = []
    for row in found.rows:
        mark, colour = MARKS[row.result]
        shown = styled(mark.ljust(4), terminal, fg=colour)
        lines.append(f"  {shown}  {row.name:14}  {printable(row.detail)}")
    if isinstance(found.verdict, Deny):
        answer = styled(f"{found.status} {found.code}", terminal, fg="red", bold=True)
        lines.append(f"{answer}: {found.verdict.reason.message}")
    else:
        lines.append(styled("200 allowed", terminal, fg="green", bold=True))
    return "\n".join(lines)
