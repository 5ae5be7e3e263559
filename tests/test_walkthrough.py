"""The commands of the README and the tutorial run as written, from the first to the last.

The embedded tiny model replaces SmolLM2, and a few synthetic pairs replace HH, so that it takes seconds.
"""

import io
import json
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from pitcli import cli
from pitcli.data.synthetic import preference_rows
from pitcli.engine.models import bases
from tests.test_docs import DOCS, ROOT, commands, fenced

# number of pairs: enough that some drafts of the tutorial's test fold are improved; the README uses fixed drafts
PAGES = {ROOT / "README.md": 24, DOCS / "tutorial.md": 120}


class Line(NamedTuple):
    """One `pit` command of a shell line: its arguments, the file on its stdin, and the file for its stdout."""

    command: list[str]
    stdin: str | None
    stdout: str | None


def lines(block: str) -> list[Line]:
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        source = re.match(r"cat (\S+) \| ", line)
        target = re.search(r" > (\S+)", line)
        found += [Line(command, source and source[1], target and target[1]) for command in commands(line)]
    return found


def walk(page: Path) -> list[Line]:
    """The commands of a page in their order; of two alternatives, the one for CPUs, which comes second."""
    parts = re.split(r"^```(?:sh|yaml|python)?\n", page.read_text(), flags=re.MULTILINE)
    blocks = dict.fromkeys(fenced(page.read_text(), "sh"))
    shell: list[str] = []
    for before, part in pairwise(parts):
        if part in blocks:
            if before.strip().splitlines()[-1].startswith("On a CPU"):
                shell.pop()
            shell.append(part)
    return [line for block in shell for line in lines(block)]


@pytest.fixture
def newcomer(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a newcomer: only preference pairs in the format of HH, drafts, and the recipes."""
    locate = bases._locate
    monkeypatch.setattr(bases, "_locate", lambda name: locate("tiny" if name == "smollm2" else name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    rows = list(preference_rows(PAGES[page], seed=1))
    with Path("hh.jsonl").open("w") as pairs:
        for row in rows:
            turns = f"\n\nHuman: {row['prompt']}\n\nAssistant: "
            pairs.write(json.dumps({name: turns + row[name] for name in ("chosen", "rejected")}) + "\n")
    drafts = [{"prompt": row["prompt"], "response": row["rejected"]} for row in preference_rows(12, seed=2)]
    Path("drafts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in drafts))
    shutil.copytree(ROOT / "examples" / "recipes", "examples/recipes")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_runs_as_written(
    page: Path, newcomer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    walked = walk(page)
    assert len(walked) >= 8
    if page.name == "tutorial.md":
        Path("drafts.jsonl").unlink()  # the tutorial makes its own
    for line in walked:
        typed = (
            Path(line.stdin).read_text() if line.stdin else "1\n" * 1000
        )  # answers for pit annotate: the first response is better
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
        code = cli.main(line.command)
        out, err = capsys.readouterr()
        assert code == 0, f"pit {' '.join(line.command)}\n{err}"
        assert "error" not in err
        if line.stdout:
            Path(line.stdout).write_text(out)
