"""One analysis of spectra from settings to what it leaves: means by source, what stands out in fakes, pictures."""

import hashlib
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from deepfake.analysis.peaks import _LOWEST, Peak, Relief, Replica, find_peaks, find_replicas, height_at, relief, told
from deepfake.analysis.spectra import (
    LUMA,
    MeanSpectrum,
    SpectrumMoments,
    centre_square,
    gray,
    power_spectrum,
)
from deepfake.config import SpectraConfig
from deepfake.console import log, logging_to_terminal, named, progress, terminal
from deepfake.data.catalog import parents, safe_csv, write_catalogue
from deepfake.data.images import UnreadableImage, read_catalogued, read_image
from deepfake.data.prepared import Preparation, prepare, square
from deepfake.dataset import Catalogue, catalogue, left_out, preparation, say_left_out
from deepfake.errors import UserError
from deepfake.files import replacing, write_json, write_text
from deepfake.inputs import InputSpec
from deepfake.reporting.figures import save
from deepfake.reporting.spectrum_figures import Row, image_figure, profile_figure, spectrum_sheet
from deepfake.runs import expect_writable, unwritable

LEFT_OUT = 3  # exit status: done, with files that were left out
SHOWN = 40  # sources, the largest: each is held in memory, and a row of the sheet
REAL, FAKE = "all real", "all fake"

_LARGEST, _SMALLEST = 256, 32  # pixels of a square that is chosen
_HELD = 0.01  # share of a source's images that may be too small for it
_WHOLE = 8  # pixels: what repeats after 2, 4 or 8 then falls on single frequencies
_CHUNK = 16  # images that are added up by one thread: the sum is the same however many threads there are
_HIGH = 0.25  # cycles a pixel, from where on frequencies are called high


@dataclass
class _Both:
    """Spectra before and after the network's preparation."""

    before: SpectrumMoments = field(default_factory=SpectrumMoments)
    after: SpectrumMoments = field(default_factory=SpectrumMoments)

    def merge(self, other: "_Both") -> None:
        self.before.merge(other.before)
        self.after.merge(other.after)


_Key = tuple[int, str]  # label and source; a class as a whole has the source ""
_Part = tuple[_Both, dict[str, str]]  # of a few images of a source; the reasons of those left out, by path


class _Group(NamedTuple):
    """A source, or all sources of a class."""

    name: str
    label: int
    rows: pd.DataFrame  # of the catalogue, those in the means
    before: MeanSpectrum
    after: MeanSpectrum


class _Found(NamedTuple):
    """What stands out in a source."""

    peaks: list[Peak]
    replicas: list[Replica]
    after: list[Peak]
    left: list[dict[str, float] | None]  # of each peak after the preparation, None where it cannot be followed
    sentences: list[str]
    alone: bool  # it or a real source is a single image, whose spread nobody knows


@dataclass(frozen=True)
class _Eye:
    """How a decoded image is looked at."""

    square: int
    window: bool
    spec: InputSpec
    how: Preparation

    def squares(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Before and after the preparation.

        Raises:
            UnreadableImage: it is too small, or cannot be prepared.
        """
        height, width = pixels.shape[:2]
        if min(height, width) < self.square:
            raise UnreadableImage(_too_small(width, height, self.square))
        return centre_square(pixels, self.square), square(prepare(pixels, self.spec, self.how), self.spec.size)

    def powers(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
        """Of both squares; raises as `squares`."""
        return [power_spectrum(gray(part), self.window) for part in self.squares(pixels)]


def analyse(cfg: SpectraConfig) -> int:
    """See `deepfake.spectra.run`."""
    began = time.monotonic()
    setting = "output_dir" if cfg.output is None else "output"
    with logging_to_terminal():
        expect_writable(Path(cfg.output or cfg.output_dir).expanduser(), setting)
        picture = None if cfg.image is None else _asked(cfg)
        found = catalogue(cfg.data, cfg.progress, split=False)
        _expect_pairs(cfg, {*zip(found.table["label"], found.table["source"], strict=True)})
        how = preparation(cfg.data, found.table)
        side = _square(found) if cfg.square is None else cfg.square
        eye = _Eye(side, cfg.window, InputSpec(cfg.size, (0.0,) * 3, (1.0,) * 3, cfg.interpolation), how)
        if picture is not None:
            _expect_visible(eye, picture, cfg)
        groups, found = _means(cfg, found, eye)
        say_left_out(found.table)
        pairs = _pairs(cfg, found.table, groups)
        finds = _finds(groups, eye)
        beside = [] if picture is None else _beside(cfg, found, groups)
        folder = _folder(cfg, found.root)
        content = {
            **_facts(found, groups, finds, pairs, eye),
            "image": None if picture is None else {"file": cfg.image, "beside": [group.name for group in beside]},
            "settings": asdict(cfg),
            "seconds": round(time.monotonic() - began, 1),
            "command": shlex.join(["python", "-m", "deepfake.spectra", *sys.argv[1:]]),
        }
        try:
            write_catalogue(found.table, folder / "catalogue.csv")
            write_text(folder / "peaks.csv", safe_csv(_peak_table(groups, finds)))
            _write_means(folder / "spectra.npz", groups, cfg)
            _draw(folder, cfg, content, groups, finds, pairs)
            if picture is None:
                (folder / "image.png").unlink(missing_ok=True)  # of an earlier question
            else:
                save(_image_figure(cfg, eye, picture, beside), folder / "image.png")
            write_json(folder / "spectra.json", content)
        except OSError as error:
            raise unwritable(folder, error.strerror, setting) from error
        _say(content)
        log.info("%s", folder)
    return LEFT_OUT if content["left_out"] else 0


def _folder(cfg: SpectraConfig, root: Path) -> Path:
    if cfg.output is not None:
        return Path(cfg.output).expanduser()
    # Two folders of the same name, or two ways to look at one, are two reports.
    decided = [str(root.absolute()), cfg.data, cfg.square, cfg.window, cfg.size, cfg.interpolation, cfg.pairs]
    key = hashlib.sha256(repr(decided).encode()).hexdigest()[:8]
    return Path(cfg.output_dir).expanduser() / "spectra" / f"{root.absolute().name}-{key}"


# ------------------------------------------------------------------------------------------------------- the square


def _square(found: Catalogue) -> int:
    """The side of the square that is looked at where none is asked for.

    Raises:
        UserError: no image can be read, or they are too small.
    """
    readable = found.table[found.table["status"] != "unreadable"]
    if readable.empty:
        raise UserError(f"{found.root}: expected images, found {len(found.table)} files and none that can be read.")
    sides = readable[["width", "height"]].min(axis=1).groupby(readable["source"])
    held = sides.quantile(_HELD, interpolation="higher")
    side = min(int(held.min()), _LARGEST)
    if side < _SMALLEST:
        raise UserError(
            f"the images of {held.idxmin()!r} are as small as {side} pixels: expected at least {_SMALLEST}. With "
            f"square=N all below N pixels are left out."
        )
    return side - side % _WHOLE


def _too_small(width: int, height: int, side: int) -> str:
    return f"{width} x {height} pixels, smaller than the square of {side} x {side}"


# -------------------------------------------------------------------------------------------------------- the means


def _means(cfg: SpectraConfig, found: Catalogue, eye: _Eye) -> tuple[dict[_Key, _Group], Catalogue]:
    """Of the largest sources and of both classes, and the catalogue without what could not be used.

    Raises:
        UserError: nothing is left.
    """
    table = found.table
    readable = table[table["status"] != "unreadable"]
    small = readable[["width", "height"]].min(axis=1) < eye.square
    reasons = {
        path: _too_small(width, height, eye.square)
        for path, width, height in readable.loc[small, ["path", "width", "height"]].itertuples(index=False)
    }
    rows = readable[~small].sort_values(["label", "source"], kind="stable")
    sizes = rows["source"].value_counts()
    shown = set(sizes.index[:SHOWN])
    if len(sizes) > SHOWN:
        log.warning(
            "%d sources: the %d largest are shown, the others count in %s and %s", len(sizes), SHOWN, REAL, FAKE
        )
    sums: dict[int, _Both] = {}  # by label
    means: dict[_Key, tuple[MeanSpectrum, MeanSpectrum]] = {}
    with progress("spectra", len(rows), cfg.progress) as advance:

        def look(chunk: pd.DataFrame) -> _Part:
            part, lost = _Both(), dict[str, str]()
            for path, sha256 in zip(chunk["path"], chunk["sha256"], strict=True):
                try:
                    pixels = read_catalogued(found.root / path, sha256, cfg.data.max_megapixels)
                    before, after = eye.powers(pixels)
                    part.before.add(before)
                    part.after.add(after)
                except UnreadableImage as error:
                    lost[path] = str(error)
                finally:
                    advance()
            return part, lost

        for key, parts in groupby(_in_order(rows, look), key=lambda item: item[0]):
            own = _Both()
            for _, (part, lost) in parts:
                own.merge(part)
                reasons |= lost
            if own.before.images:
                sums.setdefault(key[0], _Both()).merge(own)
                if key[1] in shown:
                    means[key] = own.before.result(), own.after.result()
    if not sums:
        raise UserError(f"{found.root}: expected images of at least {eye.square} pixels a side, found none usable.")
    table = left_out(table, pd.DataFrame({"path": list(reasons), "reason": list(reasons.values())}, dtype="str"))
    there = table[table["status"] != "unreadable"]
    groups = {}
    for label, total in sums.items():
        name, rows = FAKE if label else REAL, there[there["label"] == label]
        groups[label, ""] = _Group(name, label, rows, total.before.result(), total.after.result())
    for (label, name), both in means.items():
        rows = there[(there["label"] == label) & (there["source"] == name)]
        groups[label, name] = _Group(name, label, rows, *both)
    return groups, found._replace(table=table)


def _in_order(rows: pd.DataFrame, look: Callable[[pd.DataFrame], _Part]) -> Iterator[tuple[_Key, _Part]]:
    """What `look` gives of each chunk of each source, in their order, by a thread for each core.

    Threads: decoding and Fourier transforms release the interpreter lock. No more than a few chunks wait.
    """
    cores = os.cpu_count() or 1
    waiting: deque[tuple[_Key, Future[_Part]]] = deque()
    with ThreadPoolExecutor(cores) as pool:
        try:
            for source, own in rows.groupby("source", sort=False):
                for start in range(0, len(own), _CHUNK):
                    future = pool.submit(look, own.iloc[start : start + _CHUNK])
                    waiting.append(((int(own["label"].iloc[0]), str(source)), future))
                    if len(waiting) > cores + 1:
                        key, future = waiting.popleft()
                        yield key, future.result()
            while waiting:
                key, future = waiting.popleft()
                yield key, future.result()
        finally:  # something is wrong, or the person had enough
            for _, future in waiting:
                future.cancel()


# -------------------------------------------------------------------------------------------------- what stands out


def _pairs(cfg: SpectraConfig, table: pd.DataFrame, groups: Mapping[_Key, _Group]) -> dict[str, str]:
    """{fake source: its real source}, of those that are shown.

    Raises:
        UserError: a source that was asked for is not there.
    """
    if cfg.pairs is None:
        given = parents(table[table["status"] != "unreadable"])
        return {fake: real for fake, real in given.items() if (1, fake) in groups and (0, real) in groups}
    _expect_pairs(cfg, groups)  # all of one may have been left out, and only the largest are shown
    return cfg.pairs


def _expect_pairs(cfg: SpectraConfig, there: Collection[_Key]) -> None:
    for fake, real in (cfg.pairs or {}).items():
        for label, kind, name in ((1, "fake", fake), (0, "real", real)):
            if (label, name) not in there or not name:
                known = ", ".join(sorted(source for own, source in there if own == label and source)) or "none"
                raise UserError(
                    f"pairs={cfg.pairs} is refused: expected {kind} sources out of {known}; found {name}."
                )


def _reference(group: _Group, groups: Mapping[_Key, _Group], pairs: Mapping[str, str]) -> _Group | None:
    """What a source is held against: its own real source, else all reals. All reals are held against nothing."""
    own = pairs.get(group.name) if group.label == 1 else None
    reference = groups.get((0, own or ""))
    return None if reference is group else reference


def _finds(groups: Mapping[_Key, _Group], eye: _Eye) -> dict[str, _Found]:
    """Of each fake source, by name; none where there is no real source to tell a trace from a camera's."""
    reals = [group for (label, source), group in groups.items() if label == 0 and source]
    fakes = [group for (label, source), group in groups.items() if label == 1 and source]
    if not reals or not fakes:
        return {}

    def reliefs(group: _Group) -> tuple[Relief, Relief]:
        return relief(group.before), relief(group.after)

    with ThreadPoolExecutor() as pool:
        made = list(pool.map(reliefs, [*reals, *fakes]))
    of_reals = [list(both) for both in zip(*made[: len(reals)], strict=True)]
    fewest = min(real.before.images for real in reals)
    found = {}
    for group, (before, after) in zip(fakes, made[len(reals) :], strict=True):
        peaks = find_peaks(before, of_reals[0])
        replicas = find_replicas(group.before, [real.before for real in reals])
        left = [_left(peak, group, eye, after, of_reals[1]) for peak in peaks]
        jpeg = float(group.rows["format"].isin(("JPEG", "MPO")).mean())
        sentences = told(peaks, replicas, jpeg)
        if peaks:
            sentences.append(_told_left(left, eye, _moves_alike(group, eye)))
        alone = min(fewest, group.before.images) < 2
        found[group.name] = _Found(peaks, replicas, find_peaks(after, of_reals[1]), left, sentences, alone)
    return found


def _moves_alike(group: _Group, eye: _Eye) -> bool:
    """Whether the preparation moves a frequency of each image to the same place."""
    sizes = group.rows[["width", "height"]].drop_duplicates()
    return eye.how.mode == "resize" and eye.how.equalise is None and len(sizes) == 1


def _left(peak: Peak, group: _Group, eye: _Eye, after: Relief, reals: Sequence[Relief]) -> dict[str, float] | None:
    """Where the resize moves a peak to, and how far it stands out there.

    None where images differ in that, or where it is so near to zero that no peak is told from the steep spectrum.
    """
    if not _moves_alike(group, eye):
        return None
    width, height = group.rows[["width", "height"]].iloc[0]
    # What is beyond half a cycle a pixel comes back from the other side.
    down, across = (
        frequency - round(frequency)
        for frequency in (peak.down * height / eye.spec.size, peak.across * width / eye.spec.size)
    )
    if np.hypot(down, across) * eye.spec.size < _LOWEST:
        return None
    return {"down": down, "across": across, "above": height_at(after, reals, down, across)}


def _told_left(left: Sequence[dict[str, float] | None], eye: _Eye, alike: bool) -> str:
    known = [each for each in left if each is not None]
    if not known:
        where = (
            f"all of them to below {_LOWEST} cycles an image, where no peak can be told"
            if alike
            else "those of each image elsewhere"
        )
        return f"after the preparation ({eye.how.mode}, {eye.spec.size} px) they cannot be followed: it moves {where}"
    they = "they" if len(known) == len(left) else f"the {len(known)} of {len(left)} that can be followed"
    most = max(known, key=lambda each: each["above"])
    if most["above"] < 1:
        return f"after the resize to {eye.spec.size} px {they} stand out no further than in the real sources"
    return (
        f"after the resize to {eye.spec.size} px {they} stand up to {most['above']:.0f} dB above the real sources, "
        f"the highest at ({most['down']:.3f}, {most['across']:.3f})"
    )


# ----------------------------------------------------------------------------------------------------- what is left


def _facts(
    found: Catalogue,
    groups: Mapping[_Key, _Group],
    finds: Mapping[str, _Found],
    pairs: Mapping[str, str],
    eye: _Eye,
) -> dict[str, Any]:
    used = sum(group.before.images for (_, source), group in groups.items() if not source)
    fakes = groups[1, ""].before.images if (1, "") in groups else 0
    lost = found.table[found.table["status"] == "unreadable"]
    return {
        "root": str(found.root.absolute()),
        "images": used,
        "prevalence": fakes / used,
        "left_out": len(lost),
        "too_small": int((lost["width"].gt(0) & (lost[["width", "height"]].min(axis=1) < eye.square)).sum()),
        "definition": {
            "gray": "{:.3f} R + {:.3f} G + {:.3f} B in [0, 1], mean removed".format(*LUMA),
            "window": "Hann" if eye.window else "none",
            "power": "|F|^2 / N^4, F = fftshift(fft2(gray)); averaged over images, then 10 log10(P + 1e-12)",
            "log_magnitude": "mean of log(1 + |F|), the study's picture",
            "frequencies": "zero at [N//2, N//2]; down and across in cycles a pixel",
            "before": {"square": eye.square, "resized": False},
            "after": {"size": eye.spec.size, "interpolation": eye.spec.interpolation, **asdict(eye.how)},
        },
        "sources": [
            _source(group, source, _reference(group, groups, pairs), finds.get(group.name) if group.label else None)
            for (_, source), group in groups.items()
        ],
    }


def _source(group: _Group, source: str, reference: _Group | None, finds: _Found | None) -> dict[str, Any]:
    rows = group.rows
    content = {
        "name": group.name,
        "label": group.label,
        "all": not source,
        "images": group.before.images,
        "widths": [int(rows["width"].min()), int(rows["width"].max())],
        "heights": [int(rows["height"].min()), int(rows["height"].max())],
        "formats": {str(name): int(count) for name, count in rows["format"].value_counts().items()},
        "against": None if reference is None else reference.name,
        "high_frequencies_db": None
        if reference is None
        else {
            "before": _high(group.before, reference.before),
            "after": _high(group.after, reference.after),
        },
    }
    if finds is None:
        return content
    return content | {
        "peaks": [
            _peak(peak, finds.alone) | {"after": left} for peak, left in zip(finds.peaks, finds.left, strict=True)
        ],
        "copies": [asdict(replica) for replica in finds.replicas],
        "peaks_after": [_peak(peak, finds.alone) for peak in finds.after],
        "sentences": finds.sentences,
    }


def _peak(peak: Peak, alone: bool) -> dict[str, Any]:
    """Its values by name, without an interval where the spread over images is not known."""
    unknown = alone or peak.low == peak.high
    return asdict(peak) | ({"low": None, "high": None} if unknown else {})


def _high(spectrum: MeanSpectrum, reference: MeanSpectrum) -> dict[str, float | None]:
    """Decibels from a quarter of a cycle a pixel on, of the images' own profiles, with a 95 % interval.

    Neighbouring frequencies of an image go together: they are taken for one, which makes the interval no narrower.
    Without two images, or where all are the same, there is none.
    """
    high = np.arange(spectrum.profile.size) >= _HIGH * spectrum.size
    difference = float((spectrum.profile_decibels - reference.profile_decibels)[high].mean())
    variances = [each.profile_decibels_std[high] ** 2 / each.images for each in (spectrum, reference)]
    margin = 1.96 * float(np.sqrt(variances[0] + variances[1]).mean())
    if min(spectrum.images, reference.images) < 2 or not margin:
        return {"value": difference, "low": None, "high": None}
    return {"value": difference, "low": difference - margin, "high": difference + margin}


def _peak_table(groups: Mapping[_Key, _Group], finds: Mapping[str, _Found]) -> pd.DataFrame:
    columns = ["source", "images", "stage", "kind", "down", "across", "period", "above", "low", "high", "height"]
    rows: list[dict[str, Any]] = []
    for name, found in finds.items():
        images = groups[1, name].before.images
        for stage, peaks in (("before", found.peaks), ("after", found.after)):
            rows += [
                {"source": name, "images": images, "stage": stage, "kind": "peak", **_peak(peak, found.alone)}
                for peak in peaks
            ]
        rows += [
            {"source": name, "images": images, "stage": "before", "kind": "copies", **asdict(replica)}
            for replica in found.replicas
        ]
    types = {"source": "str", "period": "Int64", "low": "float64", "high": "float64"}
    return pd.DataFrame(rows, columns=columns).astype(types)


def _write_means(file: Path, groups: Mapping[_Key, _Group], cfg: SpectraConfig) -> None:
    """Plain arrays, one row a source and class in the order of `names`; numpy.load reads them without pickle."""
    every = list(groups.values())
    arrays: dict[str, NDArray] = {
        "names": np.array([group.name for group in every]),
        "labels": np.array([group.label for group in every]),
        "images": np.array([group.before.images for group in every]),
        "hann_window": np.array(cfg.window),
    }
    for stage in ("before", "after"):
        spectra: list[MeanSpectrum] = [getattr(group, stage) for group in every]
        for name in MeanSpectrum.__dataclass_fields__:
            if name != "images":
                values = np.stack([getattr(spectrum, name) for spectrum in spectra])
                arrays[f"{stage}_{name}"] = values.astype(np.float32) if values.ndim == 3 else values
    with replacing(file) as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _draw(
    folder: Path,
    cfg: SpectraConfig,
    content: Mapping[str, Any],
    groups: Mapping[_Key, _Group],
    finds: Mapping[str, _Found],
    pairs: Mapping[str, str],
) -> None:
    rows = []
    for group in groups.values():
        reference = _reference(group, groups, pairs)
        found = finds.get(group.name) if group.label else None
        rows.append(
            Row(
                group.name,
                group.label,
                group.before,
                group.after,
                None if reference is None else (reference.name, reference.before, reference.after),
                [] if found is None else found.peaks,
                [] if found is None else found.after,
            )
        )
    of = _of(content)
    save(spectrum_sheet(rows, of), folder / "sheet.png")
    for stage in ("before", "after"):
        save(profile_figure(rows, stage, of), folder / f"profiles_{stage}.png")


def _of(content: Mapping[str, Any]) -> str:
    """How many images, and how they were looked at."""
    before, after, window = (content["definition"][name] for name in ("before", "after", "window"))
    equal = "" if after["equalise"] is None else f"equalised at {after['equalise']} px, "
    return (
        f"{content['images']:,} images, {100 * content['prevalence']:.1f} % fake; "
        f"before: middle {before['square']} px as they are; "
        f"after: {equal}{after['mode']} to {after['size']} px, {after['interpolation']}; window: {window}"
    )


def _say(content: Mapping[str, Any]) -> None:
    heads = ("source", "label", "images", "against", "before, dB [95 %]", "after, dB [95 %]", "peaks")
    table = Table(
        title="From 1/4 of a cycle a pixel on: each source against the real images",
        caption=f"{_of(content)}. Intervals over the images, taken as independent.",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number in (0, 1, 3) else "right", no_wrap=True)
    for source in content["sources"]:
        high = source["high_frequencies_db"]
        told_high = ["", ""] if high is None else [_interval(high[stage]) for stage in ("before", "after")]
        finds = "" if "peaks" not in source else str(len(source["peaks"]) + len(source["copies"]))
        label = "fake" if source["label"] else "real"
        table.add_row(
            named(source["name"]), label, f"{source['images']:,}", named(source["against"] or ""),
            *map(Text, (*told_high, finds)),
        )  # fmt: skip
    terminal().print(table)
    for source in content["sources"]:
        for sentence in source.get("sentences", ()):
            log.info("%s: %s", source["name"], sentence)
    searched = [source for source in content["sources"] if "peaks" in source]
    if not searched:
        log.warning("no peak was looked for: expected real and fake images, found one class")
    elif not any(source["sentences"] for source in searched):
        log.info("no fake source has a peak that no real source has")


def _interval(figure: Mapping[str, float | None]) -> str:
    if figure["low"] is None:
        return f"{figure['value']:+.1f}"
    return f"{figure['value']:+.1f} [{figure['low']:+.1f}, {figure['high']:+.1f}]"


# -------------------------------------------------------------------------------------------------------- one image


def _asked(cfg: SpectraConfig) -> NDArray[np.uint8]:
    """The pixels of the image that was asked about.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return read_image(Path(str(cfg.image)).expanduser(), cfg.data.max_megapixels)[0]
    except UnreadableImage as error:
        raise UserError(f"image={cfg.image}: expected an image that can be read, found: {error}.") from error


def _expect_visible(eye: _Eye, picture: NDArray[np.uint8], cfg: SpectraConfig) -> None:
    try:
        eye.squares(picture)
    except UnreadableImage as error:
        raise UserError(f"image={cfg.image}: expected one that can be looked at, found: {error}.") from error


def _beside(cfg: SpectraConfig, found: Catalogue, groups: Mapping[_Key, _Group]) -> list[_Group]:
    """The source that the image belongs to, else both classes."""
    path = os.path.relpath(os.path.realpath(Path(str(cfg.image)).expanduser()), os.path.realpath(found.root))
    own = found.table[found.table["path"] == Path(path).as_posix()]
    sources = [
        groups[key] for key in zip(own["label"].tolist(), own["source"].tolist(), strict=True) if key in groups
    ]
    return sources or [groups[key] for key in ((0, ""), (1, "")) if key in groups]


def _image_figure(cfg: SpectraConfig, eye: _Eye, picture: NDArray[np.uint8], beside: Sequence[_Group]) -> Figure:
    squares, powers = eye.squares(picture), eye.powers(picture)
    stages = {
        stage: (squares[number], powers[number], [(group.name, getattr(group, stage)) for group in beside])
        for number, stage in enumerate(("before", "after"))
    }
    return image_figure(stages, f"{Path(str(cfg.image)).name}; window: {'Hann' if cfg.window else 'none'}")
