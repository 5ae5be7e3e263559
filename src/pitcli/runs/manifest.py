"""The manifest of a run: its settings, inputs, results and the digests of its files, sealed against changes."""

import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

from pitcli import __version__
from pitcli.errors import RunError, SettingsError
from pitcli.runs.divergence import DIVERGED
from pitcli.runs.files import WEIGHTS, file_digest
from pitcli.runs.sealed import read_sealed, write_sealed
from pitcli.settings.default_runs import Kind
from pitcli.settings.values import is_command, split_commas

MANIFEST = "manifest.json"
UNFINISHED = "the run is not finished; continue it with the same command and --resume"

AdapterRole = Literal["policy", "improver", "gap"]
# an ensemble has the gap models gap, gap-2, gap-3 ...
GAP_ROLE = r"gap(-[1-9][0-9]*)?"
SavedRole = Annotated[str, StringConstraints(pattern=f"^(policy|improver|{GAP_ROLE})$")]


class Strict(BaseModel):
    """Base of what a run folder stores as JSON: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class BaseIdentity(Strict):
    """The base model: the name that the user gave, and the digests of its files and of its template."""

    name: str
    digest: str
    template: str
    load_in_4bit: bool
    dtype: Literal["fp32", "bf16"] = "fp32"  # of the computation
    template_options: dict[str, bool | int | float | str | None] = {}  # variables of the chat template


class DataIdentity(Strict):
    """The training data: its path or paths, comma-separated; the digest of its rows; a sample of its prompts."""

    path: str
    digest: str
    rows: int
    prompts: list[str]
    # how the rows are read again, by a later stage
    skip_bad: bool | None = None
    fields: str | None = None

    @property
    def can_be_read_again(self) -> bool:
        return "-" not in split_commas(self.path)


class Manifest(Strict):
    """The description of a run; `files` and `results` are set once it is complete."""

    kind: Kind
    role: AdapterRole
    pit_version: str = __version__
    versions: dict[str, str] = {}
    config: dict[str, Any]
    base: BaseIdentity
    data: DataIdentity
    gap_data: DataIdentity | None = None  # of the gap model that it trained, or that rewarded it or its start
    inputs: dict[str, str] = {}  # the adapters that the run started from: role -> digest
    earlier_rewards: list[str] = []  # cmd:COMMAND of the programs that rewarded the runs that it started from
    complete: bool = False
    probes: dict[SavedRole, list[float]] = {}  # what each adapter returned for fixed tokens when it was saved
    results: dict[str, float | int | str | None] = {}
    files: dict[str, str] = {}

    @property
    def has_gap_model(self) -> bool:
        """Whether it contains gap models besides its improver or policy: what rewarded its RL, or what is shipped."""
        return self.role != "gap" and bool(self.gap_roles())

    @property
    def reward_commands(self) -> list[str]:
        """cmd:COMMAND of each program that rewarded the run, or one that it started from."""
        reward = self.config.get("reward")
        own = [reward] if self.kind == "rl" and is_command(reward) else []
        return sorted({*own, *self.earlier_rewards})

    def gap_roles(self) -> list[str]:
        """The roles of the gap models in the run's folder."""
        names = [name.partition("/") for name in self.files]
        return [role for role, _, file in names if file == WEIGHTS and re.fullmatch(GAP_ROLE, role)]

    def adapter_digest(self, role: str) -> str:
        """The digest of the weights of a role's adapter."""
        return self.files[f"{role}/{WEIGHTS}"]

    def trained_roles(self) -> list[str]:
        """The roles that the run trained: one, or all gap models of an ensemble."""
        return self.gap_roles() if self.role == "gap" else [self.role]


def library_versions() -> dict[str, str]:
    names = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def load_manifest(folder: Path, remedy: str) -> Manifest:
    """The manifest of a finished run, its files verified; the remedy is for the error if there is none.

    Raises SettingsError if there is no such folder, RunError if it does not contain a finished run as it was written.
    """
    if not folder.exists():
        raise SettingsError(f"{folder}: no such run; {remedy}")
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(f"{folder}: no finished run in this folder; {remedy}")
    if not manifest.complete:
        diverged = manifest.results.get(DIVERGED)
        problem = f"the run is not finished, because training diverged: {diverged}" if diverged else UNFINISHED
        raise RunError(f"{folder}: {problem}")
    adapter = {f"{manifest.role}/{name}" for name in ("adapter_config.json", WEIGHTS)}
    if not adapter <= manifest.files.keys() or any(
        ".." in Path(name).parts or Path(name).is_absolute() for name in manifest.files
    ):
        raise RunError(f"{folder / MANIFEST}: does not list the files of its adapter, or lists files elsewhere")
    for name, digest in manifest.files.items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise RunError(f"{folder / name}: missing or changed since it was written")
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a run, finished or not, its files not verified; None if there is none."""
    return read_sealed(folder / MANIFEST, Manifest, ", or not a manifest of this version of pit")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_sealed(folder / MANIFEST, manifest)
