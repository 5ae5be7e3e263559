"""Clients that leave, stall or wait while the server stops: no work is left behind, and no other client suffers."""

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from tests.serving.conftest import Server, Start, StubUpstream, chat, turns, until

PATH = "/v1/chat/completions"
CLIENT = """
import socket, sys, time
port, *requests = sys.argv[1:]
connections = [socket.create_connection(("127.0.0.1", int(port))) for _ in requests]
for connection, request in zip(connections, requests):
    connection.sendall(request.encode())
time.sleep(600)
"""


@pytest.fixture(scope="module")
def slow(start: Start) -> Server:
    return start("--sample-batch-size 4 --max-iters 3 --grace 20", fault={"slow_pass": 0.1})


def request_text(server: Server, body: dict[str, Any]) -> str:
    data = json.dumps(body)
    return f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: {len(data)}\r\n\r\n{data}"


def sent(server: Server, body: dict[str, Any], small: bool = False) -> socket.socket:
    """A connection on which a request was sent. small: the kernel keeps little of the reply."""
    connection = socket.socket()
    if small:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(request_text(server, body).encode())
    return connection


def test_killed_clients_leave_no_work_behind(slow: Server) -> None:
    """Two processes with eight requests are killed, more than the slots: some run and some wait."""
    clients = []
    for streams in (True, False):
        bodies = [chat(prompt=f"Write {number} foods.", stream=streams) for number in range(4)]
        texts = [request_text(slow, body) for body in bodies]
        clients.append(subprocess.Popen([sys.executable, "-c", CLIENT, str(slow.port), *texts]))
    until(lambda: slow.metric("pit_engine_jobs") == 8)
    for client in clients:
        client.kill()
        client.wait()
    until(lambda: slow.metric("pit_requests_running") == 0, 3)
    until(lambda: slow.metric("pit_engine_jobs") + slow.metric("pit_responses_waiting") == 0, 3)
    assert slow.metric("pit_clients_left_total") >= 8
    tokens = slow.metric("pit_generated_tokens")
    time.sleep(1)
    assert slow.metric("pit_generated_tokens") == tokens
    assert slow.ask(PATH, chat()).status == 200


def test_others_get_the_same_while_clients_leave(slow: Server) -> None:
    """Slots are freed and taken again while the others run."""
    requests = [chat(prompt=f"Write {number} foods.", pit={"threshold": 0.0}) for number in range(6)]
    alone = [slow.ask(PATH, request).body["pit"]["iterations"] for request in requests[:2]]

    def leave(number: int) -> None:
        connection = sent(slow, chat(prompt=f"Write {number} animals."))
        time.sleep(0.2 * number)
        connection.close()

    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(slow.ask, PATH, request) for request in requests]
        list(pool.map(leave, range(6)))
    together = [answer.result().body["pit"]["iterations"] for answer in answers]
    for before, after in zip(alone, together, strict=False):
        assert [step["response"] for step in before] == [step["response"] for step in after]
    assert slow.metric("pit_engine_jobs") == 0


def test_a_client_that_never_reads(start: Start, stub: StubUpstream) -> None:
    """Its reply is larger than what the kernel keeps for it; the server gives it up, and answers others meanwhile."""
    server = start(f"--upstream {stub.url}", fault={"client_limits": 1.0})
    request = chat(messages=turns("pie " * 200_000), model="pit/echo")
    stalled = [sent(server, request, small=True) for _ in range(3)]
    assert server.ask(PATH, chat()).status == 200
    ports = {connection.getsockname()[1] for connection in stalled}
    process = psutil.Process(server.command.pid)

    def connected() -> set[int]:
        return ports & {found.raddr.port for found in process.net_connections() if found.raddr}

    until(lambda: server.metric("pit_requests_running") == 0)
    until(lambda: not connected(), 30)
    for connection in stalled:
        connection.close()
    assert "Traceback" not in server.log()


def test_a_client_that_never_sends_its_body(start: Start) -> None:
    server = start(fault={"client_limits": 0.5})
    silent = socket.create_connection(("127.0.0.1", server.port))
    silent.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode())
    assert server.ask(PATH, chat()).status == 200
    silent.settimeout(10)
    assert silent.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_signal_finishes_what_runs(start: Start) -> None:
    server = start("--grace 20", fault={"slow_pass": 0.05})
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(server.ask, PATH, chat(prompt=f"Write {number} foods.")) for number in range(4)]
        until(lambda: server.metric("pit_engine_jobs") == 4)
        ended = server.stop()
        assert [answer.result().status for answer in answers] == [200] * 4
    assert ended.code == 128 + signal.SIGTERM
    assert "Traceback" not in ended.err


def test_a_second_interrupt_ends_at_once(start: Start) -> None:
    server = start("--grace 60", fault={"slow_pass": 0.5})
    connection = sent(server, chat())
    until(lambda: server.metric("pit_engine_jobs") == 1)
    began = time.monotonic()
    server.command.kill(signal.SIGINT)
    time.sleep(0.3)
    server.command.kill(signal.SIGINT)
    ended = server.command.wait()
    connection.close()
    assert ended.code == 128 + signal.SIGINT
    assert time.monotonic() - began < 5
    assert "Traceback" not in ended.err
