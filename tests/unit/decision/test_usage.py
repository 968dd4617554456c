"""What a request has used, as texts that can be kept and read again."""

import re

import pytest

from authsidecar.decision import usage
from authsidecar.decision.model import ResourceKind
from authsidecar.decision.resources import MOST_NAMED
from authsidecar.decision.routes import Guard
from authsidecar.decision.routes.naming import rows
from authsidecar.decision.usage import (
    LONGEST,
    Used,
    _used,
    application,
    deployment,
    names_of,
    unnamed,
    used,
)

LONG = "s" * (LONGEST - len("=server/"))
UUIDS = [f"a{n}" for n in range(MOST_NAMED)]
DEPLOYED = tuple(f"=deploy/{uuid}" for uuid in UUIDS)


@pytest.mark.parametrize(
    ("template", "path", "query", "expected"),
    [
        ("/api/v1/teams", "/api/v1/teams", "uuid=1", ()),
        ("/api/v1/servers/{uuid}", "/api/v1/servers/s", "", ("=server/s",)),
        ("/api/v1/servers/{uuid}", "/api/v1/servers/s", "u%75id=x", ("?query",)),
        ("/api/v1/servers/{uuid}", f"/api/v1/servers/{LONG}", "", (f"=server/{LONG}",)),
        ("/api/v1/servers/{uuid}", f"/api/v1/servers/{LONG}", "lines=5", (f"=server/{LONG}",)),
        ("/api/v1/servers/{uuid}", f"/api/v1/servers/{LONG}s", "", ("?query",)),
        ("/api/v1/servers/{uuid}", f"/api/v1/servers/{LONG}s", "lines=5", ("?query",)),
        ("/api/v1/servers/{uuid}", f"/api/v1/servers/{'s' * 200}", "", ("?query",)),
        ("/api/v1/servers/{uuid}", f"/api/v1/servers/{'s' * 300}", "", ("?query",)),
        ("/api/v1/servers/{uuid}", "/api/v1/servers/a\nb", "", ("?query",)),
        ("/api/v1/deploy", "/api/v1/deploy", "", ("?query",)),
        (
            *("/api/v1/deploy", "/api/v1/deploy", "uuid=a,b&tag=blue/x"),
            ("=deploy/a", "=deploy/b", "=tag/blue/x"),
        ),
        ("/api/v1/deploy", "/api/v1/deploy", f"uuid={','.join(UUIDS)}", DEPLOYED),
        ("/api/v1/deploy", "/api/v1/deploy", f"uuid={','.join(UUIDS)},b", ("?query",)),
        (
            "/api/v1/projects/{uuid}/{environment_name_or_uuid}",
            *("/api/v1/projects/p/a b", "", ("=project/p/environment/a b",)),
        ),
        (
            "/api/v1/services/{uuid}/applications/{app_uuid}/logs",
            *("/api/v1/services/s/applications/a/logs", "lines=5"),
            ("=service/s/service-application/a",),
        ),
        ("/api/v1/own/{uuid}/x", "/api/v1/own/o/x", "", ()),
    ],
)
def test_what_a_request_has_used(
    template: str, path: str, query: str, expected: tuple[str, ...]
) -> None:
    """In texts that say the same again; a body that can't be seen says nothing."""
    found = used("HEAD", template, path, f"{path}?{query}".encode(errors="replace"))
    assert found == Used(f"GET {template}", expected)
    body = used("PATCH", template, path, b"/", body=True)
    assert body == Used(f"PATCH {template}", ("?body",))
    for text in expected:
        if text[0] == "=":
            read_again = names_of(text)
            assert read_again is not None
            _, names = read_again
            last = [*(one.text for one in names.resources), *names.tags][-1]
            assert text.endswith(f"/{last}")


@pytest.mark.parametrize(
    ("method", "template", "names"),
    [
        ("POST", "/api/v1/applications/public", ("?body",)),
        ("POST", "/api/v1/services", ("?body",)),
        ("GET", "/api/v1/services", ()),
        ("HEAD", "/api/v1/services", ()),
    ],
)
def test_a_creation_says_where_by_its_body(
    method: str, template: str, names: tuple[str, ...]
) -> None:
    """Whether it sends one that can be seen or not; the list under the same template names none."""
    route = f"{'GET' if method == 'HEAD' else method} {template}"
    for target in (template.encode(), template.encode() + b"?x=1"):
        assert used(method, template, template, target) == Used(route, names)


@pytest.mark.parametrize(
    ("path", "target", "kept"), [(256, 256, 1), (257, 256, 0), (256, 257, 0), (257, 257, 0)]
)
def test_only_a_short_request_is_remembered(path: int, target: int, kept: int) -> None:
    """By path and by target, so that nobody fills the memory."""
    usage._remembered.cache_clear()
    used("GET", "/api/v1/deploy", "/" * path, b"?".ljust(target, b"x"))
    assert usage._remembered.cache_info().currsize == kept


@pytest.mark.parametrize("text", ["=", "=x/y", "=application", "=project/p/environment", "=//"])
def test_what_is_no_such_text_names_nothing(text: str) -> None:
    """Of a newer release, say."""
    assert names_of(text) is None


@pytest.mark.parametrize("name", ["abc", "a" * 155, "x\u202ey", "prüfung"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
def test_the_short_way_says_what_the_long_one_says(method: str, name: str) -> None:
    """Of every template, with and without a query or a body."""
    for template in rows():
        path = re.sub(r"\{\w+\}", name, template)
        for query, body in ((b"", False), (b"?uuid=abc", False), (b"", True)):
            asked = (method, template, path, path.encode() + query)
            assert used(*asked, body=body) == _used(*asked, body)


def test_a_text_names_what_it_names_within_what_it_says() -> None:
    """With the route whose path would name it, and by what it is found."""
    found = names_of("=project/p/environment/prod")
    assert found is not None
    route, names = found
    assert (route.method, route.guard) == ("GET", Guard.ORDINARY)
    assert route.template.startswith("/api/v1/projects/{uuid}/")
    assert "{environment_name_or_uuid}" in route.template
    project, environment = names.resources
    assert (project.kinds, project.text, project.project) == ({ResourceKind.PROJECT}, "p", None)
    assert (environment.kinds, environment.text) == ({ResourceKind.ENVIRONMENT}, "prod")
    assert environment.project == "p"
    assert names.keys == ("p", "p/prod", "prod")


def test_a_part_of_a_service_is_looked_for_by_its_uuid_alone() -> None:
    """Only an environment is named within a project."""
    found = names_of("=service/s/service-application/a")
    assert found is not None
    service, part = found[1].resources
    assert (service.kinds, service.text, service.project) == ({ResourceKind.SERVICE}, "s", None)
    assert (part.kinds, part.text) == ({ResourceKind.SERVICE_APPLICATION}, "a")
    assert part.project is None
    assert found[1].keys == ("s", "a")


@pytest.mark.parametrize(
    ("text", "resources", "tags", "keys"),
    [("=deploy/a", ("a",), (), ("a",)), ("=tag/blue/x", (), ("blue/x",), ())],
)
def test_what_was_deployed_is_named_by_that_route(text: str, resources, tags, keys) -> None:
    """By uuid or by tag."""
    found = names_of(text)
    assert found is not None
    route, names = found
    assert route.template == "/api/v1/deploy"
    assert (tuple(one.text for one in names.resources), names.tags) == (resources, tags)
    assert names.keys == keys


def test_a_deployment_s_text_gives_its_uuid() -> None:
    """And an application's none; without names, a route is left."""
    assert deployment("=deployment/d1") == "d1"
    assert deployment("=application/d1") is None
    assert application("a1") == "=application/a1"
    assert unnamed("HEAD", "/api/v1/teams") == Used("GET /api/v1/teams")
    assert unnamed("POST", "/api/v1/deploy") == Used("POST /api/v1/deploy")
