"""The configuration that is saved beside an adapter and a gate (`config.json`)."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig

from imsm.models.backbones.loading import register_custom_models


class SiameseConfig(PretrainedConfig):
    """What a siamese model is made of; the backbone's weights stay where they are.

    Args:
        text_config: the backbone's own configuration (or its dict).
        backbone: where the backbone comes from: ``path``, ``revision``, ``dtype`` and
            ``attn_implementation``, as `imsm.models.backbones.loading.load_backbone` takes them.
        gate: ``_target_`` (a class of gates) and its arguments; None for plain PEFT.
        pooling: how a query memory is pooled: "mean" (the paper), "max" or "last".
        stream: which stream answers: "original", "tuned" or "interwoven".
        cached: whether the backbone can go on from a cache (`imsm.models.siamese.backbone_check`).
        padded_inside: whether padding may stand inside a text then (likewise).
    """

    model_type = "imsm"
    sub_configs: ClassVar[dict[str, type]] = {"text_config": AutoConfig}
    is_composition = True

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        backbone: dict[str, Any] | None = None,
        gate: dict[str, Any] | None = None,
        pooling: str = "mean",
        stream: str = "interwoven",
        cached: bool = True,
        padded_inside: bool = False,
        **common: Any,
    ) -> None:
        if isinstance(text_config, dict):
            register_custom_models()
            arguments = dict(text_config)
            text_config = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
        elif text_config is not None:
            # a copy: transformers writes this model's attention into its nested configurations
            text_config = copy.deepcopy(text_config)
            common.setdefault("attn_implementation", text_config._attn_implementation)
        self.text_config = text_config
        self.backbone = backbone
        self.gate = gate
        self.pooling = pooling
        self.stream = stream
        self.cached = cached
        self.padded_inside = padded_inside
        if text_config is not None:
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                common.setdefault(name, getattr(text_config, name, None))
        common["tie_word_embeddings"] = False  # the backbone ties its own
        super().__init__(**common)

    @property
    def hidden_size(self) -> int:
        """D, the width of a memory (DeepSpeed and PEFT ask for it)."""
        return self.get_text_config(decoder=True).hidden_size

    @property
    def vocab_size(self) -> int:
        """V, the size of the vocabulary."""
        return self.get_text_config(decoder=True).vocab_size
