"""nginx with Lua and Redis, as an operator would write it by hand: two Redis operations.

It reads the token (with its owner's role beside it), compares the digest, charges the same Lua
script for the user's counter, and answers with the identity headers. It judges neither route nor
permission, allowlist or switches.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from pathlib import Path
from typing import Any

from redis import Redis

from authsidecar.store.calls import charge_script
from benchmarks.contestants import FLAT, LIMIT
from tests.support.redis import RedisProcess, guarded

MODULES = Path("/usr/lib/nginx/modules")
LUA = Path("/usr/share/lua/5.1/nginx/redis.lua")

CONF = """
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
daemon off;
master_process off;
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log error;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  keepalive_requests 1000000000;
  lua_code_cache on;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location /authz/traefik {{ content_by_lua_file {directory}/check.lua; }}
  }}
}}
"""

CHECK = """
local redis = require "nginx.redis"
local ffi = require "ffi"
if not pcall(function() return ffi.C.SHA256 end) then
  ffi.cdef "unsigned char *SHA256(const unsigned char *d, size_t n, unsigned char *md);"
end
redis.add_commands("evalsha")

local id, secret = (ngx.var.http_authorization or ""):match("^Bearer ([1-9]%d*)|(.+)$")
if not id then return ngx.exit(401) end
local red = redis:new()
if not red:connect("unix:{socket}") then return ngx.exit(503) end
local token = red:hmget("{flat}" .. id, "sha256", "user", "team", "role", "permissions")
local digest = ffi.new("unsigned char[32]")
ffi.C.SHA256(secret, #secret, digest)
if not token or token[1] ~= ffi.string(digest, 32) then return ngx.exit(401) end
local answer = red:evalsha("{sha}", 1, "authsidecar:rate:{{u:" .. token[2] .. "}}:user",
  "", 0, 0, "charge", 1, {limit}, 60000)
red:set_keepalive(0, 512)
if not answer then return ngx.exit(503) end
if answer[2][1] ~= 1 then return ngx.exit(429) end
ngx.header["X-Auth-User-Id"] = token[2]
ngx.header["X-Auth-Team-Id"] = token[3]
ngx.header["X-Auth-Team-Role"] = token[4]
ngx.header["X-Auth-Token-Id"] = id
ngx.header["X-Auth-Permissions"] = token[5]
ngx.header["X-RateLimit-Remaining"] = answer[2][3]
ngx.header["Content-Length"] = 0
"""


def missing() -> str | None:
    """Why it cannot run here, or None."""
    if shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists():
        return "no nginx"
    if not (MODULES / "ngx_http_lua_module.so").exists():
        return "no libnginx-mod-http-lua"
    return None if LUA.exists() else "no lua-nginx-redis"


def rendered(directory: Path, port: int, socket: Path) -> dict[str, str]:
    """The files that nginx runs by, by name."""
    return {
        "nginx.conf": CONF.format(modules=MODULES, directory=directory, port=port),
        "check.lua": CHECK.format(
            socket=socket,
            flat=FLAT,
            limit=LIMIT,
            sha=sha1(charge_script().encode(), usedforsecurity=False).hexdigest(),
        ),
    }


@contextmanager
def nginx_lua(port: int, redis: RedisProcess) -> Iterator[int]:
    """Run it as one process until the context ends: its process id."""
    client: Any = Redis.from_url(redis.url)
    client.script_load(charge_script())
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for file, text in rendered(directory, port, redis.socket).items():
            (directory / file).write_text(text)
        process = subprocess.Popen(
            guarded(binary, "-e", str(directory / "error.log"), "-c", str(directory / "nginx.conf"))
        )
        try:
            yield process.pid
        finally:
            process.terminate()
            process.wait()
            sys.stderr.write((directory / "error.log").read_text(errors="replace")[:2000])
