"""A table as the operator's own rows in front of a shipped one."""

import pytest

from authsidecar.decision.model import Permission
from authsidecar.decision.routes import RELEASES, Guard, RouteError, coolify, extra
from authsidecar.decision.routes.loading import as_extra, released, rows, tsv

BEFORE_MCP = "4.0"


@pytest.mark.parametrize("wanted", RELEASES)
@pytest.mark.parametrize("base", RELEASES)
def test_a_release_in_front_of_another_decides_as_itself(wanted: str, base: str):
    """Every request that either knows meets the row of the wanted release; /mcp is the base's."""
    made = as_extra(released(wanted), coolify(base))
    table = extra(made.text, coolify(base))
    for route in (*coolify(wanted), *coolify(base)):
        source = coolify(base) if route.template == "/mcp" else coolify(wanted)
        expected = source.find(route.method, route.template)
        found = table.find(route.method, route.template)
        if expected is None:
            assert found is None or found.guard is Guard.ABSENT
        else:
            assert found is not None
            assert (found.guard, found.permission, found.bucket) == (
                expected.guard,
                expected.permission,
                expected.bucket,
            )
    lacking = ["POST /mcp"] if base == BEFORE_MCP != wanted else []
    assert [line.partition(":")[0] for line in made.left_out] == lacking


def test_the_switches_of_a_newer_release_come_with_it():
    """Over 4.1 the POST switches of 4.3, over 4.0 those of MCP as well: none is dropped."""
    lines = as_extra(released("4.3"), coolify("4.1")).text.splitlines()
    assert "POST /api/v1/enable switch" in lines
    assert "POST /api/v1/disable switch" in lines
    lines = as_extra(released("4.3"), coolify("4.0")).text.splitlines()
    assert "POST /api/v1/mcp/enable switch" in lines
    back = as_extra(released("4.1"), coolify("4.3")).text.splitlines()
    assert "POST /api/v1/enable absent" in back


def test_mcp_that_the_base_lacks_is_said_of_a_route_file_too():
    """The file does not have it, but its switches tell of it."""
    rows_of_file = [row for row in released("4.3") if row.path != "/mcp"]
    (line,) = as_extra(rows_of_file, coolify("4.0")).left_out
    assert "take a base of 4.1 or later" in line
    assert as_extra(rows_of_file, coolify("4.1")).left_out == ()


def test_what_rows_cannot_say_is_said_and_stands_in_the_text():
    """A conversion is whole, or says what it left out."""
    row = released("4.3")[13]
    limited = row._replace(path="/api/v1/limited", throttle="api+feedback+5/1m+login")
    unlimited = row._replace(path="/api/v1/unlimited", throttle="-")
    open_ = row._replace(path="/api/v1/open", ability="-", auth="-")
    made = as_extra([limited, unlimited, open_], coolify("4.3"))
    assert made.left_out == (
        "GET /api/v1/limited: its own rate limit (5/1m, login) is left to Coolify",
        "GET /api/v1/open: has no token or no permission and is not named as public, so absent",
    )
    assert made.text.endswith("".join(f"# left out: {line}\n" for line in made.left_out))
    assert "GET /api/v1/open absent" in made.text.splitlines()


def test_a_list_of_permissions_goes_through():
    """Each of them suffices, before and after."""
    row = released("4.3")[13]._replace(path="/api/v1/x", ability="write,deploy")
    table = extra(as_extra([row], coolify("4.3")).text, coolify("4.3"))
    found = table.find("GET", "/api/v1/x")
    assert found is not None
    assert found.sufficient == (Permission.WRITE, Permission.DEPLOY)


def test_a_row_without_a_token_is_closed_not_opened():
    """Only the routes that decisions name are public."""
    public = rows(tsv(released("4.3")))[13]._replace(ability="-", auth="-")
    assert "GET /api/v1/teams absent" in as_extra([public], coolify("4.3")).text.splitlines()


def test_a_row_that_would_hide_a_switch_is_refused():
    """A parameter in the place of `enable` would take the switch's own rule away."""
    greedy = released("4.3")[13]._replace(method="POST", path="/api/v1/{anything}", ability="root")
    with pytest.raises(RouteError, match="would hide POST /api/v1/disable"):
        as_extra([greedy, *released("4.3")], coolify("4.3"))


def test_a_written_table_is_read_back():
    """The tab-separated form loses nothing."""
    assert rows(tsv(released("4.3"))) == released("4.3")
    row = released("4.3")[13]
    several = row._replace(ability="write,deploy", throttle="", mcp_checks="the user, the team")
    every = row._replace(ability=",".join(Permission))
    assert rows(tsv([several, every])) == (several, every)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the columns order method"),
        ("a\tb\n", "line 1: expected the columns order method"),
        (tsv(()) + "1\tGET\t/a\n", "line 2: 3 columns, expected 10"),
        (tsv([released("4.3")[13]._replace(ability="admin")]), "line 2: 'admin' is not a"),
    ],
)
def test_a_table_in_another_form_is_refused_by_line(text: str, message: str):
    """A table of other columns is never read as if it had these."""
    with pytest.raises(RouteError, match=message):
        rows(text)
