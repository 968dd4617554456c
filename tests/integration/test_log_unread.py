"""Standard error that nobody reads, and a full disk under it: decisions do not wait for a log."""

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from tests.support.seed import bearer, registry, token, user
from tests.support.sidecar import SidecarProcess, get, start_sidecar
from tests.support.waiting import until
from tests.support.wire import Wire, subrequest

GOOD = subrequest(authorization=bearer(1))
ROOM = 15_000
"""More decisions than there is room for: the pipe's and the buffer's together."""

CONNECTIONS = 8


class Reader:
    """Reads a pipe in a thread, from `start` on."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self._chunks: list[bytes] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while data := os.read(self.read_end, 1 << 20):
            self._chunks.append(data)

    def lines(self, event: str) -> list[dict]:
        text = b"".join(self._chunks)
        whole = text[: text.rfind(b"\n") + 1].splitlines()
        return [line for line in map(json.loads, whole) if line["event"] == event]

    def close(self) -> None:
        os.close(self.write_end)
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self.read_end)


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.close()


@pytest.fixture
async def ready_redis(redis_client: Redis, redis_url: str) -> str:
    state = registry(redis_client)
    await state.set_instance(api_enabled=True)
    await user(state, 1, t0="owner")
    await state.put_tokens([token(1, user=1, team=0)])
    return redis_url


def started(directory: Path, url: str, stderr: int, *arguments: str) -> SidecarProcess:
    return start_sidecar(directory, url, *arguments, stderr=stderr, LIMITS__USER="100000")


async def asked(process: SidecarProcess, count: int) -> float:
    """Have so many requests answered on kept connections; how many in a second."""
    left = iter(range(count))

    async def worker() -> None:
        async with Wire(process.port) as wire:
            for _ in left:
                # At this speed the user's limit is met now and then: that is an answer.
                assert (await wire.ask(GOOD)).status in {200, 429}

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
    return count / (time.perf_counter() - start)


def dropped(process: SidecarProcess) -> float:
    text = get(process.management_port, "/metrics", {}).body.decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "authsidecar_log_lines_dropped_total"
    )


def idle_share(process: SidecarProcess) -> float:
    """The part of a processor that the process and its workers use, asked nothing."""
    of_all = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]

    def used() -> float:
        return sum(one.cpu_times().user + one.cpu_times().system for one in of_all)

    before, start = used(), time.monotonic()
    time.sleep(2)
    return (used() - before) / (time.monotonic() - start)


async def test_decisions_do_not_wait_for_a_reader(
    ready_redis: str, reader: Reader, tmp_path: Path
) -> None:
    """All are answered, health too, and what is lost is counted, then told when it is read."""
    process = started(tmp_path, ready_redis, reader.write_end)
    try:
        await asked(process, ROOM)
        assert get(process.management_port, "/healthz", {}).status == 200
        lost = dropped(process)
        assert lost > 0
        reader.start()
        until(lambda: bool(reader.lines("log_lines_dropped")), "the line about dropped lines")
        told = sum(line["count"] for line in reader.lines("log_lines_dropped"))
        assert told == lost
        until(lambda: len(reader.lines("decision")) + lost >= ROOM, "all lines that had room")
        assert len(reader.lines("decision")) + lost == ROOM
    finally:
        assert process.stop() == 0


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
async def test_a_stop_waits_a_second_for_a_reader_that_is_not_there(
    ready_redis: str, reader: Reader, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """SIGTERM is heeded although a thread is stuck in a write."""
    process = started(tmp_path, ready_redis, reader.write_end, *arguments)
    await asked(process, 1000)
    start = time.monotonic()
    assert process.stop() == 0
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
async def test_a_full_disk_under_the_log_costs_nothing(
    ready_redis: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """It starts, answers, idles and stops; each write fails as /dev/full has it."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        process = started(tmp_path, ready_redis, full, *arguments)
        await asked(process, 1000)
        assert idle_share(process) < 0.2
        assert get(process.management_port, "/healthz", {}).status == 200
        assert process.stop() == 0
    finally:
        os.close(full)


def test_a_start_that_fails_ends_although_nobody_reads_why(
    redis_url: str, reader: Reader, tmp_path: Path
) -> None:
    """A supervisor that starts it again and again has the pipe full in the end."""
    os.set_blocking(reader.write_end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(reader.write_end, b"x" * 4096)
    os.set_blocking(reader.write_end, True)
    process = start_sidecar(
        tmp_path, redis_url, stderr=reader.write_end, wait=False, REDIS__TLS_CA_FILE="/none"
    )
    assert process.wait() == 2
    process = start_sidecar(
        tmp_path,
        "redis://127.0.0.1:1",
        stderr=reader.write_end,
        wait=False,
        REDIS__WAIT_AT_START_SECONDS="0",
    )
    assert process.wait() == 1


CLOSED = """
import os, sys
os.close(2)
os.execv(sys.executable, [sys.executable, "-m", "authsidecar", *sys.argv[1:]])
"""


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_closed_standard_error_costs_nothing(
    ready_redis: str, tmp_path: Path, workers: str
) -> None:
    """Its number may be a connection's then: nothing is written to it."""
    made = start_sidecar(tmp_path, ready_redis, "--workers", workers, wait=False)
    made.stop()
    process = replace(made, program=("-c", CLOSED), _process=None)
    process.start()
    try:
        await asked(process, 1000)
    finally:
        assert process.stop() == 0


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(600)
async def test_a_hundred_thousand_requests_without_a_reader_are_as_quick_as_with_one(
    ready_redis: str, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """In turns on one machine, so that its mood is the same; with a reader no line is lost."""
    unread, read = Reader(), Reader()
    read.start()
    silent = started(tmp_path / "silent", ready_redis, unread.write_end)
    loud = started(tmp_path / "loud", ready_redis, read.write_end)
    try:
        rates: dict[SidecarProcess, list[float]] = {silent: [], loud: []}
        for _ in range(10):
            for process in (silent, loud):
                rates[process].append(await asked(process, 10_000))
        without, having = (sorted(rates[one])[5] for one in (silent, loud))
        ratio = without / having
        tell(f"log unread: {without:.0f} requests/s, read: {having:.0f}, ratio {ratio:.2f}")
        assert without >= 0.8 * having
        assert dropped(silent) > 0
        assert dropped(loud) == 0
    finally:
        assert silent.stop() == 0
        assert loud.stop() == 0
        unread.close()
        read.close()
