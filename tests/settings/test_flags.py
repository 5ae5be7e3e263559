"""Flags, YAML and validation of the settings classes."""

import inspect
from pathlib import Path

import pytest

from pitcli.errors import SettingsError
from pitcli.settings.base import GapLoss, Settings, Stage
from pitcli.settings.flags import command_of, settings_of, settings_yaml
from pitcli.settings.generating import ImproveConfig, SampleConfig
from pitcli.settings.preparing import PrepareConfig
from pitcli.settings.training import RewardConfig, RlConfig, SftConfig

UNUSUAL: dict[type[Settings], dict[str, object]] = {
    SftConfig: {"role": "policy", "data": "été: #1.jsonl", "out": "a b/c", "learning_rate": 1e-7, "seed": 7},
    RewardConfig: {"gap_loss": "bradley-terry", "load_in_4bit": False, "model": "1e5", "max_steps": 3},
    SampleConfig: {"data": "-", "temperature": 0, "top_p": 0.1 + 0.2, "policy": "null"},
    RlConfig: {"curriculum": True, "kl_coef": 0, "drafts": "yes", "max_kl": 1e16},
    ImproveConfig: {"stop": "none", "max_iters": 0, "threshold": 1, "run": "~"},
    PrepareConfig: {"synthetic": 5, "folds": "a=1,b=2"},
}


def problems_of(config_class: type[Settings], flags: dict[str, object], file: Path | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        settings_of(config_class, flags, None if file is None else str(file))
    return caught.value.problems


@pytest.mark.parametrize("config_class", UNUSUAL)
def test_saved_settings_are_read_back_unchanged(config_class: type[Settings], tmp_path: Path) -> None:
    for values in ({"synthetic": 1} if config_class is PrepareConfig else {}, UNUSUAL[config_class]):
        config = config_class.model_validate(values)
        (tmp_path / "saved.yaml").write_text(settings_yaml(config))
        assert settings_of(config_class, {}, str(tmp_path / "saved.yaml")) == config


def test_only_start_settings_and_none_are_not_saved(tmp_path: Path) -> None:
    (tmp_path / "saved.yaml").write_text(settings_yaml(SftConfig(resume=True, max_rows=3)))
    text = (tmp_path / "saved.yaml").read_text()
    assert "resume" not in text
    assert "overwrite" not in settings_yaml(SftConfig(overwrite=True))
    assert "max_rows: 3\n" in text
    assert "max_steps" not in text, "None is not written"


@pytest.mark.parametrize("config_class", UNUSUAL)
def test_one_flag_per_field(config_class: type[Settings]) -> None:
    names = list(inspect.signature(command_of(config_class, lambda config: None)).parameters)
    assert sorted(names) == sorted(["config", "json_progress", *config_class.model_fields])


def test_common_options_come_first_and_others_last() -> None:
    names = list(inspect.signature(command_of(RlConfig, lambda config: None)).parameters)
    assert names[:5] == ["data", "curriculum", "model", "out", "resume"]
    assert names[-2:] == ["config", "json_progress"]


def test_flags_override_the_file_and_the_file_overrides_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 3\nseed: 4\nlearning_rate: 1e-5\nresume: no\n")
    config = settings_of(SftConfig, {"epochs": "9", "resume": True}, str(file))
    # YAML 1.1 reads 1e-5 (no dot) as text; the setting must be a number nevertheless.
    assert (config.epochs, config.seed, config.learning_rate, config.resume) == (9, 4, 1e-5, True)
    assert config.batch_size == 16


@pytest.mark.parametrize("stages", ["curriculum_stages: dataset,self", "curriculum_stages: [dataset, self]"])
def test_curriculum_stages_in_a_file(stages: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(stages)
    config = settings_of(RlConfig, {}, str(tmp_path / "c.yaml"))
    assert config.curriculum_stages == (Stage.dataset, Stage.self_)


def test_curriculum_sets_two_stages_and_conflicts_with_others(tmp_path: Path) -> None:
    assert settings_of(RlConfig, {"curriculum": True}).curriculum_stages == (Stage.dataset, Stage.policy)
    assert settings_of(RlConfig, {"curriculum_stages": "dataset,policy"}).curriculum
    (tmp_path / "c.yaml").write_text("curriculum: false")
    assert settings_of(RlConfig, {}, str(tmp_path / "c.yaml")).curriculum_stages == (Stage.dataset,)
    assert RlConfig.model_validate({"curriculum": "false"}).curriculum_stages == (Stage.dataset,), "of --set"
    (tmp_path / "c.yaml").write_text(settings_yaml(RlConfig(curriculum=True)))
    assert problems_of(RlConfig, {"curriculum": False}, tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text(settings_yaml(RlConfig(curriculum_stages=(Stage.dataset, Stage.self_))))
    assert not settings_of(RlConfig, {}, str(tmp_path / "c.yaml")).curriculum
    (tmp_path / "c.yaml").write_text("curriculum_stages: [dataset]")
    [problem] = problems_of(RlConfig, {"curriculum": True}, tmp_path / "c.yaml")
    assert "give only one of the two" in problem


def test_all_problems_are_reported_at_once_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("batch_size: 0\nwarmup_share: 1\nlearnin_rate: 1\nbatch-size: 2\nzzz: 1\nmodel: 3\n")
    flags: dict[str, object] = {"learning_rate": "-1", "epochs": "two", "role": "polcy", "out": ""}
    assert sorted(problems_of(SftConfig, flags, file)) == sorted(
        [
            "--out: must not be empty",
            "--learning-rate: must be greater than 0, got -1",
            "--epochs: must be a valid integer, got two",
            "--role: must be 'policy' or 'improver', got polcy",
            f"{file}: batch_size: must be greater than or equal to 1, got 0",
            f"{file}: warmup_share: must be less than 1, got 1",
            f"{file}: learnin_rate: no such setting; did you mean learning_rate?",
            f"{file}: batch-size: no such setting; did you mean batch_size?",
            f"{file}: zzz: no such setting; see --help",
            f"{file}: model: must be a valid string, got 3",
        ]
    )


@pytest.mark.parametrize(
    ("config_class", "flags", "problem"),
    [
        (SftConfig, {"seed": "1.5"}, "--seed: must be a valid integer, got 1.5"),
        (SftConfig, {"learning_rate": "nan"}, "--learning-rate: must be a finite number, got nan"),
        (SftConfig, {"device": "gpu"}, "--device: must be 'auto', 'cpu', 'cuda' or 'mps', got gpu"),
        (
            RlConfig,
            {"curriculum_stages": "dataset,polcy"},
            "--curriculum-stages: must be 'dataset', 'policy' or 'self', got polcy",
        ),
        (RlConfig, {"curriculum_stages": ","}, "--curriculum-stages: must have at least 1 item, got a list"),
        (PrepareConfig, {}, "give either --data or --synthetic"),
        (PrepareConfig, {"data": "x", "synthetic": "3"}, "give either --data or --synthetic"),
        (SftConfig, {"epochs": "x" * 300}, f"got {'x' * 60}…"),
    ],
)
def test_one_bad_value(config_class: type[Settings], flags: dict[str, object], problem: str) -> None:
    [line] = problems_of(config_class, flags)
    assert problem in line


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 1\nepochs: [2\n", "FILE:3: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("seed: 1\n\tepochs: 2\n", "FILE:2: not YAML: found character '\\t' that cannot start any token"),
        ("seed: 1\nepochs: 2\nseed: 3\n", "FILE:3: duplicate key seed, first given in line 1"),
        ("- seed\n", "FILE: expected `setting: value` lines, got a list"),
        ("seed\n", "FILE: expected `setting: value` lines, got seed"),
        (
            "seed: !!python/object/apply:os.system [id]\n",
            "FILE:1: not YAML: could not determine a constructor",
        ),
        ("seed: 2024-13-45\n", "FILE: not YAML: month must be in 1..12"),
        ("a: 1\n---\nb: 2\n", "FILE:2: not YAML: but found another document"),
        ("a: " + "[" * 600, "FILE: not YAML: maximum recursion depth exceeded"),
        ("1: 2\n", "FILE: 1: no such setting"),
        ("seed: {a: 1}\n", "FILE: seed: must be a valid integer, got a mapping"),
        ("seed: \x07\n", "FILE: not YAML: unacceptable character"),
    ],
)
def test_an_unusable_file_is_one_line(text: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    [line] = problems_of(SftConfig, {}, file)
    assert line.startswith(problem.replace("FILE", str(file)))
    assert "\n" not in line


def test_an_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"data: \xe9.jsonl\n")
    assert "not YAML: 'utf-8' codec" in problems_of(SftConfig, {}, tmp_path / "latin.yaml")[0]
    missing = tmp_path / "none.yaml"
    assert problems_of(SftConfig, {}, missing) == [f"--config: {missing}: No such file or directory"]
    assert problems_of(SftConfig, {}, tmp_path) == [f"--config: {tmp_path}: Is a directory"]


def test_a_file_of_comments_sets_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing yet\n")
    assert settings_of(RewardConfig, {}, str(tmp_path / "c.yaml")).gap_loss is GapLoss.five_term
