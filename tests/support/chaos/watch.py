"""What is looked at all the while: answers, readiness, life, and the use of the processor.

It runs in a loop of its own thread, since the faults are made in the main thread, by waiting.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil

from tests.support.chaos.model import Identity, Question
from tests.support.chaos.parts import Sidecar
from tests.support.sidecar import Answer
from tests.support.wire import Wire, subrequest

ANSWER_S = 5.0
"""After how long without an answer a process hangs, on a busy machine too."""

READY_LIE_S = 2.0
"""How long `/readyz` may say ready while requests are refused for want of a part."""

WATCH_S = 0.1
CPU_WINDOW_S = 2.0
CPU_SHARE = 0.4
"""What share of a processor an idle process may use, in two windows in a row."""

SETTLED_S = 8.0
"""How long a new process may be busy with itself."""

BEAT_S = 0.02
CONNECTIONS = 6

T = TypeVar("T")


class Background:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._started: list[Future[Any]] = []
        self.stalled_s = 0.0
        """For how long in all the machine has kept this loop from its work."""
        self.start(self._beat())

    def call(self, work: Coroutine[Any, Any, T], patience_s: float = 120.0) -> T:
        """Do something there, and wait for it here."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(patience_s)

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do something there until the end."""
        self._started.append(asyncio.run_coroutine_threadsafe(work, self.loop))

    def close(self) -> None:
        """End all that was started."""
        for one in self._started:
            one.cancel()
        with contextlib.suppress(Exception):
            self.call(self._end(), 10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        if not self._thread.is_alive():
            self.loop.close()

    def broken(self) -> list[BaseException]:
        """What has ended a thing that goes on until the end."""
        ended = [one for one in self._started if one.done() and not one.cancelled()]
        return [error for one in ended if (error := one.exception()) is not None]

    async def _end(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(BEAT_S)
            late = time.monotonic() - before - BEAT_S
            if late > BEAT_S:
                self.stalled_s += late


# Questions

Answers = Mapping[Question, Identity | str]


async def ask_all(
    sidecar: Sidecar, questions: Sequence[Question], secrets: Mapping[int, str]
) -> Answers:
    """What a sidecar says to each; a refusal, or silence, in words."""
    waiting = iter(questions)
    answers: dict[Question, Identity | str] = {}

    async def worker() -> None:
        async with contextlib.AsyncExitStack() as stack:
            wire: Wire | None = None
            for question in waiting:
                try:
                    async with asyncio.timeout(ANSWER_S):
                        if wire is None:
                            wire = await stack.enter_async_context(Wire(sidecar.port))
                        answer = await wire.ask(request(question, secrets[question.token]))
                except (OSError, EOFError, TimeoutError) as error:
                    answers[question] = f"no answer ({type(error).__name__})"
                    wire = None
                    await asyncio.sleep(0.05)
                else:
                    answers[question] = told(answer)

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
    return answers


def request(question: Question, secret: str) -> bytes:
    """As Traefik asks it."""
    return subrequest(
        question.route.method,
        question.route.path,
        authorization=f"Bearer {question.token}|{secret}",
        client=question.address,
    )


def wanting(answer: Answer) -> bool:
    """Whether the canary is refused for want of a part: it is known to Coolify all the while."""
    return answer.status == 503 or told(answer) == "401 token_unknown"


def told(answer: Answer) -> Identity | str:
    """Who somebody is said to be, or the status and code of a refusal."""
    if answer.status != 200:
        with contextlib.suppress(ValueError, KeyError):
            return f"{answer.status} {answer.json['code']}"
        return f"{answer.status}"

    def header(name: str) -> str:
        return answer.header(f"X-Auth-{name}") or "(missing)"

    held = header("Permissions")
    return Identity(
        header("User-Id"),
        header("Team-Id"),
        header("Team-Role"),
        tuple(sorted(held.split())) if held != "none" else (),
        header("Read-Sensitive") == "true",
    )


@dataclass(frozen=True)
class Wrong:
    """An answer that Coolify's rows do not give."""

    sidecar: str
    question: Question
    expected: Identity | None
    got: Identity | str

    @property
    def admits(self) -> bool:
        """Whether it lets in who should not be, or as somebody else."""
        return isinstance(self.got, Identity)

    def __str__(self) -> str:
        wanted = "refuse" if self.expected is None else f"admit as {self.expected}"
        return f"{self.sidecar}: {self.question}: should {wanted}, said {self.got}"


def wrong(sidecar: Sidecar, expected: Mapping[Question, Identity], answers: Answers) -> list[Wrong]:
    """The answers that differ; that a part is wanting is no answer either."""
    found = []
    for question, got in answers.items():
        should = expected.get(question)
        unclear = isinstance(got, str) and not got.startswith(("401", "403", "404"))
        if unclear or (got != should if should else isinstance(got, Identity)):
            found.append(Wrong(sidecar.name, question, should, got))
    return found


# Watching


@dataclass(eq=False)
class Watch:
    """Looks at one sidecar until it is told to end.

    Attributes:
        sidecar: which.
        canary: the request that is asked all the while.
        background: whose delays are not the sidecar's.
        blame: told of what must not happen.
        busy: whether it is being asked a lot, so that its use of the processor says nothing.
        ready: what `/readyz` said last.
        refused: how many of the canary's requests were refused for want of a part.
    """

    sidecar: Sidecar
    canary: bytes
    background: Background
    blame: Callable[[str], None]
    busy: bool = False
    ready: str = ""
    refused: int = 0
    worst_lie_s: float = 0.0
    worst_cpu: float = 0.0
    _lying: tuple[float, float] | None = field(default=None, repr=False)
    _blamed: str = field(default="", repr=False)

    async def readiness(self) -> None:
        """Hold what `/readyz` says against what a request gets."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self.sidecar.down:
                self._lying = None
                continue
            ready, answer = await asyncio.gather(
                self._get(self.sidecar.management_port, b"/readyz"), self._ask(self.canary)
            )
            if self.sidecar.down:
                continue
            self.ready = "no answer" if ready is None else f"{ready.status} {ready.body.decode()}"
            refused = answer is not None and wanting(answer)
            self.refused += refused
            if not refused or ready is None or ready.status != 200:
                self._lying = None
                continue
            self._lies(time.monotonic())

    async def life(self) -> None:
        """Ask `/healthz`, and whether it still runs."""
        while True:
            await asyncio.sleep(0.5)
            if (code := self.sidecar.lost) is not None:
                self._blame(f"has ended by itself, with {code}")
                continue
            if self.sidecar.down or time.monotonic() - self.sidecar.since < SETTLED_S:
                continue
            stalled = self.background.stalled_s
            for port, what in ((self.sidecar.management_port, "healthz"), (0, "authz")):
                began = time.monotonic()
                request = self._get(port, b"/healthz") if port else self._ask(self.canary)
                answer = await request
                late = self.background.stalled_s - stalled
                if answer is None and not self.sidecar.down and late < ANSWER_S / 2:
                    took = time.monotonic() - began
                    self._blame(f"hangs: no answer of {what}, after {took:.1f} s")
                elif answer is not None and port and answer.status != 200:
                    self._blame(f"/healthz says {answer.status}")

    async def processor(self) -> None:
        """Measure what it uses while next to nothing is asked of it."""
        hot = 0
        while True:
            process, started, busy = self.sidecar._process, time.monotonic(), self.busy
            used = self._cpu()
            waited = 0.0
            while waited < CPU_WINDOW_S:
                await asyncio.sleep(0.1)
                busy = busy or self.busy
                waited = time.monotonic() - started
            settled = started - self.sidecar.since > SETTLED_S
            if used is None or self.sidecar.down or busy or not settled:
                hot = 0
                continue
            if process is not self.sidecar._process or (now := self._cpu()) is None:
                hot = 0
                continue
            share = (now - used) / waited
            self.worst_cpu = max(self.worst_cpu, share)
            hot = hot + 1 if share > CPU_SHARE else 0
            if hot == 2:
                self._blame(f"spins: {share:.0%} of a processor while nothing is asked")

    def forgive(self) -> None:
        """A new chapter: the same may be blamed again."""
        self._blamed = ""
        self._lying = None

    def _cpu(self) -> float | None:
        with contextlib.suppress(psutil.Error, AssertionError):
            return self.sidecar.cpu_s()
        return None

    def _lies(self, now: float) -> None:
        if self._lying is None:
            self._lying = (now, self.background.stalled_s)
        since, stalled = self._lying
        lasted = now - since - (self.background.stalled_s - stalled)
        self.worst_lie_s = max(self.worst_lie_s, lasted)
        if lasted > READY_LIE_S:
            self._blame(f"/readyz says ready for {lasted:.1f} s while requests are refused")

    def _blame(self, text: str) -> None:
        what = text.partition(":")[0].partition(" for ")[0]
        if self._blamed != what:
            self._blamed = what
            self.blame(f"sidecar {self.sidecar.name} {text}")

    async def _get(self, port: int, path: bytes) -> Answer | None:
        return await self._answer(
            port, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )

    async def _ask(self, request: bytes) -> Answer | None:
        return await self._answer(self.sidecar.port, request)

    async def _answer(self, port: int, request: bytes) -> Answer | None:
        """None if there is none in time; a refused connection is one that comes too late."""
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(ANSWER_S), Wire(port) as wire:
                return await wire.ask(request)
        return None


@contextlib.contextmanager
def background() -> Iterator[Background]:
    """A loop that is ended in any case."""
    made = Background()
    try:
        yield made
    finally:
        made.close()


async def load(
    sidecar: Sidecar, requests: Iterable[bytes], *, callers: int, seconds: float
) -> dict[str, int]:
    """Ask as fast as answers come, for a while; how often each status came."""
    late = time.monotonic() + seconds
    each = list(requests)
    seen: dict[str, int] = {}

    async def caller(number: int) -> None:
        turn = number
        while time.monotonic() < late:
            try:
                async with asyncio.timeout(ANSWER_S), Wire(sidecar.port) as wire:
                    while time.monotonic() < late:
                        turn += 1
                        answer = await wire.ask(each[turn % len(each)])
                        seen[str(answer.status)] = seen.get(str(answer.status), 0) + 1
                        await asyncio.sleep(0.05)
            except (OSError, EOFError, TimeoutError) as error:
                name = type(error).__name__
                seen[name] = seen.get(name, 0) + 1
                await asyncio.sleep(0.1)

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return seen


def readable(body: bytes) -> str:
    """JSON on one line, or whatever it is."""
    with contextlib.suppress(ValueError):
        return json.dumps(json.loads(body))
    return body.decode(errors="replace")
