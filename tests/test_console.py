"""The training panel in a real pseudo-terminal; without a terminal, no output."""

import os
import pty
import re
import subprocess
import sys

import pytest

from pitcli.console import counted
from pitcli.panel import sparkline

TRAINING = """
from pitcli.panel import training_panel
rows = [{"step": n, "loss": 9.0, "kl": 0.0} for n in range(3)]
with training_panel("training [b]", 6, ("loss", "kl", "accuracy"), rows, 8) as show:
    for number in range(2):
        show({"step": 3, "loss": 1.25 - number, "kl": 2.5, "other": 7.0})
    END
"""


def on_terminal(end: str = "pass", columns: int = 80, program: str = TRAINING, **environment: str) -> tuple[int, str]:
    """The exit code of the training above or of another program, and its output to the terminal on stderr."""
    ours, theirs = pty.openpty()
    variables = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), **environment}
    done = subprocess.run(
        [sys.executable, "-c", program.replace("END", end)],
        check=False,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=variables,
    )
    os.close(theirs)
    sent = b""
    while chunk := _read(ours):
        sent += chunk
    os.close(ours)
    assert done.stdout == (b"row\n" if "print" in end else b"")
    return done.returncode, sent.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # on Linux: the other end is closed and everything has been read
        return b""


def last_frame(sent: str) -> list[str]:
    """The lines of the panel at the end, without colours and cursor movements."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent).replace("\r", "")
    return plain[plain.rindex("╭") :].splitlines()


def test_the_panel_shows_values_sparklines_and_resumed_steps() -> None:
    code, sent = on_terminal("print('row', flush=True)")
    assert code == 0
    frame = last_frame(sent)
    assert "training [b]" in frame[0]
    assert "5/6" in frame[1]
    lines = {line.strip("│ ").split()[0]: line.strip("│ ").split()[1:] for line in frame[2:5]}
    assert lines["loss"] == ["0.25", "███▂▁"]  # 9, 9, 9, 1.25, 0.25
    assert lines["kl"] == ["2.5", "▁▁▁██"]
    assert lines["rows/s"]
    assert "other" not in sent
    assert "accuracy" not in sent


@pytest.mark.parametrize("columns", [20, 34, 60, 200])
def test_the_panel_fits_the_terminal(columns: int) -> None:
    code, sent = on_terminal(columns=columns)
    assert code == 0
    assert {len(line) for line in last_frame(sent) if line} == {min(columns, 88)}


@pytest.mark.parametrize("end", ["raise KeyboardInterrupt", "raise SystemExit(143)"])
def test_an_interrupted_panel_restores_the_terminal(end: str) -> None:
    code, sent = on_terminal(end)
    assert code in {-2, 130, 143}
    assert sent.count("\x1b[?25l") == sent.count("\x1b[?25h") == 1, "the cursor is hidden once and shown again once"


def test_no_color_turns_colours_off() -> None:
    assert "\x1b[2m" in on_terminal()[1]
    assert not re.findall(r"\x1b\[[0-9;]*3[0-9]m", on_terminal(NO_COLOR="1")[1])


def test_a_terminal_without_utf_8_gets_no_blocks() -> None:
    sent = on_terminal(PYTHONIOENCODING="ascii", PYTHONUTF8="0")[1]
    assert "loss" in sent
    assert "\\u" not in sent


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "unknown"}])
def test_a_terminal_without_cursor_movements_gets_no_panel(environment: dict[str, str]) -> None:
    assert on_terminal(**environment) == (0, "")


@pytest.mark.parametrize("force", ["", "1"])
def test_a_pipe_gets_no_panel(force: str) -> None:
    environment = {**os.environ, **({"FORCE_COLOR": force} if force else {})}
    code = TRAINING.replace("END", "pass")
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("values", "width", "shown"),
    [
        ([], 5, ""),
        ([1.0], 5, "▁"),
        ([2.0, 2.0], 5, "▁▁"),
        ([0.0, 7.0], 5, "▁█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([0, 2, 6, 8], 2, "▁█"),  # means 1 and 7
        ([0, 0, 1, 3, 7, 7, 7], 3, "▁▃█"),  # of 2, 2 and 3 values: 0, 2, 7
        ([-1.0, -3.0], 0, ""),
    ],
)
def test_a_sparkline_goes_from_the_lowest_to_the_highest_mean(values: list[float], width: int, shown: str) -> None:
    assert sparkline(values, width) == shown


CHANGES = """
from pitcli.console import word_changes
word_changes("a.jsonl:1\\x1b", [(" ", "one "), ("-", "two"), ("+", "2\\x1b[0m"), (" ", " three"), ("-", "")])
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "one \x1b[9;31mtwo\x1b[0m\x1b[1;32m2\\x1b[0m\x1b[0m three"),
        ({"NO_COLOR": "1"}, "one [-two-]{+2\\x1b[0m+} three"),
        ({"TERM": "dumb"}, "one [-two-]{+2\\x1b[0m+} three"),
    ],
    ids=["terminal", "NO_COLOR", "dumb"],
)
def test_word_changes_are_in_colour_or_in_brackets(environment: dict[str, str], expected: str) -> None:
    """Escapes of the texts themselves are shown, not executed."""
    _, sent = on_terminal(program=CHANGES, **environment)
    lines = sent.replace("\r", "").splitlines()
    assert "a.jsonl:1\\x1b" in lines[0]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", lines[1]) if environment else lines[1]
    assert plain == expected


def test_word_changes_without_a_terminal_are_in_brackets() -> None:
    done = subprocess.run([sys.executable, "-c", CHANGES], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "a.jsonl:1\\x1b\none [-two-]{+2\\x1b[0m+} three\n\n")


SHARES = """
from pitcli.console import edit_shares
edits = [
    {"from": "b", "to": "x\\x1b", "at": [2, 4], "gap": 1.0, "share": 1.0},
    {"from": "d ", "to": "", "at": [7, 7], "gap": -0.1, "share": -0.1},
    {"from": "", "to": " f", "at": [8, 10], "gap": 0.02, "share": None},
]
edit_shares("a.jsonl:1: gap +1.00", "a x\\x1b c e f", edits)
"""


def test_edits_are_in_the_colour_of_their_share() -> None:
    """Green, red if the text is better without them, yellow if there is no share; struck out what they removed."""
    _, sent = on_terminal(program=SHARES, COLORTERM="truecolor")
    line = sent.replace("\r", "").splitlines()[1]
    assert "a \x1b[1;9;38;2;0;210;0mb\x1b[0m\x1b[1;38;2;0;210;0mx\\x1b\x1b[0m\x1b[2m(100%)" in line
    assert "\x1b[9;31md \x1b[0m\x1b[2m(-10%)" in line
    assert "\x1b[33m f\x1b[0m\x1b[2m(gap +0.02)" in line


def test_edits_without_a_terminal_are_in_brackets() -> None:
    done = subprocess.run([sys.executable, "-c", SHARES], capture_output=True, text=True, check=True)
    expected = "a.jsonl:1: gap +1.00\na [-b-]{+x\\x1b+}(100%) c [-d -](-10%)e{+ f+}(gap +0.02)\n\n"
    assert (done.stdout, done.stderr) == ("", expected)


@pytest.mark.parametrize(
    ("count", "things", "shown"),
    [
        (2, "pairs", "2 pairs"),
        (1, "pairs", "1 pair"),
        (0, "rows", "0 rows"),
        (1, "rows cut to fit 64 tokens", "1 row cut to fit 64 tokens"),
        (1, "pairs skipped: the responses are equal", "1 pair skipped: the responses are equal"),
        (1, "blank lines", "1 blank line"),
        (1, "byte order mark", "1 byte order mark"),
        (12_345, "drafts written", "12,345 drafts written"),
    ],
)
def test_one_thing_is_not_in_the_plural(count: int, things: str, shown: str) -> None:
    assert counted(count, things) == shown
