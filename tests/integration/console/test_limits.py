"""Limits in the console: who is near or over, and overrides."""

import time

import pytest

from authsidecar.decision.authorize import Outcome
from authsidecar.decision.model import Allow, Deny, Limit, Proxy, Quota
from authsidecar.decision.policy import RATE_LIMITED
from authsidecar.store.management_keys import Scope
from authsidecar.times import UnixMs
from tests.integration.test_receipts import STATE, receipts, record, request
from tests.support import seed
from tests.support.console import Browser


@pytest.fixture
async def people(console: Browser) -> Browser:
    """Token 40 of user 1 in team 0."""
    await seed.user(console.registry, 1, t0="owner")
    await console.registry.put_tokens([seed.token(40, user=1, team=0)])
    return console


async def asked(console: Browser, *left: int) -> None:
    """Have token 40 send a request for each number, which leaves so many of ten."""
    writer = receipts(console.redis)
    now = UnixMs(int(time.time() * 1000))
    for n, remaining in enumerate(left):
        quota = Quota("token", Limit(10, 60_000), max(0, remaining), UnixMs(now + 60_000))
        verdict = Allow(None) if remaining >= 0 else Deny(RATE_LIMITED, "no room in token")
        told = Outcome(verdict, UnixMs(now + n), (quota,), "/api/v1/teams", record(40))
        if remaining >= 0:
            writer.admitted(f"{n:02x}", Proxy.NGINX, request(), told, STATE)
        else:
            writer.refused(f"{n:02x}", Proxy.NGINX, request(), told, "", STATE)
    await writer.write()


async def test_who_is_near_or_over_is_shown_with_the_last_decision(people):
    """Of those who left less than a tenth of a limit, how many found no room."""
    await asked(people, 5, 0, -1, -1)
    page = await people.get("/limits")
    assert page.has("10 of 10")
    assert '<td data-label="Refused" class="number">2</td>' in page.text
    assert "/console/decisions/03" in page.text
    assert 'class="meter over"' in page.text
    part = await people.get("/limits/near/part")
    assert part.has("10 of 10")
    assert "<h1" not in part.text, "the rows alone, for who has the page open"


async def test_who_has_room_is_not_shown(people):
    """A tenth of a limit is left at least."""
    await asked(people, 9, 1)
    assert (await people.get("/limits")).has("Nobody: every request")


async def test_a_limit_is_given_emptied_and_taken_back(people):
    """From the very next request on, in the words of what holds then."""
    path = "/limits"
    page = await people.post(path, {"scope": "token", "id": "40", "limit": "5"})
    assert page.headers["Location"] == "/console/limits?scope=token"
    page = await people.get("/limits?scope=token")
    assert page.has("token 40 may make 5 requests in 60 s")
    assert page.has("5 in 60 s")
    await people.post(f"{path}/token/40/reset", {})
    assert (await people.get(path)).has("the counter of token 40 is empty again")
    await people.post(f"{path}/token/40/clear", {})
    assert (await people.get(path)).has("as configured")
    assert not await people.registry.limits_of("token", [40])


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"scope": "token", "id": "41", "limit": "5"}, 404, "there is no token 41"),
        ({"scope": "token", "id": "x", "limit": "5"}, 422, "id: is not a number"),
        ({"scope": "token", "id": "40", "limit": "0"}, 422, "limit"),
        ({"scope": "world", "id": "40", "limit": "5"}, 422, "whose limit"),
        ({"scope": "user", "id": "1", "limit": "5", "window_seconds": "99999"}, 422, "window"),
    ],
)
async def test_one_that_can_not_be_given_says_why(people, fields, status, words):
    """The form is there again as it was sent."""
    page = await people.post("/limits", fields)
    assert page.status == status
    assert page.has(words)
    assert f'value="{fields["id"]}"' in page.text


async def test_a_limit_is_undone(people):
    """Given, changed and taken back."""

    async def own() -> dict:
        return await people.registry.limits_of("token", [40])

    fields = {"scope": "token", "id": "40", "limit": "5", "window_seconds": "30"}
    await people.post("/limits", fields)
    five = await own()
    await people.post("/limits", fields | {"limit": "9"})
    assert await own() != five
    assert (await people.get("/limits?scope=token")).has(">Undo</button>")
    back = await people.post("/undo", {})
    assert back.headers["Location"] == "/console/limits?scope=token"
    assert await own() == five
    await people.post("/limits/token/40/clear", {})
    assert not await own()
    await people.post("/undo", {})
    assert await own() == five
    await people.post("/limits/token/40/clear", {})
    await people.post("/limits", fields)
    await people.post("/undo", {})
    assert not await own()
    await people.post("/limits", fields)
    await people.registry.set_limit("token", 40, Limit(1, 1000))
    refused = await people.post("/undo", {})
    assert refused.status == 409
    assert refused.has("changed by somebody else meanwhile; nothing was undone")
    assert (await own())[40] == Limit(1, 1000), "the stricter one of somebody else stays"


async def test_who_may_only_look_has_no_buttons(stranger):
    """And a form that is sent all the same is refused."""
    await stranger.sign_in(Scope.READ)
    assert 'method="post" action="/console/limits' not in (await stranger.get("/limits")).text
    fields = {"scope": "token", "id": "40", "limit": "5"}
    assert (await stranger.post("/limits", fields)).status == 403
