"""Every setting: its name, type, default, bounds, and the sentence that all documentation uses."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from authsidecar.config.buckets import Limits
from authsidecar.config.section import Section, contradiction
from authsidecar.config.values import (
    DatabaseName,
    DataDirectory,
    EndpointText,
    FileMode,
    FilePath,
    HostName,
    HostNames,
    Hours,
    KeyPrefix,
    ListenAddress,
    MailAddress,
    Network,
    Networks,
    PostgresDsn,
    RedisUrl,
    Seconds,
    Secret,
    SocketPath,
    UserName,
    WebUrl,
    parse_endpoint,
    parse_network,
    postgres_url,
)
from authsidecar.decision.routes.loading import WITHIN, Release, serves


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Choose the directory of our own files when the operator has not.

    Returns:
        `/var/lib/authsidecar` for root, where it is writable, or if the user has no home; else
        the user's state directory.
    """
    shared = Path("/var/lib/authsidecar")
    if os.geteuid() == 0 or (shared.is_dir() and os.access(shared, os.W_OK)):
        return shared
    state = environ.get("XDG_STATE_HOME", "")
    if state.startswith("/"):  # the XDG specification has relative values ignored
        return Path(state) / "authsidecar"
    try:
        home = Path(environ.get("HOME") or "~").expanduser()
    except RuntimeError:  # a user without HOME and a line in /etc/passwd, as OpenShift runs us
        return shared
    return home / ".local/state/authsidecar"


class Listen(Section):
    """Where proxies ask."""

    address: EndpointText | None = Field(
        default="127.0.0.1:4190",
        description="Address of the authz listener that proxies ask; null to use the unix socket "
        "alone.",
    )
    unix_socket: SocketPath | None = Field(
        default=None,
        description="Unix socket that is listened on as well; its callers are trusted.",
    )
    unix_socket_mode: FileMode = Field(
        default="660", description="File mode of the unix socket (octal): who may connect to it."
    )
    server: Literal["auto", "fast", "aiohttp"] = Field(
        default="auto",
        description="What answers on the authz listener: `aiohttp` is aiohttp's own server, `fast` "
        "a quicker connection over its parser, which is no documented interface; `auto` takes "
        "`fast` where the installed aiohttp's minor version is one that it was tested with.",
    )
    workers: int = Field(default=1, ge=1, le=64, description="Number of worker processes.")
    max_connections: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Connections of trusted peers per worker, at most; null: what the limit of "
        "open files leaves, up to 16384.",
    )
    max_connections_per_peer: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Of these, connections of one address, at most; null: three quarters of them.",
    )
    first_byte_timeout_seconds: Seconds = Field(
        default=30,
        ge=0.1,
        le=3600,
        description="Time that a new connection has until the first byte of a request, in "
        "seconds; then it is closed.",
    )
    request_timeout_seconds: Seconds = Field(
        default=10,
        ge=0.1,
        le=3600,
        description="Time from a request's first byte to its last, in seconds; then 408.",
    )
    max_body_bytes: int = Field(
        default=65_536,
        ge=0,
        le=1_073_741_824,
        description="Bytes of a request's body that are thrown away as fast as they come; the "
        "rest is read slowly, for five seconds, so that the proxy can read the answer.",
    )
    memo_entries: int = Field(
        default=8192,
        ge=0,
        le=1_000_000,
        description="Subrequests per worker that are remembered by a keyed digest of their bytes, "
        "at most, so that the same bytes are not parsed again; 0 remembers none. What a request "
        "is judged by is proven anew each time.",
    )
    reuse_port: bool = Field(
        default=False,
        description="Let another process of this user listen on the same addresses (and sockets), "
        "so that a restart refuses nobody: start the new one, then stop the old one. Else a port "
        "in use is refused.",
    )

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.address is None and self.unix_socket is None:
            raise contradiction(
                "listen.address",
                "is null and listen.unix_socket is not set, so nobody could ask",
                "an address, or null together with listen.unix_socket",
            )
        most, per_peer = self.max_connections, self.max_connections_per_peer
        if most is not None and per_peer is not None and per_peer > most:
            raise contradiction(
                "listen.max_connections_per_peer",
                "is more than listen.max_connections",
                "at most as many",
            )
        return self

    @property
    def endpoint(self) -> ListenAddress | None:
        """The address in parts; None if only the unix socket is listened on."""
        return None if self.address is None else parse_endpoint(self.address)

    @property
    def mode(self) -> int:
        """The unix socket's mode as a number, 0 to 0o777."""
        return int(self.unix_socket_mode, 8)


class Management(Section):
    """Health, readiness and metrics, which are open, and the management API, which wants a key."""

    address: EndpointText = Field(
        default="127.0.0.1:4191",
        description="Address of /healthz, /readyz, /metrics, /manage/v1 and /console.",
    )
    tls_cert_file: FilePath | None = Field(
        default=None,
        description="Certificate (PEM, with its chain) of this listener, which then speaks HTTPS "
        "alone; null: HTTP.",
    )
    tls_key_file: FilePath | None = Field(
        default=None, description="Private key (PEM) of that certificate, not encrypted."
    )
    metrics_key: bool = Field(
        default=False,
        description="Give /metrics only to who sends a management key (`authsidecar key create "
        "--scope read`).",
    )
    console: bool = Field(
        default=True,
        description="Serve the console, /console: over loopback alone as long as there is no "
        "certificate.",
    )
    console_hosts: HostNames = Field(
        default=(),
        description="Names by which browsers reach the console, beside localhost and addresses; "
        "any other is refused (DNS rebinding).",
    )
    fleet_counters: bool = Field(
        default=True,
        description="Add to Redis, once a second and process, what was decided, so that the "
        "console can show the last hour, day and week of all processes. Two megabytes at the most.",
    )

    @model_validator(mode="after")
    def _tls_together(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise contradiction(
                "management.tls_cert_file",
                "and management.tls_key_file are not both set",
                "both, or neither",
            )
        return self

    @property
    def endpoint(self) -> ListenAddress:
        """The address in parts."""
        return parse_endpoint(self.address)


class Redis(Section):
    """Where the shared state is, and how long a request may wait for it."""

    url: RedisUrl = Field(
        default="embedded",
        repr=False,
        description="Where Redis is; `embedded` starts a server of our own in data_dir.",
    )
    prefix: KeyPrefix = Field(
        default="authsidecar:", description="Beginning of every key, so that a Redis can be shared."
    )
    budget_ms: int = Field(
        default=50,
        ge=1,
        le=10_000,
        description="Time that one trip to Redis may take, in milliseconds; then 503.",
    )
    username: UserName | None = Field(
        default=None, description="Redis user (ACL); wins over the one in the URL."
    )
    password: Secret | None = Field(
        default=None, description="Redis password; wins over the one in the URL."
    )
    tls_ca_file: FilePath | None = Field(
        default=None,
        description="Certificates (PEM) that a rediss:// server's must chain to; null: the "
        "system's.",
    )
    tls_cert_file: FilePath | None = Field(
        default=None, description="Client certificate (PEM) for rediss://."
    )
    tls_key_file: FilePath | None = Field(
        default=None, description="Private key (PEM) of the client certificate."
    )
    wait_replicas: int = Field(
        default=0,
        ge=0,
        le=10,
        description="Number of replicas that a revocation waits for; 0: none.",
    )
    wait_timeout_ms: int = Field(
        default=1000,
        ge=1,
        le=60_000,
        description="Time that a revocation waits for its replicas, in milliseconds.",
    )
    max_connections: int = Field(
        default=32,
        ge=1,
        le=10_000,
        description="Connections to Redis per worker, at most; decisions have two of them, and all "
        "else at least one.",
    )
    eviction_policy: Literal["refuse", "warn"] = Field(
        default="refuse",
        description="What to do at start if Redis may evict keys (maxmemory-policy is not "
        "noeviction).",
    )
    wait_at_start_seconds: Seconds | None = Field(
        default=None,
        ge=0,
        le=86_400,
        description="How long `serve` waits at its start for a Redis that is away, in seconds, "
        "answering 503 meanwhile; null: as long as it takes.",
    )
    cache_records: int = Field(
        default=100_000,
        ge=0,
        le=10_000_000,
        description="Token records kept in each worker's memory (validated in Redis on every "
        "request); 0: off.",
    )
    cache_max_age_seconds: float = Field(
        default=30,
        ge=0.1,
        le=300,
        description="Age at which such a record is read again whatever its proof says, in "
        "seconds: until then a change made with redis-cli may go unseen.",
    )
    public_without_redis: bool = Field(
        default=False,
        description="Let public routes pass, uncounted, while Redis is unavailable; else 503.",
    )

    @property
    def tls(self) -> bool:
        """Whether the URL asks for TLS."""
        return self.url.startswith("rediss")

    @property
    def cluster(self) -> bool:
        """Whether the URL names a Redis Cluster."""
        return "+cluster://" in self.url

    @model_validator(mode="after")
    def _tls_together(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise contradiction(
                "redis.tls_cert_file",
                "and redis.tls_key_file are not both set",
                "both, or neither",
            )
        if not self.tls and (self.tls_ca_file or self.tls_cert_file):
            raise contradiction(
                "redis.url",
                "uses no TLS although TLS files are set",
                "rediss://, rediss+sentinel:// or rediss+cluster:// beside them",
            )
        return self


class Coolify(Section):
    """Which Coolify stands behind."""

    routes: Release = Field(
        default="4.3",
        description="Release line of Coolify, whose route table is used; for a 4.2 use 4.3.",
    )
    extra_routes: FilePath | None = Field(
        default=None,
        description="File of your own routes, before and over the table's: one `METHOD PATH "
        "PERMISSION` a line, where PERMISSION may also be several with commas, `public`, `switch`, "
        "`deny` (closed) or `absent`.",
    )
    outside: Literal["deny", "pass"] = Field(
        default="deny",
        description="Paths outside /api and /mcp: `deny` (404), or `pass` (200 without identity).",
    )
    instance_team: int = Field(
        default=0,
        ge=0,
        le=9_223_372_036_854_775_807,
        description="Id of the team whose root tokens may switch the API on and off.",
    )

    @field_validator("routes", mode="before")
    @classmethod
    def _served(cls, value: object) -> object:
        if isinstance(value, str) and value in WITHIN:
            raise ValueError(f"has no table: {serves(value)}")
        return value


class Restrictions(Section):
    """Tokens that are restricted to projects, environments or resources."""

    body: Literal["refused", "forwarded"] = Field(
        default="refused",
        description="What becomes of their requests with a body that Coolify reads as input: "
        "`refused` (403), or `forwarded`: looked at where the proxy shows it (Traefik's "
        "`forwardBody`, Envoy's `with_request_body`), up to 64 KiB, and refused elsewhere.",
    )


class Api(Section):
    """The API switch."""

    enabled_at_first_start: bool = Field(
        default=False,
        description="State of the API switch in a new installation; later starts leave it alone.",
    )


class Logging(Section):
    """What is written to standard error."""

    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`auto` is `console` on a terminal and `json` elsewhere."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level that is written."
    )
    decisions: Literal["all", "denied", "none"] = Field(
        default="all", description="Which decisions get a line of their own."
    )


class Receipts(Section):
    """What is kept of decisions in Redis, to be looked up and asked about."""

    enabled: bool = Field(default=True, description="Keep receipts of decisions.")
    share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Part of the admissions that is kept, beside the first of each token and route "
        "in an hour; refusals are all kept.",
    )
    max_entries: int = Field(
        default=100_000,
        ge=1000,
        le=100_000_000,
        description="Receipts in Redis, at most; half of them for requests without a token that "
        "was proven. Each takes about half a kilobyte.",
    )
    max_age_hours: int = Field(
        default=168, ge=1, le=8760, description="How long a receipt is kept, in hours."
    )
    max_per_second: int = Field(
        default=200,
        ge=2,
        le=100_000,
        description="Receipts that one worker writes a second, at most, half of them as above; "
        "more are dropped and counted.",
    )


class Traces(Section):
    """Spans of decisions for an OpenTelemetry collector; needs the extra `otel`."""

    endpoint: WebUrl | None = Field(
        default=None,
        repr=False,
        description="URL that they are posted to, as OTLP over HTTP "
        "(http://127.0.0.1:4318/v1/traces, say); null: there are none.",
    )
    ratio: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Part of the requests that begin a trace of their own, of those that come "
        "without a traceparent; one that comes with it is traced if it is sampled.",
    )
    max_per_second: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="Decisions that one worker traces a second, at most: a client can write a "
        "traceparent, too.",
    )


class Mail(Section):
    """Warnings before a token expires."""

    host: HostName | None = Field(default=None, description="SMTP server; null: no mail is sent.")
    port: int = Field(default=587, ge=1, le=65_535, description="Port of the SMTP server.")
    tls: Literal["starttls", "tls", "none"] = Field(
        default="starttls",
        description="How the connection is encrypted; `tls` is usual on port 465.",
    )
    username: UserName | None = Field(default=None, description="SMTP user; null: no login.")
    password: Secret | None = Field(default=None, description="SMTP password.")
    sender: MailAddress | None = Field(default=None, description="From address of the mails.")
    operator: MailAddress | None = Field(
        default=None,
        description="Where mails about the use of canary tokens go; null: nowhere.",
    )
    lead_times_hours: Hours = Field(
        default=(24,), description="How long before expiry a warning goes out, in hours."
    )
    synced_tokens: bool = Field(
        default=False,
        description="Warn about tokens synced from Coolify too (Coolify mails about them itself).",
    )
    webhook_url: WebUrl | None = Field(
        default=None, repr=False, description="URL that each warning is also posted to, as JSON."
    )
    webhook_secret: Secret | None = Field(
        default=None, description="Key of the HMAC-SHA256 that signs what is posted."
    )
    expiry_header_hours: int = Field(
        default=24,
        ge=0,
        le=8760,
        description="How long before expiry answers say so in a header, in hours; 0: never.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.host is not None and self.sender is None:
            raise contradiction(
                "mail.sender", "is missing beside mail.host", "a plain mail address"
            )
        if (self.username is None) != (self.password is None):
            raise contradiction(
                "mail.username", "and mail.password are not both set", "both, or neither"
            )
        return self


class Sync(Section):
    """Tokens, users and teams from Coolify's own database."""

    source: Literal["coolify"] | None = Field(
        default=None, description="Where they come from; null: they are managed here."
    )
    dsn: PostgresDsn | None = Field(
        default=None, description="Coolify's PostgreSQL; a role that may only read is enough."
    )
    host: HostName | None = Field(
        default=None,
        description="Host of that PostgreSQL; it and the four below win over sync.dsn, and are "
        "written as they are, nothing percent-encoded.",
    )
    port: int | None = Field(default=None, ge=1, le=65_535, description="Its port; null: 5432.")
    user: UserName | None = Field(default=None, description="The role that reads.")
    password: Secret | None = Field(default=None, description="Its password.")
    database: DatabaseName | None = Field(default=None, description="Name of Coolify's database.")
    interval_seconds: Seconds = Field(
        default=1.0,
        ge=0.1,
        le=3600,
        description="Time between two looks at the database, in seconds.",
    )
    instant: bool = Field(
        default=False,
        description="Be notified by triggers in Coolify's database as well (they are installed "
        "separately).",
    )
    team_isolation: bool = Field(
        default=False,
        description="Refuse a token the resources of other teams, by the owners that the sync "
        "reads.",
    )
    resources: bool = Field(
        default=False,
        description="Follow projects, environments, servers, applications, databases and services "
        "too, so that tokens can be restricted to them; so does team_isolation.",
    )
    allow_empty: bool = Field(
        default=False,
        description="Believe a table that is suddenly empty, and remove everything; else keep.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.dsn is None and self.host is None:
            if self.source is not None:
                raise contradiction(
                    "sync.dsn",
                    "is missing beside sync.source, and so is sync.host",
                    "postgresql://USER:PASSWORD@HOST[:PORT]/DATABASE",
                )
            if self.user or self.password or self.database:
                raise contradiction(
                    "sync.host",
                    "is missing beside the user, the password or the database",
                    "a host name or an address",
                )
        if self.port is not None and self.host is None:
            raise contradiction(
                "sync.port", "is set without sync.host", "a port beside sync.host, or in sync.dsn"
            )
        if self.dsn is None and self.host is not None:
            for name in ("user", "database"):
                if getattr(self, name) is None:
                    raise contradiction(
                        f"sync.{name}", "is missing beside sync.host", "1 to 255 characters"
                    )
        return self

    @property
    def url(self) -> SecretStr | None:
        """One DSN of all that is set; None: there is no database."""
        return postgres_url(
            self.dsn,
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            database=self.database,
        )


class Shutdown(Section):
    """What happens between SIGTERM and the end."""

    delay_seconds: Seconds = Field(
        default=0,
        ge=0,
        le=300,
        description="How long requests are still taken after SIGTERM, in seconds, while /readyz is "
        "503 already: the time that a load balancer needs to notice. A second signal ends it.",
    )


class Settings(BaseSettings):
    """The whole configuration of one sidecar.

    Its one source is the layers of `loading.load`, which know the line or variable that each
    value came from, and so can say it; pydantic-settings' own sources do not.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )

    @classmethod
    def settings_customise_sources(  # noqa: D102  # pydantic-settings' own hook
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    listen: Listen = Listen()
    management: Management = Management()
    redis: Redis = Redis()
    data_dir: DataDirectory = Field(
        default_factory=lambda: default_data_dir(os.environ),
        description="Directory of our own files (the embedded Redis); null: /var/lib/authsidecar "
        "for root or if it is writable, else $XDG_STATE_HOME/authsidecar or "
        "~/.local/state/authsidecar.",
    )
    trusted_peers: Networks = Field(
        default=("127.0.0.0/8", "::1/128"),
        description="Networks of the proxies that may ask; everyone else gets 403. The unix "
        "socket is always trusted.",
    )
    trusted_hops: Networks = Field(
        default=(),
        description="Networks (a CDN's, say) that are skipped when X-Forwarded-For is read; they "
        "gain no right to ask.",
    )
    coolify: Coolify = Coolify()
    restrictions: Restrictions = Restrictions()
    api: Api = Api()
    limits: Limits = Limits()
    enforcement: Literal["enforce", "report"] = Field(
        default="enforce",
        description="`report` lets everything pass and only records what would have been denied.",
    )
    log: Logging = Logging()
    receipts: Receipts = Receipts()
    traces: Traces = Traces()
    mail: Mail = Mail()
    sync: Sync = Sync()
    shutdown: Shutdown = Shutdown()

    _files: dict[tuple[str, ...], str] = PrivateAttr(default_factory=dict)

    @property
    def files(self) -> Mapping[tuple[str, ...], str]:
        """The files of `_FILE` variables, by the settings whose values they hold."""
        return self._files

    def keep_files(self, files: Mapping[tuple[str, ...], str]) -> None:
        """Note which values came from files, so that these can be read again."""
        self._files = dict(files)

    @property
    def peer_networks(self) -> tuple[Network, ...]:
        """The networks of `trusted_peers`."""
        return tuple(parse_network(text) for text in self.trusted_peers)

    @property
    def hop_networks(self) -> tuple[Network, ...]:
        """The networks of `trusted_hops`."""
        return tuple(parse_network(text) for text in self.trusted_hops)

    @model_validator(mode="after")
    def _listeners_apart(self) -> Self:
        same = self.listen.endpoint == self.management.endpoint
        if same and self.management.endpoint.port != 0:
            raise contradiction(
                "management.address",
                "is the same as listen.address",
                "another port",
            )
        return self
