"""The types of single settings: what a text must look like, and what is said if it does not.

A reason never repeats the text that it refuses: the loader shows it, unless it may hold a secret.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

from pydantic import AfterValidator, Field, SecretStr, WithJsonSchema

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a setting accepts, in words; for types whose bounds do not say it themselves.

    Attributes:
        text: completes "allowed: ...".
        private: the value may hold a secret and is never shown.
        nullable: null is accepted although the value itself never is null.
    """

    text: str
    private: bool = False
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen: `host` is None for all interfaces, `port` 0 for any free port."""

    host: str | None
    port: int

    def __str__(self) -> str:
        """The text that `parse_endpoint` reads."""
        host = self.host or ""
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


_HOST_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")


def _is_host(text: str) -> bool:
    """Tell whether the text is a host name or an address without brackets."""
    if re.fullmatch(r"[0-9.]+", text):
        return _is_address(text, IPv4Address)
    if ":" in text:
        return _is_address(text, IPv6Address)
    return len(text) <= 253 and _HOST_NAME.fullmatch(text) is not None


def _is_address(text: str, family: type[IPv4Address | IPv6Address]) -> bool:
    try:
        family(text)
    except ValueError:
        return False
    return True


def parse_endpoint(text: str) -> ListenAddress:
    """Read `host:port`, `[ipv6]:port` or `:port`.

    Raises:
        ValueError: the text is none of these; the message does not repeat it.
    """
    match = re.fullmatch(r"(?:\[([^\]]*)\]|([^:\[\]]*)):([0-9]{1,5})", text, re.ASCII)
    if match is None:
        raise ValueError("is not HOST:PORT (an IPv6 address stands in brackets)")
    bracketed, plain, port = match.groups()
    if bracketed is not None and not _is_address(bracketed, IPv6Address):
        raise ValueError("has no IPv6 address in its brackets")
    if plain and not _is_host(plain):
        raise ValueError("has no address or host name before its port")
    if int(port) > 65535:
        raise ValueError("has a port above 65535")
    return ListenAddress(bracketed or plain or None, int(port))


def parse_network(text: str) -> Network:
    """Read a network of trusted senders; whole address families are refused.

    Raises:
        ValueError: no network, bits beyond the prefix, or everyone.
    """
    if re.fullmatch(r"[0-9A-Fa-f.:]+(?:/[0-9]{1,3})?", text, re.ASCII) is None:
        raise ValueError("is no network in CIDR form")
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("is no network in CIDR form") from None
    if network.prefixlen == 0:
        raise ValueError("would trust everyone")
    if str(network.network_address) != str(ip_network(text.partition("/")[0]).network_address):
        raise ValueError(f"has bits set beyond its prefix (the network is {network})")
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError("is an IPv4-mapped network (write it as IPv4)")
    return network


def _endpoint_text(text: str) -> str:
    parse_endpoint(text)
    return text


def _network_text(text: str) -> str:
    return str(parse_network(text))


def _path(path: Path) -> Path:
    if not path.name or "\0" in str(path):
        raise ValueError("is no path of a file or directory")
    return path


def _socket_path(path: Path) -> Path:
    if len(bytes(_path(path))) > 107:
        raise ValueError("is longer than a socket's path can be")
    return path


# Not urlsplit: newer Pythons refuse an IPv6 address behind another host.
_REDIS_URL: Final = re.compile(
    r"(?P<scheme>unix|rediss?(?:\+(?P<family>sentinel|cluster))?)://"
    r"(?:[^/]*@)?(?P<hosts>[^/@]*)(?P<path>/.*)?"
)


def _redis_url(text: str) -> str:
    """Check the shape of a Redis URL; a stray `?` or `#` usually is an unescaped password."""
    if text == "embedded":
        return text
    if re.fullmatch(r"[!-~]*", text) is None or "?" in text or "#" in text:
        raise ValueError("has a blank, ? or # (in a password write %20, %3F and %23)")
    match = _REDIS_URL.fullmatch(text)
    if match is None:
        raise ValueError("has none of the known schemes")
    hosts, path, family = match["hosts"], match["path"] or "", match["family"] or ""
    if match["scheme"] == "unix":
        if hosts or path in ("", "/"):
            raise ValueError("has no absolute path after unix://")
        return text
    if not all(_is_host_port(host) for host in hosts.split(",")):
        raise ValueError("has no HOST or HOST:PORT after its scheme")
    if "," in hosts and not family:
        raise ValueError("has several hosts, which only sentinel and cluster URLs may have")
    _redis_path(family, path)
    return text


def _redis_path(family: str, path: str) -> None:
    match family:
        case "sentinel":
            if re.fullmatch(r"/[A-Za-z0-9._-]+(?:/[0-9]{1,3})?", path) is None:
                raise ValueError(
                    "has no service name after the sentinels (/SERVICE or /SERVICE/DB)"
                )
        case "cluster":
            if path not in ("", "/", "/0"):
                raise ValueError("names a database, which Redis Cluster has not")
        case _:
            if re.fullmatch(r"(?:/[0-9]{0,3})?", path) is None:
                raise ValueError("has no database number after its host")


def _is_host_port(text: str) -> bool:
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::([0-9]{1,5}))?", text, re.ASCII)
    if match is None:
        return False
    bracketed, plain, port = match.groups()
    host = _is_address(bracketed, IPv6Address) if bracketed else _is_host(plain)
    return host and 0 < int(port or 1) <= 65535


def redis_hosts(url: str) -> tuple[str, ...]:
    """List the hosts of a checked Redis URL, without ports; none for sockets and `embedded`."""
    match = _REDIS_URL.fullmatch(url)
    if match is None or not match["hosts"]:
        return ()
    return tuple(re.sub(r":[0-9]+$", "", host).strip("[]") for host in match["hosts"].split(","))


def _prefix(text: str) -> str:
    if re.fullmatch(r"[!-z|~]{1,64}", text) is None:
        raise ValueError("is no key prefix")
    return text


def _web_url(text: str) -> str:
    match = re.fullmatch(r"https?://(?:[^/?#]*@)?([^/?#@]+)(?:[/?#].*)?", text)
    if match is None or not _is_host_port(match[1]) or re.fullmatch(r"[!-~]+", text) is None:
        raise ValueError("is no http:// or https:// URL")
    return text


_POSTGRES_URL: Final = re.compile(
    r"postgres(?:ql)?://"
    r"(?:(?P<user>[^:@/?#\[\]]*)(?P<password>:[^@/?#\[\]]*)?@)?"
    r"(?P<hosts>[^@/?#]+)(?P<path>/[^/?#@]*)?(?P<more>\?[^#]*)?"
)
_ESCAPED: Final = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")


def _dsn(secret: SecretStr) -> SecretStr:
    """Check the shape of a DSN; a stray `/` or `@` usually is an unescaped password."""
    text = secret.get_secret_value()
    if re.match(r"postgres(?:ql)?://[^\s/]", text) is None:
        raise ValueError("is no PostgreSQL URL")
    match = _POSTGRES_URL.fullmatch(text)
    if match is None or not _ESCAPED.fullmatch(text) or re.fullmatch(r"[!-~]+", text) is None:
        raise ValueError(
            "has a blank or one of / ? # @ % [ ] in its user, password or database (write %20 %2F "
            "%3F %23 %40 %25 %5B %5D, or set sync.password beside a DSN without one)"
        )
    if not all(_is_postgres_host(host) for host in match["hosts"].split(",")):
        raise ValueError("has no HOST or HOST:PORT before its database")
    return secret


def _is_postgres_host(text: str) -> bool:
    """Tell whether it is a host, with a port or without; a socket's directory begins with %2F."""
    return _is_host_port(re.sub(r"^%2[Ff][^:]*", "socket", text))


def postgres_url(  # the parts of a DSN
    dsn: SecretStr | None,
    *,
    host: str | None,
    port: int | None,
    user: str | None,
    password: SecretStr | None,
    database: str | None,
) -> SecretStr | None:
    """Write one DSN of a checked one and of what is set beside it, which wins; None of nothing."""
    if dsn is None and host is None:
        return None
    match = _POSTGRES_URL.fullmatch("postgresql://x" if dsn is None else dsn.get_secret_value())
    assert match is not None  # noqa: S101  # it was checked
    hosts = match["hosts"]
    if host is not None:
        name = f"[{host}]" if ":" in host else host
        hosts = name if port is None else f"{name}:{port}"
    login = match["user"] or "" if user is None else quote(user, safe="")
    if password is not None:
        login += f":{quote(password.get_secret_value(), safe='')}"
    else:
        login += match["password"] or ""
    path = match["path"] or "" if database is None else f"/{quote(database, safe='')}"
    at = "@" if login else ""
    return SecretStr(f"postgresql://{login}{at}{hosts}{path}{match['more'] or ''}")


def _host(text: str) -> str:
    if not _is_host(text):
        raise ValueError("is no host name or address")
    return text


def _sender(text: str) -> str:
    if re.fullmatch(r"[!-~]{1,64}", text.partition("@")[0]) is None or not _is_host(
        text.partition("@")[2]
    ):
        raise ValueError("is no plain mail address")
    return text


def _name(text: str) -> str:
    if re.fullmatch(r"[^\x00-\x1f\x7f]{1,255}", text) is None:
        raise ValueError("is no user name")
    return text


def _whole_milliseconds(seconds: float) -> float:
    if abs(seconds * 1000 - round(seconds * 1000)) > 1e-6:
        raise ValueError("is finer than a millisecond")
    return seconds


def _mode(text: str) -> str:
    if re.fullmatch(r"0?[0-7]{3}", text, re.ASCII) is None:
        raise ValueError("is no file mode")
    return text


def _different(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) != len(values) or len(values) > 10:
        raise ValueError("names a value twice, or more than 10")
    return values


EndpointText = Annotated[
    str,
    AfterValidator(_endpoint_text),
    Allowed("HOST:PORT, [IPV6]:PORT or :PORT for all interfaces; port 0 to 65535, 0 = any free"),
]
Networks = Annotated[
    tuple[Annotated[str, AfterValidator(_network_text)], ...],
    Allowed("networks in CIDR form such as 10.0.0.0/8 or fd00::/64, prefix at least 1"),
]
FilePath = Annotated[Path, AfterValidator(_path), Allowed("the path of a file")]
DataDirectory = Annotated[
    Path,
    AfterValidator(_path),
    Allowed("the path of a directory", nullable=True),
    WithJsonSchema({"type": ["string", "null"]}),
]
SocketPath = Annotated[
    Path, AfterValidator(_socket_path), Allowed("the path of a socket, at most 107 bytes")
]
FileMode = Annotated[str, AfterValidator(_mode), Allowed("three octal digits, 000 to 777")]
RedisUrl = Annotated[
    str,
    AfterValidator(_redis_url),
    Allowed(
        "embedded, redis://[USER:PASSWORD@]HOST[:PORT][/DB], unix:///PATH, "
        "redis+sentinel://HOST[:PORT][,HOST[:PORT]]/SERVICE, "
        "redis+cluster://HOST[:PORT][,HOST[:PORT]], or with TLS the same as rediss",
        private=True,
    ),
]
KeyPrefix = Annotated[
    str,
    AfterValidator(_prefix),
    Allowed("1 to 64 printable ASCII characters, no blanks, no braces"),
]
Secret = Annotated[SecretStr, Allowed("any text that is not empty", private=True)]
DatabaseName = Annotated[
    str, AfterValidator(_name), Allowed("1 to 255 characters, no control characters")
]
UserName = Annotated[
    str, AfterValidator(_name), Allowed("1 to 255 characters, no control characters")
]
PostgresDsn = Annotated[
    SecretStr,
    AfterValidator(_dsn),
    Allowed("postgresql://USER:PASSWORD@HOST[:PORT]/DATABASE", private=True),
]
WebUrl = Annotated[
    str, AfterValidator(_web_url), Allowed("an http:// or https:// URL", private=True)
]
HostName = Annotated[str, AfterValidator(_host), Allowed("a host name or an address")]
HostNames = Annotated[
    tuple[Annotated[str, AfterValidator(_host)], ...], Allowed("host names or addresses")
]
MailAddress = Annotated[
    str, AfterValidator(_sender), Allowed("a plain mail address such as authsidecar@example.com")
]
Seconds = Annotated[float, AfterValidator(_whole_milliseconds)]
Hours = Annotated[
    tuple[Annotated[int, Field(ge=1, le=8760)], ...],
    AfterValidator(_different),
    Allowed("up to 10 different whole numbers from 1 to 8760"),
]
