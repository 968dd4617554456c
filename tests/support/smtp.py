"""Real SMTP servers (aiosmtpd) on free ports of this process, with or without TLS and login."""

import contextlib
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from threading import Event
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

LOGIN = (b"mailer", b"a mail password")

TAKEN = "250 OK"


def certificate(directory: Path) -> Path:
    """A key with a certificate of its own for localhost, in one file that is also its authority."""
    path = directory / "smtp.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        [*command, *names, "-keyout", path, "-out", directory / "cert.pem"],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + (directory / "cert.pem").read_text())
    return path


@dataclass
class Mailbox:
    """What a server has taken, and how it answers.

    Attributes:
        mails: all that was sent, in order.
        recipients: the envelope's recipient of each.
        answer: gives the answer to each mail's data, after it was kept.
        refused: recipients that the server does not take.
    """

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    answer: Callable[[], str] = lambda: TAKEN
    refused: set[str] = field(default_factory=set)
    arrived: Event = field(default_factory=Event)

    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802
        if address in self.refused:
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        self.mails.append(message_from_bytes(envelope.content, policy=default))
        self.recipients += envelope.rcpt_tos
        self.arrived.set()
        return self.answer()

    def subjects(self) -> list[str]:
        return sorted(mail["Subject"] for mail in self.mails)


@contextlib.contextmanager
def smtp_server(
    mailbox: Mailbox | None = None,
    *,
    port: int = 0,
    tls: str = "none",
    certificate: Path | None = None,
    login: bool = False,
) -> Iterator[Mailbox]:
    """A server on 127.0.0.1; the mailbox's `port` says where."""
    from tests.support.redis import free_port

    mailbox = mailbox or Mailbox()
    mailbox.port = port or free_port()
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    options: dict[str, Any] = (
        {"auth_required": True, "authenticator": _authenticate} if login else {}
    )
    if tls == "starttls":
        options |= {"tls_context": context, "require_starttls": True}
    elif login and tls == "tls":
        options["auth_require_tls"] = False  # aiosmtpd does not see that all of it is TLS
    controller = Controller(
        mailbox,
        hostname="127.0.0.1",
        port=mailbox.port,
        ssl_context=context if tls == "tls" else None,
        **options,
    )
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()


def _authenticate(server, session, envelope, mechanism, data):
    right = (data.login, data.password) == LOGIN
    return AuthResult(success=right, handled=False)
