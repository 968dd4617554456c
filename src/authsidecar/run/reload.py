"""The configuration read again while a process runs: all of it, or nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from authsidecar.config import ConfigError, Settings, values_of, warnings
from authsidecar.observe.log import Log
from authsidecar.run.errors import StartError
from authsidecar.run.preconditions import problems
from authsidecar.run.terms import Terms, terms

Load = Callable[[], Settings]
"""Reads the configuration; may raise ConfigError."""

CHANGEABLE: Final[Mapping[str, tuple[str, ...]]] = {
    "trusted_peers": (),
    "trusted_hops": (),
    "coolify": (),
    "limits": (),
    "restrictions": (),
    "enforcement": (),
    "log": ("level", "decisions"),
    "mail": ("expiry_header_hours",),
    "redis": ("public_without_redis",),
}
"""What a reload changes: whole sections and settings, or these of a section's settings."""


@dataclass(frozen=True, slots=True)
class RunningConfig:
    """A configuration that requests are decided by.

    Attributes:
        settings: the configuration; what a reload left is as it was at the start.
        terms: what follows from it.
    """

    settings: Settings
    terms: Terms

    @classmethod
    def of(cls, settings: Settings) -> "RunningConfig":
        """The one that a process starts with.

        Raises:
            StartError: a file that it names cannot be used.
        """
        return cls(settings, terms(settings))


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A configuration that was read again.

    Attributes:
        config: what is to be in force now.
        changed: the settings that are another now.
        left: the settings that are another in the sources, and need a restart.
    """

    config: RunningConfig
    changed: tuple[str, ...]
    left: tuple[str, ...]


class ReloadError(Exception):
    """The configuration cannot be used, so nothing has changed.

    Attributes:
        problems: one line each.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def reload(load: Load, current: RunningConfig) -> Reloaded:
    """Read the configuration again; nothing is changed by this, whatever it finds.

    Args:
        load: reads it.
        current: what is in force.

    Raises:
        ReloadError: it cannot be used, or `serve` could not start with it.
    """
    try:
        wanted = load()
        if found := problems(wanted):
            raise ReloadError(*found)
        settings = _merged(current.settings, wanted)
        now = RunningConfig(settings, terms(settings))
    except ConfigError as error:
        raise ReloadError(*error.problems) from None
    except StartError as error:
        raise ReloadError(str(error)) from None
    except (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        # A file that nobody foresaw must not end a process that decides.
        raise ReloadError(f"the configuration can't be read ({type(error).__name__})") from None
    changed = _different(current.settings, settings)
    if now.terms.extra_routes != current.terms.extra_routes:
        changed = tuple(dict.fromkeys((*changed, "coolify.extra_routes")))
    return Reloaded(now, changed, _left(settings, wanted))


def reload_and_tell(load: Load, current: RunningConfig, log: Log) -> Reloaded:
    """The same, with a line in the log for each problem, or of what has changed.

    Raises:
        ReloadError: nothing may change.
    """
    try:
        reloaded = reload(load, current)
    except ReloadError as error:
        log_problems(error, log)
        raise
    config = reloaded.config
    for name in reloaded.left:
        log.event("warning", "setting_left", setting=name, hint="a restart changes it")
    for line in warnings(config.settings):
        log.event("warning", "unwise", setting=line)
    log.event(
        "info", "config_reloaded", config_digest=config.terms.digest, changed=list(reloaded.changed)
    )
    return reloaded


def log_problems(error: ReloadError, log: Log) -> None:
    """A line in the log for each reason why nothing has changed."""
    for problem in error.problems:
        log.event("error", "reload_refused", problem=problem)


def _merged(current: Settings, wanted: Settings) -> Settings:
    """What is in force, with all of what is wanted that can change."""
    update: dict[str, Any] = {}
    for name, fields in CHANGEABLE.items():
        new = getattr(wanted, name)
        if fields:
            new = getattr(current, name).model_copy(
                update={field: getattr(new, field) for field in fields}
            )
        update[name] = new
    return current.model_copy(update=update)


def _left(settings: Settings, wanted: Settings) -> tuple[str, ...]:
    """What is still not as it is wanted; a secret that is read again by itself is."""
    again = {".".join(path) for path in wanted.files if path[0] == "redis"}
    return tuple(name for name in _different(settings, wanted) if name not in again)


def _different(old: Settings, new: Settings) -> tuple[str, ...]:
    before, after = values_of(old), values_of(new)
    return tuple(name for name, value in after.items() if before[name] != value)
