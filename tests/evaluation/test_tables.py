"""The tables and answers on stderr fit a terminal of 80 columns."""

import pytest

from pitcli.evaluation.tables import print_evaluation
from tests.pages.test_evaluation_report import answer, answers, comparison, evaluation, iterations, judge


def test_tables_with_names_of_usual_length_fit_80_columns(capfd: pytest.CaptureFixture[str]) -> None:
    compared = [
        comparison(baseline_generated_tokens=1380.5),
        comparison(baseline="learned-stop", rows_needed=21840, verdict="no difference shown"),
        comparison(judge="gap:runs/judge", dataset="code"),
        comparison(judge="gap:runs/judge", seed=1, grades=None),
    ]
    found = evaluation(
        judges=[judge()],
        comparisons=compared,
        iterations=[iterations()],
        answers=[answers(originals=[answer()], missing=["best-of-n at equal tokens was not compared"])],
    )
    print_evaluation(found)
    out, err = capfd.readouterr()
    lines = [" ".join(line.split()) for line in err.splitlines()]
    assert out == ""
    assert max(len(line.rstrip()) for line in err.splitlines()) <= 80
    assert "pit vs original +30.0 [+21.5, +38.2] 4.2% better" in lines
    assert "pit vs original 231/58/111 1412.0/1380.5 0.742/0.611" in lines
    assert "pit vs learned-stop 231/58/111 1412.0 0.742/0.611 21,840" in lines
    assert "Comparisons by judge gap:runs/judge, delta = win% - lose%" in lines
    assert "pit vs original, code -12.3 [-15.5, -0.0] 121.4/110.4 8.0%" in lines
    assert "pit vs original, seed 1 231/58/111 1412.0" in lines
    assert "5 +29.1 [+21.1, +37.1] 0.761 10.0% 10.0%" in lines
    assert lines[-5:-3] == [
        "1. Is pit better than the originals? yes (judge oracle, 400 rows)",
        "delta +30.0 [+21.5, +38.2], mean quality 0.611 -> 0.742",
    ]
