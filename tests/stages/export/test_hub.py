"""Uploads are private unless --public is given, and the token never appears in output or files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from tests.stages.export.conftest import Out, error, pit


class Hub:
    """Replaces HfApi. calls: what was requested of it; private: the visibility of an existing repository."""

    calls: ClassVar[list[tuple[str, Any]]] = []
    private: ClassVar[bool | None] = None

    def whoami(self) -> dict[str, str]:
        return {"name": "ada"}

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        Hub.private = private if Hub.private is None else Hub.private
        Hub.calls.append((repo_id, private))

    def model_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=Hub.private)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        Hub.calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(Hub, "private", None)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return Hub


ADAPTER = "export runs/sft --adapter --base-name ada/tiny"


@pytest.mark.parametrize(("flag", "private"), [("", True), ("--public", False)])
def test_uploads_are_private_unless_public_is_given(
    flag: str, private: bool, hub: type[Hub], tmp_path: Path, capsys: Out
) -> None:
    pit(f"{ADAPTER} --out {tmp_path}/adapter --push-to-hub ada/improver {flag}")
    assert hub.calls[0] == ("ada/improver", private)
    assert hub.calls[1][1] == ["README.md", "adapter_config.json", "adapter_model.safetensors", "digests.json"]
    out, err = capsys.readouterr()
    assert "uploaded to https://huggingface.co/ada/improver" in err
    assert "hf_secret" not in out + err
    assert not [path for path in (tmp_path / "adapter").iterdir() if b"hf_secret" in path.read_bytes()]


def test_a_public_repository_is_refused_without_public(hub: type[Hub], tmp_path: Path, capsys: Out) -> None:
    hub.private = False
    pit(f"{ADAPTER} --out {tmp_path}/adapter --push-to-hub ada/improver", code=2)
    assert error(capsys).startswith("error: --push-to-hub: ada/improver is public; use --public to upload to it")
    assert len(hub.calls) == 1


def test_a_refused_upload_is_one_line_without_the_token(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise HfHubHTTPError("403 with hf_secret", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(Hub, "upload_folder", refuse)
    pit(f"{ADAPTER} --out {tmp_path}/adapter --push-to-hub ada/improver", code=3)
    out, err = capsys.readouterr()
    assert "hf_secret" not in out + err
    assert err.splitlines()[-1] == (
        f"error: --push-to-hub: ada/improver was not uploaded, its files are in {tmp_path}/adapter (HfHubHTTPError); "
        "check that your token has write access"
    )

    def unknown(*_: object) -> None:
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(Hub, "whoami", unknown)
    pit(f"{ADAPTER} --out {tmp_path}/other --push-to-hub ada/improver", code=3)
    assert error(capsys).startswith("error: --push-to-hub: not logged in to the hub (LocalTokenNotFoundError)")
    assert not (tmp_path / "other").exists(), "an error before anything is made"
