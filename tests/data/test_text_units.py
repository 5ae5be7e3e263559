"""Units of lengths, edits and repetition, in scripts with and without spaces."""

import time
import unicodedata

import pytest

from pitcli.data.text_units import differences, pieces, units

TEXTS = {
    "English": ("The cat, too, is here.", ["The", "cat,", "too,", "is", "here."]),
    "French and emoji": ("Déjà vu 🙂 !", ["Déjà", "vu", "🙂", "!"]),
    "Korean, with spaces": ("오늘은 비가 옵니다.", ["오늘은", "비가", "옵니다."]),
    "Hindi, with spaces": ("यह एक बिल्ली है।", ["यह", "एक", "बिल्ली", "है।"]),
    "Arabic, with spaces": ("القط هنا", ["القط", "هنا"]),
    "Chinese": ("猫在这里。", ["猫", "在", "这", "里", "。"]),
    "Japanese, with kana": ("猫がカフェにいる", ["猫", "が", "カ", "フ", "ェ", "に", "い", "る"]),
    "Chinese with Latin words": ("我用 Python 3 写代码", ["我", "用", "Python", "3", "写", "代", "码"]),
    "Japanese without spaces around a word": ("GPTを使う", ["GPT", "を", "使", "う"]),
    "Thai, with marks": ("นี่คือแมว", ["นี่", "คื", "อ", "แ", "ม", "ว"]),
    "Khmer": ("ឆ្មា", ["ឆ្", "មា"]),
    "kana with a separate voiced mark": ("か\u3099き", ["か\u3099", "き"]),
    "beyond the first plane": ("𠮷野家", ["𠮷", "野", "家"]),
    "ideographic space": ("猫\u3000犬", ["猫", "犬"]),
    "blank": (" \n\t", []),
    "empty": ("", []),
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.values(), ids=TEXTS.keys())
def test_units(text: str, expected: list[str]) -> None:
    assert units(text) == expected
    assert "".join(pieces(f" {text}\n")) == f" {text}\n"
    assert [piece.strip() for piece in pieces(text) if piece.strip()] == expected


@pytest.mark.parametrize("text", ["a  b\tc\n\nd ", "naïve café — “so”", "x\u00a0y\u2003z", "e\u0301te\u0301 no"])
def test_with_spaces_units_are_words(text: str) -> None:
    """So that figures of such texts are what they were when only words were counted."""
    assert units(text) == text.split()


def test_marks_of_scripts_without_spaces_are_no_units() -> None:
    for code in [*range(0x0E00, 0x1000), *range(0x1000, 0x10A0), *range(0x1780, 0x1800)]:
        mark = chr(code)
        if unicodedata.category(mark) in ("Mn", "Mc"):
            base = {0x0E: "ก", 0x0F: "ཀ", 0x10: "က", 0x17: "ក"}.get(code >> 8, "ก")
            assert units(base + mark) == [base + mark], hex(code)


def shown(before: str, after: str) -> str:
    parts = ((kind, part) for kind, part in differences(before, after) if part)
    return "".join(part if kind == " " else f"{kind}{part}{kind}" for kind, part in parts)


def test_differences_keep_the_white_space_of_the_new_text() -> None:
    assert shown("a b c", "a x c") == "a -b-+x+ c"
    assert shown("a b", "a  b\nc d") == "a  b\n+c d+"
    assert shown("a b c", "a") == "a -b c-"
    assert shown("a b c", "c") == "-a b-c"
    assert shown("今天很冷。", "今天很热。") == "今天很-冷-+热+。"
    assert shown("same", "same") == "same"
    assert shown("", "new") == "+new+"


def test_differences_of_long_texts_in_scripts_without_spaces() -> None:
    before, after = ("".join(chr(0x4E00 + n * step % 400) for n in range(4000)) for step in (7, 11))
    start = time.process_time()
    assert sum(len(part) for kind, part in differences(before, after) if kind != "-") == 4000
    assert time.process_time() - start < 20
