"""Made-up pictures with known traces: a stand-in for real data in the demo and the tests.

`make_faces` draws cartoon-like portraits and saves them as `ROOT/0-NAME/*` (real) and `ROOT/1-NAME/*` (fake).
Every picture starts from the same random scene, so nothing in the content tells the classes apart; only the
last steps differ:

- a **camera** source blurs the scene (optics), samples it through a Bayer mosaic with shot and read noise,
  interpolates the missing colours and applies gamma. The two cameras differ in each of these;
- a **generator** source starts from the same scene with a similar blur and grain, shrinks it, and grows it
  back with one of the upsampling layers of generative networks. Its kernels are random but fixed for a seed,
  as in one trained network. A share of the fine detail is painted back on at each resolution, so that the
  pictures stay as sharp as the cameras'.

The trace of each generator, in the power spectrum (frequencies in cycles per pixel, `fy` down, `fx` across):

- `1-Nearest` (nearest x2, then a 3x3 convolution): no peak. Copies of the low frequencies stand beside
  (0, 1/2) and (1/2, 0), about 10 dB above the cameras within 0.06 of them; on the lines `fy = 1/2` and
  `fx = 1/2` themselves there are none, as repeating a pixel multiplies the spectrum by zero there.
- `1-Transposed` (two transposed convolutions, kernel 5, stride 2): 5 is no multiple of 2, so neighbouring
  pixels get unequal sums of the kernel, a checkerboard. The first layer's has period 4 in the picture: peaks
  at (0, 1/4), (1/4, 0), (1/4, 1/4) and (1/4, -1/4); the second layer's has period 2: peaks at (0, 1/2),
  (1/2, 0) and (1/2, 1/2). Their products, at (1/4, 1/2) and (1/2, 1/4), are too weak to count on.
- `1-Bilinear` (bilinear x2, then a 3x3 convolution): no peak. The high frequencies fade, by about 2 dB from
  0.25 on and 5 dB towards the corner (1/2, 1/2).
- `1-PixelShuffle` (four 3x3 kernels, interleaved, that differ slightly): peaks at (0, 1/2), (1/2, 0) and
  (1/2, 1/2).

Two patterns are not the generators' alone: the cameras' mosaic leaves a peak of its own at (1/2, 1/2), some
10 dB or more below the generators', and JPEG a grid of period 8. A trace is what stands above the cameras.

What is not simulated: real anatomy, skin and hair; lenses, white balance, sharpening, denoising and editing;
semantic mistakes, colour habits and the nonlinear layers of real generators; recompression by the web.
Nothing measured on these pictures says how well faces are told from fakes: a result on them shows that the
machinery works and is never to be presented as a result on faces.
"""

import math
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np

from deepfake.errors import UserError

Array = np.ndarray
Layer = Callable[[Array], Array]  # (H, W, 3) -> (2H, 2W, 3)


@dataclass(frozen=True)
class Camera:
    """A source of real pictures."""

    blur: float  # standard deviation of the optics' point spread, in pixels
    shot: float  # noise variance per unit of light, light in 0..1
    read: float  # noise standard deviation in the dark, light in 0..1
    red: tuple[int, int]  # (row, column) of the red pixel in the 2x2 mosaic; blue is diagonally opposite
    demosaic: int  # OpenCV code for that mosaic


@dataclass(frozen=True)
class Generator:
    """A source of generated pictures."""

    family: str  # "nearest", "transposed", "bilinear" or "shuffle"
    detail: float  # share, 0..1, of the fine detail painted back on after each layer
    unevenness: tuple[float, ...]  # amplitude of the pattern put on a flat picture of 1; one per x2 layer


# OpenCV names a mosaic after the second row's second and third pixel: red at (0, 0) is "BG", at (1, 0) "GR".
SOURCES: dict[str, Camera | Generator] = {
    "0-CameraA": Camera(blur=0.55, shot=0.0006, read=0.005, red=(0, 0), demosaic=cv2.COLOR_BayerBG2RGB),
    "0-CameraB": Camera(blur=0.75, shot=0.0010, read=0.007, red=(1, 0), demosaic=cv2.COLOR_BayerGR2RGB_EA),
    "1-Nearest": Generator("nearest", detail=0.9, unevenness=(0.0,)),
    "1-Transposed": Generator("transposed", detail=0.9, unevenness=(0.016, 0.004)),
    "1-Bilinear": Generator("bilinear", detail=0.6, unevenness=(0.0,)),
    "1-PixelShuffle": Generator("shuffle", detail=0.9, unevenness=(0.005,)),
}
"""Each folder name, `0-` real or `1-` fake, and what makes its pictures."""

TRACES: dict[str, tuple[tuple[float, float], ...]] = {
    "1-Transposed": (
        (0.0, 0.25), (0.25, 0.0), (0.25, 0.25), (0.25, -0.25), (0.0, 0.5), (0.5, 0.0), (0.5, 0.5),
    ),
    "1-PixelShuffle": ((0.0, 0.5), (0.5, 0.0), (0.5, 0.5)),
}  # fmt: skip
"""`(fy, fx)` in cycles per pixel where a generator's mean power spectrum peaks and the cameras' does not."""

SHORTCUTS = ("size", "jpeg")
FEW = 48  # pictures; below this, starting processes takes longer than it saves


def make_faces(
    root: Path,
    images_per_source: int = 100,
    size: int = 256,
    seed: int = 0,
    shortcut: str | None = None,
    workers: int | None = None,
) -> Path:
    """Make the labelled folder `root` and return it; a `root` that already holds something is returned as is.

    Each folder of `SOURCES` gets `images_per_source` (1 or more) square 8-bit RGB pictures, alternately PNG
    and JPEG of quality 90 to 96, `size` pixels wide (a multiple of 32, at least 64). Every file is a pure
    function of `seed` (0 or more), its source, its number, `size` and `shortcut`, whatever the number of
    `workers` (processes; 0 or 1: none but this one; None: one per processor). As the workers are spawned, a
    script that calls this must do so under `if __name__ == "__main__"`.

    `shortcut` plants a false cue beside the traces: "size" makes the fakes 7/8 as wide, "jpeg" saves all real
    pictures as JPEG of quality 60 to 72 and all fakes as PNG.

    The pictures are made in a hidden folder beside `root` that gets its name at the end, so `root` is never
    half made; of two processes that make it at once, both return the one that was finished first.

    Raises `UserError` for a value outside these ranges, or where `root` is a file.
    """
    root = Path(root)
    _check(root, images_per_source, size, seed, shortcut, workers)
    if _holds_something(root):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as beside:
        folder = Path(beside) / root.name
        for source in SOURCES:
            (folder / source).mkdir(parents=True)
        save = partial(save_face, folder, size=size, seed=seed, shortcut=shortcut)
        _save_all(save, images_per_source, workers)
        try:
            folder.rename(root)
        except OSError:
            if not _holds_something(root):  # not lost to another process that made the same
                raise
    return root


def save_face(folder: Path, source: str, index: int, size: int, seed: int, shortcut: str | None) -> None:
    """Make picture number `index` of `source` and write it into `folder / source`."""
    real = source.startswith("0-")
    if shortcut == "size" and not real:
        size = size * 7 // 8
    picture = make_face(source, index, size, seed)
    jpeg, quality = index % 2 == 1, 90 + index // 2 % 7
    if shortcut == "jpeg":
        jpeg, quality = real, 60 + 2 * (index % 7)
    path = folder / source / f"{index:05d}{'.jpg' if jpeg else '.png'}"
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if jpeg else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    _, encoded = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    path.write_bytes(encoded.tobytes())  # unlike cv2.imwrite, this raises where the disk is full


def make_face(source: str, index: int, size: int, seed: int) -> Array:
    """Picture number `index` of `source`, before it is saved: (size, size, 3), uint8, RGB."""
    number = list(SOURCES).index(source)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, index)))
    scene = draw_scene(rng, size)
    maker = SOURCES[source]
    if isinstance(maker, Camera):
        picture = photograph(rng, scene, maker)
    else:
        picture = generate(rng, scene, maker, _trained_layers(maker, number, seed))
    return np.rint(picture.clip(0, 1) * 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------- cameras


def photograph(rng: np.random.Generator, scene: Array, camera: Camera) -> Array:
    """Take `scene`, (H, W, 3) linear light, through `camera`: (H, W, 3) display values, both in 0..1."""
    light = _through_optics(rng, scene, camera.blur)
    row, column = camera.red
    raw = light[:, :, 1].copy()
    raw[row::2, column::2] = light[row::2, column::2, 0]
    raw[1 - row :: 2, 1 - column :: 2] = light[1 - row :: 2, 1 - column :: 2, 2]
    raw += _noise(rng, raw, camera.shot, camera.read)
    colours = cv2.cvtColor(np.rint(raw.clip(0, 1) * 65535).astype(np.uint16), camera.demosaic)
    return _gamma(colours.astype(np.float32) / 65535)


def _through_optics(rng: np.random.Generator, scene: Array, blur: float) -> Array:
    """Blur by about `blur` pixels; focus differs from picture to picture."""
    sigma = blur * rng.uniform(0.75, 1.25)
    return cv2.GaussianBlur(scene, (7, 7), sigma)


def _noise(rng: np.random.Generator, light: Array, shot: float, read: float) -> Array:
    """Sensor noise of `light`; sensitivity, and with it the noise, differs from picture to picture."""
    sensitivity = rng.uniform(0.5, 1.6)
    white = rng.standard_normal(light.shape, dtype=np.float32)
    return white * sensitivity * np.sqrt(shot * light.clip(0, 1) + read**2, dtype=np.float32)


def _gamma(light: Array) -> Array:
    return np.power(light.clip(0, 1), np.float32(1 / 2.2))


# ------------------------------------------------------------------------------------------------- generators


def generate(rng: np.random.Generator, scene: Array, generator: Generator, layers: tuple[Layer, ...]) -> Array:
    """What `generator` makes of `scene`, (H, W, 3) linear light: (H, W, 3) display values, both in 0..1.

    A well-trained generator imitates camera pictures, blur and grain included, all but the mosaic.
    """
    light = _through_optics(rng, scene, rng.choice(GENERATOR_BLUR))
    grain = cv2.filter2D(_noise(rng, light, *GENERATOR_NOISE), -1, GRAIN, borderType=cv2.BORDER_REFLECT_101)
    return _grow(_gamma(light + grain), generator, layers)


GENERATOR_BLUR = (0.65, 0.85)  # pixels; the cameras' own, and what interpolating the colours adds
GENERATOR_NOISE = (0.0015, 0.0095)  # shot, read: per colour; a mosaic pixel makes one colour only
GRAIN = np.outer([0.1, 0.8, 0.1], [0.1, 0.8, 0.1]).astype(np.float32)  # as interpolated camera noise


def _grow(picture: Array, generator: Generator, layers: tuple[Layer, ...]) -> Array:
    """Shrink `picture` once per layer and grow it back, painting a share of the lost detail on."""
    if not layers:
        return picture
    height, width = picture.shape[:2]
    if generator.family == "transposed":  # its kernel is centred on the even pixels, as OpenCV's pyramids are
        small = cv2.pyrDown(picture)
        smooth = cv2.pyrUp(small)
    else:
        small = cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return layers[-1](_grow(small, generator, layers[:-1])) + generator.detail * (picture - smooth)


@cache
def _trained_layers(generator: Generator, number: int, seed: int) -> tuple[Layer, ...]:
    """The layers of generator `number`, smallest picture first: random, but the same for one `seed`."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
    kernels = [_trained_kernel(rng, generator.family, unevenness) for unevenness in generator.unevenness]
    upsample = {"nearest": _nearest, "bilinear": _bilinear, "transposed": _transposed, "shuffle": _shuffle}
    return tuple(partial(upsample[generator.family], kernel=kernel) for kernel in kernels)


def _trained_kernel(rng: np.random.Generator, family: str, unevenness: float) -> Array:
    """A kernel near the ideal one, which passes a flat picture unchanged but for the `unevenness`."""
    if family in ("nearest", "bilinear"):
        kernel = np.zeros((3, 3))
        kernel[1, 1] = 1
        kernel += rng.normal(0, 0.03, kernel.shape)
        return (kernel / kernel.sum()).astype(np.float32)
    # Three patterns with period 2, one per peak; each with a random sign and about the same weight.
    rows, columns = np.array([[1, 1], [-1, -1]]), np.array([[1, -1], [1, -1]])
    weights = rng.choice([-1, 1], 3) * rng.uniform(0.8, 1.2, 3) * unevenness
    sums = 1 + weights[0] * rows + weights[1] * columns + weights[2] * rows * columns
    if family == "transposed":
        taps = np.array([1, 4, 6, 4, 1]) / 8
        kernel = np.outer(taps, taps) * rng.normal(1, 0.03, (5, 5))
        for i, j in np.ndindex(2, 2):  # taps (i, j), (i+2, j), ... meet in the same output pixels
            kernel[i::2, j::2] *= sums[i, j] / kernel[i::2, j::2].sum()
        return kernel.astype(np.float32)
    taps = np.array([[0.25, 0.75, 0], [0, 0.75, 0.25]])
    kernels = np.einsum("ai,bj->abij", taps, taps) + rng.normal(0, 0.01, (2, 2, 3, 3))
    kernels *= (sums / kernels.sum((2, 3)))[:, :, None, None]
    return kernels.astype(np.float32)


def _nearest(small: Array, kernel: Array) -> Array:
    return _convolve(small.repeat(2, 0).repeat(2, 1), kernel)


def _bilinear(small: Array, kernel: Array) -> Array:
    return _convolve(cv2.resize(small, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR), kernel)


def _transposed(small: Array, kernel: Array) -> Array:
    spread = np.zeros((2 * small.shape[0], 2 * small.shape[1], 3), np.float32)
    spread[::2, ::2] = small
    return _convolve(spread, kernel)


def _shuffle(small: Array, kernel: Array) -> Array:
    large = np.empty((2 * small.shape[0], 2 * small.shape[1], 3), np.float32)
    for i, j in np.ndindex(2, 2):
        large[i::2, j::2] = _convolve(small, kernel[i, j])
    return large


def _convolve(picture: Array, kernel: Array) -> Array:
    return cv2.filter2D(picture, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


# ------------------------------------------------------------------------------------------------------ scene


def draw_scene(rng: np.random.Generator, size: int) -> Array:
    """A random portrait: (size, size, 3) float32, linear RGB light, 0..1, the same law for every source."""
    texture, cloudy, strands, pores = _fractals(rng, size, (1.1, 1.4, 1.0, 0.6))
    down, across = np.meshgrid(*[np.linspace(-1, 1, size, dtype=np.float32)] * 2, indexing="ij")

    # Pose: the face frame (u to the right, v down, face about 1 high) is turned, scaled and shifted.
    scale, tilt = rng.uniform(0.60, 0.74), rng.normal(0, 0.08)
    shift_x, shift_y = rng.normal(0, 0.06), rng.normal(0.02, 0.05)
    cos, sin = math.cos(tilt) / scale, math.sin(tilt) / scale
    u = cos * (across - shift_x) + sin * (down - shift_y)
    v = cos * (down - shift_y) - sin * (across - shift_x)
    turn = rng.normal(0, 0.07)  # of the head to the side: the features move across the face
    wide, high = rng.uniform(0.70, 0.80), rng.uniform(0.95, 1.05)

    # Colours, red, green and blue light.
    skin = np.array([0.62, 0.36, 0.25]) * rng.uniform(0.35, 1.25) ** np.array([0.8, 1.0, 1.15])
    skin = skin * rng.normal(1, 0.03, 3)
    hair = np.array([0.30, 0.17, 0.09]) * rng.uniform(0.08, 1.6) * rng.normal(1, 0.08, 3)
    iris = rng.choice([[0.10, 0.05, 0.02], [0.08, 0.20, 0.35], [0.10, 0.22, 0.10]], p=[0.6, 0.25, 0.15])
    lips = skin * rng.uniform([0.8, 0.45, 0.5], [1.0, 0.65, 0.7])
    clothes, wall, other_wall = rng.uniform(0.08, 0.6, (3, 1)) * rng.normal(1, 0.28, (3, 3)).clip(0.2, 1.8)

    skin, hair, clothes, wall, other_wall = np.array([skin, hair, clothes, wall, other_wall], np.float32)

    mix = (0.5 + 0.25 * cloudy)[:, :, None].clip(0, 1)
    canvas = (other_wall + mix * (wall - other_wall)) * np.exp(0.18 * texture)[:, :, None]
    strands = cv2.resize(strands[: size // 4], (size, size))  # stretched downwards
    hair_strands = hair * np.exp(0.30 * strands)[:, :, None]
    skin_pores = skin * np.exp(0.035 * pores)[:, :, None]
    paint = partial(_paint, canvas, u, v)

    # From back to front.
    hair_length = float(rng.choice([0.0, 0.5, 0.9])) + rng.uniform(0, 0.2)
    paint(0, 1.95, 1.35, 0.80, clothes * np.exp(0.10 * texture)[:, :, None])
    mane = paint(0, 0.55 * hair_length - 0.22, wide + 0.15, 1.02 + 0.55 * hair_length, hair_strands)
    paint(0, 1.05, 0.36, 0.50, skin_pores * 0.75)
    for side in (-1, 1):
        paint(side * (wide + 0.01), 0.05, 0.09, 0.20, skin_pores * 0.9)
    face = paint(0, 0, wide, high, skin_pores)
    for side in (-1, 1):
        paint(0.42 * side + turn, 0.28, 0.22, 0.18, lips, soft=0.25, opacity=0.25)  # cheek
    parting, arch = rng.uniform(-0.4, 0.4), rng.uniform(0.2, 0.6)
    fringe = paint(parting, -1.15, 1.6, rng.uniform(0.55, 0.70), hair_strands, bend=arch, inside=mane)
    face = face * (1 - fringe)

    spread, level = rng.uniform(0.29, 0.34), rng.uniform(-0.12, -0.05)
    eye_wide, eye_open, brow = rng.uniform(0.13, 0.16), rng.uniform(0.055, 0.085), rng.uniform(0.17, 0.23)
    brow_slope, gaze = rng.normal(0, 0.08), rng.normal(0, 0.02)
    for side in (-1, 1):
        eye = side * spread + turn
        paint(eye, level, 0.20, 0.13, skin * 0.55, soft=0.12, opacity=0.6)  # socket
        paint(eye, level - 0.012, eye_wide * 1.08, eye_open * 1.12, skin * 0.15, bend=1.0)  # lashes
        white = paint(eye, level, eye_wide, eye_open, np.array([0.75, 0.72, 0.70]), bend=1.0)
        paint(eye + gaze, level, 0.067, 0.067, iris, inside=white)
        paint(eye + gaze, level, 0.030, 0.030, np.array([0.01, 0.01, 0.01]), inside=white)
        paint(eye + gaze - 0.022, level - 0.024, 0.014, 0.014, np.array([0.95, 0.95, 0.95]), opacity=0.9)
        paint(eye, level - brow, 0.19, 0.035, hair * 0.7, slope=side * brow_slope, bend=0.9, opacity=0.8)
    nose = rng.uniform(0.24, 0.32)
    paint(1.5 * turn, 0.05, 0.055, 0.26, np.minimum(skin * 1.35, 1), soft=0.10, opacity=0.5)  # bridge
    paint(1.5 * turn, nose, 0.13, 0.085, skin * 0.62, soft=0.09, opacity=0.8)
    paint(1.5 * turn, nose - 0.03, 0.09, 0.075, np.minimum(skin * 1.2, 1), soft=0.08, opacity=0.8)
    for side in (-1, 1):
        paint(1.5 * turn + 0.06 * side, nose + 0.035, 0.026, 0.015, skin * 0.18, soft=0.02)
    mouth, mouth_wide, smile = rng.uniform(0.50, 0.57), rng.uniform(0.20, 0.30), rng.normal(-0.6, 0.6)
    paint(turn, mouth + 0.15, 0.16, 0.04, skin * 0.6, soft=0.08, opacity=0.5)  # shadow under the lip
    paint(turn, mouth, mouth_wide, rng.uniform(0.05, 0.08), lips, bend=smile)
    if rng.random() < 0.4:
        paint(turn, mouth, mouth_wide * 0.75, 0.028, np.array([0.7, 0.68, 0.62]), bend=smile)  # teeth
    else:
        paint(turn, mouth, mouth_wide * 0.95, 0.010, lips * 0.15, bend=smile)

    # One light for the round face and, as a soft gradient, for the rest.
    light_u, light_v = rng.normal(0, 0.45), rng.normal(-0.25, 0.45)
    height = np.sqrt((1 - (u / wide) ** 2 - (v / high) ** 2).clip(0.02, 1))
    lambert = (height + light_u / wide * u + light_v / high * v).clip(0, 1.6)
    around = 1 + 0.35 * (light_u * across + light_v * down)
    canvas *= (around + face * (0.35 + 0.75 * lambert - around)).clip(0.15, 2)[:, :, None]
    canvas *= rng.uniform(0.16, 0.30) / canvas.mean()  # exposure
    return canvas.clip(0, 1)


def _fractals(rng: np.random.Generator, size: int, slopes: tuple[float, ...]) -> list[Array]:
    """One (size, size) float32 field per slope a: mean 0, variance 1, amplitude spectrum 1/f^a."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]).astype(np.float32)
    frequency[0, 0] = np.inf
    fields = []
    for slope in slopes:
        white = np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
        field = np.fft.irfft2(white * frequency**-slope, (size, size))
        fields.append(field / field.std())
    return fields


def _paint(
    canvas: Array,
    u: Array,
    v: Array,
    centre_u: float,
    centre_v: float,
    radius_u: float,
    radius_v: float,
    colour: Array,
    *,
    slope: float = 0.0,
    bend: float = 0.0,
    soft: float = 0.0,
    opacity: float = 1.0,
    inside: Array | None = None,
) -> Array:
    """Paint an ellipse on `canvas` in place and return its coverage, (H, W) in 0..1.

    Lengths are in face units. `colour` is (3,) or (H, W, 3), linear light; `slope` and `bend` (upwards at the
    ends if negative) shear and curve the ellipse, `soft` is the width of its edge (at least 1.5 pixels), and
    `inside` a coverage it may not leave.
    """
    # (u, v) is a similarity of the pixel grid, so as complex numbers it is `origin + step * (x + iy)`.
    origin, step = complex(u[0, 0], v[0, 0]), complex(u[0, 1] - u[0, 0], v[0, 1] - v[0, 0])
    edge = max(soft, 1.5 * abs(step))
    stretch = 1 + edge / (2 * min(radius_u, radius_v))
    reach_u = stretch * radius_u
    reach_v = stretch * radius_v + abs(slope) * reach_u + abs(bend) * reach_u**2
    reach = math.hypot(reach_u, reach_v) / abs(step) + 1
    centre = (complex(centre_u, centre_v) - origin) / step
    box = tuple(slice(max(0, int(c - reach)), max(0, int(c + reach) + 1)) for c in (centre.imag, centre.real))

    du, dv = u[box] - centre_u, v[box] - centre_v
    dv -= slope * du + bend * du * du
    distance = 1 - np.sqrt((du / radius_u) ** 2 + (dv / radius_v) ** 2)
    cover = np.zeros_like(u)
    cover[box] = (distance * (min(radius_u, radius_v) / edge) + 0.5).clip(0, 1)
    if inside is not None:
        cover[box] *= inside[box]
    colour = (colour[box] if colour.ndim == 3 else colour).astype(np.float32)
    canvas[box] += (opacity * cover[box])[:, :, None] * (colour - canvas[box])
    return cover


# ------------------------------------------------------------------------------------------------------ files


def _save_all(save: Callable[[str, int], None], images_per_source: int, workers: int | None) -> None:
    """Call `save(source, index)` for every picture, in this process or in `workers` others."""
    sources = [source for _ in range(images_per_source) for source in SOURCES]
    indices = [index for index in range(images_per_source) for _ in SOURCES]
    if workers is None:
        workers = os.cpu_count() or 1
    workers = min(workers, len(sources) // (FEW // 2))
    if workers <= 1:
        for source, index in zip(sources, indices, strict=True):
            save(source, index)
        return
    # Spawned, not forked: the caller may hold threads or an accelerator, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    one_thread = partial(cv2.setNumThreads, 1)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread) as pool:
        list(pool.map(save, sources, indices, chunksize=8))  # raises what a worker raised


def _holds_something(root: Path) -> bool:
    return root.is_dir() and any(root.iterdir())


def _check(
    root: Path, images_per_source: int, size: int, seed: int, shortcut: str | None, workers: int | None
) -> None:
    """Raise `UserError` for the first argument of `make_faces` that is out of range."""

    def whole(value: object, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    wrong = None
    if not whole(images_per_source, 1):
        wrong = f"expected images_per_source a whole number from 1, found {images_per_source!r}: take 100"
    elif not whole(size, 64) or size % 32:
        wrong = f"expected size a multiple of 32 from 64 (pixels), found {size!r}: take 256"
    elif not whole(seed, 0):
        wrong = f"expected seed a whole number from 0, found {seed!r}: take 0"
    elif shortcut is not None and shortcut not in SHORTCUTS:
        wrong = f"expected shortcut {' or '.join(SHORTCUTS)} or None, found {shortcut!r}: take one of these"
    elif workers is not None and not whole(workers, 0):
        wrong = f"expected workers a whole number from 0 or None, found {workers!r}: take None"
    elif root.exists() and not root.is_dir():
        wrong = f"expected root a folder or a new name, found the file {root}: take another name"
    if wrong:
        raise UserError(f"make_faces: {wrong}.")
