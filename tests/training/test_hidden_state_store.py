"""Memory banks on disk: written once, checked on read, shared, and no other training by them."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch

from imsm.cli.main import main
from imsm.models.siamese import hidden_state_cache as memory_bank
from imsm.models.siamese.hidden_state_cache import HiddenStateCache
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.hidden_state_store import CacheKey, caches_dir, get_or_compute, make_cache_key, open_cache, verify
from imsm.training.train_step import model_inputs
from tests.models.siamese.test_hidden_state_cache import TOKEN_GATE
from tests.models.siamese.test_virtual_tokens import siamese as virtual_siamese
from tests.models.siamese.tiny import QUERY_GATE, tiny_siamese
from tests.training.test_trainer import Run, items

EVERYTHING = {
    "backbone": "tiny",
    "dtype": "float32",
    "attention": None,
    "pooling": "mean",
    "device": "cpu",
    "examples": "some",
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(memory_bank, "CHUNK_TOKENS", 40)


def contents() -> CacheKey:
    return make_cache_key(
        items(), backbone="tiny", dtype="float32", attention=None, pooling="mean", device=torch.device("cpu")
    )


def filled(model: SiameseForCausalLM | None = None) -> Path:
    model = model or tiny_siamese()
    return get_or_compute(contents(), model, items(), pad_id=0, label="tiny tests")


def equal(one: HiddenStateCache, other: HiddenStateCache) -> bool:
    same = torch.equal(one.hidden_states, other.hidden_states) and torch.equal(one.queries, other.queries)
    return same and one.index == other.index


def test_what_was_written_is_read() -> None:
    place = filled()
    made = memory_bank.compute_in_memory(tiny_siamese(), items(), pad_id=0)
    assert equal(open_cache(place, items()), made)
    assert {each.name for each in place.parent.iterdir()} == {"lock", "bank"}


def test_it_is_filled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    place = filled()
    index = place / "index.json"
    before = (index.stat().st_ino, index.stat().st_mtime_ns)
    monkeypatch.setattr("imsm.training.hidden_state_store.fill", None)
    assert filled(tiny_siamese("llama", "ia3", gate=TOKEN_GATE)) == place
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == before


@pytest.mark.parametrize("key", EVERYTHING)
def test_all_that_decides_a_row_decides_the_key(key: str) -> None:
    assert CacheKey(**EVERYTHING).folder_name != CacheKey(**{**EVERYTHING, key: "other"}).folder_name


@pytest.mark.parametrize("name", ["memories", "queries", "index.json"])
@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
def test_a_damaged_one_is_set_aside_and_filled_again(name: str, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = filled()
    whole = {each.name: each.read_bytes() for each in place.iterdir()}
    file = place / name
    data = bytearray(file.read_bytes())
    if harm == "gone":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 64
        file.write_bytes(data)
    if (name, harm) == ("index.json", "changed"):
        file.write_text(json.dumps({**json.loads(whole[name]), "sha256": {}}))
    assert verify(place)
    assert filled() == place
    assert {each.name: each.read_bytes() for each in place.iterdir()} == whole
    assert "is set aside" in capsys.readouterr().err
    assert (place.parent / "damaged").is_dir()


def test_what_a_killed_process_left_is_no_bank() -> None:
    left = caches_dir() / contents().folder_name / "filling"
    left.mkdir(parents=True)
    (left / "memories").write_bytes(b"half")
    place = filled()
    assert verify(place) is None and not left.exists()


def test_one_that_is_stopped_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("imsm.training.hidden_state_store.fill", stop)
    with pytest.raises(KeyboardInterrupt):
        filled()
    assert [each.name for each in (caches_dir() / contents().folder_name).iterdir()] == ["lock"]


def fill_slowly(note: Path) -> None:
    """A process that says when it fills."""
    torch.set_num_threads(1)
    model = tiny_siamese()
    memory = model.streams.hidden_states

    def slow(*given: object, **named: object) -> torch.Tensor:
        with note.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        time.sleep(0.05)
        return memory(*given, **named)  # type: ignore[arg-type]

    model.streams.hidden_states = slow  # type: ignore[method-assign, assignment]
    filled(model)


@pytest.mark.slow
def test_of_two_processes_at_once_one_fills(tmp_path: Path) -> None:
    note = tmp_path / "note"
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=fill_slowly, args=(note,)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(timeout=120)
    assert [each.exitcode for each in both] == [0, 0]
    assert len(set(note.read_text().split())) == 1
    assert verify(caches_dir() / contents().folder_name / "bank") is None


def losses(folder: Path, *, bank: HiddenStateCache | None, **options: object) -> list[float]:
    """Of two epochs."""
    run = Run(folder, **options)  # type: ignore[arg-type]
    run.bank = bank
    run.validation = items()[:3]
    run.kept = {"steps": 2}
    run.train()
    return [*run.losses, *run.validation_losses]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "lora"},
        {"method": "lora", "micro": 3},
        {"method": "lora", "gate": TOKEN_GATE},
        {"method": "ia3", "micro": 1},
        {"method": "adalora"},
        {"method": "loramoe"},
        {"method": "dropping_lora"},
    ],
    ids=lambda options: " ".join(map(str, options)) + " " + str(options["method"]),
)
def test_losses_are_those_without_a_bank(tmp_path: Path, options: dict) -> None:
    expected = losses(tmp_path / "plain", bank=None, **options)
    bank = open_cache(filled(), items())
    found = losses(tmp_path / "bank", bank=bank, **options)
    assert len(found) == 6 + 3
    assert found == pytest.approx(expected, abs=1e-5, rel=0)
    assert max(expected) - min(expected) > 0.1


def test_who_filled_it_changes_no_bit_of_a_training(tmp_path: Path) -> None:
    first = losses(tmp_path / "first", bank=open_cache(filled(), items()))
    later = losses(tmp_path / "later", bank=open_cache(filled(), items()))
    in_memory = memory_bank.compute_in_memory(tiny_siamese("llama", "dora"), items(), pad_id=0)
    assert first == later == losses(tmp_path / "memory", bank=in_memory)


@pytest.mark.parametrize("banked_first", [True, False])
def test_a_training_goes_on_with_and_without(tmp_path: Path, banked_first: bool) -> None:
    expected = losses(tmp_path / "whole", bank=None)[:6]
    bank = open_cache(filled(), items())
    run = Run(tmp_path / "parts")
    run.bank = bank if banked_first else None
    run.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        run.train()
    other = Run(tmp_path / "parts")
    other.bank = None if banked_first else bank
    other.train("required")
    assert run.losses + other.losses == pytest.approx(expected, abs=1e-5, rel=0)


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_bfloat16_and_other_poolings_train(tmp_path: Path, pooling: str) -> None:
    model = tiny_siamese(pooling=pooling, dtype=torch.bfloat16, gate=QUERY_GATE).train()
    made = open_cache(filled(model), items())
    assert made.hidden_states.dtype is torch.bfloat16
    cpu = torch.device("cpu")
    expected = model(**model_inputs(cpu, items()[:5], pad_id=0, hidden_state_cache=None)).loss
    found = model(**model_inputs(cpu, items()[:5], pad_id=0, hidden_state_cache=made)).loss
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=1e-2)
    found.backward()


def test_they_are_listed_and_cleared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list"]) == 0
    assert "0 caches" in capsys.readouterr().out
    place = filled()
    assert main(["cache", "list"]) == 0
    told = capsys.readouterr().out
    assert "tiny tests" in told and contents().folder_name[:8] in told and "1 cache, " in told
    assert main(["cache", "clear", "nothing"]) == 2
    assert "KEY=nothing: no cache" in capsys.readouterr().err
    assert place.is_dir()
    assert main(["cache", "clear", contents().folder_name[:6]]) == 0
    assert "deleted 1 cache" in capsys.readouterr().out and not place.exists()
    assert verify(filled()) is None
    assert main(["cache", "clear"]) == 0
    assert not place.exists()


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "p_tuning", "prefix_tuning"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_without_a_bank(method: str, checkpointing: bool) -> None:
    """Prompt learning and recomputed activations too (prefixes cannot be recomputed)."""
    if method == "prefix_tuning" and checkpointing:
        pytest.skip("refused: see tests/models/siamese/test_virtual_tokens.py")
    made = memory_bank.compute_in_memory(tiny_siamese(), items(), pad_id=0)
    found = []
    for bank in (None, made):
        model = tiny_siamese() if method == "lora" else virtual_siamese("llama", method)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        output = model(**model_inputs(torch.device("cpu"), items()[:5], pad_id=0, hidden_state_cache=bank))
        output.loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        found.append({"loss": output.loss.detach(), **gradients})
    assert any(name != "loss" and "gate" not in name for name in found[0])
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=1e-4, msg=name)
