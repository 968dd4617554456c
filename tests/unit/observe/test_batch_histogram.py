"""What is used of prometheus_client's own parts still means the same."""

import pytest
from prometheus_client import CollectorRegistry

from authsidecar.observe.batch_histogram import BatchHistogram


def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    [metric] = registry.collect()
    return {(s.name, s.labels.get("le", "")): s.value for s in metric.samples}


def test_many_observations_at_once_are_as_many_one_by_one() -> None:
    """Otherwise batch_histogram.py must be written anew for this prometheus_client."""
    registries = CollectorRegistry(), CollectorRegistry()
    one, many = (BatchHistogram("s", "S", buckets=(1, 2), registry=r) for r in registries)
    for parts in ("_sum", "_buckets"):
        assert hasattr(many, parts), f"prometheus_client's Histogram has no {parts} any more"
    for seconds in (0.5, 1.5, 1.5, 9):
        one.observe(seconds)
    many.add([1, 2, 1], 12.5)
    told = [
        {key: value for key, value in samples(r).items() if not key[0].endswith("_created")}
        for r in registries
    ]
    assert told[0] == told[1]


def test_counts_for_other_buckets_are_an_error() -> None:
    """None is left out without a word."""
    with pytest.raises(ValueError, match="zip"):
        BatchHistogram("s", "S", buckets=(1, 2), registry=None).add([1], 1)
