"""Judging images by finished runs: the one way from a file to a probability, for every command and for Python.

    from deepfake import Detector

    detector = Detector.load("outputs/RUN")
    table = detector.predict(["a.jpg", "b.png"])  # or Pillow images, or arrays; a row each

A run judges an image just as it judged its validation images: prepared as in training, by the best checkpoint, in
the same precision, with the temperature and the thresholds that were fitted on the validation part.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import reprlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from deepfake.checkpoints import expect_whole
from deepfake.config import COMBINE, DEVICES, PRECISIONS, TTA
from deepfake.console import log
from deepfake.data.datamodule import normalise
from deepfake.data.faces import NoFace
from deepfake.data.images import TooLargeImage, UnreadableImage, expect_decodable, read_image, to_rgb
from deepfake.data.prepared import Preparation, prepare, square
from deepfake.errors import UserError
from deepfake.evaluation.calibration import Calibration
from deepfake.models.backbones import build_backbone
from deepfake.models.detector import DetectorModule
from deepfake.models.trunk import Inference
from deepfake.models.weights import read_checkpoint
from deepfake.runs import BEST, ENSEMBLE, expect_complete
from deepfake.untrusted import expect_safe_environment, read_json

Source = str | Path | Image.Image | np.ndarray
_AHEAD = 3  # batches that are read while one is judged
_FAILING = 8  # batches of files that cannot be judged, after which a batch goes off without being full
_CROP = 0.875  # share of the side that each of the crops of tta=crops shows
MEMBERS = 100  # of an ensemble at most, for each is a network in memory
_HEAVIEST = 1e9  # weight of a member; what a regression on logits finds is near 1
_LOADING = threading.Lock()  # two threads must not decode one image that Pillow has opened


@dataclass(frozen=True)
class Judged:
    """What came of one image."""

    margin: float
    """logit(fake) - logit(real) as the network gives it; NaN where the image could not be judged."""
    status: str = "ok"
    """ok | unreadable | too large | no face | no number (the network gave none)."""
    reason: str = ""


_Looked = list[NDArray[np.float32]] | Judged  # of each member what it is shown, or why there is nothing


@dataclass
class Member:
    """One network with all that its images need.

    Attributes:
        module: in eval mode.
        preparation: of its images.
        calibration: fitted on its validation part.
        about: what the checkpoint says of itself, plain data.
    """

    module: DetectorModule
    preparation: Preparation
    calibration: Calibration
    about: dict[str, Any]

    @classmethod
    def load(cls, checkpoint: Path, engine: str = "auto", device: torch.device | None = None) -> Member:
        """A network from its checkpoint. Only plain data are read: names are looked up, never executed.

        Raises:
            UserError: it cannot be read or does not fit, or the environment would have it executed.
        """
        expect_safe_environment()
        expect_whole(checkpoint)
        device = device or torch.device("cpu")
        try:
            held: dict[str, Any] = read_checkpoint(checkpoint)
            about = held["deepfake"]
            backbone = build_backbone(about["architecture"], "none", about["input"]["size"])
            frozen, precision, stages = about["frozen_stages"], about["trunk_precision"], len(backbone.stages)
            if type(frozen) is not int or not 0 <= frozen <= stages:
                raise ValueError(f"frozen_stages: expected 0 to {stages}, found {reprlib.repr(frozen)}")
            if precision not in PRECISIONS or precision == "auto":
                raise ValueError(f"trunk_precision: expected float32 or bfloat16, found {reprlib.repr(precision)}")
            module = DetectorModule(backbone)
            module.load_state_dict(held["state_dict"], strict=True)
            preparation = Preparation(**about["preparation"])
            if about["calibration"] is None:
                raise UserError(
                    f"{checkpoint}: expected a calibrated run, found a try of a few batches. Train it whole."
                )
            calibration = Calibration.from_dict(about["calibration"])
            module.trunk = Inference(backbone, frozen, engine, precision, device)
        except UserError:
            raise
        except Exception as error:  # whatever a damaged or foreign file makes the readers raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{checkpoint}: expected a checkpoint of this version, found one that cannot be used: {reason}"
            ) from error
        return cls(module.eval().to(device), preparation, calibration, about)

    def prepared(self, pixels: NDArray[np.uint8], tta: str) -> NDArray[np.float32]:
        """What the network is shown of a decoded image: float32 (views, 3, size, size), normalised.

        Args:
            pixels: uint8 (height, width, 3).
            tta: one of `TTA`.

        Raises:
            UnreadableImage: it cannot be prepared.
        """
        spec = self.module.backbone.input_spec
        views = _views(square(prepare(pixels, spec, self.preparation), spec.size), tta)
        found = np.empty((len(views), 3, spec.size, spec.size), np.float32)
        for view, planes in zip(views, found, strict=True):
            for plane, levels, out in zip(cv2.split(view), self._levels, planes, strict=True):
                cv2.LUT(plane, levels, dst=out)
        return found

    def margins(self, images: NDArray[np.float32]) -> NDArray[np.float64]:
        """Margins float64 (n,), means over the views, of what `prepared` gave: float32 (n, views, 3, size, size)."""
        n, views = images.shape[:2]
        batch = torch.from_numpy(images.reshape(n * views, *images.shape[2:])).to(self.module.device)
        with torch.inference_mode():
            found = self.module.margins(batch)
        return found.double().cpu().numpy().reshape(n, views).mean(axis=1)

    @functools.cached_property
    def _levels(self) -> NDArray[np.float32]:
        """What each of the 256 levels of each colour becomes, float32 (3, 256): to the bit what training makes of it.

        Looking them up takes a fifth of the time of computing them.
        """
        ramp = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
        return normalise(ramp, self.module.backbone.input_spec)[0, :, 0].numpy()


class Detector:
    """A finished run, or an ensemble of some, ready to judge images.

    Attributes:
        members: one for each network.
        calibration: temperature, thresholds and band, fitted on validation images.
    """

    def __init__(
        self, members: Sequence[Member], combine: Callable[[NDArray], NDArray], calibration: Calibration, tta: str
    ) -> None:
        self.members, self.combine, self.calibration, self.tta = list(members), combine, calibration, tta

    @classmethod
    def load(cls, run: str | Path, engine: str = "auto", tta: str = "none", device: str = "auto") -> Detector:
        """A complete run from its folder.

        Args:
            run: a folder that the training or the making of an ensemble left.
            engine: what runs the networks: auto, eager, compile, onnxruntime or openvino.
            tta: the mean over more views of each image: flip, crops (the whole, its corners, its middle) or none.
            device: auto, cpu or cuda.

        Raises:
            UserError: no complete run, a checkpoint that cannot be read or does not fit, no such engine or device.
        """
        folder = Path(run).expanduser()
        expect_complete(folder)
        if tta not in TTA:
            raise UserError(f"tta={tta}: expected one of {', '.join(TTA)}.")
        where = _device(device)
        if tta != "none":
            log.warning("tta=%s: temperature and thresholds were fitted on one view of each validation image", tta)
        if not (folder / ENSEMBLE).exists():
            member = Member.load(folder / BEST, engine, where)
            return cls([member], _only, member.calibration, tta)
        try:
            told = read_json(folder / ENSEMBLE)
            names, how, calibration = told["members"], told["combine"], Calibration.from_dict(told["calibration"])
            # Looked up among the files that are there: whatever else a name may be, it leads nowhere.
            there = {file.name for file in (folder / "members").iterdir()}
            if type(names) is not list or not 1 <= len(names) <= MEMBERS or len(there & set(names)) < len(names):
                raise ValueError(f"members: expected 1 to {MEMBERS} files of its folder members, each once")
            members = [Member.load(folder / "members" / name, engine, where) for name in names]
            combine = combination(how, [member.calibration for member in members], told["weights"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / ENSEMBLE}: expected an ensemble of this version, found {repr(error)[:200]}"
            ) from error
        return cls(members, combine, calibration, tta)

    def judge(
        self,
        sources: Iterable[Any],
        read: Callable[[Any], NDArray[np.uint8]] | None = None,
        batch_size: int = 32,
    ) -> Iterator[Judged]:
        """One answer for each source, in their order, in constant memory.

        Files are read by all cores while the network runs, in a thread of its own, and while the caller has the
        answers before.

        Args:
            sources: files, images or arrays as `pixels_of` takes them; or whatever `read` takes.
            read: gives the pixels of a source, uint8 (height, width, 3), or raises UnreadableImage; is called by
                several threads at once.
            batch_size: images that are judged at once.
        """
        take = read or pixels_of

        def look(source: Any) -> _Looked:
            try:
                pixels = take(source)
                return [member.prepared(pixels, self.tta) for member in self.members]
            except NoFace as error:
                return Judged(np.nan, "no face", str(error))
            except TooLargeImage as error:
                return Judged(np.nan, "too large", str(error))
            except UnreadableImage as error:
                return Judged(np.nan, "unreadable", str(error))

        running: deque[Future[list[Judged]]] = deque()
        looked = _in_order(look, sources, _AHEAD * batch_size)
        with contextlib.closing(looked), ThreadPoolExecutor(1) as runner:
            for batch in _batches(looked, batch_size):
                running.append(runner.submit(self._answers, *batch))
                if len(running) > 1:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()

    def _answers(self, items: Sequence[Judged | None], images: Sequence[NDArray[np.float32]]) -> list[Judged]:
        """Answers in the order of the items; None is the next of the images, which each member has its own of."""
        margins: Iterator[float] = iter(())
        if images:
            each = [member.margins(own) for member, own in zip(self.members, images, strict=True)]
            margins = iter(self.combine(np.stack(each)))
        return [item or _answer(float(next(margins))) for item in items]

    def table(self, judged: Sequence[Judged], threshold: str = "half") -> pd.DataFrame:
        """Answers as rows: status, reason, probability (calibrated P(fake)), verdict (real, fake or ""), uncertain.

        Args:
            judged: what `judge` gave.
            threshold: which of the stored ones: half, eer, balanced_accuracy, fpr_1 or fpr_5.
        """
        margins = np.array([item.margin for item in judged], dtype=np.float64)
        ok = ~np.isnan(margins)
        p = np.full(len(margins), np.nan)
        p[ok] = self.calibration.probabilities(margins[ok])
        verdict = np.full(len(margins), "", dtype=object)
        verdict[ok] = self.calibration.verdict(p[ok], threshold)
        doubtful = np.zeros(len(margins), dtype=bool)
        doubtful[ok] = self.calibration.uncertain(p[ok], threshold)
        return pd.DataFrame(
            {
                "status": [item.status for item in judged],
                "reason": [item.reason for item in judged],
                "probability": p,
                "verdict": verdict,
                "uncertain": doubtful,
            }
        )

    def predict(self, images: Iterable[Source], threshold: str = "half", batch_size: int = 32) -> pd.DataFrame:
        """One row an image, in their order, never fewer.

        Args:
            images: paths, PIL images, or arrays uint8 (height, width, 3) in RGB or (height, width) in grey.
            threshold: which of the stored ones says "fake": half, eer, balanced_accuracy, fpr_1 or fpr_5.
            batch_size: images that are judged at once.

        Returns:
            Columns path ("" of what has none), status, reason, probability, verdict, uncertain; see `table`.
        """
        paths: list[str] = []

        def noted() -> Iterator[Source]:
            for image in images:
                paths.append(str(image) if isinstance(image, str | Path) else "")
                yield image

        found = self.table(list(self.judge(noted(), batch_size=batch_size)), threshold)
        found.insert(0, "path", paths)
        return found


def pixels_of(source: Source, max_megapixels: float = 64.0) -> NDArray[np.uint8]:
    """A file, an image or an array as uint8 (height, width, 3). The three of one picture are the same.

    Args:
        source: a path; a Pillow image, which is turned as its EXIF says and shown on white where it is transparent,
            as a file is; or an array, uint8 (height, width, 3) in RGB or (height, width) in grey.
        max_megapixels: larger files and images are refused before they are decoded.

    Raises:
        UnreadableImage: a file or an image that cannot be read, or an array of another kind.
    """
    match source:
        case str() | Path():
            return read_image(Path(source), max_megapixels)[0]
        case Image.Image():
            return _pixels_of_image(source, max_megapixels)
        case np.ndarray():
            if source.dtype != np.uint8 or not (source.ndim == 2 or source.shape[2:] == (3,)) or not source.size:
                raise UnreadableImage(
                    f"expected uint8 of shape (height, width, 3) or (height, width), found {source.dtype} of "
                    f"{source.shape}"
                )
            return np.ascontiguousarray(source if source.ndim == 3 else np.stack([source] * 3, axis=2))
    raise UnreadableImage(f"expected a path, an image or an array, found {type(source).__name__}")


def _pixels_of_image(image: Image.Image, max_megapixels: float) -> NDArray[np.uint8]:
    if not image.width * image.height:
        raise UnreadableImage(f"expected an image with pixels, found {image.width} x {image.height}")
    expect_decodable(image.width, image.height, max_megapixels)
    try:
        with _LOADING:
            image.load()
        return to_rgb(image)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow opens a file without decoding it: only now it shows what is wrong
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"damaged: {reason}") from error


def combination(
    how: str, calibrations: Sequence[Calibration], weights: Sequence[float]
) -> Callable[[NDArray], NDArray]:
    """What makes one margin (n,) of those of several members (members, n).

    Args:
        how: mean (of the calibrated probabilities), logit_mean (of the calibrated logits) or stacked (a logistic
            regression on the calibrated logits).
        calibrations: of the members.
        weights: with stacked the bias and one weight a member; else none.

    Raises:
        ValueError: another way, or another number of weights.
    """
    if how not in COMBINE or len(weights) != (len(calibrations) + 1 if how == "stacked" else 0):
        raise ValueError(f"expected one of {', '.join(COMBINE)} with its weights, found {how!r} with {weights!r}")
    if not all(type(weight) in (int, float) and abs(weight) < _HEAVIEST for weight in weights):
        raise ValueError(f"weights: expected finite numbers, found {weights!r}")
    temperatures = np.array([calibration.temperature for calibration in calibrations])[:, np.newaxis]

    def combine(margins: NDArray) -> NDArray:
        logits = margins / temperatures
        match how:
            case "mean":
                p = np.clip((1 / (1 + np.exp(-np.clip(logits, -700, 700)))).mean(axis=0), 1e-15, 1 - 1e-15)
                return np.log(p) - np.log1p(-p)
            case "logit_mean":
                return logits.mean(axis=0)
        return weights[0] + np.asarray(weights[1:]) @ logits

    return combine


def _answer(margin: float) -> Judged:
    if not math.isfinite(margin):
        return Judged(math.nan, "no number", f"expected a finite number from the network, found {margin}")
    return Judged(margin)


def _only(margins: NDArray) -> NDArray:
    return margins[0]


def _device(name: str) -> torch.device:
    """auto, cpu or cuda.

    Raises:
        UserError: another, or there is no such device.
    """
    if name not in DEVICES:
        raise UserError(f"device={name}: expected one of {', '.join(DEVICES)}.")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("device=cuda: expected a graphics card that PyTorch can use, found none. Choose auto or cpu.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _views(image: np.ndarray, tta: str) -> list[np.ndarray]:
    """The image, uint8 (size, size, 3), and what else is shown of it, of the same size."""
    size = len(image)
    match tta:
        case "flip":
            return [image, image[:, ::-1]]
        case "crops":
            side = round(_CROP * size)
            last = size - side
            corners = [(0, 0), (0, last), (last, 0), (last, last), (last // 2, last // 2)]
            parts = [image[top : top + side, left : left + side] for top, left in corners]
            return [image, *(cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR) for part in parts)]
    return [image]


def _in_order(look: Callable[[Any], _Looked], sources: Iterable[Any], ahead: int) -> Generator[_Looked, None, None]:
    """What `look` gives of each source, in their order, made ahead by a thread for each core."""
    waiting: deque[Future[_Looked]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads: decoding releases the interpreter lock
        try:
            for source in sources:
                waiting.append(pool.submit(look, source))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # whoever asked has stopped, or something is wrong
            for future in waiting:
                future.cancel()


def _batches(looked: Iterable[_Looked], size: int) -> Iterator[tuple[list[Judged | None], list[NDArray[np.float32]]]]:
    """Full batches: each item's failure, or None for an image; and of each member its images, stacked.

    An engine is made for the size of the first batch, which files that cannot be judged must not make small.
    """
    items: list[Judged | None] = []
    images: list[list[NDArray[np.float32]]] = []
    for found in looked:
        if isinstance(found, Judged):
            items.append(found)
        else:
            items.append(None)
            images.append(found)
        if len(images) == size or len(items) == _FAILING * size:
            yield items, [np.stack(own) for own in zip(*images, strict=True)]
            items, images = [], []
    if items:
        yield items, [np.stack(own) for own in zip(*images, strict=True)]
