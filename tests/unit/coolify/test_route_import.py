"""Route files of our own making, in the shape that Coolify's have."""

from itertools import groupby
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authsidecar.coolify.route_import import Conditional, ImportProblem, read
from authsidecar.decision.routes.loading import RELEASES, Row, released

USES = r"""
use App\Http\Controllers\Api\{OtherController, TeamController as Teams};
use App\Http\Middleware\ApiAllowed;
use Illuminate\Support\Facades\Route;
"""

ORDINARY = {
    "auth": "sanctum",
    "api_enabled_and_allowlist": "yes",
    "sensitive_flag": "yes",
    "throttle": "api",
}
PUBLIC = {"ability": "-", "auth": "-", "throttle": "api"}


def row(method: str, path: str, **columns: str) -> Row:
    """A row without an order; columns that are not named hold `-`."""
    return Row(**(dict.fromkeys(Row._fields, "-") | {"method": method, "path": path} | columns))


def php(body: str) -> str:
    """A route file; `body` begins on line 6."""
    return f"<?php\n{USES.strip()}\n\n{dedent(body).strip()}\n"


def read_rows(body: str) -> list[Row]:
    """The rows of a file without problems."""
    found = read(php(body))
    assert found.problems == ()
    assert [r.order for r in found.rows] == [str(n) for n in range(1, len(found.rows) + 1)]
    return [r._replace(order="-") for r in found.rows]


def problems(body: str) -> list[ImportProblem]:
    """What could not be read."""
    return list(read(php(body)).problems)


def test_a_file_in_coolifys_shape_gives_the_expected_table():
    """Groups, match, middleware, defaults, where, imports, comments and the catch-all at once."""
    assert read_rows(r"""
        Route::get('/health', [OtherController::class, 'healthcheck']);
        Route::group([
            'prefix' => 'v1',
        ], function () {
            Route::get('/health', [OtherController::class, 'healthcheck']);
        });
        Route::post('/feedback', [OtherController::class, 'feedback'])
            ->middleware('throttle:feedback');
        // Route::get('/secret', [OtherController::class, 'x']);
        # Route::get('/secret', [OtherController::class, 'x']);
        /* Route::get('/secret', function () { */
        Route::group([
            'middleware' => ['auth:sanctum', 'api.token.team', 'api.ability:write'],
            'prefix' => 'v1',
        ], function () {
            Route::match(['get', 'post'], '/enable', [OtherController::class, 'enable_api']);
        });
        Route::group([
            'middleware' => ['auth:sanctum', ApiAllowed::class, 'api.sensitive'],
            'prefix' => 'v1',
        ], function () {
            Route::get('/teams', [Teams::class, 'teams'])->middleware(['api.ability:read']);
            Route::get('/teams/{id}', [Teams::class, 'by_id'])
                ->name('team')->middleware('api.ability:read')->where('id', '[0-9]+');
            Route::post("/teams/{id}/start", 'Team@start')->defaults('type', 'team')
                ->middleware(['api.ability:deploy']);
        });
        Route::prefix('v1')->middleware(['auth:sanctum', 'api.token.team'])->group(function () {
            Route::middleware([\App\Http\Middleware\ApiAbility::class . ':write:sensitive'])
                ->patch('/settings/email', [OtherController::class, 'email']);
        });
        Route::any('/{any}', function () {
            return response()->json(['message' => "Not {$found}", 'docs' => '}'], 404);
        })->where('any', '.*');
    """) == [
        row("GET", "/api/health", **PUBLIC),
        row("GET", "/api/v1/health", **PUBLIC),
        row("POST", "/api/feedback", **PUBLIC | {"throttle": "api+feedback"}),
        *(
            row(
                m,
                "/api/v1/enable",
                ability="write",
                auth="sanctum",
                team_member="yes",
                throttle="api",
            )
            for m in ("GET", "POST")
        ),
        row("GET", "/api/v1/teams", ability="read", **ORDINARY),
        row("GET", "/api/v1/teams/{id}", ability="read", **ORDINARY),
        row("POST", "/api/v1/teams/{id}/start", ability="deploy", **ORDINARY),
        row(
            "PATCH",
            "/api/v1/settings/email",
            ability="write:sensitive",
            auth="sanctum",
            team_member="yes",
            throttle="api",
        ),
    ]


@pytest.mark.parametrize("release", RELEASES)
def test_each_shipped_table_written_as_php_is_read_back_as_it_was(release: str):
    """Nothing of a whole release is lost or moved on the way through the reader."""
    rows = [r._replace(order="-") for r in released(release) if r.path != "/mcp"]
    assert read_rows(as_php(rows)) == rows


def as_php(rows: list[Row]) -> str:
    """A table as Coolify's file would say it: a group for each run of equal middleware."""
    text = ""
    for middleware, group in groupby(rows, key=_middleware):
        array = ", ".join(middleware)
        text += f"Route::group(['middleware' => [{array}]], function () {{\n"
        for r in group:
            text += (
                f"    Route::{r.method.lower()}('{r.path.removeprefix('/api')}', [C::class, 'a'])"
            )
            text += "" if r.ability == "-" else f"->middleware(['api.ability:{r.ability}'])"
            text += ";\n"
        text += "});\n"
    return text + "Route::fallback(fn () => abort(404));\n"


def _middleware(r: Row) -> tuple[str, ...]:
    said = {
        "'auth:sanctum'": r.auth == "sanctum",
        "'api.token.team'": r.team_member == "yes",
        "ApiAllowed::class": r.api_enabled_and_allowlist == "yes",
        "'api.sensitive'": r.sensitive_flag == "yes",
        "'throttle:feedback'": r.throttle == "api+feedback",
    }
    return tuple(name for name, is_said in said.items() if is_said)


def test_a_later_route_takes_the_place_of_an_earlier_one_with_the_same_path():
    """Laravel keeps one route for a method and path: the last, at the place of the first."""
    rows = read_rows("""
        Route::get('/a/{x}', 'A@b')->middleware('auth:sanctum', 'api.ability:read');
        Route::get('/a/b', 'A@c');
        Route::get('/a/{x}', 'A@b')->middleware('auth:sanctum', 'api.ability:root');
    """)
    assert [(r.path, r.ability) for r in rows] == [("/api/a/{x}", "root"), ("/api/a/b", "-")]


def test_an_optional_parameter_gives_two_rows():
    """The path with it and the path without it are both served."""
    rows = read_rows("Route::delete('/a/{x?}', 'A@b');")
    assert [r.path for r in rows] == ["/api/a", "/api/a/{x}"]


def test_escapes_in_strings_are_resolved():
    """Both kinds of quotes mean the path that PHP would see."""
    rows = read_rows(r"""
        Route::get("/\x61/\142/\u{63}", 'it\'s');
        Route::get('/d', "a \$b {\$c} \"");
    """)
    assert [r.path for r in rows] == ["/api/a/b/c", "/api/d"]


@pytest.mark.parametrize(
    ("body", "line", "message"),
    [
        (
            "Route::get('/a', 'b');\nif (isDev()) {\n  Route::get('/b', 'c');\n}",
            7,
            "--conditional include or leave-out",
        ),
        (
            "Route::get('/a', 'b');\nif (isDev()) {\n  Route::get('/b', 'c');\n}",
            8,
            "GET /api/b is inside the `if` of line 7",
        ),
        ("if (a()) Route::get('/b', 'c');", 6, "an `if` without braces"),
        ("if (a()):\nRoute::get('/b', 'c');\nendif;", 6, "an `if` without braces"),
        ("if (a()) {\n  Route::get('/b', 'c');", 8, "expected }"),
        ("if (! a()) {\n  return;\n}\nRoute::get('/b', 'c');", 7, "begins with return"),
        (
            "if (a()) {\n  Route::any('/{x}', 'a')->where('x', '.*');\n}",
            7,
            "a catch-all inside an `if`",
        ),
        ("require __DIR__.'/more.php';", 6, "begins with require"),
        ("Route::resource('a', A::class);", 6, "resource() is not understood"),
        ("Route::get('/a', 'b')\n  ->middleware('signed');", 7, "not understood: signed"),
        ("Route::get('/a', 'b')->middleware($extra);", 6, "a middleware that is no name"),
        ("Route::get('/a', 'b')->withoutMiddleware('x');", 6, "withoutmiddleware() is not"),
        ("Route::get('/a', 'b')->can('update', 'x');", 6, "can() is not understood"),
        ("Route::get($path, 'b');", 6, "not a plain string"),
        ("Route::get('/a'.$path, 'b');", 6, "not a plain string"),
        ('Route::get("/a/$b", "c");', 6, "not a plain string"),
        ("Route::get('/a/{b}.json', 'c');", 6, "a path that is not understood"),
        ("Route::get('/a/{b}', 'c')->where('b', '.*');", 6, "could match a slash"),
        ("Route::get('/a/{b}', 'c')->where('b', '[^x]+');", 6, "could match a slash"),
        ("Route::get('/a', 'b')->middleware('api.ability:admin');", 6, "not a permission: admin"),
        (
            "Route::get('/a', 'b')->middleware('ability:read, write');",
            6,
            "not a permission:  write",
        ),
        ("Route::get('/a', 'b')->middleware('ability:');", 6, "not a permission: "),
        ("Route::get('/a', 'b')->middleware('abilities:read,write');", 6, "needs read and write"),
        ("Route::get('/a', 'b')->middleware('throttle:0');", 6, "not understood: throttle:0"),
        ("Route::get('/a', 'b')->middleware('throttle:uploads');", 6, "not understood: throttle"),
        (
            (
                "use App\\Http\\Middleware\\OnlyRootApiToken;\n"
                "Route::get('/a', 'b')->middleware(['auth:sanctum', OnlyRootApiToken::class]);"
            ),
            7,
            "not understood: App\\Http\\Middleware\\OnlyRootApiToken",
        ),
        (
            "Route::get('/a', 'b')->middleware([IgnoreReadOnlyApiToken::class]);",
            6,
            "not understood: IgnoreReadOnlyApiToken",
        ),
        ("Route::get('/a', 'b')->middleware('api.ability:read');", 6, "but no token"),
        (
            (
                "Route::middleware(['auth:sanctum', 'api.ability:read'])->group(function () {\n"
                "  Route::get('/a', 'b')->middleware('api.ability:write');\n});"
            ),
            7,
            "needs read and write",
        ),
        ("Route::group(['domain' => 'x'], function () {});", 6, "domain() is not understood"),
        ("Route::prefix('v1')->group(base_path('routes/v1.php'));", 6, "not in a function(){}"),
        ("Route::prefix('a')->prefix('b')->group(function () {});", 6, "prefix() twice"),
        ("Route::prefix('a')->get('/b', 'c');", 6, "prefix() before a single route"),
        ("Other::get('/a', 'b');", 6, "Other is not Laravel's Route"),
        ("Route::pattern('id', '[0-9]+');", 6, "pattern() is not understood"),
        ("Route::get('/a', 'b')\nRoute::get('/c', 'd');", 7, "expected ;"),
        ("Route::match(['head'], '/a', 'b');", 6, "methods that are not understood"),
        ("Route::any('/{x}', 'a')->where('x', '.*');\nRoute::get('/b', 'c');", 7, "catch-all of"),
        ("Route::any('/{x}', 'a')->middleware('auth')->where('x', '.*');", 6, "catch-all with"),
        (
            (
                "Route::get('/a/{x}', 'b')->whereNumber('x');\n"
                "Route::get('/a/{y}', 'c')->middleware('auth:sanctum', 'api.ability:read');"
            ),
            6,
            "lets some of /api/a/{x} through to /api/a/{y} of line 7",
        ),
        ("Route::get('/a', 'b');\n}\nRoute::get('/c', 'd');", 7, "a } that closes nothing"),
        ("$x = <<<X\nRoute::get('/a', 'b');\nX;", 6, "a heredoc"),
        ("Route::get('/a', 'b\n", 6, "cannot read from"),
        ("Route::get('/a', 'b'); // ?> <b>\n", 6, "begins with ?>"),
        ("Route::get('/a', " + "[" * 3000 + "]" * 3000 + ");", 1, "nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_reported_by_line(body: str, line: int, message: str):
    """Each construct is named with its line; nothing is guessed."""
    found = [problem for problem in problems(body) if message in problem.message]
    assert [problem.line for problem in found] == [line], problems(body)


CONDITIONAL = """
    Route::group(['prefix' => 'v1', 'middleware' => ['auth:sanctum']], function () {
        if (Feature::enabled(['a' => '}'])) {
            Route::post('/internal/status', Status::class)->middleware('api.ability:write');
        } elseif ($other) {
            if (env('X')) {
                Route::get('/internal/x', 'X@a');
            }
        } else if (! $third) {
            Route::get('/internal/y', 'Y@a');
        } else {
            Route::get('/internal/z', 'Z@a');
        }
        Route::post('/push', 'P@a');
    });
    Route::fallback(fn () => abort(404));
"""
WITHIN = [
    (8, "POST", "/api/v1/internal/status"),
    (11, "GET", "/api/v1/internal/x"),
    (14, "GET", "/api/v1/internal/y"),
    (16, "GET", "/api/v1/internal/z"),
]


@pytest.mark.parametrize(
    ("conditional", "paths"),
    [
        ("include", [*(path for _, _, path in WITHIN), "/api/v1/push"]),
        ("leave-out", ["/api/v1/push"]),
    ],
)
def test_the_operator_says_what_becomes_of_routes_inside_an_if(
    conditional: Conditional, paths: list[str]
):
    """The file does not say whether they are there; which ones they are is told."""
    found = read(php(CONDITIONAL), conditional)
    assert found.problems == ()
    assert [row.path for row in found.rows] == paths
    assert [row.order for row in found.rows] == [str(n) for n in range(1, len(paths) + 1)]
    assert [tuple(within) for within in found.conditional] == WITHIN


def test_nothing_is_decided_about_an_if_unless_it_is_said():
    """Each `if` and each route in it is a problem of its own line."""
    assert [problem.line for problem in problems(CONDITIONAL)] == [7, 8, 11, 14, 16]


@pytest.mark.parametrize("conditional", ["include", "leave-out"])
@pytest.mark.parametrize(
    ("body", "line", "message"),
    [
        (
            (
                "if (x()) {\n  Route::get('/a/{b}', 'c');\n}\n"
                "Route::get('/a/b', 'c')->middleware('auth:sanctum', 'api.ability:root');"
            ),
            7,
            "/api/a/{b}, inside an `if`, may hide /api/a/b of line 9",
        ),
        (
            (
                "Route::get('/a', 'c')->middleware('auth:sanctum', 'api.ability:root');\n"
                "if (x()) {\n  Route::get('/a', 'd');\n}"
            ),
            8,
            "GET /api/a is at line 6, too",
        ),
        (
            "if (x()) {\n  Route::get('/a', 'd');\n} else {\n  Route::get('/a', 'd');\n}",
            9,
            "GET /api/a is at line 7, too",
        ),
    ],
)
def test_a_route_inside_an_if_that_changes_others_is_refused(
    body: str, line: int, message: str, conditional: Conditional
):
    """Included or left out, another row than Laravel's could decide."""
    (problem,) = read(php(body), conditional).problems
    assert problem.line == line
    assert message in problem.message


@pytest.mark.parametrize(
    ("middleware", "ability", "throttle"),
    [
        ("'api.ability:write,deploy'", "write,deploy", "api"),
        ("'ability:write'", "write", "api"),
        ("'ability:read,write,read'", "read,write", "api"),
        ("'abilities:deploy'", "deploy", "api"),
        (r"\Laravel\Sanctum\Http\Middleware\CheckForAnyAbility::class.':read'", "read", "api"),
        (r"\Laravel\Sanctum\Http\Middleware\CheckAbilities::class.':read'", "read", "api"),
        ("'throttle:5'", "-", "api+5/1m"),
        ("'throttle:120,1', 'throttle:api'", "-", "api+120/1m"),
        ("'throttle:feedback', 'throttle:10,60'", "-", "api+feedback+10/60m"),
    ],
)
def test_middleware_with_a_clear_meaning_is_read(middleware: str, ability: str, throttle: str):
    """A list of abilities, Sanctum's own middleware, and a limit in numbers."""
    (found,) = read_rows(f"Route::get('/a', 'b')->middleware(['auth:sanctum', {middleware}]);")
    assert (found.ability, found.throttle) == (ability, throttle)


def test_a_file_in_the_shape_of_the_later_betas_is_read():
    """A list of abilities, a limit in numbers around a group, and an `if` within a handler."""
    rows = read_rows("""
        Route::group([
            'middleware' => ['auth:sanctum', 'api.sensitive'],
            'prefix' => 'v1',
        ], function () {
            Route::match(['get', 'post'], '/deploy', [A::class, 'deploy'])
                ->middleware(['api.ability:write,deploy']);
        });
        Route::post('/v1/sentinel/push', function () {
            if (! request()->header('Authorization')) {
                return response()->json(['message' => 'no'], 401);
            }
            return response()->json(['message' => 'ok'], 200);
        });
        Route::middleware(['throttle:5'])->group(function () {
            Route::get('/unsubscribe/{token}', function () {
                try { return 'x'; } catch (\\Throwable $e) { return 'y'; }
            })->name('unsubscribe');
        });
        Route::any('/{any}', function () { return 1; })->where('any', '.*');
    """)
    assert [(r.method, r.path, r.ability, r.throttle) for r in rows] == [
        ("GET", "/api/v1/deploy", "write,deploy", "api"),
        ("POST", "/api/v1/deploy", "write,deploy", "api"),
        ("POST", "/api/v1/sentinel/push", "-", "api"),
        ("GET", "/api/unsubscribe/{token}", "-", "api+5/1m"),
    ]


def test_a_problem_spoils_its_own_statement_only():
    """All problems of a file are said at once, also those inside and after a group."""
    assert [
        problem.line
        for problem in problems("""
        Route::group(['prefix' => 'v1'], function () {
            Route::view('/a', 'b');
            Route::get('/c', 'd');
            foreach ($all as $one) { Route::get($one, 'x'); }
        });
        Route::redirect('/e', '/f');
    """)
    ] == [7, 9, 11]


FRAGMENTS = (
    *("'", '"', "\\", "{", "}", "(", ")", "[", "]", ";", "->", "::", "=>", ",", ".", "//", "/*"),
    *(
        "?>",
        "use",
        "as",
        "if",
        "else",
        "elseif",
        "function",
        "static",
        "fn",
        "array",
        "Route",
        "group",
        "get",
        "prefix",
    ),
    *("'/a'", "$x", "#[", "\n", "class", '"\\u{110000}"', "\0", "é"),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS)).map(" ".join))
def test_no_text_is_a_crash(text: str):
    """Whatever stands in the file is read or reported; a problem's line is in the file."""
    source = f"<?php\n{text}"
    for problem in read(source).problems:
        assert 1 <= problem.line <= source.count("\n") + 1


def test_a_file_that_is_no_php_is_refused():
    """A saved error page is not an empty route table."""
    assert read("<html></html>") == read("") == read("x")
    assert read("").problems == (ImportProblem(1, "the file does not begin with <?php"),)
