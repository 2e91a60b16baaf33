"""Build the miniature: `python -m scripts.miniature.build`.

Datasets and tokenizer are reproducible byte for byte from the seed; the weights must reach
THRESHOLDS. Everything is built in the cache and installed only if the thresholds are reached.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from importlib import import_module
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from imsm.data.example import Example
from imsm.utils.paths import cache_folder
from scripts.miniature.corpus import EQUALITY, HELD_OUT, READING, STYLES, all_questions, documents, rare_texts
from scripts.miniature.datasets.hub_layout import write_datasets
from scripts.miniature.evaluate import accuracy, first_token_accuracy
from scripts.miniature.pretrain import pretrain
from scripts.miniature.tokenizer import vocabulary, write_tokenizer
from scripts.miniature.world import SEED, SyntheticWorld, make_world

FOLDER = Path(__file__).parents[2] / "imsm" / "models" / "backbones" / "miniature"
TASKS = {  # name: (Hub id, folder in it, training splits, test splits)
    "webq": ("stanfordnlp/web_questions", "data", ("train",), ("test",)),
    "freebaseqa": ("KelvinJiang/freebase_qa", "default", (), ("test",)),
    "multirc": ("aps/super_glue", "multirc", (), ("validation", "train")),
    "mrpc": ("nyu-mll/glue", "mrpc", ("train",), ("test",)),
    "cola": ("nyu-mll/glue", "cola", ("train",), ("validation",)),
    "gsm8k": ("openai/gsm8k", "main", ("train",), ("test",)),
    "ropes": ("allenai/ropes", "plain_text", ("train",), ("validation",)),
}
THRESHOLDS = {"webq": 90.0, "freebaseqa": 90.0, "multirc": 85.0, "mrpc": 85.0}  # percent, for both prompt styles
VOCABULARY_SAMPLE = 20_000  # number of corpus documents that the vocabulary covers


def load_examples(folder: Path, task: str, role: str, style: str) -> list[Example]:
    """Load the training or test examples of a synthetic dataset in ``folder/hub``."""
    hub_id, subfolder, train, test = TASKS[task]
    examples: list[Example] = []
    for split in train if role == "train" else test:
        file = folder / "hub" / hub_id / subfolder / f"{split}-00000-of-00001.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        module = import_module(f"imsm.data.tasks.{task}")
        examples += module.examples(rows, split=split, prompt_style=style)
    return examples


def build_datasets(folder: Path, *, seed: int = SEED) -> SyntheticWorld:
    """Write the datasets and the tokenizer to ``folder``."""
    world = make_world(seed)
    write_datasets(folder / "hub", world, seed=seed)
    write_tokenizer(folder / "model", vocabulary(_texts(folder, world, seed)))
    return world


def build_weights(
    folder: Path, world: SyntheticWorld, *, seed: int = SEED, step_fraction: float = 1.0, items: int = 200
) -> None:
    """Pretrain with the tokenizer in ``folder/model`` and save the weights next to it.

    ``folder/state`` has the checkpoint and the progress on up to ``items`` test items per form.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    forms = progress_items(folder, world, items=items)

    def measure(model: LlamaForCausalLM) -> dict[str, float]:
        model.eval()
        return {name: first_token_accuracy(model, tokenizer, found) for name, found in forms.items()}

    pretrain(
        world,
        tokenizer,
        forbidden=prompts_of_test_splits(folder),
        seed=seed,
        step_fraction=step_fraction,
        folder=folder / "model",
        state=folder / "state",
        measure=measure,
    )


def progress_items(folder: Path, world: SyntheticWorld, *, items: int) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """Return prompts and references of each test (but GSM8K, which has no short answer) and held-out form."""
    tests = [task for task in TASKS if task != "gsm8k"]
    forms = {
        task: [(one.prompt, tuple(one.golds)) for one in load_examples(folder, task, "test", "paper")[:items]]
        for task in tests
    }
    facts = random.Random("held out").sample(world.facts, items)
    for name, form in HELD_OUT.items():
        forms[f"held_out_{name}"] = [(form(fact), fact.answers) for fact in facts]
    return forms


def check_weights(folder: Path) -> dict[str, dict[str, float]]:
    """Return the accuracy of the saved weights in percent, by task and prompt style."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    scores: dict[str, dict[str, float]] = {}
    for task in tqdm(TASKS, desc="evaluating", unit="task"):
        scores[task] = {
            style: accuracy(
                model, tokenizer, load_examples(folder, task, "test", style), task=task,
                max_new_tokens=48 if task == "gsm8k" else 12,
            )
            for style in STYLES
        }  # fmt: skip
    return scores


def install(built: Path, folder: Path) -> None:
    """Replace hub/ and model/ of ``folder`` by those in ``built``."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("hub", "model"):
        new = folder / f".{part}.new"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(built / part, new)
        if (folder / part).exists():
            shutil.rmtree(folder / part)
        new.rename(folder / part)


def main(arguments: list[str] | None = None) -> int:
    """Build the miniature or parts of it; return 1 if a threshold is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="output folder of hub/ and model/")
    parser.add_argument("--datasets-only", action="store_true", help="skip pretraining and evaluation")
    parser.add_argument("--check-only", action="store_true", help="evaluate the existing weights")
    parser.add_argument("--step-fraction", type=float, default=1.0, help="fraction of pretraining steps, for a trial")
    parser.add_argument("--work", type=Path, help="folder of the unfinished build; a later call continues it")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    if options.check_only:
        return 1 if missed_thresholds(check_weights(options.folder)) else 0
    cache_folder().mkdir(parents=True, exist_ok=True)
    built = options.work or Path(tempfile.mkdtemp(prefix="miniature-", dir=cache_folder()))
    words = built / "model" / "tokenizer.json"
    before = words.read_bytes() if words.exists() else None
    world = build_datasets(built)
    if before is not None and before != words.read_bytes():
        words.write_bytes(before)
        parser.error(f"--work={options.work}: its tokenizer has other words; use a new folder")
    print(f"{len(world.facts)} facts; datasets and tokenizer are built")
    if options.datasets_only:
        install(built, options.folder)
        _discard(built, options.work)
        return 0
    build_weights(built, world, step_fraction=options.step_fraction)
    missed = missed_thresholds(check_weights(built))
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    if missed:
        print(f"{options.folder} is unchanged; the new files are in {built}", file=sys.stderr)
        return 1
    install(built, options.folder)
    _discard(built, options.work)
    print(f"installed in {options.folder}")
    return 0


def _discard(built: Path, work: Path | None) -> None:
    """Delete the build; a folder that the user named is kept, with its checkpoint and progress."""
    if work is None:
        shutil.rmtree(built)


def _texts(folder: Path, world: SyntheticWorld, seed: int) -> list[str]:
    """Return all texts that the vocabulary must cover."""
    texts: list[str] = []
    for task in TASKS:
        for style in STYLES:
            for role in ("train", "test"):
                for example in load_examples(folder, task, role, style):
                    texts += [example.prompt, *example.golds]
    rng = random.Random(f"{seed}/vocabulary")
    for mixture in (EQUALITY, READING):
        stream = documents(rng, world, forbidden=frozenset(), mixture=mixture)
        for document in islice(stream, VOCABULARY_SAMPLE):
            texts += [document.prompt, document.answer]
    for document in all_questions(world):
        texts += [document.prompt, document.answer]
    texts += [form(fact) for form in HELD_OUT.values() for fact in world.facts]
    return [*texts, *rare_texts(world)]


def prompts_of_test_splits(folder: Path) -> frozenset[str]:
    """Return the prompts of all test splits, with and without the instruction (and its line break)."""
    prompts = [
        example.prompt for task in TASKS for style in STYLES for example in load_examples(folder, task, "test", style)
    ]
    short = [prompt.split("\n", 1)[1] for prompt in prompts]
    return frozenset([*prompts, *short, *(f"\n{rest}" for rest in short)])


def missed_thresholds(results: dict[str, dict[str, float]]) -> list[str]:
    """Print a line per task; return the tasks below their threshold."""
    print(f"{'task':12}{'paper':>10}{'corrected':>11}{'threshold':>10}")
    missed = []
    for task, scores in results.items():
        threshold = THRESHOLDS.get(task)
        bound = "-" if threshold is None else f"{threshold:.0f}"
        print(f"{task:12}{scores['paper']:10.1f}{scores['corrected']:11.1f}{bound:>10}")
        if threshold is not None and min(scores.values()) < threshold:
            missed.append(task)
    if missed:
        print(f"below the threshold: {', '.join(missed)}")
    return missed


if __name__ == "__main__":
    sys.exit(main())
