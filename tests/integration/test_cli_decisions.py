"""`decisions`: for each reason code, a refusal that was made is found by its id and explained."""

import asyncio
import json
import re

import pytest
from redis.asyncio import Redis

from authsidecar.admin.reasons import advice
from authsidecar.decision.checks import PERMISSION_MISSING
from authsidecar.decision.model import Deny, Proxy
from authsidecar.decision.restrictions import TOKEN_RESTRICTED
from authsidecar.store.keys import Keys
from authsidecar.store.receipt_reader import find
from tests.integration.test_cli_explain import CASES, GOLDEN, Case, world
from tests.integration.test_receipts import STATE, outcome, request
from tests.integration.test_receipts import receipts as kept_by
from tests.support import seed
from tests.support.cli import invoke, with_registry
from tests.support.sidecar import start_sidecar
from tests.support.waiting import eventually
from tests.support.wire import ask, subrequest

REFUSED = [
    case
    for case in CASES
    if not case.code.startswith("allowed")
    and case.code not in {"untrusted_peer", "store_unavailable", "ambiguous_target_relative"}
]
"""Refusals that a sidecar makes to a proxy that it trusts, with Redis there."""


@pytest.fixture(scope="module")
def sidecars(redis_server, tmp_path_factory):
    """One that looks at the teams of resources, and one that does not."""
    made = {
        isolated: start_sidecar(
            tmp_path_factory.mktemp("sidecar"),
            redis_server.url,
            SYNC__TEAM_ISOLATION=str(isolated).lower(),
            RECEIPTS__SHARE="0",
            REDIS__CACHE_RECORDS="0",
        )
        for isolated in (False, True)
    }
    yield made
    for process in made.values():
        process.stop()


def refuse(case: Case, sidecars, redis_url: str) -> dict:
    """The body of the refusal that a case earns from a sidecar, its receipt being written."""

    async def refused() -> dict:
        async def build(registry) -> None:
            await world(registry)
            if case.prepare:
                await case.prepare(registry)

        await with_registry(redis_url, build)
        token = case.token
        if isinstance(token, int):
            token = f"{token}|{seed.secret_of(token)}"
        name, _, value = case.more[1].partition(": ") if case.more else ("", "", "")
        request = subrequest(
            case.method,
            case.target,
            authorization=None if token is None else f"Bearer {token}",
            client="192.0.2.1",
            headers=[(name, value)] if name else [],
        )
        await asyncio.sleep(1.1 if case.isolated or case.prepare else 0)  # the instance is cached
        answer = (await ask(sidecars[case.isolated].port, request))[0]
        async with Redis.from_url(redis_url) as client:

            async def kept() -> bool:
                return await find(client, Keys(), answer.json["decision_id"]) is not None

            await eventually(kept, "a receipt")
        return answer.json

    return asyncio.run(refused())


def same(text: str) -> str:
    return re.sub(
        r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", re.sub(r"again in \d+ s", "again in N s", text)
    )


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.code)
def test_a_refusal_is_shown_by_its_id(case, sidecars, redis_url):
    """What it was refused by, then and now, is what `explain` says; and what to do is said."""
    body = refuse(case, sidecars, redis_url)
    assert case.code.startswith(body["code"])
    isolated = {"SYNC__TEAM_ISOLATION": str(case.isolated).lower()}
    result = invoke("decisions", "show", body["decision_id"], "--json", url=redis_url, **isolated)
    assert result.code == 0, result.err
    shown = result.json
    assert shown["receipt"]["code"] == shown["then"]["code"] == body["code"]
    golden = (GOLDEN / f"{case.code}.txt").read_text()
    (failed,) = re.findall(r"^  FAIL  (\w+) +(.*)$", golden, re.MULTILINE)
    then = [(c["name"], c["detail"]) for c in shown["then"]["checks"] if c["result"] == "fail"]
    assert [name for name, _ in then] == [failed[0]]
    if shown["now"] is None:
        assert failed[0] == "target"
    else:
        now = [
            (c["name"], same(c["detail"])) for c in shown["now"]["checks"] if c["result"] == "fail"
        ]
        assert [name for name, _ in now] == [failed[0]]
        assert shown["now"]["code"] == body["code"]
    assert shown["what_to_do"] == advice()[body["code"]].what_to_do
    text = invoke("decisions", "show", body["decision_id"], url=redis_url, **isolated).out
    assert "then:" in text
    assert "now:" in text
    assert f"What to do: {shown['what_to_do']}" in text


@pytest.fixture
def kept(redis_url):
    """Receipts of requests with tokens 10 and 11, as one process wrote them."""

    async def write() -> None:
        async with Redis.from_url(redis_url) as client:
            receipts = kept_by(client)
            for name, token, deny in (
                ("aa", 11, Deny(PERMISSION_MISSING, "the route needs write, the token holds read")),
                ("bb", 11, Deny(PERMISSION_MISSING, "the route needs write, the token holds read")),
                ("cc", 10, Deny(TOKEN_RESTRICTED, "the token's restriction does not name it")),
                ("dd", 10, None),
            ):
                told = outcome(deny, token)
                if deny is None:
                    receipts.admitted(name, Proxy.NGINX, request(), told, STATE)
                else:
                    receipts.refused(name, Proxy.NGINX, request(), told, "", STATE)
            await receipts.write()

    asyncio.run(with_registry(redis_url, world))
    asyncio.run(write())
    return redis_url


def lines(result) -> list[dict]:
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


FILTERS = {
    (): "aabbccdd",
    ("--deny",): "aabbcc",
    ("--code", "permission_missing"): "aabb",
    ("--token", "10"): "ccdd",
    ("--user", "1"): "aabbccdd",
    ("--user", "2"): "",
    ("--team", "3", "--deny"): "aabbcc",
    ("--address", "192.0.2.1"): "aabbccdd",
    ("--address", "192.0.2.2"): "",
    ("--route", "/api/v1/teams"): "aabbccdd",
    ("--route", "POST /api/v1/teams"): "",
}


def test_filters_choose_decisions(kept):
    """`tail` and `export` show the same ones, each as a line of JSON."""
    for words, wanted in FILTERS.items():
        for command in (("export",), ("tail", "--no-follow", "--json")):
            found = lines(invoke("decisions", *command, *words, url=kept))
            assert "".join(sorted(one["id"] for one in found)) == wanted, words
            assert all(one["at"].endswith("Z") for one in found)


def test_who_is_refused_most(kept):
    """By each of the five, with the codes and an example."""
    found = invoke("decisions", "top", "--by", "token", "--json", url=kept).json["items"]
    assert [(one["token"], one["refused"]) for one in found] == [("11", 2), ("10", 1)]
    assert found[0]["codes"] == ["permission_missing (2)"]
    found = invoke("decisions", "top", "--by", "route", "--json", url=kept).json["items"]
    assert [(one["route"], one["refused"]) for one in found] == [("GET /api/v1/teams", 3)]
    assert "permission_missing" in invoke("decisions", "top", "--by", "code", url=kept).out


def test_the_report_sets_apart_what_coolify_refuses_anyway(kept):
    """As text, JSON and CSV."""
    data = invoke("decisions", "report", "--json", url=kept).json
    assert (data["refused"], data["refused_by_coolify_too"], data["admitted_estimate"]) == (1, 2, 1)
    assert [one["value"] for one in data["by_token"]] == ["11", "10"]
    assert data["by_code"][1]["codes"] == {"token_restricted": 1}
    text = invoke("decisions", "report", url=kept).out
    assert re.search(r"refused by Coolify as well: +2\n", text)
    assert re.search(r"0 / 2  permission_missing: permission_missing 2; bb\n", text)
    rows = invoke("decisions", "report", "--csv", url=kept).out.splitlines()
    assert rows[0] == "by,value,refused,refused_by_coolify_too,codes,example"
    assert "token,11,0,2,permission_missing=2,bb" in rows


def test_a_decision_is_explained_as_it_would_be_now(kept):
    """`explain --decision`: token 11 may read teams, whatever was decided then."""
    result = invoke("explain", "--decision", "aa", url=kept)
    assert result.code == 0, result.err
    assert "200 allowed" in result.out
    assert "taken as right" in result.out
    for words in (("decisions", "show", "zz"), ("explain", "--decision", "zz")):
        result = invoke(*words, url=kept)
        assert result.code == 1
        assert "no receipt of decision zz is kept" in result.err


def test_a_request_is_explained_for_a_token_whose_secret_nobody_has(kept):
    """`explain --as-token`: judged as if the right secret were sent, and that is said."""
    result = invoke("explain", "POST", "/api/v1/projects", "--as-token", "11", "--json", url=kept)
    assert result.code == 1
    assert (result.json["code"], result.json["secret"]) == ("permission_missing", "taken as right")
    result = invoke("explain", "GET", "/api/v1/teams", "--as-token", "11", url=kept)
    assert result.code == 0
    assert result.out.endswith("The secret was taken as right: nobody has shown it.\n")
    assert "there is no token 99" in invoke("explain", "GET", "/a", "--as-token", 99, url=kept).err
    for wrong in (
        ("GET", "/a", "--decision", "aa"),
        ("GET",),
        ("--as-token", 1, "--decision", "aa"),
    ):
        assert invoke("explain", *wrong, url=kept).code == 2


def test_a_span_that_is_none_is_wrong_usage(kept):
    """One line says what would be right."""
    for span in ("24", "0h", "x", "1w", "-1h"):
        result = invoke("decisions", "export", "--last", span, url=kept)
        assert result.code == 2
        assert "such as 24h" in result.err
