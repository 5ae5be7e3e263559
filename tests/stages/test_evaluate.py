"""pit evaluate from end to end, on the synthetic task."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli
from pitcli.data.rows import Comparison, Message
from pitcli.data.synthetic import preference_rows, quality
from pitcli.settings.base import Device
from pitcli.settings.training import RewardConfig
from pitcli.stages import train_reward
from tests.evaluation.constructed import pairs_file


def answered(rows: list[dict[str, Any]], perfect: bool) -> list[dict[str, Any]]:
    out = []
    for row in rows:
        better, worse = sorted((row["chosen"], row["rejected"]), key=lambda text: -quality(row["prompt"], text))
        out.append(
            {
                "prompt": row["prompt"],
                "original_response": worse,
                "response": better if perfect else worse,
                "kind": row["kind"],
            }
        )
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a system that gives the better response and of one that copies, and a small gap model."""
    folder = tmp_path_factory.mktemp("evaluate")
    for seed in (0, 1):
        rows = [{**pair, "kind": "ab"[n % 2]} for n, pair in enumerate(preference_rows(60, seed=10 + seed))]
        pairs_file(folder / f"better-{seed}.jsonl", answered(rows, True))
        pairs_file(folder / f"copy-{seed}.jsonl", answered(rows, False))
    pairs_file(folder / "pairs.jsonl", list(preference_rows(30, seed=5)))
    pairs_file(folder / "fresh.jsonl", list(preference_rows(30, seed=6)))
    train_reward.run(
        RewardConfig(
            data=str(folder / "pairs.jsonl"),
            model="tiny",
            max_steps=2,
            lora_rank=4,
            out=folder / "judge",
            device=Device.cpu,
        )
    )
    return folder


def evaluate(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    out = folder / "out"
    code = cli.main(["evaluate", f"--out={out}", "--overwrite", "--bootstrap-draws=300", *arguments])
    return code, json.loads((out / "evaluation.json").read_text()) if code == 0 else {}


def test_the_oracle_finds_the_better_system(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(folder)
    files = "better=better-0.jsonl,better=better-1.jsonl,copy=copy-0.jsonl,copy=copy-1.jsonl"
    code, found = evaluate(folder, f"--input={files}", "--judge=oracle", "--by=kind")
    assert code == 0
    lines = {(c["system"], c["baseline"], c["dataset"], c["seed"]): c for c in found["comparisons"]}
    assert len(lines) == len(found["comparisons"]) == 3 * 5
    better, copy = lines["better", "original", "all", None], lines["copy", "original", "all", None]
    assert (better["rows"], better["losses"], better["verdict"]) == (120, 0, "better")
    assert better["wins"] == sum(
        line["wins"] for key, line in lines.items() if key[:2] == ("better", "original") and key[3] is not None
    )
    assert better["grades"][0] > better["grades"][1]
    assert (copy["ties"], copy["copy_rate"], copy["verdict"]) == (120, 1, "no difference shown")
    assert lines["better", "copy", "all", None]["wins"] == better["wins"]
    controls = {control["name"]: control for control in found["controls"]}
    assert controls["padded"]["passed"]
    assert controls["constant"]["passed"]
    (claimed,) = found["claims"]
    assert claimed["reasons"] == [
        "no control with a gap model trained on shuffled labels (--control)",
        "best-of-n at equal tokens, temperature and gap model was not compared",
    ]
    out, err = capfd.readouterr()
    assert json.loads(out) == found["answers"][0]
    assert "Comparisons" in err
    assert found["answers"][0]["missing"] == claimed["reasons"]
    printed = [line.strip() for line in err.partition("1. Is better")[2].splitlines()]
    assert printed[0] == "better than the originals? yes (judge oracle, 120 rows)"
    assert re.fullmatch(r"delta \+\S+ \[\+\S+, \+\S+\], mean quality 0\.\d+ -> 0\.\d+", printed[1])
    assert printed[2] == "2. Is better better than the baselines?"
    assert printed[3].startswith("copy: yes, delta +")
    assert printed[4] == "3. What is missing before one may claim that it improves? 2 checks"
    assert printed[5:7] == claimed["reasons"]
    report = (folder / "out" / "report.html").read_text()
    assert "<svg" in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    verdicts = [json.loads(text) for text in (folder / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert {verdict["judge"] for verdict in verdicts} == {"oracle"}


def test_a_control_that_gains_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    code, found = evaluate(
        folder, "--input=copy-0.jsonl", "--control=cheat=better-0.jsonl,mild/copy-0=better-0.jsonl", "--judge=oracle"
    )
    assert code == 0
    assert [(control["name"], control["passed"]) for control in found["controls"]][:2] == [
        ("cheat", False),
        ("mild", False),
    ]
    assert sum(reason.startswith("control ") for reason in found["claims"][0]["reasons"]) == 2


def write_record(folder: Path, name: str, prompts: list[str]) -> None:
    data = {"path": "d", "digest": "other", "rows": 1, "prompts": prompts}
    (folder / f"{name}.manifest.json").write_text(json.dumps({"origin": {"gap_data": [data], "training": {}}}))


def test_the_judge_is_never_the_reward(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(folder)
    seen = json.loads((folder / "judge" / "manifest.json").read_text())["data"]["prompts"]
    assert len(seen) > 10
    write_record(folder, "better-0.jsonl", ["0" * 16, seen[3]])
    line = ["--input=better-0.jsonl", "--judge=gap:judge"]
    assert evaluate(folder, *line)[0] == 2
    assert "was trained on rows of the gap model that better-0 used in RL or in the stop rule" in capfd.readouterr().err
    code, found = evaluate(folder, *line, "--allow-reward-as-judge")
    assert code == 0
    assert found["judges"][0]["independence"].startswith("NOT INDEPENDENT")
    assert "NOT INDEPENDENT" in (folder / "out" / "report.html").read_text()
    write_record(folder, "better-0.jsonl", ["0" * 16])
    code, found = evaluate(folder, *line)
    assert code == 0
    assert found["judges"][0]["independence"] == (
        "not known to share training prompts with any of the gap models used here"
    )
    assert 0 <= found["judges"][0]["consistency"] <= 1
    write_record(folder, "better-1.jsonl", [seen[0]])  # the rows of another training seed
    assert evaluate(folder, "--input=b=better-0.jsonl,b=better-1.jsonl", "--judge=gap:judge")[0] == 2
    (folder / "better-1.jsonl.manifest.json").unlink()
    code, found = evaluate(folder, "--input=b=better-0.jsonl,b=better-1.jsonl", "--judge=gap:judge")
    assert found["judges"][0]["independence"].startswith("not known")
    (folder / "better-0.jsonl.manifest.json").unlink()


def test_win_rates_of_a_judge_that_does_not_beat_length_are_not_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(folder)
    code, found = evaluate(
        folder, "--input=better-0.jsonl", "--judge=gap:judge", "--validate-on=fresh.jsonl", "--max-rows=20"
    )
    assert code == 0
    assert not found["judges"][0]["validation"][0]["beats_length"]
    err = capfd.readouterr().err
    assert "its win rates are not shown" in err
    assert "Comparisons" not in err
    assert "1. Is better-0 better than the originals? unknown: no judge whose win rates may be shown" in err
    assert not found["claims"][0]["improves"]


def test_judges_can_be_validated_without_systems(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(folder)
    code, found = evaluate(folder, "--judge=oracle", "--validate-on=pairs.jsonl")
    assert code == 0
    (validation,) = found["judges"][0]["validation"]
    assert validation["rows"] == 30
    assert 0.5 < validation["agreement"] <= 1
    assert (found["comparisons"], found["claims"]) == ([], [])
    assert "Judges on human labels" in capfd.readouterr().err
    assert "Judges" in (folder / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge=oracle"], "give --input (rows to evaluate), --validate-on"),
        (
            ["--input=better-0.jsonl", "--judge=nobody"],
            "--judge: expected oracle, gap:RUN, hf:MODEL, openai:MODEL or cmd:COMMAND, got nobody",
        ),
        (["--input=better-0.jsonl", "--judge=gap:nowhere"], "nowhere: no such run"),
        (["--input=better-0.jsonl,copy-1.jsonl", "--judge=oracle"], "no rows in common"),
        (
            ["--input=a=better-0.jsonl", "--control=a=copy-0.jsonl", "--judge=oracle"],
            "the name a is used twice or reserved",
        ),
        (["--input=better-0.jsonl", "--control=c/x=copy-0.jsonl", "--judge=oracle"], "no system x in --input"),
        (["--input=nowhere.jsonl", "--judge=oracle"], "nowhere.jsonl: no such file"),
        (["--input=better-0.jsonl", "--judge=oracle,oracle"], "--judge: oracle is given twice"),
        (
            ["--input=better-0.jsonl,x/better-0.jsonl", "--judge=oracle"],
            "two files have the name better-0; give NAME=FILE",
        ),
        (["--judge=gap:judge", "--validate-on=pairs.jsonl"], "gap:judge was trained on prompts of pairs.jsonl"),
        (["--input=hh.jsonl", "--judge=oracle"], "the oracle can judge the two tasks of pit only"),
    ],
)
def test_invalid_inputs_are_errors_of_one_line(
    arguments: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(folder)
    pairs_file(folder / "hh.jsonl", [{"prompt": "Hi?", "response": "yes", "original_response": "no"}])
    assert evaluate(folder, *arguments)[0] in (2, 3)
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_an_evaluation_is_replaced_only_if_asked(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(folder)
    line = ["evaluate", "--input=better-0.jsonl", "--judge=oracle", "--bootstrap-draws=100", "--max-rows=5", "--out=a"]
    assert cli.main(line) == 0
    assert cli.main(line) == 2
    assert "--out: a has an evaluation; use --overwrite to replace it" in capfd.readouterr().err
    assert cli.main([*line, "--overwrite"]) == 0


def test_a_sequence_classifier_judges(
    tiny_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """A random reward model judges; padding changes no grade; a model without a head is an error."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

    from pitcli.evaluation.load_judge import sequence_classifier_judge
    from pitcli.settings.tools import EvaluateConfig

    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    causal = AutoModelForCausalLM.from_pretrained(tiny_folder)
    settings = {
        key: value for key, value in causal.config.to_dict().items() if key not in ("architectures", "model_type")
    }
    config = LlamaConfig(**{**settings, "num_labels": 1})
    model = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight, std=1.0)
    model.save_pretrained(folder / "rm")
    for file in tiny_folder.iterdir():
        if file.name.startswith(("tokenizer", "chat_template", "special")):
            (folder / "rm" / file.name).write_bytes(file.read_bytes())
    settings_of = EvaluateConfig(input=("x",), judge=("x",), device=Device.cpu, micro_batch_size=3)
    judge = sequence_classifier_judge("hf:rm", "rm", settings_of)
    responses = [((Message("user", "Write 3 foods."),), "pie " * n) for n in range(1, 6)]
    assert judge.grades is not None
    together, alone = judge.grades(responses), [judge.grades([response])[0] for response in responses]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == 5
    short = sequence_classifier_judge("hf:rm", "rm", settings_of.model_copy(update={"max_length": 200}))
    assert short.grades is not None
    *others, too_long = short.grades([*responses, (responses[0][0], "pie " * 400)])
    assert others == pytest.approx(together, abs=1e-5) and math.isnan(too_long)
    (verdict,) = judge.verdicts([Comparison(responses[0][0], responses[0][1], responses[1][1])])
    assert verdict.p_better == pytest.approx(1 / (1 + math.exp(together[1] - together[0])))
    assert evaluate(folder, "--input=better-0.jsonl", "--judge=hf:rm", "--max-rows=5")[0] == 0
    assert evaluate(folder, "--input=better-0.jsonl", f"--judge=hf:{tiny_folder}", "--max-rows=5")[0] == 3
    assert "not a reward model: score.weight is missing" in capfd.readouterr().err
