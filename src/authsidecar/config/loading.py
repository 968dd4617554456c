"""From the file and the environment to Settings, or to every problem at once."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from authsidecar.config.catalogue import SETTINGS, Path, Setting, under
from authsidecar.config.sections import Coolify, Settings, default_data_dir
from authsidecar.config.sources import (
    CONFIG_VARIABLE,
    Given,
    Layer,
    environment_layers,
    file_layer,
    null,
    one_line,
    quote,
    value_in,
)

DEFAULT_FILE: Final = "/etc/authsidecar/config.yaml"

DEFAULTS_ORIGIN: Final = "default"
"""The origin of a value that nobody gave."""


class ConfigError(Exception):
    """The configuration can't be used.

    Attributes:
        problems: one line each: where, which setting, what is wrong, what is allowed.
        coolify: the section that names the routes, if that much can be read.
    """

    def __init__(self, problems: tuple[str, ...], coolify: Coolify | None = None) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.coolify = coolify


def load(path: str | None, environ: Mapping[str, str]) -> Settings:
    """Read the whole configuration; the environment wins over the file.

    Args:
        path: the file of `--config`; None: AUTHSIDECAR_CONFIG, else the default file if any.
        environ: the environment variables.

    Raises:
        ConfigError: something is wrong; it names every problem that was found.
    """
    weakest, environment = environment_layers(environ)
    layers = (weakest, _file(path, environ), environment)
    given = _merge(layers)
    values = _nest(given)
    if values.get("data_dir") is None:
        values["data_dir"] = default_data_dir(environ)
    problems = [
        problem for layer in (layers[1], environment, weakest) for problem in layer.problems
    ]
    try:
        settings = Settings(**values)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        # A source that is already refused as a whole is not refused twice.
        found = [_problem(detail, given) for detail in details]
        problems += [line for line in found if not _is_reported(line, problems)]
        raise ConfigError(tuple(problems), _coolify(values)) from None
    if problems:
        raise ConfigError(tuple(problems), settings.coolify)
    settings.keep_files({path: one.file for path, one in given.items() if one.file is not None})
    return settings


def load_again(path: str | None, environ: Mapping[str, str]) -> Settings:
    """Read the whole configuration again, from a file that was there before.

    A file that is gone, or empty, would say that every setting has its default: it is being
    written, or was lost. What is no regular file, a pipe say, gives its text only once.

    Args:
        path: as `load` has it.
        environ: the environment variables.

    Raises:
        ConfigError: something is wrong; nothing of it may be used.
    """
    name = path if path is not None else environ.get(CONFIG_VARIABLE, DEFAULT_FILE)
    file = FilePath(name)
    problem = None
    if not file.exists():
        problem = "is gone"
    elif not file.is_file():
        problem = "is no regular file, so it can't be read again"
    elif not file.stat().st_size:
        problem = "is empty"
    if problem is not None:
        raise ConfigError((f"{one_line(name) or quote(name)}: {problem}",))
    return load(path, environ)


def has_file(path: str | None, environ: Mapping[str, str]) -> bool:
    """Whether the configuration is from a file, and not from the environment alone."""
    return path is not None or CONFIG_VARIABLE in environ or FilePath(DEFAULT_FILE).exists()


def reread(settings: Settings) -> Settings:
    """The same settings, with what the files of `_FILE` variables hold now.

    A secret that is rotated is written into its file while the process runs. What can't be read
    or used now stays as it was.
    """
    for path, file in settings.files.items():
        with suppress(OSError, ValueError):  # pydantic's own error is a ValueError
            settings = _replaced(settings, path, null(SETTINGS[path], value_in(file)))
    return settings


def _replaced(settings: Settings, path: Path, value: str | None) -> Settings:
    """The same with another value; only what stands right in a section, as all secrets do."""
    name, *inner = path
    section = getattr(settings, name)
    if len(inner) != 1:
        return settings
    values = {field: getattr(section, field) for field in type(section).model_fields}
    renewed = type(section).model_validate({**values, inner[0]: value})
    return settings.model_copy(update={name: renewed})


def _coolify(values: Mapping[str, Any]) -> Coolify | None:
    try:
        return Coolify.model_validate(values.get("coolify", {}))
    except ValidationError:
        return None


def _is_reported(line: str, problems: list[str]) -> bool:
    origin_and_key = ": ".join(line.split(": ", 2)[:2])
    return any(problem.startswith(f"{origin_and_key}: ") for problem in problems)


def _file(path: str | None, environ: Mapping[str, str]) -> Layer:
    """Read the chosen file; only the default one may be missing."""
    if path is not None:
        return _read(path, "")
    if CONFIG_VARIABLE in environ:
        return _read(environ[CONFIG_VARIABLE], f"{CONFIG_VARIABLE}: ")
    return _read(DEFAULT_FILE, None)


def _read(path: str, blame: str | None) -> Layer:
    try:
        return file_layer(one_line(path), FilePath(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        if blame is None:
            return Layer()
        return _unreadable(path, blame, error)
    except (OSError, ValueError) as error:
        return _unreadable(path, blame or "", error)


def _unreadable(path: str, blame: str, error: OSError | ValueError) -> Layer:
    why = error.strerror if isinstance(error, OSError) else "not a path"
    where = f"{blame}{one_line(path) or quote(path)}"
    return Layer(
        problems=[f"{where}: can't be read ({why}); allowed: the path of a readable YAML file"]
    )


def _merge(layers: tuple[Layer, ...]) -> dict[Path, Given]:
    """Lay the sources over the default buckets, so that half a bucket keeps its other half."""
    merged: dict[Path, Given] = {
        path: Given(str(setting.default), DEFAULTS_ORIGIN)
        for path, setting in SETTINGS.items()
        if path[:-1] in SETTINGS and setting.default is not None and _is_on(path[:-1])
    }
    for layer in layers:
        for path, given in layer.given.items():
            for other in [old for old in merged if under(old, path) or under(path, old)]:
                del merged[other]
            merged[path] = given
    return merged


def _is_on(bucket: Path) -> bool:
    return SETTINGS[bucket].default is not None


def _nest(given: Mapping[Path, Given]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, one in given.items():
        here = nested
        for name in path[:-1]:
            here = here.setdefault(name, {})
        here[path[-1]] = one.value
    return nested


def _problem(detail: ErrorDetails, given: Mapping[Path, Given]) -> str:
    """Say one of pydantic's complaints in our words, with the origin of the value."""
    context = detail.get("ctx", {})
    if detail["type"] == "contradiction":
        path = tuple(str(context["key"]).split("."))
        return f"{_origin(path, given)}: {detail['msg']}"
    path = tuple(part for part in detail["loc"] if isinstance(part, str))
    item = next((part for part in detail["loc"] if isinstance(part, int)), None)
    setting = SETTINGS[path]
    what = _what(detail, setting, given.get(path), item)
    return f"{_origin(path, given, item)}: {setting.key}: {what}; allowed: {setting.allowed}"


def _what(detail: ErrorDetails, setting: Setting, given: Given | None, item: int | None) -> str:
    reason = str(detail.get("ctx", {}).get("error", ""))
    if detail["type"] == "missing" or given is None:
        return "is missing"
    if setting.private:
        return reason or "is refused (its value is not shown)"
    value = given.value
    if item is not None and isinstance(value, tuple):
        value = value[item]
    text = (
        "null" if value is None else quote(", ".join(value) if isinstance(value, tuple) else value)
    )
    return f"got {text}" + (f", which {reason}" if reason else "")


def _origin(path: Path, given: Mapping[Path, Given], item: int | None = None) -> str:
    """Find who gave a value, or else something in the same section."""
    exact = given.get(path)
    if exact is not None:
        return exact.item_origins[item] if item is not None else exact.origin
    near = [one.origin for other, one in given.items() if under(other, path[:-1])]
    return next((origin for origin in near if origin != DEFAULTS_ORIGIN), DEFAULTS_ORIGIN)
