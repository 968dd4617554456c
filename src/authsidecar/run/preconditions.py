"""What `serve` needs of its machine before it connects; `check-config` asks the same."""

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

from authsidecar.config import Settings
from authsidecar.coolify.source import SourceError, driver
from authsidecar.expiry.rounds import NoDriverError, WarningOptions
from authsidecar.run.errors import StartError
from authsidecar.run.rules import routes
from authsidecar.run.tracing import check
from authsidecar.serving.listeners import server_tls
from authsidecar.store.embedded import EmbeddedRedisError, find_server, unusable


def problems(settings: Settings) -> tuple[str, ...]:
    """Say everything that keeps `serve` from starting; each line names the setting."""
    looks = (_routes, _embedded, _tls, _socket, _sync, _mail, _traces)
    return tuple(line for look in looks for line in look(settings))


def _routes(settings: Settings) -> Iterator[str]:
    try:
        routes(settings)
    except StartError as error:
        yield str(error)


def _embedded(settings: Settings) -> Iterator[str]:
    if settings.redis.url != "embedded":
        return
    try:
        find_server()
    except EmbeddedRedisError as error:
        yield str(error)
    data_dir = Path(settings.data_dir).absolute()
    nearest = next(one for one in (data_dir, *data_dir.parents) if one.exists())
    if not nearest.is_dir():
        yield str(unusable(data_dir, "Not a directory"))
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield str(unusable(data_dir, "Permission denied"))


def _tls(settings: Settings) -> Iterator[str]:
    redis, management = settings.redis, settings.management
    files = {
        "redis.tls_ca_file": redis.tls_ca_file,
        "redis.tls_cert_file": redis.tls_cert_file,
        "redis.tls_key_file": redis.tls_key_file,
        "management.tls_cert_file": management.tls_cert_file,
        "management.tls_key_file": management.tls_key_file,
    }
    unreadable = [line for name, path in files.items() if path for line in _read(name, Path(path))]
    yield from unreadable
    if unreadable:
        return
    if redis.tls_ca_file:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(redis.tls_ca_file)
        except (OSError, ValueError):
            yield f"redis.tls_ca_file: {redis.tls_ca_file} holds no certificates (PEM)"
    yield from _pair("redis", redis.tls_cert_file, redis.tls_key_file)
    yield from _pair("management", management.tls_cert_file, management.tls_key_file)


def _pair(section: str, certificate: Path | None, key: Path | None) -> Iterator[str]:
    if certificate is None or key is None:
        return
    try:
        server_tls(certificate, key)
    except (OSError, ValueError):
        yield (
            f"{section}.tls_cert_file: {certificate} is no certificate (PEM) of the key in "
            f"{section}.tls_key_file, {key}, or that key is encrypted"
        )


def _read(name: str, path: Path) -> Iterator[str]:
    try:
        path.read_bytes()
    except OSError as error:
        yield f"{name}: cannot read {path}: {error.strerror}"


def _socket(settings: Settings) -> Iterator[str]:
    path = settings.listen.unix_socket
    if path is None:
        return
    parent = Path(path).absolute().parent
    if not parent.is_dir():
        yield f"listen.unix_socket: cannot listen on {path}: {parent} is no directory"
    elif not os.access(parent, os.W_OK | os.X_OK):
        yield f"listen.unix_socket: cannot listen on {path}: {parent} can't be written"


def _sync(settings: Settings) -> Iterator[str]:
    if settings.sync.source is not None:
        try:
            driver()
        except SourceError as error:
            yield f"sync.source: {error}"


def _mail(settings: Settings) -> Iterator[str]:
    try:
        WarningOptions.of(settings)
    except NoDriverError as error:
        yield str(error)


def _traces(settings: Settings) -> Iterator[str]:
    try:
        check(settings)
    except StartError as error:
        yield str(error)
