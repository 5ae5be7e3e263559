"""The synthetic task: its oracle against grades worked out by hand, and how its pairs are drawn."""

import math
import random
from itertools import pairwise
from statistics import fmean

import pytest

from pitcli.data.synthetic import draw_response, draw_task, parse_task, preference_rows, quality

CONSTRAINED = "Write 3 animals. Include red. Avoid cat. Last fox."


@pytest.mark.parametrize(
    ("prompt", "response", "grade"),
    [
        ("Write 3 animals.", "cat dog fox", 1),
        ("Write 3 animals.", "", 0),
        # two of three words, all of the topic, all distinct
        ("Write 3 animals.", "cat dog", (2 / 3 + 1 + 1) / 3),
        # the right count, two of three of the topic, two distinct of three
        ("Write 3 animals.", "cat cat red", (1 + 2 / 3 + 2 / 3) / 3),
        # six too many: the grade for the count is 0, not negative; six of nine of the topic
        ("Write 3 foods.", "pie jam rice soup egg ham red blue pink", (0 + 6 / 9 + 1) / 3),
        (CONSTRAINED, "dog red fox", 1),
        # only the avoided word is wrong; red is demanded, so it is not off topic
        (CONSTRAINED, "cat red fox", 5 / 6),
        # one too many, two of four of the topic, no red, no cat, no fox at the end
        (CONSTRAINED, "dog pump saw cow", (2 / 3 + 1 / 2 + 1 + 0 + 1 + 0) / 6),
        # fox is present, but not at the end
        (CONSTRAINED, "fox red dog", 5 / 6),
        ("Write 4 tools. First saw.", "saw axe nail pump", 1),
        ("Write 4 tools. First saw.", "axe saw nail pump", 3 / 4),
        # a third of the words, none to judge the topic by, the demand met
        ("Write 3 foods. Include pie.", "pie", (1 / 3 + 0 + 1 + 1) / 4),
        # case and punctuation count: "Pie," is not a word of the topic
        ("Write 3 foods.", "Pie, jam rice", (1 + 2 / 3 + 1) / 3),
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
    assert len(set(tasks)) > 450


def test_rows_depend_only_on_the_seed() -> None:
    rows = list(preference_rows(20, seed=5))
    assert list(preference_rows(30, seed=5))[:20] == rows
    assert [row["prompt"] for row in preference_rows(20, seed=6)] != [row["prompt"] for row in rows]
    assert len({row["id"] for row in rows}) == 20
    assert all(row["chosen"] != row["rejected"] for row in rows)


def test_a_quarter_of_the_labels_are_flipped() -> None:
    """Bradley-Terry errs with e = sigmoid(-10 |difference|), then a quarter is flipped: 0.25 (1 - e) + 0.75 e."""
    wrong, expected = [], []
    for row in preference_rows(8000, seed=1):
        difference = quality(row["prompt"], row["chosen"]) - quality(row["prompt"], row["rejected"])
        if difference:
            wrong.append(difference < 0)
            expected.append(0.25 + 0.5 / (1 + math.exp(10 * abs(difference))))
    assert len(wrong) > 7000
    deviation = math.sqrt(sum(p * (1 - p) for p in expected)) / len(expected)
    assert deviation < 0.006  # a share of 0.2 or 0.3 would be off by five deviations
    assert abs(fmean(wrong) - fmean(expected)) < 3 * deviation


def test_more_skill_gives_better_responses() -> None:
    rng = random.Random(0)
    means = []
    for skill in (0.0, 0.25, 0.5, 0.75, 1.0):
        tasks = [draw_task(rng) for _ in range(500)]
        means.append(fmean(quality(task.prompt(), draw_response(task, skill, rng)) for task in tasks))
    assert all(better - worse > 0.03 for worse, better in pairwise(means))


def test_full_skill_breaks_no_word_demand() -> None:
    rng = random.Random(1)
    for _ in range(300):
        task = draw_task(rng)
        words = draw_response(task, 1.0, rng).split()
        assert len(words) == task.size
        assert task.include is None or task.include in words
        assert task.avoid is None or task.avoid not in words
        assert task.first in (None, words[0])
        assert task.last in (None, words[-1])
