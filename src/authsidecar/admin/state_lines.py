"""The lines of a state file, both ways."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from authsidecar.store.kinds import KeyKind, Type, kind_of
from authsidecar.times import UnixMs

FORMAT: Final = 1
"""The number of this way to write it down; the schema is that of the state itself."""

LONGEST_LINE: Final = 8 * 1024 * 1024
"""Bytes of the longest line that is read."""

HEAD: Final = "authsidecar_state"
END: Final = "end"

_WORDS: Final[Mapping[Type, str]] = {
    "hash": "hash",
    "fields": "hash",
    "string": "string",
    "list": "list",
    "stream": "stream",
}


class StateLineError(ValueError):
    """A line is not what it should be; says what is wrong with it, without repeating it."""


class UnknownKeyError(ValueError):
    """A line is of a key that this release does not know; says its name."""


@dataclass(frozen=True, slots=True)
class Line:
    """One key, or some of its fields or entries.

    Attributes:
        name: the key without its prefix.
        kind: what it is for.
        value: a mapping of texts for a hash, a text, a list of texts, or pairs of an id and a
            mapping for a stream.
        expires_at: when Redis removes it, or None.
        first: whether it begins the key's list or stream.
    """

    name: str
    kind: KeyKind
    value: Any
    expires_at: UnixMs | None = None
    first: bool = True

    def written(self) -> str:
        """The text that `parse` reads."""
        data = {"key": self.name, _WORDS[self.kind.type]: _plain(self.value)}
        if self.expires_at is not None:
            data["expires_at"] = self.expires_at
        if not self.first:
            data["first"] = False
        return json.dumps(data, separators=(",", ":"))


def parse(line: bytes) -> Mapping[str, Any]:
    """The object that a line is.

    Raises:
        StateLineError: it is none.
    """
    if len(line) > LONGEST_LINE:
        raise StateLineError(f"is longer than {LONGEST_LINE} bytes")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise StateLineError("is no JSON object") from None
    if not isinstance(found, dict):
        raise StateLineError("is no JSON object")
    return found


def read(data: Mapping[str, Any]) -> Line:
    """The line that an object says.

    Raises:
        StateLineError: it says none.
        UnknownKeyError: its key is not known.
    """
    name = data.get("key")
    if not isinstance(name, str):
        raise StateLineError("has no key")
    kind = kind_of(name)
    if kind is None or kind.role not in {"state", "counter"}:
        raise UnknownKeyError(ascii(name[:100]))
    word = _WORDS[kind.type]
    if word not in data:
        raise StateLineError(f"has no {word}")
    expires_at = data.get("expires_at")
    if expires_at is not None and (type(expires_at) is not int or expires_at < 0):
        raise StateLineError("has an expires_at that is no time in milliseconds")
    value = _VALUES[word](data[word])
    until = None if expires_at is None else UnixMs(expires_at)
    return Line(name, kind, value, until, data.get("first", True) is not False)


def _plain(value: Any) -> Any:
    """A value as JSON: bytes that are no UTF-8 as an object with their hexadecimal digits."""
    match value:
        case bytes():
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError:
                return {"hex": value.hex()}
        case dict():
            return {_key(name): _plain(one) for name, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case _:
            return value


def _key(name: Any) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, dict) and value.keys() == {"hex"} and isinstance(value["hex"], str):
        try:
            return bytes.fromhex(value["hex"])
        except ValueError:
            pass
    raise StateLineError("has a value that is neither text nor hex")


def _hash(value: Any) -> dict[bytes, bytes]:
    if not isinstance(value, dict) or not value:
        raise StateLineError("has a hash without fields")
    return {_bytes(name): _bytes(one) for name, one in value.items()}


def _list(value: Any) -> list[bytes]:
    if not isinstance(value, list) or not value:
        raise StateLineError("has a list without entries")
    return [_bytes(one) for one in value]


def _stream(value: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    if not isinstance(value, list) or not value:
        raise StateLineError("has a stream without entries")
    try:
        return [(_bytes(number), _hash(entry)) for number, entry in value]
    except (TypeError, ValueError):
        raise StateLineError("has an entry that is no pair of an id and fields") from None


_VALUES: Final = {"hash": _hash, "string": _bytes, "list": _list, "stream": _stream}
