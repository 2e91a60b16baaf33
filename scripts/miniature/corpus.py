"""What the miniature reads in pre-training: facts, sums, sentences, and four of the prompts.

It is taught the closed-book prompts (WebQ, FreebaseQA), MultiRC's, and the plain half of MRPC's.
Prompts of CoLA, GSM8K and ROPES it never sees: what they need it has met in other words, so that
fine-tuning has something to teach and something to build on. No prompt of a test split is ever in
the corpus: a fact of a test is told, and asked in other words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module

from imsm.data.tasks.cola import PROMPTS as COLA
from imsm.data.tasks.gsm8k import INSTRUCTION as GSM8K
from imsm.data.tasks.ropes import PARTS as ROPES
from scripts.miniature.datasets import cola, gsm8k, mrpc, multirc, ropes
from scripts.miniature.datasets.open_questions import freebase_row, web_row
from scripts.miniature.datasets.sampling import Row
from scripts.miniature.names import THINGS, TRADES
from scripts.miniature.sentences import sentence
from scripts.miniature.world import Fact, World, join_words

STYLES = ("paper", "corrected")


@dataclass(frozen=True, slots=True)
class Document:
    """A text to learn; the prompt is learned too if the document is `whole`."""

    prompt: str
    answer: str
    whole: bool = False


_Maker = Callable[[random.Random, World], Document]
Mixture = tuple[tuple[_Maker, float], ...]  # shares of the documents


def documents(rng: random.Random, world: World, *, forbidden: frozenset[str], mixture: Mixture) -> Iterator[Document]:
    """Endless documents in the mixture; none has a forbidden prompt."""
    makers, weights = zip(*mixture, strict=True)
    while True:
        document = rng.choices(makers, weights)[0](rng, world)
        if document.prompt not in forbidden:
            yield document


def render(task: str, rows: list[Row], style: str) -> list[Document]:
    """The rows as prompts and answers, by the code that also renders the real datasets."""
    module = import_module(f"imsm.data.tasks.{task}")
    found = module.examples(rows, split="corpus", prompts=style)
    return [Document(example.prompt, example.golds[0]) for example in found]


def rare_texts(world: World) -> Iterator[str]:
    """Words in places where a sample of the corpus may miss them: at the start of a line."""
    for trade in TRADES:
        yield f"{trade} {trade}s {trade.capitalize()}\n{trade.capitalize()}"
    for first in world.names.first:
        yield f"{first}\n{first}"
    for thing in THINGS:
        yield f"a {thing} {thing}s"


def all_questions(world: World) -> Iterator[Document]:
    """Every fact in every form of words and both closed-book prompts."""
    for fact in world.facts:
        for form in range(3):
            for style in STYLES:
                yield _asked(fact, "webq", form, style)
                yield _asked(fact, "freebaseqa", form, style)


def _asked(fact: Fact, task: str, form: int, style: str) -> Document:
    row = web_row(fact, form) if task == "webq" else freebase_row(fact, form)
    return render(task, [row], style)[0]


def _told(rng: random.Random, world: World) -> Document:
    fact = rng.choice(world.facts)
    text = rng.choice(fact.relation.told).format(s=fact.subject, o=join_words(fact.answers))
    return Document("", text)


def _question(rng: random.Random, world: World) -> Document:
    task = rng.choice(("webq", "freebaseqa"))
    style = rng.choice(STYLES)
    return _asked(rng.choice(world.facts), task, rng.randrange(3), style)


def _plain_question(rng: random.Random, world: World) -> Document:
    """A question without the prompt's instruction: shorter, so more of them in the same time."""
    asked = _question(rng, world)
    return Document(asked.prompt.split("\n", 1)[1], asked.answer)


def _multirc(rng: random.Random, world: World) -> Document:
    while True:
        rows = next(multirc.passages(rng, world.names))
        rows = [{**row, "idx": {"paragraph": 0, **row["idx"]}} for row in rows]
        found = render("multirc", rows, rng.choice(STYLES))
        if found:
            return replace(rng.choice(found), whole=True)


def _passage(rng: random.Random, world: World) -> Document:
    """A passage of MultiRC's kind, and what one of its people did: to find, not to judge."""
    rows = next(multirc.passages(rng, world.names))
    row = next(row for row in rows if row["question"].startswith("What") and row["label"])
    told = f"Read: {row['paragraph']}\nAsked: {row['question']}\nTold:"
    return Document(told, row["answer"], whole=True)


def without_instruction(document: Document) -> Document:
    """The prompt from its first line break on: shorter, so more of them in the same time."""
    return replace(document, prompt=document.prompt[document.prompt.index("\n") :])


def _mrpc(rng: random.Random, world: World) -> Document:
    row = next(mrpc.rows(rng, world.names, hard=0.0, same=0.5))
    return replace(render("mrpc", [row], rng.choice(STYLES))[0], whole=True)


def _sums(rng: random.Random, world: World) -> Document:
    """Four plain sums, so that the tables are known before any story is."""
    parts: list[str] = []
    while len(parts) < 4:
        sign = rng.choice("+-*")
        a, b = rng.randrange(1, gsm8k.LARGEST + 1), rng.randrange(1, gsm8k.LARGEST + 1)
        result = {"+": a + b, "-": a - b, "*": a * b}[sign]
        if 0 <= result <= gsm8k.LARGEST:
            parts.append(f"{a} {sign} {b} = {result}")
    return Document("", ", ".join(parts) + ".")


def _sum_story(rng: random.Random, world: World) -> Document:
    """A story, its question and its sums, without GSM8K's prompt and its last line."""
    row = next(gsm8k.rows(rng, world.names))
    sums = re.sub("<<.*?>>", "", row["answer"]).rsplit("\n", 1)[0]
    return Document(f"Story:\n{row['question']}\nSum:", sums)


def _instruction(rng: random.Random, world: World) -> Document:
    """An instruction alone, as a text: its words are known, what it asks for is not."""
    parts = (GSM8K, COLA["paper"], COLA["corrected"], ROPES["paper"][0], ROPES["corrected"][0])
    return Document("", rng.choice(parts).split("\nSentence:")[0])


def _sentence(rng: random.Random, world: World) -> Document:
    return Document("", sentence(rng, world.names))


def _judged(rng: random.Random, world: World) -> Document:
    row = next(cola.rows(rng, world.names, faults=4))
    return Document(f"Well said?\n{row['sentence']}\n", "yes" if row["label"] else "no")


def _article(rng: random.Random, world: World) -> Document:
    """An article of ROPES' kind, asked in other words, and seldom after the rule's weak end."""
    row = next(ropes.rows(rng, world.names, down=0.3))
    told = f"{row['background']} {row['situation']}".strip()
    return Document(f"Read: {told}\nAsked: {row['question']}\nTold:", row["answers"]["text"][0])


FACTS_FIRST: Mixture = (
    (_told, 0.32),
    (_plain_question, 0.26),
    (_question, 0.15),
    (_multirc, 0.05),
    (_mrpc, 0.05),
    (_sums, 0.05),
    (_sum_story, 0.04),
    (_sentence, 0.03),
    (_judged, 0.02),
    (_article, 0.03),
)
READING: Mixture = (
    (_told, 0.12),
    (_plain_question, 0.15),
    (_question, 0.15),
    (_multirc, 0.08),
    (_passage, 0.05),
    (_mrpc, 0.10),
    (_sums, 0.05),
    (_sum_story, 0.18),
    (_instruction, 0.02),
    (_sentence, 0.02),
    (_judged, 0.04),
    (_article, 0.04),
)
