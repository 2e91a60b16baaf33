"""Prompt learning: virtual positions that stand before the tuned stream's tokens, and nowhere else.

Prompt tuning and P-tuning put learned embeddings before the tokens, prefix tuning puts learned
keys and values into the cache. Both move the tokens' positions on by V; the memories of virtual
positions are cut off, so that gate and query never see them.

Legend: B batch, T tokens of a pass, V virtual positions, D width of a memory.
"""

from __future__ import annotations

from typing import cast

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional
from transformers import Cache, DynamicCache, PreTrainedModel

from imsm.utils.errors import UserError

DROPPED = (
    "gradient checkpointing drops the keys and values that prefix tuning learns; set "
    "trainer.gradient_checkpointing=false"
)


class VirtualTokens:
    """The learned positions of a PEFT model that learns prompts.

    Args:
        adapted: a `PeftModel` of a prompt-learning method.
        body: the backbone's body.
    """

    def __init__(self, adapted: PeftModel, body: nn.Module) -> None:
        # neither is a submodule of this: weights are listed once, under the model
        self.adapted = adapted
        self.body = cast("PreTrainedModel", body)
        self.count = int(adapted.active_peft_config.num_virtual_tokens)
        layers = DynamicCache(config=self.body.config.get_text_config(decoder=True)).layers
        windows = [getattr(each, "sliding_window", None) for each in layers]
        self.window = min((each for each in windows if each), default=None)

    @torch.no_grad()
    def in_cache(self) -> bool:
        """Whether keys and values are learned, not embeddings."""
        return isinstance(self.adapted.get_prompt(1), Cache)

    def hidden_states(self, inputs: dict[str, torch.Tensor], *, cache: Cache | None) -> torch.Tensor:
        """The memories (B, T, D) of the tokens in ``inputs``.

        Args:
            inputs: as `imsm.models.siamese.inputs.body_inputs` makes them, without virtual positions.
            cache: the body's cache; an empty one gets the virtual positions first.

        Raises:
            ValueError: a mask that is not (B, past + T), or gradient checkpointing with learned
                keys and values, which transformers would drop without a word.
            UserError: padding on the left of texts longer than a sliding window.
        """
        inputs = dict(inputs)
        rows = len(next(iter(inputs.values())))
        mask = inputs.get("attention_mask")
        if mask is not None:
            if mask.ndim != 2:
                raise ValueError("attention_mask: prompt learning needs one of (B, past + T)")
            self._check_window(mask)
            inputs["attention_mask"] = functional.pad(mask, (self.count, 0), value=1)
        inputs["position_ids"] = inputs["position_ids"] + self.count
        shown = 0
        if cache is None or not cache.get_seq_length():
            learned = self.adapted.get_prompt(rows)
            if isinstance(learned, Cache):
                cache = self._filled(cache, learned)
            else:
                shown = self.count
                self._prepend(inputs, learned)
        outputs = self.body(**inputs, past_key_values=cache, use_cache=cache is not None)
        return outputs.last_hidden_state[:, shown:]

    def _check_window(self, mask: torch.Tensor) -> None:
        """A sliding window counts places, so padding after the virtual ones would push them out."""
        length = self.count + mask.shape[1]
        if self.window is None or length <= self.window or bool(mask[:, 0].all()):
            return
        raise UserError(
            f"prompt learning on a backbone with sliding-window attention: padding on the left of "
            f"{length} positions would push the learned ones out of a window of {self.window}; set "
            "evaluation.batch_size=1"
        )

    def _prepend(self, inputs: dict[str, torch.Tensor], learned: torch.Tensor) -> None:
        """Put learned embeddings (B, V, D) before the tokens' own."""
        embeddings = inputs.pop("inputs_embeds", None)
        if embeddings is None:
            embeddings = self.body.get_input_embeddings()(inputs.pop("input_ids"))
        inputs["inputs_embeds"] = torch.cat([learned.to(embeddings), embeddings], dim=1)
        positions = inputs["position_ids"]
        steps = torch.arange(self.count, device=positions.device)[None].expand(len(positions), -1)
        inputs["position_ids"] = torch.cat([steps, positions], dim=1)

    def _filled(self, cache: Cache | None, learned: Cache) -> Cache:
        """``cache`` with the learned keys and values in it; without one they are the cache."""
        modules = self.body.modules()
        if self.body.training and any(getattr(m, "gradient_checkpointing", False) for m in modules):
            raise ValueError(DROPPED)
        if cache is None:
            return learned
        for index, layer in enumerate(learned.layers):
            cache.update(layer.keys, layer.values, index)  # type: ignore[union-attr, arg-type]
        return cache
