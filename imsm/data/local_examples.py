"""Examples of local files: ready-made prompts and answers, or records of the task's own module.

Rows are streamed: of a million rows, only the examples that are used are kept in memory.
"""

import hashlib
import os
import random
from array import array
from collections.abc import Collection, Iterator
from functools import lru_cache, partial
from pathlib import Path

from imsm.data.conversion import convert_rows
from imsm.data.example import Example
from imsm.data.local_files import count_rows, files_of, find_file, iter_rows
from imsm.data.replay import words_of
from imsm.data.row_formats import QUESTION_AND_ANSWER, Content, find_format, require_format
from imsm.data.task import Role, Task, task_module
from imsm.data.tasks import jsonl
from imsm.utils.control_characters import escape_controls
from imsm.utils.errors import UserError
from imsm.utils.progress import print_above_bar

LIMIT_SEED = "imsm.limit"
"""Independent of the run's seed: all methods and seeds use the same examples."""
SHARE_SEED = "imsm.test_share"
_HASH_BITS = 64
_announced: set[Path] = set()
_SHIPPED = jsonl.__name__.rpartition(".")[0] + "."


# a run draws the same examples several times
@lru_cache(maxsize=8)
def chosen_indices(total: int, limit: int) -> frozenset[int]:
    """Return the indices of ``limit`` of ``total`` examples, drawn with a fixed seed."""
    # a prefix of one permutation: a smaller limit keeps a subset of a larger one's
    order = list(range(total))
    random.Random(LIMIT_SEED).shuffle(order)
    return frozenset(order[:limit])


def local_file(path: Path, role: Role, *, test_share: float | None) -> Path:
    """Return the file of a role; with ``test_share``, both roles share the training file.

    Raises:
        UserError: It is missing, or there is a test file next to the file that is to be shared.
    """
    if test_share is None:
        return find_file(path, role=role)
    tests = files_of(path, role="test")
    if tests:
        raise UserError(f"data.test_share={test_share}: {tests[0]} is the test set; omit one of them")
    return find_file(path, role="train")


def load_local(
    task: Task, role: Role, *, path: Path, test_share: float | None, prompt_style: str, limit: int | None
) -> list[Example]:
    """Return the examples of a local file in its order; ``limit`` of them are drawn with a fixed seed.

    With a limit, rows of ready-made examples that are not drawn are not parsed, and so not checked.

    Raises:
        UserError: The file is missing or has no example, or a row is invalid.
    """
    file = local_file(path, role, test_share=test_share)
    stream = partial(iter_local, task, role, file=file, test_share=test_share, prompt_style=prompt_style)
    if limit is None:
        examples = list(stream())
    elif _is_ready(task, file):
        rows = range(count_rows(file)) if test_share is None else _shared_rows(file, _stamp(file), test_share)[role]
        chosen = {rows[index] for index in chosen_indices(len(rows), limit)}
        examples = list(_ready_examples(file, split=role, chosen=chosen, total=len(rows)))
    else:
        # the number of examples is known only after all rows are converted
        indices = chosen_indices(sum(1 for _ in stream()), limit)
        examples = [example for index, example in enumerate(stream()) if index in indices]
    if not examples:
        problem = f"data.test_share={test_share} selects no {role} example of it" if test_share else "is empty"
        raise UserError(f"{task.name}, {file}: {problem}; it has no example of the task")
    return examples


def iter_local(
    task: Task, role: Role, *, file: Path, test_share: float | None, prompt_style: str
) -> Iterator[Example]:
    """Yield all examples of a local file.

    With ``test_share``, the hash of a prompt's words decides whether it is a test example: the same ones in any
    order of the rows, and never a training example with the same words.

    Raises:
        UserError: A row is invalid.
    """
    if _is_ready(task, file):
        examples = _ready_examples(file, split=role)
    else:
        rows = ((location, value) for _, location, value in iter_rows(file))
        examples = convert_rows(task_module(task), rows, split=role, prompt_style=prompt_style, name=str(file))
    if test_share is not None:
        examples = (one for one in examples if _is_test(one.prompt, test_share) == (role == "test"))
    return examples


def _is_ready(task: Task, file: Path) -> bool:
    """Return whether the rows are prompts with answers, not records of the task's module."""
    if task.module == jsonl.__name__:
        return True
    if not task.module.startswith(_SHIPPED):
        return False
    first = next(iter_rows(file), None)
    if first is None:
        return True
    try:
        # A shipped module adds its instruction to a question: its own records are not complete prompts.
        return find_format(first.value) not in (None, QUESTION_AND_ANSWER)
    except UserError as error:
        raise UserError(f"{file}, {first.location}: {error}") from error


def _ready_examples(
    file: Path, *, split: str, chosen: Collection[int] | None = None, total: int | None = None
) -> Iterator[Example]:
    for index, (prompt, golds, turns) in _contents(file, chosen=chosen, total=total):
        yield Example(id=f"jsonl/{split}/{index}", prompt=prompt, golds=golds, turns=turns)


def _contents(
    file: Path, *, chosen: Collection[int] | None = None, total: int | None = None
) -> Iterator[tuple[int, Content]]:
    """Yield index and content of all rows or of the chosen ones of ``total``; print once what was read."""
    row_format, keys, num_read = None, set[str](), 0
    for row in iter_rows(file, chosen=chosen):
        try:
            row_format = require_format(row.value, row_format)
            content = row_format.read(row.value)
        except UserError as error:
            raise UserError(f"{file}, {row.location}: {error}") from error
        keys |= row.value.keys()
        num_read += 1
        yield row.position, content
    if row_format is not None and file not in _announced:
        _announced.add(file)
        unused = sorted(map(str, keys - row_format.all_keys))
        number = f"{num_read:,}" if total is None else f"{num_read:,} of {total:,}"
        _announce(f"data: {file}: {number} rows with {row_format}{_named(unused)}")


@lru_cache(maxsize=4)
def _shared_rows(file: Path, stamp: int, test_share: float) -> dict[Role, "array[int]"]:
    """Return the indices of the rows of each role; ``stamp`` is the file's modification time."""
    del stamp  # part of the key
    rows: dict[Role, array[int]] = {"train": array("Q"), "test": array("Q")}
    for index, content in _contents(file):
        rows["test" if _is_test(content.prompt, test_share) else "train"].append(index)
    return rows


def _stamp(file: Path) -> int:
    return file.stat().st_mtime_ns


def _named(unused: list[str]) -> str:
    return f" (unused keys: {', '.join(unused)})" if unused else ""


def _announce(text: str) -> None:
    """Print a line in the first process only."""
    if os.environ.get("RANK", "0") == "0":
        # keys are text of the file
        print_above_bar(escape_controls(text))


def _is_test(prompt: str, share: float) -> bool:
    digest = hashlib.sha256(f"{SHARE_SEED}:{words_of(prompt)}".encode()).digest()
    return int.from_bytes(digest[: _HASH_BITS // 8], "big") < share * 2**_HASH_BITS
