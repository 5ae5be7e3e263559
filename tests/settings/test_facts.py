"""Facts about a setting are declared on its field, so that no list of names can miss one."""

import re
from pathlib import Path

import pytest

from pitcli.settings.commands import COMMANDS
from pitcli.settings.facts import Fact, facts_of
from pitcli.settings.generating import ImproveConfig
from pitcli.settings.training import RlConfig, SftConfig, TrainingConfig

FIELDS = [
    pytest.param(field, id=f"{command}: {name}")
    for command, (settings, *_) in COMMANDS.items()
    for name, field in settings.model_fields.items()
    if re.search(r"\b(str|Path)\b", str(field.annotation))
]


@pytest.mark.parametrize("field", FIELDS)
def test_each_text_or_path_declares_what_it_names(field: object) -> None:
    """Recipes find each file, run and base by these facts, and do not compare outputs."""
    kinds = (Fact.text, Fact.base, Fact.file, Fact.files, Fact.named_file, Fact.run, Fact.judge, Fact.output)
    assert sum(kind in facts_of(field) for kind in kinds) == 1  # type: ignore[arg-type]


def test_identity_excludes_how_a_run_is_executed() -> None:
    """These settings are not in the manifest of a run; any new setting is, unless a fact excludes it."""
    for settings in (SftConfig, RlConfig):
        excluded = settings.model_fields.keys() - settings().identity().keys() - {"force"}
        assert excluded == {
            *("out", "resume", "overwrite", "dry_run", "save_every", "track", "keep_diverged"),
            *("micro_batch_size", "tokens_per_batch", "gradient_checkpointing", "shard_base"),
            *("device", "dtype"),  # the base's identity has the type in use
            *("skip_bad", "list_bad", "fields"),  # the data's identity is that of the rows that were read
        }
    kept = ImproveConfig.model_fields.keys() - ImproveConfig().identity().keys()
    assert kept == {"input", "output", "resume", "overwrite", "device", "dtype", "diff"} | {
        *("sample_batch_size", "base_url", "concurrency", "request_timeout", "gap_url"),
    }


def test_settings_that_later_stages_inherit_from_the_gap_model() -> None:
    assert SftConfig.named(Fact.handed_on) == {
        *("data", "skip_bad", "fields", "model", "load_in_4bit", "template_option")
    }


def test_settings_that_rl_hands_to_its_sft() -> None:
    """All shared settings but RL's own; a new setting is handed on, unless a fact excludes it."""
    shared = RlConfig.model_fields.keys() & SftConfig.model_fields.keys()
    assert shared >= TrainingConfig.model_fields.keys()
    given = {
        **{
            "data": "d.jsonl",
            "skip_bad": True,
            "list_bad": "bad.jsonl",
            "fields": "prompt=p,chosen=c,rejected=r",
            "max_rows": 5,
            "long_rows": "skip",
            "max_length": 99,
            "model": "tiny",
            "load_in_4bit": True,
        },
        **{"device": "cpu", "seed": 1, "max_steps": 2, "micro_batch_size": 3, "tokens_per_batch": 400, "save_every": 5},
        **{"gradient_checkpointing": True, "shard_base": True, "dry_run": True, "track": ("wandb",)},
        **{
            "warmup_share": 0.5,
            "max_grad_norm": 6.0,
            "dtype": "fp32",
            "template_option": ("a=1",),
            "keep_diverged": True,
        },
    }
    own = {"learning_rate": 1.0, "batch_size": 2, "epochs": 3, "out": Path("x"), "resume": True, "overwrite": False}
    assert shared - given.keys() - own.keys() == {"role"}
    sft = RlConfig(**given, **own).sft_settings()  # type: ignore[arg-type]
    assert sft == SftConfig(**given)  # type: ignore[arg-type]
