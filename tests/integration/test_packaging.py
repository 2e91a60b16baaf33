"""The wheel carries conf/ and works from any folder, without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, timeout=300
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel, and this environment's libraries behind it."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), cwd=ROOT)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("imsm-*.whl")
    environment = folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(environment), cwd=folder)
    python = environment / "bin" / "python"
    done = run(
        *(sys.executable, "-m", "pip", "--python", str(python), "install"),
        *("--no-deps", "--no-index", str(wheel)),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    (site,) = environment.glob("lib/python*/site-packages")
    libraries = sysconfig.get_path("purelib")
    # Appended, so that the wheel goes before the checkout that a .pth in there may name.
    (site / "libraries.pth").write_text(f"import sys; sys.path.append({libraries!r})\n")
    return environment


@pytest.mark.slow
def test_the_wheel_composes_from_another_folder(installed: Path, tmp_path: Path) -> None:
    python = str(installed / "bin" / "python")
    where = run(python, "-c", "import imsm; print(imsm.__file__)", cwd=tmp_path)
    assert where.stdout.startswith(str(installed)), where.stderr
    shown = run(str(installed / "bin" / "imsm"), "run", "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "gemma3_270m" in shown.stdout
    plugins = run(python, "-c", "import hydra_plugins.imsm_plugins as plugins; print(plugins.__file__)", cwd=tmp_path)
    assert plugins.stdout.startswith(str(installed)), plugins.stderr
    composed = run(python, "-m", "imsm.run", "--cfg", "job", "peft=dora", cwd=tmp_path)
    assert "use_dora: true" in composed.stdout, composed.stderr
    wrong = run(python, "-m", "imsm.run", "-m", "peft=dora,lroa", cwd=tmp_path)
    assert (wrong.returncode, "did you mean peft=lora?" in wrong.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_wheel_has_its_own_root_of_runs(installed: Path, tmp_path: Path) -> None:
    code = "from imsm.utils.paths import *; print(checkout(), conf_folder(), runs_root())"
    environment = {"IMSM_RUNS": "", "XDG_DATA_HOME": str(tmp_path)}
    done = run(str(installed / "bin" / "python"), "-c", code, cwd=ROOT.parent, **environment)
    nothing, conf, runs = done.stdout.split()
    assert nothing == "None"
    assert Path(conf).is_relative_to(installed) and (Path(conf) / "config.yaml").is_file()
    assert runs == str(tmp_path / "imsm" / "runs")


@pytest.mark.slow
def test_the_wheel_ships_the_miniatures_data(installed: Path) -> None:
    (package,) = installed.glob("lib/python*/site-packages/imsm")
    shipped = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    tracked = run("git", "ls-files", "imsm", "conf", cwd=ROOT).stdout.split()
    assert len(tracked) > 100  # an empty list, outside a checkout, would prove nothing
    for name in tracked:
        path = Path(name)
        inside = path if path.parts[0] == "conf" else path.relative_to("imsm")
        assert inside in shipped, name


def test_the_pins_fit_the_requirements() -> None:
    """Every direct requirement has a pin, and the pin lies in its range."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(text for extra in extras for text in extra)]
    assert len(wanted) > 20
    for text in wanted:
        requirement = Requirement(text)
        if requirement.name == "imsm":  # an extra that takes others in
            assert requirement.extras <= project["optional-dependencies"].keys()
            continue
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), (text, pin)
