"""The runs that RL builds on, found and checked before anything slow starts."""

from pathlib import Path
from typing import NamedTuple

from pitcli.console import note, warn
from pitcli.data.sources import HUB
from pitcli.engine.models.roles import POLICY, REFERENCE
from pitcli.equations import MAX_TEMPERATURE
from pitcli.errors import InputError, RunError
from pitcli.runs.earlier import EarlierRun, find_reward, find_run, gap_temperature, warn_if_not_calibrated
from pitcli.runs.folder import is_finished, refuse_used
from pitcli.runs.manifest import DataIdentity, Manifest
from pitcli.settings.base import Role
from pitcli.settings.default_runs import GAP_RUN, SFT_POLICY_RUN, SFT_RUN
from pitcli.settings.training import RlConfig


class Runs(NamedTuple):
    """The runs that RL uses: the one it starts from, the gap model, and the policy that writes references.

    gap: None if a program is the reward. policy: None if there is none.
    """

    start: EarlierRun
    gap: EarlierRun | None
    policy: EarlierRun | None

    def all(self) -> list[EarlierRun]:
        return [run for run in (self.gap, self.start, self.policy) if run]

    def adapters(self, trained: Role) -> dict[str, Path]:
        """Return the adapter folders by role."""
        adapters: dict[str, Path] = {trained: self.start.adapter, REFERENCE: self.start.adapter}
        adapters |= self.gap.gap_models() if self.gap else {}
        return {**adapters, POLICY: self.policy.adapter} if self.policy else adapters


def find_runs(config: RlConfig) -> Runs:
    """Find them; InputError lists what is missing, RunError names a gap model that is no better than a coin."""
    improver = config.role is Role.improver
    policy = find_run(config.policy, SFT_POLICY_RUN)
    first = find_run(config.sft, SFT_RUN) if improver else policy
    gap = None if isinstance(config.reward, str) else find_reward(config.reward)
    missing = [] if first else [SFT_RUN if improver else SFT_POLICY_RUN]
    missing += [] if gap or isinstance(config.reward, str) else [GAP_RUN]
    if first is None or missing:
        raise InputError([run.missing for run in missing])
    if gap:
        check_gap_model(gap, config.force)
    return Runs(first, gap, policy if improver else None)


def is_improver_missing(config: RlConfig) -> bool:
    return config.role is Role.improver and config.sft is None and not is_finished(Path(SFT_RUN.folders[0]))


def check_before_sft(config: RlConfig) -> None:
    """If the SFT start is to be trained first, raise what RL would raise after it, as far as files show it now."""
    if not is_improver_missing(config):
        return
    find_run(config.policy, SFT_POLICY_RUN)
    if not isinstance(config.reward, str):
        gap = find_reward(config.reward)
        if gap is None:
            raise InputError([GAP_RUN.missing])
        check_gap_model(gap, config.force)
    drafts = config.drafts or "-"
    if not drafts.startswith(("-", HUB)) and not Path(drafts).exists():
        raise InputError(f"{drafts}: no such file")
    if not config.resume:
        refuse_used(config.run_folder, config.overwrite)


def note_known_prompts(gap: EarlierRun | None, data: DataIdentity) -> None:
    if gap and set(data.prompts) & set(gap.manifest.data.prompts):
        note("the gap model was trained on prompts of --data, and is too sure of pairs that it has seen (pit prepare)")


def gap_problem(manifest: Manifest) -> str | None:
    """Return what shows that a gap model ranks held-out pairs no better than a coin; None if nothing does."""
    accuracy = manifest.results.get("accuracy")
    if gap_temperature(manifest) >= MAX_TEMPERATURE:
        return "P(better) of the gap model is 0.5 for every pair: its temperature is at its bound"
    if isinstance(accuracy, float) and accuracy <= 0.5:
        return f"the gap model ranks {accuracy:.0%} of its held-out pairs as labelled"
    return None


def check_gap_model(gap: EarlierRun, force: bool) -> None:
    """Raise RunError, or warn with --force, if a gap model ranks held-out pairs no better than a coin.

    Warns if its P(better) is not calibrated.
    """
    if problem := gap_problem(gap.manifest):
        text = f"{gap.folder}: {problem}, so RL would learn noise"
        if not force:
            raise RunError(f"{text}; train the gap model on more pairs or longer, or use --force")
        warn(text)
    warn_if_not_calibrated(gap)
