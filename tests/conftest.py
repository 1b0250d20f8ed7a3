"""What several test files share: one thread, a tiny folder of faces, the real faces where there are any."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser

settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first: begun last, they would leave all processes but one without work."""
    items.sort(key=lambda item: item.path.name not in ("test_sweep_faults.py", "test_security.py"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """On images this small, more threads wait for each other. Imports nothing: every test file is imported by now."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    if cv2 := sys.modules.get("cv2"):
        cv2.setNumThreads(1)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real and two generated sources of 12 images of 48 x 40 pixels, each its own. Read only."""
    root = tmp_path_factory.mktemp("faces")
    random = np.random.default_rng(0)
    for source in ("0-camera", "0-phone", "1-diffusion", "1-gan"):
        folder = root / source
        folder.mkdir()
        for number in range(12):
            blocks = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            suffix = "jpg" if number % 3 == 0 else "png"
            Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1)).save(folder / f"{number:02}.{suffix}")
    return root


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real faces and weights, for tests marked `real`."""
    folder = Path(os.environ.get("DEEPFAKE_ASSETS", Path(__file__).parents[1] / "../shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set DEEPFAKE_ASSETS")
    return folder


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """The Chromium that is installed, without a window, for tests marked `browser`.

    Not for longer than a file: what a later test forks and leaves behind would hold the pipes of its driver, which
    would never end.
    """
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium: install it (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    silent = ("background-networking", "component-update", "sync", "quic", "gpu")
    with sync_playwright() as driver:
        options = ["--no-first-run", *(f"--disable-{what}" for what in silent)]
        browser = driver.chromium.launch(executable_path=program, chromium_sandbox=os.geteuid() != 0, args=options)
        yield browser
        browser.close()
