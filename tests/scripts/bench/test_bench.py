"""The benchmark's comparisons on a tiny random model: what is measured, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scripts.bench_step import main
from scripts.comparison import Comparison
from scripts.measure import Setup, decode, interleaved, random_batch, train_step
from tests.siamese.tiny import QUERY_GATE, tiny_backbone, tiny_siamese

SHORT = ["--batch", "2", "--rounds", "2", "--new-tokens", "3", "--decode-batches", "1", "3"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_backbone("llama").save_pretrained(folder)
    return str(folder)


def measured(tiny: str, folder: Path, *options: str) -> dict:
    arguments = ["--path", tiny, "--device", "cpu", "--output", str(folder), *SHORT, *options]
    path = main(arguments)
    assert path.parent == folder
    return json.loads(path.read_text())


def test_steps_and_decoding(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--measure", "step", "decode", "--decode-dtypes", "float32", "bfloat16"]
    record = measured(tiny, tmp_path, *options, "--all-linear", "--name", "tiny")
    assert (tmp_path / "tiny.json").is_file()
    rows = {row["name"]: row for row in record["comparisons"]}
    assert len(rows) == 2 + 2 * 2 * 3
    step = rows["training step, no bank, batch 2, float32"]
    assert step["bar"] == 1.7
    assert rows["training step, bank, batch 2, float32"]["bar"] == 1.10
    assert step["unit"] == "s"
    assert rows["decoding a token, batch 3, bfloat16"]["bar"] == 1.8
    for row in rows.values():
        assert set(row) == {"name", "ours", "theirs", "unit", "ratio", "bar", "met"}
        assert row["ours"] > 0
        assert row["theirs"] > 0
    assert set(record) >= {"device", "commit", "date"}
    assert record["device"].startswith("cpu")
    assert tiny not in json.dumps(record)  # a result names no place on a machine
    assert "training step" in capsys.readouterr().out


@pytest.mark.slow  # two processes that import torch
def test_memory_of_both_arms(tiny: str, tmp_path: Path) -> None:
    record = measured(tiny, tmp_path, "--measure", "memory")
    (row,) = record["comparisons"]
    assert row["bar"] == 1.10
    assert row["unit"] == "MiB"
    # anonymous memory of a Python process with torch: some hundred MiB, without its libraries
    assert 20 < row["theirs"] < 2000
    assert 0.8 < row["ratio"] < 1.25


def test_a_bar_is_met_up_to_its_value() -> None:
    at = Comparison(name="x", ours=1.7, theirs=1.0, unit="s", bar=1.7).record()
    above = Comparison(name="x", ours=1.71, theirs=1.0, unit="s", bar=1.7).record()
    without = Comparison(name="x", ours=9.0, theirs=1.0, unit="s", bar=None).record()
    assert (at["met"], above["met"], without["met"]) == (True, False, None)
    assert above["ratio"] == 1.71


def setup() -> Setup:
    return Setup(
        backbone={"path": "tiny"},
        target_modules=["q_proj", "v_proj"],
        gate=QUERY_GATE,
        rank=4,
        batch=3,
        prompt_tokens=9,
        answer_tokens=2,
        device="cpu",
    )


def test_a_batch_has_the_asked_shape() -> None:
    items = random_batch(setup(), vocabulary=97)
    assert [(len(item.prompt_ids), len(item.answer_ids)) for item in items] == [(9, 2)] * 3
    assert len({item.prompt_ids for item in items}) == 3
    assert all(0 < token < 97 for item in items for token in item.prompt_ids + item.answer_ids)


def test_a_step_trains_adapter_and_gate() -> None:
    model = tiny_siamese()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    train_step(model, setup())()
    after = dict(model.named_parameters())
    unmoved = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert any("gate" in name for name in before)
    assert unmoved == []


def test_decoding_gives_a_time_for_every_token() -> None:
    model = tiny_siamese()
    prompts = torch.tensor([item.prompt_ids for item in random_batch(setup(), vocabulary=97)])
    shapes = []

    def generate(**options: object) -> torch.Tensor:
        rows = model.generate(**options)
        shapes.append(rows.shape)
        return rows

    seconds = decode(generate, prompts, tokens=6, device="cpu")
    assert shapes == [(3, 9 + 6)]
    assert len(seconds) == 6
    assert min(seconds) > 0


def test_arms_take_turns_and_the_first_round_is_thrown_away() -> None:
    calls: list[str] = []

    def arm(name: str) -> list[float]:
        calls.append(name)
        return [float(len(calls))]

    found = interleaved({"a": lambda: arm("a"), "b": lambda: arm("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
