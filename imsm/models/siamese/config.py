"""The configuration saved next to an adapter and a gate (``config.json``)."""

import copy
from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig

from imsm.models.backbones.loading import check_attention, register_custom_models
from imsm.models.siamese.skip import check_threshold


class SiameseConfig(PretrainedConfig):
    """Configuration of a `SiameseForCausalLM`; it refers to the backbone's weights by name.

    Args:
        text_config: the backbone's own configuration, or its dict.
        backbone: arguments of `imsm.models.backbones.loading.load_backbone`.
        gate: ``_target_`` (a gate class) and its arguments; None without a gate.
        pooling: pooling of the query states: "mean" (the paper), "max" or "last".
        stream: the stream that is used: "original", "tuned" or "interwoven".
        supports_cache: whether the backbone can continue from a KV cache (`imsm.models.siamese.backbone_check`).
        supports_inner_padding: whether it can do so with padding inside the sequence.
        skip_threshold: distance of the gate from 0 or 1 below which a query continues with one stream, in (0, 0.5);
            None: always both (`imsm.models.siamese.skip`).
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
        supports_cache: bool = True,
        supports_inner_padding: bool = False,
        skip_threshold: float | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            # here too: the configuration of a saved model is read before load_backbone runs
            register_custom_models()
            arguments = dict(text_config)
            text_config = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
        elif text_config is not None:
            # a copy: transformers writes this model's attention into its nested configurations
            text_config = copy.deepcopy(text_config)
            kwargs.setdefault("attn_implementation", text_config._attn_implementation)
        self.text_config = text_config
        self.backbone = backbone
        self.gate = gate
        self.pooling = pooling
        self.stream = stream
        self.supports_cache = supports_cache
        self.supports_inner_padding = supports_inner_padding
        self.skip_threshold = check_threshold(skip_threshold)
        if text_config is not None:
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                kwargs.setdefault(name, getattr(text_config, name, None))
        # the backbone ties its own weights
        kwargs["tie_word_embeddings"] = False
        # the streams share one decoder; for an encoder-decoder, generation passes other arguments
        kwargs.pop("is_encoder_decoder", None)
        super().__init__(**kwargs)
        check_attention(self)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; without `skip_threshold` at its default, which keeps the hashes of saved models."""
        values = super().to_dict()
        if values.get("skip_threshold") is None:
            values.pop("skip_threshold", None)
        return values

    @property
    def hidden_size(self) -> int:
        """Hidden size D of the backbone (read by DeepSpeed and PEFT)."""
        return int(self._backbone_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        """Vocabulary size V of the backbone."""
        return int(self._backbone_config().vocab_size)

    def _backbone_config(self) -> Any:
        # without one, get_text_config returns this configuration, whose properties would call themselves
        if self.text_config is None:
            raise AttributeError("text_config: is missing")
        return self.get_text_config(decoder=True)
