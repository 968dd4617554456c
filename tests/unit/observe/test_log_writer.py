"""Lines that are written by a thread: nobody waits, and what finds no room is counted."""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from authsidecar.observe import log_writer
from authsidecar.observe.log import Log
from authsidecar.observe.log_writer import URGENT_LINES, WAITING_LINES, Writer
from tests.support.waiting import until

MANY = 2 * WAITING_LINES
LONG = "x" * 100


class Pipe:
    """A pipe that is read only when a test says so."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    def read(self) -> str:
        """What is in it, and what is written while that is read."""
        os.set_blocking(self.read_end, False)
        found, silent_since = b"", time.monotonic()
        while time.monotonic() - silent_since < 0.3:
            try:
                found += os.read(self.read_end, 1 << 20)
                silent_since = time.monotonic()
            except BlockingIOError:
                time.sleep(0.001)
        return found.decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    # The end that a thread may still write to stays open, so that its number is nobody else's.
    os.close(made.read_end)


def told(count: int) -> str:
    return f"{count} lines dropped"


def offered(writer: Writer, count: int, *, urgent: bool = False) -> int:
    """Offer so many lines; how many were taken."""
    taken = 0
    for number in range(count):
        if writer.room(urgent=urgent):
            writer.put(f"{'urgent' if urgent else 'line'} {number} {LONG}")
            taken += 1
    return taken


def test_what_is_put_is_written_in_order(pipe: Pipe) -> None:
    """Many lines go out in few writes, whole, and flush waits for them."""
    writer = Writer(pipe.write_end, told)
    for number in range(300):
        writer.put(f"line {number}")
    writer.flush()
    assert pipe.read() == "".join(f"line {number}\n" for number in range(300))
    assert writer.dropped == 0


def test_nobody_waits_for_a_reader_and_what_finds_no_room_is_counted(pipe: Pipe) -> None:
    """The pipe is full, then the buffer; every line is taken or counted at once."""
    writer = Writer(pipe.write_end, told)
    taken = offered(writer, MANY)
    assert WAITING_LINES <= taken < MANY
    assert writer.dropped == MANY - taken


def test_lines_that_come_together_have_the_room_that_is_left(pipe: Pipe) -> None:
    """Those that find none are counted, and what was taken is written in order."""
    writer = Writer(pipe.write_end, told)
    assert writer.room(WAITING_LINES + 7, urgent=False) == WAITING_LINES
    assert writer.dropped == 7
    for first in range(0, 300, 3):
        assert writer.room(3, urgent=False) == 3
        writer.put("\n".join([f"line {number}" for number in range(first, first + 3)]), 3)
    writer.flush()
    lines = pipe.read().splitlines()
    assert [line for line in lines if line != told(7)] == [f"line {n}" for n in range(300)]
    assert told(7) in lines
    assert writer.room(1, urgent=False) == 1


def test_many_lines_in_one_piece_take_their_room(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is counted, so that what waits is as bounded as line by line."""
    writer = Writer(pipe.write_end, told)
    monkeypatch.setattr(writer, "_start", lambda: None)  # nobody takes anything
    for _ in range(WAITING_LINES // 100):
        assert writer.room(100, urgent=False) == 100
        writer.put("\n".join([LONG] * 100), 100)
    assert writer.room(3, urgent=False) == 0
    assert writer.dropped == 3
    assert writer.room(URGENT_LINES + 1, urgent=True) == URGENT_LINES
    assert writer.dropped == 4


def test_errors_have_room_of_their_own(pipe: Pipe) -> None:
    """A flood of decisions leaves room for what went wrong; that room is bounded, too."""
    writer = Writer(pipe.write_end, told)
    offered(writer, MANY)
    # The thread may be about to take its last batch out of the buffer.
    assert URGENT_LINES <= offered(writer, MANY, urgent=True) <= URGENT_LINES + 1000
    assert not writer.room(urgent=False)


def test_a_reader_that_is_back_is_told_how_many_lines_are_missing(pipe: Pipe) -> None:
    """All that was taken, in order, and the numbers add up."""
    writer = Writer(pipe.write_end, told)
    taken = offered(writer, MANY)
    lines = pipe.read().splitlines()
    missing = [int(line.split()[0]) for line in lines if line.endswith("dropped")]
    kept = [int(line.split()[1]) for line in lines if line.endswith(LONG)]
    assert kept == sorted(kept)
    assert len(kept) == taken
    assert sum(missing) == MANY - taken == writer.dropped


def test_a_flush_waits_no_longer_than_its_patience_and_only_once(pipe: Pipe) -> None:
    """A stop costs a second in all, however often it flushes."""
    writer = Writer(pipe.write_end, told)
    offered(writer, MANY)
    start = time.monotonic()
    writer.flush(0.2)
    writer.flush(30)
    assert 0.2 <= time.monotonic() - start < 10


@pytest.mark.parametrize("problem", [errno.ENOSPC, errno.EPIPE, errno.EAGAIN, errno.EIO])
def test_a_write_that_fails_is_tried_again(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, problem: int
) -> None:
    """A disk that was full, a reader that was gone: each line is there in the end, once."""
    tries = 0

    def write(descriptor: int, data: bytes) -> int:
        nonlocal tries
        ours = descriptor == pipe.write_end  # the threads of other tests may still be trying
        tries += ours
        if ours and tries in {1, 3}:
            raise OSError(problem, os.strerror(problem))
        return os.write(descriptor, data[:10])

    monkeypatch.setattr(log_writer, "os", SimpleNamespace(write=write))
    writer = Writer(pipe.write_end, told)
    writer.put("a line that is longer than ten")
    writer.flush(30)
    assert pipe.read() == "a line that is longer than ten\n"
    assert tries == 6


def test_a_child_writes_its_own_lines_alone(pipe: Pipe) -> None:
    """After a fork: a new thread, and nothing of the parent's twice."""
    writer = Writer(pipe.write_end, told)
    writer.put("before")
    writer.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        writer.put("from the child")
        writer.flush()
        os._exit(writer.dropped)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    writer.put("after")
    writer.flush()
    assert pipe.read().splitlines() == ["before", "from the child", "after"]


def test_a_log_on_standard_error_writes_by_a_thread(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the line about dropped lines is one of the log's own."""
    with os.fdopen(pipe.write_end, "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        log = Log(json_lines=True)
    for number in range(MANY):
        log.event("info", "decision", number=number)
    log.event("error", "defect")
    assert log.dropped > 0
    found = [json.loads(line) for line in pipe.read().splitlines()]
    dropped = [line for line in found if line["event"] == "log_lines_dropped"]
    assert dropped[0]["level"] == "warning"
    assert sum(line["count"] for line in dropped) == log.dropped
    assert any(line["event"] == "defect" for line in found)
    assert len(found) - len(dropped) + log.dropped == MANY + 1


def test_a_closed_standard_error_is_nobodys_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has None for it; its number may be another file's by now."""
    monkeypatch.setattr(sys, "stderr", None)
    log = Log(json_lines=True)
    log.event("error", "unheard")
    log.flush()


def test_an_idle_writer_costs_nothing(pipe: Pipe) -> None:
    """It sleeps until a line comes."""
    writer = Writer(pipe.write_end, told)
    writer.put("line")
    writer.flush()
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
    until(lambda: bool(pipe.read()), "the line")
