"""A few seconds of what `python -m tests.fuzz` does for minutes, with a fixed seed and a fresh one."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exex.errors import ProtocolError
from exex.protocol import codec
from tests.fuzz.__main__ import run

DECODERS = [codec.from_client(), codec.from_worker(), codec.to_client(), codec.to_worker()]
FRESH = int(time.time())


@pytest.mark.parametrize("seed", [1, FRESH], ids=["fixed", "fresh"])
@pytest.mark.parametrize(("target", "messages"), [("codec", 20_000), ("manager", 6_000), ("stream", 5_000), ("zeromq", 2_000), ("launch helper", 1_000)])
def test_nobody_is_harmed(target: str, messages: int, seed: int) -> None:
    run(target, messages, seed)


@given(st.lists(st.binary(max_size=200), min_size=0, max_size=4))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_a_message_or_a_protocol_error(frames: list[bytes]) -> None:
    for decoder in DECODERS:
        try:
            message = decoder.decode(frames)
        except ProtocolError:
            continue
        codec.Encoder().encode(message)
