"""pit prepare reads any known format and writes canonical, disjoint folds."""

import json
from pathlib import Path

import pytest

from pitcli import cli
from pitcli.data.pair_reading import load_pairs
from pitcli.data.splits import prompt_key
from pitcli.errors import InputError, SettingsError
from pitcli.settings.preparing import PrepareConfig
from pitcli.stages import prepare

HH_ROW = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Name a fish\n\nAssistant: cod",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Name a fish\n\nAssistant: cow",
}
MESSAGES = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Name a fish"},
]


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def numbered_pairs(count: int) -> list[dict[str, object]]:
    return [{"id": f"p{n}", "prompt": f"Question {n}", "chosen": "a b", "rejected": "c"} for n in range(count)]


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (
            {"id": 7, "prompt": "Naïve?", "chosen": "yes ", "rejected": "no", "source": {"x": [1]}},
            {"id": "7", "prompt": "Naïve?", "chosen": "yes", "rejected": "no", "source": {"x": [1]}},
        ),
        ({"id": "h", **HH_ROW}, {"id": "h", "prompt": MESSAGES, "chosen": "cod", "rejected": "cow"}),
        # As plain text, this prompt would be read back as a transcript with an assistant turn.
        (
            {
                "id": "t",
                "prompt": [{"role": "user", "content": "Human: a\n\nAssistant: b"}],
                "chosen": "x",
                "rejected": "y",
            },
            {
                "id": "t",
                "prompt": [{"role": "user", "content": "Human: a\n\nAssistant: b"}],
                "chosen": "x",
                "rejected": "y",
            },
        ),
    ],
)
def test_rows_become_canonical_and_read_back_the_same(
    given: dict[str, object], written: dict[str, object], tmp_path: Path
) -> None:
    data = write(tmp_path / "in.jsonl", [given])
    prepare.run(PrepareConfig(data=data, out=tmp_path / "out", folds="all=1"))
    assert rows_of(tmp_path / "out" / "all.jsonl") == [written]
    assert load_pairs(tmp_path / "out" / "all.jsonl") == load_pairs(data)


def test_folds_are_disjoint_and_keep_every_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*numbered_pairs(60), numbered_pairs(1)[0], {**numbered_pairs(1)[0], "id": "again", "chosen": "other"}]
    data = write(tmp_path / "in.jsonl", rows)
    prepare.run(PrepareConfig(data=data, out=tmp_path / "out"))
    folds = {path.stem: load_pairs(path) for path in (tmp_path / "out").iterdir()}
    assert set(folds) == {"sft", "reward", "rl", "test"}, "no temporary files are left"
    ids = [pair.id for pairs in folds.values() for pair in pairs]
    assert sorted(ids) == sorted([f"p{n}" for n in range(60)] + ["again"])
    keys = [{prompt_key(pair) for pair in pairs} for pairs in folds.values()]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 60
    out, err = capsys.readouterr()
    assert out == ""
    assert "duplicate rows: 1\n" in err
    assert err.endswith(f"next: pit sft --data {tmp_path / 'out' / 'sft.jsonl'}\n")


def test_the_report_shows_mean_lengths_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "in.jsonl", numbered_pairs(3))
    prepare.run(PrepareConfig(data=data, out=tmp_path, folds="all=1"))
    # "Question n" is 2 words, "a b" is 2, "c" is 1.
    assert ["all", "3", "2", "2", "1"] in [line.split() for line in capsys.readouterr().err.splitlines()]


def test_synthetic_rows_depend_on_the_seed_only(tmp_path: Path) -> None:
    for out in ("a", "b"):
        prepare.run(PrepareConfig(synthetic=40, seed=1, out=tmp_path / out))
    for name in ("sft", "reward", "rl", "test"):
        text = (tmp_path / "a" / f"{name}.jsonl").read_text()
        assert text == (tmp_path / "b" / f"{name}.jsonl").read_text()
    prepare.run(PrepareConfig(synthetic=40, seed=1, max_rows=5, folds="all=1", out=tmp_path / "c"))
    assert [row["id"] for row in rows_of(tmp_path / "c" / "all.jsonl")] == [f"syn-1-{n}" for n in range(5)]


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    data = write(tmp_path / "all.jsonl", numbered_pairs(3))
    before = Path(data).read_bytes()
    with pytest.raises(SettingsError, match="fold all would overwrite --data"):
        prepare.run(PrepareConfig(data=data, out=tmp_path / "." / "x" / "..", folds="all=1", overwrite=True))
    with pytest.raises(SettingsError, match="fold all would overwrite --data"):
        prepare.run(PrepareConfig(data=data, out=tmp_path, folds="all=1", overwrite=True))
    assert Path(data).read_bytes() == before
    others = write(tmp_path / "others.jsonl", numbered_pairs(4))
    with pytest.raises(SettingsError, match=r"all\.jsonl exist; use --overwrite to replace them, or another folder"):
        prepare.run(PrepareConfig(data=others, out=tmp_path, folds="all=1"))
    assert Path(data).read_bytes() == before


def test_files_of_an_earlier_run_in_the_folder_give_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "in.jsonl", numbered_pairs(3))
    write(tmp_path / "old.jsonl", numbered_pairs(1))
    prepare.run(PrepareConfig(data=data, out=tmp_path, folds="all=1"))
    [warning] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "also contains old.jsonl, " in warning


def test_an_empty_fold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    data = write(tmp_path / "in.jsonl", numbered_pairs(1))
    with pytest.raises(InputError, match="these folds would be empty: "):
        prepare.run(PrepareConfig(data=data, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_bad_rows_and_bad_folds_exit_2_with_one_line_per_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "in.jsonl", [{"prompt": "p", "chosen": "", "rejected": "x"}, {"prompt": "p"}])
    assert cli.main(["prepare", "--data", data, "--out", str(tmp_path)]) == 2
    assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()] == [
        f"{data}:1:chosen",
        f"{data}:2:chosen",
    ]
    assert cli.main(["prepare", "--data", data, "--folds", "a=1,b"]) == 2
    assert capsys.readouterr().err.startswith("error: --folds: ")


def test_shuffled_labels_keep_the_pairs_and_lose_the_preference(tmp_path: Path) -> None:
    assert cli.main(["prepare", "--synthetic=400", f"--out={tmp_path}", "--folds=all=1"]) == 0
    before = [json.loads(line) for line in (tmp_path / "all.jsonl").open()]
    line = ["prepare", f"--data={tmp_path / 'all.jsonl'}", f"--out={tmp_path / 'shuffled'}", "--folds=all=1"]
    assert cli.main([*line, "--shuffle-labels"]) == 0
    after = [json.loads(line) for line in (tmp_path / "shuffled" / "all.jsonl").open()]
    same = [b["chosen"] == a["chosen"] and b["rejected"] == a["rejected"] for b, a in zip(before, after, strict=True)]
    swapped = [
        b["chosen"] == a["rejected"] and b["rejected"] == a["chosen"] for b, a in zip(before, after, strict=True)
    ]
    assert all(one != other for one, other in zip(same, swapped, strict=True))
    assert 160 < sum(swapped) < 240


RATED = [
    {"prompt": "Name a fish", "response": f"fish {rating}", "helpfulness": rating, "verbosity": 4 - rating}
    for rating in (1, 4, 3)
]


def test_ratings_become_pairs_by_rating_field_and_margin(tmp_path: Path) -> None:
    data = write(tmp_path / "in.jsonl", RATED)

    def made(*flags: str) -> list[tuple[object, object]]:
        line = ["prepare", f"--data={data}", f"--out={tmp_path / 'out'}", "--folds=all=1", "--overwrite"]
        assert cli.main([*line, *flags]) == 0
        return [(row["chosen"], row["rejected"]) for row in rows_of(tmp_path / "out" / "all.jsonl")]

    assert made() == [("fish 4", "fish 1"), ("fish 4", "fish 3")]
    assert made("--rating-margin=2") == [("fish 4", "fish 1")]
    assert made("--rating-field=verbosity") == [("fish 1", "fish 4"), ("fish 1", "fish 3")]
    made()
    assert load_pairs(data) == load_pairs(tmp_path / "out" / "all.jsonl")


def test_a_dry_run_shows_the_data_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        *numbered_pairs(3),
        numbered_pairs(1)[0],
        HH_ROW,
        {"prompt": "\x1b[2J", "chosen": "a " * 8, "rejected": "b"},
    ]
    data = write(tmp_path / "in.jsonl", rows[::-1])
    assert cli.main(["prepare", f"--data={data}", f"--out={tmp_path / 'out'}", "--folds=a=1", "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert "prompt[0] user: \\x1b[2J\n" in err
    cells = [line.split() for line in err.splitlines()]
    assert ["canonical", "/", "TRL", "preference", "5"] in cells
    assert ["HH", "transcripts", "/", "TRL,", "implicit", "prompt", "1"] in cells
    # the words of the prompts: 1, 2, 2, 2 and (Hi, Hello, Name a fish) 5
    assert ["prompt", "1", "2.4", "2", "4.4", "5"] in cells
    assert ["1", "█" * 8, "1", "█" * 8, "1", "█" * 24, "5"] in cells
    assert "duplicate rows: 1\n" in err
    assert "as training reads them: 5 within 256, 5 within 512, 5 within 1024 words" in err
    assert ["a", "5"] in cells


def test_a_dry_run_measures_in_tokens_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "in.jsonl", [{"prompt": "cats", "chosen": "dog", "rejected": "dog dog"}])
    line = ["prepare", f"--data={data}", "--folds=a=1", f"--out={tmp_path / 'out'}"]
    assert cli.main([*line, "--dry-run", "--model=tiny"]) == 0
    assert "Lengths in tokens" in capsys.readouterr().err
    assert cli.main([*line, "--model=tiny"]) == 2
    assert capsys.readouterr().err == "error: --model is for --dry-run\n"


@pytest.mark.parametrize(
    ("rows", "flags"),
    [
        ([{"prompt": "p", "chosen": "", "rejected": "x"}, *numbered_pairs(2)], ["--folds=all=1"]),
        ([{"p": 1}], ["--folds=all=1"]),
        (numbered_pairs(1), []),
        (numbered_pairs(9), ["--folds=all=1", "--out={file}"]),
        (RATED, ["--folds=all=1", "--rating-margin=9"]),
    ],
    ids=["bad row", "unknown row", "empty fold", "out is a file", "no pairs"],
)
def test_a_dry_run_fails_if_the_command_would(
    rows: list[dict[str, object]], flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "in.jsonl", rows)
    line = ["prepare", f"--data={data}", f"--out={tmp_path / 'out'}", *(flag.format(file=data) for flag in flags)]
    assert cli.main(line) == 2
    real = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert cli.main([*line, "--dry-run"]) == 2
    assert [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")] == real != []
    assert not (tmp_path / "out").exists()
