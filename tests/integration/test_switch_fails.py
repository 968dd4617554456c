"""The switch is told of as what became of it: an admission only once it is set."""

import json
import re
from pathlib import Path

from redis.asyncio import Redis

from tests.integration.test_api_switch import send
from tests.support.seed import registry, token, user
from tests.support.sidecar import get, start_sidecar


async def test_a_switch_that_cannot_be_set_is_no_admission(
    redis_client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """Answer, log and metrics agree: 503, and nobody was told "allow" before."""
    state = registry(redis_client)
    await state.set_instance(api_enabled=True)
    await user(state, 1, t0="owner")
    await state.put_tokens([token(1, user=1, team=0, permissions=("root",))])
    process = start_sidecar(
        tmp_path,
        redis_url,
        program=("-P", str(Path(__file__).parents[1] / "support/stuck_switch.py")),
    )
    try:
        answer = send(process, "/api/v1/disable", 1)
        assert (answer.status, answer.json["code"]) == (503, "store_unavailable")
        metrics = get(process.management_port, "/metrics", {}).body.decode()
    finally:
        process.stop()
    told = [
        line for line in map(json.loads, process.log.splitlines()) if line["event"] == "decision"
    ]
    assert [(line["outcome"], line["code"]) for line in told] == [("deny", "store_unavailable")]
    assert not re.search(r'authsidecar_decisions_total\{outcome="allow",proxy="direct"', metrics)
    assert process.events("api_switched") == []
