"""Peak memory of training, each arm in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import TYPE_CHECKING

from scripts.bench.comparison import Comparison
from scripts.bench.steps import train_step
from scripts.bench.timing import peak_of
from scripts.bench.workloads import Setup, build

if TYPE_CHECKING:
    from imsm.models.siamese.streams import Stream

STEPS = 2


def compare_memory(setup: Setup) -> list[Comparison]:
    """IMSM, with a filled bank and without, against our vanilla PEFT."""
    arms: dict[str, tuple[Stream, bool]] = {
        "peft": ("tuned", False),
        "no bank": ("interwoven", False),
        "memory bank filled": ("interwoven", True),
    }
    peaks = {}
    for name, (stream, banked) in arms.items():
        command = [sys.executable, "-m", "scripts.bench.memory", setup.written(), stream]
        command += ["--banked"] if banked else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks[name] = int(done.stdout.split()[-1]) / 2**20
    return [
        Comparison(
            name=f"peak training memory, {name}: IMSM / our PEFT",
            ours=peaks[name],
            theirs=peaks["peft"],
            unit="MiB",
            bar=1.05,
        )
        for name in ("no bank", "memory bank filled")
    ]


def main() -> None:
    """Print the peak of one arm, in bytes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("setup", type=json.loads, help="JSON of a Setup")
    parser.add_argument("stream", choices=["interwoven", "tuned"])
    parser.add_argument("--banked", action="store_true", help="read a memory bank")
    arguments = parser.parse_args()
    setup = Setup(**arguments.setup)
    model = build(setup, stream=arguments.stream)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # out of the file that it is mapped from
    step = train_step(model, setup, banked=arguments.banked)

    def steps() -> None:
        for _ in range(STEPS):
            step()

    print(peak_of(steps, device=setup.device))


if __name__ == "__main__":
    main()
