"""pit serve under load: many clients against one request at a time, memory, and the work of clients that left.

python benchmarks/serve_load.py --model tiny --out serve.json
"""

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import psutil

from pitcli.data.synthetic import preference_rows

PATH = "/v1/chat/completions"
HEADERS = {"Content-Type": "application/json"}
MIB = 2**20
STEPS = {"tiny": 12, "smollm2": 1}


class Server(NamedTuple):
    process: subprocess.Popen[bytes]
    port: int

    def rss(self) -> float:
        """Resident memory in MiB."""
        return psutil.Process(self.process.pid).memory_info().rss / MIB

    def cpu_s(self) -> float:
        """CPU seconds so far; other programs on the machine change them less than the time."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def metric(self, name: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", choices=("tiny", "smollm2"))
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--alone", type=int, default=60, help="requests of the single client")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = list(preference_rows(given.requests, seed=11))
    with tempfile.TemporaryDirectory() as name:
        train(Path(name), given.model)
        with serving(Path(name), given) as server:
            ask_all(server, rows[:8], 4)  # warm
            started = server.rss()
            alone = measured(server, rows[: given.alone], 1)
            half = measured(server, rows[: len(rows) // 2], given.clients)
            after_half = server.rss()
            rest = measured(server, rows[len(rows) // 2 :], given.clients)
            figures = {
                "settings": {key: str(value) for key, value in vars(given).items()},
                "one_at_a_time": alone,
                "first_half": half,
                "second_half": rest,
                "times_faster": round((half["per_second"] + rest["per_second"]) / 2 / alone["per_second"], 2),
                "times_less_cpu": round(alone["cpu_s_per_request"] / rest["cpu_s_per_request"], 2),
                "rss_mib": {"start": started, "after_half": after_half, "end": server.rss()},
                "after_killed_clients": killed_clients(server, rows),
            }
    text = json.dumps(figures, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


def train(folder: Path, model: str) -> None:
    """A run of each kind after a few steps: speed does not depend on how well they improve."""
    rows = preference_rows(64, seed=3)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in ("sft", "train-reward"):
        line = f"{command} --data pairs.jsonl --model {model} --max-steps {STEPS[model]} --batch-size 4"
        pit(folder, line)


def pit(folder: Path, line: str) -> None:
    subprocess.run([sys.executable, "-m", "pitcli", *line.split()], cwd=folder, check=True, stderr=subprocess.DEVNULL)


@contextmanager
def serving(folder: Path, given: argparse.Namespace) -> Iterator[Server]:
    options = f"--request-timeout 3600 --sample-batch-size {given.slots} --max-new-tokens {given.max_new_tokens}"
    log = folder / "log"
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "pitcli", "serve", "--port", "0", *options.split()]
        process = subprocess.Popen(command, cwd=folder, stderr=stream)
    try:
        while not (found := re.search(r"serving on http://127.0.0.1:(\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield Server(process, int(found[1]))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    assert "Traceback" not in log.read_text()


def measured(server: Server, rows: Sequence[dict[str, Any]], clients: int) -> dict[str, float]:
    began, cpu = time.monotonic(), server.cpu_s()
    seconds = ask_all(server, rows, clients)
    took = time.monotonic() - began
    tails = quantiles(seconds, n=20)
    return {
        "requests": len(rows),
        "clients": clients,
        "per_second": round(len(rows) / took, 2),
        "cpu_s_per_request": round((server.cpu_s() - cpu) / len(rows), 4),
        "p50_s": round(median(seconds), 3),
        "p95_s": round(tails[-1], 3),
    }


def ask_all(server: Server, rows: Sequence[dict[str, Any]], clients: int) -> list[float]:
    """The seconds of each request. Each client sends every n-th row on one connection, one after another.

    Any answer but 200, or the answer to another request, is an error.
    """

    def one_client(number: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
        times = []
        for row in rows[number::clients]:
            began = time.monotonic()
            connection.request("POST", PATH, body_of(row), HEADERS)
            response = connection.getresponse()
            reply = json.loads(response.read())
            times.append(time.monotonic() - began)
            assert response.status == 200, reply
            assert reply["pit"]["draft"] == row["rejected"]
        return times

    with ThreadPoolExecutor(clients) as pool:
        return [seconds for times in pool.map(one_client, range(clients)) for seconds in times]


def killed_clients(server: Server, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Kill a process with 64 requests in flight, and wait until none is left."""
    child = os.fork()
    if not child:
        connections = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(64)]
        for connection, row in zip(connections, rows, strict=False):
            connection.request("POST", PATH, body_of(row), HEADERS)
        time.sleep(600)
    while server.metric("pit_engine_jobs") < 32:
        time.sleep(0.01)
    in_flight = server.metric("pit_engine_jobs")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    began, cpu = time.monotonic(), server.cpu_s()
    names = ("pit_requests_running", "pit_engine_jobs", "pit_responses_waiting")
    while any(server.metric(name) for name in names):
        time.sleep(0.01)
    seconds, cpu = time.monotonic() - began, server.cpu_s() - cpu
    return {"in_flight": in_flight, "seconds_until_none": round(seconds, 2), "cpu_s_until_none": round(cpu, 2)}


def body_of(row: dict[str, Any]) -> str:
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["rejected"]}]
    return json.dumps({"model": "pit/improve", "messages": turns})


if __name__ == "__main__":
    main()
