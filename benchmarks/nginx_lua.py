"""nginx with Lua and Redis, as an operator would write it by hand: one script call, an access log.

The script reads the token (with its owner's role beside it), compares the digest and charges the
user's counter, by the sidecar's own exact window. nginx answers with the identity headers. It
judges neither route nor permission, allowlist or switches.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from importlib.resources import files
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.contestants import FLAT, LIMIT
from benchmarks.pipes import read_pipe
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
events {{ worker_connections 8192; }}
http {{
  access_log /dev/stdout;
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

SCRIPT = """
local token = call('HMGET', KEYS[1], 'sha256', 'user', 'team', 'role', 'permissions')
if not token[1] or token[1] ~= ARGV[1] then return { 401 } end
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local key = 'authsidecar:rate:{u:' .. token[2] .. '}:user'
local fits, remaining, reset_at = count(key, tonumber(ARGV[2]), 60000, now)
if not fits then return { 429, reset_at } end
record(key, string.format('%.0f', now), '60000')
return { 200, remaining - 1, token[2], token[3], token[4], token[5] }
"""
"""Behind the sidecar's own sliding_window.lua."""

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
local digest = ffi.new("unsigned char[32]")
ffi.C.SHA256(secret, #secret, digest)
local answer = red:evalsha("{sha}", 1, "{flat}" .. id, ffi.string(digest, 32), {limit})
red:set_keepalive(0, 1024)
if not answer then return ngx.exit(503) end
if answer[1] ~= 200 then return ngx.exit(answer[1]) end
ngx.header["X-Auth-User-Id"] = answer[3]
ngx.header["X-Auth-Team-Id"] = answer[4]
ngx.header["X-Auth-Team-Role"] = answer[5]
ngx.header["X-Auth-Token-Id"] = id
ngx.header["X-Auth-Permissions"] = answer[6]
ngx.header["X-RateLimit-Remaining"] = answer[2]
ngx.header["Content-Length"] = 0
"""


def script() -> str:
    """The text of the script."""
    window = files("authsidecar.decision.ratelimit") / "sliding_window.lua"
    return window.read_text("ascii") + SCRIPT


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
            sha=sha1(script().encode(), usedforsecurity=False).hexdigest(),
        ),
    }


@contextmanager
def nginx_lua(port: int, redis: RedisProcess) -> Iterator[int]:
    """Run it as one process until the context ends: its process id."""
    client: Any = Redis.from_url(redis.url)
    client.script_load(script())
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    with tempfile.TemporaryDirectory() as name, read_pipe(Path(name, "lines")) as lines:
        directory = Path(name)
        for file, text in rendered(directory, port, redis.socket).items():
            (directory / file).write_text(text)
        process = subprocess.Popen(
            guarded(
                binary, "-e", str(directory / "error.log"), "-c", str(directory / "nginx.conf")
            ),
            stdout=lines,
        )
        try:
            yield process.pid
        finally:
            process.terminate()
            process.wait()
            sys.stderr.write((directory / "error.log").read_text(errors="replace")[:2000])
