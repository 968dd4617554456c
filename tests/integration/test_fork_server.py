"""A process of the fork server can't be told from a fresh interpreter."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fork_server import Process, run
from tests.support.waiting import until

REPORT = """
import json, os, random, signal, sys, tempfile, threading, time

STEADY = ("SigBlk", "SigIgn", "SigCgt", "Umask", "Threads")  # SigQ counts the whole machine's
descriptors = os.listdir("/proc/self/fd")
status = open("/proc/self/status").read().splitlines()
streams = (sys.stdin, sys.stdout, sys.stderr)
found = {
    "words": [sys.argv, sys.orig_argv],
    "environ": dict(os.environ),
    "zone": time.tzname,
    "places": [os.getcwd(), sys.path, __file__, tempfile.gettempdir()],
    "descriptors": sorted(descriptors),
    "session": os.getsid(0) == os.getpid(),
    "parent": os.getppid(),
    "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
    "status": [line for line in status if line.startswith(STEADY)],
    "streams": [
        (s.name, s.mode, s.encoding, s.errors, s.line_buffering, s.write_through, s.isatty())
        for s in streams
    ],
    "standard": [sys.__stdin__, sys.__stdout__, sys.__stderr__] == list(streams),
    "flags": str(sys.flags),
    "threads": threading.active_count(),
    "metrics": "prometheus_client" in sys.modules,
    "heard": sys.stdin.read(),
    "draw": random.random(),
}
print("told", file=sys.stderr)
print(json.dumps(found))
sys.exit(7)
"""


@pytest.fixture
def report(tmp_path: Path) -> list[str]:
    (tmp_path / "report.py").write_text(REPORT)
    return [sys.executable, "-m", "report", "one", "two words"]


@pytest.mark.parametrize("session", [True, False])
def test_a_process_finds_what_a_fresh_one_finds(tmp_path: Path, report, session) -> None:
    """Words, variables, directory, descriptors, session, streams, signals and exit code."""
    extra = os.open(os.devnull, os.O_RDONLY)
    high = fcntl.fcntl(extra, fcntl.F_DUPFD, 300)  # one that nobody has
    found = []
    for kind in (subprocess.Popen, Process, Process):
        process = kind(
            report,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "ONE": "1", "TZ": "Asia/Tokyo", "TMPDIR": str(tmp_path)},
            cwd=tmp_path,
            start_new_session=session,
            pass_fds=[extra, high],
        )
        out, err = process.communicate(b"given", timeout=30)
        assert (process.returncode, err) == (7, b"told\n")
        found.append(json.loads(out))
    os.close(extra)
    os.close(high)
    draws = {one.pop("draw") for one in found}
    assert found[0] == found[1] == found[2]
    assert found[0]["parent"] == os.getpid()
    assert len(draws) == 3, "each has random numbers of its own"


def test_other_variables_of_the_interpreter_are_heeded(tmp_path: Path, report) -> None:
    """What only a start reads needs one."""
    found = run(report, env={**os.environ, "PYTHONSAFEPATH": "1"}, cwd=tmp_path)
    assert found.returncode == 1
    assert "No module named report" in found.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signal_ends_a_process(tmp_path: Path, number: signal.Signals) -> None:
    """The test that started it sees which one."""
    (tmp_path / "waits.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "waits"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Process(command, cwd=tmp_path, **pipes) as process:
        assert process.stdout.read(3) == b"up\n"
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(30) == -number
        assert (b"KeyboardInterrupt" in process.stderr.read()) is (number is signal.SIGINT)


def test_a_process_ends_with_a_killed_test_run(tmp_path: Path) -> None:
    """SIGKILL of whoever started it ends it, and the server too."""
    (tmp_path / "waits.py").write_text("import time\ntime.sleep(60)\n")
    code = """
import os, signal, sys
from tests.support import fork_server
started = fork_server.Process([sys.executable, "-m", "waits"], cwd=sys.argv[1])
print(started.pid, fork_server._servers[0].process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, check=False
    )
    for pid in done.stdout.split():
        stat = Path(f"/proc/{int(pid)}/stat")
        until(lambda: not stat.exists() or ") Z " in stat.read_text(), "its end")  # noqa: B023
