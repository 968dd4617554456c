"""The owners of resources that a process holds; nothing proves them, so they are kept briefly."""

from collections import OrderedDict

from authsidecar.decision.model import TeamId


class OwnerCache:
    """The team of each resource by its uuid; the one that was not used for longest goes first."""

    def __init__(self, kept: int, max_age_s: float) -> None:
        """Nothing is held.

        Args:
            kept: how many owners at the most; 0 keeps none.
            max_age_s: from which age on one is not used any more, in seconds.
        """
        self._kept = kept
        self._max_age_s = max_age_s
        self._held: OrderedDict[str, tuple[TeamId | None, float]] = OrderedDict()

    def __len__(self) -> int:
        """How many owners are held."""
        return len(self._held)

    def find(self, uuid: str, now: float) -> tuple[TeamId | None] | None:
        """The team that is held for a resource, which may be none, or None: ask."""
        held = self._held.get(uuid)
        if held is None or now - held[1] > self._max_age_s:
            return None
        self._held.move_to_end(uuid)
        return (held[0],)

    def hold(self, uuid: str, team: TeamId | None, read_at: float) -> None:
        """Keep what was read, as of a moment by a monotonic clock in seconds."""
        if not self._kept:
            return
        self._held[uuid] = (team, read_at)
        self._held.move_to_end(uuid)
        if len(self._held) > self._kept:
            self._held.popitem(last=False)
