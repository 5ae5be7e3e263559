"""FLOP counts of a forward pass and of a training step, from the shape of the model."""

from collections.abc import Sequence
from typing import Any, NamedTuple

# of a pair's tree (see pitcli.engine.models.trees): x, then each of w and l as the reference, followed by w and by l
TREE_PARENTS = (-1, 0, 1, 1, 0, 4, 4)


class Shape(NamedTuple):
    """The shape of a Llama model. linear_in_out: (inputs, outputs) of each linear layer of one block."""

    layers: int
    attention: int  # query heads times their size
    hidden: int
    vocabulary: int
    linear_in_out: list[tuple[int, int]]
    lora_rank: int


def llama_shape(config: dict[str, Any], lora_rank: int) -> Shape:
    """Return the shape of the model with this config.json."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    size = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    feed_forward = [(hidden, inner), (hidden, inner), (inner, hidden)]
    return Shape(
        config["num_hidden_layers"], queries, hidden, config["vocab_size"], attention + feed_forward, lora_rank
    )


def forward_flops(shape: Shape, tokens: int, seen: int, predicted: int) -> float:
    """Return the floating-point operations of a forward pass, counted as in training_flops."""
    weights, adapters, attention = _sizes(shape)
    return float(
        tokens * 2 * (weights + adapters) + seen * 4 * attention + predicted * 2 * shape.hidden * shape.vocabulary
    )


def training_flops(shape: Shape, tokens: int, seen: int, predicted: int) -> float:
    """Return the fewest floating-point operations of a LoRA training step; a multiply-add counts as two.

    tokens: read by the blocks. seen: how many tokens each token attends to, summed over the tokens. predicted: tokens
    whose log-prob is computed.

    With N weights in the linear layers of all blocks and n in their adapters (A and B), the count is:
    - the base, per token: 2N forward, and 2N backward to the activations. Its weights get no gradient. The embeddings
      get none either, so the first block's queries, keys and values could skip the backward pass (0.2% at 30 blocks),
      but are counted;
    - the adapters, per token: 2n forward, 2n backward to the activations and 2n to their weights;
    - attention: 4 x (heads x head size) per token seen and block, for the products of queries with keys and of weights
      with values; twice as much backward, for the gradients of queries, keys, values and weights;
    - the output layer: 2 x hidden x vocabulary per predicted token forward, and the same backward.
    Not counted are norms, activation functions, rotations and the softmax, and all avoidable work: recomputed
    activations, padding, hidden tokens, and outputs that are not used.
    """
    weights, adapters, attention = _sizes(shape)
    return float(
        tokens * (4 * weights + 6 * adapters) + seen * 12 * attention + predicted * 4 * shape.hidden * shape.vocabulary
    )


def _sizes(shape: Shape) -> tuple[int, int, int]:
    """Return, over all blocks, the linear weights, the adapter weights, and the query heads times their size."""
    weights = shape.layers * sum(inputs * outputs for inputs, outputs in shape.linear_in_out)
    adapters = shape.layers * sum(shape.lora_rank * (inputs + outputs) for inputs, outputs in shape.linear_in_out)
    return weights, adapters, shape.layers * shape.attention


def seen_in_row(length: int) -> int:
    """Return how many tokens each token of a conversation attends to, summed over the tokens."""
    return length * (length + 1) // 2


def seen_in_tree(lengths: Sequence[int], parents: Sequence[int]) -> int:
    """Return the same sum for a tree, in which each segment continues its parent."""
    before: list[int] = []
    for parent in parents:
        before.append(0 if parent < 0 else before[parent] + lengths[parent])
    return sum(own * start + seen_in_row(own) for own, start in zip(lengths, before, strict=True))
