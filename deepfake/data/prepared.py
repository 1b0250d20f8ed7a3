"""Images as the network takes them, decoded once: one small file an image, named by content, shared by all runs."""

import contextlib
import io
import mmap
import os
import re
import reprlib
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from deepfake.config import PREPROCESS
from deepfake.console import log
from deepfake.data.faces import crop_face, detector_version
from deepfake.data.images import UnreadableImage, read_image, resize
from deepfake.errors import UserError
from deepfake.files import write_bytes
from deepfake.inputs import InputSpec

_FORMAT = 2  # raise when decoding or preparing changes, so that old files are not mistaken for new ones
# What NumPy writes before the pixels of an RGB image. np.load takes longer to make sense of it than to read the rest.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '\|u1', 'fortran_order': False, 'shape': \(([1-9]\d*), ([1-9]\d*), 3\), \} *\n",
    re.DOTALL,
)
_HEADER_BYTES = 128
_ABANDONED = 3600.0  # seconds after which the unfinished file of another process is taken for a dead one's
_EQUAL_QUALITY = 96


@dataclass(frozen=True)
class Preparation:
    """What is done to a decoded image before it is augmented."""

    # resize: squashed to the network's square.
    # crop: a square of the network's size at the image's own resolution, never resampled; the middle one, or in
    #     training one at random. A smaller image is continued by reflection.
    # face: the largest face, turned upright, resized. An image without one cannot be prepared.
    mode: Literal["resize", "crop", "face"] = "resize"
    # Before that: the middle square, shrunk to so many pixels a side, through JPEG of one quality; None: not at
    # all. A smaller image cannot be prepared. Takes away what sizes and formats tell; see `smallest_common_size`.
    equalise: int | None = None
    margin: float = 0.3  # with face: kept on every side, as a share of the face's longer side

    def __post_init__(self) -> None:
        """ValueError for what a checkpoint of another may say."""
        if self.mode not in PREPROCESS:
            raise ValueError(f"mode: expected one of {', '.join(PREPROCESS)}, found {reprlib.repr(self.mode)}")
        if self.equalise is not None and (type(self.equalise) is not int or self.equalise < 1):
            raise ValueError(f"equalise: expected a number of pixels, found {reprlib.repr(self.equalise)}")
        if type(self.margin) not in (int, float) or not 0 <= self.margin <= 2:
            raise ValueError(f"margin: expected a share in [0, 2], found {reprlib.repr(self.margin)}")

    @property
    def can_fail(self) -> bool:
        """Whether there may be images that can be read and yet not prepared."""
        return self.mode == "face" or self.equalise is not None


def prepare(pixels: np.ndarray, spec: InputSpec, preparation: Preparation) -> np.ndarray:
    """A decoded image as the network takes it, uint8; with `crop` the whole image, of which `square` takes a part.

    Args:
        pixels: uint8 (height, width, 3).
        spec: the network's input.
        preparation: what is done.

    Raises:
        UnreadableImage: it is smaller than what all images are made equal to.
        NoFace: one was to be found and there is none.
    """
    if preparation.equalise is not None:
        pixels = _equalised(pixels, preparation.equalise)
    match preparation.mode:
        case "resize":
            return resize(pixels, spec.size, spec.interpolation)
        case "face":
            return crop_face(pixels, spec.size, spec.interpolation, preparation.margin)
        case "crop":
            return pixels


def smallest_common_size(table: pd.DataFrame) -> int:
    """The largest square that every image that can be read holds at its own resolution: its side in pixels.

    Args:
        table: columns width and height in pixels, 0 for a file that cannot be read.

    Raises:
        UserError: none can be read.
    """
    sides = table[["width", "height"]].min(axis=1)
    readable = sides[sides > 0]
    if readable.empty:
        raise UserError(
            f"expected an image that can be read, to equalise all others to its size, found none among {len(table)} "
            f"files. Look at the reasons in the catalogue."
        )
    return int(readable.min())


class PreparedImages:
    """Reads images as the network takes them, from the cache where they are stored; deleting it is always safe.

    Args:
        spec: the network's input.
        cache: folder for all runs, None for none.
        max_megapixels: as the catalogue was scanned.
        preparation: what is done to each image.
        max_gb: of all prepared images in the cache, in 10^9 bytes, whatever the network and the preparation; what was
            unused for longest goes when a run needs room. None: no limit. 0: as without a cache, nothing is read
            from it either. Runs that fill the cache at the same time do not know of each other's share: together they
            may exceed the limit, until another run needs room.

    Raises:
        UserError: faces are to be found and the extra `face` is not installed.
    """

    def __init__(
        self,
        spec: InputSpec,
        cache: Path | None,
        max_megapixels: float,
        preparation: Preparation = Preparation(),
        max_gb: float | None = None,
    ) -> None:
        self.spec, self.preparation, self.max_megapixels, self.max_gb = spec, preparation, max_megapixels, max_gb
        self.name = _name(spec, preparation)
        self.folder = cache / f"images-{self.name}" if cache is not None and max_gb != 0 else None

    def read(self, path: Path, sha256: str | None, place: tuple[float, float] | None = None) -> np.ndarray:
        """Pixels, uint8 (size, size, 3).

        Args:
            path: the original.
            sha256: of its content, as catalogued; None takes the content as it is, and no cache.
            place: where a crop lies in the room the image leaves it, shares (down, right) in [0, 1); None: the
                middle. Without effect where nothing is cropped.

        Raises:
            UnreadableImage: the original is gone, damaged, or no longer what was catalogued.
            NoFace: one was to be found and there is none.
        """
        return square(self._whole(path, sha256), self.spec.size, place)

    def prepare(self, path: Path, sha256: str | None) -> np.ndarray:
        """What is stored of an image, from the original: uint8 (height, width, 3).

        That is the network's square, or with `crop` the whole image, of which every view shows another part.

        Raises:
            As `read`.
        """
        pixels, file = read_image(path, self.max_megapixels)
        if sha256 is not None and file.sha256 != sha256:
            raise UnreadableImage("has changed since it was catalogued")
        return prepare(pixels, self.spec, self.preparation)

    def store(self, sha256: str, pixels: np.ndarray) -> None:
        """Keep what `prepare` returned, for this run and others. Any number of processes may do so at once.

        Raises:
            OSError: the disk is full or cannot be written; nothing is left.
        """
        content = io.BytesIO()
        np.save(content, pixels)
        write_bytes(Path(self._file(sha256)), content.getvalue(), durable=False)

    def stored_bytes(self, width: int, height: int) -> int:
        """How much the cache takes for an image of so many pixels."""
        if self.preparation.mode != "crop":
            width = height = self.spec.size
        elif self.preparation.equalise is not None:
            width = height = self.preparation.equalise
        return _HEADER_BYTES + width * height * 3

    def missing(self, sha256s: Collection[str]) -> list[str]:
        """Those that are not stored, in the order given.

        Looks at names alone: what is damaged is found, and made again, when it is read.
        """
        if self.folder is None:
            return list(sha256s)
        by_folder: dict[str, list[str]] = defaultdict(list)
        for sha256 in sha256s:
            by_folder[sha256[:2]].append(sha256)
        absent: set[str] = set()
        for name, wanted in by_folder.items():
            there = {entry.name for entry in _entries(f"{self.folder}/{name}")}
            absent.update(sha256 for sha256 in wanted if f"{sha256}.npy" not in there)
        return [sha256 for sha256 in sha256s if sha256 in absent] if absent else []

    def make_room(self, rows: pd.DataFrame, missing: Iterable[str]) -> set[str]:
        """Mark what a run needs as used now, and drop what was unused for longest until the rest fits.

        Nothing that this run needs is dropped. If not all of it fits, a warning says how much does.

        Args:
            rows: sha256, width and height of every image of the run, the most wanted first.
            missing: those among them that are not stored yet, see the method of that name.

        Returns:
            Those of the missing ones that are to be stored.
        """
        if self.folder is None:
            return set()
        sizes = zip(rows["sha256"], rows["width"], rows["height"], strict=True)
        needed = {sha256: self.stored_bytes(width, height) for sha256, width, height in sizes}
        absent = set(missing)
        for sha256 in needed.keys() - absent:
            with contextlib.suppress(OSError):  # another run dropped it just now
                os.utime(self._file(sha256))
        if not absent:
            return set()
        others = _others(self.folder, needed)
        if self.max_gb is None:
            return absent
        limit = int(self.max_gb * 1e9)
        taken = sum(size for sha256, size in needed.items() if sha256 not in absent)
        fitting = set()
        for sha256 in (sha256 for sha256 in needed if sha256 in absent):
            if taken + needed[sha256] <= limit:
                taken += needed[sha256]
                fitting.add(sha256)
        if len(fitting) < len(absent):
            log.warning(
                "cache      %d prepared images would take %.1f GB, more than data.cache.max_gb=%g: "
                "%d of them are not stored and are decoded each time",
                len(needed), sum(needed.values()) / 1e9, self.max_gb, len(absent) - len(fitting),
            )  # fmt: skip
        _drop_oldest(others, excess=taken + sum(size for _, size, _ in others) - limit)
        return fitting

    def _file(self, sha256: str) -> str:
        return f"{self.folder}/{sha256[:2]}/{sha256}.npy"  # a Path would take longer to make than the file to find

    def _whole(self, path: Path, sha256: str | None) -> np.ndarray:
        if self.folder is None or sha256 is None:
            return self.prepare(path, sha256)
        try:
            return self._stored(sha256)
        except FileNotFoundError:  # deleted, or there was no room: storing it is `make_room`'s to decide
            return self.prepare(path, sha256)
        except (OSError, ValueError):  # damaged, and so made again in its place
            pixels = self.prepare(path, sha256)
            with contextlib.suppress(OSError):
                self.store(sha256, pixels)
            return pixels

    def _stored(self, sha256: str) -> np.ndarray:
        """Mapped, not read: of a large image only the rows of the crop are touched.

        Raises:
            FileNotFoundError, OSError, ValueError: not there, or not what `store` writes.
        """
        with open(self._file(sha256), "rb", buffering=0) as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        header = _HEADER.match(content)
        if header is None:
            raise ValueError("not an image")
        height, width = int(header[1]), int(header[2])
        if len(content) - header.end() != height * width * 3:
            raise ValueError("cut short")
        if self.preparation.mode != "crop" and (height, width) != (self.spec.size, self.spec.size):
            raise ValueError("of another size")
        return np.frombuffer(content, np.uint8, offset=header.end()).reshape(height, width, 3)


def _name(spec: InputSpec, preparation: Preparation) -> str:
    """All that decides what is stored of an image."""
    steps = [] if preparation.equalise is None else [f"equal{preparation.equalise}"]
    match preparation.mode:
        case "resize":
            steps += ["resize", str(spec.size), spec.interpolation]
        case "face":
            steps += [f"face{preparation.margin:g}", detector_version(), str(spec.size), spec.interpolation]
        case "crop":
            steps += ["native"]
    return "-".join([*steps, f"v{_FORMAT}"])


def _entries(folder: str | Path | os.DirEntry[str]) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from entries


def _folders(place: str | Path | os.DirEntry[str]) -> Iterator[os.DirEntry[str]]:
    """Those in a place; a link is none, for what lies behind it is not the cache's to delete."""
    return (entry for entry in _entries(place) if entry.is_dir(follow_symlinks=False))


def _others(folder: Path, needed: Mapping[str, int]) -> list[tuple[float, int, str]]:
    """(last use, bytes, path) of all in the cache but the needed images of this folder; drops unfinished files."""
    others = []
    for prepared in (entry for entry in _folders(folder.parent) if entry.name.startswith("images-")):
        for entry in (entry for inner in _folders(prepared) for entry in _entries(inner)):
            with contextlib.suppress(OSError):  # another run dropped it just now
                facts = entry.stat()
                if entry.name.endswith(".tmp"):
                    if facts.st_mtime < time.time() - _ABANDONED:
                        os.unlink(entry.path)
                elif prepared.name != folder.name or entry.name.removesuffix(".npy") not in needed:
                    others.append((facts.st_mtime, facts.st_size, entry.path))
    return others


def _drop_oldest(files: list[tuple[float, int, str]], excess: int) -> None:
    for _, size, file in sorted(files):
        if excess <= 0:
            return
        with contextlib.suppress(OSError):
            os.unlink(file)  # whoever has it mapped keeps it until done
            excess -= size


def _equalised(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle square, averaged over areas down to uint8 (side, side, 3), through JPEG: the same for all images.

    Raises:
        UnreadableImage: the image is smaller; enlarging it would leave traces that the others do not have.
    """
    height, width = pixels.shape[:2]
    square = min(height, width)
    if square < side:
        raise UnreadableImage(f"{width} x {height} pixels, too small to be equalised to {side} x {side}")
    top, left = (height - square) // 2, (width - square) // 2
    middle = pixels[top : top + square, left : left + square]
    small = cv2.resize(middle, (side, side), interpolation=cv2.INTER_AREA)
    content = io.BytesIO()
    Image.fromarray(small).save(content, "JPEG", quality=_EQUAL_QUALITY, subsampling="4:2:0")
    return np.asarray(Image.open(content).convert("RGB"))


def square(pixels: np.ndarray, size: int, place: tuple[float, float] | None = None) -> np.ndarray:
    """A square of the image as it is, uint8 (size, size, 3); beyond its edges, where it is smaller, reflected.

    Args:
        pixels: uint8 (height, width, 3).
        size: pixels a side.
        place: as `PreparedImages.read` has it; None: the middle.
    """
    height, width = pixels.shape[:2]
    room = max(height - size, 0), max(width - size, 0)
    top, left = (r // 2 if place is None else int(place[i] * (r + 1)) for i, r in enumerate(room))
    part = np.array(pixels[top : top + size, left : left + size])  # a copy of its own, out of the mapped file
    above, before = (size - part.shape[0]) // 2, (size - part.shape[1]) // 2
    below, after = size - part.shape[0] - above, size - part.shape[1] - before
    if not (below or after):
        return part
    return cv2.copyMakeBorder(part, above, below, before, after, cv2.BORDER_REFLECT_101)
