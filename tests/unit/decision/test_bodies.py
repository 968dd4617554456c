"""What a body says as PHP and Laravel read it, and which bodies nobody can be sure of."""

import json
import random
from typing import Any

import pytest

from authsidecar.decision.bodies import Body, read
from authsidecar.decision.model import ResourceKind
from authsidecar.decision.resources import Named, Names, named, with_body
from authsidecar.decision.routes import coolify
from authsidecar.decision.routes.naming import DEPLOYABLE
from authsidecar.demo.laravel import inputs, parameters, route

JSON, FORM = "application/json", "application/x-www-form-urlencoded"

DEEP = {"a": "b"}
for _ in range(15):
    DEEP = {"a": DEEP}
LISTS = "b"
for _ in range(15):
    LISTS = [LISTS]

READ = [
    (
        *(JSON, b'{"uuid": "a", "n": 1, "deep": {"x": [{"y": null}]}}'),
        *({"uuid": "a", "n": 1, "deep": {"x": [{"y": None}]}}, {"x", "y"}),
    ),
    ("Application/JSON; charset=UTF-8", b'{"a.b c": "d"}', {"a.b c": "d"}, set()),
    (f'{JSON} \t;\tcharset="utf8" ', b"{}", {}, set()),
    ("application/vnd.api+json", b' {"a": "\\ud83d\\ude00"} ', {"a": "😀"}, set()),
    (f"application/{'x' * 83}+json", b'{"a": 1}', {"a": 1}, set()),
    (JSON, b"{}", {}, set()),
    (JSON, b"{}" + b" " * 65_534, {}, set()),
    (JSON, json.dumps(DEEP).encode(), DEEP, {"a"}),
    (JSON, json.dumps({"a": LISTS}).encode(), {"a": LISTS}, set()),
    (JSON, b'{"\\ud7ff": {"\\ue000": "\\ud7ff"}}', {"\ud7ff": {"\ue000": "\ud7ff"}}, {"\ue000"}),
    (FORM, b"", {}, set()),
    (FORM, b"u%75id=a&&b=c+d%20e%2B&flag", {"uuid": "a", "b": "c d e+", "flag": ""}, set()),
    (FORM, b"a=b=c&-_9[-_9]=1", {"a": "b=c", "-_9": {"-_9": "1"}}, {"-_9"}),
    (
        *(FORM + ";charset=utf-8", b"x[k][l]=1&x[k][]=2&x[id]=3"),
        *({"x": {"k": "2", "l": "1", "": "2", "id": "3"}}, {"k", "l", "", "id"}),
    ),
    (FORM, b"a" + b"[x]" * 16 + b"=1", {"a": {"x": "1"}}, {"x"}),
    (
        *(FORM, b"&".join(b"k%d=" % n for n in range(1000)) + b"&"),
        *({f"k{n}": "" for n in range(1000)}, set()),
    ),
]


@pytest.mark.parametrize(("kind", "data", "pairs", "inner"), READ)
def test_a_plain_body_is_read(
    kind: str, data: bytes, pairs: dict[str, object], inner: set[str]
) -> None:
    """Its keys and texts, and the keys within."""
    assert read([kind.encode()], data) == Body(tuple(pairs.items()), frozenset(inner))


NEITHER = "the body is neither plain JSON nor a plain urlencoded form"
TWICE = "the body has a key twice"
NO_OBJECT = "the body is no JSON object"
NO_JSON = "the body is no JSON"
DEEPER = "the body is nested deeper than 16"
NOT_UTF_8 = "the body is not UTF-8"
NUL = "the body holds a NUL"
MORE_KEYS = "the body has more than 1000 keys"
OTHER_KEY = "the body has a key that PHP may read as another one"

FAULTS = [
    (f"application/{'x' * 84}+json", b"{}", NEITHER),
    ("", b"{}", NEITHER),
    ("multipart/form-data; boundary=b", b"--b--", NEITHER),
    ("multipart/form-data; boundary=/json", b"{}", NEITHER),
    (f"{FORM}; x=+json", b"{}", NEITHER),
    ("a/b, application/json", b"{}", NEITHER),
    (JSON + " " * 30_000 + "x", b"{}", NEITHER),
    (f"{JSON}; charset=utf-16", b"{}", NEITHER),
    (JSON, b'{"a": 1, "a": 1}', TWICE),
    (JSON, b'{"x": {"a": 1, "\\u0061": 2}}', TWICE),
    (JSON, b"[1]", NO_OBJECT),
    (JSON, b'"uuid"', NO_OBJECT),
    (JSON, b"null", NO_OBJECT),
    (JSON, b"", NO_JSON),
    (JSON, b'{"a": 1', NO_JSON),
    (JSON, b'{"a": 1} x', NO_JSON),
    (JSON, b'{"a": NaN}', NO_JSON),
    (JSON, b"{'a': 1}", NO_JSON),
    (JSON, b'\xef\xbb\xbf{"a": 1}', NO_JSON),
    (JSON, b'{"a": 1' + b"0" * 5000 + b"}", NO_JSON),
    (JSON, b"[" * 60_000, NO_JSON),
    (JSON, b'{"a":' * 17 + b"1" + b"}" * 17, DEEPER),
    (JSON, b'{"a":' + b"[" * 16 + b"1" + b"]" * 16 + b"}", DEEPER),
    (JSON, b'{"a": "\xff"}', NOT_UTF_8),
    (JSON, '{"a": "b"}'.encode("utf-16"), NOT_UTF_8),
    (JSON, b'{"a": "\\ud800"}', NOT_UTF_8),
    (JSON, b'{"\\udfff": 1}', NOT_UTF_8),
    (JSON, b'{"a": {"x\\ud800": 1}}', NOT_UTF_8),
    (JSON, b'{"a": {"b": ["c", "\\udfffx"]}}', NOT_UTF_8),
    (JSON, b'{"a": "\0"}', NUL),
    (JSON, b"{}" + b" " * 65_535, "the body is longer than 65536 bytes"),
    (FORM, b"a=1&a=1", TWICE),
    (FORM, b"a=1&%61=1", TWICE),
    (FORM, b"a=1&a[]=1", TWICE),
    (FORM, b"a[]=1&a=1", TWICE),
    (FORM, b"a%00b=1", NUL),
    (FORM, b"%ff=1", NOT_UTF_8),
    (FORM, b"a=%ff", NOT_UTF_8),
    (FORM, b"&".join(b"k%d=" % n for n in range(1001)), MORE_KEYS),
    (FORM, b"a" + b"[x]" * 17 + b"=1", DEEPER),
    *[
        (FORM, key + b"=1", OTHER_KEY)
        for key in (b" a", b"+a", b"a.b", b"a b", b"a[", b"a[b", b"a]", b"[a]", b"a[b]c", b"a;b")
    ],
    (FORM, b"x;uuid=1", OTHER_KEY),
    (FORM, "ä=1".encode(), OTHER_KEY),
]


@pytest.mark.parametrize(("kind", "data", "why"), FAULTS)
def test_a_body_with_two_readings_has_a_fault(kind: str, data: bytes, why: str) -> None:
    """And no keys; what is told of it is nothing that it says."""
    said = read([kind.encode("latin-1")], data)

    assert said == Body(fault=why)


@pytest.mark.parametrize("kinds", [[], [b"application/json"] * 2])
def test_there_is_one_content_type(kinds: list[bytes]) -> None:
    """None is not enough, though it says nothing else."""
    assert read(kinds, b"{}") == Body(fault="there is more than one Content-Type")


# --------------------------------------------------------------------------- what it names


def ask(method: str, target: str, said: object, kind: str = JSON) -> Names:
    """What a request with this body names."""
    path = target.partition("?")[0]
    found = coolify("4.3").find(method, path)
    assert found is not None
    data = said if isinstance(said, bytes) else json.dumps(said).encode()
    body = read([kind.encode()], data)
    return with_body(named(found, path, target.encode()), found, path, body)


APP = "/api/v1/applications/app"
CREATION = "/api/v1/applications/public"


def test_a_body_names_what_must_lie_inside_too() -> None:
    """A move's environment within its project, a deployment's targets beside the query's."""
    names = ask("POST", f"{APP}/move", {"project_uuid": "p", "environment_name": "a b"})
    assert [(one.text, one.project) for one in names.more] == [("a b", "p")]
    assert names.keys == ("app", "p/a b", "a b")

    names = ask("POST", "/api/v1/deploy?uuid=app", {"uuid": "app,svc", "tag": "one,two 2"})
    assert [one.text for one in names.more] == ["svc"]
    assert (names.tags, names.unclear) == (("one", "two 2"), None)

    names = ask("POST", CREATION, {"project_uuid": "p", "server_uuid": "s", "name": "x"})
    assert [one.text for one in names.more] == ["p", "s"]
    names = ask("POST", "/api/v1/applications/private-deploy-key", {"private_key_uuid": "k"})
    assert (names.more, names.unclear) == ((), None)


@pytest.mark.parametrize(
    ("method", "target", "said"),
    [
        (
            "PATCH",
            APP,
            {"name": "x", "docker_registry_image_tag": "v1", "gpu_device_ids": "0", "uuid": "app"},
        ),
        ("PATCH", f"{APP}/envs/bulk", {"data": [{"key": "UUID", "value": "b"}]}),
        ("POST", "/api/v1/deploy", {"uuid": "app", "tag": None, "pull_request_id": 3}),
        ("POST", "/api/v1/deploy", {"uuid": None, "tag": "a b,c", "force": True}),
        ("PATCH", APP, {"x": {"docker_tag": "v1", "is_build_server": True}}),
        ("POST", f"{APP}/move", {"environment_name": "x" * 255, "project_uuid": "y" * 255}),
        ("POST", f"{APP}/move", {"environment_name": "ä"}),
        ("POST", f"{APP}/move", {"environment_uuid": "e", "project_uuid": None}),
    ],
)
def test_what_names_nothing_else_is_clear(method: str, target: str, said: object) -> None:
    assert ask(method, target, said).unclear is None


STANDS = "the body's uuid stands for the path's and says something else"
ANOTHER = "a key of the body may name another resource"
WITHIN = "a key inside the body may name another resource"


@pytest.mark.parametrize(
    ("method", "target", "said", "why"),
    [
        *[
            ("PATCH", APP, {"uuid": said}, STANDS)
            for said in ("b", "app ", "APP", "", None, 1, True, ["app"], {"x": "app"})
        ],
        ("PATCH", "/api/v1/applications/a b", {"uuid": "a b"}, STANDS),
        ("PATCH", f"{APP}/storages", {"uuid": "storage", "name": "x"}, STANDS),
        (
            *("PATCH", APP, {"_method": "DELETE"}),
            "the body has a _method, which makes the request another one",
        ),
        ("PATCH", APP, {"destination_uuid": "d"}, ANOTHER),
        ("PATCH", APP, {"environment_id": 1}, ANOTHER),
        ("PATCH", APP, {"Server_Uuid": "s"}, ANOTHER),
        ("PATCH", APP, {"a": [{"b": {"resource_uuid": "b"}}]}, WITHIN),
        ("PATCH", APP, {"a": {"docker_tag": "b", "tag": "c"}}, WITHIN),
        ("POST", f"{APP}/clone", {"destination_uuid": "d", "name": "x"}, ANOTHER),
        ("POST", f"{APP}/migrate", {"server_uuid": "s"}, ANOTHER),
        ("POST", f"{APP}/destinations", {"destination_uuid": "d"}, ANOTHER),
        ("POST", f"{APP}/tags", {"tag_name": "shop"}, ANOTHER),
        *[
            ("POST", f"{APP}/move", {key: said}, f"the body's {key} is no name")
            for key, said in (
                ("environment_uuid", "e "),
                ("environment_name", "\te"),
                ("environment_name", "a\nb"),
                ("environment_name", "x" * 256),
                ("environment_name", ""),
                ("environment_name", {"a": "b"}),
                ("project_uuid", ["p"]),
                ("project_uuid", "a b"),
                ("project_uuid", "x" * 256),
            )
        ],
        ("POST", "/api/v1/databases/db/backups", {"s3_storage_uuid": "s"}, ANOTHER),
        ("PATCH", "/api/v1/servers/s", {"private_key_uuid": "k"}, ANOTHER),
        *[
            (
                "POST",
                "/api/v1/deploy",
                {key: said},
                f"the body's {key} is no list with commas between",
            )
            for key, said in (
                *(("uuid", "a, b"), ("uuid", "a,"), ("uuid", ""), ("uuid", ["a"]), ("uuid", 1)),
                *(("uuid", "a b"), ("uuid", "a,ä"), ("uuid", "x" * 256)),
                *(("tag", " x"), ("tag", "x, y"), ("tag", "x,,y"), ("tag", ""), ("tag", {})),
            )
        ],
        ("POST", CREATION, {"private_key_uuid": "k"}, ANOTHER),
        (
            *("POST", f"{CREATION}?server_uuid=s", {"project_uuid": 1}),
            "a key of the query may name another resource",
        ),
        ("POST", CREATION, {"project_uuid": 1, "id": 1}, "the body's project_uuid is no name"),
        ("POST", CREATION, {"id": 1, "x": {"id": 1}, "project_uuid": 1}, ANOTHER),
        ("POST", "/api/v1/deploy", b"[]", NO_OBJECT),
        (
            *("POST", "/api/v1/deploy?uuids=a", b"[]"),
            "a key of the query may name another resource",
        ),
    ],
)
def test_what_may_name_something_else_is_unclear(
    method: str, target: str, said: object, why: str
) -> None:
    """What comes first is told; nothing of a body but a key that the path or the data has."""
    assert ask(method, target, said).unclear == why


def one(kind: ResourceKind, text: str, project: str | None = None) -> Named:
    return Named(frozenset({kind}), text, project)


@pytest.mark.parametrize(
    ("target", "said", "expected"),
    [
        (
            *(f"{APP}/move?lines=1", {"environment_name": "e", "project_uuid": "p", "uuid": "app"}),
            {
                "more": (one(ResourceKind.ENVIRONMENT, "e", "p"),),
                "keys": ("app", "p/e", "e"),
            },
        ),
        (
            *(f"{APP}/move", {"project_uuid": "p"}),
            {"more": (one(ResourceKind.PROJECT, "p"),), "keys": ("app", "p")},
        ),
        (
            *(f"{APP}/move", {"environment_uuid": "e", "environment_name": "e"}),
            {"more": (one(ResourceKind.ENVIRONMENT, "e"),), "keys": ("app", "e")},
        ),
        (
            *(f"{APP}/move", {"environment_uuid": "e", "project_uuid": ["p"]}),
            {
                "more": (one(ResourceKind.ENVIRONMENT, "e"),),
                "unclear": "the body's project_uuid is no name",
                "keys": ("app", "e"),
            },
        ),
        (
            *(CREATION, {"project_uuid": "p", "server_uuid": "p", "environment_uuid": "e"}),
            {
                "more": (one(ResourceKind.SERVER, "p"), one(ResourceKind.ENVIRONMENT, "e", "p")),
                "keys": ("p", "p/e", "e"),
            },
        ),
        (
            *(
                "/api/v1/applications/private-deploy-key",
                {"private_key_uuid": "k", "server_uuid": "s", "environment_name": None},
            ),
            {"more": (one(ResourceKind.SERVER, "s"),), "keys": ("s",)},
        ),
        (
            *("/api/v1/deploy?uuid=a&tag=x", {"tag": "y,x", "uuid": "b,a,b", "docker_tag": "v1"}),
            {
                "resources": (Named(DEPLOYABLE, "a"),),
                "more": (Named(DEPLOYABLE, "b"),),
                "tags": ("x", "y"),
                "keys": ("a", "b"),
            },
        ),
        (APP + "/tags", {"tag": "x"}, {"unclear": ANOTHER, "keys": ("app",)}),
        (CREATION, {"uuid": "x"}, {"unclear": ANOTHER}),
    ],
)
def test_a_body_names_each_once(
    target: str, said: dict[str, object], expected: dict[str, Any]
) -> None:
    """Beside what path and query name; a project around its environment is not asked for."""
    resources = (one(ResourceKind.APPLICATION, "app"),) if target.startswith(APP) else ()
    assert ask("POST", target, said) == Names(**{"resources": resources, **expected})


KEYS = ("uuid", "UUID", "_uuid", "name", "environment_name", "uuid[]", ".uuid", "u%75id", "_method")
SAID = ("app", "other", "", "app ", "%61pp", "DELETE", "app,other")


def test_what_is_clear_is_read_by_laravel_as_the_path_says() -> None:
    """Twenty thousand bodies and queries against the demo's own reading of Laravel's input."""
    dice, clear = random.Random(7), 0
    for _ in range(20_000):
        method, target = dice.choice([("PATCH", APP), ("GET", APP), ("POST", f"{APP}/restart")])
        pairs = [(dice.choice(KEYS), dice.choice(SAID)) for _ in range(dice.randint(0, 2))]
        query = dice.choice(["", "", "?uuid=app", "?uuid=other"])
        kind = dice.choice([JSON, FORM, "application/JSON", "text/json", f"{FORM}; charset=utf-8"])
        data = "&".join(f"{key}={said}" for key, said in pairs)
        if "form" not in kind:
            data = "{" + ", ".join(f'"{key}": "{said}"' for key, said in pairs) + "}"
        if ask(method, target + query, data.encode(), kind).unclear is not None:
            continue
        clear += 1
        headers = {"content-type": kind}
        routed = route(method, target + query, headers, data.encode())
        found = inputs(routed.method, target + query, headers, data.encode())
        assert routed.method == method, data
        assert parameters(routed, found) == {"uuid": "app"}, (kind, query, data)
    assert clear > 2000
