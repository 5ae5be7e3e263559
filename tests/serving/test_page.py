"""The page at / in a real browser: by keyboard alone, at two widths, light and dark; what it keeps becomes pairs."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.faults.warm import Warm
from tests.serving.conftest import Server, Start, StubUpstream

PROMPT, DRAFT = "Write 3 foods, <b>each</b> once.", "pie cow & <script>alert(1)</script>"
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of the system; otherwise the one of `playwright install chromium`."""
    installed = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        if not installed and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("needs a browser: apt install chromium, or playwright install chromium")
        launched = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def collecting(start: Start, stub: StubUpstream) -> Server:
    options = "--max-iters 3 --threshold 0 --accept-truncated --collect kept.jsonl"
    return start(f"{options} --upstream {stub.url}")


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """(server, width, scheme) -> its page; every error in the page fails the test."""
    pages: list[Page] = []
    problems: list[str] = []

    def open_page(server: Server, width: int = 1200, scheme: str = "light") -> Page:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if "Security" in message.text else None)
        page.goto(server.url)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert problems == []


def kept(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "kept.jsonl").read_text().splitlines()]


def improve_by_keyboard(page: Page) -> None:
    """From the top of the page to the result, without a mouse."""
    page.keyboard.press("Tab")
    page.keyboard.type(PROMPT)
    page.keyboard.press("Tab")  # who writes the draft
    page.keyboard.press("Tab")
    page.keyboard.type(DRAFT)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#result")).to_be_focused(timeout=30_000)


def test_by_keyboard_alone(collecting: Server, opened: Open, folder: Path, warm: Warm) -> None:
    page = opened(collecting)
    improve_by_keyboard(page)
    assert page.locator("#before").inner_text() == DRAFT
    improvement = page.locator("#after").inner_text()
    assert page.locator("#before del").count() and page.locator("#after ins").count()
    steps = page.locator("#steps li").count()
    assert page.locator("#chart circle").count() == steps > 0
    page.keyboard.press("2")
    expect(page.locator("#status")).to_have_text("Saved: you kept the improvement.")
    expect(page.locator("#prompt")).to_be_focused()
    (row,) = kept(folder)
    assert (row["prompt"], row["rejected"], row["kept"]) == (PROMPT, DRAFT, "improvement")
    assert row["chosen"].split() == improvement.split()
    page.keyboard.press("1")  # a letter of the next prompt, not a choice
    assert page.locator("#prompt").input_value() == "1"
    assert len(kept(folder)) == 1

    page.reload()
    improve_by_keyboard(page)
    page.keyboard.press("1")
    expect(page.locator("#status")).to_have_text("Saved: you kept the draft.")
    assert (kept(folder)[1]["chosen"], kept(folder)[1]["kept"]) == (DRAFT, "draft")
    ended = warm.run(folder, "prepare", "--data", "kept.jsonl", "--out", "prepared", "--folds", "all=100")
    assert ended.code == 0, ended.err
    assert len((folder / "prepared" / "all.jsonl").read_text().splitlines()) == 2


def test_the_changes_are_explained_on_demand(start: Start, opened: Open) -> None:
    page = opened(start("--max-iters 1 --threshold 0 --accept-truncated"))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Draft", exact=True).fill(f"{DRAFT} 🙂🙂")
    page.get_by_role("button", name="Improve", exact=True).click()
    expect(page.locator("#result")).to_be_focused(timeout=30_000)
    expect(page.locator("#summary")).to_contain_text("Improved")
    improvement = page.locator("#after").text_content()
    assert "explain" not in asked
    button = page.get_by_role("button", name="Explain the changes")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Explained.", timeout=30_000)
    expect(page.locator("#explained")).to_contain_text("Share of the gap")
    assert asked.count("explain") == 1
    expect(button).to_be_disabled()
    marks = page.locator("#after ins.edit, #before del.edit")
    labels = page.locator("#result small.share")
    assert marks.count() >= labels.count() >= 1
    assert "gap" in (marks.first.get_attribute("title") or "")
    page.evaluate("document.querySelectorAll('small.share').forEach((label) => label.remove())")
    assert page.locator("#before").text_content() == f"{DRAFT} 🙂🙂"
    assert page.locator("#after").text_content() == improvement


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_widths_and_colours(collecting: Server, opened: Open, width: int, scheme: str) -> None:
    page = opened(collecting, width, scheme)
    improve_by_keyboard(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    before, after = (page.locator(name).bounding_box() for name in ("#before", "#after"))
    assert before and after
    assert (before["y"] == after["y"]) == (width == 1200)  # side by side, or one below the other
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(253, 253, 251)", "dark": "rgb(21, 23, 26)"}[scheme]


def test_what_a_screen_reader_finds(collecting: Server, opened: Open) -> None:
    page = opened(collecting)
    improve_by_keyboard(page)
    for role, name in (
        ("textbox", "Prompt"),
        ("textbox", "Draft"),
        ("combobox", "Who writes the draft"),
        ("button", "Improve"),
        ("button", "1 Keep the draft"),
        ("button", "2 Keep the improvement"),
        ("region", "Result"),
        ("group", "Which response is better?"),
        ("list", "Iterations"),
    ):
        assert page.get_by_role(role, name=name, exact=True).count() == 1, name  # type: ignore[arg-type]
    assert "P(better): 1: 0." in (page.locator("#chart").get_attribute("aria-label") or "")
    assert page.locator("#chart").get_attribute("role") == "img"
    expect(page.get_by_role("status")).to_have_text("Done.")


def test_the_upstream_writes_the_draft(collecting: Server, opened: Open) -> None:
    page = opened(collecting)
    page.get_by_label("Prompt").fill("Write 3 foods.")
    page.get_by_label("Who writes the draft").select_option("pit/stub")
    expect(page.locator("#draft")).to_be_hidden()
    page.get_by_role("button", name="Improve", exact=True).click()
    expect(page.locator("#before")).to_have_text("pie cow", timeout=30_000)
    page.get_by_label("Who writes the draft").select_option("pit/best-of-4/stub")
    page.get_by_role("button", name="Improve", exact=True).click()
    expect(page.locator("#summary")).to_contain_text("after 4 drafts", timeout=30_000)


def test_errors_are_shown_and_nothing_is_lost(collecting: Server, opened: Open, folder: Path) -> None:
    page = opened(collecting)
    page.get_by_label("Prompt").fill("pie " * 9000)
    page.get_by_label("Draft", exact=True).fill("pie")
    page.get_by_role("button", name="Improve", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("Error: messages: prompt: expected a conversation of at most")
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_role("button", name="Improve", exact=True).click()
    expect(page.locator("#result")).to_be_focused(timeout=30_000)
    file, count = folder / "kept.jsonl", len(kept(folder))
    file.rename(folder / "away.jsonl")
    file.mkdir()  # it cannot be written
    page.keyboard.press("2")
    expect(page.get_by_role("alert")).to_contain_text("Error: the pair was not saved: Is a directory")
    file.rmdir()
    (folder / "away.jsonl").rename(file)
    page.get_by_role("button", name="Keep the improvement").click()
    expect(page.locator("#status")).to_have_text("Saved: you kept the improvement.")
    assert len(kept(folder)) == count + 1


def test_a_key_and_no_collection(start: Start, opened: Open) -> None:
    page = opened(start("--api-key sesame --threshold 0 --accept-truncated"))
    assert page.locator("#choice").count() == 0
    page.get_by_label("API key").fill("wrong")
    page.get_by_label("Prompt").fill("Write 3 foods.")
    page.get_by_label("Draft", exact=True).fill("pie")
    page.get_by_role("button", name="Improve", exact=True).click()
    expect(page.get_by_role("alert")).to_have_text("Error: a wrong key; expected the one of --api-key")
    page.get_by_label("API key").fill("sesame")
    page.get_by_role("button", name="Improve", exact=True).click()
    expect(page.locator("#result")).to_be_focused(timeout=30_000)
