"""The siamese model (paper, "Siamese Large Language Model" and "Interweaving Mechanism").

    h_o = Body(x; W0)                      original memory, adapter off, never a gradient
    h_t = Body(x; W0, adapter)             tuned memory
    q_o, q_t = pooled over the query       (eq. 2, 3)
    g = gate(q_o, h_o, h_t, q_t)           (eq. 4, 5)
    h = g * h_o + (1 - g) * h_t            (eq. 6)
    logits = Head(h)                       (eq. 7), the backbone's own frozen head

Legend: B batch, T positions, N answer tokens of a batch, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional
from transformers import (
    Cache,
    DynamicCache,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, ModelOutput

from imsm.siamese import storage
from imsm.siamese.cache import SiameseCache
from imsm.siamese.configuration import SiameseConfig
from imsm.siamese.gate import interweave
from imsm.siamese.query import empty_state, running_query, whole_query
from imsm.siamese.streams import STREAMS, Stream, Streams

IGNORED = -100
"""The label of a token that is not learned (torch's and transformers' convention)."""


@dataclass
class SiameseOutput(ModelOutput):
    """What a forward pass returns.

    ``loss`` is there with labels, ``logits`` (B, T, V) without; ``gate_mean`` is the mean weight
    of the original memory over the positions that were computed (interwoven stream only).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    gate_mean: torch.Tensor | None = None


class SiameseForCausalLM(PreTrainedModel, GenerationMixin):
    """A frozen language model, the same model with an adapter, and the gate between them.

    Args:
        config: what the model is made of.
        adapted: the backbone: a causal language model, wrapped by PEFT if it has an adapter.
        gate: the gate module; None for plain PEFT and for the original model.

    ``model.stream`` chooses who answers: "original", "tuned" or "interwoven".
    """

    config_class = SiameseConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def __init__(
        self, config: SiameseConfig, adapted: nn.Module, gate: nn.Module | None = None
    ) -> None:
        super().__init__(config)
        self.adapted = adapted
        self.gate = gate
        self.body = [self.backbone.get_decoder()]  # a list: not a second owner of the weights
        self.streams = Streams(adapted)
        self.generation_config = self.backbone.generation_config
        self.stream = config.stream  # type: ignore[assignment]

    # ------------------------------------------------------------------ parts

    @property
    def backbone(self) -> PreTrainedModel:
        """The causal language model itself, with the adapter's layers in place."""
        inner = self.adapted
        return inner.get_base_model() if isinstance(inner, PeftModel) else inner

    @property
    def stream(self) -> Stream:
        """Who answers: "original", "tuned" or "interwoven"."""
        return self._stream

    @stream.setter
    def stream(self, stream: Stream) -> None:
        available = self.available_streams()
        if stream not in available:
            raise ValueError(f"stream={stream!r}: this model has {', '.join(available)}")
        self._stream = stream

    def available_streams(self) -> tuple[Stream, ...]:
        """The streams that this model can answer with."""
        has = {
            "original": True,
            "tuned": bool(self.streams.layers),
            "interwoven": self.gate is not None,
        }
        return tuple(stream for stream in STREAMS if has[stream])

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embeddings."""
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        """The backbone's head, (V, D)."""
        return self.backbone.get_output_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is initialised here: backbone, adapter and gate come initialised."""

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute the tuned stream's activations in the backward pass."""
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        self.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self.backbone.gradient_checkpointing_disable()

    # ---------------------------------------------------------------- forward

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        query_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_dict: bool | None = None,
    ) -> SiameseOutput:
        """One pass of the chosen stream.

        The interwoven stream must know which positions are the query: by ``query_mask`` (1 on the
        query, (B, T) or the query's part of it), by ``labels`` (all before the first label is the
        query) or by a `SiameseCache` (what is fed first is the query).

        Args:
            input_ids: (B, T).
            attention_mask: 1 on real tokens, (B, past + T).
            position_ids: (B, T); by default counted from the mask, so padding may stand anywhere.
            past_key_values: a cache of the stream's kind: see ``new_cache``.
            inputs_embeds: (B, T, D) in place of ``input_ids``.
            labels: (B, T), -100 where nothing is learned: gate and head then run at answer
                positions alone, and a loss is returned in place of logits.
            query_mask: see above.
            use_cache: make a cache if none was given.
            logits_to_keep: as in transformers: compute only the last n positions (0: all), or
                the positions of an index tensor.
            num_items_in_batch: divide the summed loss by this instead of by N (accumulation).
            return_dict: accepted for `generate()`; the output is always a `SiameseOutput`.

        Raises:
            ValueError: the interwoven stream cannot tell the query from the answer.
        """
        inputs = self._inputs(input_ids, inputs_embeds, attention_mask, position_ids, past_key_values)
        if labels is not None:
            return self._learn(inputs, attention_mask, labels, query_mask, num_items_in_batch)
        if use_cache and past_key_values is None:
            past_key_values = self.new_cache(query_mask=query_mask)
        if self.stream != "interwoven":
            memory = self._memory(inputs, self.stream, past_key_values)
            logits = self.head(_kept(memory, logits_to_keep))
            return SiameseOutput(logits=logits, past_key_values=past_key_values)
        queries_of = self._query_reader(inputs, attention_mask, query_mask, past_key_values)
        original, tuned = self._both_memories(inputs, past_key_values)
        query_original, query_tuned = queries_of(original, tuned)
        kept = [
            part if part is None else _kept(part, logits_to_keep)
            for part in (original, tuned, query_original, query_tuned)
        ]
        interwoven, gate_mean = self._interweave(*kept)
        return SiameseOutput(
            logits=self.head(interwoven), past_key_values=past_key_values, gate_mean=gate_mean
        )

    def _learn(
        self,
        inputs: dict[str, torch.Tensor],
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor,
        query_mask: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> SiameseOutput:
        """The loss, from answer positions alone (DESIGN §4); the original stream has no gradient."""
        rows, columns = torch.nonzero(labels[:, 1:] != IGNORED, as_tuple=True)  # (N,), (N,)
        targets = labels[rows, columns + 1]
        gate_mean = None
        if self.stream == "interwoven":
            query = self._query_of(labels, attention_mask, query_mask)
            with torch.no_grad():
                original = self._memory(inputs, "original", None)
            tuned = self._memory(inputs, "tuned", None)
            queries: list[torch.Tensor | None] = [None, None]
            if self.gate.reads_query:
                pooled = (whole_query(h, query, pooling=self.config.pooling) for h in (original, tuned))
                queries = [each[rows] for each in pooled]
            memory, gate_mean = self._interweave(
                original[rows, columns], tuned[rows, columns], queries[0], queries[1]
            )
        else:
            memory = self._memory(inputs, self.stream, None)[rows, columns]
        logits = self.head(memory[None])[0]  # (N, V)
        total = functional.cross_entropy(logits.float(), targets, reduction="sum")
        items = len(targets) if num_items_in_batch is None else num_items_in_batch
        return SiameseOutput(loss=total / items, gate_mean=gate_mean)

    def _query_of(
        self,
        labels: torch.Tensor,
        attention_mask: torch.Tensor | None,
        query_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """The query's positions (B, T) of labelled sequences."""
        answer = (labels != IGNORED).long().cumsum(dim=1) > 0
        query = ~answer if query_mask is None else query_mask.bool()
        if query_mask is not None and bool((query & answer).any()):
            raise ValueError("query_mask: a query must end before the first label of its row")
        if attention_mask is not None:
            query = query & attention_mask.bool()
        if not bool(query.any(dim=1).all()):
            raise ValueError("labels: a row has no query, every one of its tokens is a label")
        return query

    def _query_reader(
        self,
        inputs: dict[str, torch.Tensor],
        attention_mask: torch.Tensor | None,
        query_mask: torch.Tensor | None,
        cache: Cache | None,
    ) -> Any:
        """A function (h_o, h_t) -> (q_o, q_t), each (B, T, D), for the piece that is fed now."""
        if not self.gate.reads_query:
            return lambda original, tuned: (None, None)
        fed = inputs.get("input_ids", inputs.get("inputs_embeds"))
        length = fed.shape[1]
        if isinstance(cache, SiameseCache):
            start = cache.get_seq_length()
            if cache.query_mask is None and query_mask is not None:
                cache.query_mask = query_mask
            mask = cache.query_piece(start=start, length=length, like=fed)
        elif query_mask is not None:
            mask = functional.pad(query_mask.float(), (0, length - query_mask.shape[1]))
        else:
            raise ValueError(
                "the gate reads the query, and nothing tells the query from the answer: pass "
                "query_mask (1 on the query's tokens), labels, or a cache from new_cache()"
            )
        if attention_mask is not None:
            mask = mask * attention_mask[:, -length:]

        def read(original: torch.Tensor, tuned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            pooling = self.config.pooling
            before = getattr(cache, "queries", None) or (
                empty_state(original, pooling=pooling),
                empty_state(tuned, pooling=pooling),
            )
            query_original, state_original = running_query(
                original, mask, pooling=pooling, before=before[0]
            )
            query_tuned, state_tuned = running_query(tuned, mask, pooling=pooling, before=before[1])
            if isinstance(cache, SiameseCache):
                cache.queries = (state_original, state_tuned)
            return query_original, query_tuned

        return read

    def _interweave(
        self,
        original: torch.Tensor,
        tuned: torch.Tensor,
        query_original: torch.Tensor | None,
        query_tuned: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 4-6, and the gate's mean."""
        gate = self.gate(original, tuned, query_original, query_tuned)
        return interweave(original, tuned, gate), gate.detach().mean()

    # --------------------------------------------------------------- memories

    def _inputs(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
    ) -> dict[str, torch.Tensor]:
        """The body's inputs, positions counted from the mask (padding on the left or right)."""
        fed = input_ids if input_ids is not None else inputs_embeds
        if fed is None:
            raise ValueError("forward needs input_ids or inputs_embeds")
        if position_ids is None:
            if attention_mask is not None and attention_mask.ndim == 2:
                positions = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
                position_ids = positions[:, -fed.shape[1] :]
            else:
                start = cache.get_seq_length() if cache is not None else 0
                steps = torch.arange(start, start + fed.shape[1], device=fed.device)
                position_ids = steps[None].expand(fed.shape[0], -1)
        inputs = {"position_ids": position_ids}
        inputs["input_ids" if input_ids is not None else "inputs_embeds"] = fed
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        return inputs

    def _memory(
        self, inputs: dict[str, torch.Tensor], stream: str, cache: Cache | None
    ) -> torch.Tensor:
        """One stream's memories, (B, T, D)."""
        contexts: dict[str, AbstractContextManager[None]] = {
            "original": self.streams.original(),
            "tuned": nullcontext(),
        }
        with contexts[stream]:
            outputs = self.body[0](**inputs, past_key_values=cache, use_cache=cache is not None)
        return outputs.last_hidden_state

    def _both_memories(
        self, inputs: dict[str, torch.Tensor], cache: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams' memories in one pass over doubled rows, each (B, T, D)."""
        doubled = {name: torch.cat([value, value]) for name, value in inputs.items()}
        with self.streams.both():
            outputs = self.body[0](**doubled, past_key_values=cache, use_cache=cache is not None)
        original, tuned = outputs.last_hidden_state.chunk(2)
        return original, tuned

    def head(self, memory: torch.Tensor) -> torch.Tensor:
        """The backbone's own logits of given memories: (B, T, D) -> (B, T, V).

        The backbone's forward runs with its body replaced by the memories, so that heads that
        scale or cap their logits do so here too.
        """
        with _body_returns(self.body[0], memory), self.streams.original():
            return self.backbone(inputs_embeds=memory, use_cache=False).logits

    # ------------------------------------------------------------- generation

    def new_cache(self, *, query_mask: torch.Tensor | None = None) -> Cache:
        """An empty cache of the kind that the chosen stream fills."""
        text_config = self.config.get_text_config(decoder=True)
        if self.stream != "interwoven":
            return DynamicCache(config=text_config)
        return SiameseCache(config=text_config, query_mask=query_mask)

    def generate(
        self, inputs: torch.Tensor | None = None, *arguments: Any, **options: Any
    ) -> torch.Tensor | ModelOutput:
        """`GenerationMixin.generate`, with the prompt as the query.

        ``query_mask`` (B, T_prompt) may mark a part of the prompt as the query instead (few-shot
        examples outside it, say). Padding must stand on the left.

        Raises:
            ValueError: padding on the right, an encoder-style call without tokens.
        """
        tokens = inputs if inputs is not None else options.get("input_ids")
        mask = options.get("attention_mask")
        if mask is not None and bool((mask[:, -1] == 0).any()):
            raise ValueError("generate needs prompts padded on the left; a row ends with padding")
        if self.stream == "interwoven":
            fed = tokens if tokens is not None else options.get("inputs_embeds")
            if fed is not None and options.get("query_mask") is None:
                # padding is taken out by the attention mask, which generate() can infer
                options["query_mask"] = torch.ones(fed.shape[:2], device=fed.device)
        return super().generate(inputs, *arguments, **options)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *arguments: Any, **options: Any
    ) -> None:
        """Give `generate()` a cache of both streams wherever it would make a dynamic one."""
        plain = generation_config.cache_implementation in (None, "dynamic")
        if (
            self.stream == "interwoven"
            and plain
            and generation_config.use_cache is not False
            and model_kwargs.get("past_key_values") is None
        ):
            model_kwargs["past_key_values"] = self.new_cache(
                query_mask=model_kwargs.get("query_mask")
            )
            return
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, *arguments, **options
        )

    # ---------------------------------------------------------------- storage

    def save_pretrained(
        self, save_directory: str | Path, is_main_process: bool = True, **unused: Any
    ) -> None:
        """Write configuration, adapter and gate (MBs, safetensors), never the backbone."""
        if is_main_process:
            storage.save(self, Path(save_directory))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: PretrainedConfig | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        trainable: bool = False,
    ) -> SiameseForCausalLM:
        """Load a run folder or a folder that ``save_pretrained`` wrote.

        Args:
            pretrained_model_name_or_path: the folder.
            config: a configuration in place of the folder's.
            dtype: the backbone's dtype in place of the run's.
            device: where to put the model; default: where torch puts it.
            trainable: whether adapter and gate can be trained further.

        Raises:
            UserError: the folder holds no siamese model, or its backbone cannot be had.
        """
        return storage.load(
            cls,
            Path(pretrained_model_name_or_path),
            config=config,
            dtype=dtype,
            device=device,
            trainable=trainable,
        )


def _kept(values: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The positions (B, T, ...) that ``logits_to_keep`` asks for."""
    if isinstance(logits_to_keep, torch.Tensor):
        return values[:, logits_to_keep]
    return values[:, -logits_to_keep:] if logits_to_keep else values


@contextmanager
def _body_returns(body: nn.Module, memory: torch.Tensor) -> Iterator[None]:
    """While this is open, ``body`` answers every call with ``memory``."""
    own = body.__dict__.get("forward")
    body.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=memory)
    try:
        yield
    finally:
        if own is None:
            del body.forward
        else:
            body.forward = own
