"""Prunes improvements (--prune-edits): the edits that do nothing by the gap model are dropped."""

from collections.abc import Sequence

from pitcli.data.edits import Edit, edits_between, reverted
from pitcli.data.rows import Comparison
from pitcli.engine.improving.endpoint_gap import EndpointGapModel
from pitcli.engine.improving.explaining import variants
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.improving.stop_rule import Attempt
from pitcli.equations import p_better


def prune(gap_model: GapModel | EndpointGapModel, steps: Sequence[tuple[Attempt, Attempt]]) -> list[Attempt]:
    """Return the attempts after an iteration, each given with the one before it, without the edits that do nothing.

    Of an improvement that was accepted, the edits whose reversal does not lower the gap over the best before are
    reverted together. The improvement is kept as it was if its gap is lower after that.
    """
    improvements = {
        index: Comparison(before.draft.prompt, after.best, before.best)
        for index, (before, after) in enumerate(steps)
        if after.best != before.best
    }
    edits = {index: edits_between(c.reference_response, c.response) for index, c in improvements.items()}
    compared = [variant for index, c in improvements.items() for variant in variants(c, edits[index])]
    gaps = iter(gap_model.gaps_with_std(compared)[0])
    least, dropped = {}, {}
    for index, found in edits.items():
        least[index] = next(gaps)
        useless = [edit for edit in found if next(gaps) >= least[index]]
        if useless:
            dropped[index] = useless
    texts = {index: reverted(improvements[index].response, useless) for index, useless in dropped.items()}
    pruned, stds = gap_model.gaps_with_std([improvements[i]._replace(response=text) for i, text in texts.items()])
    attempts = [after for _, after in steps]
    for number, (index, text) in enumerate(texts.items()):
        if pruned[number] >= least[index]:
            gap_fields = {"gap": pruned[number], "p_better": p_better(pruned[number], 1.0)}
            gap_fields |= {} if stds is None else {"gap_std": stds[number]}
            attempts[index] = _without_edits(*steps[index], dropped[index], text, gap_fields)
    return attempts


def _without_edits(
    before: Attempt, after: Attempt, dropped: Sequence[Edit], text: str, gap_fields: dict[str, float]
) -> Attempt:
    """Return the attempt with a text without some edits; one that ends as the best before is as finished as that."""
    *earlier, last = after.iterations
    ends_as_before = dropped[-1].end == len(after.best)
    record = {
        **last,
        **gap_fields,
        "response": text,
        "finished": before.finished() if ends_as_before else last["finished"],
        "pruned_edits": len(dropped),
        "unpruned_response": after.best,
    }
    best_gap = after.best_gap - last["gap"] + record["gap"]
    return after._replace(best=text, iterations=[*earlier, record], best_gap=best_gap)
