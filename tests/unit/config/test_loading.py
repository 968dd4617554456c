"""The configuration: sources, precedence, origins of problems, and the files that describe it."""

import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from authsidecar.config import (
    ConfigError,
    ListenAddress,
    Settings,
    default_data_dir,
    example,
    json_schema,
    load,
    loading,
    reference,
    reread,
    warnings,
)
from authsidecar.config.catalogue import SETTINGS
from authsidecar.decision.model import Limit

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_default_file(tmp_path, monkeypatch):
    """Keep this machine's own /etc out of the tests."""
    monkeypatch.setattr(loading, "DEFAULT_FILE", str(tmp_path / "etc" / "config.yaml"))


@pytest.fixture
def write(tmp_path):
    """Write a configuration file and give its path."""

    def write(text, name="config.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def problems(path=None, **environ):
    """Give the problems of a configuration that must be refused."""
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert len(str(caught.value).splitlines()) == len(caught.value.problems)
    return list(caught.value.problems)


def test_nothing_set_gives_the_defaults():
    """No file and no variable is a whole configuration."""
    settings = load(None, {})
    assert settings == Settings(data_dir=default_data_dir({}))
    assert settings.listen.endpoint == ListenAddress("127.0.0.1", 4190)
    assert settings.management.endpoint == ListenAddress("127.0.0.1", 4191)
    assert settings.listen.mode == 0o660
    assert [str(network) for network in settings.peer_networks] == ["127.0.0.0/8", "::1/128"]
    assert settings.hop_networks == ()


def test_limits_reach_the_core_as_its_own_values(write):
    """A bucket that is off is absent; the others are model.Limit in milliseconds."""
    limits = load(
        write("limits: {user: 7, failed: null, token: {limit: 5, window_seconds: 1.5}}"), {}
    ).limits.as_limits()
    assert limits == {
        "user": Limit(7),
        "token": Limit(5, 1500),
        "unknown": Limit(200),
        "health": Limit(1000),
        "feedback": Limit(3),
        "whoami": Limit(60),
    }


def test_environment_wins_over_the_file(write):
    """A variable hides the file's value and leaves its neighbours."""
    path = write("redis:\n  prefix: file\n  budget_ms: 70\n")
    settings = load(path, {"AUTHSIDECAR_REDIS__PREFIX": "environment"})
    assert (settings.redis.prefix, settings.redis.budget_ms) == ("environment", 70)


def test_option_wins_over_the_variable_and_it_over_the_default_file(write, monkeypatch):
    """--config, else AUTHSIDECAR_CONFIG, else the default file: never a mixture."""
    option = write("redis: {prefix: option}", "a.yaml")
    variable = write("redis: {prefix: variable}", "b.yaml")
    monkeypatch.setattr(loading, "DEFAULT_FILE", write("redis: {prefix: default}", "c.yaml"))
    environ = {"AUTHSIDECAR_CONFIG": variable}
    assert load(option, environ).redis.prefix == "option"
    assert load(None, environ).redis.prefix == "variable"
    assert load(None, {}).redis.prefix == "default"


@pytest.mark.parametrize(
    ("file", "environ", "expected"),
    [
        ("", {}, Limit(200)),
        ("", {"API_RATE_LIMIT": "50"}, Limit(50)),
        ("limits: {user: 60}", {"API_RATE_LIMIT": "50"}, Limit(60)),
        ("limits: {user: {window_seconds: 10}}", {"API_RATE_LIMIT": "50"}, Limit(50, 10_000)),
        ("limits: {user: {window_seconds: 10}}", {}, Limit(200, 10_000)),
        ("limits: {user: null}", {"API_RATE_LIMIT": "50"}, None),
        (
            "limits: {user: {limit: 60, window_seconds: 10}}",
            {"API_RATE_LIMIT": "50", "AUTHSIDECAR_LIMITS__USER__LIMIT": "70"},
            Limit(70, 10_000),
        ),
        (
            "limits: {user: {window_seconds: 10}}",
            {"AUTHSIDECAR_LIMITS__USER": "70"},
            Limit(70, 10_000),
        ),
        ("limits: {user: 60}", {"AUTHSIDECAR_LIMITS__USER": "none"}, None),
        ("limits: {user: null}", {"AUTHSIDECAR_LIMITS__USER__LIMIT": "70"}, Limit(70)),
    ],
)
def test_api_rate_limit_is_only_the_default(write, file, environ, expected):
    """API_RATE_LIMIT is weaker than the file, which is weaker than AUTHSIDECAR_ variables."""
    assert load(write(file), environ).limits.as_limits().get("user") == expected


def test_an_empty_api_rate_limit_is_not_set(write):
    """As compose leaves a variable that nobody gave."""
    assert (
        load(write("limits: {user: 60}"), {"API_RATE_LIMIT": ""}).limits.user
        == load(write("limits: {user: 60}"), {}).limits.user
    )
    assert load(None, {"API_RATE_LIMIT": ""}) == load(None, {})


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "100001", "1_0", " 5", "٣"])
def test_bad_api_rate_limit_is_refused_even_where_it_would_not_be_used(write, text):
    """A limit that can't be read is said once, never ignored."""
    found = problems(write("limits: {user: 60}"), API_RATE_LIMIT=text)
    assert len(found) == 1
    assert found[0].startswith("API_RATE_LIMIT: limits.user.limit: got ")
    assert found[0].endswith("allowed: a whole number from 1 to 100000")
    assert problems(API_RATE_LIMIT=text) == found


def test_value_from_a_file_loses_one_newline(tmp_path):
    """`_FILE` strips what an editor adds, and nothing that may belong to a password."""
    secret = tmp_path / "secret"
    for content, expected in [("a b \n", "a b "), ("a\n\n", "a\n"), ("a\r\n", "a"), ("a", "a")]:
        secret.write_bytes(content.encode())
        settings = load(None, {"AUTHSIDECAR_REDIS__PASSWORD_FILE": str(secret)})
        assert settings.redis.password.get_secret_value() == expected


def test_setting_whose_name_ends_in_file_is_no_file_of_a_value(tmp_path):
    """TLS_CA_FILE names the certificate itself; TLS_CA_FILE_FILE names where that name stands."""
    pointer = tmp_path / "pointer"
    pointer.write_text("/b.pem\n")
    url = {"AUTHSIDECAR_REDIS__URL": "rediss://cache"}
    direct = load(None, url | {"AUTHSIDECAR_REDIS__TLS_CA_FILE": "/a.pem"})
    indirect = load(None, url | {"AUTHSIDECAR_REDIS__TLS_CA_FILE_FILE": str(pointer)})
    assert direct.redis.tls_ca_file == Path("/a.pem")
    assert indirect.redis.tls_ca_file == Path("/b.pem")


@pytest.mark.parametrize(
    ("environ", "where"),
    [
        (
            {"AUTHSIDECAR_REDIS__PASSWORD": "x", "AUTHSIDECAR_REDIS__PASSWORD_FILE": "FILE"},
            (
                "AUTHSIDECAR_REDIS__PASSWORD_FILE (FILE): redis.password: is set twice, "
                "by AUTHSIDECAR_REDIS__PASSWORD as well"
            ),
        ),
        (
            {"AUTHSIDECAR_LIMITS__USER": "5", "AUTHSIDECAR_LIMITS__USER__LIMIT": "6"},
            (
                "AUTHSIDECAR_LIMITS__USER__LIMIT: limits.user.limit: is set twice, "
                "by AUTHSIDECAR_LIMITS__USER as well"
            ),
        ),
        (
            {"AUTHSIDECAR_LIMITS__USER": "", "AUTHSIDECAR_LIMITS__USER__LIMIT": "6"},
            (
                "AUTHSIDECAR_LIMITS__USER__LIMIT: limits.user.limit: is set twice, "
                "by AUTHSIDECAR_LIMITS__USER as well"
            ),
        ),
    ],
)
def test_two_variables_for_one_value_are_refused(write, environ, where):
    """Nobody has to guess which of two variables wins."""
    file = write("y")
    environ = {name: value.replace("FILE", file) for name, value in environ.items()}
    assert problems(**environ) == [
        where.replace("(FILE)", f"({file})") + "; allowed: one of the two"
    ]


def test_unreadable_value_file_is_one_clear_line(tmp_path):
    """The variable, the key and the reason are named."""
    (tmp_path / "binary").write_bytes(b"\xff")
    missing, binary = str(tmp_path / "gone"), str(tmp_path / "binary")
    found = problems(
        AUTHSIDECAR_REDIS__PASSWORD_FILE=missing,
        AUTHSIDECAR_MAIL__HOST_FILE=binary,
        AUTHSIDECAR_SYNC__DSN_FILE=str(tmp_path),
    )
    assert len(found) == 3
    assert found[0].startswith("AUTHSIDECAR_MAIL__HOST_FILE: mail.host: ")
    assert "not UTF-8 at byte 0" in found[0]
    assert found[1].startswith("AUTHSIDECAR_REDIS__PASSWORD_FILE: redis.password: ")
    assert "No such file" in found[1]
    assert found[2].startswith("AUTHSIDECAR_SYNC__DSN_FILE: sync.dsn: ")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("AUTHSIDECAR_REDIS__ULR", "AUTHSIDECAR_REDIS__URL"),
        ("AUTHSIDECAR_REDIS_URL", "AUTHSIDECAR_REDIS__URL"),
        ("authsidecar_redis__url", "AUTHSIDECAR_REDIS__URL"),
        ("AUTHSIDECAR_TRUSTED_PEER", "AUTHSIDECAR_TRUSTED_PEERS"),
        ("AUTHSIDECAR_MAIL__PASSWORT_FILE", "AUTHSIDECAR_MAIL__PASSWORD_FILE"),
        ("AUTHSIDECAR_CONFIGURATION", "AUTHSIDECAR_CONFIG"),
        ("AUTHSIDECAR_MAIL_PORT", "AUTHSIDECAR_MAIL__PORT"),
    ],
)
def test_unknown_variable_is_answered_with_the_nearest_name(name, nearest):
    """A variable that nobody reads would be a setting that silently does nothing."""
    assert problems(**{name: "x"}) == [f"{name}: is no setting; did you mean {nearest}?"]


def test_variables_of_a_kubernetes_service_are_left_alone():
    """Kubernetes sets them in every pod beside a Service named authsidecar."""
    environ = {
        "AUTHSIDECAR_SERVICE_HOST": "10.0.0.7",
        "AUTHSIDECAR_SERVICE_PORT_AUTHZ": "4190",
        "AUTHSIDECAR_PORT": "tcp://10.0.0.7:4190",
        "AUTHSIDECAR_PORT_4190_TCP_ADDR": "10.0.0.7",
        "AUTHSIDECAR_METRICS_SERVICE_HOST": "10.0.0.8",
    }
    assert load(None, environ) == load(None, {})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "redis:\n  ulr: x\n",
            ":2: redis.ulr: is no setting; did you mean redis.url? allowed: url,",
        ),
        ("trusted-peers: []\n", ":1: trusted-peers: is no setting; did you mean trusted_peers?"),
        ("prefix: x\n", ":1: prefix: is no setting; did you mean redis.prefix?"),
        ("zzz: x\n", ":1: zzz: is no setting; allowed: listen, management, redis,"),
        (
            "limits:\n  user:\n    limits: 5\n",
            ":3: limits.user.limits: is no setting; did you mean limits.user.limit?",
        ),
        ("<<: {redis: {}}\n", ":1: <<: is no setting; allowed: listen,"),
    ],
)
def test_unknown_key_is_answered_with_the_nearest_name(write, text, line):
    """The line, the key, what may have been meant, and what may stand there."""
    path = write(text)
    found = problems(path)
    assert len(found) == 1
    assert found[0].startswith(path + line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("redis: [\n", ":2: is no YAML ("),
        ("redis:\n\tprefix: x\n", ":2: is no YAML ("),
        ("a: 1\n---\nb: 2\n", ":2: is no YAML ("),
        ("- redis\n", ":1: is a list; allowed: a mapping of listen, management,"),
        ("redis\n", ":1: is a plain value; allowed: a mapping of listen,"),
        ("redis: here\n", ":1: redis: is a plain value; allowed: a mapping of url, prefix,"),
        ("redis: [a]\n", ":1: redis: is a list; allowed: a mapping of url,"),
        ("log: {}\nlog: {}\n", ":2: log: is a duplicate of line 1; allowed: once"),
        ("log:\n  level: info\n  level: info\n", ":3: log.level: is a duplicate of line 2;"),
        ("? [a]\n: b\n", ":1: has a key that is no plain text;"),
        ("log:\n  level: [info]\n", ":2: log.level: is a list; allowed: one of debug,"),
        ("log:\n  level: {a: b}\n", ":2: log.level: is a mapping; allowed: one of debug,"),
        ("log:\n  level: null\n", ":2: log.level: is null; allowed: one of debug,"),
        ("trusted_hops:\n", ":1: trusted_hops: is null; allowed: networks in CIDR form"),
        ("trusted_hops: {a: b}\n", ":1: trusted_hops: is a mapping; allowed: networks"),
        ("trusted_hops: [[a]]\n", ":1: trusted_hops: has a nested item; allowed: networks"),
        ("redis:\n  password: &hunter2\n", ":2: has a YAML anchor, alias or tag"),
        ("redis:\n  password: *hunter2\n", ":2: has a YAML anchor, alias or tag"),
        ("redis:\n  password: !hunter2\n", ":2: has a YAML anchor, alias or tag"),
        (b"\xff\xfe\xfd", ": is not UTF-8 text (byte 0)"),
        (b"log: \x07", ": has a control character at position 5"),
        ("[" * 1000, ": is nested too deeply"),
    ],
)
def test_file_of_the_wrong_shape_is_one_clear_line(write, text, line):
    """Whatever the file is, the answer is where and what, in one line without its content."""
    path = write(text)
    found = problems(path)
    assert len(found) == 1
    assert found[0].startswith(path + line)
    assert "hunter2" not in found[0]


def test_empty_file_and_empty_sections_are_fine(write):
    """A section whose keys are all commented out says nothing."""
    for text in ("", "# nothing\n", "redis:\n  # url: x\nlog:\n", "limits:\n"):
        assert load(write(text), {}) == load(None, {})


def test_only_the_default_file_may_be_missing(tmp_path):
    """A file that was asked for has to be there."""
    gone = str(tmp_path / "gone.yaml")
    allowed = "allowed: the path of a readable YAML file"
    assert problems(gone) == [f"{gone}: can't be read (No such file or directory); {allowed}"]
    assert problems(AUTHSIDECAR_CONFIG=gone)[0].startswith(f"AUTHSIDECAR_CONFIG: {gone}: can't be")
    assert problems(AUTHSIDECAR_CONFIG="")[0].startswith('AUTHSIDECAR_CONFIG: "": can\'t be read')
    assert problems(str(tmp_path)) == [f"{tmp_path}: can't be read (Is a directory); {allowed}"]
    assert problems("a\0b")[0].endswith(f"can't be read (not a path); {allowed}")


def test_every_problem_is_said_at_once_with_its_line(write):
    """One run of check-config is enough to repair a file."""
    path = write(
        "listen:\n"
        "  workers: 0\n"
        "redis:\n"
        "  budget: 3\n"
        "  budget_ms: soon\n"
        "trusted_peers:\n"
        "  - 10.0.0.0/8\n"
        "  - 0.0.0.0/0\n"
        "limits:\n"
        "  token: {window_seconds: 5}\n"
        "sync:\n"
        "  source: coolify\n"
    )
    found = problems(
        path,
        AUTHSIDECAR_LOG__LEVEL="loud",
        AUTHSIDECAR_NOTHING="x",
        API_RATE_LIMIT="0",
        AUTHSIDECAR_TRUSTED_HOPS="10.0.0.0/8, ::/0",
    )
    starts = sorted(line.removeprefix(path).partition("; ")[0] for line in found)
    assert starts == sorted(
        [
            ':2: listen.workers: got "0"',
            ":4: redis.budget: is no setting",
            ':5: redis.budget_ms: got "soon"',
            ':8: trusted_peers: got "0.0.0.0/0", which would trust everyone',
            ":10: limits.token.limit: is missing",
            ":12: sync.dsn: is missing beside sync.source, and so is sync.host",
            'AUTHSIDECAR_LOG__LEVEL: log.level: got "loud"',
            "AUTHSIDECAR_NOTHING: is no setting",
            'API_RATE_LIMIT: limits.user.limit: got "0"',
            'AUTHSIDECAR_TRUSTED_HOPS: trusted_hops: got "::/0", which would trust everyone',
        ]
    )


def test_scalars_are_read_as_they_are_written(write):
    """YAML's own numbers (octal, base 60, floats) change nothing that was written."""
    settings = load(
        write(
            "listen: {unix_socket: /run/a.sock, unix_socket_mode: 0640}\n"
            "coolify: {routes: 4.0}\n"
            "redis: {prefix: 1:30, password: 012}\n"
            "enforcement: report\n"
        ),
        {},
    )
    assert settings.listen.mode == 0o640
    assert settings.coolify.routes == "4.0"
    assert settings.redis.prefix == "1:30"
    assert settings.redis.password.get_secret_value() == "012"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8,fd00::/64", ("10.0.0.0/8", "fd00::/64")),
        (" 10.0.0.0/8 , 192.0.2.1 ", ("10.0.0.0/8", "192.0.2.1/32")),
        ('["10.0.0.0/8", "FD00::/64"]', ("10.0.0.0/8", "fd00::/64")),
        ("[]", ()),
        ("", ()),
    ],
)
def test_list_in_the_environment_is_json_or_commas(text, expected):
    """Both spellings that people try are understood."""
    assert load(None, {"AUTHSIDECAR_TRUSTED_PEERS": text}).trusted_peers == expected


def test_null_is_said_by_none_null_or_nothing_except_in_secrets():
    """`address: none` is null; a password may well be the word none."""
    for text in ("none", "null", "", "None"):
        environ = {"AUTHSIDECAR_LISTEN__ADDRESS": text, "AUTHSIDECAR_LISTEN__UNIX_SOCKET": "/s"}
        assert load(None, environ).listen.endpoint is None
    settings = load(None, {"AUTHSIDECAR_REDIS__PASSWORD": "none"})
    assert settings.redis.password.get_secret_value() == "none"
    assert load(None, {"AUTHSIDECAR_REDIS__PASSWORD": ""}).redis.password is None


SECRETS = {
    "AUTHSIDECAR_REDIS__URL": "redis://me:hunter2@127.0.0.1/0",
    "AUTHSIDECAR_REDIS__PASSWORD": "hunter2",
    "AUTHSIDECAR_MAIL__USERNAME": "me",
    "AUTHSIDECAR_MAIL__PASSWORD": "hunter2",
    "AUTHSIDECAR_MAIL__WEBHOOK_URL": "http://hook.test/hunter2",
    "AUTHSIDECAR_MAIL__WEBHOOK_SECRET": "hunter2",
    "AUTHSIDECAR_SYNC__SOURCE": "coolify",
    "AUTHSIDECAR_SYNC__DSN": "postgresql://me:hunter2@db/coolify",
}


def test_secrets_are_in_no_repr_and_no_warning():
    """Printing the settings, or advising on them, shows no secret."""
    settings = load(None, SECRETS)
    assert "hunter2" in settings.redis.url
    assert "hunter2" not in repr(settings) + str(settings) + "\n".join(warnings(settings))


@pytest.mark.parametrize(
    "environ",
    [
        {"AUTHSIDECAR_REDIS__URL": "reddis://me:hunter2@127.0.0.1/0"},
        {"AUTHSIDECAR_REDIS__URL": "redis://me:hun#ter2@127.0.0.1/hunter2"},
        {"AUTHSIDECAR_REDIS__URL": "redis://me:hunter2@[::1/0"},
        {"AUTHSIDECAR_REDIS__URL": "redis://me:hunter2@a,b/0"},
        {"AUTHSIDECAR_SYNC__DSN": "mysql://me:hunter2@db/coolify"},
        {"AUTHSIDECAR_MAIL__WEBHOOK_URL": "ftp://hook.test/hunter2"},
        {"AUTHSIDECAR_MAIL__PASSWORD": "hunter2"},
        SECRETS | {"AUTHSIDECAR_REDIS__WAIT_REPLICAS": "x", "AUTHSIDECAR_NO": "hunter2"},
    ],
)
def test_secrets_are_in_no_error(environ):
    """A refused secret is named by its key, not by its value; nor are its neighbours shown."""
    with pytest.raises(ConfigError) as caught:
        load(None, environ)
    assert "hunter2" not in str(caught.value) + repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_secrets_in_a_broken_file_are_not_repeated(write):
    """A syntax error is told by its line; YAML's own message would quote it."""
    for text in ("redis:\n  password: 'hunter2\n", "redis: {password: hunter2\nx", "p: hunter2: x"):
        assert "hunter2" not in "".join(problems(write(text)))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "/home/me/.local/state/authsidecar"),
        ({"XDG_STATE_HOME": "/state"}, "/state/authsidecar"),
        ({"XDG_STATE_HOME": "relative"}, "/home/me/.local/state/authsidecar"),
    ],
)
def test_data_directory_of_a_plain_user(monkeypatch, environ, expected):
    """Without a writable /var/lib/authsidecar it is the user's state directory."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    environ = {"HOME": "/home/me", **environ}
    assert default_data_dir(environ) == Path(expected)
    assert load(None, environ).data_dir == Path(expected)
    assert load(None, environ | {"AUTHSIDECAR_DATA_DIR": "/mine"}).data_dir == Path("/mine")


def test_data_directory_of_root(monkeypatch):
    """Root keeps its state where daemons do."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_data_dir({"XDG_STATE_HOME": "/state"}) == Path("/var/lib/authsidecar")


@pytest.mark.parametrize(
    ("environ", "start"),
    [
        ({"ENFORCEMENT": "report"}, "enforcement: "),
        ({"COOLIFY__OUTSIDE": "pass"}, "coolify.outside: "),
        ({"REDIS__PUBLIC_WITHOUT_REDIS": "true"}, "redis.public_without_redis: "),
        ({"API__ENABLED_AT_FIRST_START": "true"}, "api.enabled_at_first_start: "),
        ({"MANAGEMENT__ADDRESS": "0.0.0.0:4191"}, "management.address: "),
        (
            {"LISTEN__UNIX_SOCKET": "/s", "LISTEN__UNIX_SOCKET_MODE": "666"},
            "listen.unix_socket_mode: ",
        ),
        ({"LISTEN__ADDRESS": ":4190", "TRUSTED_PEERS": "10.0.0.0/8"}, "listen.address: "),
        ({"LISTEN__ADDRESS": "[::]:4190", "TRUSTED_PEERS": "fd00::/64"}, "listen.address: "),
        ({"TRUSTED_PEERS": "10.0.0.0/7"}, "trusted_peers: 10.0.0.0/7 "),
        ({"TRUSTED_PEERS": "fc00::/7"}, "trusted_peers: fc00::/7 "),
        ({"TRUSTED_HOPS": "128.0.0.0/1"}, "trusted_hops: 128.0.0.0/1 "),
        ({"TRUSTED_PEERS": ""}, "trusted_peers: is empty"),
        ({"REDIS__URL": "redis://cache:6379"}, "redis.url: "),
        ({"REDIS__URL": "redis+sentinel://127.0.0.1,10.0.0.1/main"}, "redis.url: "),
        ({"REDIS__EVICTION_POLICY": "warn"}, "redis.eviction_policy: "),
        ({"REDIS__BUDGET_MS": "1001"}, "redis.budget_ms: "),
        ({"REDIS__CACHE_RECORDS": "0"}, "redis.cache_records: "),
        ({"REDIS__WAIT_REPLICAS": "1"}, "redis.wait_replicas: "),
        ({"REDIS__URL": "rediss+cluster://c", "LIMITS__TEAM": "5"}, "limits: on a Redis Cluster"),
        ({"LIMITS__USER": "none"}, "limits.user: "),
        ({"LIMITS__FAILED": "none"}, "limits.failed: is off"),
        ({"LIMITS__FAILED": "1001"}, "limits.failed: above 1000"),
        ({"LIMITS__UNKNOWN": "none"}, "limits.unknown: "),
        ({"REDIS__URL": "unix:///s", "LISTEN__WORKERS": "64"}, "listen.workers: 64 "),
        ({"LOG__DECISIONS": "none"}, "log.decisions: "),
        ({"MAIL__HOST": "mx.test", "MAIL__SENDER": "a@b.c", "MAIL__TLS": "none"}, "mail.tls: "),
        (
            {"MAIL__WEBHOOK_URL": "http://h.test/", "MAIL__WEBHOOK_SECRET": "x"},
            "mail.webhook_url: ",
        ),
        ({"MAIL__WEBHOOK_URL": "https://h.test/"}, "mail.webhook_secret: is not set"),
        ({"MAIL__WEBHOOK_SECRET": "x"}, "mail.webhook_secret: has no effect"),
        ({"SYNC__ALLOW_EMPTY": "true"}, "sync.allow_empty: "),
        ({"SYNC__INSTANT": "true"}, "sync.source: "),
    ],
)
def test_legal_but_unwise_settings_are_warned_about(environ, start):
    """Each is loaded, and told once, under its own name."""
    settings = load(None, {f"AUTHSIDECAR_{name}": value for name, value in environ.items()})
    found = warnings(settings)
    assert [line[: len(start)] for line in found] == [start]


def test_workers_with_the_embedded_redis_are_warned_about():
    """Two workers fit any machine's Redis, but an embedded one serves this machine alone."""
    found = warnings(load(None, {"AUTHSIDECAR_LISTEN__WORKERS": "2"}))
    assert "the embedded Redis of this machine" in found[-1]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"REDIS__URL": "redis://localhost:6379/0"},
        {"REDIS__URL": "redis+cluster://127.0.0.1:7000,[::1]:7001"},
        {"REDIS__URL": "rediss://:p@cache.internal"},
        {"REDIS__URL": "unix:///run/redis.sock"},
        {"LISTEN__ADDRESS": "0.0.0.0:4190"},
        {"TRUSTED_PEERS": "10.0.0.0/8,fd00::/32"},
        {"MAIL__HOST": "mx.test", "MAIL__SENDER": "a@b.c"},
        {"LIMITS__TEAM": "5", "LIMITS__FAILED": "1000"},
    ],
)
def test_wise_settings_are_not_warned_about(environ):
    """A warning that everybody sees is read by nobody."""
    settings = load(None, {f"AUTHSIDECAR_{name}": value for name, value in environ.items()})
    assert warnings(settings) == ()


def test_example_is_written_by_the_code():
    """config.example.yaml can't fall behind: it is `example()`."""
    assert (ROOT / "config.example.yaml").read_text() == example()


def test_example_holds_every_setting_and_nothing_but_defaults():
    """Copying the example changes nothing, and nothing is missing from it."""
    path = ROOT / "config.example.yaml"
    assert load(str(path), {}) == load(None, {})
    tree = yaml.safe_load(path.read_text())
    for setting in SETTINGS.values():
        here = tree
        for name in setting.path:
            if here is None:  # inside a bucket that is off
                break
            assert name in here, setting.key
            here = here[name]


def test_reference_page_holds_every_setting():
    """The tables of the page are those of the code, and name every key and variable."""
    page = (ROOT / "docs/reference/configuration.md").read_text()
    assert reference() in page
    for setting in SETTINGS.values():
        assert f"| `{setting.key}` | {setting.kind} |" in page
        assert f"`{setting.variable}`" in page


def test_every_setting_has_a_sentence_and_says_what_is_allowed():
    """A setting without them would be one that its messages can't explain."""
    for setting in SETTINGS.values():
        assert re.fullmatch(r"[A-Z`].*\.", setting.description, re.DOTALL), setting.key
        assert setting.allowed.strip(", "), setting.key


def test_schema_is_draft_2020_12_and_accepts_the_example():
    """Editors that know the schema agree with the loader on the example."""
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(yaml.safe_load(example()))
    validator.validate({"limits": {"user": 5, "token": {"window_seconds": 3}}})


@pytest.mark.parametrize(
    "tree",
    [{"redis": {"ulr": "x"}}, {"nothing": 1}, {"listen": {"workers": 65}}, {"enforcement": "off"}],
)
def test_schema_refuses_what_the_loader_refuses(tree):
    """Unknown keys and wrong values are marked while typing."""
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(tree)


def test_schema_describes_every_key():
    """Whatever an editor offers, it can explain, and it offers nothing else."""
    schema = json_schema()
    for node in (schema, *schema["$defs"].values()):
        assert node["additionalProperties"] is False
        for part in node["properties"].values():
            described = schema["$defs"][part["$ref"].split("/")[-1]] if "$ref" in part else part
            assert described["description"]


def test_files_of_values_are_read_again(tmp_path: Path) -> None:
    """What a secret's file holds now is taken; what can't be used stays as it was."""
    password, limit, url = (tmp_path / name for name in ("password", "limit", "url"))
    password.write_text("first\n")
    url.write_text("redis://first.internal")
    limit.write_text("5")
    settings = load(
        None,
        {
            "AUTHSIDECAR_REDIS__PASSWORD_FILE": str(password),
            "AUTHSIDECAR_REDIS__URL_FILE": str(url),
            "AUTHSIDECAR_LIMITS__USER__LIMIT_FILE": str(limit),
        },
    )
    password.write_text("second\n")
    url.write_text("no url")
    limit.write_text("6")
    again = reread(settings)
    assert again.redis.password is not None
    assert again.redis.password.get_secret_value() == "second"
    assert again.redis.url == "redis://first.internal"
    assert again.limits == settings.limits
    password.unlink()
    assert reread(again).redis == again.redis


def test_one_peer_may_not_have_more_connections_than_all():
    """Either number is refused only beside the other."""
    (problem,) = problems(
        AUTHSIDECAR_LISTEN__MAX_CONNECTIONS="100",
        AUTHSIDECAR_LISTEN__MAX_CONNECTIONS_PER_PEER="101",
    )
    assert "listen.max_connections_per_peer: is more than listen.max_connections" in problem
    assert load(None, {"AUTHSIDECAR_LISTEN__MAX_CONNECTIONS_PER_PEER": "101"})
