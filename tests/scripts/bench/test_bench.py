"""The benchmark on a tiny random model: what is measured, what is written, what is left out."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from imsm.models.backbones.decoder import find_decoder
from imsm.models.siamese.model import SiameseForCausalLM
from scripts.bench import decoding
from scripts.bench.__main__ import SHAPES, make_setup, measure
from scripts.bench.comparison import Comparison
from scripts.bench.curves import Curve, decoding_curve, step_curves
from scripts.bench.decoding import compare_decoding, compare_paper_code
from scripts.bench.hardware import bandwidth, matrix_rate, operations
from scripts.bench.memory import compare_memory
from scripts.bench.padding import compare_padding
from scripts.bench.report import write_page
from scripts.bench.result import ROOT, commit, row_cells, write_result
from scripts.bench.steps import compare_steps, compare_trainer, sft_step, train_step
from scripts.bench.sweep import sweep_seconds
from scripts.bench.timing import decode, interleaved
from scripts.bench.workloads import Setup, build, random_batch
from tests.models.siamese.tiny import ARCHITECTURES, tiny_siamese

BARE = ("datasets", "evaluate", "hydra", "matplotlib", "omegaconf", "platformdirs", "pydantic", "rich", "scipy")
BARE += ("shtab", "sklearn", "tabulate", "trl", "wandb")
"""Packages that a bare GPU machine may lack."""


@pytest.fixture
def setup() -> Setup:
    return Setup(
        backbone={"name_or_path": "tiny"},
        shape=ARCHITECTURES["llama"],
        target_modules=["q_proj", "v_proj"],
        gate_rank=4,
        lora_rank=4,
        batch=3,
        prompt_tokens=9,
        answer_tokens=2,
        dtype="float32",
        device="cpu",
    )


def by_name(rows: list[Comparison]) -> dict[str, Comparison]:
    assert all(row.ours > 0 and row.theirs > 0 for row in rows)
    return {row.name: row for row in rows}


def test_a_bar_is_met_up_to_its_value_from_either_side() -> None:
    def met(ours: float, bar: float | None, *, at_least: bool = False) -> bool | None:
        options: dict[str, Any] = {"bar": bar, "at_least": at_least}
        row = Comparison(name="x", ours=ours, theirs=1.0, unit="s", **options).record()
        assert row["ratio"] == ours
        return row["met"]

    assert (met(1.7, 1.7), met(1.71, 1.7), met(9.0, None)) == (True, False, None)
    assert (met(10.0, 10, at_least=True), met(9.9, 10, at_least=True)) == (True, False)


def test_steps_have_their_bars(setup: Setup) -> None:
    rows = by_name(compare_steps(setup, rounds=1))
    assert [row.bar for row in rows.values()] == [1.05, 1.50, 1.40]
    cached, uncached, _ = rows.values()
    assert cached.theirs == uncached.theirs


@pytest.mark.parametrize(("options", "passes"), [({}, 2), ({"cached": True}, 1), ({"checkpointing": True}, 2)])
def test_a_step_does_what_its_row_says(setup: Setup, options: dict[str, bool], passes: int) -> None:
    model = build(setup, stream="interwoven")
    step = train_step(model, setup, **options)
    layers = _counted(model)
    step()
    assert len(layers) == passes + ("checkpointing" in options)


def _counted(model: SiameseForCausalLM) -> list[int]:
    """Grows with every pass through the first layer."""
    passes: list[int] = []
    first = model.streams.decoder.layers[0]  # type: ignore[union-attr,index]
    first.mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    return passes


def test_two_passes_are_two_passes(setup: Setup) -> None:
    model = build(setup, stream="interwoven").eval()
    passes = _counted(model)
    ids = torch.tensor([random_batch(setup, vocabulary=97)[0].prompt_ids])
    model.generate(ids, max_new_tokens=3, min_new_tokens=3)
    assert len(passes) == 3
    with decoding.two_passes(model):
        model.generate(ids, max_new_tokens=3, min_new_tokens=3)
    assert len(passes) == 3 + 2 * 3
    model.streams.batch_both = False
    with pytest.raises(RuntimeError, match="nothing to compare"), decoding.two_passes(model):
        pass


def test_trls_step_trains(setup: Setup, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    sft_step(setup, str(tmp_path))()


def test_transformers_own_trainer_is_held_against(setup: Setup) -> None:
    (row,) = compare_trainer(setup, rounds=1)
    assert (row.bar, row.unit, row.at_least) == (0.65, "s", False)


def test_decoding_rows(setup: Setup) -> None:
    rows = by_name(compare_decoding(replace(setup, prompt_tokens=20), rounds=1))
    assert [row.bar for row in rows.values()] == [0.90, 0.70, 1.15]
    assert all(row.at_least and row.unit == "tokens/s" for row in rows.values())
    (row,) = compare_paper_code(setup)
    assert row.bar == 10


def test_a_bar_below_what_the_machine_can_do_is_a_floor(setup: Setup) -> None:
    row = Comparison(name="x", ours=8.0, theirs=10.0, unit="tokens/s", bar=0.9, at_least=True)
    # a second row takes 20 ms, a token of PEFT 100 ms
    found = decoding._with_floor(row, 0.02)
    assert found.floor and found.reason is not None and "20.0 ms more" in found.reason and "0.83" in found.reason
    assert decoding._with_floor(row, 0.01) == row  # 0.91 could be reached
    met = replace(row, ours=9.5)
    assert decoding._with_floor(met, 0.02) == met
    assert decoding.second_row_seconds(build(setup, stream="interwoven"), rounds=1) >= 0


def test_the_paper_code_algorithm_gives_the_tokens_of_the_model(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its time would be of something else."""
    monkeypatch.setattr(decoding, "LONG", 6)
    model = build(setup, stream="interwoven").eval()  # at its start the adapter changes nothing
    plain = build(setup, stream="tuned").eval()
    ids = torch.tensor([random_batch(setup, vocabulary=97)[0].prompt_ids])
    seen: list[torch.Tensor] = []
    body = find_decoder(plain.backbone)
    body.register_forward_pre_hook(lambda _, __, named: seen.append(named["input_ids"]), with_kwargs=True)
    decoding._paper_code(plain.backbone, plain.adapted, model.gate, ids)
    expected = model.generate(ids, max_new_tokens=6, min_new_tokens=6)
    assert len(seen) == 2 * 6 and torch.equal(seen[-1], expected[:, :-1])


@pytest.mark.slow  # three processes that import torch
def test_memory_of_the_variants(setup: Setup) -> None:
    rows = by_name(compare_memory(setup))
    assert {row.bar for row in rows.values()} == {1.05}
    # anonymous memory of a Python process with torch: some hundred MiB, without its libraries
    assert all(20 < row.theirs < 2000 and 0.8 < row.ratio < 1.25 for row in rows.values())


@pytest.mark.slow
def test_a_sweep_gets_longer_with_every_member(setup: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import scripts.bench.sweep as sweep

    monkeypatch.setattr(sweep, "STEPS", 4)
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path))
    for seconds in sweep_seconds(setup, num_runs=3):
        assert len(seconds) == 3 and seconds == sorted(seconds) and seconds[0] > 0
    assert not list(tmp_path.iterdir())  # its bank lay elsewhere


@pytest.mark.slow
def test_curves_have_a_point_for_every_value(setup: Setup) -> None:
    curves = step_curves(replace(setup, shape={**ARCHITECTURES["llama"], "max_position_embeddings": 512}), rounds=1)
    curves.append(decoding_curve(setup, rounds=1))
    for curve in curves:
        for points in (*curve.variants.values(), curve.floor or []):
            assert len(points) == len(curve.at) and min(points) > 0
    (batch,) = [curve for curve in curves if curve.over == "examples of a batch"]
    assert batch.floor is not None and batch.floor[-1] > 8 * batch.floor[0]


def test_operations_are_those_of_the_products() -> None:
    left, right = torch.randn(8, 16), torch.randn(16, 4)
    assert operations(lambda: left @ right) == 2 * 8 * 16 * 4


def test_a_machines_limits_are_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    import scripts.bench.hardware as limits

    monkeypatch.setattr(limits, "_SIZE", 64)
    monkeypatch.setattr(limits, "_BYTES", 2**20)
    assert matrix_rate(dtype="float32", device="cpu") > 1e6
    assert bandwidth(device="cpu") > 1e6


def test_a_comparison_without_its_library_is_skipped_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    row = Comparison(name="a", ours=1, theirs=2, unit="s")

    def lacking() -> list[Comparison]:
        import no_such_library  # noqa: F401

        return []

    found, left_out = measure({"sft": lacking, "steps": lambda: [row]})
    assert found == [row]
    assert left_out == [{"name": "sft", "needs": "no_such_library"}]
    assert "sft: skipped, needs no_such_library" in capsys.readouterr().err


def test_the_file_and_its_page(tmp_path: Path) -> None:
    rows = [
        Comparison(name="slow", ours=3, theirs=1, unit="s", bar=1.5, floor=True, reason="because"),
        Comparison(name="fast", ours=30, theirs=2, unit="tokens/s", bar=10, at_least=True),
    ]
    curve = Curve(name="a step", over="tokens", at=[1.0, 2.0], variants={"IMSM": [1.0, 2.0]}, floor=[0.5, 1.0])
    record = write_result(
        tmp_path / "it.json",
        rows,
        curves=[curve],
        left_out=[{"name": "sft", "needs": "trl"}],
        device="cpu",
        settings={"batch": 16},
        commit_at_start=commit(),
    )
    assert json.loads((tmp_path / "it.json").read_text()) == record
    asked = {"name", "ours", "theirs", "unit", "ratio", "bar", "met", "floor", "reason"}
    assert all(asked <= row.keys() for row in record["comparisons"])
    assert record.keys() >= {"comparisons", "device", "commit", "date"}
    assert [row_cells(row)[-2:] for row in record["comparisons"]] == [["≤ 1.5", "floor"], ["≥ 10", "met"]]
    page = write_page(tmp_path / "it.json", record).read_text()
    for told in ("| slow | 3 | 1 | s | 3.00 | ≤ 1.5 | floor |", "because", "needs trl"):
        assert told in page
    pictures = sorted(path.name for path in (tmp_path / "it").iterdir())
    assert pictures == ["bars.svg", "curve1.svg"]
    assert all(f"it/{name}" in page for name in pictures)


def test_llama3s_shape_has_random_weights() -> None:
    setup = make_setup("llama3", device="cuda", dtype="bfloat16", random=True, batch=16)
    assert setup.shape is not None and setup.shape["hidden_size"] == 4096
    assert (setup.prompt_tokens, setup.answer_tokens) == tuple(SHAPES["mrpc"].values())
    assert make_setup("mini", device="cpu", dtype="float32", random=False, batch=1).shape is None


@pytest.mark.slow  # a process of its own
def test_a_machine_with_torch_transformers_and_peft_alone(setup: Setup, tmp_path: Path) -> None:
    """What needs more is left out; the rest is measured, and written without plots."""
    program = f"""
import sys
for name in {BARE!r}:
    sys.modules[name] = None
from scripts.bench import __main__ as bench
from scripts.bench.workloads import Setup
import json
setup = Setup(**json.loads({setup.written()!r}))
bench.make_setup = lambda *_, **__: setup
bench.main(["--only", "steps", "sft", "--rounds", "1", "--device", "cpu",
            "--output", {str(tmp_path)!r}, "--name", "bare"])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "bare.json").read_text())
    assert len(record["comparisons"]) == 3
    assert {each["name"] for each in record["left_out"]} == {"sft"}
    assert "training step, no cache" in done.stdout
    assert "Skipped: sft" in (tmp_path / "bare.md").read_text()


def test_padding_is_compared_on_examples_of_different_lengths(setup: Setup) -> None:
    setup = replace(setup, batch=8)
    shape = {**ARCHITECTURES["llama"], "max_position_embeddings": 1024}
    rows = by_name(compare_padding(setup, rounds=1, shape=shape))
    assert [row.bar for row in rows.values()] == [None, None, 0.85]
    assert all("21% padding" in name for name in rows)


def test_a_batch_has_the_requested_shape(setup: Setup) -> None:
    items = random_batch(setup, vocabulary=97)
    assert [(len(item.prompt_ids), len(item.answer_ids)) for item in items] == [(9, 2)] * 3
    assert len({item.prompt_ids for item in items}) == 3
    assert all(0 < token < 97 for item in items for token in item.prompt_ids + item.answer_ids)


@pytest.mark.parametrize("options", [{}, {"checkpointing": True}, {"cached": True}])
def test_a_step_trains_adapter_and_gate(setup: Setup, options: dict[str, bool]) -> None:
    model = tiny_siamese()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    train_step(model, setup, **options)()
    after = dict(model.named_parameters())
    unmoved = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert any("gate" in name for name in before)
    assert unmoved == []


def test_decoding_gives_a_time_for_every_token(setup: Setup) -> None:
    model = tiny_siamese()
    prompts = torch.tensor([item.prompt_ids for item in random_batch(setup, vocabulary=97)])
    shapes = []

    def generate(**options: object) -> torch.Tensor:
        rows = model.generate(**options)
        shapes.append(rows.shape)
        return rows

    seconds = decode(generate, prompts, tokens=6, device="cpu")
    assert shapes == [(3, 9 + 6)]
    assert len(seconds) == 6
    assert min(seconds) > 0


def test_variants_take_turns_and_the_first_round_is_thrown_away() -> None:
    calls: list[str] = []

    def arm(name: str) -> list[float]:
        calls.append(name)
        return [float(len(calls))]

    found = interleaved({"a": lambda: arm("a"), "b": lambda: arm("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
