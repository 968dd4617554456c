"""Whatever people call things, a warning is a mail of the usual shape to its owner alone."""

from email import message_from_bytes
from email.policy import default

from hypothesis import given
from hypothesis import strategies as st

from authsidecar.decision.model import UserId
from authsidecar.expiry.mail import composed
from authsidecar.store.entities import User
from tests.unit.expiry.test_notice import notice

SENDER = "sidecar@example.test"
USUAL = sorted(composed(notice(), SENDER).keys())

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=255)


@given(token=names, user=names, team=names)
def test_no_name_adds_a_header_a_line_or_a_recipient(token: str, user: str, team: str) -> None:
    """Written as bytes and read again by Python's own parser."""
    owner = User(UserId(7), user, "ada@example.test")
    told = notice(token_name=token, user=owner, team=team)
    mail = message_from_bytes(bytes(composed(told, SENDER)), policy=default)

    assert sorted(mail.keys()) == USUAL
    assert [one.addr_spec for one in mail["To"].addresses] == ["ada@example.test"]
    assert told.text().count("\n") == notice().text().count("\n")
    assert len(mail["Subject"].splitlines()) == 1


@given(email=names)
def test_no_text_is_taken_for_two_addresses(email: str) -> None:
    """One recipient or none."""
    from authsidecar.expiry.channel import NotTakenError

    try:
        mail = composed(notice(user=User(UserId(7), "Ada", email)), SENDER)
    except NotTakenError:
        return
    assert len(mail["To"].addresses) == 1
