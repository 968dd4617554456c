"""Warnings by mail: SMTP with TLS and a login, to the token's owner."""

import asyncio
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Final, Literal, Self

import aiosmtplib

from authsidecar.config.sections import Mail as Settings
from authsidecar.expiry.channel import SEND_S, NotTakenError, UnreachableError
from authsidecar.expiry.notice import Message, one_line

_LOCAL: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}")


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """One SMTP server.

    Attributes:
        host: its name.
        port: its port.
        tls: how the connection is encrypted.
        username: of the login, or None.
        password: of the login, or None.
        sender: the From address.
        again: reads the settings anew before each mail, since a password may have been rotated in
            its file; None where nothing can have changed.
        context: which certificates to trust; None: the system's.
        name: the channel's.
    """

    host: str
    port: int
    tls: Literal["starttls", "tls", "none"]
    username: str | None
    password: str | None = field(repr=False)
    sender: str
    again: Callable[[], Settings] | None = field(default=None, repr=False)
    context: ssl.SSLContext | None = None
    name: str = "mail"

    @classmethod
    def of(cls, settings: Settings, again: Callable[[], Settings] | None = None) -> Self | None:
        """The server that the settings name, if they do; `again` reads these settings anew."""
        if settings.host is None or settings.sender is None:
            return None
        password = settings.password.get_secret_value() if settings.password else None
        return cls(
            settings.host,
            settings.port,
            settings.tls,
            settings.username,
            password,
            settings.sender,
            again,
        )

    async def send(self, notice: Message) -> None:
        """Hand a warning to the server, for the token's owner.

        Raises:
            UnreachableError: the server is away, or refuses everybody.
            NotTakenError: it refuses this mail, or the owner has no address.
        """
        message = composed(notice, self.sender)
        try:
            async with asyncio.timeout(SEND_S):
                username, password = await self._login()
                # Reads the system's certificates: files, which the event loop must not wait for.
                context = self.context or await asyncio.to_thread(ssl.create_default_context)
                await aiosmtplib.send(
                    message,
                    hostname=self.host,
                    port=self.port,
                    username=username,
                    password=password,
                    use_tls=self.tls == "tls",
                    start_tls=self.tls == "starttls",
                    tls_context=context,
                    timeout=SEND_S / 3,
                )
        except (aiosmtplib.SMTPRecipientsRefused, aiosmtplib.SMTPDataError) as error:
            raise NotTakenError(_describe(error)) from None
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            raise UnreachableError(_describe(error)) from None

    async def _login(self) -> tuple[str | None, str | None]:
        if self.again is None:
            return self.username, self.password
        now = await asyncio.to_thread(self.again)
        return now.username, now.password.get_secret_value() if now.password else None


def composed(notice: Message, sender: str) -> EmailMessage:
    """The mail: text and HTML, with a Message-ID that is the same in every try.

    Raises:
        NotTakenError: the owner has no address that mail could be sent to.
    """
    owner = notice.user
    to = None if owner is None else address(owner.name, owner.email)
    if to is None:
        raise NotTakenError("the owner has no mail address")
    message = EmailMessage()
    message["From"] = Address("authsidecar", addr_spec=sender)
    message["To"] = to
    message["Subject"] = notice.subject
    message["Date"] = format_datetime(datetime.fromtimestamp(notice.now / 1000, UTC))
    message["Message-ID"] = (
        f"<authsidecar.{notice.id.replace(':', '.')}@{sender.rpartition('@')[2]}>"
    )
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    message.set_content(notice.text())
    message.add_alternative(notice.html(), subtype="html")
    return message


def address(name: str, email: str) -> Address | None:
    """A recipient, or None if the text is no plain address; nothing in it can start a header."""
    local, _, domain = email.strip().rpartition("@")
    try:
        host = domain.encode("idna").decode("ascii")
    except UnicodeError:
        return None
    if _LOCAL.fullmatch(local) is None or re.fullmatch(r"[A-Za-z0-9.-]{1,253}", host) is None:
        return None
    try:
        return Address(one_line(name), addr_spec=f"{local}@{host}")
    except ValueError:
        return None


def _describe(error: Exception) -> str:
    """What kind of failure it was: the server's own words may repeat what it was sent."""
    match error:
        case aiosmtplib.SMTPResponseException(code=code):
            return f"{type(error).__name__} {code}"
        case aiosmtplib.SMTPRecipientsRefused():
            codes = sorted({one.code for one in error.recipients})
            return f"{type(error).__name__} {', '.join(map(str, codes))}"
        case _:
            return type(error).__name__
