"""Find the rows whose response ends at the last token: by EOS, or because it matches the stop pattern.

Searching the text of every row at every token takes longer than decoding it. A pattern whose matches end in a line
break is searched for only where the last token can add one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

WINDOW = 64
"""Number of last tokens that are searched for the stop pattern."""
_LINE_BREAK, _PARTIAL = "\n", "\ufffd"
# alternatives, special groups and positions: whether they match depends on more than the text of the match
_UNCERTAIN = re.compile(r"\||\(\?(?!i\)|:)|(?<!\[)\^|\$|\\[AbBZ]")
# a backslash before the last escape would make it an ordinary n
_ENDS_IN_LINE_BREAK = re.compile(r"(?<!\\)(?:\\\\)*(?:\\n|\n)\Z")


# of each tokenizer, what its tokens decode to: whether there is a line break, and whether a part of a character
_known: WeakKeyDictionary[PreTrainedTokenizerBase, dict[int, tuple[bool, bool]]] = WeakKeyDictionary()


def ends_in_line_break(stop: str) -> bool:
    r"""Return whether each match of a pattern certainly ends in ``\n``, wherever it starts."""
    return bool(_ENDS_IN_LINE_BREAK.search(stop)) and not _UNCERTAIN.search(stop)


def finished_finder(
    tokenizer: PreTrainedTokenizerBase, *, eos: Sequence[int], stop: str | None
) -> Callable[[Mapping[int, Sequence[int]]], set[int]]:
    """Return a function from token rows to the keys of the finished rows.

    The function must see a row after each of its tokens. ``stop`` is a regular expression; None: EOS only.
    """
    pattern = None if stop is None else re.compile(stop)
    may_end = _row_filter(tokenizer) if stop is not None and ends_in_line_break(stop) else None

    def find_finished(rows: Mapping[int, Sequence[int]]) -> set[int]:
        finished = {key for key, row in rows.items() if row[-1] in eos}
        if pattern is None:
            return finished
        searched = [key for key, row in rows.items() if may_end is None or may_end(row)]
        if searched:
            # Decoding complete responses at every step would take time quadratic in their length.
            texts = tokenizer.batch_decode([list(rows[key][-WINDOW:]) for key in searched], skip_special_tokens=True)
            finished |= {key for key, text in zip(searched, texts, strict=True) if pattern.search(text)}
        return finished

    return find_finished


def _row_filter(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], bool]:
    """Return a function from a row to whether its last token can complete a line that ends in a line break."""
    texts = _known.setdefault(tokenizer, {})

    def look_up(token: int) -> tuple[bool, bool]:
        if token not in texts:
            text = str(tokenizer.decode([token], skip_special_tokens=True))
            texts[token] = _LINE_BREAK in text, _PARTIAL in text
        return texts[token]

    def may_end(row: Sequence[int]) -> bool:
        # when the first byte of a character is outside the window, a line break after it can appear
        return any(look_up(row[-1])) or (len(row) > WINDOW and look_up(row[-WINDOW - 1])[1])

    return may_end
