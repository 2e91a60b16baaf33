"""The plugin's gate equals imsm's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imsm.models.siamese import gate as own
from imsm.serving.vllm.gate import QUERIES, Gate

CASES: dict[str, dict[str, Any]] = {
    "paper": {"inputs": list(own.INPUTS), "rank": 4},
    "query only": {"inputs": ["query_original", "query_tuned"], "rank": 4, "bias": 0.5},
    "scalar": {"inputs": ["original", "query_tuned"], "rank": 2, "granularity": "scalar"},
    "residual": {"inputs": ["original", "tuned"], "rank": 4, "min_original_weight": 0.5},
    "constant": {"inputs": [], "rank": None, "init_value": 0.3, "granularity": "scalar"},
    "one": {"inputs": [], "rank": None, "init_value": 1.0, "trainable": False},
}


@pytest.mark.parametrize("case", CASES)
def test_gate_equals_that_of_imsm(case: str) -> None:
    torch.manual_seed(0)
    expected = own.Gate(hidden_size=8, **CASES[case])
    gate = Gate(inputs=list(expected.inputs), min_original_weight=expected.min_original_weight)
    tensors = {} if expected.up is None else {**expected._blocks(), "up": expected.up.weight}
    gate.load(tensors | ({} if expected.bias is None else {"bias": expected.bias}))
    original, tuned = torch.randn(2, 5, 8)
    # the query states are means over all five tokens
    queries = original.mean(dim=0, keepdim=True), tuned.mean(dim=0, keepdim=True)
    part = gate.query_part(original, tuned).mean(dim=0).expand(5, -1) if gate.reads_query else None
    assert gate.reads_query == expected.reads_query == bool(QUERIES.keys() & set(expected.inputs))
    with torch.inference_mode():
        torch.testing.assert_close(
            gate(original, tuned, part).expand(5, -1), expected(original, tuned, *queries).expand(5, -1)
        )


def test_gate_of_another_configuration_is_refused() -> None:
    gate = Gate(inputs=["original"], min_original_weight=0.0)
    with pytest.raises(ValueError, match="export the run again"):
        gate.load({"tuned": torch.zeros(2, 8), "up": torch.zeros(8, 2)})
