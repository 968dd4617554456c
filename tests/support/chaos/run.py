"""The course of it: one event after the other, and after each the answers against the model."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import asyncpg

from authsidecar.coolify import triggers
from tests.support.chaos.churn import CANARY, CANARY_SECRET, FIRST, Churn
from tests.support.chaos.events import EVENTS, Event
from tests.support.chaos.model import ADDRESSES, ROUTES, Identity, Question, Rows
from tests.support.chaos.parts import (
    Disk,
    Line,
    Servers,
    Sidecar,
    free_port,
    servers,
    sidecars,
    small_disk,
)
from tests.support.chaos.watch import (
    Background,
    Watch,
    Wrong,
    ask_all,
    background,
    load,
    readable,
    request,
    wrong,
)
from tests.support.postgres import PostgresProcess, coolify_database, start_postgres
from tests.support.sidecar import get
from tests.support.topologies import client, until

WITHIN_S = 5.0
"""How long after the parts are back the answers may differ from what Coolify's rows give."""

FIRST_S = 60.0
"""How long the first application may take, on a busy machine."""

AGAIN_S = 0.3
SHOWN = 8
AT_ONCE = 0.3
"""How often an event meets another."""

IN_A_ROW = 0.2
"""How often another follows before the answers are compared."""

CALM_S = (0.5, 1.5)
STOP_S = 20.0


class Broken(AssertionError):  # noqa: N818  # what is said is the news
    """Something that must not happen; says all that is known of it."""


@dataclass
class Tally:
    """How an event of one name went.

    Attributes:
        runs: how often it came, alone or with another.
        broken: the heads of what was wrong.
        slowest_s: the longest time from the parts' return to right answers.
    """

    runs: int = 0
    broken: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


@dataclass(eq=False)
class World:
    """Everything, and what happened to it.

    Attributes:
        random: chooses events.
        seed: of that.
        tell: shows a line to whoever watches the test.
        blamed: what the watches say must not have happened.
        snapshot: a backup of Redis, if one was taken.
        left_behind: tokens whose revocation the replicas miss.
        line: by which the sidecars reach PostgreSQL.
    """

    random: Random
    seed: int
    tell: Callable[[str], None]
    background: Background
    redis: Servers
    postgres: PostgresProcess
    dsn: str
    sidecars: Sequence[Sidecar]
    churn: Churn
    disk: Disk | None
    line: Line
    started: float = field(default_factory=time.monotonic)
    timeline: list[str] = field(default_factory=list)
    blamed: list[str] = field(default_factory=list)
    snapshot: bytes | None = None
    left_behind: list[int] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a line to the time line."""
        line = f"{time.monotonic() - self.started:7.2f} s  {text}"
        self.timeline.append(line)
        self.tell(line)

    def blame(self, text: str) -> None:
        """Say what must not happen."""
        self.blamed.append(text)
        self.note(f"!! {text}")

    # For events

    def pause(self) -> None:
        """Nothing changes in Coolify from now on."""
        self.background.call(self.churn.pause())

    def go(self) -> None:
        """Things change again."""
        self.background.loop.call_soon_threadsafe(self.churn.go)

    def grant(self, number: int) -> list[int]:
        """Give some tokens that are alone in their buckets, so that nothing else repairs them.

        They are admitted by every sidecar that runs, unless a part is missing that this needs.
        """
        some = self.random.sample([one for one in self.churn.secrets if one >= FIRST], number)
        if not self._coolify(self.churn.grant(some)):
            return []
        if not self.until_answered(some, 3.0, admitted=True):
            self.note(f"{some} are granted, and not admitted yet")
        return some

    def revoke(self, tokens: Sequence[int], patience_s: float = 2.0) -> bool:
        """Take some away; whether every sidecar that runs has refused them in time."""
        done = self._coolify(self.churn.revoke(tokens))
        return done and self.until_answered(tokens, patience_s, admitted=False)

    def _coolify(self, work: Coroutine[Any, Any, None]) -> bool:
        """Whether something could be done in Coolify."""
        try:
            self.background.call(work)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            self.note(f"nothing could be changed: {type(error).__name__}")
            return False
        return True

    def until_answered(self, tokens: Sequence[int], patience_s: float, *, admitted: bool) -> bool:
        """Whether every sidecar that runs comes to admit, or to refuse, these tokens in time."""
        asked = [Question(token, ROUTES[0], ADDRESSES[0]) for token in tokens]
        late = time.monotonic() + patience_s
        while True:
            answers = [
                answer
                for one in self.sidecars
                if not one.down
                for answer in self._answers(one, asked).values()
            ]
            if all(
                isinstance(answer, Identity) if admitted else str(answer).startswith("40")
                for answer in answers
            ):
                return True
            if time.monotonic() > late:
                return False
            time.sleep(0.02)

    def load(self, callers: int, seconds: float, *, tell: bool = True) -> None:
        """Ask much of every sidecar that runs."""
        requests = [self.request(token) for token in list(self.churn.secrets)[:20]]
        with self._busy():
            for one in self.sidecars:
                if not one.down:
                    seen = self.background.call(
                        load(one, requests, callers=callers, seconds=seconds / 2)
                    )
                    if tell:
                        self.note(f"load on {one.name}: {seen}")

    def cut_postgres(self) -> None:
        """End every connection of a sidecar's."""

        async def cut() -> None:
            connection = await asyncpg.connect(self.dsn, timeout=5)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'authsidecar%'"
            )
            await connection.close(timeout=1)

        self.background.call(cut())

    def silence_postgres(self) -> None:
        """Let the sidecars' connections to it fall silent; new ones are well."""
        self.background.call(self.line.fall_silent())

    def take_snapshot(self) -> None:
        """Keep what Redis holds now."""
        primary = self.redis.primary()
        with client(primary) as node:
            until(node.save, "a backup")  # not beside another one
        self.snapshot = (primary.directory / "dump.rdb").read_bytes()
        self.note("a backup is taken")

    # The rule

    def rows(self, patience_s: float = 20.0) -> Rows:
        """What Coolify's tables hold."""
        late = time.monotonic() + patience_s
        while True:
            try:
                return self.background.call(Rows.read(self.dsn))
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                if time.monotonic() > late:
                    raise
                time.sleep(0.1)

    def expected(self, rows: Rows) -> dict[Question, Identity]:
        """Who is to be let in, and as whom."""
        return rows.admitted(self.churn.secrets, self.questions())

    def questions(self) -> list[Question]:
        """Every token at every route, and from another address."""
        first, second = ADDRESSES
        pairs = [*((route, first) for route in ROUTES), (ROUTES[0], second)]
        return [Question(token, *pair) for token in self.churn.secrets for pair in pairs]

    def request(self, token: int) -> bytes:
        """A plain request of a token's."""
        question = Question(token, ROUTES[0], ADDRESSES[0])
        return request(question, self.churn.secrets[token])

    def compare(self, within_s: float) -> float:
        """After how many seconds all answers are right.

        Raises:
            Broken: they are not, in time.
        """
        self.pause()
        back = time.monotonic()
        stalled = self.background.stalled_s
        rows = self.rows()
        expected = self.expected(rows)
        asked = {one: self.questions() for one in self.sidecars}
        right_since: float | None = None
        with self._busy():
            while True:
                began = time.monotonic()
                found = {one: self._wrong(one, expected, asked[one]) for one in self.sidecars}
                if not any(found.values()):
                    if all(len(some) == len(self.questions()) for some in asked.values()):
                        if right_since is not None:  # a second time: it stays so
                            self.churn.untouched.clear()
                            return right_since - back
                        right_since = began
                        time.sleep(AGAIN_S)
                    asked = {one: self.questions() for one in self.sidecars}
                    continue
                right_since = None
                if began - back > within_s + self.background.stalled_s - stalled:
                    raise Broken(self._differences(found, expected, began - back))
                # Only what was wrong, until it is right; then everything again.
                asked = {one: [each.question for each in some] for one, some in found.items()}
                time.sleep(0.1)

    def report(self, head: str) -> str:
        """All that helps to find out why."""
        parts = [
            head,
            f"seed {self.seed} (CHAOS_SEED={self.seed} chooses the same events)",
            "\n".join(["time line:", *self.timeline[-40:]]),
            "\n".join(["last changes in Coolify:", *self.churn.last[-12:]]),
            f"redis: {self.redis.state()}",
        ]
        before = {watch.sidecar: watch.ready for watch in self.watches}
        for one in self.sidecars:
            now = self._ready(one)
            parts.append(f"sidecar {one.name}: /readyz now: {now}; before: {before.get(one)}")
            parts.append("\n".join([f"sidecar {one.name}'s last lines:", *self._lines(one)]))
        return "\n\n".join(parts)

    def forgive(self) -> None:
        """What was blamed is dealt with."""
        self.blamed.clear()
        for watch in self.watches:
            watch.forgive()

    def _lines(self, one: Sidecar) -> list[str]:
        """The end of a log without the decisions, which are many."""
        lines = [line for line in one.last_lines(4000) if '"event": "decision"' not in line]
        return [line[:400] for line in lines[-25:]]

    def _ready(self, one: Sidecar) -> str:
        try:
            answer = get(one.management_port, "/readyz", {})
        except (OSError, EOFError, HTTPException) as error:
            return type(error).__name__
        return f"{answer.status} {readable(answer.body)}"

    def _differences(
        self,
        found: dict[Sidecar, list[Wrong]],
        expected: dict[Question, Identity],
        after_s: float,
    ) -> str:
        every = sorted(chain(*found.values()), key=lambda one: not one.admits)
        unsafe = sum(one.admits for one in every)
        head = (
            f"{after_s:.1f} s after the parts are back {len(every)} answers are wrong, "
            f"{unsafe} of them admit; the model admits {len(expected)} of {len(self.questions())}"
        )
        lines = [head, *(f"  {one}" for one in every[:SHOWN])]
        # What every sidecar says now of the questions that one of them gets wrong.
        some = list(dict.fromkeys(one.question for one in every))[:SHOWN]
        for one in self.sidecars:
            lines.append(f"  sidecar {one.name} says now:")
            for question, answer in self._answers(one, some).items():
                lines.append(f"    {question}: {answer}; model: {expected.get(question)}")
        return "\n".join(lines)

    def _wrong(
        self, one: Sidecar, expected: dict[Question, Identity], asked: Sequence[Question]
    ) -> list[Wrong]:
        return wrong(one, expected, self._answers(one, asked))

    def _answers(self, one: Sidecar, asked: Sequence[Question]) -> dict[Question, Identity | str]:
        return dict(self.background.call(ask_all(one, asked, self.churn.secrets)))

    @contextmanager
    def _busy(self) -> Iterator[None]:
        for watch in self.watches:
            watch.busy = True
        try:
            yield
        finally:
            for watch in self.watches:
                watch.busy = False


@contextmanager
def world(directory: Path, seed: int, tell: Callable[[str], None]) -> Iterator[World]:
    """Everything started and in its first state; all of it is ended in any case."""
    with ExitStack() as stack:
        postgres = start_postgres()
        stack.callback(postgres.stop)
        redis = stack.enter_context(servers(directory / "redis"))
        disk = stack.enter_context(small_disk(directory / "disk"))
        behind = stack.enter_context(background())
        dsn = postgres.dsn(behind.call(coolify_database(postgres)))
        churn = Churn(dsn, Random(seed + 1))
        behind.call(churn.seed())
        random = Random(seed)
        line = Line(postgres.port)
        line.port = free_port()
        behind.start(line.run())
        settings = _variant(random, dsn)
        through = dsn.replace(f":{postgres.port}/", f":{line.port}/")
        both = stack.enter_context(sidecars(directory, redis.url, through, disk, **settings))
        made = World(
            random=random,
            seed=seed,
            tell=tell,
            background=behind,
            redis=redis,
            postgres=postgres,
            dsn=dsn,
            sidecars=both,
            churn=churn,
            disk=disk,
            line=line,
        )
        made.note(f"seed {seed}: {settings}")
        behind.start(churn.run())
        try:
            for one in both:
                _until_listening(one)
            made.compare(FIRST_S)
        except Broken as error:
            raise Broken(made.report(f"before all events: {error}")) from None
        made.note("both sidecars follow")
        canary = request(Question(CANARY, ROUTES[0], ADDRESSES[0]), CANARY_SECRET)
        for one in both:
            watch = Watch(one, canary, behind, made.blame)
            made.watches.append(watch)
            for work in (watch.readiness, watch.life, watch.processor):
                behind.start(work())
        yield made


def _variant(random: Random, dsn: str) -> dict[str, str]:
    """How the sidecars follow this time: by rounds or at once, with and without replicas."""
    instant, wait = random.random() < 0.5, random.random() < 0.5
    if instant:
        asyncio.run(triggers.run(dsn, triggers.installing()))
    return {
        "SYNC__INSTANT": str(instant).lower(),
        "SYNC__INTERVAL_SECONDS": "2" if instant else "0.5",
        "REDIS__WAIT_REPLICAS": str(int(wait)),
        "REDIS__WAIT_TIMEOUT_MS": "500",
    }


def chosen(names: str, disk: Disk | None) -> list[Event]:
    """The events of these names, by commas; all that can happen here if there is none."""
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(EVENTS)
    if unknown := set(wanted) - set(EVENTS):
        raise ValueError(f"no such event: {', '.join(sorted(unknown))}; {', '.join(EVENTS)}")
    return [EVENTS[name] for name in wanted if disk is not None or name != "full-disk"]


def run(
    made: World, events: Sequence[Event], seconds: float, *, keep_going: bool = False
) -> dict[str, Tally]:
    """Let things go wrong for a while; how it went, by event.

    Args:
        made: whom it happens to.
        events: what can happen; each comes once before any comes twice.
        seconds: for how long.
        keep_going: whether to note what is broken, start all afresh and go on.

    Raises:
        Broken: one of the rules does not hold.
    """
    tallies = {one.name: Tally() for one in events}
    deck: list[Event] = []
    late = time.monotonic() + seconds
    made.go()
    while time.monotonic() < late:
        if not deck:
            deck = made.random.sample(events, len(events))
        now = _drawn(made.random, deck, events)
        for one in chain(*now):
            tallies[one.name].runs += 1
        try:
            took = _happen(made, now)
        except Exception as error:
            said = str(error) or type(error).__name__
            report = made.report(f"after {_names(now)}: {said}")
            if not keep_going or not isinstance(error, AssertionError):
                raise Broken(report) from error
            made.tell(report)
            for one in chain(*now):
                tallies[one.name].broken.append(f"{_names(now)}: {said.splitlines()[0]}")
            _afresh(made)
        else:
            for one in chain(*now):
                tallies[one.name].slowest_s = max(tallies[one.name].slowest_s, took)
    _stop(made)
    return tallies


def _drawn(random: Random, deck: list[Event], events: Sequence[Event]) -> list[list[Event]]:
    """What happens next: events one after the other, each alone or at once with another."""
    drawn = []
    while deck and (not drawn or random.random() < IN_A_ROW):
        now = [deck.pop()]
        others = [one for one in events if "all" not in {one.part, now[0].part}]
        others = [one for one in others if one.part != now[0].part]
        if others and random.random() < AT_ONCE:
            now.append(random.choice(others))
        drawn.append(now)
    return drawn


def _names(events: Sequence[Sequence[Event]]) -> str:
    return ", then ".join(" with ".join(one.name for one in some) for some in events)


def _happen(made: World, events: Sequence[Sequence[Event]]) -> float:
    """One event or some; how long the answers took to be right again."""
    made.go()
    for some in events:
        made.redis.until_whole()
        time.sleep(made.random.uniform(*CALM_S))
        if made.snapshot is None and made.random.random() < 0.3:
            made.take_snapshot()
        hold_s = max(made.random.uniform(*one.hold_s) for one in some)
        made.note(f"-- {_names([some])}, for {hold_s:.1f} s")
        with ExitStack() as stack:
            for one in some:
                stack.enter_context(contextmanager(one.happen)(made))
            time.sleep(hold_s)
    mended = time.monotonic()
    made.redis.until_whole()
    until_up = time.monotonic() - mended
    for sidecar in made.sidecars:
        _until_listening(sidecar)
    took = made.compare(WITHIN_S)
    made.note(f"   Redis whole after {until_up:.1f} s, right after {took:.1f} s more")
    if made.disk is not None:
        for sidecar in made.sidecars:
            if sidecar.drain is None:
                made.disk.rotate(sidecar.log_path)
    if errors := made.background.broken():
        raise Broken(f"the test itself: {errors!r}")
    if made.blamed:
        said = "; ".join(made.blamed)
        raise Broken(said)
    return took


def _until_listening(one: Sidecar) -> None:
    """A process that was just started is no part that is back."""
    late = time.monotonic() + STOP_S
    while True:
        with contextlib.suppress(OSError, EOFError, HTTPException):
            get(one.port, "/authz/traefik", {})
            return
        if one.lost is not None:
            raise Broken(f"sidecar {one.name} ends at its start, with {one.lost}")
        if time.monotonic() > late:
            raise Broken(f"sidecar {one.name} does not listen {STOP_S} s after its start")
        time.sleep(0.05)


def _afresh(made: World) -> None:
    """Everything as at first, so that one fault is not blamed on the next event."""
    made.note("all afresh")
    for one in made.sidecars:
        one.kill()
    if made.disk is not None:
        made.disk.free()
    made.snapshot = None
    made.redis.until_whole()
    with client(made.redis.primary()) as node:
        node.flushall()
    for one in made.sidecars:
        one.start()
    made.compare(FIRST_S)
    made.forgive()


def _stop(made: World) -> None:
    """Both end in good order when they are told to."""
    made.pause()
    for one in made.sidecars:
        one.down = True
        one.process.terminate()
    for one in made.sidecars:
        try:
            code = one.process.wait(STOP_S)
        except Exception:  # noqa: BLE001  # whatever it is, it has not ended
            raise Broken(made.report(f"sidecar {one.name} does not end on SIGTERM")) from None
        if code != 0:
            raise Broken(made.report(f"sidecar {one.name} ends with {code} on SIGTERM"))


def summary(made: World, tallies: dict[str, Tally]) -> str:
    """How it went, in a table."""
    lines = [f"seed {made.seed}; {made.churn.done} changes in Coolify, {made.churn.failed} failed"]
    if made.disk is None:
        lines.append("full-disk: left out, since this user can mount no disk")
    for name, tally in tallies.items():
        verdict = f"BROKEN {len(tally.broken)}" if tally.broken else "ok"
        lines.append(
            f"{name:28} {tally.runs:3} times, right in {tally.slowest_s:.1f} s at most: {verdict}"
        )
        lines += [f"    {text[:300]}" for text in tally.broken]
    for watch in made.watches:
        lines.append(
            f"sidecar {watch.sidecar.name}: refused {watch.refused} for want of a part, said "
            f"ready meanwhile for {watch.worst_lie_s:.1f} s at most; "
            f"{watch.worst_cpu:.0%} of a processor at most"
        )
    return "\n".join(lines)
