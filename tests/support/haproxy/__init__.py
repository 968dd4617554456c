"""HAProxy from its deploy file, where it is installed; no wheel has it.

The Lua of TimWolla/haproxy-auth-request is no part of HAProxy. auth-request.lua beside this file
stands for it: it asks and answers as haproxy.cfg expects, so that every other line is HAProxy's.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from authsidecar.decision.model import Proxy
from authsidecar.demo.proxies import RunningProxy, deploy_dir, free_port, render
from tests.support.raw_http import exchanged
from tests.support.waiting import eventually

BINARY = shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
"""Where it is, or None."""

_LUA = Path(__file__).parent / "auth-request.lua"


@asynccontextmanager
async def haproxy(
    directory: Path, *, authz: str, backend: str, more: str = ""
) -> AsyncIterator[RunningProxy]:
    """Boot it on a free port; it answers http until this ends.

    Args:
        directory: for its file and log.
        authz: the sidecar, `host:port`.
        backend: what is guarded, `host:port`.
        more: lines at the end of the guarded frontend.
    """
    assert BINARY is not None, "haproxy is not installed"
    listen = f"127.0.0.1:{free_port()}"
    text = (deploy_dir() / "haproxy" / "haproxy.cfg").read_text(encoding="utf-8")
    literals = {
        "  lua-prepend-path /etc/haproxy/haproxy-lua-http/?.lua": "  #",
        "  lua-prepend-path /etc/haproxy/?.lua": "  #",
        "/etc/haproxy/auth-request.lua": str(_LUA),
        "  bind :80\n": f"  bind unix@{directory}/http.sock\n",
        "bind :443 ssl crt /etc/haproxy/tls/coolify.pem": f"bind {listen}",
        "coolify.example.com": "127.0.0.1",
        "127.0.0.1:4190": authz,
        "coolify:8080": backend,
        "  use_backend coolify if coolify\n": f"  use_backend coolify if coolify\n{more}",
    }
    file, log_file = directory / "haproxy.cfg", directory / "haproxy.log"
    file.write_text(render(text, literals), encoding="utf-8")
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            BINARY, "-db", "-f", str(file), stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL
        )
    running = RunningProxy(Proxy.HAPROXY, f"http://{listen}", process, log_file)

    async def answers() -> bool:
        assert process.returncode is None, running.log()
        with suppress(OSError):
            return bool(await exchanged(running.url, b"GET /login HTTP/1.0\r\n\r\n"))
        return False

    try:
        await eventually(answers, "HAProxy")
        yield running
    finally:
        await running.stop()
