"""Datasets and tokenizer are reproducible byte for byte; weights are installed only above the thresholds."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.miniature import build
from scripts.miniature.world import make_world


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miniature")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMSM_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert build.main(["--datasets-only", "--folder", str(folder)]) == 0
    return folder


def test_rebuilt_files_equal_the_shipped_ones(rebuilt: Path) -> None:
    built = {path.relative_to(rebuilt): path.read_bytes() for path in rebuilt.rglob("*") if path.is_file()}
    assert len(built) > 20
    for path, content in built.items():
        assert (build.FOLDER / path).read_bytes() == content, path


def test_the_shipped_datasets_contain_no_other_file(rebuilt: Path) -> None:
    def files(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}

    assert files(build.FOLDER / "hub") == files(rebuilt / "hub")


def test_another_seed_gives_another_world() -> None:
    assert make_world(1).facts != make_world(2).facts
    assert make_world(1) == make_world(1)


def test_missed_thresholds_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"webq": {"paper": 95.0, "corrected": 89.9}, "cola": dict.fromkeys(build.STYLES, 0)}
    assert build.missed_thresholds(scores) == ["webq"]
    assert "below the threshold: webq" in capsys.readouterr().out


@pytest.mark.parametrize("points", [89.0, 95.0])
def test_weights_are_installed_only_if_they_reach_the_thresholds(
    points: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, cache = tmp_path / "shipped", tmp_path / "cache"
    for part in ("hub", "model"):
        (shipped / part).mkdir(parents=True)
        (shipped / part / "old").write_text("old")

    def world(folder: Path) -> object:
        for part in ("hub", "model"):
            (folder / part).mkdir(parents=True)
            (folder / part / "new").write_text("new")
        return build.make_world()

    monkeypatch.setenv("IMSM_CACHE", str(cache))
    monkeypatch.setattr(build, "build_datasets", world)
    monkeypatch.setattr(build, "build_weights", lambda folder, world, *, step_fraction: None)
    scores = {task: dict.fromkeys(build.STYLES, points) for task in build.TASKS}
    monkeypatch.setattr(build, "check_weights", lambda folder: scores)
    reached = points > 90
    assert build.main(["--folder", str(shipped)]) == (0 if reached else 1)
    for part in ("hub", "model"):
        assert [path.name for path in (shipped / part).iterdir()] == ["new" if reached else "old"]
    assert sorted(path.name for path in shipped.iterdir()) == ["hub", "model"]
    assert bool(list(cache.iterdir())) != reached  # otherwise the new files are kept for inspection
