"""What is frozen is computed once: the trunk's output for every image and view, stored and shared by all runs.

A frozen trunk is a pure function of the image, and an augmented image is a pure function of (seed, image, view). So
what one run computed serves every other of the same weights and views, whichever images it takes and however it
splits them: only what is missing is computed.
"""

import contextlib
import copy
import json
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from deepfake.config import ENGINES, PRECISIONS
from deepfake.console import in_turn, log, progress
from deepfake.files import write_json
from deepfake.models.backbones import Backbone
from deepfake.models.engines import Engine, build_engine, planned, threads, versions
from deepfake.models.freezing import freeze
from deepfake.models.store import StoredRows, TrunkStore

_FORMAT = 1  # raise it when `Backbone.trunk` gives something else for the same weights
_SHARE = 0.8  # of the free disk that may be taken
# To judge, an engine need only not be broken. That it agrees was found when the run was trained, and the calibration
# is of the numbers it gave: a batch on which it is a little further off must not put another in its place.
_LEEWAY = 2.0
# How many numbers a row has, by network, size and depths, of this process: a sweep's jobs ask again and again.
_numbers: dict[tuple[str, int, tuple[int, ...]], list[int]] = {}
_INSTEAD = "instead.json"  # in the folder of an engine that failed its check: which took its place

_T = TypeVar("_T")


def storable(backbone: Backbone) -> bool:
    """Whether the frozen stages can be run apart from the rest."""
    return backbone.trunk_depth > 0 and (backbone.splittable or backbone.trunk_depth == len(backbone.stages))


class Trunk:
    """The frozen stages of a backbone, run by an engine that is built when the first image comes.

    Args:
        backbone: with its stages frozen; see `storable`.
        depths: numbers of first stages whose output others need too. Beyond the backbone's own it trains: what such
            stages give is computed from a copy of them as they are now.
        engine, precision: as `engines.planned` takes them.
        device: where it will run.

    Attributes:
        depths: ascending.
        engine, precision: what it runs in, or will, if that agrees with eager.

    Raises:
        UserError: as `engines.planned`.
    """

    def __init__(
        self,
        backbone: Backbone,
        depths: Iterable[int] = (),
        engine: str = "auto",
        precision: str = "auto",
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    ) -> None:
        self.backbone, self.device = backbone, device
        self.depths = sorted({backbone.trunk_depth, *(depths if backbone.splittable else ())})
        self.engine, self.precision = planned(engine, precision, device)
        self._weights = backbone.weights_hash(self.depths)
        self._source = backbone
        if self.depths[-1] > backbone.trunk_depth:
            self._source = copy.deepcopy(backbone)
            freeze(self._source, 0)
            self._source.eval()
        self._built: Engine | None = None

    def for_itself(self) -> None:
        """Leave out from now on what others need."""
        if self.depths == [self.backbone.trunk_depth]:
            return
        self.depths, self._source, self._built = [self.backbone.trunk_depth], self.backbone, None

    def build(self, sample: Tensor) -> None:
        """Make the engine ready for batches like this one; see `engines.build_engine`.

        What others need never decides what this run computes in: what does not go with it is left out.
        """
        if self._built is None:
            source, own = self._source.to(self.device), [self.backbone.trunk_depth]
            self._built = build_engine(source, self.depths, self.engine, self.precision, sample, needed=own)
            self.engine, self.precision = self._built.name, self._built.precision
            self.depths = list(self._built.depths)

    @property
    def built(self) -> bool:
        return self._built is not None

    @property
    def lasting(self) -> bool:
        """Whether an engine built anew would be the same; see `Engine.lasting`."""
        return self._built is None or self._built.lasting

    def take_instead(self, engine: str, precision: str) -> None:
        """Run in these, because what was planned has failed its check before.

        Raises:
            ValueError: one of them is none that can take another's place.
        """
        if engine not in ENGINES or precision not in PRECISIONS or "auto" in (engine, precision):
            raise ValueError(f"expected an engine and a precision, found {engine!r} and {precision!r}")
        self.engine, self.precision = engine, precision

    def compute(self, images: Tensor) -> list[Tensor]:
        """Outputs at each of `depths`, as `Backbone.trunk` gives them, for normalised images (N, 3, S, S)."""
        self.build(images)
        assert self._built is not None  # noqa: S101 - for the type checker
        return self._built(images)

    def __call__(self, images: Tensor) -> Tensor:
        """The output at the backbone's own depth."""
        return self.compute(images)[self.depths.index(self.backbone.trunk_depth)]

    def identity(self, depth: int) -> list[Any]:
        """Plain data that decides, with the pixels, every bit of the output at that depth."""
        # The kind of device too: a graphics card rounds otherwise than a processor.
        return [
            _FORMAT,
            *versions(self.engine),
            self.backbone.architecture,
            depth,
            self.engine,
            self.precision,
            asdict(self.backbone.input_spec),
            self._weights[depth],
            self.device.type,
        ]

    def row_bytes(self) -> dict[int, int]:
        """Of each depth, how much the output for one image takes."""
        size = self.backbone.input_spec.size
        asked = self.backbone.architecture, size, tuple(self.depths)
        if asked not in _numbers:
            image = torch.zeros(1, 3, size, size).to(next(self._source.parameters()).device)
            _numbers[asked] = [output.numel() for output in self._source.trunk(image, self.depths)]
        sizes = {}
        for depth, number in zip(self.depths, _numbers[asked], strict=True):
            halved = self.precision == "bfloat16" and depth < len(self.backbone.stages)  # what is pooled stays whole
            sizes[depth] = number * (2 if halved else 4)
        return sizes


class Inference:
    """All stages of a backbone, for judging: those that were frozen in the precision that the rest was trained on.

    Args:
        backbone: in eval mode.
        frozen: how many of its first stages were frozen.
        engine: as `engines.planned` takes it.
        precision: of the frozen stages, float32 or bfloat16; the others run in float32, as they were trained.
        device: where.

    Raises:
        UserError: as `engines.planned`.
    """

    def __init__(self, backbone: Backbone, frozen: int, engine: str, precision: str, device: torch.device) -> None:
        self.backbone, self.engine, self.device = backbone, engine, device
        parts = [(0, frozen, precision), (frozen, len(backbone.stages), "float32")]
        if precision == "float32" or not backbone.splittable:
            parts = [(0, len(backbone.stages), precision)]
        self._parts = [part for part in parts if part[0] < part[1]]
        for _, _, precision in self._parts:
            planned(engine, precision, device)
        self._built: list[Engine] = []

    def __call__(self, images: Tensor) -> Tensor:
        """The output of all stages, pooled, for normalised images (N, 3, S, S); the first batch is the usual one."""
        for number, (start, stop, precision) in enumerate(self._parts):
            if number == len(self._built):
                name, precision = planned(self.engine, precision, self.device)
                engine = build_engine(self.backbone, [stop], name, precision, images, start, leeway=_LEEWAY)
                self._built.append(engine)
            (images,) = self._built[number](images)
            images = images.float()
        return images


class StoredTrunk:
    """Provides a data module with the rows that an epoch needs; what is missing is computed first.

    Where the store does not fit or fails, a line says so, and the run goes on with images.

    Args:
        trunk: what computes the rows. Those of all its depths are stored.
        root: of the stores, shared by all runs.
        max_gb: of all of them, see `TrunkStore`.
        epochs: at most, for the estimate of the store's size.
        show: whether to show a bar.
        threads: of a pass over images; None: as many as PyTorch takes for all else.
    """

    def __init__(
        self, trunk: Trunk, root: Path, max_gb: float, epochs: int, show: bool, threads: int | None = None
    ) -> None:
        self.trunk, self.root, self.max_gb, self.epochs, self.show = trunk, root, max_gb, epochs, show
        self.threads = threads
        self._stores: dict[int, TrunkStore] = {}
        self._needed: set[Path] = set()  # none of them makes room by what another of them needs
        self._on: bool | None = None  # not known before the first rows are wanted
        self._filling = True  # until that fails; what is stored by then is still used
        self._held: dict[str, tuple[Any, StoredRows]] = {}  # of each part, (view, rows)

    def rows(self, data: Any, part: str, epoch: int) -> StoredRows | None:
        """The rows of a part in the order of its images; None where the epoch has to do with images.

        Args:
            data: the data module.
            part: train, val or test.
            epoch: it shows the view of that epoch.
        """
        key = data.view_key(part, data.view(epoch))
        held = self._held.get(part)
        if held is not None and held[0] == key:
            return held[1]
        self._held.pop(part, None)
        rows = self._found(data, part, epoch, key)
        if rows is not None:
            self._held[part] = key, rows
        return rows

    def _found(self, data: Any, part: str, epoch: int, key: Any) -> StoredRows | None:
        try:
            if self._on is None:
                self._on = self._fits_somehow(data)
            return self._rows(data, part, epoch, key) if self._on else None
        except (OSError, sqlite3.Error) as error:
            self._on = False
            self._go_on_without(error)
            return None

    def _go_on_without(self, error: Exception) -> None:
        self.trunk.for_itself()
        log.warning("trunk output is not stored in %s: %s. The run goes on without.", self.root, error)

    def _fits_somehow(self, data: Any) -> bool:
        """Whether there is room, if need be for this run's own rows alone."""
        if self.fits(data):
            return True
        others = len(self.trunk.depths) > 1
        self.trunk.for_itself()
        return others and self.fits(data)

    def fits(self, data: Any) -> bool:
        """Say how much the store will take at most, and whether that fits.

        Raises:
            OSError, sqlite3.Error: the store cannot be used.
        """
        self._open()
        row = self.trunk.row_bytes()
        parts = {part: data.rows(part)["sha256"].unique().tolist() for part in ("train", "val", "test")}
        views = {json.dumps(key): key for key in (data.view_key("train", data.view(e)) for e in range(self.epochs))}
        wanted = [(parts["train"], key) for key in views.values()]
        wanted += [(parts[part], data.view_key(part, 0)) for part in ("val", "test")]
        total = sum(len(images) for images, _ in wanted)
        size = sum(row.values())
        self.root.mkdir(parents=True, exist_ok=True)
        absent = {depth: store.claim(wanted) for depth, store in self._stores.items()}
        missing = max(absent.values())
        # What no run of now needs makes room.
        free = shutil.disk_usage(self.root).free + self._stores[self.trunk.depths[0]].removable_bytes()
        fits = size * total < self.max_gb * 1e9 and sum(absent[d] * row[d] for d in absent) < _SHARE * free
        log.info(
            "trunk      first %s stages computed once for each image and view, at most %.2f GB, %.0f%% of it there%s",
            " and ".join(map(str, self.trunk.depths)),
            size * total / 1e9,
            100 * (1 - missing / total),
            "" if fits else f": more than cache_max_gb or the disk allow ({free / 1e9:.1f} GB free), so not stored",
        )  # fmt: skip
        return fits

    def _open(self) -> None:
        own = self.trunk.backbone.trunk_depth
        self._stores = self._named()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none, or damaged: found out anew
            told = json.loads((self._stores[own].folder / _INSTEAD).read_text())
            self.trunk.take_instead(told["engine"], told["precision"])
            log.info("trunk      runs in %s in %s, which had to take another's place before", *told.values())
            self._stores = self._named()

    def _named(self) -> dict[int, TrunkStore]:
        return {
            depth: TrunkStore(self.root, self.trunk.identity(depth), self.max_gb, self._needed)
            for depth in self.trunk.depths
        }

    def _rows(self, data: Any, part: str, epoch: int, key: Any) -> StoredRows | None:
        images = data.rows(part)["sha256"].tolist()
        own = self.trunk.backbone.trunk_depth
        rows = self._stores[own].find(images, key)
        if self._filling and len(rows.missing):
            try:
                with threads(self.threads), contextlib.ExitStack() as turn:
                    self._take_turn(turn)
                    still = len(self._stores[own].find(images, key).missing)
                    if still and not self._make(data, part, epoch, turn):
                        return None
            except OSError as error:
                self._filling = False
                self._go_on_without(error)
            rows = self._stores[own].find(images, key)
            if self._filling and len(rows.missing):
                log.warning("trunk output of this epoch was deleted just now: the epoch goes on without.")
        return None if len(rows.missing) else rows

    def _take_turn(self, turn: contextlib.ExitStack) -> None:
        """One run at a time: another that needs the same rows waits for them instead of computing them too."""
        # The shallowest first in every run, so that no two wait for each other.
        for store in self._stores.values():
            turn.enter_context(in_turn(store.alone(), "trunk      another run computes with this network"))

    def _make(self, data: Any, part: str, epoch: int, turn: contextlib.ExitStack) -> bool:
        """Compute and store what is missing. False: the run goes on without."""
        first = range(min(data.batch_size, len(data.rows(part))))
        sample = next(iter(data.image_batches(part, data.view(epoch), first)))
        hoped, anew = (self.trunk.engine, self.trunk.precision), not self.trunk.built
        self.trunk.build(self._on_device(data, sample))
        if (self.trunk.engine, self.trunk.precision) != hoped:
            if self.trunk.lasting:  # then the next run need not build this one to find that out
                instead = {"engine": self.trunk.engine, "precision": self.trunk.precision}
                write_json(self._stores[self.trunk.backbone.trunk_depth].folder / _INSTEAD, instead)
            # What another engine makes stands elsewhere, and takes other room.
            turn.close()
            self._on = self._fits_somehow(data)
            if not self._on:
                return False
            self._stores = self._named()
            self._take_turn(turn)
        self._stores = {depth: self._stores[depth] for depth in self.trunk.depths}  # some may not go with the engine
        self._fill(data, part, epoch)
        # What every run needs in the end, now that the engine stands: another run would have to build one for it.
        for shown_once in ("val", "test") if anew else ():
            if shown_once not in self._held:
                self._fill(data, shown_once, 0)
        return True

    def _fill(self, data: Any, part: str, epoch: int) -> None:
        """Compute and store what is missing of a part, at every depth."""
        key, images = data.view_key(part, data.view(epoch)), data.rows(part)["sha256"].tolist()
        missing = {
            depth: {images[place] for place in store.find(images, key).missing.tolist()}
            for depth, store in self._stores.items()
        }
        # Equal files have one row.
        first = {image: place for place, image in reversed(list(enumerate(images)))}
        places = sorted(first[image] for image in set().union(*missing.values()))
        if not places:
            return
        batches = data.image_batches(part, data.view(epoch), places)
        what = f"trunk, {part} view {data.view(epoch)}"
        with contextlib.ExitStack() as stack:
            advance = stack.enter_context(progress(what, len(batches), self.show))
            append = {d: stack.enter_context(store.filling(key)) for d, store in self._stores.items()}
            # Where loader processes read ahead, no thread has to.
            for batch in batches if data.workers else _one_ahead(batches):
                names = [images[place] for place in batch["index"].tolist()]
                outputs = self.trunk.compute(self._on_device(data, batch))
                for depth, output in zip(self.trunk.depths, outputs, strict=True):
                    new = [row for row, name in enumerate(names) if name in missing[depth]]
                    if new:
                        append[depth]([names[row] for row in new], output[new])
                advance()

    def _on_device(self, data: Any, batch: dict[str, Tensor]) -> Tensor:
        batch = {name: values.to(self.trunk.device) for name, values in batch.items()}
        # Engines take planes, and bytes are turned round sooner than the numbers that they become.
        return data.normalised(batch | {"image": batch["image"].contiguous()})


def _one_ahead(batches: Iterable[_T]) -> Iterator[_T]:
    """The same, each made in a thread while the one before is used."""
    made, end = iter(batches), object()
    with ThreadPoolExecutor(1) as maker:
        coming: Future[Any] = maker.submit(next, made, end)
        while (batch := coming.result()) is not end:
            coming = maker.submit(next, made, end)
            yield batch
