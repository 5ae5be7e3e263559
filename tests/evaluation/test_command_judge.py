"""The judge cmd:COMMAND: real programs that score rows, fail, hang or print something else."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pitcli.data.rows import Comparison, Message, Prompt
from pitcli.errors import RunError, SettingsError
from pitcli.evaluation.command_judge import command_grade, command_judge, score_differences
from pitcli.evaluation.load_judge import check_name
from pitcli.settings.tools import EvaluateConfig
from tests.conftest import cmd

PROMPT = (Message("user", "p"),)
CHAT = (Message("system", "s"), *PROMPT)


def test_scores_are_in_the_order_of_the_rows_and_any_difference_decides() -> None:
    judge = command_judge(cmd("import json, sys\nfor line in sys.stdin: print(json.loads(line)['response'])"), {})
    texts = [("1", "0.99999"), ("-3", "2e2"), ("7", "7.0")]
    verdicts = judge.verdicts([Comparison(PROMPT, *pair) for pair in texts])
    assert [(verdict.p_better or 0) > 0.5 for verdict in verdicts] == [True, False, False]
    assert verdicts[2].p_better == 0.5


def test_a_row_has_the_prompt_the_response_and_the_other_fields() -> None:
    fields: dict[Prompt, dict[str, object]] = {PROMPT: {"answer": "42", "prompt": "other", "response": "other"}}
    with_fields, without = ({"prompt": "p", "response": "é"}, {"prompt": [m._asdict() for m in CHAT], "response": ""})
    expected = [{**with_fields, "answer": "42"}, without]
    code = f"import json, sys\nassert [json.loads(line) for line in sys.stdin] == {expected!r}\nprint(1)\nprint(2)"
    assert command_grade(cmd(code), fields)([(PROMPT, "é"), (CHAT, "")]) == [1, 2]


def test_all_rows_go_to_one_process_and_each_response_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    count = f"rows = sys.stdin.readlines()\nopen({str(log)!r}, 'a').write(f'{{len(rows)}} ')"
    code = f"import sys\n{count}\nprint('1\\n' * len(rows))"
    judge = command_judge(cmd(code), {})
    comparisons = [Comparison(PROMPT, f"new {number // 2}", "old") for number in range(3000)]
    judge.verdicts(comparisons)
    assert judge.grades is not None
    judge.grades([(PROMPT, "old")])
    assert score_differences(command_grade(cmd(code), {}), comparisons[:4]) == [0, 0, 0, 0]
    assert log.read_text() == "1501 3 "


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("echo one >&2; echo two >&2; exit 3", "the program ended with exit code 3: two"),
        ("exit 4", "the program ended with exit code 4: nothing on stderr"),
        ("no-such-program", "the program ended with exit code 127: "),
        ("kill -9 $$", "the program ended with signal 9: nothing on stderr"),
        ("true", "expected 2 scores, one per row, got 0"),
        ("echo 1; echo 2; echo 3", "expected 2 scores, one per row, got 3"),
        ("echo 1; echo good", "line 2 of its output: expected a finite number, got 'good'"),
        ("echo nan; echo 1", "line 1 of its output: expected a finite number, got 'nan'"),
        ("echo 1; echo; echo 2", "line 2 of its output: expected a finite number, got ''"),
        ("printf '\\377\\n1'", "line 1 of its output: expected a finite number, got '\ufffd'"),
    ],
)
def test_a_program_that_fails_ends_in_one_line(command: str, problem: str) -> None:
    with pytest.raises(RunError) as caught:
        command_grade(f"cmd:{command}", {})([(PROMPT, "a"), (PROMPT, "b")])
    (line,) = caught.value.problems
    assert line.startswith(f"cmd:{command}: {problem}")


def test_a_program_may_ignore_its_input() -> None:
    assert command_grade("cmd:yes 1 | head -3000", {})([(PROMPT, "word " * 50)] * 3000) == [1] * 3000


def test_an_interruption_ends_the_program_and_what_it_started(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    program = f"cmd:(exec 3>{pipe}; sleep 30; echo late >&3) | cat"
    code = (
        "import signal; from pitcli.evaluation.command_judge import command_grade as grade\n"
        "from pitcli.data.rows import Message\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if a shell started the tests with &\n"
        f"grade({program!r}, {{}})([((Message('user', 'p'),), 'r')])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    with pipe.open() as stream:  # once the program has opened it
        process.send_signal(signal.SIGINT)
        assert stream.read() == ""  # at its end, when every process that could write is gone
    assert b"KeyboardInterrupt" in process.communicate()[1]


@pytest.mark.parametrize(
    ("value", "judges"),
    [
        ("oracle, gap:runs/judge", ("oracle", "gap:runs/judge")),
        ("cmd:sort -t, -k1,2", ("cmd:sort -t, -k1,2",)),
        ("oracle, cmd:python v.py a,cmd:b", ("oracle", "cmd:python v.py a,cmd:b")),
        (["cmd:a,b", "cmd:c"], ("cmd:a,b", "cmd:c")),
        ("hf:owner/cmd:x", ("hf:owner/cmd:x",)),
    ],
)
def test_a_command_takes_the_rest_of_the_judges(value: object, judges: tuple[str, ...]) -> None:
    config = EvaluateConfig(judge=value, input="a.jsonl")  # type: ignore[arg-type]
    assert config.judge == judges


@pytest.mark.parametrize("name", ["cmd:", "cmd: ", "cmd", "labels:a.jsonl", "oracle:x"])
def test_other_names_are_refused(name: str) -> None:
    expected = f"--judge: expected oracle, gap:RUN, hf:MODEL, openai:MODEL or cmd:COMMAND, got {name}"
    with pytest.raises(SettingsError) as caught:
        check_name(name)
    assert caught.value.problems == [expected]
