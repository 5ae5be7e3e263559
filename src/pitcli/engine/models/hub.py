"""Uploads to the hub, with the token that its own login or HF_TOKEN gives; pit never reads or shows it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pitcli.errors import RunError, SettingsError


@contextmanager
def _reaching(what: str, remedy: str) -> Iterator[None]:
    """The hub's errors by their names: their texts may hold what was sent."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # the latter is its HTTP library's, whichever that is

    try:
        yield
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise RunError(f"--push-to-hub: {what} ({type(error).__name__}); {remedy}") from None


def check_signed_in() -> None:
    """RunError where the hub does not know who is asking."""
    from huggingface_hub import HfApi

    with _reaching("the hub does not know you", "hf auth login, or set HF_TOKEN to a token that may write"):
        HfApi().whoami()


def upload(folder: Path, name: str, public: bool) -> str:
    """A folder to the model repository OWNER/NAME, made where there is none; its address.

    SettingsError where the repository is public and that was not asked for.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _reaching(f"{name} was not uploaded; it is in {folder}", "may your token write there?"):
        api.create_repo(name, private=not public, exist_ok=True)
        if not public and not api.model_info(name).private:
            raise SettingsError(f"--push-to-hub: {name} is public; --public says that this is meant, or name another")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload by pit export")
    return f"https://huggingface.co/{name}"
