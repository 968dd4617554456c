"""What narrows a token: a form with the tree of Coolify's resources, and the way back."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from authsidecar.admin.advice import DAYS, TokenAdvice, advise_on
from authsidecar.admin.restriction_trial import RestrictionTrial, try_restriction
from authsidecar.admin.restrictions import GUARDED, RESOURCES
from authsidecar.decision.model import Permission, Place, ResourceKind, TeamId, TokenId
from authsidecar.decision.permissions import satisfies
from authsidecar.decision.resources import environment_key
from authsidecar.decision.restrictions import RestrictionError, as_mapping, parse
from authsidecar.serving.console.page import PageRoute, Undo, Visit
from authsidecar.serving.manage import models
from authsidecar.serving.manage.operations import NotDoneError
from authsidecar.store.management_keys import Scope

MOST_OFFERED: Final = 2000
"""Resources of a team that the form offers; where there are more, uuids are typed."""

AT_ONCE: Final = 100
"""How many of them are read at once: requests are decided between two trips."""

LISTS: Final = {
    "permissions": "Permissions",
    "routes": "Routes",
    "projects": "Projects",
    "environments": "Environments",
    "resources": "Resources",
    "tags": "Tags",
    "from": "From",
    "hours": "Hours",
}
"""Parts of a restriction that are lists, as people call them."""

TEXTS: Final = {
    "rate": "Rate",
    "uses": "Uses",
    "not_before": "Not before",
    "until": "Until",
    "note": "Note",
}
"""Parts that are one value."""


@dataclass(slots=True)
class Environment:
    """What lies in an environment: kind and uuid of each."""

    name: str
    resources: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Tree:
    """A team's resources.

    Attributes:
        projects: environments by their names, by the projects' uuids.
        beside: servers and what else lies in no project.
        known: how many resources are known at all.
        whole: whether all are in it; otherwise there are too many.
    """

    projects: dict[str, dict[str, Environment]] = field(default_factory=dict)
    beside: list[tuple[str, str]] = field(default_factory=list)
    known: int = 0
    whole: bool = True


def as_rows(restriction: models.Restriction | None) -> list[tuple[str, list[str]]]:
    """A restriction for people: what each part is called, and its values."""
    given = as_fields(restriction)
    return [(title, given[name]) for name, title in {**LISTS, **TEXTS}.items() if given[name]]


def as_fields(restriction: models.Restriction | None) -> dict[str, list[str]]:
    """A restriction as the form's fields."""
    parts = {} if restriction is None else restriction.model_dump(by_alias=True, exclude_none=True)
    return {
        **{name: list(map(str, parts.get(name, []))) for name in LISTS},
        **{name: [str(parts[name])] if name in parts else [] for name in TEXTS},
    }


async def show(visit: Visit) -> web.StreamResponse:
    """The form, with what narrows the token now, or with what it could be narrowed to."""
    number = visit.path["token"]
    held = await visit.ask("readRestriction", path={"scope": "token", "id": number})
    given = as_fields(held.restriction)
    if "advised" in visit.query:
        advice = await advice_on(visit, held.id)
        if advice is not None and advice.proposal is not None:
            given = as_fields(models.Restriction.model_validate(as_mapping(advice.proposal)))
    return await _form(visit, given, widened=held.restriction is not None)


async def advice_on(visit: Visit, number: int) -> TokenAdvice | None:
    """What a token could be narrowed to; None: it has just been revoked."""
    registry, sidecar = visit.call().registry, visit.sidecar
    token = await registry.token(TokenId(number))
    if token is None:
        return None
    routes = sidecar.rules().policy.routes
    found = await advise_on(registry, sidecar.client, sidecar.keys, routes, [token], days=DAYS)
    return found[0]


async def _form(
    visit: Visit,
    given: Mapping[str, list[str]],
    *,
    widened: bool,
    trial: RestrictionTrial | None = None,
    wrong: str = "",
    status: int = 200,
) -> web.StreamResponse:
    token = await visit.ask("readToken", path={"token": visit.path["token"]})
    found = await visit.call().registry.token(TokenId(token.id))
    holds = frozenset() if found is None else found.permissions
    routes = sorted(
        {
            (one.template, one.method)
            for one in visit.sidecar.rules().policy.routes
            if one.guard in GUARDED
        }
    )
    tree = await resource_tree(visit, token.team)
    offered = {f"{method} {template}" for template, method in routes}
    picked = {
        "routes": offered,
        "resources": {uuid for _, uuid in tree.beside}
        | {u for p in tree.projects.values() for e in p.values() for _, u in e.resources},
        "projects": set(tree.projects),
        "environments": {
            environment_key(p, name) for p, es in tree.projects.items() for name in es
        },
    }
    return await asyncio.to_thread(  # thousands of resources take some time
        visit.page,
        "token_restrict.html",
        status=status,
        wrong=wrong,
        token=token,
        given=given,
        typed={
            name: [one for one in given[name] if one not in picked.get(name, ())] for name in LISTS
        },
        permissions=[
            one.value
            for one in Permission
            if one is not Permission.LEGACY_ROOT and satisfies(holds, one)
        ],
        routes=[f"{method} {template}" for template, method in routes],
        tree=tree,
        widened=widened,
        trial=trial,
    )


async def resource_tree(visit: Visit, team: int | None) -> Tree:
    """What the sync knows of a team's resources."""
    registry = visit.call().registry
    keys = await registry.located()
    tree = Tree(known=len(keys), whole=len(keys) <= MOST_OFFERED)
    if not tree.whole or team is None:
        return tree
    places: dict[str, Place | None] = {}
    for start in range(0, len(keys), AT_ONCE):
        places |= await registry.places(keys[start : start + AT_ONCE])
    for key, place in sorted(places.items()):
        if place is None or place.team != TeamId(team) or place.kind is None or "/" in key:
            continue
        if place.kind is ResourceKind.PROJECT:
            tree.projects.setdefault(key, {})
        elif place.kind is ResourceKind.ENVIRONMENT:
            _environment(tree, place.project, place.environment_name)
        elif place.kind in RESOURCES:
            one = (place.kind.value, key)
            if place.project and place.environment_name:
                _environment(tree, place.project, place.environment_name).resources.append(one)
            else:
                tree.beside.append(one)
    return tree


def _environment(tree: Tree, project: str, name: str) -> Environment:
    return tree.projects.setdefault(project, {}).setdefault(name, Environment(name))


async def change(visit: Visit) -> web.StreamResponse:
    """Narrow the token to what the form says."""
    number = visit.path["token"]
    given, where = _given(visit), {"scope": "token", "id": number}
    try:
        body = _parts(given) | {"force": "force" in visit.form}
        before = await visit.ask("readRestriction", path=where)
        done = await visit.ask("setRestriction", path=where, body=body)
    except NotDoneError as error:
        why = error.why.replace("--force keeps it all the same", "“Keep it all the same” does that")
        return await _form(visit, given, widened=True, wrong=why, status=error.status)
    said = " ".join(["Narrowed, from the very next request on.", *done.warnings])
    return await visit.moved(f"/tokens/{number}", said=said, undo=await _undo(visit, before))


async def outlook(visit: Visit) -> web.StreamResponse:
    """The same form, with what it would have refused lately; nothing is changed."""
    given = _given(visit)
    token = await visit.ask("readToken", path={"token": visit.path["token"]})
    sidecar = visit.sidecar
    try:
        wanted = parse(_parts(given))
    except RestrictionError as error:
        return await _form(visit, given, widened=True, wrong=str(error), status=422)
    except NotDoneError as error:
        return await _form(visit, given, widened=True, wrong=error.why, status=error.status)
    trial = await try_restriction(
        sidecar.client, sidecar.keys, sidecar.rules().policy.routes, TokenId(token.id), wanted
    )
    return await _form(visit, given, widened=True, trial=trial)


def _parts(given: Mapping[str, list[str]]) -> dict[str, Any]:
    """The parts of a restriction, as files have them."""
    parts: dict[str, Any] = {name: given[name] for name in LISTS if given[name]}
    parts |= {name: given[name][0] for name in TEXTS if given[name]}
    return parts | {"uses": _uses(parts["uses"])} if "uses" in parts else parts


def _given(visit: Visit) -> dict[str, list[str]]:
    """What was picked and what was typed, a value a line."""
    found: dict[str, list[str]] = {}
    for name in LISTS:
        lines = [one.strip() for text in visit.form.getall(name, []) for one in text.splitlines()]
        found[name] = list(dict.fromkeys(filter(None, lines)))
    for name in TEXTS:
        text = visit.form.get(name, "").strip()
        found[name] = [text] if text else []
    return found


def _uses(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise NotDoneError(422, "uses: is not a whole number")
    return int(text)


async def remove(visit: Visit) -> web.StreamResponse:
    """Take back what narrows the token."""
    number = visit.path["token"]
    where = {"scope": "token", "id": number}
    before = await visit.ask("readRestriction", path=where)
    await visit.ask("removeRestriction", path=where)
    said = "Nothing of its own narrows it any more."
    return await visit.moved(f"/tokens/{number}", said=said, undo=await _undo(visit, before))


async def _undo(visit: Visit, before: models.HeldRestriction) -> Undo | None:
    """What makes the restriction what it was before, unless that could not be read."""
    if before.damaged:
        return None
    where = {"scope": "token", "id": before.id}
    if before.restriction is None:
        return await visit.undo("removeRestriction", where)
    body = before.restriction.model_dump(mode="json", by_alias=True, exclude_none=True)
    return await visit.undo("setRestriction", where, body | {"force": True})


ROUTES: Final = (
    PageRoute("GET", "/tokens/{token}/restrict", show),
    PageRoute("POST", "/tokens/{token}/restrict", change),
    PageRoute("POST", "/tokens/{token}/restrict/outlook", outlook, scope=Scope.READ),
    PageRoute("POST", "/tokens/{token}/unrestrict", remove),
)
