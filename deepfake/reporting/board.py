"""What TensorBoard shows of a run: parts, of which each is written whole, so that what is made again replaces itself.

train/MEASURE val/MEASURE lr seconds    of every epoch
final/PART_MEASURE                      of the best checkpoint, beside the hyper-parameters
NAME/MEASURE                            of an evaluation or a robustness test; NAME is that of its folder
pr/val pr/test pr/NAME pr/NAME/SOURCE   precision against recall; of a generator, against all real images
NAME/PICTURE                            pictures, in the same way
"""

import hashlib
import io
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from google.protobuf import text_format  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from deepfake import runs
from deepfake.console import visible
from deepfake.files import write_bytes, write_text
from deepfake.untrusted import expect_file

THUMBNAIL = 64  # pixels a side
_PROJECTOR = "projector_config.pbtxt"  # where TensorBoard looks
_MAX_BYTES = 2**20  # of that file; an entry has some hundred


def dashboard(run: Path) -> Path | None:
    """The folder of a run's events; None where it was trained without, or a link leads elsewhere.

    An ensemble, which is not trained, has none before the first events are written.
    """
    folder = run / runs.TENSORBOARD
    there = folder.is_dir() or (run / runs.ENSEMBLE).exists()
    return folder if there and not folder.is_symlink() else None


def part(folder: Path, name: str) -> SummaryWriter:
    """A writer of one part of a dashboard; what an earlier one wrote of that part is removed.

    TensorBoard reads every file of events in a folder: written once more beside the first, each point is there twice.
    """
    suffix = f".{_key(name)}"
    for earlier in folder.glob(f"*tfevents*{suffix}"):
        earlier.unlink(missing_ok=True)
    # So soon, for a training is watched.
    return SummaryWriter(folder, filename_suffix=suffix, flush_secs=10)


def add_scalars(
    writer: SummaryWriter, values: Mapping[str, float], step: int = 0, walltime: float | None = None
) -> None:
    """Those that are finite, in one event: `add_scalar` would write one each, which takes ten times as long."""
    told = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if math.isfinite(value)]
    writer._get_file_writer().add_summary(Summary(value=told), step, walltime)


def add_picture(writer: SummaryWriter, name: str, encoded: bytes, step: int = 0) -> None:
    """A picture file, PNG or JPEG, as it is: `add_image` would encode it once more."""
    width, height = Image.open(io.BytesIO(encoded)).size
    image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=encoded)
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


def add_hparams(
    writer: SummaryWriter, params: Mapping[str, str | float], figures: Mapping[str, float], first: Collection[str]
) -> None:
    """A row of the table of runs.

    Args:
        writer: of the part.
        params: hyper-parameters.
        figures: beside them; those that are not finite are left out.
        first: hyper-parameters that the table begins with.
    """
    experiment, *session = hparams(dict(params), dict(figures))
    # TensorBoard takes the columns from the first run that it reads, those that differ between runs first, then by
    # name, and shows five. Which differ no run can know: those that one would vary count as such.
    columns = experiment.value[0].metadata.plugin_data
    told = HParamsPluginData.FromString(columns.content)
    for param in told.experiment.hparam_infos:
        param.differs = param.name in first
    columns.content = told.SerializeToString()
    for each in (experiment, *session):
        writer._get_file_writer().add_summary(each)
    add_scalars(writer, figures)


def add_pr_curves(
    writer: SummaryWriter, name: str, judged: pd.DataFrame, step: int = 0, by_source: bool = False
) -> None:
    """Precision and recall at 127 thresholds from 0 to 1; of one class there is no curve.

    Args:
        writer: of the part.
        name: of what was judged.
        judged: label (0, 1), probability, and source if asked for.
        step: which TensorBoard shows them at.
        by_source: also of each generator against all real images.
    """
    labels, p = judged["label"].to_numpy(), judged["probability"].to_numpy()
    if not {0, 1} <= set(labels):
        return
    writer.add_pr_curve(f"pr/{name}", labels, p, step)
    if by_source:
        for source in sorted(judged.loc[labels == 1, "source"].unique()):
            against = (labels == 0) | (judged["source"] == source).to_numpy()
            writer.add_pr_curve(f"pr/{name}/{visible(source)}", labels[against], p[against], step)


def write_embedding(
    folder: Path,
    name: str,
    features: NDArray[np.float32],
    about: pd.DataFrame,
    thumbnails: Sequence[NDArray[np.uint8] | None],
) -> None:
    """What TensorBoard's projector shows; an earlier one of the same name is replaced, others stay.

    Args:
        folder: of the run's events.
        name: of the embedding.
        features: float32 (images, features), finite.
        about: a row an image; every column can be shown as text or colour.
        thumbnails: uint8 (`THUMBNAIL`, `THUMBNAIL`, 3) of each image; None where there is none.

    Raises:
        OSError: it cannot be written.
    """
    files = {kind: folder / f"projector-{_key(name)}.{kind}" for kind in ("bytes", "tsv", "jpg")}
    entry = EmbeddingInfo(tensor_name=visible(name), tensor_shape=features.shape)
    entry.tensor_path, entry.metadata_path = files["bytes"].name, files["tsv"].name
    # TensorBoard first tries to read numbers as text; of nothing but zeros it could.
    write_bytes(files["bytes"], np.where(features == 0, np.float32(-0.0), features).tobytes())
    # It knows no quoting: a tab or a line break in a name would be one of the table's.
    rows = [about.columns, *about.astype(str).to_numpy()]
    write_text(files["tsv"], "".join("\t".join(map(visible, row)) + "\n" for row in rows))
    if any(thumbnail is not None for thumbnail in thumbnails):
        write_bytes(files["jpg"], _sprite(thumbnails))
        entry.sprite.image_path = files["jpg"].name
        entry.sprite.single_image_dim.extend([THUMBNAIL, THUMBNAIL])
    others = [other for other in _embeddings(folder / _PROJECTOR) if other.tensor_name != entry.tensor_name]
    write_text(folder / _PROJECTOR, text_format.MessageToString(ProjectorConfig(embeddings=[*others, entry])))


def _embeddings(file: Path) -> list[EmbeddingInfo]:
    """What the projector shows already; nothing where that cannot be read."""
    try:
        expect_file(file)
        if file.stat().st_size > _MAX_BYTES:
            return []
        return list(text_format.Parse(file.read_bytes(), ProjectorConfig()).embeddings)
    except (OSError, UnicodeDecodeError, text_format.ParseError):
        return []


def _sprite(thumbnails: Sequence[NDArray[np.uint8] | None]) -> bytes:
    """JPEG of all, row by row in a square."""
    side = math.ceil(math.sqrt(len(thumbnails)))
    sheet = np.full((side, THUMBNAIL, side, THUMBNAIL, 3), 128, np.uint8)
    for number, thumbnail in enumerate(thumbnails):
        if thumbnail is not None:
            sheet[number // side, :, number % side] = thumbnail
    content = io.BytesIO()
    Image.fromarray(sheet.reshape(side * THUMBNAIL, side * THUMBNAIL, 3)).save(content, "JPEG", quality=85)
    return content.getvalue()


def _key(name: str) -> str:
    """For names of files: that of an evaluation is a folder's, which may be too long or hold anything."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
