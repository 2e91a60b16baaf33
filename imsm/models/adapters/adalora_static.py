"""AdaLoRA as IMSM's released code trained it: W x + P Λ Q x at a fixed rank.

Its loops never call `update_and_allocate`, so no rank is ever cut. The orthogonal regulariser is
in the vanilla arm's loss alone: PEFT adds it where a loss is returned, and the released siamese
model computes its loss outside PEFT. (`imsm.models.adapters.adalora` is the method as its paper has it.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from imsm.models.adapters.base import AdapterSpec
from imsm.utils.instantiate import Count, NotNegative, Probability

if TYPE_CHECKING:
    import torch
    from torch import nn


def adalora_static(
    *, target_modules: list[str], rank: Count, alpha: Count, dropout: Probability, orthogonal_weight: NotNegative
) -> AdapterSpec:
    """AdaLoRA on the given modules whose ranks stay as they begin.

    Args:
        target_modules: names of linear layers.
        rank: of every module; the released code's 16 is never read, PEFT's initial 12 is.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapter's input.
        orthogonal_weight: weight of the regulariser; 0: none.
    """
    from peft import AdaLoraConfig

    config = AdaLoraConfig(
        task_type="CAUSAL_LM",
        target_modules=target_modules,
        init_r=rank,
        target_r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        orth_reg_weight=orthogonal_weight,
        total_step=1,  # of a schedule that nothing drives
    )

    def hooks(model: nn.Module, steps: int) -> OrthogonalPenaltyCallback:
        return OrthogonalPenaltyCallback(model, orthogonal_weight)

    return AdapterSpec(config, hooks if orthogonal_weight else None)


@dataclass(frozen=True)
class OrthogonalPenaltyCallback:
    """The regulariser as hooks of a training loop, and nothing else of AdaLoRA."""

    needs_full_params: ClassVar[bool] = False
    model: nn.Module
    weight: float

    def before_forward(self, attention_mask: torch.Tensor, task_types: torch.Tensor) -> None:
        """Nothing to do."""

    def auxiliary_loss(self) -> torch.Tensor:
        """The weight times the mean over P and Q of ‖P^T P - I‖_F."""
        from imsm.models.adapters.adalora import orthogonal_penalty

        return self.weight * orthogonal_penalty(self.model)

    def after_backward(self, step: int) -> None:
        """Nothing to do."""

    def after_step(self, step: int) -> None:
        """Nothing to do."""

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing is kept from step to step."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Nothing to restore."""
