"""Write the held-out questions as tasks of lm-evaluation-harness: python -m scripts.miniature.held_out FOLDER."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from scripts.miniature.corpus import HELD_OUT
from scripts.miniature.world import make_world

ITEMS = 200


def write_held_out(folder: Path) -> None:
    """Write ``folder``/<form>.jsonl with the prompt and the answers of ITEMS facts for each form."""
    facts = random.Random("held out").sample(make_world().facts, ITEMS)
    for name, form in HELD_OUT.items():
        rows = [{"prompt": form(fact), "answers": list(fact.answers)} for fact in facts]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write_held_out(Path(sys.argv[1]))
