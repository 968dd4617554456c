"""`enforcement: report`: everything is decided, logged and counted, nothing is refused."""

import json
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.support.seed import bearer, registry, token, user
from tests.support.sidecar import SidecarProcess, get, start_sidecar


@pytest.fixture
async def sidecar(redis_client: Redis, redis_url: str, tmp_path: Path) -> SidecarProcess:
    state = registry(redis_client)
    await state.set_instance(api_enabled=True)
    await user(state, 1, t0="owner")
    await state.put_tokens([token(1, user=1, team=0)])
    process = start_sidecar(
        tmp_path, redis_url, ENFORCEMENT="report", LIMITS__USER="1", LIMITS__FAILED="1"
    )
    yield process
    process.stop()


@pytest.mark.parametrize("proxy", ["traefik", "nginx"])
def test_what_would_be_refused_passes_without_identity(sidecar: SidecarProcess, proxy: str) -> None:
    """401, 403, 404, 400 and 429 alike: 200, every identity header `none`, the truth in the log."""
    asked = [
        ("GET", "/api/v1/teams", "Bearer 1|wrong", "token_unknown"),
        ("POST", "/api/v1/projects", bearer(1), "permission_missing"),
        ("GET", "/api/v1/teams", bearer(1), "rate_limited"),
        ("GET", "/api/v1/nowhere", None, "route_unknown"),
        ("GET", "/api/v1/%2e%2e/teams", None, "ambiguous_target"),
    ]
    for method, uri, authorization, _ in asked:
        answer = sidecar.ask(method, uri, authorization=authorization, proxy=proxy)
        assert answer.status == 200
        assert answer.header("X-Auth-User-Id") == "none"
        assert answer.header("X-Auth-Permissions") == "none"
    metrics = get(sidecar.management_port, "/metrics", {}).body.decode()
    for *_, code in asked:
        assert f'outcome="deny",proxy="{proxy}",reason="{code}"}} 1.0' in metrics
    sidecar.stop()
    lines = [json.loads(line) for line in sidecar.log.splitlines()]
    told = [line["code"] for line in lines if line["event"] == "decision"]
    assert told == [code for *_, code in asked]


def test_what_is_allowed_keeps_its_identity(sidecar: SidecarProcess) -> None:
    """A good request is answered as ever."""
    answer = sidecar.ask("GET", "/api/v1/teams", authorization=bearer(1))
    assert (answer.status, answer.header("X-Auth-User-Id")) == (200, "1")
