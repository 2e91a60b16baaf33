"""`generate()` for a siamese model: the prompt is the query, the cache holds both streams."""

from typing import Any

import torch
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.modeling_outputs import ModelOutput

from imsm.models.siamese.kv_cache import DualStreamCache, PrefixedCache
from imsm.models.siamese.streams import StreamRunner

_UNSUPPORTED = (
    "custom_generate",
    "penalty_alpha",
    "dola_layers",
    "assistant_early_exit",
    "force_words_ids",
    "constraints",
)


class SiameseGenerationMixin(GenerationMixin):
    """`GenerationMixin` with query masks and the caches of both streams."""

    # members of the model class
    config: Any
    streams: StreamRunner
    stream: Any
    backbone: Any
    check_length: Any
    training: bool

    @property
    def cache_class(self) -> type[Cache]:
        """Class of the selected stream's cache; `Cache` means any of transformers' own."""
        if self.stream == "interwoven":
            return DualStreamCache
        has_prefix = self.stream == "tuned" and self.streams.virtual_tokens is not None
        return PrefixedCache if has_prefix else Cache

    def new_cache(self, *, query_mask: torch.Tensor | None = None) -> Cache:
        """Return an empty cache for the selected stream.

        ``query_mask`` (B, T_query) is 1 on query positions; None means the complete first chunk. The
        original and the tuned stream ignore it.
        """
        if self.cache_class is DualStreamCache:
            return self.new_dual_cache(query_mask=query_mask)
        plain = DynamicCache(config=self.config.get_text_config(decoder=True))
        if self.cache_class is Cache or self.streams.virtual_tokens is None:
            return plain
        return PrefixedCache([plain], num_virtual=self.streams.virtual_tokens.count)

    def new_dual_cache(self, *, query_mask: torch.Tensor | None = None) -> DualStreamCache:
        """Return an empty cache of both streams, for `forward_streams`."""
        text_config = self.config.get_text_config(decoder=True)
        return DualStreamCache(config=text_config, query_mask=query_mask, batch_both=self.streams.batch_both)

    def check_cache(self, cache: Cache) -> None:
        """Raise ValueError if ``cache`` cannot be used by the selected stream."""
        if not self.config.supports_cache:
            raise ValueError(
                f"past_key_values: {type(self.backbone).__name__} cannot continue from a "
                f"{type(cache).__name__}; pass complete sequences (use_cache=False)"
            )
        cache_class = type(cache) if isinstance(cache, PrefixedCache) else Cache
        if cache_class is not self.cache_class:
            raise ValueError(
                f"past_key_values: a {type(cache).__name__} does not fit the {self.stream} stream; create it "
                "with new_cache()"
            )
        layers = self.backbone.modules()
        if self.training and any(getattr(layer, "gradient_checkpointing", False) for layer in layers):
            raise ValueError("past_key_values: not filled by gradient checkpointing in training mode; call eval()")

    def generate(  # type: ignore[override]
        self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor | ModelOutput:
        """Run `GenerationMixin.generate` with the prompt as the query.

        ``query_mask`` (B, T_prompt) may mark a part of the prompt as the query (to exclude few-shot examples, for
        instance); only the interwoven stream reads it. Prompts must be padded on the left. A backbone that does not
        support a cache processes the complete text at every step. All other arguments are those of transformers.

        Raises:
            ValueError: padding on the right, a decoding method that cannot be used, or a cache class that cannot
                hold two streams.
            UserError: prompt and new tokens exceed the backbone's positions.
        """
        self._reject_unsupported(kwargs)
        candidates = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        prompt = next((value for value in candidates if value is not None), None)
        # an assistant continues from its cache, without a mask, and may itself have generated the padding token
        continues = kwargs.get("attention_mask") is None and kwargs.get("past_key_values") is not None
        if prompt is not None and not continues and self._ends_with_padding(prompt, kwargs.get("attention_mask")):
            raise ValueError("generate: a prompt ends with padding; pad prompts on the left")
        if prompt is not None:
            new = kwargs.get("max_new_tokens") or getattr(kwargs.get("generation_config"), "max_new_tokens", None)
            self.check_length(prompt, kwargs.get("attention_mask"), max_new_tokens=new or 0)
            self._set_query(prompt, kwargs)
        if not self.config.supports_cache:
            kwargs["use_cache"] = False
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def _reject_unsupported(self, options: dict[str, Any]) -> None:
        """Raise ValueError for decoding methods whose loop cannot handle two streams."""
        config = options.get("generation_config")
        for name in _UNSUPPORTED:
            value = options.get(name, getattr(config, name, None))
            # a function of the caller's is not code from the Hub
            if value and not callable(value):
                raise ValueError(
                    f"{name}={value!r}: not supported by {type(self).__name__}; use greedy search, sampling, beam "
                    "search, assistant_model or prompt_lookup_num_tokens"
                )

    def _set_query(self, prompt: torch.Tensor, options: dict[str, Any]) -> None:
        """Set the query of the interwoven stream in ``options``, or in a cache if there is an assistant."""
        if self.stream == "interwoven" and options.get("query_mask") is None:
            # padding is excluded by the attention mask, which generate() can infer
            options["query_mask"] = torch.ones(prompt.shape[:2], device=prompt.device)
        assistant = options.get("assistant_model")
        if assistant is None:
            return
        if getattr(assistant, "stream", None) == "interwoven":
            # rejected tokens are removed from its cache, where the first of them count as its query
            raise ValueError(
                "assistant_model: its interwoven stream cannot assist; set assistant_model.stream='tuned'"
            )
        # generate() passes all arguments but the cache on to the assistant, which rejects a query mask
        query_mask = options.pop("query_mask", None)
        if self.stream == "interwoven" and options.get("past_key_values") is None:
            options["past_key_values"] = self.new_cache(query_mask=query_mask)

    def _ends_with_padding(self, prompt: torch.Tensor, mask: torch.Tensor | None) -> bool:
        if mask is not None:
            return bool((mask[:, -1] == 0).any())
        config = self.generation_config
        eos = config.eos_token_id
        eos = [eos] if isinstance(eos, int) else eos or []
        if prompt.ndim != 2 or config.pad_token_id is None or config.pad_token_id in eos:
            # as transformers infers masks: an EOS token can be part of a prompt
            return False
        return bool((prompt[:, -1] == config.pad_token_id).any())

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Use the stream's own cache wherever `generate()` would create a dynamic one."""
        if (
            self.cache_class is Cache
            or generation_config.use_cache is False
            or model_kwargs.get("past_key_values") is not None
        ):
            super()._prepare_cache_for_generation(  # type: ignore[misc]
                generation_config, model_kwargs, *args, **kwargs
            )
            return
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r}: the {self.stream} stream "
                "has its own dynamic cache; remove this option"
            )
        model_kwargs["past_key_values"] = self.new_cache(query_mask=model_kwargs.get("query_mask"))
