"""`completion`, and what a shell completes: ids from Redis, routes from the configured table.

A shell asks at a keystroke: whatever is missing, slow or misconfigured completes nothing, and
nothing is started or written for it.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, assert_never

import click
from click.shell_completion import CompletionItem, get_completion_class

from authsidecar.cli.options import Command, Noun, Options
from authsidecar.cli.output import printable
from authsidecar.cli.session import load_settings
from authsidecar.cli.streams import write
from authsidecar.decision.model import METHODS

if TYPE_CHECKING:
    from authsidecar.config import Settings
    from authsidecar.store.registry import Registry

Id = TypeVar("Id", bound=int)

PATIENCE_S: Final = 0.5
"""How long Redis is asked for ids, in seconds; what came by then is shown."""

MOST: Final = 500
"""How many ids are shown at most: nobody reads more."""


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Write the script that has a shell complete commands, options, ids and routes.

    Ids of tokens, teams and users come from the Redis of the configuration, if it answers at once;
    routes from the configured table.

    \b
    Examples:
      source <(authsidecar completion bash)
      authsidecar completion zsh > ~/.zfunc/_authsidecar
      authsidecar completion fish > ~/.config/fish/completions/authsidecar.fish
    """
    kind = get_completion_class(shell)
    if kind is not None:
        root = click.get_current_context().find_root().command
        write(kind(root, {}, "authsidecar", "_AUTHSIDECAR_COMPLETE").source(), newline=False)


def methods(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """The methods that begin so."""
    return sorted(method for method in METHODS if method.startswith(incomplete.upper()))


def templates(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The paths of the configured table that take the method before, and begin so."""
    from authsidecar.decision.routes import coolify, extra

    with contextlib.suppress(Exception):  # a half-typed line is no place to say what is wrong
        section = _settings(context).coolify
        table = coolify(section.routes)
        if section.extra_routes:
            table = extra(Path(section.extra_routes).read_text("utf-8"), table)
        method = str(context.params.get("method")).upper().replace("HEAD", "GET")
        paths = {route.template for route in table if route.method == method}
        return sorted(path for path in paths if path.startswith(incomplete))
    return []


def ids(context: click.Context, noun: Noun, incomplete: str) -> list[CompletionItem[str]]:
    """The ids that begin so, in their order, with their names; none where Redis is away."""
    import asyncio

    found: dict[int, str] = {}
    with contextlib.suppress(Exception):
        asyncio.run(_look(_settings(context), noun, incomplete, found))
    return [CompletionItem(str(number), help=name) for number, name in sorted(found.items())]


def _settings(context: click.Context) -> "Settings":
    options = context.find_root().ensure_object(Options)
    config = options.config and os.path.expanduser(options.config)  # noqa: PTH111  # as typed
    return load_settings(Options(config=config))


async def _look(settings: "Settings", noun: Noun, incomplete: str, found: dict[int, str]) -> None:
    """Find ids until there are enough; a Redis that is embedded is not started for it.

    Args:
        settings: which Redis.
        noun: whose ids.
        incomplete: how they begin.
        found: gets each with its name.
    """
    import asyncio

    from authsidecar.run.redis import connection
    from authsidecar.store.connect import EMBEDDED, connected
    from authsidecar.store.keys import Keys
    from authsidecar.store.registry import Registry

    how = replace(connection(settings), timeout_s=PATIENCE_S)
    if how.url == EMBEDDED:
        how = replace(how, url=f"unix://{how.data_dir.absolute() / 'redis.sock'}")
    async with asyncio.timeout(PATIENCE_S), connected(how) as client:
        registry = Registry(client, Keys(settings.redis.prefix))
        async for number, name in _named(registry, noun, incomplete):
            found[number] = printable(name)
            if len(found) == MOST:
                break


async def _named(
    registry: "Registry", noun: Noun, incomplete: str
) -> AsyncIterator[tuple[int, str]]:
    """The ids that begin so, with their names."""

    def near(numbers: list[Id]) -> list[Id]:
        return [number for number in numbers if str(number).startswith(incomplete)][:MOST]

    match noun:
        case "team":
            for team in await registry.teams_of(near(await registry.team_ids())):
                yield team.id, team.name
        case "user":
            for user in await registry.users_of(near(await registry.user_ids())):
                yield user.id, user.name
        case "token":
            for owner in await registry.user_ids():
                for token in await registry.tokens_of(near(await registry.token_ids_of(owner))):
                    yield token.id, token.name
        case _:
            assert_never(noun)
