"""The store of a process that has not seen its Redis yet: nothing is known, all is refused."""

# ruff: noqa: ARG002  # the protocol's names; nothing is looked at

import time
from typing import NoReturn

from authsidecar.decision.authorize import Claim, StoreError
from authsidecar.decision.model import Credential, TokenRecord
from authsidecar.decision.ratelimit.charges import Charge
from authsidecar.times import UnixMs


class AbsentStore:
    """A Store of authorize.py that holds nothing and answers nothing."""

    def now(self) -> UnixMs:
        """The time by this machine's clock."""
        return UnixMs(int(time.time() * 1000))

    def current(self) -> None:
        """No state is held."""

    async def instance(self, *, fresh: bool) -> NoReturn:
        """Redis is not there."""
        raise _absent("instance")

    def known(self, _: Credential) -> TokenRecord | None:
        """No record is held."""
        return None

    async def load(self, _: Credential, *, fresh: bool) -> NoReturn:
        """Redis is not there."""
        raise _absent("token")

    async def charge(self, claim: Claim, *, repeat_key: bytes | None) -> NoReturn:
        """Redis is not there."""
        raise _absent("charge")

    async def charge_and_read(self, claim: Claim, others: tuple[Charge, ...]) -> NoReturn:
        """Redis is not there."""
        raise _absent("charge")

    async def places(self, keys: tuple[str, ...]) -> NoReturn:
        """Redis is not there."""
        raise _absent("owner")

    def held_places(self, keys: tuple[str, ...]) -> None:
        """Nothing is held."""
        return

    async def provable_places(self, keys: tuple[str, ...]) -> NoReturn:
        """Redis is not there."""
        raise _absent("owner")

    def is_canary(self, _: Credential) -> bool:
        """Nothing is known."""
        return False

    def may_look_up(self, address: str, credential: Credential) -> bool:
        """Nobody can guess a token where none is known."""
        return True

    def refused_address(self, address: str, until: UnixMs) -> None:
        """Nobody was refused by a counter."""


def _absent(operation: str) -> StoreError:
    return StoreError("connection", f"{operation}: Redis has not been there since the start")
