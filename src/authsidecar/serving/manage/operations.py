"""What an operation of the management API is: its place, its types, and what may be answered."""

import base64
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel
from redis.asyncio import Redis

from authsidecar.admin.questions import Ask
from authsidecar.admin.refusal import Refusal, absent
from authsidecar.admin.what_if import RoutesNow
from authsidecar.decision.addresses import Networks, parse_address
from authsidecar.decision.authorize import Rules
from authsidecar.decision.model import Address, TeamId, TokenId, UserId
from authsidecar.serving.manage.models import Query
from authsidecar.store.audit import Origin, Trail
from authsidecar.store.changes import Precondition
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys
from authsidecar.store.management_keys import ManagementKeys, Scope
from authsidecar.store.registry import Registry

T = TypeVar("T")

Asked = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What came of reading the configuration again.

    Attributes:
        digest: names the configuration in force.
        changed: the settings that are another now.
        left: the settings that are another in the sources, and need a restart.
        problems: why nothing has changed, a line each; empty: it went well.
    """

    digest: str
    changed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What operations work with.

    Attributes:
        client: redis-py's asyncio client.
        keys: the key names.
        decisions: the hot path's store, for explanations.
        rules: what decisions depend on now.
        routes: from what the routes in force are made.
        peers: networks that may ask now.
        hops: networks that are skipped in X-Forwarded-For now.
        ask: has questions to all receipts answered.
        reload: reads the configuration again.
        replicas: how many a revocation waits for, and for how many milliseconds.
        owner: tells whose the state is, if a sync owns it.
        missing: tells what keeps the process from deciding.
        sync: tells what the sync tells of itself.
        background: what fails beside requests, by task.
        warnings: what is unwise about the configuration.
        version: of this program.
    """

    client: "Redis"
    keys: Keys
    decisions: DecisionStore
    rules: Callable[[], Rules]
    routes: Callable[[], RoutesNow]
    peers: Callable[[], Networks]
    hops: Callable[[], Networks]
    ask: Ask
    reload: Callable[[], Awaitable[ReloadResult]]
    replicas: tuple[int, int]
    owner: Asked
    missing: Asked
    sync: Asked
    background: Callable[[], Mapping[str, str]]
    warnings: Callable[[], tuple[str, ...]]
    version: str


@dataclass(frozen=True, slots=True)
class Call:
    """One request, read and found right.

    Attributes:
        sidecar: what it works with.
        origin: who asks, for the audit.
        path: the numbers and words of its path, by name.
        query: its query.
        body: its body.
        precondition: what must hold when it changes something.
    """

    sidecar: Sidecar
    origin: Origin
    path: Mapping[str, Any]
    query: Any
    body: Any
    precondition: Precondition | None = None

    @property
    def registry(self) -> Registry:
        """Users, teams, tokens and settings, changed by who asks."""
        return Registry(self.sidecar.client, self.sidecar.keys, self.origin, self.precondition)

    @property
    def management_keys(self) -> ManagementKeys:
        """The keys, changed by who asks."""
        return ManagementKeys(self.sidecar.client, self.sidecar.keys, self.origin)

    @property
    def trail(self) -> Trail:
        """The audit."""
        return Trail(self.sidecar.client, self.sidecar.keys)


class NotDoneError(Exception):
    """An operation is not done; the problem that is answered.

    Attributes:
        status: 400, 404, 409, 412 or 422.
        why: one line, in the CLI's words where it has any.
        errors: all that is wrong, where that is more, as `field` and `detail`.
    """

    def __init__(self, status: int, why: str, errors: Iterable[Mapping[str, str]] = ()) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.errors = tuple(errors)


Run = Callable[[Call], Coroutine[Any, Any, BaseModel]]


class CurrentState(NamedTuple):
    """What a client has seen before it changes it.

    Attributes:
        read: reads it again.
        key: the Redis key that it is in; the operation makes one change, and with it that key's.
    """

    read: Run
    key: Callable[[Call], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation.

    Attributes:
        method: GET, POST, PUT, PATCH or DELETE.
        path: below /manage/v1, with {names}.
        name: its operationId.
        summary: what it does, one line.
        run: does it.
        answer: what it gives.
        scope: what a key must have for it.
        status: of what it gives.
        query: what its query may hold.
        body: what it takes.
        refusals: statuses beside those that any operation may have.
        owned: whether a sync that owns the state forbids it.
        tagged: whether its answer has an ETag.
        current: for a change of what has an ETag: what If-Match is compared with.
        creates: whether it takes an Idempotency-Key: reads again what was created.
    """

    method: str
    path: str
    name: str
    summary: str
    run: Run
    answer: type[BaseModel]
    scope: Scope = Scope.READ
    status: int = 200
    query: type[Query] | None = None
    body: type[BaseModel] | None = None
    refusals: tuple[int, ...] = ()
    owned: bool = False
    tagged: bool = False
    current: CurrentState | None = None
    creates: Run | None = None
    tags: tuple[str, ...] = field(default=())


def holder_key(call: Call) -> str:
    """The key of the token, user or team that a path names: its limit and restriction are there."""
    keys, number = call.sidecar.keys, call.path["id"]
    match call.path["scope"]:
        case "token":
            return keys.token(TokenId(number))
        case "user":
            return keys.user(UserId(number))
        case _:
            return keys.team(TeamId(number))


def read_address(name: str, text: str) -> Address:
    """The address that a field holds.

    Raises:
        NotDoneError: it holds none.
    """
    found = parse_address(text)
    if found is None:
        raise NotDoneError(422, f"{name}: is not an IP address (no port, no network, no name)")
    return found


def present(found: T | None, noun: str, number: int) -> T:
    """What was found.

    Raises:
        NotDoneError: it is not there.
    """
    if found is None:
        raise NotDoneError(404, absent(noun, number))
    return found


def done(answer: T | Refusal, status: int) -> T:
    """The answer of a use case that did what it was asked.

    Raises:
        NotDoneError: it did not.
    """
    if isinstance(answer, Refusal):
        raise NotDoneError(status, answer.why)
    return answer


async def page_of(call: Call, index: str) -> tuple[list[int], str | None]:
    """The ids of a set on the page that the query names, and the next page's cursor."""
    cursor, scan = place_in_set(read_cursor(call.query.cursor))
    ids, following, scanned = await call.registry.page(index, cursor, call.query.limit, scan=scan)
    return ids, None if following is None else write_cursor([following, scanned])


def write_cursor(place: Any) -> str:
    """A place in a list as its next page names it; opaque to clients."""
    return base64.urlsafe_b64encode(json.dumps(place, separators=(",", ":")).encode()).decode()


def read_cursor(text: str | None) -> Any:
    """The place that `write_cursor` wrote; None: the beginning.

    Raises:
        NotDoneError: it is no cursor.
    """
    if text is None:
        return None
    try:
        return json.loads(base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        raise NotDoneError(422, "cursor: is none that a page gave as `next`") from None


def place_in_set(place: Any) -> tuple[int, bool]:
    """The place in a set: its number, and whether the set is scanned.

    Raises:
        NotDoneError: it is none.
    """
    match place:
        case None:
            return 0, False
        case [int(number), bool(scan)] if not isinstance(number, bool) and 0 <= number < 2**64:
            return number, scan
        case _:
            raise NotDoneError(422, "cursor: is none that a page gave as `next`")
