"""A table as the operator's own rows in front of a shipped one."""

import pytest

from authsidecar.routes import RELEASES, Guard, RouteError, coolify, extra
from authsidecar.routes.loading import as_extra, released, rows, tsv

OWN_RULES = {Guard.SWITCH, Guard.MCP, Guard.WRONG_METHOD, Guard.PUBLIC}


@pytest.mark.parametrize("wanted", RELEASES)
@pytest.mark.parametrize("base", RELEASES)
def test_a_release_in_front_of_another_decides_as_itself(wanted: str, base: str):
    """Every request that either knows meets the row of the wanted release."""
    table = extra(as_extra(released(wanted), coolify(base)), coolify(base))
    for route in (*coolify(wanted), *coolify(base)):
        expected = coolify(wanted).find(route.method, route.template)
        found = table.find(route.method, route.template)
        if route.guard in OWN_RULES:
            continue  # these stay as the base has them
        if expected is None:
            assert found is not None
            assert found.guard is Guard.ABSENT
        else:
            assert found is not None
            assert (found.guard, found.permission) == (expected.guard, expected.permission)


def test_a_row_without_a_token_is_closed_not_opened():
    """Only the routes that decisions name are public."""
    public = rows(tsv(released("4.3")))[13]._replace(ability="-", auth="-")
    assert "GET /api/v1/teams absent" in as_extra([public], coolify("4.3")).splitlines()


def test_a_row_that_would_hide_a_switch_is_refused():
    """A parameter in the place of `enable` would take the switch's own rule away."""
    greedy = released("4.3")[13]._replace(method="POST", path="/api/v1/{anything}", ability="root")
    with pytest.raises(RouteError, match="would hide POST /api/v1/enable"):
        as_extra([greedy], coolify("4.3"))


def test_a_written_table_is_read_back():
    """The tab-separated form loses nothing."""
    assert rows(tsv(released("4.3"))) == released("4.3")


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
