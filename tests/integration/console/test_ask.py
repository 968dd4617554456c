"""Ask in the console: one request explained, and a change tried on the decisions that were made."""

import asyncio
import time
from ipaddress import ip_address

import pytest

from authsidecar.decision.model import Proxy
from authsidecar.serving.console import slow_answers
from authsidecar.serving.manage import decisions
from authsidecar.serving.manage.operations import NotDoneError
from authsidecar.store.management_keys import Scope
from tests.integration.test_receipts import STATE, outcome, receipts, request
from tests.support import seed
from tests.support.console import HOSTILE, Browser


@pytest.fixture
async def people(console: Browser) -> Browser:
    """Token 40 of user 1, who owns team 0; the API is on."""
    await console.registry.set_instance(api_enabled=True)
    await seed.user(console.registry, 1, t0="owner")
    await console.registry.put_tokens([seed.token(40, user=1, team=0)])
    return console


def question(**fields: str) -> dict[str, str]:
    given = {"method": "GET", "target": "/api/v1/teams", "as_token": "40", "client_ip": "192.0.2.7"}
    return given | fields


async def test_a_request_is_explained_without_its_secret(people):
    """Every check, and nothing is counted."""
    page = await people.post("/ask", question())
    assert page.status == 200
    for words in ("It would be", "admitted", "rate_limit", "token"):
        assert page.has(words), words
    assert not [key async for key in people.redis.scan_iter("authsidecar:rate:*")]


async def test_a_refusal_names_its_reason(people):
    """With a link to those that were refused for the same."""
    page = await people.post("/ask", question(method="POST", target="/api/v1/projects"))
    assert "/console/decisions?code=permission_missing" in page.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"client_ip": "nowhere"}, "client_ip: is not an IP address"),
        ({"as_token": HOSTILE}, "as_token"),
        ({"target": ""}, "target"),
    ],
)
async def test_a_question_that_is_none_says_why(people, fields, words):
    """The form is there again as it was sent."""
    page = await people.post("/ask", question(**fields))
    assert page.status == 422
    assert page.has(words)
    assert "<script>alert" not in page.text


async def test_a_change_is_tried_on_the_decisions_that_were_made(people):
    """An allowlist that would have refused an address names what it would have refused."""
    writer = receipts(people.redis)
    for n, address in enumerate(("192.0.2.1", "192.0.2.2", "192.0.2.2")):
        access = request()._replace(client=ip_address(address))
        told = outcome(None, 40, int(time.time() * 1000))
        writer.admitted(f"{n:02x}", Proxy.NGINX, access, told, STATE)
    await writer.write()
    sent = {"change_allowlist": "1", "allowlist": "192.0.2.1\r\n198.51.100.0/24"}
    page = await people.post("/ask/what-if", sent)
    assert page.status == 200
    assert page.has("these would have been others")
    assert page.has("address_not_allowed")
    assert '<td data-label="Decisions" class="number">2</td>' in page.text
    assert (await people.registry.instance()).allowlist.everyone


async def test_what_takes_long_is_asked_once_and_told_once_it_is_known(people, monkeypatch):
    """The page is there at once, and asks again by itself; the next time it is judged anew."""
    monkeypatch.setattr(slow_answers, "PATIENCE_S", 0.01)
    known, answer = asyncio.Event(), decisions._ask
    asked = []

    async def slowly(call, question):
        asked.append(question)
        await known.wait()
        if len(asked) == 2:
            raise NotDoneError(409, "others ask at this moment")
        return await answer(call, question)

    monkeypatch.setattr(decisions, "_ask", slowly)
    for _ in range(2):
        page = await people.post("/ask/what-if", {"limit-user": "off"})
        assert page.has("The decisions are being judged")
        assert "data-again" in page.text
    assert len(asked) == 1
    known.set()
    monkeypatch.setattr(slow_answers, "PATIENCE_S", 5)
    page = await people.post("/ask/what-if", {"limit-user": "off"})
    assert page.has("No receipts of that time are kept")
    assert "data-again" not in page.text
    page = await people.post("/ask/what-if", {"limit-user": "off"})
    assert (page.status, page.has("others ask at this moment")) == (409, True)
    page = await people.post("/ask/what-if", {"limit-user": "off"})
    assert (page.status, len(asked)) == (200, 3)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({}, "nothing is to be another"),
        ({"change_allowlist": "1", "allowlist": "nowhere"}, "host names are not looked up"),
        ({"limit-user": "often"}, "limits: user"),
        ({"routes": "9.9"}, "routes"),
    ],
)
async def test_a_change_that_can_not_be_tried_says_why(people, sent, words):
    """In the words of the command."""
    page = await people.post("/ask/what-if", sent)
    assert page.status == 422
    assert page.has(words)


async def test_who_may_only_look_may_ask(stranger):
    """Nothing is changed by it."""
    await stranger.sign_in(Scope.READ)
    assert (await stranger.post("/ask", question(as_token=""))).status == 200
    assert (await stranger.post("/ask/what-if", {"limit-user": "off"})).status == 200
