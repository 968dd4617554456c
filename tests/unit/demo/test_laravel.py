"""The stand-in routes as Laravel was seen to route (coolify-semantics, sections 9 and 10)."""

import pytest

from authsidecar.demo.laravel import BadRequestError, effective_method, php_name, route

FORM = "application/x-www-form-urlencoded"
MULTIPART = (
    b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    b'--x\r\nContent-Disposition: form-data; name="_method"\r\n\r\ndelete\r\n--x--\r\n'
)


@pytest.mark.parametrize(
    "target",
    [
        "/api/v1/teams",
        "/api/v1/teams/",
        "/api/v1/teams///",
        "/api/v1/teams?x=/api/v1/servers",
        "/api/v1/teams#x?y",
        "/api/v1/%74eams",
        "/%61pi/v1/teams",
        "/api%2Fv1%2Fteams",
        "/index.php/api/v1/teams",
        "/%69ndex.php/api/v1/teams",
        "/index%2Ephp/api/v1/teams",
        "/index.phpapi/v1/teams",
        "http://any.host/api/v1/teams",
        "HTTP://any.host:81/index.php/api/v1/teams?x",
    ],
)
def test_these_spellings_run_the_teams_route(target):
    """Front controller, query, fragment, trailing slashes and one decoding are seen through."""
    assert route("GET", target, {}).template == "/api/v1/teams"


@pytest.mark.parametrize(
    "target",
    [
        "//api/v1/teams",
        "/api//v1/teams",
        "/api/./v1/teams",
        "/x/../api/v1/teams",
        "/API/v1/teams",
        "/INDEX.PHP/api/v1/teams",
        "/api/v1/%2574eams",
        "/api/v1/teams%2F",
        "/api/v1/teams%0a",
        "/api;x/v1/teams",
        "/",
        "/index.php",
    ],
)
def test_these_spellings_run_no_route(target):
    """Nothing is normalised, and a path is decoded once only."""
    assert route("GET", target, {}).template is None


def test_an_encoded_slash_separates_segments():
    """So another template is run than the raw path shows."""
    raw = "/api/v1/servers/abc%2Fvalidate"
    assert route("POST", raw, {}).template == "/api/v1/servers/{uuid}/validate"


def test_the_first_match_in_order_wins():
    """A literal row that stands before a template is preferred."""
    assert route("GET", "/api/v1/teams/current", {}).template == "/api/v1/teams/current"
    assert route("GET", "/api/v1/teams/7", {}).template == "/api/v1/teams/{id}"


def test_head_runs_the_get_route():
    """HEAD has no rows of its own."""
    assert route("HEAD", "/api/v1/teams", {}).template == "/api/v1/teams"


@pytest.mark.parametrize(
    ("query", "headers", "body"),
    [
        ("", {"x-http-method-override": "DELETE"}, b""),
        ("", {"x-http-method-override": "delete"}, b""),
        ("", {"x-http-method-override": "0"}, b"_method=DELETE"),
        ("?_method=DELETE", {}, b""),
        ("?a=1&_method=GET&_method=delete", {}, b""),
        ("?%5fmethod=DELETE", {}, b""),
        ("?.method=DELETE", {}, b""),
        ("?%20_method=DELETE", {}, b""),
        ("?+_method=DELETE", {}, b""),
        ("?_method%00x=DELETE", {}, b""),
        ("?_method=GET", {}, b"_method=DELETE"),
        ("", {"content-type": "multipart/form-data; boundary=x"}, MULTIPART),
        ("", {"content-type": "application/json"}, b'{"\\u005fmethod": "delete"}'),
        ("", {"content-type": "application/vnd.x+json; charset=utf-8"}, b'{"_method":"DELETE"}'),
    ],
)
def test_a_post_can_become_a_delete(query, headers, body):
    """By header, query, form, multipart and JSON, in every spelling that PHP folds."""
    headers = {"content-type": FORM} | headers
    assert effective_method("POST", f"/api/v1/x{query}", headers, body) == "DELETE"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_only_a_post_can_be_overridden(method):
    """Every other method stays what it is."""
    headers = {"x-http-method-override": "POST"}
    assert effective_method(method, "/x?_method=POST", headers, b"") == method


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "text/plain"}, b"_method=DELETE"),
        ({"content-type": "application/json"}, b"[1]"),
        ({"content-type": "application/json"}, b"{broken"),
        ({}, b"_method=DELETE"),
        ({"content-type": FORM}, b"method=DELETE&__method=DELETE"),
    ],
)
def test_a_body_that_names_no_method_changes_nothing(headers, body):
    """Other types, other shapes and other names are no override."""
    assert effective_method("POST", "/x", headers, body) == "POST"


def test_an_override_that_is_no_word_is_a_bad_request():
    """Symfony refuses it with 400."""
    with pytest.raises(BadRequestError):
        effective_method("POST", "/x", {"x-http-method-override": "DE LETE"}, b"")


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        *(("_method", "_method"), ("a.b c", "a_b_c"), ("  x", "x"), ("x\0y", "x")),
        *(("_method[a]", "_method"), ("_method[", "_method_"), ("_method[a", "_method_a")),
    ],
)
def test_names_fold_as_in_php(name, folded):
    """Blanks and dots become underscores; a NUL ends the name."""
    assert php_name(name) == folded
