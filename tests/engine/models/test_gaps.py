"""Both forms of a gap model: what each reads for a comparison, and gaps that do not depend on the batch."""

import pytest
import torch

from pitcli.data.rows import Comparison, Message, PreferencePair
from pitcli.data.templates import ChatFormat
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.models.forward import score_trees
from pitcli.engine.models.gaps import both_orders, score_comparisons, scoring_tree, training_row
from pitcli.engine.models.loading import load_base
from pitcli.engine.models.roles import GAP
from pitcli.engine.models.trees import Tree
from pitcli.equations import symmetrised_gap
from pitcli.settings.base import GapLoss
from tests.conftest import WithRoles

PAIR = PreferencePair("1", (Message("user", "Write 3 animals."),), "cat dog fox", "cat axe", {})
TOOLS = (Message("user", "Write 5 tools."),)
GROUPS = [(PAIR.prompt, "cat", ["dog", "fox dog", "cat", "owl"]), (TOOLS, "cat", ["saw"]), (TOOLS, "axe", ["saw"])]
COMPARISONS = [Comparison(prompt, text, reference) for prompt, reference, texts in GROUPS for text in texts]


@pytest.mark.parametrize("loss", [GapLoss.five_term, GapLoss.pointwise])
@pytest.mark.parametrize("micro_batch_size", [1, 4, 8])
def test_gaps_of_samples_that_share_their_reference(
    micro_batch_size: int, loss: GapLoss, with_roles: WithRoles, tiny_chat: ChatFormat, tiny_folder: object
) -> None:
    base = load_base(tiny_folder, False, torch.device("cpu"))
    model = with_roles(base, tiny_chat.tokenizer.pad_token_id, GAP)
    gap_model, by_two = (GapModel(model, tiny_chat, {GAP: 0.5}, size, loss) for size in (micro_batch_size, 2))
    together = gap_model.gaps(COMPARISONS)
    singly = torch.cat([by_two.gaps([comparison]) for comparison in COMPARISONS])
    assert (together - singly).abs().max() < 1e-5
    assert float(together[2]) == 0.0  # a copy
    assert together.abs().max() > 0.1
    swapped = [Comparison(c.prompt, c.reference_response, c.response) for c in COMPARISONS]
    assert (gap_model.gaps(swapped) + together).abs().max() < 1e-5
    assert len(gap_model.gaps([])) == 0


def test_a_pointwise_gap_is_the_difference_of_the_rewards_of_two_conversations(
    with_roles: WithRoles, tiny_chat: ChatFormat, tiny_folder: object
) -> None:
    model = with_roles(load_base(tiny_folder, False, torch.device("cpu")), tiny_chat.tokenizer.pad_token_id, GAP)

    def reward(prompt: tuple[Message, ...], response: str) -> float:
        conversation = tiny_chat.policy_prompt(prompt) + tiny_chat.completion(response)
        return float(score_trees(model, [Tree([conversation], [-1], [0])], 1)[0])

    expected = [reward(c.prompt, c.response) - reward(c.prompt, c.reference_response) for c in COMPARISONS]
    scores_B2 = score_comparisons(model, tiny_chat, GapLoss.pointwise, COMPARISONS, micro_batch_size=8)
    assert symmetrised_gap(scores_B2[:, 0], scores_B2[:, 1]).tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(scores_B2[:, 0], -scores_B2[:, 1])


def test_what_each_loss_reads_of_a_pair(tiny_chat: ChatFormat) -> None:
    forth = tiny_chat.gap_input(PAIR.prompt, PAIR.chosen, PAIR.rejected)
    back = tiny_chat.gap_input(PAIR.prompt, PAIR.rejected, PAIR.chosen)
    alone = [tiny_chat.policy_prompt(PAIR.prompt) + tiny_chat.completion(y) for y in (PAIR.chosen, PAIR.rejected)]
    for loss in (GapLoss.bradley_terry, GapLoss.symmetric):
        assert training_row([PAIR], tiny_chat, loss).tree.conversations() == [forth, back]
    assert training_row([PAIR], tiny_chat, GapLoss.pointwise).tree.conversations() == alone
    of_five = training_row([PAIR], tiny_chat, GapLoss.five_term).tree.conversations()
    assert (len(of_five), of_five[0], of_five[-1]) == (4, forth, back)


@pytest.mark.parametrize("loss", GapLoss)
def test_pairs_of_one_prompt_have_the_scores_that_each_has_alone(loss: GapLoss, tiny_chat: ChatFormat) -> None:
    texts = ["cat fox", "dog", "axe hut"]
    pairs = [PreferencePair("", PAIR.prompt, *two, {}) for two in (texts[:2], texts[1:], texts[::2])]
    row = training_row(pairs, tiny_chat, loss)
    conversations = row.tree.conversations()
    for pair, leaves in zip(pairs, row.orderings, strict=True):
        assert [conversations[leaf] for leaf in leaves] == training_row([pair], tiny_chat, loss).tree.conversations()
    assert (
        len(conversations)
        == len(set(map(tuple, conversations)))
        == (3 if loss is GapLoss.pointwise else 9 if loss is GapLoss.five_term else 6)
    )


def test_a_pointwise_tree_reads_the_prompt_once(tiny_chat: ChatFormat) -> None:
    tree = scoring_tree(PAIR.prompt, ["cat", "fox dog"], "axe", tiny_chat, GapLoss.pointwise)
    completions = [tiny_chat.completion(text) for text in ("cat", "fox dog", "axe")]
    assert tree.segments == [tiny_chat.policy_prompt(PAIR.prompt), *completions]
    assert (tree.parents, tree.leaves) == ([-1, 0, 0, 0], [1, 2, 3])


def test_both_orders_of_scores() -> None:
    scores_N = torch.tensor([3.0, 0.5, 1.0])
    assert both_orders(scores_N, GapLoss.pointwise).tolist() == [[2, -2], [-0.5, 0.5]]
    assert both_orders(torch.tensor([3.0, 1, 2, 5]), GapLoss.symmetric).tolist() == [[3, 1], [2, 5]]
