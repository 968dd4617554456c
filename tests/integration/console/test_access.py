"""Access in the console: switches and allowlist, tried before they stay."""

import asyncio
import time
from ipaddress import ip_address

import pytest

from authsidecar.decision.model import Proxy
from authsidecar.store.management_keys import Scope
from tests.integration.test_receipts import STATE, outcome, receipts, request
from tests.support.console import HOSTILE, Browser

ME = "192.0.2.7"
LIST = "192.0.2.0/24\r\n2001:db8::/32"


async def callers(console: Browser, *addresses: str) -> None:
    """Have each address admitted once, just now."""
    writer = receipts(console.redis)
    for n, address in enumerate(addresses):
        access = request()._replace(client=ip_address(address))
        told = outcome(None, 11, int(time.time() * 1000))
        writer.admitted(f"{n:02x}", Proxy.NGINX, access, told, STATE)
    await writer.write()


def editor(text: str = LIST, own: str = ME, within: str = "120") -> dict[str, str]:
    return {"allowlist": text, "my_ip": own, "within": within}


async def stored(console: Browser) -> str:
    return (await console.registry.instance()).allowlist.text


async def rolled_back(console: Browser) -> None:
    """What a process does every second, once the time of all trials is over."""
    for one in await console.registry.trials.pending():
        await asyncio.sleep(max(0, one.until / 1000 - time.time()) + 0.01)
    await console.registry.trials.roll_back()


async def test_a_switch_for_good(console):
    """The API and MCP, from the very next request on."""
    await console.registry.set_instance(api_enabled=True, mcp_enabled=False)
    for switch, on in (("api", 0), ("mcp", 1)):
        page = await console.post(f"/access/switch/{switch}", {"on": on, "within": ""})
        assert (page.status, page.headers["Location"]) == (303, "/console/access")
    found = await console.registry.instance()
    assert (found.api_enabled, found.mcp_enabled) == (False, True)
    assert not await console.registry.trials.pending()
    assert (await console.get("/access")).has("MCP is on")


async def test_a_switch_that_is_tried_stays_when_it_is_kept(console):
    """The page says until when, and has a button."""
    await console.registry.set_instance(api_enabled=True)
    await console.post("/access/switch/api", {"on": 0, "within": "120"})
    page = await console.get("/access")
    assert page.has("This is tried")
    assert "data-countdown" in page.text
    await console.post("/access/api_enabled/confirm", {})
    assert not await console.registry.trials.pending()
    assert not (await console.registry.instance()).api_enabled


@pytest.mark.parametrize("setting", ["api_enabled", "allowlist"])
async def test_what_is_tried_can_be_taken_back_at_once(console, setting):
    """Nobody need wait for the time to be over."""
    await console.registry.set_instance(api_enabled=True, allowlist="198.51.100.1")
    await console.post("/access/switch/api", {"on": 0, "within": "120"})
    await console.post("/access/allowlist", editor())
    await console.post(f"/access/{setting}/undo", {})
    found = await console.registry.instance()
    assert found.api_enabled is (setting == "api_enabled")
    assert found.allowlist.text == (
        "198.51.100.1" if setting == "allowlist" else "192.0.2.0/24,2001:db8::/32"
    )
    assert len(await console.registry.trials.pending()) == 1


async def test_an_allowlist_is_tried_and_kept(console):
    """Whoever keeps it must be admitted by it."""
    page = await console.post("/access/allowlist", editor())
    assert page.status == 303, page.text
    assert await stored(console) == "192.0.2.0/24,2001:db8::/32"
    shown = await console.get(page.headers["Location"].removeprefix("/console"))
    assert shown.has("This is tried")
    assert f'value="{ME}"' in shown.text
    refused = await console.post("/access/allowlist/confirm", {"my_ip": "198.51.100.1"})
    assert refused.status == 422
    assert refused.has("198.51.100.1 is on no entry of the new list")
    await console.post("/access/allowlist/confirm", {"my_ip": ME})
    assert not await console.registry.trials.pending()


async def test_one_that_nobody_keeps_is_taken_back(console, monkeypatch):
    """Whose tab is closed, say."""
    monkeypatch.setitem(_within(), "1", "1 second")
    await console.registry.set_instance(allowlist="198.51.100.1")
    await console.post("/access/allowlist", editor(within="1"))
    assert await stored(console) == "192.0.2.0/24,2001:db8::/32"
    await rolled_back(console)
    assert await stored(console) == "198.51.100.1"


async def test_a_setting_is_undone(console):
    """For good or kept: it is as it was, unless somebody else has changed one meanwhile."""
    before = {"api_enabled": True, "mcp_enabled": False, "allowlist": "198.51.100.1"}
    await console.registry.set_instance(**before)

    async def found() -> dict[str, object]:
        now = await console.registry.instance()
        return {
            "api_enabled": now.api_enabled,
            "mcp_enabled": now.mcp_enabled,
            "allowlist": now.allowlist.text,
        }

    kept = {"within": "120"}
    changes: list[tuple[tuple[str, dict[str, object]], ...]] = [
        (("switch/mcp", {"on": 1}),),
        (("switch/api", {"on": 0, "within": ""}),),
        (("switch/api", {"on": 0, **kept}), ("api_enabled/confirm", {})),
        (("allowlist", {**editor(within="")}),),
        (("allowlist", {**editor()}), ("allowlist/confirm", {"my_ip": ME})),
    ]
    for steps in changes:
        for path, fields in steps:
            page = await console.post(f"/access/{path}", fields)
            assert page.status == 303, page.text
        assert await found() != before, steps
        shown = await console.get("/access")
        assert shown.has('action="/console/undo"'), steps
        assert (await console.post("/undo", {}, csrf="0" * 64)).status == 403
        done = await console.post("/undo", {})
        assert done.status == 303, done.text
        assert await found() == before, steps
    await console.post("/access/switch/mcp", {"on": 1})
    await console.registry.set_instance(api_enabled=False)
    refused = await console.post("/undo", {})
    assert (refused.status, refused.has("changed by somebody else meanwhile")) == (409, True)
    assert (await found())["mcp_enabled"]


async def test_what_is_tried_is_taken_back_and_not_undone(console):
    """A change of what is tried can't make a state last that was to pass."""
    await console.post("/access/allowlist", editor())
    assert not (await console.get("/access")).has('action="/console/undo"')
    await console.post("/access/allowlist", editor("192.0.2.7", within=""))
    assert not (await console.get("/access")).has('action="/console/undo"')
    assert (await console.post("/undo", {})).status == 409


def _within() -> dict[str, str]:
    from authsidecar.serving.console.pages.access import WITHIN  # as pages are

    return WITHIN


@pytest.mark.parametrize("within", ["", "120"])
@pytest.mark.parametrize(
    ("text", "own", "words"),
    [
        ("198.51.100.0/24", ME, "this list would lock you out: 192.0.2.7"),
        ("192.0.2.0/24\nexample.com", ME, "host names are not looked up"),
        ("192.0.2.0/24", "me", "your address: is not an IP address"),
        (f"10.0.0.1\n{HOSTILE}", ME, "This can not be saved"),
    ],
)
async def test_one_that_can_not_be_saved_is_shown_again(console, text, own, words, within):
    """With what is wrong; nothing has changed, and nothing is lost."""
    before = await stored(console)
    page = await console.post("/access/allowlist", editor(text, own, within))
    assert page.status == 422
    assert page.has(words)
    assert page.has(text)
    assert "<script>alert" not in page.text
    assert await stored(console) == before


async def test_one_that_is_too_long_is_refused(console):
    """The editor lets nobody type it; the command takes it."""
    page = await console.post("/access/allowlist", editor("1" * 20_001))
    assert page.status == 422
    assert page.has("`authsidecar allowlist set` takes longer ones")


async def test_an_author_who_is_not_known_may_only_try(console):
    """Nobody could say whether a list for good locks it out."""
    page = await console.post("/access/allowlist", editor(own="", within=""))
    assert page.status == 422
    assert page.has("your own address is not known")
    assert (await console.post("/access/allowlist", editor(own=""))).status == 303


@pytest.mark.parametrize("path", ["/access/check", "/access/check/part"])
async def test_the_editor_says_what_a_list_would_mean(console, path):
    """Bad and redundant entries, whom it shuts out, and that it shuts out its author."""
    await callers(console, ME, "198.51.100.1", "2001:db8::1")
    text = "2001:db8::/32\n2001:db8::1\nexample.com"
    page = await console.post(path, {"allowlist": text, "my_ip": ME})
    assert page.status == 200
    for words in (
        "example.com",
        "host names are not looked up",
        "It would shut you out",
        "shut out 2 of the 3 addresses",
        "198.51.100.1",
        "redundant",
    ):
        assert page.has(words), words
    assert ("<h1" in page.text) is (path == "/access/check")
    assert await stored(console) == ""


async def test_a_list_for_everyone_is_named_as_such(console):
    """An empty editor is not a list of nobody."""
    page = await console.post("/access/check/part", {"allowlist": "", "my_ip": ME})
    assert page.has("It admits everyone.")


async def test_who_may_only_look_may_check_and_not_save(stranger):
    """Buttons that would be refused are not there."""
    await stranger.sign_in(Scope.READ)
    page = await stranger.get("/access")
    assert "Save the list" not in page.text
    assert "Turn the API" not in page.text
    assert (await stranger.post("/access/check/part", editor())).status == 200
    for path in ("/access/allowlist", "/access/switch/api", "/access/allowlist/undo"):
        assert (await stranger.post(path, editor())).status == 403


async def test_what_coolify_owns_is_changed_there(console):
    """The page says where, and a form that is sent all the same is refused."""
    await console.redis.hset(console.sidecar.keys.sync_status, "owner", "coolify")
    page = await console.get("/access")
    assert page.has("Settings > Advanced")
    assert "Save the list" not in page.text
    for path in ("/access/allowlist", "/access/switch/api", "/access/api_enabled/undo"):
        assert (await console.post(path, editor())).status == 409
