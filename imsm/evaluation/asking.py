"""Asking a stream what the ledger does not hold yet: raw answers, and how likely the golds are.

Legend: N items, P pairs of an item and one of its accepted answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING

from imsm.data.batches import collate_training, evaluation_order
from imsm.data.tokenise import TokenisedExample, answer_tokens
from imsm.errors import RunError
from imsm.evaluation.digest import digest
from imsm.evaluation.generate import generate_answers
from imsm.evaluation.ledger import Ledger, Row
from imsm.memory_limit import Halving
from imsm.progress import bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.evaluation.test_set import TestSet
    from imsm.processes.world import World
    from imsm.siamese.model import SiameseForCausalLM

_VERSION = 3
"""Of what a row holds; another one asks anew."""
GOLDS = 8
"""So many of an item's accepted answers are weighed, the first ones."""
GetModel = Callable[[], "SiameseForCausalLM"]


def ask(
    test: TestSet,
    *,
    model: GetModel,
    stream: str,
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: str,
    ledger: Ledger,
    batch_size: int,
    label: str,
    world: World,
) -> tuple[list[Row], list[Row | None]]:
    """Every item's raw answer, and its likeliest accepted answer.

    Args:
        test: what is asked.
        model: gives the model; called only if something is missing.
        stream: who answers.
        tokenizer: the backbone's.
        fingerprint: identifies backbone, adapter, gate, precision and stream.
        ledger: holds what was asked before, and keeps each batch as soon as it is answered.
        batch_size: prompts in one pass.
        label: what the progress bar says.
        world: the processes that share the batches out.

    Returns:
        N rows of {text, tokens, ended, gate_mean, gate_tokens, gate_pieces,
        seconds}, and N of {loglik, tokens}:
        the sum of ln p over the answer's tokens; None where an item has no answer of any token.
    """

    @cache
    def answering() -> SiameseForCausalLM:
        found = model()
        found.stream = stream  # type: ignore[assignment]
        return found

    def generated(places: Sequence[int]) -> list[Row]:
        prompts = [test.prompts[place] for place in places]
        limit, stop = test.task.max_new_tokens, test.task.stop
        made = generate_answers(answering(), tokenizer, prompts, max_new_tokens=limit, stop=stop)
        return [asdict(each) for each in made]

    held = ledger.read()
    settings = [test.task.max_new_tokens, test.task.stop]
    answers = _recorded(
        [digest([_VERSION, fingerprint, p.prompt_ids, *settings]) for p in test.prompts],
        lengths=[len(prompt.prompt_ids) for prompt in test.prompts],
        compute=Halving(generated, what="prompts", key="evaluation.batch_size"),
        held=held,
        ledger=ledger,
        batch_size=batch_size,
        label=label,
        world=world,
    )
    pairs, owners = _pairs(test, tokenizer)

    def weighed(places: Sequence[int]) -> list[Row]:
        found = answering()
        batch = collate_training([pairs[place] for place in places], pad_id=tokenizer.pad_token_id)
        sums, _ = found.log_likelihood(
            batch["input_ids"].to(found.device),
            attention_mask=batch["attention_mask"].to(found.device),
            labels=batch["labels"].to(found.device),
        )
        return [
            {"loglik": value, "tokens": len(pairs[place].answer_ids)}
            for place, value in zip(places, sums.tolist(), strict=True)
        ]

    golds = _recorded(
        [digest([_VERSION, fingerprint, "gold", p.prompt_ids, p.answer_ids]) for p in pairs],
        lengths=[len(pair.prompt_ids) + len(pair.answer_ids) for pair in pairs],
        compute=Halving(weighed, what="prompts with answers", key="evaluation.batch_size"),
        held=held,
        ledger=ledger,
        batch_size=batch_size,
        label=f"{label}, likelihood",
        world=world,
    )
    best: list[Row | None] = [None] * len(test.prompts)
    for owner, row in zip(owners, golds, strict=True):
        before = best[owner]
        if before is None or row["loglik"] > before["loglik"]:
            best[owner] = row
    return answers, best


def _pairs(
    test: TestSet, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TokenisedExample], list[int]]:
    """Prompts with an accepted answer each, (P,), and the places of their items."""
    pairs, owners = [], []
    for place, (example, prompt) in enumerate(zip(test.examples, test.prompts, strict=True)):
        for ids in dict.fromkeys(answer_tokens(tokenizer, example.golds[:GOLDS])):
            if ids:
                pairs.append(
                    TokenisedExample(id=prompt.id, prompt_ids=prompt.prompt_ids, answer_ids=ids)
                )
                owners.append(place)
    return pairs, owners


def _recorded(
    keys: Sequence[str],
    *,
    lengths: Sequence[int],
    compute: Callable[[Sequence[int]], list[Row]],
    held: dict[str, Row],
    ledger: Ledger,
    batch_size: int,
    label: str,
    world: World,
) -> list[Row]:
    """The rows of all keys, in their order; what is missing is computed and kept batch by batch.

    Batches are formed over all keys, missing or not, and the processes share them out whole: so a
    row is what it would have been in one process that nobody interrupted, unless memory did not
    suffice and a batch was asked in halves.
    """
    missing = set(world.first(lambda: [key for key in dict.fromkeys(keys) if key not in held]))
    batches = [
        batch
        for batch in evaluation_order(lengths, batch_size=batch_size)
        if any(keys[place] in missing for place in batch)
    ][world.rank :: world.size]
    made: dict[str, Row] = {}
    for batch, rows, seconds in _timed(batches, compute, label=label, shown=world.leads):
        new = {
            keys[place]: row
            for place, row in zip(batch, rows, strict=True)
            if keys[place] in missing and keys[place] not in made
        }
        new = {key: {**row, "seconds": seconds / len(new)} for key, row in new.items()}
        ledger.append(new)
        made |= new
    if missing:
        for told in world.gather(json.dumps(made)):
            held |= json.loads(told)
    lacking = [key for key in keys if key not in held]
    if lacking:
        raise RunError(
            f"{ledger.path}: process {world.rank} does not see the answers that process 0 sees; "
            "the runs' folder must be on a disk that all nodes share"
        )
    return [held[key] for key in keys]


def _timed(
    batches: Sequence[Sequence[int]],
    compute: Callable[[Sequence[int]], list[Row]],
    *,
    label: str,
    shown: bool,
) -> Iterator[tuple[Sequence[int], list[Row], float]]:
    """Each batch with its rows and the seconds that they took, under a progress bar."""
    if not batches:
        return
    total = sum(map(len, batches))
    with bar(total=total, label=label, unit="item", keep=False, shown=shown) as done:
        for batch in batches:
            started = time.monotonic()
            rows = compute(batch)
            yield batch, rows, time.monotonic() - started
            done.update(len(batch))
