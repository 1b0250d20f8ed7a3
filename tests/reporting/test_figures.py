"""What the pictures show, read back from the figure and from its pixels."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from deepfake.reporting import figures


def texts(figure: Figure) -> list[str]:
    found = (artist for artist in figure.findobj(Text) if isinstance(artist, Text) and artist.get_visible())
    return [artist.get_text() for artist in found if artist.get_text()]


def cut_off(figure: Figure) -> bool:
    """Whether anything drawn reaches over the edge of the picture by more than a pixel."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())  # in inches
    width, height = figure.get_size_inches()
    slack = 1 / figure.dpi
    return min(drawn.x0, drawn.y0) < -slack or drawn.x1 > width + slack or drawn.y1 > height + slack


def runs(n: int, name: str = "efficientnet-u{}-plateau-s0-1a2b3c4d") -> pd.DataFrame:
    value = np.linspace(0.95, 0.75, n)
    table = pd.DataFrame({"run": [name.format(i) for i in range(n)], "trained_weights": 1131954})
    for offset, metric in enumerate(("accuracy", "f1", "auroc")):
        table[f"val_{metric}"] = value + offset / 100
        table[f"val_{metric}_low"] = value + offset / 100 - 0.03
        table[f"val_{metric}_high"] = value + offset / 100 + 0.02
    return table.assign(n_val=400, val_prevalence=0.5, val_majority=0.5)


def test_confusion_shows_counts_and_row_percentages() -> None:
    figure = figures.confusion_figure(np.array([[180, 20], [61, 139]]), "test part")
    shown = texts(figure)
    for expected in ("180", "20", "61", "139", "90.0 %", "10.0 %", "30.5 %", "69.5 %", "test part"):
        assert expected in shown
    cells = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    # Rows are the truth: 20 reals called fake stand in row 0, column 1.
    assert [round(x) for x in cells["20"]] == [1, 0]
    assert [round(x) for x in cells["61"]] == [0, 1]
    assert not cut_off(figure)


def test_long_titles_are_not_cut_off() -> None:
    title = "of the model named " * 8
    history = pd.DataFrame({"epoch": [0], "val/loss": [0.5]})
    assert not cut_off(figures.confusion_figure(np.full((2, 2), 123456), title))
    assert not cut_off(figures.curve_figure(history, "loss", 0, title))
    assert not cut_off(figures.image_grid(np.zeros((1, 4, 4, 3), np.uint8), [title], title=title))


def test_confusion_row_colours_are_blue_and_orange() -> None:
    figure = figures.confusion_figure(np.array([[10, 0], [0, 10]]), "")
    cells = figure.axes[0].images[0].get_array()
    assert cells is not None
    (red, _, blue), (red_fake, _, blue_fake) = cells[0, 0], cells[1, 1]
    assert blue > red
    assert red_fake > blue_fake
    assert cells[0, 0].sum() < cells[0, 1].sum()  # more is darker


def test_confusion_without_fakes() -> None:
    assert texts(figures.confusion_figure(np.array([[5, 0], [0, 0]]), "one class")).count("no images") == 2


@pytest.mark.parametrize("counts", [np.zeros((3, 3)), np.zeros(4), np.array([[1, -1], [0, 0]])])
def test_confusion_refuses(counts: np.ndarray) -> None:
    with pytest.raises(ValueError, match="counts"):
        figures.confusion_figure(counts, "")


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for line in figure.axes[0].get_lines()
    }


def test_curves_and_best_epoch() -> None:
    history = pd.DataFrame({"epoch": [0, 1, 2], "train/loss": [0.7, 0.5, 0.3], "val/loss": [0.6, 0.4, 0.5]})
    figure = figures.curve_figure(history, "loss", 1, "run")
    drawn = lines(figure)
    assert drawn["training"] == ([0, 1, 2], [0.7, 0.5, 0.3])
    assert drawn["validation"] == ([0, 1, 2], [0.6, 0.4, 0.5])
    assert drawn["best epoch: 1"][0] == [1, 1]
    rings = [line for line in figure.axes[0].get_lines() if line.get_markerfacecolor() == "none"]
    assert [np.asarray(ring.get_xydata()).tolist() for ring in rings] == [[[1, 0.4]]]
    assert figure.axes[0].get_xlabel() == "epoch (from 0)"


def test_curves_join_rows_of_one_epoch() -> None:
    """Validation and training are logged apart, each leaving the other's columns empty."""
    history = pd.DataFrame(
        {"epoch": [0, 0, 1, 1], "train/f1": [np.nan, 0.5, np.nan, 0.6], "val/f1": [0.4, np.nan, 0.7, np.nan]}
    )
    drawn = lines(figures.curve_figure(history, "f1", None, ""))
    assert drawn["training"] == ([0, 1], [0.5, 0.6])
    assert drawn["validation"] == ([0, 1], [0.4, 0.7])


def test_curve_of_one_epoch() -> None:
    history = pd.DataFrame({"epoch": [0], "train/loss": [0.7], "val/loss": [0.6]})
    figure = figures.curve_figure(history, "loss", 0, "")
    FigureCanvasAgg(figure).draw()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels() if label.get_position()[0] == 0] == ["0"]
    assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())


def test_curves_without_training_part_or_finite_loss() -> None:
    history = pd.DataFrame({"epoch": [0, 1], "val/loss": [np.inf, np.nan]})
    FigureCanvasAgg(figures.curve_figure(history, "loss", 5, "")).draw()


@pytest.mark.parametrize("history", [{"epoch": []}, {"epoch": [0]}, {"val/loss": [0.5]}])
def test_curves_refuse(history: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="history: expected rows with epoch"):
        figures.curve_figure(pd.DataFrame(history), "loss", None, "")


@pytest.mark.parametrize(("n", "columns", "shape"), [(1, 8, (1, 1)), (5, 2, (3, 2)), (16, 8, (2, 8))])
def test_image_grid(n: int, columns: int, shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 6, 3), dtype=np.uint8)
    figure = figures.image_grid(images, [f"image {i}" for i in range(n)], columns, "title")
    (axes,) = figure.axes
    titles = {text.get_text(): text.get_position()[0] for text in axes.texts}
    places = []
    for i, (shown, image) in enumerate(zip(axes.images, images, strict=True)):
        assert np.array_equal(shown.get_array(), image)  # type: ignore[arg-type]
        left, right, bottom, top = shown.get_extent()
        assert left < titles[f"image {i}"] < right
        assert (right - left) / (bottom - top) == pytest.approx(6 / 8, abs=0.02)
        places.append((round(top, 3), round(left, 3)))
    assert places == sorted(places), "in reading order"
    assert (len({top for top, _ in places}), len({left for _, left in places})) == shape
    assert not cut_off(figure)


@pytest.mark.parametrize(
    ("images", "titles", "columns"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), ["a", "b"], 8),
        (np.zeros((2, 3, 4, 4), np.uint8), ["a", "b"], 8),
        (np.zeros((0, 4, 4, 3), np.uint8), [], 8),
        (np.zeros((2, 4, 4, 3), np.uint8), ["a"], 8),
        (np.zeros((2, 4, 4, 3), np.uint8), ["a", "b"], 0),
    ],
)
def test_image_grid_refuses(images: np.ndarray, titles: list[str], columns: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        figures.image_grid(images, titles, columns)


@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("name", ["run {}", "efficientnet-u{}-WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW-$x_{{1$"])
def test_comparison_fits_any_number_of_runs(n: int, name: str) -> None:
    figure = figures.comparison_figure(runs(n, name))
    assert not cut_off(figure)
    page, *panels = figure.axes
    canvas = FigureCanvasAgg(figure)
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in page.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    left = min(panel.bbox.x0 for panel in panels)
    names = [box for text, box in zip(page.texts, boxes, strict=True) if text.get_position()[0] < 1]
    assert max(box.x1 for box in names) < left
    # Rows are equally high, so letters are as well readable in the fortieth row as in the first.
    assert panels[0].bbox.height / figure.dpi == pytest.approx(0.32 * n)


def test_a_very_long_name_does_not_widen_the_picture() -> None:
    figure = figures.comparison_figure(runs(2, "run {} " + "long " * 100))
    assert figure.get_size_inches()[0] < 15
    assert not cut_off(figure)


def test_comparison_draws_dots_and_whiskers_in_table_order() -> None:
    table = runs(3)
    figure = figures.comparison_figure(table)
    panels = figure.axes[1:]
    assert len(panels) == 3
    for panel, metric in zip(panels, ("accuracy", "f1", "auroc"), strict=True):
        (dots,) = (c for c in panel.collections if isinstance(c, PathCollection))
        assert np.allclose(dots.get_offsets(), np.column_stack([table[f"val_{metric}"], [0, 1, 2]]))
        (whiskers,) = (c for c in panel.collections if isinstance(c, LineCollection))
        ends = np.array([segment[:, 0] for segment in whiskers.get_segments()])
        assert np.allclose(ends, table[[f"val_{metric}_low", f"val_{metric}_high"]])
        top, bottom = panel.get_ylim()
        assert top > bottom  # y falls: the first run of the table is on top
        assert panel.get_xlim() == panels[0].get_xlim()
    shown = texts(figure)
    assert shown.count("1.13 M") == 3
    assert "0.950" in shown
    assert any("400 validation images, 50.0 % fake" in text for text in shown)


def test_comparison_with_undefined_figures() -> None:
    table = runs(2)
    table.loc[0, ["val_auroc", "val_auroc_low", "val_auroc_high"]] = np.nan
    assert "\N{EN DASH}" in texts(figures.comparison_figure(table))
    empty = runs(1)
    empty[[column for column in map(str, empty.columns) if column.startswith("val_")]] = np.nan
    assert not cut_off(figures.comparison_figure(empty))


def test_comparison_says_when_images_differ() -> None:
    table = runs(2).assign(n_val=[400, 300])
    assert any("2 different validation parts" in text for text in texts(figures.comparison_figure(table)))


def test_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        figures.comparison_figure(runs(0))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (1131954, "1.13 M"),
        (12_345, "12.3 k"),
        (99_960, "100 k"),
        (999_600, "1.00 M"),
        (2.05e9, "2.05 G"),
        (float("nan"), "\N{EN DASH}"),
    ],
)
def test_count_text(number: float, text: str) -> None:
    assert figures.count_text(number) == text


def test_shorten_keeps_both_ends_and_one_line() -> None:
    assert figures.shorten("short\nname") == "short name"
    assert figures.shorten("a" * 44) == "a" * 44
    long = figures.shorten("start" + "x" * 80 + "-1a2b3c4d")
    assert len(long) == 44
    assert long.startswith("start")
    assert long.endswith("-1a2b3c4d")


def test_save_writes_png_at_150_dpi(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figure.png"
    figures.save(Figure(figsize=(2, 1)), path)
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (300, 150))
        assert image.getpixel((0, 0))[:3] == (255, 255, 255)  # type: ignore[index]
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]


def test_save_writes_jpeg_of_the_same_size(tmp_path: Path) -> None:
    path = tmp_path / "sheet.jpg"
    content = figures.save(Figure(figsize=(2, 1)), path)
    assert path.read_bytes() == content
    with Image.open(path) as image:
        assert (image.format, image.size) == ("JPEG", (300, 150))


def test_save_is_reproducible(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        figures.save(figures.comparison_figure(runs(2)), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_dollar_signs_are_text() -> None:
    """`$x_{$` is broken mathematics, and would raise while drawing."""
    bad = "$x_{$"
    history = pd.DataFrame({"epoch": [0], "val/loss": [0.5]})
    image = np.zeros((1, 4, 4, 3), np.uint8)
    for figure in (
        figures.confusion_figure(np.ones((2, 2), int), bad),
        figures.curve_figure(history, "loss", 0, bad),
        figures.image_grid(image, [bad], title=bad),
        figures.comparison_figure(runs(1, "$x_{{$")),
    ):
        figure.savefig(BytesIO(), format="png", dpi=30)


def test_no_pyplot() -> None:
    code = "import sys, deepfake.reporting.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
