"""What a command changes is what the very next request is judged by, on every process."""

from contextlib import ExitStack

import pytest

from tests.support.cli import Result, invoke
from tests.support.sidecar import SidecarProcess, start_sidecar

TEAMS = "/api/v1/teams"


class Fleet:
    """Four servers on one Redis, and the command line beside them."""

    def __init__(self, url: str, servers: list[SidecarProcess]) -> None:
        self.url = url
        self.servers = servers

    def do(self, *words: object) -> Result:
        result = invoke(*words, url=self.url)
        assert result.code == 0, result.err
        return result

    def create(self, *permissions: str, user: int = 7) -> str:
        words = [word for permission in permissions for word in ("--permission", permission)]
        made = self.do(
            *("token", "create", "--user", user, "--team", 3, "--name", "for a test"),
            *("--expires", 7, "--quiet", *words),
        )
        return made.out.strip()

    def codes(self, token: str, method: str = "GET", uri: str = TEAMS) -> list[str | int]:
        """What each server answers: the reason code, or 200."""
        answers = [s.ask(method, uri, authorization=f"Bearer {token}") for s in self.servers]
        return [a.status if a.status == 200 else a.json["code"] for a in answers]


@pytest.fixture
def fleet(redis_url, tmp_path):
    """Team 3 with owner 7, admin 8 and member 9; the API is on; nothing is cached yet."""
    with ExitStack() as stack:
        servers = []
        for number in range(4):
            server = start_sidecar(tmp_path / str(number), redis_url, LIMITS__FAILED="1000")
            stack.callback(server.stop)
            servers.append(server)
        fleet = Fleet(redis_url, servers)
        fleet.do("team", "add", "Web shop", "--id", 3)
        for number, role in ((7, "owner"), (8, "admin"), (9, "member")):
            fleet.do("user", "add", "x", "--email", "x@example.test", "--id", number)
            fleet.do("member", "set", "--team", 3, "--user", number, "--role", role)
        fleet.do("api", "enable")
        yield fleet


def test_every_change_is_seen_by_the_next_request_on_four_processes(fleet):
    """Revoked, removed, lowered, limited, switched: no process answers from old state once."""
    revoked, kept = fleet.create("read"), fleet.create("write")
    lowered, removed = fleet.create("deploy", user=8), fleet.create("read", user=8)
    everyone = (revoked, kept, lowered, removed)
    for token in everyone:  # now every process has all of them in its cache
        assert fleet.codes(token)[0] in {200, "permission_missing"}
        fleet.codes(token)

    assert fleet.codes(revoked) == [200] * 4
    fleet.do("token", "revoke", revoked.partition("|")[0])
    assert fleet.codes(revoked) == ["token_unknown"] * 4

    assert fleet.codes(kept, "POST", "/api/v1/projects") == [200] * 4
    fleet.do("api", "disable")
    assert fleet.codes(kept, "POST", "/api/v1/projects") == ["api_disabled"] * 4
    fleet.do("api", "enable")
    fleet.do("allowlist", "set", "10.0.0.0/8", "--force")
    assert fleet.codes(kept, "POST", "/api/v1/projects") == ["address_not_allowed"] * 4
    fleet.do("allowlist", "set", "")
    assert fleet.codes(kept, "POST", "/api/v1/projects") == [200] * 4

    assert fleet.codes(lowered, "POST", "/api/v1/deploy") == [200] * 4
    fleet.do("member", "set", "--team", 3, "--user", 8, "--role", "member")
    assert fleet.codes(lowered, "POST", "/api/v1/deploy") == ["team_role_required"] * 4
    assert fleet.codes(removed) == [200] * 4
    fleet.do("member", "remove", "--team", 3, "--user", 8)
    assert fleet.codes(removed) == ["token_unknown"] * 4

    fleet.do("limit", "set", "--user", 7, "--limit", 1, "--window", 3600)
    assert fleet.codes(kept, "POST", "/api/v1/projects") == ["rate_limited"] * 4
    fleet.do("limit", "reset", "--user", 7)
    codes = fleet.codes(kept, "POST", "/api/v1/projects")
    assert codes == [200, "rate_limited", "rate_limited", "rate_limited"]
    fleet.do("limit", "clear", "--user", 7)
    assert fleet.codes(kept, "POST", "/api/v1/projects") == [200] * 4

    assert fleet.codes(kept, "POST", "/mcp") == ["mcp_disabled"] * 4
    fleet.do("mcp", "enable")
    assert fleet.codes(kept, "POST", "/mcp") == [200] * 4
    fleet.do("mcp", "disable", "--team", 3)
    assert fleet.codes(kept, "POST", "/mcp") == ["team_mcp_disabled"] * 4

    last = fleet.create("read", user=9)
    assert fleet.codes(last) == [200] * 4
    fleet.do("user", "remove", 7)
    assert fleet.codes(kept, "POST", "/api/v1/projects") == ["token_unknown"] * 4
    assert fleet.codes(last) == [200] * 4
    fleet.do("team", "remove", 3)
    assert fleet.codes(last) == ["token_unknown"] * 4
