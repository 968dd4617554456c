"""Who still sends after its last answer: thrown away at once up to a bound, then slowly."""

import asyncio
from typing import cast

from authsidecar.serving.lingering_close import PAUSE_S, Lingerers, Lingering


class Transport:
    """What is asked of a transport."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return "close" in self.calls

    def write_eof(self) -> None:
        self.calls.append("eof")

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("close")


async def test_what_comes_past_the_bound_is_read_after_a_pause() -> None:
    """`listen.max_body_bytes`: up to it there is none."""
    gone: list[Lingering] = []
    transport = Transport()
    one = Lingerers(100, gone.append).take(cast("asyncio.Transport", transport), "192.0.2.1")
    one.data_received(b"x" * 60)
    one.data_received(b"x" * 40)
    assert transport.calls == ["eof", "resume"]
    one.data_received(b"x")
    assert transport.calls[2:] == ["pause"]
    await asyncio.sleep(PAUSE_S * 3)
    assert transport.calls[2:] == ["pause", "resume"]
    one.data_received(b"x")
    one.end()
    await asyncio.sleep(PAUSE_S * 3)
    assert transport.calls[4:] == ["pause", "close"]
    one.connection_lost(None)
    assert gone == [one]
