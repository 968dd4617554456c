"""How the descriptors of a process are shared out."""

import pytest

from authsidecar.config import load
from authsidecar.run import descriptors
from authsidecar.run.parts import connection_limits


@pytest.mark.parametrize("limit", [256, 1024, 20_000, 1_048_576])
def test_all_together_stay_below_the_limit(limit: int) -> None:
    """Whoever has all that he may have, there is room for the others."""
    redis = 32
    trusted, strangers = descriptors.for_authz(limit, redis)
    others = descriptors.for_management(limit) + descriptors.OTHERS + redis
    assert trusted + strangers + others <= limit
    assert trusted > strangers > 0


@pytest.mark.parametrize("limit", [16, 64])
def test_a_tiny_limit_still_leaves_some(limit: int) -> None:
    """It then ends in errors, not in a sidecar that serves nobody."""
    trusted, strangers = descriptors.for_authz(limit, 32)
    assert trusted > 0
    assert strangers > 0


def test_no_peer_can_have_all_of_them() -> None:
    """Three quarters unless it is said otherwise; what is said is cut to what there is."""
    limits = connection_limits(load(None, {}), 1024)
    assert limits.connections * 3 / 4 <= limits.per_peer < limits.connections < 1024
    assert connection_limits(load(None, {}), 1_048_576).connections == 16_384
    said = load(
        None,
        {
            "AUTHSIDECAR_LISTEN__MAX_CONNECTIONS": "500000",
            "AUTHSIDECAR_LISTEN__MAX_CONNECTIONS_PER_PEER": "300000",
        },
    )
    assert connection_limits(said, 1024).connections == limits.connections
    assert connection_limits(said, 1024).per_peer == limits.connections
    many = connection_limits(said, 1_048_576)
    assert (many.connections, many.per_peer) == (500_000, 300_000)
