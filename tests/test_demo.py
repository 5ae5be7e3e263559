"""What `make demo` prints at its end: it fits 80 columns, is plain text, and names the report and the next commands."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
import demo  # noqa: E402
import demo_english  # noqa: E402

FIGURES: dict[str, Any] = {
    **{"originals": 0.7724, "improver": 0.9281, "wins": 360, "ties": 78, "losses": 62, "rows": 500},
    **{"delta": 59.6, "delta_ci": [54.2, 64.8]},
}
ROWS = [
    ("Write 3 foods. First cow.", "cow jam", "cow jam pie"),
    ("Write 4 tools. Avoid axe.", "axe saw nail bolt", "axe saw nail bolt"),  # a copy
    ("Write 5 animals. Include gold. Avoid cat. Last pump.", "cat dog red gold pump", "ant dog fox gold pump"),
    ("Write 3 colors. Avoid red.", "red blue tan", "gold blue tan"),
    ("Write 3 animals. Last pie.", "ant pie", "ant bat pie"),
]


def improved(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    names = ("prompt", "original_response", "response")
    lines = [json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows]
    (folder / "improved.jsonl").write_text("".join(lines))
    return folder


def test_the_ending_is_what_a_newcomer_must_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    out = tmp_path / "runs/demo"
    out.mkdir(parents=True)
    lines = [*demo.result(improved(out, ROWS), FIGURES), *demo.next_steps(out)]
    assert lines == [
        "originals -> improved: mean quality 0.772 -> 0.928",
        "360 better, 78 equal, 62 worse: delta (better% - worse%) +59.6 [+54.2, +64.8]",
        "prompt    Write 3 foods. First cow.",
        "draft     cow jam",
        "improved  cow jam pie",
        "prompt    Write 5 animals. Include gold. Avoid cat. Last pump.",
        "draft     cat dog red gold pump",
        "improved  ant dog fox gold pump",
        "prompt    Write 3 colors. Avoid red.",
        "draft     red blue tan",
        "improved  gold blue tan",
        "report (open it in a browser): runs/demo/evaluation/report.html",
        "next, with your own data (pit is .venv/bin/pit):",
        "  pit train-reward --data pairs.jsonl                # prompt, chosen, rejected",
        "  pit rl --curriculum                                # trains the improver",
        "  pit improve --input drafts.jsonl > improved.jsonl  # prompt, response",
    ]


@pytest.mark.parametrize(
    "rows", [ROWS[1:2], ROWS[2:3], [("p " * 90, "d " * 90, "i " * 90)], [("p", "a\nb", "\x1b[31mc")]]
)
def test_rows_that_are_few_long_or_hostile_stay_aligned_in_80_columns(
    rows: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    shown = list(demo.shown_rows(demo.changed_rows(improved(tmp_path, rows) / "improved.jsonl")))
    assert len(shown) == 3 * (rows[0][1] != rows[0][2])
    for line in shown:
        assert len(line) <= 80
        assert line[: demo.WIDTH].rstrip() in demo.HEADS
        assert line[demo.WIDTH] != " "
        assert "\x1b" not in line


def test_the_ending_is_the_same_in_a_pipe_without_colors_and_without_utf_8(tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import demo;"
        "print(*demo.result(Path(sys.argv[2]), json.loads(sys.argv[3])), sep='\\n')"
    )
    command = [sys.executable, "-c", code, str(EXAMPLES), str(improved(tmp_path, ROWS)), json.dumps(FIGURES)]
    given = {**os.environ, "NO_COLOR": "1", "PYTHONIOENCODING": "ascii"}
    piped = subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout
    assert piped.splitlines() == list(demo.result(tmp_path, FIGURES))
    assert "\x1b" not in piped


def test_english_rows_show_which_instructions_a_text_meets_in_80_columns() -> None:
    row = {
        "prompt": "Describe a river.\n* Write at least 3 sentences.\n* No commas.",
        "subject": "a river",
        "instructions": [{"kind": "no_comma"}, {"kind": "uppercase"}],
        "original_response": "A river, a long one, is " + "very " * 40 + "long.",
        "response": "A RIVER IS LONG.\n\n\x1b[3m",
    }
    lines = list(demo_english.shown(row))
    assert lines[:4] == ["request", "  Describe a river.", "  * Write at least 3 sentences.", "  * No commas."]
    assert lines[4] == "draft (no comma: no, uppercase: no)"
    assert lines[-4:] == ["improved (no comma: yes, uppercase: no)", "  A RIVER IS LONG.", "  \\x1b[3m", ""]
    assert all(len(line) <= 80 for line in lines)
    assert list(demo_english.totals([row]))[1].startswith("improved: 1 of 2 instructions met")
