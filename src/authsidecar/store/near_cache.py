"""The token records that a process holds; none is used without the proof that it is current."""

import random
from collections import OrderedDict
from hmac import compare_digest
from typing import Final, NamedTuple

from authsidecar.decision.model import Credential, TokenId, TokenRecord
from authsidecar.store.records import unchanged

DUE: Final = (0.7, 0.9)
"""At which share of their greatest age records that are in use are read again, beside the requests
that use them: at random, so that those read together are not all read again together."""


_NEVER: Final = float("-inf")


class Held(NamedTuple):
    """A record and its age.

    Attributes:
        record: as it was read.
        read_at: when the reading began, by a monotonic clock in seconds.
        due_at: when it is to be read again if it is in use.
    """

    record: TokenRecord
    read_at: float
    due_at: float


class NearCache:
    """Records by token; the one that was not used for longest goes first."""

    def __init__(self, kept: int, max_age_s: float) -> None:
        """Nothing is held.

        Args:
            kept: how many records at the most; 0 keeps none.
            max_age_s: from which age on a record is not used any more, in seconds.
        """
        self._kept = kept
        self._max_age_s = max_age_s
        self._held: OrderedDict[TokenId, Held] = OrderedDict()

    def __len__(self) -> int:
        """How many records are held."""
        return len(self._held)

    def find(self, credential: Credential, now: float) -> Held | None:
        """What may be used for exactly this id and secret at this moment."""
        held = self._held.get(credential.token_id)
        if (
            held is None
            or now - held.read_at > self._max_age_s
            or not compare_digest(held.record.digest, credential.digest)
        ):
            return None
        self._held.move_to_end(credential.token_id)
        return held

    def holds(self, record: TokenRecord, now: float) -> bool:
        """Whether `find` gives this very record, and it need not be read again yet."""
        held = self._held.get(record.token)
        if held is None or held.record is not record or now > held.due_at:
            return False
        if len(self._held) * 2 > self._kept:  # else none will be pushed out soon
            self._held.move_to_end(record.token)
        return True

    def recognises(self, credential: Credential) -> bool:
        """Whether this id and secret were known at some time, however long ago."""
        held = self._held.get(credential.token_id)
        return held is not None and compare_digest(held.record.digest, credential.digest)

    def hold(self, record: TokenRecord, read_at: float) -> None:
        """Keep a record that was read; one that is held already if it says the same."""
        if not self._kept:
            return
        held = self._held.get(record.token)
        record = unchanged(None if held is None else held.record, record)
        due_at = read_at + self._max_age_s * random.uniform(*DUE)  # noqa: S311  # no secret
        self._held[record.token] = Held(record, read_at, due_at)
        self._held.move_to_end(record.token)
        if len(self._held) > self._kept:
            self._held.popitem(last=False)

    def absent(self, token: TokenId, digest: bytes) -> None:
        """Under this id, Redis holds another digest than was asked for, or none.

        A wrong guess alone must not push out the right one.
        """
        held = self._held.get(token)
        if held is not None and not compare_digest(held.record.digest, digest):
            del self._held[token]

    def outdate(self, record: TokenRecord) -> None:
        """Use this very record no more."""
        held = self._held.get(record.token)
        if held is not None and held.record is record:
            self._held[record.token] = held._replace(read_at=_NEVER, due_at=_NEVER)

    def clear(self) -> None:
        """Hold nothing."""
        self._held.clear()
