"""Which earlier runs pit improve and pit serve work with, and the certified threshold of these."""

from pathlib import Path
from typing import Any, NamedTuple

from pitcli.console import note
from pitcli.errors import SettingsError
from pitcli.runs.calibration import CALIBRATION, read_calibration
from pitcli.runs.earlier import EarlierRun, find_reward, find_run, gap_temperatures, required_run
from pitcli.runs.metrics import last_metrics
from pitcli.settings.base import Method, StopRule
from pitcli.settings.default_runs import GAP_RUN, IMPROVER_RUN, POLICY_RUN
from pitcli.settings.generating import ImproveConfig


class Models(NamedTuple):
    """The runs to use: the writer's (None: the base model writes) and the one with the gap model or models."""

    writer: EarlierRun | None
    gap_run: EarlierRun | None

    def runs(self) -> list[EarlierRun]:
        gap_run = None if self.gap_run is self.writer else self.gap_run
        return [run for run in (self.writer, gap_run) if run]

    def gap_temperatures(self) -> dict[str, float]:
        return gap_temperatures(self.gap_run.manifest) if self.gap_run else {}

    def adapters(self) -> dict[str, Path]:
        """Return the adapter folders by role."""
        adapters: dict[str, Path] = {self.writer.manifest.role: self.writer.adapter} if self.writer else {}
        return adapters | (self.gap_run.gap_models() if self.gap_run else {})

    def digests(self) -> dict[str, str]:
        """Return the digests of the adapters' weights, by role."""
        writer = self.writer.manifest if self.writer else None
        digests = {str(writer.role): writer.adapter_digest(writer.role)} if writer else {}
        return digests | (self.gap_run.gap_digests() if self.gap_run else {})

    def origin(self) -> dict[str, Any]:
        """Return what pit evaluate needs to know: the data of the models that were used, and how RL ended."""
        gap_data = {data.digest: data.model_dump() for run in self.runs() if (data := run.manifest.gap_data)}
        writer = self.writer if self.writer and self.writer.manifest.kind == "rl" else None
        commands = self.writer.manifest.reward_commands if self.writer else []
        return {
            "gap_data": list(gap_data.values()),
            "training": last_metrics(writer.folder) if writer else {},
            "trained_on": self.writer.manifest.data.prompts if self.writer else [],
            **({"reward_commands": commands} if commands else {}),
        }


def find_models(config: ImproveConfig) -> Models:
    """Find the writer (the improver or the policy) and the gap model."""
    if config.writer:
        return Models(None, find_gap_run(config, find_run(config.run, IMPROVER_RUN)))
    pit = config.method is Method.pit
    writer = required_run(config.run, IMPROVER_RUN) if pit else find_run(config.policy, POLICY_RUN)
    return Models(writer, find_gap_run(config, writer))


def find_gap_run(config: ImproveConfig, writer: EarlierRun | None) -> EarlierRun | None:
    if config.reward is None and writer and writer.manifest.has_gap_model:
        # an RL run contains the gap model that rewarded it, unless that was a program; a shipped run contains one too
        return writer
    reward = find_reward(config.reward)
    if reward is None and config.needs_gap_model():
        remedy = (
            ", or use --stop none" if not config.model_copy(update={"stop": StopRule.none}).needs_gap_model() else ""
        )
        raise SettingsError(f"{GAP_RUN.missing}{remedy}")
    return reward


def with_threshold(config: ImproveConfig, models: Models) -> ImproveConfig:
    """Return the settings with the threshold of pit calibrate if none is given and its certificate applies."""
    is_needed = config.stop is StopRule.gap and config.method is Method.pit and models.writer
    if "threshold" in config.model_fields_set or not is_needed or models.writer is None:
        return config
    calibration = read_calibration(models.writer.folder)
    if calibration is None:
        return config
    if changed := calibration.differences(config.process(), models.digests()):
        certified = f"{models.writer.folder / CALIBRATION} is for {', '.join(changed)}"
        note(f"{certified}: threshold {config.threshold:g}, without a certificate")
        return config
    note(f"{calibration.certificate()} (pit calibrate); --threshold overrides it")
    return config.model_copy(update={"threshold": calibration.threshold})
