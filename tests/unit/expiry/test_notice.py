"""What is due, and what is said: nothing that a user calls a thing can change the mail's shape."""

import json
from dataclasses import replace
from email import message_from_bytes
from email.policy import default
from html.parser import HTMLParser

import pytest

from authsidecar.decision.model import Permission, TeamId, TokenId, UserId
from authsidecar.expiry.channel import NotTakenError
from authsidecar.expiry.mail import address, composed
from authsidecar.expiry.notice import HOUR_MS, LATE_MS, Due, Notice, due, left
from authsidecar.store.entities import Token, User
from authsidecar.store.last_used import Use
from authsidecar.times import UnixMs

EXPIRY = UnixMs(1_800_000_000_000)  # 2027-01-15 08:00 UTC
NOW = UnixMs(EXPIRY - 5 * HOUR_MS)


def notice(**changes) -> Notice:
    token = Token(
        id=TokenId(67),
        sha256=b"digest-of-the-secret-is-32-bytes",
        name="deploys",
        user=UserId(7),
        team=TeamId(3),
        permissions=frozenset({Permission.READ, Permission.DEPLOY}),
        expires_at=EXPIRY,
        created_at=UnixMs(0),
    )
    whole = Notice(
        due=Due(token.id, EXPIRY, 24),
        token=replace(token, name=changes.pop("token_name", token.name)),
        user=User(UserId(7), "Ada", "ada@example.test"),
        team="Platform",
        use=Use(UnixMs(NOW - HOUR_MS), "192.0.2.9", "/api/v1/deploy"),
        now=NOW,
    )
    return replace(whole, **changes)


@pytest.mark.parametrize(
    ("hours_before", "leads"),
    [
        (25.001, []),
        (24, [24]),
        (2, [24, 2]),
        (0, [24, 2]),
        (-24, [24, 2]),
        (-24.001, []),
    ],
)
def test_every_lead_time_that_has_come_is_due_until_a_day_after_the_expiry(hours_before, leads):
    """To the millisecond, each by itself, the longest first."""
    now = UnixMs(round(EXPIRY - hours_before * HOUR_MS))
    assert [one.lead_hours for one in due(TokenId(1), EXPIRY, (2, 24), now)] == leads


def test_another_expiry_of_the_same_token_is_another_warning():
    """A renewed token is warned about again."""
    first, second = Due(TokenId(1), EXPIRY, 24), Due(TokenId(1), UnixMs(EXPIRY + 1), 24)
    assert first.id != second.id


@pytest.mark.parametrize(
    ("minutes", "words"),
    [(-5, "0 minutes"), (1, "1 minute"), (119, "119 minutes"), (120, "2 hours"), (4320, "3 days")],
)
def test_the_time_left_is_said_in_the_unit_that_fits(minutes, words):
    """Rounded down: nobody has longer than is said."""
    assert left(Due(TokenId(1), EXPIRY, 24), UnixMs(EXPIRY - minutes * 60_000)) == words


@pytest.mark.parametrize("render", [Notice.text, Notice.html])
def test_a_mail_says_which_token_when_and_what_will_break(render):
    """In both of its forms."""
    said = " ".join(render(notice()).replace("&quot;", '"').split())
    for words in (
        "Ada",
        '"deploys" (67) of team 3 Platform',
        "expires in 5 hours",
        "2027-01-15 08:00 UTC",
        "last used 2027-01-15 02:00 UTC from 192.0.2.9 for /api/v1/deploy",
        "deploy read",
    ):
        assert words in said


def test_a_token_that_was_never_used_says_so():
    """No use is known: nothing is made up."""
    assert "No use of it is known." in notice(use=None).text()
    assert json.loads(notice(use=None).json())["token"]["last_used_at"] is None


def test_a_late_warning_says_that_it_is_late():
    """After a night without a mail server."""
    late = notice(now=UnixMs(EXPIRY + LATE_MS))
    assert late.subject == 'API token "deploys" has expired'
    assert json.loads(late.json())["event"] == "token_expired"


class Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, attrs))


HOSTILE = "<img src=x onerror=alert(1)>\"'&</p>\r\nBcc: eve@example.test\n\n.\u2028\u202e"


def test_what_users_call_things_stays_text_in_html():
    """Names of token, user and team add no tag and no attribute."""
    plain = Tags(notice().html()).found
    user = User(UserId(7), HOSTILE, "ada@example.test")
    use = Use(NOW, HOSTILE, HOSTILE)
    hostile = notice(token_name=HOSTILE, user=user, team=HOSTILE, use=use)
    assert Tags(hostile.html()).found == plain


def test_what_users_call_things_adds_no_header_and_no_line():
    """CR, LF and their relatives become blanks before they reach a header or the text."""
    user = User(UserId(7), HOSTILE, "ada@example.test")
    hostile = notice(token_name=HOSTILE, user=user, team=HOSTILE)
    usual = composed(notice(), "sidecar@example.test")
    mail = message_from_bytes(bytes(composed(hostile, "sidecar@example.test")), policy=default)
    assert sorted(mail.keys()) == sorted(usual.keys())
    assert [one.addr_spec for one in mail["To"].addresses] == ["ada@example.test"]
    assert hostile.text().count("\n") == notice().text().count("\n")


def test_a_long_name_is_cut_in_the_subject_alone():
    """255 characters of a name leave room for what matters."""
    long = notice(token_name="n" * 255)
    assert long.subject == f'API token "{"n" * 79}…" expires in 5 hours'
    assert "n" * 255 in long.text()


def test_every_try_has_the_same_message_id_and_no_auto_reply():
    """A mail server can see that a duplicate is one."""
    first, second = (composed(notice(now=now), "s@example.test") for now in (NOW, EXPIRY))
    assert (
        first["Message-ID"]
        == second["Message-ID"]
        == ("<authsidecar.67.1800000000000.24@example.test>")
    )
    assert first["Auto-Submitted"] == "auto-generated"
    assert [part.get_content_type() for part in first.iter_parts()] == ["text/plain", "text/html"]


@pytest.mark.parametrize(
    ("email", "spec"),
    [
        ("ada@example.test", "ada@example.test"),
        (" ada+ci@example.test ", "ada+ci@example.test"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("", None),
        ("ada", None),
        ("ada@", None),
        ("a@b@example.test", None),
        ("ada@example.test\r\nBcc: eve@example.test", None),
        ("ada@example.test, eve@example.test", None),
        ("Ada <ada@example.test>", None),
        ("..@example.test", None),
    ],
)
def test_only_a_plain_address_is_written_to(email, spec):
    """Anything else is nobody's address."""
    found = address("Ada", email)
    assert (None if found is None else found.addr_spec) == spec


@pytest.mark.parametrize("user", [None, User(UserId(7), "Ada", "nowhere")])
def test_an_owner_without_an_address_is_told_nothing(user):
    """It is a warning that is not taken, and it says why without the text of the address."""
    with pytest.raises(NotTakenError, match=r"^the owner has no mail address$"):
        composed(notice(user=user), "s@example.test")
