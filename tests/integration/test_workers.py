"""`serve --workers N`: one address, several processes, one set of metrics."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from tests.support.seed import bearer, registry, token, user
from tests.support.sidecar import SidecarProcess, get, start_sidecar


@pytest.fixture
async def sidecar(redis_client: Redis, redis_url: str, tmp_path: Path) -> SidecarProcess:
    state = registry(redis_client)
    await state.set_instance(api_enabled=True)
    await user(state, 1, t0="owner")
    await state.put_tokens([token(1, user=1, team=0)])
    process = start_sidecar(tmp_path, redis_url, "--workers", "2")
    wait_for(lambda: len(workers(process)) == 2 and process.log.count("worker_failed") == 0)
    yield process
    assert process.stop() == 0


def workers(sidecar: SidecarProcess) -> set[int]:
    return {child.pid for child in psutil.Process(sidecar.pid).children()}


def wait_for(condition, seconds: float = 10) -> None:
    patience = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < patience, "it did not come about"
        time.sleep(0.05)


def decisions(sidecar: SidecarProcess) -> float:
    text = get(sidecar.management_port, "/metrics", {}).body.decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "authsidecar_decisions_total"
    )


def test_all_workers_answer_and_their_metrics_are_summed(sidecar: SidecarProcess) -> None:
    """Requests on many connections reach both workers; any of them tells the sum."""
    for _ in range(40):
        assert sidecar.ask("GET", "/api/v1/teams", authorization=bearer(1)).status == 200
    assert decisions(sidecar) == 40
    answered_by = {
        line.split('"decision_id": "')[1][:18]
        for line in sidecar.log.splitlines()
        if '"event": "decision"' in line
    }
    assert len(answered_by) == 2


def test_a_dead_worker_is_replaced(sidecar: SidecarProcess) -> None:
    """A killed worker's place is taken; the address answers all the while."""
    before = workers(sidecar)
    os.kill(min(before), signal.SIGKILL)
    wait_for(lambda: len(workers(sidecar) - before) == 1)
    wait_for(lambda: get(sidecar.management_port, "/readyz", {}).status == 200)
    assert sidecar.ask("GET", "/api/v1/teams", authorization=bearer(1)).status == 200


def test_sighup_replaces_all_workers_and_loses_no_request(sidecar: SidecarProcess) -> None:
    """A graceful restart: new processes, no refused connection, the metrics kept."""
    before = workers(sidecar)
    sidecar.signal(signal.SIGHUP)
    asked = 0
    while workers(sidecar) & before or len(workers(sidecar)) < 2:
        assert sidecar.ask("GET", "/api/v1/teams", authorization=bearer(1)).status == 200
        asked += 1
        assert asked < 2000, "the old workers stay"
    assert decisions(sidecar) == asked
