"""Following Coolify's database: who does it, how often, and what becomes of failures.

Whatever fails, the state in Redis stays as it is and its age is told; a round is repeated, never
half believed.
"""

import asyncio
import contextlib
import socket
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Redis

from authsidecar.config import Settings, reread
from authsidecar.coolify.entities import USERS
from authsidecar.coolify.lease import LEASE_MS, RENEW_S, Lease
from authsidecar.coolify.rounds import (
    Applied,
    DatabaseView,
    Progress,
    Round,
    doubt,
    stored_settings,
)
from authsidecar.coolify.rows import OFF, Odd
from authsidecar.coolify.snapshot import Snapshot
from authsidecar.coolify.source import SchemaError, Source, SourceError, connected, driver
from authsidecar.coolify.status import Problem, StatusRecord
from authsidecar.coolify.sweep import LOOK_S, Sweep
from authsidecar.observe.background import Background, describe_error
from authsidecar.observe.log import Level, Log, redact
from authsidecar.store.audit import Origin, Via
from authsidecar.store.bulk import Bulk
from authsidecar.store.epoch import FenceBroken, WritesLost
from authsidecar.store.keys import Keys
from authsidecar.store.trips import kind_of
from authsidecar.tasks import end

BACKOFF_S: Final = (0.25, 0.5, 1.0, 2.0)
"""The pauses between tries to reach the database, in seconds; the last one stays."""

AWAY_S: Final = (RENEW_S, RENEW_S, 1.0)
"""The pauses between tries to get the lease, in seconds: the later ones where Redis fails."""

PROGRESS_S: Final = 5.0
"""The time between two log lines of a long application, in seconds."""

CONFIRM_AGAIN_MS: Final = 50
"""How long each later round waits for replicas that were late, in milliseconds."""

DEAF: Final = (
    "notifications do not arrive: instant mode needs a connection of its own, to PostgreSQL itself "
    "or through a pooler in session mode; rounds go on"
)

DROPPED: Final = 10_000
"""How many of the facts that were removed are remembered; the oldest goes first."""

LOG_AGAIN_S: Final = 10.0
"""After how long the same is logged again, in seconds, if it comes and goes."""

LOGGED_ROWS: Final = 10
"""How many odd rows one log line names."""


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """How Coolify is followed.

    Attributes:
        dsn: its database, as a role that may read.
        interval_s: the pause between two rounds, in seconds.
        instant: whether to listen to the triggers as well.
        allow_empty: whether an emptied database is believed.
        owned: whether the owners of resources are followed too.
        wait_replicas: how many replicas what was written is waited for.
        wait_timeout_ms: for how long, in milliseconds.
        again: the dsn with what the files of its secrets hold now; None: it stays as it is.
    """

    dsn: str = field(repr=False)
    interval_s: float = 1.0
    instant: bool = False
    allow_empty: bool = False
    owned: bool = False
    wait_replicas: int = 0
    wait_timeout_ms: int = 1000
    again: Callable[[], str] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, settings: Settings) -> "SyncOptions | None":
        """From the settings; None if they name no database to follow."""
        section = settings.sync
        if section.url is None:
            return None
        return cls(
            dsn=section.url.get_secret_value(),
            interval_s=section.interval_seconds,
            instant=section.instant,
            allow_empty=section.allow_empty,
            owned=section.team_isolation or section.resources,
            wait_replicas=settings.redis.wait_replicas,
            wait_timeout_ms=settings.redis.wait_timeout_ms,
            again=partial(_dsn_now, settings) if settings.files else None,
        )

    @property
    def dsn_now(self) -> str:
        """Where the database is, with the password that is right now."""
        return self.dsn if self.again is None else self.again()


def _dsn_now(settings: Settings) -> str:
    found = reread(settings).sync.url
    return "" if found is None else found.get_secret_value()


class BusyError(Exception):
    """Another sync has the lease; says which."""


class DoubtError(Exception):
    """The database looks emptied or half migrated; says how."""


class Follower:
    """One sync: stands by until it has the lease, then follows."""

    def __init__(
        self,
        options: SyncOptions,
        client: "Redis",
        keys: Keys,
        log: Log,
        progress: Progress = lambda *_: None,
        *,
        report: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            options: what is followed, and how.
            client: redis-py's asyncio client, decode_responses off.
            keys: the key names.
            log: where lines go.
            progress: told how far an application is.
            report: told what keeps from following that Redis may not take word of, or None.
        """
        self._options = options
        self._lease = Lease(client, keys)
        origin = Origin("coolify", Via.SYNC, socket.gethostname())
        self._bulk = Bulk(client, keys, self._lease.fence, origin)
        self._status = StatusRecord(client, keys)
        self._log = log
        self._progress = progress
        self._report = report
        self._well = False
        self._snapshot: Snapshot | None = None
        self._before: Snapshot | None = None
        self._dropped: OrderedDict[tuple[str, Any], None] = OrderedDict()
        self._sweep = Sweep(self._bulk, keys)
        self._swept_at = -inf
        self._unconfirmed = ""
        self._deaf = ""
        self._wake = asyncio.Event()
        self._last_event = ""
        self._logged_at: dict[str, float] = {}
        self._logged_odd: set[tuple[Odd, str]] = set()
        self._unowned: tuple[str, ...] = ()

    async def run(self) -> None:
        """Follow until cancelled."""
        failures, role = 0, ""
        while True:
            self._well = False
            try:
                if await self._lease.acquire():
                    if role != "leading":
                        role = "leading"
                        self._log.event("info", "sync_leading", holder=self._lease.holder)
                    await self._kept(self._follow)
                else:
                    self._well = True
                    self._report(None)
                    if role != "standing by":
                        role = "standing by"
                        behind = await self._lease.holder_now()
                        self._log.event("info", "sync_standing_by", behind=behind)
            except FenceBroken:
                role = ""
                self._log.event("warning", "sync_lease_lost")
            except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
                self._tell("warning", "sync_without_redis", error=type(error).__name__)
            except exceptions.RedisError as error:
                await self._trouble(Problem.REDIS, f"{kind_of(error)}: {redact(str(error))}")
            except Exception as error:  # noqa: BLE001  # whatever it is, the last state stays
                await self._trouble(Problem.DEFECT, describe_error(error))
            self._forget()
            failures = 0 if self._well else failures + 1
            await asyncio.sleep(AWAY_S[min(failures, len(AWAY_S) - 1)])

    async def once(self) -> Applied:
        """One round.

        Raises:
            BusyError: another sync is at work.
            DoubtError: the database looks emptied, and that is not to be believed.
            SourceError: it cannot be read.
        """
        patience = time.monotonic() + LEASE_MS / 1000 + RENEW_S
        while not await self._lease.acquire():
            if time.monotonic() > patience:
                raise BusyError(f"another sync is at work ({await self._lease.holder_now()})")
            await asyncio.sleep(RENEW_S)

        async def one() -> Applied:
            async with connected(self._options.dsn_now) as source:
                return await self._round(source)

        try:
            return await self._kept(one)
        except FenceBroken:
            raise BusyError("another sync has taken over") from None
        except WritesLost:
            raise BusyError("Redis has lost what was written, by a failover say") from None

    async def _kept(self, work: Callable[[], Coroutine[Any, Any, Applied]]) -> Applied:
        """Work for as long as the lease is kept, and give it back."""
        keeper = asyncio.create_task(self._lease.keep())
        worker = asyncio.create_task(work())
        try:
            await asyncio.wait({keeper, worker}, return_when=asyncio.FIRST_COMPLETED)
            if worker.done():
                return worker.result()
            await keeper  # raises what it has ended with
            raise FenceBroken
        finally:
            await end([keeper, worker])
            with contextlib.suppress(exceptions.RedisError, OSError):
                await self._lease.release()

    async def _follow(self) -> Applied:
        """Rounds without end; a database that fails is reached again.

        Whatever fails is told and tried again later, and the lease is kept meanwhile.
        """
        failures = 0
        while True:
            self._well = False
            try:
                await self._rounds()
            except (FenceBroken, exceptions.ConnectionError, exceptions.TimeoutError):
                raise  # of Redis: the lease is lost, or cannot be kept
            except SourceError as error:
                problem = Problem.SCHEMA if isinstance(error, SchemaError) else Problem.OUTAGE
                await self._trouble(problem, str(error))
            except exceptions.RedisError as error:
                await self._trouble(Problem.REDIS, f"{kind_of(error)}: {redact(str(error))}")
            except Exception as error:  # noqa: BLE001  # whatever it is, the last state stays
                await self._trouble(Problem.DEFECT, describe_error(error))
            failures = 0 if self._well else failures
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1

    async def _rounds(self) -> None:
        changed = self._wake.set if self._options.instant else None
        async with connected(self._options.dsn_now, changed) as source:
            if self._snapshot is not None:
                self._snapshot.pg_snapshot = (
                    None  # another server may have the same names for others
                )
            await self._check_triggers(source)
            while True:
                self._wake.clear()
                await self._check_listener(source)
                await self._round_or_doubt(source)
                self._well = True
                await self._pause(source)

    async def _trouble(self, problem: Problem, detail: str, **more: str) -> None:
        """Tell what keeps from following: in the log, in this process, and in Redis if it can."""
        level: Level = "error" if problem in {Problem.DEFECT, Problem.EMPTIED} else "warning"
        self._tell(level, f"sync_{problem}", detail=detail, **more)
        if problem in {Problem.REDIS, Problem.DEFECT}:
            self._report(f"{problem}: {detail}")
        with contextlib.suppress(exceptions.RedisError, OSError):
            await self._status.troubled(problem, detail)

    async def _round_or_doubt(self, source: Source) -> None:
        try:
            await self._round(source)
        except WritesLost:
            self._lost()
            await asyncio.sleep(LOOK_S)
            self._wake.set()
        except DoubtError as error:
            await self._trouble(Problem.EMPTIED, str(error), hint="sync.allow_empty")
        else:
            self._report(None)
            if not self._deaf:
                self._tell("info", "sync_following")

    async def _round(self, source: Source) -> Applied:
        await self._as_left()
        snapshot = self._snapshot
        if snapshot is not None and snapshot.pg_snapshot is not None:  # noqa: SIM102  # a trip is no test
            if snapshot.pg_snapshot == await source.pg_snapshot():
                await self._followed(snapshot)
                return Applied()
        async with source.view(owned=self._options.owned) as view:
            self._say_unowned(view.unowned)
            seen = await DatabaseView.at(view)
            self._forget()  # until it is known to be right again
            if snapshot is None:
                snapshot = await self._load()
            self._before = snapshot
            if not self._options.allow_empty and (why := doubt(seen, snapshot)) is not None:
                self._snapshot = snapshot
                raise DoubtError(why)
            applied = await self._apply(Round(view, seen, snapshot, self._bulk, self._drop))
        self._snapshot = snapshot
        if applied.total():
            await self._confirm(self._options.wait_timeout_ms)
        await self._followed(snapshot)
        self._say(applied, snapshot)
        return applied

    async def _load(self) -> Snapshot:
        """What Redis holds, read from it; what it loses from now on shows."""
        await self._bulk.epoch.begin()
        tokens_file = await self._status.tokens_file()
        if self._before is not None:  # a Redis that has lost writes knows an older one
            tokens_file = self._before.tokens_file or tokens_file
        snapshot = await Snapshot.load(self._bulk, tokens_file, self._before, self._dropped)
        await self._bulk.outdate(snapshot.every_key(USERS))
        return snapshot

    async def _apply(self, one: Round) -> Applied:
        await self._status.claim()
        fresh = one.snapshot.settings is None
        if fresh:
            await self._bulk.say_synced(complete=False)
        try:
            applied = await one.apply(self._progressing())
        except exceptions.ResponseError as error:
            if kind_of(error) == "full":  # and so nothing was written: what was done is known
                one.snapshot.pg_snapshot, self._snapshot = None, one.snapshot
            raise
        if fresh:
            await self._bulk.say_synced(complete=True)
        return applied

    async def _followed(self, snapshot: Snapshot) -> None:
        if self._unconfirmed:
            await self._confirm(CONFIRM_AGAIN_MS)
        problem, detail = None, ""
        if self._unconfirmed:
            problem, detail = Problem.REPLICAS, self._unconfirmed
        elif self._deaf:
            problem, detail = Problem.INSTANT, self._deaf
        await self._status.followed(snapshot.odd(), snapshot.tokens_file, problem, detail)

    async def _confirm(self, timeout_ms: int) -> None:
        """Wait for the replicas that must have what was written, and tell if they have not."""
        wanted = self._options.wait_replicas
        if not wanted:
            return
        found = await self._bulk.epoch.confirmed(wanted, timeout_ms)
        before, self._unconfirmed = self._unconfirmed, ""
        if found < wanted:
            self._unconfirmed = f"{found} of {wanted} replicas have what was written last"
        if bool(before) != bool(self._unconfirmed):
            event = "sync_unconfirmed" if self._unconfirmed else "sync_confirmed"
            self._log.event(
                "warning" if self._unconfirmed else "info", event, replicas=found, wanted=wanted
            )

    async def _as_left(self) -> bool:
        """Whether Redis is as the last round has left it, as far as one look can tell."""
        if self._snapshot is None:
            return True
        try:
            if not await self._bulk.epoch.stands():
                raise WritesLost  # noqa: TRY301  # as a write would have
            if time.monotonic() < self._swept_at + LOOK_S:
                return True
            self._swept_at = time.monotonic()
            different = await self._sweep.look(self._snapshot)
        except WritesLost:
            self._lost()
            return False
        if different:
            some = different[:LOGGED_ROWS]
            self._log.event("warning", "sync_redis_differs", some=some, found=len(different))
        return not different

    def _drop(self, entity: str, key: object) -> None:
        """Remember what was removed: on a cluster, a fact may come back without its index."""
        self._dropped[entity, key] = None
        if len(self._dropped) > DROPPED:
            self._dropped.popitem(last=False)

    def _lost(self) -> None:
        """Redis is not as it was left: compare everything with it again."""
        self._log.event("warning", "sync_redis_lost_writes")
        self._sweep.hurry()
        self._forget()

    def _forget(self) -> None:
        """Know no more what Redis holds, but what it may hold."""
        self._before, self._snapshot = self._snapshot or self._before, None

    def _progressing(self) -> Progress:
        last = time.monotonic()

        def so_far(done: int, total: int) -> None:
            nonlocal last
            self._progress(done, total)
            if time.monotonic() - last > PROGRESS_S:
                last = time.monotonic()
                self._log.event("info", "sync_progress", done=done, total=total)

        return so_far

    def _say(self, applied: Applied, snapshot: Snapshot) -> None:
        """Log what a round has changed, and what is newly odd."""
        counts = {f"{entity}_{what}": n for (entity, what), n in sorted(applied.items()) if n}
        if counts:
            self._log.event("info", "sync_applied", **counts)
        fresh: dict[Odd, list[str]] = {}
        for reason, row in snapshot.oddities():
            if (reason, row) not in self._logged_odd:
                fresh.setdefault(reason, []).append(row)
        self._logged_odd = set(snapshot.oddities())
        for reason, found in fresh.items():
            self._log.event(
                "warning", "sync_odd_rows", reason=reason, rows=len(found), some=found[:LOGGED_ROWS]
            )

    def _say_unowned(self, missing: tuple[str, ...]) -> None:
        """Log what the owners of some resources are not known for, once for the same."""
        if missing != self._unowned:
            self._unowned = missing
            self._log.event("warning", "sync_owners_incomplete", missing=missing)

    def _tell(self, level: Level, event: str, **fields: object) -> None:
        """Log how it goes, once for as long as it goes like that."""
        now = time.monotonic()
        if self._last_event != event and now - self._logged_at.get(event, -inf) >= LOG_AGAIN_S:
            self._last_event, self._logged_at[event] = event, now
            self._log.event(level, event, **fields)

    async def _check_triggers(self, source: Source) -> None:
        if self._options.instant and (without := await source.without_triggers()):
            self._tell("warning", "sync_without_triggers", tables=without)

    async def _check_listener(self, source: Source) -> None:
        """See that notifications arrive; where they never do, the rounds go on."""
        self._deaf = "" if await source.hears() else DEAF
        if self._deaf:
            self._tell("warning", f"sync_{Problem.INSTANT}", detail=self._deaf)

    async def _pause(self, source: Source) -> None:
        """Wait for the next round; what happens in Redis meanwhile brings it on."""
        until = time.monotonic() + self._options.interval_s
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, LOOK_S)):
                    await self._wake.wait()
                    return
            if left > LOOK_S:
                await self._check_listener(source)
                if not await self._as_left():
                    return


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a dry run.

    Attributes:
        sign: "+" is new, "-" is gone, "~" differs.
        entity: what kind of fact it is.
        text: the fact as it would be, or as it was if it is gone.
    """

    sign: str
    entity: str
    text: str


async def planned(options: SyncOptions, client: "Redis", keys: Keys) -> AsyncIterator[Change]:
    """What a round would change; changes nothing, and needs no lease.

    Raises:
        DoubtError: the database looks emptied, and that is not to be believed.
        SourceError: it cannot be read.
    """
    bulk = Bulk(client, keys, Lease(client, keys).fence)
    async with connected(options.dsn) as source, source.view(owned=options.owned) as view:
        seen = await DatabaseView.at(view)
        snapshot = await Snapshot.load(bulk, await StatusRecord(client, keys).tokens_file())
        if not options.allow_empty and (why := doubt(seen, snapshot)) is not None:
            raise DoubtError(why)
        async for one in Round(view, seen, snapshot, bulk).differences():
            fact = one.old if one.new is None else one.new
            sign = "-" if one.new is None else "+" if one.old is None else "~"
            yield Change(sign, one.entity.name, one.entity.shown(fact))
        wanted = seen.settings or OFF
        if wanted != await stored_settings(bulk):
            yield Change("~", "settings", wanted.shown)


@contextlib.asynccontextmanager
async def following(
    settings: Settings, client: "Redis", log: Log, background: Background
) -> AsyncIterator[None]:
    """Follow Coolify beside other work, if the settings say so.

    Raises:
        SourceError: asyncpg is missing.
    """
    options = SyncOptions.of(settings)
    if options is None or settings.sync.source is None:
        yield
        return
    driver()

    def report(what: str | None) -> None:
        if what is None:
            background.well("sync")
        else:
            background.failed("sync", what)

    follower = Follower(options, client, Keys(settings.redis.prefix), log, report=report)
    async with background.running("sync", follower.run):
        yield
