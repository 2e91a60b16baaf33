"""Grammatical and ungrammatical sentences of the synthetic world."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from scripts.miniature.names import HABITATS, THINGS, TRADES, Names


@dataclass(frozen=True, slots=True)
class Verb:
    """Forms of a verb (sell, sells, sold, sold) and a synonym of its past, if any."""

    base: str
    third: str
    past: str
    participle: str
    like: str = ""


TRANSITIVE = (
    Verb("sell", "sells", "sold", "sold", "traded"),
    Verb("buy", "buys", "bought", "bought", "purchased"),
    Verb("find", "finds", "found", "found", "discovered"),
    Verb("mend", "mends", "mended", "mended", "repaired"),
    Verb("make", "makes", "made", "made", "built"),
    Verb("hide", "hides", "hid", "hidden", "concealed"),
    Verb("lose", "loses", "lost", "lost"),
    Verb("carry", "carries", "carried", "carried"),
    Verb("steal", "steals", "stole", "stolen"),
    Verb("take", "takes", "took", "taken"),
    Verb("paint", "paints", "painted", "painted"),
    Verb("clean", "cleans", "cleaned", "cleaned"),
)
INTRANSITIVE = (
    Verb("sleep", "sleeps", "slept", "slept"),
    Verb("laugh", "laughs", "laughed", "laughed"),
    Verb("sing", "sings", "sang", "sung"),
    Verb("wait", "waits", "waited", "waited"),
    Verb("fall", "falls", "fell", "fallen"),
    Verb("dance", "dances", "danced", "danced"),
)
ADJECTIVES = {  # with synonyms
    "big": "large", "small": "little", "happy": "glad", "clever": "wise", "quiet": "silent",
    "rich": "wealthy", "old": "aged", "brave": "bold",
}  # fmt: skip
TIMES = (
    "in the morning", "in the evening", "at night", "at noon", "on market day", "in spring",
    "in summer", "in winter",
)  # fmt: skip


def sentence(rng: random.Random, names: Names) -> str:
    """Return a grammatical sentence."""
    return rng.choice(_GRAMMATICAL)(rng, names)


def ungrammatical(rng: random.Random, names: Names, *, only: int | None = None) -> str:
    """Return a sentence with one error; ``only`` restricts it to the first kinds of errors."""
    return rng.choice(_UNGRAMMATICAL[:only])(rng, names)


def _person(rng: random.Random, plural: bool) -> str:
    adjective = rng.choice(list(ADJECTIVES)) + " " if rng.random() < 0.3 else ""
    return f"the {adjective}{rng.choice(TRADES)}{'s' if plural else ''}"


def _tail(rng: random.Random, names: Names) -> str:
    return rng.choice(
        ("", f" {rng.choice(TIMES)}", f" in {rng.choice(names.towns)}",
         f" near the {rng.choice(HABITATS)}")
    )  # fmt: skip


def _close(text: str, mark: str = ".") -> str:
    return text[0].upper() + text[1:] + mark


def _present(rng: random.Random, names: Names, *, error: bool = False) -> str:
    """The baker sings. / *The baker sing."""
    plural = rng.random() < 0.5
    verb = rng.choice(INTRANSITIVE)
    form = verb.base if plural != error else verb.third
    return _close(f"{_person(rng, plural)} {form}{_tail(rng, names)}")


def _present_object(rng: random.Random, names: Names, *, error: bool = False) -> str:
    """The bakers sell a lamp. / *The bakers sells a lamp."""
    plural = rng.random() < 0.5
    verb = rng.choice(TRANSITIVE)
    form = verb.base if plural != error else verb.third
    return _close(f"{_person(rng, plural)} {form} a {rng.choice(THINGS)}{_tail(rng, names)}")


def _past(rng: random.Random, names: Names, *, error: bool = False) -> str:
    """The baker sold a lamp. / *The baker sold lamp."""
    article = "" if error else rng.choice(("a ", "the ", "his ", "her "))
    verb = rng.choice(TRANSITIVE)
    thing = rng.choice(THINGS)
    subject = _person(rng, rng.random() < 0.3)
    return _close(f"{subject} {verb.past} {article}{thing}{_tail(rng, names)}")


def _order(rng: random.Random, names: Names, *, error: bool = False) -> str:
    """The baker mended the lamp. / *Baker the mended the lamp."""
    verb, thing, trade = rng.choice(TRANSITIVE), rng.choice(THINGS), rng.choice(TRADES)
    parts = ["the", trade, verb.past, "the", thing]
    if error:
        at = rng.randrange(4)
        parts[at], parts[at + 1] = parts[at + 1], parts[at]
    return _close(" ".join(parts) + _tail(rng, names))


def _valency(rng: random.Random, names: Names, *, error: bool = False) -> str:
    """The baker slept. / *The baker slept the lamp."""
    thing = f" the {rng.choice(THINGS)}" if error else ""
    verb = rng.choice(INTRANSITIVE)
    return _close(f"{_person(rng, rng.random() < 0.3)} {verb.past}{thing}{_tail(rng, names)}")


def _modal(rng: random.Random, names: Names, *, error: bool = False) -> str:
    """The baker can sell a lamp. / *The baker can sold a lamp."""
    verb = rng.choice(TRANSITIVE)
    form = rng.choice((verb.third, verb.past)) if error else verb.base
    modal = rng.choice(("can", "will", "must", "did not"))
    return _close(f"{_person(rng, False)} {modal} {form} a {rng.choice(THINGS)}{_tail(rng, names)}")


def _pronoun(rng: random.Random, names: Names, *, error: bool = False) -> str:
    """He sold a lamp. / *Him sold a lamp."""
    subject = rng.choice(("him", "her", "them", "us") if error else ("he", "she", "they", "we"))
    verb = rng.choice(TRANSITIVE)
    return _close(f"{subject} {verb.past} a {rng.choice(THINGS)}{_tail(rng, names)}")


def _passive(rng: random.Random, names: Names, *, error: bool = False) -> str:
    """The lamps were sold by the baker. / *The lamps was sold by the baker."""
    plural = rng.random() < 0.5
    thing = rng.choice(THINGS) + ("s" if plural else "")
    form = "were" if plural != error else "was"
    verb = rng.choice(TRANSITIVE)
    return _close(f"the {thing} {form} {verb.participle} by {_person(rng, False)}")


def _reflexive(rng: random.Random, names: Names, *, error: bool = False) -> str:
    """The bakers saw themselves. / *The bakers saw himself."""
    plural = rng.random() < 0.5
    reflexive = "themselves" if plural != error else rng.choice(("himself", "herself"))
    verb = rng.choice(("saw", "painted", "cleaned", "lost"))
    return _close(f"{_person(rng, plural)} {verb} {reflexive}{_tail(rng, names)}")


def _question(rng: random.Random, names: Names, *, error: bool = False) -> str:
    """What did the baker sell? / *What did the baker sell the lamp?"""
    thing = f" the {rng.choice(THINGS)}" if error else ""
    verb = rng.choice(TRANSITIVE)
    subject = _person(rng, rng.random() < 0.5)
    return _close(f"what did {subject} {verb.base}{thing}{_tail(rng, names)}", "?")


_Template = Callable[..., str]
_TEMPLATES: tuple[_Template, ...] = (
    _past, _order, _present, _modal, _pronoun, _valency, _present_object, _passive, _reflexive,
    _question,
)  # fmt: skip
_GRAMMATICAL = _TEMPLATES
_UNGRAMMATICAL: tuple[Callable[[random.Random, Names], str], ...] = tuple(
    lambda rng, names, template=template: template(rng, names, error=True)  # type: ignore[misc]
    for template in _TEMPLATES
)
