"""Settings on trial: changed, and changed back unless somebody confirms them in time.

Whoever tries a setting may lock itself out, or die. So what was before, and until when the trial
lasts, stand in the very hash that the setting is in, written by the same command. Every process
looks for a trial that has ended, and ends it by one change; Redis's clock decides.
"""

import asyncio
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from redis import exceptions
from redis.asyncio import Redis

from authsidecar.observe.log import Log
from authsidecar.store import audit, records
from authsidecar.store.audit import Origin, Via
from authsidecar.store.changes import Changes
from authsidecar.store.cluster import Cluster
from authsidecar.store.keys import Keys
from authsidecar.times import UnixMs, rfc3339

Tried = Literal["api_enabled", "allowlist"]
"""The settings that can be tried."""

TRIED: Final[tuple[Tried, ...]] = ("api_enabled", "allowlist")

SETTING_ACTIONS: Final = {
    "api_enabled": "api.switch",
    "mcp_enabled": "mcp.switch",
    "allowlist": "allowlist.set",
}
"""What the audit calls a change of the instance's settings."""

EVERY_S: Final = 1.0
"""The time between two looks of a process, in seconds."""


def trial_field(setting: str) -> str:
    """The field beside a setting that says that it is on trial."""
    return f"trial:{setting}"


TRIAL_FIELDS: Final = tuple(map(trial_field, TRIED))

_FIELDS: Final = (*TRIED, *TRIAL_FIELDS)


@dataclass(frozen=True, slots=True)
class Trial:
    """A setting that somebody has yet to confirm.

    Attributes:
        setting: the field's name.
        until: the first millisecond at which it is too late.
        value: what it is meanwhile.
        before: what it was; None: it was not there.
    """

    setting: Tried
    until: UnixMs
    value: str
    before: str | None

    @classmethod
    def read(cls, setting: Tried, value: records.Field, trial: records.Field) -> Self | None:
        """The trial that two fields say, or None; one that cannot be read is none."""
        if trial is None:
            return None
        try:
            found = json.loads(trial)
            return cls(setting, UnixMs(int(found["until"])), records.text(value), found["before"])
        except (ValueError, TypeError, KeyError):
            return None

    def written(self) -> str:
        """The text that `read` reads."""
        return json.dumps({"until": self.until, "before": self.before})


class Trials:
    """Begins and ends trials; redis-py's own exceptions pass through to the caller."""

    def __init__(self, client: "Redis", keys: Keys, origin: Origin | None = None) -> None:
        """Nothing is sent yet.

        Args:
            client: redis-py's asyncio client, decode_responses off.
            keys: the key names.
            origin: who begins and confirms, for the audit; None: that is not recorded.
        """
        self._origin = origin
        self._client: Any = client
        self._keys = keys
        self._changes = Changes(client, keys)

    async def pending(self) -> list[Trial]:
        """The trials that were not ended yet, also those that are to be; one cheap trip."""
        return _trials(await self._client.hmget(self._keys.instance, _FIELDS))

    async def begin(self, setting: Tried, value: str | int, within_ms: int) -> Trial:
        """Change a setting, until somebody confirms it or the time is over.

        Tried again, it is what it was before the first trial that it will be again.

        Args:
            setting: the field's name.
            value: what it is to be.
            within_ms: how long the trial may last, in milliseconds.
        """
        key = self._keys.instance

        async def change(pipe: Any) -> Trial:
            now = await self._now()
            found = await pipe.hmget(key, _FIELDS)
            old = found[TRIED.index(setting)]
            before = None if old is None else records.text(old)
            for one in _trials(found):
                if one.setting == setting:
                    before = one.before
            trial = Trial(setting, UnixMs(now + within_ms), str(value), before)
            pipe.multi()
            pipe.hset(key, mapping={setting: value, trial_field(setting): trial.written()})
            was = None if old is None else records.text(old)
            after: dict[str, str | None] = {setting: trial.value, "until": rfc3339(trial.until)}
            action = SETTING_ACTIONS[setting]
            self._record(pipe, action, setting, was, after, origin=self._origin)
            self._changes.renew_instance(pipe)
            return trial

        return await self._changes.transaction(change, [key], allow_oom=True)

    async def confirm(self, trial: Trial) -> bool:
        """End a trial: the setting stays. False if it is over, or this very one is no more."""
        key = self._keys.instance

        async def change(pipe: Any) -> bool:
            now = await self._now()
            if trial not in _trials(await pipe.hmget(key, _FIELDS)) or now >= trial.until:
                return False
            pipe.multi()
            pipe.hdel(key, trial_field(trial.setting))
            after: dict[str, str | None] = {trial.setting: trial.value}
            self._record(
                *(pipe, "setting.confirm", trial.setting, trial.value), after, origin=self._origin
            )
            return True

        return await self._changes.transaction(change, [key], allow_oom=True)

    async def roll_back(self) -> list[Trial]:
        """End the trials whose time is over: what was before is again; which these are."""
        if not any(await self._client.hmget(self._keys.instance, TRIAL_FIELDS)):
            return []
        key = self._keys.instance

        async def change(pipe: Any) -> list[Trial]:
            now = await self._now()
            found = _trials(await pipe.hmget(key, _FIELDS))
            over = [one for one in found if one.until <= now]
            if not over:
                return []
            pipe.multi()
            for one in over:
                if one.before is not None:
                    pipe.hset(key, one.setting, one.before)
                after: dict[str, str | None] = {one.setting: one.before}
                nobody = Origin("authsidecar", Via.TIME, socket.gethostname())
                self._record(
                    *(pipe, "setting.roll-back", one.setting, one.value), after, origin=nobody
                )
            gone = [trial_field(one.setting) for one in over]
            gone += [one.setting for one in over if one.before is None]
            pipe.hdel(key, *gone)
            self._changes.renew_instance(pipe)
            return over

        return await self._changes.transaction(change, [key], allow_oom=True)

    def _record(
        self,
        pipe: Any,
        action: str,
        setting: str,
        was: str | None,
        after: Mapping[str, str | None],
        *,
        origin: Origin | None,
    ) -> None:
        before = {setting: was}
        audit.write(pipe, self._keys, origin, action, "instance", before=before, after=after)

    async def keep_rolling_back(self, log: Log) -> None:
        """Look every second; a Redis that is away is tried again."""
        while True:
            try:
                for trial in await self.roll_back():
                    log.event(
                        "warning",
                        "rolled_back",
                        setting=trial.setting,
                        until=rfc3339(trial.until),
                        hint="nobody confirmed it",
                    )
            except (exceptions.RedisError, OSError):
                pass  # whoever decides tells of it
            await asyncio.sleep(EVERY_S)

    async def _now(self) -> UnixMs:
        """The time of the node that has the settings."""
        near = {"near": self._keys.instance} if isinstance(self._client, Cluster) else {}
        seconds, micros = await self._client.time(**near)
        return UnixMs(int(seconds) * 1000 + int(micros) // 1000)


def _trials(fields: Sequence[records.Field]) -> list[Trial]:
    """What the values of _FIELDS say."""
    values, trials = fields[: len(TRIED)], fields[len(TRIED) :]
    read = map(Trial.read, TRIED, values, trials)
    return [trial for trial in read if trial is not None]
