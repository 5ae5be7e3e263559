"""pit evaluate: constructed systems and judges whose comparison is known, and the command from end to end."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pitcli import cli
from pitcli.data.records import Comparison, Message
from pitcli.data.synthetic import preference_rows, quality
from pitcli.errors import InputError, RunError, SettingsError
from pitcli.evaluation import results
from pitcli.evaluation.claims import claim, corrected
from pitcli.evaluation.comparing import Draws, against_originals, comparison_result, edit_size
from pitcli.evaluation.iterations import iteration_comparisons, iterations_result
from pitcli.evaluation.judging import ask, validate
from pitcli.evaluation.systems import Row, Step, System, load_systems, pad
from pitcli.evaluation.verdicts import Judge, Verdict
from pitcli.settings.base import Device
from pitcli.settings.training import RewardConfig
from pitcli.stages import train_reward

HOW = Draws(500, 0)


def row(place: int, original: str, response: str, steps: Sequence[Step] = (), seed: int = 0) -> Row:
    return Row(seed, (Message("user", f"prompt {place}"),), original, response, tuple(steps), 10, "all")


def judge_of(p_better: Any, asked: list[Comparison] | None = None) -> Judge:
    def verdicts(comparisons: Sequence[Comparison]) -> list[Verdict]:
        if asked is not None:
            asked.extend(comparisons)
        return [Verdict(p_better(comparison)) for comparison in comparisons]

    return Judge("constructed", verdicts)


def compared(rows: list[Row], judge: Judge) -> results.Comparison:
    versus = against_originals("system", rows)
    found = comparison_result(versus, ask(judge, versus.comparisons()), "all", None, HOW)
    assert found is not None
    return found


def test_an_improver_that_only_pads_wins_before_a_judge_that_loves_length_and_loses_under_length_control() -> None:
    draw = random.Random(0)
    originals = [" ".join(["word"] * draw.randint(10, 40)) for _ in range(1500)]
    rows = [row(place, text, pad(text, draw.random())) for place, text in enumerate(originals)]

    def loves_length(comparison: Comparison) -> float:
        longer = (len(comparison.response) - len(comparison.reference_response)) / 5
        # padding by itself is worse; each word more makes it look better
        return float(draw.random() < 1 / (1 + math.exp(0.5 - 0.25 * longer)))

    found = compared(rows, judge_of(loves_length))
    assert found.delta_ci[0] > 30
    assert found.length_controlled_ci is not None
    assert found.length_controlled_ci[1] < 0
    assert found.mean_length > found.baseline_mean_length * 1.3


def test_wins_ties_losses_harm_copies_and_edits_are_counted() -> None:
    rows = [row(0, "a b", "a c"), row(1, "a b", "a b"), row(2, "a b", "x y"), row(3, "a b", "a d")]
    found = compared(rows, judge_of(lambda c: {"a c": 0.9, "a d": 0.5, "x y": 0.2}[c.response]))
    assert (found.wins, found.ties, found.losses) == (1, 2, 1)
    assert (found.delta, found.harm_rate, found.copy_rate) == (0, 0.25, 0.25)
    assert found.edit_size == pytest.approx((0.5 + 0 + 1 + 0.5) / 4)
    assert found.generated_tokens == 10
    assert found.verdict == "no difference shown"


def test_rows_without_a_verdict_are_left_out() -> None:
    rows = [row(0, "a", "b"), row(1, "a", "c")]
    found = compared(rows, judge_of(lambda c: None if c.response == "c" else 1.0))
    assert (found.rows, found.wins) == (1, 1)


def test_a_few_rows_show_nothing_however_they_fall() -> None:
    few = compared([row(place, "a", f"b{place}") for place in range(19)], judge_of(lambda c: 1.0))
    assert (few.delta_ci, few.p_value, few.verdict) == ((100, 100), 1.0, "no difference shown")
    enough = compared([row(place, "a", f"b{place}") for place in range(20)], judge_of(lambda c: 1.0))
    assert enough.verdict == "better"


def test_a_judge_that_says_nothing_of_the_labelled_pairs_ends_in_one_line(tmp_path: Path) -> None:
    file = pairs_file(tmp_path / "pairs.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(RunError, match="constructed: no verdict on any pair of"):
        validate(judge_of(lambda c: None), file, None, 100, 0)


def test_iterations_without_gaps_and_without_ranks_are_judged_against_the_one_before() -> None:
    plain = [Step("o", "i1", None, "i1", 3), Step("i1", "i2", None, "i2", 3)]
    rows = [row(place, "o", "i2", plain) for place in range(3)]
    judged = ask(
        judge_of(lambda c: None if c.prompt[0].content == "prompt 0" else 1.0), iteration_comparisons(rows, False)
    )
    found = iterations_result(System("s", (), {}, ()), rows, judged, False, HOW)
    assert [step.delta for step in found.by_iteration] == [0, 100, 100]  # the row without verdicts is left out
    assert found.by_iteration[2].strength is None


def test_text_without_spaces_has_a_length() -> None:
    draw = random.Random(3)
    originals = ["字" * draw.randint(10, 40) for _ in range(300)]
    rows = [row(place, text, pad(text, draw.random())) for place, text in enumerate(originals)]
    found = compared(rows, judge_of(lambda c: 0.5 + 0.5 * np.sign(len(c.response) - len(c.reference_response))))
    assert found.delta > 90
    assert found.length_controlled_delta is not None
    assert found.length_controlled_delta < found.delta
    assert found.mean_length > found.baseline_mean_length


def test_copies_are_not_asked_and_the_other_way_round_is_the_same_question() -> None:
    asked: list[Comparison] = []
    prompt = (Message("user", "p"),)
    judged = ask(
        judge_of(lambda c: 0.8, asked),
        [
            Comparison(prompt, "a", "b"),
            Comparison(prompt, "b", "a"),
            Comparison(prompt, "a", "a"),
            Comparison(prompt, "a", "b"),
        ],
    )
    assert asked == [Comparison(prompt, "a", "b")]
    assert judged.p_better(Comparison(prompt, "b", "a")) == pytest.approx(0.2)
    assert judged.p_better(Comparison(prompt, "a", "a")) == 0.5


def test_edit_size_is_the_share_of_words_that_changed() -> None:
    assert edit_size(Comparison((), "a b c d", "a b c x")) == pytest.approx(0.25)


def steps(original: str, *written: str) -> list[Step]:
    texts = [original, *written]
    return [Step(texts[k], texts[k + 1], 0.7, texts[k + 1], 3) for k in range(len(written))]


def test_iterations_are_ranked_as_the_judge_ranks_them() -> None:
    """The second iteration is best, the third is as bad as the original."""
    worth = {"o": 0.0, "i1": 1.0, "i2": 2.0, "i3": 0.0}
    draw = random.Random(1)

    def noisy(comparison: Comparison) -> float:
        difference = worth[comparison.response] - worth[comparison.reference_response]
        return float(draw.random() < 1 / (1 + math.exp(-difference)))

    rows = [row(place, "o", "i3", steps("o", "i1", "i2", "i3")) for place in range(600)]
    system = System("system", (), {}, ())
    judged = ask(judge_of(noisy), iteration_comparisons(rows, True))
    found = iterations_result(system, rows, judged, True, HOW)
    strengths = [step.strength for step in found.by_iteration]
    assert strengths == pytest.approx([0, 1, 2, 0], abs=0.25)
    best = found.by_iteration[2]
    assert best.strength_ci is not None
    assert best.strength_ci[0] > 1.5
    elos = [step.elo for step in found.by_iteration]
    assert max(range(4), key=lambda k: elos[k] or 0) == 2
    assert found.by_iteration[3].worse_than_before == pytest.approx(1 / (1 + math.exp(-2)), abs=0.05)
    assert [step.generated_tokens for step in found.by_iteration] == [0, 3, 6, 9]


def test_rows_that_stopped_early_stand_with_what_they_had() -> None:
    early = row(0, "o", "i1", steps("o", "i1"))
    assert [early.standing(k) for k in range(4)] == ["o", "i1", "i1", "i1"]
    refused = row(1, "o", "o", [Step("o", "worse", 0.3, "o", 3)])
    assert refused.standing(1) == "o"


def test_calibration_finds_a_gap_model_that_is_too_sure() -> None:
    draw = random.Random(2)
    rows = []
    for place in range(2000):
        said = draw.random()
        rows.append(row(place, "o", f"i{place}", [Step("o", f"i{place}", said, f"i{place}", 3)]))
    said_of = {one.response: one.steps[0].p_better or 0 for one in rows}
    half_as_sure = judge_of(lambda c: float(draw.random() < 0.5 + (said_of[c.response] - 0.5) / 2))
    judged = ask(half_as_sure, iteration_comparisons(rows, False))
    bins = iterations_result(System("s", (), {}, ()), rows, judged, False, HOW).calibration
    assert len(bins) == 10
    assert bins[0].p_better == pytest.approx(0.05, abs=0.01)
    assert bins[0].judged_better == pytest.approx(0.275, abs=0.08)
    assert bins[-1].judged_better == pytest.approx(0.725, abs=0.08)


def pairs_file(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def test_a_judge_that_only_counts_words_does_not_beat_length(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{n}", "chosen": "a " * (2 + n % 3), "rejected": "b " * 3, "subset": "xy"[n % 2]}
        for n in range(300)
    ]
    rows = [one for one in rows if one["chosen"].strip() != one["rejected"].strip()]
    file = pairs_file(tmp_path / "pairs.jsonl", rows)
    longer = judge_of(lambda c: 0.5 + 0.5 * np.sign(len(c.response) - len(c.reference_response)))
    found = validate(longer, file, "subset", 500, 0)
    assert [one.dataset for one in found] == ["all", "x", "y"]
    assert found[0].agreement == found[0].longest
    assert not found[0].beats_length
    knows = validate(judge_of(lambda c: float(c.response.startswith("a"))), file, None, 500, 0)
    assert knows[0].agreement == 1
    assert knows[0].beats_length


def line(p_value: float, **fields: Any) -> results.Comparison:
    found = compared([row(0, "a", "b"), row(1, "a", "c")], judge_of(lambda c: 1.0))
    return found.model_copy(update={"p_value": p_value, "p_holm": p_value, **fields})


def test_holm_takes_data_sets_and_judges_of_one_comparison_together() -> None:
    lines = [line(0.02), line(0.03, judge="other"), line(0.02, baseline="another"), line(0.01, seed=1)]
    found = corrected(lines)
    assert [one.p_holm for one in found] == pytest.approx([0.04, 0.04, 0.02, 0.01])
    worse = corrected([line(0.03), line(0.04, judge="other")])
    assert [one.verdict for one in worse] == ["no difference shown"] * 2


def judge_result(name: str = "oracle", **fields: Any) -> results.JudgeResult:
    usual: dict[str, Any] = {
        "validation": [],
        "consistency": None,
        "failed": 0,
        "independence": "",
        "independent": True,
    }
    return results.JudgeResult(name=name, identity={}, **{**usual, **fields})


def good(**fields: Any) -> results.Comparison:
    return line(
        0.001,
        **{
            "judge": "oracle",
            "length_controlled_ci": (5.0, 20.0),
            "delta_ci": (5.0, 20.0),
            "harm_rate": 0.01,
            "verdict": "better",
            **fields,
        },
    )


SHUFFLED = results.Control(name="shuffled", judge="oracle", wanted="no gain", seen="", passed=True)


def reasons_of(*comparisons: results.Comparison, **fields: Any) -> list[str]:
    rival = System("rival", (), {}, ({"settings": {"method": "best-of-n"}},))
    system = System("system", (), {}, ())
    over = good(baseline="rival", baseline_generated_tokens=10.0)
    settings = {"judges": [judge_result()], "comparisons": [*comparisons, over], "controls": [SHUFFLED], **fields}
    found = claim(system, [system, rival], harm_cap=0.05, **settings)
    assert found.improves == (not found.reasons)
    return found.reasons


def test_a_system_that_does_all_of_it_improves() -> None:
    assert reasons_of(good()) == []


@pytest.mark.parametrize(
    ("comparisons", "fields", "reason"),
    [
        ([good(length_controlled_ci=(-1.0, 20.0))], {}, "length-controlled delta"),
        ([good(length_controlled_delta=None, length_controlled_ci=None)], {}, "not identified"),
        (
            [good(), good(seed=0), good(seed=1, length_controlled_ci=(-1.0, 9.0))],
            {},
            "oracle, seed 1: length-controlled",
        ),
        ([good(harm_rate=0.06)], {}, "harm rate 6.0%, over 5%"),
        ([good(), good(baseline="rival", delta_ci=(-2.0, 9.0), baseline_generated_tokens=10.0)], {}, "over rival"),
        ([good()], {"judges": [judge_result(), judge_result("gap:j")]}, "gap:j: not held against human labels"),
        (
            [good()],
            {"controls": [SHUFFLED, SHUFFLED.model_copy(update={"name": "padded", "passed": False})]},
            "control padded failed",
        ),
        ([good()], {"controls": []}, "no control of a gap model on shuffled labels"),
        ([good()], {"judges": [judge_result(independent=False, independence="not known: x")]}, "not known: x"),
        ([good(verdict="no difference shown")], {}, "oracle: no difference shown in 2 rows"),
    ],
)
def test_each_thing_that_does_not_hold_is_a_reason(
    comparisons: list[results.Comparison], fields: dict[str, Any], reason: str
) -> None:
    (found,) = reasons_of(*comparisons, **fields)
    assert reason in found


@pytest.mark.parametrize(
    ("tokens", "named", "counts"),
    [(5.0, "", False), (5.0, "s.jsonl", False), (10.0, "", True), (30.0, "", False), (30.0, "a/s.jsonl", True)],
)
def test_a_best_of_n_counts_where_it_spent_as_much(tokens: float, named: str, counts: bool) -> None:
    """The system spent 10 a row; one whose last draws were long spent more, and its record says why."""
    rival = System("rival", (), {}, ({"settings": {"method": "best-of-n", "equal_tokens": named}},))
    over = good(baseline="rival", baseline_generated_tokens=tokens)
    system = System("system", ("b/s.jsonl",), {}, ())
    found = claim(system, [rival], [judge_result()], [good(), over], [SHUFFLED], 0.05)
    assert found.reasons == ([] if counts else ["best-of-n at equal tokens was not compared"])


def test_rows_are_checked(tmp_path: Path) -> None:
    file = pairs_file(tmp_path / "rows.jsonl", [{"prompt": "p", "response": "r"}])
    with pytest.raises(InputError, match=r"rows.jsonl:1:original_response: missing"):
        load_systems([file], "--input", None, None)
    file = pairs_file(
        tmp_path / "rows.jsonl", [{"prompt": "p", "response": "r", "original_response": "o", "iterations": [1]}]
    )
    with pytest.raises(InputError, match=r"rows.jsonl:1:iterations: not as pit improve writes them"):
        load_systems([file], "--input", None, None)
    with pytest.raises(SettingsError, match="FILE or NAME=FILE is wanted"):
        load_systems(["=x"], "--input", None, None)


# the command from end to end, on the synthetic task


def answered(rows: list[dict[str, Any]], perfect: bool) -> list[dict[str, Any]]:
    out = []
    for one in rows:
        better, worse = sorted((one["chosen"], one["rejected"]), key=lambda text: -quality(one["prompt"], text))
        out.append(
            {
                "prompt": one["prompt"],
                "original_response": worse,
                "response": better if perfect else worse,
                "kind": one["kind"],
            }
        )
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a system that takes the better response, a system that copies, and a small gap model."""
    folder = tmp_path_factory.mktemp("evaluate")
    for seed in (0, 1):
        rows = [{**one, "kind": "ab"[n % 2]} for n, one in enumerate(preference_rows(60, seed=10 + seed))]
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
    code = cli.main(["evaluate", f"--out={out}", "--draws=300", *arguments])
    return code, json.loads((out / "evaluation.json").read_text()) if code == 0 else {}


def test_the_oracle_sees_what_is_better(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(folder)
    files = "better=better-0.jsonl,better=better-1.jsonl,copy=copy-0.jsonl,copy=copy-1.jsonl"
    code, found = evaluate(folder, f"--input={files}", "--judge=oracle", "--by=kind")
    assert code == 0
    lines = {(one["system"], one["baseline"], one["dataset"], one["seed"]): one for one in found["comparisons"]}
    assert len(lines) == len(found["comparisons"]) == 3 * 5
    better, copy = lines["better", "original", "all", None], lines["copy", "original", "all", None]
    assert (better["rows"], better["losses"], better["verdict"]) == (120, 0, "better")
    assert better["wins"] == sum(
        one["wins"] for key, one in lines.items() if key[:2] == ("better", "original") and key[3] is not None
    )
    assert better["grades"][0] > better["grades"][1]
    assert (copy["ties"], copy["copy_rate"], copy["verdict"]) == (120, 1, "no difference shown")
    assert lines["better", "copy", "all", None]["wins"] == better["wins"]
    controls = {one["name"]: one for one in found["controls"]}
    assert controls["padded"]["passed"]
    assert controls["constant"]["passed"]
    (claimed,) = found["claims"]
    assert claimed["reasons"] == [
        "no control of a gap model on shuffled labels (--control)",
        "best-of-n at equal tokens was not compared",
    ]
    out, err = capfd.readouterr()
    assert out == ""
    assert "Comparisons" in err
    report = (folder / "out" / "report.html").read_text()
    assert "<svg" in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    verdicts = [json.loads(text) for text in (folder / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert {one["judge"] for one in verdicts} == {"oracle"}


def test_a_control_that_gains_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    code, found = evaluate(
        folder, "--input=copy-0.jsonl", "--control=cheat=better-0.jsonl,mild/copy-0=better-0.jsonl", "--judge=oracle"
    )
    assert code == 0
    assert [(one["name"], one["passed"]) for one in found["controls"]][:2] == [("cheat", False), ("mild", False)]
    assert sum(reason.startswith("control ") for reason in found["claims"][0]["reasons"]) == 2


def record_beside(folder: Path, name: str, prompts: list[str]) -> None:
    data = {"path": "d", "digest": "other", "rows": 1, "prompts": prompts}
    (folder / f"{name}.manifest.json").write_text(json.dumps({"origin": {"gap_data": [data], "training": {}}}))


def test_the_judge_is_never_the_reward(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(folder)
    seen = json.loads((folder / "judge" / "manifest.json").read_text())["data"]["prompts"]
    assert len(seen) > 10
    record_beside(folder, "better-0.jsonl", ["0" * 16, seen[3]])
    line = ["--input=better-0.jsonl", "--judge=gap:judge"]
    assert evaluate(folder, *line)[0] == 2
    assert "was trained on rows of the gap model that better-0 used in RL or to stop" in capfd.readouterr().err
    code, found = evaluate(folder, *line, "--allow-reward-as-judge")
    assert code == 0
    assert found["judges"][0]["independence"].startswith("NOT INDEPENDENT")
    assert "NOT INDEPENDENT" in (folder / "out" / "report.html").read_text()
    record_beside(folder, "better-0.jsonl", ["0" * 16])
    code, found = evaluate(folder, *line)
    assert code == 0
    assert found["judges"][0]["independence"] == (
        "no prompt that a gap model here was trained on is known to be among its own"
    )
    assert 0 <= found["judges"][0]["consistency"] <= 1
    record_beside(folder, "better-1.jsonl", [seen[0]])  # the rows of another training seed
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
    assert "better-0" not in err.partition("Comparisons")[2].partition("Controls")[0]
    assert not found["claims"][0]["improves"]


def test_judges_can_be_held_against_labels_alone(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
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
        (["--input=better-0.jsonl", "--judge=nobody"], "--judge: nobody: oracle, gap:RUN, hf:MODEL or openai:MODEL"),
        (["--input=better-0.jsonl", "--judge=gap:nowhere"], "nowhere: no finished run there"),
        (["--input=better-0.jsonl,copy-1.jsonl", "--judge=oracle"], "no row in common"),
        (["--input=a=better-0.jsonl", "--control=a=copy-0.jsonl", "--judge=oracle"], "the name a is taken"),
        (["--input=better-0.jsonl", "--control=c/x=copy-0.jsonl", "--judge=oracle"], "no system x in --input"),
        (["--input=nowhere.jsonl", "--judge=oracle"], "nowhere.jsonl: no such file"),
        (["--input=better-0.jsonl", "--judge=oracle,oracle"], "--judge: one is named twice"),
        (
            ["--input=better-0.jsonl,x/better-0.jsonl", "--judge=oracle"],
            "two files are called better-0; give NAME=FILE",
        ),
        (["--judge=gap:judge", "--validate-on=pairs.jsonl"], "gap:judge was trained on prompts of pairs.jsonl"),
        (["--input=hh.jsonl", "--judge=oracle"], "it can judge the synthetic task only"),
    ],
)
def test_what_cannot_be_evaluated_ends_in_one_line(
    arguments: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(folder)
    pairs_file(folder / "hh.jsonl", [{"prompt": "Hi?", "response": "yes", "original_response": "no"}])
    assert evaluate(folder, *arguments)[0] in (2, 3)
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_a_sequence_classifier_judges(
    tiny_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """A random reward model: it judges, padding changes no grade, and a model without its head is refused."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

    from pitcli.evaluation.judges import sequence_classifier_judge
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
    asked = [((Message("user", "Write 3 foods."),), "pie " * n) for n in range(1, 6)]
    assert judge.grades is not None
    together, alone = judge.grades(asked), [judge.grades([one])[0] for one in asked]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == 5
    (verdict,) = judge.verdicts([Comparison(asked[0][0], asked[0][1], asked[1][1])])
    assert verdict.p_better == pytest.approx(1 / (1 + math.exp(together[1] - together[0])))
    assert evaluate(folder, "--input=better-0.jsonl", "--judge=hf:rm", "--max-rows=5")[0] == 0
    assert evaluate(folder, "--input=better-0.jsonl", f"--judge=hf:{tiny_folder}", "--max-rows=5")[0] == 3
    assert "is not there" in capfd.readouterr().err
