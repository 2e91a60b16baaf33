"""Gemma 3 270M from its package."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from imsm.models.backbones import gemma3_gguf as gemma3
from imsm.utils.errors import UserError


def test_a_missing_part_of_the_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, gemma3.PACKAGE, SimpleNamespace())
    with pytest.raises(UserError, match=r"a part is missing.*pip install"):
        gemma3.package_chunks()


def test_the_module_imports_no_torch() -> None:
    code = "import imsm.models.backbones.gemma3_gguf, sys; sys.exit(bool({'torch', 'transformers'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(gemma3.PACKAGE) is None, reason="needs the extra `gemma`")
def test_the_real_model_generates_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoTokenizer

    from imsm.models.backbones.loading import load_backbone, load_tokenizer

    monkeypatch.setenv("IMSM_CACHE", str(tmp_path))
    source = {"name_or_path": "google/gemma-3-270m", "local_resolver": "imsm.models.backbones.gemma3_gguf.local_path"}
    model, tokenizer = load_backbone(**source), load_tokenizer(**source)
    folder = gemma3.local_path(gemma3.HUB_ID)
    assert folder is not None
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == 1
    assert tokenizer.eos_token_id != tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    text = "Spaces  two,\n\tdon 't change 1,234.5 é <b>"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size == 262144

    def answer(prompt: str) -> str:
        inputs = tokenizer(prompt, return_tensors="pt")
        rows = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        return tokenizer.decode(rows[0, inputs.input_ids.shape[1] :])

    assert "Shakespeare" in answer("Question: who wrote Romeo and Juliet?\nAnswer:")
    assert answer("2 + 2 =").strip().startswith("4")
    read = tokenizer("Paris is the capital and most populous city of France.", return_tensors="pt")
    with torch.no_grad():
        loss = model(**read, labels=read.input_ids).loss
    assert loss.item() < 3  # nats a token; a wrong layout of the weights gives 10 or more
