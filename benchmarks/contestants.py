"""The servers that are compared; `python -m benchmarks.contestants NAME PORT` runs one."""

import asyncio
import sys

import uvloop
from aiohttp import web


async def empty(port: int) -> None:
    """An aiohttp application whose one handler does nothing."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.add_routes([web.route("*", "/authz/traefik", handler)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await asyncio.Event().wait()


CONTESTANTS = {"empty": empty}

if __name__ == "__main__":
    _, name, port_ = sys.argv
    uvloop.run(CONTESTANTS[name](int(port_)))
