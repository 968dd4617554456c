"""Decisions over the management API: what the command line tells of them, in the same words."""

import asyncio
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from authsidecar.admin.decisions import Filter
from authsidecar.admin.questions import AllRefused, MostRefused, UnansweredError
from authsidecar.config import load
from authsidecar.decision.checks import PERMISSION_MISSING
from authsidecar.decision.model import Deny, Proxy
from authsidecar.decision.restrictions import TOKEN_RESTRICTED
from authsidecar.run.beside import WAITING, Beside
from tests.integration.test_cli_explain import world
from tests.integration.test_manage_api import refused, right
from tests.integration.test_receipts import STATE, outcome, request
from tests.integration.test_receipts import receipts as kept_by
from tests.support.cli import invoke, with_registry
from tests.support.manage import Api, key
from tests.support.redis import start_redis
from tests.support.sidecar import start_sidecar

HOUR_MS = 3_600_000
READ = "the route needs write, the token holds read"


async def write(url: str) -> None:
    """Sixty decisions of two tokens and two addresses, one a second, in an order of their own."""
    async with Redis.from_url(url) as client:
        receipts = kept_by(client)
        start = int(time.time() * 1000) - HOUR_MS
        for n in range(60):
            access = request()._replace(client=ip_address(f"192.0.2.{n % 2 + 1}"))
            deny = (
                Deny(PERMISSION_MISSING, READ) if n % 3 == 0
                else Deny(TOKEN_RESTRICTED, "the token's restriction does not name it")
                if n % 3 == 1
                else None
            )  # fmt: skip
            told = outcome(deny, 10 + n % 2, start + n * 1000)
            if deny is None:
                receipts.admitted(f"{n:02x}", Proxy.NGINX, access, told, STATE)
            else:
                receipts.refused(f"{n:02x}", Proxy.NGINX, access, told, "", STATE)
            await receipts.write()
            await asyncio.sleep(0.002)  # what one trip writes has no order


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    server = start_redis(tmp_path_factory.mktemp("redis"), port=0)
    asyncio.run(with_registry(server.url, world))
    asyncio.run(write(server.url))
    sidecar = start_sidecar(tmp_path_factory.mktemp("sidecar"), server.url)
    yield Api(sidecar, server.url, key(server.url, "read"), key(server.url, "write"))
    assert sidecar.events("defect") == []
    sidecar.stop()
    server.stop()


QUERIES = (
    (),
    ("--deny",),
    ("--code", "permission_missing"),
    ("--token", "10"),
    ("--user", "2"),
    ("--team", "3", "--deny"),
    ("--address", "192.0.2.1"),
    ("--route", "GET /api/v1/teams"),
    ("--route", "POST /api/v1/teams"),
)


@pytest.mark.parametrize("words", QUERIES, ids=" ".join)
def test_lists_have_what_the_command_line_exports(api: Api, words: tuple[str, ...]) -> None:
    """The newest first, everything once, in pages of whatever size."""
    given = [*words, "true"] if words[-1:] == ("--deny",) else [*words]
    pairs = zip(given[::2], given[1::2], strict=True)
    query = "&".join(f"{name[2:]}={value.replace(' ', '%20')}" for name, value in pairs)
    exported = invoke("decisions", "export", *words, url=api.url).out.splitlines()
    wanted = [line.partition('"id": "')[2][:2] for line in exported]
    for size in (7, 200):
        found = [one["id"] for one in api.all(f"/decisions?{query}", size)]
        assert found == wanted[::-1]


def test_pages_end_where_nothing_is_wanted(api: Api) -> None:
    """An older time, another token: nothing, and no next page."""
    assert right(api.ask("GET", "/decisions?token=99")) == {"items": [], "next": None}
    page = right(api.ask("GET", "/decisions?limit=1"))
    assert page["items"][0]["id"] == "3b"
    refused(api.ask("GET", "/decisions?address=x"), 422)
    refused(api.ask("GET", "/decisions?deny=1"), 400)
    for cursor in ("WzEsMSwtMV0=", "W10=", "bnVsbA=="):
        answer = api.ask("GET", f"/decisions?cursor={cursor}")
        assert answer.status == (200 if cursor == "bnVsbA==" else 422)


def test_one_is_shown_then_and_now(api: Api) -> None:
    """With what `decisions show` says of it; what was not kept is 404 in its words."""
    found = right(api.ask("GET", "/decisions/00", key=api.reading))
    shown = invoke("decisions", "show", "00", "--json", url=api.url).json
    for part in ("then", "now"):
        assert {**shown[part]}.items() <= found[part].items()
    assert (found["meaning"], found["what_to_do"]) == (shown["meaning"], shown["what_to_do"])
    assert {name: found["decision"][name] for name in ("id", "at", "code", "detail", "token")} == {
        name: shown["receipt"][name] for name in ("id", "at", "code", "detail", "token")
    }
    assert found["decision"]["limits"] == {}
    absent = refused(api.ask("GET", "/decisions/ffff"), 404)
    assert invoke("decisions", "show", "ffff", url=api.url).err == f"authsidecar: {absent}\n"


def test_counts_are_those_of_the_command_line(api: Api) -> None:
    """`top` and `report`, which a process of its own answers."""
    shown = invoke("decisions", "report", "--json", url=api.url).json
    found = right(api.ask("GET", "/decisions/report", key=api.reading))
    for name in shown.keys() - {"since", "until"}:
        assert found[name] == shown[name], name
    top = right(api.ask("GET", "/decisions/top?by=address&code=token_restricted&most=1"))
    (one,) = top["items"]
    assert (one["value"], one["refused"], one["codes"]) == (
        "192.0.2.1", 10, {"token_restricted": 10}
    )  # fmt: skip


def test_a_simulation_is_that_of_the_command_line(api: Api) -> None:
    """What flips either way, estimates marked; what can't be tried is said."""
    words = ("--allowlist", "192.0.2.1", "--limit", "user=1000", "--routes", "4.1")
    shown = invoke("simulate", *words, "--json", url=api.url)
    assert shown.code == 1
    change = {"allowlist": "192.0.2.1", "limits": {"user": "1000"}, "routes": "4.1"}
    found = right(api.ask("POST", "/simulate", change, key=api.reading))
    assert found["judged"] == shown.json["judged"] == 60
    assert found["kinds"] == len(found["flips"]) == len(shown.json["flips"]) > 0
    for mine, theirs in zip(found["flips"], shown.json["flips"], strict=True):
        assert mine.pop("example")["id"] == theirs.pop("example")["id"]
        assert mine == theirs
    closed = {"extra_routes": "GET /api/v1/teams deny\n", "last_seconds": 7200}
    flips = right(api.ask("POST", "/simulate", closed))["flips"]
    assert {(one["would_be"], one["code"]) for one in flips} == {("refused", "route_unknown")}
    nothing = right(api.ask("POST", "/simulate", {"last_seconds": 60}))
    assert nothing["judged"] == 60  # written in this minute
    for body, words in (
        ({"limits": {"user": "x"}}, "limits: user: "),
        ({"limits": {"nobody": "1"}}, "limits: 'nobody' is not one of user, "),
        ({"routes": "9.9"}, "routes: no routes for Coolify"),
        ({"extra_routes": "GET x read"}, "routes: line 1"),
        ({"allowlist": "x"}, "allowlist: "),
    ):
        assert refused(api.ask("POST", "/simulate", body), 422).startswith(words)


def test_explain_without_the_secret_and_for_another_peer(api: Api) -> None:
    """As `--as-token`, `--header` and `--peer` do."""
    asked = {"method": "GET", "target": "/api/v1/teams", "as_token": 10}
    found = right(api.ask("POST", "/explain", asked))
    assert (found["outcome"], found["secret_taken_as_right"]) == ("allow", True)
    override = {"headers": [{"name": "X-HTTP-Method-Override", "value": "DELETE"}]}
    assert right(api.ask("POST", "/explain", asked | override))["code"] == "method_override"
    peer = right(api.ask("POST", "/explain", asked | {"peer": "192.0.2.200"}))
    assert peer["code"] == "untrusted_peer"
    assert "no token 99" in refused(api.ask("POST", "/explain", asked | {"as_token": 99}), 422)
    refused(api.ask("POST", "/explain", asked | {"token": "10|x"}), 422)


async def test_an_answer_takes_no_longer_than_it_may(redis_url: str, redis_client: Redis) -> None:
    """The process is ended; too many that wait are turned away; Redis away is said."""
    settings = load(None, {"AUTHSIDECAR_REDIS__URL": redis_url})
    hasty = Beside(settings, longest_s=0.01)
    with pytest.raises(UnansweredError, match="shorter time") as caught:
        await hasty(AllRefused(HOUR_MS))
    assert not caught.value.busy
    beside = Beside(settings)
    question = MostRefused(Filter(), "token", 1, HOUR_MS)
    asking = [asyncio.create_task(beside(question)) for _ in range(WAITING + 2)]
    answers = await asyncio.gather(*asking, return_exceptions=True)
    busy = [one for one in answers if isinstance(one, UnansweredError)]
    assert [one.busy for one in busy] == [True]
    assert answers.count(()) == WAITING + 1
    away = Beside(load(None, {"AUTHSIDECAR_REDIS__URL": "redis://127.0.0.1:1"}))
    with pytest.raises(RedisError):
        await away(question)
