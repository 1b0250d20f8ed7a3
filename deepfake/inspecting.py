"""One image from its bytes to all that is to be said of it: the verdict, what it rests on, what speaks against it."""

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from deepfake.analysis.spectra import decibel
from deepfake.data.faces import Face, NoFace, detector_version, find_face
from deepfake.data.images import ImageFile, decode_image
from deepfake.errors import UserError
from deepfake.explaining import Explainer, shrunk
from deepfake.judging import Detector
from deepfake.reference import Reference, features, profile
from deepfake.reporting.figures import encoded
from deepfake.reporting.profile_figure import profile_figure

Pixels = NDArray[np.uint8]

COLUMNS = ("path", "status", "reason", "probability", "verdict", "uncertain")  # as `Detector.predict` has them
_UNCOMPRESSED = 101  # in place of a JPEG's quality, above all of them
_LEAST_COMPRESSED = 0.01  # share of the training images that may be compressed more than what is taken for usual
_TITLES = {"real": "looks real", "fake": "looks generated"}
_SMALL_FACE = 1 / 3  # of the side of what the network is shown


@dataclass(frozen=True)
class Inspection:
    """All that is said of one image.

    Attributes:
        row: `COLUMNS` and warnings, for a table.
        warnings: what speaks against trusting the verdict, a sentence each.
        thumbnail: the image, a PNG; None where it cannot be read.
        heat_map: the image and where the network sees what speaks for fake, a PNG; None without one.
        spectrum: its spectrum beside those of the training sources, a PNG; None without one.
    """

    row: dict[str, Any]
    warnings: tuple[str, ...] = ()
    thumbnail: bytes | None = None
    heat_map: bytes | None = None
    spectrum: bytes | None = None


@dataclass(frozen=True)
class Trained:
    """What the run's catalogue says of the images that it was trained on.

    Attributes:
        known: sha256 of the training and validation images.
        least_quality: of JPEG, that at most a hundredth of the training images fall below; 101 is no JPEG at all.
    """

    known: frozenset[str]
    least_quality: int

    @classmethod
    def of(cls, catalogue: pd.DataFrame) -> "Trained":
        training = catalogue[catalogue["split"] == "train"]
        quality = training["jpeg_quality"].where(training["jpeg_quality"] > 0, _UNCOMPRESSED)
        least = int(np.quantile(quality, _LEAST_COMPRESSED, method="lower")) if len(quality) else 0
        return cls(frozenset(catalogue.loc[catalogue["split"].isin(("train", "val")), "sha256"]), least)


class Inspector:
    """Looks at images for all users of the page, one image at a time: neither the maps nor the figures may be mixed.

    Args:
        detector: that judges.
        threshold: which of the stored ones says "fake".
        max_megapixels: larger images are not decoded.
        trained: on what; None where the run does not say it.
        reference: to hold the image against; or, as a text, why there is none.

    Attributes:
        untold: what cannot be said of any image, and why, a sentence each.
    """

    def __init__(
        self,
        detector: Detector,
        threshold: str,
        max_megapixels: float,
        trained: Trained | None,
        reference: Reference | str,
    ) -> None:
        self.detector, self.threshold, self.max_megapixels = detector, threshold, max_megapixels
        self.trained, self.untold = trained, list[str]()
        self._turn = threading.Lock()
        self.reference = None if isinstance(reference, str) else reference
        if isinstance(reference, str):
            self.untold.append(f"Whether an image is unlike what the run was trained on cannot be told: {reference}.")
        if trained is None:
            self.untold.append(
                "Whether the run was trained on an image, or on images compressed like it, cannot be told: its "
                "manifest.parquet cannot be read."
            )
        doubts = [each for each in detector.calibration.warnings if each.split(":")[0] in (threshold, "temperature")]
        if detector.tta != "none":
            doubts.append(f"tta={detector.tta}: they were calibrated on one view of each image")
        self.untold += [f"How far the numbers can be relied on cannot be told: {doubt}." for doubt in doubts]
        self._explainer: Explainer | None = None
        try:
            self._explainer = Explainer(detector.members)
        except UserError as error:
            self.untold.append(
                f"Where the network looks cannot be shown: {str(error).removeprefix('explain=true: ')}"
            )
        self._finds_faces = _finds_faces()
        if not self._finds_faces:
            self.untold.append(
                "Whether there is a face in an image cannot be told: pip install 'deepfake[face]' finds faces."
            )

    def inspect(self, name: str, content: bytes) -> Inspection:
        """Judge the bytes of a file, and look at what the verdict rests on.

        Args:
            name: of the file, any text.
            content: all of it; nothing of it is written or run.
        """
        decoded: list[tuple[Pixels, ImageFile]] = []

        def read(content: bytes) -> Pixels:
            decoded.append(decode_image(content, PurePath(name).suffix, self.max_megapixels))
            return decoded[0][0]

        with self._turn:
            judged = list(self.detector.judge([content], read, batch_size=1))
            row = dict(zip(COLUMNS, [name, *self.detector.table(judged, self.threshold).iloc[0]], strict=True))
            if not decoded:
                return Inspection(row | {"warnings": ""})
            pixels, file = decoded[0]
            thumbnail = _png(shrunk(pixels))
            if row["status"] != "ok":
                return Inspection(row | {"warnings": ""}, thumbnail=thumbnail)
            warnings = tuple(self._warnings(pixels, file))
            title = "uncertain" if row["uncertain"] else _TITLES[row["verdict"]]
            return Inspection(
                row | {"warnings": " ".join(warnings)},
                warnings,
                thumbnail,
                _png(self._explainer.picture(pixels, title)) if self._explainer else None,
                self._spectrum(pixels, self.reference) if self.reference else None,
            )

    def _warnings(self, pixels: Pixels, file: ImageFile) -> list[str]:
        found = []
        if self.trained and file.sha256 in self.trained.known:
            found.append("The run was trained or calibrated on this very image: its verdict on it is no test.")
        if self.reference:
            distance = self.reference.distance(features(self.detector.members, pixels))
            if distance > self.reference.far:
                found.append(_unlike(self.reference.nearer(distance), len(self.reference.validation)))
        size = self.detector.members[0].module.backbone.input_spec.size
        height, width = pixels.shape[:2]
        if min(height, width) < size:
            found.append(_small(width, height, size, self.detector.members[0].preparation.mode))
        if self.trained and file.jpeg_quality > 0 and file.jpeg_quality < self.trained.least_quality:
            found.append(_compressed(file.jpeg_quality, self.trained.least_quality))
        if self._finds_faces:
            found += self._face(pixels, size)
        if file.reason:
            found.append(f"The file is odd: {file.reason}.")
        return found

    def _face(self, pixels: Pixels, size: int) -> list[str]:
        try:
            face = find_face(pixels)
        except NoFace:
            return ["No face was found. The network is made for faces alone, yet gives a number for any picture."]
        seen = _seen(face, pixels, size, self.detector.members[0].preparation.mode)
        if seen < _SMALL_FACE * size:
            return [
                f"Tiny face: about {face.side:.0f} pixels of the image, of which the network sees {seen:.0f} of "
                f"{size}."
            ]
        return []

    def _spectrum(self, pixels: Pixels, reference: Reference) -> bytes:
        own = decibel(profile(self.detector.members[0], pixels))
        figure = profile_figure(own, reference.profiles, reference.sources, reference.labels, reference.counts)
        return encoded(figure)


def table_of(inspections: Sequence[Inspection]) -> pd.DataFrame:
    """A row an image: `COLUMNS`, then its warnings."""
    return pd.DataFrame([inspection.row for inspection in inspections], columns=[*COLUMNS, "warnings"])


def _unlike(nearer: float, count: int) -> str:
    share = "all" if nearer == 1 else f"{nearer:.1%}"
    return (
        f"Unlike what the network was trained on: farther from it than {share} of the {count:,} validation images. "
        f"The probability says little here."
    )


def _small(width: int, height: int, size: int, mode: str) -> str:
    mirrored = "What lies beyond its edge is filled with its mirror image."
    enlarged = "What is enlarged has lost, or never had, the fine traces."
    return (
        f"Small: {width} x {height} pixels, less on a side than the {size} x {size} that the network takes. "
        f"{mirrored if mode == 'crop' else enlarged}"
    )


def _compressed(quality: int, least: int) -> str:
    usual = "were no JPEG" if least == _UNCOMPRESSED else f"had a quality of {least} or more, or were no JPEG"
    return (
        f"Heavily compressed: JPEG quality about {quality}, where all but 1 % of the training images {usual}. "
        f"Compression wipes out the fine traces."
    )


def _seen(face: Face, pixels: Pixels, size: int, mode: str) -> float:
    """How many pixels of the face's own reach the network, at most, on a side."""
    height, width = pixels.shape[:2]
    return face.side * size / max(height, width) if mode == "resize" else face.side


def _finds_faces() -> bool:
    try:
        detector_version()
    except UserError:
        return False
    return True


def _png(pixels: Pixels) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
