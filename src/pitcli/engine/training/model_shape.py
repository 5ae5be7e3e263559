"""The size of a model, from its config alone."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from pitcli.engine.models.bases import reading


class Shape(NamedTuple):
    """The size of a model.

    linear, other: parameters in its linear layers and elsewhere; head: in its output layer. adapter: those of one LoRA.
    """

    layers: int
    vocabulary: int
    linear: int
    other: int
    head: int
    adapter: int


def shape_of(folder: Path, rank: int) -> Shape:
    """Return the size of the model in a folder, from its config alone. rank: of LoRA."""
    with reading(folder), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    linears = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]
    linear = sum(layer.weight.numel() for layer in linears)
    text = config.get_text_config()
    return Shape(
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        linear=linear,
        other=sum(parameter.numel() for parameter in model.parameters()) - linear,
        head=head.weight.numel(),
        adapter=rank * sum(layer.in_features + layer.out_features for layer in linears),
    )
