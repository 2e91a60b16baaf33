"""AdaLoRA as the released code trained it: no rank moves, one arm has the regulariser."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imsm.config.identity import comparable_up_to_method, run_identity
from imsm.models.adapters.adalora import adalora_static
from imsm.models.adapters.base import AdapterSpec, attach_adapter
from tests.helpers.config import config
from tests.models.adapters.test_base import LLAMA3, without_weights
from tests.models.siamese.tiny import tiny_backbone
from tests.training.test_trainer import Run


def built(*, weight: float) -> AdapterSpec:
    return adalora_static(
        target_modules=["q_proj", "v_proj"], rank=12, alpha=16, dropout=0.0, orthogonal_weight=weight
    )


def test_the_papers_count_is_this_ones() -> None:
    adapted = attach_adapter(built(weight=0.5), without_weights(LLAMA3))
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == 5112576  # 5.113M


def test_the_vanilla_arm_alone_has_the_regulariser() -> None:
    arms = {arm: config("peft=adalora_static", f"method={arm}") for arm in ("peft", "imsm")}
    weights = {arm: run.peft.arguments()["orthogonal_weight"] for arm, run in arms.items()}
    assert weights == {"peft": 0.5, "imsm": 0.0}
    identities = [run_identity(run) for run in arms.values()]
    assert comparable_up_to_method(*identities)
    other = run_identity(config("peft=adalora_static", "method=imsm", "peft.r=8"))
    assert not comparable_up_to_method(identities[0], other)


def test_its_regulariser_is_pefts() -> None:
    adapted = attach_adapter(built(weight=0.5), tiny_backbone("llama"))
    hooks = built(weight=0.5).callbacks(adapted, 10)
    ids = torch.tensor([[5, 6, 7]])
    added = adapted(ids, labels=ids).loss - adapted.base_model.model(ids, labels=ids).loss
    torch.testing.assert_close(hooks.auxiliary_loss(), added, atol=1e-4, rtol=1e-4)
    assert built(weight=0.0).callbacks is None


@pytest.mark.parametrize(("method", "moves"), [("adalora_static", False), ("adalora", True)])
def test_ranks_move_only_where_the_budget_is_driven(method: str, moves: bool, tmp_path: Path) -> None:
    run = Run(tmp_path, method=method, epochs=2)
    run.train()
    ranks = {name: int((value != 0).sum()) for name, value in run.model.named_parameters() if "lora_E" in name}
    assert len(ranks) == 6
    start = 6 if method == "adalora" else 12
    assert (sum(ranks.values()) < start * len(ranks)) == moves
    if moves:  # the importances differ between modules, and so do the ranks that are left
        assert sum(ranks.values()) == 3 * len(ranks)
        assert len(set(ranks.values())) > 1
