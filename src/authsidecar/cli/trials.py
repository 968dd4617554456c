"""What commands say of settings that somebody has yet to confirm."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import click

from authsidecar.cli.options import DURATION
from authsidecar.times import rfc3339

if TYPE_CHECKING:
    from authsidecar.store.trials import Trial

CONFIRM_WITHIN: Final = click.option(
    "--confirm-within",
    type=DURATION,
    metavar="TIME",
    help="Take it back after this time (120s, 5m) unless it is confirmed.",
)


def until(trial: "Trial | None") -> Mapping[str, str]:
    """For --json: when a setting is as it was before; nothing if it stays."""
    return {} if trial is None else {"confirm_by": rfc3339(trial.until)}


def until_text(trial: "Trial | None", group: str) -> str:
    """The same for people; it follows what the setting is."""
    if trial is None:
        return ""
    return f", until {rfc3339(trial.until)} unless `authsidecar {group} confirm` comes before"
