"""Names of modules: those of imsm and of the `--config-dir` are imported, all others are not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from imsm.utils import trust
from imsm.utils.errors import UserError
from imsm.utils.trust import ADAPTERS, METRICS, check_trusted, import_trusted, import_trusted_module, trust_folder

PAYLOAD = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\ndef function(**_): ...\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is importable, as the working directory often is, with modules that write a file."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(trust, "_trusted_folders", [])
    for name in ("payload_module.py", "download/payload.py", "package/__init__.py", "imsm/evil.py", "conftest.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(PAYLOAD)
    return tmp_path


def ran(folder: Path) -> list[Path]:
    return list(folder.rglob("ran"))


@pytest.mark.parametrize(
    "name",
    [
        "payload_module.function",
        "download.payload.function",  # a namespace package
        "package.function",
        "package.missing.function",
        "conftest.function",
        "imsm.evil.function",
        "imsm.models.adapters.evil.function",
        "imsm.models.adapters_evil.function",
        "imsm.models.siamese.gate.Gate",  # of another package than the key's
        "imsm.__main__.main",
        "imsm.models.adapters.base._sample_weights",
        "imsm.models.adapters.loramoe.register_adapter.__globals__",
        "os.system",
        "json.loads",
        "builtins.exec",
        "importlib.import_module",
        ".payload_module.function",
        "imsm.models.adapters..evil.function",
        "imsm.models.adapters.base/../../evil.function",
        "imsm.models.adapters:os.function",
        "",
        "imsm",
        "imsm.models.adapters",
        7,
        None,
        ["imsm.models.adapters.loramoe.loramoe"],
    ],
)
def test_a_file_names_no_other_code(folder: Path, name: object) -> None:
    source = folder / "adapter_config.json"
    with pytest.raises(UserError, match=r"^.*adapter_config\.json: python_module="):
        import_trusted(name, within=ADAPTERS, key="python_module", source=source)  # type: ignore[arg-type]
    assert ran(folder) == []


def test_a_function_that_a_module_only_imports_is_rejected() -> None:
    for name in ("imsm.models.adapters.base.dataclass", "imsm.models.adapters.base.PeftConfig"):
        with pytest.raises(UserError, match="only imports it"):
            import_trusted(name, within=ADAPTERS, key="peft._target_")


def test_names_of_the_given_package_are_imported() -> None:
    assert import_trusted("imsm.models.adapters.loramoe.loramoe", within=ADAPTERS, key="k").__name__ == "loramoe"
    assert import_trusted_module("imsm.evaluation.metrics.contain", within=METRICS, key="k").INFO.name == "contain"


def test_modules_of_the_config_dir_are_imported(folder: Path) -> None:
    trust_folder(folder)
    trust_folder(folder)
    assert sys.path.count(str(folder)) == 1
    assert import_trusted("payload_module.function", within=ADAPTERS, key="k").__module__ == "payload_module"
    assert import_trusted_module("package", within=ADAPTERS, key="k").__name__ == "package"
    with pytest.raises(UserError, match="--config-dir"):
        check_trusted("download.payload", within=ADAPTERS, key="k")  # may be merged with a folder elsewhere


def test_an_installed_package_is_linked_into_the_config_dir(folder: Path) -> None:
    (folder / "conf").mkdir()
    (folder / "conf" / "package").symlink_to(folder / "package")
    trust_folder(folder / "conf")
    assert import_trusted("package.function", within=ADAPTERS, key="k").__module__ == "package"


def test_a_loaded_module_of_the_same_name_is_not_taken_for_the_one_in_the_config_dir(folder: Path) -> None:
    conf = folder / "conf"
    conf.mkdir()
    for name in ("json", "payload_module"):
        (conf / f"{name}.py").write_text("function = print\n")
    import payload_module  # type: ignore[import-not-found]

    trust_folder(conf)
    for name in ("json.loads", "payload_module.function"):
        with pytest.raises(UserError, match="--config-dir"):
            import_trusted(name, within=ADAPTERS, key="k")
    assert Path(payload_module.__file__).parent == folder


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("imsm.models.adapters.nothing.factory", "--config-dir"),
        ("imsm.models.adapters.loramoe.loramo", r"did you mean imsm\.models\.adapters\.loramoe\.loramoe\?"),
        ("imsm.models.adapters.base.RUN_FIELDS", "no function or class RUN_FIELDS"),
    ],
)
def test_a_target_that_cannot_be_imported_is_a_user_error(target: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        import_trusted(target, within=ADAPTERS, key="peft._target_")
