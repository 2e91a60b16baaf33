"""Options of a config group: custom ones first, with Hydra's defaults lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.utils.errors import UserError
from imsm.utils.options import closest_match, list_options, load_option


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "short.yaml").write_text("defaults: [gsm8k, _self_]\nname: short\nmax_new_tokens: 5\n")
    return tmp_path


def test_a_custom_option_may_extend_a_shipped_one(config_dir: Path) -> None:
    values = load_option("data", "short", config_dir=config_dir)
    assert (values["name"], values["max_new_tokens"]) == ("short", 5)
    assert values["module"] == load_option("data", "gsm8k")["module"]
    assert "defaults" not in values


def test_custom_options_are_listed_with_their_folder_only(config_dir: Path) -> None:
    assert "short" in list_options("data", config_dir=config_dir)
    assert "short" not in list_options("data")


def test_a_custom_option_replaces_the_shipped_one_of_its_name(config_dir: Path) -> None:
    (config_dir / "data" / "gsm8k.yaml").write_text("name: gsm8k\n")
    assert load_option("data", "gsm8k", config_dir=config_dir) == {"name": "gsm8k"}


def test_a_changed_file_is_read_again_and_returned_values_are_copies(config_dir: Path) -> None:
    path = config_dir / "data" / "short.yaml"
    path.write_text("a: [1]\n")
    load_option("data", "short", config_dir=config_dir)["a"].append(2)
    assert load_option("data", "short", config_dir=config_dir) == {"a": [1]}
    path.write_text("a: [1, 2, 3]\n")
    assert load_option("data", "short", config_dir=config_dir) == {"a": [1, 2, 3]}


@pytest.mark.parametrize(("text", "problem"), [("a: [", "is not valid YAML"), ("- a", "must be a mapping")])
def test_an_invalid_file_is_a_user_error(config_dir: Path, text: str, problem: str) -> None:
    (config_dir / "data" / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=problem):
        load_option("data", "bad", config_dir=config_dir)


def test_an_unknown_option_is_a_user_error_with_the_closest_name() -> None:
    with pytest.raises(UserError, match=r"data=gsm8: no such option of data \(.*did you mean data=gsm8k\?"):
        load_option("data", "gsm8")


def test_closest_match_ignores_case_and_dissimilar_words() -> None:
    assert closest_match("LORA", ["lora", "dora"]) == "lora"
    assert closest_match("zzz", ["lora"]) is None
