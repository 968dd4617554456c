"""An allowlist before it is saved: what is bad or redundant in it, and whom it would shut out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from authsidecar.admin.questions import Sources
from authsidecar.admin.settings import about
from authsidecar.decision.addresses import Network, parse_address, parse_network
from authsidecar.decision.allowlist import (
    BLANKS,
    EVERYONE,
    LONGEST_QUOTE,
    Allowlist,
    parse_lenient,
    wildcards,
)
from authsidecar.decision.model import Address

MOST_CLIENTS: Final = 10_000
"""How many addresses are looked at, those with the most requests."""

MOST_NAMED: Final = 20
"""Of how many entries it is said what covers them: a long list has many."""


@dataclass(frozen=True, slots=True)
class AdmittedClients:
    """Which addresses were admitted, and how often; a question for `Ask`.

    Attributes:
        span_ms: how far back, in milliseconds.
    """

    span_ms: int

    async def __call__(self, sources: Sources) -> dict[str, float]:
        """The answer: an estimate, the most frequent first; of the admissions, a share is kept."""
        found: Counter[str] = Counter()
        async for page in sources.pages(await sources.since(self.span_ms)):
            for one in page.receipts:
                if one.outcome == "allow" and one.client is not None:
                    found[one.client] += one.weight  # type: ignore[assignment]  # they are added
        return dict(found.most_common(MOST_CLIENTS))


@dataclass(frozen=True, slots=True)
class Preview:
    """What an allowlist would mean.

    Attributes:
        kept: the entries that would be stored.
        everyone: it admits everyone.
        bad: entries that are none, with what is wrong; it can't be saved.
        redundant: entries that others cover, which would be dropped; the first MOST_NAMED of them
            with one that does, the rest with "".
        warnings: what is legal but unwise.
        clients: how many addresses were admitted lately.
        shut_out: those of them that it would refuse, the most frequent first.
        locks_out: whether it refuses the author's own address; None: that is not known.
    """

    kept: tuple[str, ...]
    everyone: bool
    bad: tuple[tuple[str, str], ...]
    redundant: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    clients: int
    shut_out: tuple[str, ...]
    locks_out: bool | None


def preview(text: str, *, caller: Address | None, clients: Mapping[str, float]) -> Preview:
    """Look at a list that somebody writes.

    Args:
        text: addresses and networks with commas.
        caller: the author's own address; None: it is not known.
        clients: how often addresses were admitted lately, the most frequent first.
    """
    allowlist, bad = parse_lenient(text)
    addresses = [one for one in map(parse_address, clients) if one is not None]
    return Preview(
        kept=allowlist.entries,
        everyone=allowlist.everyone,
        bad=tuple((entry[:LONGEST_QUOTE], _wrong(entry)) for entry in bad),
        redundant=_redundant(text, allowlist, bad),
        warnings=tuple(about(entry) for entry in wildcards(allowlist)),
        clients=len(addresses),
        shut_out=tuple(str(one) for one in addresses if not allowlist.admits(one)),
        locks_out=None if caller is None else not allowlist.admits(caller),
    )


def _wrong(entry: str) -> str:
    try:
        parse_network(entry)
    except ValueError as error:
        return str(error)
    return ""


def _redundant(text: str, allowlist: Allowlist, bad: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The good entries that are not kept; of the first of them, an entry that covers each."""
    given = Counter(entry for one in text.split(",") if (entry := one.strip(BLANKS)))
    dropped = tuple((given - Counter(allowlist.entries) - Counter(bad)).elements())
    kept = [(entry, parse_network(entry)) for entry in allowlist.entries] if dropped else []
    return tuple(
        (entry, _covering(entry, kept) if number < MOST_NAMED else "")
        for number, entry in enumerate(dropped)
    )


def _covering(entry: str, kept: Sequence[tuple[str, Network]]) -> str:
    """The first entry that is kept and covers this one."""
    if any(wide == EVERYONE for wide, _ in kept):
        return EVERYONE
    network = parse_network(entry)
    return next(
        wide
        for wide, of in kept
        if of.version == network.version
        and of.prefixlen <= network.prefixlen
        and network.network_address in of
    )
