"""What a page is, and what it works with: one visit of somebody who is signed in."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from hmac import compare_digest
from typing import Any, Final, NamedTuple, TypeVar

from aiohttp import web
from multidict import MultiDict, MultiMapping
from pydantic import BaseModel, ValidationError

from authsidecar.admin.refusal import OWNED
from authsidecar.serving.console import BASE
from authsidecar.serving.console.rendering import render
from authsidecar.serving.manage.api import InvalidError, if_unchanged, read_path, tag_of, whole
from authsidecar.serving.manage.models import MOST_ITEMS, Query
from authsidecar.serving.manage.openapi import OPERATIONS
from authsidecar.serving.manage.operations import Call, NotDoneError, Sidecar
from authsidecar.store.audit import Origin, Via
from authsidecar.store.console_sessions import ConsoleSessions, SignedIn
from authsidecar.store.management_keys import Scope

M = TypeVar("M", bound=BaseModel)

_OPERATIONS: Final = {operation.name: operation for operation in OPERATIONS}


SEARCHING_S: Final = 0.12
"""How long one page looks through a list, in seconds; the next page goes on from there."""

ENOUGH_FOUND: Final = 50
"""From so many finds on, the next page goes on as well."""


@dataclass(slots=True)
class Found:
    """What a search has found.

    Attributes:
        items: what was looked for.
        next: the cursor from which it goes on, or None: all was looked through.
        looked: how many items were looked at.
    """

    items: list[Any] = field(default_factory=list)
    next: str | None = None
    looked: int = 0


@dataclass(slots=True)
class Visit:
    """One request of a session, found right.

    Attributes:
        request: what was sent.
        session: who is signed in.
        secret: the session's, as the cookie holds it.
        sidecar: what operations work with.
        pages: those of the navigation.
        path: the parts of the path that a route names.
        form: the fields of a form that was sent.
        shown: whether the session's notice was shown.
    """

    request: web.Request
    session: SignedIn
    secret: str = field(repr=False)
    sidecar: Sidecar
    pages: tuple["ConsolePage", ...]
    path: Mapping[str, str] = field(default_factory=dict)
    form: MultiMapping[str] = field(default_factory=MultiDict)
    shown: bool = False

    @property
    def csrf(self) -> str:
        """What a form must send: known to who knows the session's secret."""
        return csrf_token(self.secret)

    @property
    def query(self) -> MultiMapping[str]:
        """The fields of the query."""
        return self.request.query

    @property
    def may_write(self) -> bool:
        """Whether the session may change anything."""
        return self.session.scope is Scope.WRITE

    @property
    def origin(self) -> Origin:
        """Who makes a change, for the audit."""
        return Origin(self.session.actor, Via.CONSOLE, self.request.remote or "?")

    def call(self) -> Call:
        """What functions of `admin` need: registry, trail, keys; changes are this session's."""
        return Call(self.sidecar, self.origin, {}, None, None)

    async def ask(
        self,
        name: str,
        *,
        path: Mapping[str, object] | None = None,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
        unless_changed: str | None = None,
    ) -> Any:
        """What an operation of the management API gives.

        Args:
            name: its operationId.
            path: the parts of its path.
            query: its query, as texts.
            body: what it takes.
            unless_changed: the ETag that what it changes must still have, or None.

        Raises:
            NotDoneError: it is not done.
        """
        operation = _OPERATIONS[name]
        if operation.scope is Scope.WRITE and not self.may_write:
            raise NotDoneError(403, READ_ONLY)
        call = Call(
            sidecar=self.sidecar,
            origin=self.origin,
            path=_read_path(path or {}),
            query=validated(operation.query or Query, query or {}),
            body=None if operation.body is None else validated(operation.body, body or {}),
        )
        if operation.owned and await self.sidecar.owner() is not None:
            raise NotDoneError(409, OWNED)
        if operation.current is not None and unless_changed is not None:
            call = await if_unchanged(operation.current, call, unless_changed)
        return await whole(operation.run(call))

    async def search(
        self, name: str, query: Mapping[str, str], wanted: Callable[[Any], bool]
    ) -> "Found":
        """Look through a list of the management API for a moment.

        Args:
            name: the operationId of the list.
            query: its query, as texts; `cursor` where the last search has ended.
            wanted: whether an item is looked for.
        """
        until = time.monotonic() + SEARCHING_S
        found = Found()
        cursor = query.get("cursor")
        while True:
            more = {} if cursor is None else {"cursor": cursor}
            page = await self.ask(name, query={**query, **more, "limit": str(MOST_ITEMS)})
            found.items += [one for one in page.items if wanted(one)]
            found.looked, cursor = found.looked + len(page.items), page.next
            enough = len(found.items) >= ENOUGH_FOUND or time.monotonic() > until
            if cursor is None or enough:
                found.next = cursor
                return found

    def page(self, template: str, *, status: int = 200, **context: object) -> web.Response:
        """An answer that shows a template."""
        self.shown = True
        body = render(template, visit=self, session=self.session, **context)
        return web.Response(status=status, body=body.encode("utf-8"), content_type="text/html")

    async def undo(
        self, name: str, path: Mapping[str, object], body: Mapping[str, object] | None = None
    ) -> "Undo":
        """What takes back a change that was just made, unless somebody else makes another.

        Args:
            name: the operationId that does so.
            path: the parts of its path.
            body: what it takes.
        """
        tag, current = None, _OPERATIONS[name].current
        if current is not None:
            tag = tag_of(await current.read(replace(self.call(), path=_read_path(path))))
        return Undo(name, dict(path), None if body is None else dict(body), tag)

    async def moved(self, path: str, *, said: str = "", undo: "Undo | None" = None) -> web.Response:
        """An answer that sends the browser on.

        Args:
            path: where to, below /console.
            said: what that page tells first: what was done.
            undo: what the button beside that does; None: there is none.
        """
        if said:
            back = "" if undo is None else undo.write(path)
            sessions = ConsoleSessions(self.sidecar.client, self.sidecar.keys)
            await sessions.say(self.secret, said, back)
        return web.Response(status=303, headers={"Location": BASE + path})


class Undo(NamedTuple):
    """An operation that takes a change back.

    Attributes:
        name: its operationId.
        path: the parts of its path.
        body: what it takes.
        tag: the ETag that the change has left, or None: what it changes has none.
    """

    name: str
    path: dict[str, Any]
    body: dict[str, Any] | None
    tag: str | None

    def write(self, then: str) -> str:
        """As a session keeps it, with the page that shows what was done."""
        return json.dumps([*self, then])


async def take_back(visit: Visit) -> web.Response:
    """Undo the last change of this session, if nobody has made another since."""
    if not visit.session.undo:
        raise NotDoneError(409, "there is nothing to undo, or it was undone already")
    *parts, then = json.loads(visit.session.undo)
    undo = Undo(*parts)
    try:
        await visit.ask(undo.name, path=undo.path, body=undo.body, unless_changed=undo.tag)
    except NotDoneError as error:
        if error.status == 412:
            why = "it was changed by somebody else meanwhile; nothing was undone"
            raise NotDoneError(409, why) from None
        raise
    return await visit.moved(then, said="Undone: it is as it was before.")


def _read_path(path: Mapping[str, object]) -> dict[str, Any]:
    return read_path({key: str(value) for key, value in path.items()})


READ_ONLY: Final = (
    "this session may only look; sign in with a key of the scope write, or with a link that "
    "`authsidecar console` prints without --read-only"
)

Run = Callable[[Visit], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class PageRoute:
    """One thing that a page does.

    Attributes:
        method: GET or POST.
        path: below /console, with {names} as aiohttp reads them.
        run: does it.
        scope: what a session must have for it; None: READ for GET, else WRITE.
        polled: an open page asks for it by itself, which keeps no session from ending.
    """

    method: str
    path: str
    run: Run
    scope: Scope | None = None
    polled: bool = False

    @property
    def needed(self) -> Scope:
        """What a session must have for it."""
        return self.scope or (Scope.READ if self.method == "GET" else Scope.WRITE)


@dataclass(frozen=True, slots=True)
class ConsolePage:
    """One page of the navigation, and what belongs to it.

    Attributes:
        title: what the navigation calls it.
        path: below /console.
        routes: what it does.
    """

    title: str
    path: str
    routes: tuple[PageRoute, ...]

    def holds(self, path: str) -> bool:
        """Whether a path of a request belongs to it."""
        own = BASE + self.path.rstrip("/")
        return path == own or (own != BASE and path.startswith(f"{own}/"))


def csrf_token(secret: str) -> str:
    """What the forms of a session send."""
    return sha256(f"form {secret}".encode()).hexdigest()


def is_csrf_token(given: object, secret: str) -> bool:
    """Whether a form has sent what its session's forms send."""
    return isinstance(given, str) and compare_digest(
        given.encode("utf-8", "surrogateescape"), csrf_token(secret).encode()
    )


def validated(model: type[M], fields: Mapping[str, object]) -> M:
    """Fields as what an operation takes.

    Raises:
        NotDoneError: they are not.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise NotDoneError(422, InvalidError(error).why) from None


async def together(*asked: Awaitable[Any]) -> list[Any]:
    """The answers of several questions that are asked at once."""
    return await asyncio.gather(*asked)
