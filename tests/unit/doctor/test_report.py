"""The table is complete, and what is said of a fault leads to a line that is there."""

import re

import pytest

from authsidecar.decision.model import Proxy
from authsidecar.demo.proxies import deploy_dir
from authsidecar.doctor.probes import FIRST, PROBES
from authsidecar.doctor.remedies import REMEDIES
from authsidecar.doctor.report import DoctorReport, Finding, ProbeResult
from authsidecar.doctor.running import place

EXAMINED = [proxy for proxy in Proxy if proxy is not Proxy.DIRECT]


@pytest.mark.parametrize("proxy", EXAMINED)
def test_every_fault_leads_to_a_line_of_the_deploy_files(proxy):
    """Word for word, so that it can be found and copied."""
    files = "\n".join(path.read_text("utf-8") for path in (deploy_dir() / proxy).iterdir())
    remedies = REMEDIES[proxy]
    assert {probe.cure for probe in PROBES if proxy not in probe.skip} == set(remedies)
    assert [line for line in remedies.values() if line not in files] == []


def test_every_probe_has_a_name_of_its_own_that_fits_its_credential():
    """Sightings are told apart by it."""
    names = [probe.name for probe in PROBES]
    assert len(set(names)) == len(names) >= 25
    assert all(re.fullmatch("[a-z0-9-]{1,40}", name) for name in names)
    assert PROBES[0] is FIRST


def test_a_report_names_fault_reason_advisory_and_line():
    """As text and as JSON; what passed needs no words."""
    bad = next(probe for probe in PROBES if probe.name == "guard-index-php")
    findings = [Finding(FIRST, ProbeResult.PASS), Finding(bad, ProbeResult.FAIL, "answered 200")]
    report = DoctorReport(
        Proxy.CADDY, "http://a.test", [*findings, Finding(FIRST, ProbeResult.SKIP, "no")]
    )
    text = report.text()
    for words in ("fail  guard-index-php", "answered 200", bad.guards, "@guarded path /api*"):
        assert words in text
    assert text.splitlines()[-1] == report.summary() == "1 passed, 1 failed, 1 skipped"
    told = report.document()
    assert told["outcome"] == "fail"
    assert told["probes"][0]["change"] is told["probes"][0]["reason"] is None
    assert told["probes"][1]["change"] == REMEDIES[Proxy.CADDY]["index-php"]


def test_a_report_without_faults_passes():
    """Skipped probes are no fault."""
    report = DoctorReport(Proxy.CADDY, "http://a.test", [Finding(FIRST, ProbeResult.SKIP, "no")])
    assert report.document()["outcome"] == "pass"
    assert report.failed == ()


@pytest.mark.parametrize(
    ("url", "host", "port", "authority"),
    [
        ("http://a.test", "a.test", 80, "a.test"),
        ("http://a.test:81/", "a.test", 81, "a.test:81"),
        ("https://[::1]", "::1", 443, "[::1]"),
    ],
)
def test_a_url_names_a_place(url, host, port, authority):
    """With TLS exactly where it says so."""
    found = place(url)
    assert (found.host, found.port, found.authority) == (host, port, authority)
    assert (found.tls is not None) == url.startswith("https")


@pytest.mark.parametrize(
    "url", ["a.test", "ftp://a.test", "http://", "http://a.test/x", "http://u@a.test", "http://a?b"]
)
def test_another_url_is_refused(url):
    """The probes have paths of their own."""
    with pytest.raises(ValueError, match="host"):
        place(url)
