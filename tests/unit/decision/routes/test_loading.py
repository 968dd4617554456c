"""Route tables: first match in order, no row no access, and no way around through a POST body."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from authsidecar.coolify.route_diff import compare
from authsidecar.decision.model import Permission
from authsidecar.decision.routes import (
    RELEASES,
    Guard,
    Route,
    RouteError,
    RouteTable,
    coolify,
    extra,
    loading,
)
from authsidecar.decision.routes import table as module
from authsidecar.decision.routes.loading import TABLES, Row, overlap, released

DATA = Path(__file__).parents[3] / "data"
EMPTY = RouteTable(())
SWITCH_PATHS = {"/api/v1/enable", "/api/v1/disable", "/api/v1/mcp/enable", "/api/v1/mcp/disable"}


def data(release: str) -> list[dict[str, str]]:
    table = DATA / f"coolify-routes-{TABLES[release]}.tsv"
    header, *lines = table.read_text("ascii").splitlines()
    names = header.split("\t")
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines]


def permission(table: RouteTable, method: str, path: str) -> Permission | None:
    found = table.find(method, path)
    assert found is not None
    return found.permission


# Coolify's own tables


@pytest.mark.parametrize("release", RELEASES)
def test_every_row_of_the_data_is_loaded_in_its_order(release: str) -> None:
    """The shipped tables are the reference data, row by row."""
    rows = data(release)
    assert [(r.method, r.template) for r in coolify(release)] == [
        (row["method"], row["path"]) for row in rows
    ]
    table = TABLES[release]
    shipped = (
        files("authsidecar.decision.routes").joinpath(f"coolify-{table}.tsv").read_text("ascii")
    )
    assert shipped == (DATA / f"coolify-routes-{table}.tsv").read_text("ascii")


@pytest.mark.parametrize("release", RELEASES)
def test_an_ordinary_row_needs_the_ability_of_the_data(release: str) -> None:
    """What decisions.md names is special; all other rows take their column's word."""
    special = 0
    for row, route in zip(data(release), coolify(release), strict=True):
        if route.guard is Guard.ORDINARY:
            assert (row["auth"], row["ability"]) == ("sanctum", route.permission)
        else:
            special += 1
            assert (
                route.template in SWITCH_PATHS
                or route.template == "/mcp"
                or (row["auth"], row["ability"]) == ("-", "-")
            )
    assert special < 20


@pytest.mark.parametrize("release", RELEASES)
def test_only_four_named_routes_are_public(release: str) -> None:
    """Health in two spellings, feedback and Sentinel's push: in buckets of their own."""
    public = {(r.method, r.template): r.bucket for r in coolify(release) if r.guard is Guard.PUBLIC}
    assert (
        public.items()
        <= {
            ("GET", "/api/health"): "health",
            ("GET", "/api/v1/health"): "health",
            ("POST", "/api/feedback"): "feedback",
            ("POST", "/api/v1/sentinel/push"): "sentinel",
        }.items()
    )
    assert ("GET", "/api/v1/health") in public


@pytest.mark.parametrize("release", RELEASES)
def test_the_switches_need_root_whatever_the_data_says(release: str) -> None:
    """The documentation says root where the middleware says write."""
    switches = [r for r in coolify(release) if r.template in SWITCH_PATHS]
    assert switches
    assert {(r.guard, r.permission) for r in switches} == {(Guard.SWITCH, Permission.ROOT)}


def test_mcp_takes_post_alone() -> None:
    """GET and DELETE exist and never work."""
    guards = {r.method: r.guard for r in coolify("4.3") if r.template == "/mcp"}
    assert guards == {
        "POST": Guard.MCP,
        "GET": Guard.WRONG_METHOD,
        "DELETE": Guard.WRONG_METHOD,
    }


def built(*rows: Row) -> RouteTable:
    """The table of these rows, as a release's is built; nothing is remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "released", lambda _: rows)
        return coolify.__wrapped__("4.3")


@pytest.mark.parametrize(
    ("name", "ability", "becomes"),
    [
        ("GET /api/v1/teams", "read", (Guard.ORDINARY, Permission.READ, None)),
        ("POST /api/v1/servers", "write", (Guard.ORDINARY, Permission.WRITE, None)),
        ("GET /api/v1/enable", "write", (Guard.SWITCH, Permission.ROOT, None)),
        ("POST /mcp", "-", (Guard.MCP, None, None)),
        ("DELETE /mcp", "-", (Guard.WRONG_METHOD, None, None)),
        ("GET /api/health", "-", (Guard.PUBLIC, None, "health")),
        ("POST /api/feedback", "-", (Guard.PUBLIC, None, "feedback")),
        ("POST /api/v1/sentinel/push", "-", (Guard.PUBLIC, None, "sentinel")),
    ],
)
def test_each_row_of_a_release_becomes_its_route(
    name: str, ability: str, becomes: tuple[Guard, Permission | None, str | None]
) -> None:
    """Its guard, what it needs and where it is counted, of the row itself."""
    method, path = name.split(" ")
    auth = "-" if ability == "-" else "sanctum"
    (route,) = built(
        released("4.3")[13]._replace(method=method, path=path, ability=ability, auth=auth)
    )
    assert (route.method, route.template) == (method, path)
    assert (route.guard, route.permission, route.bucket) == becomes


@pytest.mark.parametrize(("auth", "ability"), [("-", "read"), ("sanctum", "-"), ("-", "-")])
def test_a_row_without_a_token_that_is_not_named_as_public_is_refused(
    auth: str, ability: str
) -> None:
    """A release's table that says so must not be used at all."""
    with pytest.raises(RouteError) as caught:
        built(released("4.3")[13]._replace(auth=auth, ability=ability))
    said = "GET /api/v1/teams: a row without a token that is not named as public"
    assert str(caught.value) == said


@pytest.mark.parametrize("release", RELEASES)
def test_every_row_is_found_by_a_path_of_its_own(release: str) -> None:
    """No row of Coolify's hides behind an earlier one that needs less."""
    table = coolify(release)
    for route in table:
        path = re.sub(r"\{[^}]+\}", "some-value", route.template)
        found = table.find(route.method, path)
        assert found is not None
        assert (found.guard, found.permission) == (route.guard, route.permission)


@pytest.mark.parametrize("release", ["", "4", "4.2", "5.0", "4.3\n", "../4.3"])
def test_an_unknown_release_is_refused_by_name(release: str) -> None:
    """The message says which ones are known."""
    use = ": use the table of 4.3, the stricter of its neighbours" if release == "4.2" else ""
    with pytest.raises(RouteError) as caught:
        coolify(release)
    said = f"no routes for Coolify {release!r}{use}; known: 4.0, 4.1, 4.3, 4.4"
    assert str(caught.value) == said


def test_a_release_without_a_table_is_told_which_one_serves_it() -> None:
    """4.3 has all rows of 4.1, and none that needs less."""
    with pytest.raises(RouteError, match=r"for Coolify '4\.2': use the table of 4\.3"):
        coolify("4.2")
    diff = compare(released("4.1"), released("4.3"))
    assert (diff.removed, diff.weaker) == ((), ())
    assert [(change.path, change.what) for change in diff.stricter] == [
        ("/mcp", "the MCP switch (team) added")
    ]


def test_no_row_of_43_hides_one_of_41_that_needs_more() -> None:
    """Coolify 4.2 may judge such a path by the old row: it must not pass here for less."""
    old, new = coolify("4.1"), coolify("4.3")
    hidden = 0
    for mine in old:
        for row in new:
            if (row.method, row.template) == (mine.method, mine.template):
                break
            if row.method == mine.method and overlap(row.segments, mine.segments):
                hidden += 1
                assert (row.guard, row.permission) == (mine.guard, mine.permission)
    assert hidden


def test_44_has_the_routes_of_43() -> None:
    """As of its first release candidate."""
    assert released("4.4") == released("4.3")


# Matching


def test_the_first_row_that_matches_wins() -> None:
    """Literal or parameter, longer or shorter: only the order counts."""
    rows = (
        Route("GET", "/a/{x}", Guard.ORDINARY, Permission.READ),
        Route("GET", "/a/b", Guard.ORDINARY, Permission.WRITE),
        Route("GET", "/c/d", Guard.ORDINARY, Permission.WRITE),
        Route("GET", "/c/{x}", Guard.ORDINARY, Permission.READ),
        Route("GET", "/{x}/d", Guard.ORDINARY, Permission.DEPLOY),
        Route("GET", "/c/d", Guard.CLOSED),
    )
    table = RouteTable(rows)
    assert [table.find("GET", p) for p in ("/a/b", "/c/d", "/c/e", "/z/d", "/a/d")] == [
        rows[0],
        rows[2],
        rows[3],
        rows[4],
        rows[0],
    ]


@pytest.mark.parametrize(
    "path",
    ["/", "/a", "/a/", "/a//c", "/a/b/c/d", "/A/b/c", "/a/b/", "//a/b/c", "/a/b/c/", ""],
)
def test_a_path_that_is_not_the_template_has_no_row(path: str) -> None:
    """A parameter is one whole, non-empty segment; case counts; nothing is a prefix."""
    table = RouteTable([Route("GET", "/a/{x}/c", Guard.ORDINARY, Permission.READ)])
    assert table.find("GET", path) is None
    assert table.find("GET", "/a/b/c") is not None


def test_a_parameter_takes_any_text_as_it_is() -> None:
    """Braces, blanks and dots in a client's segment mean nothing."""
    table = RouteTable([Route("GET", "/a/{x}", Guard.ORDINARY, Permission.READ)])
    for segment in ("{x}", "{y}", "...", "a b", "é", "%2f"):
        assert table.find("GET", f"/a/{segment}") is not None


def test_head_goes_by_the_get_row() -> None:
    """HEAD needs what GET needs; without a GET row there is none."""
    table = extra("GET /a read\nPOST /b write", EMPTY)
    assert permission(table, "HEAD", "/a") == Permission.READ
    assert table.find("HEAD", "/b") is None


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "TRACE", ""]
)
def test_another_method_has_no_row(method: str) -> None:
    """A row is for one method, as it is written."""
    assert extra("GET /a read", EMPTY).find(method, "/a") is None


def steps(table: RouteTable, path: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many nodes a look-up visits."""
    real, visited = module._first, 0

    def counted(*args: Any) -> int:
        nonlocal visited
        visited += 1
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_first", counted)
        table.find("GET", path)
    return visited


def test_a_look_up_does_not_grow_with_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty routes or three thousand: the same few steps, found or not."""
    costs = []
    for size in (30, 3000):
        table = extra(
            "\n".join(f"GET /api/v1/noun{i}/{{uuid}}/part{i} read" for i in range(size)), EMPTY
        )
        assert len(table) == size
        paths = ["/api/v1/noun29/u/part29", "/api/v1/noun7/u/x", "/api/v1/none/u/part"]
        costs.append([steps(table, path, monkeypatch) for path in paths])
    assert costs[0] == costs[1]
    assert max(costs[1]) <= 7


def test_a_look_up_in_coolifys_table_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest of three hundred real routes takes a handful of steps."""
    table = coolify("4.3")
    for route in table:
        path = route.template.replace("{", "").replace("}", "")
        assert steps(table, path, monkeypatch) <= 4 * len(route.segments)


def test_a_path_deeper_than_every_row_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its slashes are counted, and it is not even split."""
    table = extra("GET /a/{x}/{y} read", EMPTY)
    assert steps(table, "/a/b/c", monkeypatch) == 4
    assert steps(table, "/a/b/c/d", monkeypatch) == 0


# The operator's rows


def test_extra_rows_add_override_and_close() -> None:
    """They stand in front: new paths, another permission, no access at all."""
    base = coolify("4.3")
    table = extra(
        """
        # what our plugin adds
        GET /api/v1/plugins/{id}   read
        POST\t/api/v1/plugins\twrite

        GET /api/v1/teams root
        GET /api/v1/version deny
        GET /api/v1/status public
        GET /api/v1/either write,deploy
        """,
        base,
    )
    assert permission(base, "GET", "/api/v1/teams") == Permission.READ
    assert permission(table, "GET", "/api/v1/plugins/7") == Permission.READ
    assert permission(table, "POST", "/api/v1/plugins") == Permission.WRITE
    assert permission(table, "GET", "/api/v1/teams") == Permission.ROOT
    closed, public = table.find("GET", "/api/v1/version"), table.find("GET", "/api/v1/status")
    assert closed is not None
    assert public is not None
    assert closed.guard is Guard.CLOSED
    assert (public.guard, public.bucket) == (Guard.PUBLIC, "unknown")
    assert len(table) == len(base) + 6
    either = table.find("GET", "/api/v1/either")
    assert either is not None
    assert either.sufficient == (Permission.WRITE, Permission.DEPLOY)


def test_extra_rows_can_be_switches_and_the_named_public_routes() -> None:
    """So that a newer release's rows can stand in front of an older table."""
    base = coolify("4.0")
    table = extra(
        "POST /api/v1/enable switch\nPOST /api/feedback public\nGET /api/v1/mcp/enable switch", base
    )
    (post, feedback, mcp, *_) = table
    assert (post.guard, post.permission) == (Guard.SWITCH, Permission.ROOT)
    assert (feedback.guard, feedback.bucket) == (Guard.PUBLIC, "feedback")
    assert mcp.guard is Guard.SWITCH


def test_no_extra_rows_change_nothing() -> None:
    """Empty text and comments leave the table as it is."""
    assert list(extra("\n  \n# GET /a public\n", coolify("4.0"))) == list(coolify("4.0"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("GET /a", "2 words"),
        ("GET /a read write", "4 words"),
        ("get /a read", "'get' is not a method"),
        ("HEAD /a read", "HEAD goes by the GET row"),
        ("ANY /a read", "'ANY' is not a method"),
        ("GET a read", "path template"),
        ("GET /a/ read", "path template"),
        ("GET / read", "path template"),
        ("GET //a read", "path template"),
        ("GET /a/../b read", "path template"),
        ("GET /a/./b read", "path template"),
        ("GET /a/b{x} read", "path template"),
        ("GET /a/* read", "path template"),
        ("GET /a?b read", "path template"),
        ("GET /a%20b read", "path template"),
        ("GET https://example.test/a read", "path template"),
        ("GET /a reads", "'reads' is not a permission"),
        ("GET /a READ", "'READ' is not a permission"),
        ("GET /a read,", "'' is not a permission"),
        ("GET /a write,deploi", "'deploi' is not a permission"),
        ("GET /a write,public", "'public' is not a permission"),
        ("POST /a switch", "/a is no switch; one of /api/v1/disable, /api/v1/enable"),
        ("GET /a *", "is not a permission"),
        ("GET /a -", "is not a permission"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(line: str, said: str) -> None:
    """The line's number, the words of it that are wrong, and what would be right."""
    with pytest.raises(RouteError) as caught:
        extra(f"# one\n\nGET /fine read\n{line}\n", EMPTY)
    assert str(caught.value).startswith("line 4: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "GET /a",
            (
                "expected method, path and permission (a permission, several with commas, "
                "`public`, `switch`, `deny` or `absent`), found 2 words"
            ),
        ),
        (
            "HEAD /a read",
            (
                "'HEAD' is not a method; one of DELETE, GET, OPTIONS, PATCH, POST, PUT "
                "(HEAD goes by the GET row)"
            ),
        ),
        (
            "GET /a* read",
            (
                "'/a*' is not a path template such as /api/v1/servers/{uuid}: it starts with one "
                "slash, ends without one, and a parameter is a whole segment"
            ),
        ),
        (
            "GET /a switch",
            (
                "/a is no switch; one of /api/v1/disable, /api/v1/enable, /api/v1/mcp/disable, "
                "/api/v1/mcp/enable"
            ),
        ),
        (
            "GET /a read,x",
            (
                "'x' is not a permission; one of read, read:sensitive, write, write:sensitive, "
                "deploy, root, public, switch, deny, absent"
            ),
        ),
    ],
)
def test_a_bad_line_is_told_what_would_be_right(line: str, said: str) -> None:
    """Word by word: an operator mends the file by it."""
    with pytest.raises(RouteError) as caught:
        extra(line, EMPTY)
    assert str(caught.value) == f"line 1: {said}"


def test_a_path_may_hold_any_capital() -> None:
    """Only what a proxy or a pattern would read is refused in one."""
    assert extra("GET /a/X read", EMPTY).find("GET", "/a/X") is not None


def test_every_bad_line_is_named() -> None:
    """One reading of the message mends the whole file."""
    with pytest.raises(RouteError, match=r"line 1: .*; line 3: "):
        extra("GET a read\nGET /b read\nGET /c nothing", EMPTY)


# POST and the override in its body


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("post", "other"),
    [
        ("read", "write"),
        ("write", "read"),
        ("write", "root"),
        ("deploy", "write"),
        ("write", "read:sensitive"),
        ("read", "read:sensitive"),
        ("public", "read"),
        ("public", "root"),
    ],
)
def test_a_post_that_is_weaker_than_its_siblings_is_refused(
    post: str, other: str, method: str
) -> None:
    """Laravel lets a POST body turn the request into this method; the sidecar can't see it."""
    for text in (
        f"POST /a/{{x}} {post}\n{method} /a/{{y}} {other}",
        f"{method} /a/{{y}} {other}\nPOST /a/{{x}} {post}",
    ):
        with pytest.raises(RouteError, match=rf"POST /a/{{x}} is weaker than {method} /a/{{y}}"):
            extra(text, EMPTY)


@pytest.mark.parametrize(
    ("post", "other"),
    [
        ("write", "write"),
        ("root", "write"),
        ("root", "read"),
        ("read:sensitive", "read"),
        ("write", "public"),
        ("write", "absent"),
        ("absent", "write"),
        ("deny", "write"),
        ("deny", "root"),
        ("deny", "deny"),
    ],
)
def test_a_post_that_is_as_strong_as_its_siblings_is_fine(post: str, other: str) -> None:
    """Whoever may send the POST might as well send the DELETE."""
    assert len(extra(f"POST /a {post}\nDELETE /a {other}", EMPTY)) == 2


def test_a_closed_sibling_must_not_be_reached_by_an_override() -> None:
    """`deny` says that the backend has the route: a POST beside it would open it again."""
    with pytest.raises(RouteError, match=r"POST /a/{x} is weaker than PATCH /a/{x}"):
        extra("PATCH /a/{x} deny\nPOST /a/{x} root", EMPTY)


def test_closing_the_post_as_well_closes_both() -> None:
    """A row that an earlier one hides is never reached, so it is no way around."""
    base = extra("POST /a/{x} write\nPATCH /a/{x} write", EMPTY)
    table = extra("PATCH /a/{x} deny\nPOST /a/{y} deny", base)
    for method in ("POST", "PATCH"):
        found = table.find(method, "/a/b")
        assert found is not None
        assert found.guard is Guard.CLOSED


@pytest.mark.parametrize(
    ("post", "other"),
    [
        ("/a/b", "/a/{x}"),
        ("/a/{x}", "/a/b"),
        ("/{x}/b", "/a/{y}"),
    ],
)
def test_templates_that_share_a_path_are_siblings(post: str, other: str) -> None:
    """One path that matches both is enough."""
    with pytest.raises(RouteError) as caught:
        extra(f"POST {post} read\nDELETE {other} write", EMPTY)
    reached = "a method override in the body would reach it"
    assert str(caught.value) == f"POST {post} is weaker than DELETE {other}: {reached}"


@pytest.mark.parametrize(("post", "other"), [("/a/b", "/a/c"), ("/a/{x}", "/a"), ("/a", "/b/{x}")])
def test_templates_without_a_common_path_are_strangers(post: str, other: str) -> None:
    """Their permissions have nothing to do with each other."""
    assert len(extra(f"POST {post} read\nDELETE {other} write", EMPTY)) == 2


@pytest.mark.parametrize(
    ("post", "other", "weaker"),
    [
        ("write", "write,deploy", False),
        ("write,deploy", "write", True),
        ("write,deploy", "deploy,write", False),
        ("read:sensitive,root", "read", False),
        ("read,root", "read:sensitive", True),
    ],
)
def test_every_permission_that_suffices_for_a_post_counts(
    post: str, other: str, weaker: bool
) -> None:
    """Whoever may call the POST may call the other."""
    text = f"POST /a {post}\nPATCH /a {other}"
    if weaker:
        with pytest.raises(RouteError, match="POST /a is weaker than PATCH /a"):
            extra(text, EMPTY)
    else:
        assert len(extra(text, EMPTY)) == 2


def test_a_weak_post_is_found_behind_coolifys_rows_too() -> None:
    """An extra row is held against the release's own PATCH of the same path."""
    with pytest.raises(RouteError, match=r"POST /api/v1/servers/{id} is weaker than PATCH"):
        extra("POST /api/v1/servers/{id} read", coolify("4.3"))
