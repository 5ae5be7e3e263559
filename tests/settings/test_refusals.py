"""Settings that would be ignored, or would mean nothing, are refused."""

from pathlib import Path
from typing import Any

import pytest

from pitcli.errors import SettingsError
from pitcli.settings.base import PreferenceLoss
from pitcli.settings.dpo import DpoConfig
from pitcli.settings.flags import settings_of
from pitcli.settings.generating import ImproveConfig, Method


def test_a_run_of_an_improver_is_not_for_samples_of_the_policy() -> None:
    with pytest.raises(ValueError, match="--run is for --method pit"):
        ImproveConfig(method=Method.best_of_n, run=Path("runs/rl"))
    writer: dict[str, Any] = {"writer": "openai:m", "method": Method.best_of_n, "run": Path("runs/rl")}
    assert ImproveConfig(**writer).run == Path("runs/rl"), "its gap model ranks"


def test_kto_needs_two_pairs() -> None:
    with pytest.raises(ValueError, match="--loss kto compares pairs of one step"):
        DpoConfig(loss=PreferenceLoss.kto, batch_size=1)


def test_all_that_is_wrong_is_said_at_once() -> None:
    given: dict[str, object] = {"method": "best-of-n", "width": "3", "prompt": " ", "prune_edits": "yes"}
    with pytest.raises(SettingsError) as refused:
        settings_of(ImproveConfig, given)
    assert [problem.split()[0] for problem in refused.value.problems] == ["--prompt:", "--width", "--prune-edits"]


@pytest.mark.parametrize("given", ["", " ", ",", " , "])
@pytest.mark.parametrize("field", ["base_url", "gap_url"])
def test_addresses_of_unset_variables_do_not_mean_another_server(field: str, given: str) -> None:
    """No address of --writer would mean OpenAI's, and none of --gap-url too."""
    settings: dict[str, Any] = {"writer": "openai:m", field: given}
    with pytest.raises(ValueError, match="expected one or several URLs, got"):
        ImproveConfig(**settings)
