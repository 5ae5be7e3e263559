"""Run folders: complete or absent, verified, and used by one process at a time."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pitcli.errors import NothingToDo, RunError, SettingsError
from pitcli.runs import files as run_files
from pitcli.runs import folder as run_folder
from pitcli.runs.files import file_digest, folder_digests, publish_dir, verify_dir
from pitcli.runs.folder import RunFolder, is_finished, open_run, refuse_busy
from pitcli.runs.manifest import BaseIdentity, DataIdentity, Manifest, load_manifest


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "kind": "sft",
        "role": "improver",
        "config": {"learning_rate": 0.1, "seed": 0},
        "base": BaseIdentity(name="tiny", digest="d", template="t", load_in_4bit=True),
        "data": DataIdentity(path="pairs.jsonl", digest="e", rows=3, prompts=[]),
    }
    return Manifest.model_validate({**values, **changes})


def writer(text: str, name: str = "a.txt") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / name).write_text(text)
        (folder / "sub" / "b.txt").write_text("b")

    return write


def saved_manifest(path: Path) -> Manifest:
    values = json.loads((path / "manifest.json").read_text())
    del values["seal"]
    return Manifest.model_validate(values)


def begin(path: Path, now: Manifest, resume: bool, overwrite: bool) -> None:
    with open_run(path, now, resume, overwrite):
        pass


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text("weights")


def complete(run: RunFolder, results: dict[str, Any]) -> None:
    run.publish("improver", adapter)
    run.complete(results, ["improver"], {"improver": [0.5]})


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(run_folder, "warn", messages.append)
    return messages


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    path = tmp_path / "run"
    path.mkdir()
    return RunFolder(path, manifest())


def test_digests_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text("abc")
    # FIPS 180-2, appendix B.1
    assert file_digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_publishing_replaces_the_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    publish_dir(target, writer("one", "old.txt"))
    publish_dir(target, writer("two"))
    assert set(folder_digests(target)) == {"a.txt", "sub/b.txt"}
    assert (target / "a.txt").read_text() == "two"
    verify_dir(target)
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_failure_during_writing_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    publish_dir(target, writer("one"))

    def fail(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish_dir(target, fail)
    verify_dir(target)
    assert (target / "a.txt").read_text() == "one"
    publish_dir(target, writer("two"))  # the leftovers of the failure do no harm
    verify_dir(target)
    assert (target / "a.txt").read_text() == "two"


def test_a_kill_before_the_rename_leaves_no_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_files, "_fsync", killed)
        publish_dir(tmp_path / "out", writer("one"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "a.txt").write_text("two"), "a.txt: changed"),
        (lambda folder: (folder / "sub" / "b.txt").unlink(), "sub/b.txt: missing"),
        (lambda folder: (folder / "c.txt").write_text(""), "c.txt: unexpected"),
        (lambda folder: (folder / "digests.json").unlink(), "digests.json: missing or unreadable"),
        (lambda folder: (folder / "digests.json").write_text("{"), "digests.json: missing or unreadable"),
    ],
)
def test_a_damaged_file_is_named(damage: Callable[[Path], object], problem: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    publish_dir(target, writer("one"))
    verify_dir(target)
    damage(target)
    with pytest.raises(RunError) as raised:
        verify_dir(target)
    assert f"{target}/{problem}" in str(raised.value)


def test_the_latest_checkpoint_is_the_newest_undamaged_one(run: RunFolder, warnings: list[str]) -> None:
    assert run.latest_checkpoint() is None
    for step in (9, 10):  # 10 is newer than 9, however their names sort
        run.save_checkpoint(step, writer(str(step)))
    assert run.latest_checkpoint() == run.checkpoint(10)
    (run.checkpoint(10) / "a.txt").write_text("torn")
    assert warnings == []
    assert run.latest_checkpoint() == run.checkpoint(9)
    assert len(warnings) == 1
    assert "step-000010/a.txt: changed" in warnings[0]
    (run.checkpoint(9) / "digests.json").unlink()
    assert run.latest_checkpoint() is None


def test_the_last_two_checkpoints_and_the_best_are_kept(run: RunFolder) -> None:
    for step in (1, 2, 3, 4, 5):
        run.save_checkpoint(step, writer(str(step)), keep=2 if step > 1 else None)
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000004",
        "step-000005",
    ]


def test_metrics_after_the_resumed_step_are_removed(run: RunFolder) -> None:
    for step in (1, 2, 3):
        run.log(step, {"loss": step / 2})
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')  # a kill tore this line
    run.cut_metrics(2)
    run.log(3, {"loss": 9.0})
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]


def test_cut_metrics_creates_an_empty_file(run: RunFolder) -> None:
    run.cut_metrics(0)
    assert (run.path / "metrics.jsonl").read_text() == ""


HOLD = """
import sys
from pathlib import Path
from pitcli.runs.manifest import Manifest
from pitcli.runs.folder import open_run
with open_run(Path(sys.argv[1]), Manifest.model_validate_json(sys.argv[2]), False, False):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_only_one_process_can_use_a_run_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    arguments = [sys.executable, "-c", HOLD, str(path), manifest().model_dump_json()]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        # --overwrite does not break the lock either
        for resume, overwrite in ((False, False), (True, False), (False, True)):
            with pytest.raises(RunError, match=f"in use by process {holder.pid}$"):
                begin(path, manifest(), resume, overwrite)
        holder.kill()
    with open_run(path, manifest(), resume=True, overwrite=False):
        assert (path / ".lock").read_text() == str(os.getpid())


def test_a_new_run_writes_its_manifest(tmp_path: Path) -> None:
    with open_run(tmp_path / "new" / "run", manifest(), resume=False, overwrite=False) as run:
        written = saved_manifest(run.path)
        assert written == manifest()
        assert not written.complete


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match="is not empty; use --resume to continue it, --overwrite to replace it"):
        begin(tmp_path, manifest(), resume=False, overwrite=False)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", ".lock"}


def test_overwriting_deletes_no_files_that_do_not_belong_to_a_run(tmp_path: Path) -> None:
    with open_run(tmp_path, manifest(), resume=False, overwrite=False) as run:
        run.log(1, {"loss": 1.0})
        run.save_checkpoint(1, writer("one"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"contains files that do not belong to a run: notes\.txt"):
        begin(tmp_path, manifest(), resume=False, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "notes.txt",
        ".lock",
        "manifest.json",
        "metrics.jsonl",
        "checkpoints",
    }


def test_overwriting_leaves_hidden_files(tmp_path: Path) -> None:
    begin(tmp_path, manifest(), resume=False, overwrite=False)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("mine")
    begin(tmp_path, manifest(), resume=False, overwrite=True)
    assert (tmp_path / ".git" / "HEAD").read_text() == "mine"


def test_overwriting_replaces_a_run(tmp_path: Path) -> None:
    with open_run(tmp_path, manifest(), resume=False, overwrite=False) as run:
        run.log(1, {"loss": 1.0})
        run.save_checkpoint(1, writer("one"))
        complete(run, {})
    other = manifest(config={"seed": 1})
    with open_run(tmp_path, other, resume=False, overwrite=True) as run:
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "manifest.json"}
        assert run.latest_checkpoint() is None
    assert saved_manifest(tmp_path) == other


def test_resuming_continues_the_existing_run(tmp_path: Path) -> None:
    with open_run(tmp_path, manifest(), resume=False, overwrite=False) as run:
        run.save_checkpoint(1, writer("one"))
    with open_run(tmp_path, manifest(), resume=True, overwrite=False) as run:
        assert run.latest_checkpoint() == run.checkpoint(1)


def test_resuming_an_empty_folder_starts_a_run(tmp_path: Path) -> None:
    with open_run(tmp_path, manifest(), resume=True, overwrite=False) as run:
        assert run.latest_checkpoint() is None
        assert (tmp_path / "manifest.json").exists()


def test_if_the_rows_are_the_same_it_does_not_matter_what_happens_to_long_ones(tmp_path: Path) -> None:
    """With other rows, the setting is one of the differences."""
    begin(tmp_path, manifest(config={"long_rows": "skip"}), resume=False, overwrite=False)
    begin(tmp_path, manifest(config={"long_rows": "cut"}), resume=True, overwrite=False)
    others = DataIdentity(path="pairs.jsonl", digest="f", rows=4, prompts=[])
    with pytest.raises(SettingsError) as caught:
        begin(tmp_path, manifest(config={"long_rows": "cut"}, data=others), resume=True, overwrite=False)
    assert f"--resume: long_rows was 'skip' in {tmp_path} and is now 'cut'" in caught.value.problems


def test_a_resumed_run_must_have_the_same_settings_and_data(tmp_path: Path) -> None:
    begin(tmp_path, manifest(), resume=False, overwrite=False)
    before = (tmp_path / "manifest.json").read_bytes()
    now = manifest(
        config={"learning_rate": 0.2, "seed": 0, "epochs": 2, "data": "pairs.jsonl"},
        data=DataIdentity(path="pairs.jsonl", digest="other", rows=3, prompts=[], fields="prompt=p"),
    )
    with pytest.raises(SettingsError) as raised:
        begin(tmp_path, now, resume=True, overwrite=False)
    problems = raised.value.problems
    assert [problem.split(" was ")[0] for problem in problems] == [
        "--resume: data",
        "--resume: epochs",
        "--resume: learning_rate",
    ]
    assert problems[0] == (
        f"--resume: data was 'pairs.jsonl (3 rows, digest e)' in {tmp_path} and is now "
        "'pairs.jsonl (3 rows, digest other)'"
    )
    assert problems[2].endswith(f"was 0.1 in {tmp_path} and is now 0.2")
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_finished_run_is_not_resumed(tmp_path: Path) -> None:
    with open_run(tmp_path, manifest(), resume=False, overwrite=False) as run:
        complete(run, {"steps": 1})
    with pytest.raises(NothingToDo, match="is finished"):
        begin(tmp_path, manifest(), resume=True, overwrite=False)


def finished(path: Path) -> Path:
    with open_run(path, manifest(), resume=False, overwrite=False) as run:
        complete(run, {"steps": 7, "stopped": None})
    return path


def test_a_finished_run_is_verified(tmp_path: Path) -> None:
    loaded = load_manifest(finished(tmp_path), "pit sft makes one")
    assert loaded.complete
    assert loaded.results == {"steps": 7, "stopped": None}
    assert loaded.files.keys() == {"improver/adapter_config.json", "improver/adapter_model.safetensors"}
    (tmp_path / "improver" / "adapter_config.json").write_text("other")
    with pytest.raises(RunError, match=r"improver/adapter_config\.json: missing or changed"):
        load_manifest(tmp_path, "pit sft makes one")
    (tmp_path / "improver" / "adapter_config.json").unlink()
    with pytest.raises(RunError, match=r"improver/adapter_config\.json: missing or changed"):
        load_manifest(tmp_path, "pit sft makes one")


def test_a_missing_or_unfinished_run_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such run; pit sft makes one"):
        load_manifest(tmp_path / "nowhere", "pit sft makes one")
    begin(tmp_path, manifest(), resume=False, overwrite=False)
    with pytest.raises(RunError, match="not finished; continue it with the same command and --resume"):
        load_manifest(tmp_path, "pit sft makes one")


def test_unknown_keys_of_a_manifest_are_refused(tmp_path: Path) -> None:
    begin(tmp_path, manifest(), resume=False, overwrite=False)
    values = json.loads((tmp_path / "manifest.json").read_text())
    for changed in ({**values, "extra": 1}, {**values, "base": {**values["base"], "extra": 1}}):
        (tmp_path / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(RunError, match="not a manifest of this version of pit"):
            load_manifest(tmp_path, "")
        with pytest.raises(RunError, match="not a manifest of this version of pit"):
            begin(tmp_path, manifest(), resume=True, overwrite=False)


def test_a_changed_value_in_a_manifest_is_detected(tmp_path: Path) -> None:
    path = finished(tmp_path) / "manifest.json"
    path.write_text(path.read_text().replace('"steps": 7', '"steps": 8'))
    with pytest.raises(RunError, match=r"manifest\.json: changed since it was written"):
        load_manifest(tmp_path, "")


def test_a_truncated_manifest_is_refused(tmp_path: Path) -> None:
    path = finished(tmp_path) / "manifest.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(RunError, match="not a manifest"):
        load_manifest(tmp_path, "")


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    begin(tmp_path, manifest(), resume=False, overwrite=False)
    for leftover in (".tmp-1-manifest.json", "checkpoints/.tmp-1-step-000004/a", "checkpoints/.trash-1-step-000001/a"):
        (tmp_path / leftover).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / leftover).write_text("half")
    begin(tmp_path, manifest(), resume=True, overwrite=False)
    assert {path.name for path in tmp_path.rglob("*")} == {".lock", "manifest.json", "checkpoints"}


def test_a_run_killed_before_its_manifest_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1")
    (tmp_path / ".tmp-1-manifest.json").write_text("{")
    begin(tmp_path, manifest(), resume=True, overwrite=False)
    assert (tmp_path / "manifest.json").exists()


def test_a_folder_in_use_is_detected(tmp_path: Path) -> None:
    refuse_busy(tmp_path / "nowhere")
    with open_run(tmp_path, manifest(), resume=False, overwrite=False), pytest.raises(RunError, match="in use by"):
        refuse_busy(tmp_path)
    refuse_busy(tmp_path)
    assert not is_finished(tmp_path)
    assert is_finished(finished(tmp_path / "other"))


def test_how_the_same_rows_are_read_may_change_on_resume(tmp_path: Path) -> None:
    begin(tmp_path, manifest(), resume=False, overwrite=False)
    same = DataIdentity(path="pairs.jsonl", digest="e", rows=3, prompts=[], skip_bad=True, fields="prompt=p")
    begin(tmp_path, manifest(data=same), resume=True, overwrite=False)
