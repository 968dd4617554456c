"""Subrequests that were seen before, byte for byte: what follows from their bytes alone.

A proxy sends the same bytes for the same caller again and again. A digest of them finds what was
read from them the last time, so that nothing is parsed, hashed or looked up again. Nothing that
can change is in here: what a request is judged by is compared and proven anew for each.

The bytes hold a secret, so they are not kept. The digest has a key of this process's own: nobody
can look for two requests that share one. What is new in each request is cut out first (ADR 13): the
proxy's id of it, and its `traceparent`, which decides nothing.
"""

import secrets
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from authsidecar.decision.model import AccessRequest
from authsidecar.decision.proxies.endpoints import Endpoint
from authsidecar.decision.proxies.headers import REQUEST_ID

LONGEST: Final = 2048
"""Bytes of the longest subrequest that is remembered."""

ENTRIES: Final = 8192
"""How many are remembered at the most."""

TOTAL_BYTES: Final = 8 * 1024 * 1024
"""Bytes of all subrequests that are remembered, at the most."""

SEEN: Final = 8192
"""Of how many it is known that they were seen once: what comes once only is not kept."""

_HEAD_END: Final = b"\r\n\r\n"
_SPELLINGS: Final = tuple(f"\r\n{name}: ".encode() for name in (REQUEST_ID, REQUEST_ID.lower()))
_ID_LENGTH: Final = len(_SPELLINGS[0])
_LONGEST_ID: Final = 64
_TRACEPARENT: Final = b"raceparent: "  # in either case of its first letter
_LINE_BEGINS: Final = (b"\r\nt", b"\r\nT")
_LONGEST_TRACEPARENT: Final = 64


class Remembered:
    """What follows from a subrequest's bytes.

    Attributes:
        endpoint: what it asks.
        access: the client's request, without the proxy's id of it.
        takes_id: whether the proxy's id, where one was cut out, is the request's.
        path: its own target.
        prepared: what was made of it for the state that it was judged by last.
    """

    __slots__ = ("access", "endpoint", "path", "prepared", "size", "takes_id")

    def __init__(self, endpoint: Endpoint, access: AccessRequest, path: str, size: int) -> None:
        """Nothing is prepared.

        Args:
            endpoint: what it asks.
            access: as it was read.
            path: its own target.
            size: its bytes.
        """
        self.endpoint = endpoint
        self.takes_id = access.request_id is not None
        self.access = access._replace(request_id=None) if self.takes_id else access
        self.path = path
        self.size = size
        self.prepared: Any = None

    def asked(self, request_id: str | None) -> AccessRequest:
        """The client's request, with the proxy's id of it; None: it has none."""
        return self.access if request_id is None else self.access._replace(request_id=request_id)


class Look(NamedTuple):
    """What a look at a subrequest's bytes has found.

    Attributes:
        digest: names the bytes, without the proxy's id of the request and its `traceparent`.
        request_id: the proxy's id, or None: there is none.
        traceparent: what was cut out of that name, or None: nothing was.
        size: how many bytes there are.
        found: what follows from them, or None: they are not remembered.
    """

    digest: bytes
    request_id: str | None
    traceparent: bytes | None
    size: int
    found: Remembered | None


_made: Final = tuple.__new__


def _cut(data: bytes) -> tuple[bytes, str | None, bytes | None] | None:
    """A head without the proxy's id and the `traceparent`, and these; None: the id is no plain one.

    A `traceparent` that is no plain one stays.
    """
    request_id = None
    start = data.find(_SPELLINGS[0])
    if start < 0:
        start = data.find(_SPELLINGS[1])
    if start >= 0:
        start += _ID_LENGTH
        end = data.index(b"\r\n", start)
        value = data[start:end]
        if not 0 < end - start <= _LONGEST_ID or not value.replace(b"-", b"").isalnum():
            return None
        request_id = value.decode("ascii")
        data = data[:start] + data[end:]
    traceparent = None
    start = data.find(_TRACEPARENT)
    if start >= 0 and data[start - 3 : start] in _LINE_BEGINS:
        start += len(_TRACEPARENT)
        end = data.index(b"\r\n", start)
        value = data[start:end]
        if len(value) <= _LONGEST_TRACEPARENT and value.replace(b"-", b"").isalnum():
            traceparent = value
            data = data[:start] + data[end:]
    return data, request_id, traceparent


def _digest(keyed: Any, data: bytes) -> bytes:
    hashed = keyed.copy()  # hashing the key again costs a quarter more
    hashed.update(data)
    digest: bytes = hashed.digest()
    return digest


class Memo:
    """Remembers subrequests in two generations: what is in use outlives what is not.

    What is asked for moves to the young one; a young one that is full becomes the old one, and
    the one before is forgotten. So what comes twice and never again can't push out what is in use.
    """

    def __init__(self, entries: int = ENTRIES, total_bytes: int = TOTAL_BYTES) -> None:
        """Nothing is remembered.

        Args:
            entries: how many are, at the most; 0: none.
            total_bytes: how many bytes they have together, at the most.
        """
        self._most = entries // 2
        self._most_bytes = total_bytes // 2
        # What nothing was cut out of never shares a digest with what is left of something else.
        self._of_whole = blake2b(digest_size=16, key=secrets.token_bytes(32))
        self._of_rest = blake2b(digest_size=16, key=secrets.token_bytes(32))
        self._cuts = True
        self._young: dict[bytes, Remembered] = {}
        self._old: dict[bytes, Remembered] = {}
        self._bytes = 0
        self._seen: set[bytes] = set()
        self._seen_before: set[bytes] = set()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._young) + len(self._old)

    def look(self, data: bytes) -> Look | None:
        """What is known of these bytes; None where they are not the head of one subrequest."""
        size = len(data)
        if size > LONGEST or not self._most or not data.endswith(_HEAD_END):
            return None
        digest = None
        if not self._cuts:  # nor is anything to be cut out of this, probably
            digest = _digest(self._of_whole, data)
            found = self._young.get(digest)
            if found is not None:
                return _made(Look, (digest, None, None, size, found))
        cut = _cut(data)
        if cut is None:
            return None
        data, request_id, traceparent = cut
        self._cuts = request_id is not None or traceparent is not None
        if self._cuts:
            digest = _digest(self._of_rest, data)
        elif digest is None:
            digest = _digest(self._of_whole, data)
        found = self._young.get(digest)
        if found is None:
            if data.find(_HEAD_END) != len(data) - 4:  # more than one head: never remembered
                return None
            found = self._renewed(digest)
        # A named tuple's own constructor takes three times as long.
        return _made(Look, (digest, request_id, traceparent, size, found))

    def learn(self, look: Look, endpoint: Endpoint, access: AccessRequest, path: str) -> None:
        """Remember what was read from bytes that were looked at, if they came once before.

        Args:
            look: what was known of them.
            endpoint: what they ask.
            access: what was read from them.
            path: the subrequest's own target.
        """
        digest = look.digest
        if digest in self._seen or digest in self._seen_before:
            self._put(digest, Remembered(endpoint, access, path, look.size))
            return
        if len(self._seen) >= SEEN // 2:
            self._seen, self._seen_before = set(), self._seen
        self._seen.add(digest)

    def clear(self) -> None:
        """Forget all: what followed from the bytes may be something else now."""
        self._young, self._old, self._bytes = {}, {}, 0
        self._seen, self._seen_before = set(), set()

    def _renewed(self, digest: bytes) -> Remembered | None:
        """What the old generation has of it, which is young again."""
        found = self._old.pop(digest, None)
        if found is not None:
            self._put(digest, found)
        return found

    def _put(self, digest: bytes, remembered: Remembered) -> None:
        if len(self._young) >= self._most or self._bytes + remembered.size > self._most_bytes:
            self._young, self._old, self._bytes = {}, self._young, 0
        self._young[digest] = remembered
        self._bytes += remembered.size
