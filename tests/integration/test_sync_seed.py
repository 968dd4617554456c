"""Each of the 27 tokens of the seed: PostgreSQL, sync, Redis, sidecar, HTTP."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import invoke
from tests.support.coolify import SECRETS, bearer
from tests.support.postgres import PostgresProcess, coolify_database
from tests.support.redis import start_redis
from tests.support.sidecar import SidecarProcess, start_sidecar
from tests.support.waiting import until

pytestmark = pytest.mark.any_python

READ = ("GET", "/api/v1/teams")
WRITE = ("POST", "/api/v1/projects")
DEPLOY = ("POST", "/api/v1/deploy")
SENSITIVE = ("PATCH", "/api/v1/settings/email")
ENABLE = ("POST", "/api/v1/mcp/enable")
MCP = ("POST", "/mcp")

OK = (200, None)
UNKNOWN = (401, "token_unknown")
EXPIRED = (401, "token_expired")
NO_MEMBER = (401, "not_team_member")
ROLE = (403, "team_role_required")
MISSING = (403, "permission_missing")
TEAM_MCP = (403, "team_mcp_disabled")
NOT_INSTANCE = (403, "instance_team_required")

# What each token of the seed gets, by route, in the order of EVERY.
EVERY = (READ, WRITE, DEPLOY, SENSITIVE, ENABLE, MCP)
EXPECTED = {
    1: (OK, OK, OK, OK, OK, OK),
    2: (OK, MISSING, MISSING, MISSING, MISSING, OK),
    3: (MISSING, OK, MISSING, MISSING, MISSING, OK),
    4: (MISSING, MISSING, OK, MISSING, MISSING, OK),
    5: (OK, MISSING, MISSING, MISSING, MISSING, OK),
    6: (MISSING, OK, MISSING, OK, MISSING, OK),
    7: (OK, MISSING, MISSING, MISSING, MISSING, OK),
    8: (ROLE,) * 6,
    9: (EXPIRED,) * 6,
    10: (NO_MEMBER,) * 6,
    11: (NO_MEMBER,) * 6,
    12: (UNKNOWN,) * 6,
    13: (OK, OK, OK, OK, NOT_INSTANCE, OK),
    # Their abilities are no list of strings, or an empty one: they hold nothing.
    **dict.fromkeys(range(14, 20), (MISSING,) * 5 + (OK,)),
    # Their team ids are no plain numbers, or no team's.
    **dict.fromkeys(range(20, 25), (NO_MEMBER,) * 6),
    25: (UNKNOWN,) * 6,
    26: (NO_MEMBER,) * 6,
    27: (OK, MISSING, MISSING, MISSING, MISSING, TEAM_MCP),
}


@pytest.fixture(scope="module")
def sidecar(
    postgres_server: PostgresProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SidecarProcess]:
    """A sidecar that follows the seed into a Redis of its own."""
    directory = tmp_path_factory.mktemp("seed")
    redis = start_redis(directory / "redis")
    name = asyncio.run(coolify_database(postgres_server))
    process = start_sidecar(
        directory,
        redis.url,
        SYNC__SOURCE="coolify",
        SYNC__DSN=postgres_server.dsn(name),
        LIMITS__USER="100000",
    )
    until(lambda: "sync_following" in process.log, "the first round")
    yield process
    process.stop()
    redis.stop()


@pytest.mark.parametrize("token", EXPECTED)
def test_each_token_of_the_seed_is_judged_as_decided(sidecar: SidecarProcess, token: int) -> None:
    """Through the whole chain, on a route for each permission."""
    seen = []
    for method, uri in EVERY:
        answer = sidecar.ask(method, uri, authorization=bearer(token), client=f"192.0.2.{token}")
        seen.append((answer.status, answer.json["code"] if answer.body else None))

    assert EXPECTED[token] == tuple(seen)


def test_the_table_of_expectations_is_whole() -> None:
    """No token of the seed is forgotten."""
    assert set(SECRETS) == set(EXPECTED) == set(range(1, 28))


@pytest.mark.parametrize(
    ("token", "sensitive"), [(1, "true"), (2, "false"), (5, "true"), (7, "false"), (13, "true")]
)
def test_sensitive_data_is_for_those_who_hold_it_and_manage_the_team(
    sidecar: SidecarProcess, token: int, sensitive: str
) -> None:
    """The flag that the backend gets is right for synced tokens, too."""
    answer = sidecar.ask(*READ, authorization=bearer(token))

    assert sensitive == answer.header("X-Auth-Read-Sensitive")


def test_each_token_is_judged_alike_where_the_state_was_moved(
    sidecar: SidecarProcess, tmp_path: Path
) -> None:
    """Export, import into another server, and a sidecar there that follows nobody."""
    file = tmp_path / "state.jsonl"
    file.write_text(invoke("state", "export", url=sidecar.environ["AUTHSIDECAR_REDIS__URL"]).out)
    redis = start_redis(tmp_path / "redis")
    assert invoke("state", "import", file, url=redis.url).code == 0
    process = start_sidecar(tmp_path, redis.url, LIMITS__USER="100000")
    for token, expected in EXPECTED.items():
        for (method, uri), wanted in zip(EVERY, expected, strict=True):
            answer = process.ask(method, uri, authorization=bearer(token), client=f"10.9.0.{token}")
            assert (answer.status, answer.json["code"] if answer.body else None) == wanted
    assert process.stop() == 0
    redis.stop()


def test_odd_rows_are_counted_by_reason_and_logged_once(sidecar: SidecarProcess) -> None:
    """Metrics name how many there are, the log which."""
    from tests.support.sidecar import get

    def metrics() -> str:
        return get(sidecar.management_port, "/metrics", {}).body.decode()

    until(lambda: 'sync_odd_rows{reason="abilities"} 5.0' in metrics(), "the metrics")
    text = metrics()
    for reason, rows in (("team_id", 5), ("owner_gone", 1), ("owner_type", 1), ("membership", 1)):
        assert f'authsidecar_sync_odd_rows{{reason="{reason}"}} {rows}.0' in text
    assert sidecar.log.count('"reason": "abilities"') == 1
