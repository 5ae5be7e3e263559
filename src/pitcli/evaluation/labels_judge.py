"""A judge made from people's labels, as pit annotate writes them."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from pitcli.data.reading import load_rows
from pitcli.data.rows import Comparison
from pitcli.evaluation.agreement import ORIGINAL_RESPONSE, RESPONSE, TIE, parse_label
from pitcli.evaluation.judge import Judge, Verdict
from pitcli.settings.values import split_commas

P_BETTER = {RESPONSE: 1.0, TIE: 0.5, ORIGINAL_RESPONSE: 0.0}


def labels_judge(name: str, files: str) -> Judge:
    """Load labels: P(better) is the share of the annotators who preferred a response; without labels, no verdict."""
    votes: dict[Comparison, list[float]] = defaultdict(list)
    for file in split_commas(files):
        for label in load_rows(file, parse_label):
            prompt, original, response = label.item
            p_better = P_BETTER[label.preferred]
            votes[Comparison(prompt, response.strip(), original.strip())].append(p_better)
            votes[Comparison(prompt, original.strip(), response.strip())].append(1 - p_better)

    def verdicts(comparisons: Sequence[Comparison]) -> list[Verdict]:
        found = (votes.get(Comparison(c.prompt, c.response.strip(), c.reference_response.strip())) for c in comparisons)
        return [Verdict(fmean(of_pair) if of_pair else None) for of_pair in found]

    return Judge(name, verdicts)
