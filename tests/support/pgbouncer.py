"""A real PgBouncer before a PostgreSQL, where Debian's package is installed."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.postgres import PostgresProcess
from tests.support.redis import free_port, guarded

MISSING = "PgBouncer is not installed: apt-get install pgbouncer"


def program() -> str | None:
    """Where PgBouncer is, or None."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextmanager
def pgbouncer(server: PostgresProcess, mode: str, *more: str) -> Iterator[int]:
    """A pooler on a port of 127.0.0.1.

    Args:
        server: whose connections it lends out: two, so that they change hands.
        mode: "session" or "transaction".
        more: lines of its configuration.
    """
    found = program()
    assert found is not None, MISSING
    directory, port = Path(tempfile.mkdtemp(prefix="pgbouncer-")), free_port()
    (directory / "users").write_text('"postgres" ""\n')
    (directory / "ini").write_text(
        "\n".join(
            (
                "[databases]",
                f"* = host=127.0.0.1 port={server.port}",
                "[pgbouncer]",
                f"listen_addr = 127.0.0.1\nlisten_port = {port}",
                f"unix_socket_dir =\npool_mode = {mode}",
                f"auth_type = trust\nauth_file = {directory}/users",
                "default_pool_size = 4",
                f"logfile = {directory}/log",
                *more,
            )
        )
        + "\n"
    )
    for path in (directory, directory / "users", directory / "ini"):
        os.chown(path, server.user.pw_uid, server.user.pw_gid)
    # As root it wants to be told whom to become.
    user = ("-u", server.user.pw_name) if os.getuid() == 0 else ()
    process = subprocess.Popen(
        guarded(found, *user, str(directory / "ini")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        patience = time.monotonic() + 30
        while not _accepts(port):
            log = directory / "log"
            said = log.read_text() if log.exists() else ""
            assert process.poll() is None, said
            assert time.monotonic() < patience, said
            time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
