"""The jobs of a sweep and its name."""

from __future__ import annotations

from imsm.config.compose import ConfigComposer
from imsm.config.sweep import SweepSpec


def test_a_sweep_is_named_by_its_swept_keys_and_the_same_for_the_same_command() -> None:
    composer = ConfigComposer()
    one = composer.sweep_spec(["method=original,peft", "seed=0,1", "peft=lora"], sweep=True)
    again = composer.sweep_spec(["seed=0,1", "method=original,peft", "peft=lora"], sweep=True)
    other = composer.sweep_spec(["seed=0,1,2", "method=original,peft", "peft=lora"], sweep=True)
    assert one.group.rpartition("-")[0] == "method-seed"
    assert again.group == one.group != other.group


def test_the_name_is_short_and_safe_in_paths() -> None:
    jobs = [[f"+a{n}/../b@c={value}" for n in range(30)] for value in "xy"]
    name = SweepSpec(jobs=jobs).group
    assert len(name) <= 69 and "/" not in name and not name.startswith(".")
    assert SweepSpec(jobs=[["a=1"]]).group.startswith("sweep-")
