"""What of a training's memory one of several processes has: DeepSpeed ZeRO's shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imsm.plan.plan import MemoryItem

if TYPE_CHECKING:
    from imsm.plan.memory import StaticMemory

_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class ZeroSharding:
    """How ZeRO cuts a training up.

    Attributes:
        stage: 1 shares the optimizer's state, 2 the gradients as well, 3 the frozen weights too.
        size: the number of processes.
        offload: whether optimizer state, and in stage 3 the weights, lie in the CPU's memory.
        elementwise: whether the optimizer's work can be shared; if not, all do all of it.
        bucket: values that are sent at once.
        gathered: bytes of frozen weights that stage 3 has whole at a time, about.
    """

    stage: int
    size: int
    offload: bool
    elementwise: bool
    bucket: int
    gathered: int


def shared_parts(exact: StaticMemory, shares: ZeroSharding, *, optimizer: str, weights: str) -> list[MemoryItem]:
    """The parts of one GPU's memory that do not depend on the batch.

    Args:
        exact: of one process alone.
        shares: how they are cut up.
        optimizer: its name.
        weights: what the frozen weights are, in words.
    """
    size, there = shares.size, "in the CPU's memory"

    def share(name: str, whole: int, how: str, *, away: bool) -> MemoryItem:
        here = 0 if away else -(-whole // size)
        words = f"{how}, {there}" if away else f"{how}, one of {size} shares"
        return MemoryItem(name=name, size=here, how=words, exact=True)

    def all_of(name: str, whole: int, how: str, *, exactly: bool = True) -> MemoryItem:
        return MemoryItem(name=name, size=whole, how=how, exact=exactly)

    parts = []
    if shares.stage == 3:
        parts.append(share("weights", exact.weights, weights, away=shares.offload))
        how = "layers' weights that are whole for their turn, the next ones among them"
        parts.append(all_of("gathered", shares.gathered, how, exactly=False))
    else:
        parts.append(all_of("weights", exact.weights, weights))
    parts.append(all_of("trainables", exact.trainables, "adapter and gate in float32"))
    away = shares.offload
    parts.append(share("ZeRO's copy", exact.trainables, "of them in float32", away=away))
    if shares.stage == 1:
        parts.append(all_of("gradients", exact.gradients, "float32"))
    else:
        parts.append(share("gradients", exact.gradients, "float32", away=away))
    how = f"{shares.bucket:,} values that are sent at once"
    parts.append(all_of("bucket", _FLOAT32 * shares.bucket, how))
    if shares.elementwise:
        return [*parts, share("optimizer", exact.optimizer, optimizer, away=away)]
    how = f"{optimizer} looks at whole matrices: its state, a copy of values and gradients"
    whole = exact.optimizer + exact.trainables + exact.gradients
    return [*parts, all_of("optimizer", whole, how)]
