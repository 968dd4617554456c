"""Differences between tables: what became weaker comes first and is complete."""

import pytest

from authsidecar.coolify.route_diff import RouteChange, compare
from authsidecar.decision.routes.loading import Row, released


def row(method: str, path: str, ability: str, **columns: str) -> Row:
    """A row with every guard, unless it says otherwise."""
    return Row(
        **{
            "order": "-",
            "method": method,
            "path": path,
            "ability": ability,
            "auth": "sanctum",
            "team_member": "yes",
            "api_enabled_and_allowlist": "yes",
            "sensitive_flag": "yes",
            "throttle": "api",
            "mcp_checks": "-",
        }
        | columns
    )


def test_4_3_to_4_1_weakens_the_mcp_switch_alone():
    """The older release lacks routes, and the team's own MCP switch."""
    diff = compare(released("4.3"), released("4.1"))
    assert diff.weaker == (RouteChange("POST", "/mcp", "the MCP switch (team) dropped"),)
    assert (diff.stricter, diff.added) == ((), ())
    assert len(diff.removed) == len(released("4.3")) - len(released("4.1"))
    assert RouteChange("POST", "/api/v1/enable", "needs write") in diff.removed


def test_the_way_back_adds_what_the_way_there_removed():
    """Added and removed, weaker and stricter mirror each other."""
    there = compare(released("4.3"), released("4.1"))
    back = compare(released("4.1"), released("4.3"))
    assert set(back.added) == set(there.removed)
    assert [(c.method, c.path) for c in back.stricter] == [("POST", "/mcp")]
    assert (back.weaker, back.removed) == ((), ())


def test_three_planted_weakenings_are_named_and_nothing_else():
    """A lower permission, a route made public, a guard dropped."""
    planted = {
        ("POST", "/api/v1/servers"): {"ability": "read"},
        ("GET", "/api/v1/teams"): {"ability": "-", "auth": "-"},
        ("GET", "/api/v1/projects"): {"api_enabled_and_allowlist": "-"},
    }
    weakened = [r._replace(**planted.get((r.method, r.path), {})) for r in released("4.3")]
    diff = compare(released("4.3"), weakened)
    assert set(diff.weaker) == {
        RouteChange("POST", "/api/v1/servers", "needs read, needed write"),
        RouteChange("GET", "/api/v1/teams", "public now, needed read"),
        RouteChange("GET", "/api/v1/projects", "the API switch and the allowlist dropped"),
    }
    assert len(diff.weaker) == 3
    assert (diff.stricter, diff.added, diff.removed) == ((), (), ())


def test_a_table_does_not_differ_from_itself():
    """No release is said to differ from itself."""
    for release in ("4.0", "4.1", "4.3"):
        diff = compare(released(release), released(release))
        assert (diff.weaker, diff.stricter, diff.added, diff.removed) == ((), (), (), ())


def test_a_new_row_in_front_of_a_stronger_one_is_a_weakening():
    """An unchanged row that is no longer reached protects nothing."""
    old = [row("GET", "/api/v1/x/{id}", "root")]
    new = [row("GET", "/api/v1/x/me", "read"), *old]
    assert compare(old, new).weaker == (
        RouteChange("GET", "/api/v1/x/me", "needs read, needed root"),
    )


def test_a_swapped_order_is_a_weakening_where_both_rows_match():
    """Two templates that share a path: the first one decides about it."""
    old = [row("GET", "/a/{x}/c", "root"), row("GET", "/a/b/{y}", "read")]
    assert compare(old, old[::-1]).weaker == (
        RouteChange("GET", "/a/b/c", "needs read, needed root"),
    )


def test_parameters_may_be_renamed():
    """A parameter's name decides nothing."""
    old, new = [row("GET", "/a/{x}", "read")], [row("GET", "/a/{y}", "read")]
    assert compare(old, new) == compare(old, old)


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ({"ability": "write"}, {"ability": "deploy"}, "needs deploy, needed write"),
        ({"ability": "read:sensitive"}, {"ability": "read"}, "needs read, needed read:sensitive"),
        ({"ability": "read"}, {"ability": "-"}, "needs -, needed read"),
        ({}, {"team_member": "-"}, "the check of team and role dropped"),
        ({}, {"sensitive_flag": "-"}, "the flag for sensitive data dropped"),
        ({"throttle": "api+feedback"}, {}, "the rate limit (feedback) dropped"),
        ({}, {"throttle": "-"}, "the rate limit (api) dropped"),
    ],
)
def test_each_weakening_has_its_words_and_its_opposite(
    before: dict[str, str], after: dict[str, str], what: str
):
    """One way it is weaker, the other way stricter; never both."""
    old = [row("GET", "/a", "read")._replace(**before)]
    new = [row("GET", "/a", "read")._replace(**after)]
    assert compare(old, new).weaker == (RouteChange("GET", "/a", what),)
    assert compare(old, new).stricter == ()
    assert compare(new, old).weaker == ()
    assert len(compare(new, old).stricter) == 1


def test_a_table_that_gains_a_route_where_whoami_is_shown_is_noticed():
    """Clients would not reach it: the files of deploy/ answer there with the sidecar's own."""
    before = released("4.3")
    teams = next(row for row in before if row.path == "/api/v1/teams")
    gained = (*before, teams._replace(path="/api/v1/{name}"))
    hidden = compare(before, gained).hidden
    assert [(one.method, one.path) for one in hidden] == [("GET", "/api/v1/whoami")]
    assert compare(gained, gained).hidden == compare(before, before).hidden == ()
