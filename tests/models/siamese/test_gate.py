"""The gate and its variants against the paper's equations."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from imsm.models.siamese.gate import INPUTS, Gate, apply_gate, build_gate, interweave
from imsm.utils.errors import UserError
from imsm.utils.paths import conf_folder
from tests.helpers.config import config as composed_config
from tests.models.siamese.tiny import decoded, prompts, tiny_siamese

BF16 = torch.bfloat16
MEAN_GATE = {"_target_": "imsm.models.siamese.gate.Gate", "inputs": [], "rank": None, "trainable": False}
TOKEN_GATE = {"_target_": "imsm.models.siamese.gate.Gate", "inputs": ["original", "tuned"], "rank": 4}


def hidden_states(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(2, 5, 8, generator=generator).to(dtype) for name in INPUTS}


def gate_values(gate: Gate, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return gate(given["original"], given["tuned"], given["query_original"], given["query_tuned"])


@pytest.mark.parametrize("granularity", ["vector", "scalar"])
@pytest.mark.parametrize("bias", [None, 1.5])
@pytest.mark.parametrize("inputs", [INPUTS, ("original", "tuned"), ("query_tuned",), ("tuned", "query_original")])
def test_gate_equals_its_equation(inputs: tuple[str, ...], bias: float | None, granularity: str) -> None:
    gate = Gate(hidden_size=8, inputs=inputs, rank=3, bias=bias, granularity=granularity)
    given = hidden_states()
    order = [name for name in INPUTS if name in inputs]  # the paper's order of concatenation
    together = torch.cat([given[name] for name in order], dim=-1)
    logit = together @ gate.down.weight.T @ gate.up.weight.T + (bias or 0.0)
    found = gate_values(gate, given)
    assert found.shape == (2, 5, 8 if granularity == "vector" else 1)
    torch.testing.assert_close(found, 1 / (1 + torch.exp(-logit)))


def test_inputs_are_concatenated_in_the_papers_order() -> None:
    gate = Gate(hidden_size=2, inputs=INPUTS, rank=1)
    with torch.no_grad():
        gate.down.weight.copy_(torch.tensor([[0, 0, 1, 0, 0, 0, 0, 0]]))  # h_o's first dimension
        gate.up.weight.fill_(1)
    given = {name: torch.full((1, 2), float(place)) for place, name in enumerate(INPUTS)}
    given["original"] = torch.tensor([[7.0, 5.0]])
    torch.testing.assert_close(gate_values(gate, given), torch.sigmoid(torch.tensor([[7.0, 7.0]])))


def test_gate_without_inputs_is_one_value() -> None:
    gate = Gate(hidden_size=8, inputs=[], rank=None, trainable=False)
    assert not any(p.requires_grad for p in gate.parameters())
    assert torch.equal(gate_values(gate, hidden_states()), torch.full((2, 5, 8), 0.5))
    learned = Gate(hidden_size=8, inputs=[], rank=None, granularity="scalar", bias=2.0)
    assert sum(p.numel() for p in learned.parameters() if p.requires_grad) == 1
    assert torch.equal(gate_values(learned, hidden_states()), torch.sigmoid(torch.full((2, 5, 1), 2.0)))


def test_dropout_affects_the_features_in_training_only() -> None:
    gate = Gate(hidden_size=8, inputs=INPUTS, rank=3, dropout=1.0).train()
    assert torch.equal(gate_values(gate, hidden_states()), torch.full((2, 5, 8), 0.5))
    assert not torch.equal(gate_values(gate.eval(), hidden_states()), torch.full((2, 5, 8), 0.5))


@pytest.mark.parametrize(
    "arguments",
    [
        {"inputs": ["orginal"], "rank": 2},
        {"inputs": ["original"], "rank": None},
        {"inputs": [], "rank": 2},
        {"inputs": ["original"], "rank": 2, "granularity": "matrix"},
    ],
)
def test_invalid_arguments_are_rejected(arguments: dict) -> None:
    with pytest.raises(ValueError):
        Gate(hidden_size=8, **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.float16])
def test_interweave_is_exact_at_0_at_1_and_for_equal_inputs(dtype: torch.dtype) -> None:
    given = hidden_states(dtype)
    original, tuned = 100 * given["original"], given["tuned"]
    for width in (8, 1):
        one = torch.ones(2, 5, width)
        assert torch.equal(interweave(original, tuned, one), original)
        assert torch.equal(interweave(original, tuned, 0 * one), tuned)
        for weight in (0.1, 0.3, 0.77):
            assert torch.equal(interweave(original, original.clone(), weight * one), original)


def test_interweave_weights_the_original_by_the_gate() -> None:
    given = hidden_states()
    gate = torch.rand(2, 5, 8, generator=torch.Generator().manual_seed(4))
    expected = gate * given["original"] + (1 - gate) * given["tuned"]
    torch.testing.assert_close(interweave(given["original"], given["tuned"], gate), expected)


@torch.no_grad()
def test_mean_gate_averages_both_streams() -> None:
    model = tiny_siamese("llama", "lora", gate=MEAN_GATE)
    ids = torch.tensor(prompts()[:1])  # needs no query mask, since the gate reads no query
    inputs = {"input_ids": ids}
    both = [model.streams.hidden_states(inputs, stream=s, cache=None) for s in ("original", "tuned")]
    torch.testing.assert_close(model(ids).logits, model.head(sum(both) / 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("gate", "architecture"), [*product((MEAN_GATE, TOKEN_GATE), ("llama", "gemma3"))])
@torch.no_grad()
def test_gate_without_query_generates(gate: dict, architecture: str) -> None:
    model = tiny_siamese(architecture, "ia3", gate=gate)
    row = prompts()[0]
    expected = list(row)
    for _ in range(6):
        expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert decoded(model, row, max_new_tokens=6) == expected[len(row) :]
    assert decoded(model, row, max_new_tokens=6, num_beams=2) == decoded(
        model, row, max_new_tokens=6, num_beams=2, use_cache=False
    )


def test_only_module_classes_are_built() -> None:
    gate = build_gate(_target_="imsm.models.siamese.gate.Gate", hidden_size=8, inputs=["tuned"], rank=2)
    assert isinstance(gate, Gate)
    for target in ("os.system", "imsm.models.siamese.gate.INPUTS", "imsm.models.siamese.gate.Gat", "nothing"):
        with pytest.raises(UserError, match=f"^gate._target_={target}: "):
            build_gate(_target_=target, hidden_size=8)


def composed(name: str, *overrides: str) -> Gate:
    """Build the gate of a yaml file as a run does, with hidden size 8."""
    config = composed_config("backbone=mini", f"gate={name}", *overrides)
    return build_gate(hidden_size=8, _target_=config.gate.target, **dict(config.gate.arguments())).eval()


def perturbed(gate: Gate) -> Gate:
    """Perturb the gate's parameters."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.add_(torch.randn_like(parameter))
    return gate


VARIANTS = sorted(path.stem for path in (conf_folder() / "gate").glob("*.yaml"))


def test_all_variants_exist() -> None:
    assert set(VARIANTS) == {
        "query", "no_query", "no_gate", "learned_scalar", "learned_vector", "constant", "query_only", "residual",
        "additive",
    }  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_equals_its_equation(name: str) -> None:
    gate = perturbed(composed(name)) if name not in ("no_gate", "constant") else composed(name)
    given = {key: value.double() for key, value in hidden_states().items()}
    gate = gate.double()
    q_o, h_o, h_t, q_t = (given[key] for key in INPUTS)

    def through(*inputs: torch.Tensor) -> torch.Tensor:
        together = torch.cat(inputs, dim=-1)
        return torch.sigmoid(together @ gate.down.weight.T @ gate.up.weight.T)

    equations = {
        "query": lambda: through(q_o, h_o, h_t, q_t),
        "no_query": lambda: through(h_o, h_t),
        "query_only": lambda: through(q_o, q_t),
        "no_gate": lambda: torch.tensor(0.5).double(),
        "constant": lambda: torch.tensor(0.5).double(),
        "learned_scalar": lambda: torch.sigmoid(gate.bias),
        "learned_vector": lambda: torch.sigmoid(gate.bias),
        "residual": lambda: 0.5 + 0.5 * through(h_o, h_t),
        "additive": lambda: through(0.5 * h_o + 0.5 * q_o, 0.5 * h_t + 0.5 * q_t),
    }
    mixed, found = apply_gate(gate, h_o, h_t, q_o, q_t)
    torch.testing.assert_close(found, equations[name]().expand_as(found))
    if name == "additive":
        h_o, h_t = (h_o + q_o) / 2, (h_t + q_t) / 2
    torch.testing.assert_close(mixed, found * h_o + (1 - found) * h_t)
    learned = {"no_gate": 0, "constant": 0, "learned_scalar": 1, "learned_vector": 8, "no_query": 2 * 64 + 64,
               "query_only": 2 * 64 + 64, "additive": 2 * 64 + 64, "query": 4 * 64 + 64,
               "residual": 2 * 64 + 64}  # fmt: skip
    assert sum(p.numel() for p in gate.parameters() if p.requires_grad) == learned[name]
    assert gate.reads_query == (name in ("query", "query_only", "additive"))


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_generates_the_tokens_of_full_passes(name: str) -> None:
    config = composed_config("backbone=mini", f"gate={name}")
    gate = {"_target_": config.gate.target, **config.gate.arguments()}
    model = tiny_siamese("llama", "lora", gate=gate)
    row = prompts()[0]
    expected = list(row)
    for _ in range(6):
        query = torch.tensor([[1] * len(row)])
        logits = model(torch.tensor([expected]), query_mask=query, use_cache=False).logits
        expected.append(int(logits[0, -1].argmax()))
    assert decoded(model, row, max_new_tokens=6, eos_token_id=None) == expected[len(row) :]


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_constant_gate_is_its_value(value: float) -> None:
    gate = composed("constant", f"gate.init_value={value}")
    torch.testing.assert_close(gate_values(gate, hidden_states()), torch.full((2, 5, 1), value))
    if value in (0.0, 1.0):
        given = hidden_states()
        mixed = interweave(given["original"], given["tuned"], gate_values(gate, given))
        assert torch.equal(mixed, given["original"] if value else given["tuned"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": [], "rank": None, "init_value": 1.0}, "init_value=1.0"),
        ({"inputs": [], "rank": None, "init_value": 0.3, "bias": 0.0}, "init_value=0.3"),
        ({"inputs": ["tuned"], "rank": 2, "init_value": 0.3}, "init_value=0.3"),
        ({"inputs": INPUTS, "rank": 2, "query_share": 0.5}, "query_share=0.5"),
        ({"inputs": [], "rank": None, "query_share": 0.5}, "query_share=0.5"),
        ({"inputs": ["tuned"], "rank": 2, "min_original_weight": 1.0}, "min_original_weight=1.0"),
    ],
)
def test_contradicting_arguments_are_rejected_by_name(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Gate(hidden_size=4, **arguments)
