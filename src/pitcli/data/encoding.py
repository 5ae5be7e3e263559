"""Token ids of control text and of user text, whose special tokens stay plain text; and texts of token ids."""

import re
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

from pitcli.data.rendering import Part


class Encoder:
    """Encodes the parts of conversations with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        longest_first = sorted(self.special.values(), key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # a tokenizer keeps in a field whether it splits special tokens, and pit serve encodes in two threads
        self._lock = Lock()
        self._encoded = lru_cache(maxsize=1024)(self._encode_run)
        self._split = lru_cache(maxsize=1024)(self._split_control)

    def parts(self, parts: Sequence[Part]) -> list[int]:
        """The ids of the whole text, as the tokenizer encodes it, but special tokens in user text are plain text."""
        ids, special, run = list[int](), "", ""
        for part in parts:
            pieces = self._split(part.text) if part.message < 0 else [part.text]
            for number, piece in enumerate(pieces):
                if number % 2:  # a special token, at which tokenizers split text
                    ids += self._encoded(special, run)
                    special, run = piece, ""
                else:
                    run += piece
        return [*ids, *self._encoded(special, run)]

    def _split_control(self, text: str) -> list[str]:
        """Control text and special tokens in turn, beginning and ending with control text."""
        pieces, start = list[str](), 0
        for match in self._special_text.finditer(text):
            pieces += [text[start : match.start()], match[0]]
            start = match.end()
        return [*pieces, text[start:]]

    def _encode_run(self, special: str, run: str) -> tuple[int, ...]:
        """The ids of a special token, if there is one, and of the text between it and the next one."""
        head = [self.tokenizer.convert_tokens_to_ids(special)] if special else []
        # with the special token, because some tokenizers encode the start of a text in another way
        ids = self._encode(special + run, split_special_tokens=False) if special + run else []
        if ids[: len(head)] == head and not self.special.keys() & ids[len(head) :]:
            return tuple(ids)
        return (*head, *self.text(run))

    def text(self, text: str) -> list[int]:
        """Token ids of user text; the text of a special token stays plain text."""
        return self._encode(text, split_special_tokens=True)

    def _encode(self, text: str, split_special_tokens: bool) -> list[int]:
        with self._lock:
            ids: list[int] = self.tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=split_special_tokens
            )
        return ids

    def names_special_token(self, text: str) -> bool:
        return self._special_text.search(text) is not None

    def decode(self, ids: Sequence[int], shown: Collection[str] = ()) -> str:
        """The text of token ids without special tokens, except those whose text is in `shown`."""
        pieces, start = list[str](), 0
        for index, token in enumerate(ids):
            if (text := self.special.get(token)) and text in shown:
                pieces += [self.tokenizer.decode(ids[start:index], skip_special_tokens=True), text]
                start = index + 1
        return "".join([*pieces, self.tokenizer.decode(ids[start:], skip_special_tokens=True)])

    def truncate(self, text: str, limit: int) -> str:
        """The text, or its longest prefix of at most `limit` whole tokens; "" if there is none."""

        def start(ids: list[int], count: int) -> str:
            return self.decode(ids[:count]).strip().rstrip("\ufffd").rstrip()

        return self._shortened(text, limit, start)

    def keep_end(self, text: str, limit: int) -> str:
        """The text, or its longest suffix of at most `limit` whole tokens; "" if there is none."""

        def end(ids: list[int], count: int) -> str:
            return str(self.tokenizer.decode(ids[len(ids) - count :])).lstrip("\ufffd").lstrip()

        return self._shortened(text, limit, end)

    def _shortened(self, text: str, limit: int, part: Callable[[list[int], int], str]) -> str:
        ids = self.text(text)
        kept, count, over = text, limit, len(ids) - limit
        while over > 0 and count > 0:
            # One character may be spread over several tokens, and a shortened text may be encoded as other tokens.
            kept = part(ids, count)
            over = len(self.text(kept)) - limit
            count -= over
        return kept if over <= 0 else ""
