"""What README and guide tell a newcomer to type, run as written from the first line to the last.

The embedded tiny model is used instead of SmolLM2, and few pairs instead of HH, so that it takes seconds. Only the
improver that ships needs SmolLM2 itself.
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
from tests.test_docs import DOCS, GUIDE, ROOT, commands, fenced


class Walk(NamedTuple):
    """Pages that are walked one after another in one folder; pairs: how many rows hh.jsonl has."""

    pages: list[Path]
    pairs: int


# with this many pairs, the fold that the guide tests on gives drafts that are improved; the README has fixed drafts
WALKS = {
    "README": Walk([ROOT / "README.md"], 120),
    "start": Walk([DOCS / "start.md"], 120),
    "guide": Walk(GUIDE, 120),
    "agents": Walk([DOCS / "agents.md"], 120),
}


class Line(NamedTuple):
    """A line of shell: the arguments of `pit`, the file or the text on its stdin, and the file of its stdout."""

    command: list[str]
    stdin: str | None
    text: str | None
    stdout: str | None


def lines(block: str) -> list[Line]:
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        source = re.match(r"cat (\S+) \| ", line)
        text = re.match(r'echo "([^"]+)" \| ', line)
        target = re.search(r" > (\S+)", line)
        found += [
            Line(command, source and source[1], text and text[1], target and target[1])
            for command in commands(line)
            if "gguf" not in command  # llama.cpp does not have the tokenizer of the embedded model
        ]
    return found


def walk(page: Path) -> list[Line]:
    """The lines of a page in their order; of two alternatives, the one for CPUs, which comes second."""
    parts = re.split(r"^```(?:\w+)?\n", page.read_text(), flags=re.MULTILINE)
    blocks = dict.fromkeys(fenced(page.read_text(), "sh"))
    shell: list[str] = []
    for before, part in pairwise(parts):
        if part in blocks:
            if before.strip().splitlines()[-1].startswith("On a CPU"):
                shell.pop()
            shell.append(part)
    return [line for block in shell for line in lines(block)]


@pytest.fixture
def newcomer(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pairs as HH has them, rated rows, rows of no known format, drafts for the README, and recipes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    rows = list(preference_rows(WALKS[name].pairs, seed=1))
    with Path("hh.jsonl").open("w") as pairs:
        for row in rows:
            asked = f"\n\nHuman: {row['prompt']}\n\nAssistant: "
            pairs.write(json.dumps({field: asked + row[field] for field in ("chosen", "rejected")}) + "\n")
    shutil.copy("hh.jsonl", "pairs.jsonl")
    with Path("rated.jsonl").open("w") as rated:
        for row in rows:
            for field, rating in (("chosen", 4), ("rejected", 2)):
                rated.write(json.dumps({"prompt": row["prompt"], "response": row[field], "helpfulness": rating}) + "\n")
    with Path("rows.jsonl").open("w") as others:
        for row in rows:
            answers = [{"text": row["chosen"]}, {"text": row["rejected"]}]
            others.write(json.dumps({"data": {"question": row["prompt"]}, "answers": answers}) + "\n")
    drafts = [{"prompt": row["prompt"], "response": row["rejected"]} for row in preference_rows(3, seed=2)]
    if name == "README":  # the guide makes its own
        Path("drafts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in drafts))
    shutil.copytree(ROOT / "examples" / "recipes", "examples/recipes")
    return tmp_path


@pytest.mark.parametrize("name", WALKS)
def test_every_command_runs_as_written(
    name: str, newcomer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    walked = [line for page in WALKS[name].pages for line in walk(page)]
    assert len(walked) >= 3
    locate = bases._locate
    for line in walked:
        stand_in = "smollm2" if "pit:instructions" in line.command else "tiny"
        monkeypatch.setattr(bases, "_locate", lambda base, used=stand_in: locate(used if base == "smollm2" else base))
        if name == "README" and "drafts.jsonl" in line.command and line.command[0] == "sample":
            Path("drafts.jsonl").unlink()  # for those who have none
        typed = Path(line.stdin).read_text() if line.stdin else line.text or "1\n" * 1000  # to pit annotate: the first
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
        code = cli.main(line.command)
        out, err = capsys.readouterr()
        assert code == 0, f"pit {' '.join(line.command)}\n{err}"
        assert "error: " not in err
        if line.stdout:
            Path(line.stdout).write_text(out)
