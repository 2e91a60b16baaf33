"""Hidden-state caches on disk: computed once, verified, shared, and without effect on a training."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch

from imsm.models.siamese import hidden_state_cache
from imsm.models.siamese.hidden_state_cache import HiddenStateCache, compute_in_memory
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training import hidden_state_store
from imsm.training.hidden_state_store import CacheKey, get_or_compute, make_cache_key, open_cache, read_index, verify
from imsm.training.train_step import model_inputs
from tests.helpers.damage import DAMAGES, delete, flip_bit, truncate
from tests.models.siamese.test_hidden_state_cache import TOKEN_GATE
from tests.models.siamese.test_virtual_tokens import siamese as virtual_siamese
from tests.models.siamese.tiny import QUERY_GATE, tiny_siamese
from tests.training.tiny_run import TinyRun, tiny_examples

KEY = {
    "backbone": "tiny",
    "dtype": "float32",
    "attention": None,
    "pooling": "mean",
    "device": "cpu",
    "examples": "some",
    "adapter": None,
}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a cache folder of this test and several chunks per cache."""
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hidden_state_cache, "CHUNK_TOKENS", 40)


def tiny_key() -> CacheKey:
    return make_cache_key(
        tiny_examples(), backbone="tiny", dtype="float32", attention=None, pooling="mean", device=CPU
    )


def computed(model: SiameseForCausalLM | None = None) -> Path:
    return get_or_compute(tiny_key(), model or tiny_siamese(), tiny_examples(), pad_id=0, label="tiny tests")


def opened(model: SiameseForCausalLM | None = None) -> HiddenStateCache:
    return open_cache(computed(model), tiny_examples())


def test_a_cache_on_disk_equals_one_in_memory() -> None:
    path = computed()
    on_disk = open_cache(path, tiny_examples())
    in_memory = compute_in_memory(tiny_siamese(), tiny_examples(), pad_id=0)
    assert torch.equal(on_disk.hidden_states, in_memory.hidden_states)
    assert torch.equal(on_disk.queries, in_memory.queries)
    assert on_disk.index == in_memory.index
    assert {file.name for file in path.parent.iterdir()} == {"lock", "data"}


def test_it_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    path = computed()
    before = (path / "index.json").stat()
    monkeypatch.setattr(hidden_state_store, "compute_hidden_states", None)
    assert computed(tiny_siamese("llama", "ia3", gate=TOKEN_GATE)) == path
    after = (path / "index.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("field", KEY)
def test_every_field_changes_the_folder(field: str) -> None:
    assert CacheKey(**KEY).folder_name != CacheKey(**{**KEY, field: "other"}).folder_name


@pytest.mark.parametrize("name", ["hidden_states", "queries", "index.json"])
@pytest.mark.parametrize("damage", [flip_bit, truncate, delete])
def test_a_damaged_cache_is_moved_away_and_computed_again(
    name: str, damage, capsys: pytest.CaptureFixture[str]
) -> None:
    path = computed()
    intact = {file.name: file.read_bytes() for file in path.iterdir()}
    damage(path / name)
    assert verify(path)
    assert computed() == path
    assert {file.name: file.read_bytes() for file in path.iterdir()} == intact
    assert "computed again" in capsys.readouterr().err
    assert (path.parent / "damaged").is_dir()


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"flipped"}))
def test_a_cache_without_a_readable_index_is_damaged(damage: str) -> None:
    path = computed()
    DAMAGES[damage](path / "index.json")
    assert "index.json" in str(verify(path))


@pytest.mark.parametrize(
    "changed", [{"dtype": "float33"}, {"tokens": "x"}, {"width": 0}, {"dtype": "bfloat16"}, {"files": {}}]
)
def test_an_edited_index_is_damaged(changed: dict[str, object]) -> None:
    path = computed()
    index = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps(index | changed))
    assert "index.json" in str(verify(path))
    with pytest.raises(OSError):
        open_cache(path, tiny_examples())


def test_the_remains_of_a_killed_process_are_removed() -> None:
    incomplete = tiny_key().path.with_name("incomplete")
    incomplete.mkdir(parents=True)
    (incomplete / "hidden_states").write_bytes(b"half")
    path = computed()
    assert verify(path) is None and not incomplete.exists()


def test_an_interrupted_computation_leaves_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hidden_state_store, "compute_hidden_states", interrupt)
    with pytest.raises(KeyboardInterrupt):
        computed()
    assert [file.name for file in tiny_key().path.parent.iterdir()] == ["lock"]


def test_a_missing_index_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(OSError, match="is damaged"):
        read_index(tmp_path)


def compute_slowly(log: Path) -> None:
    """Compute the cache in a process that logs its id whenever it runs the model."""
    torch.set_num_threads(1)
    model = tiny_siamese()
    hidden_states = model.streams.hidden_states

    def slow_hidden_states(*args: object, **kwargs: object) -> torch.Tensor:
        with log.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        time.sleep(0.05)
        return hidden_states(*args, **kwargs)  # type: ignore[arg-type]

    model.streams.hidden_states = slow_hidden_states  # type: ignore[method-assign, assignment]
    computed(model)


@pytest.mark.slow
def test_of_two_processes_only_one_computes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=compute_slowly, args=(log,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(set(log.read_text().split())) == 1
    assert verify(tiny_key().path) is None


def losses(folder: Path, *, cache: HiddenStateCache | None, **options: object) -> list[float]:
    """Return the training and validation losses of two epochs."""
    run = TinyRun(folder, **options)  # type: ignore[arg-type]
    run.cache = cache
    run.validation_examples = tiny_examples()[:3]
    run.save_options = {"save_steps": 2}
    run.train()
    return [*run.losses, *run.validation_losses]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "lora"},
        {"method": "lora", "micro_batch_size": 3},
        {"method": "lora", "gate": TOKEN_GATE},
        {"method": "ia3", "micro_batch_size": 1},
        {"method": "adalora"},
        {"method": "loramoe"},
        {"method": "lora_with_dropout"},
    ],
    ids=lambda options: " ".join(map(str, options)) + " " + str(options["method"]),
)
def test_losses_equal_those_without_a_cache(tmp_path: Path, options: dict) -> None:
    expected = losses(tmp_path / "uncached", cache=None, **options)
    found = losses(tmp_path / "cached", cache=opened(), **options)
    assert len(found) == 6 + 3
    assert found == pytest.approx(expected, abs=1e-5, rel=0)
    assert max(expected) - min(expected) > 0.1


def test_losses_are_bit_equal_whoever_computed_the_cache(tmp_path: Path) -> None:
    first = losses(tmp_path / "first", cache=opened())
    reused = losses(tmp_path / "reused", cache=opened())
    other_model = compute_in_memory(tiny_siamese("llama", "dora"), tiny_examples(), pad_id=0)
    assert first == reused == losses(tmp_path / "memory", cache=other_model)


@pytest.mark.parametrize("cached_first", [True, False])
def test_a_training_can_resume_with_and_without_a_cache(tmp_path: Path, cached_first: bool) -> None:
    expected = losses(tmp_path / "full", cache=None)[:6]
    cache = opened()
    run = TinyRun(tmp_path / "parts")
    run.cache = cache if cached_first else None
    run.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        run.train()
    resumed = TinyRun(tmp_path / "parts")
    resumed.cache = None if cached_first else cache
    resumed.train("required")
    assert run.losses + resumed.losses == pytest.approx(expected, abs=1e-5, rel=0)


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_a_bfloat16_model_trains_from_a_cache(pooling: str) -> None:
    model = tiny_siamese(pooling=pooling, dtype=torch.bfloat16, gate=QUERY_GATE).train()
    cache = opened(model)
    assert cache.hidden_states.dtype is torch.bfloat16
    examples = tiny_examples()[:5]
    expected = model(**model_inputs(CPU, examples, pad_id=0, hidden_state_cache=None)).loss
    found = model(**model_inputs(CPU, examples, pad_id=0, hidden_state_cache=cache)).loss
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=1e-2)
    found.backward()


@pytest.mark.parametrize(
    ("method", "checkpointing"),
    [
        *((method, False) for method in ("lora", "prompt_tuning", "p_tuning", "prefix_tuning")),
        *((method, True) for method in ("lora", "prompt_tuning", "p_tuning")),  # prefixes cannot be recomputed
    ],
)
def test_gradients_equal_those_without_a_cache(method: str, checkpointing: bool) -> None:
    cache = compute_in_memory(tiny_siamese(), tiny_examples(), pad_id=0)
    results = []
    for hidden_states in (None, cache):
        model = tiny_siamese() if method == "lora" else virtual_siamese("llama", method)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        output = model(**model_inputs(CPU, tiny_examples()[:5], pad_id=0, hidden_state_cache=hidden_states))
        output.loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        results.append({"loss": output.loss.detach(), **gradients})
    assert any(name != "loss" and "gate" not in name for name in results[0])
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_the_tuned_stream_of_a_frozen_adapter_has_its_own_cache() -> None:
    model = tiny_siamese()
    key = CacheKey(**{**vars(tiny_key()), "adapter": "weights"})
    tuned = open_cache(get_or_compute(key, model, tiny_examples(), pad_id=0, label="tiny"), tiny_examples())
    in_memory = compute_in_memory(model, tiny_examples(), pad_id=0, stream="tuned")
    assert torch.equal(tuned.hidden_states, in_memory.hidden_states)
    assert torch.equal(tuned.queries, in_memory.queries)
    assert not torch.equal(tuned.hidden_states, opened(model).hidden_states)
    assert verify(key.path) is None and read_index(key.path)["adapter"] == "weights"
    # without an adapter, folders of existing caches keep their names
    assert "adapter" not in tiny_key().values()
