"""How Redis is reached, from the settings: all that most commands need of them."""

from pathlib import Path

from authsidecar.config import Settings, reread
from authsidecar.store.connect import Connection


def connection(settings: Settings) -> Connection:
    """How Redis is reached, from the settings."""
    section = settings.redis
    tls = {
        "ssl_ca_certs": section.tls_ca_file,
        "ssl_certfile": section.tls_cert_file,
        "ssl_keyfile": section.tls_key_file,
    }
    return Connection(
        url=section.url,
        data_dir=Path(settings.data_dir),
        username=section.username,
        password=section.password.get_secret_value() if section.password else None,
        max_connections=section.max_connections,
        # The budget ends a request's wait; the connection's own patience must not end it sooner.
        timeout_s=max(1.0, section.budget_ms / 1000),
        tls=tuple((name, str(path)) for name, path in tls.items() if path),
        again=(lambda: connection(reread(settings))) if settings.files else None,
    )
