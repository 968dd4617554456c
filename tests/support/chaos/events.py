"""What goes wrong: each event breaks something, and has mended it when its context ends.

Two events of different parts can meet.
"""

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import redis

from tests.support.chaos import parts
from tests.support.redis import RedisProcess
from tests.support.topologies import client, until

if TYPE_CHECKING:
    from tests.support.chaos.run import World

NOWHERE = ("127.0.0.1", 1)
"""Whom a replica is made to follow that is to miss what is written from now on."""

NEIGHBOUR_BYTES = 20_000
CALLERS = 48


@dataclass(frozen=True)
class Event:
    """Something that goes wrong.

    Attributes:
        name: for people, and to choose it.
        happen: breaks it, yields while it is broken, and mends it.
        part: what it needs for itself.
        hold_s: how long it stays broken, at the least and at the most.
    """

    name: str
    happen: Callable[["World"], Iterator[None]]
    part: str
    hold_s: tuple[float, float]


EVENTS: dict[str, Event] = {}


def event(
    part: str, hold_s: tuple[float, float] = (0.3, 3.0)
) -> Callable[[Callable[["World"], Iterator[None]]], Callable[["World"], Iterator[None]]]:
    """Add a function to the events, under its name."""

    def add(happen: Callable[["World"], Iterator[None]]) -> Callable[["World"], Iterator[None]]:
        name = happen.__name__.replace("_", "-")
        EVENTS[name] = Event(name, happen, part, hold_s)
        return happen

    return add


# Redis fails over


@event("redis")
def planned_failover(world: "World") -> Iterator[None]:
    """A sentinel is told to: nothing is lost."""
    new = _ordered(world, world.redis.primary())
    world.note(f"{world.redis.name(new)} is the primary")
    yield


@event("redis", hold_s=(0.0, 2.0))
def planned_failover_with_lag(world: "World") -> Iterator[None]:
    """The same to a replica that missed revocations: no command fails, no lease runs out."""
    old = _leave_behind(world)
    _ordered(world, old)
    _promoted_without(world, old)
    yield


def _ordered(world: "World", old: RedisProcess) -> RedisProcess:
    """The new primary, after an order to a sentinel."""

    def told() -> bool:
        with client(world.redis.sentinels[0]) as sentinel:
            return bool(sentinel.execute_command("SENTINEL FAILOVER auth"))

    until(told, "a sentinel takes the order")
    return world.redis.until_other(old)


@event("redis")
def killed_primary_without_lag(world: "World") -> Iterator[None]:
    """SIGKILL, while both replicas have all; it comes back, and believes for a moment to be one."""
    old = world.redis.primary()
    world.pause()
    world.redis.until_in_step()
    old.kill()
    world.go()
    new = world.redis.until_other(old)
    world.note(f"{world.redis.name(new)} is the primary")
    yield
    old.start()


@event("redis")
def killed_primary_at_work(world: "World") -> Iterator[None]:
    """SIGKILL in the midst of changes."""
    old = world.redis.primary()
    old.kill()
    new = world.redis.until_other(old)
    world.note(f"{world.redis.name(new)} is the primary")
    yield
    old.start()


@event("redis")
def killed_primary_with_lag(world: "World") -> Iterator[None]:
    """The replicas miss revocations that were followed already; then the primary dies."""
    old = _leave_behind(world)
    old.kill()
    _promoted_without(world, old)
    yield
    old.start()


@event("redis")
def frozen_primary_with_lag(world: "World") -> Iterator[None]:
    """The same, and the old primary wakes up later, with all that was lost."""
    old = _leave_behind(world)
    old.freeze()
    try:
        _promoted_without(world, old)
        yield
    finally:
        old.thaw()


def _leave_behind(world: "World") -> RedisProcess:
    """The primary, whose replicas lack some revocations that both sidecars have felt."""
    gone = world.grant(3)
    world.redis.until_in_step()
    for replica in world.redis.replicas():
        with client(replica) as node:
            node.replicaof(*NOWHERE)
    felt = world.revoke(gone)
    world.note(f"revoked {gone} behind the replicas' back; refused by both: {felt}")
    world.left_behind = gone
    return world.redis.primary()


def _promoted_without(world: "World", old: RedisProcess) -> None:
    new = world.redis.until_other(old)
    with client(new) as node:
        back = [n for n in world.left_behind if node.exists(f"authsidecar:token:{n}")]
    world.note(f"{world.redis.name(new)} is the primary, and still had the tokens {back}")


@event("redis")
def frozen_primary(world: "World") -> Iterator[None]:
    """SIGSTOP until another is promoted; it goes on as if nothing had happened."""
    old = world.redis.primary()
    old.freeze()
    try:
        world.redis.until_other(old)
        yield
    finally:
        old.thaw()


@event("redis", hold_s=(0.1, 0.7))
def stuttering_primary(world: "World") -> Iterator[None]:
    """SIGSTOP for less than the sentinels mind."""
    old = world.redis.primary()
    old.freeze()
    try:
        yield
    finally:
        old.thaw()


# Redis forgets


@event("redis", hold_s=(0.0, 0.5))
def flush(world: "World") -> Iterator[None]:
    """FLUSHALL, as a careless hand does it."""
    with client(world.redis.primary()) as node:
        node.flushall()
    yield


@event("all", hold_s=(3.0, 9.0))
def flush_without_postgres(world: "World") -> Iterator[None]:
    """Nothing is known, and nobody can be asked."""
    world.postgres.kill()
    with client(world.redis.primary()) as node:
        node.flushall()
    yield
    world.postgres.start()


@event("redis", hold_s=(0.0, 0.5))
def emptied_primary(world: "World") -> Iterator[None]:
    """It dies and is back, without its data, before a sentinel minds."""
    old = world.redis.primary()
    old.kill()
    (old.directory / "dump.rdb").unlink(missing_ok=True)
    old.start()
    yield


@event("redis", hold_s=(0.0, 0.5))
def restored_snapshot(world: "World") -> Iterator[None]:
    """All servers are stopped, and started from a backup that is some changes old."""
    gone = world.grant(3)
    if world.snapshot is None or world.random.random() < 0.5:
        world.take_snapshot()
    world.revoke(gone)
    primary = world.redis.primary()
    for server in world.redis.servers:
        server.kill()
    for server in world.redis.servers:
        (server.directory / "dump.rdb").write_bytes(world.snapshot or b"")
    for server in sorted(world.redis.servers, key=lambda one: one is not primary):
        server.start()
    with client(primary) as node:
        back = [n for n in gone if node.exists(f"authsidecar:token:{n}")]
    world.note(f"the backup still had the tokens {back}")
    world.snapshot = None
    yield


@event("redis", hold_s=(0.0, 0.5))
def restored_in_place(world: "World") -> Iterator[None]:
    """The keys of a moment ago are written back over today's, by hand, in one go."""
    with client(world.redis.primary()) as node, _raw(world.redis.primary()) as raw:
        gone = world.grant(3)
        saved = {key: raw.dump(key) for key in raw.scan_iter("authsidecar:*", count=1000)}
        world.revoke(gone)
        back = raw.pipeline(transaction=True)
        for key, value in saved.items():
            if value is not None and b"{sync}:lease" not in key:
                back.restore(key, 0, value, replace=True)
        back.execute()
        there = [n for n in gone if node.exists(f"authsidecar:token:{n}")]
    world.note(f"what was written back has the tokens {there}")
    yield


@contextlib.contextmanager
def _raw(server: RedisProcess) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, socket_timeout=5) as made:
        yield made


# Redis refuses


@event("redis", hold_s=(2.5, 5.0))
def full_memory(world: "World") -> Iterator[None]:
    """A neighbour's keys leave no room."""
    for server in world.redis.servers:
        with client(server) as node:
            node.config_set("maxmemory", node.info("memory")["used_memory"] + 400_000)
    with client(world.redis.primary()) as node:
        count = 0
        with contextlib.suppress(redis.exceptions.OutOfMemoryError):
            while count < 1000:
                node.set(f"neighbour:{count}", b"x" * NEIGHBOUR_BYTES)
                count += 1
        world.note(f"the neighbour has {count} keys")
        try:
            yield
        finally:
            with client(world.redis.primary()) as now:
                for number in range(count + 1):
                    now.delete(f"neighbour:{number}")
            for server in world.redis.servers:
                with client(server) as each:
                    each.config_set("maxmemory", 0)


@event("redis", hold_s=(2.5, 5.0))
def cannot_save(world: "World") -> Iterator[None]:
    """The disk under Redis takes nothing, so Redis takes no writes (MISCONF).

    The sentinels take it for dead then, so another is promoted if it lasts.
    """
    server = world.redis.primary()
    file = server.directory / "dump.rdb"
    file.unlink(missing_ok=True)
    (file / "in the way").mkdir(parents=True)
    with client(server) as node:
        try:
            node.config_set("save", "3600 1000000")
            _save_until(node, "err")
            yield
        finally:
            shutil.rmtree(file)
            _save_until(node, "ok")
            node.config_set("save", "")


def _save_until(node: redis.Redis, status: str) -> None:
    def saved() -> bool:
        told = node.info("persistence")
        if told["rdb_bgsave_in_progress"] or told["aof_rewrite_in_progress"]:
            return False
        if told["rdb_last_bgsave_status"] == status:
            return True
        node.bgsave()
        return False

    until(saved, f"the last save is {status}")


@event("redis", hold_s=(2.0, 5.0))
def too_few_replicas(world: "World") -> Iterator[None]:
    """NOREPLICAS under many callers at once."""
    primary = world.redis.primary()
    replicas = world.redis.replicas()
    with client(primary) as node:
        node.config_set("min-replicas-max-lag", 1)
        node.config_set("min-replicas-to-write", 1)
        for replica in replicas:
            replica.freeze()
        try:
            until(lambda: node.info("replication")["min_slaves_good_slaves"] == 0, "none is good")
            world.load(CALLERS, 4.0)
            yield
        finally:
            for replica in replicas:
                replica.thaw()
            node.config_set("min-replicas-to-write", 0)


@event("redis")
def mixed_refusals(world: "World") -> Iterator[None]:
    """Cut connections, forgotten scripts and short silences, under many callers at once."""
    with client(world.redis.primary()) as node:
        for _ in range(3):
            node.client_kill_filter(_type="normal", skipme=True)
            world.load(CALLERS, 0.5, tell=False)
            node.script_flush()
            world.load(CALLERS, 0.5, tell=False)
            node.client_pause(300)
            world.load(CALLERS, 0.5, tell=False)
        yield


# Beside the primary


@event("redis")
def killed_replica(world: "World") -> Iterator[None]:
    """One of two."""
    one = world.random.choice(world.redis.replicas())
    one.kill()
    yield
    one.start()


@event("redis")
def frozen_replicas(world: "World") -> Iterator[None]:
    """One, or both."""
    some = world.redis.replicas()[: world.random.choice((1, 2))]
    for one in some:
        one.freeze()
    try:
        yield
    finally:
        for one in some:
            one.thaw()


@event("redis")
def killed_sentinels(world: "World") -> Iterator[None]:
    """One, or two of three, which is no quorum."""
    some = world.random.sample(world.redis.sentinels, world.random.choice((1, 2)))
    for one in some:
        one.kill()
    yield
    for one in some:
        one.start()
    world.redis.hurry()


@event("redis")
def frozen_sentinels(world: "World") -> Iterator[None]:
    """One, or all."""
    some = world.random.sample(world.redis.sentinels, world.random.choice((1, 3)))
    for one in some:
        one.freeze()
    try:
        yield
    finally:
        for one in some:
            one.thaw()


# PostgreSQL


@event("postgres", hold_s=(0.3, 9.0))
def killed_postgres(world: "World") -> Iterator[None]:
    """At once; it recovers at its next start, and is changed before anybody looks."""
    granted = world.grant(3)
    world.postgres.kill()
    yield
    world.postgres.start()
    world.revoke(granted, 0.0)


@event("postgres", hold_s=(0.5, 6.0))
def frozen_postgres(world: "World") -> Iterator[None]:
    """It keeps its connections, and says nothing."""
    granted = world.grant(3)
    with parts.frozen_postgres(world.postgres):
        yield
    world.revoke(granted, 0.0)


@event("postgres", hold_s=(0.0, 0.5))
def cut_postgres(world: "World") -> Iterator[None]:
    """Its connections are ended, its users may come again."""
    granted = world.grant(3)
    world.cut_postgres()
    world.revoke(granted, 0.0)
    yield


@event("postgres", hold_s=(4.0, 6.0))
def silent_postgres(world: "World") -> Iterator[None]:
    """The sidecars' connections end in nothing, and nobody tells them; new ones are well.

    A query for digests may take some seconds, so silence is not known for what it is before that.
    """
    granted = world.grant(3)
    world.silence_postgres()
    yield
    world.revoke(granted, 0.0)


# Sidecars


@event("sidecar")
def killed_sidecar(world: "World") -> Iterator[None]:
    """SIGKILL; a supervisor starts it again."""
    one = world.random.choice(world.sidecars)
    world.note(f"sidecar {one.name}")
    one.kill()
    yield
    one.start()


@event("sidecar", hold_s=(0.0, 0.3))
def stopped_sidecar(world: "World") -> Iterator[None]:
    """SIGTERM; it ends by itself, and is started again."""
    one = world.random.choice(world.sidecars)
    world.note(f"sidecar {one.name}")
    one.down = True
    one.process.send_signal(signal.SIGTERM)
    code = one.process.wait(20)
    if code != 0:
        world.blame(f"sidecar {one.name} ends with {code} on SIGTERM")
    yield
    one.start()


@event("sidecar", hold_s=(0.5, 6.0))
def frozen_sidecar(world: "World") -> Iterator[None]:
    """For longer than a lease lasts, perhaps."""
    one = world.random.choice(world.sidecars)
    world.note(f"sidecar {one.name}")
    one.freeze()
    try:
        yield
    finally:
        one.thaw()


# The log


@event("log", hold_s=(1.0, 6.0))
def unread_log(world: "World") -> Iterator[None]:
    """Nobody reads what a sidecar writes, and it has a lot to say."""
    drains = [one.drain for one in world.sidecars if one.drain is not None]
    for drain in drains:
        drain.stop()
    try:
        world.load(8, 2.0)
        yield
    finally:
        for drain in drains:
            drain.go()


@event("log", hold_s=(5.0, 8.0))
def full_disk(world: "World") -> Iterator[None]:
    """No room for a line."""
    disk = world.disk
    assert disk is not None, "this user cannot mount a disk"
    disk.fill()
    try:
        world.load(8, 1.0)
        yield
    finally:
        disk.free()
