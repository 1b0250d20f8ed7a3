"""One explanation from settings to its report: what a run looks at, whether it is so, which frequencies decide."""

import math
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deepfake import runs
from deepfake.analysis import deletion, frequencies
from deepfake.analysis.deletion import Deletion
from deepfake.analysis.frequencies import Curve, Interval
from deepfake.analysis.shortcuts import spectrum_shortcut
from deepfake.analysis.spectra import gray, power_spectrum, radial_profile
from deepfake.config import EvaluateConfig, ExplainConfig
from deepfake.console import log, logging_to_terminal, progress, visible
from deepfake.data.catalog import limit_images, read_catalogue
from deepfake.data.images import UnreadableImage
from deepfake.data.prepared import PreparedImages
from deepfake.dataset import cache_folder
from deepfake.errors import UserError
from deepfake.evaluating import (
    SEEN,
    UNJUDGED,
    Images,
    catalogued_pixels,
    images_to_judge,
    judge_images,
    output_folder,
    run_settings,
)  # fmt: skip
from deepfake.evaluation.metrics import bootstrap_intervals, scores
from deepfake.explaining import Explainer, part_of, shrunk
from deepfake.files import as_json, write_json
from deepfake.judging import Detector
from deepfake.reporting import board
from deepfake.reporting.evaluation_figures import mistakes_sheet
from deepfake.reporting.explanation_figures import deletion_figure, frequencies_figure
from deepfake.reporting.figures import save
from deepfake.reporting.run_page import write_run_page

Shown = Sequence[NDArray[np.float32]]  # of each member what it is shown: (3, size, size), or (n, 3, size, size)

_KINDS = {  # of answers: truth, verdict
    "true_fake": (1, "fake"),
    "false_fake": (0, "fake"),
    "true_real": (0, "real"),
    "false_real": (1, "real"),
}
_TITLES = {
    "true_fake": "fakes that are called fake",
    "false_fake": "reals that are called fake",
    "true_real": "reals that are called real",
    "false_real": "fakes that are called real",
}


def explain(cfg: ExplainConfig) -> int:
    """See `deepfake.explain.run`."""
    began = time.monotonic()
    folder = Path(cfg.run).expanduser()
    with logging_to_terminal():
        runs.expect_complete(folder)
        asked = EvaluateConfig(
            data=cfg.data, run=str(folder), threshold=cfg.threshold, batch_size=cfg.batch_size, progress=cfg.progress
        )
        images = images_to_judge(asked, [folder])
        output = output_folder(cfg.output, "explanation", folder, images)
        runs.expect_writable(output, "output")
        detector = Detector.load(folder, cfg.engine)
        explainer = Explainer(detector.members, cfg.method, f"method={cfg.method}")
        answers = judge_images(asked, detector, images)
        ok = (answers["status"] == "ok").to_numpy()
        judged = answers[ok].assign(sha256=images.table["sha256"].to_numpy()[ok]).reset_index(drop=True)
        not_judged = answers.loc[~ok, "status"].value_counts().to_dict()
        hidden, by_verdict = _hidden(cfg, detector, explainer, images, judged)
        bands = _filtered(cfg, detector, images, judged, folder)
        content = {
            "run": folder.name,
            "data": {"root": str(images.root.absolute()), "what": images.of},
            "part": images.of,
            "images": len(judged),
            "prevalence": float(judged["label"].mean()),
            "not_judged": not_judged,
            "threshold": {"name": cfg.threshold, "value": detector.calibration.thresholds[cfg.threshold].value},
            "method": explainer.method,
            "layer": ", ".join(dict.fromkeys(explainer.layers)),
            "places": list(explainer.places),
            "deletion": {**hidden.as_dict(), "hidden_as": deletion.COVERS[cfg.hide],
                         "random_as": deletion.ELSEWHERE, "shifts": cfg.shifts, "common_as": deletion.COMMON,
                         "by_verdict": {name: found.as_dict() for name, found in by_verdict.items()}},
            "frequencies": bands.as_dict(),
        }  # fmt: skip
        try:
            sheets, pictures = _draw(cfg, output / "figures", content, explainer, images, judged, hidden, bands)
            content |= {
                "sheets": sheets,
                "seconds": round(time.monotonic() - began, 1),
                "command": shlex.join(["python", "-m", "deepfake.explain", *sys.argv[1:]]),
            }
            write_json(output / "explanation.json", as_json(content))
            if cfg.output is None:
                write_run_page(folder)
        except OSError as error:
            raise runs.unwritable(output, error.strerror, "output") from error
        if dashboard := board.dashboard(folder):
            try:
                _to_tensorboard(dashboard, output.name, hidden, pictures)
            except OSError as error:
                raise runs.unwritable(dashboard, error.strerror, "run") from error
        for name, told in (("maps", hidden.sentence), ("frequencies", bands.sentence)):
            log.info("%-11s %s", name, told)
        if not_judged:
            log.warning("not judged: %s", ", ".join(f"{count} {status}" for status, count in not_judged.items()))
        log.info("%s", output)
        return UNJUDGED if set(not_judged) - {SEEN} else 0


# ------------------------------------------------------------------------------------------ images and their versions


def _read(
    cfg: ExplainConfig, what: str, detector: Detector, images: Images, table: pd.DataFrame
) -> Iterator[tuple[pd.DataFrame, list[NDArray[np.float32]], Callable[[], None]]]:
    """A batch of images at a time: their rows, of each member what it is shown of them, (n, 3, size, size), and what
    moves the bar when one of them is done.

    What has gone since it was judged a moment ago is left out.
    """

    def look(path: str, sha256: str) -> list[NDArray[np.float32]] | None:
        try:
            pixels = catalogued_pixels(images, path, sha256)
            return [member.prepared(pixels, "none")[0] for member in detector.members]
        except UnreadableImage:
            return None

    with progress(what, len(table), cfg.progress) as advance, ThreadPoolExecutor() as pool:
        for start in range(0, len(table), cfg.batch_size):
            rows = table.iloc[start : start + cfg.batch_size]
            found = list(pool.map(look, rows["path"], rows["sha256"]))
            kept = [each for each in found if each is not None]
            for _ in range(len(found) - len(kept)):
                advance()
            if kept:
                there = rows[[each is not None for each in found]]
                yield there, [np.stack(own) for own in zip(*kept, strict=True)], advance


def _margins(detector: Detector, versions: Iterable[Shown], batch_size: int) -> Iterator[float]:
    """Of each version of an image, given as what each member is shown, float32 (3, size, size).

    Raises:
        UserError: the networks give no number.
    """
    coming = iter(versions)
    while batch := list(islice(coming, batch_size)):
        each = [
            member.margins(np.stack(own)[:, np.newaxis])
            for member, own in zip(detector.members, zip(*batch, strict=True), strict=True)
        ]
        margins = detector.combine(np.stack(each))
        if not np.isfinite(margins).all():
            raise UserError(
                "expected finite numbers from the network for changed images, found others. Train the run again."
            )
        yield from margins


# ------------------------------------------------------------------------------------------------- hiding what is hot


def _hidden(
    cfg: ExplainConfig, detector: Detector, explainer: Explainer, images: Images, judged: pd.DataFrame
) -> tuple[Deletion, dict[str, Deletion]]:
    """Deletion curves of all images, and of those of each verdict.

    Raises:
        UserError: all images have gone.
    """
    table, heat = _heat(cfg, detector, explainer, images, limit_images(judged, cfg.images))
    # By verdict, for Grad-CAM explains that. An image's own map is part of the mean: of few images the two are alike,
    # and a map is rather not shown to be faithful than wrongly called so.
    common = {
        verdict: {part: np.mean(maps[of_verdict], axis=0) for part, maps in heat.items()}
        for verdict, of_verdict in table.groupby("verdict").indices.items()
    }
    kept: list[pd.DataFrame] = []
    inner = deletion.FRACTIONS[1:-1]

    def versions() -> Iterator[Shown]:
        for there, shown, advance in _read(cfg, "hiding", detector, images, table):
            kept.append(there)
            for number, (place, sha256, verdict) in enumerate(
                zip(there.index.to_numpy(), there["sha256"], there["verdict"], strict=True)
            ):
                seed = list(sha256.encode())
                own = [batch[number] for batch in shown]
                covered = [deletion.cover(image, cfg.hide) for image in own]
                ranks, usual = (
                    {part: deletion.hottest_first(each, np.random.default_rng(seed)) for part, each in maps.items()}
                    for maps in ({part: maps[place] for part, maps in heat.items()}, common[verdict])
                )
                elsewhere = deletion.shifts(explainer.places, cfg.shifts, np.random.default_rng(seed))
                moved = [{part: deletion.moved(each, by) for part, each in ranks.items()} for by in elsewhere]
                for order in (ranks, usual, *moved):
                    of_members = [order[part_of(member)] for member in detector.members]
                    for share in inner:
                        yield [deletion.hide(*each, share) for each in zip(own, covered, of_members, strict=True)]
                yield covered
                advance()

    margins = np.fromiter(_margins(detector, versions(), cfg.batch_size), np.float64)
    if not kept:
        raise _gone(images)
    rows = pd.concat(kept)
    fake = (rows["verdict"] == "fake").to_numpy()
    orders = 2 + cfg.shifts
    p = detector.calibration.probabilities(margins).reshape(len(rows), -1, 1)
    start = rows["probability"].to_numpy()[:, np.newaxis, np.newaxis]
    changed = p[:, :-1].reshape(len(rows), orders, len(inner))
    ends = [np.repeat(end, orders, axis=1) for end in (start, p[:, -1:])]
    curves = np.concatenate([ends[0], changed, ends[1]], axis=2)
    curves = np.where(fake[:, np.newaxis, np.newaxis], curves, 1 - curves)
    labels = rows["label"].to_numpy()

    def compared(which: NDArray[np.bool_]) -> Deletion:
        hot, usual, *moved = curves[which].swapaxes(0, 1)
        return deletion.compare(hot, np.stack(moved, axis=1), usual, labels[which])

    by_verdict = {"fake": fake, "real": ~fake}
    return compared(np.full(len(rows), True)), {
        name: compared(which) for name, which in by_verdict.items() if which.any()
    }


def _heat(
    cfg: ExplainConfig, detector: Detector, explainer: Explainer, images: Images, table: pd.DataFrame
) -> tuple[pd.DataFrame, dict[Hashable, NDArray[np.float32]]]:
    """The rows of the images that are still there, numbered anew, and by `part_of` the members what is hot in each.

    Returns:
        The rows, and float32 (n, rows, columns of places).

    Raises:
        UserError: all images have gone.
    """
    kept: list[pd.DataFrame] = []
    found: dict[Hashable, list[NDArray[np.float32]]] = defaultdict(list)
    for rows, shown, advance in _read(cfg, "maps", detector, images, table):
        kept.append(rows)
        for part, maps in explainer.heat(shown, (rows["verdict"] == "fake").to_numpy()).items():
            found[part] += [deletion.by_place(heat, explainer.places) for heat in maps]
        for _ in range(len(rows)):
            advance()
    if not kept:
        raise _gone(images)
    return pd.concat(kept, ignore_index=True), {part: np.stack(maps) for part, maps in found.items()}


def _gone(images: Images) -> UserError:
    return UserError(
        f"{images.root}: expected images that can still be read, found none. Name others with data.root=FOLDER."
    )


# -------------------------------------------------------------------------------------------------------- frequencies


@dataclass(frozen=True)
class _Bands:
    """What filters did."""

    cutoffs: Sequence[float]
    whole: float  # AUROC of the unfiltered images
    interval: Interval
    curves: Mapping[str, Curve]
    images: int
    prevalence: float
    probed: int  # training images that the probe learned from

    @property
    def sentence(self) -> str:
        return frequencies.sentence(self.cutoffs, self.whole, self.interval, self.curves)

    def as_dict(self) -> dict[str, Any]:
        return {
            "cutoffs": list(self.cutoffs),
            "filter": f"radial Butterworth of order {frequencies.ORDER}",
            "unfiltered": {"auroc": self.whole, "interval": list(self.interval)},
            **{name: curve.as_dict() for name, curve in self.curves.items()},
            "images": self.images,
            "prevalence": self.prevalence,
            "probe_train_images": self.probed,
            "sentence": self.sentence,
        }


def _filtered(cfg: ExplainConfig, detector: Detector, images: Images, judged: pd.DataFrame, folder: Path) -> _Bands:
    """The run's AUROC on images without fine, and without coarse detail; and a linear probe's on what is left."""
    gains = [
        [make(member.module.backbone.input_spec.size, cutoff) for member in detector.members]
        for make in (frequencies.low_pass, frequencies.high_pass)
        for cutoff in cfg.cutoffs
    ]
    kept: list[pd.DataFrame] = []

    def versions() -> Iterator[Shown]:
        for rows, shown, advance in _read(cfg, "filtering", detector, images, limit_images(judged, cfg.filtered)):
            kept.append(rows)
            for number in range(len(rows)):
                spectra = [frequencies.spectrum_of(batch[number]) for batch in shown]
                for gain in gains:
                    yield [frequencies.filtered(*each) for each in zip(spectra, gain, strict=True)]
                advance()

    margins = np.fromiter(_margins(detector, versions(), cfg.batch_size), np.float64)
    if not kept:
        raise _gone(images)
    rows = pd.concat(kept, ignore_index=True)
    labels, before = rows["label"].to_numpy(), rows["probability"].to_numpy()
    margins = margins.reshape(len(rows), 2, len(cfg.cutoffs))

    def auroc(margins: NDArray[np.float64]) -> tuple[float, Interval]:
        p = detector.calibration.probabilities(margins)
        intervals = bootstrap_intervals(labels, p, metrics=["auroc"], margins=margins)
        return scores(labels, p, margins=margins)["auroc"], intervals["auroc"]

    curves = {}
    for name, of_filter in zip(("low_pass", "high_pass"), margins.transpose(1, 2, 0), strict=True):
        found = [auroc(at_cutoff) for at_cutoff in of_filter]
        change = np.abs(detector.calibration.probabilities(of_filter) - before).mean(axis=1)
        curves[name] = Curve([value for value, _ in found], [ends for _, ends in found], change.tolist())
    probed = 0
    try:
        probes, probed = _probe(cfg, detector, images, rows, folder)
        curves |= probes
    except UserError as error:
        log.warning("frequencies what a linear probe reaches is not told: %s", error)
    whole, interval = auroc(rows["margin"].to_numpy())
    return _Bands(cfg.cutoffs, whole, interval, curves, len(rows), float(labels.mean()), probed)


def _probe(
    cfg: ExplainConfig, detector: Detector, images: Images, rows: pd.DataFrame, folder: Path
) -> tuple[dict[str, Curve], int]:
    """What a logistic regression on the radial power spectrum below, and above, each cutoff reaches on these images.

    It learns on images of the run's training part, as the first member is shown them.

    Returns:
        The curves, and on how many training images.

    Raises:
        UserError: the training images are no longer there, or of one class.
    """
    manifest = read_catalogue(folder / "manifest.parquet")
    train = limit_images(manifest[manifest["split"] == "train"].reset_index(drop=True), cfg.probed)
    root = Path(run_settings(folder)["data"]["root"])
    first = detector.members[0]
    size = first.module.backbone.input_spec.size
    prepared = PreparedImages(
        first.module.backbone.input_spec, cache_folder(cfg.data), images.max_megapixels, first.preparation
    )

    def look(place: Path, sha256: str) -> NDArray[np.float64] | None:
        try:
            return radial_profile(power_spectrum(gray(prepared.read(place, sha256))))
        except UnreadableImage:
            return None

    together = pd.concat([train.assign(split="train"), rows.assign(split="test")], ignore_index=True)
    places = [root / path for path in train["path"]] + [images.root / path for path in rows["path"]]
    profiles = []
    with progress("probing", len(together), cfg.progress) as advance, ThreadPoolExecutor() as pool:
        for profile in pool.map(look, places, together["sha256"]):
            profiles.append(profile)
            advance()
    kept = np.array([profile is not None for profile in profiles])
    together = together[kept]
    if len(together[["split", "label"]].drop_duplicates()) < 4:
        raise UserError("expected training and test images of both classes, found none of one.")
    power = np.stack([profile for profile in profiles if profile is not None])
    cycles = np.arange(power.shape[1]) / size

    def curve(bands: Iterable[NDArray[np.bool_]]) -> Curve:
        found = [
            spectrum_shortcut(power[:, band], together["label"], together["split"]) if band.any() else None
            for band in bands
        ]
        return Curve(
            [shortcut.auroc if shortcut else math.nan for shortcut in found],
            [shortcut.auroc_interval if shortcut else (math.nan, math.nan) for shortcut in found],
        )

    waves = cycles > 0  # the mean is taken off before
    return {
        "probe_low": curve(waves & (cycles <= cutoff) for cutoff in cfg.cutoffs),
        "probe_high": curve(waves & (cycles >= cutoff) for cutoff in cfg.cutoffs),
    }, int((together["split"] == "train").sum())


# ----------------------------------------------------------------------------------------------------------- pictures


def _draw(
    cfg: ExplainConfig,
    folder: Path,
    content: Mapping[str, Any],
    explainer: Explainer,
    images: Images,
    judged: pd.DataFrame,
    hidden: Deletion,
    bands: _Bands,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Draw and write all figures; what is told of the sheets, and the files by name."""
    of = f"{images.of}, {content['run']}"
    method = {"grad-cam": "Grad-CAM", "rollout": "attention rollout"}[explainer.method]
    maps = f"{method} of {content['layer']}, coarse: {' x '.join(map(str, explainer.places))} places"
    these, those = (f"{found.images:,} images, {found.prevalence:.1%} fake" for found in (hidden, bands))
    figures = {
        "deletion": deletion_figure(hidden, deletion.COVERS[cfg.hide], f"{these}; {maps}; {of}"),
        "frequencies": frequencies_figure(bands.cutoffs, bands.whole, bands.interval, bands.curves, f"{those}; {of}"),
    }
    sheets = {}
    for kind, (label, verdict) in _KINDS.items():
        of_kind = judged[(judged["label"] == label) & (judged["verdict"] == verdict)]
        among = f"{_TITLES[kind]}, among {len(judged):,} images, {judged['label'].mean():.1%} fake"
        shown, figures[kind] = _sheet(cfg, explainer, images, of_kind, f"{among}; {maps}; {of}")
        sheets[kind] = {"file": f"{folder.name}/{kind}.jpg", "shown": shown, "of": len(of_kind)}
    suffixes = {name: "jpg" if name in _KINDS else "png" for name in figures}
    return sheets, {name: save(figure, folder / f"{name}.{suffixes[name]}") for name, figure in figures.items()}


def _sheet(
    cfg: ExplainConfig, explainer: Explainer, images: Images, rows: pd.DataFrame, of: str
) -> tuple[int, Figure]:
    """The most confident of some answers, each image beside its maps; how many, and the picture."""
    # By the margin where the probabilities are rounded to the same 0 or 1.
    confidence = rows["margin"].where(rows["verdict"] == "fake", -rows["margin"])
    first = rows.loc[confidence.sort_values(ascending=False, kind="stable").index[: cfg.sheet]]
    pictures, captions, across = [], [], 1
    for row in first.to_dict("records"):
        try:
            pixels = catalogued_pixels(images, row["path"], row["sha256"])
            overlays, key = explainer.overlays(pixels, row["verdict"] == "fake")
        except UnreadableImage:
            continue  # gone since it was judged a moment ago
        pictures += [shrunk(pixels), *overlays]
        captions += [
            (row["source"], f"P(fake) {row['probability']:.3f}", Path(row["path"]).name),
            *[(key,)] * len(overlays),
        ]
        across = 1 + len(overlays)
    shown = len(pictures) // across
    return shown, mistakes_sheet(pictures, captions, f"The {shown} most confident of {len(rows):,} {of}", 2 * across)


def _to_tensorboard(dashboard: Path, name: str, hidden: Deletion, pictures: Mapping[str, bytes]) -> None:
    measures = ("auc_hot", "auc_random", "auc_common", "difference", "difference_common")
    with board.part(dashboard, name) as writer:
        board.add_scalars(writer, {f"{visible(name)}/{measure}": getattr(hidden, measure) for measure in measures})
        for picture, encoded in pictures.items():
            board.add_picture(writer, f"{visible(name)}/{picture}", encoded)
