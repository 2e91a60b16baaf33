"""Peak memory of training, each variant in a separate process."""

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
    """IMSM, with a filled hidden-state cache and without, against our vanilla PEFT."""
    variants: dict[str, tuple[Stream, bool]] = {
        "peft": ("tuned", False),
        "no cache": ("interwoven", False),
        "hidden-state cache filled": ("interwoven", True),
    }
    peaks = {}
    for name, (stream, cached) in variants.items():
        command = [sys.executable, "-m", "scripts.bench.memory", setup.written(), stream]
        command += ["--cached"] if cached else []
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
        for name in ("no cache", "hidden-state cache filled")
    ]


def main() -> None:
    """Print the peak of one variant, in bytes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("setup", type=json.loads, help="JSON of a Setup")
    parser.add_argument("stream", choices=["interwoven", "tuned"])
    parser.add_argument("--cached", action="store_true", help="read a hidden-state cache")
    arguments = parser.parse_args()
    setup = Setup(**arguments.setup)
    model = build(setup, stream=arguments.stream)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # copy out of the mapped file
    step = train_step(model, setup, cached=arguments.cached)

    def steps() -> None:
        for _ in range(STEPS):
            step()

    print(peak_of(steps, device=setup.device))


if __name__ == "__main__":
    main()
