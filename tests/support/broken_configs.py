"""Kinds of breakage of a configuration file, each of which must be refused."""

from pathlib import Path
from typing import Final

GOOD: Final = """\
data_dir: {directory}/data
limits: {{user: 100000}}
coolify: {{extra_routes: {directory}/routes.txt}}
"""
"""A good file; `break_file` lays `routes.txt` beside it where that is what is broken."""

EXTRA: Final = "GET /api/v1/extra read\n"
"""What is in the good file's own routes."""

_LINES: Final = {
    "no YAML": "limits: {user: 5",
    "a tab for an indent": "limits:\n\tuser: 5",
    "no mapping": "- limits",
    "a text alone": "limits",
    "a number alone": "42",
    "two documents": "enforcement: report\n---\nenforcement: enforce",
    "a key twice": "enforcement: report\nenforcement: enforce",
    "an unknown section": "limit: {user: 5}",
    "an unknown setting": "limits: {usr: 5}",
    "a section that is a list": "limits: [1, 2]",
    "a section that is a text": "limits: many",
    "a limit of 0": "limits: {user: 0}",
    "a limit below 0": "limits: {user: -5}",
    "a limit that is too high": "limits: {user: 100001}",
    "a limit that is no number": "limits: {user: many}",
    "a limit that is a fraction": "limits: {user: 1.5}",
    "a limit that is true": "limits: {user: true}",
    "a window of 0": "limits: {user: {limit: 5, window_seconds: 0}}",
    "a window that is not finite": "limits: {user: {limit: 5, window_seconds: .inf}}",
    "a bucket's unknown key": "limits: {user: {limit: 5, window: 60}}",
    "a prefix that is too short": "limits: {ipv6_prefix: 8}",
    "a pace of 0": "limits: {lookups_per_second: 0}",
    "an unknown enforcement": "enforcement: maybe",
    "an enforcement that is null": "enforcement: null",
    "an unknown release line": "coolify: {routes: '9.9'}",
    "a release line that is served by another": "coolify: {routes: '4.2'}",
    "routes that are not there": "coolify: {extra_routes: /nowhere/routes.txt}",
    "routes that are a directory": "coolify: {extra_routes: /}",
    "an unknown outside": "coolify: {outside: maybe}",
    "a team below 0": "coolify: {instance_team: -1}",
    "a team that is no number": "coolify: {instance_team: root}",
    "a peer that is no network": "trusted_peers: [proxy.example]",
    "a peer that is everyone": "trusted_peers: [0.0.0.0/0]",
    "a peer that is every IPv6 address": "trusted_peers: ['::/0']",
    "a peer with bits past its mask": "trusted_peers: [192.0.2.1/33]",
    "a peer that is a mapping": "trusted_peers: [{a: b}]",
    "hops that are no list": "trusted_hops: {a: b}",
    "a hop that is no network": "trusted_hops: [nobody]",
    "an unknown log level": "log: {level: loud}",
    "an unknown log format": "log: {format: xml}",
    "unknown decisions": "log: {decisions: some}",
    "hours below 0": "mail: {expiry_header_hours: -1}",
    "mail without a sender": "mail: {host: mail.example}",
    "a sync without a database": "sync: {source: coolify}",
    "no Redis URL": "redis: {url: 'http://planted@192.0.2.1'}",
    "a budget of 0": "redis: {budget_ms: 0}",
    "TLS files without TLS": "redis: {url: 'redis://h', tls_ca_file: /nowhere.pem}",
    "a certificate without a key": "redis: {url: 'rediss://h', tls_cert_file: /nowhere.pem}",
    "no listener at all": "listen: {address: null}",
    "both listeners in one place": "listen: {address: '127.0.0.1:4191'}",
    "no workers": "listen: {workers: 0}",
    "a port that is too high": "listen: {address: '127.0.0.1:99999'}",
}

_BYTES: Final = {
    "no UTF-8": b"enforcement: \xff\xfe",
    "a NUL": b"enforcement: rep\0ort",
    "nothing": b"",
}

_OTHERS: Final = ("no file", "a directory", "own routes that can't be read", "own routes, no rows")

BROKEN: Final = (*_LINES, *_BYTES, *_OTHERS)
"""The kinds, by name."""


def break_file(path: Path, kind: str) -> None:
    """Put a broken configuration in the place of a good one.

    Args:
        path: the file.
        kind: one of BROKEN.
    """
    mend_file(path, "")
    path.unlink()
    routes = path.with_name("routes.txt")
    if kind in _LINES:
        path.write_text(_LINES[kind] + "\n")
    elif kind in _BYTES:
        path.write_bytes(_BYTES[kind])
    elif kind == "a directory":
        path.mkdir()
    elif kind != "no file":
        path.write_text(GOOD.format(directory=path.parent))
        routes.write_bytes(b"\xff" if kind.endswith("read") else b"GET somewhere read\n")


def mend_file(path: Path, text: str) -> None:
    """Put a good configuration in the place of whatever is there."""
    if path.is_dir():
        path.rmdir()
    path.with_name("routes.txt").write_text(EXTRA)
    path.write_text(text)
