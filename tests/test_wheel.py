"""What is shipped works without the checkout: the wheel, installed elsewhere, trains a step."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import deepfake.config

pytestmark = pytest.mark.slow
PROJECT = Path(__file__).parents[1]


def done(*command: object, cwd: Path) -> str:
    """Standard output of a command that succeeds; it sees this environment, but nothing of the checkout."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ended = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, PROJECT, cwd=folder)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment that holds the wheel, and borrows what it depends on from this one."""
    venv = tmp_path_factory.mktemp("venv")
    done(sys.executable, "-m", "venv", venv, cwd=venv)
    programs = venv / ("Scripts" if os.name == "nt" else "bin")
    done(programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=venv)
    own = done(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=venv)
    borrowed = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    # Folders named in a .pth file come after the environment's own, and their own .pth files, such as that of the
    # checkout, are not read.
    Path(own.strip(), "borrowed.pth").write_text("\n".join(borrowed))
    return programs


def test_the_wheel_holds_every_setting_and_no_test(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
    conf = Path(deepfake.config.conf_dir())
    # os.walk, for conf/experiment is a link
    settings = [Path(place, name) for place, _, names in os.walk(conf, followlinks=True) for name in names]
    expected = {f"deepfake/conf/{path.relative_to(conf).as_posix()}" for path in settings if path.suffix == ".yaml"}
    assert {"deepfake/conf/train.yaml", "deepfake/conf/experiment/report/efficientnet_3.yaml"} <= expected
    assert expected <= held
    shipped = [file for kind in ("*.py", "*.html") for file in (PROJECT / "deepfake").rglob(kind)]
    package = {f"deepfake/{path.relative_to(PROJECT / 'deepfake')}" for path in shipped}
    assert package <= held
    assert {name.split("/")[0] for name in held} == {"deepfake", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}


def test_the_installed_wheel_trains_a_step(installed: Path, faces: Path, tmp_path: Path) -> None:
    where = done(installed / "python", "-c", "import deepfake; print(deepfake.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    done(
        installed / "python", "-m", "deepfake.train", "model=timm", "model.timm=test_resnet", "model.weights=none",
        "model.input_size=32", "epochs=1", "trainer=cpu", "trainer.max_batches=1", "trainer.progress=false",
        "logger=none", f"data.root={faces}", cwd=tmp_path,
    )  # fmt: skip
    (status,) = (tmp_path / "outputs").glob("*/status.json")
    assert json.loads(status.read_text())["status"] == "complete"
    assert (status.parent / "checkpoints" / "best.ckpt").is_file()


def test_the_installed_commands_know_their_settings(installed: Path, tmp_path: Path) -> None:
    told = done(installed / "deepfake-train", "--help", cwd=tmp_path)
    assert "experiment/report: " in told
    assert "efficientnet_3" in told
    assert "runs " in done(installed / "deepfake-recap", "--help", cwd=tmp_path)
