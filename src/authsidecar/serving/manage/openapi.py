"""The OpenAPI 3.1 document of the management API, made from its operations and their types.

`python -m authsidecar.serving.manage.openapi docs/reference/manage.openapi.json` brings the
snapshot up to date; a test holds it.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from authsidecar.decision.credentials import LARGEST_ID
from authsidecar.serving.manage import decisions, fleet, people, settings, tokens, watching
from authsidecar.serving.manage.models import Problem
from authsidecar.serving.manage.operations import Operation
from authsidecar.store.management_keys import Scope

BASE: Final = "/manage/v1"

VERSION: Final = "1.0.0"
"""Of the API; it rises with what it says, not with the program's."""

OPERATIONS: Final[tuple[Operation, ...]] = (
    *watching.OPERATIONS,
    *fleet.OPERATIONS,
    *decisions.OPERATIONS,
    *settings.OPERATIONS,
    *people.OPERATIONS,
    *tokens.OPERATIONS,
)
"""Every operation."""

HEADER: Final = "^[!-~]+( [!-~]+)*$"
"""What If-Match and Idempotency-Key may hold: printable ASCII."""

_ID: Final = {"type": "integer", "minimum": 0, "maximum": LARGEST_ID}

PATH_PARAMETERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "user": _ID,
    "team": _ID,
    "token": {**_ID, "minimum": 1},
    "id": _ID,
    "scope": {"type": "string", "enum": ["user", "token", "team"]},
    "decision": {"type": "string", "pattern": "^[0-9a-f]{1,64}$"},
    "record": {"type": "string", "pattern": "^[0-9]{1,15}-[0-9]{1,10}$"},
}
"""The parts of paths, by name."""

_SAID: Final = {
    400: "The request can't be read.",
    401: "No valid management key.",
    403: "The key may only read.",
    404: "It is not there.",
    409: "A sync owns the state, an id is taken, the request is under way, or too many ask.",
    412: "It is not as If-Match says.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "The request can be read, and what it asks for is refused.",
    429: "Too many wrong keys from this address.",
    503: "Redis does not answer, or is full.",
}


def statuses(operation: Operation) -> tuple[int, ...]:
    """The refusals that an operation may be answered with."""
    found = {400, 401, 429, 503, *operation.refusals}
    if operation.scope is Scope.WRITE:
        found.add(403)
    if "{" in operation.path:
        found.add(404)
    if operation.owned or operation.creates:
        found.add(409)
    if operation.current:
        found.add(412)
    if operation.body:
        found |= {413, 415, 422}
    return tuple(sorted(found))


def document() -> dict[str, Any]:
    """The whole document."""
    names, components = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        path = paths.setdefault(f"{BASE}{operation.path}", {})
        path[operation.method.lower()] = _operation(operation, names)
    paths[f"{BASE}/openapi.json"] = {
        "get": {
            "operationId": "readOpenApi",
            "summary": "Read this document.",
            "responses": {
                "200": {
                    "description": "It.",
                    "content": {"application/json": {"schema": {"type": "object"}}},
                },
                **{str(status): _problem(status) for status in (401, 429, 503)},
            },
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "authsidecar management API",
            "version": VERSION,
            "description": "What an authsidecar knows and may be told. Everything wants a "
            "management key (`authsidecar key create`).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"managementKey": []}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "securitySchemes": {
                "managementKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`authsidecar_ID_SECRET`, of the scope read or write.",
                }
            },
            "schemas": components,
        },
    }


def _operation(operation: Operation, names: Mapping[type[BaseModel], str]) -> dict[str, Any]:
    answer = names[operation.answer]
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}}
    good: dict[str, Any] = {
        "description": HTTPStatus(operation.status).phrase,
        "content": content,
    }
    if operation.tagged:
        good["headers"] = {
            "ETag": {"description": "For If-Match.", "required": True, "schema": {"type": "string"}}
        }
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [re.split("[/{]", operation.path)[1]],
        "parameters": list(_parameters(operation)),
        "responses": {
            str(operation.status): good,
            **{str(status): _problem(status) for status in statuses(operation)},
        },
    }
    if operation.body is not None:
        body = names[operation.body]
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}},
        }
    return found


def _parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", operation.path):
        yield {"name": name, "in": "path", "required": True, "schema": dict(PATH_PARAMETERS[name])}
    if operation.query is not None:
        shape = _untitled(operation.query.model_json_schema())
        for name, schema in shape["properties"].items():
            plain = {key: value for key, value in schema.items() if key != "default"}
            if "anyOf" in plain:  # null is what is not sent
                (inner,) = [one for one in plain.pop("anyOf") if one != {"type": "null"}]
                plain |= inner
            said = plain.pop("description", "")
            yield {
                "name": name,
                "in": "query",
                "required": name in shape.get("required", []),
                "description": said,
                "schema": plain,
            }
    if operation.current is not None:
        yield _header("If-Match", "Change it only if its ETag is still this one.", 1000)
    if operation.creates is not None:
        yield _header(
            "Idempotency-Key",
            "A repeat with the same key and body, within a day, creates nothing more, and is "
            "answered with what was created, without its secret.",
            255,
        )


def _header(name: str, said: str, longest: int) -> dict[str, Any]:
    shape = {"type": "string", "minLength": 1, "maxLength": longest, "pattern": HEADER}
    return {"name": name, "in": "header", "required": False, "description": said, "schema": shape}


def _problem(status: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "description": _SAID[status],
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        },
    }
    if status in {429, 503}:
        found["headers"] = {"Retry-After": {"required": True, "schema": {"type": "string"}}}
    return found


def _schemas() -> tuple[Mapping[type[BaseModel], str], dict[str, Any]]:
    """The name of each type, and the schemas of all of them."""
    modes: dict[type[BaseModel], JsonSchemaMode] = {Problem: "validation"}
    for operation in OPERATIONS:
        modes[operation.answer] = "serialization"
        if operation.body is not None:
            modes[operation.body] = "validation"
    _, shapes = models_json_schema(list(modes.items()), ref_template="#/components/schemas/{model}")
    return {model: model.__name__ for model in modes}, _untitled(
        dict(sorted(shapes["$defs"].items()))
    )


def _untitled(schema: Any) -> Any:
    """The same without the titles, which only repeat names."""
    match schema:
        case list():
            return [_untitled(one) for one in schema]
        case dict():
            found = {
                key: _untitled(one)
                for key, one in schema.items()
                if key not in {"title", "properties"}
            }
            if "properties" in schema:
                parts = schema["properties"].items()
                found["properties"] = {name: _untitled(part) for name, part in parts}
            return found
        case _:
            return schema


@cache
def text() -> str:
    """The document as the snapshot has it; made once, in some tens of milliseconds."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), "utf-8")
