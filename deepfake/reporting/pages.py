"""What the pages share: one HTML file each that needs nothing else, from templates that take every text for text."""

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from deepfake.console import visible
from deepfake.data.images import UnreadableImage, read_image
from deepfake.reporting.figures import FAKE, REAL, TRAIN, VALIDATION, shorten

THUMBNAIL = 96  # pixels, the longer side

_NAME = 160  # characters of a path or a reason
_DASH = "\N{EN DASH}"


class Figure(NamedTuple):
    """A figure and the ends of its 95 % interval; NaN where it is undefined, or has none."""

    value: float
    low: float = math.nan
    high: float = math.nan


def render(template: str, **content: Any) -> str:
    """A page; whatever text it is given is escaped, on one line, and without what gives orders to a terminal."""
    return _templates().get_template(template).render(content)


@cache  # compiling the templates takes longer than filling them
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("deepfake.reporting"),
        autoescape=True,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.globals["colours"] = {"real": REAL, "fake": FAKE, "train": TRAIN, "validation": VALIDATION}
    templates.filters.update(
        name=lambda text: shorten(str(_visible(text)), _NAME),
        sentence=_sentence,
        decimal=_decimal,
        figure=_figure,
        thousandths=_thousandths,
        percent=percent,
        p_value=lambda p: "< 0.001" if p < 0.001 else _thousandths(p),
        span=span,
        sortable=_sortable,
        duration=_duration,
        script_hash=_script_hash,
    )
    return templates


def flat(settings: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# -------------------------------------------------------------------------------------------------- pictures


def thumbnail(path: Path) -> str | None:
    """The image as a data address; None where it cannot be read."""
    try:
        pixels, _ = read_image(path)
    except UnreadableImage:
        return None
    return data_address(pixels, (THUMBNAIL, THUMBNAIL))


def data_address(pixels: NDArray[np.uint8], most: tuple[int, int]) -> str:
    """An image as a JPEG inside the page, shrunk to fit into `most` pixels (width, height)."""
    small = Image.fromarray(pixels)
    small.thumbnail(most)
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"


# ----------------------------------------------------------------------------------------------------- words


def _visible(value: Any) -> Any:
    """Text without line breaks, control characters and such that turn the direction of writing: their codes instead.

    A file name may hold any of them, and half a surrogate pair besides, which no UTF-8 file can.
    """
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _sentence(text: str) -> str:
    """With a capital and a full stop, as text that stands alone."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _decimal(value: float | None) -> str:
    """A figure of judgement, 0.87; a dash where it is undefined."""
    return _DASH if value is None else f"{value:.2f}"


def _figure(value: float) -> str:
    """Three figures, and pixels in full; a dash where it is undefined."""
    if not math.isfinite(value):
        return _DASH
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _thousandths(value: float, sign: str = "") -> str:
    """0.913; a dash where it is undefined."""
    return f"{value:{sign}.3f}" if math.isfinite(value) else _DASH


def percent(value: float) -> str:
    """88.1 %; a dash where it is undefined."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else _DASH


def span(figure: Figure, places: int = 3, factor: float = 1, sign: str = "") -> str:
    """[0.884, 0.938]; nothing where there is no interval."""
    if not math.isfinite(figure.low) or not math.isfinite(figure.high):
        return ""
    return f"[{factor * figure.low:{sign}.{places}f}, {factor * figure.high:{sign}.{places}f}]"


def _sortable(value: float) -> str:
    """What a column is sorted by: undefined figures are the least of all."""
    return str(value) if math.isfinite(value) else "-Infinity"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _script_hash(script: str) -> str:
    """What the page's content security policy calls its own script by, so that no other runs."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
