"""Decisions in the console: the list, one of them, and the live view."""

import re
import time
from ipaddress import ip_address

import pytest

from authsidecar.decision.checks import PERMISSION_MISSING
from authsidecar.decision.model import Deny, Proxy
from authsidecar.serving.console.pages.decisions import SHOWN_LIVE
from tests.integration.test_receipts import STATE, outcome, receipts, request
from tests.support.console import HOSTILE, Browser

WHY = f"the route needs write, {HOSTILE}"


def now() -> int:
    return int(time.time() * 1000)


async def decided(console: Browser, count: int = 3, *, first: int = 0) -> None:
    """Have so many decisions written: refusals of token 10, but each third an admission of 11."""
    writer = receipts(console.redis)
    for n in range(first, first + count):
        access = request()._replace(client=ip_address(f"192.0.2.{n % 2 + 1}"))
        if n % 3 == 2:
            told = outcome(None, 11, now())
            writer.admitted(f"{n:02x}", Proxy.NGINX, access, told, STATE)
        else:
            told = outcome(Deny(PERMISSION_MISSING, WHY), 10, now())
            writer.refused(f"{n:02x}", Proxy.NGINX, access, told, "", STATE)
    await writer.write()


def ids(text: str) -> list[str]:
    return re.findall(r'/console/decisions/([0-9a-f]+)"', text)


async def test_before_there_are_any_it_says_what_to_do(console):
    """Nobody is left before an empty table."""
    page = await console.get("/decisions")
    assert page.has("No decisions yet")
    assert page.has("authsidecar doctor")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"00", "01", "02"}),
        ("?deny=true", {"00", "01"}),
        ("?code=permission_missing&token=10", {"00", "01"}),
        ("?token=11", {"02"}),
        ("?address=192.0.2.2", {"01"}),
        ("?route=POST+/api/v1/teams", set()),
        ("?user=1&team=3&last_seconds=604800", {"00", "01", "02"}),
    ],
)
async def test_a_list_has_what_its_filters_say(console, query, expected):
    """They are those of the API and of the command."""
    await decided(console)
    page = await console.get(f"/decisions{query}")
    assert page.status == 200
    assert set(ids(page.text)) == expected


@pytest.mark.parametrize("query", ["token=x", "code=<b>", "address=nowhere", "cursor=e30="])
async def test_a_filter_that_is_none_is_named(console, query):
    """In the API's words, with the form as it was sent."""
    page = await console.get(f"/decisions?{query}")
    assert page.status == 422
    assert page.has(query.partition("=")[0])
    assert "<b>" not in page.text


async def test_the_next_page_keeps_the_filters(console):
    """The newest fifty, then the others."""
    await decided(console, 60)
    first = await console.get("/decisions?team=3")
    [link] = re.findall(r'href="/console(/decisions\?[^"]*cursor=[^"]+)"', first.text)
    assert "team=3" in link
    second = await console.get(link.replace("&amp;", "&"))
    assert sorted(ids(first.text) + ids(second.text)) == sorted(f"{n:02x}" for n in range(60))


async def test_one_decision_is_explained_then_and_now(console):
    """What it was refused for, what the checks say today, and what to do; texts stay texts."""
    await decided(console)
    page = await console.get("/decisions/00")
    assert page.status == 200, page.text
    for words in ("Refused: permission_missing", "What to do", "api_enabled", "Now it would be"):
        assert page.has(words), words
    assert page.has(WHY)
    assert "<script>alert" not in page.text
    assert page.has("authsidecar decisions show 00")
    assert (await console.get("/decisions/02")).has("Admitted")


async def test_one_that_was_not_kept_is_a_404_that_says_why(console):
    """As the command does."""
    page = await console.get("/decisions/ff")
    assert page.status == 404
    assert page.has("no receipt of decision ff is kept")


async def test_the_live_view_gives_what_is_new_once(console):
    """A browser that comes back with its last event's id gets what was written since."""
    first = await console.get("/decisions/live")
    assert first.headers["Content-Type"].startswith("text/event-stream")
    assert "default-src 'none'" in first.headers["Content-Security-Policy"]
    assert ids(first.text) == []
    await decided(console)
    second = await _again(console, first.text)
    assert sorted(ids(second)) == ["00", "01", "02"]
    assert "event: all" in second
    assert "<script>alert" not in second
    assert ids(await _again(console, second)) == []


async def test_more_than_can_be_read_is_a_sample_that_says_so(console):
    """So many a second and no more, the latest; with a filter too."""
    first = await console.get("/decisions/live")
    await decided(console, 400)
    for query in ("", "?deny=true"):
        text = await _again(console, first.text, query)
        assert "event: sample" in text
        assert 0 < len(ids(text)) <= SHOWN_LIVE


async def test_the_live_view_takes_the_filters(console):
    """What is not wanted is not shown."""
    first = await console.get("/decisions/live")
    await decided(console)
    assert ids(await _again(console, first.text, "?token=11")) == ["02"]
    assert (await console.get("/decisions/live?token=x")).status == 422


async def test_a_stranger_sees_nothing_live(stranger):
    """It is sent to the sign-in, as from every page."""
    page = await stranger.get("/decisions/live")
    assert page.status == 303


async def _again(console: Browser, last: str, query: str = "") -> str:
    """What a browser gets that comes back once this millisecond is over."""
    [number] = re.findall(r"^id: (\d+)$", last, re.MULTILINE)
    seconds, micros = await console.redis.time()
    text, until = "", number
    while int(until) <= seconds * 1000 + micros // 1000:
        page = await console.get(f"/decisions/live{query}", **{"Last-Event-ID": number})
        text = page.text
        [until] = re.findall(r"^id: (\d+)$", text, re.MULTILINE)
    return text
