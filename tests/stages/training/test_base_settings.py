"""A base's chat template and end tokens over several commands: options, dates, and all tokens that end a response."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli
from pitcli.data.synthetic import preference_rows
from pitcli.engine.models.bases import resolve_base
from pitcli.engine.models.opening import open_base
from pitcli.engine.training.rollouts import rollout_decoding
from pitcli.settings.base import ModelSettings
from pitcli.settings.training import RlConfig
from tests.chat_templates import LLAMA3, QWEN3, base_with, plain_ids, set_clock
from tests.conftest import Share
from tests.faults.warm import Warm
from tests.stages.training.conftest import read_rows, write_rows

SMALL = "--data rows.jsonl --lora-rank 2 --batch-size 4 --max-steps 1 --learning-rate 1e-3"
OFF = "--template-option enable_thinking=false"


def pit(line: str, code: int = 0) -> None:
    assert cli.main(line.split()) == code


@pytest.fixture(scope="module")
def bases(share: Share) -> Path:
    def fill(folder: Path) -> None:
        for name, template in (("thinks", QWEN3), ("dated", LLAMA3)):
            base_with(template, resolve_base("tiny"), folder / name)

    return share("base_settings", fill)


@pytest.fixture(autouse=True)
def in_folder(bases: Path, in_project: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = list(preference_rows(12, seed=5))
    write_rows(Path("rows.jsonl"), rows)
    write_rows(Path("drafts.jsonl"), [{"prompt": row["prompt"], "response": row["rejected"]} for row in rows[:4]])


def test_a_run_on_a_base_with_todays_date_works_tomorrow(
    bases: Path, warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run that is interrupted today is resumed tomorrow, and later stages use it; they see the date of their day."""
    base = bases / "dated"
    sft = f"sft --data rows.jsonl --lora-rank 2 --batch-size 4 --epochs 3 --save-every 1 --model {base}"
    killed = warm.run(tmp_path, *sft.split(), fault={"kill_after_step": 2})
    assert killed.code == -signal.SIGKILL
    pit(f"train-reward {SMALL} --model {base}")
    set_clock(monkeypatch, "2046-05-04")
    pit(f"{sft} --resume")
    pit("improve --input drafts.jsonl --output better.jsonl --max-iters 1 --max-new-tokens 4")
    pit("verify runs/sft")
    set_clock(monkeypatch, "2046-05-05")
    pit("improve --input drafts.jsonl --output better.jsonl --max-iters 1 --max-new-tokens 4 --resume")
    pit("rl --force --max-steps 1 --batch-size 4 --rollout-max-new-tokens 4")
    capfd.readouterr()
    pit("rl --force --dry-run --out runs/other")
    assert "Today Date: 05 May 2046" in capfd.readouterr().err


def test_another_template_is_refused_any_day(
    bases: Path, tmp_path: Path, tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = base_with(LLAMA3, tiny_folder, tmp_path / "base")
    pit(f"sft {SMALL} --model {base}")
    (base / "chat_template.jinja").write_text(LLAMA3.replace("Today Date", "Date"))
    capfd.readouterr()
    pit("improve --input drafts.jsonl --stop none", code=3)
    assert capfd.readouterr().err == "error: runs/sft: trained with another chat template; train it again\n"


def test_template_options_are_saved_and_inherited(bases: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = bases / "thinks"
    pit(f"train-reward {SMALL} --model {base} {OFF}")
    pit(f"sft {SMALL}")  # inherits the base of runs/reward and its options
    for run in ("reward", "sft"):
        assert json.loads(Path("runs", run, "manifest.json").read_text())["base"]["template_options"] == {
            "enable_thinking": False
        }
    pit("improve --input drafts.jsonl --output better.jsonl --max-iters 1 --max-new-tokens 4")
    manifest = json.loads(Path("better.jsonl.manifest.json").read_text())
    assert manifest["base"]["template_options"] == {"enable_thinking": False}
    pit("verify runs/sft")
    capfd.readouterr()
    pit("improve --input drafts.jsonl --template-option enable_thinking=true", code=3)
    assert capfd.readouterr().err.count("trained with --template-option enable_thinking=false; use the same") == 2
    pit(f"sft {SMALL} --model {base} --out runs/thinks")
    capfd.readouterr()
    pit(f"improve --input drafts.jsonl --run runs/thinks --stop none {OFF}", code=3)
    assert "runs/thinks: trained with no --template-option; use the same here\n" in capfd.readouterr().err
    pit("export runs/sft --out adapter --adapter --base-name someone/thinks")
    assert 'add_generation_prompt=True, return_tensors="pt", return_dict=True, enable_thinking=False)' in (
        Path("adapter/README.md").read_text()
    )


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("enable_thinkin=false", "does not read enable_thinkin; did you mean enable_thinking?"),
        ("enable_thinking", "expected NAME=VALUE with a variable of the chat template, got enable_thinking"),
        ("=false", "expected NAME=VALUE with a variable of the chat template, got =false"),
        ("enable_thinking=true,enable_thinking=false", "enable_thinking is given twice; give it once"),
        ("messages=x", "expected NAME=VALUE with a variable of the chat template, got messages=x"),
    ],
)
def test_a_wrong_option_is_refused(given: str, problem: str, bases: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    pit(f"sft {SMALL} --model {bases / 'thinks'} --template-option {given}", code=2)
    ended = capfd.readouterr()
    assert ended.err.startswith("error: --template-option: ")
    assert problem in ended.err


def first_words(base: Path, rows: int = 6) -> list[list[int]]:
    """Greedy drafts of a base as token ids."""
    pit(
        f"sample --model {base} --data rows.jsonl --max-rows {rows} --temperature 0 --max-new-tokens 8 --output d.jsonl"
        " --overwrite"
    )
    chat = open_base(ModelSettings(model=str(base)), []).chat
    return [chat.encode_text(row["response"]) for row in read_rows(Path("d.jsonl"))]


@pytest.mark.parametrize("file", ["generation_config", "config"])
def test_each_of_several_end_tokens_ends_a_response(file: str, tiny_folder: Path, tmp_path: Path) -> None:
    before = first_words(tiny_folder)
    template = (tiny_folder / "chat_template.jinja").read_text()
    end = next(ids[1] for ids in before if len(set(ids)) > 2)
    expected = [ids[: ids.index(end)] if end in ids else ids for ids in before]
    assert expected != before
    base = base_with(template, tiny_folder, tmp_path / "base", **{file: {"eos_token_id": [1, end, 10**6]}})
    assert first_words(base) == expected
    chat = open_base(ModelSettings(model=str(base)), []).chat
    assert chat.stop_ids == (1, end)
    assert rollout_decoding(RlConfig(), chat).stop_ids == (1, end)  # RL's penalty is for responses without either
    assert chat.completion("cat")[-1] == 1  # responses are learned with the end token of the template


def test_a_plain_model_ends_at_each_of_them_too(tiny_folder: Path, tmp_path: Path) -> None:
    template = (tiny_folder / "chat_template.jinja").read_text()
    base = base_with(template, tiny_folder, tmp_path / "base", generation_config={"eos_token_id": [1, 20]})
    pit(f"sft {SMALL} --model {base}")
    pit("export runs/sft --out merged --dtype fp32")
    assert json.loads(Path("merged/generation_config.json").read_text())["eos_token_id"] == [1, 20]
    assert plain_ids(Path("merged"), [{"role": "user", "content": "cat"}]) == plain_ids(
        tiny_folder, [{"role": "user", "content": "cat"}]
    )


def test_thoughts_of_samples_become_a_field(bases: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The embedded model never ends the thought that this template begins."""
    base = tmp_path / "base"
    template = QWEN3.replace("{{- '<|assistant|>' }}", "{{- '<|assistant|><think>' }}")
    base_with(template, resolve_base("tiny"), base)
    pit(f"sample --model {base} --data rows.jsonl --max-rows 2 --max-new-tokens 4 --output d.jsonl")
    rows: list[dict[str, Any]] = read_rows(Path("d.jsonl"))
    assert [row["response"] for row in rows] == ["", ""]
    assert all(row["thoughts"] for row in rows)
