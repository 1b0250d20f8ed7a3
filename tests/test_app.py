"""The page: what it says of an image, who may send it what, and that nothing leaves this computer."""

import asyncio
import io
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from streamlit.testing.v1 import AppTest

from deepfake import config, inspecting, runs, serving
from deepfake.app import main
from deepfake.config import conf_dir, parse_app, parse_train
from deepfake.data.catalog import read_catalogue
from deepfake.data.faces import Face, NoFace
from deepfake.data.prepared import Preparation
from deepfake.errors import UserError
from deepfake.inspecting import Inspection, Inspector, Trained, table_of
from deepfake.judging import Detector
from deepfake.reference import Reference, features, reference_of
from deepfake.serving import Served
from deepfake.train import run as train
from deepfake.web import page
from tests.data.formats import encoded
from tests.data.hostile import bombs, cut, make_hostile, noisy, white_png
from tests.test_predict import TINY

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

# Pillow's, which the command does not show: a test sees them all.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\..*")

PAGE = Path(page.__file__)
SCRIPT = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = [*TINY, f"data.root={faces}", f"output_dir={tmp_path_factory.mktemp('outputs')}"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse_train(compose("train", overrides=given))
    train(cfg)
    return runs.run_folder(cfg)


@pytest.fixture(scope="module")
def detector(run: Path) -> Detector:
    return Detector.load(run, "eager")


@pytest.fixture(scope="module")
def reference(run: Path, detector: Detector) -> Reference:
    return reference_of(run, detector, 200, "eager", show=False)


@pytest.fixture
def inspector(run: Path, detector: Detector, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> Inspector:
    """To which every image shows a large face."""
    monkeypatch.setattr(inspecting, "find_face", lambda pixels: Face(20, 20, 200, 0, 1))
    trained = Trained.of(read_catalogue(run / "manifest.parquet"))
    return Inspector(detector, "half", 64.0, trained, reference)


def blocks(seed: int, height: int = 48, width: int = 40) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return small.repeat(8, axis=0).repeat(8, axis=1)


# ------------------------------------------------------------------------------------------- what is said of an image


def test_the_answers_are_those_of_predict(inspector: Inspector, detector: Detector, faces: Path) -> None:
    files = sorted(faces.rglob("*.*g"))[::12]
    found = table_of([inspector.inspect(file.name, file.read_bytes()) for file in files])
    expected = detector.predict(files).assign(path=[file.name for file in files])
    pd.testing.assert_frame_equal(found[expected.columns], expected, check_exact=False, atol=1e-6)


def test_hostile_files_fare_as_with_predict(inspector: Inspector, detector: Detector, tmp_path: Path) -> None:
    inspector.reference, inspector._explainer = None, None  # pictures of them all would take long
    make_hostile(tmp_path / "hostile")
    for name, content in (bombs() | noisy()).items():
        (tmp_path / "hostile" / name).write_bytes(content)
    files = [file for file in sorted((tmp_path / "hostile").iterdir()) if file.is_file()]
    found = table_of([inspector.inspect(file.name, file.read_bytes()) for file in files])
    expected = detector.predict(files)
    assert found["status"].tolist() == expected["status"].tolist()
    assert found["reason"].tolist() == expected["reason"].tolist()
    assert {"ok", "unreadable", "too large"} == set(found["status"])


def warnings(inspector: Inspector, pixels: np.ndarray, kind: str = "PNG", **options: Any) -> str:
    suffix = {"PNG": "png", "JPEG": "jpg", "GIF": "gif"}[kind]
    return " ".join(inspector.inspect(f"a.{suffix}", encoded(pixels, kind, **options)).warnings)


def test_nothing_is_said_against_an_image_like_the_training_ones(inspector: Inspector) -> None:
    found = inspector.inspect("a.png", encoded(blocks(100), "PNG"))
    assert found.warnings == ()
    assert found.row["warnings"] == ""
    for picture in (found.thumbnail, found.heat_map, found.spectrum):
        assert picture is not None
        assert Image.open(io.BytesIO(picture)).format == "PNG"


def test_an_image_that_the_run_knows_is_told(inspector: Inspector, run: Path, faces: Path) -> None:
    table = read_catalogue(run / "manifest.parquet").set_index("split")["path"]
    for part, known in (("train", True), ("val", True), ("test", False)):
        content = (faces / table[part].iloc[0]).read_bytes()
        said = "on this very image" in " ".join(inspector.inspect("a.png", content).warnings)
        assert said == known


def test_a_small_image_is_told(inspector: Inspector) -> None:
    said = warnings(inspector, blocks(1, 32, 24))
    assert "Small: 24 x 32 pixels, less on a side than the 32 x 32 that the network takes. What is enlarged" in said


def test_where_a_small_image_is_not_enlarged_that_is_not_said(
    inspector: Inspector, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector.reference, inspector._explainer = None, None
    monkeypatch.setattr(detector.members[0], "preparation", Preparation("crop"))
    said = warnings(inspector, blocks(1, 32, 24))
    assert "filled with its mirror image" in said
    assert "enlarged" not in said


def test_an_image_unlike_the_training_ones_is_told(inspector: Inspector) -> None:
    assert inspector.reference is not None
    near = replace(inspector.reference, validation=np.zeros(200))
    inspector.reference = near
    assert "farther from it than all of the 200 validation images" in warnings(inspector, blocks(1))
    distance = near.distance(features(inspector.detector.members, blocks(1)))
    inspector.reference = replace(near, validation=np.append(np.zeros(199), distance + 1))
    assert "farther from it than 99.5% of the 200 validation images" in warnings(inspector, blocks(1))


@pytest.mark.parametrize(("quality", "told"), [(79, True), (80, False), (95, False)])
def test_heavier_compression_than_in_training_is_told(inspector: Inspector, quality: int, told: bool) -> None:
    inspector.trained = Trained(frozenset(), 80)
    said = warnings(inspector, blocks(1), "JPEG", quality=quality)
    assert (
        f"JPEG quality about {quality}, where all but 1 % of the training images had a quality of 80 or more" in said
    ) == told


def test_any_jpeg_is_told_where_training_saw_none(inspector: Inspector) -> None:
    inspector.trained = Trained.of(pd.DataFrame({"split": ["train"] * 3, "jpeg_quality": [-1] * 3, "sha256": "x"}))
    assert "all but 1 % of the training images were no JPEG" in warnings(inspector, blocks(1), "JPEG", quality=100)
    assert warnings(inspector, blocks(1)) == ""


def test_the_least_quality_is_that_of_all_but_a_hundredth_of_the_training_part() -> None:
    qualities = [10, *range(50, 100), *[-1] * 50, 5]
    table = pd.DataFrame({"split": ["train"] * 101 + ["test"], "jpeg_quality": qualities, "sha256": "x"})
    assert Trained.of(table).least_quality == 50
    few = pd.DataFrame({"split": ["train"] * 3, "jpeg_quality": [70, 80, 90], "sha256": "x"})
    assert Trained.of(few).least_quality == 70


def test_no_face_and_a_tiny_one_are_told(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: np.ndarray) -> Face:
        raise NoFace("no face found")

    monkeypatch.setattr(inspecting, "find_face", none)
    assert "No face was found" in warnings(inspector, blocks(1))
    monkeypatch.setattr(inspecting, "find_face", lambda pixels: Face(200, 200, 60, 0, 1))
    said = warnings(inspector, blocks(1, 400, 400))
    assert "Tiny face: about 60 pixels of the image, of which the network sees 5 of 32" in said


def test_what_is_odd_about_a_file_is_told(inspector: Inspector) -> None:
    animated = encoded(blocks(1), "GIF", save_all=True, append_images=[Image.fromarray(blocks(2))])
    assert "several frames, first one used" in " ".join(inspector.inspect("a.gif", animated).warnings)


def test_what_cannot_be_told_is_said(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise UserError("explain=true: expected the package grad-cam, found none.")

    monkeypatch.setattr(inspecting, "Explainer", missing)
    monkeypatch.setattr(inspecting, "detector_version", missing)
    inspector = Inspector(detector, "half", 64.0, None, "the images are not here")
    said = " ".join(inspector.untold)
    for words in (
        "unlike what the run was trained on cannot be told: the images are not here.",
        "manifest.parquet cannot be read",
        "cannot be shown: expected the package grad-cam",
        "pip install 'deepfake[face]'",
    ):
        assert words in said
    found = inspector.inspect("a.png", encoded(blocks(1), "PNG"))
    assert found.row["status"] == "ok"
    assert (found.heat_map, found.spectrum) == (None, None)


def test_a_threshold_of_too_few_images_is_said_where_it_is_used(detector: Detector) -> None:
    # The run has fewer than 20 real validation images.
    few = "cannot be told: fpr_5: expected at least 20 real validation images"
    for threshold, told in (("fpr_5", True), ("half", False)):
        untold = " ".join(Inspector(detector, threshold, 64.0, None, "none").untold)
        assert (few in untold) == told


def test_an_ensemble_and_more_views_answer_as_they_do_in_predict(detector: Detector) -> None:
    both = Detector(detector.members * 2, lambda margins: margins.mean(axis=0), detector.calibration, "flip")
    inspector = Inspector(both, "eer", 64.0, None, "none")
    assert "tta=flip: they were calibrated on one view" in " ".join(inspector.untold)
    found = inspector.inspect("a.png", encoded(blocks(1), "PNG"))
    expected = both.predict([blocks(1)], "eer").iloc[0]
    assert found.row["probability"] == pytest.approx(expected["probability"], abs=1e-6)
    assert found.row["verdict"] == expected["verdict"]
    assert found.heat_map is not None


def test_users_who_ask_at_once_get_their_own_answers(inspector: Inspector) -> None:
    images = {f"{seed}.png": encoded(blocks(seed), "PNG") for seed in range(4)}
    alone = {name: inspector.inspect(name, content) for name, content in images.items()}
    found: dict[str, Inspection] = {}

    def ask(name: str) -> None:
        found[name] = inspector.inspect(name, images[name])

    users = [threading.Thread(target=ask, args=[name]) for name in images]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert len({inspection.heat_map for inspection in alone.values()}) == len(images)
    assert found == alone


def test_one_image_is_looked_at_after_the_other(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    together, met = threading.Barrier(2, timeout=1), list[bool]()

    def looking(*_: object) -> list[str]:
        with suppress(threading.BrokenBarrierError):
            together.wait()
        met.append(not together.broken)
        return []

    inspector.reference, inspector._explainer = None, None
    monkeypatch.setattr(inspector, "_warnings", looking)
    content = encoded(blocks(1), "PNG")
    users = [threading.Thread(target=inspector.inspect, args=["a.png", content]) for _ in range(2)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert met == [False, False]


# ----------------------------------------------------------------------------------------------------------- the page


@pytest.fixture
def shown(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """The page with some uploaded files, as Streamlit makes it."""

    def show(*files: tuple[str, bytes], **served: Any) -> AppTest:
        what = {"name": "a run", "inspector": inspector, "max_files": 20, "max_megabytes": 20, "local": True} | served
        monkeypatch.setattr(serving, "_served", [Served(**what)])
        app = AppTest.from_file(str(PAGE), default_timeout=60).run()
        if files:
            app.file_uploader[0].set_value([(*file, "image/png") for file in files]).run()
        assert not app.exception
        return app

    return show


def text(app: AppTest) -> str:
    """All that the page says, with the markup that it is said in."""
    return " ".join(element.value for element in [*app.markdown, *app.html])


@pytest.mark.parametrize(
    ("verdict", "uncertain", "headline"),
    [("fake", False, "Looks generated"), ("real", False, "Looks real"), ("fake", True, "Uncertain")],
)
def test_the_headline_is_the_verdict_unless_it_is_in_doubt(
    shown: Callable[..., AppTest],
    inspector: Inspector,
    monkeypatch: pytest.MonkeyPatch,
    verdict: str,
    uncertain: bool,
    headline: str,
) -> None:
    row = {"path": "a.png", "status": "ok", "reason": "", "probability": 0.7, "verdict": verdict,
           "uncertain": uncertain, "warnings": ""}  # fmt: skip
    monkeypatch.setattr(inspector, "inspect", lambda *_: Inspection(row))
    (said,) = re.findall(r'class="verdict">(?:<span[^>]*></span>)?([^<]*)<', text(shown(("a.png", b"x"))))
    assert said == headline


@pytest.mark.parametrize(("held", "status"), [(3 * 2**28, 200), (2**30 - 4, 503)])
def test_all_visitors_together_have_so_much_memory(monkeypatch: pytest.MonkeyPatch, held: int, status: int) -> None:
    monkeypatch.setattr(serving, "_held", lambda: serving._Held(Counter({"another": 40}), held))
    answered: list[int] = []

    async def taken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        answered.extend([message["status"]] if message["type"] == "http.response.start" else [])

    scope = {"type": "http", "method": "PUT", "path": f"{serving._UPLOAD}mine/file"}
    guard = serving._Guard(taken, max_files=20, max_bytes=20 * 2**20)
    with ThreadPoolExecutor(1) as apart:  # from the loop that drives the browser
        apart.submit(asyncio.run, guard(scope, None, send)).result()  # type: ignore[arg-type]
    assert answered == [status]


@pytest.mark.parametrize(
    ("p", "told"), [(0.99985, "over 99.9 %"), (0.00002, "under 0.1 %"), (0.7321, "73.2 %"), (1.0, "over 99.9 %")]
)
def test_no_answer_is_certain(
    shown: Callable[..., AppTest], inspector: Inspector, monkeypatch: pytest.MonkeyPatch, p: float, told: str
) -> None:
    row = {"path": "a.png", "status": "ok", "reason": "", "probability": p, "verdict": "fake", "uncertain": False,
           "warnings": ""}  # fmt: skip
    monkeypatch.setattr(inspector, "inspect", lambda *_: Inspection(row))
    said = text(shown(("a.png", b"x")))
    assert f"generated: <b>{told}</b>" in said
    assert not re.search(r"about (0|100) % were", said)


def test_names_are_text_and_never_markup(shown: Callable[..., AppTest]) -> None:
    hostile = f"![x](http://evil.example/x.png)<script>x</script>\u202e{SCRIPT}"
    said = text(shown((hostile, b"no image")))
    assert "<script>" not in said
    assert "<img src=x" not in said
    assert "&lt;img src=x onerror=alert(1)&gt;" in said
    assert r"\u202e" in said


def test_a_file_is_looked_at_once(
    shown: Callable[..., AppTest], inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    inspect = inspector.inspect
    monkeypatch.setattr(inspector, "inspect", lambda name, content: asked.append(name) or inspect(name, content))
    app = shown(("a.png", encoded(blocks(1), "PNG")), ("b.png", b"no image"))
    app.run()
    assert asked == ["a.png", "b.png"]


def test_more_files_than_allowed_are_not_looked_at(shown: Callable[..., AppTest]) -> None:
    app = shown(*((f"{number}.png", b"x") for number in range(4)), max_files=3)
    assert [warning.value for warning in app.warning] == ["At most 3 images at once: the others were not looked at."]
    assert text(app).count("not an image in a known format") == 3


def test_what_cannot_be_told_stands_on_the_page(shown: Callable[..., AppTest], inspector: Inspector) -> None:
    inspector.untold.append("Something <b>cannot</b> be told.")
    assert "Something &lt;b&gt;cannot&lt;/b&gt; be told." in text(shown())


@pytest.mark.parametrize(("local", "where"), [(True, "this computer;"), (False, "the computer that serves")])
def test_the_page_says_where_the_images_stay(shown: Callable[..., AppTest], local: bool, where: str) -> None:
    assert where in text(shown(local=local))


def test_where_fakes_are_rarer_the_probability_is_lower() -> None:
    # Of 10,000 images 100 are fake; the test finds 80 % of them and calls 10 % of the 9,900 reals fake.
    assert page.at_prevalence(8 / 9, 0.5, 0.01) == pytest.approx(80 / (80 + 990))
    assert page.at_prevalence(0.3, 0.4, 0.4) == pytest.approx(0.3)


# -------------------------------------------------------------------------------------------------------- the command


def app(*overrides: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["deepfake-app", "open_browser=false", "progress=false", *overrides])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def settings(*overrides: str) -> Any:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("app", overrides=["run=x", *overrides])


def test_the_settings_are_explained_and_their_defaults_those_of_the_code() -> None:
    composed = settings()
    lines = Path(conf_dir(), "app.yaml").read_text()
    settings_lines, _, help_lines = lines.partition("\nhydra:")
    for field in fields(config.AppConfig):
        if field.name != "run":
            assert composed[field.name] == field.default
        assert re.search(rf"^{field.name}: .* # \S", settings_lines, re.MULTILINE)
        assert re.search(rf"^ +{field.name} +\S", help_lines, re.MULTILINE)


@pytest.mark.parametrize(
    "override",
    ["port=70000", "port=-1", "host=''", "max_files=0", "max_megabytes=0", "max_megapixels=0", "threshold=best",
     "tta=all", "engine=fast", "device=tpu", "reference_images=0"],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(override: str) -> None:
    with pytest.raises(UserError, match=f"^{override.split('=')[0]}=.* is refused: expected "):
        parse_app(settings(override))


def only_line(capfd: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line]
    return line


def test_no_such_run_is_refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert app(f"run={tmp_path}", "port=0") == 2
    assert "expected the folder of a complete run, found none" in only_line(capfd)


def test_a_port_in_use_is_refused(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert app(f"run={run}", f"port={port}") == 2
    assert f"port={port}: expected an address of this computer and a free port" in only_line(capfd)


def test_a_host_elsewhere_is_refused(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert app(f"run={run}", "host=192.0.2.1", "port=0") == 2
    assert "host=192.0.2.1 port=0: expected an address of this computer" in only_line(capfd)


def test_what_can_be_no_host_is_refused(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert app(f"run={run}", "host=..", "port=0") == 2
    assert "host=..: expected an address or a name, found none such" in only_line(capfd)


def test_a_missing_package_is_refused(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = serving.importlib.util.find_spec
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None if name == "streamlit" else find(name))
    assert app(f"run={run}", "port=0") == 2
    assert "Run: pip install 'deepfake[app]'" in only_line(capfd)


@pytest.mark.parametrize(
    ("host", "warned", "url"),
    [("127.0.0.1", False, "127.0.0.1"), ("::1", False, "[::1]"), ("0.0.0.0", True, "localhost")],  # noqa: S104
)
def test_who_opens_the_page_to_others_is_warned(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, host: str, warned: bool, url: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "_inspector", lambda *_: None)
    monkeypatch.setattr(serving, "_serve", interrupted)
    assert app(f"run={run}", f"host='{host}'", "port=0") == 130
    said = capfd.readouterr().err
    assert ("everyone who reaches this computer can use the page" in said) == warned
    assert f"the page is at http://{url}:" in said


# ------------------------------------------------------------------------------------------------------- in a browser


class Server:
    """The command as a user starts it. Once the page is there, it may write no byte to any file."""

    def __init__(self, run: Path, folder: Path) -> None:
        given = [f"run={run}", "port=0", "open_browser=false", "progress=false", "engine=eager", "max_files=4",
                 "max_megabytes=2"]  # fmt: skip
        environment = {"TMPDIR": str(folder), "HOME": str(folder), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        (folder / ".streamlit").mkdir()  # the user's settings for other pages, which are not ours
        (folder / ".streamlit" / "config.toml").write_text(
            '[server]\nbaseUrlPath = "elsewhere"\nenableXsrfProtection = false\nmaxUploadSize = 500\n'
        )
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deepfake.app", *given],
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, **environment},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self.said, self.url = "", ""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if found := re.search(r"http://[\d.:]+", line):
                self.url = found[0]
                break
        assert self.url, self.said
        self.before = self.there()
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (0, 0))

    def there(self) -> list[Path]:
        return sorted(self.folder.rglob("*"))

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        _, rest = self.process.communicate(timeout=60)
        self.said += rest
        return self.process.returncode


@pytest.fixture(scope="module")
def server(run: Path, reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(run, tmp_path_factory.mktemp("served"))
    try:
        yield server
    finally:
        status = server.interrupt()
    assert status == 130, server.said
    assert "Traceback" not in server.said
    assert server.said.rstrip().endswith("the page is closed")
    assert server.there() == server.before


@contextmanager
def visitor(browser: "Browser", server: Server, **options: Any) -> Iterator["Page"]:
    """A page that has loaded; whatever it asked for came from the server."""
    context: BrowserContext = browser.new_context(**options)
    context.set_default_timeout(60_000)
    try:
        page = context.new_page()
        asked: list[str] = []
        # What the content security policy stops is no request: it is told apart.
        page.expose_function("blocked", lambda url: asked.append(url))
        page.add_init_script("addEventListener('securitypolicyviolation', (e) => blocked(e.blockedURI))")
        faults: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda websocket: asked.append(websocket.url))
        page.on("dialog", lambda dialog: faults.append(dialog.message) or dialog.dismiss())
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(server.url)
        page.get_by_test_id("stFileUploader").wait_for()
        yield page
        own = re.escape(server.url.removeprefix("http://"))
        assert [url for url in asked if "://" in url and not re.match(rf"(http|ws|blob:http)://{own}/", url)] == []
        assert any(url.startswith("ws:") for url in asked)
        assert faults == []
    finally:
        context.close()


def upload(page: "Page", *files: tuple[str, bytes]) -> None:
    page.locator("input[type=file]").set_input_files(
        [{"name": name, "mimeType": "image/png", "buffer": content} for name, content in files]
    )


def answers(page: "Page", count: int) -> list[str]:
    """Name and text of each card."""
    cards = page.locator(".answer:has(.verdict)")
    cards.nth(count - 1).wait_for()
    page.get_by_test_id("stProgress").wait_for(state="detached")
    return cards.all_inner_texts()


@pytest.mark.browser
def test_images_are_judged_and_their_table_is_that_of_predict(
    server: Server, browser: "Browser", detector: Detector, faces: Path
) -> None:
    files = [faces / "0-phone" / "01.png", faces / "1-gan" / "00.jpg"]
    with visitor(browser, server) as page:
        upload(page, *((file.name, file.read_bytes()) for file in files))
        said = answers(page, 2)
        with page.expect_download() as download:
            page.get_by_text("Answers as a table").click()
        table = pd.read_csv(download.value.path(), keep_default_na=False)
        assert page.get_by_text("Deploy").count() == 0
        assert page.locator("img").count() >= 2
    expected = detector.predict(files).assign(path=[file.name for file in files])
    pd.testing.assert_frame_equal(table[expected.columns], expected, check_exact=False, atol=1e-6, check_dtype=False)
    for text, row in zip(said, expected.itertuples(), strict=True):
        assert row.path in text
        assert f"generated: {100 * row.probability:.1f} %" in text


@pytest.mark.browser
def test_a_visitor_with_hostile_files_is_answered(server: Server, browser: "Browser") -> None:
    hostile = {
        SCRIPT: b"I am no image.",
        "truncated.png": cut(encoded(blocks(1), "PNG")),
        "bomb.png": white_png(20_000, 20_000),
        "empty.png": b"",
    }
    expected = ["not an image in a known format", "damaged: ", "20000 x 20000 pixels, more than 64 megapixels",
                "file is empty"]  # fmt: skip
    with visitor(browser, server) as page:
        upload(page, *hostile.items())
        said = answers(page, 4)
        assert page.locator("[onerror]").count() == 0
    for text, name, reason in zip(said, hostile, expected, strict=True):
        assert text.startswith(name)
        assert reason in text


@pytest.mark.browser
def test_two_visitors_see_their_own_answers(server: Server, browser: "Browser", detector: Detector) -> None:
    images = [encoded(blocks(seed), "PNG") for seed in (11, 12)]
    probabilities = detector.predict([blocks(11), blocks(12)])["probability"]
    with visitor(browser, server) as one, visitor(browser, server, color_scheme="dark") as other:
        upload(one, ("one.png", images[0]))
        upload(other, ("other.png", images[1]))
        for page, name, p in zip((one, other), ("one.png", "other.png"), probabilities, strict=True):
            (text,) = answers(page, 1)
            assert text.startswith(name)
            assert f"generated: {100 * p:.1f} %" in text


@pytest.mark.browser
def test_the_limits_are_the_servers(server: Server, browser: "Browser") -> None:
    with visitor(browser, server) as page:
        with page.expect_request(lambda request: request.method == "PUT") as sent:
            upload(page, ("a.png", encoded(blocks(1), "PNG")))
        answers(page, 1)
        session, token = sent.value.url.rsplit("/", 1)[0], sent.value.headers["x-xsrftoken"]

        def send(name: str, content: bytes, **headers: str) -> int:
            multipart = {"file": {"name": f"{name}.png", "mimeType": "image/png", "buffer": content}}
            return page.request.put(f"{session}/{name}", headers=headers, multipart=multipart).status

        assert send("without", b"x") == 403
        assert send("large", bytes(2 * 2**20 + 1), **{"X-Xsrftoken": token}) == 413
        # Of more than a megabyte, which would pass through a file if it were not forbidden: none can be written.
        at_once = """([session, token]) => Promise.all([...Array(8).keys()].map(async (number) => {
            const body = new FormData();
            body.append("file", new Blob([new Uint8Array(1.5 * 2 ** 20)]), "a.png");
            const headers = {"X-Xsrftoken": token};
            return (await fetch(`${session}/${number}`, {method: "PUT", headers, body})).status;
        }))"""
        assert sorted(page.evaluate(at_once, [session, token])) == [204] * 4 + [413] * 4


@pytest.mark.browser
def test_more_images_than_allowed_are_refused_on_the_page(server: Server, browser: "Browser") -> None:
    with visitor(browser, server) as page:
        upload(page, *((f"{seed}.png", encoded(blocks(seed), "PNG")) for seed in range(7)))
        assert len(answers(page, 4)) == 4
        page.get_by_text("At most 4 images at once: the others were not looked at.").wait_for()


@pytest.mark.parametrize("place", ["", "absent", "_stcore/health", "static/js/absent.js"])
def test_every_answer_forbids_the_browser_to_ask_others(server: Server, place: str) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    connection = HTTPConnection(host, int(port), timeout=30)
    connection.request("GET", f"/{place}")
    answer = connection.getresponse()
    connection.close()
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "://" not in policy


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example"])
def test_a_name_that_leads_here_is_not_answered(server: Server, name: str) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            f"GET /_stcore/stream HTTP/1.1\r\nHost: {name}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            f"Origin: http://{name}:{port}\r\n\r\n".encode()
        )
        assert b"101" not in connection.recv(1000).splitlines()[0]
