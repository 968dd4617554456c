"""Which route Laravel would run for a raw request; pure, and independent of the sidecar's rules.

It is what the tests hold the sidecar against, so it follows Symfony and Laravel in what is
unsafe too: the front controller is cut off, paths are decoded once, and a POST can be turned
into any other method by a header, the query or the body.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email import policy
from email.parser import BytesParser
from functools import cache
from importlib import resources
from typing import Final
from urllib.parse import unquote, unquote_to_bytes

FRONT_CONTROLLER: Final = "/index.php"


class BadRequestError(Exception):
    """Symfony answers 400: the override is not a word."""


@dataclass(frozen=True, slots=True)
class LaravelRoute:
    """One row of Coolify's route table; `pattern` matches a whole decoded path."""

    method: str
    template: str
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Routed:
    """What Laravel makes of a request; `template` is None where no route matches.

    Attributes:
        method: after a method override.
        path: without front controller and trailing slashes, decoded once.
        template: as it stands in the route table.
    """

    method: str
    path: str
    template: str | None

    @property
    def is_api(self) -> bool:
        """True below /api, where Coolify answers an unknown path itself."""
        return self.path.startswith("/api/")


def route(method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Routed:
    """What Laravel would run.

    Args:
        method: of the request line.
        target: of the request line, raw.
        headers: looked up by lower-case name.
        body: all of it.

    Raises:
        BadRequestError: the method override is no word.
    """
    path = decoded_path(target)
    method = effective_method(method, target, headers, body)
    wanted = "GET" if method == "HEAD" else method
    found = next((r for r in routes() if r.method == wanted and r.pattern.fullmatch(path)), None)
    return Routed(method, path, found.template if found else None)


@cache
def routes(line: str = "4.3") -> tuple[LaravelRoute, ...]:
    """The routes of a Coolify release line, in matching order."""
    table = resources.files("authsidecar.decision.routes") / f"coolify-{line}.tsv"
    rows = [row.split("\t") for row in table.read_text(encoding="utf-8").splitlines()[1:]]
    return tuple(LaravelRoute(row[1], row[2], _pattern(row[2])) for row in rows)


def _pattern(template: str) -> re.Pattern[str]:
    literals = re.split(r"\{[^}]+\}", template)
    return re.compile("[^/]+".join(map(re.escape, literals)))


def decoded_path(target: str) -> str:
    """The path that routes are matched against (Symfony's getPathInfo, Laravel's decoding).

    >>> decoded_path("/%69ndex.phpapi%2Fv1/teams/?x")
    '/api/v1/teams'
    """
    absolute = re.match(r"[a-z][a-z0-9+.-]*://[^/?#]*", target, re.IGNORECASE)
    path = target[absolute.end() :] if absolute else target
    path = re.split("[?#]", path, maxsplit=1)[0]
    if unquote(path, errors="surrogateescape").startswith(FRONT_CONTROLLER):
        letters = re.match(rf"(?:%[0-9A-Fa-f]{{2}}|.){{{len(FRONT_CONTROLLER)}}}", path, re.DOTALL)
        path = path[letters.end() :] if letters else path
    path = path if path.startswith("/") else f"/{path}"
    return unquote(path.rstrip("/"), errors="surrogateescape") or "/"


def effective_method(method: str, target: str, headers: Mapping[str, str], body: bytes) -> str:
    """The method that Symfony's getMethod answers: only a POST can be overridden.

    >>> effective_method("POST", "/api/v1/teams?.method=delete", {}, b"")
    'DELETE'
    """
    if method != "POST":
        return method
    query = target.partition("#")[0].partition("?")[2]
    override = headers.get("x-http-method-override", "")
    if override in {"", "0"}:
        in_body = body_fields(headers.get("content-type", ""), body).get("_method")
        override = in_body if in_body is not None else form_fields(query).get("_method", "POST")
    if not re.fullmatch("[A-Za-z]+", override):
        raise BadRequestError(override)
    return override.upper()


def body_fields(content_type: str, body: bytes) -> dict[str, str]:
    """The fields that PHP or Laravel reads from a body, by PHP's names."""
    kind = content_type.lower()
    if "/json" in content_type or "+json" in content_type:
        try:
            document = json.loads(body)
        except ValueError:
            return {}
        return {k: str(v) for k, v in document.items()} if isinstance(document, dict) else {}
    if kind.startswith("application/x-www-form-urlencoded"):
        return form_fields(body.decode("utf-8", "surrogateescape"))
    if kind.startswith("multipart/form-data"):
        head = f"Content-Type: {content_type}\r\n\r\n".encode("utf-8", "surrogateescape")
        message = BytesParser(policy=policy.HTTP).parsebytes(head + body)
        named = (
            (part, part.get_param("name", header="content-disposition"))
            for part in message.iter_parts()
        )
        return {
            php_name(str(name)): str(part.get_content()).strip() for part, name in named if name
        }
    return {}


def inputs(method: str, target: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
    """What `$request->input()` finds: a JSON body, or else a form, over the query.

    Args:
        method: after a method override.
        target: of the request line, raw.
        headers: looked up by lower-case name.
        body: all of it.

    >>> inputs("GET", "/x?uuid=a&page=2", {"content-type": "a/json"}, b'{"uuid": "b"}')
    {'uuid': 'b', 'page': '2'}
    """
    kind = headers.get("content-type", "")
    is_json = "/json" in kind or "+json" in kind
    read = body_fields(kind, body) if is_json or method not in {"GET", "HEAD"} else {}
    return {**form_fields(target.partition("#")[0].partition("?")[2]), **read}


def parameters(routed: Routed, found: Mapping[str, str]) -> dict[str, str]:
    """What a controller reads for each parameter of the route: the input's key wins.

    Args:
        routed: what Laravel runs.
        found: the input.
    """
    names = (routed.template or "").split("/")
    texts = routed.path.split("/")
    said = {n[1:-1]: text for n, text in zip(names, texts, strict=False) if n.startswith("{")}
    return {name: found.get(name, text) for name, text in said.items()}


def form_fields(text: str) -> dict[str, str]:
    """Form-encoded text as PHP reads it: the last of two equal names wins."""
    pairs = (pair.partition("=") for pair in text.split("&") if pair)
    return {php_name(_form_decoded(name)): _form_decoded(value) for name, _, value in pairs}


def _form_decoded(text: str) -> str:
    return unquote_to_bytes(text.replace("+", " ")).decode("utf-8", "surrogateescape")


def php_name(name: str) -> str:
    r"""A field's name as PHP folds it into a variable's name.

    >>> php_name(" .method\0x"), php_name("_method[a]"), php_name("_method[a")
    ('_method', '_method', '_method_a')
    """
    name, bracket, index = name.split("\0", 1)[0].lstrip(" ").partition("[")
    if bracket and "]" not in index:
        name += f"_{index}"  # an array that is never closed is a plain name after all
    return name.replace(" ", "_").replace(".", "_")
