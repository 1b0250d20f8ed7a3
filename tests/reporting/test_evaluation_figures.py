"""What the pictures of an evaluation show, read back from the figure and compared with computations of their own."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from deepfake.reporting import evaluation_figures
from deepfake.reporting.figures import FAKE, REAL

OF = "test part, best epoch 7 of run-1a2b3c4d"
LONG = "Stable Diffusion XL base 1.0 (text to image, 50 steps, guidance 7.5)"
HOSTILE = [
    "a" * 5000,
    "line\nline\r\nline",
    "$x_{$",
    "\\frac{",
    "_hidden",
    "\u4eba\u8138/\U0001f600",
    "a" + "\u0301\u0302" * 40,
    "\u202eevil",
    "undecodable\udcff",
    "\x00\x1b[31m",
    "W" * 70,
    "",
]
CURVES = ("roc_figure", "precision_recall_figure", "det_figure")


def scored(reals: int = 60, fakes: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and P(fake) with ties, between chance and perfect."""
    random = np.random.default_rng(seed)
    p = np.concatenate([random.beta(2, 4, reals), random.beta(4, 2, fakes)])
    return np.repeat([0, 1], [reals, fakes]), 0.99 * p.round(2) + 0.0013  # never on the edge of a bin


def texts(figure: Figure) -> list[str]:
    found = (artist for artist in figure.findobj(Text) if isinstance(artist, Text) and artist.get_visible())
    return [artist.get_text() for artist in found if artist.get_text()]


def draw(figure: Figure) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        FigureCanvasAgg(figure).draw()


def within(figure: Figure) -> bool:
    """Whether nothing of the figure, once drawn, reaches over its edge by more than a pixel."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    slack = 1 / figure.dpi
    return min(box.x0, box.y0) >= -slack and box.x1 <= width + slack and box.y1 <= height + slack


def in_sight(axes: Axes) -> list[Text]:
    """Title, axis labels, tick labels inside the limits and texts of one plot."""
    ticks = []
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [axes.title, axes.xaxis.label, axes.yaxis.label, *ticks, *axes.texts]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Texts of the figure, once drawn, that share more than a pixel in both directions."""
    words = [text for axes in figure.axes if axes.get_visible() and axes.axison for text in in_sight(axes)]
    words += [text for legend in figure.findobj(Legend) for text in legend.get_texts()]
    words += figure.texts
    shared = []
    extents = [
        (text.get_text(), text.get_window_extent()) for text in words if text.get_text() and text.get_visible()
    ]
    for i, (one, a) in enumerate(extents):
        for other, b in extents[i + 1 :]:
            if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1:
                shared.append((one, other))
    return shared


def line(axes: Axes, name: str) -> np.ndarray:
    """(x, y) of the line whose entry in the key holds `name`, shape (N, 2)."""
    (found,) = (line for line in axes.get_lines() if name in str(line.get_label()))
    return np.column_stack([np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)])


def key(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.findobj(Legend) for text in legend.get_texts()]


def rates(labels: np.ndarray, p: np.ndarray) -> np.ndarray:
    """(FPR, TPR) at every distinct threshold and above all, counted one by one, rising; shape (T, 2)."""
    cuts = [np.inf, *np.unique(p)[::-1]]
    return np.array([[(p[labels == label] >= cut).mean() for label in (0, 1)] for cut in cuts])


# --- curves


def test_roc_is_that_of_scikit_learn() -> None:
    labels, p = scored()
    figure = evaluation_figures.roc_figure({"overall": (labels, p)}, OF)
    fpr, tpr, _ = roc_curve(labels, p)
    drawn = line(figure.axes[0], "overall")
    assert np.array_equal(drawn, np.column_stack([fpr, tpr]))
    assert np.isclose(np.trapezoid(drawn[:, 1], drawn[:, 0]), roc_auc_score(labels, p))
    assert f"{roc_auc_score(labels, p):.3f}  overall: 60 real, 90 fake" in key(figure)
    assert np.array_equal(line(figure.axes[0], "chance"), [[0, 0], [1, 1]])


def test_roc_passes_through_every_threshold() -> None:
    labels, p = scored(seed=1)
    drawn = line(evaluation_figures.roc_figure({"overall": (labels, p)}, OF).axes[0], "overall")
    counted = rates(labels, p)
    # The drawn line leaves out points that lie straight between two others.
    assert {tuple(point) for point in drawn.round(12)} <= {tuple(point) for point in counted.round(12)}
    for fpr, tpr in counted:
        beside = drawn[drawn[:, 0] == fpr][:, 1]
        on_a_rise = beside.size > 0 and beside.min() - 1e-12 <= tpr <= beside.max() + 1e-12
        assert on_a_rise or np.isclose(np.interp(fpr, drawn[:, 0], drawn[:, 1]), tpr)


def test_area_under_the_precision_steps_is_average_precision() -> None:
    labels, p = scored()
    figure = evaluation_figures.precision_recall_figure({"overall": (labels, p)}, OF)
    (drawn,) = (each for each in figure.axes[0].get_lines() if "overall" in str(each.get_label()))
    assert drawn.get_drawstyle() == "steps-post"
    recall, precision = line(figure.axes[0], "overall").T
    ap = average_precision_score(labels, p)
    assert np.isclose(-np.diff(recall) @ precision[:-1], ap)
    assert f"{ap:.3f}  overall: 60 real, 90 fake" in key(figure)
    assert (recall[0], precision[0]) == (1, 0.6)  # all called fake
    best = p.max()
    assert precision[-1] == labels[p == best].mean()  # no made-up point of precision 1
    assert np.array_equal(line(figure.axes[0], "chance")[:, 1], [0.6, 0.6])
    assert any("chance: 0.600" in text for text in key(figure))


def test_det_draws_both_errors_in_normal_deviates() -> None:
    labels, p = scored()
    figure = evaluation_figures.det_figure({"overall": (labels, p)}, OF)
    axes = figure.axes[0]
    fpr, fnr = line(axes, "overall").T
    counted = rates(labels, p)
    assert {(x, y) for x, y in zip(fpr.round(12), (1 - fnr).round(12), strict=True)} <= {
        tuple(point) for point in counted.round(12)
    }
    inner = np.array([0.01, 0.05, 0.2, 0.5, 0.99])
    for axis in (axes.xaxis, axes.yaxis):
        assert np.allclose(axis.get_transform().transform(inner), norm.ppf(inner))
        labels_of_ticks = [text.get_text() for text in axis.get_ticklabels()]
        assert labels_of_ticks[0] == "0.1 %"
        assert labels_of_ticks == [f"{100 * tick:g} %" for tick in axis.get_ticklocs()]
    # Chance is straight there, from corner to corner.
    assert np.allclose(line(axes, "chance").sum(axis=1), 1)


def test_det_names_the_equal_error_rate() -> None:
    # Of 4 reals and 4 fakes one each lies on the wrong side.
    labels = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    figure = evaluation_figures.det_figure({"overall": (labels, np.arange(8) / 8)}, OF)
    assert "0.250  overall: 4 real, 4 fake" in key(figure)


@pytest.mark.parametrize("name", CURVES)
def test_curves_say_what_they_are_of(name: str) -> None:
    figure = getattr(evaluation_figures, name)({"overall": scored(), "other": scored(5, 5)}, OF)
    (title,) = (text for text in texts(figure) if OF in text.replace("\n", " "))
    assert "150 images, 60.0 % fake" in title.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "place", "shown"),
    [
        ("roc_figure", (0.05, 0.8), "5.0 %, 80.0 %"),
        # Of 60 reals 3 and of 90 fakes 72 are called fake: 72 of 75 are fakes.
        ("precision_recall_figure", (0.8, 0.96), "80.0 %, 96.0 %"),
        ("det_figure", (0.05, 0.2), "5.0 %, 20.0 %"),
    ],
)
def test_thresholds_are_marked(name: str, place: tuple[float, float], shown: str) -> None:
    figure = getattr(evaluation_figures, name)({"overall": scored()}, OF, {"equal error": (0.05, 0.8)})
    assert np.allclose(line(figure.axes[0], "equal error"), [place])
    assert f"equal error: {shown}" in key(figure)
    assert any("chosen on validation" in text for text in key(figure))


def test_threshold_beyond_the_det_picture_is_marked_at_its_edge() -> None:
    figure = evaluation_figures.det_figure({"overall": scored()}, OF, {"strict": (0.0, 0.0)})
    assert np.allclose(line(figure.axes[0], "strict"), [[0.001, 0.999]])
    assert "strict: 0.0 %, 100.0 %" in key(figure)
    draw(figure)
    assert within(figure)


def test_threshold_that_calls_nothing_fake_has_no_precision() -> None:
    figure = evaluation_figures.precision_recall_figure({"overall": scored()}, OF, {"strict": (0.0, 0.0)})
    assert "strict: 0.0 %, undefined" in key(figure)
    assert np.isnan(line(figure.axes[0], "strict")[0, 1])
    draw(figure)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("label", [0, 1])
def test_curve_of_one_class_is_undefined_and_says_so(name: str, label: int) -> None:
    alone = (np.full(5, label), np.linspace(0.1, 0.9, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = getattr(evaluation_figures, name)({"alone": alone, "both": scored()}, OF, {"t": (np.nan, 0.5)})
    assert f"undefined  alone: 5 {('real', 'fake')[label]}" in key(figure)
    assert line(figure.axes[0], "alone").size == 0
    assert line(figure.axes[0], "both").size > 0
    assert any("t: " in text and "undefined" in text for text in key(figure))
    draw(figure)


@pytest.mark.parametrize("name", CURVES)
def test_thirteen_curves_with_long_names_fit_and_differ(name: str) -> None:
    curves = {"overall": scored()} | {f"{number} {LONG}": scored(seed=number) for number in range(12)}
    figure = getattr(evaluation_figures, name)(curves, OF, {f"{number} {LONG}": (0.1, 0.8) for number in range(5)})
    draw(figure)
    assert within(figure)
    axes, beside = figure.axes
    styles = {(to_hex(each.get_color()), each.is_dashed()) for each in axes.get_lines()[:13]}
    assert len(styles) == 13
    assert not {colour for colour, _ in styles} & {REAL.lower(), FAKE.lower()}
    legend = beside.get_legend()
    assert legend is not None
    assert legend.get_window_extent().x0 > axes.get_window_extent().x1
    assert not overlapping(figure)


@pytest.mark.parametrize("name", CURVES)
def test_curves_refuse(name: str) -> None:
    make = getattr(evaluation_figures, name)
    with pytest.raises(ValueError, match="at least one"):
        make({}, OF)
    with pytest.raises(ValueError, match="probabilities"):
        make({"overall": (np.array([0, 1]), np.array([0.5, np.nan]))}, OF)
    with pytest.raises(ValueError, match="points: expected rates"):
        make({"overall": scored()}, OF, {"half": (0.1, 1.5)})


# --- reliability


def by_bins(labels: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Bin numbers that hold images, share of fakes and count of each, and ECE: image by image."""
    members: dict[int, list[int]] = {}
    for image, probability in enumerate(p):
        members.setdefault(min(int(np.floor(probability * 15 + 1e-9)), 14), []).append(image)
    bins = np.array(sorted(members))
    share = np.array([labels[members[k]].mean() for k in bins])
    count = np.array([len(members[k]) for k in bins])
    gaps = [abs(p[members[k]].mean() - labels[members[k]].mean()) for k in bins]
    return bins, share, count, float(count @ gaps / len(p))


def bars(axes: Axes) -> np.ndarray:
    """(left, height) of every bar, shape (N, 2)."""
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return np.array([[bar.get_x(), bar.get_height()] for bar in found])


def test_reliability_bars_are_shares_and_counts() -> None:
    labels, before = scored(200, 300)
    after = np.clip(before * 0.7 + 0.1, 0, 1)
    before[:3] = [0, 1, 1]  # both ends belong to a bin
    figure = evaluation_figures.reliability_figure(labels, before, after, OF)
    eces = [legend.get_title().get_text() for legend in figure.findobj(Legend)]
    for column, p in enumerate((before, after)):
        top, bottom = figure.axes[column], figure.axes[2 + column]
        bins, share, count, ece = by_bins(labels, p)
        assert np.allclose(bars(top), np.column_stack([bins / 15, share]))
        assert np.allclose(bars(bottom)[bins], np.column_stack([bins / 15, count]))
        assert bars(bottom)[:, 1].sum() == len(labels)
        (dashes,) = (found for found in top.collections if isinstance(found, LineCollection))
        heights = np.array([segment[0, 1] for segment in dashes.get_segments()])
        assert np.isclose(count @ np.abs(heights - share) / len(p), ece)
        assert eces[column] == f"ECE {ece:.3f}"
    assert before.size == 500
    assert any("500 images, 60.0 % fake" in text.replace("\n", " ") for text in texts(figure))
    draw(figure)
    assert within(figure)


def test_reliability_of_one_class_and_one_bin() -> None:
    figure = evaluation_figures.reliability_figure(np.ones(3), np.full(3, 0.99), np.full(3, 0.99), OF)
    assert np.allclose(bars(figure.axes[0]), [[14 / 15, 1]])
    draw(figure)
    assert within(figure)


@settings(max_examples=5)
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=40))
def test_reliability_counts_every_image_once(images: list[tuple[int, float]]) -> None:
    labels, p = np.array([y for y, _ in images]), np.array([x for _, x in images])
    figure = evaluation_figures.reliability_figure(labels, p, p[::-1], OF)
    for column, drawn in ((0, p), (1, p[::-1])):
        assert bars(figure.axes[2 + column])[:, 1].sum() == len(drawn)


def test_reliability_refuses() -> None:
    with pytest.raises(ValueError, match="one flat shape"):
        evaluation_figures.reliability_figure(np.ones(3), np.ones(3), np.ones(4), OF)


# --- histograms of scores


def table(*sources: tuple[str, int, int]) -> pd.DataFrame:
    """One row per image of each (source, reals, fakes)."""
    parts = []
    for seed, (name, reals, fakes) in enumerate(sources):
        labels, p = scored(reals, fakes, seed)
        parts.append(pd.DataFrame({"source": name, "label": labels, "probability": p}))
    return pd.concat(parts, ignore_index=True)


def test_histograms_are_shares_of_each_class() -> None:
    data = table(("1-gan", 0, 40), ("0-camera", 50, 0), ("both", 10, 30))
    figure = evaluation_figures.score_histograms(data, OF, {"eer": 0.45}, (0.4, 0.6))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["0-camera\n50 real", "both\n10 real, 30 fake", "1-gan\n40 fake"]
    for axes, source in zip(panels, ("0-camera", "both", "1-gan"), strict=True):
        rows = data[data["source"] == source]
        for label, colour in ((0, REAL), (1, FAKE)):
            p = rows.loc[rows["label"] == label, "probability"].to_numpy()
            drawn = [
                bar.get_height()
                for bar in axes.patches
                if isinstance(bar, Rectangle) and to_hex(bar.get_facecolor()) == colour.lower()
            ]
            counts = np.zeros(20)
            for probability in p:
                counts[min(int(np.floor(probability * 20 + 1e-9)), 19)] += 1
            assert np.allclose(drawn, counts / p.size if p.size else [])
        assert [np.asarray(each.get_xdata()).tolist() for each in axes.get_lines()] == [[0.45, 0.45]]
        assert any(bar.get_x() == 0.4 and np.isclose(bar.get_width(), 0.2) for bar in axes.patches)  # type: ignore[attr-defined]
    assert "threshold 0.45: eer" in key(figure)
    assert "uncertain: 0.4 to 0.6" in key(figure)


def test_histograms_of_twelve_long_names_do_not_overlap() -> None:
    data = table(*((f"{number} {LONG}", 5 * (number < 2), 5 * (number >= 2)) for number in range(14)))
    figure = evaluation_figures.score_histograms(data, OF, {f"{name} {LONG}": name / 10 for name in range(5)}, (0, 1))
    draw(figure)
    assert within(figure)
    assert not overlapping(figure)


def test_histograms_keep_images_without_a_source() -> None:
    data = table(("a", 5, 0), ("b", 0, 5))
    data.loc[data["source"] == "b", "source"] = None
    titles = [axes.get_title() for axes in evaluation_figures.score_histograms(data, OF).axes]
    assert any("5 fake" in title for title in titles)


def test_histograms_refuse() -> None:
    data = table(("a", 5, 5))
    with pytest.raises(ValueError, match="thresholds"):
        evaluation_figures.score_histograms(data, OF, {"half": 1.5})
    with pytest.raises(ValueError, match="uncertain band"):
        evaluation_figures.score_histograms(data, OF, uncertain=(0.6, 0.4))
    with pytest.raises(ValueError, match="probabilities"):
        evaluation_figures.score_histograms(data.assign(probability=np.nan), OF)


# --- sheet of pictures


def pictures(number: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (8 + k, 12, 3), dtype=np.uint8) for k in range(number)]


def test_sheet_shows_each_picture_over_its_caption() -> None:
    images = pictures(5)
    captions = [(f"source {number}", f"P(fake) 0.{number}, truth: real") for number in range(5)]
    figure = evaluation_figures.mistakes_sheet(images, captions, "5 of 9 mistakes, epoch 7", columns=3)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 5
    for axes, image in zip(shown, images, strict=True):
        assert np.array_equal(axes.images[0].get_array(), image)  # type: ignore[arg-type]
    under = [axes for axes in figure.axes if not axes.images]
    assert [tuple(text.get_text() for text in axes.texts) for axes in under] == captions
    for picture, words in zip(shown, under, strict=True):
        assert np.isclose(words.get_position().y1, picture.get_position(original=True).y0)
        assert np.isclose(words.get_position().x0, picture.get_position(original=True).x0)
    assert "5 of 9 mistakes, epoch 7" in texts(figure)
    draw(figure)
    assert within(figure)


def test_hostile_captions_change_nothing_about_the_layout() -> None:
    images = pictures(len(HOSTILE))
    plain = evaluation_figures.mistakes_sheet(images, [("a", "b")] * len(HOSTILE), "title")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = evaluation_figures.mistakes_sheet(images, [(text, text) for text in HOSTILE], "title")
    draw(figure)
    assert within(figure)
    assert np.array_equal(figure.get_size_inches(), plain.get_size_inches())
    for one, other in zip(figure.axes, plain.axes, strict=True):
        assert np.array_equal(one.get_position(original=True).bounds, other.get_position(original=True).bounds)
    for axes in figure.axes:
        inside = axes.get_window_extent()
        for text in axes.texts:
            assert text.get_text().isprintable()
            assert text.get_clip_on()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing")
                box = text.get_window_extent()
            assert box.width <= inside.width + 1


@settings(max_examples=10)
@given(st.text(st.characters(codec=None), max_size=60))
def test_any_caption_can_be_drawn(text: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        draw(evaluation_figures.mistakes_sheet(pictures(1), [(text,)], text))


def test_sheet_without_pictures_says_so() -> None:
    figure = evaluation_figures.mistakes_sheet([], [], "0 mistakes among 90 images, epoch 7")
    assert "There is no such image." in texts(figure)
    draw(figure)
    assert within(figure)


@pytest.mark.parametrize(
    ("images", "captions", "columns"),
    [
        (pictures(2), [("a",)], 4),
        (pictures(1), ["a text"], 4),
        (pictures(1), [("a",)], 0),
        ([np.zeros((4, 4, 3))], [("a",)], 4),
        ([np.zeros((4, 4), np.uint8)], [("a",)], 4),
        ([np.zeros((0, 4, 3), np.uint8)], [("a",)], 4),
    ],
)
def test_sheet_refuses(images: list[np.ndarray], captions: list[tuple[str, ...]], columns: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        evaluation_figures.mistakes_sheet(images, captions, "", columns)


# --- matrix of generators


def matrix(values: list[list[float]]) -> pd.DataFrame:
    names = [f"1-gan {number}" for number in range(12)]
    return pd.DataFrame(
        values,
        index=pd.Index(names[: len(values)], name="trained on"),
        columns=pd.Index(names[: len(values[0])], name="tested on"),
    )


def test_matrix_shows_every_value_and_its_name() -> None:
    frame = matrix([[0.991, 0.5, 0.123], [0.25, np.nan, 1.0]])
    figure = evaluation_figures.matrix_figure(frame, "AUROC: 300 images, epoch 7", "AUROC")
    axes = figure.axes[0]
    image = axes.images[0]
    assert image.get_clim() == (0, 1)
    assert np.array_equal(np.ma.filled(image.get_array(), np.nan), frame.to_numpy(), equal_nan=True)  # type: ignore[arg-type]
    cells = {tuple(map(round, text.get_position()))[::-1]: text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "0.99", (0, 1): "0.50", (0, 2): "0.12", (1, 0): "0.25", (1, 2): "1.00"}
    assert [text.get_text() for text in axes.get_xticklabels()] == list(frame.columns)
    assert [text.get_text() for text in axes.get_yticklabels()] == list(frame.index)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("trained on", "tested on")
    assert {"0.5 chance", "AUROC", "AUROC: 300 images, epoch 7"} <= set(texts(figure))
    # Chance is the one shade without colour.
    red, green, blue, _ = image.to_rgba(np.array([0.5]))[0]
    assert max(red, green, blue) - min(red, green, blue) < 0.02


def test_matrix_hatches_what_is_undefined_and_says_so() -> None:
    figure = evaluation_figures.matrix_figure(matrix([[0.5, np.nan], [np.nan, 0.5]]), "", "AUROC")
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert {(patch.get_x(), patch.get_y()) for patch in hatched} == {(0.5, -0.5), (-0.5, 0.5)}  # type: ignore[attr-defined]
    assert any("not measured" in text for text in key(figure))
    whole = evaluation_figures.matrix_figure(matrix([[0.5]]), "", "AUROC")
    assert not key(whole)
    draw(evaluation_figures.matrix_figure(matrix([[np.nan]]), "", "AUROC"))


def test_matrix_of_twelve_long_names_fits() -> None:
    names = [f"{number} {LONG}" for number in range(12)]
    frame = pd.DataFrame(np.full((12, 12), 0.9), index=names, columns=names)
    figure = evaluation_figures.matrix_figure(frame, OF, "AUROC")
    draw(figure)
    assert within(figure)
    axes = figure.axes[0]
    for text in axes.get_xticklabels():
        text.set_visible(False)  # slanted: their boxes overlap, their letters do not
    assert not overlapping(figure)


@pytest.mark.parametrize("frame", [matrix([[1.2]]), matrix([[-0.1]]), pd.DataFrame()])
def test_matrix_refuses(frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="frame: expected at least one cell"):
        evaluation_figures.matrix_figure(frame, "", "AUROC")


# --- robustness


def grid() -> pd.DataFrame:
    rows = [("clean", np.nan, 0.97, 0.95, 0.98, 0.92, 0.93, 0.09)]
    for kind, strengths in (("jpeg", (90, 60, 30)), ("noise", (0.01, 0.1)), ("flip", (1,))):
        for step, strength in enumerate(strengths):
            value = 0.9 - 0.1 * step
            rows.append((kind, strength, value, value - 0.02, value + 0.01, value - 0.05, value - 0.1, 0.1 * step))
    columns = ["kind", "strength", "auroc", "auroc_low", "auroc_high", "accuracy", "tpr", "fpr"]
    return pd.DataFrame(rows, columns=columns)


def drawn_values(axes: Axes) -> list[list[float]]:
    return [np.asarray(each.get_ydata(), float).tolist() for each in axes.get_lines() if each.get_linestyle() == "-"]


def test_robustness_draws_each_kind_apart() -> None:
    frame = grid()
    figure = evaluation_figures.robustness_figure(frame, "Robustness: 300 images, epoch 7")
    above, below = figure.axes[:3], figure.axes[3:]
    assert [axes.get_title() for axes in above] == ["jpeg", "noise", "flip"]
    for top, bottom in zip(above, below, strict=True):
        rows = frame[frame["kind"] == top.get_title()]
        assert drawn_values(top) == [rows["auroc"].tolist()]
        assert drawn_values(bottom) == [rows[name].tolist() for name in ("tpr", "fpr", "accuracy")]
        (whiskers,) = (found for found in top.collections if isinstance(found, LineCollection))
        ends = np.array([segment[:, 1] for segment in whiskers.get_segments()])
        assert np.allclose(ends, rows[["auroc_low", "auroc_high"]])
        dashed = [
            float(np.asarray(each.get_ydata())[0])
            for axes in (top, bottom)
            for each in axes.get_lines()
            if each.get_linestyle() == "--"
        ]
        assert dashed == [0.97, 0.93, 0.09, 0.92]
        assert [text.get_text() for text in bottom.get_xticklabels()] == [f"{each:g}" for each in rows["strength"]]
    colours = {str(each.get_label()): each for legend in figure.legends for each in legend.get_lines()}
    assert colours["TPR: fakes called fake"].get_color() == FAKE
    assert colours["FPR: reals called fake"].get_color() == REAL
    draw(figure)
    assert within(figure)


def test_robustness_keeps_low_figures_in_the_picture() -> None:
    frame = grid()
    frame.loc[3, ["auroc", "auroc_low"]] = [0.2, 0.1]
    figure = evaluation_figures.robustness_figure(frame, "")
    assert figure.axes[0].get_ylim()[0] < 0.1


def test_robustness_without_reals_says_undefined() -> None:
    frame = grid()
    frame[["auroc", "auroc_low", "auroc_high", "fpr"]] = np.nan
    figure = evaluation_figures.robustness_figure(frame, "")
    draw(figure)
    assert texts(figure).count("AUROC undefined") == 3
    assert texts(figure).count("FPR undefined") == 3


def test_robustness_of_the_whole_grid_fits() -> None:
    kinds = ["jpeg", "blur", "resize", "noise", "rotation", "flip", "crop", LONG]
    rows = grid().iloc[[1] * 8].assign(strength=[100, 90, 80, 70, 60, 50, 40, 30])
    frame = pd.concat([grid().iloc[:1], *(rows.assign(kind=kind) for kind in kinds)])
    figure = evaluation_figures.robustness_figure(frame, f"{LONG}, {OF}")
    draw(figure)
    assert within(figure)
    assert not overlapping(figure)


@pytest.mark.parametrize("rows", [slice(1, None), slice(0, 1), [0, 0, 1]])
def test_robustness_refuses(rows: slice | list[int]) -> None:
    with pytest.raises(ValueError, match="one row of kind clean"):
        evaluation_figures.robustness_figure(grid().iloc[rows], "")


# --- names from strangers


def test_hostile_names_can_be_drawn_everywhere() -> None:
    curves = {text: scored(5, 5) for text in HOSTILE[1:]}
    points = dict.fromkeys(HOSTILE[1:7], (0.1, 0.9))
    in_tables = [text for text in HOSTILE if "\udcff" not in text]  # which pandas refuses
    data = table(*((text, 5, 5) for text in in_tables[1:7:2]))
    square = pd.DataFrame(np.full((11, 1), 0.5), index=in_tables, columns=in_tables[2:3])
    bad = "".join(HOSTILE[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a layout that finds no room
        warnings.filterwarnings("ignore", "Glyph .* missing")
        for name in CURVES:
            draw(getattr(evaluation_figures, name)(curves, bad, points))
        draw(evaluation_figures.reliability_figure(*scored(), scored()[1], bad))
        draw(evaluation_figures.score_histograms(data, bad, dict.fromkeys(HOSTILE[1:7], 0.5)))
        draw(evaluation_figures.matrix_figure(square, bad, bad))
        draw(evaluation_figures.robustness_figure(grid().replace("jpeg", "".join(in_tables[1:])), bad))


def test_hidden_looking_names_stand_in_the_key() -> None:
    """Matplotlib leaves labels that begin with an underscore out of a key."""
    figure = evaluation_figures.roc_figure({"_hidden": scored()}, OF, {"_threshold": (0.1, 0.9)})
    assert any(re.search(r"\d  _hidden", text) for text in key(figure))
    assert any(text.startswith("_threshold") for text in key(figure))
