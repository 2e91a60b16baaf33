"""LoRAMoE (Dou et al., 2024, arXiv 2312.09979): N low-rank experts and a dense router per layer.

    g = softmax(W_r x)                                      W_r: N x in, in float32
    y = W x + (alpha / rank) sum_i g_i B_i A_i x            A_i: rank x in, B_i: out x rank

The localised balancing constraint (`imsm.adapters.loramoe_balance`) gives each of two task types
its own half of the experts; it is off at a weight of 0, as in the released code's script.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imsm.adapters.adapter import AdapterSpec
from imsm.builders import Count, NotNegative, Probability
from imsm.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from imsm.adapters.loramoe_balance import BalancingLossCallback


def loramoe(
    *,
    target_modules: list[str],
    experts: Count,
    rank: Count,
    alpha: Count,
    dropout: Probability,
    per_expert_dropout: bool,
    blc_weight: NotNegative,
    blc_alpha: Probability,
    mask_padding: bool,
) -> AdapterSpec:
    """LoRAMoE on the given modules.

    Args:
        target_modules: names of linear layers.
        experts: N.
        rank: of each expert.
        alpha: an expert's update is scaled by alpha / rank.
        dropout: on the experts' input, never on the router's.
        per_expert_dropout: a mask of its own for every expert, as the released code draws them.
        blc_weight: of the localised balancing constraint in the loss; 0: none.
        blc_alpha: delta, how far the constraint pulls the two halves of the experts apart.
        mask_padding: leave padding out of the routing that is balanced; False: the released code.

    Raises:
        UserError: the constraint needs an even number of experts.
    """
    check_arguments(experts=experts, blc_weight=blc_weight)
    config = LoraMoe(
        target_modules=target_modules,
        experts=experts,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        per_expert_dropout=per_expert_dropout,
    )

    def hooks(model: nn.Module, steps: int) -> BalancingLossCallback:
        from imsm.adapters.loramoe_balance import BalancingLossCallback

        return BalancingLossCallback(model, weight=blc_weight, delta=blc_alpha, mask_padding=mask_padding)

    return AdapterSpec(config, hooks if blc_weight else None)


def check_arguments(*, experts: int, blc_weight: float) -> None:
    """What the arguments demand of each other; asked before anything is loaded too.

    Raises:
        UserError: the constraint needs an even number of experts.
    """
    if blc_weight and experts % 2:
        raise UserError(
            f"peft.experts={experts}: the balancing constraint gives each task type half of the "
            f"experts; set peft.experts={experts + 1}, or peft.blc_weight=0 for no constraint"
        )


@dataclass(frozen=True, kw_only=True)
class LoraMoe:
    """What a saved LoRAMoE adapter is made of; its values are those of `loramoe`."""

    target_modules: list[str]
    experts: int
    rank: int
    alpha: int
    dropout: float
    per_expert_dropout: bool

    def attach(self, backbone: PreTrainedModel) -> PreTrainedModel:
        """Put the experts beside the named linear layers of ``backbone``, in place.

        Raises:
            UserError: there is no such module, or it is not linear.
        """
        from imsm.adapters.loramoe_layer import LoraMoeLinear
        from imsm.adapters.swap import replace_linear_layers

        return replace_linear_layers(
            backbone,
            self.target_modules,
            layer=lambda base: LoraMoeLinear(
                base,
                experts=self.experts,
                rank=self.rank,
                alpha=self.alpha,
                dropout=self.dropout,
                per_expert_dropout=self.per_expert_dropout,
            ),
        )
