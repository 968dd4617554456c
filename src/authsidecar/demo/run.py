"""The demo: embedded Redis, the sidecar, Traefik, nginx and a stand-in for Coolify, in one go.

All of it listens on free loopback ports and keeps its files in one temporary directory; when it
ends, by itself or by a signal, both are gone.
"""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from authsidecar.cli.console import url
from authsidecar.cli.streams import tell, write
from authsidecar.config import Settings, load
from authsidecar.decision.model import Proxy
from authsidecar.demo import table
from authsidecar.demo.answers import ScenarioResult, results
from authsidecar.demo.backend import Backend
from authsidecar.demo.proxies import ProxyUnavailableError, free_port, start_proxy
from authsidecar.demo.scenarios import SCENARIOS
from authsidecar.demo.seed import forget_requests, seed
from authsidecar.demo.traffic import keep_asking
from authsidecar.observe.log import Log
from authsidecar.run.errors import StartError
from authsidecar.run.redis_at_start import store
from authsidecar.run.sidecar import running
from authsidecar.serving.listeners import listening
from authsidecar.store.audit import Origin, Via
from authsidecar.store.console_sessions import ConsoleSessions
from authsidecar.store.keys import Keys
from authsidecar.store.management_keys import Scope
from authsidecar.store.registry import Registry

PROXIES: Final = (Proxy.TRAEFIK, Proxy.NGINX)

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

INTERRUPTED: Final = 130
"""The exit code of a check that was not allowed to finish."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that the demo started.

    Attributes:
        registry: the state that the sidecar decides by.
        urls: where each proxy listens.
        log: what the sidecar writes.
        console: a link that signs in to the console.
    """

    registry: Registry
    urls: Mapping[Proxy, str]
    log: Path
    console: str


async def run(*, check: bool, traffic: bool = True) -> int:
    """Start everything; then wait for Ctrl-C, or send all requests and compare.

    Args:
        check: send the requests, print what was expected and seen, and end.
        traffic: else, send requests of some clients meanwhile.

    Returns:
        The exit code: 0 if it ran to its end and, with `check`, every answer was as expected.
    """
    task = asyncio.create_task(_check() if check else _show(traffic=traffic))
    interrupted = asyncio.Event()

    def interrupt() -> None:
        if not interrupted.is_set():  # a second Ctrl-C must not end the cleaning up
            interrupted.set()
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        if not interrupted.is_set():
            raise
        return INTERRUPTED if check else 0
    except (ProxyUnavailableError, StartError) as error:
        tell(f"authsidecar: {error}")
        return 1
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


async def _show(*, traffic: bool) -> int:
    """Print what to try, then serve until cancelled."""
    async with _stage() as stage:
        _say(table.commands(stage.urls, SCENARIOS, str(stage.log), stage.console))
        await (keep_asking(list(stage.urls.values())) if traffic else asyncio.Event().wait())
    return 0


async def _check() -> int:
    """Send everything through each proxy; 0 if all agree."""
    seen: list[ScenarioResult] = []
    async with _stage() as stage:
        for proxy, url in stage.urls.items():
            await forget_requests(stage.registry)
            seen += await results(proxy, url, SCENARIOS)
        log = stage.log.read_text("utf-8")
    _say(table.comparison(seen, stage.urls))
    if all(result.agrees for result in seen):
        return 0
    _say("\nThe sidecar's last lines:\n" + "\n".join(log.splitlines()[-len(SCENARIOS) :]))
    return 1


def _say(text: str) -> None:
    """Print; in colours only on a terminal, and only if nobody minds."""
    write(text, colours=False if os.environ.get("NO_COLOR") else None)


@asynccontextmanager
async def _stage() -> AsyncIterator[Stage]:
    """Everything started and seeded; everything ended and removed afterwards.

    Raises:
        ProxyUnavailableError: a proxy is not installed or does not start.
        StartError: Redis or the sidecar does not start.
    """
    async with AsyncExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="authsidecar-demo-"))
        )
        settings = _settings(directory)
        log_file = directory / "sidecar.log"
        stream = stack.enter_context(log_file.open("w", encoding="utf-8"))
        client = await stack.enter_async_context(store(settings))
        registry = Registry(client, Keys(settings.redis.prefix))
        await seed(registry)
        listeners = stack.enter_context(listening(settings))
        log = Log(json_lines=False, stream=stream)
        await stack.enter_async_context(running(settings, log, listeners))
        backend = Backend(on_switch=lambda on: registry.set_instance(api_enabled=on))
        await stack.enter_async_context(backend)
        urls = {}
        for proxy in PROXIES:
            own = directory / proxy.value
            own.mkdir()
            started = await start_proxy(
                proxy, authz=str(settings.listen.address), backend=backend.address, directory=own
            )
            stack.push_async_callback(started.stop)
            urls[proxy] = started.url
        sessions = ConsoleSessions(client, Keys(settings.redis.prefix))
        link = await sessions.make_link(Origin("demo", Via.CLI, "demo"), Scope.WRITE)
        yield Stage(registry, urls, log_file, f"{url(settings)}/sign-in?link={link}")


def _settings(directory: Path) -> Settings:
    """The demo's settings, and nobody else's: neither /etc nor the environment is read."""
    file = directory / "config.yaml"
    file.write_text(
        f"listen: {{address: '127.0.0.1:{free_port()}'}}\n"
        f"management: {{address: '127.0.0.1:{free_port()}'}}\n"
        # A busy laptop is no outage.
        "redis: {url: embedded, budget_ms: 2000}\n"
        f"data_dir: '{directory / 'redis'}'\n",
        encoding="utf-8",
    )
    return load(str(file), {})
