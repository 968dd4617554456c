"""A token for one application, through every proxy: it does its work, and reaches nothing else.

The stand-in for Coolify reads a request as Laravel does: a body over the query, the query over the
path, keys as PHP spells them.
"""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
import pytest_asyncio

from authsidecar.decision.model import Place, Proxy, ResourceKind, TeamId
from authsidecar.decision.restrictions import parse
from authsidecar.demo.backend import Seen
from authsidecar.demo.laravel import body_fields, inputs, parameters
from authsidecar.doctor.running import Examination, examine
from authsidecar.serving.shown_body import SHOWING
from authsidecar.store.keys import Keys, owner_bucket
from authsidecar.store.records import write_place
from tests.e2e.scenarios import PROXIES
from tests.support import seed
from tests.support.lab import Lab, laboratory
from tests.support.sidecar import SidecarProcess, start_sidecar

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKEN = 61
OTHER_TOKEN = 62
MINE, PROD = "app1", ("p1", "e1", "prod")
PLACES = {
    "app1": Place(TeamId(0), ResourceKind.APPLICATION, *PROD),
    "dep1": Place(TeamId(0), ResourceKind.DEPLOYMENT, *PROD, "app1"),
    "app2": Place(TeamId(0), ResourceKind.APPLICATION, *PROD),
    "dep2": Place(TeamId(0), ResourceKind.DEPLOYMENT, *PROD, "app2"),
    "svc2": Place(TeamId(0), ResourceKind.SERVICE, *PROD),
    "e2": Place(TeamId(0), ResourceKind.ENVIRONMENT, "p1", "e2", "dev"),
    "p1": Place(TeamId(0), ResourceKind.PROJECT, "p1"),
    "srv2": Place(TeamId(0), ResourceKind.SERVER),
}
OTHERS = ("app2", "svc2", "e2", "srv2", "dep2", "p1", "nobodys")


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def showing(
    narrow: Lab, lab_sidecar: SidecarProcess, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Lab]:
    """The same with other proxies, of which Traefik and Envoy show bodies to another sidecar."""
    settings = {
        name.removeprefix("AUTHSIDECAR_"): text
        for name, text in lab_sidecar.environ.items()
        if name.startswith("AUTHSIDECAR_LIMITS__")
    }
    settings["RESTRICTIONS__BODY"] = "forwarded"
    sidecar = start_sidecar(tmp_path_factory.mktemp("showing"), narrow.redis.url, **settings)
    directory = tmp_path_factory.mktemp("proxies")
    async with laboratory(narrow.redis, sidecar, directory, show_bodies=True) as lab:
        yield lab
    sidecar.stop()


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def narrow(shared_lab: Lab) -> AsyncIterator[Lab]:
    """The laboratory with a token that may read, write and deploy `app1` alone."""
    await shared_lab.reset()
    registry = seed.registry(shared_lab.client)
    held = ("read", "write", "deploy")
    tokens = [seed.token(one, user=1, team=0, permissions=held) for one in (TOKEN, OTHER_TOKEN)]
    await registry.put_tokens(tokens)
    await registry.set_restriction("token", TOKEN, parse({"resources": [MINE]}))
    names = {key: Keys().owners(owner_bucket(key)) for key in PLACES}
    for key, place in PLACES.items():
        await shared_lab.client.hset(names[key], key, write_place(place))
    yield shared_lab
    await shared_lab.client.delete(*names.values())


@pytest.mark.parametrize("proxy", PROXIES)
async def test_it_does_its_work_and_nothing_else(narrow: Lab, proxy: Proxy) -> None:
    """Read, deploy and restart; another application, a collection, a body: not."""
    json = "Content-Type: application/json"
    for method, target, lines, status in (
        ("GET", "/api/v1/applications/app1", (), 200),
        ("POST", "/api/v1/deploy?uuid=app1", (), 200),
        ("POST", "/api/v1/applications/app1/restart", (), 200),
        ("GET", "/api/v1/deployments/dep1", (), 200),
        ("GET", "/api/v1/applications/app2", (), 404),
        ("GET", "/api/v1/deployments/dep2", (), 404),
        ("POST", "/api/v1/deploy?uuid=app1,app2", (), 404),
        ("GET", "/api/v1/applications", (), 403),
        ("GET", "/api/v1/applications/app1?u%75id=app2", (), 403),
        ("GET", "/api/v1/applications/app1", (json,), 403),
        ("PATCH", "/api/v1/applications/app1", (json,), 403),
    ):
        body = b'{"uuid": "app2"}' if lines else b""
        answer = await narrow.ask(proxy, method, target, *lines, token=TOKEN, body=body)
        assert answer.status == status, (method, target, lines, answer.body)
        if lines and method != "HEAD":
            assert "without a body" in answer.json["detail"]


LONG = b'{"name": "%s"}' % (b"x" * 70_000)
LONGER = b'{"name": "%s"}' % (b"x" * 200_000)


@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_body_that_is_shown_may_say_what_the_path_says(showing: Lab, proxy: Proxy) -> None:
    """Through Traefik and Envoy; where none is shown, each is refused; what is cut off, too."""
    json, form = "application/json", "application/x-www-form-urlencoded"
    shows = proxy in SHOWING
    for method, target, kind, body, status, why in (
        ("PATCH", "/api/v1/applications/app1", json, b'{"name": "x", "uuid": "app1"}', 200, ""),
        ("PATCH", "/api/v1/applications/app1", form, b"name=x&u%75id=app1", 200, ""),
        ("POST", "/api/v1/deploy", json, b'{"uuid": "app1"}', 200, ""),
        ("GET", "/api/v1/applications/app1", json, b'{"lines": 5}', 200, ""),
        ("POST", "/api/v1/deploy", json, b'{"uuid": "app1,app2"}', 404, ""),
        ("PATCH", "/api/v1/applications/app1", json, b'{"uuid": "app2"}', 403, "the path's"),
        ("GET", "/api/v1/applications/app1", json, b'{"uuid": "app2"}', 403, "the path's"),
        ("POST", "/api/v1/applications/app1/move", json, b'{"environment_uuid": "e2"}', 404, ""),
        ("POST", "/api/v1/applications/app1/restart", form, b"_method=DELETE", 403, "_method"),
        ("PATCH", "/api/v1/applications/app1", json, b'{"uuid": "app1"', 403, "no JSON"),
        ("PATCH", "/api/v1/applications/app1", json, LONG, 403, "body"),
        ("PATCH", "/api/v1/applications/app1", json, LONGER, 403, "body"),
        ("PATCH", "/api/v1/applications/app1", json, b"", 403, "no body is shown"),
        ("POST", "/api/v1/deploy", "multipart/form-data; boundary=b", b"--b--", 403, "form"),
    ):
        line = f"Content-Type: {kind}"
        answer = await showing.ask(proxy, method, target, line, token=TOKEN, body=body)
        assert answer.status == (status if shows else 403), (method, target, body[:80], answer.body)
        if answer.status == 403:
            assert (why if shows else "without a body") in answer.json["detail"]
    unread = b"x" * 300_000  # another token's body is neither kept nor held to anything
    line = "Content-Type: application/json"
    answer = await showing.ask(
        proxy, "POST", "/api/v1/deploy", line, token=OTHER_TOKEN, body=unread
    )
    assert answer.status == 200
    assert showing.seen[-1].body == unread


@pytest.mark.parametrize("proxy", PROXIES)
async def test_the_doctor_knows_that_bodies_are_shown(showing: Lab, proxy: Proxy) -> None:
    """What is set is what the proxy does: nothing fails."""
    report = await examine(showing.client, Keys(), Examination(proxy, showing.proxies[proxy].url))
    assert [(finding.probe.name, finding.reason) for finding in report.failed] == []


# ------------------------------------------------------------------------------- the fuzz

KEYS = (
    *("lines", "force", "skip", "uuid", "uuid", "environment_uuid"),
    *("project_uuid", "tag", "task_uuid", "server_uuid"),
)
SPELLINGS = (
    *["{}"] * 8,
    *("{}[]", "%20{}", "+{}", "{}%00", "{}%5B%5D", "x;{}", "{}[0]", "%75{}", "{}.", "[{}"),
    *("{}%5b", "{}[x", "%00{}", "{}%20", "_{}", "{}&{}"),
)
TYPES = (
    *("application/json", "application/JSON", "application/vnd.api+json", "text/json"),
    *("application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=utf-8"),
    *("multipart/form-data; boundary=b", "Multipart/Form-Data; boundary=b", "text/plain"),
    *("application/octet-stream", "a/b, application/json", "application/problem+json"),
)
PATHS = (
    *("/api/v1/applications/{}", "/api/v1/applications/{}/restart", "/api/v1/applications/{}/envs"),
    *("/api/v1/applications/{}/move", "/api/v1/applications/{}/scheduled-tasks/t1/executions"),
    *("/api/v1/deployments/{}", "/api/v1/deployments/applications/{}", "/api/v1/services/{}"),
    *("/api/v1/servers/{}", "/api/v1/projects/{}", "/api/v1/projects/p1/{}", "/api/v1/deploy"),
    *("/api/v1/deploy", "/api/v1/applications", "/api/v1/databases/{}", "/mcp"),
)
SAID = (*OTHERS, *[MINE] * 6, "app1,app2", "app1%2Capp2", "%61pp2", "app2%20", "")


ODD = (
    *['{{"{}": "{}"}}'] * 8,
    *(
        '[{{"{}": "{}"}}]',
        '{{"a": {{"{}": "{}"}}}}',
        '{{"{}": ["{}"]}}',
        '{{"{}": null, "a": "{}"}}',
    ),
    *('\ufeff{{"{}": "{}"}}', '{{"{}": "{}"}} x', '{{"uuid": "app1", "{}": "{}"}}', "{}={}"),
    *('{{"{}": "{}", "uuid": "app1"}}', '{{"{}": "{}", "_method": "delete"}}', '"{}{}"'),
)


def written(dice: random.Random, kind: str) -> str:
    """A body of this type, or not quite, that names something."""
    key, value = dice.choice((*KEYS, "_method", *["name"] * 8)), dice.choice((*SAID, *[MINE] * 8))
    if "multipart" in kind.lower():
        head = f'Content-Disposition: form-data; name="{key}"'
        return f"--b\r\n{head}\r\n\r\n{value}\r\n--b--\r\n"
    if "form" in kind:
        spelled = dice.choice(SPELLINGS).replace("{}", key).replace("%75uuid", "%75uid")
        return dice.choice(["{}={}", "uuid=app1&{}={}", "name=x&{}={}"]).format(spelled, value)
    return dice.choice(ODD).format(key, value)


ADMITTED = (
    *(("PATCH", "/api/v1/applications/app1"), ("POST", "/api/v1/applications/app1/restart")),
    *(("POST", "/api/v1/deploy"), ("POST", "/api/v1/applications/app1/move")),
    *(("GET", "/api/v1/applications/app1"), ("POST", "/api/v1/applications/app1/envs")),
)
"""What is inside without a body."""


def probe(dice: random.Random, *, bodies: bool) -> tuple[str, str, list[str], bytes]:
    """A request: method, target, header lines and body; `bodies`: in most, nothing else is odd."""
    path = dice.choice(PATHS).format(
        dice.choice([*[MINE] * 12, "%61pp1", "dep1", *OTHERS, "app1%20", "APP1", "app1%2Fx"])
    )
    pairs = []
    for _ in range(dice.choice([0, 0, 0, 1, 1, 2])):
        key = dice.choice(SPELLINGS).replace("{}", dice.choice(KEYS)).replace("%75uuid", "%75uid")
        pairs.append(f"{key}={dice.choice(SAID)}")
    query = dice.choice("&&&;").join(pairs)
    method = dice.choice(["GET", "GET", "POST", "POST", "PATCH", "DELETE", "HEAD", "PUT"])
    lines, body = [], b""
    if bodies and dice.random() < 0.7:
        method, path = dice.choice(ADMITTED)
        query = query if dice.random() < 0.2 else ""
    if dice.random() < (0.9 if bodies else 0.4):
        kind = dice.choice(TYPES)
        name = dice.choice(["Content-Type", "content-type", "CONTENT-TYPE"])
        if dice.random() < 0.8:
            lines.append(f"{name}: {kind}")
        body = written(dice, kind).encode()
    return method, f"{path}?{query}" if query else path, lines, body


def faults(seen: Seen) -> Iterator[str]:
    """What a request that has reached Coolify would touch beside the one application."""
    if seen.routed is not None and seen.routed.method != seen.method:
        yield f"ran {seen.routed.method}"
    if seen.routed is None or seen.routed.template is None:
        return
    headers = {name.lower(): value for name, value in seen.headers.items()}
    found = inputs(seen.routed.method, seen.target, headers, seen.body)
    template, read = seen.routed.template, parameters(seen.routed, found)
    if template == "/api/v1/deploy":
        if found.get("tag") or {one for one in found.get("uuid", "").split(",") if one} - {MINE}:
            yield f"deploys {found}"
        return
    if not template.startswith(("/api/v1/applications/{uuid}", "/api/v1/deployments/")):
        yield f"ran {template}"
    if read.get("uuid") not in {MINE, "dep1"}:
        yield f"{template} read {read}"
    if read.get("task_uuid", "t1") != "t1":
        yield f"{template} read another task: {read}"
    elsewhere = {k: v for k, v in found.items() if k.endswith(("_uuid", "uuid")) and v != MINE}
    if {k: v for k, v in elsewhere.items() if k not in read}:
        yield f"{template} with {elsewhere}"


async def fuzz(
    lab: Lab, proxy: Proxy, requests: int, first: int, *, bodies: bool
) -> tuple[int, int]:
    """Send that many; how many have reached the backend, none of which did what it must not.

    The second number is of those with a body that Laravel reads.
    """
    reached = read = 0
    for number in range(first, first + requests):
        method, target, lines, body = probe(random.Random(number), bodies=bodies)
        lab.seen.clear()
        with suppress(ConnectionError):  # a refusal too
            await lab.ask(proxy, method, target, *lines, token=TOKEN, body=body)
        for seen in lab.seen:
            reached += 1
            read += bool(body_fields(seen.headers.get("Content-Type", ""), seen.body))
            wrong = list(faults(seen))
            assert not wrong, (str(proxy), number, method, target, lines, body, wrong)
    return reached, read


async def fuzz_both(narrow: Lab, showing: Lab, proxy: Proxy, requests: int, first: int) -> None:
    """Five parts where no body is shown, three where Traefik and Envoy show them."""
    hidden, read = await fuzz(narrow, proxy, 5 * requests, first, bodies=False)
    assert hidden > requests // 5
    assert not read
    shown, read = await fuzz(showing, proxy, 3 * requests, first + 10_000, bodies=True)
    assert shown > requests // 20
    assert (read > requests // 20) is (proxy in SHOWING)


@pytest.mark.parametrize("proxy", PROXIES)
async def test_no_request_reaches_another_resource(narrow: Lab, showing: Lab, proxy: Proxy) -> None:
    """Paths, queries in every spelling, bodies with every Content-Type, shown ones among them."""
    await fuzz_both(narrow, showing, proxy, 40, 0)


@pytest.mark.slow
@pytest.mark.parametrize("proxy", PROXIES)
async def test_no_request_of_thousands_reaches_another_resource(
    narrow: Lab, showing: Lab, proxy: Proxy
) -> None:
    """The same, 20,000 over the five proxies; of those, 7,500 where bodies may be shown."""
    await fuzz_both(narrow, showing, proxy, 500, 1_000_000)
