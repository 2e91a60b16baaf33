"""The pretraining corpus contains no test prompt and no word outside the vocabulary."""

from __future__ import annotations

import random
from itertools import islice

import torch

from imsm.models.backbones.loading import load_tokenizer
from scripts.miniature.build import FOLDER, prompts_of_test_splits
from scripts.miniature.corpus import READING, Document, documents, without_instruction
from scripts.miniature.pretrain import make_model, pack, packed_loss
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


def test_packed_documents_do_not_attend_to_each_other() -> None:
    tokenizer = load_tokenizer(name_or_path="imsm:miniature")
    model = make_model(tokenizer, seed=0).eval()
    batch = next(pack(_documents(), tokenizer))
    losses = []
    with torch.no_grad():
        packed = packed_loss(model, batch)
        for row in range(len(batch.ids)):
            for place in batch.document[row].unique():
                if place:
                    at = batch.document[row] == place
                    logits = model(batch.ids[row][at][None]).logits[0, :-1]
                    labels = batch.labels[row][at][1:]
                    losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    alone = torch.cat(losses)
    torch.testing.assert_close(packed, alone[alone != 0].mean(), atol=1e-4, rtol=1e-4)


def _documents():  # type: ignore[no-untyped-def]
    return documents(random.Random(3), make_world(), forbidden=frozenset(), mixture=READING)
