"""`POST /api/v1/enable` and `/disable`, served by the sidecar itself."""

import http.client
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.support.seed import bearer, registry, token, user
from tests.support.sidecar import Answer, SidecarProcess, start_sidecar


@pytest.fixture
async def sidecar(redis_client: Redis, redis_url: str, tmp_path: Path) -> SidecarProcess:
    state = registry(redis_client)
    await state.set_instance(api_enabled=True)
    await user(state, 1, t0="owner", t1="owner")
    await state.put_tokens(
        [
            token(1, user=1, team=0, permissions=("root",)),
            token(2, user=1, team=1, permissions=("root",)),
            token(3, user=1, team=0, permissions=("read", "write")),
        ]
    )
    process = start_sidecar(tmp_path, redis_url)
    yield process
    assert process.stop() == 0


def send(
    sidecar: SidecarProcess,
    path: str,
    number: int,
    method: str = "POST",
    forwarded_for: str | None = "192.0.2.9",
) -> Answer:
    headers = {"Authorization": bearer(number)}
    if forwarded_for is not None:
        headers["X-Forwarded-For"] = forwarded_for
    connection = http.client.HTTPConnection("127.0.0.1", sidecar.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, tuple(response.getheaders()), response.read())
    finally:
        connection.close()


def test_the_switch_takes_effect_on_the_next_request(sidecar: SidecarProcess) -> None:
    """Disabled: the next request is refused; enabled: the next one passes; Coolify's words."""
    off = send(sidecar, "/api/v1/disable", 1)
    assert (off.status, off.json) == (200, {"message": "API disabled."})
    assert off.header("X-Auth-User-Id") is None
    refused = sidecar.ask("GET", "/api/v1/teams", authorization=bearer(1))
    assert (refused.status, refused.json["code"]) == (403, "api_disabled")
    on = send(sidecar, "/api/v1/enable", 1)
    assert (on.status, on.json) == (200, {"message": "API enabled."})
    assert sidecar.ask("GET", "/api/v1/teams", authorization=bearer(1)).status == 200


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [(2, 403, "instance_team_required"), (3, 403, "permission_missing"), (9, 401, "token_unknown")],
)
def test_the_whole_check_stands_before_the_switch(
    sidecar: SidecarProcess, number: int, status: int, code: str
) -> None:
    """Another team's root, a token without root and an unknown one switch nothing."""
    answer = send(sidecar, "/api/v1/disable", number)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert sidecar.ask("GET", "/api/v1/teams", authorization=bearer(1)).status == 200


def test_get_switches_nothing(sidecar: SidecarProcess) -> None:
    """Coolify made these POST requests: GET is 405 and says which method is allowed."""
    answer = send(sidecar, "/api/v1/disable", 1, method="GET")
    assert (answer.status, answer.header("Allow")) == (405, "POST")
    assert sidecar.ask("GET", "/api/v1/teams", authorization=bearer(1)).status == 200


def test_without_a_forwarded_address_nothing_is_switched(sidecar: SidecarProcess) -> None:
    """A request that no proxy marked with its client's address is refused."""
    answer = send(sidecar, "/api/v1/disable", 1, forwarded_for=None)
    assert (answer.status, answer.json["code"]) == (400, "forwarded_header_invalid")
    assert sidecar.ask("GET", "/api/v1/teams", authorization=bearer(1)).status == 200
