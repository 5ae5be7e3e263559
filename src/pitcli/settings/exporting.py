"""Settings of pit export."""

import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pitcli.settings.base import DEVICE_HELP, Device, Dtype, Settings
from pitcli.settings.facts import Fact, Section


class ExportRole(StrEnum):
    policy = "policy"
    improver = "improver"
    gap = "gap"


class ExportFormat(StrEnum):
    safetensors = "safetensors"
    gguf = "gguf"


class Quantisation(StrEnum):
    q8_0 = "q8_0"
    q4_k_m = "q4_k_m"


class ExportConfig(Settings):
    """pit export: export a trained model, with its card, for other tools."""

    section = Section.card

    run: Annotated[Path, Fact.run | Fact.argument] = Field(..., description="Run folder")
    out: Annotated[Path, Fact.output, Section.common] = Field(..., description="Output folder")
    role: Annotated[ExportRole | None, Section.common] = Field(
        None,
        description="Model of the run to export; an RL run also contains its gap model "
        "[default: the model that the run trained]",
    )
    member: Annotated[int | None, Section.model] = Field(
        None, ge=1, description="Of an ensemble of gap models, which to export, counted from 1 [default: the first]"
    )
    adapter: Annotated[bool, Section.common] = Field(
        False,
        description="Write the adapter alone, as peft and vLLM load it, instead of one whole model with the adapter "
        "merged in. Merging needs host memory for the loaded base and the model in --dtype (7B: 4 + 14 GiB), on a CPU "
        "also for the model in fp32; a 4-bit base is merged as dequantised, as it was trained on",
    )
    dtype: Annotated[Dtype, Section.model] = Field(Dtype.bf16, description="Data type of the merged weights")
    format: Annotated[ExportFormat, Section.common] = Field(
        ExportFormat.safetensors,
        description="safetensors for transformers and vLLM, or one GGUF file with a Modelfile for llama.cpp and Ollama",
    )
    quantise: Annotated[Quantisation | None, Section.model] = Field(
        None,
        description="With --format gguf: quantise the matrices to q8_0 or q4_k_m (which needs the extra gguf) "
        "[default: --dtype]",
    )
    base_name: Annotated[str | None, Fact.text] = Field(
        None,
        description="OWNER/NAME of the base model on the hub [default: the name in the run, if that is a hub name]",
    )
    evaluation: Annotated[Path | None, Fact.file] = Field(
        None,
        description="evaluation.json of pit evaluate; its results for this model are shown on the card [default: none]",
    )
    license: Annotated[str | None, Fact.text] = Field(
        None, description="Licence of the model, as the hub spells it, e.g. apache-2.0 [default: none]"
    )
    push_to_hub: Annotated[str | None, Fact.text, Section.common] = Field(
        None,
        description="Upload to OWNER/NAME on the hub as a private model; the token is read from hf auth login or "
        "HF_TOKEN [default: no upload]",
    )
    public: bool = Field(False, description="With --push-to-hub: make the model public")
    overwrite: Annotated[bool, Fact.start, Section.common] = Field(False, description="Replace the export in --out")
    device: Annotated[Device, Section.hardware] = Field(Device.auto, description=DEVICE_HELP)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.adapter and "dtype" in self.model_fields_set:
            yield "--dtype is not for --adapter, which is written in the type that it was trained in"
        if self.adapter and self.format is ExportFormat.gguf:
            yield "--format gguf is not for --adapter: llama.cpp gets one whole model"
        if self.quantise and self.format is not ExportFormat.gguf:
            yield "--quantise is for --format gguf"
        if self.public and not self.push_to_hub:
            yield "--public is for --push-to-hub"
        for flag, name in (("--base-name", self.base_name), ("--push-to-hub", self.push_to_hub)):
            if name is not None and not is_hub_name(name):
                yield f"{flag}: expected OWNER/NAME, got {name}"


def is_hub_name(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII) is not None
