"""The report of constructed evaluations: what it shows, what it must not show, and that rows are never markup."""

import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from pitcli.evaluation.results import (
    Answers,
    BaselineAnswer,
    CalibrationBin,
    Claim,
    Control,
    Decile,
    EvaluatedSystem,
    Evaluation,
    Iteration,
    JudgeResult,
    ShownRow,
    SystemComparison,
    SystemIterations,
    Validation,
)
from pitcli.pages.evaluation_report import SAMPLE_CHARACTERS, differences, render

SECTIONS = [
    "checks",
    "comparisons",
    "forest",
    "iterations",
    "temperature",
    "length",
    "calibration",
    "over-optimisation",
    "deciles",
    "samples",
    "made",
]
VOID = {"meta", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """The sections, tags and text of a page; every tag must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sections: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "section":
            self.sections.append(dict(attrs)["id"] or "")
        self.text += " " if tag in {"td", "th", "small"} else ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def words(page: Page) -> str:
    return " ".join(page.text.split())


def deciles(*harm: float) -> list[Decile]:
    return [Decile(harm_rate=share, copy_rate=0.1, edit_size=0.5) for share in harm]


def comparison(
    system: str = "pit", baseline: str = "original", judge: str = "oracle", **other: Any
) -> SystemComparison:
    values: dict[str, Any] = {
        "dataset": "all",
        "seed": None,
        "rows": 400,
        "wins": 231,
        "ties": 58,
        "losses": 111,
        "delta": 30.0,
        "delta_ci": (other.get("delta", 30.0) - 8.5, other.get("delta", 30.0) + 8.25),
        "p_value": 0.0001,
        "p_holm": 0.0004,
        "length_controlled_delta": -12.345,
        "length_controlled_ci": (-15.5, -0.04),
        "delta_similar_length": 17.0,
        "rows_similar_length": 140,
        "delta_shorter": None,
        "rows_shorter": 0,
        "mean_length": 121.44,
        "baseline_mean_length": 110.4,
        "harm_rate": 0.0425,
        "harm_rate_ci": (0.021, 0.066),
        "copy_rate": 0.08,
        "edit_size": 0.37,
        "generated_tokens": 1412.0,
        "baseline_generated_tokens": None,
        "grades": (0.742, 0.611),
        "grade_difference_ci": (0.1, 0.16),
        "deciles": [],
        "rows_needed": None,
        "verdict": "better",
    }
    return SystemComparison(system=system, baseline=baseline, judge=judge, **{**values, **other})


def validation(beats_length: bool, dataset: str = "all") -> Validation:
    return Validation(
        file="labels.jsonl",
        dataset=dataset,
        rows=1200,
        agreement=0.701 if beats_length else 0.554,
        agreement_ci=(0.67, 0.73),
        longest=0.551,
        shortest=0.449,
        over_longest_ci=(0.112, 0.188) if beats_length else (-0.02, 0.026),
        over_shortest_ci=(0.2, 0.3),
        beats_length=beats_length,
    )


def judge(name: str = "oracle", *validations: Validation) -> JudgeResult:
    return JudgeResult(
        name=name,
        identity={"kind": "gap", "digest": "3fa9"},
        independence="shares no rows with the reward",
        independent=True,
        validation=list(validations),
        consistency=0.91,
        failed=2,
    )


def iterations(system: str = "pit", judge: str = "oracle", calibrated: bool = True) -> SystemIterations:
    steps = [
        Iteration(
            iteration=number,
            reached=1 - 0.1 * number,
            delta=30.0 * (1 - 0.5**number),
            delta_ci=(30 * (1 - 0.5**number) - 8, 30 * (1 - 0.5**number) + 8),
            grade=0.611 + 0.03 * number,
            harm_rate=0.02 * number,
            worse_than_before=0.02 * number,
            copy_rate=0.1,
            edit_size=0.3,
            generated_tokens=400.0 * number,
            strength=0.4 * number,
            strength_ci=(0.4 * number - 0.2, 0.4 * number + 0.2),
            elo=1500.0 + 40 * number,
        )
        for number in range(1, 6)
    ]
    bins = [
        CalibrationBin(
            p_better=p, judged_better=0.45 + 0.4 * p, judged_better_ci=(0.4 + 0.4 * p, 0.5 + 0.4 * p), rows=80
        )
        for p in (0.55, 0.65, 0.75, 0.85, 0.95)
    ]
    return SystemIterations(system=system, judge=judge, by_iteration=steps, calibration=bins if calibrated else [])


def system(name: str, temperature: object = None, method: str = "pit", **training: float) -> EvaluatedSystem:
    settings = {"method": method, "temperature": temperature}
    return EvaluatedSystem(
        name=name, files=[f"{name}.jsonl"], rows=400, record={"settings": settings}, training=training
    )


def answer(**fields: Any) -> BaselineAnswer:
    usual = {"baseline": "original", "kind": "", "judge": "oracle", "answer": "yes", "rows": 400, "remark": ""}
    figures = {"delta": 30.0, "delta_ci": (21.5, 38.25), "grades": (0.742, 0.611)}
    return BaselineAnswer(**{**usual, **figures, **fields})


def answers(**fields: Any) -> Answers:
    usual: dict[str, Any] = {"system": "pit", "originals": [], "baselines": [], "unjudged": [], "missing": []}
    return Answers(**{**usual, **fields})


def evaluation(**parts: Any) -> Evaluation:
    lists = ("judges", "systems", "comparisons", "iterations", "controls", "claims", "samples")
    empty: dict[str, Any] = {name: [] for name in lists}
    return Evaluation(pit_version="0.3.0", **{**empty, "settings": {}, **parts})


def full() -> Evaluation:
    temperatures = [(f"pit-t{number}", number / 10) for number in (2, 4, 6, 8, 10)]
    kls = [("beta-0.2", 1.5, 0.6), ("beta-0.1", 4.0, 1.1), ("beta-0.05", 9.0, 1.9), ("beta-0", 31.0, 3.2)]
    compared = [comparison(deciles=deciles(0.01, 0.02, 0, 0.03, 0.02, 0.05, 0.04, 0.08, 0.09, 0.12))]
    compared.append(comparison(baseline="best-of-4", delta=8.0, rows_needed=1840, verdict="no"))
    compared.append(comparison(system="pads", delta=14.0, mean_length=190.0))
    compared += [comparison(system=name, delta=40 - 30 * temperature) for name, temperature in temperatures]
    compared += [
        comparison(
            system=name,
            delta=50 - kl,
            mean_length=110 + kl,
            length_controlled_delta=20 - kl,
            length_controlled_ci=(14 - kl, 26 - kl),
        )
        for name, kl, _ in kls
    ]
    compared += [comparison(seed=seed, delta=25.0 + seed) for seed in range(3)]
    systems = [system("pit"), system("pads", method="pads"), *(system(name, value) for name, value in temperatures)]
    systems += [system(name, kl=kl, gap=gap, reward=gap) for name, kl, gap in kls]
    reasons = ["judge oracle: harm rate 12.0%, above 5%", "the control shuffled failed"]
    baselines = [
        answer(baseline="best-of-4", kind="best-of-n at equal tokens", answer="no difference shown", remark="p = 0.06"),
        answer(baseline="pads", answer="worse", delta=-3.0, delta_ci=(-5.0, -1.0)),
    ]
    return evaluation(
        answers=[answers(originals=[answer()], baselines=baselines, missing=reasons)],
        judges=[judge("oracle"), judge("reward:hh", validation(True), validation(True, "mtbench_human"))],
        systems=systems,
        comparisons=compared,
        iterations=[iterations(), iterations("pads", calibrated=False)],
        controls=[
            Control(name="pads", judge="oracle", expected="no gain", seen="−3.1 [−9.0, +2.5]", passed=True),
            Control(name="shuffled", judge="oracle", expected="no gain", seen="+6.1 [+2.0, +10.5]", passed=False),
        ],
        claims=[Claim(system="pit", improves=False, reasons=reasons)],
        samples=[
            ShownRow(
                system="pit",
                prompt="Write a sentence\nabout the sea.",
                original_response="The sea is big and  it is blue.",
                response="The sea is wide and  it is deep blue.\n\nIt never rests.",
                p_better=0.87,
                judged=1.0,
            )
        ],
    )


@pytest.fixture(scope="module")
def full_html() -> str:
    return render(full())


def test_a_full_evaluation_has_every_section_and_can_be_read(full_html: str) -> None:
    page = Page(full_html)
    assert full_html.startswith("<!DOCTYPE html>")
    assert page.sections == SECTIONS
    assert page.tags.count("svg") == 1 + 2 + 1 + 2 + 1 + 3 + 1
    text = words(page)
    assert (
        "Is pit better than the originals? yes Δ +30.0 [+21.5, +38.2], mean quality 0.611 → 0.742 "
        "judge oracle, 400 rows Is pit better than the baselines? "
        "best-of-4 (best-of-n at equal tokens): no difference shown, Δ +30.0 [+21.5, +38.2], p = 0.06 "
        "pads: worse, Δ −3.0 [−5.0, −1.0] What is missing before one may claim that it improves? 2 checks "
        "judge oracle: harm rate 12.0%, above 5% the control shuffled failed Δ is win%"
    ) in text
    assert "can be fooled. 1 of 2 passed." in text
    assert "231 / 58 / 111" in text
    assert "+30.0 [+21.5, +38.2]" in text
    assert "−12.3 [−15.5, 0.0]" in text
    assert "4.2% [2.1%, 6.6%]" in text
    assert "about 1,840 rows would show this Δ" in text
    assert "oracle shares no rows with the reward 91.0% 2 not needed: the oracle is the true quality" in text
    assert "70.1% [67.0%, 73.0%] 55.1% [+11.2, +18.8]" in text
    assert "pit, 2 against original" in text


def test_the_page_is_self_contained_and_runs_nothing(full_html: str) -> None:
    page = Page(full_html)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    links = [value for name, value in page.attributes if name in {"href", "xlink:href", "src"}]
    assert links and all(value and value.startswith("#") for value in links)
    assert "http://" not in full_html and "https://" not in full_html and "@import" not in full_html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", full_html))


def test_the_page_is_the_same_each_time(full_html: str) -> None:
    assert render(full()) == full_html


def test_links_have_targets_and_ids_are_unique(full_html: str) -> None:
    attributes = Page(full_html).attributes
    ids = [value for name, value in attributes if name == "id"]
    links = {value[1:] for name, value in attributes if name == "href" and value}
    assert links <= set(ids)
    clips = [value for value in ids if value and value.startswith("p")]
    assert clips and len(clips) == len(set(clips))


def test_sections_without_data_are_not_shown() -> None:
    page = Page(render(evaluation()))
    assert page.sections == ["checks", "made"]
    assert "svg" not in page.tags
    assert "No negative controls were run." in words(page)
    some = Page(render(evaluation(judges=[judge()], comparisons=[comparison()], systems=[system("pit", 0.7)])))
    assert some.sections == ["checks", "comparisons", "forest", "length", "made"]


def test_a_value_that_could_not_be_estimated_is_a_dash() -> None:
    compared = comparison(length_controlled_delta=None, length_controlled_ci=None, rows_needed=300)
    unranked = {"strength": None, "strength_ci": None, "elo": None, "grade": None}
    iterated = iterations()
    steps = [step.model_copy(update=unranked) for step in iterated.by_iteration]
    page = Page(
        render(
            evaluation(comparisons=[compared], iterations=[iterated.model_copy(update={"by_iteration": steps})]),
        )
    )
    text = words(page)
    assert "+30.0 [+21.5, +38.2] – 121.4 vs 110.4" in text
    assert "+29.1 [+21.1, +37.1] – 10.0% 10.0% 10.0% 30.0% 2,000 – –" in text
    assert page.tags.count("svg") == 1 + 1 + 1 + 1
    assert "would show" not in text  # there are more rows than that


def test_the_answers_without_baselines_without_judges_and_without_missing_checks() -> None:
    good = words(Page(render(evaluation(answers=[answers(originals=[answer()])]))))
    assert "better than the baselines? no baseline was given What is missing" in good
    assert "improves? nothing, every check passed Δ" in good
    unknown = words(Page(render(evaluation(answers=[answers(unjudged=["fresh"], missing=["a check"])]))))
    assert unknown.count("? unknown: no judge whose win rates may be shown gave a verdict") == 2
    assert "improves? 1 check a check Δ" in unknown
    several = answers(originals=[answer(), answer(judge="hf:rm", answer="worse")], unjudged=["fresh"])
    text = words(Page(render(evaluation(answers=[several]))))
    assert "originals? the judges disagree" in text
    assert "mean grade 0.611 → 0.742 worse, judge hf:rm, 400 rows" in text
    assert "better than the baselines? fresh: no verdict" in text


@pytest.mark.parametrize("others", [[], [True]])
def test_a_judge_that_does_not_beat_length_shows_no_win_rates(others: list[bool]) -> None:
    biased = judge("ruler", *(validation(beats) for beats in others), validation(False))
    compared = comparison(judge="ruler", wins=317, delta=58.5, delta_ci=(51.5, 64.5), deciles=deciles(*[0.1] * 10))
    seen = Control(name="pads", judge="ruler", expected="no gain", seen="+77.7", passed=False)
    sample = ShownRow(system="pit", prompt="p", original_response="a", response="b", p_better=0.6, judged=0.93)
    withheld = evaluation(
        judges=[biased],
        systems=[system(f"beta-{kl}", kl=kl, gap=1.0) for kl in (1, 2, 3)],
        comparisons=[compared, compared.model_copy(update={"seed": 0})],
        iterations=[iterations(judge="ruler")],
        controls=[seen],
        samples=[sample],
    )
    page = Page(render(withheld))
    assert page.sections == ["checks", "over-optimisation", "samples", "made"]
    assert page.tags.count("svg") == 1  # the gap in training, which does not depend on a judge
    text = words(page)
    assert (
        "The win rates of ruler are not shown. On all (1,200 pairs), the judge agrees with the labels in 55.4%" in text
    )
    assert not {"317", "58.5", "77.7", "93.0%"} & set(re.findall(r"[\d.]+%?", text))
    assert "pads ruler no gain not shown failed" in text


def test_only_the_failing_judge_is_excluded() -> None:
    both = evaluation(
        judges=[judge("ruler", validation(False)), judge("person", validation(True))],
        comparisons=[comparison(judge="ruler", wins=317), comparison(judge="person", wins=229)],
    )
    page = Page(render(both))
    assert "Judge person" in words(page) and "Judge ruler Win" not in words(page)
    assert "229 / 58 / 111" in words(page) and "317" not in page.text
    assert page.tags.count("svg") == 2


def test_a_curve_needs_three_temperatures_of_one_method() -> None:
    def sections(*systems: EvaluatedSystem, baseline: str = "original") -> list[str]:
        compared = [comparison(system=system.name, baseline=baseline) for system in systems]
        return Page(render(evaluation(systems=systems, comparisons=compared))).sections

    three = [system("a", 0.2), system("b", 0.4), system("c", 1)]
    assert "temperature" in sections(*three)
    assert "temperature" not in sections(*three[:2], system("c", 0.4))
    assert "temperature" not in sections(*three[:2], system("c", 1, method="best-of-n"))
    assert "temperature" not in sections(*three[:2], system("c", "hot"))
    assert "temperature" not in sections(*three, baseline="resample")


def test_text_of_rows_and_names_is_never_markup() -> None:
    evil = "<script>alert('x')</script>\" onload=\" ]]> --> {{ 7 * 7 }}"
    hostile = full().model_dump(mode="json")
    parts = {"dataset": evil, "file": evil, "independence": evil, "verdict": evil, "expected": evil, "seen": evil}
    parts |= {"prompt": evil, "original_response": evil, "response": f"{evil} more", "files": [evil], "reasons": [evil]}
    parts |= {"missing": [evil], "unjudged": [evil], "remark": evil, "kind": evil, "answer": evil}

    def poisoned(value: Any, field: str = "") -> Any:
        if isinstance(value, dict):
            return {key: poisoned(inner, key) for key, inner in value.items()}
        if field in parts:
            return parts[field]
        if isinstance(value, list):
            return [poisoned(inner) for inner in value]
        return f"_$x_{{$ {value} {evil}" if isinstance(value, str) and field != "baseline" else value

    html = render(Evaluation.model_validate(poisoned(hostile)))
    page = Page(html)
    assert page.sections == SECTIONS
    assert "script" not in page.tags
    assert {name for name, _ in page.attributes if name.startswith("on")} == set()
    assert page.text.count("<script>alert('x')</script>") > 40
    assert "49" not in re.findall(r"\d+", html.partition('id="samples"')[2])


def test_names_in_plots_need_no_font_of_matplotlib(recwarn: pytest.WarningsRecorder) -> None:
    page = Page(render(evaluation(comparisons=[comparison(system="改善模型\x1b\u202e", judge="\u202eoracle\x1b[31m")])))
    assert "改善模型" in page.text
    assert "\u202e" not in page.text and r"\u202eoracle\x1b[31m" in page.text
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize(
    ("before", "after", "marked"),
    [
        ("a b c", "a x c", ("a <del>b</del> c", "a <ins>x</ins> c")),
        ("a  b\n\nc", "a  b\n\nc d", ("a  b\n\nc", "a  b\n\nc <ins>d</ins>")),
        ("same\n", "same", ("same\n", "same")),
        ("", "new & <b>", ("", "<ins>new &amp; &lt;b&gt;</ins>")),
        ("<i> old", "old", ("<del>&lt;i&gt;</del> old", "old")),
    ],
)
def test_words_that_differ_are_marked(before: str, after: str, marked: tuple[str, str]) -> None:
    assert differences(before, after) == marked


def test_long_samples_are_truncated_visibly() -> None:
    long = "word " * SAMPLE_CHARACTERS
    sample = ShownRow(system="pit", prompt="p", original_response=long, response="b", p_better=None, judged=None)
    text = words(Page(render(evaluation(samples=[sample]))))
    assert f"({len(long.strip()) - SAMPLE_CHARACTERS} more characters)" in text
    assert len(text) < 2 * SAMPLE_CHARACTERS


def test_explained_rows_have_the_share_of_each_edit() -> None:
    """Hostile texts are shown as text; what an edit removes is in the draft, and its label once in either text."""
    edits: list[dict[str, Any]] = [
        {"from": "b", "to": "<x>", "at": [2, 5], "gap": 1.5, "share": 0.75, "low": 0.5, "high": 1.2},
        {"from": "d ", "to": "", "at": [8, 8], "gap": -0.25, "share": -0.125},
        {"from": "", "to": " f", "at": [9, 11], "gap": None, "share": None},
    ]
    texts = {"original_response": "a b c d e", "response": "a <x> c e f"}
    sample = ShownRow(system="pit", prompt="p", p_better=None, judged=None, edits=edits, **texts)
    html = render(evaluation(samples=[sample]))
    before, after = re.findall(r'<div class="text">(.*?)</div>', html[html.index('id="samples"') :])
    assert before == (
        'a <del class="edit" style="--share: 0.75" title="gap +1.50, share 75%, 50% to 120% by one gap model">b</del>'
        ' c <del class="edit lowers" style="--share: 0.00" title="gap -0.25, share -12%">d </del>'
        '<small class="share">-12%</small>e'
    )
    assert after == (
        'a <ins class="edit" style="--share: 0.75" title="gap +1.50, share 75%, 50% to 120% by one gap model">'
        '&lt;x&gt;</ins><small class="share">75%</small> c e'
        '<ins class="edit" style="--share: 0.00" title="no gap"> f</ins><small class="share">no gap</small>'
    )
    assert "the greener the more" in html
    assert "the greener the more" not in render(evaluation(samples=[sample.model_copy(update={"edits": []})]))
    for marked, text in ((before, texts["original_response"]), (after, texts["response"])):
        assert unescape(re.sub(r"<small.*?</small>|<[^>]*>", "", marked)) == text
