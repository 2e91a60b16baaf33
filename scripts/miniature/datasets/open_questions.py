"""The closed-book twins: WebQ (lower case, several answers), FreebaseQA (trivia style, one)."""

from __future__ import annotations

import random

from scripts.miniature.datasets.sampling import Row
from scripts.miniature.world import Fact, World

TEST_ITEMS = 300


def split_facts(world: World, seed: int) -> tuple[list[Fact], list[Fact], list[Fact]]:
    """Divide the facts: FreebaseQA's test (single answers only), WebQ's test, WebQ's training."""
    facts = list(world.facts)
    random.Random(f"{seed}/questions").shuffle(facts)
    single = [fact for fact in facts if len(fact.answers) == 1]
    freebase = single[:TEST_ITEMS]
    taken = {id(fact) for fact in freebase}
    rest = [fact for fact in facts if id(fact) not in taken]
    return freebase, rest[:TEST_ITEMS], rest[TEST_ITEMS:]


def web_row(fact: Fact, form: int) -> Row:
    """A row of WebQ in the relation's given form of words."""
    question = fact.relation.webq[form].format(s=fact.subject.lower())
    return {"url": "", "question": question, "answers": list(fact.answers)}


def freebase_row(fact: Fact, form: int, *, number: int = 0) -> Row:
    """A row of FreebaseQA in the nested columns of the hub's converted branch."""
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


def web_splits(world: World, seed: int) -> dict[str, list[Row]]:
    """WebQ's two splits; each fact is asked in one of its three forms of words."""
    rng = random.Random(f"{seed}/webq")
    _, test, train = split_facts(world, seed)
    return {
        "data/test": [web_row(fact, rng.randrange(3)) for fact in test],
        "data/train": [web_row(fact, rng.randrange(3)) for fact in train],
    }


def freebase_splits(world: World, seed: int) -> dict[str, list[Row]]:
    """FreebaseQA's test split; each fact is asked in one of its three forms of words."""
    rng = random.Random(f"{seed}/freebase")
    test, _, _ = split_facts(world, seed)
    rows = [freebase_row(fact, rng.randrange(3), number=number) for number, fact in enumerate(test)]
    return {"default/test": rows}
