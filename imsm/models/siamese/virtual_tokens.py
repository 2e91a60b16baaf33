"""Prompt learning: virtual tokens before the tokens of the tuned stream.

Prompt tuning and P-tuning learn embeddings, prefix tuning learns keys and values. Both shift the tokens' positions by
V; the hidden states of virtual tokens are removed, so that gate and query pooling never see them.

Shapes: B batch, T tokens of a pass, V virtual tokens, D hidden size.
"""

from typing import cast

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional
from transformers import Cache, DynamicCache, PreTrainedModel

from imsm.utils.errors import UserError

CHECKPOINTING_ERROR = (
    "trainer.gradient_checkpointing=true: gradient checkpointing drops the learned keys and values of prefix "
    "tuning; set trainer.gradient_checkpointing=false"
)


class VirtualTokens:
    """The virtual tokens of a `PeftModel` with a prompt-learning method."""

    def __init__(self, adapted: PeftModel, decoder: nn.Module) -> None:
        # not an nn.Module, so that parameters are listed once, under the model
        self.adapted = adapted
        self.decoder = cast("PreTrainedModel", decoder)
        self.count = int(adapted.active_peft_config.num_virtual_tokens)
        # from the cache layers: the name of the window in a configuration differs between models
        layers = DynamicCache(config=self.decoder.config.get_text_config(decoder=True)).layers
        windows = [getattr(layer, "sliding_window", None) for layer in layers]
        self.window = min((window for window in windows if window), default=None)

    @torch.no_grad()
    def learns_key_values(self) -> bool:
        """Whether the method learns keys and values rather than embeddings."""
        return isinstance(self.adapted.get_prompt(1), Cache)

    def hidden_states(self, inputs: dict[str, torch.Tensor], *, cache: Cache | None) -> torch.Tensor:
        """Return the hidden states (B, T, D) of the tokens in ``inputs`` (of `decoder_inputs`).

        Virtual tokens are added if the decoder's ``cache`` is empty or None.

        Raises:
            ValueError: a mask whose shape is not (B, past + T), or gradient checkpointing with
                learned keys and values, which transformers drops silently.
            UserError: left padding in texts longer than a sliding window.
        """
        inputs = dict(inputs)
        rows = len(next(iter(inputs.values())))
        mask = inputs.get("attention_mask")
        if mask is not None:
            if mask.ndim != 2:
                raise ValueError("attention_mask: prompt learning needs shape (B, past + T)")
            self._check_window(mask)
            inputs["attention_mask"] = functional.pad(mask, (self.count, 0), value=1)
        inputs["position_ids"] = inputs["position_ids"] + self.count
        prepended = 0
        if cache is None or not cache.get_seq_length():
            prompt = self.adapted.get_prompt(rows)
            if isinstance(prompt, Cache):
                cache = self._fill(cache, prompt)
            else:
                prepended = self.count
                self._prepend(inputs, prompt)
        outputs = self.decoder(**inputs, past_key_values=cache, use_cache=cache is not None)
        hidden_states: torch.Tensor = outputs.last_hidden_state
        return hidden_states[:, prepended:]

    def _check_window(self, mask: torch.Tensor) -> None:
        # a sliding window counts columns, so padding after the virtual tokens pushes them out of it
        length = self.count + mask.shape[1]
        if self.window is None or length <= self.window or bool(mask[:, 0].all()):
            return
        raise UserError(
            f"evaluation.batch_size: left padding to {length} positions moves the virtual tokens of prompt "
            f"learning out of the backbone's sliding window of {self.window}; set evaluation.batch_size=1"
        )

    def _prepend(self, inputs: dict[str, torch.Tensor], prompt: torch.Tensor) -> None:
        """Insert learned embeddings (B, V, D) before those of the tokens."""
        embeddings = inputs.pop("inputs_embeds", None)
        if embeddings is None:
            embeddings = self.decoder.get_input_embeddings()(inputs.pop("input_ids"))
        inputs["inputs_embeds"] = torch.cat([prompt.to(embeddings), embeddings], dim=1)
        positions = inputs["position_ids"]
        steps = torch.arange(self.count, device=positions.device)[None].expand(len(positions), -1)
        inputs["position_ids"] = torch.cat([steps, positions], dim=1)

    def _fill(self, cache: Cache | None, learned: Cache) -> Cache:
        """Write the learned keys and values into ``cache``, or return them as the cache."""
        # checked here too: checkpointing may have been enabled on the backbone itself
        modules = self.decoder.modules()
        if self.decoder.training and any(getattr(m, "gradient_checkpointing", False) for m in modules):
            raise ValueError(CHECKPOINTING_ERROR)
        if cache is None:
            return learned
        for index, layer in enumerate(learned.layers):
            cache.update(layer.keys, layer.values, index)  # type: ignore[union-attr, arg-type]
        return cache
