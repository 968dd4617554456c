"""Every setting by its path, read off the model, so that no second list can disagree with it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from authsidecar.config.buckets import Bucket
from authsidecar.config.section import Section
from authsidecar.config.sections import Settings
from authsidecar.config.values import Allowed

Path = tuple[str, ...]
"""Where a setting is: ("limits", "user", "limit")."""

PREFIX: Final = "AUTHSIDECAR_"


Kind = Literal["text", "secret", "choice", "list", "boolean", "integer", "number", "bucket"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as its readers and its documentation need it.

    Attributes:
        path: at most three names; dotted it is the `key`.
        description: one sentence, with the unit.
        allowed: what may be given, in words.
        kind: its type; a bucket is null, a plain number, or a mapping.
        default: the value without configuration; None for null.
        nullable: whether it may be null.
        private: whether its value may hold a secret.
    """

    path: Path
    description: str
    allowed: str
    kind: Kind
    default: Any
    nullable: bool
    private: bool

    @property
    def key(self) -> str:
        """The dotted name, as messages and documentation show it."""
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + "__".join(self.path).upper()


def _settings(model: type[BaseModel], path: Path = (), group: Any = None) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        here = (*path, name)
        default = getattr(group, name, field.get_default())
        inner = _section(field)
        if inner is None or inner is Bucket:
            yield _setting(here, field, default)
        if inner is not None:
            yield from _settings(inner, here, default)


def _section(field: FieldInfo) -> type[Section] | None:
    """Find the model behind a section or a bucket."""
    for part in _parts(field.annotation):
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None


def _parts(annotation: Any) -> tuple[Any, ...]:
    """List an annotation and, through unions and Annotated, all that it is made of."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return tuple(deep for part in get_args(annotation) for deep in _parts(part))
    return (annotation,)


def _setting(path: Path, field: FieldInfo, default: Any) -> Setting:
    parts = (*_parts(field.annotation), *field.metadata)
    said = next((part for part in parts if isinstance(part, Allowed)), Allowed(""))
    kind, words = _words(parts)
    nullable = NoneType in parts or said.nullable
    return Setting(
        path=path,
        description=field.description or "",
        allowed=(said.text or words) + (", or null" if nullable else ""),
        kind=kind,
        default=None if default is PydanticUndefined else default,
        nullable=nullable,
        private=said.private,
    )


def _words(parts: tuple[Any, ...]) -> tuple[Kind, str]:
    """Name the type of a setting and, where the type itself says it, what is allowed."""
    choices = next((get_args(part) for part in parts if get_origin(part) is Literal), ())
    if Bucket in parts:
        return "bucket", "a whole number from 1 to 100000, or limit and window_seconds"
    if choices:
        return "choice", "one of " + ", ".join(choices)
    if bool in parts:
        return "boolean", "true or false"
    if int in parts or float in parts:
        low = next(part.ge for part in parts if hasattr(part, "ge"))
        high = next(part.le for part in parts if hasattr(part, "le"))
        kind: Kind = "integer" if int in parts else "number"
        return kind, f"a {'whole ' if int in parts else ''}number from {low} to {high}"
    if any(get_origin(part) is tuple for part in parts):
        return "list", ""
    return ("secret" if SecretStr in parts else "text"), ""


SETTINGS: Final[Mapping[Path, Setting]] = MappingProxyType(
    {setting.path: setting for setting in _settings(Settings)}
)
"""Every setting, in the order of the documentation."""

SECTIONS: Final[frozenset[Path]] = frozenset(
    path[:end] for path in SETTINGS for end in range(len(path))
)
"""Every path that holds settings, the empty one included."""


def values_of(settings: Settings, *, private: bool = True) -> dict[str, Any]:
    """The value of every setting by its key; a bucket is one value.

    Args:
        settings: the configuration.
        private: with those that may hold a secret.
    """
    return {
        setting.key: reduce(getattr, path, settings)
        for path, setting in SETTINGS.items()
        if path[:-1] not in SETTINGS and (private or not setting.private)
    }


def under(path: Path, ancestor: Path) -> bool:
    """Tell whether a path stands somewhere below another."""
    return len(path) > len(ancestor) and path[: len(ancestor)] == ancestor


def children(path: Path) -> tuple[str, ...]:
    """List the names that may stand right under a path, in order."""
    return tuple(dict.fromkeys(other[len(path)] for other in SETTINGS if under(other, path)))
