"""The trees of pit dpo: the log-probs and gradients of both roles are those of separate passes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pitcli.data.rows import Message, PreferencePair
from pitcli.data.templates import ChatFormat, Example
from pitcli.engine.models.forward import completion_logprobs
from pitcli.engine.models.loading import load_base
from pitcli.engine.models.logprobs import next_token_kl
from pitcli.engine.models.packing import tree_batch
from pitcli.engine.models.roles import IMPROVER, RoleModel
from pitcli.engine.models.trees import completion_batch, preference_tree
from pitcli.equations import dpo_loss
from pitcli.settings.base import Role
from tests.conftest import WithRoles

PAIR = PreferencePair("1", (Message("user", "Write 3 animals."),), "cat dog fox", "cat axe", {})
ALIKE = PreferencePair("3", PAIR.prompt, "cat dog fox " * 5 + "axe", "cat dog fox " * 5 + "red saw", {})
LONGER = PreferencePair("2", (Message("user", "Write 5 tools. Avoid saw."),), "axe " * 5, "red", {})


def conversations(pair: PreferencePair, chat: ChatFormat, role: Role) -> list[Example]:
    """What the role writes and after what, in the order of the leaves, each built by itself."""
    contexts = [pair.rejected, pair.chosen] if role is Role.improver else [None]
    return [
        Example(
            chat.policy_prompt(pair.prompt) if context is None else chat.improver_prompt(pair.prompt, context),
            chat.completion(response),
        )
        for context in contexts
        for response in (pair.chosen, pair.rejected)
    ]


@pytest.fixture(scope="module")
def model(tiny_folder: object, tiny_chat: ChatFormat, with_roles: WithRoles) -> RoleModel:
    base = load_base(tiny_folder, load_in_4bit=False, device=torch.device("cpu"))  # type: ignore[arg-type]
    return with_roles(base, tiny_chat.tokenizer.pad_token_id, IMPROVER)


@pytest.mark.parametrize("role", Role)
def test_the_leaves_are_both_responses_in_each_context(role: Role, tiny_chat: ChatFormat) -> None:
    tree = preference_tree(PAIR, tiny_chat, role)
    assert tree.examples() == conversations(PAIR, tiny_chat, role)


def test_a_truncated_response_has_no_stop_token(tiny_chat: ChatFormat) -> None:
    cut = replace(PAIR, rejected_truncated=True)
    chosen, rejected = (example.completion for example in preference_tree(cut, tiny_chat, Role.policy).examples())
    assert chosen[-1] == tiny_chat.stop_id != rejected[-1]
    assert rejected == tiny_chat.completion(PAIR.rejected)[:-1]


def test_responses_of_another_pair_in_the_contexts_of_this_one(tiny_chat: ChatFormat) -> None:
    tree = preference_tree(PAIR, tiny_chat, Role.improver, rated=LONGER)
    assert tree.conversations()[1] == tiny_chat.improver_prompt(PAIR.prompt, PAIR.rejected) + tiny_chat.completion(
        LONGER.rejected
    )


def gradients(model: RoleModel, logprobs: list[Tensor], contexts: int) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of DPO, with a reference that differs between the sequences."""
    model.zero_grad()
    ratios_L = torch.stack([part.sum() for part in logprobs])
    ratios_L = ratios_L - ratios_L.detach() + torch.linspace(-1, 2, len(ratios_L))
    loss = dpo_loss(ratios_L.view(-1, contexts, 2), 0.5)
    loss.backward()
    named = model.role_parameters(IMPROVER)
    return float(loss.detach()), {name: p.grad.clone() for name, p in named.items() if p.grad is not None}


@pytest.mark.parametrize("role", Role)
def test_log_probs_and_gradients_equal_separate_passes(role: Role, model: RoleModel, tiny_chat: ChatFormat) -> None:
    pairs = [PAIR, LONGER, ALIKE]
    trees = [preference_tree(pair, tiny_chat, role) for pair in pairs]
    batch = tree_batch(model, trees, of_tokens=True)
    assert len(batch.input_ids_BT) == 3  # packed
    assert trees[2].tokens() < trees[2].completion_lengths()[0] * (2 if role is Role.policy else 7)  # begin alike
    lengths = [length for tree in trees for length in tree.completion_lengths()]
    model.use(IMPROVER, train=True)
    packed = list(completion_logprobs(model, batch).split(lengths))
    separate = [
        completion_logprobs(model, completion_batch([example], model.pad_id))
        for pair in pairs
        for example in conversations(pair, tiny_chat, role)
    ]
    for mine, other in zip(packed, separate, strict=True):
        assert torch.allclose(mine, other, atol=1e-4)
    contexts = 2 if role is Role.improver else 1
    (loss, of_packed), (other_loss, of_separate) = (gradients(model, parts, contexts) for parts in (packed, separate))
    assert loss == pytest.approx(other_loss, abs=1e-6)
    assert of_packed.keys() == of_separate.keys() == model.role_parameters(IMPROVER).keys()
    for name, gradient in of_separate.items():
        assert gradient.abs().max() > 0, name
        assert (of_packed[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_the_kl_of_the_next_token() -> None:
    layer = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.eye_(layer.weight)
    # p = (3/4, 1/4), p_ref = (1/2, 1/2)
    states, reference = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    expected = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    assert float(next_token_kl(states, reference, layer)) == pytest.approx(float(expected))
    assert float(next_token_kl(reference, reference, layer)) == 0
