"""What the demo sends, and what each request is answered: one row per lesson, in order.

The list for people and the requests of `--check` are made from the same rows, so that what is
promised is what is checked.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from authsidecar.demo import seed
from authsidecar.demo.seed import DemoToken

ANYTHING: Final = "*"
"""Stands in an expectation for a text that differs from run to run."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One request and its answer.

    Attributes:
        name: a few words that tell it from the others.
        expected: the answer as `authsidecar.demo.answers.summary` says it; `*` for anything.
        because: why it is so, for people.
        target: as it is sent, never re-encoded.
        method: as it is sent.
        bearer: the text after `Bearer `, or None.
        headers: sent beside it.
        shown: headers of the answer that belong to the lesson.
        times: how often it is sent, in a row.
    """

    name: str
    expected: str
    because: str
    target: str
    method: str = "GET"
    bearer: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    shown: tuple[str, ...] = ()
    times: int = 1

    def all_headers(self) -> dict[str, str]:
        """What is sent, Authorization included."""
        authorization = {} if self.bearer is None else {"Authorization": f"Bearer {self.bearer}"}
        return {**authorization, **self.headers}

    def curl(self, base: str) -> str:
        """The same request as a line of shell.

        Args:
            base: stands before the target, a URL or `$P`.
        """
        method = "" if self.method == "GET" else f" -X {self.method}"
        headers = "".join(f' -H "{name}: {value}"' for name, value in self.all_headers().items())
        target = self.target if shlex.quote(self.target) == self.target else f'"{self.target}"'
        line = f"curl{method} {base}{target}{headers}"
        if self.times == 1:
            return line
        turns = " ".join(str(turn) for turn in range(1, self.times + 1))
        return f"for i in {turns}; do {line}; done"


def agrees(expected: str, seen: str) -> bool:
    """Whether an answer is the expected one.

    >>> agrees("429 rate_limited, Retry-After: *", "429 rate_limited, Retry-After: 9")
    True
    >>> agrees("401 token_missing", "401 token_unknown")
    False
    """
    pattern = ".+".join(re.escape(part) for part in expected.split(ANYTHING))
    return re.fullmatch(pattern, seen) is not None


def _as_owner(token: DemoToken) -> str:
    return f"user {seed.OWNER}, team {seed.TEAM}, owner, {' '.join(sorted(token.permissions))}"


TEAMS: Final = "/api/v1/teams"
_DOCUMENTED: Final = seed.ROOT.plain

SCENARIOS: Final = (
    Scenario(
        "root token",
        f"200 {_as_owner(seed.ROOT)}, sensitive",
        "it is the documentation's own token; the backend is told who is calling",
        TEAMS,
        bearer=_DOCUMENTED,
    ),
    Scenario(
        "switch off",
        "200 API disabled.",
        "root tokens of team 0 may use the switch",
        "/api/v1/disable",
        method="POST",
        bearer=_DOCUMENTED,
    ),
    Scenario(
        "while it is off",
        "403 api_disabled",
        "the switch is seen by the very next request, even root's",
        TEAMS,
        bearer=_DOCUMENTED,
    ),
    Scenario(
        "switch on",
        "200 API enabled.",
        "the switch itself works while the API is off",
        "/api/v1/enable",
        method="POST",
        bearer=_DOCUMENTED,
    ),
    Scenario(
        "no token",
        "401 token_missing, WWW-Authenticate: Bearer *",
        "no token was sent",
        TEAMS,
        shown=("WWW-Authenticate",),
    ),
    Scenario(
        "wrong secret",
        "401 token_unknown",
        "the secret is wrong; an unknown ID gets the very same answer",
        TEAMS,
        bearer=f"{seed.ROOT.id}|guessed",
    ),
    Scenario(
        "no ID|",
        "401 token_prefix_missing",
        "both parts, ID and secret, are required",
        TEAMS,
        bearer=seed.ROOT.secret,
    ),
    Scenario("expired", "401 token_expired", "its time is over", TEAMS, bearer=seed.EXPIRED.plain),
    Scenario(
        "read reads", f"200 {_as_owner(seed.READ)}", "read may read", TEAMS, bearer=seed.READ.plain
    ),
    Scenario(
        "read writes",
        "403 permission_missing: write",
        "read may not write; the answer lists what is missing",
        "/api/v1/projects",
        method="POST",
        bearer=seed.READ.plain,
    ),
    Scenario(
        "read:sensitive",
        f"200 {_as_owner(seed.SENSITIVE)}, sensitive",
        "read:sensitive includes read, and the backend may show secrets",
        TEAMS,
        bearer=seed.SENSITIVE.plain,
    ),
    Scenario(
        "member who may write",
        "403 team_role_required",
        "a plain member may not use a token that can write",
        TEAMS,
        bearer=seed.MEMBERS_WRITE.plain,
    ),
    Scenario(
        "left the team",
        "401 not_team_member",
        "its user has left the team",
        TEAMS,
        bearer=seed.LEAVERS.plain,
    ),
    Scenario(
        "unknown path",
        "404 route_unknown",
        "Coolify has no such route: no row, no access",
        "/api/v1/no-such-thing",
        bearer=_DOCUMENTED,
    ),
    Scenario(
        "front controller",
        "404 route_unknown",
        "Laravel would run /api/v1/teams here, past a naive guard",
        f"/index.php{TEAMS}",
        bearer=_DOCUMENTED,
    ),
    Scenario(
        "false X-Auth-User-Id",
        f"200 {_as_owner(seed.READ)}",
        "nobody but the sidecar says who is calling: the false ID is replaced",
        TEAMS,
        bearer=seed.READ.plain,
        headers={"X-Auth-User-Id": "999"},
    ),
    Scenario("public health", "200 no identity", "health is public", "/api/health"),
    Scenario(
        "encoded slash",
        "400 ambiguous_target",
        "a path has one spelling",
        "/api%2Fv1%2Fteams",
        bearer=_DOCUMENTED,
    ),
    Scenario(
        "method override",
        "400 method_override",
        "what is judged as a POST must not run as a DELETE",
        "/api/v1/projects",
        method="POST",
        bearer=_DOCUMENTED,
        headers={"X-HTTP-Method-Override": "DELETE"},
    ),
    Scenario(
        "rate limit",
        f"{'200 ' * seed.LIMIT.requests}429 rate_limited, Retry-After: *",
        f"this token may ask {seed.LIMIT.requests} times in {seed.LIMIT.window_ms // 1000} s",
        TEAMS,
        bearer=seed.LIMITED.plain,
        shown=("Retry-After",),
        times=seed.LIMIT.requests + 1,
    ),
    Scenario(
        "preflight",
        "204, Access-Control-Allow-Methods: *",
        "a browser's preflight carries no token and passes without identity",
        TEAMS,
        method="OPTIONS",
        headers={"Origin": "https://app.example.com", "Access-Control-Request-Method": "GET"},
        shown=("Access-Control-Allow-Methods",),
    ),
)
