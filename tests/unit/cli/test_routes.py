"""The `routes` commands as an operator or a CI job runs them."""

import json
from pathlib import Path

import pytest

from authsidecar.cli.main import run
from authsidecar.decision.routes import RELEASES, coolify
from authsidecar.decision.routes.loading import released, rows, tsv

API_PHP = """<?php
use App\\Http\\Middleware\\ApiAllowed;
use Illuminate\\Support\\Facades\\Route;
Route::group(['middleware' => ['auth:sanctum', ApiAllowed::class], 'prefix' => 'v1'], function () {
    Route::get('/teams', 'T@i')->middleware(['api.ability:read']);
});
"""


def test_list_shows_every_row_in_order(capsys: pytest.CaptureFixture[str]):
    """A script gets the table as the server uses it."""
    assert run(["routes", "list", "--release", "4.1", "--json"]) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert [(i["method"], i["path"]) for i in items] == [
        (r.method, r.template) for r in coolify("4.1")
    ]
    assert items[6] == {
        "order": 7,
        "method": "GET",
        "path": "/api/v1/enable",
        "guard": "switch",
        "permission": "root",
        "needs": "root, instance team",
    }


@pytest.mark.parametrize(
    ("method", "target", "told"),
    [
        ("GET", "/api/v1/teams/3?x=1", "GET /api/v1/teams/{id}: read\n"),
        ("HEAD", "/api/v1/%74eams/", "GET /api/v1/teams: read\n"),
        ("POST", "/api/v1/enable", "POST /api/v1/enable: root, instance team\n"),
        ("POST", "/api/feedback", "POST /api/feedback: nothing, limit feedback\n"),
        ("POST", "/mcp", "POST /mcp: token, MCP switches\n"),
    ],
)
def test_match_tells_the_row_and_what_it_needs(
    method: str, target: str, told: str, capsys: pytest.CaptureFixture[str]
):
    """The target is read as the server reads it."""
    assert run(["routes", "match", method, target, "--release", "4.3"]) == 0
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("/api/v1/nothing", "no row for GET /api/v1/nothing: 404 route_unknown"),
        ("/api//v1/teams", "400 ambiguous_target: an empty or dot segment"),
        ("api/v1/teams", "400 ambiguous_target: it does not begin with a slash"),
        ("/index.php/api/v1/teams", "404 route_unknown"),
        ("/api/v1/teams?_method=DELETE", "400 method_override"),
    ],
)
def test_match_fails_where_the_server_would_refuse_anybody(
    target: str, told: str, capsys: pytest.CaptureFixture[str]
):
    """The exit code tells a script, the line tells why."""
    assert run(["routes", "match", "GET", target, "--release", "4.3"]) == 1
    assert told in capsys.readouterr().err


def test_match_without_a_release_uses_the_configured_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The operator's own rows count, as they do for the server."""
    (tmp_path / "own.txt").write_text("GET /api/v1/mine deploy\n")
    config = tmp_path / "config.yaml"
    config.write_text(f"coolify: {{routes: '4.1', extra_routes: {tmp_path / 'own.txt'}}}\n")
    command = ["--config", str(config), "routes", "match", "GET", "/api/v1/mine"]
    assert run(command) == 0
    assert capsys.readouterr().out == "GET /api/v1/mine: deploy\n"


def test_diff_fails_a_ci_job_only_if_something_became_weaker(capsys: pytest.CaptureFixture[str]):
    """4.3 to 4.1 loses the team's MCP switch; the way back adds it."""
    assert run(["routes", "diff", "4.3", "4.1"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("weaker:\n  POST /mcp: the MCP switch (team) dropped\nremoved:\n")
    assert err == "authsidecar: 1 weaker in 4.1 than in 4.3\n"
    assert run(["routes", "diff", "4.1", "4.3"]) == 0
    assert run(["routes", "diff", "4.3", "4.3"]) == 0
    assert capsys.readouterr().out.endswith("no difference\n")


def test_diff_reads_php_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A release can be held against Coolify's own file."""
    (tmp_path / "api.php").write_text(API_PHP)
    (tmp_path / "t.tsv").write_text(tsv(r for r in released("4.3") if r.path == "/api/v1/teams"))
    command = ["routes", "diff", str(tmp_path / "t.tsv"), str(tmp_path / "api.php"), "--json"]
    assert run(command) == 1
    assert json.loads(capsys.readouterr().out)["weaker"] == [
        {"method": "GET", "path": "/api/v1/teams", "what": f"the {guard} dropped"}
        for guard in ("check of team and role", "flag for sensitive data")
    ]


def test_import_writes_a_table_that_can_be_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """What stands on standard output is the table and nothing else."""
    (tmp_path / "api.php").write_text(API_PHP)
    assert run(["routes", "import", str(tmp_path / "api.php")]) == 0
    out, err = capsys.readouterr()
    assert [(r.method, r.path, r.ability) for r in rows(out)] == [("GET", "/api/v1/teams", "read")]
    assert err == "1 routes\n"


def test_import_as_extra_rows_closes_what_the_file_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """With these rows in front, the base is the imported table."""
    (tmp_path / "api.php").write_text(API_PHP)
    assert run(["routes", "import", str(tmp_path / "api.php"), "--format", "extra"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "GET /api/v1/teams read"
    assert "GET /api/v1/servers absent" in lines


def test_import_writes_nothing_if_anything_is_unreadable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Half a table would close or open what nobody has looked at."""
    file = tmp_path / "api.php"
    file.write_text(API_PHP + "Route::get($x, 'y');\nforeach ($y as $z) {}\n")
    assert run(["routes", "import", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[:2] == [
        f"{file}:7: a path or name that is not a plain string",
        f"{file}:8: not a route: a statement that begins with foreach",
    ]


CONDITIONAL_PHP = (
    API_PHP
    + """if (Feature::enabled()) {
    Route::post('/internal/status', 'Status@push');
}
"""
)


def test_routes_inside_an_if_need_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The error names the option, and the rows that it is about."""
    file = tmp_path / "api.php"
    file.write_text(CONDITIONAL_PHP)
    for command in (["import", str(file)], ["diff", "4.3", str(file)]):
        assert run(["routes", *command]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.splitlines()[:2] == [
            (
                f"{file}:7: routes inside an `if`: --conditional include or leave-out says what "
                "becomes of them"
            ),
            f"{file}:8: POST /api/internal/status is inside the `if` of line 7",
        ]


@pytest.mark.parametrize(
    ("word", "became", "count"), [("include", "included", 2), ("leave-out", "left out", 1)]
)
def test_what_became_of_routes_inside_an_if_is_told(
    word: str, became: str, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """On standard error, beside the table."""
    file = tmp_path / "api.php"
    file.write_text(CONDITIONAL_PHP)
    assert run(["routes", "import", str(file), "--conditional", word]) == 0
    out, err = capsys.readouterr()
    assert len(rows(out)) == count
    assert err.splitlines() == [
        f"{file}:8: POST /api/internal/status is inside an `if`: {became}",
        f"{count} routes",
    ]
    command = ["routes", "import", str(file), "--format", "extra", "--conditional", word]
    assert run(command) == 0
    out, err = capsys.readouterr()
    assert ("# left out: POST /api/internal/status: has no token" in out) == (count == 2)
    assert ("warning: left out: POST /api/internal/status" in err) == (count == 2)


def test_a_list_of_permissions_is_weaker_than_one_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """More tokens pass where each of several suffices."""
    one, two = (tmp_path / name for name in ("one.php", "two.php"))
    one.write_text(API_PHP.replace("ability:read", "ability:deploy"))
    two.write_text(API_PHP.replace("ability:read", "ability:write,deploy"))
    assert run(["routes", "diff", str(one), str(two), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [change["what"] for change in told["weaker"]] == ["needs write,deploy, needed deploy"]
    assert run(["routes", "diff", str(two), str(one), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [change["what"] for change in told["stricter"]] == ["needs deploy, needed write,deploy"]


@pytest.mark.parametrize(
    "command",
    [["list", "--release", "9"], ["diff", "4.3", "9"], ["import", "/nowhere"]],
)
def test_what_is_not_there_is_one_line(command: list[str], capsys: pytest.CaptureFixture[str]):
    """An unknown release names the known ones; a missing file is named."""
    assert run(["routes", *command]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(release in err for release in RELEASES) or "/nowhere" in err
