"""The name of every key in Redis, in one place (docs/reference/redis-keys.md).

What one script call touches shares a hash tag, so that Redis Cluster keeps it in one slot: a
user's nonce and counters under `{u:ID}`, a team's counters under `{t:ID}`, an address's under
`{a:ADDRESS}`.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal

from authsidecar.decision.model import TeamId, TokenId, UserId
from authsidecar.decision.ratelimit.charges import Charge

OWNER_BUCKETS: Final = 256
"""Into how many hashes the owners of resources are spread: a hash of up to 128 short fields is one
compact block in Redis (hash-max-listpack-entries)."""

RECEIPT_STREAMS: Final = 8
"""Into how many streams the receipts of decisions are spread, those of tokens and the others."""


def owner_bucket(uuid: str) -> int:
    """Which of these hashes a uuid is in: the first byte of its SHA-256, so all fill alike."""
    return sha256(uuid.encode()).digest()[0]


def repeat_digest(repeat_key: bytes) -> str:
    """What names a client request: half of its SHA-256 in hexadecimal digits."""
    return sha256(repeat_key).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names under one prefix."""

    prefix: str = "authsidecar:"

    @property
    def instance(self) -> str:
        """HASH: api_enabled, allowlist, mcp_enabled; synced: 1 if a sync is complete, 0 before.

        Until somebody confirms a change: trial:api_enabled, trial:allowlist (JSON: until when in
        milliseconds, and what was before).
        """
        return f"{self.prefix}instance"

    @property
    def schema(self) -> str:
        """STRING: the number of this layout; a release that does not know it refuses to start."""
        return f"{self.prefix}schema"

    @property
    def instance_nonce(self) -> str:
        """STRING: renewed after every change of the instance's settings."""
        return f"{self.prefix}nonce:instance"

    @property
    def users(self) -> str:
        """SET of all user ids."""
        return f"{self.prefix}users"

    @property
    def teams(self) -> str:
        """SET of all team ids."""
        return f"{self.prefix}teams"

    @property
    def expiring(self) -> str:
        """ZSET of the ids of the tokens that expire, by the millisecond."""
        return f"{self.prefix}expiring"

    @property
    def audit(self) -> str:
        """STREAM of about 10,000 changes: action, target, actor, via, place, before, after."""
        return f"{self.prefix}audit"

    @property
    def management_keys(self) -> str:
        """SET of the ids of all management keys."""
        return f"{self.prefix}management-keys"

    def management_key(self, management_key: int) -> str:
        """HASH: sha256 (32 bytes), name, scope, created_at, expires_at."""
        return f"{self.prefix}management-key:{management_key}"

    def console_link(self, digest: str) -> str:
        """HASH: actor, scope: a link that signs in to the console, by its digest; five minutes."""
        return f"{self.prefix}console:link:{digest}"

    def console_session(self, digest: str) -> str:
        """HASH: actor, scope, key, began_at, said: who is signed in; lives while it is used."""
        return f"{self.prefix}console:session:{digest}"

    def idempotency(self, request: str) -> str:
        """STRING: JSON of what a request with an Idempotency-Key has created; lives for a day."""
        return f"{self.prefix}idempotency:{request}"

    @property
    def sync_lease(self) -> str:
        """STRING: which sync may write; expires when it is not renewed."""
        return f"{self.prefix}{{sync}}:lease"

    @property
    def sync_fence(self) -> str:
        """STRING: the last sync that got the lease; its writes look at it."""
        return f"{self.prefix}{{sync}}:fence"

    @property
    def sync_epoch(self) -> str:
        """STRING: another one after each write of the sync; a lost write shows by it."""
        return f"{self.prefix}{{sync}}:epoch"

    def sync_epoch_on(self, number: int) -> str:
        """STRING: the same on one primary of a cluster: the number finds one of its slots."""
        return f"{self.prefix}{{sync-{number}}}:epoch"

    @property
    def sync_room(self) -> str:
        """Never there: a script that begins with its removal may go on on a full Redis."""
        return f"{self.prefix}{{sync}}:room"

    @property
    def sync_status(self) -> str:
        """HASH: owner, at, problem, detail, kept, odd, tokens_file: what a sync tells of itself."""
        return f"{self.prefix}{{sync}}:status"

    @property
    def canaries(self) -> str:
        """HASH: ids of canary tokens to the digest of each, when it was made, and its note."""
        return f"{self.prefix}canaries"

    def canary_alarm(self, address: str) -> str:
        """STRING, empty: that address has used a canary token; lives for a minute."""
        return f"{self.prefix}canary-alarm:{address}"

    def next_id(self, noun: str) -> str:
        """STRING: the last id given to a `user`, `team`, `token` or `management-key`."""
        return f"{self.prefix}last-id:{noun}"

    def token(self, token: TokenId) -> str:
        """HASH: sha256 (32 bytes), name, user, team, permissions, expires_at, created_at, limit.

        What narrows it: restriction (JSON). disabled: 1. rotated: the digest now, the one before
        that, and until when it is valid.

        Its last use: used (time and address), used_route, used_route_rest.
        """
        return f"{self.prefix}token:{token}"

    def usage(self, token: TokenId) -> str:
        """STRING: for what a token was used, by days: a line for each route and each name; bounded.

        Behind the braces is the token's key, so both are in one slot.
        """
        return f"{self.prefix}usage:{{{self.token(token)}}}"

    @property
    def usage_since(self) -> str:
        """STRING: since when it is noted for what tokens are used, in milliseconds."""
        return f"{self.prefix}usage-since"

    def user(self, user: UserId) -> str:
        """HASH: name, email, limit, restriction."""
        return f"{self.prefix}user:{user}"

    def user_nonce(self, user: UserId) -> str:
        """STRING: renewed after every change that concerns the user or any of its tokens."""
        return f"{self.prefix}nonce:{{u:{user}}}"

    def user_tokens(self, user: UserId) -> str:
        """SET of the ids of the user's tokens."""
        return f"{self.prefix}user:{user}:tokens"

    def user_teams(self, user: UserId) -> str:
        """SET of the ids of the user's teams."""
        return f"{self.prefix}user:{user}:teams"

    def team(self, team: TeamId) -> str:
        """HASH: name, mcp_enabled, limit, restriction."""
        return f"{self.prefix}team:{team}"

    def team_tokens(self, team: TeamId) -> str:
        """SET of the ids of the team's tokens."""
        return f"{self.prefix}team:{team}:tokens"

    def team_members(self, team: TeamId) -> str:
        """HASH: user id to role."""
        return f"{self.prefix}team:{team}:members"

    def owners(self, bucket: int) -> str:
        """HASH: the uuids of some of Coolify's resources to their teams and their places."""
        return f"{self.prefix}owners:{bucket}"

    def warning(self, warning: str) -> str:
        """STRING: who is about to send this warning, or `sent`; outlives the token by two days."""
        return f"{self.prefix}warning:{warning}"

    def doctor(self, key: str) -> str:
        """STRING, empty: a doctor with the key of this digest is armed; lives for a minute."""
        return f"{self.prefix}doctor:{key}"

    def doctor_sightings(self, key: str) -> str:
        """LIST of JSON: what was seen of that doctor's probes; lives for two minutes."""
        return f"{self.prefix}doctor:{key}:sightings"

    def receipts(self, whose: Literal["token", "other"], number: int) -> str:
        """STREAM of JSON: decisions with a token that was proven, or the `other` ones; bounded."""
        return f"{self.prefix}receipts:{whose}:{number}"

    def fleet_counts(self, step_s: int, start: int) -> str:
        """HASH: decisions of all processes in so many seconds from then on: by reason and time."""
        return f"{self.prefix}{{fleet}}:{step_s}:{start}"

    @property
    def fleet_processes(self) -> str:
        """ZSET of JSON: each process that runs, by the millisecond when it was last heard of."""
        return f"{self.prefix}{{fleet}}:processes"

    def counter(self, charge: Charge) -> str:
        """LIST of admission times in milliseconds; of a budget, STRING: how often it was used."""
        return f"{self.prefix}rate:{{{charge.tag}}}:{charge.name}"

    def repeat(self, tag: str, repeat_key: bytes) -> str:
        """STRING, empty: this client request was charged already; lives for ten seconds."""
        return f"{self.prefix}repeat:{{{tag}}}:{repeat_digest(repeat_key)}"
