"""Every single setting: set by each source, and refused with a message that helps."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from authsidecar.config import ConfigError, load, loading
from authsidecar.config.catalogue import SETTINGS
from authsidecar.decision.ratelimit.charges import SCOPES
from authsidecar.decision.routes.loading import RELEASES, serves

RUN = {
    "listen.address": ("0.0.0.0:8080", "0.0.0.0:8080"),
    "listen.unix_socket": ("/run/authsidecar.sock", Path("/run/authsidecar.sock")),
    "listen.unix_socket_mode": ("600", "600"),
    "listen.server": ("aiohttp", "aiohttp"),
    "listen.workers": ("4", 4),
    "listen.max_connections": ("20000", 20_000),
    "listen.max_connections_per_peer": ("500", 500),
    "listen.first_byte_timeout_seconds": ("2.5", 2.5),
    "listen.request_timeout_seconds": ("3", 3.0),
    "listen.max_body_bytes": ("0", 0),
    "listen.memo_entries": ("0", 0),
    "listen.reuse_port": ("on", True),
    "management.address": ("[::1]:9999", "[::1]:9999"),
    "management.tls_cert_file": ("/cert.pem", Path("/cert.pem")),
    "management.tls_key_file": ("/key.pem", Path("/key.pem")),
    "management.metrics_key": ("true", True),
    "management.console": ("false", False),
    "management.console_hosts": ('["sidecar.example"]', ("sidecar.example",)),
    "management.fleet_counters": ("false", False),
    "redis.url": ("rediss://u:p@cache:6380/2", "rediss://u:p@cache:6380/2"),
    "redis.prefix": ("az:", "az:"),
    "redis.budget_ms": ("75", 75),
    "redis.username": ("me", "me"),
    "redis.password": ("s3cret", SecretStr("s3cret")),
    "redis.tls_ca_file": ("/ca.pem", Path("/ca.pem")),
    "redis.tls_cert_file": ("/cert.pem", Path("/cert.pem")),
    "redis.tls_key_file": ("/key.pem", Path("/key.pem")),
    "redis.wait_replicas": ("2", 2),
    "redis.wait_timeout_ms": ("250", 250),
    "redis.max_connections": ("8", 8),
    "redis.eviction_policy": ("warn", "warn"),
    "redis.cache_records": ("0", 0),
    "redis.wait_at_start_seconds": ("60", 60.0),
    "redis.cache_max_age_seconds": ("2.5", 2.5),
    "redis.public_without_redis": ("true", True),
    "data_dir": ("/srv/authsidecar", Path("/srv/authsidecar")),
    "trusted_peers": ("10.0.0.0/8", ("10.0.0.0/8",)),
    "trusted_hops": ("192.0.2.0/24", ("192.0.2.0/24",)),
    "coolify.routes": ("4.1", "4.1"),
    "coolify.extra_routes": ("/routes.tsv", Path("/routes.tsv")),
    "coolify.outside": ("pass", "pass"),
    "coolify.instance_team": ("7", 7),
    "restrictions.body": ("forwarded", "forwarded"),
    "api.enabled_at_first_start": ("yes", True),
    "limits.ipv6_prefix": ("56", 56),
    "limits.lookups_per_second": ("20", 20),
    "enforcement": ("report", "report"),
    "log.format": ("json", "json"),
    "log.level": ("debug", "debug"),
    "log.decisions": ("denied", "denied"),
    "receipts.enabled": ("false", False),
    "receipts.share": ("0.5", 0.5),
    "receipts.max_entries": ("2000", 2000),
    "receipts.max_age_hours": ("24", 24),
    "receipts.max_per_second": ("10", 10),
    "traces.endpoint": ("http://127.0.0.1:4318/v1/traces", "http://127.0.0.1:4318/v1/traces"),
    "traces.ratio": ("0.01", 0.01),
    "traces.max_per_second": ("10", 10),
    "mail.host": ("mail.example.com", "mail.example.com"),
    "mail.port": ("465", 465),
    "mail.tls": ("none", "none"),
    "mail.username": ("me", "me"),
    "mail.password": ("none", SecretStr("none")),
    "mail.sender": ("authsidecar@example.com", "authsidecar@example.com"),
    "mail.operator": ("ops@example.com", "ops@example.com"),
    "mail.lead_times_hours": ("168,24", (168, 24)),
    "mail.synced_tokens": ("on", True),
    "mail.webhook_url": ("https://hook.example.com/x", "https://hook.example.com/x"),
    "mail.webhook_secret": ("s3cret", SecretStr("s3cret")),
    "mail.expiry_header_hours": ("48", 48),
    "sync.source": ("coolify", "coolify"),
    "sync.dsn": ("postgresql://me:pw@db/coolify", SecretStr("postgresql://me:pw@db/coolify")),
    "sync.host": ("db", "db"),
    "sync.port": ("6432", 6432),
    "sync.user": ("authsidecar", "authsidecar"),
    "sync.password": ("a/b", SecretStr("a/b")),
    "sync.database": ("coolify", "coolify"),
    "sync.interval_seconds": ("0.5", 0.5),
    "sync.instant": ("1", True),
    "sync.team_isolation": ("true", True),
    "sync.resources": ("true", True),
    "sync.allow_empty": ("true", True),
    "shutdown.delay_seconds": ("5", 5.0),
    **{f"limits.{scope}.limit": ("77", 77) for scope in SCOPES},
    **{f"limits.{scope}.window_seconds": ("1.25", 1.25) for scope in SCOPES},
}
"""Another value than the default for each setting: its text, and what it becomes."""

BESIDE = {
    "redis.tls_ca_file": {"redis.url": "rediss://cache"},
    "management.tls_cert_file": {"management.tls_key_file": "/key.pem"},
    "management.tls_key_file": {"management.tls_cert_file": "/cert.pem"},
    "redis.tls_cert_file": {"redis.url": "rediss://cache", "redis.tls_key_file": "/key.pem"},
    "redis.tls_key_file": {"redis.url": "rediss://cache", "redis.tls_cert_file": "/cert.pem"},
    "mail.host": {"mail.sender": "a@example.com"},
    "mail.username": {"mail.password": "x"},
    "mail.password": {"mail.username": "x"},
    "sync.source": {"sync.dsn": "postgresql://db/coolify"},
    "sync.host": {"sync.user": "me", "sync.database": "coolify"},
    "sync.port": {"sync.dsn": "postgresql://db/coolify", "sync.host": "other"},
    "sync.user": {"sync.dsn": "postgresql://db/coolify"},
    "sync.password": {"sync.dsn": "postgresql://db/coolify"},
    "sync.database": {"sync.dsn": "postgresql://db/coolify"},
    **{f"limits.{scope}.window_seconds": {f"limits.{scope}.limit": "9"} for scope in SCOPES},
}
"""What else has to be set for a setting to make sense."""

LEAVES = [setting.key for setting in SETTINGS.values() if setting.kind != "bucket"]


@pytest.fixture(autouse=True)
def no_default_file(tmp_path, monkeypatch):
    """Keep this machine's own /etc out of the tests."""
    monkeypatch.setattr(loading, "DEFAULT_FILE", str(tmp_path / "etc" / "config.yaml"))


def variable(key):
    return "AUTHSIDECAR_" + key.upper().replace(".", "__")


def value_of(settings, key):
    here = settings
    for name in key.split("."):
        here = getattr(here, name)
    return here


def as_file(path, values):
    """Write values as YAML, unquoted wherever that is possible, so that YAML's types are met."""
    tree = {}
    for key, text in values.items():
        here = tree
        *sections, last = key.split(".")
        for name in sections:
            here = here.setdefault(name, {})
        here[last] = text if plain(text) else json.dumps(text)
    path.write_text("\n".join(rendered(tree, "")))
    return str(path)


def plain(text):
    try:
        return not isinstance(yaml.safe_load(text), dict | list)
    except yaml.YAMLError:
        return False


def rendered(tree, indent):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from rendered(value, indent + "  ")
        else:
            yield f"{indent}{name}: {value}"


def neighbours(key):
    return {variable(other): text for other, text in BESIDE.get(key, {}).items()}


def test_no_setting_is_without_a_row():
    """A new setting has to be added to the table above."""
    assert set(RUN) == set(LEAVES)


@pytest.mark.parametrize("key", LEAVES)
def test_setting_is_set_by_the_file(tmp_path, key):
    """The file's value is the one that the program sees, and it is not the default."""
    text, expected = RUN[key]
    values = {key: text, **BESIDE.get(key, {})}
    settings = load(as_file(tmp_path / "config.yaml", values), {})
    assert value_of(settings, key) == expected
    assert SETTINGS[tuple(key.split("."))].default != expected


@pytest.mark.parametrize("key", LEAVES)
def test_setting_is_set_by_the_environment(key):
    """Every setting has its variable."""
    text, expected = RUN[key]
    assert value_of(load(None, neighbours(key) | {variable(key): text}), key) == expected


@pytest.mark.parametrize("key", LEAVES)
def test_setting_is_set_by_a_file_that_the_environment_names(tmp_path, key):
    """Every setting has its `_FILE` variable."""
    text, expected = RUN[key]
    (tmp_path / "value").write_text(text + "\n")
    environ = neighbours(key) | {variable(key) + "_FILE": str(tmp_path / "value")}
    assert value_of(load(None, environ), key) == expected


@pytest.mark.parametrize("key", [f"limits.{scope}" for scope in SCOPES])
def test_bucket_is_set_by_a_plain_number_and_switched_off_by_null(tmp_path, key):
    """`user: 77` is a limit of 77, `user: null` none, in the file and in the environment."""
    for text, limit in (("77", 77), ("null", None)):
        path = as_file(tmp_path / "config.yaml", {key: text})
        for settings in (load(path, {}), load(None, {variable(key): text})):
            bucket = value_of(settings, key)
            assert (None if bucket is None else bucket.limit) == limit


LONG = "x" * 65
NETWORKS = "networks in CIDR form such as 10.0.0.0/8 or fd00::/64, prefix at least 1"
ENDPOINT = "HOST:PORT, [IPV6]:PORT or :PORT for all interfaces"

WRONG = [
    ("listen.address", "4190", ENDPOINT),
    ("listen.address", "::1:4190", ENDPOINT),
    ("listen.address", "[127.0.0.1]:4190", ENDPOINT),
    ("listen.address", "localhost", ENDPOINT),
    ("listen.address", "127.0.0.1:65536", ENDPOINT),
    ("listen.address", "127.0.0.1:http", ENDPOINT),
    ("listen.address", "999.0.0.1:80", ENDPOINT),
    ("listen.address", "*:4190", ENDPOINT),
    ("listen.address", "http://127.0.0.1:4190", ENDPOINT),
    ("listen.address", "none", "an address, or null together with listen.unix_socket"),
    ("listen.unix_socket", "/" + "x" * 107, "the path of a socket, at most 107 bytes"),
    ("listen.unix_socket", "/", "the path of a socket"),
    ("listen.unix_socket_mode", "rw", "three octal digits, 000 to 777"),
    ("listen.unix_socket_mode", "888", "three octal digits"),
    ("listen.unix_socket_mode", "7777", "three octal digits"),
    ("listen.reuse_port", "maybe", "true or false"),
    ("listen.server", "slow", "one of auto, fast, aiohttp"),
    ("listen.workers", "0", "a whole number from 1 to 64"),
    ("listen.workers", "65", "a whole number from 1 to 64"),
    ("listen.workers", "1.5", "a whole number from 1 to 64"),
    ("listen.workers", "true", "a whole number from 1 to 64"),
    ("listen.workers", "auto", "a whole number from 1 to 64"),
    ("listen.max_connections", "0", "a whole number from 1 to 1000000"),
    ("listen.max_connections_per_peer", "-1", "a whole number from 1 to 1000000"),
    ("listen.request_timeout_seconds", "0", "a number from 0.1 to 3600"),
    ("listen.first_byte_timeout_seconds", "1h", "a number from 0.1 to 3600"),
    ("listen.max_body_bytes", "64k", "a whole number from 0 to 1073741824"),
    ("listen.memo_entries", "-1", "a whole number from 0 to 1000000"),
    ("management.address", "none", ENDPOINT),
    ("management.address", "127.0.0.1:4190", "another port"),
    ("redis.url", "127.0.0.1:6379", "embedded, redis://"),
    ("redis.url", "http://127.0.0.1", "embedded, redis://"),
    ("redis.url", "redis:127.0.0.1", "embedded, redis://"),
    ("redis.url", "redis://", "embedded, redis://"),
    ("redis.url", "redis://cache/main", "embedded, redis://"),
    ("redis.url", "redis://cache:0", "embedded, redis://"),
    ("redis.url", "redis://a,b", "embedded, redis://"),
    ("redis.url", "redis://cache/0?socket_timeout=9", "embedded, redis://"),
    ("redis.url", "redis://:pass#word@cache", "embedded, redis://"),
    ("redis.url", "unix://", "embedded, redis://"),
    ("redis.url", "unix://run/redis.sock", "embedded, redis://"),
    ("redis.url", "redis+sentinel://a:26379", "redis+sentinel://HOST[:PORT]"),
    ("redis.url", "redis+sentinel://a:x/main", "redis+sentinel://HOST[:PORT]"),
    ("redis.url", "redis+cluster://a/1", "redis+cluster://HOST[:PORT]"),
    ("redis.url", "", "embedded, redis://"),
    ("redis.prefix", "", "1 to 64 printable ASCII characters, no blanks, no braces"),
    ("redis.prefix", LONG, "1 to 64 printable ASCII"),
    ("redis.prefix", "a b", "no blanks"),
    ("redis.prefix", "{a}", "no braces"),
    ("redis.prefix", "prä", "printable ASCII"),
    ("redis.budget_ms", "0", "a whole number from 1 to 10000"),
    ("redis.budget_ms", "10001", "a whole number from 1 to 10000"),
    ("redis.budget_ms", "50ms", "a whole number from 1 to 10000"),
    ("redis.username", "a\nb", "1 to 255 characters"),
    ("redis.tls_ca_file", "/ca.pem", "rediss://"),
    ("management.tls_cert_file", "/cert.pem", "both, or neither"),
    ("management.tls_key_file", "/key.pem", "both, or neither"),
    ("management.metrics_key", "maybe", "true or false"),
    ("management.console", "maybe", "true or false"),
    ("management.console_hosts", '["a/b"]', "host names or addresses"),
    ("management.fleet_counters", "maybe", "true or false"),
    ("redis.tls_cert_file", "/cert.pem", "both, or neither"),
    ("redis.tls_key_file", "/key.pem", "both, or neither"),
    ("redis.wait_replicas", "-1", "a whole number from 0 to 10"),
    ("redis.wait_timeout_ms", "0", "a whole number from 1 to 60000"),
    ("redis.max_connections", "0", "a whole number from 1 to 10000"),
    ("redis.eviction_policy", "allow", "one of refuse, warn"),
    ("redis.cache_records", "-1", "a whole number from 0 to 10000000"),
    ("redis.cache_max_age_seconds", "0", "a number from 0.1 to 300"),
    ("redis.wait_at_start_seconds", "-1", "a number from 0 to 86400, or null"),
    ("shutdown.delay_seconds", "301", "a number from 0 to 300"),
    ("redis.public_without_redis", "maybe", "true or false"),
    ("data_dir", "/", "the path of a directory"),
    ("trusted_peers", "0.0.0.0/0", NETWORKS),
    ("trusted_peers", "::/0", NETWORKS),
    ("trusted_peers", "10.0.0.0/0", NETWORKS),
    ("trusted_peers", "10.0.0.1/8", NETWORKS),
    ("trusted_peers", "10.0.0.0/33", NETWORKS),
    ("trusted_peers", "10.0.0.0/255.0.0.0", NETWORKS),
    ("trusted_peers", "::ffff:10.0.0.0/104", NETWORKS),
    ("trusted_peers", "traefik", NETWORKS),
    ("trusted_peers", "10.0.0.0/8,", NETWORKS),
    ("trusted_peers", '["10.0.0.0/8"', NETWORKS),
    ("trusted_peers", "[[1]]", NETWORKS),
    ("trusted_hops", "0.0.0.0/0", NETWORKS),
    ("trusted_hops", "::/0", NETWORKS),
    ("coolify.routes", "4.2", f"one of {', '.join(RELEASES)}"),
    ("coolify.routes", "latest", f"one of {', '.join(RELEASES)}"),
    ("coolify.outside", "allow", "one of deny, pass"),
    ("restrictions.body", "seen", "one of refused, forwarded"),
    ("coolify.instance_team", "-1", "a whole number from 0 to 9223372036854775807"),
    ("coolify.instance_team", "root", "a whole number from 0 to 9223372036854775807"),
    ("api.enabled_at_first_start", "2", "true or false"),
    ("limits.user", "0", "a whole number from 1 to 100000"),
    ("limits.user", "100001", "a whole number from 1 to 100000"),
    ("limits.user.limit", "-5", "a whole number from 1 to 100000"),
    ("limits.user.limit", "many", "a whole number from 1 to 100000"),
    ("limits.user.window_seconds", "0", "a number from 1 to 86400"),
    ("limits.user.window_seconds", "86401", "a number from 1 to 86400"),
    ("limits.user.window_seconds", "1.0005", "a number from 1 to 86400"),
    ("limits.user.window_seconds", "nan", "a number from 1 to 86400"),
    ("limits.user.window_seconds", "inf", "a number from 1 to 86400"),
    ("limits.token.window_seconds", "60", "a whole number from 1 to 100000"),
    ("limits.ipv6_prefix", "47", "a whole number from 48 to 128"),
    ("limits.ipv6_prefix", "129", "a whole number from 48 to 128"),
    ("limits.lookups_per_second", "0", "a whole number from 1 to 1000"),
    ("enforcement", "off", "one of enforce, report"),
    ("log.format", "xml", "one of auto, json, console"),
    ("log.level", "INFO", "one of debug, info, warning, error"),
    ("log.decisions", "some", "one of all, denied, none"),
    ("receipts.enabled", "maybe", "true or false"),
    ("receipts.share", "1.1", "a number from 0 to 1"),
    ("receipts.max_entries", "999", "a whole number from 1000 to 100000000"),
    ("receipts.max_age_hours", "0", "a whole number from 1 to 8760"),
    ("receipts.max_per_second", "1", "a whole number from 2 to 100000"),
    ("traces.endpoint", "collector:4318", "an http:// or https:// URL"),
    ("traces.ratio", "1.1", "a number from 0 to 1"),
    ("traces.max_per_second", "0", "a whole number from 1 to 10000"),
    ("mail.host", "smtp://mail", "a host name or an address"),
    ("mail.host", "mail.example.com", "a plain mail address"),
    ("mail.port", "0", "a whole number from 1 to 65535"),
    ("mail.tls", "ssl", "one of starttls, tls, none"),
    ("mail.username", "me", "both, or neither"),
    ("mail.sender", "Me <me@example.com>", "a plain mail address"),
    ("mail.sender", "me", "a plain mail address"),
    ("mail.operator", "me", "a plain mail address"),
    ("mail.sender", "me@example.com\nBcc: x", "a plain mail address"),
    ("mail.lead_times_hours", "0", "up to 10 different whole numbers from 1 to 8760"),
    ("mail.lead_times_hours", "24,24", "up to 10 different whole numbers"),
    ("mail.lead_times_hours", "soon", "up to 10 different whole numbers"),
    ("mail.synced_tokens", "", "true or false"),
    ("mail.webhook_url", "hook.example.com", "an http:// or https:// URL"),
    ("mail.webhook_url", "https://", "an http:// or https:// URL"),
    ("mail.expiry_header_hours", "-1", "a whole number from 0 to 8760"),
    ("sync.source", "laravel", "one of coolify, or null"),
    ("sync.source", "coolify", "postgresql://"),
    ("sync.dsn", "mysql://db/coolify", "postgresql://USER:PASSWORD@HOST[:PORT]/DATABASE"),
    ("sync.dsn", "postgresql://me:a/b@db/coolify", "postgresql://USER:PASSWORD@"),
    ("sync.dsn", "postgresql://me:a#b@db/coolify", "postgresql://USER:PASSWORD@"),
    ("sync.dsn", "postgresql://me:a?b@db/coolify", "postgresql://USER:PASSWORD@"),
    ("sync.dsn", "postgresql://me:a@b@db/coolify", "postgresql://USER:PASSWORD@"),
    ("sync.dsn", "postgresql://me:a%b@db/coolify", "postgresql://USER:PASSWORD@"),
    ("sync.dsn", "postgresql://me:a[b@db/coolify", "postgresql://USER:PASSWORD@"),
    ("sync.dsn", "postgresql://me:a b@db/coolify", "postgresql://USER:PASSWORD@"),
    ("sync.dsn", "postgresql://me:pw@db:port/coolify", "postgresql://USER:PASSWORD@"),
    ("sync.host", "-db", "a host name or an address"),
    ("sync.host", "db", "1 to 255 characters"),
    ("sync.port", "0", "a whole number from 1 to 65535"),
    ("sync.port", "5432", "sync.host"),
    ("sync.user", "a\tb", "no control characters"),
    ("sync.user", "me", "a host name or an address"),
    ("sync.database", "a\tb", "no control characters"),
    ("sync.interval_seconds", "0", "a number from 0.1 to 3600"),
    ("sync.instant", "instant", "true or false"),
    ("sync.team_isolation", "5", "true or false"),
    ("sync.resources", "5", "true or false"),
    ("sync.allow_empty", "5", "true or false"),
]
"""A setting, a text that it must not take, and a part of what is said to be allowed."""

ABOUT = {
    ("redis.tls_ca_file", "/ca.pem"): "redis.url",
    ("redis.tls_key_file", "/key.pem"): "redis.tls_cert_file",
    ("management.tls_key_file", "/key.pem"): "management.tls_cert_file",
    ("mail.host", "mail.example.com"): "mail.sender",
    ("sync.source", "coolify"): "sync.dsn",
    ("sync.host", "db"): "sync.user",
    ("sync.user", "me"): "sync.host",
    ("limits.token.window_seconds", "60"): "limits.token.limit",
    ("limits.user", "0"): "limits.user.limit",
    ("limits.user", "100001"): "limits.user.limit",
}
"""Rows whose problem is with another setting than the one that is set."""


def test_the_table_of_wrong_values_is_long_enough():
    """Sixty wrong values at least, and every setting that can be wrong is among them."""
    unrefusable = {
        *("redis.password", "mail.password", "mail.webhook_secret", "sync.password"),
        "coolify.extra_routes",
    }
    tried = {key for key, _, _ in WRONG}
    buckets = {key for key in LEAVES if key.startswith("limits.") and key.count(".") == 2}
    assert len(WRONG) >= 60
    assert set(LEAVES) - tried - unrefusable - buckets == set()


@pytest.mark.parametrize(("key", "text", "allowed"), WRONG)
def test_wrong_value_is_answered_with_the_key_and_what_is_allowed(key, text, allowed):
    """By the environment: the variable, the key, what was given, what would do; one line."""
    with pytest.raises(ConfigError) as caught:
        load(None, {variable(key): text})
    assert len(caught.value.problems) == 1
    line = caught.value.problems[0]
    about = ABOUT.get((key, text), key)
    assert line.startswith(f"{variable(key)}: {about}: ")
    assert allowed in line.partition("; allowed: ")[2]
    assert "\n" not in line


@pytest.mark.parametrize(("key", "text", "allowed"), WRONG)
def test_wrong_value_in_the_file_is_answered_with_its_line(tmp_path, key, text, allowed):
    """By the file: the same words behind FILE:LINE."""
    *sections, last = key.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(sections)]
    lines.append(f"{'  ' * len(sections)}{last}: {json.dumps(text)}")
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError) as caught:
        load(str(path), {})
    about = ABOUT.get((key, text), key)
    assert len(caught.value.problems) == 1
    line = caught.value.problems[0]
    assert line.startswith(f"{path}:{len(lines)}: {about}: ")
    assert allowed in line.partition("; allowed: ")[2]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("listen.address", ":4190"),
        ("listen.address", "[::]:0"),
        ("listen.address", "localhost:4190"),
        ("listen.unix_socket_mode", "0660"),
        ("redis.url", "redis://cache"),
        ("redis.url", "redis://:p%23w@cache:6379/15"),
        ("redis.url", "rediss://[::1]:6380"),
        ("redis.url", "unix:///run/redis.sock"),
        ("redis.url", "redis+sentinel://a:26379,b:26379/main"),
        ("redis.url", "rediss+sentinel://u:p@a/main/1"),
        ("redis.url", "redis+cluster://a:7000,b:7001"),
        ("redis.url", "rediss+cluster://c"),
        ("limits.user.window_seconds", "1.001"),
        ("limits.user.window_seconds", "86400"),
        ("limits.user.limit", "100000"),
        ("redis.prefix", "x" * 64),
        ("mail.webhook_url", "http://127.0.0.1:8080/a?b=c"),
        ("sync.dsn", "postgres://db/coolify"),
        ("sync.dsn", "postgresql://me:a%2Fb@[::1]:5432,db2/coolify?sslmode=require"),
        ("sync.dsn", "postgresql://me@%2Fvar%2Frun%2Fpostgresql/coolify"),
        ("sync.dsn", "postgresql://me:p:w+=@db"),
    ],
)
def test_value_at_the_edge_is_taken(key, text):
    """What the messages promise to allow is allowed."""
    found = value_of(load(None, {variable(key): text}), key)
    plain = found.get_secret_value() if isinstance(found, SecretStr) else found
    assert str(plain) == text or float(plain) == float(text)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, None),
        ({"dsn": "postgres://me:pw@db:5/x?sslmode=require"}, "me:pw@db:5/x?sslmode=require"),
        ({"dsn": "postgresql://me@db/x", "password": "a/b@c%d"}, "me:a%2Fb%40c%25d@db/x"),
        ({"dsn": "postgresql://me:old@db/x", "user": "a b"}, "a%20b:old@db/x"),
        ({"dsn": "postgresql://db1,db2/x", "host": "::1", "port": "7"}, "[::1]:7/x"),
        ({"dsn": "postgresql://db/x?a=b", "database": "y/z"}, "db/y%2Fz?a=b"),
        ({"host": "db", "user": "me", "database": "x"}, "me@db/x"),
        ({"host": "db", "user": "me", "password": "/", "database": "x"}, "me:%2F@db/x"),
    ],
)
def test_the_parts_of_the_database_and_its_dsn_are_one(given, url):
    """What is set on its own wins, and needs no escapes."""
    environ = {variable(f"sync.{name}"): text for name, text in given.items()}
    found = load(None, environ).sync.url
    assert (found and found.get_secret_value()) == (url and f"postgresql://{url}")


def test_a_release_line_without_a_table_is_told_which_one_serves_it():
    """Refused alone, the operator of a 4.2 would have to guess."""
    with pytest.raises(ConfigError) as caught:
        load(None, {"AUTHSIDECAR_COOLIFY__ROUTES": "4.2"})
    told = caught.value.problems[0]
    assert 'got "4.2", which has no table: use the table of 4.3, the stricter' in told
    assert f"; allowed: one of {', '.join(RELEASES)}" in told
    assert "use the table of 4.3" in serves("4.2")
    assert load(None, {"AUTHSIDECAR_COOLIFY__ROUTES": "4.4"}).coolify.routes == "4.4"
