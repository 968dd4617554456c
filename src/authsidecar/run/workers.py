"""Several worker processes on the same sockets, under gunicorn's supervision.

gunicorn starts them, watches their heartbeat, and replaces one that dies. Each worker is a whole
sidecar; what they share is in Redis. Metrics of all are summed where prometheus_client keeps them,
in a directory of files.

On SIGHUP the supervisor reads the configuration again and hands the workers what follows from it,
so that all of them decide by the same. A worker that is started later begins with that, whatever
the file then holds.
"""

import asyncio
import logging
import math
import mmap
import os
import signal
import time
from contextlib import suppress
from functools import partial
from typing import Any, Final, cast

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker
from prometheus_client.multiprocess import mark_process_dead

from authsidecar import __version__
from authsidecar.config import Settings
from authsidecar.observe.log import Bridge, Log
from authsidecar.observe.metrics import shared
from authsidecar.run.errors import StartError
from authsidecar.run.life import Life, StoppedError, leave, run
from authsidecar.run.notify_socket import NotifySocket
from authsidecar.run.reload import (
    Load,
    Reloaded,
    ReloadError,
    RunningConfig,
    log_problems,
    reload,
    reload_and_tell,
)
from authsidecar.run.shared_memory import directory
from authsidecar.run.shared_terms import SharedTerms
from authsidecar.run.sidecar import GRACE_S, running
from authsidecar.serving.listeners import Listeners
from authsidecar.serving.servers import choose

HEARTBEAT_S: Final = 1.0
"""How often a worker tells that it lives, in seconds; after 30 s of silence it is replaced."""

FOLLOWED_S: Final = 5.0
"""How long an answer to a reload waits until this worker decides by it, in seconds."""


def supervise(
    settings: Settings, load: Load, listeners: Listeners, log: Log, manager: NotifySocket
) -> None:
    """Run until SIGTERM, SIGINT or SIGQUIT, then exit.

    Args:
        settings: the configuration.
        load: reads it again, on each SIGHUP.
        listeners: the open sockets that all workers serve.
        log: where lines go.
        manager: told when a worker answers, that the supervisor lives, of a reload and of the end.

    Raises:
        StartError: a file that the configuration names cannot be used.
        SystemExit: always but for that, with gunicorn's exit code.
    """
    _Application(RunningConfig.of(settings), load, listeners, log, manager).run()


class _Application(BaseApplication):
    """What gunicorn calls an application: its settings, and what a worker needs."""

    def __init__(
        self,
        config: RunningConfig,
        load: Load,
        listeners: Listeners,
        log: Log,
        manager: NotifySocket,
    ) -> None:
        self.config = config
        self.read = load
        self.terms = SharedTerms()
        self.listeners = listeners
        self.log = log
        self.manager = manager
        self.addresses = listeners.addresses()
        self.authz = len(listeners.authz)
        self.stopping = mmap.mmap(-1, 1)  # shared with the workers: 1 when all are to end
        self.answering = mmap.mmap(-1, 1)  # and 1 once one of them answers
        super().__init__()

    def load_config(self) -> None:
        settings = self.config.settings
        self.server = choose(settings.listen.server)
        options = {
            # gunicorn owns them from here on; each worker finds them in this order.
            "bind": [
                f"fd://{one.detach()}"
                for one in (*self.listeners.authz, *self.listeners.management)
            ],
            "workers": settings.listen.workers,
            "worker_class": _Worker,
            "logger_class": _quiet(self.log),
            "graceful_timeout": int(GRACE_S) + 1 + math.ceil(settings.shutdown.delay_seconds),
            "proc_name": "authsidecar",
            "worker_tmp_dir": directory(),  # for the heartbeat, which is a file
            "control_socket_disable": True,
            "child_exit": _forget_metrics,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """What a worker gets as its `wsgi`: this itself."""
        return self

    def run(self) -> None:
        workers = self.cfg.workers
        self.log.event(
            "info",
            "listening",
            version=__version__,
            workers=workers,
            server=self.server,
            **self.addresses,
        )
        _Arbiter(self).run()


class _Arbiter(Arbiter):
    """gunicorn's supervisor, with the signals of a single process."""

    app: _Application
    _told_ready = False
    _lived_at = float("-inf")

    def handle_hup(self) -> None:
        """Read the configuration again, and have all workers decide by it."""
        app = self.app
        app.manager.reloading()
        with suppress(ReloadError):  # it is in the log
            app.config = reload_and_tell(app.read, app.config, app.log).config
            app.log.set_level(app.config.terms.log_level)
            app.terms.put(app.config.terms)
            self.kill_workers(signal.SIGHUP)
        if self._told_ready:
            app.manager.ready()

    def handle_usr1(self) -> None:
        """Nothing: the log has no file that could be opened again."""
        self.app.log.event("info", "signal_ignored", signal="SIGUSR1")

    def handle_usr2(self) -> None:
        """Nothing: gunicorn would start the program again beside this one."""
        self.app.log.event("info", "signal_ignored", signal="SIGUSR2")

    def stop(self, graceful: bool = True) -> None:
        """End all workers; the unix socket is there until they have ended."""
        self.app.stopping[0] = 1
        self.systemd = True  # leave the socket's path alone: `listening` removes it
        self.app.manager.stopping(self.cfg.graceful_timeout)
        super().stop(graceful)

    def murder_workers(self) -> None:
        """Once a second: replace those that are silent."""
        super().murder_workers()
        self._report()

    def reap_workers(self) -> None:
        """Whenever one ended, and ten times a second while it waits for that."""
        try:
            super().reap_workers()
        except HaltServer:
            if not self.app.stopping[0]:
                raise
            # Another one that could not start, while this one ends for the first.
        self._report()

    def _report(self) -> None:
        manager, now = self.app.manager, time.monotonic()
        if self.app.answering[0] and not self._told_ready:
            self._told_ready = True
            manager.ready()
        if manager.beat_s is not None and now - self._lived_at >= min(1.0, manager.beat_s):
            self._lived_at = now
            manager.live()


def _forget_metrics(_: Arbiter, worker: Worker) -> None:
    """What a worker that is gone said of itself alone counts no more."""
    if shared():
        mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def _quiet(log: Log) -> type[Logger]:
    """Gunicorn's logger, with what it says in our own log."""

    class Quiet(Logger):
        def setup(self, _: Any) -> None:
            self.error_log.handlers = [Bridge(log)]
            self.error_log.setLevel(logging.WARNING)
            self.error_log.propagate = False

    return Quiet


class _Worker(Worker):
    """One sidecar process."""

    def run(self) -> None:
        """Serve, then end this process here: what the parent opened is the parent's to close."""
        app = cast(_Application, self.app.wsgi())
        code = 0
        try:
            run(self._serve(app))
        except StartError as error:
            app.log.event("error", "worker_failed", problem=str(error))
            code = Arbiter.WORKER_BOOT_ERROR
        except Exception as error:  # noqa: BLE001  # nothing above could say it better
            app.log.event("error", "worker_failed", problem=type(error).__name__)
            code = 1
        app.log.flush()
        leave(code)

    def init_signals(self) -> None:
        """Leave all signals to the event loop, but for those that a worker ignores as yet."""
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH):
            signal.signal(number, signal.SIG_IGN)

    async def _serve(self, app: _Application) -> None:
        life = Life(lambda: app.answering.__setitem__(0, 1))
        life.end_on(signal.SIGTERM, quick=(signal.SIGINT, signal.SIGQUIT))
        sockets = tuple(cast(Any, one).sock for one in self.sockets)
        inherited = app.listeners
        listeners = Listeners(sockets[: app.authz], sockets[app.authz :], inherited.shared)
        settings = app.config.settings
        life.change(app.config.terms)
        life.reload = partial(self._reload, app, life)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._follow, app, life)
        self._follow(app, life)  # it may have been told before it listened
        beat = asyncio.create_task(self._beat(life))
        try:
            async with running(settings, app.log, listeners, life):
                await life.until_end()
                if app.stopping[0]:
                    listeners.give_way()
                    await life.leave(settings.shutdown.delay_seconds)
                listeners.close()
        except StoppedError:
            pass
        beat.cancel()

    async def _reload(self, app: _Application, life: Life) -> Reloaded:
        """Look whether the configuration can be used; if so, have the supervisor read it.

        What it says has changed is so since this worker was started.

        Raises:
            ReloadError: it can't be used; nothing has changed.
        """
        try:
            found = await asyncio.to_thread(reload, app.read, app.config)
        except ReloadError as error:
            log_problems(error, app.log)
            raise
        os.kill(self.ppid, signal.SIGHUP)
        with suppress(TimeoutError):  # the supervisor may be held up, or have found another file
            async with asyncio.timeout(FOLLOWED_S):
                wanted = found.config.terms.digest
                while life.terms is None or life.terms.digest != wanted:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        return found

    def _follow(self, app: _Application, life: Life) -> None:
        """Decide by what the supervisor has read."""
        terms = app.terms.get()
        if terms is not None:
            life.change(terms)

    async def _beat(self, life: Life) -> None:
        """Stay alive for the supervisor; end when it is gone."""
        while True:
            self.notify()
            if os.getppid() != self.ppid:
                life.end(hurry=True)
            await asyncio.sleep(HEARTBEAT_S)
