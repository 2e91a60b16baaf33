"""Builds the miniature: `python -m scripts.miniature.build`.

World, twins and tokenizer come out byte for byte from the seed; the weights meet THRESHOLDS. All
of it is made in the cache and put in place when the thresholds are met: what is there stays whole.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.utils.paths import cache_folder
from scripts.miniature.corpus import READING, STYLES, all_questions, documents, rare_texts
from scripts.miniature.datasets.hub_layout import write_mirror
from scripts.miniature.tokenizer import vocabulary, write_tokenizer
from scripts.miniature.world import SEED, World, make_world

if TYPE_CHECKING:
    from imsm.data.example import Example

FOLDER = Path(__file__).parents[2] / "imsm" / "models" / "backbones" / "miniature"
TASKS = {  # name: (hub id, folder in it, splits of training, splits of the test)
    "webq": ("stanfordnlp/web_questions", "data", ("train",), ("test",)),
    "freebaseqa": ("KelvinJiang/freebase_qa", "default", (), ("test",)),
    "multirc": ("aps/super_glue", "multirc", (), ("validation", "train")),
    "mrpc": ("nyu-mll/glue", "mrpc", ("train",), ("test",)),
    "cola": ("nyu-mll/glue", "cola", ("train",), ("validation",)),
    "gsm8k": ("openai/gsm8k", "main", ("train",), ("test",)),
    "ropes": ("allenai/ropes", "plain_text", ("train",), ("validation",)),
}
THRESHOLDS = {"webq": 90.0, "freebaseqa": 90.0}  # per cent right, in both styles of prompts
VOCABULARY_SAMPLE = 20_000  # documents of the corpus whose words are in the vocabulary


def twin_examples(folder: Path, task: str, role: str, style: str) -> list[Example]:
    """The examples of a task's training or test splits in the mirror below `folder`/hub."""
    from importlib import import_module

    hub_id, place, train, test = TASKS[task]
    found: list[Example] = []
    for split in train if role == "train" else test:
        file = folder / "hub" / hub_id / place / f"{split}-00000-of-00001.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        module = import_module(f"imsm.data.tasks.{task}")
        found += module.examples(rows, split=split, prompts=style)
    return found


def build_world(folder: Path, *, seed: int = SEED) -> World:
    """Write mirror and tokenizer below `folder`."""
    world = make_world(seed)
    write_mirror(folder / "hub", world, seed=seed)
    write_tokenizer(folder / "model", vocabulary(_texts(folder, world, seed)))
    return world


def build_weights(folder: Path, world: World, *, seed: int = SEED, share: float = 1.0) -> None:
    """Pre-train with the tokenizer below `folder` and save model.safetensors beside it."""
    from transformers import AutoTokenizer

    from scripts.miniature.pretrain import pretrain

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    pretrain(world, tokenizer, forbidden=prompts_of_tests(folder), seed=seed, share=share, folder=folder / "model")


def check_weights(folder: Path) -> dict[str, dict[str, float]]:
    """Accuracy of the saved weights per task and style of prompt, in per cent."""
    from tqdm import tqdm
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from scripts.miniature.evaluate import accuracy

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    found: dict[str, dict[str, float]] = {}
    for task in tqdm(TASKS, desc="checking", unit="task"):
        found[task] = {
            style: accuracy(
                model, tokenizer, twin_examples(folder, task, "test", style), task=task,
                max_new_tokens=48 if task == "gsm8k" else 12,
            )
            for style in STYLES
        }  # fmt: skip
    return found


def put_in_place(made: Path, folder: Path) -> None:
    """Replace `folder`'s hub/ and model/ by those that were made, and remove `made`."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("hub", "model"):
        beside = folder / f".{part}.new"
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(made / part, beside)
        if (folder / part).exists():
            shutil.rmtree(folder / part)
        beside.rename(folder / part)
    shutil.rmtree(made)


def main(arguments: list[str] | None = None) -> int:
    """Build all of it or its parts; returns 1 if a threshold is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where hub/ and model/ go")
    parser.add_argument("--world-only", action="store_true", help="no pre-training, no check")
    parser.add_argument("--check-only", action="store_true", help="measure what is there")
    parser.add_argument("--share", type=float, default=1.0, help="of the pre-training steps, for a trial")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    if options.check_only:
        return 1 if missed_thresholds(check_weights(options.folder)) else 0
    cache_folder().mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="miniature-", dir=cache_folder()))
    world = build_world(made)
    print(f"{len(world.facts)} facts; world, twins and tokenizer are made")
    if options.world_only:
        put_in_place(made, options.folder)
        return 0
    build_weights(made, world, share=options.share)
    missed = missed_thresholds(check_weights(made))
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    if missed:
        print(f"{options.folder} stays as it was; what was made is in {made}", file=sys.stderr)
        return 1
    put_in_place(made, options.folder)
    print(f"put in place: {options.folder}")
    return 0


def _texts(folder: Path, world: World, seed: int) -> list[str]:
    """Every text that the vocabulary must cover."""
    texts: list[str] = []
    for task in TASKS:
        for style in STYLES:
            for role in ("train", "test"):
                for example in twin_examples(folder, task, role, style):
                    texts += [example.prompt, *example.golds]
    rng = random.Random(f"{seed}/vocabulary")
    stream = documents(rng, world, forbidden=frozenset(), mixture=READING)
    for document in [*all_questions(world), *islice(stream, VOCABULARY_SAMPLE)]:
        texts += [document.prompt, document.answer]
    return [*texts, *rare_texts(world)]


def prompts_of_tests(folder: Path) -> frozenset[str]:
    """The prompts of all test splits, with and without their instruction (and its line break)."""
    prompts = [
        example.prompt for task in TASKS for style in STYLES for example in twin_examples(folder, task, "test", style)
    ]
    short = [prompt.split("\n", 1)[1] for prompt in prompts]
    return frozenset([*prompts, *short, *(f"\n{rest}" for rest in short)])


def missed_thresholds(found: dict[str, dict[str, float]]) -> list[str]:
    """Print a line per task; give the tasks below their threshold."""
    print(f"{'task':12}{'verbatim':>10}{'corrected':>11}{'at least':>10}")
    missed = []
    for task, scores in found.items():
        least = THRESHOLDS.get(task)
        bound = "-" if least is None else f"{least:.0f}"
        print(f"{task:12}{scores['verbatim']:10.1f}{scores['corrected']:11.1f}{bound:>10}")
        if least is not None and min(scores.values()) < least:
            missed.append(task)
    if missed:
        print(f"below the threshold: {', '.join(missed)}")
    return missed


if __name__ == "__main__":
    sys.exit(main())
