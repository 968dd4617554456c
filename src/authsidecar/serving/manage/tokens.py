"""Tokens, and what narrows tokens, users and teams, over the management API."""

import json
from collections.abc import Mapping
from typing import Any, Final

from authsidecar.admin.restrictions import carry_out, plan
from authsidecar.admin.tokens import issue
from authsidecar.decision.model import DAMAGED, Permission, TeamId, TokenId, UserId
from authsidecar.decision.model import Restriction as Narrowing
from authsidecar.decision.restrictions import RestrictionError, as_mapping, parse
from authsidecar.serving.manage import models
from authsidecar.serving.manage.operations import (
    Call,
    CurrentState,
    NotDoneError,
    Operation,
    done,
    holder_key,
    page_of,
    place_in_set,
    present,
    read_cursor,
    write_cursor,
)
from authsidecar.serving.manage.people import late_replicas_of
from authsidecar.store.entities import Token
from authsidecar.store.last_used import Use, last_use
from authsidecar.store.management_keys import Scope
from authsidecar.times import rfc3339

OWNERS_A_PAGE: Final = 20
"""How many users one page of all tokens looks at: the next one goes on with the others."""


_MOST_SORTED: Final = 2**40
"""How far into an order a cursor may point."""


async def list_tokens(call: Call) -> models.TokenPage:
    """A page of tokens: of a user, of a team, or of all users one after the other."""
    query: models.TokensQuery = call.query
    registry, keys = call.registry, call.sidecar.keys
    if query.user is not None:
        present(await registry.user(UserId(query.user)), "user", query.user)
    if query.team is not None:
        present(await registry.team(TeamId(query.team)), "team", query.team)
    if query.sort == "expiry":
        ids, following = await _next_to_expire(call)
    elif query.user is None and query.team is None:
        ids, following = await _of_all(call)
    else:
        index = (
            keys.team_tokens(TeamId(query.team or 0))
            if query.user is None
            else keys.user_tokens(UserId(query.user))
        )
        ids, following = await page_of(call, index)
    found = await registry.tokens_of([TokenId(i) for i in ids])
    if query.team is not None:
        found = [one for one in found if one.team == query.team]
    return models.TokenPage(items=await _shown(call, found), next=following)


async def _next_to_expire(call: Call) -> tuple[list[int], str | None]:
    """Ids of tokens that expire next, and where to go on."""
    query: models.TokensQuery = call.query
    if query.user is not None or query.team is not None:
        raise NotDoneError(422, "sort: expiry is of all tokens, without user and team")
    start, _ = place_in_set(read_cursor(query.cursor))
    if start > _MOST_SORTED:
        raise NotDoneError(422, "cursor: is none that a page gave as `next`")
    found = await call.registry.expiring_page(start, query.limit)
    more = len(found) == query.limit
    return [int(i) for i in found], write_cursor([start + len(found), False]) if more else None


async def _of_all(call: Call) -> tuple[list[int], str | None]:
    """Ids of tokens of the next users, and where to go on."""
    registry, keys, wanted = call.registry, call.sidecar.keys, call.query.limit
    owners, users, within = _place_in_all(read_cursor(call.query.cursor))
    ids: list[int] = []
    for _ in range(OWNERS_A_PAGE):
        if not owners:
            if users is None:
                return ids, None
            found, more, scanned = await registry.page(
                keys.users, users[0], OWNERS_A_PAGE, scan=users[1]
            )
            owners, users = found, None if more is None else (more, scanned)
            if not owners:
                continue
        index = keys.user_tokens(UserId(owners[0]))
        page, more, scanned = await registry.page(
            index, within[0], wanted - len(ids), scan=within[1]
        )
        ids += page
        within = (0, False) if more is None else (more, scanned)
        owners = owners[1:] if more is None else owners
        if len(ids) >= wanted:
            break
    if not owners and users is None:
        return ids, None
    return ids, write_cursor([owners, users, within])


_Place = tuple[int, bool]


def _place_in_all(place: Any) -> tuple[list[int], _Place | None, _Place]:
    """The users that are next, the place among all users, and the place among one's tokens."""
    match place:
        case None:
            return [], (0, False), (0, False)
        case [list(owners), users, within] if (
            within is not None
            and len(owners) <= 2 * models.MOST_ITEMS
            and all(type(one) is int and 0 <= one < 2**63 for one in owners)
        ):
            return owners, None if users is None else place_in_set(users), place_in_set(within)
        case _:
            raise NotDoneError(422, "cursor: is none that a page gave as `next`")


async def read_token(call: Call) -> models.Token:
    """One token."""
    return (await _shown(call, [await _token_of(call)]))[0]


async def create_token(call: Call) -> models.CreatedToken:
    """Make one; the only time that its secret is told."""
    body: models.NewToken = call.body
    answer = await issue(
        call.registry,
        user=UserId(body.user),
        team=TeamId(body.team),
        name=body.name,
        permissions=[Permission(one) for one in body.permissions],
        days=body.expires,
    )
    issued = done(answer, 422)
    return _created(issued.token, issued.plain)


async def created_token(call: Call) -> models.CreatedToken:
    """One that was made before, without its secret."""
    return _created(await _token_of(call), None)


async def _token_of(call: Call) -> Token:
    number = call.path["token"]
    return present(await call.registry.token(TokenId(number)), "token", number)


async def revoke_token(call: Call) -> models.Revoked:
    """Delete one."""
    token = call.path["token"]
    present(await call.registry.remove_token(TokenId(token)) or None, "token", token)
    return models.Revoked(id=token, revoked=True, warnings=await late_replicas_of(call))


async def read_restriction(call: Call) -> models.HeldRestriction:
    """What narrows a token, user or team itself."""
    scope, number = call.path["scope"], call.path["id"]
    owner = await _owner(call)
    found = await call.registry.restriction(scope, number)
    spent = None if owner is None else await call.registry.used(TokenId(number), owner)
    return models.HeldRestriction(
        scope=scope,
        id=number,
        damaged=found is DAMAGED,
        restriction=_restriction(found),
        uses_spent=spent,
    )


async def set_restriction(call: Call) -> models.SetRestriction:
    """Narrow it."""
    body: models.NewRestriction = call.body
    parts = body.model_dump(by_alias=True, exclude_none=True, exclude={"force"})
    try:
        wanted = parse(parts)
    except RestrictionError as error:
        raise NotDoneError(422, str(error)) from None
    return await _change(call, wanted, force=body.force)


async def remove_restriction(call: Call) -> models.SetRestriction:
    """Take it back."""
    return await _change(call, None, force=False)


async def _change(call: Call, wanted: Narrowing | None, *, force: bool) -> models.SetRestriction:
    scope, number = call.path["scope"], call.path["id"]
    await _owner(call)
    routes = call.sidecar.rules().policy.routes
    planned = done(await plan(call.registry, routes, scope, number, wanted, force=force), 422)
    if planned.changes:
        done(await carry_out(call.registry, planned), 404)
    elif call.precondition is not None:  # another writer may have wanted the same
        await call.precondition.check()
    late = await late_replicas_of(call)
    held = await read_restriction(call)
    return models.SetRestriction(**dict(held), warnings=[*planned.warnings, *late])


async def _owner(call: Call) -> UserId | None:
    """A token's owner, or None of a user or team.

    Raises:
        NotDoneError: it is not there.
    """
    scope, number = call.path["scope"], call.path["id"]
    if scope == "token":
        return present(await call.registry.token(TokenId(number)), scope, number).user
    user, team = UserId(number), TeamId(number)
    held = call.registry.user(user) if scope == "user" else call.registry.team(team)
    present(await held, scope, number)
    return None


async def _shown(call: Call, tokens: list[Token]) -> list[models.Token]:
    ids = [one.id for one in tokens]
    uses = await last_use(call.sidecar.client, call.sidecar.keys, ids) if ids else {}
    narrowed = await call.registry.restrictions("token", ids) if ids else {}
    return [_token(one, uses, restricted=one.id in narrowed) for one in tokens]


def _token(token: Token, uses: Mapping[TokenId, Use], *, restricted: bool) -> models.Token:
    use = uses.get(token.id)
    return models.Token(
        id=token.id,
        name=token.name,
        user=token.user,
        team=token.team,
        permissions=[one.value for one in sorted(token.permissions)],
        expires_at=None if token.expires_at is None else rfc3339(token.expires_at),
        created_at=rfc3339(token.created_at),
        last_used_at=None if use is None else rfc3339(use.at),
        last_used_address=None if use is None else use.client,
        last_used_route=None if use is None else use.route,
        restricted=restricted,
    )


def _created(token: Token, plain: str | None) -> models.CreatedToken:
    return models.CreatedToken(
        id=token.id,
        token=plain,
        name=token.name,
        user=token.user,
        team=token.team,
        permissions=[one.value for one in sorted(token.permissions)],
        expires_at=None if token.expires_at is None else rfc3339(token.expires_at),
    )


def _restriction(found: Narrowing | None) -> models.Restriction | None:
    if found is None or found is DAMAGED:
        return None
    return models.Restriction.model_validate_json(json.dumps(as_mapping(found)))


_RESTRICTION = CurrentState(read_restriction, holder_key)

OPERATIONS = (
    Operation(
        method="GET",
        path="/tokens",
        name="listTokens",
        summary="List tokens, without their secrets.",
        run=list_tokens,
        query=models.TokensQuery,
        answer=models.TokenPage,
        refusals=(404, 422),
    ),
    Operation(
        method="POST",
        path="/tokens",
        name="createToken",
        summary="Create a token; the only time that its secret is told.",
        run=create_token,
        body=models.NewToken,
        answer=models.CreatedToken,
        status=201,
        creates=created_token,
        scope=Scope.WRITE,
        owned=True,
    ),
    Operation(
        method="GET",
        path="/tokens/{token}",
        name="readToken",
        summary="Read a token, without its secret.",
        run=read_token,
        answer=models.Token,
    ),
    Operation(
        method="DELETE",
        path="/tokens/{token}",
        name="revokeToken",
        summary="Delete a token; the very next request with it is refused.",
        run=revoke_token,
        answer=models.Revoked,
        scope=Scope.WRITE,
        owned=True,
    ),
    Operation(
        method="GET",
        path="/restrictions/{scope}/{id}",
        name="readRestriction",
        summary="Read what narrows a token, user or team.",
        run=read_restriction,
        answer=models.HeldRestriction,
        tagged=True,
    ),
    Operation(
        method="PUT",
        path="/restrictions/{scope}/{id}",
        name="setRestriction",
        summary="Narrow a token, or all of a user's or team's, from the very next request on.",
        run=set_restriction,
        body=models.NewRestriction,
        answer=models.SetRestriction,
        current=_RESTRICTION,
        scope=Scope.WRITE,
    ),
    Operation(
        method="DELETE",
        path="/restrictions/{scope}/{id}",
        name="removeRestriction",
        summary="Take back what narrows it.",
        run=remove_restriction,
        answer=models.SetRestriction,
        current=_RESTRICTION,
        scope=Scope.WRITE,
        refusals=(422,),
    ),
)
"""In the order of their paths."""
