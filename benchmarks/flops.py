"""How much arithmetic a pass or a training step is, counted from the shape of the model."""

from collections.abc import Sequence
from typing import Any, NamedTuple

# of a pair's tree (see pitcli.engine.models.trees): x, then w and l each as reference, each followed by w and by l
TREE_PARENTS = (-1, 0, 1, 1, 0, 4, 4)


class Shape(NamedTuple):
    """What the count needs to know of a Llama: linear_in_out is (inputs, outputs) of the linear layers of one block."""

    layers: int
    attention: int  # query heads times their size
    hidden: int
    vocabulary: int
    linear_in_out: list[tuple[int, int]]
    lora_rank: int


def llama_shape(config: dict[str, Any], lora_rank: int) -> Shape:
    """From config.json."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    size = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    feed_forward = [(hidden, inner), (hidden, inner), (inner, hidden)]
    return Shape(
        config["num_hidden_layers"], queries, hidden, config["vocab_size"], attention + feed_forward, lora_rank
    )


def forward_flops(shape: Shape, tokens: int, seen: int, predicted: int) -> float:
    """Floating-point operations of a forward pass, counted as in training_flops."""
    weights, adapters, attention = _sizes(shape)
    return float(
        tokens * 2 * (weights + adapters) + seen * 4 * attention + predicted * 2 * shape.hidden * shape.vocabulary
    )


def training_flops(shape: Shape, tokens: int, seen: int, predicted: int) -> float:
    """Floating-point operations that a LoRA training step cannot do without; a multiplication and an addition are two.

    tokens: that the blocks read. seen: how many tokens each of them attends to, summed over the tokens. predicted:
    tokens whose probability is asked for.

    With N the weights of the blocks' linear layers, n those of their adapters (A and B):
    - forward 2N a token, and 2N backward to the activations; the base's weights take no gradient, and neither do the
      embeddings, so that the first block's queries, keys and values could do without the latter: 0.2% at 30 blocks;
    - the adapters 2n forward, 2n backward to the activations and 2n to their weights;
    - attention: queries with keys and weights with values, 4 x (heads x their size) for each token seen, in each
      block; backward twice as much, with the gradients of queries, keys, values and weights;
    - the output layer 2 x hidden x vocabulary forward and as much backward, for the predicted tokens alone.
    Norms, activations, rotations and the softmax are left out, and so is whatever is done twice: activations that are
    computed again, padding, tokens hidden by the mask, and outputs that nobody asked for.
    """
    weights, adapters, attention = _sizes(shape)
    return float(
        tokens * (4 * weights + 6 * adapters) + seen * 12 * attention + predicted * 4 * shape.hidden * shape.vocabulary
    )


def _sizes(shape: Shape) -> tuple[int, int, int]:
    """Of all blocks: weights of the linear layers, weights of their adapters, query heads times their size."""
    weights = shape.layers * sum(inputs * outputs for inputs, outputs in shape.linear_in_out)
    adapters = shape.layers * sum(shape.lora_rank * (inputs + outputs) for inputs, outputs in shape.linear_in_out)
    return weights, adapters, shape.layers * shape.attention


def seen_in_row(length: int) -> int:
    """How many tokens the tokens of a conversation see, summed over them."""
    return length * (length + 1) // 2


def seen_in_tree(lengths: Sequence[int], parents: Sequence[int]) -> int:
    """The same of segments that each continue their parent."""
    before: list[int] = []
    for parent in parents:
        before.append(0 if parent < 0 else before[parent] + lengths[parent])
    return sum(own * start + seen_in_row(own) for own, start in zip(lengths, before, strict=True))
