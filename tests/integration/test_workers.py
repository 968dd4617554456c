"""`serve --workers N`: one address, several processes, one set of metrics."""

import os
import signal
from pathlib import Path

import psutil
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from authsidecar.run import shared_memory
from tests.support.seed import bearer, registry, token, user
from tests.support.sidecar import SidecarProcess, get, start_sidecar
from tests.support.waiting import until


@pytest.fixture
async def sidecar(redis_client: Redis, redis_url: str, tmp_path: Path) -> SidecarProcess:
    state = registry(redis_client)
    await state.set_instance(api_enabled=True)
    await user(state, 1, t0="owner")
    await state.put_tokens([token(1, user=1, team=0)])
    process = start_sidecar(tmp_path, redis_url, "--workers", "2")
    until(lambda: len(workers(process)) == 2, "a second worker")
    assert "worker_failed" not in process.log
    yield process
    assert process.stop() == 0


def workers(sidecar: SidecarProcess) -> set[int]:
    return {child.pid for child in psutil.Process(sidecar.pid).children()}


def decisions(sidecar: SidecarProcess) -> float:
    text = get(sidecar.management_port, "/metrics", {}).body.decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "authsidecar_decisions_total"
    )


def metric(sidecar: SidecarProcess, name: str) -> float:
    text = get(sidecar.management_port, "/metrics", {}).body.decode()
    [value] = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]
    return value


def answered_by(sidecar: SidecarProcess) -> set[str]:
    """The workers that have decided: each begins its ids in a way of its own."""
    return {
        line.split('"decision_id": "')[1][:18]
        for line in sidecar.log.splitlines()
        if '"event": "decision"' in line
    }


def admitted_by_the_fleet(redis_url: str) -> int:
    """What all workers have added to the counters of this half hour."""
    with redis.Redis.from_url(redis_url) as client:
        keys = client.keys("authsidecar:{fleet}:1800:*")
        return sum(int(client.hget(key, "reason:none") or 0) for key in keys)


def test_all_workers_answer_and_their_metrics_are_summed(
    sidecar: SidecarProcess, redis_url: str
) -> None:
    """Requests on many connections reach both workers; any of them tells the sum."""
    asked = 0

    def both_have_answered() -> bool:
        # One of them may still be starting, or lose the race for a connection many times.
        nonlocal asked
        for _ in range(20):
            assert sidecar.ask("GET", "/api/v1/teams", authorization=bearer(1)).status == 200
            asked += 1
        return len(answered_by(sidecar)) == 2

    until(both_have_answered, "an answer of each", patience_s=30)
    until(lambda: decisions(sidecar) >= asked, "the metrics of all")
    assert decisions(sidecar) == asked
    until(lambda: admitted_by_the_fleet(redis_url) >= asked, "the fleet's counters")
    assert admitted_by_the_fleet(redis_url) == asked


def test_processor_memory_and_descriptors_are_those_of_all_workers(
    sidecar: SidecarProcess,
) -> None:
    """As the operating system says; what a worker used that is gone stays in the sum."""
    of_all = [psutil.Process(pid) for pid in workers(sidecar)]

    def used() -> float:
        return sum(one.cpu_times().user + one.cpu_times().system for one in of_all)

    def memory_of_both() -> bool:
        memory = sum(one.memory_info().rss for one in of_all)
        return metric(sidecar, "process_resident_memory_bytes") == pytest.approx(memory, rel=0.1)

    before = used()
    assert before > 0
    until(lambda: metric(sidecar, "process_cpu_seconds_total") >= before, "the time of both")
    assert metric(sidecar, "process_cpu_seconds_total") <= used()
    until(memory_of_both, "the memory of both")
    most = max(one.num_fds() for one in of_all)
    assert abs(metric(sidecar, "process_open_fds") - most) <= 5
    assert metric(sidecar, "process_max_fds") == of_all[0].rlimit(psutil.RLIMIT_NOFILE)[0]
    newest = max(one.create_time() for one in of_all)
    assert metric(sidecar, "process_start_time_seconds") == pytest.approx(newest, abs=1.5)
    os.kill(of_all[0].pid, signal.SIGKILL)
    until(lambda: metric(sidecar, "process_start_time_seconds") > newest + 0.1, "a new worker's")
    assert metric(sidecar, "process_cpu_seconds_total") >= before
    of_all = [psutil.Process(pid) for pid in workers(sidecar)]
    until(memory_of_both, "the memory of the living")


def test_a_dead_worker_is_replaced(sidecar: SidecarProcess) -> None:
    """A killed worker's place is taken; the address answers all the while."""
    before = workers(sidecar)
    os.kill(min(before), signal.SIGKILL)
    until(lambda: len(workers(sidecar) - before) == 1, "a new worker")
    until(lambda: get(sidecar.management_port, "/readyz", {}).status == 200, "readiness")
    assert sidecar.ask("GET", "/api/v1/teams", authorization=bearer(1)).status == 200


def written_on_disk(pid: int) -> set[str]:
    """The files that a process may write and that are no pipe, socket, log or memory."""
    found = set()
    for one in (Path("/proc") / str(pid) / "fd").iterdir():
        flags = (one.parent.parent / "fdinfo" / one.name).read_text().split("flags:")[1].split()[0]
        target = str(one.readlink())
        if int(flags, 8) & (os.O_WRONLY | os.O_RDWR) and target.startswith("/"):
            found.add(target)
    memory = ("/dev/", "/proc/")
    return {name for name in found if not name.startswith(memory) and not name.endswith(".log")}


@pytest.mark.skipif(shared_memory.directory() is None, reason="/dev/shm cannot be used")
def test_what_a_worker_writes_is_in_memory(sidecar: SidecarProcess) -> None:
    """Heartbeats and metrics are files that the event loop writes: a disk could block it."""
    for pid in workers(sidecar):
        assert not written_on_disk(pid)


def test_one_worker_needs_no_supervisor(redis_url: str, tmp_path: Path) -> None:
    """What supervises several workers is not read at the start of one."""
    program = ("-X", "importtime", "-m", "authsidecar")
    sidecar = start_sidecar(tmp_path, redis_url, program=program)
    read = sidecar.log
    sidecar.stop()
    assert "authsidecar.run.sidecar\n" in read
    assert "gunicorn" not in read
