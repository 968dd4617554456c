"""Everything goes wrong at random, and what is admitted is what Coolify's rows say.

CHAOS_SECONDS=600 CHAOS_SEED=7 .venv/bin/pytest -m slow tests/integration/test_chaos.py

CHAOS_EVENTS=flush,full-disk chooses the events. CHAOS_KEEP_GOING=1 goes on after what is broken,
and says at the end how each event went.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.chaos.events import EVENTS
from tests.support.chaos.model import ADDRESSES, ROUTES, Question, Rows
from tests.support.chaos.run import chosen, run, summary, world
from tests.support.coolify import SECRETS, Coolify

SECONDS = float(os.environ.get("CHAOS_SECONDS", "240"))
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.randrange(1, 1_000_000)
NAMES = os.environ.get("CHAOS_EVENTS", "")
KEEP_GOING = bool(os.environ.get("CHAOS_KEEP_GOING"))
SLACK_S = 300
"""For the start, the last event, and the stop."""


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(SECONDS + SLACK_S)
def test_after_every_event_it_admits_whom_coolifys_rows_admit(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """Two sidecars that follow, each part broken in turn; the rules of tests/support/chaos/run.py.

    Five seconds after the parts are back the answers are those of an independent model; `/readyz`
    does not say ready for two seconds while requests get 503; no process ends, hangs or spins.
    """
    tell(f"chaos: seed {SEED}, {SECONDS:.0f} s")
    lines = tmp_path / "timeline.log"

    def noted(text: str) -> None:
        with lines.open("a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    with world(tmp_path, SEED, noted) as made:
        tallies = run(made, chosen(NAMES, made.disk), SECONDS, keep_going=KEEP_GOING)
        tell(summary(made, tallies))
    assert not any(tally.broken for tally in tallies.values())


READ, WRITE, DEPLOY, ENABLE, MCP = ROUTES
HERE, THERE = ADDRESSES

OF_THE_SEED = {
    1: {READ, WRITE, DEPLOY, ENABLE, MCP},
    2: {READ, MCP},
    3: {WRITE, MCP},
    4: {DEPLOY, MCP},
    5: {READ, MCP},
    6: {WRITE, MCP},
    7: {READ, MCP},
    13: {READ, WRITE, DEPLOY, MCP},
    **{token: {MCP} for token in range(14, 20)},
    27: {READ},
}
"""Whom coolify-seed.sql admits where; a judge is judged by hand."""


async def admitted(coolify: Coolify, address: str = HERE) -> dict[int, set[object]]:
    """Where the model admits each token."""
    asked = [Question(token, route, address) for token in SECRETS for route in ROUTES]
    found: dict[int, set[object]] = {}
    for question in (await Rows.read(coolify.dsn)).admitted(SECRETS, asked):
        found.setdefault(question.token, set()).add(question.route)
    return found


async def test_the_model_admits_whom_the_seed_does(coolify_db: Coolify) -> None:
    """The odd rows among them."""
    assert await admitted(coolify_db) == OF_THE_SEED


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE instance_settings SET is_api_enabled = false", {ENABLE, MCP}),
        ("UPDATE instance_settings SET is_mcp_server_enabled = false", {*ROUTES} - {MCP}),
        ("UPDATE instance_settings SET allowed_ips = '10.0.0.0/8'", {ENABLE}),
        ("UPDATE instance_settings SET allowed_ips = 'nonsense'", {ENABLE}),
        ("UPDATE instance_settings SET allowed_ips = 'nonsense, 192.0.2.1'", {*ROUTES}),
        ("UPDATE instance_settings SET allowed_ips = '0.0.0.0'", {*ROUTES}),
        ("UPDATE team_user SET role = 'member' WHERE user_id = 0", set()),
        ("UPDATE team_user SET role = 'Owner' WHERE user_id = 0", set()),
        ("DELETE FROM team_user WHERE user_id = 0", set()),
        ("DELETE FROM teams WHERE id = 0", set()),
        ("DELETE FROM users WHERE id = 0", set()),
        ("DELETE FROM personal_access_tokens WHERE id = 1", set()),
        ("UPDATE personal_access_tokens SET expires_at = '2020-01-01' WHERE id = 1", set()),
        ("UPDATE personal_access_tokens SET token = 'x' WHERE id = 1", set()),
        ("UPDATE personal_access_tokens SET abilities = '[\"read\"]' WHERE id = 1", {READ, MCP}),
    ],
)
async def test_the_model_follows_a_change(
    coolify_db: Coolify, statement: str, expected: set[object]
) -> None:
    """What becomes of the root token, which is admitted everywhere at first."""
    await coolify_db.run(statement)

    assert (await admitted(coolify_db)).get(1, set()) == expected


def test_what_is_chosen_by_name_is_known() -> None:
    """A name that is wrong is no run without events."""
    assert [one.name for one in chosen("flush, full-disk", None)] == ["flush"]
    assert len(chosen("", None)) == len(EVENTS) - 1
    with pytest.raises(ValueError, match="no such event: flash"):
        chosen("flash", None)
