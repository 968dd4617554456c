"""Options that every command knows, before and after its name; and what ids and names look like."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import click
from click.shell_completion import CompletionItem

from authsidecar import __version__
from authsidecar.cli.streams import write
from authsidecar.decision.addresses import parse_address
from authsidecar.decision.credentials import LARGEST_ID
from authsidecar.decision.model import Address

Noun = Literal["team", "token", "user"]
"""What has ids."""


@dataclass(slots=True)
class Options:
    """The global options; the last word wins.

    Attributes:
        config: the configuration file, or None.
        json: one JSON object on standard output, for scripts.
        quiet: results only, without notes and warnings.
    """

    config: str | None = None
    json: bool = False
    quiet: bool = False


def given() -> Options:
    """The global options of the command that runs."""
    return click.get_current_context().find_root().ensure_object(Options)


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value and parameter.name is not None:
        setattr(context.find_root().ensure_object(Options), parameter.name, value)


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        write(f"authsidecar {__version__}")
        context.exit()


def _global_options() -> list[click.Parameter]:
    def option(name: str, help_text: str, **more: Any) -> click.Option:
        return click.Option([name], expose_value=False, help=help_text, **more)

    return [
        option(
            "--config",
            "Configuration file (YAML).",
            metavar="FILE",
            type=click.Path(),  # for shells, which complete files
            callback=_remember,
        ),
        option("--json", "One JSON object on standard output.", is_flag=True, callback=_remember),
        option("--quiet", "Results only, no notes.", is_flag=True, callback=_remember),
        option("--version", "Show the version.", is_flag=True, is_eager=True, callback=_version),
    ]


def _help(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        write(context.get_help())
        context.exit()


def _written(option: click.Option | None) -> click.Option | None:
    """The help option, writing as everything else is written."""
    if option is not None:
        option.callback = _help
    return option


_DURATION: Final = re.compile(r"([0-9]{1,8})([smhd]?)")
_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

LONGEST_MS: Final = 86_400_000
"""The longest time that may be given, in milliseconds."""


class Command(click.Command):
    """A command that takes the global options as well as its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Add the global options after the command's own."""
        super().__init__(*args, **kwargs)
        self.params += _global_options()

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """The option that shows the help."""
        return _written(super().get_help_option(ctx))


class Group(click.Group):
    """A group that takes the global options, and whose commands do."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Add the global options after the group's own."""
        super().__init__(*args, **kwargs)
        self.params += _global_options()

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """The option that shows the help."""
        return _written(super().get_help_option(ctx))


class AddressType(click.ParamType[Address]):
    """An IP address."""

    name = "address"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        """Parse it, or fail as a usage error."""
        address = parse_address(str(value))
        if address is None:
            raise click.BadParameter(
                f"{value!a} is not an IP address (no port, no network, no name)", ctx, param
            )
        return address


class IdType(click.ParamType[int]):
    """An id: a plain decimal number."""

    name = "id"

    def __init__(self, least: int, noun: Noun | None = None) -> None:
        """Nothing is parsed yet.

        Args:
            least: the smallest id that there can be.
            noun: whose ids a shell completes; None: nobody's, it is a new one.
        """
        self._least = least
        self._noun = noun

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """The ids that begin so, with their names; none where Redis is away."""
        if self._noun is None:
            return []
        from authsidecar.cli.completion import ids

        return ids(ctx, self._noun, incomplete)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse it, or fail as a usage error."""
        text = str(value)
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
        if not self._least <= number <= LARGEST_ID:
            raise click.BadParameter(
                f"{value!a} is not a whole number from {self._least} to {LARGEST_ID}", ctx, param
            )
        return number


class NamedType(click.ParamType[Any]):
    """One of a few names; a wrong one is answered with the nearest right one."""

    def __init__(self, noun: str, names: tuple[str, ...], make: Callable[[str], Any] = str) -> None:
        """Nothing is parsed yet.

        Args:
            noun: what the names name, with its article: "a permission".
            names: all that are accepted.
            make: turns an accepted name into its value.
        """
        self.name = noun.rpartition(" ")[2]
        self._noun = noun
        self._names = names
        self._make = make

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """The names that begin so."""
        return [CompletionItem(name) for name in self._names if name.startswith(incomplete)]

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """Show the names in the usage, if they are few."""
        return "|".join(self._names)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Take an exact name, or fail as a usage error."""
        if value in self._names:
            return self._make(value)
        near = difflib.get_close_matches(str(value), self._names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ";"
        names = ", ".join(self._names)
        raise click.BadParameter(f"{value!a} is not {self._noun}{hint} One of: {names}", ctx, param)


class DurationType(click.ParamType[int]):
    """A time from one second to one day, in milliseconds: 120, 120s, 2m, 1h."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse it, or fail as a usage error."""
        found = _DURATION.fullmatch(str(value))
        milliseconds = int(found[1]) * _UNITS_MS[found[2] or "s"] if found else 0
        if not 1000 <= milliseconds <= LONGEST_MS:
            raise click.BadParameter(
                f"{value!a} is not a time from 1s to 1d, such as 120s or 5m", ctx, param
            )
        return milliseconds


class SpanType(click.ParamType[int]):
    """A span of time, in milliseconds."""

    name = "time"

    _UNITS: ClassVar = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a number with its unit, or fail as a usage error."""
        text = str(value)
        number, unit = text[:-1], text[-1:]
        if not (number.isascii() and number.isdigit() and len(number) < 6) or (
            unit not in self._UNITS or not int(number)
        ):
            raise click.BadParameter(
                f"{value!a} is not a number with s, m, h or d, such as 24h", ctx, param
            )
        return int(number) * self._UNITS[unit]


ADDRESS: Final = AddressType()

DURATION: Final = DurationType()
SPAN: Final = SpanType()
"""Such as 24h."""

NEW_ID: Final = IdType(0)
"""The id of a user or team to be; Coolify's first of both is 0."""

USER_ID: Final = IdType(0, "user")
TEAM_ID: Final = IdType(0, "team")
TOKEN_ID: Final = IdType(1, "token")
