"""The instance's settings and the limits over the management API."""

from authsidecar.admin.limits import Standing, chosen, counter, look_up
from authsidecar.admin.settings import check_allowlist, root_callers
from authsidecar.serving.manage import models
from authsidecar.serving.manage.operations import (
    Call,
    CurrentState,
    NotDoneError,
    Operation,
    done,
    holder_key,
    page_of,
    present,
    read_address,
)
from authsidecar.serving.manage.tokens import list_tokens
from authsidecar.store.management_keys import Scope
from authsidecar.times import rfc3339


async def read_settings(call: Call) -> models.Settings:
    """The switches and the allowlist."""
    found = await call.registry.instance()
    allowlist = models.Allowlist(
        text=found.allowlist.text,
        everyone=found.allowlist.everyone,
        entries=list(found.allowlist.entries),
    )
    return models.Settings(
        api_enabled=found.api_enabled, mcp_enabled=found.mcp_enabled, allowlist=allowlist
    )


async def change_settings(call: Call) -> models.ChangedSettings:
    """Change what is given, all at once."""
    body: models.SettingsChange = call.body
    sidecar = call.sidecar
    allowlist: str | None = None
    warnings: tuple[str, ...] = ()
    if body.allowlist is not None:
        caller = None if body.my_ip is None else read_address("my_ip", body.my_ip)
        answer = await check_allowlist(
            body.allowlist,
            caller=caller,
            force=body.force,
            callers=lambda: root_callers(
                call.registry, sidecar.client, sidecar.keys, sidecar.rules().policy.instance_team
            ),
        )
        checked = done(answer, 422)
        allowlist, warnings = checked.allowlist.text, checked.warnings
    if (body.allowlist, body.api_enabled, body.mcp_enabled) != (None, None, None):
        await call.registry.set_instance(
            api_enabled=body.api_enabled, mcp_enabled=body.mcp_enabled, allowlist=allowlist
        )
    found = await read_settings(call)
    return models.ChangedSettings(**dict(found), warnings=list(warnings))


async def reload_configuration(call: Call) -> models.Reloaded:
    """Read the configuration again: all of it is in force at once, or nothing has changed."""
    found = await call.sidecar.reload()
    if found.problems:
        why = "nothing has changed: the configuration can't be used"
        raise NotDoneError(422, why, [{"detail": one} for one in found.problems])
    after = {"config_digest": found.digest, "changed": found.changed}
    await call.trail.add(call.origin, "config.reload", "configuration", after=after)
    return models.Reloaded(
        config_digest=found.digest, changed=list(found.changed), left=list(found.left)
    )


async def list_limits(call: Call) -> models.LimitPage:
    """A page of overrides: it looks at some holders, and gives those that have one."""
    query: models.LimitsQuery = call.query
    registry, keys = call.registry, call.sidecar.keys
    if query.scope == "token":
        page = await list_tokens(
            Call(
                call.sidecar,
                call.origin,
                call.path,
                models.TokensQuery(limit=query.limit, cursor=query.cursor),
                None,
            )
        )
        ids, following = [one.id for one in page.items], page.next
    else:
        ids, following = await page_of(call, keys.users if query.scope == "user" else keys.teams)
    own = await registry.limits_of(query.scope, ids)
    items = [await _standing(call, query.scope, number) for number in own]
    return models.LimitPage(items=items, next=following)


async def read_limit(call: Call) -> models.Limit:
    """What holds for a user, token or team, and how much of it is used."""
    return await _standing(call, call.path["scope"], call.path["id"])


async def set_limit(call: Call) -> models.Limit:
    """Give it a limit of its own."""
    scope, number = call.path["scope"], call.path["id"]
    body: models.NewLimit = call.body
    wanted = chosen(body.limit, body.window_seconds, call.sidecar.rules().limits.get(scope))
    present(await call.registry.set_limit(scope, number, wanted) or None, scope, number)
    return await read_limit(call)


async def clear_limit(call: Call) -> models.Limit:
    """Take it back; the configured one applies again."""
    scope, number = call.path["scope"], call.path["id"]
    present(await call.registry.set_limit(scope, number, None) or None, scope, number)
    return await read_limit(call)


async def reset_limit(call: Call) -> models.Limit:
    """Forget what was counted."""
    scope, number = call.path["scope"], call.path["id"]
    found = present(await counter(call.registry, scope, number), scope, number)
    await call.registry.reset(found)
    return await read_limit(call)


async def _standing(call: Call, scope: models.ScopeName, number: int) -> models.Limit:
    found = await look_up(call.registry, call.sidecar.rules().limits, scope, number)
    return _limit(scope, number, present(found, scope, number))


def _limit(scope: models.ScopeName, number: int, found: Standing) -> models.Limit:
    limit = found.limit
    return models.Limit(
        scope=scope,
        id=number,
        limit=None if limit is None else limit.requests,
        window_seconds=None if limit is None else limit.window_ms / 1000,
        source=found.source,
        used=found.used,
        remaining=None if limit is None else max(0, limit.requests - found.used),
        free_at=None if found.free_at is None else rfc3339(found.free_at),
    )


_LIMIT = CurrentState(read_limit, holder_key)

OPERATIONS = (
    Operation(
        method="GET",
        path="/settings",
        name="readSettings",
        summary="Read the switches and the allowlist.",
        run=read_settings,
        answer=models.Settings,
        tagged=True,
    ),
    Operation(
        method="PATCH",
        path="/settings",
        name="changeSettings",
        summary="Change the switches and the allowlist, from the very next request on.",
        run=change_settings,
        body=models.SettingsChange,
        answer=models.ChangedSettings,
        current=CurrentState(read_settings, lambda call: call.sidecar.keys.instance),
        scope=Scope.WRITE,
        owned=True,
    ),
    Operation(
        method="POST",
        path="/reload",
        name="reloadConfiguration",
        summary="Read the configuration again: all of it, or nothing.",
        run=reload_configuration,
        answer=models.Reloaded,
        scope=Scope.WRITE,
        refusals=(422,),
    ),
    Operation(
        method="GET",
        path="/limits",
        name="listLimits",
        summary="List the limits that were set, with what is used of them.",
        run=list_limits,
        query=models.LimitsQuery,
        answer=models.LimitPage,
        refusals=(404, 422),
    ),
    Operation(
        method="GET",
        path="/limits/{scope}/{id}",
        name="readLimit",
        summary="Read what holds for a user, token or team, and how much of it is used.",
        run=read_limit,
        answer=models.Limit,
        tagged=True,
    ),
    Operation(
        method="PUT",
        path="/limits/{scope}/{id}",
        name="setLimit",
        summary="Give a user, token or team a limit of its own.",
        run=set_limit,
        body=models.NewLimit,
        answer=models.Limit,
        current=_LIMIT,
        scope=Scope.WRITE,
    ),
    Operation(
        method="DELETE",
        path="/limits/{scope}/{id}",
        name="clearLimit",
        summary="Take it back; the configured one applies again.",
        run=clear_limit,
        answer=models.Limit,
        current=_LIMIT,
        scope=Scope.WRITE,
    ),
    Operation(
        method="POST",
        path="/limits/{scope}/{id}/reset",
        name="resetLimit",
        summary="Forget what was counted: the full limit is there again.",
        run=reset_limit,
        answer=models.Limit,
        scope=Scope.WRITE,
    ),
)
"""In the order of their paths."""
