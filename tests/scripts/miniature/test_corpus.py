"""The pretraining corpus contains no test prompt, no held-out form and no word outside the vocabulary."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from imsm.models.backbones.loading import load_tokenizer
from scripts.miniature.build import FOLDER, prompts_of_test_splits
from scripts.miniature.corpus import (
    EQUALITY,
    FACTS_FIRST,
    HELD_OUT,
    READING,
    Document,
    Mixture,
    documents,
    without_instruction,
)
from scripts.miniature.datasets import mrpc
from scripts.miniature.held_out import write_held_out
from scripts.miniature.pretrain import STAGES, make_model, pack, packed_loss
from scripts.miniature.sentences import ADJECTIVES
from scripts.miniature.world import make_world
from tests.scripts.miniature.shipped import examples_of


def test_forbidden_prompts_never_occur() -> None:
    forbidden = prompts_of_test_splits(FOLDER)
    world = make_world()
    free = [one.prompt for one in islice(_documents(), 4000)]
    assert forbidden & set(free)
    kept = islice(documents(random.Random(3), world, forbidden=forbidden, mixture=READING), 4000)
    assert not forbidden & {one.prompt for one in kept}


def test_questions_without_instruction_are_forbidden_too() -> None:
    forbidden = prompts_of_test_splits(FOLDER)
    asked = [one.prompt for one in examples_of("webq", "test")]
    assert {prompt.split("\n", 1)[1] for prompt in asked} <= forbidden
    read = [one.prompt for one in examples_of("multirc", "test") + examples_of("mrpc", "test")]
    assert {without_instruction(Document(prompt, "yes")).prompt for prompt in read} <= forbidden


def test_held_out_forms_never_occur() -> None:
    marks = [HELD_OUT["key"](fact) for fact in make_world().facts]
    for mixture in (EQUALITY, FACTS_FIRST, READING):
        for one in islice(_documents(mixture), 4000):
            text = one.prompt + one.answer
            # "Told:" occurs only after a passage
            assert ("Told:" in text) == text.startswith("Read:")
            assert not any(mark in text for mark in marks)


def test_tasks_of_the_harness_are_the_held_out_forms(tmp_path: Path) -> None:
    write_held_out(tmp_path)
    shipped = FOLDER.parents[3] / "experiments" / "forgetting_mini" / "harness"
    for name in HELD_OUT:
        assert (shipped / f"{name}.jsonl").read_text() == (tmp_path / f"{name}.jsonl").read_text()


def test_a_single_sentence_does_not_tell_whether_a_pair_is_the_same() -> None:
    rows = list(islice(mrpc.rows(random.Random(4), make_world().names, same=0.5), 6000))
    # the synonyms alone: every sentence has an adjective or its synonym
    for words in (ADJECTIVES.values(), ("were", "by"), ("purchased", "traded", "built")):
        found = [row["label"] for row in rows if set(words) & set(f"{row['sentence1']} {row['sentence2']}".split())]
        assert abs(sum(found) / len(found) - 0.5) < 0.05
    assert all(row["sentence1"] != row["sentence2"] for row in rows)


def test_packed_documents_do_not_attend_to_each_other() -> None:
    tokenizer = load_tokenizer(name_or_path="imsm:miniature")
    model = make_model(tokenizer, seed=0).eval()
    batch = next(pack(_documents(), tokenizer, STAGES[-1]))
    last = batch.document == batch.document.amax(1, keepdim=True)
    alone = dataclasses.replace(batch, weights=batch.weights * last)
    others = torch.where(last, batch.ids, torch.randint_like(batch.ids, len(tokenizer)))
    with torch.no_grad():
        expected = packed_loss(model, alone)
        assert packed_loss(model, dataclasses.replace(alone, ids=others)) == expected
        # as one document, the random words change the loss
        mixed = dataclasses.replace(alone, ids=others, document=torch.ones_like(batch.document))
        assert packed_loss(model, mixed) != expected


def _documents(mixture: Mixture = READING) -> Iterator[Document]:
    return documents(random.Random(3), make_world(), forbidden=frozenset(), mixture=mixture)
