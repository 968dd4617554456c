"""What the file and the environment say, as text with its origin; nothing is judged here but form.

A file's numbers and booleans are read as they are written: `routes: 4.0`, `unix_socket_mode: 0660`
and the environment's `4.0` and `0660` mean the same.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Final

import yaml

from authsidecar.config.catalogue import (
    PREFIX,
    SECTIONS,
    SETTINGS,
    Path,
    Setting,
    children,
    under,
)

CONFIG_VARIABLE: Final = PREFIX + "CONFIG"
RATE_LIMIT_VARIABLE: Final = "API_RATE_LIMIT"
_RATE_LIMIT: Final = ("limits", "user", "limit")

_CLUSTER_SERVICE: Final = re.compile(
    r"AUTHSIDECAR_([A-Z0-9]+_)*"
    r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PORT|PROTO|ADDR))?)"
)
"""What Kubernetes sets in every pod beside a Service of our name; nobody's mistake."""


@dataclass(frozen=True, slots=True)
class Given:
    """One value as somebody wrote it.

    Attributes:
        value: a text, several for a list, or None for null.
        origin: "FILE:LINE" or a variable's name.
        item_origins: the same for each item of a list.
        file: the path of the file that holds the value alone, if it came from one.
    """

    value: str | tuple[str, ...] | None = field(repr=False)
    origin: str
    item_origins: tuple[str, ...] = ()
    file: str | None = None


@dataclass(slots=True)
class Layer:
    """What one source says, and everything that is wrong with how it says it."""

    given: dict[Path, Given] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, setting: Setting, given: Given) -> None:
        """Note a value under its setting, once; a bucket's plain number is its limit."""
        path = setting.path
        if setting.kind == "bucket" and given.value is not None:
            path = (*path, "limit")
        twice = [old for at, old in self.given.items() if at == path or under(path, at)]
        if twice:
            self.problems.append(
                f"{given.origin}: {setting.key}: is set twice, by {twice[0].origin} as well; "
                "allowed: one of the two"
            )
        self.given[path] = given


def one_line(text: str) -> str:
    """Escape whatever would leave the line or hide on it."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def quote(text: str) -> str:
    """Quote a text of anybody's on one line, shortened."""
    return f'"{one_line(text if len(text) <= 60 else text[:57] + "...")}"'


def environment_layers(environ: Mapping[str, str]) -> tuple[Layer, Layer]:
    """Read API_RATE_LIMIT, the weakest source, and the AUTHSIDECAR_ variables, the strongest."""
    variables = {setting.variable: setting for setting in SETTINGS.values()}
    # An exact name wins: REDIS__TLS_CA_FILE is a setting, not the file of a REDIS__TLS_CA.
    files = {f"{name}_FILE": setting for name, setting in variables.items()}
    files = {name: setting for name, setting in files.items() if name not in variables}
    layer = Layer()
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX) or name == CONFIG_VARIABLE:
            continue
        if name in variables:
            _put_text(layer, variables[name], environ[name], name)
        elif name in files:
            _put_file(layer, files[name], environ[name], name)
        elif not _of_cluster(name, environ[name]):
            layer.problems.append(_unknown_variable(name, [*variables, *files, CONFIG_VARIABLE]))
    return _rate_limit_layer(environ), layer


def _rate_limit_layer(environ: Mapping[str, str]) -> Layer:
    layer = Layer()
    text = environ.get(RATE_LIMIT_VARIABLE)
    if text:
        layer.given[_RATE_LIMIT] = Given(text, RATE_LIMIT_VARIABLE)
        if re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) is None or not 1 <= int(text) <= 100_000:
            layer.problems.append(
                f"{RATE_LIMIT_VARIABLE}: limits.user.limit: got {quote(text)}; "
                f"allowed: {SETTINGS[_RATE_LIMIT].allowed}"
            )
    return layer


def _of_cluster(name: str, value: str) -> bool:
    url = re.match(r"(?:tcp|udp|sctp)://", value) is not None
    return _CLUSTER_SERVICE.fullmatch(name) is not None or (name.endswith("_PORT") and url)


def _unknown_variable(name: str, valid: list[str]) -> str:
    nearest = difflib.get_close_matches(name.upper(), valid, n=1, cutoff=0.0)[0]
    return f"{one_line(name)}: is no setting; did you mean {nearest}?"


def _put_file(layer: Layer, setting: Setting, path: str, variable: str) -> None:
    """Read a variable's value from the file that it names."""
    try:
        text = value_in(path)
    except (OSError, ValueError) as error:
        where = one_line(path) or quote(path)
        layer.problems.append(
            f"{variable}: {setting.key}: {where} can't be read ({_why(error)}); "
            "allowed: the path of a readable UTF-8 file that holds the value"
        )
        return
    _put_text(layer, setting, text, f"{variable} ({one_line(path)})", file=path)


def value_in(path: str) -> str:
    """The value that a file holds, less one newline at its end.

    Raises:
        OSError, ValueError: it can't be read, or is no UTF-8.
    """
    return FilePath(path).read_bytes().decode().removesuffix("\n").removesuffix("\r")


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    return (error.strerror or "no such file") if isinstance(error, OSError) else "not a path"


def _put_text(
    layer: Layer, setting: Setting, text: str, origin: str, *, file: str | None = None
) -> None:
    if setting.kind == "list":
        items = _items(text)
        if items is None:
            layer.problems.append(
                f"{origin}: {setting.key}: got {quote(text)}, which is no JSON list of plain "
                f"values; allowed: {setting.allowed}; a JSON list or separated by commas"
            )
        else:
            layer.put(setting, Given(items, origin, (origin,) * len(items)))
    else:
        layer.put(setting, Given(null(setting, text), origin, file=file))


def null(setting: Setting, text: str) -> str | None:
    """Read an empty text, `none` or `null` as null where that is allowed; a secret is verbatim."""
    nulls = ("",) if setting.kind == "secret" else ("", "none", "null")
    return None if setting.nullable and text.lower() in nulls else text


def _items(text: str) -> tuple[str, ...] | None:
    """Split a JSON list or a comma-separated text; None if it is neither."""
    if not text.strip():
        return ()
    if not text.lstrip().startswith("["):
        return tuple(part.strip() for part in text.split(","))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    plain = isinstance(found, list) and all(type(item) in (str, int, float) for item in found)
    return tuple(str(item) for item in found) if plain else None


def file_layer(name: str, content: bytes) -> Layer:
    """Read a YAML file.

    Args:
        name: what messages call the file.
        content: its bytes.

    Returns:
        Its values by path; text that is no YAML leaves one problem and no value.
    """
    layer = Layer()
    try:
        text = content.decode()
        _refuse_indirection(name, text, layer)
        root = None if layer.problems else yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        layer.problems.append(f"{name}: is not UTF-8 text (byte {error.start}); allowed: YAML")
    except RecursionError:
        layer.problems.append(f"{name}: is nested too deeply; allowed: a mapping of sections")
    except yaml.reader.ReaderError as error:
        layer.problems.append(
            f"{name}: has a control character at position {error.position}; allowed: YAML"
        )
    except yaml.MarkedYAMLError as error:
        layer.problems.append(_syntax(name, error))
    else:
        if root is not None:
            _Walk(name, layer).section((), root)
    return layer


def _syntax(name: str, error: yaml.MarkedYAMLError) -> str:
    # Not str(error): it repeats the line, and with it perhaps a password.
    mark = error.problem_mark or error.context_mark
    line = f":{mark.line + 1}" if mark is not None else ""
    return f"{name}{line}: is no YAML ({error.problem or error.context}); allowed: valid YAML"


def _refuse_indirection(name: str, text: str, layer: Layer) -> None:
    """Refuse what YAML would take out of an unquoted value such as `&secret` or `!secret`."""
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
            layer.problems.append(
                f"{name}:{token.start_mark.line + 1}: has a YAML anchor, alias or tag (&, *, !); "
                "allowed: plain values; quote a value that begins so"
            )


@dataclass(frozen=True, slots=True)
class _Walk:
    """One walk over a file's nodes; it goes no deeper than the settings do."""

    name: str
    layer: Layer

    def _refuse(self, node: yaml.Node, problem: str) -> None:
        self.layer.problems.append(f"{self._origin(node)}: {problem}")

    def _origin(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"

    def section(self, path: Path, node: yaml.Node) -> None:
        """Read a mapping of settings; a section with nothing in it says nothing."""
        if isinstance(node, yaml.MappingNode):
            for key, value in self._entries(path, node):
                self._entry((*path, key), value)
        elif not _is_null(node):
            prefix = f"{'.'.join(path)}: " if path else ""
            keys = ", ".join(children(path))
            self._refuse(node, f"{prefix}is {_what(node)}; allowed: a mapping of {keys}")

    def _entries(self, path: Path, node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node]]:
        seen: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse(key, "has a key that is no plain text; allowed: plain keys")
            elif key.value in seen:
                dotted = ".".join((*path, key.value))
                first = seen[key.value]
                self._refuse(key, f"{dotted}: is a duplicate of line {first}; allowed: once")
            elif key.value not in children(path):
                self._refuse(key, _unknown_key(path, key.value))
            else:
                seen[key.value] = key.start_mark.line + 1
                yield key.value, value

    def _entry(self, path: Path, node: yaml.Node) -> None:
        setting = SETTINGS.get(path)
        if setting is None or (path in SECTIONS and isinstance(node, yaml.MappingNode)):
            self.section(path, node)
        elif setting.kind == "list" and isinstance(node, yaml.SequenceNode):
            self._list(setting, node)
        elif not isinstance(node, yaml.ScalarNode):
            self._refuse(node, f"{setting.key}: is {_what(node)}; allowed: {setting.allowed}")
        elif _is_null(node):
            self._null(setting, node)
        else:
            _put_text(self.layer, setting, node.value, self._origin(node))

    def _null(self, setting: Setting, node: yaml.Node) -> None:
        if setting.nullable:
            self.layer.put(setting, Given(None, self._origin(node)))
        else:
            self._refuse(node, f"{setting.key}: is null; allowed: {setting.allowed}")

    def _list(self, setting: Setting, node: yaml.SequenceNode) -> None:
        plain = [item for item in node.value if isinstance(item, yaml.ScalarNode)]
        if len(plain) == len(node.value):
            texts = tuple(item.value for item in plain)
            origins = tuple(self._origin(item) for item in plain)
            self.layer.put(setting, Given(texts, self._origin(node), origins))
        else:
            self._refuse(node, f"{setting.key}: has a nested item; allowed: {setting.allowed}")


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _what(node: yaml.Node) -> str:
    match node:
        case yaml.MappingNode():
            return "a mapping"
        case yaml.SequenceNode():
            return "a list"
        case _:
            return "a plain value"


def _unknown_key(path: Path, name: str) -> str:
    """Name the nearest key: among the siblings first, then one of that name anywhere."""
    siblings = children(path)
    near = difflib.get_close_matches(name.lower(), siblings, n=1)
    found = ".".join((*path, near[0])) if near else _elsewhere(name)
    hint = f"did you mean {found}? " if found else ""
    dotted = ".".join((*path, one_line(name)))
    return f"{dotted}: is no setting; {hint}allowed: {', '.join(siblings)}"


def _elsewhere(name: str) -> str | None:
    every = {path[-1]: ".".join(path) for path in SETTINGS if not under(path, ("limits",))}
    near = difflib.get_close_matches(name.lower(), list(every), n=1)
    return every[near[0]] if near else None
