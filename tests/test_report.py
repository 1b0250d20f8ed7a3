"""The page of a run as a command, and as what train, evaluate and robustness leave at their end."""

import shutil
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from deepfake import evaluate, recap, report, robustness, runs, training
from deepfake.config import ReportConfig, conf_dir, parse_report, parse_train
from deepfake.errors import UserError
from deepfake.train import run as train
from tests.reporting.test_audit_page import Page
from tests.test_predict import TINY

QUICK = ("progress=false", "engine=eager")


@pytest.fixture(scope="module")
def trained(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, with what its folder was like when its page was written."""
    given = [*TINY, f"data.root={faces}", f"output_dir={tmp_path_factory.mktemp('outputs')}"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse_train(compose("train", overrides=given))
    with pytest.MonkeyPatch.context() as patch:
        write = training.write_run_page

        def watched(folder: Path) -> Path:
            assert runs.read_status(folder) == "running"  # a run that is complete has its page
            return write(folder)

        patch.setattr(training, "write_run_page", watched)
        train(cfg)
    return runs.run_folder(cfg)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def command(module: object, *overrides: str) -> int:
    """The exit status of what the terminal does, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["deepfake", *overrides])
        try:
            module.main()  # type: ignore[attr-defined]
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def test_training_ends_with_a_page_that_says_what_was_not_asked_yet(trained: Path) -> None:
    page = Page(trained / "report.html")
    assert "test images, 50.0 % fake, it is right in" in page.text("answer")
    for what in ("evaluate", "explain", "robustness"):
        assert f"python -m deepfake.{what} run={trained}" in page.source
    assert page.sources_of_images("failures")
    assert "cannot be shown" not in page.source


def test_evaluate_and_robustness_write_it_anew(run: Path) -> None:
    assert command(evaluate, f"run={run}", "baselines=false", "threshold=eer", *QUICK) == 0
    page = Page(run / "report.html")
    assert "All measures" not in page.text("failures")
    assert "Not tested yet" in page.text("looks")
    assert command(robustness, f"run={run}", "perturbations=flip", *QUICK) == 0
    page = Page(run / "report.html")
    assert "flip 1" in page.text("looks")
    assert "Not tested yet" not in page.text("looks")
    assert "cannot be shown" not in page.source


def test_what_goes_elsewhere_leaves_the_page_as_it_was(run: Path, tmp_path: Path) -> None:
    before = (run / "report.html").read_bytes()
    assert command(evaluate, f"run={run}", "baselines=false", f"output={tmp_path}/a", *QUICK) == 0
    assert command(robustness, f"run={run}", "perturbations=flip", f"output={tmp_path}/b", *QUICK) == 0
    assert (run / "report.html").read_bytes() == before


def test_an_ensemble_has_a_page(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    given = (f"run=[{run},{other}]", "ensemble=mean", f"output_dir={tmp_path}/out", "baselines=false", *QUICK)
    assert command(evaluate, *given) == 0
    (folder,) = (tmp_path / "out").glob("ensemble-*")
    page = Page(folder / "report.html")
    assert "it puts together what these runs say. run other" in page.text("training")
    assert "cannot be shown" not in page.source


def test_the_command_makes_the_page_of_each_run_anew(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other one"))
    for folder in (run, other):
        (folder / "report.html").unlink()
    assert command(report, f"run=[{run},'{other}']") == 0
    assert capfd.readouterr().out.splitlines() == [f"{run}/report.html", f"{other}/report.html"]
    assert "it is right in" in Page(other / "report.html").text("answer")


def test_a_comparison_links_the_pages_of_its_runs(run: Path, tmp_path: Path) -> None:
    assert command(recap, f"runs=[{run}]", f"output={tmp_path}/compared") == 0
    assert '<a href="../run/report.html">' in (tmp_path / "compared" / "report.html").read_text()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run={}", "run={}: expected the folder of a complete run, found none. Train it, or name another; python"),
        ("run=[{0}/run,{0}]", "run={}: expected the folder of a complete run, found none."),
        ("+runs={}", "unknown setting runs: did you mean run?"),
        ("run=[]", "run=[] is refused: expected the folder of a run, or a list [A,B] of them."),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    setting: str, message: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (run / "report.html").unlink()
    assert command(report, setting.format(tmp_path)) == 2
    told = capfd.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("error: " + message.format(tmp_path))
    assert not (run / "report.html").exists()


def test_a_folder_that_cannot_be_written_is_told_in_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepfake.reporting.run_page.write_bytes", full)
    with pytest.raises(UserError, match=r"run: expected a folder that can be written, found .*No space left"):
        report.run(ReportConfig(str(run)))


def test_its_settings_compose_and_are_explained(capfd: pytest.CaptureFixture[str]) -> None:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        composed = compose("report", overrides=["run=a"])
    assert parse_report(composed) == ReportConfig("a")
    assert set(OmegaConf.to_container(composed)) == {field.name for field in fields(ReportConfig)}  # type: ignore[arg-type]
    assert command(report, "--help") == 0
    assert "\nrun " in capfd.readouterr().out
