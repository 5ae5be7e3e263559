"""A linear probe: logistic regression on hidden states of the frozen base, a baseline that every gap model must beat.

The features of a response y to x are the states of the conversation [x; y]: their mean over y, and that of its last
token. A pair counts by the difference of its two responses, so the probe is antisymmetric, as a gap is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from pitcli.console import progress
from pitcli.data.rows import PreferencePair
from pitcli.data.splits import prompt_key
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.batches import length_sorted_chunks
from pitcli.engine.models.forward import hidden_states
from pitcli.engine.models.packing import tokens_read, tree_batch
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.models.trees import Tree, group_tree
from pitcli.processes.collectives import map_over_ranks

PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)  # lambda, from the strongest
FOLDS = 5


class Probe(NamedTuple):
    """A fitted probe. weights_F: of the F features as they are; penalty: the lambda that cross-validation chose."""

    weights_F: np.ndarray
    penalty: float

    def gaps(self, differences_NF: np.ndarray) -> np.ndarray:
        """Return by how much the probe prefers the chosen response of each pair, in logits, shape (N,)."""
        return differences_NF @ self.weights_F


@torch.no_grad()
def feature_differences(
    model: RoleModel, chat: ChatFormat, pairs: Sequence[PreferencePair], micro_batch_size: int
) -> np.ndarray:
    """Return the features of chosen minus those of rejected of each pair, shape (N, F), F twice the hidden size.

    The base is read without an adapter, once per pair.
    """
    trees = [pair_tree(pair, chat) for pair in pairs]

    def differences(part: Sequence[Tree]) -> list[Tensor]:
        rows = [torch.empty(0)] * len(part)
        lengths = [tokens_read(model, tree) for tree in part]
        with model.role(None), progress("reading pairs for the probe", len(part)) as advance:
            for chunk in length_sorted_chunks(lengths, max(1, micro_batch_size // 2), model.device):
                batch = tree_batch(model, [part[index] for index in chunk], of_tokens=True)
                counts = [count for index in chunk for count in part[index].completion_lengths()]
                states = hidden_states(model, batch).float().cpu().split(counts)
                for number, index in enumerate(chunk):
                    rows[index] = features(states[2 * number]) - features(states[2 * number + 1])
                advance(len(chunk))
        return rows

    return torch.stack([*map_over_ranks(trees, differences, model.sharded)]).double().numpy()


def pair_tree(pair: PreferencePair, chat: ChatFormat) -> Tree:
    """Return the tree of x with chosen and rejected.

    A batch selects the states before each token of a leaf. So each leaf has one token more: then its own are selected,
    after that of the end of x.
    """
    leaves = [[*chat.completion(text), chat.stop_id] for text in (pair.chosen, pair.rejected)]
    return group_tree(chat.policy_prompt(pair.prompt), leaves)


def features(states_TD: Tensor) -> Tensor:
    """Return the mean over y and the last state, shape (2D,). states_TD: of the end of x, then of y."""
    of_y = states_TD[1:]
    return torch.cat([of_y.mean(0), of_y[-1]])


def fit_probe(differences_NF: np.ndarray, pairs: Sequence[PreferencePair]) -> Probe:
    """Fit the probe with the penalty of the least log loss on other prompts, by cross-validation.

    Each feature is divided by its root mean square, and all by sqrt(F), so that a penalty means the same for any base.
    """
    scale_F = np.sqrt((differences_NF**2).mean(0) * differences_NF.shape[1])
    scale_F[scale_F == 0] = 1
    scaled_NF = differences_NF / scale_F
    prompts_N = np.unique([prompt_key(pair) for pair in pairs], return_inverse=True)[1]
    losses = cross_validated_losses(scaled_NF, prompts_N)
    penalty = PENALTIES[int(np.argmin(losses))]
    return Probe(fit_weights(scaled_NF, penalty) / scale_F, penalty)


def cross_validated_losses(differences_NF: np.ndarray, prompts_N: np.ndarray) -> np.ndarray:
    """Return the summed log loss of each penalty, in folds that are disjoint by prompt; zeros with a single prompt."""
    folds_N = prompts_N % FOLDS
    losses = np.zeros(len(PENALTIES))
    for fold in np.unique(folds_N) if folds_N.any() else ():
        weights_F = np.zeros(differences_NF.shape[1])
        for number, penalty in enumerate(PENALTIES):
            weights_F = fit_weights(differences_NF[folds_N != fold], penalty, weights_F)
            losses[number] += np.logaddexp(0, -(differences_NF[folds_N == fold] @ weights_F)).sum()
    return losses


def fit_weights(differences_NF: np.ndarray, penalty: float, start_F: np.ndarray | None = None) -> np.ndarray:
    """Return the w that minimises mean log(1 + exp(-w d)) + penalty / 2 |w|^2 over the differences d; no intercept."""

    def loss_and_slope(weights_F: np.ndarray) -> tuple[float, np.ndarray]:
        gaps_N = differences_NF @ weights_F
        slope_F = penalty * weights_F - expit(-gaps_N) @ differences_NF / len(gaps_N)
        return float(np.logaddexp(0, -gaps_N).mean() + penalty / 2 * weights_F @ weights_F), slope_F

    start_F = np.zeros(differences_NF.shape[1]) if start_F is None else start_F
    # scipy's usual tolerances are those of slopes near 1; here the features are small
    exact = {"gtol": 1e-8, "ftol": 1e-12, "maxiter": 1000}
    return np.asarray(minimize(loss_and_slope, start_F, jac=True, method="L-BFGS-B", options=exact).x)
