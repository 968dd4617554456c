"""What a body says as PHP and Laravel read it, and which bodies nobody can be sure of."""

import json
import random
import re

import pytest

from authsidecar.decision.bodies import Body, read
from authsidecar.decision.resources import Names, named, with_body
from authsidecar.decision.routes import coolify
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
        ("POST", f"{APP}/move", {"environment_uuid": "e", "project_uuid": None}),
    ],
)
def test_what_names_nothing_else_is_clear(method: str, target: str, said: object) -> None:
    assert ask(method, target, said).unclear is None


@pytest.mark.parametrize(
    ("method", "target", "said"),
    [
        *[
            ("PATCH", APP, {"uuid": said})
            for said in ("b", "app ", "APP", "", None, 1, True, ["app"], {"x": "app"})
        ],
        ("PATCH", APP, {"_method": "DELETE"}),
        ("PATCH", APP, {"destination_uuid": "d"}),
        ("PATCH", APP, {"environment_id": 1}),
        ("PATCH", APP, {"Server_Uuid": "s"}),
        ("PATCH", APP, {"a": [{"b": {"resource_uuid": "b"}}]}),
        ("POST", f"{APP}/clone", {"destination_uuid": "d", "name": "x"}),
        ("POST", f"{APP}/migrate", {"server_uuid": "s"}),
        ("POST", f"{APP}/destinations", {"destination_uuid": "d"}),
        ("POST", f"{APP}/tags", {"tag_name": "shop"}),
        ("PATCH", f"{APP}/storages", {"uuid": "storage", "name": "x"}),
        ("POST", f"{APP}/move", {"environment_uuid": "e "}),
        ("POST", f"{APP}/move", {"project_uuid": ["p"]}),
        ("POST", f"{APP}/move", {"environment_name": {"a": "b"}}),
        ("POST", "/api/v1/databases/db/backups", {"s3_storage_uuid": "s"}),
        ("PATCH", "/api/v1/servers/s", {"private_key_uuid": "k"}),
        ("POST", "/api/v1/deploy", {"uuid": "a, b"}),
        ("POST", "/api/v1/deploy", {"uuid": ["a"]}),
        ("POST", "/api/v1/deploy", {"uuid": "a,"}),
        ("POST", "/api/v1/deploy", {"tag": " x"}),
        ("POST", "/api/v1/deploy", {"uuid": ""}),
        ("POST", CREATION, {"private_key_uuid": "k"}),
        ("POST", f"{CREATION}?server_uuid=s", {"name": "x"}),
        ("POST", "/api/v1/deploy", b"[]"),
    ],
)
def test_what_may_name_something_else_is_unclear(method: str, target: str, said: object) -> None:
    """Nothing of a body is in what is told of it."""
    unclear = ask(method, target, said).unclear
    assert unclear is not None
    assert not re.search(
        r"(?i)destination_|environment_id|server_|s3_|private_|app|DELETE", unclear
    )


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
