"""Real processes of our program without the half second of imports that each would begin with.

`Process` is `subprocess.Popen`. For `python -m MODULE` a server forks itself that has imported the
package before. The new process is what a fresh interpreter would be: a child of who asks, with
arguments, environment, directory, descriptors and session of its own. prometheus_client reads the
environment while it is imported, so it and what needs it are imported afresh. Another command, or
unusual variables that a start reads, get a fresh interpreter; so do benchmarks and `make coverage`.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import itertools
import os
import pickle
import pkgutil
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

# A process dies with the thread that started it, however that ends: in the main thread, that is
# the test run. A wrapper asks for it, because code between fork and exec is not safe with threads.
GUARD = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
os.getppid() == parent or sys.exit("the test run is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
MOST_DESCRIPTORS: Final = 64
NUMBER: Final = struct.Struct("=Q")


def _read_at_start(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that an interpreter or an import has read, once it runs."""
    names = ("AIOHTTP_", "LANG", "LC_", "LD_", "MALLOC_", "OPENSSL_", "PYDANTIC_", "PYTHON", "SSL_")
    return {name: text for name, text in environ.items() if name.startswith(names)}


USUAL: Final = (_read_at_start(os.environ), {})
"""Ours, and none at all: there is a server for each."""


class Request(NamedTuple):
    """What a process is to be; its standard descriptors come with it, then the inherited ones.

    Attributes:
        parent: who asks.
        program: what is run in its place; None: the module that `words` begins with.
        words: the command line, without `python -m`.
        environ: all variables.
        directory: where it works.
        new_session: whether it leads one.
        inherited: the numbers of the descriptors behind the standard ones.
    """

    parent: int
    program: str | None
    words: list[str]
    environ: dict[str, str]
    directory: str
    new_session: bool
    inherited: tuple[int, ...]


def guarded(*command: str) -> list[str]:
    """The same command, killed with the thread that starts it (start it in the main thread)."""
    return [sys.executable, "-I", "-S", "-c", GUARD, str(os.getpid()), *command]


class Process(subprocess.Popen):
    """A process that ends with the main thread of the test run; a fork of a server, if it can be.

    That is `python -m MODULE`, and a program that is no Python, by its whole path.
    """

    # Private, and the same in Python 3.11 to 3.14.
    def _execute_child(  # noqa: PLR0917
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest
    ):
        startup, flags, shell, *pipes, signals, gid, gids, uid, umask, session, group = rest
        words = [str(word) for word in args]
        environ = dict(os.environ if env is None else env)
        module = words[:2] == [sys.executable, "-m"]
        variables = _read_at_start(environ) if module else USUAL[0]
        if (
            "PYTEST_VERSION" in os.environ
            and "COVERAGE_PROCESS_CONFIG" not in environ  # a fresh interpreter measures itself
            and (module or words[0] != sys.executable)
            and variables in USUAL
            and (executable, preexec_fn, startup, flags, shell) == (None, None, None, 0, False)
            and (signals, gid, gids, uid, umask, group) == (True, None, None, None, -1, -1)
        ):
            ends = pipes[0], pipes[3], pipes[5]
            standard = [number if end == -1 else end for number, end in enumerate(ends)]
            place = str(cwd or Path.cwd())
            program, line = (None, words[2:]) if module else (words[0], words)
            inherited = tuple(pass_fds)
            request = Request(os.getpid(), program, line, environ, place, session, inherited)
            self.pid = _server(variables).fork(request, [*standard, *pass_fds])
            self._child_created = True
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
        else:
            super()._execute_child(  # type: ignore[misc]
                guarded(*words), executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest
            )


def run(command: list[str], *, timeout: float | None = None, **how: Any):
    """What `subprocess.run(command, capture_output=True, text=True)` gives, by a `Process`."""
    pipe = subprocess.PIPE
    with Process(command, stdout=pipe, stderr=pipe, text=True, **how) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


class _Server:
    """A server of this test run, as it is seen from there."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.one_at_a_time = threading.Lock()
        self.connection, its_end = socket.socketpair()
        with its_end:
            number = its_end.fileno()
            self.process = subprocess.Popen(
                guarded(sys.executable, "-m", "tests.support.fork_server", str(number)),
                pass_fds=[number],
                cwd=Path(__file__).parents[2],
                env={"PATH": os.defpath, **variables},
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self.stop)

    def stop(self) -> None:
        self.connection.close()
        self.process.wait()

    def fork(self, request: Request, descriptors: list[int]) -> int:
        """A new child of this very process; its id."""
        message = pickle.dumps(request)
        with self.one_at_a_time:
            # The server's child ends at once, and its own child falls to us.
            _prctl(PR_SET_CHILD_SUBREAPER, 1)
            try:
                socket.send_fds(self.connection, [NUMBER.pack(len(message))], descriptors)
                self.connection.sendall(message)
                return _number(self.connection)
            finally:
                _prctl(PR_SET_CHILD_SUBREAPER, 0)


_servers: dict[int, _Server] = {}


def _server(variables: dict[str, str]) -> _Server:
    which = USUAL.index(variables)
    if which not in _servers:
        _servers[which] = _Server(variables)
    return _servers[which]


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise EOFError("the other end is gone")
        parts += part
    return parts


def _number(connection: socket.socket) -> int:
    return NUMBER.unpack(_exactly(connection, NUMBER.size))[0]


# What follows runs in the server.


def import_package() -> None:
    """Import every module of the package but those that need prometheus_client."""
    sys.modules["prometheus_client"] = None  # type: ignore[assignment]
    path = importlib.import_module("authsidecar").__path__
    for module in pkgutil.walk_packages(path, "authsidecar.", onerror=lambda _: None):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    del sys.modules["prometheus_client"]
    gc.collect()
    gc.freeze()  # pages that nobody writes to stay shared


def next_process(connection: socket.socket) -> tuple[Request, list[int]]:
    """Fork for each request until there are no more; returns in the new processes alone."""
    while True:
        head, descriptors, _, _ = socket.recv_fds(connection, NUMBER.size, MOST_DESCRIPTORS)
        if not head:
            sys.exit()
        request = pickle.loads(_exactly(connection, NUMBER.unpack(head)[0]))
        between = os.fork()
        if between == 0:
            if os.fork() == 0:
                return request, descriptors
            os._exit(0)
        os.waitpid(between, 0)
        for number in descriptors:
            os.close(number)


def become(request: Request, descriptors: list[int], connection: socket.socket) -> None:
    """Make this process what a fresh interpreter would be."""
    while os.getppid() != request.parent:
        time.sleep(0.0005)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request.new_session:
        os.setsid()
    connection.sendall(NUMBER.pack(os.getpid()))
    connection.detach()
    place(descriptors, [0, 1, 2, *request.inherited])
    os.chdir(request.directory)
    os.environ.clear()
    os.environ.update(request.environ)
    time.tzset()
    tempfile.tempdir = None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = standard_stream(number, getattr(sys, name))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.path[0] = str(Path.cwd())
    sys.argv = request.words
    sys.orig_argv[:] = [sys.executable, "-m", *request.words]


def place(descriptors: list[int], numbers: list[int]) -> None:
    """Give these numbers to the descriptors, and close all others."""
    above = max(*descriptors, *numbers) + 1
    for distance, descriptor in enumerate(descriptors):
        os.dup2(descriptor, above + distance)
    for distance, number in enumerate(numbers):
        os.dup2(above + distance, number)
    for kept, following in itertools.pairwise([*sorted(numbers), os.sysconf("SC_OPEN_MAX")]):
        os.closerange(kept + 1, following)


def standard_stream(number: int, servers: io.TextIOWrapper) -> io.TextIOWrapper:
    """What the interpreter makes of a standard descriptor."""
    raw = io.FileIO(number, "w" if number else "r", closefd=False)
    raw.name = servers.name  # type: ignore[misc]
    unbuffered = servers.write_through  # PYTHONUNBUFFERED
    buffered = io.BufferedWriter if number else io.BufferedReader
    stream = io.TextIOWrapper(
        raw if number and unbuffered else buffered(raw),
        encoding=servers.encoding,
        errors=servers.errors,
        newline="\n" if number else None,
        line_buffering=not unbuffered and (number == 2 or raw.isatty()),
        write_through=unbuffered,
    )
    stream.mode = raw.mode[0]  # type: ignore[attr-defined]
    return stream


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is for the test run
    THE_CONNECTION = socket.socket(fileno=int(sys.argv[1]))
    import_package()
    REQUEST, DESCRIPTORS = next_process(THE_CONNECTION)
    become(REQUEST, DESCRIPTORS, THE_CONNECTION)
    if REQUEST.program is not None:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.execv(REQUEST.program, REQUEST.words)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
