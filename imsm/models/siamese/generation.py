"""`generate()` over both streams: the prompt is the query, the cache holds both streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.modeling_outputs import ModelOutput

from imsm.models.siamese.kv_cache import DualStreamCache, PrefixedCache

if TYPE_CHECKING:
    from imsm.models.siamese.streams import Stream, StreamRunner


class SiameseGenerationMixin(GenerationMixin):
    """transformers' generation, told of the query and given a cache of both streams."""

    if TYPE_CHECKING:
        config: Any
        streams: StreamRunner

        @property
        def stream(self) -> Stream:
            """Who answers."""

    @property
    def cache_kind(self) -> type[Cache]:
        """What the chosen stream's cache is; `Cache` stands for all of transformers' own."""
        if self.stream == "interwoven":
            return DualStreamCache
        virtual = self.stream == "tuned" and self.streams.virtual is not None
        return PrefixedCache if virtual else Cache

    def new_cache(self, *, query_mask: torch.Tensor | None = None) -> Cache:
        """An empty cache of the kind that the chosen stream fills.

        Args:
            query_mask: which positions will be the query's, (B, T_query); None: all of the first
                piece that is fed. Streams without a gate have no use for it.
        """
        text_config = self.config.get_text_config(decoder=True)
        if self.cache_kind is DualStreamCache:
            doubled = self.streams.doubled
            return DualStreamCache(config=text_config, query_mask=query_mask, doubled=doubled)
        plain = DynamicCache(config=text_config)
        if self.cache_kind is Cache or self.streams.virtual is None:
            return plain
        return PrefixedCache([plain], virtual=self.streams.virtual.count)

    def generate(  # type: ignore[override]
        self, inputs: torch.Tensor | None = None, *arguments: Any, **options: Any
    ) -> torch.Tensor | ModelOutput:
        """`GenerationMixin.generate`, with the prompt as the query.

        ``query_mask`` (B, T_prompt) may mark a part of the prompt as the query instead (few-shot
        examples outside it, say); only the interwoven stream reads it. Padding must stand on the
        left. A backbone that cannot go on from a cache reads the whole text at every step. All
        other arguments are transformers'.

        Raises:
            ValueError: padding on the right, or a kind of cache that cannot hold two streams.
        """
        given = (inputs, options.get("input_ids"), options.get("inputs_embeds"))
        fed = next((each for each in given if each is not None), None)
        if fed is not None and self._ends_with_padding(fed, options.get("attention_mask")):
            raise ValueError("generate needs prompts padded on the left; a row ends with padding")
        if self.stream == "interwoven" and fed is not None and options.get("query_mask") is None:
            # padding is taken out by the attention mask, which generate() can infer
            options["query_mask"] = torch.ones(fed.shape[:2], device=fed.device)
        if not self.config.cached:
            options["use_cache"] = False
        return super().generate(inputs, *arguments, **options)  # type: ignore[misc]

    def _ends_with_padding(self, fed: torch.Tensor, mask: torch.Tensor | None) -> bool:
        if mask is not None:
            return bool((mask[:, -1] == 0).any())
        config = self.generation_config
        ends = config.eos_token_id
        ends = [ends] if isinstance(ends, int) else ends or []
        if fed.ndim != 2 or config.pad_token_id is None or config.pad_token_id in ends:
            return False  # as transformers infers a mask: an end of text may be part of a prompt
        return bool((fed[:, -1] == config.pad_token_id).any())

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *arguments: Any, **options: Any
    ) -> None:
        """Give `generate()` the stream's cache wherever it would make a dynamic one."""
        if (
            self.cache_kind is Cache
            or generation_config.use_cache is False
            or model_kwargs.get("past_key_values") is not None
        ):
            super()._prepare_cache_for_generation(  # type: ignore[misc]
                generation_config, model_kwargs, *arguments, **options
            )
            return
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r}: the "
                f"{self.stream} stream needs a dynamic cache of its own; leave it out"
            )
        model_kwargs["past_key_values"] = self.new_cache(query_mask=model_kwargs.get("query_mask"))
