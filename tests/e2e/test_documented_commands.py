"""Every command of README and of the how-tos does what its page says, typed as it stands.

The blocks of a page run in order in one shell. Placeholders (a host, a port, a directory of the
system) are replaced by real ones; what must not run here (docker, git, pip, make) is judged by
tests/support/stand_ins.sh. A program that is neither there nor stood in for fails its page.
"""

import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from authsidecar.config import load
from authsidecar.config.sections import Settings
from authsidecar.decision.model import Place, Proxy, ResourceKind, TeamId
from authsidecar.demo.backend import Backend
from authsidecar.demo.proxies import RunningProxy, deploy_dir, find_binary, free_port, start_proxy
from authsidecar.run.terms import digest
from authsidecar.store.keys import Keys, owner_bucket
from authsidecar.store.receipt_reader import find
from authsidecar.store.records import write_place
from tests.support.coolify import SECRETS
from tests.support.documents import ROOT, Document, documents, replaced, tools, type_in
from tests.support.lab import Lab
from tests.support.postgres import PostgresProcess, binary, fill
from tests.support.proxies import need
from tests.support.redis import start_redis
from tests.support.seed import registry, token, user
from tests.support.sidecar import start_sidecar
from tests.support.waiting import eventually
from tests.support.world import READ

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine"),
]

SITE = "https://coolify.example.com"

PLATFORMS = {
    "kubernetes.md": "a cluster; tests/integration/test_kubernetes.py starts it",
    "systemd.md": "a booted systemd; tests/integration/test_systemd.py checks",
}
"""By page: what its commands need that no test has here."""

NOT_SHOWN = {
    "doctor.md": "the words of a broken proxy; tests/e2e/test_doctor.py breaks 28",
}
"""Pages whose output is of another run than the page's, and why."""

SHOWN_COMMANDS = {("README.md", "text")}
"""Blocks with commands that are output: the demo's, which tests/e2e/test_demo.py types in."""

PROGRAMS = ("authsidecar", "caddy", "curl", "docker", "envoy", "git", "haproxy", "make", "nginx")

RUN_ELSEWHERE = {
    "authsidecar token import": "tests/integration/test_cli_tokens.py",
    "authsidecar health": "tests/integration/test_cli_health.py",
}
"""Commands that a page mentions and none runs, and who does."""


@dataclass(frozen=True)
class Bench:
    """What a page may use."""

    directory: Path
    lab: Lab
    postgres: PostgresProcess


@dataclass(frozen=True)
class Setting:
    """What a page finds.

    Attributes:
        literals: placeholders of its commands, and what stands for them.
        environ: beside HOME and PATH.
        programs: beside the system's and ours.
        says: what its commands must say, in this order.
    """

    literals: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, Path] = field(default_factory=dict)
    says: tuple[str, ...] = ()


Setup = Callable[[Bench], AbstractAsyncContextManager[Setting]]


def block(name: str, language: str, number: int = 0) -> str:
    """A block of a how-to that its reader saves as a file."""
    (page,) = [one for one in documents() if one.name == name]
    return page.blocks(language)[number]


@asynccontextmanager
async def readme(bench: Bench) -> AsyncIterator[Setting]:
    """The package, and a Redis that runs: to start the embedded one takes each command a second."""
    port, management = str(free_port()), str(free_port())
    redis = start_redis(bench.directory.with_name("redis"))
    try:
        yield Setting(
            {
                "4190": port,
                "4191": management,
                "authsidecar demo\n": "until_told authsidecar demo\n",
            },
            {
                "AUTHSIDECAR_REDIS__URL": redis.url,
                "AUTHSIDECAR_LISTEN__ADDRESS": f"127.0.0.1:{port}",
                "AUTHSIDECAR_MANAGEMENT__ADDRESS": f"127.0.0.1:{management}",
                "AUTHSIDECAR_REDIS__BUDGET_MS": "5000",
            },
            says=(
                *("GET /api/v1/teams", "allow", "ready", "HTTP/1.1 200", "X-Auth-User-Id: 1"),
                "the configuration can be used",
            ),
        )
    finally:
        redis.stop()


def behind(proxy: Proxy, *says: str) -> Setup:
    """The shipped files, changed as the page says, in front of a sidecar that runs."""

    @asynccontextmanager
    async def setup(bench: Bench) -> AsyncIterator[Setting]:
        need(proxy)
        running, binary = bench.lab.proxies[proxy], find_binary(proxy)
        for path in (deploy_dir() / proxy.value).iterdir():
            shutil.copy(running.log_file.with_name(path.name), bench.directory)
        yield Setting(
            {SITE: running.url},
            {"NGINX": str(binary)},
            {} if proxy is Proxy.NGINX else {proxy.value: binary},
            ("HTTP/1.1 401", '"code": "token_missing"', *says),
        )

    return setup


@asynccontextmanager
async def doctor(bench: Bench) -> AsyncIterator[Setting]:
    """The shipped files, and two copies in front of what will be the echo."""
    echo = free_port()
    async with AsyncExitStack() as stack:
        urls = {}
        for proxy in (Proxy.NGINX, Proxy.CADDY):
            copy = await _proxied(stack, bench, proxy, bench.lab.sidecar.port, f"127.0.0.1:{echo}")
            urls[proxy] = copy.url
        first, second = (bench.lab.proxies[p].url for p in (Proxy.TRAEFIK, Proxy.NGINX))
        yield Setting(
            {
                f"--proxy traefik --url {SITE}": f"--proxy traefik --url {first}",
                f"--proxy nginx --url {SITE} --echo-url http://127.0.0.1:8081": (
                    f"--proxy nginx --url {second} --echo-url {urls[Proxy.NGINX]}"
                ),
                "http://127.0.0.1:8081": urls[Proxy.CADDY],
                "127.0.0.1:9000 &": f"127.0.0.1:{echo} &\nuntil_listening {echo}",
            },
            bench.lab.sidecar.environ,
            says=("pass  asked", "pass  asked", '"outcome": "pass"'),
        )


async def _proxied(
    stack: AsyncExitStack, bench: Bench, proxy: Proxy, port: int, backend: str
) -> RunningProxy:
    """A proxy of the page's own in front of a sidecar, until the stack is left."""
    place = bench.directory.with_name(proxy.value)
    place.mkdir()
    running = await start_proxy(proxy, authz=f"127.0.0.1:{port}", backend=backend, directory=place)
    stack.push_async_callback(running.stop)
    return running


@asynccontextmanager
async def _coolify_db(bench: Bench) -> AsyncIterator[dict[str, str]]:
    """Coolify's database under its own name, owned by its own role; how to reach it."""
    admin = await asyncpg.connect(bench.postgres.dsn("postgres"))
    await admin.execute("CREATE ROLE coolify LOGIN SUPERUSER")
    await admin.execute("CREATE DATABASE coolify OWNER coolify")
    try:
        owner = await asyncpg.connect(bench.postgres.dsn("coolify", "coolify"))
        await fill(owner)
        await owner.close()
        (bench.directory / "authsidecar-role.sql").write_text(block("coolify.md", "sql"))
        yield {
            "PSQL": binary("psql"),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(bench.postgres.port),
        }
    finally:
        await admin.execute("DROP DATABASE coolify WITH (FORCE)")
        await admin.execute("DROP ROLE IF EXISTS authsidecar")
        await admin.execute("DROP ROLE coolify")
        await admin.close()


@asynccontextmanager
async def coolify(bench: Bench) -> AsyncIterator[Setting]:
    """A Coolify with its database."""
    redis = start_redis(bench.directory.with_name("redis"))
    etc = bench.directory.with_name("etc")
    etc.mkdir()
    (etc / "coolify-dsn").write_text(bench.postgres.dsn("coolify", "authsidecar") + "\n")
    (bench.directory / "owner-dsn.txt").write_text(bench.postgres.dsn("coolify", "coolify") + "\n")
    try:
        async with _coolify_db(bench) as environ:
            yield Setting(
                {
                    "/etc/authsidecar": str(etc),
                    "authsidecar sync coolify\n": "until_told authsidecar sync coolify\n",
                },
                {"AUTHSIDECAR_REDIS__URL": redis.url, **environ},
                says=("GRANT", "sync_leading", "managed here", "installed", "removed"),
            )
    finally:
        redis.stop()


@asynccontextmanager
async def install(bench: Bench) -> AsyncIterator[Setting]:
    """A Coolify host: its database, and its Traefik in front of the sidecar."""
    redis = start_redis(bench.directory.with_name("redis"))
    sidecar = start_sidecar(bench.directory.with_name("sidecar"), redis.url)
    data = bench.directory.with_name("data")
    (data / "proxy/dynamic").mkdir(parents=True)
    file = "/data/coolify/proxy/dynamic/authsidecar.yaml"
    sidecar.ask("GET", "/api/v1/teams")
    try:
        async with _coolify_db(bench) as environ, AsyncExitStack() as stack:
            backend = await stack.enter_async_context(Backend())
            traefik = await _proxied(stack, bench, Proxy.TRAEFIK, sidecar.port, backend.address)
            yield Setting(
                {
                    f"rm {file}": f"grep --count YOUR.DOMAIN {file}\nrm {file}",
                    "/opt/authsidecar": str(bench.directory.with_name("opt")),
                    "/data/coolify": str(data),
                    "https://YOUR.DOMAIN": traefik.url,
                },
                {
                    **sidecar.environ,
                    **environ,
                    "AUTHSIDECAR_SYNC__DSN": bench.postgres.dsn("coolify", "authsidecar"),
                    "ON_UP": "authsidecar sync coolify --once",
                    "SIDECAR_LOG": str(sidecar.log_path),
                    "TOKEN": f"2|{SECRETS[2]}",
                },
                says=(
                    *("GRANT", "10.0.1.0/24,", "token_put", "API is on", '"token": 2'),
                    *('"token_missing"', "pass  asked", "\n6\n", "DROP ROLE"),
                ),
            )
    finally:
        sidecar.stop()
        redis.stop()


@asynccontextmanager
async def expiry(bench: Bench) -> AsyncIterator[Setting]:
    """The settings of the page, and no token that expires soon."""
    redis = start_redis(bench.directory.with_name("redis"))
    (bench.directory / "mail.yaml").write_text(block("expiry-warnings.md", "yaml"))
    forever = "authsidecar notify --config"
    try:
        yield Setting(
            {forever: f"until_told {forever}"},
            {"AUTHSIDECAR_REDIS__URL": redis.url},
            says=("warning_of_expiry", "0 sent, 0 failed"),
        )
    finally:
        redis.stop()


@asynccontextmanager
async def monitoring(bench: Bench) -> AsyncIterator[Setting]:
    """A checkout."""
    (bench.directory / "deploy").symlink_to(deploy_dir())
    yield Setting()


@asynccontextmanager
async def compose(bench: Bench) -> AsyncIterator[Setting]:
    """A checkout, and what compose would start."""
    (bench.directory / "deploy").symlink_to(deploy_dir())
    options = f"--resolve coolify.example.com:443:127.0.0.1 {SITE}"
    redis = start_redis(bench.directory.with_name("redis"))
    sidecar = start_sidecar(bench.directory.with_name("sidecar"), redis.url)
    try:
        async with AsyncExitStack() as stack:
            backend = await stack.enter_async_context(Backend())
            traefik = await _proxied(stack, bench, Proxy.TRAEFIK, sidecar.port, backend.address)
            yield Setting(
                {options: traefik.url},
                {**sidecar.environ, "SIDECAR_LOG": str(sidecar.log_path)},
                says=("1|", "HTTP/1.1 401", '"code": "token_missing"', '"token_missing"'),
            )
    finally:
        sidecar.stop()
        redis.stop()


@asynccontextmanager
async def narrow(bench: Bench) -> AsyncIterator[Setting]:
    """A sidecar that runs behind Traefik; here the CI's network is the loopback's."""
    await bench.lab.reset()
    yield Setting(
        {
            SITE: bench.lab.proxies[Proxy.TRAEFIK].url,
            "192.0.2.0/24": "127.0.0.0/8",
            "Bearer $TOKEN": "Bearer $(cat token.txt)",
            # The token that the page has just made; no sync runs that would know the resource.
            "token restrict 67 --resource": (
                "token restrict $(cut -d '|' -f 1 token.txt) --force --resource"
            ),
            # Its use is written within seconds.
            "authsidecar token advise 67": (
                "ID=$(cut -d '|' -f 1 token.txt)\n"
                'until authsidecar token advise "$ID" | grep -q deploy,; do sleep 0.2; done\n'
                'authsidecar token advise "$ID"'
            ),
        },
        dict(bench.lab.sidecar.environ),
        says=(
            *(": restricted", '"target": "/api/v1/deploy?uuid=APPLICATION"'),
            *("resources    bo8s4k4g0kw4kgsg8wk8wcow", "token_restricted", "DAYS WITHOUT USE"),
        ),
    )


@asynccontextmanager
async def ci(bench: Bench) -> AsyncIterator[Setting]:
    """A sidecar that runs behind Traefik, and knows two applications, as a sync would tell it."""
    await bench.lab.reset()
    mine, other = "bo8s4k4g0kw4kgsg8wk8wcow", "wk8s4k4g0kw4kgsg8wk8wcbo"
    place = write_place(Place(TeamId(0), ResourceKind.APPLICATION, "shop", "e1", "production"))
    names = {uuid: Keys().owners(owner_bucket(uuid)) for uuid in (mine, other)}
    for uuid, name in names.items():
        await bench.lab.client.hset(name, uuid, place)
    try:
        yield Setting(
            {SITE: bench.lab.proxies[Proxy.TRAEFIK].url},
            dict(bench.lab.sidecar.environ),
            says=(
                *(": restricted", f'"target": "/api/v1/deploy?uuid={mine}"', "resource_not_found"),
                *('"effective_permissions"', f'"resources": ["{mine}"]'),
            ),
        )
    finally:
        await bench.lab.client.delete(*names.values())


@asynccontextmanager
async def script(bench: Bench) -> AsyncIterator[Setting]:
    """A sidecar that runs, with nobody in it."""
    redis = start_redis(bench.directory.with_name("redis"))
    sidecar = start_sidecar(bench.directory.with_name("sidecar"), redis.url)
    try:
        yield Setting(
            {"http://127.0.0.1:4191": sidecar.management_url},
            dict(sidecar.environ),
            says=(
                *("night job", '"ready":true', '"name":"Web shop"', '"role":"owner"'),
                *('"routes":["POST /api/v1/deploy"]', '"remaining":1000', '"mcp_enabled":true'),
                *("412", "token_missing", '"items":[]', '"by":"code"', '"judged":0'),
                *('"config_digest"', "mcp.switch", "limit.set", "before", "revoked", "401"),
            ),
        )
    finally:
        sidecar.stop()
        redis.stop()


def asked(*says: str) -> Setup:
    """A sidecar that runs behind Traefik, and has decided something."""

    @asynccontextmanager
    async def setup(bench: Bench) -> AsyncIterator[Setting]:
        await bench.lab.reset()
        url = bench.lab.proxies[Proxy.TRAEFIK].url
        yield Setting({SITE: url}, dict(bench.lab.sidecar.environ), says=says)

    return setup


@asynccontextmanager
async def refused_before(bench: Bench) -> AsyncIterator[Setting]:
    """A sidecar that runs behind Traefik; its only receipts are of refusals of one token."""
    client = bench.lab.client
    await refusal(bench.lab)  # receipts that were under way are written by now, too
    await client.delete(*[key async for key in client.scan_iter("authsidecar:receipts:*")])
    await refusal(bench.lab)
    async with asked("something would change", "judged", "judged", "by token")(bench) as setting:
        yield setting


async def refusal(lab: Lab) -> None:
    """Be refused, and wait for its receipt."""
    answer = await lab.ask(Proxy.TRAEFIK, "POST", "/api/v1/projects", token=READ)

    async def kept() -> bool:
        return await find(lab.client, Keys(), answer.json["decision_id"]) is not None

    await eventually(kept, "the receipt")


API_PHP = """<?php
use App\\Http\\Middleware\\ApiAllowed;
use Illuminate\\Support\\Facades\\Route;
Route::get('/health', 'O@health');
Route::group([
    'middleware' => ['auth:sanctum', 'api.token.team', ApiAllowed::class, 'api.sensitive'],
    'prefix' => 'v1',
], function () {
    Route::get('/teams', 'T@all')->middleware(['api.ability:read']);
    Route::post('/teams/{id}/invite', 'T@invite')->middleware(['api.ability:write']);
});
"""


@asynccontextmanager
async def release(bench: Bench) -> AsyncIterator[Setting]:
    """A routes/api.php of a Coolify that has one route more."""
    source = bench.directory.with_name("their-api.php")
    source.write_text(API_PHP)
    page = "https://raw.githubusercontent.com/coollabsio/coolify/{}/routes/api.php"
    yield Setting(
        {page.format(version): source.as_uri() for version in ("v4.x", "v4.2.0")},
        says=(
            "POST /api/v1/teams/{id}/invite: needs write",
            "3 routes",
            "the configuration can be used",
            "GET /api/v1/teams: read",
        ),
    )


@asynccontextmanager
async def changed(bench: Bench) -> AsyncIterator[Setting]:
    """A sidecar that runs by a file which was edited since."""
    redis = start_redis(bench.directory.with_name("redis"))
    file = bench.directory / "config.yaml"
    file.write_text("limits: {user: 100}\n")
    sidecar = start_sidecar(bench.directory.with_name("sidecar"), redis.url, CONFIG=str(file))
    file.write_text("limits: {user: 300}\n")
    try:
        yield Setting(
            {"PID": str(sidecar.pid), "127.0.0.1:4191": f"127.0.0.1:{sidecar.management_port}"},
            {"AUTHSIDECAR_REDIS__URL": redis.url},
            says=(
                "the configuration can be used",
                digest(load(str(file), {**sidecar.environ}), None),
            ),
        )
    finally:
        sidecar.stop()
        redis.stop()


def redis_alone(*says: str, **literals: str) -> Setup:
    """A Redis, and nothing else."""

    @asynccontextmanager
    async def setup(bench: Bench) -> AsyncIterator[Setting]:
        redis = start_redis(bench.directory.with_name("redis"))
        try:
            yield Setting(literals, {"AUTHSIDECAR_REDIS__URL": redis.url}, says=says)
        finally:
            redis.stop()

    return setup


@asynccontextmanager
async def two_servers(bench: Bench) -> AsyncIterator[Setting]:
    """One with state, and one without."""
    old, new = (start_redis(bench.directory.with_name(name)) for name in ("old", "new"))
    for name, server in (("old", old), ("new", new)):
        (bench.directory / f"{name}.yaml").write_text(f"redis: {{url: '{server.url}'}}\n")
    async with Redis.from_url(old.url) as client:
        await user(registry(client), 1, t0="owner")
        await registry(client).put_tokens([token(67, user=1, team=0)])
    says = ("can be used", "keys written", "added, 0 unchanged, 0 kept", "token 67", "0 added")
    try:
        yield Setting(says=says)
    finally:
        old.stop()
        new.stop()


SETUPS: Mapping[str, Setup] = {
    "README.md": readme,
    "traefik.md": behind(Proxy.TRAEFIK, "HTTP/1.1 404", '"code": "route_unknown"'),
    "nginx.md": behind(Proxy.NGINX),
    "caddy.md": behind(Proxy.CADDY),
    "envoy.md": behind(Proxy.ENVOY),
    "haproxy.md": behind(Proxy.HAPROXY),
    "doctor.md": doctor,
    "coolify.md": coolify,
    "install-on-coolify.md": install,
    "expiry-warnings.md": expiry,
    "compose.md": compose,
    "prometheus.md": monitoring,
    "narrow-tokens.md": narrow,
    "ci-token.md": ci,
    "script-it.md": script,
    "canary-tokens.md": redis_alone(
        *("backup server", "removed"), **{"remove 68": "remove $(cut -d '|' -f 1 token.txt)"}
    ),
    "find-out-why.md": asked('"code": "permission_missing"', "then:", "now:", "200 allowed"),
    "try-a-change.md": refused_before,
    "follow-a-coolify-release.md": release,
    "console.md": redis_alone("works once", "works once"),
    "reload.md": changed,
    "move-to-another-redis.md": two_servers,
    "confirm.md": redis_alone(
        "saved, until", "unless", "confirmed:", "off, until", "is off", "is on"
    ),
}


def plain(text: str) -> str:
    """Ports and the width of columns are as good as any other."""
    return re.sub(r" +", " ", re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text))


def missing(wanted: Iterable[str], said: str) -> str | None:
    """The first that does not come after those before it."""
    at = 0
    for one in wanted:
        found = plain(said).find(plain(one), at)
        if found < 0:
            return one
        at = found + 1
    return None


@pytest.mark.parametrize(
    "page",
    [page for page in documents() if page.blocks("sh") and page.name not in PLATFORMS],
    ids=lambda page: page.name,
)
async def test_the_commands_of_a_page_do_what_it_says(
    page: Document, tmp_path: Path, lab: Lab, postgres_server: PostgresProcess
):
    """All of them, in order; what the page shows as their output is in their output."""
    home = tmp_path / "home"
    home.mkdir()
    script = "".join(page.blocks("sh"))
    async with SETUPS[page.name](Bench(home, lab, postgres_server)) as setting:
        path = tools(tmp_path / "bin", **setting.programs)
        said = await type_in(
            replaced(script, setting.literals),
            home,
            {**setting.environ, "HOME": str(home), "PATH": path},
        )
    assert missing(setting.says, said) is None, said
    if page.name not in NOT_SHOWN:
        assert missing(page.shown(), said) is None, said


@pytest.mark.parametrize(
    "typo",
    [
        "make tests",
        "make demonstration",
        "pip install '.[demos]' && true",
        "pip add '.[demo]' || true",
        "docker compose -f deploy/compose.yml up --detach",
        "docker compose -f deploy/compose.yaml up --detached",
        "docker compose -f deploy/coolify/compose.yaml up --detach | cat",
        "docker compose -f deploy/compose.yaml logs sidecar",
        "docker network inspect coolify",
        "haproxy -c haproxy.cfg",
        "caddy validate",
        "authsidecar serv",
        "authsidecar routes diff --old 4.1 4.3",
    ],
)
async def test_a_typo_fails_its_page(typo: str, tmp_path: Path):
    """Also of a command that is stood in for, and where the shell itself would go on."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "deploy").symlink_to(deploy_dir())
    (home / ".env").touch()
    with pytest.raises(AssertionError):
        await type_in(f"{typo}\n", home, {"HOME": str(home), "PATH": tools(tmp_path / "bin")})


async def test_every_list_of_this_file_is_about_a_page():
    """What a page no longer says is not listed for it."""
    names = {page.name for page in documents()}
    typed = {page.name for page in documents() if page.blocks("sh")}
    assert typed == SETUPS.keys() | PLATFORMS.keys()
    assert NOT_SHOWN.keys() <= names


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.name)
async def test_commands_are_written_in_one_way(page: Document):
    """Blocks are `sh` without prompts, and a block in another language holds none."""
    assert page.languages().isdisjoint({"bash", "console", "shell", "zsh"})
    assert not re.search(r"^[$#] ", "".join(page.blocks("sh")), re.MULTILINE)
    for language in page.languages() - {"sh"}:
        if (page.name, language) not in SHOWN_COMMANDS:
            typed = rf"^(\$ )?({'|'.join(PROGRAMS)}) "
            assert not re.search(typed, "".join(page.blocks(language)), re.MULTILINE)


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.name)
async def test_a_command_within_the_text_is_run_in_some_page(page: Document):
    """Its words are among those of a line of some block, the tutorial's too."""
    run = [*documents(), Document(ROOT / "docs/tutorial.md")]
    lines = "\n".join(block for one in run for block in one.blocks("sh")).splitlines()
    known = [set(line.split()) for line in [*lines, *RUN_ELSEWHERE]]
    for mention in page.mentions():
        assert any(set(mention.split()) <= words for words in known), mention


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.name)
async def test_settings_that_a_page_shows_can_be_used(page: Document, tmp_path: Path):
    """Whatever YAML begins with a section of ours is a configuration."""
    for number, block in enumerate(page.blocks("yaml")):
        if block.partition(":")[0] in Settings.model_fields:
            path = tmp_path / f"{number}.yaml"
            path.write_text(block)
            load(str(path), {})
