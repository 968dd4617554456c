"""Which resources a request names, on every row of every release line, and by any spelling."""

from collections.abc import Sequence

import pytest

from authsidecar.decision import resources
from authsidecar.decision.model import Place, ResourceKind, TeamId
from authsidecar.decision.resources import (
    LONGEST_NAME,
    NOTHING,
    NOUNS,
    Named,
    Names,
    environment_key,
    found,
    named,
)
from authsidecar.decision.routes import RELEASES, Guard, Route, coolify
from authsidecar.decision.routes.naming import DEPLOYABLE, Naming, Parameter, naming, rows
from authsidecar.decision.routes.table import is_parameter

ROWS = [(release, route) for release in sorted(RELEASES) for route in coolify(release)]
TEMPLATES = sorted({route.template for _, route in ROWS})
BEHIND = {
    "servers": ResourceKind.SERVER,
    "projects": ResourceKind.PROJECT,
    "applications": ResourceKind.APPLICATION,
    "databases": ResourceKind.DATABASE,
    "services": ResourceKind.SERVICE,
}


def one(kind: ResourceKind, text: str, project: str | None = None) -> Named:
    return Named(frozenset({kind}), text, project)


def ask(path: str, query: str = "", method: str = "GET") -> Names:
    """What a request to a route of 4.3 names."""
    route = coolify("4.3").find(method, path)
    assert route is not None
    return named(route, path, f"{path}?{query}".encode())


def test_the_data_has_every_template_of_every_release_line_and_no_other() -> None:
    """With each of its parameters, in order: what is new in a table must be judged by a person."""
    assert sorted(rows()) == TEMPLATES
    for template, row in rows().items():
        listed = [part.partition("=")[0] for part in row["parameters"].split(" ") if part != "-"]
        assert listed == [s[1:-1] for s in template.split("/") if is_parameter(s)], template


def test_what_stands_behind_a_noun_is_one() -> None:
    """On each template; what is not named lies within what is, or belongs to the team."""
    for template in TEMPLATES:
        segments = template.split("/")
        for at, name, kind in naming(template).parameters:
            before = segments[at - 1]
            within_service = segments[3] == "services" and at > 4
            if before in BEHIND and not within_service:
                assert kind is BEHIND[before], template
            elif within_service and before in {"applications", "databases"}:
                assert kind is not None, template
                assert kind.startswith("service-"), template
            elif name == "environment_name_or_uuid":
                assert kind is ResourceKind.ENVIRONMENT, template
            elif segments[3] == "deployments":
                assert kind is ResourceKind.DEPLOYMENT, template
            else:
                assert kind is None, template


def test_collections_creations_and_what_is_the_teams_name_nothing() -> None:
    """Keys, tokens, storages, GitHub apps, MCP."""
    nothing = {t for t in TEMPLATES if not naming(t).judged}

    assert {"/api/v1/applications", "/api/v1/services", "/mcp", "/api/v1/servers"} <= nothing
    assert {"/api/v1/security/keys/{uuid}", "/api/v1/teams/{id}", "/api/v1/tags/{uuid}"} <= nothing
    assert {"/api/v1/deployments", "/api/v1/applications/public", "/api/v1/resources"} <= nothing
    assert not any(t.split("/")[-1].startswith("{") and "/servers/" in t for t in nothing)


def test_only_deploy_names_by_its_query() -> None:
    """Of all templates."""
    assert [t for t in TEMPLATES if naming(t).deploys] == ["/api/v1/deploy"]


def test_the_data_has_the_bodies_that_name_where_something_is_put() -> None:
    """Every creation in the tree and every move of every release line.

    A clone, a migration and another destination name a destination, which is refused as any key
    that the data does not have.
    """
    tree = {f"/api/v1/{noun}" for noun in ("applications", "databases", "services")}
    for _, route in ROWS:
        template = route.template
        above, _, last = template.rpartition("/")
        creates = route.method == "POST" and (above in tree or template == "/api/v1/services")
        body = naming(template).body
        if creates and not is_parameter(last) and template != "/api/v1/deploy":
            assert {"project_uuid", "environment_name", "server_uuid"} <= body.keys(), template
            assert naming(template).creates, template
        elif last == "move":
            assert {"environment_uuid", "environment_name", "project_uuid"} == body.keys()
        elif last in {"clone", "migrate", "destinations"}:
            assert not body, template
    for template in rows():
        what = naming(template)
        names = {one.name for one in what.parameters}
        assert not names & what.body.keys(), template
        assert what.creates or all(what.body.values()), template
    assert naming("/api/v1/services/{uuid}/storages").body["resource_uuid"] == {
        ResourceKind.SERVICE_APPLICATION,
        ResourceKind.SERVICE_DATABASE,
    }


def test_a_template_that_nobody_knows_is_only_guessed() -> None:
    """An operator's own row: team isolation judges it as before, a restriction refuses it."""
    what = naming("/api/v1/servers/{server}/reboot/{how}")

    guess = (Parameter(4, "server", ResourceKind.SERVER), Parameter(6, "how", None))
    assert what == Naming(guess, known=False)
    assert not naming("/api/v1/others/{server}").judged


def test_a_path_names_all_of_its_resources() -> None:
    """From the outside in; an environment is looked for in its project."""
    assert ask("/api/v1/services/s/applications/a/logs").resources == (
        one(ResourceKind.SERVICE, "s"),
        one(ResourceKind.SERVICE_APPLICATION, "a"),
    )
    assert ask("/api/v1/projects/p/prod").resources == (
        one(ResourceKind.PROJECT, "p"),
        one(ResourceKind.ENVIRONMENT, "prod", "p"),
    )
    assert ask("/api/v1/projects/p/prod").keys == ("p", environment_key("p", "prod"), "prod")
    assert ask("/api/v1/applications/a/envs/e", method="DELETE").keys == ("a",)
    assert ask("/api/v1/deployments/d").resources == (one(ResourceKind.DEPLOYMENT, "d"),)
    assert ask("/api/v1/applications") == NOTHING


OTHERWISE = "a key of the query stands for the path's uuid and says something else"
ANOTHER = "a key of the query may name another resource"

SPELLINGS = (
    "uuid=b",
    "u%75id=b",
    "%75%75%69%64=b",
    "%20uuid=b",
    "+uuid=b",
    "uuid[]=b",
    "uuid%5B%5D=b",
    "uuid[x]=b",
    "uuid%00x=b",
    "uuid",
    "uuid=",
    "uuid=a&uuid=b",
    "uuid=b&uuid=a",
    "x=1;uuid=b",
    "uuid=a;x=1",
    "&&uuid=b",
    "uuid=a%20",
    "uuid=+a",
    "uuid=a%00",
    "uuid=A",
    "uuid[]=a",
    "uuid[x][y=a",
    "uuid%00x%00y=b",
    "uuid=a=b",
    "uuid=%ff",
    "uuid=" + "x" * 256,
)


@pytest.mark.parametrize("query", SPELLINGS)
def test_a_key_that_says_something_else_is_unclear(query: str) -> None:
    """However PHP lets it be spelled, and whatever trimming would make of it."""
    for more in (query, f"lines=1&{query}&lines=1", f"{query}&server_uuid=s"):
        assert ask("/api/v1/applications/a", more).unclear == OTHERWISE


@pytest.mark.parametrize("query", ["uuid=a", "u%75id=a", "uuid=a&uuid=a", "+uuid=a", "lines=100"])
def test_a_key_that_says_the_same_is_clear(query: str) -> None:
    """In any spelling that PHP makes the same of."""
    assert ask("/api/v1/applications/a", query).unclear is None


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/api/v1/projects/p/prod", "environment_name_or_uuid=dev"),
        ("/api/v1/projects/p/prod", "environment.name or_uuid=dev"),
        ("/api/v1/projects/p/prod", "environment[name_or_uuid=dev"),
        ("/api/v1/applications/a/scheduled-tasks/t/executions", "task_uuid=b"),
        ("/api/v1/services/s/applications/a/logs", "app.uuid=b"),
    ],
)
def test_every_parameter_of_a_path_can_be_replaced(path: str, query: str) -> None:
    """Not the first alone; `.`, a blank and an open bracket are `_`."""
    name = {"a": "app_uuid", "e": "environment_name_or_uuid", "t": "task_uuid"}[query[0]]
    assert ask(path, query.replace(" ", "%20")).unclear == OTHERWISE.replace("uuid", name)


@pytest.mark.parametrize(
    "key",
    [
        *("project_uuid", "environment_uuid", "environment_name", "server_uuid", "tags", "id"),
        *("destination_uuid", "destination", "resource_uuid", "s3_storage_uuid"),
        *("private_key_uuid", "github_app_id", "environment[name]", "server.uuid", "PROJECT_UUID"),
        *("uuid+", "%09uuid", "Xuuid", "docker_tag[uuid]", "lines[uuid"),
    ],
)
def test_a_key_that_may_name_another_resource_is_unclear(key: str) -> None:
    """A query is input on every method: POST /move?environment_uuid= moves."""
    for query in (f"{key}=b", f"lines=1&{key}=b", f"{key}=b&lines=1", f"lines=1;{key}=b"):
        assert ask("/api/v1/applications/a/move", query, "POST").unclear == ANOTHER


@pytest.mark.parametrize("key", ["force", "lines", "skip", "take", "docker_tag", "pull_request_id"])
def test_other_keys_are_clear(key: str) -> None:
    """They name nothing."""
    assert ask("/api/v1/applications/a", f"{key}=1").unclear is None


def test_deploy_names_what_its_query_says() -> None:
    """Each uuid of the list, each tag; of two equal keys both, though the last one wins."""
    names = ask("/api/v1/deploy", "uuid=a,b&uuid=c&force=true&docker_tag=x", "POST")
    assert names.resources == tuple(Named(DEPLOYABLE, text) for text in "abc")
    assert (names.keys, names.unclear) == (("a", "b", "c"), None)
    assert ask("/api/v1/deploy", "tag=shop,blog", "POST") == Names(tags=("shop", "blog"))
    assert ask("/api/v1/deploy", "", "POST") == NOTHING
    assert ask("/api/v1/deploy", "uuid=", "POST") == NOTHING
    assert ask("/api/v1/deploy", "force[]=true&lines[0]=5", "POST") == NOTHING


READ_AS = "a key of the query may be read as uuid or tag"
NO_UUIDS = "the query's uuid is no list of uuids with commas between them"
NO_TAGS = "the query's tag is no list of tags with commas between them"


@pytest.mark.parametrize(
    ("query", "uuids", "tags", "why"),
    [
        ("uuid[]=a", "a", (), READ_AS),
        ("uuid[0]=a&force=1", "a", (), READ_AS),
        ("server_uuid=s&uuid[]=a", "a", (), READ_AS),
        ("uuid=a,+b", ("a", " b"), (), NO_UUIDS),
        ("uuid=a%00", ("a\0",), (), NO_UUIDS),
        ("uuid=a&uuid=b+&tag=x", ("a", "b "), ("x",), NO_UUIDS),
        ("uuid=a," + "x" * 256, "a", (), NO_UUIDS),
        ("tag[]=x", (), ("x",), READ_AS),
        ("tag=x,+y", (), ("x", " y"), NO_TAGS),
        ("tag=x,y+&force=1", (), ("x", "y "), NO_TAGS),
        ("tag=x%07y", (), ("x\ay",), NO_TAGS),
        ("uuids=a", (), (), ANOTHER),
        ("uuids=a&uuid=b&force=1", "b", (), ANOTHER),
        ("force=1&tags=x", (), (), ANOTHER),
    ],
)
def test_what_deploy_may_read_in_two_ways_is_unclear(
    query: str, uuids: Sequence[str], tags: tuple[str, ...], why: str
) -> None:
    """Arrays, blanks in a list, keys of nearly the same name."""
    targets = tuple(Named(DEPLOYABLE, text) for text in uuids)
    found = ask("/api/v1/deploy", query, "POST")
    assert found == Names(targets, tags=tags, unclear=why, keys=tuple(uuids))


def test_deploy_names_each_once() -> None:
    """However often the query does, in its order; what is empty between commas is nothing."""
    found = ask("/api/v1/deploy", "uuid=b,,a&tag=y,x,&uuid=a,c&tag=x y,y", "POST")
    targets = tuple(Named(DEPLOYABLE, text) for text in "bac")
    assert found == Names(targets, tags=("y", "x", "x y"), keys=("b", "a", "c"))


def test_what_stands_for_a_project_moves_its_environment() -> None:
    """What is named in its place is found within it; what the path names is not named again."""
    for query in ("uuid=q", "uuid=q&uuid=p&environment_name_or_uuid=prod", "uuid=q&uuid=q"):
        assert ask("/api/v1/projects/p/prod", query) == Names(
            (one(ResourceKind.PROJECT, "p"), one(ResourceKind.ENVIRONMENT, "prod", "p")),
            (one(ResourceKind.PROJECT, "q"), one(ResourceKind.ENVIRONMENT, "prod", "q")),
            unclear=OTHERWISE,
            keys=("p", "p/prod", "prod", "q", "q/prod"),
        )


@pytest.mark.parametrize(
    ("query", "others"),
    [
        ("uuid=b%00", "b\0"),
        ("uuid=a=b", "a=b"),
        ("uuid=%ff", "\ufffd"),
        ("uuid=b+c%2B", "b c+"),
        ("uuid=", None),
        ("uuid=" + "x" * 256, None),
        ("uuid=" + "x" * 255, "x" * 255),
    ],
)
def test_what_stands_for_a_parameter_is_decoded_as_php_does(query: str, others: str | None) -> None:
    """What is nobody's uuid is looked for nowhere."""
    found = ask("/api/v1/applications/a/envs/e", query, method="DELETE")
    named_too = () if others is None else (one(ResourceKind.APPLICATION, others),)
    assert found.others == named_too
    assert found.unclear == OTHERWISE


def test_what_a_query_names_in_place_of_the_path_is_told() -> None:
    """So that team isolation judges it too, in any spelling."""
    for spelling in ("uuid=b", "u%75id=b", "uuid[]=b", "uuid=%20b%20", "x=1;uuid=b"):
        names = ask("/api/v1/applications/a", spelling)
        assert names.resources == (one(ResourceKind.APPLICATION, "a"),)
        assert one(ResourceKind.APPLICATION, "b") in names.others, spelling


TOO_LONG = "a part of the path is too long for a name"


def test_a_text_that_is_too_long_is_nobodys_uuid() -> None:
    """So nothing that long is ever looked up or kept."""
    route = Route("GET", "/api/v1/servers/{uuid}", Guard.ORDINARY)
    path = "/api/v1/servers/"
    text = "x" * LONGEST_NAME
    assert named(route, path + text, b"") == Names((one(ResourceKind.SERVER, text),), keys=(text,))
    for nobodys in (text + "x", ""):
        for target in (b"", b"/?lines=1", b"/?server_uuid=s"):
            assert named(route, path + nobodys, target) == Names(unclear=TOO_LONG)
    prod = one(ResourceKind.ENVIRONMENT, "prod")
    found = ask(f"/api/v1/projects/{text}x/prod")
    assert found == Names((prod,), unclear=TOO_LONG, keys=("prod",))
    app = one(ResourceKind.APPLICATION, "a")
    found = ask(f"/api/v1/applications/a/envs/{text}x", method="DELETE")  # is looked for in it
    assert found == Names((app,), keys=("a",))


@pytest.mark.parametrize(
    ("path", "target", "kept"), [(256, 256, 1), (257, 256, 0), (256, 257, 0), (257, 257, 0)]
)
def test_only_a_short_request_is_remembered(path: int, target: int, kept: int) -> None:
    """By path and by target, so that nobody fills the memory; it is judged all the same."""
    resources._remembered.cache_clear()
    route = Route("GET", "/api/v1/deploy", Guard.ORDINARY)
    found = named(route, "/" * path, b"/?uuid=a&x=".ljust(target, b"x"))
    assert found.resources == (Named(DEPLOYABLE, "a"),)
    assert resources._remembered.cache_info().currsize == kept


def test_every_kind_has_a_noun() -> None:
    """For the 404 that names it."""
    assert set(NOUNS) == set(ResourceKind)
    assert Named(DEPLOYABLE, "x").noun == "Resource"


APP = Place(TeamId(1), ResourceKind.APPLICATION, "p", "e", "prod")
PROD = Place(TeamId(1), ResourceKind.ENVIRONMENT, "p", "e", "prod")
DEV = Place(TeamId(1), ResourceKind.ENVIRONMENT, "p", "prod", "dev")


def test_something_of_another_kind_is_not_found() -> None:
    """A uuid is unique in its table alone."""
    assert found(one(ResourceKind.APPLICATION, "a"), {"a": APP}) is APP
    assert found(one(ResourceKind.DATABASE, "a"), {"a": APP}) is None
    assert found(one(ResourceKind.APPLICATION, "a"), {"a": None}) is None
    assert found(one(ResourceKind.APPLICATION, "a"), {"a": Place(TeamId(1))}) is None


def test_an_environment_is_found_by_name_or_uuid_within_its_project() -> None:
    """Where a name is another one's uuid, it is not known which is meant."""
    by_name, by_uuid = environment_key("p", "prod"), "e"
    assert found(one(ResourceKind.ENVIRONMENT, "prod", "p"), {by_name: PROD}) == PROD
    assert found(one(ResourceKind.ENVIRONMENT, "e", "p"), {by_uuid: PROD}) == PROD
    assert found(one(ResourceKind.ENVIRONMENT, "e", "q"), {by_uuid: PROD}) is None
    both = {by_name: PROD, "prod": DEV}
    assert found(one(ResourceKind.ENVIRONMENT, "prod", "p"), both) is None
