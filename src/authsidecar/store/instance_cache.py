"""The instance-wide state that a process holds, and whether Redis holds all of it yet."""

import time

from authsidecar.decision.authorize import UNSYNCED, StoreError
from authsidecar.decision.policy import Instance
from authsidecar.store.loading import Loader
from authsidecar.store.records import SYNC_BEGUN, SYNC_COMPLETE, SYNC_ENDED, Field, unchanged
from authsidecar.store.trips import Trips


class InstanceCache:
    """Reads the instance-wide state and keeps it; none is kept before a sync is complete."""

    def __init__(self, loader: Loader, trips: Trips, *, max_age_s: float, synced: bool) -> None:
        """Nothing is held.

        Args:
            loader: reads it.
            trips: bounds each trip.
            max_age_s: from which age on it is not used any more, in seconds.
            synced: whether a sync is to fill Redis, also where Redis has forgotten that.
        """
        self._loader = loader
        self._trips = trips
        self._max_age_s = max_age_s
        self._synced = synced
        self._seen_synced = False
        self._held: tuple[Instance, float] | None = None

    def current(self) -> Instance | None:
        """The state that is held, or None."""
        held = self._held
        return held[0] if held and time.monotonic() - held[1] <= self._max_age_s else None

    def holds(self, instance: Instance, now: float) -> bool:
        """Whether `current` gives this very state at this monotonic moment."""
        held = self._held
        return held is not None and held[0] is instance and now - held[1] <= self._max_age_s

    def outdate(self, instance: Instance) -> None:
        """Use this very state no more."""
        if self._held and self._held[0] is instance:
            self._held = None

    async def load(self) -> Instance:
        """Read it, and keep it.

        Raises:
            StoreError: Redis did not answer well, or a sync has not filled it yet.
        """
        asked = time.monotonic()  # what is read is at least as new
        loaded, synced = await self._trips.make("instance", self._loader.instance())
        if not await self._is_complete(synced):
            self._held = None
            raise StoreError(UNSYNCED, "instance: the first sync is not complete")
        loaded = unchanged(self._held[0] if self._held else None, loaded)
        self._held = (loaded, asked)
        return loaded

    async def _is_complete(self, synced: Field) -> bool:
        """Whether what Redis holds is all there is: not before the first sync, or after a flush."""
        if synced == SYNC_COMPLETE:
            self._seen_synced = True
            return True
        if synced == SYNC_ENDED:
            self._seen_synced = False
        if synced == SYNC_BEGUN:
            return False
        if self._synced or self._seen_synced:
            return await self._trips.make("instance", self._loader.followed())
        return True
