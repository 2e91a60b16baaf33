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

from imsm.data.batching import IGNORE_INDEX
from imsm.models.backbones.positions import position_limit
from imsm.models.siamese.chunked_loss import chunked_loss_sum, logit_chunk_size
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.decoder import find_decoder
from imsm.models.siamese.gate import apply_gate
from imsm.models.siamese.generation import SiameseGenerationMixin
from imsm.models.siamese.inputs import decoder_inputs, query_mask_from_labels, query_mask_of_chunk, select_positions
from imsm.models.siamese.kl import KLRegularizer, divergence
from imsm.models.siamese.kv_cache import DualStreamCache
from imsm.models.siamese.lm_head import apply_lm_head
from imsm.models.siamese.query_pooling import pool, pool_causal
from imsm.models.siamese.serialization import SiameseSerializationMixin
from imsm.models.siamese.streams import STREAMS, Stream, StreamRunner
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
        last_hidden_state: the head's input, (B, T, D), in place of ``logits`` if it was requested.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    gate: torch.Tensor | None = None
    gate_mean: torch.Tensor | None = None
    divergence: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


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
    SiameseSerializationMixin, SiameseGenerationMixin, PreTrainedModel, GenerationMixin
):
    """A frozen language model, the same model with an adapter, and the gate between them.

    ``model.stream`` selects the stream: "original", "tuned" or "interwoven".
    ``model.kl_regularizer`` adds KL to the original model to the training loss; None adds nothing.
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
        return_last_hidden_state: bool = False,
    ) -> SiameseOutput:
        """Run the selected stream; raise ValueError if arguments contradict each other.

        Args:
            input_ids: (B, T).
            attention_mask: 1 on real tokens, (B, past + T).
            position_ids: (B, T); counted from the mask by default, so padding can be anywhere.
            past_key_values: a cache for the selected stream, see `new_cache`.
            inputs_embeds: (B, T, D), in place of ``input_ids``.
            labels: (B, T), -100 without a loss. Gate and head run at label positions only; the output has no logits.
            query_mask: 1 on query positions, (B, T_query), from the start of the cached sequence; read by the
                interwoven stream only. Default: all before the first label, or the first chunk of a `DualStreamCache`;
                ValueError without both.
            use_cache: create a cache if the backbone supports it and none is given.
            logits_to_keep: last n positions (0: all) or index tensor; ignored with labels.
            num_items_in_batch: divisor of the summed loss; default: the number of labels.
            return_dict: None or True; tuples are not supported.
            original_hidden_states: with labels, h_o where they are predicted, (N, D); skips the original stream.
            original_query: with ``original_hidden_states``, q_o, (B, D), if the gate reads it.
            return_last_hidden_state: return the head's input, (B, T, D), in place of logits; not with labels.
        """
        if return_dict is False:
            raise ValueError("return_dict=False: only a SiameseOutput can be returned")
        if past_key_values is not None:
            self.check_cache(past_key_values)
        inputs = decoder_inputs(
            input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values,
        )
        if labels is not None:
            if past_key_values is not None:
                raise ValueError("past_key_values: not supported with labels, which need complete sequences")
            cached = None if original_hidden_states is None else (original_hidden_states, original_query)
            return self._training_forward(inputs, labels, query_mask, num_items_in_batch, cached)
        if original_hidden_states is not None:
            raise ValueError("original_hidden_states: only with labels, whose positions they belong to")
        if use_cache and past_key_values is None and self.config.supports_cache:
            past_key_values = self.new_cache()
        return self._inference_forward(inputs, past_key_values, query_mask, logits_to_keep, return_last_hidden_state)

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
        queries: Sequence[torch.Tensor | None] = (None, None)
        if self._gate.reads_query:
            # before the decoder runs, which advances the cache
            chunk_query_mask = query_mask_of_chunk(inputs, query_mask=query_mask, cache=cache)
            freeze = cache is not None and cache.query_complete and not torch.is_grad_enabled()
            frozen = cache.frozen_query if cache is not None and freeze else None
            both = self.streams.both_hidden_states(inputs, cache=cache)
            if frozen is None:
                causal = self._pool_queries(*both, chunk_query_mask, cache)
                if cache is not None and freeze:
                    cache.frozen_query = frozen = self._freeze_query(*(select_positions(each, 1) for each in causal))
            queries = frozen or [select_positions(each, logits_to_keep) for each in causal]
        else:
            both = self.streams.both_hidden_states(inputs, cache=cache)
        original, tuned = (select_positions(hidden, logits_to_keep) for hidden in both)
        if return_last_hidden_state:
            hidden, gate = self._interweave(original, tuned, *queries)
            output = SiameseOutput(last_hidden_state=hidden)
        else:
            logits, gate = self._mix(original, tuned, *queries)
            output = SiameseOutput(logits=logits)
        output.past_key_values, output.gate, output.gate_mean = cache, gate, gate.mean()
        return output

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
        query_part = getattr(self._gate, "query_part", None)
        part = None if query_part is None else query_part(query_original, query_tuned)
        return (query_original, query_tuned) if part is None else (None, None, part)

    def _training_forward(
        self,
        inputs: dict[str, torch.Tensor],
        labels: torch.Tensor,
        query_mask: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
        cached: tuple[torch.Tensor, torch.Tensor | None] | None,
    ) -> SiameseOutput:
        """Compute the loss; gate and head run at label positions only."""
        positions = self._label_positions(inputs, labels, query_mask, cached)
        targets, original = positions.targets, positions.original
        if num_items_in_batch is None and not len(targets):
            raise ValueError("labels: all are -100, so no loss can be computed")
        num_items = len(targets) if num_items_in_batch is None else num_items_in_batch
        hidden, gate = positions.hidden, None
        if hidden is None:
            hidden, gate = self._interweave(*positions.gate_inputs)  # type: ignore[arg-type]
        # not in evaluation: the validation loss stays the cross-entropy
        kl = self.kl_regularizer if self.training and original is not None else None
        kl_sum = hidden.new_zeros((), dtype=torch.float32)

        def chunk_loss(rows: torch.Tensor, chunk: slice) -> torch.Tensor:
            nonlocal kl_sum
            logits = self.head(rows)
            # float32: a log-softmax over V entries is too coarse in half precision
            loss = functional.cross_entropy(logits.float(), targets[chunk], reduction="sum")
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
        )

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
        inputs = decoder_inputs(input_ids, attention_mask=attention_mask)
        positions = self._label_positions(inputs, labels, query_mask)
        rows, targets = positions.rows, positions.targets
        total = torch.zeros(len(input_ids), dtype=torch.float32, device=input_ids.device)
        misses = torch.zeros_like(total)
        for start in range(0, len(targets), chunk_size):
            chunk = slice(start, start + chunk_size)
            if positions.hidden is not None:
                logits = self.head(positions.hidden[chunk])
            else:
                logits, _ = self._mix(*(None if x is None else x[chunk] for x in positions.gate_inputs))  # type: ignore[arg-type]
            losses = functional.cross_entropy(logits.float(), targets[chunk], reduction="none")
            # index_add: an answer may continue in the next chunk
            total.index_add_(0, rows[chunk], -losses)
            misses.index_add_(0, rows[chunk], (logits.argmax(dim=-1) != targets[chunk]).float())
        return total, misses == 0

    def _label_positions(
        self,
        inputs: dict[str, torch.Tensor],
        labels: torch.Tensor,
        query_mask: torch.Tensor | None,
        cached: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    ) -> _LabelPositions:
        """Run the streams and gather hidden states and queries at the N label positions.

        With ``cached`` (h_o at these positions, q_o) the original stream is not run.
        """
        # shifted: the hidden state at position t predicts token t + 1
        rows, columns = torch.nonzero(labels[:, 1:] != IGNORE_INDEX, as_tuple=True)
        targets = labels[rows, columns + 1]
        with_kl = self.stream == "tuned" and self.kl_regularizer is not None and self.training
        if self.stream != "interwoven" and not with_kl:
            hidden = self.streams.hidden_states(inputs, stream=self.stream, cache=None)
            return _LabelPositions(rows, targets, hidden=hidden[rows, columns])
        if cached is None:
            original, tuned = self.streams.both_hidden_states(inputs, cache=None)
            original_rows = original[rows, columns]
        else:
            original_rows = cached[0]
            if len(original_rows) != len(targets):
                raise ValueError(f"original_hidden_states: {len(original_rows)} rows for {len(targets)} labels")
            tuned = self.streams.hidden_states(inputs, stream="tuned", cache=None)
        tuned_rows = tuned[rows, columns]
        if with_kl:
            return _LabelPositions(rows, targets, hidden=tuned_rows, original=original_rows)
        queries: tuple[torch.Tensor | None, ...] = (None, None)
        if self._gate.reads_query:
            query = query_mask_from_labels(labels, attention_mask=inputs.get("attention_mask"), query_mask=query_mask)
            pooling = self.config.pooling
            query_original = pool(original, query, pooling=pooling) if cached is None else cached[1]
            if query_original is None:
                raise ValueError("original_query=None: the gate reads it; pass it with original_hidden_states")
            queries = (query_original[rows], pool(tuned, query, pooling=pooling)[rows])
        return _LabelPositions(
            rows, targets, original=original_rows, gate_inputs=(original_rows, tuned_rows, *queries)
        )

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

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the backbone's logits (..., V) of hidden states (..., D), adapter off (eq. 7)."""
        batched = hidden if hidden.ndim == 3 else hidden[None]
        # for rows of a strided slice, torch on a CPU would copy the head's weight for each of them
        batched = batched.contiguous()
        with self.streams.adapter_disabled():
            logits = apply_lm_head(self.backbone, self.streams.decoder, batched)
        return logits if hidden.ndim == 3 else logits[0]


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
    if tokens is not None:
        model.check_length(tokens, kwargs.get("attention_mask"))
    if not kwargs.get("fused_lm_head"):
        return args, kwargs
    mask, labels = kwargs.get("attention_mask"), kwargs["labels"]
    if mask is None:
        raise ValueError("packing, padding_free: rows with several examples have no single query; set both to False")
    if model.stream == "interwoven" and model._gate.reads_query:
        query = query_mask_from_labels(labels, attention_mask=mask, query_mask=kwargs.get("query_mask"))
        return args, {**kwargs, "query_mask": query}
    return args, kwargs


AutoConfig.register(SiameseConfig.model_type, SiameseConfig, exist_ok=True)
AutoModelForCausalLM.register(SiameseConfig, SiameseForCausalLM, exist_ok=True)
