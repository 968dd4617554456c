"""The management API: from a request to its operation, and from what that gives to the answer."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel, ValidationError
from redis.exceptions import OutOfMemoryError, RedisError

from authsidecar.admin.refusal import OWNED, LeftoverError
from authsidecar.decision.authorize import StoreError
from authsidecar.decision.credentials import LARGEST_ID
from authsidecar.observe.background import describe_error
from authsidecar.observe.log import Log
from authsidecar.serving.manage.access import Access, BadKey
from authsidecar.serving.manage.models import Query
from authsidecar.serving.manage.openapi import BASE, HEADER, OPERATIONS, PATH_PARAMETERS, text
from authsidecar.serving.manage.operations import (
    Call,
    CurrentState,
    NotDoneError,
    Operation,
    Sidecar,
)
from authsidecar.serving.manage.problems import problem, refusal
from authsidecar.store.audit import Origin, Via
from authsidecar.store.changes import Precondition
from authsidecar.store.idempotency import Idempotency
from authsidecar.store.management_keys import ManagementKey, Scope

LARGEST_BODY: Final = 128 * 1024
"""Bytes of the largest body that is read."""

_COUNTED: Final = {"uses_spent", "used", "remaining", "free_at"}
"""What requests change: an ETag says nothing of it."""

_JSON: Final = "application/json"
_RETRY: Final = (("Retry-After", "1"),)
_ENDPOINTS: Final = [
    (operation, re.compile(BASE + re.sub(r"\{\w+\}", "[^/]+", operation.path)))
    for operation in OPERATIONS
]


def add_to(app: web.Application, sidecar: Sidecar, access: Access, log: Log) -> None:
    """Have an application answer below /manage/v1.

    Args:
        app: the management listener's.
        sidecar: what operations work with.
        access: judges keys.
        log: told of defects.
    """
    for operation in OPERATIONS:
        handler = partial(_handle, operation, sidecar, access, log)
        app.router.add_route(operation.method, BASE + operation.path, handler)
    app.router.add_route("GET", f"{BASE}/openapi.json", partial(_document, access))
    app.router.add_route("*", BASE, partial(_elsewhere, access))
    app.router.add_route("*", f"{BASE}/{{rest:.*}}", partial(_elsewhere, access))


async def _document(access: Access, request: web.Request) -> web.StreamResponse:
    key = await access.key(request, Scope.READ)
    return refusal(key) if isinstance(key, BadKey) else _answer(200, await asyncio.to_thread(text))


async def _elsewhere(access: Access, request: web.Request) -> web.StreamResponse:
    """What is no operation; nobody without a key is told so."""
    key = await access.key(request, Scope.READ)
    if isinstance(key, BadKey):
        return refusal(key)
    methods = sorted({one.method for one, path in _ENDPOINTS if path.fullmatch(request.path)})
    if request.path == f"{BASE}/openapi.json":
        methods = ["GET"]
    if not methods:
        return problem(404, "there is no such operation; GET /manage/v1/openapi.json names them")
    allow = ", ".join(methods)
    return problem(405, f"this takes {allow}", headers=[("Allow", allow)])


async def _handle(
    operation: Operation, sidecar: Sidecar, access: Access, log: Log, request: web.Request
) -> web.StreamResponse:
    key = await access.key(request, operation.scope)
    if isinstance(key, BadKey):
        return refusal(key)
    try:
        return await _run(operation, sidecar, key, request)
    except NotDoneError as error:
        return problem(error.status, error.why, errors=error.errors)
    except InvalidError as error:
        return problem(422, error.why, errors=error.errors)
    except web.HTTPRequestEntityTooLarge:
        return problem(413, f"the body is larger than {LARGEST_BODY} bytes")
    except web.HTTPException:
        raise
    except Exception as error:  # noqa: BLE001  # an operator is never shown a traceback
        status, why = explained(error, log, operation.name)
        return problem(status, why, headers=_RETRY if status == 503 else ())


def explained(error: Exception, log: Log, where: str) -> tuple[int, str]:
    """The status and the one line that tell an operator of what went wrong under way.

    Args:
        error: what was raised; a defect is logged.
        log: told of defects.
        where: what was under way.
    """
    match error:
        case LeftoverError():
            return 503, str(error)
        case OutOfMemoryError():
            return 503, (
                "Redis is full: it has no room for more (maxmemory); make room or raise maxmemory"
            )
        case RedisError() | StoreError() | OSError() | TimeoutError():
            return 503, (
                "Redis failed under way; what was asked may be done in part: look, and repeat it"
            )
        case _:
            log.event("error", "defect", error=describe_error(error), where=where)
            return 500, "a defect of authsidecar, please report it; the log names it"


async def _run(
    operation: Operation, sidecar: Sidecar, key: ManagementKey, request: web.Request
) -> web.StreamResponse:
    call = Call(
        sidecar=sidecar,
        origin=Origin(f"key {key.id} ({key.name})", Via.API, request.remote or "?"),
        path=read_path(request.match_info),
        query=_query(operation, request),
        body=None if operation.body is None else await _body(operation.body, request),
    )
    if operation.owned and await sidecar.owner() is not None:
        raise NotDoneError(409, OWNED)
    if operation.current is not None and (wanted := request.headers.get("If-Match")) is not None:
        call = await if_unchanged(operation.current, call, wanted)
    if operation.creates is not None and "Idempotency-Key" in request.headers:
        found = await _once(operation, call, key, request.headers["Idempotency-Key"])
    else:
        found = await whole(operation.run(call))
    body = found.model_dump_json(by_alias=True)
    return _answer(operation.status, body, tag=tag_of(found) if operation.tagged else None)


async def whole(work: Coroutine[Any, Any, BaseModel]) -> BaseModel:
    """Finish what was begun, although the client has left: half a change helps nobody."""
    return await asyncio.shield(asyncio.ensure_future(work))


async def _once(operation: Operation, call: Call, key: ManagementKey, given: str) -> BaseModel:
    """Create it, or read again what the same request has created."""
    _check_header("Idempotency-Key", given, 255)
    assert operation.creates is not None  # noqa: S101  # the caller has looked
    kept = Idempotency(call.sidecar.client, call.sidecar.keys)
    request = sha256(f"{key.id} {operation.name} {given}".encode()).hexdigest()
    fingerprint = sha256(call.body.model_dump_json().encode()).hexdigest()
    before = await kept.begin(request, fingerprint)
    if before is not None:
        if before.fingerprint != fingerprint:
            raise NotDoneError(422, "Idempotency-Key: was used for another request; take a new one")
        if before.created is None:
            raise NotDoneError(409, "a request with this Idempotency-Key is under way")
        noun = operation.path[1:-1]
        again = Call(call.sidecar, call.origin, {noun: before.created}, call.query, call.body)
        try:
            return await operation.creates(again)
        except NotDoneError as error:  # it was removed since
            gone = f"what this Idempotency-Key has created is gone ({error.why}); take a new one"
            raise NotDoneError(409, gone) from None

    async def create() -> BaseModel:
        try:
            found = await operation.run(call)
        except BaseException:
            await kept.give_back(request)
            raise
        await kept.created(request, fingerprint, found.id)  # type: ignore[attr-defined]  # all have
        return found

    return await whole(create())


def _check_header(name: str, given: str, longest: int) -> None:
    if len(given) > longest or not re.fullmatch(HEADER, given):
        raise NotDoneError(400, f"{name}: is not 1 to {longest} printable ASCII characters")


async def if_unchanged(current: CurrentState, call: Call, wanted: str) -> Call:
    """The same call, which only changes what is still as an ETag says.

    Args:
        current: what is to be changed.
        call: the call.
        wanted: the ETag, or what an If-Match holds.

    Raises:
        NotDoneError: it is another already.
    """
    compare = partial(_compare, wanted, current.read, call)
    await compare()
    return replace(call, precondition=Precondition((current.key(call),), compare))


async def _compare(wanted: str, current: Callable[[Call], Any], call: Call) -> None:
    """See that something is as the client has seen it.

    Raises:
        NotDoneError: it is another by now, or gone.
    """
    _check_header("If-Match", wanted, 1000)
    try:
        tag = tag_of(await current(call))
    except NotDoneError as error:
        raise NotDoneError(412, error.why) from None
    if wanted.strip() != "*" and tag not in [one.strip() for one in wanted.split(",")]:
        raise NotDoneError(412, "If-Match: it was changed meanwhile; read it again")


def tag_of(found: BaseModel) -> str:
    """The ETag of what was read."""
    text = found.model_dump_json(by_alias=True, exclude=_COUNTED)
    digest = sha256(text.encode()).hexdigest()
    return f'"{digest[:32]}"'


def read_path(words: Mapping[str, str]) -> dict[str, Any]:
    """The parts of a path, numbers as numbers.

    Raises:
        NotDoneError: a part can name nothing.
    """
    found: dict[str, Any] = {}
    for name, word in words.items():
        shape = PATH_PARAMETERS[name]
        if shape["type"] == "string":
            if "enum" in shape and word not in shape["enum"]:
                raise NotDoneError(404, f"{name}: is none of {', '.join(shape['enum'])}")
            found[name] = word
            continue
        right = word.isascii() and word.isdigit() and len(word) < 20 and str(int(word)) == word
        if not right or not shape["minimum"] <= int(word) <= LARGEST_ID:
            least = shape["minimum"]
            raise NotDoneError(404, f"{name}: is not a whole number from {least} to {LARGEST_ID}")
        found[name] = int(word)
    return found


def _query(operation: Operation, request: web.Request) -> Query:
    """The query, read.

    Raises:
        NotDoneError: it is not one of the operation's.
    """
    repeated = [
        name
        for name, times in Counter(name for name, _ in request.query.items()).items()
        if times > 1
    ]
    if repeated:
        raise NotDoneError(400, f"{repeated[0][:40]!a}: is there more than once")
    try:
        return (operation.query or Query).model_validate(dict(request.query))
    except ValidationError as error:
        where, why = _first(error)
        raise NotDoneError(400, f"{where}: {why}") from None


async def _body(model: type[BaseModel], request: web.Request) -> BaseModel:
    """The body, read.

    Raises:
        NotDoneError: it is no JSON.
        InvalidError: it is not what the operation takes.
    """
    if request.content_type != _JSON:
        raise NotDoneError(415, f"the body is not {_JSON}")
    given = await request.read()
    try:
        return model.model_validate_json(given)
    except ValidationError as error:
        if any(one["type"] == "json_invalid" for one in error.errors(include_input=False)):
            raise NotDoneError(400, "the body is no JSON") from None
        raise InvalidError(error) from None


class InvalidError(Exception):
    """A body that is not what an operation takes; what was sent is not repeated.

    Attributes:
        why: the first of them, one line.
        errors: all of them, as `field` and `detail`.
    """

    def __init__(self, error: ValidationError) -> None:
        where, self.why = _first(error)
        self.why = f"{where}: {self.why}"
        super().__init__(self.why)
        self.errors = [
            {"field": _place(one["loc"]), "detail": one["msg"]}
            for one in error.errors(include_url=False, include_context=False, include_input=False)
        ]


def _first(error: ValidationError) -> tuple[str, str]:
    one = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return _place(one["loc"]), one["msg"]


def _place(parts: tuple[int | str, ...]) -> str:
    return ".".join(ascii(str(part)[:40])[1:-1] for part in parts) or "body"


def _answer(status: int, body: str, *, tag: str | None = None) -> web.Response:
    answer = web.Response(status=status, body=body.encode(), content_type=_JSON)
    answer.headers["Cache-Control"] = "no-store"
    if tag is not None:
        answer.headers["ETag"] = tag
    return answer
