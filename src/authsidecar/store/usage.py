"""For what each token is used: its routes and what they name, by days, for `token advise`.

A process notes each token, route and name once a day, in memory, and writes that beside the
requests. What Redis keeps of a token is one text, a line for each route and name, and is bounded:
64 routes and 64 names. A new one takes the place of one that was not used for 90 days; if there is
none, it is not kept, and a line says so. The text goes with its token.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NamedTuple

from authsidecar.decision.model import ResourceKind, TokenId
from authsidecar.decision.usage import (
    ANYTHING,
    LONGEST,
    MORE_NAMES,
    MORE_ROUTES,
    NAME,
    UNKNOWN,
    UNSURE,
    Used,
    application,
    deployment,
)
from authsidecar.store import records
from authsidecar.store.keys import Keys, owner_bucket
from authsidecar.times import UnixMs

DAY_MS: Final = 86_400_000

MOST: Final = 64
"""How many routes, and how many names, are kept of a token."""

KEPT_DAYS: Final = 90
"""How long a route or name is kept before a new one may take its place."""

LARGEST: Final = 25_000
"""Bytes that what is kept of a token takes at the most, in Redis; usual are 300."""

NOTED: Final = 100_000
"""How many texts a process remembers to have noted today, in all."""

TRIES: Final = 20
"""In how many writes a deployment is looked for that the sync has not seen yet: a minute."""

BATCH: Final = 100
"""How many tokens one trip reads."""

AT_ONCE: Final = 10
"""How many tokens one trip writes, with up to 131 texts each: no request waits for long."""

# Each line: first day, last day, on how many days, what. Another process may be a day behind.
_WRITE: Final = r"""
if redis.call('EXISTS', KEYS[1]) == 0 then return end
local today, most, kept = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local lines, at, count = {}, {}, {}
local function class(what)
  local first = what:sub(1, 1)
  return (first == '=' or first == '?' or first == '*') and first or 'route'
end
local kept_text = redis.call('GET', KEYS[2]) or ''
for first, last, days, what in kept_text:gmatch('(%d+) (%d+) (%d+) ([^\n]+)\n') do
  lines[#lines + 1] = {tonumber(first), tonumber(last), tonumber(days), what}
  at[what] = #lines
  count[class(what)] = (count[class(what)] or 0) + 1
end
local function note(what)
  local line, kind = lines[at[what]], class(what)
  if line then
    if today > line[2] then line[2], line[3] = today, line[3] + 1 end
    return
  end
  if (kind == '=' or kind == 'route') and (count[kind] or 0) >= most then
    local oldest
    for i, one in ipairs(lines) do
      if class(one[4]) == kind and (not oldest or one[2] < lines[oldest][2]) then oldest = i end
    end
    if lines[oldest][2] + kept >= today then return note(kind == '=' and '?names' or '?routes') end
    at[lines[oldest][4]] = nil
    lines[oldest], at[what] = {today, today, 1, what}, oldest
    return
  end
  lines[#lines + 1] = {today, today, 1, what}
  at[what], count[kind] = #lines, (count[kind] or 0) + 1
end
for i = 4, #ARGV do note(ARGV[i]) end
local text = {}
for i, line in ipairs(lines) do text[i] = table.concat(line, ' ') .. '\n' end
redis.call('SET', KEYS[2], table.concat(text))
local left = redis.call('PTTL', KEYS[1])
if left > 0 then redis.call('PEXPIRE', KEYS[2], left) end
"""

_LINE: Final = re.compile(r"(\d{1,9}) (\d{1,9}) (\d{1,9}) (.+)")


class Days(NamedTuple):
    """When something was used; days are counted from 1970-01-01, UTC.

    Attributes:
        first: the first day.
        last: the last day.
        days: on how many days.
    """

    first: int
    last: int
    days: int


@dataclass(frozen=True, slots=True)
class Usage:
    """For what a token was used.

    Attributes:
        days: when it was used at all, or None: never.
        routes: by method and template.
        names: by the texts of decision/usage.py.
        unsure: what could not be told or kept, by those texts.
    """

    days: Days | None = None
    routes: Mapping[str, Days] = field(default_factory=dict)
    names: Mapping[str, Days] = field(default_factory=dict)
    unsure: Mapping[str, Days] = field(default_factory=dict)


class _Noted:
    """What was noted today of one token: no more than is kept."""

    __slots__ = ("_names", "_routes", "texts")

    def __init__(self) -> None:
        self.texts: set[str] = set()
        self._names = self._routes = 0

    def add(self, text: str) -> str | None:
        """Note a text; what is to be written for it, or None: nothing new."""
        if text in self.texts:
            return None
        kept = text
        if text.startswith(NAME):
            if self._names < MOST:
                self._names += 1
            else:
                kept = MORE_NAMES
        elif not text.startswith((ANYTHING, UNSURE)):
            if self._routes < MOST and len(text) <= LONGEST:
                self._routes += 1
            else:
                kept = MORE_ROUTES
        if kept in self.texts:
            return None
        self.texts.add(kept)
        return kept


class UsageNotes:
    """What one process has noted, and has still to write."""

    def __init__(self, client: Any, keys: Keys) -> None:
        """Nothing is noted yet.

        Args:
            client: redis-py's asyncio client.
            keys: the key names.
        """
        self._client = client
        self._keys = keys
        self._day = -1
        self._ends = UnixMs(0)
        self._noted: dict[TokenId, _Noted] = {}
        self._count = 0
        self._waiting: dict[tuple[TokenId, int], dict[str, int]] = {}
        self._begun = False

    def note(self, token: TokenId, at: UnixMs, use: Used) -> UnixMs:
        """Note what an admitted request has used; the second time on a day it is a look-up.

        Returns:
            The end of the day, until when the same need not be noted again.
        """
        if at >= self._ends:
            self._begin(at)
        noted = self._noted.get(token)
        if noted is None or use.route not in noted.texts or not noted.texts.issuperset(use.names):
            self._add(token, use)
        return self._ends

    def is_full(self, token: TokenId, at: UnixMs) -> bool:
        """Whether this token has named more today than is kept, so that no name is looked at."""
        noted = self._noted.get(token)
        return noted is not None and MORE_NAMES in noted.texts and at < self._ends

    def _begin(self, at: UnixMs) -> None:
        self._day = at // DAY_MS
        self._ends = UnixMs((self._day + 1) * DAY_MS)
        self._noted, self._count = {}, 0
        self._begun = False  # once more a day, since Redis may have lost it

    def _add(self, token: TokenId, use: Used) -> None:
        if self._count >= NOTED:
            self._noted, self._count = {}, 0
        noted = self._noted.get(token)
        if noted is None:
            noted = self._noted[token] = _Noted()
        for text in (ANYTHING, use.route, *use.names):
            if (kept := noted.add(text)) is not None:
                self._count += 1
                self._waiting.setdefault((token, self._day), {}).setdefault(kept, 0)

    async def write(self) -> None:
        """Write what was noted; what could not be written is still to be written.

        Raises:
            RedisError, OSError: Redis is away.
        """
        if not self._begun:
            now, _ = await self._client.time()
            await self._client.set(self._keys.usage_since, now * 1000, nx=True)
            self._begun = True
        tried = list(self._waiting)
        for start in range(0, len(tried), AT_ONCE):
            await self._write(tried[start : start + AT_ONCE])

    async def _write(self, batch: list[tuple[TokenId, int]]) -> None:
        settled = await self._settled(batch)
        async with self._client.pipeline(transaction=False) as pipe:
            for (token, day), texts in settled.items():
                key, usage = self._keys.token(token), self._keys.usage(token)
                pipe.eval(
                    _WRITE, 2, key, usage, day, MOST, KEPT_DAYS, *dict.fromkeys(texts.values())
                )
            if settled:
                await pipe.execute()
        for one, texts in settled.items():
            left = self._waiting[one]
            for text in texts:
                del left[text]
            if not left:
                del self._waiting[one]

    async def _settled(
        self, batch: list[tuple[TokenId, int]]
    ) -> dict[tuple[TokenId, int], dict[str, str]]:
        """What is to be written of each, by what was noted: a deployment is its application's."""
        named = [deployment(text) for one in batch for text in self._waiting[one]]
        places = await self._places(list(dict.fromkeys(uuid for uuid in named if uuid)))
        settled: dict[tuple[TokenId, int], dict[str, str]] = {}
        for one in batch:
            texts = {}
            for text, tries in self._waiting[one].items():
                uuid = deployment(text)
                if uuid is None:
                    texts[text] = text
                elif (known := places.get(uuid)) is not None:
                    texts[text] = application(known)
                elif tries < TRIES:
                    self._waiting[one][text] = tries + 1
                else:
                    texts[text] = UNKNOWN
            if texts:
                settled[one] = texts
        return settled

    async def _places(self, deployments: list[str]) -> dict[str, str]:
        """The application of each of these deployments, of those that are known."""
        if not deployments:
            return {}
        async with self._client.pipeline(transaction=False) as pipe:
            for uuid in deployments:
                pipe.hget(self._keys.owners(owner_bucket(uuid)), uuid)
            rows = await pipe.execute()
        return {
            uuid: place.within
            for uuid, place in zip(deployments, map(records.place, rows), strict=True)
            if place is not None and place.kind is ResourceKind.DEPLOYMENT and place.within
        }


async def usage_since(client: Any, keys: Keys) -> UnixMs | None:
    """Since when uses are noted, or None: they never were."""
    found = records.number(await client.get(keys.usage_since))
    return None if found is None else UnixMs(found)


async def usage_of(client: Any, keys: Keys, tokens: Iterable[TokenId]) -> Mapping[TokenId, Usage]:
    """For what these tokens were used, of those that were; a trip for 100."""
    numbers, found = iter(tokens), dict[TokenId, Usage]()
    while page := tuple(islice(numbers, BATCH)):
        async with client.pipeline(transaction=False) as pipe:
            for token in page:
                pipe.get(keys.usage(token))
            rows = await pipe.execute()
        found |= {t: read(row) for t, row in zip(page, rows, strict=True) if row is not None}
    return found


def read(text: bytes) -> Usage:
    r"""What a text says; a line that can't be read makes everything unsure.

    >>> read(b"20000 20002 2 *\n20000 20002 2 GET /api/v1/teams\n").routes
    {'GET /api/v1/teams': Days(first=20000, last=20002, days=2)}
    """
    found: dict[str, Days] = {}
    for line in text.decode("utf-8", "replace").split("\n"):
        match = _LINE.fullmatch(line)
        if match is not None:
            found[match[4]] = Days(int(match[1]), int(match[2]), int(match[3]))
        elif line:
            always = Days(0, 999_999_999, 1)
            found |= {MORE_ROUTES: always, MORE_NAMES: always}
    kinds = {what: what[0] if what[0] in "*=?" else "" for what in found}
    of = {kind: {w: d for w, d in found.items() if kinds[w] == kind} for kind in ("", "=", "?")}
    return Usage(found.get(ANYTHING), of[""], of[NAME], of["?"])
