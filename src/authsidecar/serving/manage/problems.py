"""What went wrong, as problem details (RFC 9457)."""

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web

from authsidecar.serving.manage.access import BadKey

CONTENT_TYPE: Final = "application/problem+json"


def problem(
    status: int,
    detail: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    errors: Iterable[Mapping[str, str]] = (),
) -> web.Response:
    """An answer that says in one line what is wrong and what to do.

    Args:
        status: its HTTP status.
        detail: the CLI's own words where it has any.
        headers: what goes with it.
        errors: what is wrong with each field of the request, as `field` and `detail`.
    """
    body: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if found := [dict(one) for one in errors]:
        body["errors"] = found
    answer = web.Response(
        status=status, body=json.dumps(body).encode("ascii"), content_type=CONTENT_TYPE
    )
    answer.headers["Cache-Control"] = "no-store"
    for name, value in headers:
        answer.headers[name] = value
    return answer


def refusal(refused: BadKey) -> web.Response:
    """The answer to who may not do what was asked."""
    return problem(refused.status, refused.why, headers=refused.headers)
