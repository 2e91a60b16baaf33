"""The siamese model (paper, "Siamese Large Language Model" and "Interweaving Mechanism").

    h_o = Decoder(x; W0)                   original hidden states, adapter off, never a gradient
    h_t = Decoder(x; W0, adapter)          tuned hidden states
    q_o, q_t = pooled over the query       (eq. 2, 3)
    g = gate(q_o, h_o, h_t, q_t)           (eq. 4, 5)
    h = g * h_o + (1 - g) * h_t            (eq. 6)
    logits = Head(h)                       (eq. 7), the backbone's own frozen head

Hidden states are the decoder's last ones, after the final norm; the paper calls them memories.

Names and shapes (B batch, T positions, N labels of a batch, D hidden size, V vocabulary size, R gate rank):

    original, tuned                h_o, h_t        (B, T, D), or (N, D) at label positions
    query_original, query_tuned    q_o, q_t        (B, T, D) causal, (B, D) of a complete query
    query_part                     q_o, q_t in W_A (B, 1, R), the query's share of the gate's features
    gate                           g, mean over D  (B, T) or (N,)
    hidden                         h               as h_o
    logits                                         (B, T, V) or (N, V)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from imsm.models.backbones.decoder import find_decoder
from imsm.models.backbones.positions import position_limit
from imsm.models.siamese.chunked_loss import chunked_loss_sum, logit_chunk_size
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.explanation import SiameseExplanationMixin
from imsm.models.siamese.gate import apply_gate, interweave
from imsm.models.siamese.generation import SiameseGenerationMixin
from imsm.models.siamese.inputs import (
    decoder_inputs,
    labelled_inputs,
    query_mask_from_labels,
    query_mask_of_chunk,
    select_positions,
)
from imsm.models.siamese.kl import KLRegularizer, Objective, divergence
from imsm.models.siamese.kv_cache import CachePart, DualStreamCache
from imsm.models.siamese.labels import LabelIndex, QueryIndex, index_labels, index_queries, sequence_numbers
from imsm.models.siamese.lm_head import apply_lm_head
from imsm.models.siamese.packed_sequences import attention_arguments, known_sequences
from imsm.models.siamese.query_pooling import pool_causal
from imsm.models.siamese.route_loss import route_loss_sum
from imsm.models.siamese.serialization import SiameseSerializationMixin
from imsm.models.siamese.skip import BOTH, CHOICES, ORIGINAL, check_threshold, choose_streams, follow_choices
from imsm.models.siamese.streams import STREAMS, Stream, StreamRunner
from imsm.models.siamese.token_weights import TokenWeight, weighted_sum
from imsm.models.siamese.virtual_tokens import CHECKPOINTING_ERROR
from imsm.utils.errors import UserError, first_line


@dataclass
class SiameseOutput(ModelOutput):
    """Output of `SiameseForCausalLM.forward`.

    Args:
        loss: with labels, the mean loss per label.
        logits: without labels, (B, T, V).
        past_key_values: the cache, if one is used.
        gate: interwoven stream: weight of the original at each computed position, mean over D;
            (B, T), or (N,) with labels.
        gate_mean: mean of ``gate``.
        divergence: in training with a `KLRegularizer`: unweighted KL to the original per label.
        route_loss: with ``gate_target``: mean route loss per label; ``loss`` does not contain it.
        last_hidden_state: the head's input, (B, T, D), in place of ``logits`` if it was requested.
        choices: with `skip_threshold`, once the query is complete: the streams that each row continues with, (B,), as
            indices into `imsm.models.siamese.skip.CHOICES`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    gate: torch.Tensor | None = None
    gate_mean: torch.Tensor | None = None
    divergence: torch.Tensor | None = None
    route_loss: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    choices: torch.Tensor | None = None


@dataclass(frozen=True)
class StreamsOutput:
    """Output of `SiameseForCausalLM.forward_streams` at the n computed positions.

    Args:
        logits: logits of the selected stream, (B, n, V).
        original: h_o, (B, n, D).
        tuned: h_t, (B, n, D).
        gate: the original's weight, (B, n, D), or (B, n, 1) if it is one per token; None unless the interwoven stream
            is selected.
    """

    logits: torch.Tensor
    original: torch.Tensor
    tuned: torch.Tensor
    gate: torch.Tensor | None


@dataclass(frozen=True)
class _CachedStreams:
    """Hidden states (N, D) at the label positions and queries (B, D) that are given; None to compute them."""

    original: torch.Tensor | None = None
    query_original: torch.Tensor | None = None
    tuned: torch.Tensor | None = None
    query_tuned: torch.Tensor | None = None


@dataclass(frozen=True)
class _LabelledBatch:
    """The decoder's inputs, the indices of labels and queries, and the sequences that masks separate, (B, T)."""

    inputs: dict[str, Any]
    index: LabelIndex
    queries: QueryIndex | None
    packed: bool
    masked_sequences: torch.Tensor | None


@dataclass(frozen=True)
class _LabelPositions:
    """Labels of a batch, and both streams' inputs of gate and head at their positions.

    ``rows`` and ``targets`` are (N,), the other tensors (N, D). ``original`` is set if both streams
    run, ``hidden`` for the original and the tuned stream, ``gate_inputs`` for the interwoven one.
    """

    rows: torch.Tensor
    targets: torch.Tensor
    hidden: torch.Tensor | None = None
    original: torch.Tensor | None = None
    gate_inputs: tuple[torch.Tensor | None, ...] = ()


class SiameseForCausalLM(  # type: ignore[misc]
    SiameseSerializationMixin, SiameseExplanationMixin, SiameseGenerationMixin, PreTrainedModel, GenerationMixin
):
    """A frozen language model, the same model with an adapter, and the gate between them.

    ``model.stream`` selects the stream: "original", "tuned" or "interwoven".
    ``model.skip_threshold`` lets a query whose gate is decided continue with one stream (`imsm.models.siamese.skip`).
    ``model.kl_regularizer`` adds KL to the original model to the training loss; None adds nothing.
    ``model.token_weight`` weights the tokens of the training loss (`imsm.models.siamese.token_weights`).
    ``adapted`` is the backbone with the adapter's layers; ``gate`` is None without interweaving.
    """

    config_class = SiameseConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # read by Trainer, which then passes num_items_in_batch

    def __init__(self, config: SiameseConfig, adapted: nn.Module, gate: nn.Module | None = None) -> None:
        super().__init__(config)
        self.adapted = adapted
        self.gate = gate
        self.streams = StreamRunner(adapted, find_decoder(self.backbone))
        self.kl_regularizer: KLRegularizer | None = None
        self.token_weight: TokenWeight | None = None
        self.generation_config = self.backbone.generation_config
        self.stream = config.stream  # type: ignore[assignment]
        positions = position_limit(self.backbone.config)
        virtual = self.streams.virtual_tokens
        # tokens that fit into the backbone's positions; None without a limit
        self.max_positions = positions if positions is None or virtual is None else positions - virtual.count
        self.register_forward_pre_hook(_prepare_forward, with_kwargs=True)

    @property
    def backbone(self) -> PreTrainedModel:
        """The causal language model, including the adapter's layers."""
        inner = self.adapted.get_base_model() if isinstance(self.adapted, PeftModel) else self.adapted
        return cast("PreTrainedModel", inner)

    @property
    def base_model(self) -> Callable[..., SiameseOutput]:  # type: ignore[override]
        """Everything before the head, as a function with the arguments of `forward`; called by TRL's trainers."""
        # of the class: TRL replaces the instance's forward, and Accelerate's autocast cannot be entered twice
        return partial(type(self).forward, self, return_last_hidden_state=True)

    @property
    def _gate(self) -> nn.Module:
        assert self.gate is not None
        return self.gate

    @property
    def stream(self) -> Stream:
        """The selected stream: "original", "tuned" or "interwoven"."""
        return self._stream

    @stream.setter
    def stream(self, stream: Stream) -> None:
        available = self.available_streams()
        if stream not in available:
            raise ValueError(f"stream={stream!r}: not available in this model; choose from {', '.join(available)}")
        self._stream = stream

    @property
    def skip_threshold(self) -> float | None:
        """Distance from 0 or 1 below which a query's gate is decided, in (0, 0.5); None: always both streams.

        In eval mode only; losses and `base_model` always read both streams.
        """
        return cast("float | None", self.config.skip_threshold)

    @skip_threshold.setter
    def skip_threshold(self, threshold: float | None) -> None:
        self.config.skip_threshold = check_threshold(threshold)

    def available_streams(self) -> tuple[Stream, ...]:
        """Return the streams of this model; the interwoven one needs an adapter and a gate."""
        if not self.streams.has_adapter:
            return STREAMS[:1]
        return STREAMS if self.gate is not None else STREAMS[:2]

    def get_input_embeddings(self) -> nn.Module:
        """Return the backbone's token embeddings."""
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the backbone's output projection, (V, D)."""
        return cast("nn.Module | None", self.backbone.get_output_embeddings())

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Any = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """Enable activation checkpointing; raise UserError for prefix tuning, which it breaks."""
        if self.streams.virtual_tokens is not None and self.streams.virtual_tokens.learns_key_values():
            raise UserError(CHECKPOINTING_ERROR)
        super().activation_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)
        if (activation_checkpointing_kwargs or {}).get("use_reentrant"):
            # reentrant checkpoints have no gradient if their input, here of frozen embeddings, has none
            self.enable_input_require_grads()

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return the numbers of trainable parameters and of all parameters."""
        counts = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(count for count, trainable in counts if trainable), sum(count for count, _ in counts)

    def print_trainable_parameters(self) -> None:
        """Print the numbers of trainable and of all parameters."""
        trainable, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")

    def merge_and_unload(self) -> PreTrainedModel:
        """Merge the tuned stream into the backbone's weights; return the plain transformers model.

        The backbone is changed in place and returned, so this model cannot be used afterwards. With the original
        stream selected, the adapter is removed without merging.

        Raises:
            UserError: the interwoven stream is selected, or the method cannot be merged.
        """
        self.streams.guard.check()
        if self.stream == "interwoven":
            raise UserError(
                "stream='interwoven': its gate depends on the tokens, so no plain model computes it; save it with "
                "save_pretrained, or select model.stream='tuned' to merge the adapter alone"
            )
        if not isinstance(self.adapted, PeftModel):
            return self.backbone
        method = self.adapted.active_peft_config.peft_type.value
        try:
            merge = self.adapted.unload if self.stream == "original" else self.adapted.merge_and_unload
            return cast("PreTrainedModel", merge())
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
            raise UserError(
                f"stream={self.stream!r}: {method} cannot be merged into the backbone's weights "
                f"({first_line(error)}); save the adapter with save_pretrained"
            ) from error

    def check_length(self, tokens: torch.Tensor, mask: torch.Tensor | None, *, max_new_tokens: int = 0) -> None:
        """Raise UserError if tokens (B, T, ...), without padding, exceed the backbone's positions.

        ``mask`` (B, past + T) is the attention mask; ``max_new_tokens`` may follow.
        """
        is_mask = isinstance(mask, torch.Tensor) and mask.ndim == 2
        length = mask.shape[1] if is_mask else tokens.shape[1]  # type: ignore[union-attr]
        if self.max_positions is None or length + max_new_tokens <= self.max_positions:
            return
        if is_mask:
            # read on the device only here, because padding rarely matters
            length = int(mask.sum(dim=1).max())  # type: ignore[union-attr]
        if length + max_new_tokens > self.max_positions:
            added = f" and {max_new_tokens} new ones" if max_new_tokens else ""
            raise UserError(
                f"input_ids: {length} tokens{added} exceed the {self.max_positions} positions of the backbone; "
                "shorten the prompt, or in a run set data.max_prompt_tokens or data.max_new_tokens"
            )

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: backbone, adapter and gate are already initialized."""

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
        original_hidden_states: torch.Tensor | None = None,
        original_query: torch.Tensor | None = None,
        tuned_hidden_states: torch.Tensor | None = None,
        tuned_query: torch.Tensor | None = None,
        gate_target: float | None = None,
        objective: Objective = "target",
        return_last_hidden_state: bool = False,
    ) -> SiameseOutput:
        """Run the selected stream; raise ValueError if arguments contradict each other.

        Args:
            input_ids: (B, T).
            attention_mask: 1 on real tokens, (B, past + T).
            position_ids: (B, T); counted from the mask by default, so padding can be anywhere. With labels and without
                a mask a position 0 begins another sequence of the row (`imsm.models.siamese.labels`).
            past_key_values: a cache for the selected stream, see `new_cache`.
            inputs_embeds: (B, T, D), in place of ``input_ids``.
            labels: (B, T), -100 without a loss. Gate and head run at label positions only; the output has no logits.
                Labels, mask and positions may be on the CPU, which saves reading them on a GPU.
            query_mask: 1 on query positions, (B, T_query), from the start of the cached sequence; read by the
                interwoven stream only. Default: all before the first label, or the first chunk of a `DualStreamCache`;
                ValueError without both. With `skip_threshold` its last column is the end of the prompt.
            use_cache: create a cache if the backbone supports it and none is given.
            logits_to_keep: last n positions (0: all) or index tensor; ignored with labels.
            num_items_in_batch: divisor of the summed loss; default: the number of labels.
            return_dict: None or True; tuples are not supported.
            original_hidden_states: with labels, h_o where they are predicted, (N, D); skips the original stream.
            original_query: with ``original_hidden_states``, q_o, (B, D), if the gate reads it.
            tuned_hidden_states: with ``original_hidden_states``, h_t at the same positions; skips the tuned stream.
            tuned_query: with ``tuned_hidden_states``, q_t, (B, D), if the gate reads it.
            gate_target: with labels, interwoven stream: train the gate by the route loss with this label
                (`imsm.models.siamese.route_loss`) in place of ``loss``, which is None if the adapter is frozen.
            objective: with labels, "target": the training loss; of rehearsal's texts "ce": the cross-entropy alone, or
                "kl": the sum of KL(p_o || p) over the label positions.
            return_last_hidden_state: return the head's input, (B, T, D), in place of logits; not with labels.
        """
        if return_dict is False:
            raise ValueError("return_dict=False: only a SiameseOutput can be returned")
        if past_key_values is not None:
            self.check_cache(past_key_values)
        given = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "position_ids": position_ids}
        if labels is not None:
            if past_key_values is not None:
                raise ValueError("past_key_values: not supported with labels, which need complete sequences")
            cached = _CachedStreams(original_hidden_states, original_query, tuned_hidden_states, tuned_query)
            batch = self._labelled_batch(input_ids, labels, query_mask, **given)
            # the route loss differentiates the gate alone, and needs the queries
            positions = self._label_positions(batch, cached, objective, use_query_part=gate_target is None)
            return self._training_forward(positions, num_items_in_batch, gate_target, objective)
        inputs = decoder_inputs(input_ids, cache=past_key_values, **given)
        if original_hidden_states is not None:
            raise ValueError("original_hidden_states: only with labels, whose positions they belong to")
        if use_cache and past_key_values is None and self.config.supports_cache:
            past_key_values = self.new_cache()
        return self._inference_forward(inputs, past_key_values, query_mask, logits_to_keep, return_last_hidden_state)

    @torch.no_grad()
    def forward_streams(
        self,
        input_ids: torch.Tensor,
        *,
        attention_mask: torch.Tensor,
        past_key_values: DualStreamCache | None = None,
        query_mask: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> StreamsOutput:
        """Run both streams, whichever is selected, to compare them token by token.

        Arguments are as in `forward`; the logits are equal to its logits. With `skip_threshold` both streams are run
        too, and a decided query takes the logits of its stream.

        Raises:
            ValueError: the model has no adapter, or arguments contradict each other.
        """
        if not self.streams.has_adapter:
            raise ValueError("forward_streams: the model has no adapter, so there is one stream only")
        self.streams.guard.check(first_layer_only=past_key_values is not None)
        self.check_length(input_ids, attention_mask)
        cache = past_key_values
        inputs = decoder_inputs(input_ids, attention_mask=attention_mask, cache=cache)
        if self.stream != "interwoven":
            both = self.streams.both_hidden_states(inputs, cache=cache)
            original, tuned = (select_positions(each, logits_to_keep) for each in both)
            logits = self.head(original if self.stream == "original" else tuned)
            return StreamsOutput(logits, original, tuned, None)
        threshold = self.skip_threshold
        both, queries = self._run_both(inputs, cache, query_mask, needs_mask=threshold is not None)
        gate_inputs = _at_positions(both, queries, logits_to_keep)
        original, tuned, weights = *gate_inputs[:2], self._gate_weights(*gate_inputs)
        if threshold is None:
            return StreamsOutput(self._mix(*gate_inputs)[0], original, tuned, weights)
        hidden, gate = self._interweave(*gate_inputs)
        choices = self._choose_streams(both, queries, cache, query_mask, threshold)
        if choices is None and cache is not None and cache.choices is not None:
            choices = cache.choices[:, None].expand(both[0].shape[:2])
        if choices is not None:
            kept = select_positions(choices, logits_to_keep)
            hidden, gate = follow_choices(kept, hidden, gate, original=original, tuned=tuned)
            weights = torch.where((kept == BOTH)[..., None], weights, gate[..., None])
        return StreamsOutput(self.head(hidden), original, tuned, weights)

    def _inference_forward(
        self,
        inputs: dict[str, torch.Tensor],
        cache: Cache | None,
        query_mask: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
        return_last_hidden_state: bool,
    ) -> SiameseOutput:
        """Compute logits, or the head's input."""
        if self.stream != "interwoven":
            hidden = self.streams.hidden_states(inputs, stream=self.stream, cache=cache)
            hidden = select_positions(hidden, logits_to_keep)
            if return_last_hidden_state:
                return SiameseOutput(last_hidden_state=hidden, past_key_values=cache)
            return SiameseOutput(logits=self.head(hidden), past_key_values=cache)
        assert cache is None or isinstance(cache, DualStreamCache)
        # an output of the head's input is for losses
        threshold = None if self.training or return_last_hidden_state else self.skip_threshold
        choices = None
        if cache is not None and cache.split():
            hidden, gate = self._run_parts(inputs, cache, query_mask, logits_to_keep)
        else:
            both, queries = self._run_both(inputs, cache, query_mask, needs_mask=threshold is not None)
            gate_inputs = _at_positions(both, queries, logits_to_keep)
            if threshold is not None:
                choices = self._choose_streams(both, queries, cache, query_mask, threshold)
            if choices is None and not return_last_hidden_state:
                logits, gate = self._mix(*gate_inputs)
                return _inference_output(cache, gate, logits=logits)
            hidden, gate = self._interweave(*gate_inputs)
        if choices is not None:
            kept = select_positions(choices, logits_to_keep)
            hidden, gate = follow_choices(kept, hidden, gate, original=gate_inputs[0], tuned=gate_inputs[1])
            choices = choices[:, -1]
        if return_last_hidden_state:
            return _inference_output(cache, gate, last_hidden_state=hidden)
        return _inference_output(cache, gate, logits=self.head(hidden), choices=choices)

    def _run_both(
        self,
        inputs: dict[str, torch.Tensor],
        cache: DualStreamCache | None,
        query_mask: torch.Tensor | None,
        *,
        needs_mask: bool = False,
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], Sequence[torch.Tensor | None]]:
        """Run both streams; return h_o and h_t, (B, T, D), and the query arguments of `_mix`.

        The latter are causal, (B, T, D), or those of a complete query, (B, 1, ...). ``needs_mask``: read the query
        mask even if the gate does not.
        """
        if not self._gate.reads_query:
            if needs_mask:
                query_mask_of_chunk(inputs, query_mask=query_mask, cache=cache)
            return self.streams.both_hidden_states(inputs, cache=cache), (None, None)
        # before the decoder runs, which advances the cache
        chunk_query_mask = query_mask_of_chunk(inputs, query_mask=query_mask, cache=cache)
        freeze = cache is not None and cache.query_complete and not torch.is_grad_enabled()
        frozen = cache.frozen_query if cache is not None and freeze else None
        both = self.streams.both_hidden_states(inputs, cache=cache)
        if frozen is not None:
            return both, frozen
        causal = self._pool_queries(*both, chunk_query_mask, cache)
        if cache is None or not freeze:
            return both, causal
        cache.frozen_query = self._freeze_query(*(select_positions(each, 1) for each in causal))
        return both, cache.frozen_query

    def _run_parts(
        self,
        inputs: dict[str, torch.Tensor],
        cache: DualStreamCache,
        query_mask: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run each part of a decided batch with its streams; return h (B, T, D) and the original's weight (B, T)."""
        # only to compare the query with that of the cached positions
        cache.next_query_mask(query_mask, tokens=inputs["position_ids"])

        def run(part: CachePart, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            if isinstance(part.cache, DualStreamCache):
                return self._interweave(*_at_positions(*self._run_both(inputs, part.cache, None), logits_to_keep))
            hidden = self.streams.hidden_states(inputs, stream=CHOICES[part.choice], cache=part.cache)
            hidden = select_positions(hidden, logits_to_keep)
            weight = hidden.new_full(hidden.shape[:-1], float(part.choice == ORIGINAL), dtype=torch.float32)
            return hidden, weight

        parts = cache.split()
        if len(parts) == 1:
            return run(parts[0], inputs)
        results = [run(part, {name: value[part.rows] for name, value in inputs.items()}) for part in parts]
        order = torch.cat([part.rows for part in parts]).argsort()
        hidden, gate = (torch.cat(each)[order] for each in zip(*results, strict=True))
        return hidden, gate

    def _choose_streams(
        self,
        both: tuple[torch.Tensor, torch.Tensor],
        queries: Sequence[torch.Tensor | None],
        cache: DualStreamCache | None,
        query_mask: torch.Tensor | None,
        threshold: float,
    ) -> torch.Tensor | None:
        """Return the choice at each position (B, T) if the prompt ends in this pass, else None.

        The cache keeps that of each row.
        """
        mask = query_mask if cache is None else cache.query_mask
        assert mask is not None
        length = both[0].shape[1]
        start = 0 if cache is None else cache.get_seq_length() - length
        end = mask.shape[1] - 1 - start
        if not 0 <= end < length:
            return None
        positions = torch.arange(length, device=both[0].device)
        _, gate = self._interweave(*_at_positions(both, queries, positions[end : end + 1]))
        choices = choose_streams(gate[:, 0], threshold=threshold)
        if cache is not None:
            cache.decide(choices, gate[:, 0])
        return torch.where(positions >= end, choices[:, None], BOTH)

    def _pool_queries(
        self, original: torch.Tensor, tuned: torch.Tensor, query_mask: torch.Tensor, cache: DualStreamCache | None
    ) -> list[torch.Tensor]:
        """Return q_o and q_t as each position sees them (eq. 2, 3), each (B, T, D)."""
        states = cache.queries if cache is not None else None
        pooled = [
            pool_causal(hidden, query_mask, pooling=self.config.pooling, before=state)
            for hidden, state in zip((original, tuned), states or (None, None), strict=True)
        ]
        if cache is not None:
            cache.queries = (pooled[0][1], pooled[1][1])
        return [queries for queries, _ in pooled]

    def _freeze_query(
        self, query_original: torch.Tensor, query_tuned: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the query arguments of `_mix` for a complete query, computed once per answer."""
        part = self._query_part(query_original, query_tuned)
        return (query_original, query_tuned) if part is None else (None, None, part)

    def _query_part(self, query_original: torch.Tensor, query_tuned: torch.Tensor) -> torch.Tensor | None:
        """Return the query's share of the gate's R features, (..., R); None if the gate has none."""
        query_part = getattr(self._gate, "query_part", None)
        return None if query_part is None else cast("torch.Tensor | None", query_part(query_original, query_tuned))

    def _training_forward(
        self,
        positions: _LabelPositions,
        num_items_in_batch: torch.Tensor | int | None,
        gate_target: float | None,
        objective: Objective,
    ) -> SiameseOutput:
        """Compute the loss; gate and head run at label positions only."""
        targets, original = positions.targets, positions.original
        if num_items_in_batch is None and not len(targets):
            raise ValueError("labels: all are -100, so no loss can be computed")
        num_items = len(targets) if num_items_in_batch is None else num_items_in_batch
        hidden, gate, route_loss = positions.hidden, None, None
        if gate_target is not None:
            hidden, gate, route_sum = self._route(positions.gate_inputs, gate_target)
            route_loss = route_sum / num_items
            if hidden is None:
                return SiameseOutput(gate=gate, gate_mean=gate.mean(), route_loss=route_loss)
        elif hidden is None:
            hidden, gate = self._interweave(*positions.gate_inputs)  # type: ignore[arg-type]
        # not in evaluation: the validation loss stays the cross-entropy
        kl = self.kl_regularizer if self.training and original is not None and objective == "target" else None
        token_weight = self.token_weight if self.training and objective == "target" else None
        kl_sum = hidden.new_zeros((), dtype=torch.float32)

        def chunk_loss(rows: torch.Tensor, chunk: slice) -> torch.Tensor:
            nonlocal kl_sum
            logits = self.head(rows)
            if objective == "kl":
                assert original is not None
                with torch.no_grad():
                    original_logits = self.head(original[chunk])
                return divergence(original_logits, logits)
            # float32: a log-softmax over V entries is too coarse in half precision
            loss = _cross_entropy_sum(logits.float(), targets[chunk], token_weight)
            if kl is None or original is None:
                return loss
            with torch.no_grad():
                original_logits = self.head(original[chunk])
            chunk_kl = divergence(original_logits, logits, masked_tokens=targets[chunk] if kl.mask_target else None)
            kl_sum = kl_sum + chunk_kl.detach()
            return loss + kl.weight * chunk_kl

        chunk_size = logit_chunk_size(self.backbone)
        if chunk_size is None or len(targets) <= chunk_size:
            loss_sum = chunk_loss(hidden, slice(None))
        else:
            loss_sum = chunked_loss_sum(chunk_loss, hidden, chunk_size=chunk_size)
        return SiameseOutput(
            loss=loss_sum / num_items,
            gate=gate,
            gate_mean=None if gate is None else gate.mean(),
            divergence=None if kl is None else kl_sum / num_items,
            route_loss=route_loss,
        )

    def _route(
        self, gate_inputs: tuple[torch.Tensor | None, ...], label: float
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Return h (N, D), or None for a frozen adapter, the mean weight (N,), and the summed route loss.

        The mix has no gradient with respect to the gate.
        """
        original, tuned, *queries = gate_inputs
        assert original is not None and tuned is not None
        with_query = getattr(self._gate, "with_query", None)
        if with_query is not None:
            original, tuned = with_query(original, tuned, *queries)
        loss, weight = route_loss_sum(self._gate, original, tuned, *queries, label=label)
        trained = any(parameter.requires_grad for parameter in self.adapted.parameters())
        return interweave(original, tuned, weight) if trained else None, weight.mean(dim=-1), loss

    @torch.no_grad()
    def log_likelihood(
        self,
        input_ids: torch.Tensor,
        *,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        query_mask: torch.Tensor | None = None,
        chunk_size: int = 256,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ln p of each answer (B,), and whether greedy decoding gives the answer (B,).

        Arguments are as in `forward`; ``labels`` (B, T) are the answers' tokens, -100 elsewhere.
        Logits of ``chunk_size`` positions are in memory at once.
        """
        self.streams.guard.check()
        batch = self._labelled_batch(input_ids, labels, query_mask, attention_mask=attention_mask)
        positions = self._label_positions(batch)
        rows, targets = positions.rows, positions.targets
        choices = self._choices_at_labels(positions)
        total = torch.zeros(len(input_ids), dtype=torch.float32, device=input_ids.device)
        misses = torch.zeros_like(total)
        for start in range(0, len(targets), chunk_size):
            chunk = slice(start, start + chunk_size)
            if positions.hidden is not None:
                logits = self.head(positions.hidden[chunk])
            elif choices is None:
                logits, _ = self._mix(*(None if x is None else x[chunk] for x in positions.gate_inputs))  # type: ignore[arg-type]
            else:
                original, tuned, *queries = (None if x is None else x[chunk] for x in positions.gate_inputs)
                assert original is not None and tuned is not None
                mixed = self._interweave(original, tuned, *queries)
                hidden, _ = follow_choices(choices[chunk], *mixed, original=original, tuned=tuned)
                logits = self.head(hidden)
            losses = functional.cross_entropy(logits.float(), targets[chunk], reduction="none")
            # index_add: an answer may continue in the next chunk
            total.index_add_(0, rows[chunk], -losses)
            misses.index_add_(0, rows[chunk], (logits.argmax(dim=-1) != targets[chunk]).float())
        return total, misses == 0

    def _choices_at_labels(self, positions: _LabelPositions) -> torch.Tensor | None:
        """Return the choice at each label (N,), decided at the first label of its row; None without skipping."""
        if self.skip_threshold is None or self.training or not (positions.gate_inputs and len(positions.rows)):
            return None
        # rows are ascending, so each row's labels are consecutive
        _, row_of_label, counts = positions.rows.unique_consecutive(return_inverse=True, return_counts=True)
        first = counts.cumsum(dim=0) - counts
        inputs = (None if each is None else each[first] for each in positions.gate_inputs)
        _, gate = self._interweave(*inputs)  # type: ignore[arg-type]
        return choose_streams(gate, threshold=self.skip_threshold)[row_of_label]

    def _labelled_batch(
        self,
        input_ids: torch.Tensor | None,
        labels: torch.Tensor,
        query_mask: torch.Tensor | None,
        *,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> _LabelledBatch:
        """Return the decoder's inputs, and the indices of labels and queries."""
        inputs: dict[str, Any] = labelled_inputs(
            input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            keep_mask=self.streams.virtual_tokens is not None,
        )
        device = next(iter(inputs.values())).device
        sequences = masked = None
        # without a choice of positions each row is one sequence
        if position_ids is not None and attention_mask is None and bool((position_ids[:, 1:] == 0).any()):
            sequences = sequence_numbers(position_ids)
            arguments, masked = attention_arguments(self.streams.decoder, position_ids, sequences, device=device)
            inputs |= arguments
        index = index_labels(labels, sequences=sequences, device=device)
        queries = None
        if self.stream == "interwoven" and self._gate.reads_query:
            mask = None if attention_mask is None else attention_mask.to(labels.device)
            queries = index_queries(
                labels, attention_mask=mask, query_mask=query_mask, sequences=sequences, device=device
            )
        return _LabelledBatch(inputs, index, queries, packed=sequences is not None, masked_sequences=masked)

    def _label_positions(
        self,
        batch: _LabelledBatch,
        cached: _CachedStreams | None = None,
        objective: Objective = "target",
        *,
        use_query_part: bool = False,
    ) -> _LabelPositions:
        """Run the streams and gather hidden states and queries at the N label positions.

        A stream whose hidden states are ``cached`` is not run. ``use_query_part``: the query's share of the gate's
        features is computed per sequence, (S, R), and gathered in place of the queries (N, D).
        """
        index = batch.index
        regularized = objective == "target" and self.kl_regularizer is not None and self.training
        with_kl = self.stream == "tuned" and (regularized or objective == "kl")
        cached = cached or _CachedStreams()
        original, tuned = self._run_labelled(batch, cached, with_kl=with_kl)
        if self.stream != "interwoven" and not with_kl:
            hidden = original if tuned is None else tuned
            assert hidden is not None
            return _LabelPositions(index.rows, index.targets, hidden=hidden[index.rows, index.columns])

        def at_labels(hidden: torch.Tensor | None, given: torch.Tensor | None, name: str) -> torch.Tensor:
            if hidden is not None:
                return hidden[index.rows, index.columns]
            assert given is not None
            if len(given) != len(index.targets):
                raise ValueError(f"{name}_hidden_states: {len(given)} rows for {len(index.targets)} labels")
            return given

        original_rows = at_labels(original, cached.original, "original")
        tuned_rows = at_labels(tuned, cached.tuned, "tuned")
        if with_kl:
            return _LabelPositions(index.rows, index.targets, hidden=tuned_rows, original=original_rows)
        queries: tuple[torch.Tensor | None, ...] = (None, None)
        if (query := batch.queries) is not None:

            def pooled(hidden: torch.Tensor | None, given: torch.Tensor | None, name: str) -> torch.Tensor:
                if hidden is not None:
                    return query.pool(hidden, pooling=self.config.pooling)
                if given is None:
                    raise ValueError(f"{name}_query=None: the gate reads it; pass it with {name}_hidden_states")
                return given

            query_original = pooled(original, cached.query_original, "original")
            query_tuned = pooled(tuned, cached.query_tuned, "tuned")
            part = self._query_part(query_original, query_tuned) if use_query_part else None
            queries = (query_original, query_tuned) if part is None else (None, None, part)
            queries = tuple(None if each is None else each[index.sequences] for each in queries)
        return _LabelPositions(
            index.rows, index.targets, original=original_rows, gate_inputs=(original_rows, tuned_rows, *queries)
        )

    def _run_labelled(
        self, batch: _LabelledBatch, cached: _CachedStreams, *, with_kl: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return h_o and h_t (B, T, D); None for a stream that is not needed or ``cached``."""
        inputs = batch.inputs
        reads_both = self.stream == "interwoven" or with_kl
        with known_sequences(batch.masked_sequences):
            if reads_both and cached.original is None:
                return self.streams.both_hidden_states(inputs, cache=None, two_passes=batch.packed)
            if self.stream == "original":
                return self.streams.hidden_states(inputs, stream="original", cache=None), None
            if reads_both and cached.tuned is not None:
                return None, None
            return None, self.streams.hidden_states(inputs, stream="tuned", cache=None)

    def _mix(
        self, original: torch.Tensor, tuned: torch.Tensor, *queries: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (..., V) of eq. 4-7, and the original's weight (...), mean over D.

        ``queries`` are q_o and q_t, or None, None and the gate's query part. Untrained baselines
        override this method to combine the streams in another way.
        """
        hidden, gate = self._interweave(original, tuned, *queries)
        return self.head(hidden), gate

    def _interweave(
        self, original: torch.Tensor, tuned: torch.Tensor, *queries: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return h (..., D) of eq. 4-6, and the original's weight (...), mean over D."""
        hidden, gate = apply_gate(self._gate, original, tuned, *queries)
        return hidden, gate.detach().mean(dim=-1)

    def _gate_weights(
        self, original: torch.Tensor, tuned: torch.Tensor, *queries: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the original's weights g, (..., D) or (..., 1); baselines that override `_mix` override this too."""
        return apply_gate(self._gate, original, tuned, *queries)[1].detach()

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the backbone's logits (..., V) of hidden states (..., D), adapter off (eq. 7)."""
        batched = hidden if hidden.ndim == 3 else hidden[None]
        # for rows of a strided slice, torch on a CPU would copy the head's weight for each of them
        batched = batched.contiguous()
        with self.streams.head_disabled():
            logits = apply_lm_head(self.backbone, self.streams.decoder, batched)
        return logits if hidden.ndim == 3 else logits[0]


def _inference_output(cache: Cache | None, gate: torch.Tensor, **values: torch.Tensor | None) -> SiameseOutput:
    """Return an output of the interwoven stream; ``choices`` are the cache's if there is one."""
    output = SiameseOutput(past_key_values=cache, gate=gate, gate_mean=gate.mean(), **values)
    if isinstance(cache, DualStreamCache):
        output.choices = cache.choices
    return output


def _at_positions(
    both: tuple[torch.Tensor, torch.Tensor], queries: Sequence[torch.Tensor | None], logits_to_keep: int | torch.Tensor
) -> list[Any]:
    """Return the arguments of `_mix` at some positions; the query of all positions, (B, 1, ...), is kept."""
    length = both[0].shape[1]
    return [
        each if each is None or each.shape[1] != length else select_positions(each, logits_to_keep)
        for each in (*both, *queries)
    ]


def _cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor, weight: TokenWeight | None) -> torch.Tensor:
    """Return the sum of the tokens' cross-entropies, weighted if there is a weight; logits (N, V) in float32."""
    if weight is None:
        return functional.cross_entropy(logits, targets, reduction="sum")
    return weighted_sum(weight, logits, functional.cross_entropy(logits, targets, reduction="none"))


def _prepare_forward(
    model: SiameseForCausalLM, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Check the adapter and the length of the input, and translate a call of TRL's `SFTTrainer`.

    SFTTrainer replaces ``forward`` by one that calls `base_model` without labels and applies the head itself. The
    query of such a call is taken from the labels here, as `forward` does.

    Raises:
        ValueError: packed or padding-free batches, whose rows hold several examples.
        UserError: the adapter was changed through PEFT, or the input exceeds the backbone's positions.
    """
    # a step of decoding takes only milliseconds
    model.streams.guard.check(first_layer_only=kwargs.get("past_key_values") is not None)
    tokens = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if tokens is not None and mask is None and positions is not None and kwargs.get("labels") is not None:
        # packed rows are longer than their sequences
        model.check_length(positions[:, : int(positions.max()) + 1], None)
    elif tokens is not None:
        model.check_length(tokens, mask)
    if not kwargs.get("fused_lm_head"):
        return args, kwargs
    labels = kwargs["labels"]
    if mask is None:
        raise ValueError("packing, padding_free: rows with several examples have no single query; set both to False")
    if model.stream == "interwoven" and model._gate.reads_query:
        query = query_mask_from_labels(labels, attention_mask=mask, query_mask=kwargs.get("query_mask"))
        return args, {**kwargs, "query_mask": query}
    return args, kwargs


AutoConfig.register(SiameseConfig.model_type, SiameseConfig, exist_ok=True)
AutoModelForCausalLM.register(SiameseConfig, SiameseForCausalLM, exist_ok=True)
