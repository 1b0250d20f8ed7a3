"""Real processes, really killed, and a disk that is really full. `DEEPFAKE_KILLS=20` kills so often."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deepfake import runs
from deepfake.checkpoints import LAST, PREVIOUS, is_whole, read_last
from tests.test_resume import outcome

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("DEEPFAKE_KILLS", "1"))


def command(faces: Path, output: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "deepfake.train", "model=timm", "model.timm=test_resnet", "model.weights=none",
        "model.input_size=32", "trunk.engine=eager", f"data.root={faces}", f"output_dir={output}", "epochs=15",
        "batch_size=4", "unfreeze=1", "cache=off", "trainer=cpu", "logger=none", "audit=off", "patience=null", *more,
    ]  # fmt: skip


def environment(tmp_path: Path) -> dict[str, str]:
    """Temporary files lie on another file system, from which nothing can be renamed into the run folder."""
    elsewhere = Path("/dev/shm", f"deepfake-{os.getpid()}")  # noqa: S108 - it is to be another file system
    if not elsewhere.parent.is_dir():
        elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    return os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(elsewhere)}


def the_run(output: Path) -> Path:
    return next(status.parent for status in output.glob("*/status.json"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> tuple[Any, float]:
    """What an uninterrupted run comes to, and how long it takes once it has begun."""
    output = tmp_path_factory.mktemp("whole")
    subprocess.run(command(faces, output), env=environment(output), check=True, capture_output=True)
    folder = the_run(output)
    began = (folder / "config.yaml").stat().st_mtime
    return outcome(folder), (folder / runs.STATUS).stat().st_mtime - began


def test_killed_at_random_instants_it_ends_as_if_it_had_not_been(tmp_path: Path, faces: Path, whole: Any) -> None:
    expected, seconds = whole
    draw = random.Random(KILLS)  # noqa: S311 - nothing secret
    reached = []
    for _ in range(KILLS):
        begun = time.time()
        process = subprocess.Popen(
            command(faces, tmp_path), env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not any(
            file.stat().st_mtime > begun for file in tmp_path.glob("*/config.yaml")
        ):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1.2 * seconds / max(2, KILLS / 4)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        folder = the_run(tmp_path)
        state = read_last(folder / runs.CHECKPOINTS)
        kept = [name for name in (LAST, PREVIOUS) if (folder / runs.CHECKPOINTS / name).exists()]
        assert (state is None) == (not kept), "where there is a checkpoint, one is whole"
        if (folder / runs.BEST).exists():
            assert is_whole(folder / runs.BEST)
        reached.append(state["epoch"] if state else 0)
    assert reached == sorted(reached), "what was reached once is not lost again"
    subprocess.run(command(faces, tmp_path), env=environment(tmp_path), check=True, capture_output=True)
    folder = the_run(tmp_path)
    assert outcome(folder) == expected
    if KILLS > 5:
        print("epochs reached at each kill:", reached)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_command_has_its_status_and_goes_on(
    tmp_path: Path, faces: Path, whole: Any, number: signal.Signals, status: int
) -> None:
    expected, _ = whole
    process = subprocess.Popen(command(faces, tmp_path), env=environment(tmp_path), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob(f"*/{runs.CHECKPOINTS}/{LAST}")):
        time.sleep(0.01)
    process.send_signal(number)
    process.send_signal(number)
    _, told = process.communicate()
    assert process.returncode == status, told
    assert told.splitlines()[-1].startswith(f"error: stopped by {number.name}. Run the same command again")
    assert "Traceback" not in told
    assert runs.read_status(the_run(tmp_path)) == "stopped"
    if number == signal.SIGINT:
        return  # from here on the same
    subprocess.run(command(faces, tmp_path), env=environment(tmp_path), check=True, capture_output=True)
    assert outcome(the_run(tmp_path)) == expected


def test_a_full_disk_of_50_mb_costs_nothing_that_was_kept(tmp_path: Path, faces: Path, whole: Any) -> None:
    """In a namespace of its own, where mounting is allowed to anyone."""
    output, room = tmp_path / "output", tmp_path / "kept"
    output.mkdir()
    run = " ".join(map(repr, command(faces, output, f"data.cache.dir={tmp_path / 'cache'}")))
    script = f"""
        mount -t tmpfs -o size=50m tmpfs {output} || exit 77
        head -c 43000000 /dev/zero > {output}/filler
        {run} 2> {tmp_path}/told; echo $? > {tmp_path}/status
        rm {output}/filler
        cp -r {output} {tmp_path}/full
        {run} || exit 1
        cp -r {output} {room}
    """
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*enter, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here to mount a small disk in")
    done = subprocess.run([*enter, script], env=environment(tmp_path), capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(f"no small disk can be mounted here: {done.stderr}")
    told = (tmp_path / "told").read_text()
    assert (tmp_path / "status").read_text() == "2\n", told
    assert "No space left on device" in told.splitlines()[-1]
    assert "Traceback" not in told
    state = read_last(the_run(tmp_path / "full") / runs.CHECKPOINTS)
    assert state is not None
    assert not list((tmp_path / "full").rglob("*.tmp"))
    assert done.returncode == 0, done.stderr
    assert f"goes on from epoch {state['epoch']} " in (the_run(room) / "train.log").read_text()
    assert outcome(the_run(room)) == whole[0]
