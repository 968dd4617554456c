"""Tokens: who holds which, until when; made, looked at, revoked."""

import secrets
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final

from aiohttp import web

from authsidecar.admin.tokens import EXPIRY_DAYS
from authsidecar.decision.model import Permission, TeamId, TokenId, UserId
from authsidecar.serving.console.page import ConsolePage, Found, PageRoute, Visit, together
from authsidecar.serving.console.pages import token_restriction
from authsidecar.serving.manage import models
from authsidecar.serving.manage.operations import NotDoneError
from authsidecar.store.idempotency import Idempotency

OFFERED: Final = 200
"""How many users and teams a form offers; any other is typed."""

GIVABLE: Final = tuple(one.value for one in Permission if one is not Permission.LEGACY_ROOT)


async def show(visit: Visit) -> web.StreamResponse:
    """A page of tokens: all, a user's or team's, those that expire next, or of a name."""
    given = {name: visit.query.get(name, "").strip() for name in ("q", "user", "team", "sort")}
    search = given["q"]
    if search.isascii() and search.isdigit() and len(search) < 20 and int(search):
        return await visit.moved(f"/tokens/{int(search)}")
    query = {name: given[name] for name in ("user", "team", "sort") if given[name]}
    if "cursor" in visit.query:
        query["cursor"] = visit.query["cursor"]
    found, wrong, status = Found(), "", 200
    try:
        if search:
            name = search.casefold()
            found = await visit.search("listTokens", query, lambda one: name in one.name.casefold())
        else:
            page = await visit.ask("listTokens", query=query)
            found = Found(page.items, page.next)
    except NotDoneError as error:
        wrong, status = error.why, error.status
    return visit.page(
        "tokens.html",
        status=status,
        wrong=wrong,
        tokens=found.items,
        names=await names_of(visit, found.items),
        next=found.next,
        looked=found.looked,
        given=given,
        first="cursor" not in visit.query and not any(given.values()),
        owned=await visit.sidecar.owner() is not None,
        now=await visit.call().registry.now(),
    )


async def names_of(visit: Visit, tokens: Sequence[models.Token]) -> dict[str, dict[int, str]]:
    """What the users and teams of tokens are called, by their ids."""
    registry = visit.call().registry
    users = await registry.users_of({UserId(one.user) for one in tokens})
    teams = await registry.teams_of({TeamId(one.team) for one in tokens if one.team is not None})
    return {
        "users": {int(one.id): one.name for one in users},
        "teams": {int(one.id): one.name for one in teams},
    }


async def show_one(visit: Visit) -> web.StreamResponse:
    """One token."""
    return await _one(visit)


async def _one(visit: Visit, *, wrong: str = "", status: int = 200) -> web.StreamResponse:
    number = visit.path["token"]
    token = await visit.ask("readToken", path={"token": number})
    held, limit, advice, names = await together(
        visit.ask("readRestriction", path={"scope": "token", "id": number}),
        visit.ask("readLimit", path={"scope": "token", "id": number}),
        token_restriction.advice_on(visit, token.id),
        names_of(visit, [token]),
    )
    registry = visit.call().registry
    return visit.page(
        "token.html",
        status=status,
        wrong=wrong,
        token=token,
        held=held,
        rows=token_restriction.as_rows(held.restriction),
        limit=limit,
        advice=advice,
        names=names,
        disabled=bool(await registry.disabled([TokenId(token.id)])),
        owned=await visit.sidecar.owner() is not None,
        now=await registry.now(),
    )


async def show_new(visit: Visit) -> web.StreamResponse:
    """The form that makes a token."""
    return await _form(visit)


async def _form(visit: Visit, *, wrong: str = "", status: int = 200) -> web.StreamResponse:
    limit = {"limit": str(OFFERED)}
    users, teams = await together(
        visit.ask("listUsers", query=limit), visit.ask("listTeams", query=limit)
    )
    return visit.page(
        "token_new.html",
        status=status,
        wrong=wrong,
        users=users.items,
        teams=teams.items,
        permissions=GIVABLE,
        chosen=visit.form.getall("permissions", []),
        days=EXPIRY_DAYS,
        once=secrets.token_urlsafe(16),
        owned=await visit.sidecar.owner() is not None,
    )


async def create(visit: Visit) -> web.StreamResponse:
    """Make a token and show it, this once; a form that is sent again makes no second one."""
    kept = Idempotency(visit.sidecar.client, visit.sidecar.keys)
    once = sha256(f"console {visit.secret} {visit.form.get('once', '')}".encode()).hexdigest()
    before = await kept.begin(once, "console")
    if before is not None:
        if before.created is None:
            raise NotDoneError(409, "this form is being carried out; look at the list of tokens")
        said = "This form was sent before, and has made this token: its secret was shown then."
        return await visit.moved(f"/tokens/{before.created}", said=said)
    try:
        made = await visit.ask("createToken", body=_wanted(visit))
    except NotDoneError as error:
        await kept.give_back(once)
        return await _form(visit, wrong=error.why, status=error.status)
    except BaseException:
        await kept.give_back(once)
        raise
    await kept.created(once, "console", made.id)
    return visit.page("token_created.html", token=made)


def _wanted(visit: Visit) -> dict[str, Any]:
    days = visit.form.get("expires", "")
    return {
        "name": visit.form.get("name", "").strip(),
        "user": _number(visit, "user"),
        "team": _number(visit, "team"),
        "permissions": visit.form.getall("permissions", []),
        "expires": None if days == "never" else _number(visit, "expires"),
    }


def _number(visit: Visit, field: str) -> int:
    text = visit.form.get(field, "").strip()
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise NotDoneError(422, f"{field}: is not a whole number")
    return int(text)


async def revoke(visit: Visit) -> web.StreamResponse:
    """Delete a token, once its name is typed."""
    number = visit.path["token"]
    token = await visit.ask("readToken", path={"token": number})
    if visit.form.get("name", "").strip() != token.name.strip():
        why = "type the name of the token as it stands here; nothing was revoked"
        return await _one(visit, wrong=why, status=422)
    done = await visit.ask("revokeToken", path={"token": number})
    late = " ".join(["", *done.warnings])
    return await visit.moved(
        "/tokens",
        said=f"Token {number} is revoked: the very next request with it is refused.{late}",
    )


PAGE = ConsolePage(
    "Tokens",
    "/tokens",
    (
        PageRoute("GET", "/tokens", show),
        PageRoute("GET", "/tokens/new", show_new),
        PageRoute("POST", "/tokens/new", create),
        PageRoute("GET", "/tokens/{token}", show_one),
        PageRoute("POST", "/tokens/{token}/revoke", revoke),
        *token_restriction.ROUTES,
    ),
)
