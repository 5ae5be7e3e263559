"""Writers behind llama.cpp, in a process of its own: the same weights as here, killed, and started again."""

import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import Share
from tests.endpoints.conftest import ROWS, pit, read_rows, write_rows
from tests.endpoints.test_writers import rounded

if importlib.util.find_spec("xllamacpp") is None:
    pytest.skip("needs the wheel xllamacpp, which has llama.cpp's server", allow_module_level=True)

SERVER = Path(__file__).parents[2] / "benchmarks" / "llama_server.py"
STARTS_WITHIN_S = 120


class Llama(NamedTuple):
    url: str
    process: subprocess.Popen[str]
    gguf: Path


@contextmanager
def llama(folder: Path, gguf: Path, *flags: str) -> Iterator[Llama]:
    command = [sys.executable, str(SERVER), str(folder), "--gguf", str(gguf), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert process.stdout is not None
        yield Llama(process.stdout.readline().strip(), process, gguf)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def tiny(share: Share, tiny_folder: Path) -> Iterator[Llama]:
    with llama(tiny_folder, share("gguf-tiny", lambda folder: None) / "tiny.gguf") as started:
        yield started


@pytest.fixture(scope="module")
def improver(share: Share, trained: Path) -> Iterator[Llama]:
    with llama(trained / "improver", share("gguf-improver", lambda folder: None) / "improver.gguf") as started:
        yield started


@pytest.mark.usefixtures("project")
def test_greedy_drafts_are_those_of_the_same_weights_here(tiny: Llama) -> None:
    common = "sample --data drafts.jsonl --temperature 0 --max-new-tokens 24"
    pit(f"{common} --model tiny --output here.jsonl")
    pit(f"{common} --writer openai:tiny --base-url {tiny.url} --output there.jsonl")
    assert Path("there.jsonl").read_bytes() == Path("here.jsonl").read_bytes()
    cut = {row["finished"] for row in read_rows("there.jsonl")}
    pit(f"{common.replace('24', '3')} --writer openai:tiny --base-url {tiny.url} --output short.jsonl")
    assert cut == {True} and {row["finished"] for row in read_rows("short.jsonl")} == {False}


@pytest.mark.usefixtures("project")
def test_greedy_improvements_are_those_of_the_run_here(improver: Llama) -> None:
    """Texts, gaps, reasons to stop and numbers of tokens; the gap model is here in both cases."""
    common = "improve --input drafts.jsonl --temperature 0 --max-new-tokens 24"
    pit(f"{common} --run runs/sft --output here.jsonl")
    pit(f"{common} --writer openai:improver --base-url {improver.url} --output there.jsonl")
    here, there = read_rows("here.jsonl"), read_rows("there.jsonl")
    assert rounded(there) == rounded(here)
    assert sum(row["generated_tokens"] for row in there) > 10 * ROWS


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("method", ["best-of-n", "self-refine", "resample"])
def test_greedy_baselines_are_those_here(method: str, tiny: Llama) -> None:
    """But for empty replies: here the first token does not end a response, which llama.cpp cannot be asked for."""
    common = f"improve --input drafts.jsonl --temperature 0 --max-new-tokens 16 --method {method} --max-iters 2"
    pit(f"{common} --output here.jsonl --stop none")
    pit(f"{common} --writer openai:tiny --base-url {tiny.url} --output there.jsonl --stop none")
    written = [[texts_of(row) for row in read_rows(f"{name}.jsonl")] for name in ("here", "there")]
    pairs = [(here, there) for here, there in zip(*written, strict=True) if all(text for text, *_ in there)]
    assert len(pairs) >= ROWS - 3
    assert all(here == there for here, there in pairs)


def texts_of(row: dict[str, Any]) -> list[tuple[Any, ...]]:
    fields = ("response", "feedback", "generated_tokens", "finished")
    return [tuple(iteration.get(field) for field in fields) for iteration in row["iterations"]]


@pytest.mark.usefixtures("project")
def test_samples_depend_on_the_seed(tiny: Llama) -> None:
    common = f"sample --data drafts.jsonl --max-new-tokens 24 --writer openai:m --base-url {tiny.url} --concurrency 1"
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pit(f"{common} --seed {seed} --output {name}.jsonl")
        texts.append([row["response"] for row in read_rows(f"{name}.jsonl")])
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.usefixtures("project")
def test_what_the_server_refuses_is_an_error_of_the_row(tiny: Llama, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "long", "prompt": "Write foods. " * 900}, {"id": "short", "prompt": "Write 2 foods."}]
    write_rows("two.jsonl", rows)
    common = "sample --data two.jsonl --max-new-tokens 8 --writer openai:m --output out.jsonl"
    pit(f"{common} --base-url {tiny.url}", code=1)
    assert [row["id"] for row in read_rows("out.jsonl")] == ["short"]
    assert "error: two.jsonl:1: 127.0.0.1:" in (err := capsys.readouterr().err) and "answered 400: " in err


@pytest.mark.usefixtures("project")
def test_a_wrong_key(tiny: Llama, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with llama(tiny_folder, tiny.gguf, "--key", "right") as server:
        common = f"sample --data drafts.jsonl --max-new-tokens 4 --writer openai:m --base-url {server.url} --output"
        pit(f"{common} out.jsonl", code=2)
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        pit(f"{common} out.jsonl", code=2)
        monkeypatch.setenv("OPENAI_API_KEY", "right")
        pit(f"{common} out.jsonl")
    assert len(read_rows("out.jsonl")) == ROWS


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def when_written(path: str, lines: int, act: Callable[[], None]) -> threading.Thread:
    """Act in a thread once a file has this many lines."""

    def watch() -> None:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < deadline:
            if Path(path).exists() and Path(path).read_bytes().count(b"\n") >= lines:
                return act()
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.usefixtures("project")
def test_a_killed_server_costs_no_row(tiny: Llama, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed half way the command ends; with the server back, --resume writes the rest, in the same order."""
    write_rows("many.jsonl", [{"id": n, "prompt": f"Write {n % 7 + 2} foods. First ham."} for n in range(60)])
    common = "sample --data many.jsonl --temperature 0 --max-new-tokens 48 --writer openai:m --concurrency 2"
    port = free_port()
    with llama(tiny_folder, tiny.gguf, "--port", str(port)) as server:
        pit(f"{common} --base-url {server.url} --output whole.jsonl")
        killer = when_written("out.jsonl", 20, server.process.kill)
        pit(f"{common} --base-url {server.url} --output out.jsonl", code=3)
        killer.join()
    host = f"127.0.0.1:{port}"
    lost = f"error: --writer openai:m: cannot connect to {host}; the drafts so far are kept; --resume continues"
    assert capsys.readouterr().err.splitlines()[-1] == lost
    before = Path("out.jsonl").read_bytes()
    assert 20 <= before.count(b"\n") < 60
    with llama(tiny_folder, tiny.gguf, "--port", str(port)) as server:
        pit(f"{common} --base-url {server.url} --output out.jsonl --resume")
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert Path("out.jsonl").read_bytes().startswith(before)


@pytest.mark.usefixtures("project")
def test_a_server_that_is_restarted_is_waited_for(
    tiny: Llama, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pitcli.endpoints.client.MAX_RETRIES", 8)
    monkeypatch.setattr("pitcli.endpoints.client.FIRST_WAIT_S", 0.3)
    write_rows("many.jsonl", [{"id": n, "prompt": f"Write {n % 7 + 2} foods. First ham."} for n in range(60)])
    common = "sample --data many.jsonl --temperature 0 --max-new-tokens 48 --writer openai:m --concurrency 2"
    flags = ("--port", str(free_port()))
    restarted: list[subprocess.Popen[str]] = []
    with llama(tiny_folder, tiny.gguf, *flags) as server:
        pit(f"{common} --base-url {server.url} --output whole.jsonl")

        def restart() -> None:
            server.process.kill()
            server.process.wait()
            command = [sys.executable, str(SERVER), str(tiny_folder), "--gguf", str(tiny.gguf), *flags]
            restarted.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True))

        restarter = when_written("out.jsonl", 20, restart)
        try:
            pit(f"{common} --base-url {server.url} --output out.jsonl")
            restarter.join()
        finally:
            for process in restarted:
                process.kill()
                process.wait()
    assert restarted
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


@pytest.mark.usefixtures("project")
def test_one_of_two_servers_is_killed(tiny: Llama, tiny_folder: Path) -> None:
    write_rows("many.jsonl", [{"id": n, "prompt": f"Write {n % 7 + 2} foods. First ham."} for n in range(60)])
    common = "sample --data many.jsonl --temperature 0 --max-new-tokens 48 --writer openai:m --concurrency 2"
    pit(f"{common} --base-url {tiny.url} --output whole.jsonl")
    with llama(tiny_folder, tiny.gguf) as other:
        killer = when_written("out.jsonl", 15, other.process.kill)
        pit(f"{common} --base-url {tiny.url},{other.url} --output out.jsonl")
        killer.join()
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
