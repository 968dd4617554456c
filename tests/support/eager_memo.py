"""`python -m tests.support.eager_memo serve`: a sidecar that remembers what it has never seen.

Every subrequest is read as ever and learnt before it is answered, so that all of a table of
scenarios goes the short way, not only what is sent three times.
"""

import asyncio
from typing import Any

from aiohttp import HttpVersion11
from aiohttp.http_parser import HttpRequestParser

from authsidecar.cli import main
from authsidecar.decision.proxies.endpoints import find
from authsidecar.decision.proxies.forward_auth import read
from authsidecar.decision.proxies.headers import Fields
from authsidecar.serving.authz import AuthzServer, _is_plain
from authsidecar.serving.memo import Look, Memo

SERVERS: dict[Memo, AuthzServer] = {}
PLAIN_LOOK = Memo.look
PLAIN_INIT = AuthzServer.__init__


def init(server: AuthzServer, **options: Any) -> None:
    PLAIN_INIT(server, **options)
    if server._memo is not None:
        SERVERS[server._memo] = server


def look(memo: Memo, data: bytes) -> Look | None:
    found = PLAIN_LOOK(memo, data)
    if found is not None and found.found is None:
        learn(memo, data, found)
        found = PLAIN_LOOK(memo, data)
    return found


def learn(memo: Memo, data: bytes, seen: Look) -> None:
    """Remember at once what the server would remember the second time."""
    parser = HttpRequestParser(None, asyncio.get_running_loop(), 2**16, max_headers=200)
    try:
        messages, upgraded, _ = parser.feed_data(data)
    except Exception:  # noqa: BLE001  # the plain way says what it is
        return
    if upgraded or len(messages) != 1:
        return
    message = messages[0][0]
    endpoint = find(message.path)
    if (
        message.method == "HEAD"
        or message.version != HttpVersion11
        or message.should_close
        or message.upgrade
        or endpoint.proxy is None
        or {b"content-length", b"transfer-encoding"} & {n.lower() for n, _ in message.raw_headers}
    ):
        return
    fields = Fields(message.raw_headers)
    line = endpoint.line(message.method, message.path)
    access = read(fields, endpoint.proxy, SERVERS[memo]._trusted_hops, line)
    cut = [] if seen.request_id is None else [seen.request_id.encode()]
    if _is_plain(access, endpoint) and fields.request_id == cut:
        for _ in range(2):
            memo.learn(seen, endpoint, access, message.path)


if __name__ == "__main__":
    AuthzServer.__init__ = init  # type: ignore[method-assign, assignment]
    Memo.look = look  # type: ignore[method-assign]
    main()
