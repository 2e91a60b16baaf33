"""A plan as text: a page with everything, a block with the numbers that differ."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO

from rich.console import Console

from imsm.pipeline.plan.render import show_block, show_page
from imsm.pipeline.plan.types import DownloadItem, MemoryItem, Plan, total

GPU = [
    MemoryItem(name="weights", size=16_060_000_000, basis="bfloat16", exact=True),
    MemoryItem(name="activations", size=2_000_000, basis="4 examples of [/x]"),
]
PLAN = Plan(
    name="run-[1]",
    settings={"backbone": "llama3: revision [main]"},
    trainable={"adapter": 2, "gate": 1},
    notes=["a [bold]note"],
    memory={"memory per GPU, training": GPU, "on disk": [MemoryItem(name="cache", size=None, basis="unknown")]},
    steps="10 (1 epoch)",
    evaluation="gsm8k 300",
    downloads=[
        DownloadItem(name="model a/[b]", location=None, size=3e9),
        DownloadItem(name="dataset c", location="local folder"),
    ],
    start=["torchrun x"],
)


def shown(show: Callable[..., None]) -> list[str]:
    output = StringIO()
    show(PLAN, trainable="trainable parameters: 3", console=Console(file=output, width=120))
    return [" ".join(line.split()) for line in output.getvalue().splitlines()]


def test_a_page_contains_every_part() -> None:
    lines = shown(show_page)
    for line in (
        "plan of run-[1]",
        "backbone llama3: revision [main]",
        "trainable parameters: 3",
        "a [bold]note",
        "weights 16.06 GB exact: bfloat16",
        "activations 2.0 MB estimate: 4 examples of [/x]",
        "total about 16.06 GB",
        "cache unknown estimate: unknown",
        "steps 10 (1 epoch)",
        "examples gsm8k 300",
        "to download model a/[b], about 3.00 GB",
        "available dataset c: local folder",
        "torchrun x",
    ):
        assert line in lines, line


def test_a_block_contains_only_what_differs_between_jobs() -> None:
    assert shown(show_block) == [
        "run-[1]",
        "trainable parameters: 3",
        "memory per GPU, training: about 16.06 GB",
        "steps: 10 (1 epoch)",
        "time: unknown: the architecture is unknown",
        "a [bold]note",
        "to download: model a/[b], about 3.00 GB",
    ]


def test_a_total_with_an_unknown_part_is_unknown() -> None:
    assert total(GPU) == 16_062_000_000
    assert total([*GPU, MemoryItem(name="x", size=None, basis="")]) is None
