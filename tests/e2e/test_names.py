"""Names as Coolify takes them, through every proxy: none is refused, none is read otherwise."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from authsidecar.decision.model import Proxy
from authsidecar.decision.routes.loading import RELEASES, coolify
from tests.e2e.scenarios import PROXIES
from tests.support.lab import Lab
from tests.support.wire import ask_all
from tests.support.world import READ

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEMPLATE = "/api/v1/projects/{uuid}/{environment_name_or_uuid}"
PREFIX = "/api/v1/projects/u1/"
LONGEST = 255

# Coolify: letters, marks and digits of any script, white space, and - _ . @ / & ( ) # , : +
# A slash is no part of a segment; of white space, what is a control character is refused.
CHARACTERS = st.one_of(
    st.characters(categories=["L", "M", "N", "Zs"]),
    st.sampled_from(" -_.@&()#,:+"),
    st.sampled_from("üñßÄéабвгдЯ日本語プロジェクト項目한국어עבריתالعربيةहिन्दीไทย०१२३Ⅷ½"),
    st.sampled_from("abcxyzABCXYZ0189"),
)

ROUTES = {"environments", "envs"}
"""Names that Laravel takes for another route. Hypothesis draws words of the loaded modules, these
too."""

NAMES = st.text(CHARACTERS, min_size=1, max_size=LONGEST).filter(
    lambda name: name not in {".", "..", *ROUTES}
)


def javascript(name: str) -> str:
    """As `encodeURIComponent` does."""
    return quote(name, safe="-_.!~*'()")


def php(name: str) -> str:
    """As `rawurlencode` does."""
    return quote(name, safe="-_.~")


@dataclass(frozen=True)
class Sent:
    """One request: the name, and how it was spelled."""

    name: str
    spelled: str

    @property
    def target(self) -> str:
        return PREFIX + self.spelled


def made(names: int, first: int) -> list[Sent]:
    """That many names, each as JavaScript and as PHP spell it, and with lower-case digits."""
    found: list[Sent] = []

    @seeded(first)
    @settings(
        max_examples=names,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(NAMES)
    def collect(name: str) -> None:
        lower = re.sub("%..", lambda escape: escape[0].lower(), php(name))
        found.extend(Sent(name, text) for text in {javascript(name), php(name), lower})

    collect()
    return list({one.target: one for one in found}.values())


async def judged(lab: Lab, proxy: Proxy, sent: Iterable[Sent]) -> Counter[int]:
    """The statuses; the backend has run the right template with the right path for each."""
    by_target = {one.target: one for one in sent}
    lab.seen.clear()
    requests = [
        lab.request(proxy, "GET", target, "Connection: keep-alive", token=READ)
        for target in by_target
    ]
    answers = await ask_all(lab.port(proxy), requests, connections=8)
    refused = [
        (answer.status, answer.body, target)
        for target, answer in zip(by_target, answers, strict=True)
        if answer.status != 200
    ]
    assert refused == []
    assert len(lab.seen) == len(by_target)
    names = Counter(one.name for one in by_target.values())
    for seen in lab.seen:
        assert seen.routed is not None
        assert seen.routed.template == TEMPLATE, seen.target
        name = seen.routed.path.removeprefix(PREFIX)
        assert name in names, seen.target
        names[name] -= 1
        if proxy is not Proxy.TRAEFIK:  # writes the digits of escapes in upper case, for both
            assert seen.target in by_target
    assert set(names.values()) == {0}
    return Counter(answer.status for answer in answers)


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize(
    "name", ["prüfung", "日本", "a#b", "e\u0301", "R&D (new), a+b: x@y.z", "५ सितारा", "\u3000x"]
)
async def test_a_name_reaches_the_backend_as_it_was_sent(lab: Lab, proxy: Proxy, name: str) -> None:
    """200, the right template, and the bytes of the target untouched."""
    answer = await lab.ask(proxy, "GET", PREFIX + php(name), token=READ)
    assert answer.status == 200, answer.body
    [seen] = lab.seen
    assert seen.target == PREFIX + php(name)
    assert seen.routed is not None
    assert seen.routed.template == TEMPLATE
    assert seen.routed.path == PREFIX + name
    assert all(value.isascii() and value.isprintable() for value in seen.identity().values())


async def test_routes_are_all_names_that_are_routes_of_their_own() -> None:
    """As the route tables say."""
    start = "/api/v1/projects/{uuid}/"
    found = {
        route.template.removeprefix(start)
        for release in RELEASES
        for route in coolify(release)
        if route.method == "GET" and route.template.startswith(start)
    }
    assert {name for name in found if "/" not in name and "{" not in name} == ROUTES


@pytest.mark.parametrize("proxy", PROXIES)
async def test_no_name_of_a_few_is_refused(lab: Lab, proxy: Proxy) -> None:
    """The short run: the same names each time."""
    assert (await judged(lab, proxy, made(150, PROXIES.index(proxy))))[200] >= 150


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("proxy", PROXIES)
async def test_no_name_of_two_thousand_is_refused(lab: Lab, proxy: Proxy, capsys) -> None:
    """The long run, in both spellings and both cases of the hex digits."""
    sent = made(2000, 17)
    statuses = await judged(lab, proxy, sent)
    with capsys.disabled():
        print(f"\nnames: {proxy}: {len(sent)} spellings of {2000} names: {dict(statuses)}")  # noqa: T201
    assert len({one.name for one in sent}) >= 1900
    assert set(statuses) == {200}


REFUSED = (
    *("a%2Fb", "a%5Cb", "a%00b", "a%25b", "a%3Bb", "a%3Fb", "a%0Ab", "a%7Fb"),
    *("%C3", "%BC", "%C0%AF", "%E0%80%AF", "%ED%A0%80", "%F4%90%80%80", "%FF", "pr\xff"),
    *("%C2%85", "%E2%80%A8", "%E2%80%A9", "%E2%80%AE", "%E2%81%A6", "%EF%BC%8F"),
)


@pytest.mark.parametrize("proxy", PROXIES)
async def test_what_is_no_name_is_refused_as_before(lab: Lab, proxy: Proxy) -> None:
    """The backend sees none of them."""
    for spelled in REFUSED:
        answer = await lab.ask(proxy, "GET", PREFIX + spelled, token=READ)
        assert (answer.status, lab.seen) == (400, []), spelled


@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_dot_segment_is_no_name(lab: Lab, proxy: Proxy) -> None:
    """Refused, or resolved by the proxy before anybody sees it: then it is judged so."""
    for spelled in ("%2e%2E", "%2e", ".%2e"):
        lab.seen.clear()
        answer = await lab.ask(proxy, "GET", PREFIX + spelled, token=READ)
        for seen in lab.seen:
            assert proxy in {Proxy.TRAEFIK, Proxy.ENVOY, Proxy.HAPROXY}
            assert seen.routed is not None
            assert seen.routed.template != TEMPLATE
        assert answer.status == 400 or lab.seen


RAW = {proxy: 200 if proxy is Proxy.TRAEFIK else 400 for proxy in PROXIES}


@pytest.mark.parametrize(("proxy", "status"), RAW.items())
async def test_raw_bytes_past_ascii_are_not_read(lab: Lab, proxy: Proxy, status: int) -> None:
    """Refused, but where the proxy itself escapes them for everybody behind it."""
    answer = await lab.ask(proxy, "GET", f"{PREFIX}pr\xc3\xbcf", token=READ)
    assert answer.status == status
    assert [seen.target for seen in lab.seen] == ([f"{PREFIX}pr%C3%BCf"] if status == 200 else [])
