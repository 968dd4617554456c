"""The whole management API, the audit and receipts on a real Redis Cluster."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.test_manage_api import refused, right
from tests.support.cli import invoke
from tests.support.manage import Api, key
from tests.support.sidecar import start_sidecar
from tests.support.topologies import cluster
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with cluster(tmp_path_factory.mktemp("cluster"), replicas=False) as servers:
        directory = tmp_path_factory.mktemp("sidecar")
        sidecar = start_sidecar(directory, servers.url, RECEIPTS__SHARE="1")
        yield Api(sidecar, servers.url, key(servers.url, "read"), key(servers.url, "write"))
        assert sidecar.events("defect") == []
        sidecar.stop()


def test_everything_once(api: Api) -> None:
    """Made, read, changed, decided by, explained, counted, tried, recorded and removed."""
    assert right(api.ask("GET", "/status"))["ready"]
    keys = right(api.ask("GET", "/keys"))["items"]
    assert [one["scope"] for one in keys] == ["read", "write"]
    right(api.ask("PATCH", "/settings", {"api_enabled": True, "allowlist": "192.0.2.0/24"} | MINE))
    for number in range(1, 4):
        user = {"name": f"user {number}", "email": f"u{number}@example.com", "id": number}
        right(api.ask("POST", "/users", user), 201)
    right(api.ask("POST", "/teams", {"name": "web", "id": 7}), 201)
    for number in range(1, 4):
        right(api.ask("PUT", f"/teams/7/members/{number}", {"role": "owner"}))
    assert len(api.all("/users", 2)) == len(api.all("/teams/7/members", 2)) == 3
    wanted = {"name": "deploys", "user": 1, "team": 7, "permissions": ["read"], "expires": 30}
    headers = {"Idempotency-Key": "one"}
    made = right(api.ask("POST", "/tokens", wanted, headers=headers), 201)
    assert right(api.ask("POST", "/tokens", wanted, headers=headers), 201)["id"] == made["id"]
    assert [one["id"] for one in api.all("/tokens?team=7")] == [made["id"]]
    right(api.ask("PUT", f"/restrictions/token/{made['id']}", {"routes": ["GET /api/v1/teams"]}))
    one_passes(api)

    answers: list[int] = []

    def asked(path: str) -> int:
        token = f"Bearer {made['token']}"
        answers.append(api.sidecar.ask("GET", path, authorization=token).status)
        return answers[-1]

    def settled() -> bool:
        time.sleep(0.02)  # no more refusals than are kept in a second
        return asked("/api/v1/teams") == 200

    until(settled, "the settings")  # within a second, on a cluster
    right(api.ask("PUT", "/limits/user/1", {"limit": 5, "window_seconds": 3600}))
    right(api.ask("POST", "/limits/user/1/reset"))
    assert [asked("/api/v1/teams") for _ in range(6)] == [200] * 5 + [429]
    assert right(api.ask("GET", "/limits/user/1"))["remaining"] == 0
    right(api.ask("POST", "/limits/user/1/reset"))
    assert asked("/api/v1/servers") == 403
    until(lambda: len(api.all("/decisions", 3)) == len(answers), "all receipts")

    def fleet(span: str) -> dict:
        return right(api.ask("GET", f"/fleet?span={span}"))

    for span in ("hour", "day", "week"):  # added once a second
        until(lambda: fleet(span)["admitted"] == answers.count(200), "the counters")  # noqa: B023
        assert fleet(span)["refused"]["rate_limited"] == 1
    assert len(fleet("hour")["processes"]) == 1
    (refusal,) = api.all("/decisions?code=token_restricted")
    shown = right(api.ask("GET", f"/decisions/{refusal['id']}"))
    assert shown["then"]["code"] == shown["now"]["code"] == "token_restricted"
    top = right(api.ask("GET", "/decisions/top?by=code"))["items"]
    assert {one["value"] for one in top} >= {"rate_limited", "token_restricted"}
    flips = right(api.ask("POST", "/simulate", {"allowlist": "198.51.100.0/24"}))["flips"]
    assert {one["code"]: one["receipts"] for one in flips} == {"address_not_allowed": 6}
    asking = {"method": "GET", "target": "/api/v1/teams", "as_token": made["id"]}
    asking["client_ip"] = "192.0.2.1"
    assert right(api.ask("POST", "/explain", asking))["outcome"] == "allow"
    assert right(api.ask("POST", "/reload"))["changed"] == []
    removed = right(api.ask("DELETE", "/users/1"))
    assert removed["removed_tokens"] == 1
    assert asked("/api/v1/teams") == 401
    right(api.ask("DELETE", "/teams/7"))
    actions = [one["action"] for one in api.all("/audit", 5)]
    assert actions[:3] == ["team.remove", "user.remove", "config.reload"]
    assert {"user.add", "member.set", "token.add", "limit.set", "restrict"} < set(actions)
    first = right(api.ask("GET", "/audit?limit=1"))["items"][0]
    assert right(api.ask("GET", f"/audit/{first['id']}")) == first
    assert invoke("key", "revoke", "1", url=api.url).code == 0
    refused(api.ask("GET", "/status", key=api.reading), 401)


MINE = {"my_ip": "192.0.2.1"}


def one_passes(api: Api) -> None:
    """Of many with one ETag."""
    tag = api.ask("GET", "/settings").header("ETag") or ""
    body, headers = {"mcp_enabled": True}, {"If-Match": tag}
    with ThreadPoolExecutor(6) as pool:
        asked = [
            pool.submit(api.ask, "PATCH", "/settings", body, headers=headers) for _ in range(6)
        ]
        assert sorted(one.result().status for one in asked) == [200] + [412] * 5
