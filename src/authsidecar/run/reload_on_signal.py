"""The configuration is read again on SIGHUP, and when the API asks for it."""

import asyncio
import signal
from contextlib import suppress

from authsidecar.observe.log import Log
from authsidecar.run.life import Life
from authsidecar.run.notify_socket import NotifySocket
from authsidecar.run.reload import Load, Reloaded, ReloadError, RunningConfig, reload_and_tell
from authsidecar.tasks import end


class ReloadsOnSignal:
    """Reads the configuration again on each SIGHUP, one after the other, in a thread."""

    def __init__(
        self, load: Load, config: RunningConfig, log: Log, manager: NotifySocket, life: Life
    ) -> None:
        """A signal that comes before `begin` is not lost."""
        self._load = load
        self._config = config
        self._log = log
        self._manager = manager
        self._life = life
        self._asked = asyncio.Event()
        self._one = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        life.change(config.terms)
        life.reload = self.now
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked.set)

    def begin(self) -> None:
        """Tell the manager that it answers; read the configuration at each signal from now on."""
        self._manager.ready()
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        """Read nothing any more."""
        await end([] if self._reading is None else [self._reading])

    async def now(self) -> Reloaded:
        """Read it now.

        Raises:
            ReloadError: it can't be used; nothing has changed.
        """
        async with self._one:
            self._manager.reloading()
            try:
                found = await asyncio.to_thread(
                    reload_and_tell, self._load, self._config, self._log
                )
                self._config = found.config
                self._life.change(found.config.terms)
            finally:
                self._manager.ready()
            return found

    async def _read(self) -> None:
        while await self._asked.wait():
            self._asked.clear()
            with suppress(ReloadError):  # it is in the log
                await self.now()
