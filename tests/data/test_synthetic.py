"""The synthetic task: its oracle against grades worked out by hand, and how its pairs are drawn."""

import math
import os
import random
import subprocess
import sys
from itertools import pairwise
from statistics import fmean

import pytest

from pitcli.data.synthetic import (
    Answer,
    draw_answer,
    draw_task,
    met,
    parse_task,
    preference_rows,
    quality,
    render,
    revise,
)

PROMPT = "Write 6 animals. First fox. Avoid cat. Third jam. After red axe. Last pie."


@pytest.mark.parametrize(
    ("prompt", "response", "grade"),
    [
        ("Write 6 animals.", "cat dog fox hen owl pig", 1),
        ("Write 6 animals.", "", 0),
        # too short; all of the topic, all distinct
        ("Write 6 animals.", "cat dog", 2 / 3),
        # the right size; a color; a word twice
        ("Write 6 animals.", "cat cat red hen owl pig", 1 / 3),
        (PROMPT, "fox dog jam red axe pie", 1),
        # the demanded words are of other topics and do not count; the avoided word is of the topic, and of no use
        (PROMPT, "fox cat jam red axe pie", 6 / 8),
        # exchanged: axe does not follow red
        (PROMPT, "fox dog jam axe red pie", 7 / 8),
        # something lies between red and axe, and there is a word too many
        (PROMPT, "fox dog jam red hen axe pie", 6 / 8),
        # first, third and last are in the wrong places
        (PROMPT, "dog fox red axe pie jam", 5 / 8),
        ("Write 6 foods. Include red.", "pie jam rice soup egg ham", 3 / 4),
        # no word to judge the topic by
        ("Write 6 foods. Include pie.", "pie", 2 / 4),
        # case and punctuation count: "Pie," is not a word of the topic
        ("Write 6 foods.", "Pie, jam rice soup egg ham", 2 / 3),
    ],
)
def test_the_oracle_grades_as_by_hand(prompt: str, response: str, grade: float) -> None:
    assert quality(prompt, response) == pytest.approx(grade)


def test_a_prompt_of_another_task_is_refused() -> None:
    for prompt in ("Write a poem.", "Write 3 planets.", ""):
        with pytest.raises(ValueError, match="expected a prompt of the synthetic task"):
            quality(prompt, "cat")


def test_prompts_are_parsed_back_to_their_tasks() -> None:
    rng = random.Random(0)
    tasks = [draw_task(rng) for _ in range(500)]
    assert [parse_task(task.prompt()) for task in tasks] == tasks
    assert len({task.prompt() for task in tasks}) > 450


def test_rows_depend_only_on_the_seed() -> None:
    rows = list(preference_rows(20, seed=5))
    assert list(preference_rows(30, seed=5))[:20] == rows
    assert [row["prompt"] for row in preference_rows(20, seed=6)] != [row["prompt"] for row in rows]
    assert len({row["id"] for row in rows}) == 20
    assert all(row["chosen"] != row["rejected"] for row in rows)


def test_rows_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    """Drawing in the order of a set would differ from process to process."""
    code = "from pitcli.data.synthetic import preference_rows; print(list(preference_rows(40, seed=0)))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1


def test_a_quarter_of_the_labels_are_flipped() -> None:
    """Bradley-Terry errs with e = sigmoid(-10 |difference|), then a quarter is flipped: 0.25 (1 - e) + 0.75 e."""
    wrong, expected = [], []
    for row in preference_rows(8000, seed=1):
        difference = quality(row["prompt"], row["chosen"]) - quality(row["prompt"], row["rejected"])
        if difference:
            wrong.append(difference < 0)
            expected.append(0.25 + 0.5 / (1 + math.exp(10 * abs(difference))))
    assert len(wrong) > 6000
    deviation = math.sqrt(sum(p * (1 - p) for p in expected)) / len(expected)
    assert deviation < 0.0065  # a share of 0.2 or 0.3 would be off by four deviations
    assert abs(fmean(wrong) - fmean(expected)) < 3 * deviation


def test_more_skill_gives_better_responses() -> None:
    rng = random.Random(0)
    means = []
    for skill in (0.0, 0.25, 0.5, 0.75, 1.0):
        tasks = [draw_task(rng) for _ in range(500)]
        means.append(fmean(quality(task.prompt(), render(task, draw_answer(task, skill, rng))) for task in tasks))
    assert all(better - worse > 0.06 for worse, better in pairwise(means))


def test_a_faultless_answer_meets_every_demand_and_one_slip_breaks_one() -> None:
    """In a few tasks the demands leave no room for one another, and some slips break a second demand."""
    rng = random.Random(1)
    faultless, single, slips = 0, 0, 0
    for _ in range(400):
        task, words = draw_task(rng), rng.getrandbits(32)
        if not all(met(task, render(task, Answer(frozenset(), words))).values()):
            continue
        faultless += 1
        for name in task.demands():
            found = met(task, render(task, Answer(frozenset({name}), words)))
            slips += 1
            single += [demand for demand, good in found.items() if not good] == [name]
    assert faultless > 0.95 * 400
    assert single > 0.9 * slips


def test_a_revision_keeps_the_free_words_and_most_demands() -> None:
    rng = random.Random(2)
    kept = []
    for _ in range(300):
        task = draw_task(rng)
        answer = draw_answer(task, rng.random(), rng)
        revised = revise(task, answer, rng.random(), rng)
        assert revised.seed == answer.seed
        kept += [(name in revised.broken) == (name in answer.broken) for name in task.demands()]
    assert fmean(kept) == pytest.approx(0.76, abs=0.03)
