"""`routes list|match|diff|import`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from authsidecar.cli.completion import methods, templates
from authsidecar.cli.errors import RefusedError
from authsidecar.cli.options import Group, given
from authsidecar.cli.output import Output
from authsidecar.cli.session import load_settings
from authsidecar.cli.streams import write

if TYPE_CHECKING:
    from authsidecar.coolify.route_diff import RouteChange
    from authsidecar.coolify.route_import import Conditional
    from authsidecar.decision.routes import Route, RouteTable
    from authsidecar.decision.routes.loading import Row

_CONDITIONAL = click.option(
    "--conditional",
    type=click.Choice(["include", "leave-out"]),
    help="What becomes of routes inside an `if` of a routes/api.php; else the file is refused.",
)

_RELEASE = click.option(
    "--release", metavar="R", help="A Coolify release line; else the table that is configured."
)


@click.group(cls=Group)
def routes() -> None:
    """Show, compare and import route tables: which permission each route needs."""


@routes.command("list")
@_RELEASE
def list_(release: str | None) -> None:
    """List all rows in matching order; the first that matches a request decides.

    \b
    Examples:
      authsidecar routes list --release 4.3
      authsidecar routes list --json
    """
    items = [{"order": order, **_item(route)} for order, route in enumerate(_table(release), 1)]
    Output(given()).listing(("order", "method", "path", "needs"), items, empty="no rows")


@routes.command()
@click.argument("method", shell_complete=methods)
@click.argument("target", shell_complete=templates)
@_RELEASE
def match(method: str, target: str, release: str | None) -> None:
    """Say which row a request reaches and what it needs.

    The exit code is 1 if no row serves it: it would be refused whoever asks.

    \b
    Examples:
      authsidecar routes match GET /api/v1/teams/3
      authsidecar routes match POST '/api/v1/deploy?uuid=x' --release 4.1
    """
    from authsidecar.admin.explain import target_fault
    from authsidecar.decision.model import METHODS, Deny
    from authsidecar.decision.proxies.target import canonicalise

    if method not in METHODS:
        raise click.UsageError(f"{method!a} is not one of {', '.join(sorted(METHODS))}")
    raw = target.encode("utf-8", "surrogateescape")
    path = canonicalise(raw)
    if isinstance(path, Deny):
        raise RefusedError(f"{path.reason.status} {path.reason.code}: {target_fault(raw, path)}")
    route = _table(release).find(method, path)
    if route is None:
        raise RefusedError(f"no row for {method} {path}: 404 route_unknown")
    item = _item(route)
    text = f"{item['method']} {item['path']}: {item['needs']}"
    Output(given()).result(item, text, quiet=text)


@routes.command()
@click.argument("old")
@click.argument("new")
@_CONDITIONAL
def diff(old: str, new: str, conditional: "Conditional | None") -> None:
    """Compare two tables; say first what became weaker.

    Each is a release line, a table that `import` wrote, or a routes/api.php. The exit code is 1
    if anything became weaker (a lower permission, public now, a guard dropped), else 0. Hidden is a
    new route at /api/v1/whoami: the proxies' files show the sidecar's own answer there.

    \b
    Examples:
      authsidecar routes diff 4.1 4.3
      authsidecar routes diff 4.3 coolify/routes/api.php
    """
    from authsidecar.coolify.route_diff import compare

    found = compare(_rows(old, conditional), _rows(new, conditional))
    kinds = {
        "weaker": found.weaker,
        "stricter": found.stricter,
        "added": found.added,
        "removed": found.removed,
        "hidden": found.hidden,
    }
    data = {kind: [change._asdict() for change in changes] for kind, changes in kinds.items()}
    text = "\n".join(_describe(kind, changes) for kind, changes in kinds.items() if changes)
    weaker = _describe("weaker", found.weaker) if found.weaker else None
    Output(given()).result(data, text or "no difference", quiet=weaker)
    if found.weaker:
        raise RefusedError(f"{len(found.weaker)} weaker in {new} than in {old}")


@routes.command("import")
@click.argument("file")
@click.option(
    "--format",
    "form",
    type=click.Choice(["tsv", "extra"]),
    default="tsv",
    show_default=True,
    help="A table for `diff`, or rows for coolify.extra_routes.",
)
@click.option(
    "--base",
    default="4.3",
    show_default=True,
    metavar="R",
    help="The release (coolify.routes) that extra rows will stand in front of.",
)
@_CONDITIONAL
def import_(file: str, form: str, base: str, conditional: "Conditional | None") -> None:
    """Read Coolify's routes/api.php and write a route table to standard output.

    What cannot be read is said by line, and then nothing is written: the exit code is 1. The file
    holds no /mcp routes; with --format extra those of the base stay. What extra rows cannot say is
    listed, and stands in them as comments.

    \b
    Examples:
      authsidecar routes import coolify/routes/api.php > coolify.tsv
      authsidecar routes import - --format extra --base 4.3 < api.php > extra-routes.txt
    """
    from authsidecar.decision.routes import RouteError, coolify
    from authsidecar.decision.routes.loading import Extra, as_extra, tsv

    rows = _imported(_text(file), file, conditional)
    try:
        made = Extra(tsv(rows), ()) if form == "tsv" else as_extra(rows, coolify(base))
    except RouteError as error:
        raise RefusedError(str(error)) from None
    write(made.text, newline=False)
    output = Output(given())
    for line in made.left_out:
        output.warn(f"left out: {line}")
    output.note(f"{len(rows)} routes")


def _table(release: str | None) -> "RouteTable":
    """A release's table, or the one that the configuration makes."""
    from authsidecar.decision.routes import RouteError, coolify
    from authsidecar.run.errors import StartError
    from authsidecar.run.rules import routes

    try:
        return coolify(release) if release else routes(load_settings(given()))
    except (RouteError, StartError) as error:
        raise RefusedError(str(error)) from None


def _item(route: "Route") -> dict[str, object]:
    from authsidecar.decision.routes import Guard

    needs = {
        Guard.ORDINARY: " or ".join(route.sufficient),
        Guard.SWITCH: f"{route.permission}, instance team",
        Guard.MCP: "token, MCP switches",
        Guard.PUBLIC: f"nothing, limit {route.bucket}",
        Guard.WRONG_METHOD: "405, takes POST",
        Guard.CLOSED: "404, closed",
        Guard.ABSENT: "404, absent",
    }
    return {
        "method": route.method,
        "path": route.template,
        "guard": route.guard.value,
        "permission": ",".join(route.sufficient) or None,
        "needs": needs[route.guard],
    }


def _describe(kind: str, changes: tuple["RouteChange", ...]) -> str:
    lines = [f"  {change.method} {change.path}: {change.what}" for change in changes]
    return "\n".join([f"{kind}:", *lines])


def _rows(name: str, conditional: "Conditional | None") -> "tuple[Row, ...]":
    """A release line's rows, or a file's: a table or PHP."""
    from authsidecar.decision.routes import RELEASES, RouteError
    from authsidecar.decision.routes.loading import WITHIN, released, rows, serves

    if name in RELEASES:
        return released(name)
    if not Path(name).exists():
        use = f" ({serves(name)})" if name in WITHIN else ""
        raise RefusedError(f"{name} is no file, and no release line: {', '.join(RELEASES)}{use}")
    text = _text(name)
    try:
        if text.lstrip("\ufeff").startswith("<?"):
            return _imported(text, name, conditional)
        return rows(text)
    except RouteError as error:
        raise RefusedError(f"{name}: {error}") from None


def _imported(text: str, name: str, conditional: "Conditional | None") -> "tuple[Row, ...]":
    from authsidecar.coolify.route_import import read

    found = read(text, conditional)
    if found.problems:
        raise RefusedError(
            f"{name} cannot be read whole; nothing was guessed, nothing is written",
            *(f"{name}:{line}: {message}" for line, message in found.problems),
        )
    became = "included" if conditional == "include" else "left out"
    for within in found.conditional:
        Output(given()).note(
            f"{name}:{within.line}: {within.method} {within.path} is inside an `if`: {became}"
        )
    return found.rows


def _text(name: str) -> str:
    try:
        if name == "-":
            return sys.stdin.read()
        return Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"cannot read {name}: {error}") from None
