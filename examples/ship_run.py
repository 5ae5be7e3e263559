"""Write the adapters of an improver and a gap model in bf16, with a manifest of their own, as the package ships them.

    python examples/ship_run.py runs/rl src/pitcli/assets/runs/instructions
    python examples/ship_run.py runs/sft src/pitcli/assets/runs/instructions --reward runs/reward

Run it again with --evaluation once `pit evaluate` has judged rows that the shipped run improved: its adapters are not
those of the source any more.

The run is used like any other: its seals and probe scores are those of the bf16 adapters. Checkpoints and metrics stay
behind. The improver gets the model card that `pit export` writes.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from pitcli.cli import main as pit
from pitcli.console import note
from pitcli.engine.models.adapters import load_role, write_tensors
from pitcli.engine.models.forward import probe
from pitcli.engine.models.hub import hub_name
from pitcli.engine.models.loading import WEIGHTS
from pitcli.engine.models.opening import open_base
from pitcli.engine.models.roles import GAP
from pitcli.runs.earlier import EarlierRun, gap_results
from pitcli.runs.files import file_digest
from pitcli.runs.manifest import load_manifest, write_manifest
from pitcli.settings.base import ModelSettings

CONFIG = "adapter_config.json"


def ship(source: Path, out: Path, reward: Path | None) -> None:
    manifest = load_manifest(source, "pit rl makes one")
    if reward:  # by this gap model the improver was not trained: `inputs` of an RL run still names the one that it was
        later = load_manifest(reward, "pit train-reward makes one")
        results = {**manifest.results, **gap_results(later)}
        manifest = manifest.model_copy(update={"gap_data": later.gap_data, "results": results})
    base = open_base(ModelSettings(), [EarlierRun(source, manifest)])
    model = base.load()
    probes, digests = dict[str, list[float]](), dict[str, str]()
    for role in (manifest.role, GAP):
        folder = out / role
        folder.mkdir(parents=True)
        adapter_of = reward if reward and role == GAP else source
        adapter = json.loads((adapter_of / role / CONFIG).read_text())
        adapter["base_model_name_or_path"] = hub_name(manifest.base.name, base.folder)  # not a folder of here
        (folder / CONFIG).write_text(json.dumps(adapter, indent=1) + "\n")
        tensors = load_file(adapter_of / role / WEIGHTS)
        write_tensors(folder / WEIGHTS, {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()})
        load_role(model, role, folder)
        probes[role] = probe(model, role)
        digests |= {f"{role}/{name}": file_digest(folder / name) for name in (CONFIG, WEIGHTS)}
    write_manifest(out, manifest.model_copy(update={"probes": probes, "files": digests}))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    note(f"{out}: {size / 1e6:.1f} MB")


def add_card(run: Path, evaluation: Path | None) -> None:
    """Write the card of the improver, with its results if an evaluation is given."""
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "improver"
        shown = [] if evaluation is None else ["--evaluation", str(evaluation)]
        command = ["export", str(run), "--role", "improver", "--adapter", "--out", str(exported), *shown]
        if code := pit([*command, "--license", "apache-2.0"]):
            sys.exit(code)
        shutil.copy(exported / "README.md", run / "improver" / "README.md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="finished run of an improver; one of RL contains its gap model")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--evaluation", type=Path, help="evaluation.json of pit evaluate, for the card")
    parser.add_argument("--reward", type=Path, help="run of the gap model to ship instead of that of the RL")
    given = parser.parse_args()
    ship(given.source, given.out, given.reward)
    add_card(given.out, given.evaluation)
