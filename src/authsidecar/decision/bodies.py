"""What a body says that a proxy shows: its keys, as PHP and Laravel read them.

Nothing is guessed. A body that has two readings, or one that can't be told, has a fault and no
keys. Faults are fixed sentences: nothing of a body is ever repeated.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

LONGEST: Final = 65_536
"""Bytes of the longest body that is looked at."""

DEEPEST: Final = 16
"""How deep a body may be nested; PHP reads JSON to 512, forms to 64."""

MOST_KEYS: Final = 1000
"""How many variables PHP takes from a form (max_input_vars)."""

TOO_LONG: Final = f"the body is longer than {LONGEST} bytes"
NOT_WHOLE: Final = "the body has not arrived whole"
NOT_SHOWN: Final = (
    "no body is shown: it is too long, or the proxy shows none; without a body, leave out the "
    "Content-Type"
)
CUT_OFF: Final = "the proxy has not shown the whole body"

# One way to write each: a type in which both PHP and Laravel find what they look for is neither.
_JSON: Final = re.compile(rb"(?i)[a-z0-9!#$&^_.-]+/(?:[a-z0-9!#$&^_.-]+\+)?json")
_FORM: Final = re.compile(rb"(?i)application/x-www-form-urlencoded")
_CHARSET: Final = re.compile(rb'(?i)[ \t]*;[ \t]*charset="?utf-?8"?[ \t]*\Z')
_LONGEST_TYPE: Final = 100
_FORM_KEY: Final = re.compile(r"([A-Za-z0-9_-]+)((?:\[[A-Za-z0-9_-]*\])*)")


class Body(NamedTuple):
    """What a body gives to the request's input.

    Attributes:
        pairs: the keys of its outermost level, and what they say; None: null, which says nothing;
            anything else than text is no text.
        inner: all keys within those.
        fault: why it can't be told what it says, or None.
    """

    pairs: tuple[tuple[str, object], ...] = ()
    inner: frozenset[str] = frozenset()
    fault: str | None = None


class _FaultError(ValueError):
    """Why a body can't be read, in words that hold nothing of it."""


def read(content_types: list[bytes], data: bytes) -> Body:
    """What a whole body says.

    Args:
        content_types: of the request.
        data: the body.

    >>> read([b"application/json"], b'{"uuid": "a"}').pairs
    (('uuid', 'a'),)
    >>> read([b"application/x-www-form-urlencoded"], b"u%75id=a&x[y]=b").pairs
    (('uuid', 'a'), ('x', {'y': 'b'}))
    >>> read([b"application/json"], b'{"uuid": "a", "uuid": "b"}').fault
    'the body has a key twice'
    """
    try:
        return _read(content_types, data)
    except _FaultError as fault:
        return Body(fault=str(fault))


def _read(content_types: list[bytes], data: bytes) -> Body:
    if len(content_types) != 1:
        raise _FaultError("there is more than one Content-Type")
    if len(data) > LONGEST:
        raise _FaultError(TOO_LONG)
    kind = content_types[0] if len(content_types[0]) <= _LONGEST_TYPE else b""
    kind = _CHARSET.sub(b"", kind)
    if _JSON.fullmatch(kind):
        said = _json(_text(data))
    elif _FORM.fullmatch(kind):
        said = _form(data)
    else:
        raise _FaultError("the body is neither plain JSON nor a plain urlencoded form")
    for key in said:
        _proper(key)
    inner = frozenset(key for value in said.values() for key in _inner(value, 1))
    return Body(tuple(said.items()), inner)


def _text(data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise _FaultError("the body is not UTF-8") from None
    if "\0" in text:
        raise _FaultError("the body holds a NUL")
    return text


def _json(text: str) -> dict[str, object]:
    """An object; PHP makes an empty input of what is no JSON, and numbers keys of a list."""
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except _FaultError:
        raise
    except (ValueError, RecursionError):
        raise _FaultError("the body is no JSON") from None
    if not isinstance(document, dict):
        raise _FaultError("the body is no JSON object")
    return document


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _FaultError("the body has a key twice")
    return found


def _no_constant(_: str) -> object:
    raise _FaultError("the body is no JSON")


def _form(data: bytes) -> dict[str, object]:
    """The variables of a form; an array is a dictionary, whatever its keys."""
    found: dict[str, Any] = {}
    parts = [part for part in data.split(b"&") if part]
    if len(parts) > MOST_KEYS:
        raise _FaultError(f"the body has more than {MOST_KEYS} keys")
    for part in parts:
        raw, _, value = part.partition(b"=")
        spelled = _FORM_KEY.fullmatch(_decoded(raw))
        if spelled is None:
            raise _FaultError("the body has a key that PHP may read as another one")
        name, text = spelled[1], _decoded(value)
        if spelled[2]:
            array = found.setdefault(name, {})
            if not isinstance(array, dict):
                raise _FaultError("the body has a key twice")
            array.update(_nested(spelled[2][1:-1].split("]["), text))
        elif name in found:
            raise _FaultError("the body has a key twice")
        else:
            found[name] = text
    return found


def _nested(indices: list[str], text: str) -> dict[str, object]:
    if len(indices) > DEEPEST:
        raise _FaultError(f"the body is nested deeper than {DEEPEST}")
    return dict.fromkeys(indices, text)


def _decoded(text: bytes) -> str:
    return _text(unquote_to_bytes(text.replace(b"+", b" ")))


def _inner(value: object, depth: int) -> Iterator[str]:
    """All keys within a value; it also looks whether all text is text that PHP can have."""
    if depth > DEEPEST:
        raise _FaultError(f"the body is nested deeper than {DEEPEST}")
    if isinstance(value, dict):
        for key, one in value.items():
            _proper(key)
            yield key
            yield from _inner(one, depth + 1)
    elif isinstance(value, list):
        for one in value:
            yield from _inner(one, depth + 1)
    elif isinstance(value, str):
        _proper(value)


def _proper(text: str) -> None:
    r"""Refuse half of a surrogate pair: PHP reads no JSON with one."""
    if not text.isascii() and any("\ud800" <= one <= "\udfff" for one in text):
        raise _FaultError("the body is not UTF-8")
