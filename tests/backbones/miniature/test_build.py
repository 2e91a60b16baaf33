"""World, twins and tokenizer come out of the seed byte for byte; the command checks the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.backbones.miniature import build
from imsm.backbones.miniature.world import make_world


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miniature")
    assert build.main(["--world-only", "--folder", str(folder)]) == 0
    return folder


def test_rebuilt_files_equal_the_shipped_ones(rebuilt: Path) -> None:
    made = {
        path.relative_to(rebuilt): path.read_bytes()
        for path in rebuilt.rglob("*")
        if path.is_file()
    }
    assert len(made) > 20
    for path, content in made.items():
        assert (build.FOLDER / path).read_bytes() == content, path


def test_shipped_mirror_holds_nothing_else(rebuilt: Path) -> None:
    def files(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}

    assert files(build.FOLDER / "hub") == files(rebuilt / "hub")


def test_another_seed_makes_another_world() -> None:
    assert make_world(1).facts != make_world(2).facts
    assert make_world(1) == make_world(1)


def test_missed_thresholds_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"webq": {"verbatim": 95.0, "corrected": 89.9}, "cola": dict.fromkeys(build.STYLES, 0)}
    assert build.missed_thresholds(scores) == ["webq"]
    assert "below the threshold: webq" in capsys.readouterr().out
