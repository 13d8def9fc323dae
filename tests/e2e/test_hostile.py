"""A client that talks rubbish to a real manager: it is cut off, says so, and the job ends in order."""

from __future__ import annotations

import pytest

from tests.launch import Launch

SCRIPT = """
import time
import exex, psutil
from exex import python_app
from exex.client import session

@python_app
def answer(x):
    return x

assert answer(1).result() == 1
manager = psutil.Process(exex.manager_pid())
link = session.current("this test").proxy._talk._link
link._socket.send({rubbish!r})
try:
    answer(2).result(timeout=30)
except exex.ManagerLost as error:  # of the call, if that is how the client hears of it
    print("lost:", error)
before = sum(manager.cpu_times()[:2])
time.sleep(1.0)
print("idle" if sum(manager.cpu_times()[:2]) - before < 0.1 else "the manager spins")
"""

RUBBISH = {
    "no frames": (b"GET / HTTP/1.1\r\n\r\n" + bytes(100), "the client is cut off"),
    "no message": (b"\1\0\0\0" + (7).to_bytes(8, "little") + b"rubbish", "client 0 is refused"),
}


@pytest.mark.parametrize("name", RUBBISH)
def test_a_client_that_talks_rubbish_loses_its_connection_and_nothing_else(launch: Launch, name: str) -> None:
    rubbish, words = RUBBISH[name]
    done = launch.workflow(3, SCRIPT.format(rubbish=rubbish))
    assert "lost: " in done.out and "idle" in done.out, (done.out, done.err)
    assert words in done.err
    assert done.status == 0, done.err
