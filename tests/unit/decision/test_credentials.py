"""Reading `Authorization`: one spelling is a credential, everything else a reasoned 401."""

from collections.abc import Sequence
from hashlib import sha256

import pytest

from authsidecar.decision.credentials import (
    AUTHORIZATION_AMBIGUOUS,
    TOKEN_MALFORMED,
    TOKEN_MISSING,
    TOKEN_PREFIX_MISSING,
    find,
)
from authsidecar.decision.model import Credential, Deny, Kind, Reason, TokenId

SECRET = b"abcthisisa123dummytoken"


@pytest.mark.parametrize(
    ("value", "token_id", "secret"),
    [
        (b"Bearer 67|" + SECRET, 67, SECRET),
        (b"bearer 67|" + SECRET, 67, SECRET),
        (b"bEaReR 1|x", 1, b"x"),
        (b"Bearer 10|a|b", 10, b"a|b"),
        (b"Bearer 9223372036854775807|x", 9223372036854775807, b"x"),
        (b"Bearer 7|\xff\xfe\xc3", 7, b"\xff\xfe\xc3"),
        (b"Bearer 7|00", 7, b"00"),
        (b"Bearer 7|a b", 7, b"a b"),
        (b"Bearer 7|a\nb", 7, b"a\nb"),
        (b"Bearer 7|" + b"x" * 4087, 7, b"x" * 4087),
    ],
)
def test_a_well_formed_token_becomes_its_id_and_a_digest(
    value: bytes, token_id: int, secret: bytes
) -> None:
    """The secret is every byte after the first bar, decoded by nobody."""
    assert find([value]) == Credential(TokenId(token_id), sha256(secret).digest())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], TOKEN_MISSING),
        ([b""], TOKEN_MISSING),
        ([b" \t"], TOKEN_MISSING),
        ([b"\x0b"], TOKEN_MALFORMED),
        ([b"X"], TOKEN_MALFORMED),
        ([b"Bearer"], TOKEN_MALFORMED),
        ([b"Bearer "], TOKEN_MALFORMED),
        ([b"Basic Zm9vOmJhcg=="], TOKEN_MALFORMED),
        ([b"Token 7|x"], TOKEN_MALFORMED),
        ([b"7|x"], TOKEN_MALFORMED),
        ([b"XBearer 7|x"], TOKEN_MALFORMED),
        ([b"foo Bearer 7|x"], TOKEN_MALFORMED),
        ([b"Bearer  7|x"], TOKEN_MALFORMED),
        ([b"Bearer\t7|x"], TOKEN_MALFORMED),
        ([b"Bearer7|x"], TOKEN_MALFORMED),
        ([b" Bearer 7|x"], TOKEN_MALFORMED),
        ([b"Bearer 7 |x"], TOKEN_MALFORMED),
        ([b"Bearer 7|"], TOKEN_MALFORMED),
        ([b"Bearer 7|0"], TOKEN_MALFORMED),
        ([b"Bearer |x"], TOKEN_MALFORMED),
        ([b"Bearer 0|x"], TOKEN_MALFORMED),
        ([b"Bearer 007|x"], TOKEN_MALFORMED),
        ([b"Bearer +6|x"], TOKEN_MALFORMED),
        ([b"Bearer -6|x"], TOKEN_MALFORMED),
        ([b"Bearer 6_7|x"], TOKEN_MALFORMED),
        ([b"Bearer 0x7|x"], TOKEN_MALFORMED),
        ([b"Bearer 7.0|x"], TOKEN_MALFORMED),
        (["Bearer ²|x".encode()], TOKEN_MALFORMED),
        (["Bearer ٣|x".encode()], TOKEN_MALFORMED),
        ([b"Bearer \xb2|x"], TOKEN_MALFORMED),
        ([b"Bearer 9223372036854775808|x"], TOKEN_MALFORMED),
        ([b"Bearer 10000000000000000000|x"], TOKEN_MALFORMED),
        ([b"Bearer 1" + b"0" * 3000 + b"|x"], TOKEN_MALFORMED),
        ([b"Bearer 1" + b"0" * 5000 + b"|x"], TOKEN_MALFORMED),
        ([b"Bearer 7|" + b"x" * 4088], TOKEN_MALFORMED),
        ([b"Bearer " + SECRET], TOKEN_PREFIX_MISSING),
        ([b"bearer 67"], TOKEN_PREFIX_MISSING),
        ([b"Bearer \xff\xfe"], TOKEN_PREFIX_MISSING),
        ([b"Bearer two words"], TOKEN_MALFORMED),
        ([b"Bearer 7|x", b"Bearer 7|x"], AUTHORIZATION_AMBIGUOUS),
        ([b"", b"Bearer 7|x"], AUTHORIZATION_AMBIGUOUS),
        ([b"Bearer 7|x,Bearer 7|x"], AUTHORIZATION_AMBIGUOUS),
        ([b"Bearer 7|x,"], AUTHORIZATION_AMBIGUOUS),
        ([b"Basic Zm9v, Bearer 7|x"], AUTHORIZATION_AMBIGUOUS),
    ],
)
def test_anything_else_is_refused_with_its_own_reason(
    values: Sequence[bytes], reason: Reason
) -> None:
    """No second spelling is accepted, and none of them raises."""
    verdict = find(values)
    assert isinstance(verdict, Deny)
    assert verdict.reason == reason


@pytest.mark.parametrize(
    ("values", "detail"),
    [
        ([], "no Authorization"),
        ([b"Bearer 7|x", b"Bearer 7|x"], "2 Authorization headers"),
        ([b"Bearer 7|x,"], "a comma in Authorization"),
        ([b"Bearer x"], "no ID| before the secret"),
        ([b"Basic " + b"x" * 4090], "not Bearer ID|SECRET"),
        ([b"Bearer 7|0"], "id or secret out of range"),
        ([b"Bearer 9223372036854775808|x"], "id or secret out of range"),
        ([b"Bearer 7|" + b"x" * 4088], "longer than 4096 bytes"),
    ],
)
def test_the_detail_says_what_was_wrong(values: Sequence[bytes], detail: str) -> None:
    """In the log, where the client's own words may not stand."""
    verdict = find(values)
    assert isinstance(verdict, Deny)
    assert verdict.detail == detail


def test_every_reason_is_coolifys_401() -> None:
    """The body and status of a bad token are Coolify's; only the code says which it is."""
    reasons = (TOKEN_MISSING, TOKEN_MALFORMED, TOKEN_PREFIX_MISSING, AUTHORIZATION_AMBIGUOUS)
    assert {(r.kind, r.status, r.message) for r in reasons} == {
        (Kind.UNAUTHENTICATED, 401, "Unauthenticated.")
    }
    assert len({r.code for r in reasons}) == 4


@pytest.mark.parametrize(
    "values",
    [
        [b"Bearer 67|" + SECRET],
        [b"Bearer " + SECRET],
        [b"Basic " + SECRET],
        [b"Bearer 99999999999999999999|" + SECRET],
        [b"Bearer 9223372036854775808|" + SECRET],
        [b"Bearer 67|" + SECRET, b"Bearer 67|" + SECRET],
        [b"Bearer 67|" + SECRET + b",x"],
        [b"Bearer 67|" + SECRET * 300],
    ],
)
def test_no_part_of_the_value_survives_in_what_is_shown(values: Sequence[bytes]) -> None:
    """A log line, an error and a repr may show a verdict, so it holds no secret."""
    assert SECRET.decode() not in repr(find(values))
    assert sha256(SECRET).hexdigest() not in repr(find(values))
    assert repr(sha256(SECRET).digest()) not in repr(find(values))
