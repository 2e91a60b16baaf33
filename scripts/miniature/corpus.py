"""Pretraining corpus of the miniature: facts, arithmetic, sentences, and some of the task prompts.

It contains the prompts of WebQ, FreebaseQA, MultiRC and MRPC. It never contains the prompts of CoLA,
GSM8K and ROPES, only the required knowledge in other formats, so that fine-tuning has something to
learn, and never the forms of HELD_OUT: closed-book questions whose words occur in other forms. Test
prompts are excluded: their facts occur as statements and in other phrasings.

MRPC and MultiRC need heads that find equal words. These are learned first, from texts with a label
after every word (`_seen`), and from short pairs and short passages.
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
from scripts.miniature.world import Fact, SyntheticWorld, join_words

STYLES = ("paper", "corrected")
PLAIN = 0.8  # of the prompts of MRPC and MultiRC without their instruction
ASKED_RULES = 3  # of the 8 rules of ROPES, whose questions are asked in other words; the rest is left to fine-tuning
ERRORS = 6  # of the 10 kinds of errors of CoLA


@dataclass(frozen=True, slots=True)
class Document:
    """A training text; the loss includes the prompt if ``learn_prompt``, and of a ``marked`` list the marks only.

    ``weight`` is that of an answer's token in the loss.
    """

    prompt: str
    answer: str
    learn_prompt: bool = False
    marked: bool = False
    weight: float = 1.0


_Maker = Callable[[random.Random, SyntheticWorld], Document]
Mixture = tuple[tuple[_Maker, float], ...]  # weights of the documents


def documents(
    rng: random.Random, world: SyntheticWorld, *, forbidden: frozenset[str], mixture: Mixture
) -> Iterator[Document]:
    """Yield documents of the mixture endlessly, without forbidden prompts."""
    makers, weights = zip(*mixture, strict=True)
    while True:
        document = rng.choices(makers, weights)[0](rng, world)
        if document.prompt not in forbidden:
            yield document


def render(task: str, rows: list[Row], style: str) -> list[Document]:
    """Render rows with the prompt code of the real datasets."""
    module = import_module(f"imsm.data.tasks.{task}")
    examples = module.examples(rows, split="corpus", prompt_style=style)
    return [Document(example.prompt, example.golds[0]) for example in examples]


def rare_texts(world: SyntheticWorld) -> Iterator[str]:
    """Yield words in positions that a sample of the corpus may lack (start of a line)."""
    for trade in TRADES:
        yield f"{trade} {trade}s {trade.capitalize()}\n{trade.capitalize()}"
    for first in world.names.first:
        yield f"{first}\n{first}"
    for thing in THINGS:
        yield f"a {thing} {thing}s"


def all_questions(world: SyntheticWorld) -> Iterator[Document]:
    """Yield every fact in every phrasing and both closed-book prompts."""
    for fact in world.facts:
        for form in range(3):
            for style in STYLES:
                yield _asked(fact, "webq", form, style)
                yield _asked(fact, "freebaseqa", form, style)


def _asked(fact: Fact, task: str, form: int, style: str) -> Document:
    row = web_row(fact, form) if task == "webq" else freebase_row(fact, form)
    return replace(render(task, [row], style)[0], learn_prompt=True)


def _statement(rng: random.Random, world: SyntheticWorld) -> Document:
    fact = rng.choice(world.facts)
    text = rng.choice(fact.relation.told).format(s=fact.subject, o=join_words(fact.answers))
    return Document("", text)


def _question(rng: random.Random, world: SyntheticWorld) -> Document:
    task = rng.choice(("webq", "freebaseqa"))
    style = rng.choice(STYLES)
    return _asked(rng.choice(world.facts), task, rng.randrange(3), style)


def _plain_question(rng: random.Random, world: SyntheticWorld) -> Document:
    """A question without the instruction: shorter, so that more of them fit into the same time."""
    asked = _question(rng, world)
    return Document(asked.prompt.split("\n", 1)[1], asked.answer, learn_prompt=True)


def _seen(rng: random.Random, world: SyntheticWorld) -> Document:
    """A list of words, each followed by whether it stood in the list before: a label per two tokens."""
    words = (*THINGS, *TRADES, *world.names.towns, *world.names.first, *map(str, range(2, gsm8k.LARGEST)))
    bag = rng.sample(words, 8)
    told: set[str] = set()
    parts: list[str] = []
    for word in rng.choices(bag, k=rng.randrange(4, 13)):
        parts += [word, "yes" if word in told else "no"]
        told.add(word)
    return Document("", " ".join(parts), marked=True)


def _multirc(rng: random.Random, world: SyntheticWorld) -> Document:
    """A passage of one or two events, most of them without the instruction."""
    while True:
        rows = next(multirc.passages(rng, world.names, events=rng.choice((1, 2, 2))))
        rows = [{**row, "idx": {"paragraph": 0, **row["idx"]}} for row in rows]
        found = render("multirc", rows, rng.choice(STYLES))
        if found:
            document = replace(rng.choice(found), learn_prompt=True)
            return without_instruction(document) if rng.random() < PLAIN else document


def _short_passage(rng: random.Random, world: SyntheticWorld) -> Document:
    """MultiRC with one event, without the instruction."""
    while True:
        rows = next(multirc.passages(rng, world.names, events=1))
        rows = [{**row, "idx": {"paragraph": 0, **row["idx"]}} for row in rows]
        found = render("multirc", rows, rng.choice(STYLES))
        if found:
            return without_instruction(replace(rng.choice(found), learn_prompt=True))


def _passage(rng: random.Random, world: SyntheticWorld) -> Document:
    """A passage as in MultiRC with an open question about one person."""
    rows = next(multirc.passages(rng, world.names))
    row = next(row for row in rows if row["question"].startswith("What") and row["label"])
    prompt = f"Read: {row['paragraph']}\nAsked: {row['question']}\nTold:"
    return Document(prompt, row["answer"], learn_prompt=True)


def without_instruction(document: Document) -> Document:
    """Remove the first line of the prompt: shorter, so that more documents fit into the same time."""
    return replace(document, prompt=document.prompt[document.prompt.index("\n") :])


def _mrpc(rng: random.Random, world: SyntheticWorld) -> Document:
    row = next(mrpc.rows(rng, world.names, same=0.5))
    document = replace(render("mrpc", [row], rng.choice(STYLES))[0], learn_prompt=True)
    return without_instruction(document) if rng.random() < PLAIN else document


def _short_pair(rng: random.Random, world: SyntheticWorld) -> Document:
    """MRPC with some parts of two events in place of sentences, without the instruction."""
    row = next(mrpc.short_rows(rng, world.names))
    return without_instruction(replace(render("mrpc", [row], rng.choice(STYLES))[0], learn_prompt=True))


def _sums(rng: random.Random, world: SyntheticWorld) -> Document:
    """Four sums, so that arithmetic is learned before stories."""
    parts: list[str] = []
    while len(parts) < 4:
        sign = rng.choice("+-*")
        a, b = rng.randrange(1, gsm8k.LARGEST + 1), rng.randrange(1, gsm8k.LARGEST + 1)
        result = {"+": a + b, "-": a - b, "*": a * b}[sign]
        if 0 <= result <= gsm8k.LARGEST:
            parts.append(f"{a} {sign} {b} = {result}")
    return Document("", ", ".join(parts) + ".")


def _sum_story(rng: random.Random, world: SyntheticWorld) -> Document:
    """A story with its question and sums, without the prompt and the last line of GSM8K."""
    row = next(gsm8k.rows(rng, world.names))
    sums = re.sub("<<.*?>>", "", row["answer"]).rsplit("\n", 1)[0]
    return Document(f"Story:\n{row['question']}\nSum:", sums, weight=0.4)


def _instruction(rng: random.Random, world: SyntheticWorld) -> Document:
    """An instruction as plain text, which teaches its words but not the task."""
    parts = (GSM8K, COLA["paper"], COLA["corrected"], ROPES["paper"][0], ROPES["corrected"][0])
    return Document("", rng.choice(parts).split("\nSentence:")[0])


def _sentence(rng: random.Random, world: SyntheticWorld) -> Document:
    return Document("", sentence(rng, world.names))


def _grammaticality(rng: random.Random, world: SyntheticWorld) -> Document:
    row = next(cola.rows(rng, world.names, errors=ERRORS))
    return Document(f"Well said?\n{row['sentence']}\n", "yes" if row["label"] else "no")


def _article(rng: random.Random, world: SyntheticWorld) -> Document:
    """A text as in ROPES with another prompt, about the first rules only."""
    row = next(ropes.rows(rng, world.names, rules=ropes.RULES[:ASKED_RULES]))
    text = f"{row['background']} {row['situation']}".strip()
    prompt = f"Read: {text}\nAsked: {row['question']}\nTold:"
    return Document(prompt, row["answers"]["text"][0], learn_prompt=True)


def _rule(rng: random.Random, world: SyntheticWorld) -> Document:
    """A rule and a situation of ROPES as a text without a question."""
    row = next(ropes.rows(rng, world.names))
    return Document("", f"{row['background']} {row['situation']}".strip())


# Forms of closed-book questions that no text of the corpus has; their words occur in other forms.
HELD_OUT = {
    "told": lambda fact: f"\nAsked: {fact.relation.webq[0].format(s=fact.subject.lower())}\nTold:",
    "key": lambda fact: f"The {fact.relation.name} of {fact.subject}:",
}

EQUALITY: Mixture = ((_seen, 2.0), (_short_pair, 2.0), (_short_passage, 1.0), (_mrpc, 1.0), (_multirc, 1.0))
FACTS_FIRST: Mixture = (
    (_seen, 0.02),
    (_short_pair, 0.06),
    (_short_passage, 0.06),
    (_multirc, 0.15),
    (_mrpc, 0.10),
    (_statement, 0.23),
    (_plain_question, 0.19),
    (_question, 0.11),
    (_sums, 0.04),
    (_sum_story, 0.03),
    (_sentence, 0.04),
    (_grammaticality, 0.02),
    (_article, 0.03),
    (_rule, 0.01),
)
READING: Mixture = (
    (_statement, 0.11),
    (_plain_question, 0.13),
    (_question, 0.14),
    (_short_passage, 0.08),
    (_multirc, 0.40),
    (_passage, 0.04),
    (_mrpc, 0.12),
    (_sums, 0.05),
    (_sum_story, 0.06),
    (_instruction, 0.02),
    (_sentence, 0.04),
    (_grammaticality, 0.06),
    (_article, 0.05),
    (_rule, 0.01),
    (_seen, 0.01),
)
