"""What docs/explanation/deviations.md says of the sidecar, where no other test says it."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from authsidecar.coolify.rows import Odd, token
from authsidecar.decision.addresses import networks
from authsidecar.decision.allowlist import AllowlistError, parse, parse_lenient
from authsidecar.decision.model import Deny, Proxy
from authsidecar.decision.proxies.forward_auth import read
from authsidecar.decision.proxies.headers import Fields

PAGE = (Path(__file__).parents[3] / "docs/explanation/deviations.md").read_text()


@pytest.mark.parametrize("entry", ["10.0.0.0/+8", "10.0.0.0/1e1", "10.0.0.0/8/16"])
def test_a_mask_that_php_reads_in_part_is_no_mask(entry: str) -> None:
    """Refused when it is saved; from Coolify's table it is left out, so nobody is admitted."""
    assert entry.removeprefix("10.0.0.0") in PAGE
    with pytest.raises(AllowlistError, match="entry 1"):
        parse(entry)
    found, bad = parse_lenient(entry)
    assert bad == (entry,)
    assert not found.admits(ip_address("10.0.0.1"))


def test_a_list_of_0_admits_nobody() -> None:
    """PHP takes the text for empty, and empty is everyone."""
    assert "| a list of `0` |" in PAGE
    with pytest.raises(AllowlistError, match="entry 1"):
        parse("0")
    found, bad = parse_lenient("0")
    assert (found.everyone, found.entries, bad) == (False, (), ("0",))


def asked(method: bytes, *more: tuple[bytes, bytes]) -> Deny | object:
    fields = (
        (b"X-Forwarded-Method", method),
        (b"X-Forwarded-Uri", b"/api/v1/teams"),
        (b"X-Forwarded-For", b"192.0.2.1"),
        *more,
    )
    return read(Fields(fields), Proxy.TRAEFIK, networks(()))


@pytest.mark.parametrize("method", [b"get", b"Post"])
def test_a_method_in_lower_case_is_no_method(method: bytes) -> None:
    """Laravel would fold it."""
    assert "| methods in lower case (`get`) |" in PAGE
    refused = asked(method)
    assert isinstance(refused, Deny)
    assert (refused.reason.status, refused.reason.code) == (405, "method_not_allowed")


@pytest.mark.parametrize("method", [b"GET", b"PATCH", b"DELETE", b"OPTIONS", b"POST"])
def test_an_override_is_refused_on_every_method(method: bytes) -> None:
    """Symfony looks at it on a POST only."""
    assert "on every method |" in PAGE
    refused = asked(method, (b"X-HTTP-Method-Override", b"GET"))
    assert isinstance(refused, Deny)
    assert refused.reason.code == "method_override"


def test_a_token_of_another_class_is_not_taken_over() -> None:
    """The same id of another model would be another owner."""
    assert "| an owner of another type than Coolify's user |" in PAGE
    read_of = token({"id": 1, "owner_type": "App\\Models\\Robot"})
    assert (read_of.fact, read_of.odd) == (None, (Odd.OWNER_TYPE,))
