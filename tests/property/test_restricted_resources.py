"""A restriction to resources against an independent model: random trees, routes and requests.

The model walks a tree of its own, and reads a query by the demo's Laravel. Where PHP may read a
query in a way that the sidecar is not sure of, it refuses: then only "none wider" is held.
"""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest

from authsidecar.decision import bodies
from authsidecar.decision.authorize import Charged, Claim, Rules, authorize
from authsidecar.decision.bodies import Body
from authsidecar.decision.model import (
    AccessRequest,
    Allow,
    Credential,
    Deny,
    Place,
    Proxy,
    ResourceKind,
    TeamId,
    TokenId,
    TokenRecord,
)
from authsidecar.decision.policy import Instance, Policy
from authsidecar.decision.restrictions import parse
from authsidecar.decision.routes import Guard, Route, coolify
from authsidecar.decision.routes.naming import naming
from authsidecar.decision.routes.table import is_parameter
from authsidecar.demo.laravel import form_fields
from tests.support.cases import NOW, OPEN, record

LINES = ("4.0", "4.1", "4.3")
TREES = 24
REQUESTS = 300
"""For each tree and release line: 24 * 3 * 300 = 21,600 decisions."""

EACH = 10
"""How many requests are made with the same restriction."""

BEHIND = {
    "servers": "server",
    "projects": "project",
    "applications": "application",
    "databases": "database",
    "services": "service",
    "deployments": "deployment",
}


@dataclass(eq=False)
class Node:
    """One resource of the model's own tree."""

    kind: str
    uuid: str
    name: str = ""
    above: "Node | None" = None

    def line(self) -> Iterator["Node"]:
        """Itself and what is around it."""
        here: Node | None = self
        while here is not None:
            yield here
            here = here.above

    def place(self) -> Place:
        """What the sync would say of it."""
        around = {one.kind: one for one in self.line()}
        project, environment = around.get("project"), around.get("environment")
        within = self.above.uuid if self.kind in {*PARTS, "deployment"} and self.above else ""
        return Place(
            TeamId(3),
            ResourceKind(self.kind),
            project.uuid if project else "",
            environment.uuid if environment else "",
            environment.name if environment else "",
            within,
        )


PARTS = ("service-application", "service-database")


@dataclass
class World:
    """A tree, and the store that a decision asks."""

    nodes: list[Node]
    held: TokenRecord = field(default_factory=record)
    places: dict[str, Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.places = {one.uuid: one.place() for one in self.nodes}
        for one in self.of("environment"):
            assert one.above is not None
            self.places[f"{one.above.uuid}/{one.name}"] = one.place()

    def of(self, *kinds: str) -> list[Node]:
        return [node for node in self.nodes if node.kind in kinds]

    def find(self, kinds: tuple[str, ...], text: str, within: Node | None = None) -> Node | None:
        """What Coolify would find, by uuid, or an environment by its name first."""
        found = self.of(*kinds)
        if kinds == ("environment",):
            found = [one for one in found if one.above is within]
            if named := [one for one in found if one.name == text]:
                return named[0]
        return next((one for one in found if one.uuid == text), None)

    def now(self) -> Any:
        return NOW

    def current(self) -> Instance:
        return OPEN

    def known(self, credential: Credential) -> TokenRecord:
        return self.held

    async def charge(self, claim: Claim, *, repeat_key: bytes | None) -> Charged:
        return Charged(True, (), NOW)

    def held_places(self, keys: tuple[str, ...]) -> Mapping[str, Any]:
        return {key: self.places.get(key) for key in keys}


def grown(dice: random.Random) -> World:
    """A random tree; some environments have the same name, or another one's uuid for a name."""
    nodes: list[Node] = []

    def new(kind: str, above: Node | None = None, name: str = "") -> Node:
        nodes.append(Node(kind, f"{kind[:3]}{len(nodes)}", name, above))
        return nodes[-1]

    for _ in range(dice.randint(1, 3)):
        project = new("project")
        for name in dice.sample(["production", "staging", "prüfung #1", "a b"], dice.randint(1, 3)):
            environment = new("environment", project, name)
            for kind in ("application", "database", "service"):
                for _ in range(dice.randint(0, 2)):
                    one = new(kind, environment)
                    if kind == "service":
                        new(dice.choice(PARTS), one)
                    if kind == "application" and dice.random() < 0.5:
                        new("deployment", one)
    new("server")
    new("server")
    return World(nodes)


def restricted(dice: random.Random, world: World, routes: list[Route]) -> dict[str, Any]:
    """A random restriction, by what there is and by what there is not."""
    given: dict[str, Any] = {}
    if dice.random() < 0.4:
        given["projects"] = [dice.choice(world.of("project")).uuid]
    if dice.random() < 0.4:
        one = dice.choice(world.of("environment"))
        assert one.above is not None
        given["environments"] = [f"{one.above.uuid}/{dice.choice([one.name, one.uuid])}"]
    if dice.random() < 0.6 or not given:
        there = world.of("server", "application", "database", "service", *PARTS)
        given["resources"] = [dice.choice([*(n.uuid for n in there), "nobodys"])]
    if dice.random() < 0.2:
        given["tags"] = ["shop"]
    if dice.random() < 0.3:
        some = dice.sample(routes, len(routes) // 2)
        given["routes"] = [f"{r.method} {r.template}" for r in some]
    return given


def inside(given: Mapping[str, Any], node: Node) -> bool:
    """Whether a node, or anything around it, is named."""
    for one in node.line():
        if one.kind == "project" and one.uuid in given.get("projects", ()):
            return True
        if one.kind == "environment" and one.above is not None:
            names = {f"{one.above.uuid}/{one.name}", f"{one.above.uuid}/{one.uuid}"}
            if names & set(given.get("environments", ())):
                return True
        if one.kind not in {"project", "environment"} and one.uuid in given.get("resources", ()):
            return True
    return False


def touched(world: World, template: str, read: Mapping[str, str]) -> list[Node | None] | None:
    """What Coolify would touch, None for what it would not find; None: nobody can tell.

    Args:
        world: what there is.
        template: the route's.
        read: what its controller reads for each parameter, and by `uuid` and `tag` on deploy.
    """
    segments = template.split("/")[3:]
    if segments == ["deploy"]:
        kinds = ("application", "database", "service")
        return [world.find(kinds, one) for one in read.get("uuid", "").split(",") if one] or None
    parameters = [(i, s[1:-1]) for i, s in enumerate(segments) if is_parameter(s)]
    if not parameters or parameters[0][0] == 0:
        return None
    at, name = parameters[0]
    kind = BEHIND.get(segments[at - 1])
    if kind is None:
        return None
    first = world.find((kind,), read[name])
    if len(parameters) == 1 or first is None:
        return [first]
    at, name = parameters[1]
    if kind == "project" and name == "environment_name_or_uuid":
        return [world.find(("environment",), read[name], first)]
    if kind == "service" and segments[at - 1] in {"applications", "databases"}:
        part = world.find((f"service-{segments[at - 1][:-1]}",), read[name])
        return [part if part is not None and part.above is first else None]
    return [first]


def model(
    world: World, given: Mapping[str, Any], route: Route, read: Mapping[str, str], *, body: bool
) -> bool:
    """Whether the restriction admits a request, by what its controller would read."""
    routes = given.get("routes")
    if routes is not None and f"{route.method} {route.template}" not in routes:
        return False
    found = touched(world, route.template, read)
    tags = [tag for tag in read.get("tag", "").split(",") if tag]
    deploys = route.template == "/api/v1/deploy"
    parameters = [s for s in route.template.split("/") if is_parameter(s)]
    behind = route.template.split("/{")[0].rsplit("/", 1)[-1]
    if not deploys and (not parameters or behind not in BEHIND):
        return routes is not None
    if body or (deploys and not found and not tags):
        return False
    if deploys and not all(tag in given.get("tags", ()) for tag in tags):
        return False
    return all(one is not None and inside(given, one) for one in found or ())


def filled(dice: random.Random, world: World, route: Route) -> tuple[str, dict[str, str]]:
    """A path of a route, mostly of what there is, and what it says for each parameter."""
    segments, said = [], {}
    last: Node | None = None
    for segment in route.template.split("/"):
        if not is_parameter(segment):
            segments.append(segment)
            continue
        kind = BEHIND.get(segments[-1], "")
        if len(said) == 1 and segments[3] == "services" and kind:
            kind = f"service-{kind}"
        if segment == "{environment_name_or_uuid}":
            kind = "environment"
        there = world.of(kind) or world.nodes
        near = [one for one in there if last is not None and one.above is last]
        node = dice.choice(near if near and dice.random() < 0.8 else there)
        if dice.random() < 0.1:
            node = dice.choice(world.nodes)
        text = node.name if node.kind == "environment" and dice.random() < 0.6 else node.uuid
        text = "nobodys" if dice.random() < 0.05 else text
        last = node
        segments.append(text)
        said[segment[1:-1]] = text
    return "/".join(segments), said


SPELLINGS = ("{}", "{}[]", " {}", "{}%00", "%{:02x}", "x;{}", "{}[0]", "{}.x", "{}%5B%5D")


def spelled(dice: random.Random, key: str) -> str:
    """One of the spellings of a key that PHP may make the same of."""
    how = dice.choice(SPELLINGS)
    if how.startswith("%{"):
        return how.format(ord(key[0])) + key[1:]
    return how.format(key).replace(" ", dice.choice(["+", "%20"])).replace("_", dice.choice("_."))


def queried(
    dice: random.Random, world: World, route: Route, said: Mapping[str, str]
) -> tuple[str, bool]:
    """A query, and whether there is one reading of it only."""
    texts = [one.uuid for one in world.nodes] + ["nobodys"]
    if route.template == "/api/v1/deploy":
        some = ",".join(dice.sample(texts, dice.randint(0, 2)))
        return dice.choice(
            [
                ("", True),
                (f"uuid={some}", True),
                (f"uuid={some}&force=1", True),
                (f"uuid={some}&uuid={some}", True),
                (f"uuid={some}&tag=shop", True),
                (f"tag={dice.choice(['shop', 'blog'])}", True),
                (f"{spelled(dice, 'uuid')}={some}", False),
            ]
        )
    if not said or dice.random() < 0.5:
        return dice.choice([("", True), ("lines=5&force=1", True)])
    key = dice.choice(sorted(said))
    if dice.random() < 0.3 and said[key].isalnum() and said[key].isascii():
        return f"{key}={said[key]}", True
    value = dice.choice([*texts, said[key], ""]).replace("#", "%23").replace(" ", "+")
    value = "".join(c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode()) for c in value)
    return f"{spelled(dice, key)}={value}", False


CREATION = re.compile(r"/api/v1/(?:applications|databases)/[a-z-]+|/api/v1/services")


async def shown(form: str) -> Body:
    """A form's body, as a proxy shows it."""
    return bodies.read([b"application/x-www-form-urlencoded"], form.encode())


@pytest.mark.parametrize("line", LINES)
async def test_what_is_admitted_is_what_the_model_admits(line: str) -> None:
    """Never wider; and where there is one reading, exactly as wide."""
    table = coolify(line)
    routes = [r for r in table if r.guard in {Guard.ORDINARY, Guard.MCP} and r.method != "HEAD"]
    likely = [r for r in routes if "{" in r.template or "deploy" in r.template]
    decisions = admitted = with_body = 0
    for seed in range(TREES):
        forwarded = bool(seed % 2)
        rules = Rules(Policy(table), {}, forwarded_bodies=forwarded)
        dice = random.Random(f"{line} {seed}")
        world = grown(dice)
        given: dict[str, Any] = {}
        for number in range(REQUESTS):
            if number % EACH == 0:
                given = restricted(dice, world, routes)
                narrow = {dice.choice(["token", "team"]): parse(given)}
                world.held = record("root", restrictions=narrow)
            route = dice.choice(likely if dice.random() < 0.85 else routes)
            path, said = filled(dice, world, route)
            query, plain = queried(dice, world, route, said)
            body = dice.random() < 0.1
            form, read_body = "", None
            if forwarded and dice.random() < 0.2:
                (form, _), body, plain = queried(dice, world, route, said), True, False
                read_body = partial(shown, form)
            found = table.find(route.method, path)
            if found is not route:  # another row is meant by such a path
                continue
            asked = AccessRequest(
                Proxy.TRAEFIK,
                route.method,
                path,
                f"{path}?{query}".encode(),
                ip_address("192.0.2.1"),
                Credential(TokenId(67), world.held.digest),
                body=body,
            )
            outcome = await authorize(asked, rules, world, read_body)  # type: ignore[arg-type]
            given_input = {**form_fields(query), **form_fields(form)}
            read = {**said, **{k: v for k, v in given_input.items() if k in said}}
            if route.template == "/api/v1/deploy":
                read = given_input
            hidden = body and read_body is None
            expected = model(world, given, route, read, body=hidden)
            if forwarded and CREATION.fullmatch(route.template) and route.method == "POST":
                expected = False  # nothing here names where something is made
            is_admitted = isinstance(outcome.verdict, Allow)
            case = (line, seed, route.method, path, query, form, given, body, outcome.verdict)
            assert expected or not is_admitted, case
            assert is_admitted or not (expected and plain), case
            if isinstance(outcome.verdict, Deny):
                assert outcome.verdict.reason.status in {403, 404}, case
            decisions += 1
            admitted += is_admitted
            with_body += is_admitted and read_body is not None and naming(route.template).judged
    assert decisions > 6_700
    assert admitted > decisions / 10
    assert with_body > 30
