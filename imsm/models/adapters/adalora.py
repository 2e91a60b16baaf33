"""AdaLoRA (Zhang et al., 2023): W x + P Λ Q x, with ranks reduced where they matter least.

`adalora` is the method of its paper: the budget falls from ``init_r`` to ``target_r`` per module
during training. Each step updates the importance of every triplet from its gradient, and the least
important triplets are set to zero. A penalty keeps P and Q near orthogonal.

`adalora_static` is the method as trained by the IMSM authors' code, which never calls
`update_and_allocate`, so no rank changes.
"""

from typing import cast

import torch
from peft import AdaLoraConfig, PeftModel
from peft.tuners.adalora.layer import RankAllocator
from torch import nn

from imsm.models.adapters.base import AdapterSpec, TrainingCallbacks
from imsm.utils.errors import UserError
from imsm.utils.instantiate import Count, NotNegative, Probability


def adalora(
    *,
    target_modules: list[str],
    init_r: Count,
    target_r: Count,
    lora_alpha: Count,
    lora_dropout: Probability,
    tinit_ratio: Probability,
    tfinal_ratio: Probability,
    deltaT: Count,
    orth_reg_weight: NotNegative,
) -> AdapterSpec:
    """Build AdaLoRA on the given linear layers; see `peft.AdaLoraConfig` for its arguments.

    ``tinit_ratio`` and ``tfinal_ratio`` are the fractions of the training steps before the first
    reduction of the ranks and after the last one; ``deltaT`` steps are between two reductions.

    Raises:
        UserError: the ranks or fractions do not form a schedule.
    """
    if not 0 < target_r <= init_r:
        raise UserError(f"peft.target_r={target_r}: must be in 1..peft.init_r={init_r}")
    if min(tinit_ratio, tfinal_ratio) < 0 or tinit_ratio + tfinal_ratio >= 1:
        raise UserError(
            f"peft.tinit_ratio={tinit_ratio}, peft.tfinal_ratio={tfinal_ratio}: no steps remain for reducing the "
            "ranks; their sum must be below 1"
        )
    config = AdaLoraConfig(
        task_type="CAUSAL_LM",
        target_modules=target_modules,
        init_r=init_r,
        target_r=target_r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        deltaT=deltaT,
        orth_reg_weight=orth_reg_weight,
        # PEFT requires a positive value; the number of steps is known in `callbacks` only.
        total_step=1,
    )

    def callbacks(model: nn.Module, steps: int) -> AdaLoraCallback:
        adapted = cast(PeftModel, model)
        # The allocator of PEFT reads this object in every step, so the schedule is set in place.
        config = cast(AdaLoraConfig, adapted.peft_config["default"])
        config.total_step = steps
        config.tinit = int(tinit_ratio * steps)
        config.tfinal = int(tfinal_ratio * steps)
        return AdaLoraCallback(adapted)

    return AdapterSpec(config, callbacks)


def adalora_static(
    *,
    target_modules: list[str],
    init_r: Count,
    lora_alpha: Count,
    lora_dropout: Probability,
    orth_reg_weight: NotNegative,
) -> AdapterSpec:
    """Build AdaLoRA with constant ranks ``init_r``; ``orth_reg_weight=0`` disables the penalty."""
    # The authors' code sets r=16, which PEFT ignores for AdaLoRA: it trains with PEFT's default init_r=12.
    config = AdaLoraConfig(
        task_type="CAUSAL_LM",
        target_modules=target_modules,
        init_r=init_r,
        target_r=init_r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        orth_reg_weight=orth_reg_weight,
        total_step=1,  # required by PEFT; the schedule is not used
    )

    def callbacks(model: nn.Module, steps: int) -> OrthogonalPenaltyCallback:
        return OrthogonalPenaltyCallback(model, orth_reg_weight)

    return AdapterSpec(config, callbacks if orth_reg_weight else None)


class OrthogonalPenaltyCallback(TrainingCallbacks):
    """Adds the orthogonality penalty to the loss.

    PEFT adds it only where it returns a loss itself; the siamese model computes its loss outside PEFT.
    """

    def __init__(self, model: nn.Module, weight: float) -> None:
        self.model, self.weight = model, weight

    def auxiliary_loss(self) -> torch.Tensor:
        """Return the weighted penalty."""
        return self.weight * orthogonal_penalty(self.model)


class AdaLoraCallback(OrthogonalPenaltyCallback):
    """Runs the rank schedule and adds the orthogonality penalty to the loss."""

    # The importance is |value * gradient| of complete tensors, and pruning writes values.
    needs_full_params = True

    def __init__(self, model: PeftModel) -> None:
        self.config = cast(AdaLoraConfig, model.peft_config["default"])
        super().__init__(model, self.config.orth_reg_weight)
        self.base = model.base_model.model
        self.allocator = cast(RankAllocator, model.base_model.rankallocator)
        self.last_reduction = int(self.config.total_step or 0) - self.config.tfinal

    def after_backward(self, step: int) -> None:
        """Update the importance, while the gradients belong to the current values."""
        # A run of one step reduces its ranks too, which needs one update of the importance.
        if step < self.last_reduction or not self.allocator.exp_avg_ipt:
            self.allocator.update_ipt(self.base)

    def after_step(self, step: int) -> None:
        """Zero pruned triplets after the optimizer step, whose momentum would revive them."""
        if step > self.last_reduction:
            if self.config.rank_pattern:
                self.allocator.mask_using_rank_pattern(self.base, self.config.rank_pattern)
            return
        budget, due = self.allocator.budget_schedule(step)
        # PEFT reduces after tinit and at multiples of deltaT only; the last reduction must reach the target.
        budget = self.allocator.target_bgt if step == self.last_reduction else budget
        # PEFT prunes the (init_bgt - budget) least important triplets, and torch.kthvalue rejects k=0.
        if (due or step == self.last_reduction) and budget < self.allocator.init_bgt:
            self.config.rank_pattern = self.allocator.mask_to_budget(self.base, budget)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the smoothed importance, its uncertainty and the active triplets."""
        state = {f"importance.{name}": v for name, v in self.allocator.exp_avg_ipt.items()}
        state |= {f"uncertainty.{name}": v for name, v in self.allocator.exp_avg_unc.items()}
        pattern = self.config.rank_pattern or {}
        return state | {f"alive.{name}": torch.tensor(alive) for name, alive in pattern.items()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore `state` on the device of the model."""
        device = cast(PeftModel, self.model).device
        kinds: dict[str, dict[str, torch.Tensor]] = {"importance": {}, "uncertainty": {}, "alive": {}}
        for key, value in state.items():
            kind, _, name = key.partition(".")
            kinds[kind][name] = value.to(device)
        self.allocator.exp_avg_ipt = kinds["importance"]
        self.allocator.exp_avg_unc = kinds["uncertainty"]
        self.allocator.ipt = dict(kinds["importance"])  # PEFT reads its keys only
        self.config.rank_pattern = {k: v.tolist() for k, v in kinds["alive"].items()} or None


def orthogonal_penalty(model: nn.Module) -> torch.Tensor:
    """Return the mean of ‖P^T P - I‖_F and ‖Q Q^T - I‖_F over all P and Q.

    The AdaLoRA paper (eq. 4) sums squared norms. Its code and PEFT use this mean, which the usual
    weight of 0.5 refers to.
    """
    penalties = []
    for name, weight in model.named_parameters():
        if "lora_A.default" in name or "lora_B.default" in name:
            # The smaller product, (rank, rank): A is (rank, in), B is (out, rank).
            gram = weight @ weight.T if "lora_A" in name else weight.T @ weight
            identity = torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
            penalties.append(torch.linalg.matrix_norm(gram - identity))
    return torch.stack(penalties).mean()
