"""The doctor on real proxies: the shipped files pass, and each broken one is named."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from authsidecar.decision.model import Proxy
from authsidecar.demo import proxies
from authsidecar.demo.backend import Backend
from authsidecar.demo.proxies import RECIPES, RunningProxy, start_proxy
from authsidecar.doctor import running
from authsidecar.doctor.echo import echoing
from authsidecar.doctor.probes import PROBES
from authsidecar.doctor.report import DoctorReport, ProbeResult
from authsidecar.doctor.running import Examination, examine
from authsidecar.serving.doctor_probe import REFUSALS
from authsidecar.store.keys import Keys
from tests.support.cli import Result as Invoked
from tests.support.cli import invoke
from tests.support.proxies import need
from tests.support.redis import RedisProcess, start_redis
from tests.support.sidecar import SidecarProcess, start_sidecar

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = start_redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def sidecar(
    own_redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SidecarProcess]:
    started = start_sidecar(tmp_path_factory.mktemp("sidecar"), own_redis.url)
    yield started
    started.stop()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(own_redis: RedisProcess) -> AsyncIterator[Redis]:
    async with Redis.from_url(own_redis.url) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def backend() -> AsyncIterator[str]:
    async with echoing("127.0.0.1", 0) as address:
        yield address


@asynccontextmanager
async def proxied(
    proxy: Proxy, sidecar: SidecarProcess, backend: str, directory: Path
) -> AsyncIterator[RunningProxy]:
    need(proxy)
    found = await start_proxy(
        proxy, authz=f"127.0.0.1:{sidecar.port}", backend=backend, directory=directory
    )
    try:
        yield found
    finally:
        await found.stop()


def failed(report: DoctorReport) -> dict[str, str]:
    return {finding.probe.name: finding.reason for finding in report.failed}


@pytest.mark.parametrize("proxy", list(RECIPES))
async def test_the_shipped_files_pass_every_probe(proxy, sidecar, client, backend, tmp_path):
    """Nothing fails on what we tell people to copy; only what a proxy cannot do is skipped."""
    async with proxied(proxy, sidecar, backend, tmp_path) as found:
        what = Examination(proxy, found.url, echo_url=found.url)
        report = await examine(client, Keys(), what)
    assert failed(report) == {}
    skipped = {f.probe.name for f in report.findings if f.result is ProbeResult.SKIP}
    assert skipped == ({"request-id"} if proxy is Proxy.TRAEFIK else set())
    assert len(report.findings) == len(PROBES)


UNTRUSTED_LIST = """authResponseHeaders:
          - X-Auth-User-Id
          - X-Auth-Team-Id
          - X-Auth-Token-Id
          - X-Auth-Permissions
          - X-Auth-Read-Sensitive
          - X-Auth-Client-Ip
          - X-Auth-Decision-Id"""
TRUSTED = {
    '# forwardedHeaders: {trustedIPs: ["192.0.2.0/24"]}': "forwardedHeaders: {insecure: true}"
}
NOT_STRICT = {
    "# servers {": "servers {",
    "# \ttrusted_proxies static 192.0.2.0/24": "trusted_proxies static 127.0.0.0/8",
    "# \ttrusted_proxies_strict\n\t# }": "}",
}

BROKEN: Mapping[str, tuple[Proxy, Mapping[str, Mapping[str, str]], set[str]]] = {
    "traefik: prefix with a slash": (
        Proxy.TRAEFIK,
        {"dynamic.yml": {"PathPrefix(`/api`)": "PathPrefix(`/api/`)"}},
        {"guard-bare-prefix"},
    ),
    "traefik: front controller unguarded": (
        Proxy.TRAEFIK,
        {"dynamic.yml": {" || PathPrefix(`/index.php`)": ""}},
        {"guard-index-php", "guard-encoded-index-php"},
    ),
    "traefik: forwarded headers of clients believed": (
        Proxy.TRAEFIK,
        {
            "traefik.yml": TRUSTED,
            "dynamic.yml": {"authsidecar-clean, authsidecar,": "authsidecar,"},
        },
        {"forwarded-uri", "forwarded-method", "foreign-headers", "forwarded-host"},
    ),
    "traefik: one identity header is not copied": (
        Proxy.TRAEFIK,
        {"dynamic.yml": {'authResponseHeadersRegex: "^X-Auth-"': UNTRUSTED_LIST}},
        {"identity-complete", "identity-forged"},
    ),
    "traefik: aliases pass": (
        Proxy.TRAEFIK,
        {"traefik.yml": {"aliasHeadersStrategy: delete": ""}},
        {
            "alias-underscore",
            "alias-dot",
            "alias-underscore-outside",
            "alias-dot-outside",
        },
    ),
    "traefik: no CORS header is shown": (
        Proxy.TRAEFIK,
        {"dynamic.yml": {"          - Access-Control-Request-Method\n": ""}},
        {"preflight"},
    ),
    "traefik: anybody claims to be somebody on the rest of the site": (
        Proxy.TRAEFIK,
        {"dynamic.yml": {"[authsidecar-strip-identity, ": "["}},
        {"identity-outside"},
    ),
    "traefik: encoded slashes pass": (
        Proxy.TRAEFIK,
        {"dynamic.yml": {" || PathRegexp(`(?i)%2f|%5c`)": ""}},
        {"guard-encoded-slash-dots"},
    ),
    "traefik: a hash in a name is refused": (
        Proxy.TRAEFIK,
        {
            "traefik.yml": {
                "aliasHeadersStrategy: delete": (
                    "aliasHeadersStrategy: delete\n"
                    "      encodedCharacters: {allowEncodedHash: false}"
                )
            }
        },
        {"name"},
    ),
    "nginx: the client's headers go along": (
        Proxy.NGINX,
        {"nginx.conf": {"proxy_pass_request_headers off;": ""}},
        {"foreign-headers"},
    ),
    "nginx: $uri": (
        Proxy.NGINX,
        {"nginx.conf": {"$request_uri;   # never": "$uri;   # never"}},
        {"forwarded-uri", "query", "connection-forwarded", "name"},
    ),
    "nginx: refusals are not turned back": (
        Proxy.NGINX,
        {"authsidecar-protected.conf": {"error_page 403 = @authsidecar_denied;": ""}},
        {"denial-400", "denial-403", "denial-404", "denial-429", "denial-503"},
    ),
    "nginx: one status is forgotten": (
        Proxy.NGINX,
        {"nginx.conf": {"if ($authz_status = 429) { return 429 $authz_body; }": ""}},
        {"denial-429"},
    ),
    "nginx: one identity header is not set": (
        Proxy.NGINX,
        {
            "authsidecar-protected.conf": {
                "proxy_set_header X-Auth-Team-Role       $authz_team_role;": ""
            }
        },
        {"identity-complete", "identity-forged"},
    ),
    "nginx: front controller unguarded": (
        Proxy.NGINX,
        {"nginx.conf": {"location ^~ /index.php { include authsidecar-protected.conf; }": ""}},
        {"guard-index-php"},
    ),
    "nginx: a path after the backend's name": (
        Proxy.NGINX,
        {
            "authsidecar-protected.conf": {
                "proxy_pass http://coolify;": "proxy_pass http://coolify/api;"
            }
        },
        {"same-target"},
    ),
    "nginx: the client chooses the request id": (
        Proxy.NGINX,
        {"nginx.conf": {"$request_id;": "$http_x_request_id;"}},
        {"request-id"},
    ),
    "nginx: the body goes along": (
        Proxy.NGINX,
        {
            "nginx.conf": {
                "proxy_pass_request_body off;": "",
                'proxy_set_header Content-Length                "";': (
                    "proxy_set_header Content-Length $content_length;"
                ),
            }
        },
        {"body"},
    ),
    "nginx: another proxy's endpoint": (
        Proxy.NGINX,
        {"nginx.conf": {"authz/nginx": "authz/traefik"}},
        {"asked", *(f"denial-{status}" for status in REFUSALS)},
    ),
    "nginx: Authorization is kept back": (
        Proxy.NGINX,
        {"nginx.conf": {"proxy_set_header Authorization                 $http_authorization;": ""}},
        {"asked"},
    ),
    "caddy: Connection of the client's": (
        Proxy.CADDY,
        {"Caddyfile": {"request_header @plain -Connection": ""}},
        {"connection-identity"},
    ),
    "caddy: leftmost address": (Proxy.CADDY, {"Caddyfile": NOT_STRICT}, {"forwarded-for-leftmost"}),
    "caddy: one identity header is not copied": (
        Proxy.CADDY,
        {"Caddyfile": {"import identity X-Auth-Permissions": ""}},
        {"identity-complete"},
    ),
    "caddy: anybody claims to be somebody on the rest of the site": (
        Proxy.CADDY,
        {"Caddyfile": {"\t\t\theader_up -X-Auth-*\n": ""}},
        {"identity-outside"},
    ),
    "caddy: front controller unguarded": (
        Proxy.CADDY,
        {"Caddyfile": {"/mcp* /index.php*": "/mcp*"}},
        {"guard-index-php"},
    ),
    "envoy: paths are not normalised": (
        Proxy.ENVOY,
        {"envoy.yaml": {"normalize_path: true": "normalize_path: false"}},
        {
            "guard-encoded-index-php",
            "guard-encoded-letter",
            "guard-dot-segments",
            "guard-encoded-dot-segments",
        },
    ),
    "envoy: encoded slashes pass": (
        Proxy.ENVOY,
        {"envoy.yaml": {'safe_regex: {regex: ".*%(2[Ff]|5[Cc]).*"}': "prefix: /nowhere"}},
        {"guard-encoded-slash-dots"},
    ),
    "envoy: the filters are not asked for": (
        Proxy.ENVOY,
        {"envoy.yaml": {"envoy.filters.http.ext_authz: *on": "strip-override: *on"}},
        {"asked"},
    ),
    "envoy: slashes are not merged": (
        Proxy.ENVOY,
        {"envoy.yaml": {"merge_slashes: true": "merge_slashes: false"}},
        {"guard-double-slash"},
    ),
    "envoy: the client's identity headers are not removed": (
        Proxy.ENVOY,
        {"envoy.yaml": {'regex: "x[-_.]authz?[-_.].*"': 'regex: "nothing"'}},
        {
            "identity-outside",
            *("alias-dot", "alias-dot-outside", "alias-underscore", "alias-underscore-outside"),
        },
    ),
    "envoy: a denial loses its headers": (
        Proxy.ENVOY,
        {"envoy.yaml": {"- {exact: retry-after}": ""}},
        {"denial-429"},
    ),
}


@pytest.mark.parametrize("name", list(BROKEN))
async def test_a_broken_file_is_caught_and_named(  # noqa: PLR0917
    name, sidecar, client, backend, tmp_path, monkeypatch
):
    """One thing is changed in a shipped file; exactly the probes that it breaks say so."""
    proxy, changes, expected = BROKEN[name]
    recipe = RECIPES[proxy]

    def files(places):
        given = recipe.files(places)
        return {file: {**literals, **changes.get(file, {})} for file, literals in given.items()}

    monkeypatch.setattr(proxies, "RECIPES", {**RECIPES, proxy: replace(recipe, files=files)})
    async with proxied(proxy, sidecar, backend, tmp_path) as found:
        what = Examination(
            proxy, found.url, echo_url=found.url, from_hop=name == "caddy: leftmost address"
        )
        report = await examine(client, Keys(), what)
    assert set(failed(report)) == expected, "\n".join(map(str, failed(report).items()))


@pytest.mark.parametrize("proxy", list(RECIPES))
async def test_without_an_echo_the_rest_is_judged(proxy, sidecar, client, tmp_path):
    """With Coolify itself behind the proxy, the probes that need an echo are skipped."""
    async with Backend() as coolify, proxied(proxy, sidecar, coolify.address, tmp_path) as found:
        report = await examine(client, Keys(), Examination(proxy, found.url))
        reached = {seen.routed.template for seen in coolify.seen if seen.routed}
    assert failed(report) == {}
    skipped = {f.probe.name for f in report.findings if f.result is ProbeResult.SKIP}
    assert skipped >= {probe.name for probe in PROBES if probe.echo}
    assert reached == {None}


async def test_a_backend_reached_unasked_is_seen_without_an_echo(
    sidecar, client, tmp_path, monkeypatch
):
    """Coolify's own 404 tells as much."""
    recipe = RECIPES[Proxy.NGINX]
    literal = "location ^~ /index.php { include authsidecar-protected.conf; }"

    def files(places):
        given = recipe.files(places)
        return {**given, "nginx.conf": {**given["nginx.conf"], literal: ""}}

    monkeypatch.setattr(proxies, "RECIPES", {**RECIPES, Proxy.NGINX: replace(recipe, files=files)})
    async with (
        Backend() as coolify,
        proxied(Proxy.NGINX, sidecar, coolify.address, tmp_path) as found,
    ):
        report = await examine(client, Keys(), Examination(Proxy.NGINX, found.url))
    assert set(failed(report)) == {"guard-index-php"}
    assert "answered 404 without the sidecar being asked" in failed(report)["guard-index-php"]


@pytest.fixture(scope="module")
def reporting(
    own_redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SidecarProcess]:
    directory = tmp_path_factory.mktemp("reporting")
    started = start_sidecar(directory, own_redis.url, ENFORCEMENT="report")
    yield started
    started.stop()


@pytest.mark.parametrize("proxy", list(RECIPES))
async def test_report_mode_is_no_fault_of_the_proxy(proxy, reporting, client, backend, tmp_path):
    """What the sidecar refuses passes there, and the proxy is as good as before."""
    async with proxied(proxy, reporting, backend, tmp_path) as found:
        report = await examine(client, Keys(), Examination(proxy, found.url, echo_url=found.url))
    assert failed(report) == {}


@pytest.fixture(scope="module")
def down(own_redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory) -> SidecarProcess:
    """One that has run, and is stopped."""
    started = start_sidecar(tmp_path_factory.mktemp("down"), own_redis.url)
    started.stop()
    return started


@pytest.mark.parametrize("proxy", list(RECIPES))
async def test_a_sidecar_that_is_down_is_said_to_be_down(proxy, down, backend, tmp_path):
    """One line, and not a word about the proxy's file."""
    async with proxied(proxy, down, backend, tmp_path) as found:
        done = await invoked(down, "--proxy", proxy.value, "--url", found.url)
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert "no sidecar answers at 127.0.0.1:" in done.err
    assert "start the sidecar" in done.err
    assert proxy.value not in done.err


async def test_names_can_be_resolved_by_hand(sidecar, backend, tmp_path):
    """As with curl: before the name leads to the proxy, or from inside its network."""
    async with proxied(Proxy.NGINX, sidecar, backend, tmp_path) as found:
        port = found.url.rpartition(":")[2]
        here = ("--proxy", "nginx", "--url", f"http://not-in-any-dns.test:{port}")
        done = await invoked(sidecar, *here)
        assert (done.code, "cannot connect to not-in-any-dns.test" in done.err) == (1, True)
        resolve = f"not-in-any-dns.test:{port}:127.0.0.1"
        done = await invoked(sidecar, *here, "--resolve", resolve)
        assert "pass  asked" in done.out, done.out
    for resolve, said in (
        ("other.test:80:127.0.0.1", "--resolve names other.test:80, which is in neither"),
        ("other.test:127.0.0.1", "is not HOST:PORT:ADDRESS"),
        ("other.test:80:other.test", "'other.test' in"),
        ("other.test:80:[::1", "--resolve names other.test:80"),
    ):
        done = await invoked(sidecar, *here, "--resolve", resolve)
        assert (done.code, said in done.err) == (2, True), done.err


async def test_a_sidecar_on_another_redis_is_said_to_be_one(sidecar, backend, redis_url, tmp_path):
    """The doctor stops at its first probe, and says what to do."""
    async with (
        Redis.from_url(redis_url) as other,
        proxied(Proxy.NGINX, sidecar, backend, tmp_path) as found,
    ):
        report = await examine(other, Keys(), Examination(Proxy.NGINX, found.url))
        assert [key async for key in other.scan_iter("*doctor*")] == []
    assert "another Redis or prefix than the doctor" in failed(report)["asked"]
    assert {f.result for f in report.findings[1:]} == {ProbeResult.SKIP}
    assert report.text().count("not sent") == 1


async def test_a_slow_moment_of_redis_is_no_fault_of_the_proxy(
    own_redis, client, backend, tmp_path, monkeypatch
):
    """A probe that the sidecar could not take down in time is sent again."""
    hasty = start_sidecar(tmp_path / "hasty", own_redis.url, REDIS__BUDGET_MS="50")
    sent, attempts = running._sent, []

    async def slowed(where, probe, key):
        if not attempts:
            await client.execute_command("CLIENT", "PAUSE", "400", "ALL")
        attempts.append(probe.name)
        return await sent(where, probe, key)

    monkeypatch.setattr(running, "_sent", slowed)
    try:
        async with proxied(Proxy.CADDY, hasty, backend, tmp_path) as found:
            report = await examine(client, Keys(), Examination(Proxy.CADDY, found.url))
    finally:
        hasty.stop()
    assert failed(report) == {}
    assert attempts[:3] == ["asked", "asked", "guard-bare-prefix"]


async def invoked(sidecar: SidecarProcess, *words: str) -> Invoked:
    """What `authsidecar doctor` says with the sidecar's own settings, without a process of its own.

    In a thread, because the proxy and what is behind it are served by this loop.
    """
    settings = {
        name.removeprefix("AUTHSIDECAR_"): value
        for name, value in sidecar.environ.items()
        if name != "AUTHSIDECAR_REDIS__URL"
    }
    url = sidecar.environ["AUTHSIDECAR_REDIS__URL"]
    return await asyncio.to_thread(invoke, "doctor", *words, url=url, **settings)


async def command(sidecar: SidecarProcess, *words: str) -> tuple[int | None, bytes, bytes]:
    """`authsidecar doctor` as an operator runs it, with the sidecar's own settings."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "authsidecar", "doctor", *words),
        env={**os.environ, **sidecar.environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out, err


async def test_the_command_tells_and_its_exit_code_says_it(sidecar, backend, tmp_path):
    """0 and one JSON object if all pass, 1 with one line on stderr if any fails, 2 if misused."""
    async with proxied(Proxy.CADDY, sidecar, backend, tmp_path) as found:
        here = ("--proxy", "caddy", "--url", found.url, "--echo-url", found.url)
        code, out, err = await command(sidecar, *here, "--json")
        assert (code, err) == (0, b"")
        assert out.count(b"\n") == 1
        told = json.loads(out)
        assert (told["outcome"], told["proxy"], told["url"]) == ("pass", "caddy", found.url)
        assert {probe["name"] for probe in told["probes"]} == {probe.name for probe in PROBES}
        assert {probe["result"] for probe in told["probes"]} == {"pass"}

        code, out, err = await command(sidecar, "--proxy", "traefik", "--url", found.url)
        assert code == 1
        assert err.count(b"\n") == 1
        assert b"asked" in err
        assert b"fail  asked" in out
        assert b'deploy/traefik/ has: address: "http://127.0.0.1:4190/authz/traefik"' in out
    for words, code, said in (
        (("--proxy", "caddy", "--url", "http://a.test/path"), 2, "host and port only"),
        (("--proxy", "apache", "--url", "http://a.test"), 2, "not a proxy"),
        (("--proxy", "caddy", "--url", "http://127.0.0.1:1"), 1, "cannot connect to 127.0.0.1:1: "),
        ((), 2, "--proxy and --url"),
    ):
        done = await invoked(sidecar, *words)
        assert (done.code, said in done.err) == (code, True), done.err


async def test_the_echo_shows_the_request_but_no_secret(sidecar):
    """It says its address, answers with what it got, and ends on SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "authsidecar", "doctor", "echo"), stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(10):
            address = (await process.stdout.readline()).decode().strip()
        headers = {"Authorization": "Bearer 1|secret", "X_A.b": "c"}
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"http://{address}/a%20b?c", headers=headers, data=b"x") as answer,
        ):
            told = await answer.json()
    finally:
        process.terminate()
        code = await process.wait()
    assert code == 0
    assert (told["method"], told["target"]) == ("POST", "/a%20b?c")
    assert ["x_a.b", "c"] in told["headers"]
    assert ["authorization", "(hidden)"] in told["headers"]
    assert "secret" not in str(told)
