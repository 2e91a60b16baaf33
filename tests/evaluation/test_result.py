"""`result.json`: atomic writes, validation on reading, provenance."""

from __future__ import annotations

import errno
import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from imsm.evaluation.result import FILE, provenance, read_result, result_error, write_result
from imsm.utils.errors import UserError
from tests.helpers.config import result
from tests.helpers.damage import DAMAGES


def test_a_written_result_is_read_back(tmp_path: Path) -> None:
    record = result("imsm")
    assert write_result(tmp_path, record) == tmp_path / FILE
    assert read_result(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_full_disk_keeps_the_old_result(tmp_path: Path) -> None:
    old = result("peft")
    write_result(tmp_path, old)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_result(tmp_path, result("peft", points=1.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert read_result(tmp_path) == old
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no finished run"),
        ('{"format": 3', "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 2}', "is of format 2, not 3"),
        ('{"format": 3}', "changed since it was written"),
    ],
)
def test_a_damaged_result_is_rejected(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=message):
        read_result(tmp_path)


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"missing"}))
def test_every_damage_is_one_line_with_the_file_and_the_fix(tmp_path: Path, damage: str) -> None:
    DAMAGES[damage](write_result(tmp_path, result("imsm")))
    with pytest.raises(UserError, match=r"mode=evaluate") as caught:
        read_result(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value) and "\n" not in str(caught.value)
    assert result_error(tmp_path) == str(caught.value)


def test_an_edited_score_is_found_and_a_new_layout_of_the_text_is_not_an_edit(tmp_path: Path) -> None:
    path = write_result(tmp_path, result("imsm", points=47.5))
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert read_result(tmp_path) == result("imsm", points=47.5)
    path.write_text(path.read_text().replace("47.5", "57.5", 1))
    with pytest.raises(UserError, match=r"changed since it was written"):
        read_result(tmp_path)


def test_only_an_existing_result_has_an_error(tmp_path: Path) -> None:
    assert result_error(tmp_path) is None
    write_result(tmp_path, result("imsm"))
    assert result_error(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"evaluation": []}, "evaluation is"),
        ({"evaluation": {}}, "evaluation.tasks is"),
        ({"evaluation": {"tasks": []}}, "evaluation.tasks is"),
        ({"evaluation": {"tasks": {"webq": 3}}}, "evaluation.tasks.webq is"),
        ({"config": None}, "config is"),
    ],
)
def test_a_value_that_is_not_a_mapping_is_named(tmp_path: Path, change: dict, name: str) -> None:
    write_result(tmp_path, result("imsm") | change)
    with pytest.raises(UserError, match=f"{FILE}: {name} not a mapping; run the same command"):
        read_result(tmp_path)


def test_a_result_with_missing_keys_is_not_written(tmp_path: Path) -> None:
    record = result("peft")
    del record["fingerprints"]
    with pytest.raises(ValueError, match="fingerprints"):
        write_result(tmp_path, record)


def test_provenance_names_versions() -> None:
    found = provenance()
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    named = {"python", "imsm", "peft", "transformers", "safetensors", "tokenizers", "numpy"}
    assert named <= set(found["versions"])
    git = found["git"]
    assert git is None or (len(git["commit"]) == 40 and isinstance(git["dirty"], bool))
    json.dumps(found)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["evaluation", "settings"], 5),
        (["evaluation", "settings"], []),
        (["evaluation", "tasks", "webq", "protocols"], "strict"),
        (["evaluation", "tasks", "webq", "protocols"], {"strict": {"metrics": []}}),
        (["evaluation", "tasks", "webq", "num_examples"], None),
        (["evaluation", "tasks", "webq", "contamination"], {"count": 1}),
        (["evaluation", "original"], {"webq": {"metrics": {"contain": "40"}}}),
        (["training"], {"tokens_per_second": {}}),
    ],
)
def test_an_odd_inner_value_is_one_line_even_with_a_right_hash(tmp_path: Path, keys: list[str], value: Any) -> None:
    written = result("peft")
    inner = written
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    write_result(tmp_path, written)

    with pytest.raises(UserError, match=r"result\.json: (evaluation|training)\b"):
        read_result(tmp_path)
