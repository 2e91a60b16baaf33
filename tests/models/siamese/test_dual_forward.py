"""A doubled batch reads each adapted weight once, and says the same as half by half."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from imsm.models.siamese.dual_forward import DualStreamLayer
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import StreamRunner
from imsm.studies.baselines.logit_mixing import build_mixing_model, mix_logits
from tests.models.siamese.tiny import ADAPTERS, padded, prompts, tiny_siamese

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def _inputs() -> dict[str, torch.Tensor]:
    ids, mask = padded(prompts(), side="left")
    return {"input_ids": ids, "attention_mask": mask}


def _rows_read(model: SiameseForCausalLM) -> tuple[Counter[str], Callable[[], None]]:
    """Counts the products with each adapted weight, by the layer's name."""
    counts: Counter[str] = Counter()
    names = {layer.base_layer: name for name, layer in _adapted(model)}
    plain = torch.nn.Linear.forward

    def counted(layer: torch.nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        if layer in names:
            counts[names[layer]] += 1
        return plain(layer, rows)

    torch.nn.Linear.forward = counted  # type: ignore[method-assign]

    def stop() -> None:
        torch.nn.Linear.forward = plain  # type: ignore[method-assign]

    return counts, stop


def _adapted(model: SiameseForCausalLM) -> list[tuple[str, torch.nn.Module]]:
    modules = model.named_modules()
    return [(name, module) for name, module in modules if hasattr(module, "base_layer")]


@pytest.mark.parametrize("method", ADAPTERS)
@torch.no_grad()
def test_shared_reading_equals_half_by_half(method: str) -> None:
    model, inputs = tiny_siamese(method=method), _inputs()
    together = model.streams.both_hidden_states(inputs, cache=None)
    model.streams.disable_sharing()
    apart = model.streams.both_hidden_states(inputs, cache=None)
    real = inputs["attention_mask"].bool()
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one[real], other[real], **CLOSE)
    assert not torch.allclose(apart[0][real], apart[1][real], atol=1e-2)


@pytest.mark.parametrize(("method", "twice"), [("lora", ()), ("adalora", ()), ("ia3", ("down",))])
@torch.no_grad()
def test_an_adapted_weight_is_read_once(method: str, twice: tuple[str, ...]) -> None:
    """But where the adapter works on the layer's input: (IA)^3 in the feed-forward part."""
    model, inputs = tiny_siamese(method=method), _inputs()
    model.streams.both_hidden_states(inputs, cache=None)  # a layer is found out by its first pass
    counts, stop = _rows_read(model)
    try:
        model.streams.both_hidden_states(inputs, cache=None)
    finally:
        stop()
    assert counts.keys() == {name for name, _ in _adapted(model)}
    for name, times in counts.items():
        assert times == (2 if any(part in name for part in twice) else 1), name


@torch.no_grad()
def test_a_layer_that_asks_twice_gets_the_same_answer_twice() -> None:
    """The first answer may be changed in place."""

    class Twice(torch.nn.Module):
        _disable_adapters = False

        def __init__(self, base_layer: torch.nn.Linear) -> None:
            super().__init__()
            self.base_layer = base_layer

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            first = self.base_layer(rows)
            if self._disable_adapters:
                return first
            first *= 3
            return first + self.base_layer(rows)

    torch.manual_seed(0)
    layer = Twice(torch.nn.Linear(4, 4))
    rows = torch.randn(2, 3, 4)
    with StreamRunner(layer, layer).dual_stream():
        both = layer(torch.cat([rows, rows]))
    torch.testing.assert_close(both[:2], layer.base_layer(rows))
    torch.testing.assert_close(both[2:], 4 * layer.base_layer(rows))


def test_gradients_go_through_a_doubled_batch_over_a_cache() -> None:
    gradients = []
    for apart in (False, True):
        model, inputs = tiny_siamese(method="adalora"), _inputs()
        if apart:
            model.streams.disable_sharing()
        tuned = model.streams.both_hidden_states(inputs, cache=model.new_cache())[1]
        tuned[inputs["attention_mask"].bool()].square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert gradients[0] and len(gradients[0]) == len(gradients[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@torch.no_grad()
def test_a_merged_adapter_is_unmerged_for_the_original() -> None:
    model, inputs = tiny_siamese(method="lora"), _inputs()
    expected = model.streams.both_hidden_states(inputs, cache=None)
    model.adapted.merge_adapter()
    real = inputs["attention_mask"].bool()
    for one, other in zip(expected, model.streams.both_hidden_states(inputs, cache=None), strict=True):
        torch.testing.assert_close(one[real], other[real], atol=1e-4, rtol=1e-4)


def test_a_variant_reads_as_the_probed_model_does() -> None:
    model = tiny_siamese(method="lora")
    model.streams.disable_sharing()
    made = build_mixing_model(model, mix_logits(0.5))
    counts, stop = _rows_read(model)
    try:
        with torch.no_grad():
            made.streams.both_hidden_states(_inputs(), cache=None)
    finally:
        stop()
    assert set(counts.values()) == {2}


@pytest.mark.parametrize("base", [torch.nn.Identity(), torch.nn.Dropout(0.5), torch.nn.Flatten(0)])
@torch.no_grad()
def test_what_a_layer_is_given_stays_as_it_is(base: torch.nn.Module) -> None:
    """A base layer may hand its input on: the residual reads the same tensor."""

    class Louder(torch.nn.Module):
        _disable_adapters = False

        def __init__(self) -> None:
            super().__init__()
            self.base_layer = base.eval()

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return 3 * self.base_layer(rows)

    layer = Louder()
    rows = torch.arange(4.0)
    halves = DualStreamLayer(layer, off=contextlib.nullcontext)  # type: ignore[arg-type]
    with halves.patched():
        found = layer(rows)
    assert found.tolist() == [0, 1, 6, 9] and halves.shares
    assert rows.tolist() == [0, 1, 2, 3]
