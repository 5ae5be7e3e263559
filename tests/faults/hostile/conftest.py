"""A fixture that fails a test in which a payload was run, or could have been."""

import os
import signal
import socket
import sys
from collections.abc import Iterator

import pytest

from tests.faults.hostile.payloads import CANARY, SPOKEN


@pytest.fixture
def no_harm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that creates the canary, connects a socket, reads from stdin, or waits for a pipe."""
    connected: list[object] = []
    signal.signal(signal.SIGALRM, lambda number, frame: pytest.fail("still waiting after a minute"))
    signal.alarm(60)
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: connected.append(address))
    reader, writer = os.pipe()
    os.write(writer, SPOKEN.encode())
    os.close(writer)
    before = os.dup(0)
    os.dup2(reader, 0)
    os.close(reader)
    monkeypatch.setattr(sys, "stdin", open(0, closefd=False))  # noqa: SIM115
    yield
    signal.alarm(0)
    left = os.read(0, 100)
    os.dup2(before, 0)
    os.close(before)
    assert left.decode() == SPOKEN
    assert connected == []
    assert not CANARY.exists()
