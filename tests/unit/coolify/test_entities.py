"""What may stand between an old and a new fact: nothing that either of them does not allow."""

from hypothesis import given
from hypothesis import strategies as st

from authsidecar.coolify import entities
from authsidecar.decision.checks import ELEVATED
from authsidecar.decision.model import Permission, Role, TeamId, TokenId, UserId
from authsidecar.store.entities import Member, Team, Token
from authsidecar.times import UnixMs

TOKENS = st.builds(
    Token,
    id=st.just(TokenId(1)),
    sha256=st.sampled_from([b"a" * 32, b"b" * 32]),
    name=st.just("x"),
    user=st.sampled_from([UserId(1), UserId(2)]),
    team=st.sampled_from([TeamId(1), TeamId(2), None]),
    permissions=st.frozensets(st.sampled_from(Permission)),
    expires_at=st.none() | st.integers(0, 3).map(UnixMs),
    created_at=st.just(UnixMs(0)),
)
MEMBERS = st.builds(
    Member, team=st.just(TeamId(1)), user=st.just(UserId(1)), role=st.sampled_from(Role)
)
TEAMS = st.builds(Team, id=st.just(TeamId(1)), name=st.text(), mcp_enabled=st.booleans())


def allows(token: Token, role: Role) -> set[object]:
    """What a token allows its user in its team."""
    if role is Role.MEMBER and token.permissions & ELEVATED:
        return set()
    end = 9 if token.expires_at is None else token.expires_at
    return {
        (token.sha256, token.user, token.team, permission, now)
        for permission in token.permissions
        for now in range(end + 1)
    }


@given(TOKENS, TOKENS, st.sampled_from(Role))
def test_a_narrowed_token_allows_no_role_what_neither_allows(
    old: Token, new: Token, role: Role
) -> None:
    """For a member too, for whom a token with less can be worth more."""
    between = entities.TOKENS.narrowed(old, new)

    assert between is None or allows(between, role) <= allows(old, role) | allows(new, role)
    assert between is None or between in (old, new)


@given(TOKENS, TOKENS)
def test_a_token_that_only_lost_is_narrowed_at_once(old: Token, new: Token) -> None:
    """A revocation of permissions is complete after the first pass."""
    lost = Token(
        old.id,
        old.sha256,
        new.name,
        old.user,
        old.team,
        old.permissions & new.permissions,
        old.expires_at,
        old.created_at,
    )

    assert entities.TOKENS.narrowed(old, lost) == lost


@given(MEMBERS, MEMBERS)
def test_a_narrowed_role_is_the_lower_one(old: Member, new: Member) -> None:
    """Owner and admin decide alike."""
    between = entities.MEMBERS.narrowed(old, new)

    assert between is not None
    lower = Role.MEMBER in (old.role, new.role)
    assert (between.role is Role.MEMBER) == lower


@given(TEAMS, TEAMS)
def test_a_narrowed_team_has_mcp_on_only_if_both_have(old: Team, new: Team) -> None:
    """The switch of a team is one more thing that lets somebody in."""
    between = entities.TEAMS.narrowed(old, new)

    assert between is not None
    assert between.mcp_enabled == (old.mcp_enabled and new.mcp_enabled)
