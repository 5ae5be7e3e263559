"""Log-probs of tokens from some rows of logits at a time, which saves memory and, on CPUs, stays in the cache."""

from typing import Any, cast

import torch
from torch import Tensor, nn

LOGIT_ROWS = 128
GPU_LOGITS = 2**26  # a GPU is slow at many small products; 256 MiB in fp32


def rows_at_once(vocabulary: int, device: torch.device) -> int:
    """Return for how many states logits are computed together."""
    return LOGIT_ROWS if device.type == "cpu" else max(LOGIT_ROWS, GPU_LOGITS // vocabulary)


def token_logprobs(hidden_ND: Tensor, output_layer: nn.Module, targets_N: Tensor, temperature: float) -> Tensor:
    """Return log softmax(output_layer(hidden) / temperature)[target], shape (N,), nats, fp32.

    hidden_ND: the states that predict the targets. output_layer: linear, D to V; it gets no gradient.
    """
    logprobs_N: Tensor = _TokenLogprobs.apply(hidden_ND, output_layer, targets_N, temperature)
    return logprobs_N


@torch.no_grad()
def next_token_kl(hidden_ND: Tensor, reference_hidden_ND: Tensor, output_layer: nn.Module) -> Tensor:
    """Return KL(p || p_ref) of the next token after each state, shape (N,), nats.

    hidden_ND, reference_hidden_ND: the states of the two models after the same tokens.
    """
    found, rows = [], rows_at_once(_vocabulary(output_layer), hidden_ND.device)
    for states in zip(hidden_ND.split(rows), reference_hidden_ND.split(rows), strict=True):
        logprobs_CV, reference_CV = (output_layer(states_CD).float().log_softmax(-1) for states_CD in states)
        found.append((logprobs_CV.exp() * (logprobs_CV - reference_CV)).sum(-1))
    return torch.cat(found)


def _vocabulary(output_layer: nn.Module) -> int:
    return len(cast(Tensor, output_layer.weight))


class _TokenLogprobs(torch.autograd.Function):
    """Computes the gradient d log p / d hidden = (onehot(target) - p) W / T in the forward pass, from the same logits.

    So the backward pass needs no logits; what is kept for it has the size of the hidden states.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, output_layer: nn.Module, targets_N: Tensor, temperature: float) -> Tensor:
        logprobs, gradients, rows = [], [], rows_at_once(_vocabulary(output_layer), hidden_ND.device)
        for hidden_CD, targets_C in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True):
            logits_CV = output_layer(hidden_CD).float()
            if temperature != 1.0:
                logits_CV /= temperature
            logprobs_CV = logits_CV.log_softmax(-1)
            logprobs_C1 = logprobs_CV.gather(-1, targets_C[:, None])
            logprobs.append(logprobs_C1.squeeze(-1))
            if ctx.needs_input_grad[0]:
                weight_VD = cast(Tensor, output_layer.weight)
                # in fp32: if p is close to 1, p - 1 would lose its precision
                slopes_CV = logprobs_CV.exp_().scatter_add_(-1, targets_C[:, None], -torch.ones_like(logprobs_C1))
                gradients.append((slopes_CV.to(weight_VD.dtype) @ weight_VD).to(hidden_CD.dtype) / -temperature)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * slopes[0][:, None].to(gradient_ND.dtype), None, None, None
