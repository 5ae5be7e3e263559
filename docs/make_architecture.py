"""Writes docs/architecture.svg, and the list of files in docs/architecture.md, from the folders of src/pitcli."""

import ast
import re
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
SOURCE = DOCS.parent / "src" / "pitcli"
WIDTH, HEIGHT = 160, 54  # of a box in the picture
# column, row and question of each folder (and of each module at the root)
BOXES: dict[str, tuple[float, float, str]] = {
    "cli": (0, 0, "what is to be done?"),
    "stages": (1, 0, "one file per command"),
    "recipes": (2, 0, "which stages, in which order?"),
    "data": (1, 1.7, "what is a row?"),
    "data/instructions": (1, 2.7, "an English task with a truth"),
    "engine/models": (2, 1.7, "tokens to states and scores"),
    "endpoints": (2, 2.7, "models behind an API"),
    "engine/training": (3, 1.2, "batches to adapters"),
    "runs": (4, 1.2, "what is on disk?"),
    "engine/generation": (3, 2.2, "states to text"),
    "engine/improving": (4, 2.2, "draft to better draft"),
    "evaluation": (5, 3.2, "is it better?"),
    "pages": (4, 3.2, "how is it shown?"),
    "serving": (5, 1.2, "who asks over HTTP?"),
    "settings": (0, 4.4, "what can be set?"),
    "equations": (1, 4.4, "the paper"),
    "console": (2, 4.4, "what people read"),
    "panel": (3, 4.4, "how does training go?"),
    "events": (4, 4.4, "what programs read"),
    "processes": (5, 3.9, "which rank is this?"),
    "errors": (5, 4.6, "what may go wrong?"),
}
FILES = {
    "pairs.jsonl": (0, 1.2),
    "drafts.jsonl": (0, 2.2),
    "improved.jsonl": (5, 2.2),
    "report.html": (3, 3.2),
}
ARROWS = (
    ("cli", "stages"),
    ("recipes", "stages"),
    ("pairs.jsonl", "data"),
    ("data/instructions", "data"),
    ("data", "engine/models"),
    ("engine/models", "engine/training"),
    ("engine/training", "runs"),
    ("drafts.jsonl", "data"),
    ("engine/models", "engine/generation"),
    ("endpoints", "engine/generation"),
    ("engine/generation", "engine/improving"),
    ("engine/improving", "improved.jsonl"),
    ("engine/improving", "serving"),
    ("improved.jsonl", "evaluation"),
    ("evaluation", "pages"),
    ("pages", "report.html"),
)


def corner(name: str) -> tuple[float, float]:
    column, row = BOXES[name][:2] if name in BOXES else FILES[name]
    return 20 + column * 190, 20 + row * 92


def box(name: str) -> str:
    x, y = corner(name)
    if name in FILES:
        shape = f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="27" fill="#fff4dc" stroke="#b9770e"/>'
        return f'{shape}<text x="{x + WIDTH / 2}" y="{y + 32}" class="name">{name}</text>'
    shape = f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eaf2fb" stroke="#2f6db3"/>'
    question = escape(BOXES[name][2])
    return (
        f'{shape}<text x="{x + WIDTH / 2}" y="{y + 23}" class="name">{name}</text>'
        f'<text x="{x + WIDTH / 2}" y="{y + 41}" class="question">{question}</text>'
    )


def arrow(start: str, end: str) -> str:
    """An arrow between two boxes, from the middle of the sides that face each other."""
    (x1, y1), (x2, y2) = corner(start), corner(end)
    if abs(x2 - x1) >= 190:
        right = x2 > x1
        first, last = (x1 + WIDTH * right, y1 + HEIGHT / 2), (x2 + WIDTH * (not right) - (4 if right else -4), y2 + 27)
    else:
        down = y2 > y1
        gap = 4 if down else -4  # room for the head
        first, last = (
            (x1 + WIDTH / 2, y1 + HEIGHT * down),
            (x2 + WIDTH / 2, y2 + HEIGHT * (not down) - gap),
        )
    return f'<line x1="{first[0]}" y1="{first[1]}" x2="{last[0]}" y2="{last[1]}" marker-end="url(#head)"/>'


def picture() -> str:
    style = (
        "text{font-family:sans-serif;text-anchor:middle;fill:#1b2733}.name{font-size:14px;font-weight:600}"
        ".question{font-size:11px}line{stroke:#5b6b7a;stroke-width:1.5}"
    )
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#5b6b7a"/></marker>'
    )
    parts = [*(arrow(*ends) for ends in ARROWS), *map(box, (*FILES, *BOXES))]
    size = "0 0 1150 500"
    title = "Data flow through the folders of pit"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img" aria-label="{title}">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n<defs>{head}</defs>\n"
        '<rect width="1150" height="500" rx="10" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def folders() -> list[Path]:
    return [SOURCE, *sorted({module.parent for module in SOURCE.rglob("[a-z]*.py")} - {SOURCE})]


def parts_of_the_source() -> set[str]:
    """The names that the picture must show: each folder with modules, and each module at the root."""
    below = {folder.relative_to(SOURCE).as_posix() for folder in folders()[1:]}
    return below | {module.stem for module in SOURCE.glob("[a-z]*.py")}


def summary(module: Path) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text())) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def file_list() -> str:
    lines = []
    for folder in folders():
        name = folder.relative_to(SOURCE).as_posix()
        lines += ["", f"### `{'src/pitcli' if name == '.' else name}`", "", "| file | |", "|---|---|"]
        lines += [
            f"| `{m.name}` | {summary(m).replace('|', chr(92) + '|')} |" for m in sorted(folder.glob("[a-z]*.py"))
        ]
    return "\n".join(lines).strip()


def with_file_list(page: str) -> str:
    """The page, with the list of files between its two markers."""
    start, end = "<!-- files -->", "<!-- end of files -->"
    return re.sub(f"{start}.*{end}", lambda found: f"{start}\n\n{file_list()}\n\n{end}", page, flags=re.DOTALL)


if __name__ == "__main__":
    (DOCS / "architecture.svg").write_text(picture())
    page = DOCS / "architecture.md"
    page.write_text(with_file_list(page.read_text()))
