"""The reference pages say what the code does, no more and no less."""

import inspect
import json
import pkgutil
import re
from collections import deque
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from prometheus_client import CollectorRegistry

import authsidecar
from authsidecar.decision import checks
from authsidecar.decision.checks import CHECKS
from authsidecar.decision.model import Limit, Proxy, Reason, TeamId, TokenId, UserId
from authsidecar.decision.proxies import headers
from authsidecar.decision.ratelimit import charges, sliding_window
from authsidecar.observe.background import Background
from authsidecar.observe.log import Log
from authsidecar.observe.metrics import DROPS, Telemetry
from authsidecar.observe.receipts import MadeUnder
from authsidecar.store.fleet import FleetWriter
from authsidecar.store.keys import Keys
from authsidecar.store.receipts import CAUSES, ReceiptOptions, ReceiptWriter
from authsidecar.times import UnixMs

DOCS = Path(__file__).parents[3] / "docs"

COMPLETED = {
    checks.PERMISSION_MISSING.code,
    checks.INSTANCE_TEAM_REQUIRED.code,
    checks.RESOURCE_NOT_FOUND.code,
}
"""Reasons whose message also says what is missing."""


def page(name: str) -> str:
    """The text of a page of the documentation."""
    return (DOCS / name).read_text("utf-8")


def reasons() -> dict[str, Reason]:
    """Every Reason that a module declares, by code."""
    found: dict[str, Reason] = {}
    for info in pkgutil.walk_packages(authsidecar.__path__, "authsidecar."):
        if info.name.endswith("__main__") or ".demo" in info.name:
            continue
        for value in vars(import_module(info.name)).values():
            if isinstance(value, Reason):
                assert found.setdefault(value.code, value) == value, "one code, two meanings"
    return found


def test_the_collected_reasons_are_all_of_them():
    """A sample of every module that declares some."""
    assert set(reasons()) >= {
        "untrusted_peer",
        "reserved_header",
        "ambiguous_target",
        "client_address_invalid",
        "token_missing",
        "route_unknown",
        "permission_missing",
    }


def test_every_reason_has_an_entry_with_its_status_and_message():
    """Code, status and words: a heading and one line for each, and no heading without a code."""
    entries = re.findall(
        r"^### `(\w+)`\n\n(\d{3}) · `(.+)`\n", page("reference/reason-codes.md"), re.MULTILINE
    )
    headings = re.findall(r"^### ", page("reference/reason-codes.md"), re.MULTILINE)
    assert len(headings) == len(entries)
    documented = {code: (int(status), message) for code, status, message in entries}
    assert len(documented) == len(entries)
    assert set(documented) == set(reasons())
    for code, (status, message) in documented.items():
        reason = reasons()[code]
        assert status == reason.status, code
        assert message == reason.message or (code in COMPLETED and reason.message in message), code


def test_every_reason_says_what_it_means_and_what_to_do():
    """An entry without advice sends its reader to the source."""
    text = page("reference/reason-codes.md").split("## From the proxy's files alone")[0]
    for entry in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        code, _, rest = entry.partition("\n")
        meaning, _, advice = rest.partition("**What to do:**")
        assert len(meaning.split()) > 8, code
        assert advice.strip(), code


def test_the_checks_stand_in_their_order():
    """In README's table and on the page of reasons, as CHECKS has them."""
    codes = [check.reason.code for check in checks.CHECKS]
    entries = re.findall(r"^### `(\w+)`$", page("reference/reason-codes.md"), re.MULTILINE)
    assert [code for code in entries if code in codes] == codes
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| \w+ \| .* \| .* \| `(\w+)` \|$", readme, re.MULTILINE)
    assert [code for code in rows if code in codes] == codes, "each check has its row"


def documented_metrics() -> dict[str, str]:
    """Name and labels of each metric on the page."""
    text = page("reference/metrics.md")
    rows = re.findall(r"^\| `((?:authsidecar|process)_\w+)` \| (.*?) \|", text, re.MULTILINE)
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_every_metric_is_documented_with_its_labels():
    """Dashboards are built from this page."""
    registry = CollectorRegistry()
    log = Log(json_lines=True)
    Telemetry(registry, log)
    Background(log, registry)
    ReceiptWriter(
        None, Keys(), ReceiptOptions(0, 0, 0, 0), MadeUnder("", "", (), report_only=False), registry
    )
    FleetWriter(
        *(None, Keys(), Telemetry(CollectorRegistry(), log).sums),
        version="",
        config=str,
        now=lambda: UnixMs(0),
        registry=registry,
    )
    found = documented_metrics()
    for metric in registry.collect():
        collector: Any = registry._names_to_collectors[metric.name]
        name = metric.name + ("_total" if metric.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)
        assert found.get(name) == labels, name
        del found[name]
    assert all(name.startswith("authsidecar_sync_") for name in found), found


def test_the_proxy_label_takes_the_documented_values():
    """A closed set, named in full."""
    line = re.search(r"^\| `proxy` \| (.*?) \|", page("reference/metrics.md"), re.MULTILINE)
    assert line is not None
    assert set(re.findall(r"`(\w+)`", line[1])) == {*Proxy, "none"}


def test_the_cause_label_takes_the_documented_values():
    """Each with what it means."""
    line = re.search(r"^\| `cause` \| (.*?) \|$", page("reference/metrics.md"), re.MULTILINE)
    assert line is not None
    assert set(re.findall(r"`(\w+)`(?=:|,)", line[1])) == {*DROPS, *CAUSES}


def key_rows() -> set[str]:
    """A row of the page for each key of store/keys.py: its pattern, and its docstring."""
    keys = Keys("")
    samples = {
        "noun": "NOUN",
        "token": TokenId(1),
        "user": UserId(1),
        "team": TeamId(1),
        "tag": "SLOT",
        "charge": charges.Charge("", "SLOT", "NAME", Limit(1)),
        "repeat_key": b"",
        "key": "DIGEST",
        "digest": "DIGEST",
        "bucket": "BUCKET",
        "address": "ADDRESS",
        "number": "NUMBER",
        "step_s": "SECONDS",
        "start": "START",
        "management_key": "ID",
        "request": "DIGEST",
        "whose": "WHOSE",
        "warning": "ID:EXPIRY:HOURS:CHANNEL",
    }
    rows = set()
    for name, member in inspect.getmembers(Keys):
        if name.startswith("_") or not (isinstance(member, property) or inspect.isfunction(member)):
            continue
        pattern = getattr(keys, name)
        if inspect.isfunction(member):
            wanted = list(inspect.signature(member).parameters)[1:]
            pattern = pattern(**{one: samples[one] for one in wanted})
        pattern = re.sub(r"\b1\b", "ID", re.sub(r"[0-9a-f]{32}", "DIGEST", pattern))
        rows.add(f"| `{pattern}` | {' '.join((inspect.getdoc(member) or '').split())} |")
    return rows


def test_every_redis_key_is_documented_in_the_words_of_the_code():
    """The page's rows are the docstrings of store/keys.py; a missing one is printed as its row."""
    found = set(re.findall(r"^\| `.*\|$", page("reference/redis-keys.md"), re.MULTILINE))
    missing, extra = sorted(key_rows() - found), sorted(found - key_rows())
    assert not missing, "\n".join(["add to docs/reference/redis-keys.md:", *missing])
    assert not extra


@pytest.mark.parametrize(
    "name",
    [
        *headers.IDENTITY,
        headers.TOKEN_EXPIRES,
        headers.FORWARDED_METHOD,
        headers.FORWARDED_URI,
        headers.FORWARDED_FOR,
        headers.METHOD_OVERRIDE,
        headers.REQUEST_ID,
        headers.AUTHZ_STATUS,
        headers.AUTHZ_BODY,
    ],
)
def test_every_header_is_documented(name: str):
    """Each header that the code names has a row of its own."""
    assert f"\n| `{name}` |" in page("reference/headers.md")


def test_links_between_pages_lead_somewhere():
    """Relative links of all pages, README and the changelog point at files that are there."""
    pages = [*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md")]
    for one in pages:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", one.read_text("utf-8")):
            if "://" not in target:
                assert (one.parent / target).exists(), f"{one.name}: {target}"


# ------------------------------------------------- the numbers of explanation/rate-limiting.md

LEGAL = [61_000 * burst for burst in range(20) for _ in range(200)]
EAGER = [45_000 * burst for burst in range(20) for _ in range(400)]


def two_buckets(times: list[int], limit: int = 200, window: int = 60_000) -> list[int]:
    """What the weighted two-bucket counter admits; times are milliseconds."""
    admitted: list[int] = []
    current = previous = bucket = 0
    for at in times:
        if at // window != bucket:
            previous = current if at // window == bucket + 1 else 0
            current, bucket = 0, at // window
        if previous * (1 - at % window / window) + current < limit:
            current += 1
            admitted.append(at)
    return admitted


def exact(times: list[int]) -> list[int]:
    """What the sidecar admits."""
    limit = (Limit(200, 60_000),)
    states: tuple[sliding_window.State, ...] = ((),)
    admitted = []
    for at in times:
        states, fits, _ = sliding_window.charge(states, limit, UnixMs(at))
        if fits:
            admitted.append(at)
    return admitted


def most_in_a_window(times: list[int], window: int = 60_000) -> int:
    """The largest number of times within any window."""
    within: deque[int] = deque()
    most = 0
    for at in times:
        within.append(at)
        while within[0] + window <= at:
            within.popleft()
        most = max(most, len(within))
    return most


def test_two_buckets_refuse_and_admit_as_published():
    """The numbers of the page are these; the exact window is right in both cases."""
    text = page("explanation/rate-limiting.md")
    assert (len(two_buckets(LEGAL)), len(exact(LEGAL)), len(LEGAL)) == (2240, 4000, 4000)
    assert (most_in_a_window(two_buckets(EAGER)), most_in_a_window(exact(EAGER))) == (229, 200)
    for number in ("2,240 of 4,000", "4,000 of 4,000", "229", "200"):
        assert number in text


def test_the_worked_times_are_what_the_window_says():
    """Each row of the example: what is admitted, what is left, and when to come back."""
    rows = re.findall(
        r"^\| (\d+)\.(\d{3}) \| .*? \| (200|429) \| (\d) \| (?:`Retry-After: (\d)`)?",
        page("explanation/rate-limiting.md"),
        re.MULTILINE,
    )
    assert len(rows) == 7
    limit = Limit(3, 10_000)
    states: tuple[sliding_window.State, ...] = ((),)
    for seconds, thousandths, status, remaining, retry_after in rows:
        now = UnixMs(int(seconds) * 1000 + int(thousandths))
        states, fits, (counted,) = sliding_window.charge(states, (limit,), now)
        assert fits == (status == "200"), now
        assert counted.remaining == int(remaining), now
        if retry_after:
            assert -(-(counted.reset_at - now) // 1000) == int(retry_after), now


def test_the_scopes_of_the_page_are_those_of_the_code():
    """Each counter that can be charged has its row."""
    principal = {*charges.PRINCIPAL_SCOPES, charges.RESTRICTION}
    scopes = principal | {"failed", "unknown", "health", "feedback", "sentinel", "whoami"}
    rows = set(re.findall(r"^\| `(\w+)` \|", page("explanation/rate-limiting.md"), re.MULTILINE))
    assert rows == scopes
    for bucket in scopes - {"token", "user", "team", charges.RESTRICTION}:
        limits = {bucket: Limit(1)}
        (charge,) = charges.of_address(bucket, ip_address("192.0.2.1"), limits, 64)
        assert charge.scope == bucket


def test_the_page_of_whoami_has_the_fields_of_its_schema():
    """Each field once, in the order of the schema; the example on the page is valid."""
    schema = json.loads(page("reference/whoami.schema.json"))
    text = page("reference/whoami.md")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(schema["properties"])
    assert schema["required"] == list(schema["properties"])
    [example] = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    # Who is no member of the token's team gets a 401.
    codes = [check.reason.code for check in CHECKS if check.of_all is not None]
    assert schema["properties"]["refused_with"]["enum"] == [*codes[1:], None]
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    validator = jsonschema.Draft202012Validator(schema, format_checker=checker)
    validator.check_schema(schema)
    validator.validate(json.loads(example))
    assert list(json.loads(example)) == list(schema["properties"])
