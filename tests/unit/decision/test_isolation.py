"""Which resource a path names, on every row of every release line."""

import pytest

from authsidecar.decision.isolation import LONGEST_UUID, NOUNS, Resource, named
from authsidecar.decision.routes import RELEASES, Guard, Route, coolify
from authsidecar.decision.routes.table import is_parameter

ROWS = [(release, route) for release in sorted(RELEASES) for route in coolify(release)]


def filled(route: Route) -> str:
    """A path for the row: `first` for its first parameter, `other` for the others."""
    path = ""
    for segment in route.segments:
        text = "other" if "/first" in path else "first"
        path += f"/{text if is_parameter(segment) else segment}"
    return path


@pytest.mark.parametrize("noun", NOUNS)
def test_every_route_below_a_noun_names_its_resource(noun: str) -> None:
    """The first parameter, on whatever release line and however much follows."""
    below = [r for _, r in ROWS if r.template.startswith(f"/api/v1/{noun}/{{")]

    assert len(below) >= 10
    for route in below:
        assert named(route, filled(route)) == Resource(NOUNS[noun], "first")


def test_deployments_of_an_application_name_it() -> None:
    """The noun is what stands right before the parameter."""
    route = Route("GET", "/api/v1/deployments/applications/{uuid}", Guard.ORDINARY)
    assert named(route, "/api/v1/deployments/applications/x") == Resource("Application", "x")


def test_every_other_route_names_none() -> None:
    """Keys, teams, deployments, and lists without a parameter."""
    others = [
        route
        for _, route in ROWS
        if not any(f"/{noun}/{{" in route.template.partition("}")[0] for noun in NOUNS)
    ]

    assert len(others) > 100
    assert {named(route, filled(route)) for route in others} == {None}


def test_a_text_that_is_too_long_is_nobodys_uuid() -> None:
    """So nothing that long is ever looked up or kept."""
    route = Route("GET", "/api/v1/servers/{uuid}", Guard.ORDINARY)
    assert named(route, "/api/v1/servers/" + "x" * LONGEST_UUID) is not None
    assert named(route, "/api/v1/servers/" + "x" * (LONGEST_UUID + 1)) is None
