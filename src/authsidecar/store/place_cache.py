"""Where resources lie, as a process holds it; what nothing proves is kept briefly."""

from collections import OrderedDict

from authsidecar.decision.model import Place


class PlaceCache:
    """The place of each resource by its key; the one that was not used for longest goes first."""

    def __init__(self, kept: int, max_age_s: float) -> None:
        """Nothing is held.

        Args:
            kept: how many places at the most; 0 keeps none.
            max_age_s: from which age on one is not used any more, in seconds.
        """
        self._kept = kept
        self._max_age_s = max_age_s
        self._held: OrderedDict[str, tuple[Place | None, float]] = OrderedDict()

    def __len__(self) -> int:
        """How many places are held."""
        return len(self._held)

    def find(self, key: str, now: float) -> tuple[Place | None] | None:
        """The place that is held for a resource, which may be none, or None: ask."""
        held = self._held.get(key)
        if held is None or now - held[1] > self._max_age_s:
            return None
        self._held.move_to_end(key)
        return (held[0],)

    def hold(self, key: str, place: Place | None, read_at: float) -> None:
        """Keep what was read, as of a moment by a monotonic clock in seconds."""
        if not self._kept:
            return
        self._held[key] = (place, read_at)
        self._held.move_to_end(key)
        if len(self._held) > self._kept:
            self._held.popitem(last=False)

    def drop(self, key: str) -> None:
        """Forget what was found to have changed."""
        self._held.pop(key, None)
