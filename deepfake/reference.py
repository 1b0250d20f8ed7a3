"""What a run's training images look like, so that another image can be held against them.

Two things are kept of them: the mean spectrum of each source, as the network is shown it, and what the network makes
of some of them, the input of its classifier. An image whose features lie far from all of these is unlike anything the
run was trained on, and its probability says little: deep nearest neighbours (Sun et al., 2022, arXiv 2204.06507). How
far is far, the run's own validation images say.
"""

import hashlib
import io
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepfake.analysis.spectra import decibel, gray, power_spectrum, radial_profile
from deepfake.console import log, progress
from deepfake.data.catalog import read_catalogue
from deepfake.data.images import UnreadableImage, read_catalogued
from deepfake.data.prepared import prepare, square
from deepfake.errors import UserError
from deepfake.files import write_bytes
from deepfake.judging import Detector, Member
from deepfake.models.trunk import Inference
from deepfake.runs import BEST, ENSEMBLE
from deepfake.untrusted import expect_file, read_yaml

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

FILE = "reference.npz"  # in the run's folder
NEIGHBOUR = 10  # which nearest training image is measured to: one alone may be an odd one
FAR = 0.99  # share of the validation images that lie nearer than what is called unlike
_FORMAT = 1  # raise when what is stored means something else
_MOST = 4000  # training images in all, whatever the number of sources
_MAX_BYTES = 2**28
_BATCH = 32


class NoReference(Exception):
    """Why the training images cannot be looked at, as the end of a sentence."""


@dataclass(frozen=True)
class Reference:
    """What is known of the training images, and of the validation images beside them.

    Raises:
        ValueError: arrays that do not belong together.
    """

    sources: NDArray[np.str_]  # (S,), names
    labels: NDArray[np.int64]  # (S,), 0 real, 1 fake
    counts: NDArray[np.int64]  # (S,), images that each profile is the mean of
    profiles: Floats  # (S, size // 2 + 1), dB, of the square that the network is shown, no window
    features: NDArray[np.float32]  # (N, D), of unit length
    validation: Floats  # (M,), distances of validation images as `distance` gives them, ascending

    def __post_init__(self) -> None:
        sources = len(self.sources)
        kinds = {"sources": "U", "labels": "i", "counts": "i", "profiles": "f", "features": "f", "validation": "f"}
        for name, kind in kinds.items():
            array = getattr(self, name)
            if array.dtype.kind != kind or array.ndim != (2 if name in ("profiles", "features") else 1):
                raise ValueError(f"{name}: {array.dtype} of {array.shape}")
            if kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{name}: not finite")
        if not sources or {len(self.labels), len(self.counts), len(self.profiles)} != {sources}:
            raise ValueError("not one row a source")
        if not (np.isin(self.labels, (0, 1)).all() and (self.counts > 0).all()):
            raise ValueError("labels or counts that no source has")
        if not self.features.size or not self.validation.size or (np.diff(self.validation) < 0).any():
            raise ValueError("no features, or distances that do not rise")

    @property
    def far(self) -> float:
        """The distance above which an image is unlike the training images."""
        return float(np.quantile(self.validation, FAR, method="higher"))

    def distance(self, features: NDArray[np.float32]) -> float:
        """Cosine distance, 0 to 2, to the k-th nearest training image, k = `NEIGHBOUR` or as many as there are.

        Args:
            features: (D,), of unit length.
        """
        near = self.features @ features
        k = min(NEIGHBOUR, len(near))
        return 1.0 - float(np.partition(near, -k)[-k])

    def nearer(self, distance: float) -> float:
        """The share of the validation images that lie nearer than that, in [0, 1]."""
        return float(np.searchsorted(self.validation, distance) / len(self.validation))


def reference_of(run: Path, detector: Detector, images: int, engine: str = "auto", show: bool = True) -> Reference:
    """Of a run: as it was kept in its folder, or made now, and kept.

    Args:
        run: its folder.
        detector: as loaded from there.
        images: of each training source and, of each, of validation, at most.
        engine: what runs the networks on many images, as `Detector.load` takes it.
        show: a progress bar.

    Raises:
        NoReference: the images are not there, or no longer as they were.
    """
    identity = _identity(run, images)
    file = run / FILE
    found = _stored(file, identity)
    if found and (found.profiles.shape[1], found.features.shape[1]) == _widths(detector.members):
        return found
    made = _made(run, detector.members, images, engine, show)
    content = io.BytesIO()
    np.savez(content, identity=np.array(identity), **asdict(made))
    try:
        write_bytes(file, content.getvalue())
    except OSError as error:
        log.warning("%s: not kept (%s), and made again the next time", file, error.strerror)
    return made


def profile(member: Member, pixels: Pixels) -> Floats:
    """Mean power at each frequency, float64 (size // 2 + 1,), of the square that the network is shown.

    Args:
        pixels: uint8 (height, width, 3).

    Raises:
        UnreadableImage: it cannot be prepared.
    """
    spec = member.module.backbone.input_spec
    shown = square(prepare(pixels, spec, member.preparation), spec.size)
    return radial_profile(power_spectrum(gray(shown)))


def features(members: Sequence[Member], pixels: Pixels) -> NDArray[np.float32]:
    """What the classifiers are given of an image: float32 (D,), of unit length; each member's part as long.

    Raises:
        UnreadableImage: it cannot be prepared.
    """
    return _together([_features(member, member.prepared(pixels, "none")) for member in members])[0]


def _features(
    member: Member, shown: NDArray[np.float32], stages: Callable[[Tensor], Tensor] | None = None
) -> NDArray[np.float32]:
    """Of unit length, float32 (N, D), from normalised images (N, 3, S, S).

    Not by the engine that judges, which is made for batches of one size; `stages` runs what comes before the head.
    """
    backbone = member.module.backbone
    batch = torch.from_numpy(shown).to(member.module.device)
    with torch.inference_mode():
        found = (stages or backbone.features)(batch).float()
        rows = backbone.network.forward_head(found, pre_logits=True).flatten(1).cpu().numpy()  # type: ignore[operator]
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _widths(members: Sequence[Member]) -> tuple[int, int]:
    """How many numbers a profile and the features of an image are."""
    sizes = [member.module.backbone.input_spec.size for member in members]
    blank = [np.zeros((1, 3, size, size), np.float32) for size in sizes]
    return sizes[0] // 2 + 1, sum(_features(*each).shape[1] for each in zip(members, blank, strict=True))


def _together(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """So that the distance of the whole is the mean of the members' distances."""
    return np.concatenate(parts, axis=1) / np.float32(math.sqrt(len(parts)))


# ---------------------------------------------------------------------------------------------------------- the file


def _identity(run: Path, images: int) -> str:
    """Of the weights, and of which images are looked at."""
    ensemble = run / ENSEMBLE  # says which members there are, and in what order their features stand
    places = [ensemble, *sorted((run / "members").iterdir())] if ensemble.exists() else [run / BEST]
    running = hashlib.sha256(f"{_FORMAT} {images} {NEIGHBOUR}".encode())
    for place in [*places, run / "manifest.parquet"]:
        try:
            expect_file(place)
            running.update(hashlib.sha256(place.read_bytes()).digest())
        except OSError:
            running.update(b"absent")
    return running.hexdigest()


def _stored(file: Path, identity: str) -> Reference | None:
    """What the file holds; None where there is none, of another state of the run, or one that is not ours."""
    try:
        expect_file(file)
        if file.stat().st_size > _MAX_BYTES:
            return None
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return None  # a small file could unpack to more than there is memory
        with np.load(file, allow_pickle=False) as arrays:
            if arrays["identity"].tolist() != identity:
                return None
            return Reference(**{field.name: arrays[field.name] for field in fields(Reference)})
    except Exception:  # whatever a damaged or foreign file makes the readers raise
        return None


# -------------------------------------------------------------------------------------------------------- its making


class _Looked(NamedTuple):
    """What was seen of the images of a part that are still as they were, n of them."""

    sources: NDArray[np.object_]  # (n,)
    powers: Floats  # (n, size // 2 + 1)
    features: NDArray[np.float32]  # (n, D)


def _made(run: Path, members: Sequence[Member], images: int, engine: str, show: bool) -> Reference:
    table, root, max_megapixels = _images(run)

    def read(path: str, sha256: str) -> Pixels:
        return read_catalogued(root / path, sha256, max_megapixels)

    wanted = [_some(table[(table["split"] == part) & (table["sha256"] != "")], images) for part in ("train", "val")]
    networks = [
        (member, Inference(member.module.backbone, 0, engine, "float32", member.module.device)) for member in members
    ]
    with progress("training images", sum(map(len, wanted)), show) as advance:
        training, validation = (_looked(networks, read, rows, advance) for rows in wanted)
    sources, counts = np.unique(training.sources.astype(str), return_counts=True)
    labels = wanted[0].drop_duplicates("source").set_index("source")["label"]
    made = Reference(
        sources=sources,
        labels=labels[sources].to_numpy(np.int64),
        counts=counts.astype(np.int64),
        profiles=decibel(np.stack([training.powers[training.sources == source].mean(axis=0) for source in sources])),
        features=training.features,
        validation=np.zeros(1),
    )
    distances = np.sort([made.distance(row) for row in validation.features])
    return replace(made, validation=distances)


def _images(run: Path) -> tuple[pd.DataFrame, Path, float]:
    """The run's catalogue, what its paths are below, and the megapixels of the largest image that it took.

    Raises:
        NoReference: one of them is not there.
    """
    try:
        data = read_yaml(run / "config.yaml")["data"]
        root, most = Path(data["root"]), float(data["max_megapixels"])
        table = read_catalogue(run / "manifest.parquet")
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise NoReference(f"the run's folder does not say which its training images were ({error})") from error
    if not root.is_dir():
        raise NoReference("the folder of its training images is not here")  # its name is for no visitor
    return table, root, most


def _some(table: pd.DataFrame, images: int) -> pd.DataFrame:
    """At most so many of each source, by content, so that they are always the same."""
    each = min(images, max(1, _MOST // max(1, table["source"].nunique())))
    return table.sort_values("sha256").groupby("source", sort=True).head(each)


def _looked(
    networks: Sequence[tuple[Member, Inference]],
    read: Callable[[str, str], Pixels],
    rows: pd.DataFrame,
    advance: Callable[[], object],
) -> _Looked:
    """What is seen of those rows' images.

    Raises:
        NoReference: fewer than half of them are as they were.
    """

    def look(row: tuple[str, str]) -> tuple[Floats, list[NDArray[np.float32]]] | None:
        try:
            pixels = read(*row)
            return profile(networks[0][0], pixels), [member.prepared(pixels, "none") for member, _ in networks]
        except UnreadableImage:
            return None
        finally:
            advance()

    sources: list[str] = []
    powers: list[Floats] = []
    found: list[NDArray[np.float32]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads: decoding releases the interpreter lock
        for start in range(0, len(rows), _BATCH):
            some = rows.iloc[start : start + _BATCH]
            seen = list(pool.map(look, zip(some["path"], some["sha256"], strict=True)))
            sources += [source for source, each in zip(some["source"], seen, strict=True) if each]
            there = [each for each in seen if each]
            if there:
                powers += [power for power, _ in there]
                shown = [np.concatenate(own) for own in zip(*(own for _, own in there), strict=True)]
                parts = [_features(member, own, run) for (member, run), own in zip(networks, shown, strict=True)]
                found.append(_together(parts))
    if not found or len(sources) < len(rows) / 2:
        raise NoReference(f"of {len(rows)} of its images only {len(sources)} are still where and as they were")
    return _Looked(np.array(sources, dtype=object), np.stack(powers), np.concatenate(found))
