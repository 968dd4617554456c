"""Warnings before a token expires: once each, whatever dies, and never lost."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from ipaddress import ip_address

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from authsidecar.config import load
from authsidecar.coolify.status import OWNER
from authsidecar.decision.model import TokenId
from authsidecar.expiry.channel import NotTakenError, UnreachableError
from authsidecar.expiry.notice import HOUR_MS, LATE_MS, Due
from authsidecar.expiry.rounds import Rounds, WarningOptions, WarningResult
from authsidecar.observe.log import Log
from authsidecar.observe.metrics import Telemetry
from authsidecar.store.keys import Keys
from authsidecar.store.last_used import LastUses
from authsidecar.times import UnixMs, rfc3339
from tests.support import fork_server, seed
from tests.support.cli import Result as Ran
from tests.support.cli import invoke, with_registry
from tests.support.fork_server import Process
from tests.support.redis import free_port, start_redis
from tests.support.sidecar import get, start_sidecar
from tests.support.smtp import LOGIN, Mailbox, certificate, smtp_server
from tests.support.waiting import eventually, until

KEYS = Keys()
QUIET = Log(json_lines=True, stream=io.StringIO())


def settings(mailbox: Mailbox, **more: str) -> dict[str, str]:
    """A configuration that mails through this server."""
    return {
        "MAIL__HOST": "127.0.0.1",
        "MAIL__PORT": str(mailbox.port),
        "MAIL__TLS": "none",
        "MAIL__SENDER": "sidecar@example.test",
        **more,
    }


async def expiring(registry, *hours: float, first: int = 1):
    """Tokens of user 7 that expire in so many hours; their ids count up from `first`."""
    await seed.user(registry, 7, t3="owner")
    now = await registry.now()
    tokens = [
        seed.token(first + i, user=7, team=3, expires_at=round(now + h * HOUR_MS))
        for i, h in enumerate(hours)
    ]
    await registry.put_tokens(tokens)
    return tokens


def prepared(redis_url: str, *hours: float):
    return asyncio.run(with_registry(redis_url, lambda registry: expiring(registry, *hours)))


class Spy:
    """A channel that keeps what it is sent; `fails` are raised first, in order."""

    name = "spy"

    def __init__(self, *fails: BaseException) -> None:
        self.sent: list[Due] = []
        self.notices: list = []
        self.fails = list(fails)

    async def send(self, notice):
        if self.fails:
            raise self.fails.pop(0)
        self.sent.append(notice.due)
        self.notices.append(notice)

    def warned(self) -> list[tuple[int, int]]:
        return [(one.token, one.lead_hours) for one in self.sent]


def rounds(client, channel, *, leads=(24,), synced=False, count=lambda _: None) -> Rounds:
    options = WarningOptions((channel,), leads, synced)
    return Rounds(channel, options, client, KEYS, log=QUIET, count=count)


# ------------------------------------------------------------------------- which, and how often


async def test_each_lead_time_is_warned_of_once(redis_client):
    """Again and again looked, by two processes: one each, for tokens whose time has come."""
    await expiring(seed.registry(redis_client), 1, 23, 47, 49)
    spy = Spy()
    two = [rounds(redis_client, spy, leads=(24, 48)) for _ in range(2)]
    for _ in range(2):
        await asyncio.gather(*(one.once() for one in two))
    assert Counter(spy.warned()) == Counter([(1, 48), (1, 24), (2, 48), (2, 24), (3, 48)])


async def test_a_redis_that_forgets_what_was_sent_is_told_again(redis_client):
    """A failover, a flush: whoever has sent it still knows, and nobody is warned twice."""
    await expiring(seed.registry(redis_client), 1)
    spy = Spy()
    one = rounds(redis_client, spy)
    await one.once()
    key = KEYS.warning(f"{spy.sent[0].id}:spy")
    await redis_client.delete(key)
    await one.once()
    assert await redis_client.get(key) == b"sent"
    await rounds(redis_client, spy).once()
    assert spy.warned() == [(1, 24)]


async def test_a_renewed_token_is_warned_about_again(redis_client):
    """Its new expiry is another one; that of a token without expiry is none."""
    registry = seed.registry(redis_client)
    spy = Spy()
    await expiring(registry, 1)
    await rounds(redis_client, spy).once()
    await expiring(registry, 2)
    await rounds(redis_client, spy).once()
    await registry.put_tokens([seed.token(1, user=7, team=3)])
    await rounds(redis_client, spy).once()
    assert spy.warned() == [(1, 24), (1, 24)]


async def test_a_revoked_token_is_not_warned_about(redis_client):
    """The index forgets it with the record; so it does for a member or a user that is removed."""
    registry = seed.registry(redis_client)
    await expiring(registry, 1, 2, 3)
    await registry.remove_token(TokenId(2))
    assert await redis_client.zcard(KEYS.expiring) == 2
    spy = Spy()
    await rounds(redis_client, spy).once()
    assert spy.warned() == [(1, 24), (3, 24)]
    await registry.remove_user(seed.UserId(7))
    assert await redis_client.zcard(KEYS.expiring) == 0


async def test_synced_tokens_are_left_to_coolify_unless_asked_for(redis_client):
    """Coolify mails about its own; the setting mail.synced_tokens has us do it as well."""
    await expiring(seed.registry(redis_client), 1)
    await redis_client.hset(KEYS.sync_status, "owner", OWNER)
    spy = Spy()
    await rounds(redis_client, spy).once()
    assert spy.warned() == []
    await rounds(redis_client, spy, synced=True).once()
    assert spy.warned() == [(1, 24)]


async def test_the_index_forgets_what_expired_long_ago(redis_client):
    """Else it would grow for ever; a token that expired just now is still warned about."""
    registry = seed.registry(redis_client)
    await expiring(registry, -1)
    await redis_client.zadd(KEYS.expiring, {"99": 1})
    spy = Spy()
    await rounds(redis_client, spy).once()
    assert await redis_client.zrange(KEYS.expiring, 0, -1) == [b"1"]
    assert spy.warned() == [(1, 24)]


async def test_a_mark_outlives_the_warning_s_time_and_no_longer(redis_client):
    """After that nothing is left of it."""
    (token,) = await expiring(seed.registry(redis_client), 1)
    spy = Spy()
    await rounds(redis_client, spy).once()
    key = KEYS.warning(f"{spy.sent[0].id}:spy")
    assert await redis_client.get(key) == b"sent"
    assert await redis_client.pexpiretime(key) == token.expires_at + 2 * LATE_MS


async def test_thousands_are_found_by_pages_without_a_look_at_the_keyspace(redis_client):
    """More than one page of the index; nothing of SCAN or KEYS."""
    await expiring(seed.registry(redis_client), *[5] * 1100)
    await redis_client.config_resetstat()
    spy = Spy()
    await rounds(redis_client, spy).once()
    assert len(set(spy.warned())) == len(spy.warned()) == 1100
    asked = await redis_client.info("commandstats")
    assert not {"cmdstat_scan", "cmdstat_keys", "cmdstat_smembers"} & set(asked)


# --------------------------------------------------------------------- what goes wrong under way


async def test_a_crash_between_send_and_mark_is_followed_by_at_most_one_duplicate(redis_client):
    """While the claim lives nobody sends; when it has run out, one does, once."""
    await expiring(seed.registry(redis_client), 1)

    class Dying(Spy):
        async def send(self, notice):
            await super().send(notice)
            raise asyncio.CancelledError

    dying, spy = Dying(), Spy()
    with pytest.raises(asyncio.CancelledError):
        await rounds(redis_client, dying).once()
    await rounds(redis_client, spy).once()
    assert (len(dying.sent), len(spy.sent)) == (1, 0)
    key = KEYS.warning(f"{dying.sent[0].id}:spy")
    assert 0 < await redis_client.pttl(key) <= 60_000
    await redis_client.pexpire(key, 0)  # a minute has passed
    for _ in range(3):
        await asyncio.gather(*(rounds(redis_client, spy).once() for _ in range(2)))
    assert len(spy.sent) == 1


async def test_what_can_t_be_sent_now_is_tried_again_at_once_by_anybody(redis_client):
    """The round ends early, since the others would fail too; nothing is lost."""
    await expiring(seed.registry(redis_client), 1, 2)
    spy = Spy(UnreachableError("away"))
    assert await rounds(redis_client, spy).once() == {WarningResult.FAILED: 1}
    assert spy.warned() == []
    assert await rounds(redis_client, spy).once() == {WarningResult.SENT: 2}


async def test_what_is_not_taken_keeps_nobody_else_waiting(redis_client):
    """It is held back for 15 minutes, and then tried again."""
    await expiring(seed.registry(redis_client), 1, 2)
    spy = Spy(NotTakenError("no address"))
    assert await rounds(redis_client, spy).once() == {
        WarningResult.REFUSED: 1,
        WarningResult.SENT: 1,
    }
    assert await rounds(redis_client, spy).once() == {}
    (key,) = [
        key
        async for key in redis_client.scan_iter(KEYS.warning("*"))
        if await redis_client.get(key) != b"sent"
    ]
    assert 14 * 60_000 < await redis_client.pttl(key) <= 15 * 60_000
    await redis_client.pexpire(key, 0)
    assert await rounds(redis_client, spy).once() == {WarningResult.SENT: 1}
    assert sorted(spy.warned()) == [(1, 24), (2, 24)]


async def test_a_defect_with_one_warning_does_not_end_the_others(redis_client):
    """The rounds go on; only the odd one waits for its claim to run out."""
    await expiring(seed.registry(redis_client), 1, 2)
    spy = Spy(RuntimeError("odd"))
    one = rounds(redis_client, spy)
    task = asyncio.create_task(one.run())

    async def went_on() -> bool:
        return spy.warned() == [(2, 24)]

    await eventually(went_on, "the other warning")
    one.stopping.set()
    await task


async def test_a_mark_waits_for_redis(tmp_path):
    """Redis goes away between send and mark and comes back: still no second warning."""
    from redis.asyncio import Redis

    server = start_redis(tmp_path)
    async with Redis.from_url(server.url) as client:
        await expiring(seed.registry(client), 1)
        await client.save()

        class Cutting(Spy):
            cut = asyncio.Event()

            async def send(self, notice):
                await super().send(notice)
                server.kill()
                self.cut.set()

        spy = Cutting()
        task = asyncio.create_task(rounds(client, spy).once())
        await spy.cut.wait()
        server.start()
        assert await task == {WarningResult.SENT: 1}
        assert await rounds(client, spy).once() == {}
    server.stop()


# --------------------------------------------------------------------------- mails, by processes


def environment(redis_url: str, **more: str) -> dict[str, str]:
    """Of a process with these settings."""
    own = {f"AUTHSIDECAR_{name}": value for name, value in more.items()}
    return {**os.environ, **own, "AUTHSIDECAR_REDIS__URL": redis_url}


def notified(redis_url: str, *words: str, **more: str) -> Ran:
    """`authsidecar notify --once` in a process of its own, whose sockets end with it."""
    done = fork_server.run(
        [sys.executable, "-m", "authsidecar", "notify", "--once", *words],
        env=environment(redis_url, **more),
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def notifying(redis_url: str, mailbox: Mailbox, *words: str, **more: str) -> subprocess.Popen:
    """`authsidecar notify` in a process of its own."""
    return Process(
        [sys.executable, "-m", "authsidecar", "notify", *words],
        env=environment(redis_url, **settings(mailbox, **more)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.filterwarnings("ignore:Requiring AUTH")  # aiosmtpd does not see that all is TLS
@pytest.mark.parametrize("tls", ["starttls", "tls"])
@pytest.mark.parametrize("login", [False, True])
def test_mail_goes_out_encrypted_and_with_a_login(redis_url, tmp_path, monkeypatch, tls, login):
    """Against a real server, whose certificate is verified."""
    prepared(redis_url, 1)
    pem = certificate(tmp_path)
    with smtp_server(tls=tls, certificate=pem, login=login) as mailbox:
        how = settings(mailbox, MAIL__TLS=tls)
        if login:
            how |= {"MAIL__USERNAME": LOGIN[0].decode(), "MAIL__PASSWORD": LOGIN[1].decode()}
        untrusted = notified(redis_url, "--json", **how)
        assert (untrusted.code, untrusted.json) == (1, {"sent": 0, "failed": 1, "refused": 0})
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        result = notified(redis_url, "--json", **how)
        assert (result.code, result.json) == (0, {"sent": 1, "failed": 0, "refused": 0})
    assert mailbox.recipients == ["user7@example.test"]
    (mail,) = mailbox.mails
    assert mail["From"].addresses[0].addr_spec == "sidecar@example.test"
    assert mail["Subject"] == 'API token "token 1" expires in 59 minutes'
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]


def test_a_wrong_password_is_a_failure_that_shows_no_password(redis_url, tmp_path, monkeypatch):
    """It is counted and tried again later; neither password is in what is said."""
    prepared(redis_url, 1)
    pem = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with smtp_server(tls="starttls", certificate=pem, login=True) as mailbox:
        how = settings(mailbox, MAIL__TLS="starttls")
        how |= {"MAIL__USERNAME": "mailer", "MAIL__PASSWORD": "not the password"}
        result = notified(redis_url, **how)
    assert (result.code, mailbox.mails) == (1, [])
    assert "SMTPAuthenticationError 535" in result.err
    assert "not the password" not in result.err + result.out


@pytest.mark.filterwarnings("ignore:Requiring AUTH")  # aiosmtpd does not see that all is TLS
async def test_a_rotated_mail_password_is_read_from_its_file(redis_url, tmp_path, monkeypatch):
    """What the file holds when a mail goes out counts; nobody restarts anything."""
    pem = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    file = tmp_path / "password"
    file.write_text("not the password")
    with smtp_server(tls="tls", certificate=pem, login=True) as mailbox:
        how = settings(mailbox, MAIL__TLS="tls", MAIL__USERNAME="mailer")
        how |= {"MAIL__PASSWORD_FILE": str(file)}
        found = load(None, {f"AUTHSIDECAR_{name}": value for name, value in how.items()})
        async with Redis.from_url(redis_url) as client:
            await expiring(seed.registry(client), 1)
            options = WarningOptions.of(found)
            (channel,) = options.channels
            rounds = Rounds(channel, options, client, KEYS, log=QUIET, count=lambda _: None)
            assert (await rounds.once())[WarningResult.FAILED] == 1
            file.write_text(LOGIN[1].decode() + "\n")
            assert (await rounds.once())[WarningResult.SENT] == 1


def test_the_mail_says_what_the_token_was_used_for(redis_url):
    """So that the reader knows what will break."""

    async def used(registry):
        await expiring(registry, 1)
        uses = LastUses(registry._client, KEYS)
        uses.used(TokenId(1), UnixMs(1_790_000_000_000), ip_address("192.0.2.9"), "/api/v1/deploy")
        await uses.write()

    asyncio.run(with_registry(redis_url, used))
    with smtp_server() as mailbox:
        assert invoke("notify", "--once", url=redis_url, **settings(mailbox)).code == 0
    for part in mailbox.mails[0].iter_parts():
        text = " ".join(part.get_content().split())
        assert "last used 2026-09-21 14:13 UTC from 192.0.2.9 for /api/v1/deploy" in text


def ended(process: subprocess.Popen) -> int:
    """Its exit code; nothing of it is left."""
    with process:
        return process.wait(20)


def test_two_processes_send_one_mail_per_lead_time(redis_url):
    """Both at once, over the same tokens: 30 tokens with two lead times each are 60 mails."""
    prepared(redis_url, *[1] * 30)
    with smtp_server() as mailbox:
        how = {"MAIL__LEAD_TIMES_HOURS": "24,48"}
        both = [notifying(redis_url, mailbox, "--once", **how) for _ in range(2)]
        assert [ended(one) for one in both] == [0, 0]
        assert [ended(notifying(redis_url, mailbox, "--once", **how))] == [0]
    ids = Counter(mail["Message-ID"] for mail in mailbox.mails)
    assert (len(ids), set(ids.values())) == (60, {1})


def test_a_process_killed_between_send_and_mark_leaves_one_duplicate_at_most(redis_url):
    """kill -9 when the server has the mail and the process has no answer yet."""
    (token,) = prepared(redis_url, 1)
    killed: list[subprocess.Popen] = []

    def kill() -> str:
        for process in killed:
            process.kill()
            process.wait()
        return "250 OK"

    with smtp_server(Mailbox(answer=kill)) as mailbox:
        process = notifying(redis_url, mailbox)
        killed.append(process)
        until(mailbox.arrived.is_set, "the mail")
        assert ended(process) == -signal.SIGKILL
        killed.clear()
        assert ended(notifying(redis_url, mailbox, "--once")) == 0
        assert len(mailbox.mails) == 1, "its claim still keeps the others away"
        key = KEYS.warning(f"1:{token.expires_at}:24:mail")

        async def a_minute_passes(registry):
            await registry._client.pexpire(key, 0)

        asyncio.run(with_registry(redis_url, a_minute_passes))
        both = [notifying(redis_url, mailbox, "--once") for _ in range(2)]
        assert [ended(one) for one in both] == [0, 0]
        assert ended(notifying(redis_url, mailbox, "--once")) == 0
    assert len(mailbox.mails) == 2
    assert len({mail["Message-ID"] for mail in mailbox.mails}) == 1


def test_a_stop_lets_the_mail_under_way_be_marked(redis_url):
    """SIGTERM while the server takes its time: it ends well, and nobody sends it again."""
    prepared(redis_url, 1)
    stopped: list[subprocess.Popen] = []

    def slow() -> str:
        for process in stopped:
            process.terminate()
        time.sleep(0.5)  # the answer comes after the signal
        return "250 OK"

    with smtp_server(Mailbox(answer=slow)) as mailbox:
        process = notifying(redis_url, mailbox)
        stopped.append(process)
        assert ended(process) == 0
        stopped.clear()
        assert ended(notifying(redis_url, mailbox, "--once")) == 0
    assert len(mailbox.mails) == 1


def test_a_recipient_that_is_refused_keeps_nobody_else_from_mail(redis_url):
    """The exit code and the log say so."""

    async def two_users(registry):
        await expiring(registry, 1)
        await seed.user(registry, 8, t3="owner")
        now = await registry.now()
        await registry.put_tokens([seed.token(2, user=8, team=3, expires_at=now + 2 * HOUR_MS)])

    asyncio.run(with_registry(redis_url, two_users))
    with smtp_server(Mailbox(refused={"user7@example.test"})) as mailbox:
        result = invoke("notify", "--once", "--json", url=redis_url, **settings(mailbox))
    assert (result.code, result.json) == (1, {"sent": 1, "failed": 0, "refused": 1})
    assert "SMTPRecipientsRefused 550" in result.err
    assert mailbox.recipients == ["user8@example.test"]


def test_serve_warns_by_itself_and_a_server_that_is_down_loses_nothing(redis_url, tmp_path):
    """Retried and counted while it is away; one mail each when it is back."""
    prepared(redis_url, 1, 2, 3)
    mailbox = Mailbox(port=free_port())
    sidecar = start_sidecar(tmp_path, redis_url, **settings(mailbox))

    def counted(result: str) -> float:
        text = get(sidecar.management_port, "/metrics", {}).body.decode()
        name = f'authsidecar_warnings_total{{result="{result}"}} '
        return sum(float(line[len(name) :]) for line in text.splitlines() if line.startswith(name))

    until(lambda: counted("failed") >= 2, "a second try")
    assert counted("sent") == 0
    with smtp_server(mailbox, port=mailbox.port):
        until(lambda: counted("sent") == 3, "the mails", patience_s=30)
    assert sidecar.stop() == 0
    assert len({mail["Message-ID"] for mail in mailbox.mails}) == len(mailbox.mails) == 3
    assert '"why": "SMTPConnectError"' in sidecar.log


def test_notify_without_a_place_to_send_to_says_what_is_missing(redis_url):
    """Exit code 2: the configuration is wrong for it."""
    result = invoke("notify", "--once", url=redis_url)
    assert result.code == 2
    assert "mail.host" in result.err
    assert "mail.webhook_url" in result.err


def test_notify_says_why_it_leaves_synced_tokens_alone(redis_url):
    """Else nothing at all would look like a defect."""

    async def synced(registry):
        await expiring(registry, 1)
        await registry._client.hset(KEYS.sync_status, "owner", OWNER)

    asyncio.run(with_registry(redis_url, synced))
    with smtp_server() as mailbox:
        result = invoke("notify", "--once", url=redis_url, **settings(mailbox))
    assert (result.code, mailbox.mails) == (0, [])
    assert "mail.synced_tokens" in result.err


async def test_results_are_counted_under_their_names(redis_client):
    """The metric's label takes the three values that are documented."""
    registry = CollectorRegistry()
    telemetry = Telemetry(registry, QUIET)
    await expiring(seed.registry(redis_client), 1, 2)
    spy = Spy(NotTakenError("x"), UnreachableError("y"))
    await rounds(redis_client, spy, count=telemetry.warned).once()
    values = {
        r: registry.get_sample_value("authsidecar_warnings_total", {"result": r})
        for r in WarningResult
    }
    assert values == {WarningResult.REFUSED: 1, WarningResult.FAILED: 1, WarningResult.SENT: None}


@pytest.mark.parametrize(("hours", "said"), [("24", True), ("1", False), ("0", False)])
def test_answers_say_when_a_token_expires_soon(redis_url, tmp_path, hours, said):
    """X-Auth-Token-Expires on the 200 of a token that expires within mail.expiry_header_hours."""

    async def on(registry):
        await registry.set_instance(api_enabled=True)
        return await expiring(registry, 2)

    (token,) = asyncio.run(with_registry(redis_url, on))
    sidecar = start_sidecar(tmp_path, redis_url, MAIL__EXPIRY_HEADER_HOURS=hours)
    answer = sidecar.ask("GET", "/api/v1/teams", authorization=seed.bearer(1))
    assert answer.status == 200
    expected = rfc3339(token.expires_at) if said else None
    assert answer.header("X-Auth-Token-Expires") == expected
    refused = sidecar.ask("POST", "/api/v1/projects", authorization=seed.bearer(1))
    assert (refused.status, refused.header("X-Auth-Token-Expires")) == (403, None)
    sidecar.stop()


def test_several_workers_of_serve_send_one_mail_each(redis_url, tmp_path):
    """Every worker looks; one sends."""
    prepared(redis_url, *[1] * 10)
    with smtp_server() as mailbox:
        sidecar = start_sidecar(tmp_path, redis_url, "--workers", "2", **settings(mailbox))
        until(lambda: len(mailbox.mails) >= 10, "the mails", patience_s=20)
        assert sidecar.stop() == 0
    assert len({mail["Message-ID"] for mail in mailbox.mails}) == len(mailbox.mails) == 10
