"""Access: the switches of the API and MCP, and the allowlist; tried before they stay."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

from aiohttp import web
from redis.exceptions import RedisError

from authsidecar.admin.allowlist_preview import AdmittedClients, preview
from authsidecar.admin.questions import UnansweredError
from authsidecar.admin.refusal import OWNED, Refusal
from authsidecar.admin.settings import (
    confirm_allowlist,
    confirm_api,
    root_callers,
    set_allowlist,
    switch_api,
    switch_mcp,
)
from authsidecar.decision.addresses import parse_address
from authsidecar.decision.model import Address
from authsidecar.serving.console.page import (
    ConsolePage,
    PageRoute,
    Undo,
    Visit,
    together,
)
from authsidecar.serving.console.slow_answers import NotYetError, SlowAnswers
from authsidecar.serving.manage.models import LONGEST_ALLOWLIST
from authsidecar.serving.manage.operations import NotDoneError
from authsidecar.store.management_keys import Scope
from authsidecar.store.trials import TRIED, Trial
from authsidecar.times import rfc3339

T = TypeVar("T")

DAY_MS: Final = 24 * 3_600_000

WITHIN: Final = {"120": "2 minutes", "300": "5 minutes", "900": "15 minutes", "": "for good"}
"""How long a change lasts unless it is confirmed, in seconds; the first is chosen."""

CLIENTS_S: Final = 300.0
"""For how long the addresses of the last day are taken as read, in seconds."""


_LAST_DAY: Final = SlowAnswers[Mapping[str, float]](CLIENTS_S)
"""How often each address was admitted in the last day, about."""


async def show(visit: Visit) -> web.StreamResponse:
    """The switches and the allowlist as they are."""
    return await _shown(visit, own=visit.query.get("my_ip"))


async def check(visit: Visit) -> web.StreamResponse:
    """The page with what the list in its editor would mean; nothing is saved."""
    return await _shown(visit, text=visit.form.get("allowlist", ""), look=True)


async def check_part(visit: Visit) -> web.StreamResponse:
    """What the list in the editor would mean, alone: asked for while somebody types."""
    return visit.page("access_preview.html", **await _preview(visit))


async def _shown(
    visit: Visit,
    *,
    text: str | None = None,
    own: str | None = None,
    look: bool = False,
    wrong: str = "",
    status: int = 200,
) -> web.StreamResponse:
    settings, trials, owner = await together(
        visit.ask("readSettings"), visit.call().registry.trials.pending(), visit.sidecar.owner()
    )
    looked = await _preview(visit) if look else _NO_PREVIEW
    return visit.page(
        "access.html",
        status=status,
        wrong=wrong,
        settings=settings,
        trials=dict.fromkeys(TRIED) | {one.setting: rfc3339(one.until) for one in trials},
        before={one.setting: one.before or "" for one in trials},
        owned=owner is not None,
        text="\n".join(settings.allowlist.entries) if text is None else text,
        own=own or _own(visit),
        within=WITHIN,
        longest=LONGEST_ALLOWLIST,
        **looked,
    )


_NO_PREVIEW: Final[Mapping[str, Any]] = {"preview": None, "unknown": "", "again": False}


async def _preview(visit: Visit) -> dict[str, Any]:
    clients: Mapping[str, float] = {}
    unknown, again = "", False
    try:
        clients = await _LAST_DAY.of(
            visit.sidecar.client, lambda: visit.sidecar.ask(AdmittedClients(DAY_MS))
        )
    except NotYetError:
        unknown, again = (
            "the addresses of the last day are being read; look again in a moment",
            True,
        )
    except UnansweredError as error:
        unknown = error.why
    except (RedisError, OSError):
        unknown = "Redis does not answer"
    caller = parse_address(_own(visit))
    found = await asyncio.to_thread(preview, _list(visit), caller=caller, clients=clients)
    return {"preview": found, "unknown": unknown, "again": again}


def _own(visit: Visit) -> str:
    """The address that must stay allowed: the one that was given, or the browser's own."""
    if "my_ip" in visit.form:
        return visit.form["my_ip"].strip()
    found = parse_address(visit.request.remote or "")
    return "" if found is None or found.is_loopback else str(found)


def _list(visit: Visit) -> str:
    """The editor's lines as a list with commas.

    Raises:
        NotDoneError: it is too long.
    """
    text = ",".join(visit.form.get("allowlist", "").splitlines())
    if len(text) > LONGEST_ALLOWLIST:
        raise NotDoneError(
            422,
            f"the list has more than {LONGEST_ALLOWLIST} characters; `authsidecar allowlist set` "
            "takes longer ones",
        )
    return text


async def save(visit: Visit) -> web.StreamResponse:
    """Save the allowlist, for some minutes unless it is confirmed."""
    try:
        await _must_be_ours(visit)
        text, caller = _list(visit), _caller(visit)
        registry, sidecar = visit.call().registry, visit.sidecar
        before = await _before(visit, "allowlist")
        saved = _done(
            await set_allowlist(
                registry,
                text,
                caller=caller,
                force=False,
                callers=lambda: root_callers(
                    registry, sidecar.client, sidecar.keys, sidecar.rules().policy.instance_team
                ),
                within_ms=_within_ms(visit),
            )
        )
    except NotDoneError as error:
        text = visit.form.get("allowlist", "")
        return await _shown(visit, text=text, look=True, wrong=error.why, status=error.status)
    said = "; ".join(("the allowlist is saved", *saved.warnings))
    return await _back(visit, said, saved.trial, before)


async def confirm(visit: Visit) -> web.StreamResponse:
    """Keep the allowlist that is tried."""
    try:
        kept = _done(await confirm_allowlist(visit.call().registry, _caller(visit)))
    except NotDoneError as error:
        return await _shown(visit, wrong=error.why, status=error.status)
    back = await _undo(visit, {"allowlist": kept.before or ""})
    return await visit.moved("/access", said="the allowlist stays", undo=back)


async def undo(visit: Visit) -> web.StreamResponse:
    """Take back what is tried, before its time is over."""
    await _must_be_ours(visit)
    registry = visit.call().registry
    setting = visit.path["setting"]
    trial = next((one for one in await registry.trials.pending() if one.setting == setting), None)
    if trial is None:
        return await visit.moved("/access", said="it was taken back already")
    if trial.setting == "allowlist":
        await registry.set_instance(allowlist=trial.before or "")
    else:
        await registry.set_instance(api_enabled=trial.before == "1")
    return await visit.moved("/access", said="it is as it was before")


async def switch(visit: Visit) -> web.StreamResponse:
    """Turn the API or MCP on or off."""
    await _must_be_ours(visit)
    registry, on = visit.call().registry, visit.form.get("on") == "1"
    word = "on" if on else "off"
    if visit.path["switch"] == "mcp":
        before = await _before(visit, "mcp_enabled")
        await switch_mcp(registry, on=on, team=None)
        return await visit.moved("/access", said=f"MCP is {word}", undo=await _undo(visit, before))
    before = await _before(visit, "api_enabled")
    trial = await switch_api(registry, on=on, within_ms=_within_ms(visit))
    return await _back(visit, f"the API is {word}", trial, before)


async def confirm_switch(visit: Visit) -> web.StreamResponse:
    """Keep the API as it was switched."""
    kept = _done(await confirm_api(visit.call().registry))
    back = await _undo(visit, {"api_enabled": kept.before == "1"})
    return await visit.moved("/access", said="the API stays as it is", undo=back)


async def _must_be_ours(visit: Visit) -> None:
    if await visit.sidecar.owner() is not None:
        raise NotDoneError(409, OWNED)


async def _before(visit: Visit, setting: str) -> dict[str, Any] | None:
    """How a setting is, or None: it is tried, so that it is not to be put back for good."""
    if any(one.setting == setting for one in await visit.call().registry.trials.pending()):
        return None
    found = await visit.ask("readSettings")
    return {setting: found.allowlist.text if setting == "allowlist" else getattr(found, setting)}


async def _undo(visit: Visit, before: Mapping[str, Any] | None) -> Undo | None:
    """What makes a setting what it was before."""
    if before is None:
        return None
    # A list that was there before is put back whomever it admits.
    return await visit.undo("changeSettings", {}, {**before, "force": True})


async def _back(
    visit: Visit, said: str, trial: Trial | None, before: Mapping[str, Any] | None
) -> web.Response:
    """To the page, which then has a form that confirms, or a button that undoes."""
    back = None
    if trial is None:
        back = await _undo(visit, before)
    else:
        said += f", until {rfc3339(trial.until)} unless you keep it below"
    own = _own(visit)
    path = f"/access?{urlencode({'my_ip': own})}" if own else "/access"
    return await visit.moved(path, said=said, undo=back)


def _caller(visit: Visit) -> Address | None:
    own = _own(visit)
    found = parse_address(own)
    if own and found is None:
        raise NotDoneError(422, "your address: is not an IP address (no port, no network, no name)")
    return found


def _within_ms(visit: Visit) -> int | None:
    within = visit.form.get("within", "")
    if within not in WITHIN:
        raise NotDoneError(422, "how long it is tried: is none of the choices")
    return int(within) * 1000 if within else None


def _done(answer: T | Refusal) -> T:
    if isinstance(answer, Refusal):
        raise NotDoneError(422, answer.why)
    return answer


PAGE = ConsolePage(
    "Access",
    "/access",
    (
        PageRoute("GET", "/access", show),
        PageRoute("POST", "/access/check", check, scope=Scope.READ),
        PageRoute("POST", "/access/check/part", check_part, scope=Scope.READ),
        PageRoute("POST", "/access/allowlist", save),
        PageRoute("POST", "/access/allowlist/confirm", confirm),
        PageRoute("POST", "/access/api_enabled/confirm", confirm_switch),
        PageRoute("POST", "/access/{setting:allowlist|api_enabled}/undo", undo),
        PageRoute("POST", "/access/switch/{switch:api|mcp}", switch),
    ),
)
