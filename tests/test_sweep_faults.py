"""What kills a job, or the sweep itself, loses nothing else: whole commands in processes of their own."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from deepfake import runs

SETTINGS = (
    "model=timm", "model.timm=test_resnet", "model.weights=none", "model.input_size=32", "batch_size=16",
    "trunk.engine=eager", "accumulate=1", "epochs=1", "trainer=cpu", "logger=none", "name=lr${lr}",
)  # fmt: skip

LIMIT = 300  # seconds, after which a test that waits for what does not come fails

JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
SUBMITIT = ("hydra/launcher=submitit_local",)

# Python runs a file of this name when it starts. The process that opens the log of a run named here has its accident.
ACCIDENTS = """
import os, signal, sys

def accident(event, arguments):
    if event == "open" and str(arguments[0]).endswith("/train.log"):
        if "lr0.002-" in arguments[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        if "lr0.003-" in arguments[0]:
            raise RuntimeError("boom")

sys.addaudithook(accident)
"""

# Or there is another training, which imports nothing; who trains has a file of its number beside this one.
INSTEAD = """
import os, signal, sys, time, types

def train(cfg):
    from deepfake.errors import UserError

    open(os.path.join(os.path.dirname(__file__), str(os.getpid())), "w").close()
{body}

sys.modules["deepfake.training"] = module = types.ModuleType("deepfake.training")
module.train = train
"""


class Sweep:
    """The command with -m in an output folder of its own."""

    def __init__(self, faces: Path, home: Path) -> None:
        self.output, self.folder, self.site = home / "outputs", home / "outputs" / "sweeps" / "one", home / "site"
        self.where = (f"data.root={faces}", f"output_dir={self.output}", f"hydra.sweep.dir={self.folder}")
        self.site.mkdir()
        self.started: list[subprocess.Popen[str]] = []

    def python_begins_with(self, text: str) -> None:
        (self.site / "sitecustomize.py").write_text(text)

    def trains_instead(self, body: str) -> None:
        self.python_begins_with(INSTEAD.format(body=indent(body, "    ")))

    def start(self, *overrides: str) -> "subprocess.Popen[str]":
        """What it and whatever it starts say goes into one pipe: there is an end to read when all have ended."""
        process = subprocess.Popen(
            [sys.executable, "-m", "deepfake.train", "-m", *SETTINGS, *self.where, *overrides],
            env=os.environ | {"PYTHONPATH": str(self.site)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a process group, as a terminal has for a command
        )
        self.started.append(process)
        return process

    def run(self, *overrides: str) -> tuple[int, list[str]]:
        """Its status and what it said, by lines."""
        process = self.start(*overrides)
        told = to_the_end(process)
        return process.returncode, told

    def jobs(self, folder: Path | None = None) -> list[dict[str, Any]]:
        """The records, by number, of those that have begun."""
        files = sorted(((folder or self.folder) / "jobs").glob("*.json"), key=lambda file: int(file.stem))
        return [json.loads(file.read_text()) for file in files]

    def workers(self) -> list[str]:
        """Numbers of the processes that have trained by `trains_instead`."""
        return [file.name for file in self.site.iterdir() if file.name.isdigit()]

    def messages(self) -> list[str]:
        return [job["message"] for job in self.jobs()]

    def run_folder(self, lr: str) -> Path:
        (folder,) = self.output.glob(f"lr{lr}-*")
        return folder


@pytest.fixture
def sweep(faces: Path, tmp_path: Path) -> Iterator[Sweep]:
    sweep = Sweep(faces, tmp_path)
    yield sweep
    for process in sweep.started:
        process.kill()


def to_the_end(process: "subprocess.Popen[str]") -> list[str]:
    """What was said, when nothing that may say more is alive."""
    return process.communicate(timeout=LIMIT)[0].splitlines()


def wait(process: "subprocess.Popen[str]", until: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not until():
        assert process.poll() is None, to_the_end(process)
        assert time.monotonic() - began < LIMIT
        time.sleep(0.02)


def content(folder: Path) -> dict[str, tuple[int, str]]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file): (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files}


# ------------------------------------------------------------------------------------------------- real trainings


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), JOBLIB, SUBMITIT], ids=["basic", "joblib", "submitit"])
def test_a_job_that_raises_one_that_is_killed_and_one_that_ends_in_nan_cost_no_other(
    launcher: tuple[str, ...], sweep: Sweep
) -> None:
    accidents = {"0.002": "killed (SIGKILL)", "0.003": "RuntimeError('boom')", "1e+38": "Lower lr (now 1e+38)"}
    if launcher == SUBMITIT:  # there each job imports everything anew
        accidents = {"0.002": accidents["0.002"]}
    bad, lrs = len(accidents), [*accidents, "0.1", "0.01"]
    command = (f"lr={','.join(lrs)}", *launcher)
    sweep.python_begins_with(ACCIDENTS)
    status, told = sweep.run(*command)
    assert status == 1, told
    assert [job["status"] for job in sweep.jobs()] == ["failed"] * bad + ["complete"] * 2
    count, *listed, advice = told[-bad - 2 :]
    assert count == f"error: {bad} of {len(lrs)} jobs failed; the others are complete."
    assert [line.split(":")[1] for line in listed] == [f"   job {number}" for number in range(bad)]
    for line, reason in zip(listed, accidents.values(), strict=True):
        assert reason in line
    assert advice == "error: Run the same command again: only what is missing is run."
    overrides = [job["overrides"] for job in sweep.jobs()]
    complete = [sweep.run_folder(lr) for lr in lrs[bad:]]
    before = [content(folder) for folder in complete]
    assert all(runs.is_complete(folder) for folder in complete)
    if launcher:  # that the next sweep is told of these is not the launcher's doing
        return

    sweep.python_begins_with("")
    status, told = sweep.run(*command)
    assert status == 1, told
    assert told[-3] == f"error: 1 of {len(lrs)} jobs failed; the others are complete."
    assert [job["status"] for job in sweep.jobs()] == ["complete"] * 2 + ["failed"] + ["complete"] * 2
    assert [job["overrides"] for job in sweep.jobs()] == overrides, "job numbers are stable"
    assert [content(folder) for folder in complete] == before, "what was complete is not touched"
    assert all(runs.is_complete(sweep.run_folder(lr)) for lr in lrs[:2])


@pytest.mark.slow
def test_two_sweeps_that_start_at_once_in_the_same_folders_both_end_well(sweep: Sweep) -> None:
    both = [sweep.start("lr=0.01,0.02"), sweep.start("lr=0.02,0.01")]
    told = [to_the_end(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    folders = [sweep.folder, sweep.folder.with_name("one-2")]
    for folder in folders:
        assert [job["status"] for job in sweep.jobs(folder)] == ["complete"] * 2
        assert (folder / "comparison.csv").exists()
    assert sorted(job["overrides"].split()[-1] for folder in folders for job in sweep.jobs(folder)[:1]) == [
        "lr=0.01",
        "lr=0.02",
    ]
    assert runs.is_complete(sweep.run_folder("0.01"))
    assert runs.is_complete(sweep.run_folder("0.02"))
    assert not list(sweep.output.glob(".replaced/*")), "no run was made twice"


# ------------------------------------------------------------------------------------------------ another training


def test_a_sweep_that_begins_in_the_folder_of_one_that_runs_gets_its_own(sweep: Sweep, tmp_path: Path) -> None:
    go = tmp_path / "go"
    sweep.trains_instead(f"while not os.path.exists({str(go)!r}): time.sleep(.01)\nraise UserError(str(cfg.lr))")
    first = sweep.start("lr=1,2")
    wait(first, lambda: bool(sweep.jobs()))
    second = sweep.start("lr=3")
    wait(second, lambda: bool(sweep.jobs(sweep.folder.with_name("one-2"))))
    go.touch()
    told = [to_the_end(process) for process in (first, second)]
    assert f"{sweep.folder} is the folder of a sweep that is running: this one's is {sweep.folder}-2" in told[1]
    assert sweep.messages() == ["1.0", "2.0"]
    assert [job["message"] for job in sweep.jobs(sweep.folder.with_name("one-2"))] == ["3.0"]

    # It is free again.
    assert sweep.run("lr=4")[0] == 1
    assert sweep.messages() == ["4.0"]


@pytest.mark.parametrize(
    ("settings", "threads"),
    [((), "None"), (JOBLIB, "5"), ((*JOBLIB, "trunk.threads=3"), "3")],
    ids=["basic", "joblib", "given"],
)
def test_jobs_side_by_side_have_the_threads_of_the_whole_sweep_for_a_pass(
    settings: tuple[str, ...], threads: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    sweep.trains_instead("raise UserError(str(cfg.trunk.threads))")
    assert sweep.run("lr=1,2", *settings)[0] == 1
    assert sweep.messages() == [threads] * 2


def test_jobs_whose_settings_name_other_sweep_folders_are_told_at_the_end_of_theirs(sweep: Sweep) -> None:
    sweep.trains_instead("raise UserError('no')")
    sweep.where = (*sweep.where[:2], f"hydra.sweep.dir={sweep.output}/${{seed}}")
    status, told = sweep.run("seed=1,2")
    assert status == 1
    assert told[-4] == "error: 2 of 2 jobs failed; the others are complete."


@pytest.mark.parametrize("launcher", [(), JOBLIB], ids=["basic", "joblib"])
@pytest.mark.parametrize(
    ("number", "send", "status"), [(signal.SIGTERM, os.kill, 143), (signal.SIGINT, os.killpg, 130)]
)
def test_a_signal_ends_the_sweep_with_all_its_processes_and_tells_what_is_missing(
    launcher: tuple[str, ...], number: signal.Signals, send: Callable[[int, int], None], status: int, sweep: Sweep
) -> None:
    sweep.trains_instead("while cfg.lr: time.sleep(.01)")
    process = sweep.start("lr=1,2,3", *launcher)
    wait(process, lambda: bool(sweep.workers()))
    send(process.pid, number)
    told = to_the_end(process)
    assert process.returncode == status
    count, *_, third, advice = told[-5:]
    assert count == "error: 3 of 3 jobs are missing; the others are complete."
    assert third.startswith("error:   job 2: ")
    assert third.endswith(" lr=3: not run")
    assert advice.startswith(f"error: stopped by {number.name}. Run the same command again")


def test_the_training_ends_as_it_does_without_a_sweep(sweep: Sweep) -> None:
    sweep.trains_instead(
        "from deepfake.signals import Stopping\n"
        "with Stopping() as stopping:\n"
        "    stopping.waits = True\n"
        "    print('within a step', flush=True)\n"
        "    while stopping.asked is None: time.sleep(.01)\n"
        "    print('the step is done', flush=True)\n"
        "    stopping.here()\n"
    )
    process = sweep.start("lr=1,2")
    assert process.stdout
    while "within a step" not in process.stdout.readline():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    told = to_the_end(process)
    assert process.returncode == 143
    assert told[0] == "the step is done"


def test_a_sweep_that_is_killed_leaves_no_process(sweep: Sweep) -> None:
    sweep.trains_instead("while cfg.lr: time.sleep(.01)")
    process = sweep.start("lr=1,2")
    wait(process, lambda: bool(sweep.workers()))
    process.kill()
    to_the_end(process)


def test_what_a_killed_job_had_started_ends_with_it(sweep: Sweep) -> None:
    sweep.trains_instead(
        "if cfg.lr == 1:\n"
        "    if os.fork() == 0:\n"
        "        while True: time.sleep(.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "raise UserError('next')"
    )
    assert sweep.run("lr=1,2")[0] == 1
    assert [message.split()[0] for message in sweep.messages()] == ["killed", "next"]


def test_a_job_that_ends_by_itself_is_told_with_how(sweep: Sweep) -> None:
    sweep.trains_instead("os._exit(7) if cfg.lr == 1 else os.abort()")
    assert sweep.run("lr=1,2")[0] == 1
    ended = [message.split(";")[0] for message in sweep.messages()]
    assert ended == ["the training process ended with exit status 7", "the training process ended by SIGABRT"]


def test_jobs_share_a_process_until_one_breaks(sweep: Sweep) -> None:
    sweep.trains_instead("if cfg.lr == 3: raise RuntimeError\nraise UserError(str(os.getpid()))")
    process = sweep.start("lr=1,2,3,4")
    to_the_end(process)
    first, second, _, after = sweep.messages()
    assert first == second
    assert len({first, after, str(process.pid)}) == 3


def test_a_job_has_the_environment_that_hydra_gives_it(sweep: Sweep) -> None:
    sweep.trains_instead("raise UserError(os.environ['NUMBER'])")
    sweep.run("lr=1,2", "+hydra.job.env_set.NUMBER=${hydra:job.num}")
    assert sweep.messages() == ["0", "1"]


def test_a_job_that_is_cancelled_where_a_launcher_runs_it_ends_alone(sweep: Sweep) -> None:
    sweep.trains_instead(
        "if cfg.lr == 1:\n    os.kill(os.getppid(), signal.SIGTERM)\n    time.sleep(60)\nraise UserError('ran')"
    )
    assert sweep.run("lr=1,2,3", *JOBLIB)[0] == 1
    assert sweep.messages() == ["interrupted", "ran", "ran"]


def test_a_job_that_is_preempted_is_begun_again(sweep: Sweep, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    sweep.trains_instead(
        f"if os.path.exists({str(begun)!r}): raise UserError('again')\n"
        f"open({str(begun)!r}, 'w').close()\n"
        "os.kill(os.getppid(), signal.SIGUSR2)\n"
        "time.sleep(60)"
    )
    assert sweep.run("lr=1", *SUBMITIT)[0] == 1
    assert sweep.messages() == ["again"]


def test_a_job_may_start_processes_whatever_launcher_runs_it(sweep: Sweep) -> None:
    sweep.trains_instead(
        "import multiprocessing\n"
        "with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "    raise UserError(str(pool.map(abs, [-cfg.lr, -1.0])))"
    )
    assert sweep.run("lr=2,3", *JOBLIB)[0] == 1
    assert sweep.messages() == ["[2.0, 1.0]", "[3.0, 1.0]"]


def test_a_launcher_that_fails_is_told_with_what_is_missing(sweep: Sweep) -> None:
    sweep.trains_instead("os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(60)")
    status, told = sweep.run("lr=1,2,3", *JOBLIB)
    assert status == 1
    count, *listed, advice = told[-5:]
    assert count == "error: 3 of 3 jobs are missing; the others are complete."
    assert {line.rsplit(": ")[-1] for line in listed} <= {"ended abruptly", "not run"}
    assert advice == "error: Run the same command again: only what is missing is run."
    assert any(line.startswith("error: TerminatedWorkerError ended the sweep: ") for line in told)


def test_a_sweep_that_is_suspended_trains_no_more_until_it_goes_on(sweep: Sweep) -> None:
    sweep.trains_instead("while cfg.lr: time.sleep(.01)")
    process = sweep.start("lr=1,2")
    wait(process, lambda: bool(sweep.workers()))

    def worker_is_stopped() -> bool:
        ps = ["ps", "-o", "state=", "-p", *sweep.workers()]
        return subprocess.run(ps, capture_output=True, text=True).stdout.startswith("T")

    process.send_signal(signal.SIGTSTP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    assert worker_is_stopped()
    process.send_signal(signal.SIGCONT)
    wait(process, lambda: not worker_is_stopped())
    process.terminate()
    to_the_end(process)
    assert process.returncode == 143
