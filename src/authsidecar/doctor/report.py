"""What the doctor says: one finding a probe, as text or as JSON. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from authsidecar.decision.model import Proxy
from authsidecar.doctor.probes import FIRST, Probe
from authsidecar.doctor.remedies import REMEDIES

UNSENT: Final = f"not sent: {FIRST.name} failed"
"""Why a probe is skipped that would have told nothing more."""


class ProbeResult(StrEnum):
    """What became of a probe."""

    PASS = "pass"  # noqa: S105  # a word, no secret
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """One probe's result; `reason` is empty if it passed."""

    probe: Probe
    result: ProbeResult
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """All findings about one proxy, in the order of the probes."""

    proxy: Proxy
    url: str
    findings: Sequence[Finding]

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The faults."""
        return tuple(f for f in self.findings if f.result is ProbeResult.FAIL)

    def summary(self) -> str:
        """How many passed, failed and were skipped."""
        counts = Counter(finding.result for finding in self.findings)
        return ", ".join(
            f"{counts[result]} {words}"
            for result, words in (
                (ProbeResult.PASS, "passed"),
                (ProbeResult.FAIL, "failed"),
                (ProbeResult.SKIP, "skipped"),
            )
        )

    def text(self) -> str:
        """For people: a line a probe, and what to do about each fault."""
        width = max(len(finding.probe.name) for finding in self.findings)
        lines: list[str] = []
        unsent = [finding for finding in self.findings if finding.reason == UNSENT]
        for finding in self.findings:
            if finding in unsent:
                continue
            head = f"{finding.result.value:4}  {finding.probe.name:{width}}  {finding.reason}"
            lines.append(head.rstrip())
            if finding.result is ProbeResult.FAIL:
                lines.append(f"      guards against: {finding.probe.guards}")
                lines.append(f"      deploy/{self.proxy}/ has: {self._change(finding)}")
        if unsent:
            lines.append(f"{ProbeResult.SKIP.value}  {f'{len(unsent)} others':{width}}  {UNSENT}")
        return "\n".join([*lines, self.summary()])

    def document(self) -> dict[str, object]:
        """For scripts."""
        return {
            "outcome": (ProbeResult.FAIL if self.failed else ProbeResult.PASS).value,
            "proxy": self.proxy.value,
            "url": self.url,
            "probes": [
                {
                    "name": finding.probe.name,
                    "result": finding.result.value,
                    "reason": finding.reason or None,
                    "guards_against": finding.probe.guards,
                    "change": self._change(finding) if finding.result is ProbeResult.FAIL else None,
                }
                for finding in self.findings
            ],
        }

    def _change(self, finding: Finding) -> str:
        return REMEDIES[self.proxy][finding.probe.cure]
