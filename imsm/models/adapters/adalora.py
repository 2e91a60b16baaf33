"""AdaLoRA (Zhang et al., 2023): W x + P Λ Q x, the ranks shrinking to where they matter.

The budget falls from ``init_rank`` to ``target_rank`` per module while training goes on: each
step the importance of every triplet is updated from its gradient, and the least important are
set to zero. P and Q are kept near orthogonal by a regulariser on the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from imsm.models.adapters.base import AdapterSpec
from imsm.utils.errors import UserError
from imsm.utils.instantiate import Count, NotNegative, Probability

if TYPE_CHECKING:
    import torch
    from peft import AdaLoraConfig, PeftModel
    from peft.tuners.adalora.layer import RankAllocator
    from torch import nn


def adalora(
    *,
    target_modules: list[str],
    init_rank: Count,
    target_rank: Count,
    alpha: Count,
    dropout: Probability,
    warmup_fraction: Probability,
    final_fraction: Probability,
    interval: Count,
    orthogonal_weight: NotNegative,
) -> AdapterSpec:
    """AdaLoRA on the given modules.

    Args:
        target_modules: names of linear layers.
        init_rank: rank at the start.
        target_rank: mean rank at the end.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapter's input.
        warmup_fraction: share of the steps before the budget starts to fall.
        final_fraction: share of the steps after the budget has stopped falling.
        interval: steps between two cuts.
        orthogonal_weight: weight of the regulariser.

    Raises:
        UserError: ranks or shares of the steps that make no schedule.
    """
    from peft import AdaLoraConfig

    check_arguments(
        init_rank=init_rank, target_rank=target_rank, warmup_fraction=warmup_fraction, final_fraction=final_fraction
    )
    config = AdaLoraConfig(
        task_type="CAUSAL_LM",
        target_modules=target_modules,
        init_r=init_rank,
        target_r=target_rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        deltaT=interval,
        orth_reg_weight=orthogonal_weight,
        tinit=0,
        tfinal=0,
        total_step=1,  # the run's length is known to the hooks
    )

    def hooks(model: nn.Module, steps: int) -> AdaLoraCallback:
        adapted = cast("PeftModel", model)
        config = cast("AdaLoraConfig", adapted.peft_config["default"])
        config.total_step = steps
        config.tinit = int(warmup_fraction * steps)
        config.tfinal = int(final_fraction * steps)
        return AdaLoraCallback(adapted)

    return AdapterSpec(config, hooks)


def check_arguments(*, init_rank: int, target_rank: int, warmup_fraction: float, final_fraction: float) -> None:
    """What the arguments demand of each other; asked before anything is loaded too.

    Raises:
        UserError: ranks or shares of the steps that make no schedule.
    """
    if not 0 < target_rank <= init_rank:
        raise UserError(f"peft.target_rank={target_rank}: must be in 1..peft.init_rank={init_rank}")
    if min(warmup_fraction, final_fraction) < 0 or warmup_fraction + final_fraction >= 1:
        raise UserError(
            f"peft.warmup_fraction={warmup_fraction} and peft.final_fraction={final_fraction}: "
            "leave no steps for the ranks to fall in; their sum must be below 1"
        )


@dataclass
class AdaLoraCallback:
    """The schedule of ranks and the orthogonal regulariser, for a training loop."""

    needs_full_params: ClassVar[bool] = True
    model: PeftModel

    def __post_init__(self) -> None:
        self.allocator = cast("RankAllocator", self.model.base_model.rankallocator)
        self.config = cast("AdaLoraConfig", self.model.peft_config["default"])
        self.last_cut = int(self.config.total_step or 0) - self.config.tfinal

    def before_forward(self, attention_mask: torch.Tensor, task_types: torch.Tensor) -> None:
        """Nothing to do."""

    def auxiliary_loss(self) -> torch.Tensor:
        """The regulariser."""
        return self.config.orth_reg_weight * orthogonal_penalty(self.model)

    def after_backward(self, step: int) -> None:
        """Importance needs the gradient at the values it was taken at."""
        if step < self.last_cut or not self.allocator.exp_avg_ipt:  # a run of one step cuts too
            self.allocator.update_ipt(self.model.base_model.model)

    def after_step(self, step: int) -> None:
        """Cut after the optimizer, whose momentum would bring a pruned direction back."""
        inner = self.model.base_model.model
        if step > self.last_cut:
            if self.config.rank_pattern:
                self.allocator.mask_using_rank_pattern(inner, self.config.rank_pattern)
            return
        budget, due = self.allocator.budget_schedule(step)
        budget = self.allocator.target_bgt if step == self.last_cut else budget
        if (due or step == self.last_cut) and budget < self.allocator.init_bgt:
            self.config.rank_pattern = self.allocator.mask_to_budget(inner, budget)

    def state(self) -> dict[str, torch.Tensor]:
        """Smoothed importance, its uncertainty, and which triplets are alive."""
        import torch

        state = {f"importance.{name}": v for name, v in self.allocator.exp_avg_ipt.items()}
        state |= {f"uncertainty.{name}": v for name, v in self.allocator.exp_avg_unc.items()}
        pattern = self.config.rank_pattern or {}
        return state | {f"alive.{name}": torch.tensor(alive) for name, alive in pattern.items()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint; what is kept moves to where the adapter is."""
        device = self.model.device
        kinds: dict[str, dict[str, torch.Tensor]] = {"importance": {}, "uncertainty": {}, "alive": {}}
        for key, value in state.items():
            kind, _, name = key.partition(".")
            kinds[kind][name] = value.to(device)
        self.allocator.exp_avg_ipt = kinds["importance"]
        self.allocator.exp_avg_unc = kinds["uncertainty"]
        self.allocator.ipt = dict(kinds["importance"])  # only its keys are asked for
        self.config.rank_pattern = {k: v.tolist() for k, v in kinds["alive"].items()} or None


def orthogonal_penalty(model: nn.Module) -> torch.Tensor:
    """The mean over all P and Q of the Frobenius norms of P^T P - I and Q Q^T - I.

    The AdaLoRA paper (eq. 4) sums squares of these norms; its code and PEFT take this mean, which
    the usual weight of 0.5 is for.
    """
    import torch

    penalties = []
    for name, weight in model.named_parameters():
        if "lora_A.default" in name or "lora_B.default" in name:
            gram = weight @ weight.T if "lora_A" in name else weight.T @ weight
            identity = torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
            penalties.append(torch.linalg.matrix_norm(gram - identity))
    return torch.stack(penalties).mean()
