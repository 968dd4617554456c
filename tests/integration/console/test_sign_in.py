"""Signing in to the console, and what it takes to stay: everything else is refused."""

import json
import re
import ssl
from pathlib import Path

import pytest
from aiohttp import ClientSession, DummyCookieJar, TCPConnector

from authsidecar.admin.keys import create_key
from authsidecar.observe.log import Log
from authsidecar.serving.listeners import server_tls
from authsidecar.store.audit import Origin, Via
from authsidecar.store.console_sessions import IDLE_MS, LINK_MS, ConsoleSessions
from authsidecar.store.management_keys import ManagementKeys, Scope
from tests.support.cli import invoke
from tests.support.console import Browser, console_app
from tests.support.topologies import certificates

OUTSIDE = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}


async def link(browser: Browser, scope: Scope = Scope.WRITE) -> str:
    sessions = ConsoleSessions(browser.redis, browser.sidecar.keys)
    return await sessions.make_link(Origin("alice", Via.CLI, "here"), scope)


async def management_key(browser: Browser, scope: Scope) -> tuple[int, str]:
    kept = ManagementKeys(browser.redis, browser.sidecar.keys)
    made = await create_key(kept, name="desk", scope=scope, days=7)
    return made.key.id, made.plain


async def test_nothing_is_shown_to_who_is_not_signed_in(stranger: Browser) -> None:
    """A page leads to the form, which leads back; a change is refused."""
    page = await stranger.get("/tokens")
    assert (page.status, page.headers["Location"]) == (303, "/console/sign-in?next=/tokens")
    assert (await stranger.get("/")).headers["Location"] == "/console"
    form = await stranger.get("/sign-in?next=/tokens")
    assert 'name="next" value="/tokens"' in form.text
    assert (await stranger.post("/tokens", {}, csrf="")).status == 401
    odd = await stranger.get("/sign-in?next=//evil.example/")
    assert 'name="next" value=""' in odd.text


async def test_a_link_works_once(stranger: Browser) -> None:
    """Looking at it uses nothing up; the second use is refused and slows the address down."""
    secret = await link(stranger)
    for _ in range(2):
        shown = await stranger.get(f"/sign-in?link={secret}")
        assert secret in shown.text
    used = await stranger.post("/sign-in", {"link": secret})
    assert used.status == 303
    cookie = used.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert (await stranger.get("")).status == 200
    stranger.client.session.cookie_jar.clear()
    again = await stranger.post("/sign-in", {"link": secret})
    assert (again.status, again.has("used already")) == (401, True)
    await stranger.post("/sign-in", {"link": "x"})
    assert (await stranger.post("/sign-in", {"link": "x"})).status == 429


async def test_links_and_sessions_live_so_long_and_redis_knows_only_digests(
    stranger: Browser,
) -> None:
    """Five minutes, and thirty minutes from the last page on."""
    secret = await link(stranger)
    (name,) = [key async for key in stranger.redis.scan_iter("*console:link:*")]
    assert secret.encode() not in name
    assert LINK_MS - 5000 < await stranger.redis.pttl(name) <= LINK_MS
    await stranger.post("/sign-in", {"link": secret})
    (name,) = [key async for key in stranger.redis.scan_iter("*console:session:*")]
    await stranger.redis.pexpire(name, 60_000)
    assert (await stranger.get("")).status == 200
    assert IDLE_MS - 5000 < await stranger.redis.pttl(name) <= IDLE_MS
    await stranger.redis.pexpire(name, 60_000)
    for polled in ("/decisions/live", "/limits/near/part"):
        assert (await stranger.get(polled)).status == 200
        assert await stranger.redis.pttl(name) <= 60_000, "an open page keeps no session alive"
    await stranger.redis.hset(name, "began_at", 1)
    assert (await stranger.get("")).status == 303, "twelve hours at the most"


async def test_a_key_signs_in_as_long_as_it_is_there(stranger: Browser) -> None:
    """Its scope is the session's; revoking it ends the session; wrong ones are slowed down."""
    number, plain = await management_key(stranger, Scope.READ)
    page = await stranger.post("/sign-in", {"key": f" {plain} ", "next": "/tokens"})
    assert (page.status, page.headers["Location"]) == (303, "/console/tokens")
    overview = await stranger.get("")
    assert overview.has(f"key {number} (desk)")
    assert overview.has("may look only")
    await ManagementKeys(stranger.redis, stranger.sidecar.keys).remove(number)
    assert (await stranger.get("")).status == 303
    found = [(await stranger.post("/sign-in", {"key": f"wrong {n}"})).status for n in range(3)]
    assert found == [401, 401, 429]


async def test_sign_out_ends_the_session_for_every_copy_of_its_cookie(console: Browser) -> None:
    """Whoever has the cookie, in whichever process."""
    cookies = {one.key: one.value for one in console.client.session.cookie_jar}
    assert (await console.post("/sign-out", {}, csrf="0" * 64)).status == 403
    assert (await console.get("")).status == 200
    assert (await console.post("/sign-out", {})).status == 303
    console.client.session.cookie_jar.update_cookies(cookies)
    assert (await console.get("")).status == 303


@pytest.mark.parametrize(
    ("csrf", "headers"),
    [
        ("", {}),
        ("f" * 64, {}),
        (None, OUTSIDE),
        (None, {"Origin": "null"}),
        (None, {"Sec-Fetch-Site": "same-site"}),
        (None, {"Origin": "http://127.0.0.1:1"}),
    ],
)
async def test_a_forged_form_does_nothing(console: Browser, csrf, headers) -> None:
    """Without its session's token, or from another origin; nothing is written."""
    before = await console.redis.xlen(console.sidecar.keys.audit)
    page = await console.post("/tokens/new", {"name": "forged"}, csrf=csrf, headers=headers)
    assert page.status == 403
    assert await console.redis.xlen(console.sidecar.keys.audit) == before


async def test_a_form_that_no_browser_has_sent_does_nothing(console: Browser) -> None:
    """A browser says from which site it comes; and it sends forms."""
    none = {"Origin": "", "Sec-Fetch-Site": ""}
    assert (await console.post("/tokens/new", {}, headers=none)).status == 403
    answer = await console.client.post("/console/tokens/new", data={"csrf": console.csrf})
    assert answer.status == 403
    other = await console.client.post(
        "/console/tokens/new", json={}, headers={"Origin": console.origin}
    )
    assert other.status == 415
    assert (await console.client.put("/console/tokens")).status == 405


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("localhost.evil.example:4191", 421),
        ("127.0.0.1.nip.io", 421),
        ("", 421),
        ("[x", 421),
        ("localhost:4191", 200),
        ("LOCALHOST.", 200),
        ("[::1]:4191", 200),
        ("10.0.0.7", 200),
        ("Console.Example", 200),
    ],
)
async def test_a_name_that_is_not_ours_is_refused(
    redis_client, aiohttp_client, host, status
) -> None:
    """Somebody's name may be made to resolve to loopback; an address can't be."""
    app, sidecar = console_app(
        redis_client, Log(json_lines=True, level="error"), hosts=("console.example",)
    )
    client = await aiohttp_client(app)
    answer = await client.get("/console/sign-in", headers={"Host": host})
    assert answer.status == status
    await sidecar.decisions.close()


async def test_a_session_that_may_only_look_changes_nothing(stranger: Browser) -> None:
    """Whatever it sends, and it is told how to get further."""
    await stranger.sign_in(Scope.READ)
    assert not (await stranger.get("/tokens")).has("New token")
    before = await stranger.redis.xlen(stranger.sidecar.keys.audit)
    for path in ("/tokens/new", "/tokens/1/revoke", "/tokens/1/restrict", "/tokens/1/unrestrict"):
        page = await stranger.post(path, {"name": "n"})
        assert (page.status, page.has("may only look")) == (403, True), path
    assert await stranger.redis.xlen(stranger.sidecar.keys.audit) == before


async def test_signing_in_is_in_the_audit(console: Browser) -> None:
    """Who, and from where; no secret is."""
    records = await console.sidecar.client.xrange(console.sidecar.keys.audit)
    told = [
        (f[b"action"], f[b"actor"], f[b"via"], json.loads(f[b"after"])["scope"]) for _, f in records
    ]
    assert told == [
        (b"console.link", b"alice", b"cli", "write"),
        (b"console.sign-in", b"alice", b"console", "write"),
    ]


async def test_a_session_holds_in_every_process_and_ends_in_all(
    console: Browser, aiohttp_client
) -> None:
    """What one process has let in, another knows; what one has ended, none does."""
    app, sidecar = console_app(console.redis, Log(json_lines=True, level="error"))
    other = await aiohttp_client(app)
    cookies = {one.key: one.value for one in console.client.session.cookie_jar}

    async def status() -> int:
        found = await other.get("/console/tokens", cookies=cookies, allow_redirects=False)
        return found.status

    assert await status() == 200
    await console.post("/sign-out", {})
    assert await status() == 303
    await sidecar.decisions.close()


async def test_over_tls_the_cookie_is_kept_to_this_very_host(
    redis_client, aiohttp_server, tmp_path
) -> None:
    """Secure and `__Host-`; and no other cookie is looked at."""
    made = certificates(tmp_path)
    app, sidecar = console_app(redis_client, Log(json_lines=True, level="error"))
    server = await aiohttp_server(
        app, ssl=server_tls(Path(made["server.pem"]), Path(made["server.key"])), scheme="https"
    )
    trusting = ssl.create_default_context(cafile=made["ca.pem"])
    sessions = ConsoleSessions(redis_client, sidecar.keys)
    secret = await sessions.make_link(Origin("alice", Via.CLI, "here"), Scope.READ)
    own = {"Origin": f"https://127.0.0.1:{server.port}"}
    place = f"https://127.0.0.1:{server.port}/console"
    connector = TCPConnector(ssl=trusting)
    async with ClientSession(connector=connector, cookie_jar=DummyCookieJar()) as client:
        answer = await client.post(
            f"{place}/sign-in", data={"link": secret}, headers=own, allow_redirects=False
        )
        assert answer.status == 303
        cookie = answer.headers["Set-Cookie"]
        assert re.fullmatch(
            r"__Host-authsidecar=[\w-]{43}; HttpOnly; Path=/; SameSite=Strict; Secure", cookie
        )
        value = cookie.partition("=")[2].partition(";")[0]
        for name, status in (("__Host-authsidecar", 200), ("authsidecar-console", 303)):
            headers = {"Cookie": f"{name}={value}"}
            page = await client.get(place, headers=headers, allow_redirects=False)
            assert page.status == status
    await sidecar.decisions.close()


def test_the_command_prints_a_link_that_signs_in(redis_url) -> None:
    """For the address that browsers use; what is only for looking says so."""
    found = invoke("console", "--read-only", "--json", url=redis_url).json
    assert found["scope"] == "read"
    assert found["url"].startswith("http://127.0.0.1:4191/console/sign-in?link=")
    plain = invoke("console", url=redis_url, MANAGEMENT__ADDRESS=":4100")
    assert plain.out.startswith("http://localhost:4100/console/sign-in?link=")
    assert "works once" in plain.err


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("CONSOLE", "false", "there is no console"),
        ("ADDRESS", "10.0.0.1:4191", "over loopback alone"),
        ("ADDRESS", "127.0.0.1:0", "no port of its own"),
    ],
)
def test_the_command_says_where_there_is_no_console(redis_url, name, value, why) -> None:
    """And makes no link."""
    found = invoke("console", url=redis_url, **{f"MANAGEMENT__{name}": value})
    assert found.code == 1
    assert why in found.err
