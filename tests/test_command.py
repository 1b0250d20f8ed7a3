"""What a command says, and the status it ends with, when a person, the function or Hydra gets something wrong."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from omegaconf import DictConfig

from deepfake.command import command
from deepfake.errors import UserError

MODELS = "densenet121, efficientnet, efficientnet_lite, resnet18, timm, vit"


class Command:
    """A command line given in an empty folder to a command whose function does nothing; `jobs` are its settings."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd
        self.jobs: list[DictConfig] = []
        self.does: Callable[[], float | None] = lambda: None
        self.sweeps = True

    def __call__(self, *arguments: str, settings: str = "train") -> int:
        """The exit status; what was printed is in `out` and `err`."""

        @command(settings, sweeps=self.sweeps)
        def main(cfg: DictConfig) -> float | None:
            self.jobs.append(cfg)
            return self.does()

        self.capfd.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["deepfake-train", *arguments])
            try:
                main()
                status = 0
            except SystemExit as ended:
                status = int(ended.code or 0)
            finally:
                self.out, self.err = self.capfd.readouterr()
        return status


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return Command(capfd)


# ------------------------------------------------------------------------------------------------- Hydra's refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # choices
        ("model=foo", f"model=foo is refused: expected one of {MODELS}."),
        ("+model=foo", f"model=foo is refused: expected one of {MODELS}."),
        ("model=resnet-18", f"model=resnet-18 is refused: expected one of {MODELS}; did you mean resnet18?"),
        ("model=", f"model= is refused: expected one of {MODELS}."),
        ("model=3", f"model=3 is refused: expected one of {MODELS}."),
        ("scheduler=null", "scheduler=null is refused: expected one of cosine, none, plateau."),
        ("hydra/launcher=foo", "hydra/launcher=foo is refused: expected one of basic, joblib, submitit_local, "
         "submitit_slurm."),
        ("--cfg job model=foo", f"model=foo is refused: expected one of {MODELS}."),
        ("--help model=foo", f"model=foo is refused: expected one of {MODELS}."),
        # keys
        ("epocs=3", "unknown setting epocs: did you mean epochs?"),
        ("data.rot=x", "unknown setting data.rot: did you mean data.root?"),
        ("modle.weights=none", "unknown setting modle: did you mean model?"),
        ("weights=none", "unknown setting weights: did you mean model.weights?"),
        ("experiments=report/vit", "unknown setting experiments: did you mean experiment?"),
        ("scheduler=none scheduler.qq=1", "unknown setting scheduler.qq: known here: name."),
        ("epochs.x=3", "unknown setting epochs.x: known here: nothing."),
        ("+epochs=3", "+epochs is refused: there is epochs already; leave out the +."),
        ("+model=vit", "+model is refused: there is model already; leave out the +."),
        # grammar
        ("epochs", "epochs is refused: expected NAME=VALUE."),
        ("epochs=1,2", "epochs=1,2 is refused: several values are a sweep, which needs -m; a list is NAME=[A,B]."),
        *(
            (f"{override}", f"{override} is refused: expected NAME=VALUE; a VALUE with brackets, commas or quotes "
             "in it stands in quotes: 'NAME=\"a (b)\"'.")
            for override in ("unfreeze=[", "data.root=/faces(1)", "name=it's")
        ),
        # options
        ("--epochs 3", "--epochs is refused: expected options such as -m first, then settings as NAME=VALUE without "
         "dashes."),
        ("seed=0 -m epochs=1,2", "epochs=1,2 is refused: expected options such as -m first, then settings as "
         "NAME=VALUE without dashes."),
        ("--config-name", "argument --config-name/-cn: expected one argument; --hydra-help lists the options."),
        # what only Hydra knows: its own words
        ("~foo", "Could not delete from config. 'foo' does not exist."),
        ("--resolve", "The --resolve flag can only be used in conjunction with --cfg or --help"),
        ("hydra.mode=FOO", "Error merging override hydra.mode=FOO: hydra.mode: Invalid value 'FOO', expected one of "
         "[RUN, MULTIRUN]."),
        ("-m output_dir=${nowhere} seed=0,1", "hydra.sweep.dir: Interpolation key 'nowhere' not found."),
    ],
)  # fmt: skip
def test_a_command_line_that_cannot_be_composed_is_one_line_and_status_2(
    line: Command, arguments: str, message: str, tmp_path: Path
) -> None:
    assert line(*arguments.split()) == 2
    assert line.err == f"error: {message}\n"
    assert line.out == ""
    assert line.jobs == []
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_that_does_not_exist_is_answered_with_those_that_do(line: Command) -> None:
    assert line("experiment=efficientnet_3") == 2
    assert line.err.startswith("error: experiment=efficientnet_3 is refused: expected one of demo/frozen, ")
    assert line.err.endswith(", sweep/unfreeze; did you mean report/efficientnet_3?\n")


def test_settings_of_another_command_are_answered_with_those_that_are(line: Command) -> None:
    assert line("--config-name=trian") == 2
    assert line.err.startswith("error: configuration trian is refused: expected one of ")
    assert line.err.endswith("; did you mean train?\n")


def test_a_command_names_only_settings_of_its_own(line: Command) -> None:
    assert line("model=vit", settings="recap") == 2
    assert len(line.err.splitlines()) == 1
    assert line("qqqq=1", settings="recap") == 2
    assert line.err == "error: unknown setting qqqq: known here: output, runs.\n"


def test_a_mistake_of_several_lines_is_told_in_one(line: Command) -> None:
    assert line("name=a\nb'") == 2
    assert len(line.err.splitlines()) == 1


def test_what_breaks_in_hydra_is_one_line_that_says_how_to_see_more(line: Command) -> None:
    assert line("-m", "hydra.sweeper.max_batch_size=0", "seed=0,1") == 2
    assert line.err == "error: Hydra ended with AssertionError(); HYDRA_FULL_ERROR=1 shows where.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("model=vit,foo", f"model=foo is refused: expected one of {MODELS}."),
        ("scheduler=cosine,none scheduler.warmup_epochs=2", "unknown setting scheduler.warmup_epochs: known here: "
         "name."),
        ("seed=0,1 epocs=3", "unknown setting epocs: did you mean epochs?"),
        ("seed=[", "seed=[ is refused: expected NAME=VALUE; a VALUE with brackets, commas or quotes in it stands in "
         "quotes: 'NAME=\"a (b)\"'."),
    ],
)  # fmt: skip
def test_one_job_that_cannot_be_composed_refuses_a_sweep_before_its_first(
    line: Command, arguments: str, message: str
) -> None:
    assert line("-m", *arguments.split()) == 2
    assert line.err == f"error: {message}\n"
    assert line.jobs == []


def test_hydra_is_left_to_itself_when_asked(line: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(MissingConfigException):
        line("model=foo")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def recap(argument: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter."""
    module = [sys.executable, "-m", "deepfake.recap", argument]
    return subprocess.run(module, cwd=cwd, capture_output=True, text=True)


def test_a_module_says_the_same(tmp_path: Path) -> None:
    done = recap("outputt=x", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown setting outputt: did you mean output?\n"
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- what a job does


@pytest.mark.parametrize(("value", "status"), [(None, 0), (0, 0), (3, 3), (4, 4), (0.5, 0), (2.0, 0)])
def test_an_int_is_the_exit_status_and_nothing_else_is(line: Command, value: float | None, status: int) -> None:
    line.does = lambda: value
    assert line() == status
    assert (line.out, line.err) == ("", "")
    assert len(line.jobs) == 1


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (UserError("expected this, found that"), 2, "expected this, found that"),
        (UserError("expected this,\nfound that"), 2, "expected this, found that"),
        (KeyboardInterrupt(), 130, "interrupted. Run the same command again: what is complete is kept."),
    ],
)
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=0,1")])
def test_what_ends_a_job_is_one_line(
    line: Command, error: BaseException, status: int, told: str, sweep: tuple[str, ...]
) -> None:
    line.does = failing(error)
    assert line(*sweep) == status
    assert line.err == f"error: {told}\n"
    assert len(line.jobs) == 1


def test_an_error_of_ours_ends_with_its_trace_alone(line: Command) -> None:
    line.does = failing(ValueError("boom"))
    assert line() == 1
    assert line.err.startswith("Traceback (most recent call last)")
    assert line.err.endswith("ValueError: boom\n")


@pytest.mark.parametrize(("value", "status", "jobs"), [(0, 0, 3), (0.5, 0, 3), (3, 3, 1)])
def test_a_sweep_goes_on_after_status_0(line: Command, value: float, status: int, jobs: int) -> None:
    line.does = lambda: value
    assert line("-m", "seed=0,1,2", "~hydra.callbacks.comparison") == status  # which looks for what train writes
    assert [job.seed for job in line.jobs] == [0, 1, 2][:jobs]


def test_a_command_that_does_not_sweep_refuses_to(line: Command) -> None:
    line.sweeps = False
    assert line("-m", "seed=0,1") == 2
    assert line.jobs == []
    assert line.err.startswith("error: -m is refused: expected one data set or list of runs at a time")


def test_the_environment_is_as_it_was_after_a_command(line: Command) -> None:
    before = dict(os.environ)
    assert line() == 0
    assert line("model=foo") == 2
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [("--help epochs=5", "epochs: 5"), ("--cfg job epochs=5", "epochs: 5"), ("--version", "Hydra 1.3")],
)
def test_options_that_ask_for_an_answer_get_it_without_a_job(line: Command, arguments: str, told: str) -> None:
    assert line(*arguments.split()) == 0
    assert told in line.out
    assert line.err == ""
    assert line.jobs == []


def test_hydra_tells_its_options(tmp_path: Path) -> None:
    done = recap("--hydra-help", tmp_path)  # not in this process: it directs all logging to this test's output
    assert (done.returncode, done.stderr) == (0, "")
    assert "--config-name" in done.stdout


def test_who_reads_a_part_of_what_is_said_is_told_of_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    command_line = [sys.executable, "-m", "deepfake.recap", "--help"]
    done = subprocess.run(command_line, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + 13, b"")
