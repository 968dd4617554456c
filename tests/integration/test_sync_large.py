"""A hundred thousand tokens: the first snapshot, what an idle round costs, and kills."""

import os
import signal
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from authsidecar.coolify import status
from authsidecar.decision.model import TokenId
from authsidecar.store.keys import Keys
from tests.integration.test_sync_live import sync_process
from tests.support.coolify import Coolify, admitted, follower, state
from tests.support.waiting import eventually, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TOKENS = 100_000
USERS = 5_000
MEMORY = 160 * 1024 * 1024
IDLE_CPU_S = 0.5


async def fill(coolify: Coolify, tokens: int) -> None:
    await coolify.run(
        f"""
        INSERT INTO users(id, name, email)
          SELECT i, 'user ' || i, i || '@example.test' FROM generate_series(1000, {999 + USERS}) i;
        INSERT INTO team_user(team_id, user_id, role)
          SELECT 1, i, 'owner' FROM generate_series(1000, {999 + USERS}) i;
        INSERT INTO personal_access_tokens
          (id, tokenable_type, tokenable_id, name, token, team_id, abilities, created_at)
          SELECT i, 'App\\Models\\User', 1000 + i % {USERS}, 'token ' || i,
            encode(sha256(convert_to('secret-' || i, 'UTF8')), 'hex'), '1',
            '["read", "write"]', now() AT TIME ZONE 'UTC'
          FROM generate_series(1000, {999 + tokens}) i;
        """
    )


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.alone
async def test_a_hundred_thousand_tokens_are_followed_at_little_cost(
    coolify_db: Coolify, redis_client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """Progress, bounded memory, cheap rounds, and one change among them seen in the next one."""
    await fill(coolify_db, TOKENS)
    log = tmp_path / "sync.log"
    start = time.monotonic()
    process = sync_process(log, redis_url, coolify_db.dsn)
    try:
        until(lambda: '"sync_following"' in log.read_text(), "the snapshot", patience_s=240)
        first_s = time.monotonic() - start
        memory = peak_memory(process.pid)
        used = f"{cpu_s(process.pid):.1f}"

        async def rounds_after(statement: str) -> float:
            """The CPU of a round that looks at everything and finds nothing new."""
            at = await redis_client.hget(Keys().sync_status, "at")
            before = cpu_s(process.pid)
            await coolify_db.run(statement)

            async def later() -> bool:
                return await redis_client.hget(Keys().sync_status, "at") != at

            await eventually(later, "a round", patience_s=30)
            return cpu_s(process.pid) - before

        idle = [
            await rounds_after(
                "UPDATE personal_access_tokens SET last_used_at = now(), updated_at = now() "
                f"WHERE id = {1000 + i}"
            )
            for i in range(5)
        ]
        await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 50000")

        async def gone() -> bool:
            return not await redis_client.exists(Keys().token(TokenId(50000)))

        seen_s = await eventually(gone, "the deletion")
    finally:
        process.terminate()
        process.wait()

    print(  # noqa: T201
        f"{TOKENS} tokens: snapshot {first_s:.1f} s ({used} s of CPU), peak {memory >> 20} MiB, "
        f"idle round {1000 * max(idle):.0f} ms of CPU, a change seen after {seen_s:.2f} s"
    )
    assert '"sync_progress"' in log.read_text()
    assert memory < MEMORY
    assert max(idle) < IDLE_CPU_S
    assert seen_s < 3


async def test_a_killed_snapshot_lets_nobody_in_and_is_completed(
    coolify_db: Coolify, redis_client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """SIGKILL, several times on the way: what is revoked is revoked first; then all is there."""
    await fill(coolify_db, TOKENS // 4)
    await coolify_db.run("UPDATE personal_access_tokens SET abilities = '[\"root\"]' WHERE id = 7")
    await follower(coolify_db.dsn, redis_client).once()
    # All at once: every user of the first token but one becomes a member, most tokens change hands.
    await coolify_db.run("UPDATE team_user SET role = 'member' WHERE user_id < 3000")
    await coolify_db.run(
        "UPDATE personal_access_tokens SET tokenable_id = 1000 + (id + 1) % 5000 WHERE id >= 1000"
    )
    await coolify_db.run("DELETE FROM personal_access_tokens WHERE id % 1000 = 0")
    sample = [7, 8, 1001, 2000, 10_000, 10_001, 13_500, 25_000, 25_500]
    old = await admitted(redis_client, sample)
    halves = []
    for number, pause in enumerate((1.2, 1.8, 3.0)):
        process = sync_process(tmp_path / f"{number}.log", redis_url, coolify_db.dsn)
        try:
            time.sleep(pause)  # noqa: ASYNC251  # somewhere on the way, wherever that is
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        halves.append(await admitted(redis_client, sample))
    process = sync_process(tmp_path / "last.log", redis_url, coolify_db.dsn)
    try:

        async def followed() -> bool:
            told = await status.read(redis_client, Keys())
            log = (tmp_path / "last.log").read_text()
            return told is not None and '"sync_following"' in log

        await eventually(followed, "the snapshot", patience_s=240)
    finally:
        process.terminate()
        process.wait()
    new = await admitted(redis_client, sample)

    assert old != new
    assert [half - (old | new) for half in halves] == [set()] * 3
    seen = await state(redis_client)
    fresh = Keys("fresh:")
    await follower(coolify_db.dsn, redis_client, keys=fresh).once()
    assert await state(redis_client, fresh) == seen
