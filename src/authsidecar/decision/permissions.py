"""Which permission includes which; Coolify's five, its email settings' own, and the legacy root."""

from collections.abc import Collection
from typing import Final

from authsidecar.decision.model import Permission

ROOTS: Final = frozenset({Permission.ROOT, Permission.LEGACY_ROOT})

INCLUDED_BY: Final = {
    permission: ROOTS
    | {permission}
    | ({Permission.READ_SENSITIVE} if permission is Permission.READ else set())
    for permission in Permission
}
"""Which permissions satisfy a required one: itself, root, and read:sensitive for read."""


def satisfies(held: Collection[Permission], required: Permission) -> bool:
    """Whether one of these permissions is, or includes, the required one."""
    return not INCLUDED_BY[required].isdisjoint(held)
