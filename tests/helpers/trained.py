"""The files of a finished training, without a model."""

from __future__ import annotations

from pathlib import Path

from imsm.utils.json_files import write_hashed_json
from imsm.utils.manifest import write_manifest
from imsm.utils.run_dir import MODEL_HASH, RunDir


def write_trained(folder: Path, *, weights: bytes = b"weights") -> RunDir:
    """Write `model/` with its hashes, and `training.json`."""
    run = RunDir(folder)
    run.adapter.mkdir(parents=True, exist_ok=True)
    (run.adapter / "adapter_model.safetensors").write_bytes(weights)
    (run.model / "gate.safetensors").write_bytes(b"gate")
    (run.model / "config.json").write_text('{"pooling": "mean"}')
    record = {"steps": 3, "trainable_parameters": {"adapter": 10, "gate": 2}, MODEL_HASH: write_manifest(run.model)}
    write_hashed_json(run.trained, record)
    return run
