"""Coolify's `routes/api.php` becomes a route table: read, never run, and nothing is guessed.

Laravel's RouteServiceProvider adds the prefix `/api` and the middleware group `api` to the file.
Whatever is not understood is a problem with its line; a table with problems must not be used.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

from authsidecar.coolify.route_php import (
    ClassName,
    Closure,
    Cursor,
    Items,
    Lexeme,
    PhpError,
    PhpToken,
    Text,
    Value,
    tokens,
)
from authsidecar.decision.model import METHODS, Permission
from authsidecar.decision.routes.loading import Row, overlap


class ImportProblem(NamedTuple):
    """Something that was not understood, at a line that counts from 1."""

    line: int
    message: str


Conditional = Literal["include", "leave-out"]
"""What becomes of the routes inside an `if`: the file alone does not say whether they are there."""


class Within(NamedTuple):
    """A route inside an `if`, at a line that counts from 1."""

    line: int
    method: str
    path: str


@dataclass(frozen=True, slots=True)
class Imported:
    """What a route file says; with any problem the rows are not the whole truth.

    Attributes:
        rows: in Laravel's matching order.
        problems: what was not understood, or may not be guessed.
        conditional: the routes inside an `if`, whatever became of them.
    """

    rows: tuple[Row, ...]
    problems: tuple[ImportProblem, ...]
    conditional: tuple[Within, ...] = ()


def read(source: str, conditional: Conditional | None = None) -> Imported:
    """The rows of a route file, in Laravel's matching order.

    Args:
        source: the text of Coolify's routes/api.php.
        conditional: what becomes of routes inside an `if`; None: each is a problem.

    >>> read("<?php Route::get('/health', [A::class, 'b']);").rows[0].path
    '/api/health'
    """
    try:
        reader = _Reader(tokens(source))
        reader.file()
    except PhpError as error:
        return Imported((), (ImportProblem(error.line, str(error)),))
    except RecursionError:
        return Imported((), (ImportProblem(1, "nested too deeply"),))
    reader.check_order()
    if conditional is None:
        reader.check_conditional()
    found = [
        route
        for route in reader.routes.values()
        if conditional != "leave-out" or route.condition is None
    ]
    return Imported(
        tuple(route.row._replace(order=str(order)) for order, route in enumerate(found, 1)),
        tuple(sorted(set(reader.problems))),
        tuple(
            Within(route.line, route.row.method, route.row.path)
            for route in reader.routes.values()
            if route.condition is not None
        ),
    )


_FACADES: Final = frozenset({"Illuminate\\Support\\Facades\\Route", "Route"})
_ANY: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_VERBS: Final[Mapping[str, tuple[str, ...]]] = {
    **{method.lower(): (method,) for method in _ANY},
    "any": _ANY,
}
_WITHOUT_EFFECT: Final = frozenset(
    {"name", "as", "controller", "defaults", "namespace", "scopebindings", "withoutscopedbindings"}
)
"""They change neither which requests match nor who may send them."""

_NARROW_WHERES: Final = frozenset(
    {"wherenumber", "wherealpha", "wherealphanumeric", "whereuuid", "whereulid"}
)
_NARROW: Final = re.compile(
    r"(?:(?:\\[dw]|\[(?:\\[dw]|a-z|A-Z|0-9|a-f|A-F|[A-Za-z0-9_.-])+\])(?:[+*]|\{[0-9]+(?:,[0-9]*)?\})?)+"
)
"""Patterns that can never match a slash."""

_CATCH_ALL: Final = frozenset({".*", ".+"})
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~-]+")
_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::[A-Za-z_]+)?(\?)?\}")

_COLUMNS: Final = {
    "auth:sanctum": ("auth", "sanctum"),
    "api.token.team": ("team_member", "yes"),
    "App\\Http\\Middleware\\EnsureTokenBelongsToCurrentTeamMember": ("team_member", "yes"),
    "App\\Http\\Middleware\\ApiAllowed": ("api_enabled_and_allowlist", "yes"),
    "api.sensitive": ("sensitive_flag", "yes"),
    "App\\Http\\Middleware\\ApiSensitiveData": ("sensitive_flag", "yes"),
}
"""Middleware without a choice in it, and what it puts into which column."""

_THROTTLE: Final = re.compile(r"throttle:(?:(api|feedback)|([1-9][0-9]*)(?:,([1-9][0-9]*))?)")
"""One of Coolify's own limits by name, or requests in so many minutes (1 if it is not said)."""

_ANY_ABILITY: Final = (
    "api.ability:",
    "App\\Http\\Middleware\\ApiAbility:",
    "ability:",
    "Laravel\\Sanctum\\Http\\Middleware\\CheckForAnyAbility:",
)
"""Coolify's own and Sanctum's: of several abilities, each suffices."""

_ALL_ABILITIES: Final = ("abilities:", "Laravel\\Sanctum\\Http\\Middleware\\CheckAbilities:")
"""Sanctum's, too: of several abilities, all are needed."""


class _Middleware(NamedTuple):
    name: str
    line: int


@dataclass(frozen=True, slots=True)
class _Scope:
    """What the groups around a statement, and the calls before a verb, have said."""

    prefix: str = ""
    middleware: tuple[_Middleware, ...] = ()
    where: Mapping[str, str] = field(default_factory=dict)
    condition: int | None = None
    """The line of the `if` that it stands in."""


class _Call(NamedTuple):
    """One link of a chain; PHP's method names know no case."""

    name: str
    arguments: tuple[Value, ...]
    line: int


class _Found(NamedTuple):
    row: Row
    line: int
    narrowed: bool
    condition: int | None = None


class _Reader:
    """Reads statements one after another; a problem spoils its own statement only."""

    def __init__(self, source: tuple[PhpToken, ...]) -> None:
        self._source = source
        self._imports: dict[str, str] = {}
        self._catch_all: int | None = None
        self.routes: dict[tuple[str, str], _Found] = {}
        self.problems: list[ImportProblem] = []

    def file(self) -> None:
        """Read all statements of the file."""
        cursor = Cursor(self._source)
        self._statements(cursor, _Scope())
        if cursor.token.lexeme is not Lexeme.END:
            raise PhpError(cursor.token.line, "a } that closes nothing")

    def _statements(self, cursor: Cursor, scope: _Scope) -> None:
        """Read statements to the brace that closes their block, or to the end."""
        while not cursor.sees("}") and cursor.token.lexeme is not Lexeme.END:
            start = cursor.at
            try:
                self._statement(cursor, scope)
            except PhpError as error:
                self.problems.append(ImportProblem(error.line, str(error)))
                cursor.at = start
                cursor.skip(";", "{", "}")
                if cursor.takes("{"):
                    cursor.skip("}")
                    cursor.takes("}")
                cursor.takes(";")

    def check_conditional(self) -> None:
        """Report every route of which the file does not say whether it is there."""
        for found in self.routes.values():
            if found.condition is not None:
                self.problems += [
                    ImportProblem(
                        found.condition,
                        "routes inside an `if`: --conditional include or leave-out says what "
                        "becomes of them",
                    ),
                    ImportProblem(
                        found.line,
                        f"{found.row.method} {found.row.path} is inside the `if` of line "
                        f"{found.condition}",
                    ),
                ]

    def check_order(self) -> None:
        """Report what a table would decide by another row than Laravel.

        A table has no patterns, and no conditions.
        """
        found = list(self.routes.values())
        for at, one in enumerate(found):
            for later in found[at + 1 :] if one.condition is not None else ():
                a, b = one.row, later.row
                if a.method == b.method and a[3:] != b[3:] and overlap(a.segments, b.segments):
                    message = f"{a.path}, inside an `if`, may hide {b.path} of line {later.line}"
                    self.problems.append(ImportProblem(one.line, message))
        for at, narrow in enumerate(found):
            for later in found[at + 1 :] if narrow.narrowed else ():
                a, b = narrow.row, later.row
                if a.method == b.method and a[3:] != b[3:] and overlap(a.segments, b.segments):
                    message = f"`where` lets some of {a.path} through to {b.path} of line"
                    self.problems.append(ImportProblem(narrow.line, f"{message} {later.line}"))

    def _statement(self, cursor: Cursor, scope: _Scope) -> None:
        first = cursor.token
        if cursor.takes(";"):
            return
        if cursor.takes("use"):
            self._use(cursor)
        elif cursor.takes("declare"):
            cursor.arguments()
            cursor.expect(";")
        elif cursor.sees("if"):
            self._conditional(cursor, scope)
        elif first.lexeme is Lexeme.NAME and cursor.ahead(1).text == "::":
            if self._resolved(first.text) not in _FACADES:
                raise PhpError(first.line, f"{first.text} is not Laravel's Route")
            self._chain(_calls(cursor), scope)
        else:
            raise PhpError(first.line, f"not a route: a statement that begins with {first.text}")

    def _conditional(self, cursor: Cursor, scope: _Scope) -> None:
        """`if (...) {...}` with all that follows it; no condition is ever evaluated."""
        line = cursor.next().line
        scope = replace(scope, condition=scope.condition or line)
        while True:
            cursor.expect("(")
            cursor.skip(")")
            cursor.expect(")")
            self._branch(cursor, scope, line)
            if cursor.takes("elseif"):
                continue
            if not cursor.takes("else"):
                return
            if not cursor.takes("if"):
                self._branch(cursor, scope, line)
                return

    def _branch(self, cursor: Cursor, scope: _Scope, line: int) -> None:
        if not cursor.takes("{"):
            raise PhpError(line, "an `if` without braces")
        self._statements(cursor, scope)
        cursor.expect("}")

    def _use(self, cursor: Cursor) -> None:
        if cursor.takes("function", "const"):
            cursor.skip(";")
        while not cursor.takes(";"):
            name = cursor.next()
            if name.lexeme is not Lexeme.NAME:
                raise PhpError(name.line, f"cannot read the import at {name.text}")
            if cursor.takes("\\"):
                cursor.expect("{")
                while not cursor.takes("}"):
                    self._alias(cursor, f"{name.text}\\{cursor.next().text}")
                    cursor.takes(",")
                    if cursor.token.lexeme is Lexeme.END:
                        raise PhpError(name.line, "an import without an end")
            else:
                self._alias(cursor, name.text)
            if not cursor.sees(";"):
                cursor.expect(",")

    def _alias(self, cursor: Cursor, name: str) -> None:
        alias = cursor.next().text if cursor.takes("as") else name.rpartition("\\")[2]
        self._imports[alias] = name.removeprefix("\\")

    def _resolved(self, name: str) -> str:
        """A class's full name."""
        if name.startswith("\\"):
            return name[1:]
        head, separator, rest = name.partition("\\")
        return self._imports.get(head, head) + separator + rest

    def _chain(self, calls: tuple[_Call, ...], scope: _Scope) -> None:
        """One statement that begins with `Route::`: attributes, then a group or a route."""
        said: set[str] = set()
        for at, call in enumerate(calls):
            after = calls[at + 1 :]
            if call.name in _VERBS or call.name == "match":
                if "prefix" in said:
                    raise PhpError(call.line, "prefix() before a single route")
                self._route(call, after, scope)
                return
            if call.name == "fallback":
                return  # what no route matches: 404 here too
            if call.name == "group":
                if after or (said and len(call.arguments) != 1):
                    raise PhpError(call.line, "a group with more than attributes and a function")
                self._group(call, scope)
                return
            if call.name in said:
                raise PhpError(call.line, f"{call.name}() twice: the later one replaces")
            said.add(call.name)
            scope = self._attribute(call, scope)
        raise PhpError(calls[-1].line, f"{calls[-1].name}() makes no route")

    def _attribute(self, call: _Call, scope: _Scope) -> _Scope:
        """What one call adds to a scope or a route."""
        if call.name == "prefix" and len(call.arguments) == 1:
            return replace(scope, prefix=_joined(scope.prefix, _text(call.arguments[0])))
        if call.name == "middleware":
            return replace(scope, middleware=scope.middleware + self._middleware(call.arguments))
        if call.name == "where":
            return replace(scope, where={**scope.where, **_patterns(call)})
        if call.name in _NARROW_WHERES and len(call.arguments) == 1:
            named = _texts(call.arguments[0])
            return replace(scope, where={**scope.where, **dict.fromkeys(named, "[0-9]+")})
        if call.name in _WITHOUT_EFFECT:
            return scope
        raise PhpError(call.line, f"{call.name}() is not understood")

    def _group(self, call: _Call, scope: _Scope) -> None:
        *attributes, body = call.arguments or (None,)
        if not isinstance(body, Closure) or len(attributes) > 1:
            raise PhpError(call.line, "a group whose routes are not in a function(){} beside it")
        for array in attributes:
            if not isinstance(array, Items):
                raise PhpError(call.line, "a group whose attributes are no array")
            keys = [key for key, _ in array.pairs]
            if len(set(keys)) != len(keys):
                raise PhpError(array.line, "a group with an attribute twice")
            for key, value in array.pairs:
                scope = self._attribute(_Call((key or "").lower(), (value,), value.line), scope)
        self._statements(Cursor(self._source, body.body), scope)

    def _middleware(self, values: tuple[Value, ...]) -> tuple[_Middleware, ...]:
        found: tuple[_Middleware, ...] = ()
        for value in values:
            match value:
                case Text(name, line):
                    found += (_Middleware(name.removeprefix("\\"), line),)
                case ClassName(name, line, suffix):
                    found += (_Middleware(self._resolved(name) + suffix, line),)
                case Items(pairs):
                    found += self._middleware(tuple(item for _, item in pairs))
                case _:
                    raise PhpError(value.line, "a middleware that is no name")
        return found

    def _route(self, call: _Call, modifiers: tuple[_Call, ...], scope: _Scope) -> None:
        methods, arguments = _VERBS.get(call.name, ()), call.arguments
        if call.name == "match" and arguments:
            methods, arguments = _methods(arguments[0]), arguments[1:]
        if len(arguments) != 2:
            raise PhpError(call.line, f"{call.name}() with {len(call.arguments)} arguments")
        for modifier in modifiers:
            if modifier.name in {"prefix", "namespace", "controller"}:
                raise PhpError(modifier.line, f"{modifier.name}() is not understood on a route")
            scope = self._attribute(modifier, scope)
        if self._catch_all is not None:
            raise PhpError(call.line, f"after the catch-all of line {self._catch_all}")
        path = _joined("/api", _joined(scope.prefix, _text(arguments[0])))
        match = _PARAMETER.fullmatch(path.removeprefix("/api/"))
        if match and call.name == "any" and scope.where.get(match[1]) in _CATCH_ALL:
            self._end_with(call.line, scope)
            return
        columns = _columns(scope.middleware, call.line)
        for template, narrowed in _templates(path, scope.where, call.line):
            for method in methods:
                row = Row(order="", method=method, path=template, **columns)
                self._add(_Found(row, call.line, narrowed, scope.condition))

    def _end_with(self, line: int, scope: _Scope) -> None:
        """Read a catch-all: what no route matches is 404 here too."""
        if scope.middleware:
            raise PhpError(line, "a catch-all with middleware")
        if scope.condition is not None:
            raise PhpError(line, "a catch-all inside an `if`")
        self._catch_all = line

    def _add(self, found: _Found) -> None:
        """Laravel keeps the place of an earlier route with the same method and path."""
        key = found.row.method, found.row.path
        earlier = self.routes.get(key)
        if earlier and (earlier.condition is not None or found.condition is not None):
            message = f"{' '.join(key)} is at line {earlier.line}, too; one of them is in an `if`"
            self.problems.append(ImportProblem(found.line, message))
        self.routes[key] = found


def _calls(cursor: Cursor) -> tuple[_Call, ...]:
    """`Route::a(...)->b(...);` as a, b."""
    cursor.next()
    calls: list[_Call] = []
    while cursor.takes("->" if calls else "::"):
        name = cursor.next()
        if name.lexeme is not Lexeme.NAME or not cursor.sees("("):
            raise PhpError(name.line, f"cannot read the call of {name.text}")
        calls.append(_Call(name.text.lower(), cursor.arguments(), name.line))
    cursor.expect(";")
    return tuple(calls)


def _text(value: Value) -> str:
    if not isinstance(value, Text):
        raise PhpError(value.line, "a path or name that is not a plain string")
    return value.value


def _texts(value: Value) -> tuple[str, ...]:
    """A string, or the strings of an array."""
    if isinstance(value, Items):
        return tuple(_text(item) for _, item in value.pairs)
    return (_text(value),)


def _methods(value: Value) -> tuple[str, ...]:
    named = tuple(text.upper() for text in _texts(value))
    methods = tuple(method for method in named if method != "HEAD")
    if not set(methods) <= METHODS or ("HEAD" in named and "GET" not in named):
        raise PhpError(value.line, f"methods that are not understood: {', '.join(named)}")
    return methods


def _patterns(call: _Call) -> Mapping[str, str]:
    """`where('id', '[0-9]+')` or `where(['id' => '[0-9]+'])`."""
    match call.arguments:
        case (Items(pairs),):
            return {key or "": _text(value) for key, value in pairs}
        case (Text(name), pattern):
            return {name: _text(pattern)}
        case _:
            raise PhpError(call.line, "a `where` that is not understood")


def _joined(prefix: str, path: str) -> str:
    return f"{prefix.rstrip('/')}/{path.strip('/')}".rstrip("/")


def _templates(path: str, where: Mapping[str, str], line: int) -> tuple[tuple[str, bool], ...]:
    """The templates of a Laravel path, and whether a pattern narrows them."""
    segments: list[str] = []
    narrowed = False
    optional = ""
    for segment in path.split("/")[1:]:
        parameter = _PARAMETER.fullmatch(segment)
        if optional or not (parameter or _SEGMENT.fullmatch(segment)):
            raise PhpError(line, f"a path that is not understood: {path}")
        if parameter is None:
            segments.append(segment)
            continue
        name, mark = parameter.groups()
        if (pattern := where.get(name)) is not None:
            if not _NARROW.fullmatch(pattern):
                raise PhpError(line, f"a pattern that could match a slash: {pattern}")
            narrowed = True
        optional = mark or ""
        segments.append(f"{{{name}}}")
    whole = "/" + "/".join(segments)
    if optional:
        return (whole.rpartition("/")[0], narrowed), (whole, narrowed)
    return ((whole, narrowed),)


def _columns(middleware: tuple[_Middleware, ...], line: int) -> dict[str, str]:
    """A row's columns, as its middleware fills them."""
    columns = dict.fromkeys(Row._fields[3:], "-")
    abilities: set[tuple[str, ...]] = set()
    limits = ["api"]
    for name, at in middleware:
        if (needed := _abilities(name, at)) is not None:
            abilities.add(needed)
        elif name in _COLUMNS:
            column, value = _COLUMNS[name]
            columns[column] = value
        elif throttle := _THROTTLE.fullmatch(name):
            named, requests, minutes = throttle.groups()
            limits.append(named or f"{requests}/{minutes or 1}m")
        elif name != "api":
            raise PhpError(at, f"a middleware that is not understood: {name}")
    if len(abilities) > 1:
        needs = " and ".join(" or ".join(needed) for needed in sorted(abilities))
        raise PhpError(line, f"needs {needs}: a row names one, or several each of which suffices")
    if abilities and columns["auth"] == "-":
        raise PhpError(line, "needs a permission, but no token")
    columns["throttle"] = "+".join(dict.fromkeys(limits))
    return columns | {"ability": ",".join(*abilities) if abilities else "-"}


def _abilities(name: str, line: int) -> tuple[str, ...] | None:
    """The abilities of which a middleware needs one, as the file has them; None: it is another.

    Raises:
        PhpError: it needs one that does not exist, or several at once.
    """
    start = next((p for p in (*_ANY_ABILITY, *_ALL_ABILITIES) if name.startswith(p)), None)
    if start is None:
        return None
    named = name.removeprefix(start).split(",")  # PHP's explode: a blank belongs to the name
    if odd := [ability for ability in named if ability not in set(Permission)]:
        raise PhpError(line, f"not a permission: {odd[0]}")
    if start in _ALL_ABILITIES and len(set(named)) > 1:
        raise PhpError(line, f"needs {' and '.join(named)}: a row names one")
    return tuple(dict.fromkeys(named))
