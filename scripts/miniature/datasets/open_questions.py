"""Synthetic WebQ (lower case, several answers) and FreebaseQA (trivia style, one answer)."""

from __future__ import annotations

import random

from scripts.miniature.datasets.sampling import Row
from scripts.miniature.world import Fact, SyntheticWorld

TEST_ITEMS = 300


def split_facts(world: SyntheticWorld, seed: int) -> tuple[list[Fact], list[Fact], list[Fact]]:
    """Split the facts into FreebaseQA test (single answers only), WebQ test and WebQ training."""
    facts = list(world.facts)
    random.Random(f"{seed}/questions").shuffle(facts)
    single = [fact for fact in facts if len(fact.answers) == 1]
    freebase = single[:TEST_ITEMS]
    taken = {id(fact) for fact in freebase}
    rest = [fact for fact in facts if id(fact) not in taken]
    return freebase, rest[:TEST_ITEMS], rest[TEST_ITEMS:]


def web_row(fact: Fact, form: int) -> Row:
    """Return a row of WebQ in the given phrasing."""
    question = fact.relation.webq[form].format(s=fact.subject.lower())
    return {"url": "", "question": question, "answers": list(fact.answers)}


def freebase_row(fact: Fact, form: int, *, number: int = 0) -> Row:
    """Return a row of FreebaseQA with the nested columns of the converted branch on the Hub."""
    raw = fact.relation.freebase[form].format(s=fact.subject)
    name = f"FreebaseQA-eval-{number}"
    return {
        "Question-ID": name,
        "RawQuestion": raw,
        "ProcessedQuestion": raw.rstrip("?").lower(),
        "Parses": {
            "Parse-Id": [f"{name}.P0"],
            "PotentialTopicEntityMention": [fact.subject.lower()],
            "TopicEntityName": [fact.subject.lower()],
            "TopicEntityMid": [f"m.{number:04d}s"],
            "InferentialChain": [f"world.{fact.relation.subjects}.{fact.relation.name}"],
            "Answers": [{"AnswersMid": [f"m.{number:04d}a"], "AnswersName": [[fact.answers[0].lower()]]}],
        },
    }


def web_splits(world: SyntheticWorld, seed: int) -> dict[str, list[Row]]:
    """Return the splits of WebQ; each fact has one of three phrasings."""
    rng = random.Random(f"{seed}/webq")
    _, test, train = split_facts(world, seed)
    return {
        "data/test": [web_row(fact, rng.randrange(3)) for fact in test],
        "data/train": [web_row(fact, rng.randrange(3)) for fact in train],
    }


def freebase_splits(world: SyntheticWorld, seed: int) -> dict[str, list[Row]]:
    """Return the test split of FreebaseQA; each fact has one of three phrasings."""
    rng = random.Random(f"{seed}/freebase")
    test, _, _ = split_facts(world, seed)
    rows = [freebase_row(fact, rng.randrange(3), number=number) for number, fact in enumerate(test)]
    return {"default/test": rows}
