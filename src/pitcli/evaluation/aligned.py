"""The systems that pit evaluate compares, their controls, and the rows that all of them have."""

from typing import NamedTuple

from pitcli.errors import SettingsError
from pitcli.evaluation.compare_systems import RowsAgainstBaseline, against_originals, against_system
from pitcli.evaluation.systems import MADE, ORIGINAL, ImprovedRow, Key, System, align, load_systems, made_controls
from pitcli.settings.tools import EvaluateConfig


class AlignedSystems(NamedTuple):
    """The systems and controls to compare. keys: the rows that all of them have."""

    systems: list[System]
    controls: list[System]
    keys: list[Key]

    def rows(self, system: System) -> list[ImprovedRow]:
        return system.at(self.keys)

    def system_pairs(self) -> list[RowsAgainstBaseline]:
        """Pair each system with the originals, and the first system with each other one."""
        if not self.systems:
            return []
        first, *others = self.systems
        return [
            *(against_originals(system.name, self.rows(system)) for system in self.systems),
            *(self._against(first, other) for other in others),
        ]

    def control_pairs(self) -> list[RowsAgainstBaseline]:
        """Pair each control with the baseline that it must not beat."""
        by_name = {system.name: system for system in self.systems}
        return [
            against_originals(control.name, self.rows(control))
            if control.baseline == ORIGINAL
            else self._against(control, by_name[control.baseline])
            for control in self.controls
        ]

    def _against(self, system: System, baseline: System) -> RowsAgainstBaseline:
        return against_system(
            system.name, rows=self.rows(system), baseline=baseline.name, baseline_rows=self.rows(baseline)
        )


def load_aligned(config: EvaluateConfig) -> AlignedSystems:
    """Read all rows."""
    if not config.input:
        return AlignedSystems([], [], [])
    systems = load_systems(config.input, "--input", by=config.by, max_rows=config.max_rows)
    controls = load_systems(config.control, "--control", by=None, max_rows=config.max_rows)
    names = [system.name for system in (*systems, *controls)]
    if taken := {name for name in names if names.count(name) > 1} | ({ORIGINAL, *MADE} & set(names)):
        raise SettingsError(
            f"--input: the name {', '.join(sorted(taken))} is used twice or reserved; give NAME=FILE with another name"
        )
    for control in controls:
        if control.baseline not in {ORIGINAL, *(system.name for system in systems)}:
            raise SettingsError(f"--control: {control.name}: no system {control.baseline} in --input")
    keys = align([*systems, *controls])
    return AlignedSystems(systems, [*controls, *made_controls(systems[0], config.seed)], keys)
