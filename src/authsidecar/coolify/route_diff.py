"""What changed between two route tables and, first, what became weaker.

Rows are added and removed; weaker or stricter is what a request meets, which is the first row that
matches it. So a row that is itself unchanged, but now stands behind a weaker one, is found as well.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from authsidecar.decision.proxies.endpoints import WHOAMI_SHOWN
from authsidecar.decision.routes.loading import Row, overlap
from authsidecar.decision.routes.table import Guard, Route, RouteTable, is_parameter

STRENGTH: Final = ("-", "read", "read:sensitive", "deploy", "write", "write:sensitive", "root")
"""Permissions from weak to strong. None of them includes another but for read:sensitive and root:
the order says how much harm a token can do, so deploy in place of write counts as weaker."""

GUARDS: Final = {
    "team_member": "the check of team and role",
    "api_enabled_and_allowlist": "the API switch and the allowlist",
    "sensitive_flag": "the flag for sensitive data",
    "throttle": "the rate limit",
    "mcp_checks": "the MCP switch",
}
"""Columns that hold guards, several joined by `+`."""


class RouteChange(NamedTuple):
    """One difference: the request it concerns, and in words what changed."""

    method: str
    path: str
    what: str


@dataclass(frozen=True, slots=True)
class Diff:
    """What changed, in the order of the tables.

    Attributes:
        weaker: requests that need less than before, or meet fewer guards.
        stricter: requests that need more, or meet more guards.
        added: rows that the old table lacks.
        removed: rows that the new table lacks.
        hidden: rows that the new table has and the old one lacks where the files of deploy/ show
            the sidecar's own answer, so that clients would not reach them.
    """

    weaker: tuple[RouteChange, ...]
    stricter: tuple[RouteChange, ...]
    added: tuple[RouteChange, ...]
    removed: tuple[RouteChange, ...]
    hidden: tuple[RouteChange, ...]


def compare(old: Iterable[Row], new: Iterable[Row]) -> Diff:
    """The differences from one table to another."""
    before, after = _Table(old), _Table(new)
    weaker, stricter = [], []
    seen: set[tuple[Row, Row]] = set()
    for method, path in _requests(after.rows, before.rows):
        a, b = before.find(method, path), after.find(method, path)
        if a is None or b is None or (a, b) in seen:
            continue
        seen.add((a, b))
        weaker += [RouteChange(method, path, what) for what in weakenings(a, b)]
        stricter += [RouteChange(method, path, what) for what in weakenings(b, a, reverse=True)]
    return Diff(
        tuple(weaker),
        tuple(stricter),
        added=tuple(_lacking(before.rows, after.rows)),
        removed=tuple(_lacking(after.rows, before.rows)),
        hidden=tuple(
            RouteChange(method, WHOAMI_SHOWN, "the proxies answer with the sidecar's own whoami")
            for method in sorted({row.method for row in after.rows})
            if after.find(method, WHOAMI_SHOWN) and not before.find(method, WHOAMI_SHOWN)
        ),
    )


def _lacking(here: tuple[Row, ...], there: tuple[Row, ...]) -> Iterator[RouteChange]:
    """What there is a row for `there`, by method and shape, and not `here`."""
    shapes = {_shape(row) for row in here}
    for row in there:
        if _shape(row) not in shapes:
            what = "public" if row.auth == "-" else f"needs {row.ability}"
            yield RouteChange(row.method, row.path, what)


def _shape(row: Row) -> tuple[str, ...]:
    """Method and path; a parameter's name decides nothing."""
    return (row.method, *("{}" if is_parameter(s) else s for s in row.segments))


def weakenings(a: Row, b: Row, *, reverse: bool = False) -> Iterator[str]:
    """In words, everything in which `b` is weaker than `a`.

    Args:
        a: the stronger row.
        b: the weaker row.
        reverse: `b` is the older row: the words are said from it to `a`.
    """
    if a.auth != "-" and b.auth == "-":
        yield f"needs a token now, {a.ability}" if reverse else f"public now, needed {a.ability}"
    elif _suffices_less(a.ability, b.ability):
        yield (
            f"needs {a.ability}, needed {b.ability}"
            if reverse
            else f"needs {b.ability}, needed {a.ability}"
        )
    for column, words in GUARDS.items():
        had, has = (_parts(getattr(row, column)) for row in (a, b))
        if gone := had - has:
            which = "" if gone == {"yes"} else f" ({', '.join(sorted(gone))})"
            yield f"{words}{which} {'added' if reverse else 'dropped'}"


def _suffices_less(a: str, b: str) -> bool:
    """Whether `b` asks for less than `a`; of a list of permissions each one suffices."""
    one, other = ({STRENGTH.index(name) for name in cell.split(",")} for cell in (a, b))
    return min(other) < min(one) or (min(other) == min(one) and not other <= one)


def _parts(cell: str) -> set[str]:
    return set(cell.split("+")) - {"-"}


class _Table:
    """Rows, and the first of them that a request meets."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = tuple(rows)
        self._first: dict[tuple[str, str], Row] = {}
        for row in self.rows:
            self._first.setdefault((row.method, row.path), row)
        self._routes = RouteTable(Route(r.method, r.path, Guard.ORDINARY) for r in self.rows)

    def find(self, method: str, path: str) -> Row | None:
        route = self._routes.find(method, path)
        return None if route is None else self._first[route.method, route.template]


def _requests(*tables: tuple[Row, ...]) -> Iterator[tuple[str, str]]:
    """A request for each row, and for each two rows that one request can match.

    A parameter stands for itself: no literal segment is spelled with braces.
    """
    rows = tuple({(row.method, row.path): row for table in tables for row in table}.values())
    for row in rows:
        yield row.method, row.path
    for at, one in enumerate(rows):
        for other in rows[at + 1 :]:
            if one.method == other.method and overlap(one.segments, other.segments):
                both = zip(one.segments, other.segments, strict=True)
                yield one.method, "/" + "/".join(y if is_parameter(x) else x for x, y in both)
