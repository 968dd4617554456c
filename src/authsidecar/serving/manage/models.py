"""What the management API takes and gives, as types; the OpenAPI document is made from them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from authsidecar.decision.credentials import LARGEST_ID
from authsidecar.decision.ratelimit.charges import LARGEST_LIMIT, LONGEST_WINDOW_S

MOST_ITEMS = 200
"""Items of the largest page."""

LONGEST_ALLOWLIST = 20_000
"""Characters of the longest allowlist that the API takes."""

Id = Annotated[int, Field(ge=0, le=LARGEST_ID)]
TokenNumber = Annotated[int, Field(ge=1, le=LARGEST_ID)]
Time = Annotated[str, Field(description="RFC 3339, UTC", json_schema_extra={"format": "date-time"})]
ScopeName = Literal["user", "token", "team"]
RoleName = Literal["owner", "admin", "member"]
PermissionName = Literal[
    "read", "read:sensitive", "write", "write:sensitive", "deploy", "root", "*"
]
Givable = Literal["read", "read:sensitive", "write", "write:sensitive", "deploy", "root"]
Name = Annotated[str, Field(min_length=1, max_length=255)]
Warnings = Annotated[list[str], Field(description="What is legal but unwise, a line each.")]


class Model(BaseModel):
    """Nothing but what is named, and nothing taken for what it is not."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Query(BaseModel):
    """What a query may hold: texts, which are read."""

    model_config = ConfigDict(extra="forbid")


class PageQuery(Query):
    """Which page of a list."""

    limit: Annotated[
        int,
        Field(ge=1, le=MOST_ITEMS, description="Items at the most; of a long list, about so many."),
    ] = 50
    cursor: Annotated[
        str | None,
        Field(
            max_length=2000, pattern="^[A-Za-z0-9_=-]+$", description="`next` of the page before."
        ),
    ] = None


class TokensQuery(PageQuery):
    """Whose tokens."""

    user: Annotated[Id | None, Field(description="Only of this user.")] = None
    team: Annotated[Id | None, Field(description="Only of this team.")] = None
    sort: Annotated[
        Literal["owner", "expiry"],
        Field(description="`expiry`: of all that expire, what does so first comes first."),
    ] = "owner"


class LimitsQuery(PageQuery):
    """Whose overrides."""

    scope: Annotated[ScopeName, Field(description="Of users, tokens or teams.")]


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(extra="forbid")

    type: str
    title: str
    status: int
    detail: Annotated[str, Field(description="One line: what is wrong, and what to do.")]
    errors: Annotated[
        list[dict[str, str]] | None, Field(description="By `field` of the request, `detail`.")
    ] = None


class User(Model):
    """A user."""

    id: Id
    name: str
    email: str


class NewUser(Model):
    """A user to be."""

    name: Name
    email: Annotated[str, Field(max_length=254, description="Where expiry warnings go.")]
    id: Annotated[Id | None, Field(description="Its id, if it must be a certain one.")] = None


class Team(Model):
    """A team."""

    id: Id
    name: str
    mcp_enabled: bool


class NewTeam(Model):
    """A team to be."""

    name: Name
    id: Annotated[Id | None, Field(description="Its id, if it must be a certain one.")] = None


class TeamChange(Model):
    """What of a team is changed."""

    mcp_enabled: bool


class Member(Model):
    """A membership."""

    team: Id
    user: Id
    role: RoleName


class NewRole(Model):
    """The role that a user gets in a team."""

    role: RoleName


class SetMember(Member):
    """A membership that was set."""

    warnings: Warnings


class Removed(Model):
    """What is gone."""

    removed_tokens: Annotated[int, Field(description="How many tokens went with it.")]
    warnings: Warnings


class Restriction(Model):
    """What narrows a token, or all of a user's or team's: at least one part."""

    permissions: list[PermissionName] | None = None
    routes: Annotated[
        list[str] | None, Field(description="`METHOD TEMPLATE`, as `routes list` shows them.")
    ] = None
    projects: Annotated[list[str] | None, Field(description="Uuids.")] = None
    environments: Annotated[list[str] | None, Field(description="`PROJECT/NAME`.")] = None
    resources: Annotated[list[str] | None, Field(description="Uuids.")] = None
    tags: list[str] | None = None
    sources: Annotated[
        list[str] | None, Field(alias="from", description="Networks in CIDR form.")
    ] = None
    rate: Annotated[str | None, Field(description="A limit of its own: 10/60s, 100/1h.")] = None
    uses: Annotated[
        int | None, Field(ge=1, le=LARGEST_ID, description="So many requests in all.")
    ] = None
    not_before: Annotated[str | None, Field(description="RFC 3339.")] = None
    until: Annotated[str | None, Field(description="RFC 3339.")] = None
    hours: Annotated[
        list[str] | None, Field(description="Only then: `Mon-Fri 08:00-18:00 Europe/Berlin`.")
    ] = None
    note: str | None = None


class NewRestriction(Restriction):
    """A restriction to be."""

    force: Annotated[
        bool, Field(description="Keep what names nothing known, or is wider than before.")
    ] = False


class HeldRestriction(Model):
    """What narrows something."""

    scope: ScopeName
    id: Id
    damaged: Annotated[bool, Field(description="It can't be read, and admits nothing.")]
    restriction: Restriction | None
    uses_spent: int | None


class SetRestriction(HeldRestriction):
    """A restriction that was set."""

    warnings: Warnings


class Token(Model):
    """A token, without its secret."""

    id: TokenNumber
    name: str
    user: Id
    team: Id | None
    permissions: list[PermissionName]
    expires_at: Time | None
    created_at: Time
    last_used_at: Time | None
    last_used_address: str | None
    last_used_route: str | None
    restricted: Annotated[bool, Field(description="Whether a restriction of its own narrows it.")]


class NewToken(Model):
    """A token to be."""

    name: Annotated[str, Field(min_length=3, max_length=255)]
    user: Id
    team: Id
    permissions: Annotated[list[Givable], Field(min_length=1, max_length=6)]
    expires: Annotated[
        Literal[7, 30, 60, 90, 365] | None, Field(description="Days from now; null: never.")
    ]


class CreatedToken(Model):
    """A token that was just made."""

    id: TokenNumber
    token: Annotated[
        str | None,
        Field(
            description="`ID|SECRET`, this once; null where the same Idempotency-Key has made it "
            "before."
        ),
    ]
    name: str
    user: Id
    team: Id | None
    permissions: list[PermissionName]
    expires_at: Time | None


class Revoked(Model):
    """What opens nothing any more."""

    id: Id
    revoked: bool
    warnings: Warnings


class Allowlist(Model):
    """Who may call."""

    text: str
    everyone: bool
    entries: list[str]


class Settings(Model):
    """What holds for the whole instance."""

    api_enabled: bool
    mcp_enabled: bool
    allowlist: Allowlist


class SettingsChange(Model):
    """What of it is changed; the rest stays."""

    api_enabled: bool | None = None
    mcp_enabled: bool | None = None
    allowlist: Annotated[
        str | None,
        Field(
            max_length=LONGEST_ALLOWLIST,
            description='Addresses and networks with commas; "" admits everyone.',
        ),
    ] = None
    my_ip: Annotated[
        str | None, Field(max_length=64, description="Your address: it must stay allowed.")
    ] = None
    force: Annotated[bool, Field(description="Save a list that locks you out, or may.")] = False


class ChangedSettings(Settings):
    """The settings after a change."""

    warnings: Warnings


class Limit(Model):
    """What holds for a user, token or team now."""

    scope: ScopeName
    id: Id
    limit: int | None
    window_seconds: float | None
    source: Literal["override", "configuration", "off"]
    used: Annotated[int, Field(description="What the window that ends now has admitted.")]
    remaining: int | None
    free_at: Annotated[Time | None, Field(description="When the oldest of these leaves it.")]


class NewLimit(Model):
    """An override to be."""

    limit: Annotated[int, Field(ge=1, le=LARGEST_LIMIT)]
    window_seconds: Annotated[
        int | None,
        Field(ge=1, le=LONGEST_WINDOW_S, description="null: that of the configured limit, or 60."),
    ] = None


class Key(Model):
    """A management key, without its secret."""

    id: Id
    name: str
    scope: Literal["read", "write"]
    created_at: Time
    expires_at: Time | None
    expired: bool


class AuditRecord(Model):
    """A change that was made."""

    id: str
    at: Time
    action: str
    target: str
    actor: str
    via: Literal["api", "authz", "cli", "console", "sync", "time", "other"]
    place: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class Header(Model):
    """A header of a client's."""

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=100,
            pattern="^[A-Za-z0-9_-]+$",
            description="Not Authorization: that is `token`.",
        ),
    ]
    value: Annotated[str, Field(max_length=8192)]


class Question(Model):
    """A request of a client's, to be explained; nothing is counted."""

    method: Annotated[str, Field(min_length=1, max_length=64)]
    target: Annotated[str, Field(min_length=1, max_length=16_384, description="Path and query.")]
    token: Annotated[
        str | None,
        Field(
            max_length=512, description="`ID|SECRET` as the client sends it; it is kept nowhere."
        ),
    ] = None
    as_token: Annotated[
        TokenNumber | None,
        Field(description="As if this token's right secret were sent: for who has none."),
    ] = None
    client_ip: Annotated[str, Field(max_length=64)] = "127.0.0.1"
    headers: Annotated[
        list[Header], Field(max_length=50, description="Others that the client sends.")
    ] = Field(default_factory=list)
    peer: Annotated[
        str | None, Field(max_length=64, description="Who asks the sidecar; else a trusted peer.")
    ] = None


class Check(Model):
    """One check: what was needed and found."""

    name: str
    result: Literal["pass", "fail", "skipped"]
    detail: str


class Explanation(Model):
    """What a request would be answered, and why."""

    outcome: Literal["allow", "deny"]
    status: int
    code: str | None
    hint: str | None
    checks: list[Check]


class Explained(Explanation):
    """What a request would be answered, and whether its secret was shown."""

    secret_taken_as_right: Annotated[bool, Field(description="`as_token` was given.")]


class Reloaded(Model):
    """The configuration that was read again."""

    config_digest: Annotated[str, Field(description="Names what is in force now.")]
    changed: Annotated[
        list[str],
        Field(
            description="Settings that are another than before; with several workers, than when "
            "the one that answers was started."
        ),
    ]
    left: Annotated[
        list[str], Field(description="Settings that are another in the file, and need a restart.")
    ]


class Status(Model):
    """How this process is doing."""

    version: str
    pid: int
    started_at: Time
    ready: bool
    missing: Annotated[dict[str, str], Field(description="What keeps it from deciding, by part.")]
    background: Annotated[dict[str, str], Field(description="What fails beside requests, by task.")]
    sync: Annotated[
        dict[str, Any] | None, Field(description="What the sync tells, as `/readyz` has it.")
    ]
    owned_by: Annotated[str | None, Field(description="Whose the state is, if a sync owns it.")]


class Warned(Model):
    """What is legal but unwise about the configuration."""

    items: list[str]


class UserPage(Model):
    """Users."""

    items: list[User]
    next: str | None


class TeamPage(Model):
    """Teams."""

    items: list[Team]
    next: str | None


class MemberPage(Model):
    """Members of a team."""

    items: list[Member]
    next: str | None


class TokenPage(Model):
    """Tokens."""

    items: list[Token]
    next: str | None


class LimitPage(Model):
    """Overrides; a page can have fewer than asked for, or none, and yet a next one."""

    items: list[Limit]
    next: str | None


class KeyPage(Model):
    """Keys."""

    items: list[Key]
    next: str | None


class AuditPage(Model):
    """Changes, the newest first."""

    items: list[AuditRecord]
    next: str | None
