"""Every perturbation against another implementation; the strength arrives, and strength zero changes nothing."""

import io
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin
from scipy import ndimage
from skimage.transform import rotate

from deepfake.data.images import jpeg_quality
from deepfake.data.perturbations import Perturbation, grid, perturb

GRID = grid()


def picture(height: int = 48, width: int = 37, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int = 61, width: int = 48) -> np.ndarray:
    """A picture whose neighbouring pixels differ little, so that two interpolations of it may agree closely."""
    rough = np.random.default_rng(1).normal(size=(height, width, 3))
    soft = ndimage.gaussian_filter(rough, (4, 4, 0), mode="mirror")
    return np.rint(np.interp(soft, (soft.min(), soft.max()), (0, 255))).astype(np.uint8)


def perturbed(pixels: np.ndarray, kind: str, strength: float, sha256: str = "content") -> np.ndarray:
    return perturb(pixels, Perturbation(kind, strength), sha256)


def written(monkeypatch: pytest.MonkeyPatch, quality: int, pixels: np.ndarray) -> bytes:
    """The JPEG file itself that a perturbation makes on its way."""
    files: list[io.BytesIO] = []
    save = Image.Image.save

    def spy(image: Image.Image, file: io.BytesIO, *args, **options) -> None:
        save(image, file, *args, **options)
        files.append(io.BytesIO(file.getvalue()))

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", spy)
        perturbed(pixels, "jpeg", quality)
    (file,) = files
    return file.getvalue()


# ------------------------------------------------------------------------------------------------------- the grid


def test_the_grid_is_the_protocol() -> None:
    strengths: dict[str, list[float]] = {}
    for one in GRID:
        strengths.setdefault(one.kind, []).append(one.strength)
    assert strengths == {
        "jpeg": [100, 90, 80, 70, 60, 50, 40, 30],
        "blur": [1, 2, 3, 4],
        "resize": [0.5, 0.75, 1.25, 1.5, 2.0],
        "noise": [0.01, 0.03, 0.05, 0.1],
        "rotation": [-15, 15, 90],
        "flip": [1],
        "crop": [0.9, 0.8],
    }


def test_every_perturbation_of_the_grid_has_a_name_of_its_own_and_another_effect() -> None:
    assert len({one.name for one in GRID}) == len(GRID)
    assert len({perturb(smooth(), one, "content").tobytes() for one in GRID} | {smooth().tobytes()}) == len(GRID) + 1


@pytest.mark.parametrize(
    ("kind", "strength", "name"),
    [
        ("jpeg", 70, "jpeg 70"),
        ("blur", 2, "blur 2 px"),
        ("resize", 2.0, "resize 2"),
        ("noise", 0.05, "noise 0.05"),
        ("rotation", -15, "rotation -15 deg"),
        ("flip", 1, "flip"),
        ("crop", 0.9, "crop 0.9"),
    ],
)
def test_a_name_tells_kind_strength_and_unit(kind: str, strength: float, name: str) -> None:
    assert Perturbation(kind, strength).name == name


def test_recompression_of_one_class_is_at_hand() -> None:
    assert Perturbation("jpeg", 95) not in GRID
    assert not np.array_equal(perturbed(picture(), "jpeg", 95), picture())


# ----------------------------------------------------------------------------------------------------- any of them


@pytest.mark.parametrize("one", GRID, ids=lambda one: one.name)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (7, 5), (48, 37)])
def test_images_of_any_size_come_back_whole(one: Perturbation, shape: tuple[int, int]) -> None:
    height, width = shape
    pixels = picture(height, width)
    result = perturb(pixels, one, "content")
    expected = {
        "crop 0.9": (max(1, round(0.9 * height)), max(1, round(0.9 * width))),
        "crop 0.8": (max(1, round(0.8 * height)), max(1, round(0.8 * width))),
        "rotation 90 deg": (width, height),
    }.get(one.name, shape)
    assert result.shape == (*expected, 3)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert np.array_equal(pixels, picture(height, width))


@pytest.mark.parametrize("one", GRID, ids=lambda one: one.name)
def test_the_same_file_is_always_perturbed_alike(one: Perturbation) -> None:
    expected = perturb(picture(), one, "content")
    np.random.seed(1)  # noqa: NPY002 - global state must not matter
    perturb(picture(seed=1), one, "other")
    assert np.array_equal(perturb(picture(), one, "content"), expected)


@pytest.mark.parametrize(
    ("kind", "nothing"), [("resize", 1.0), ("blur", 0), ("noise", 0), ("rotation", 0), ("crop", 1.0)]
)
@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_strength_that_means_nothing_changes_nothing(
    kind: str, nothing: float, height: int, width: int, seed: int
) -> None:
    pixels = picture(height, width, seed)
    assert np.array_equal(perturbed(pixels, kind, nothing), pixels)


# ------------------------------------------------------------------------------------------------------------ jpeg


def test_quality_reaches_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    for quality in (*range(30, 101, 10), 95, 1):
        with Image.open(io.BytesIO(written(monkeypatch, quality, smooth()))) as image:
            assert jpeg_quality(np.array(image.quantization[0])) == quality
            assert JpegImagePlugin.get_sampling(image) == 2  # Pillow's number for 4:2:0


def test_files_get_smaller_as_quality_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [len(written(monkeypatch, quality, smooth(200, 160))) for quality in range(100, 20, -10)]
    assert sizes == sorted(set(sizes), reverse=True)


@pytest.mark.parametrize("quality", [100, 70, 30])
def test_pixels_are_those_of_the_file(monkeypatch: pytest.MonkeyPatch, quality: int) -> None:
    """Decoded by OpenCV, which keeps blue before red."""
    content = np.frombuffer(written(monkeypatch, quality, smooth()), np.uint8)
    decoded = cv2.imdecode(content, cv2.IMREAD_COLOR)[:, :, ::-1].astype(int)
    assert np.abs(decoded - perturbed(smooth(), "jpeg", quality)).max() <= 1


# ------------------------------------------------------------------------------------------------------------ blur


@pytest.mark.parametrize("sigma", [0.5, 1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 2), (9, 5), (48, 37)])
def test_blur_is_scipys(sigma: float, shape: tuple[int, int]) -> None:
    pixels = picture(*shape)
    exact = ndimage.gaussian_filter(pixels.astype(float), (sigma, sigma, 0), mode="mirror", truncate=4)
    assert np.abs(perturbed(pixels, "blur", sigma) - exact).max() < 0.5 + 1e-3  # rounded once, at the end


# ---------------------------------------------------------------------------------------------------------- resize


def checkerboard(side: int = 64) -> np.ndarray:
    board = (np.indices((side, side)).sum(axis=0) % 2 * 255).astype(np.uint8)
    return np.repeat(board[:, :, None], 3, axis=2)


def test_shrinking_is_antialiased() -> None:
    """Without, a checkerboard of single pixels would become black, white or itself again, not gray."""
    inside = perturbed(checkerboard(), "resize", 0.5)[2:-2, 2:-2]
    assert np.abs(inside - 127.5).max() < 4


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.25, 1.5, 2.0])
def test_resize_and_restore_is_a_triangle_on_both_ways(factor: float) -> None:
    """Against triangle filters as matrices, one for each side and way."""

    def weights(source: int, target: int) -> np.ndarray:
        scale = source / target
        centres = (np.arange(target) + 0.5) * scale - 0.5
        distance = np.abs(np.arange(source)[None, :] - centres[:, None]) / max(scale, 1)
        triangle = np.clip(1 - distance, 0, None)
        return triangle / triangle.sum(axis=1, keepdims=True)

    pixels = smooth()
    height, width = pixels.shape[:2]
    other = round(height * factor), round(width * factor)
    down = weights(other[0], height) @ weights(height, other[0])
    across = weights(other[1], width) @ weights(width, other[1])
    exact = np.einsum("ai,ijc,bj->abc", down, pixels.astype(float), across)
    # The intermediate image is of bytes, and each of four passes rounds.
    assert np.abs(perturbed(pixels, "resize", factor) - exact).max() < 2.5


def test_enlarging_by_a_whole_number_and_back_loses_less_than_shrinking() -> None:
    lost = [np.abs(perturbed(smooth(), "resize", factor) - smooth().astype(int)).mean() for factor in (2.0, 0.5)]
    assert 0 < lost[0] < lost[1]


# ----------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.05, 0.1])
def test_noise_is_gaussian_of_that_deviation_in_every_channel(sigma: float) -> None:
    gray = np.full((200, 200, 3), 128, np.uint8)
    added = (perturbed(gray, "noise", sigma) - 128.0) / 255
    draws = added[:, :, 0].size
    # Rounding to bytes adds the variance of a uniform error of one level.
    deviation = math.hypot(sigma, 1 / 255 / math.sqrt(12))
    assert np.abs(added.mean(axis=(0, 1))).max() < 4.5 * deviation / math.sqrt(draws)
    assert np.abs(added.std(axis=(0, 1)) / deviation - 1).max() < 4.5 / math.sqrt(2 * draws)
    assert np.mean(np.abs(added) < 1.96 * deviation) == pytest.approx(0.95, abs=0.02)
    flat = added.reshape(-1, 3).T
    assert np.abs(np.corrcoef(flat) - np.eye(3)).max() < 4.5 / math.sqrt(draws)
    neighbours = np.corrcoef(added[:, :-1].ravel(), added[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 4.5 / math.sqrt(added.size)


def test_noise_of_one_is_the_whole_way_from_black_to_white() -> None:
    """That is 255 levels, told from 256 by enough draws."""
    added = perturbed(np.full((1000, 1000, 3), 128, np.uint8), "noise", 0.05) - 128.0
    assert added.std() == pytest.approx(
        math.hypot(0.05 * 255, 1 / math.sqrt(12)), rel=4.5 / math.sqrt(2 * added.size)
    )


def test_noise_is_clipped_not_wrapped() -> None:
    white = perturbed(np.full((50, 50, 3), 255, np.uint8), "noise", 0.1)
    assert white.min() > 100
    assert np.mean(white == 255) == pytest.approx(0.5, abs=0.05)


def test_noise_differs_between_images_and_strengths() -> None:
    gray = np.full((40, 40, 3), 128, np.uint8)
    draws = [("a", 0.05), ("b", 0.05), ("a", 0.1)]
    noises = [(perturbed(gray, "noise", sigma, sha256) - 128.0).ravel() for sha256, sigma in draws]
    related = np.corrcoef(noises) - np.eye(3)
    assert np.abs(related).max() < 4.5 / math.sqrt(gray.size)


def test_equal_strengths_are_equal_however_they_are_written() -> None:
    gray = np.full((8, 8, 3), 128, np.uint8)
    assert np.array_equal(perturbed(gray, "noise", 1), perturbed(gray, "noise", 1.0))


# -------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("quarters", [-2, -1, 1, 2])
def test_quarter_turns_only_move_pixels(quarters: int) -> None:
    assert np.array_equal(perturbed(picture(), "rotation", 90 * quarters), np.rot90(picture(), quarters))


@pytest.mark.parametrize("degrees", [-15, 15])
def test_rotation_is_counter_clockwise_about_the_centre_with_the_outside_mirrored_in(degrees: float) -> None:
    """Against scikit-image, whose `reflect` too does not repeat the outermost pixel."""
    exact = rotate(smooth(), degrees, order=1, mode="reflect", preserve_range=True)
    # OpenCV knows places to 1/32 pixel.
    steepest = max(np.abs(np.diff(smooth().astype(int), axis=axis)).max() for axis in (0, 1))
    assert np.abs(perturbed(smooth(), "rotation", degrees) - exact).max() <= 1 + steepest / 16


def test_flip_mirrors_left_and_right() -> None:
    assert np.array_equal(perturbed(picture(), "flip", 1), picture()[:, ::-1])


def test_crop_is_the_middle() -> None:
    assert np.array_equal(perturbed(picture(20, 10), "crop", 0.8), picture(20, 10)[2:18, 1:9])
    assert np.array_equal(perturbed(picture(20, 10), "crop", 0.9), picture(20, 10)[1:19, 0:9])
    assert np.array_equal(perturbed(picture(1, 3), "crop", 0.1), picture(1, 3)[:, 1:2])  # never nothing


# -------------------------------------------------------------------------------------------------------- refusals


def test_an_unknown_kind_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"kind: expected one of jpeg, blur, .*, found 'sharpen'"):
        Perturbation("sharpen", 1)


@pytest.mark.parametrize(
    ("kind", "strength", "expected"),
    [
        ("jpeg", 0, "a whole quality from 1 to 100"),
        ("jpeg", 101, "a whole quality"),
        ("jpeg", 70.5, "a whole quality"),
        ("blur", -1, "a standard deviation from 0 to 100 pixels"),
        ("blur", math.inf, "a standard deviation from 0 to 100 pixels"),
        ("resize", 0, "a factor from 0.1 to 10"),
        ("noise", 25, "from 0 to 1, where black is 0 and white is 1"),
        ("noise", math.nan, "from 0 to 1"),
        ("rotation", 270, "degrees from -180 to 180"),
        ("flip", 0, "1, for a mirror image has no strength"),
        ("crop", 1.1, "a share of the sides from 0.1 to 1"),
    ],
)
def test_a_strength_out_of_range_is_named_with_what_is_allowed(kind: str, strength: float, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{kind}: expected .*{expected}.*, found {strength}"):
        Perturbation(kind, strength)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_anything_but_bytes_of_three_colours_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(height, width, 3\), found"):
        perturbed(pixels, "flip", 1)


def test_the_longest_image_that_all_take_is_told_from_a_longer_one() -> None:
    longest = np.zeros((1, 32_766, 3), np.uint8)
    assert perturbed(longest, "rotation", 15).shape == perturbed(longest, "jpeg", 30).shape == longest.shape
    with pytest.raises(ValueError, match="expected at most 32766 a side, found 32767 x 1"):
        perturbed(np.zeros((1, 32_767, 3), np.uint8), "flip", 1)
