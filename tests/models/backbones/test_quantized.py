"""A backbone in 4 bits: the original stream is the quantized model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imsm.models.backbones.loading import load_backbone
from imsm.models.builder import build_model
from imsm.models.siamese.inputs import decoder_inputs
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.utils.errors import UserError
from tests.helpers.tiny_backbone import save_backbone
from tests.models.siamese.tiny import ADAPTERS, QUERY_GATE, perturb, prompts

functional = pytest.importorskip("bitsandbytes.functional")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = " ".join(f"w{number}" for number in range(93))
    return save_backbone(tmp_path_factory.mktemp("tiny"), texts=[words], hidden_size=64, intermediate_size=128)


def build(folder: Path, method: str = "lora") -> SiameseForCausalLM:
    backbone = {"name_or_path": str(folder), "quantization": "nf4"}
    options = {"gate": QUERY_GATE, "pooling": "mean", "stream": "interwoven", "seed": 0}
    return build_model(backbone=backbone, adapter=ADAPTERS[method](), **options)


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.tensor([row[:4] for row in prompts(batch=3)])
    return decoder_inputs(ids, attention_mask=torch.ones_like(ids))


def test_a_layer_computes_with_its_dequantized_weight_in_every_mode(folder: Path) -> None:
    quantized, plain = (load_backbone(name_or_path=str(folder), quantization=each) for each in ("nf4", None))
    layer, exact = (model.model.layers[0].mlp.down_proj for model in (quantized, plain))
    weight = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert 0 < (weight - exact.weight).abs().max() < 0.3 * exact.weight.abs().max()
    x = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(0), requires_grad=True)
    output = layer(x)
    assert torch.equal(output, x @ weight.T)
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    torch.testing.assert_close(gradient, 2 * output.detach() @ weight)
    for mode in (True, False):
        quantized.train(mode)
        with torch.no_grad():
            assert torch.equal(layer(x), output)
    # not the head, whose logits both streams share
    assert type(quantized.lm_head) is torch.nn.Linear


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_a_dual_batch_equals_two_passes(folder: Path, method: str) -> None:
    model = build(folder, method)
    perturb(model)
    streams = model.streams
    with torch.no_grad():
        original, tuned = (streams.hidden_states(inputs(), stream=each, cache=None) for each in ("original", "tuned"))
        assert not torch.allclose(original, tuned, atol=1e-2)
        assert streams.batch_both
        both = streams.both_hidden_states(inputs(), cache=None)
    for found, expected in zip(both, (original, tuned), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    plain = load_backbone(name_or_path=str(folder), quantization="nf4")
    with torch.no_grad():
        assert torch.equal(plain.model(**inputs(), use_cache=False).last_hidden_state, original)


def test_before_the_first_step_both_streams_are_bit_equal_with_and_without_gradients(folder: Path) -> None:
    model = build(folder).train()
    original, tuned = model.streams.both_hidden_states(inputs(), cache=None)
    assert tuned.requires_grad and torch.equal(original, tuned)


def test_a_saved_model_loads_the_quantized_backbone_again(folder: Path, tmp_path: Path) -> None:
    model = build(folder)
    perturb(model)
    model.save_pretrained(tmp_path)
    loaded = SiameseForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.backbone["quantization"] == "nf4"
    ids = torch.tensor([prompts(batch=1)[0]])
    with torch.no_grad():
        assert torch.equal(
            loaded(ids, query_mask=torch.ones_like(ids)).logits, model(ids, query_mask=torch.ones_like(ids)).logits
        )


def test_an_unknown_quantization_or_a_missing_library_is_an_input_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"backbone.quantization=int3: is unknown; set nf4, or null"):
        load_backbone(name_or_path=str(folder), quantization="int3")
    monkeypatch.setattr("imsm.models.backbones.loading.importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"backbone.quantization=nf4: requires bitsandbytes; pip install .*quantization"
    ):
        load_backbone(name_or_path=str(folder), quantization="nf4")
