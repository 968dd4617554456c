"""Questions to all receipts, answered by a process of its own beside the one that decides.

It takes seconds of processor time, and no request is to wait for them. The process is given a lower
priority, a time to end in, and no more of the environment than Python needs.
"""

import asyncio
import os
import pickle
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar, cast

from redis.exceptions import RedisError

from authsidecar.admin.questions import Question, Sources, UnansweredError
from authsidecar.config import Settings
from authsidecar.decision.authorize import StoreError
from authsidecar.run.errors import StartError
from authsidecar.run.redis_at_start import connected_client
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys
from authsidecar.store.registry import Registry

LONGEST_S: Final = 60.0
"""How long an answer may take, in seconds."""

WAITING: Final = 4
"""How many questions may wait while one is answered."""

BUDGET_MS: Final = 5000
"""What one trip to Redis may take, in milliseconds."""

_NICE: Final = 10
_ENVIRONMENT: Final = ("HOME", "LANG", "LC_ALL", "PATH", "PYTHONPATH", "SSL_CERT_DIR",
                       "SSL_CERT_FILE", "TMPDIR", "TZ")  # fmt: skip

T = TypeVar("T")


class Beside:
    """Answers one question at a time."""

    def __init__(self, settings: Settings, longest_s: float = LONGEST_S) -> None:
        """Nothing is started yet.

        Args:
            settings: say where Redis is.
            longest_s: how long an answer may take, in seconds.
        """
        self._settings = settings
        self._longest_s = longest_s
        self._one = asyncio.Lock()
        self._waiting = 0
        self._process: asyncio.subprocess.Process | None = None

    async def __call__(self, question: Question[T]) -> T:
        """The answer.

        Raises:
            UnansweredError: there is none.
            RedisError: Redis is away.
        """
        if self._waiting > WAITING:
            raise UnansweredError("others ask at this moment; try again in a minute", busy=True)
        self._waiting += 1
        try:
            async with self._one:
                return await self._answer(question)
        finally:
            self._waiting -= 1

    async def _answer(self, question: Question[T]) -> T:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        process = self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", __name__, str(round(self._longest_s) + 1)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
        )
        try:
            async with asyncio.timeout(self._longest_s):
                said, _ = await process.communicate(pickle.dumps((self._settings, question)))
        except TimeoutError:
            raise UnansweredError(
                f"it takes longer than {self._longest_s:.0f} s; ask for a shorter time", busy=False
            ) from None
        finally:
            self.kill()
        if process.returncode:
            raise RuntimeError(f"the process beside ended with {process.returncode}")
        well, answer = pickle.loads(said)  # noqa: S301  # our own program has written it
        if not well:
            raise RedisError(answer)
        return cast(T, answer)

    def kill(self) -> None:
        """End what is being answered."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


@asynccontextmanager
async def answering(settings: Settings) -> AsyncIterator[Beside]:
    """Answer questions beside other work; what is not answered at the end is given up."""
    beside = Beside(settings)
    try:
        yield beside
    finally:
        beside.kill()


async def _answered(settings: Settings, question: Question[Any]) -> tuple[bool, Any]:
    """Whether there is an answer, and that; or what Redis did."""
    keys = Keys(settings.redis.prefix)
    try:
        async with connected_client(settings) as client:
            store = DecisionStore(client, keys, budget_ms=BUDGET_MS)
            try:
                return True, await question(Sources(client, keys, Registry(client, keys), store))
            finally:
                await store.close()
    except (RedisError, StoreError, StartError, OSError) as error:
        return False, str(error)


def main() -> None:
    """Answer the question on standard input, on standard output."""
    signal.alarm(int(sys.argv[1]))  # whoever asked may be gone
    with suppress(OSError):  # a sandbox may forbid it
        os.nice(_NICE)
    settings, question = pickle.load(sys.stdin.buffer)  # noqa: S301  # our own program wrote it
    pickle.dump(asyncio.run(_answered(settings, question)), sys.stdout.buffer)


if __name__ == "__main__":
    main()
