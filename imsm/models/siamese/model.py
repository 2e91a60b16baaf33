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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, Cache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from imsm.models import serialization as storage
from imsm.models.siamese.chunked_loss import chunked_loss_sum, logit_chunk_size
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.decoder import find_decoder
from imsm.models.siamese.gate import interweave
from imsm.models.siamese.generation import SiameseGenerationMixin
from imsm.models.siamese.inputs import (
    IGNORED,
    body_inputs,
    query_mask_from_labels,
    query_mask_of_chunk,
    select_positions,
)
from imsm.models.siamese.kl import KLRegularizer, divergence
from imsm.models.siamese.kv_cache import DualStreamCache, PrefixedCache
from imsm.models.siamese.lm_head import apply_lm_head
from imsm.models.siamese.query_pooling import empty_state, pool, pool_causal
from imsm.models.siamese.streams import STREAMS, Stream, StreamRunner
from imsm.models.siamese.virtual_tokens import DROPPED
from imsm.utils.errors import UserError


@dataclass
class SiameseOutput(ModelOutput):
    """What a forward pass returns.

    ``loss`` is there with labels, ``logits`` (B, T, V) without. Of the interwoven stream,
    ``gate`` is the weight of the original memory at each position that was computed, as a mean
    over D ((B, T), or (N,) with labels), and ``gate_mean`` its mean. ``divergence``, in training
    with `SiameseForCausalLM.closeness`, is KL to the original per label, without its weight.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    gate: torch.Tensor | None = None
    gate_mean: torch.Tensor | None = None
    divergence: torch.Tensor | None = None


class SiameseForCausalLM(SiameseGenerationMixin, PreTrainedModel, GenerationMixin):
    """A frozen language model, the same model with an adapter, and the gate between them.

    Args:
        config: what the model is made of.
        adapted: the backbone: a causal language model, wrapped by PEFT if it has an adapter.
        gate: the gate module; None for plain PEFT and for the original model.

    ``model.stream`` chooses who answers: "original", "tuned" or "interwoven".
    ``model.closeness`` adds KL to the original to the training loss; None: nothing is added.
    """

    config_class = SiameseConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def __init__(self, config: SiameseConfig, adapted: nn.Module, gate: nn.Module | None = None) -> None:
        super().__init__(config)
        self.adapted = adapted
        self.gate = gate
        self.streams = StreamRunner(adapted, find_decoder(self.backbone))
        self.kl_regularizer: KLRegularizer | None = None
        self.generation_config = self.backbone.generation_config
        self.stream = config.stream  # type: ignore[assignment]

    # ------------------------------------------------------------------ parts

    @property
    def backbone(self) -> PreTrainedModel:
        """The causal language model itself, with the adapter's layers in place."""
        inner = self.adapted
        inner = inner.get_base_model() if isinstance(inner, PeftModel) else inner
        return cast("PreTrainedModel", inner)

    @property
    def _gate(self) -> nn.Module:
        """The gate, for the stream that exists with a gate only."""
        assert self.gate is not None
        return self.gate

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
        """The streams that this model can answer with; the interwoven one needs both parts."""
        adapted = self.streams.adapted
        has = {"original": True, "tuned": adapted, "interwoven": adapted and self.gate is not None}
        return tuple(stream for stream in STREAMS if has[stream])

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embeddings."""
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        """The backbone's head, (V, D)."""
        return self.backbone.get_output_embeddings()

    def activation_checkpointing_enable(self, *arguments: Any, **options: Any) -> None:
        """As in transformers.

        Raises:
            UserError: with learned keys and values (prefix tuning), which it would drop.
        """
        if self.streams.virtual is not None and self.streams.virtual.in_cache():
            raise UserError(DROPPED)
        super().activation_checkpointing_enable(*arguments, **options)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is initialised here: backbone, adapter and gate come initialised."""

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
        original_memory: torch.Tensor | None = None,
        original_query: torch.Tensor | None = None,
    ) -> SiameseOutput:
        """One pass of the chosen stream.

        The interwoven stream must know which positions are the query: by ``query_mask``, by
        ``labels`` (all before the first label is the query) or by a `SiameseCache` (what is fed
        first is the query). The other streams have no use for it.

        Args:
            input_ids: (B, T).
            attention_mask: 1 on real tokens, (B, past + T).
            position_ids: (B, T); by default counted from the mask, so padding may stand anywhere.
            past_key_values: a cache of the stream's kind: see ``new_cache``.
            inputs_embeds: (B, T, D) in place of ``input_ids``.
            labels: (B, T), -100 where nothing is learned: gate and head then run at answer
                positions alone, for a loss in place of logits.
            query_mask: 1 on the query's tokens, (B, T_query), counted from the start of the
                sequence (of the cache); positions after T_query are the answer's.
            use_cache: make a cache if none was given; with labels no cache is made, nor for a
                backbone that cannot go on from one (`SiameseConfig.cached`).
            logits_to_keep: as in transformers: compute only the last n positions (0: all), or
                the positions of an index tensor; with labels the labels decide.
            num_items_in_batch: divides the summed loss, in place of the number of labels.
            return_dict: True or None, as `generate()` gives it: there is no tuple.
            original_memory: with labels, h_o at the positions that predict them, (N, D), row by
                row (`imsm.models.siamese.hidden_state_cache`): the original stream is not run then.
            original_query: with ``original_memory``, q_o, (B, D), for a gate that reads it.

        Raises:
            ValueError: nothing tells the query, or arguments that do not go together.
        """
        if return_dict is False:
            raise ValueError("return_dict=False: a siamese model returns a SiameseOutput only")
        self._check_cache(past_key_values)
        inputs = body_inputs(
            input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values,
        )
        if labels is not None:
            if past_key_values is not None:
                raise ValueError("labels with a cache: a loss is computed over whole sequences")
            known = None if original_memory is None else (original_memory, original_query)
            return self._training_forward(inputs, labels, query_mask, num_items_in_batch, known)
        if original_memory is not None:
            raise ValueError("original_memory without labels: it is of the positions of labels")
        if use_cache and past_key_values is None and self.config.cached:
            past_key_values = self.new_cache()
        if self.stream != "interwoven":
            memory = self.streams.hidden_states(inputs, stream=self.stream, cache=past_key_values)
            logits = self.head(select_positions(memory, logits_to_keep))
            return SiameseOutput(logits=logits, past_key_values=past_key_values)
        return self._inference_forward(inputs, past_key_values, query_mask, logits_to_keep)

    def _inference_forward(
        self,
        inputs: dict[str, torch.Tensor],
        cache: Cache | None,
        query_mask: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
    ) -> SiameseOutput:
        """The interwoven stream's logits."""
        assert cache is None or isinstance(cache, DualStreamCache)
        queries: Sequence[torch.Tensor | None] = (None, None)
        if self._gate.reads_query:  # before the bodies run: they move the cache on
            query = query_mask_of_chunk(inputs, query_mask=query_mask, cache=cache)
            over = cache is not None and cache.query_is_over and not torch.is_grad_enabled()
            settled = cache.settled if cache is not None and over else None
            memories = self.streams.both_hidden_states(inputs, cache=cache)
            if settled is None:
                read = self._pool_queries(*memories, query, cache)
                if cache is not None and over:
                    cache.settled = settled = self._freeze_query(*(select_positions(each, 1) for each in read))
            queries = settled or [select_positions(each, logits_to_keep) for each in read]
        else:
            memories = self.streams.both_hidden_states(inputs, cache=cache)
        original, tuned = (select_positions(memory, logits_to_keep) for memory in memories)
        logits, gate = self._mix(original, tuned, *queries)
        return SiameseOutput(logits=logits, past_key_values=cache, gate=gate, gate_mean=gate.mean())

    def _freeze_query(
        self, query_original: torch.Tensor, query_tuned: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        """What `_combine` is given of a query that is over: q_o and q_t, or the gate's part."""
        of_query = getattr(self._gate, "query_part", None)
        if of_query is not None:
            return None, None, of_query(query_original, query_tuned)
        return query_original, query_tuned

    def _pool_queries(
        self, original: torch.Tensor, tuned: torch.Tensor, query: torch.Tensor, cache: DualStreamCache | None
    ) -> list[torch.Tensor]:
        """The query memories q_o and q_t as each position may see them, each (B, T, D)."""
        pooling = self.config.pooling
        memories = (original, tuned)
        states = cache.queries if cache is not None else None
        read = [
            pool_causal(
                memory,
                query,
                pooling=pooling,
                before=states[index] if states else empty_state(memory, pooling=pooling),
            )
            for index, memory in enumerate(memories)
        ]
        if cache is not None:
            cache.queries = (read[0][1], read[1][1])
        return [queries for queries, _ in read]

    def _training_forward(
        self,
        inputs: dict[str, torch.Tensor],
        labels: torch.Tensor,
        query_mask: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
        known: tuple[torch.Tensor, torch.Tensor | None] | None,
    ) -> SiameseOutput:
        """The loss, gate and head at answer positions alone (DESIGN §4)."""
        _, targets, memories, queries = self._gather_label_positions(inputs, labels, query_mask, known)
        if num_items_in_batch is None and not len(targets):
            raise ValueError("labels: there is no label to learn")
        items = len(targets) if num_items_in_batch is None else num_items_in_batch
        memory, gate = self._mixed_hidden_state(memories, queries)
        at_once = logit_chunk_size(self.backbone)
        held = self.kl_regularizer if self.training and len(memories) > 1 else None
        apart = memory.new_zeros((), dtype=torch.float32)

        def loss(rows: torch.Tensor, piece: slice) -> torch.Tensor:
            nonlocal apart
            logits = self.head(rows)
            total = functional.cross_entropy(logits.float(), targets[piece], reduction="sum")
            if held is None:
                return total
            with torch.no_grad():
                original = self.head(memories[0][piece])
            without = targets[piece] if held.mask_target else None
            kl = divergence(original, logits, without=without)
            apart = apart + kl.detach()
            return total + held.weight * kl

        if at_once is None or len(targets) <= at_once:
            total = loss(memory, slice(None))
        else:
            total = chunked_loss_sum(loss, memory, at_once=at_once)
        return SiameseOutput(
            loss=total / items,
            gate=gate,
            gate_mean=None if gate is None else gate.mean(),
            divergence=None if held is None else apart / items,
        )

    @torch.no_grad()
    def log_likelihood(
        self,
        input_ids: torch.Tensor,
        *,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        query_mask: torch.Tensor | None = None,
        at_once: int = 256,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How likely the chosen stream finds given answers.

        Args:
            input_ids: prompt and answer, (B, T).
            attention_mask: 1 on real tokens, (B, T).
            labels: the answers' tokens, -100 elsewhere, (B, T).
            query_mask: as in ``forward``.
            at_once: of how many positions logits are in memory at a time.

        Returns:
            Sums of ln p over each answer's tokens, (B,), and whether each of them is the likeliest
            token in its place, (B,).
        """
        inputs = body_inputs(
            input_ids, inputs_embeds=None, attention_mask=attention_mask, position_ids=None, cache=None
        )
        rows, targets, memories, queries = self._gather_label_positions(inputs, labels, query_mask)
        total = torch.zeros(len(input_ids), dtype=torch.float32, device=input_ids.device)
        missed = torch.zeros_like(total)
        for start in range(0, len(targets), at_once):
            piece = slice(start, start + at_once)
            logits, _ = self._logits(
                [memory[piece] for memory in memories], [None if query is None else query[piece] for query in queries]
            )
            losses = functional.cross_entropy(logits.float(), targets[piece], reduction="none")
            total.index_add_(0, rows[piece], -losses)
            missed.index_add_(0, rows[piece], (logits.argmax(dim=-1) != targets[piece]).float())
        return total, missed == 0

    def _gather_label_positions(
        self,
        inputs: dict[str, torch.Tensor],
        labels: torch.Tensor,
        query_mask: torch.Tensor | None,
        known: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor | None]]:
        """What the N labels need: their rows (N,), the labels (N,), memories and queries (N, D).

        The memories are the original and the tuned one, or that of the one stream that answers
        (where the tuned one is kept close to the original, both). With the original's rows and
        query ``known``, the original stream is not run.
        """
        rows, columns = torch.nonzero(labels[:, 1:] != IGNORED, as_tuple=True)
        targets = labels[rows, columns + 1]
        held = self.stream == "tuned" and self.kl_regularizer is not None and self.training
        if self.stream != "interwoven" and not held:
            memory = self.streams.hidden_states(inputs, stream=self.stream, cache=None)
            return rows, targets, [memory[rows, columns]], []
        if known is None:
            original, tuned = self.streams.both_hidden_states(inputs, cache=None)
            original_rows = original[rows, columns]
        else:
            original_rows = known[0]
            if len(original_rows) != len(targets):
                raise ValueError(f"original_memory: {len(original_rows)} for {len(targets)} labels")
            tuned = self.streams.hidden_states(inputs, stream="tuned", cache=None)
        memories = [original_rows, tuned[rows, columns]]
        if held:
            return rows, targets, memories, []
        mask = inputs.get("attention_mask")
        query = query_mask_from_labels(labels, attention_mask=mask, query_mask=query_mask)
        if not self._gate.reads_query:
            return rows, targets, memories, [None, None]
        pooling = self.config.pooling
        pooled = pool(original, query, pooling=pooling) if known is None else known[1]
        if pooled is None:
            raise ValueError("original_query: the gate reads it, give it beside original_memory")
        queries = [pooled, pool(tuned, query, pooling=pooling)]
        return rows, targets, memories, [each[rows] for each in queries]

    def _mixed_hidden_state(
        self, memories: list[torch.Tensor], queries: list[torch.Tensor | None]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The memory (N, D) that the head reads, of what `_at_answers` gives, and the gate (N,)."""
        if self.stream != "interwoven":
            return memories[-1], None
        return self._interweave(*memories, *queries)

    def _logits(
        self, memories: list[torch.Tensor], queries: list[torch.Tensor | None]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits (N, V) of what `_at_answers` gives, and the gate (N,) of the interwoven stream."""
        if self.stream != "interwoven":
            return self.head(memories[-1]), None
        return self._mix(*memories, *queries)

    def _mix(
        self,
        original: torch.Tensor,
        tuned: torch.Tensor,
        query_original: torch.Tensor | None,
        query_tuned: torch.Tensor | None,
        query_part: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams to one: logits (..., V), and the original's weight (...), mean over D.

        Here eq. 4-7; a control that combines the streams in another way replaces this alone. It
        is not trained.
        """
        memory, gate = self._interweave(original, tuned, query_original, query_tuned, query_part)
        return self.head(memory), gate

    def _interweave(
        self,
        original: torch.Tensor,
        tuned: torch.Tensor,
        query_original: torch.Tensor | None,
        query_tuned: torch.Tensor | None,
        query_part: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 4-6: the interwoven memory (..., D), and the original's weight (...), mean over D."""
        of_query = () if query_part is None else (query_part,)
        gate = self._gate(original, tuned, query_original, query_tuned, *of_query)
        return interweave(original, tuned, gate), gate.detach().mean(dim=-1)

    def _check_cache(self, cache: Cache | None) -> None:
        if cache is None:
            return
        if not self.config.cached:
            raise ValueError(
                f"past_key_values: {type(self.backbone).__name__} cannot go on from a "
                f"{type(cache).__name__}; feed whole sequences (use_cache=False)"
            )
        kind = type(cache) if isinstance(cache, PrefixedCache) else Cache
        if kind is not self.cache_kind:
            raise ValueError(
                f"past_key_values: a {type(cache).__name__} does not fit the {self.stream} stream; "
                "make it with new_cache()"
            )
        layers = self.backbone.modules()
        if self.training and any(getattr(each, "gradient_checkpointing", False) for each in layers):
            raise ValueError("gradient checkpointing keeps no cache in training mode: call eval()")

    def head(self, memory: torch.Tensor) -> torch.Tensor:
        """The backbone's own logits of given memories, adapter off: (..., D) -> (..., V)."""
        batched = memory if memory.ndim == 3 else memory[None]
        # rows of a slice lie apart: torch on a CPU would copy the head's weight for each of them
        batched = batched.contiguous()
        with self.streams.adapter_disabled():
            logits = apply_lm_head(self.backbone, self.streams.body, batched)
        return logits if memory.ndim == 3 else logits[0]

    # ---------------------------------------------------------------- storage

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, is_main_process: bool = True, state_dict: None = None
    ) -> None:
        """Write configuration, adapter and gate (MBs, safetensors), never the backbone.

        Args:
            save_directory: the folder; made if it is not there.
            is_main_process: whether this process writes.
            state_dict: None, as transformers' Trainer gives it: the model's own values are saved.
        """
        if state_dict is not None:
            raise ValueError("state_dict: a siamese model saves its own values, give none")
        if is_main_process:
            storage.save_model(self, Path(save_directory))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: PretrainedConfig | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        trainable: bool = False,
        **hub: Any,
    ) -> SiameseForCausalLM:
        """Load a run folder or a folder that ``save_pretrained`` wrote.

        Args:
            pretrained_model_name_or_path: the folder.
            config: a configuration in place of the folder's.
            dtype: the backbone's dtype in place of the run's ("auto": the run's).
            device: where to put the model; default: where torch puts it.
            trainable: whether adapter and gate can be trained further.
            hub: what an auto class tells every model about a hub (`storage.HUB_OPTIONS`): of no
                use for a local folder.

        Raises:
            UserError: the folder holds no siamese model, or its backbone cannot be had.
            TypeError: an option that is none of these.
        """
        unknown = sorted(hub.keys() - storage.HUB_OPTIONS)
        if unknown:
            raise TypeError(f"SiameseForCausalLM.from_pretrained has no {', '.join(unknown)}")
        return storage.load_model(
            cls, Path(pretrained_model_name_or_path), config=config, dtype=dtype, device=device, trainable=trainable
        )


AutoConfig.register(SiameseConfig.model_type, SiameseConfig, exist_ok=True)
AutoModelForCausalLM.register(SiameseConfig, SiameseForCausalLM, exist_ok=True)
