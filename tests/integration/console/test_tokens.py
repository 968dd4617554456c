"""Tokens in the console: made, found, looked at, narrowed, revoked; each takes effect at once."""

import re
import time
from html import unescape

import pytest

from authsidecar.decision.model import Place, ResourceKind, Role, TeamId, TokenId, UserId
from authsidecar.decision.restrictions import as_mapping, parse
from authsidecar.decision.usage import used
from authsidecar.observe.receipts import Receipt, write
from authsidecar.store.audit import Trail
from authsidecar.store.keys import owner_bucket
from authsidecar.store.last_used import LastUses
from authsidecar.store.records import write_place
from authsidecar.times import UnixMs
from tests.support import seed
from tests.support.console import HOSTILE, Browser


@pytest.fixture
async def people(console: Browser) -> Browser:
    """A browser; team 5 with the owner 7, who has token 40."""
    registry = console.registry
    await registry.add_team("Shop", TeamId(5))
    await registry.add_user("Ada", "ada@example.com", UserId(7))
    await registry.set_member(TeamId(5), UserId(7), Role.OWNER)
    await registry.put_tokens(
        [seed.token(40, user=7, team=5, permissions=("read", "deploy"), expires_at=2**42)]
    )
    return console


async def last_change(console: Browser) -> tuple[str, str, str, str]:
    (record,) = await Trail(console.redis, console.sidecar.keys).latest(1)
    origin = record.origin
    return record.action, record.target, origin.actor, origin.via.value


MARKUP = "<b>=cmd|0</b> <script>alert(1)</script>"

NEW = {"name": "deploys", "user": "7", "team": "5", "permissions": ["deploy"], "expires": "30"}


async def test_a_token_is_made_and_its_secret_is_shown_once(people: Browser) -> None:
    """It works; nothing shows it again, and the form that is sent again makes no second one."""
    form = await people.get("/tokens/new")
    (once,) = re.findall(r'name="once" value="([^"]+)"', form.text)
    made = await people.post("/tokens/new", {**NEW, "once": once})
    assert made.status == 200
    assert made.headers["Cache-Control"] == "no-store"
    (plain,) = re.findall(r'<code id="plain">(\d+\|[A-Za-z0-9]{40})</code>', made.text)
    number, secret = plain.split("|")
    assert await last_change(people) == ("token.add", f"token {number}", "alice", "console")
    again = await people.post("/tokens/new", {**NEW, "once": once})
    assert (again.status, again.headers["Location"]) == (303, f"/console/tokens/{number}")
    for path in ("", "/tokens", f"/tokens/{number}", "/audit", f"/tokens/{number}/restrict"):
        page = await people.get(path)
        assert page.status == 200
        assert secret not in page.text
    assert secret not in people.log.getvalue()


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("name", "ab", "name: String should have at least 3"),
        ("permissions", ["root", "read"], "root stands alone"),
        ("permissions", [], "permissions: List should have at least 1"),
        ("user", "seven", "user: is not a whole number"),
        ("user", "8", "there is no user 8"),
        ("expires", "8", "expires: Input should be 7, 30"),
    ],
)
async def test_a_form_that_is_wrong_says_so_and_keeps_what_was_typed(
    people: Browser, field, value, why
) -> None:
    """In the command line's words; nothing is made."""
    page = await people.post("/tokens/new", {**NEW, field: value, "once": "x"})
    assert page.status == 422
    assert page.has(why)
    if field != "name":
        assert 'value="deploys"' in page.text
    assert len(await people.registry.token_ids_of(UserId(7))) == 1


async def test_a_token_is_revoked_once_its_name_is_typed(people: Browser) -> None:
    """A wrong name revokes nothing; the list then tells what was done, once."""
    wrong = await people.post("/tokens/40/revoke", {"name": "token 4"})
    assert (wrong.status, wrong.has("nothing was revoked")) == (422, True)
    assert await people.registry.token(TokenId(40)) is not None
    done = await people.post("/tokens/40/revoke", {"name": "token 40"})
    assert done.headers["Location"] == "/console/tokens"
    assert await people.registry.token(TokenId(40)) is None
    assert (await people.get("/tokens")).has("Token 40 is revoked")
    assert not (await people.get("/tokens")).has("Token 40 is revoked")
    assert await last_change(people) == ("token.revoke", "token 40", "alice", "console")
    assert (await people.get("/tokens/40")).has("there is no token 40")


async def test_a_token_is_narrowed_and_the_restriction_is_taken_back(people: Browser) -> None:
    """What was picked and what was typed are one restriction; what is wrong is said, and kept."""
    given = {
        "permissions": ["deploy"],
        "routes": ["POST /api/v1/deploy", "GET /api/v1/deploy\n\n"],
        "from": "192.0.2.0/24\n198.51.100.7/32",
        "rate": "10/60s",
        "uses": "5",
        "note": "for CI",
    }
    wrong = await people.post("/tokens/40/restrict", {**given, "rate": "often"})
    assert wrong.status == 422
    assert wrong.has("rate: 'often' is not N/WINDOW")
    assert wrong.has("198.51.100.7/32")
    done = await people.post("/tokens/40/restrict", given)
    assert done.status == 303, done.text
    held = await people.registry.restriction("token", 40)
    assert held is not None
    assert as_mapping(held) == {
        "permissions": ["deploy"],
        "routes": ["GET /api/v1/deploy", "POST /api/v1/deploy"],
        "from": ["192.0.2.0/24", "198.51.100.7/32"],
        "rate": "10/60s",
        "uses": 5,
        "note": "for CI",
    }
    shown = await people.get("/tokens/40")
    assert shown.has("Narrowed, from the very next request on")
    assert shown.has("198.51.100.7/32")
    assert await last_change(people) == ("restrict", "token 40", "alice", "console")
    wider = await people.post("/tokens/40/restrict", {**given, "permissions": [], "note": "more"})
    assert (wider.status, wider.has("can't widen"), wider.has("--force")) == (422, True, False)
    assert (await people.post("/tokens/40/unrestrict", {})).status == 303
    assert await people.registry.restriction("token", 40) is None


async def test_the_form_tells_what_it_would_have_refused_lately(people: Browser) -> None:
    """By the token's admitted requests, each with its weight; nothing is changed."""
    for number, (token, path, client, weight) in enumerate(
        [
            (40, "/api/v1/teams", "192.0.2.1", 1),
            (40, "/api/v1/teams", "198.51.100.1", 100),
            (40, "/api/v1/servers", "192.0.2.1", 7),
            (401, "/api/v1/servers", "192.0.2.1", 50),
        ]
    ):
        one = Receipt(
            id=f"r{number}",
            at=UnixMs(1_800_000_000_000 + number),
            proxy="traefik",
            outcome="allow",
            code=None,
            status=200,
            detail=None,
            weight=weight,
            method="GET",
            path=path,
            client=client,
            token=token,
            user=7,
        )
        await people.redis.xadd(people.sidecar.keys.receipts("token", number), {b"r": write(one)})
    given = {"routes": "GET /api/v1/teams", "from": "192.0.2.0/24", "rate": "1/1s"}
    page = await people.post("/tokens/40/restrict/outlook", given)
    assert page.status == 200
    assert page.has("Of about 108 admitted requests")
    assert page.has("does not admit 198.51.100.1")
    assert page.has("about 7")
    assert page.has("does not name GET /api/v1/servers")
    assert (
        page.has("GET /api/v1/teams</textarea>") or 'value="GET /api/v1/teams" checked' in page.text
    )
    assert await people.registry.restriction("token", 40) is None
    all_of_it = await people.post("/tokens/40/restrict/outlook", {"from": "0.0.0.0/0"})
    assert all_of_it.has("None of about 108 admitted requests")
    wrong = await people.post("/tokens/40/restrict/outlook", {"hours": "late"})
    assert (wrong.status, wrong.has("hours:")) == (422, True)


async def test_the_form_offers_what_the_team_has(people: Browser) -> None:
    """Projects, environments and what lies in them as a tree; nothing of another team."""
    for uuid, place in {
        "proj": Place(TeamId(5), ResourceKind.PROJECT, "proj"),
        "app1": Place(TeamId(5), ResourceKind.APPLICATION, "proj", "env1", "production"),
        "srv1": Place(TeamId(5), ResourceKind.SERVER),
        "other": Place(TeamId(6), ResourceKind.SERVER),
    }.items():
        bucket = people.sidecar.keys.owners(owner_bucket(uuid))
        await people.redis.hset(bucket, uuid, write_place(place))
    page = await people.get("/tokens/40/restrict")
    for value in ("proj", "proj/production", "app1", "srv1"):
        assert f'value="{value}"' in page.text, value
    assert 'value="other"' not in page.text


async def test_a_token_s_page_says_what_it_could_be_narrowed_to(people: Browser) -> None:
    """By what it was used for, as a command and as the form, filled in."""
    page = await people.get("/tokens/40")
    assert page.has("It was used on no day since")
    uses, now = LastUses(people.redis, people.sidecar.keys), await people.registry.now()
    path = "/api/v1/servers/srv1"
    uses.note(TokenId(40), now, used("GET", "/api/v1/servers/{uuid}", path, path.encode()))
    await uses.write()
    place = write_place(Place(TeamId(5), ResourceKind.SERVER))
    await people.redis.hset(people.sidecar.keys.owners(owner_bucket("srv1")), "srv1", place)
    page = await people.get("/tokens/40")
    assert page.has("GET /api/v1/servers/{uuid}")
    assert page.has("on 1 day")
    assert page.has('<span class="badge">deploy</span>')
    [command] = re.findall(r'<code id="advised"><bdi>([^<]+)</bdi></code>', page.text)
    said = "authsidecar token restrict 40 --permission read --route 'GET /api/v1/servers/{uuid}'"
    assert unescape(command) == f"{said} --resource srv1"
    form = await people.get("/tokens/40/restrict?advised=1")
    chosen = re.findall(r'value="([^"]+)" checked', form.text)
    assert sorted(chosen) == ["GET /api/v1/servers/{uuid}", "read", "srv1"]
    plain = await people.get("/tokens/40/restrict")
    assert not re.findall(r'value="([^"]+)" checked', plain.text)


async def test_what_coolify_manages_is_changed_there(people: Browser) -> None:
    """The pages say where, offer no such form, and refuse one that is sent all the same."""
    await people.redis.hset(people.sidecar.keys.sync_status, "owner", "coolify")
    page = await people.get("/tokens")
    assert page.has("API Tokens")
    assert "New token" not in page.text
    assert "/revoke" not in (await people.get("/tokens/40")).text
    sent = await people.post("/tokens/40/revoke", {"name": "token 40"})
    assert (sent.status, sent.has("change them in Coolify")) == (409, True)
    narrowed = await people.post("/tokens/40/restrict", {"permissions": ["read"]})
    assert narrowed.status == 303


async def test_hostile_names_are_text(people: Browser) -> None:
    """Markup, bidirectional characters, formulas: in every list, form and message."""
    registry = people.registry
    await registry.add_user(HOSTILE, "x@example.com", UserId(8))
    await registry.add_team(HOSTILE, TeamId(9))
    await registry.set_member(TeamId(9), UserId(8), Role.OWNER)
    of_them = {"name": HOSTILE, "user": "8", "team": "9", "once": "h"}
    made = await people.post("/tokens/new", {**NEW, **of_them})
    assert made.status == 200, made.text
    (number,) = await registry.token_ids_of(UserId(8))
    note = await people.post(f"/tokens/{number}/restrict", {"uses": "3", "note": MARKUP})
    assert note.status == 303, note.text
    (record,) = await Trail(people.redis, people.sidecar.keys).latest(1)
    for path in (
        "",
        "/tokens",
        "/tokens/new",
        f"/tokens/{number}",
        f"/tokens/{number}/restrict",
        "/audit",
        f"/audit/{record.id}",
        "/tokens?q=%3Cscript%3Ealert(1)%3C/script%3E",
    ):
        page = await people.get(path)
        assert page.status == 200, path
        for raw in ("<b>", "<script>alert"):
            assert raw not in page.text, path
    shown = (await people.get(f"/tokens/{number}")).text
    assert shown.count("\u202e") == shown.count("<bdi>a&lt;b&gt;") + shown.count(
        'data-typed="a&lt;'
    )


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", {40, 41, 42}),
        ("q=KEN%2042", {42}),
        ("user=7", {40, 41, 42}),
        ("team=6", set()),
        ("sort=expiry", {40, 41}),
        ("q=nothing", set()),
    ],
)
async def test_tokens_are_found(people: Browser, query, shown) -> None:
    """By a part of the name, a user, a team; or what expires next, in order."""
    await people.registry.add_team("Other", TeamId(6))
    await people.registry.put_tokens(
        [seed.token(41, user=7, team=5, expires_at=2**41), seed.token(42, user=7, team=5)]
    )
    page = await people.get(f"/tokens?{query}")
    assert page.status == 200
    found = [int(n) for n in re.findall(r'href="/console/tokens/(\d+)"', page.text)]
    assert set(found) == shown
    if query == "sort=expiry":
        assert found == [41, 40]


async def test_an_id_leads_to_its_token_and_nonsense_is_said(people: Browser) -> None:
    """A page of the list that was never there is no defect."""
    found = await people.get("/tokens?q=40")
    assert found.headers["Location"] == "/console/tokens/40"
    for query in ("cursor=AAAA", "user=x", "sort=expiry&user=7", "sort=never", "user=99"):
        page = await people.get(f"/tokens?{query}")
        assert page.status in {400, 404, 422}, query
        assert 'role="alert"' in page.text
    for path in ("/tokens/0", "/tokens/x", "/tokens/99999999999999999999", "/nowhere"):
        assert (await people.get(path)).status == 404, path
    assert people.log.getvalue() == ""


@pytest.mark.slow
async def test_a_hundred_thousand_tokens_are_quick(people: Browser, tell) -> None:
    """Each page of the list takes under 300 ms of this process's time, a search too."""
    registry = people.registry
    for start in range(1000, 101_000, 5000):
        users = range(start // 10, start // 10 + 500)
        await people.redis.sadd(people.sidecar.keys.users, *users)
        async with people.redis.pipeline(transaction=False) as pipe:
            for n in range(start, start + 5000):
                token = seed.token(n, user=n // 10, team=5, expires_at=2**41 + n)
                registry._put_token(pipe, token)
            await pipe.execute()
    for path in ("/tokens", "/tokens?sort=expiry", "/tokens?q=no-such-name", "/tokens?team=5"):
        await people.get(path)
        before = time.process_time()
        assert (await people.get(path)).status == 200
        taken = time.process_time() - before
        tell(f"console{path}: {taken * 1000:.0f} ms of 100,000 tokens")
        assert taken < 0.3, path


async def test_a_restriction_is_undone_unless_somebody_else_has_changed_it(people: Browser) -> None:
    """The notice has a button, once: given, changed and taken back."""

    async def held() -> object:
        found = await people.registry.restriction("token", TokenId(40))
        return None if found is None else as_mapping(found)

    assert (await people.post("/undo", {})).status == 409
    await people.post("/tokens/40/restrict", {"permissions": "read"})
    page = await people.get("/tokens/40")
    assert page.has('action="/console/undo"')
    assert not (await people.get("/tokens/40")).has('action="/console/undo"'), "told once"
    done = await people.post("/undo", {})
    assert (done.status, done.headers["Location"]) == (303, "/console/tokens/40")
    assert await held() is None
    assert (await people.post("/undo", {})).status == 409, "nothing is left to undo"
    await people.post("/tokens/40/restrict", {"permissions": "read", "note": "CI"})
    await people.post("/tokens/40/restrict", {"permissions": "read", "note": "CI", "uses": "5"})
    await people.post("/undo", {})
    assert await held() == {"permissions": ["read"], "note": "CI"}
    await people.post("/tokens/40/unrestrict", {})
    assert await held() is None
    await people.post("/undo", {})
    assert await held() == {"permissions": ["read"], "note": "CI"}
    assert (await last_change(people))[2:] == ("alice", "console")
    await people.post("/tokens/40/restrict", {"permissions": "read", "uses": "5"})
    narrower = parse({"permissions": ["read"], "uses": 1})
    await people.registry.set_restriction("token", TokenId(40), narrower)
    refused = await people.post("/undo", {})
    assert refused.status == 409
    assert refused.has("changed by somebody else meanwhile; nothing was undone")
    assert await held() == as_mapping(narrower)
