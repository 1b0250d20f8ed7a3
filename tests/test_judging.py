"""One way from a file, an image or an array to a probability: a row for each, in order, in constant memory."""

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepfake.data.datamodule import normalise
from deepfake.data.images import UnreadableImage, read_image
from deepfake.data.prepared import Preparation
from deepfake.errors import UserError
from deepfake.evaluation.calibration import Calibration, calibrate
from deepfake.judging import Detector, Judged, Member, combination, pixels_of
from deepfake.models.backbones import build_backbone
from deepfake.models.detector import DetectorModule
from tests.data.hostile import cut, encoded, make_hostile, white_png

SIZE = 32


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    return calibrate(labels, random.normal(4 * labels - 1, 2))


@pytest.fixture(scope="module")
def member(calibration: Calibration) -> Member:
    torch.manual_seed(0)
    module = DetectorModule(build_backbone("test_resnet", "none", SIZE)).eval()
    return Member(module, Preparation(), calibration, {})


def detector(member: Member, tta: str = "none") -> Detector:
    return Detector([member], lambda margins: margins[0], member.calibration, tta)


@pytest.fixture(scope="module")
def one(member: Member) -> Detector:
    return detector(member)


def noise(seed: int, shape: tuple[int, ...] = (40, 48, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# ------------------------------------------------------------------------------------------------ what is taken


def test_a_path_an_image_and_an_array_of_one_picture_have_one_probability(one: Detector, faces: Path) -> None:
    file = faces / "1-gan" / "01.png"
    image = Image.open(file)
    found = one.predict([file, str(file), image, np.asarray(image.convert("RGB"))], batch_size=2)
    assert found["status"].tolist() == ["ok"] * 4
    assert np.ptp(found["probability"]) < 1e-6
    assert list(found.columns) == ["path", "status", "reason", "probability", "verdict", "uncertain"]
    assert found["path"].tolist() == [str(file), str(file), "", ""]


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    "content",
    [
        encoded(noise(1), "JPEG", exif=rotated()),
        encoded(noise(2, (40, 48, 4)), "PNG"),
        encoded(Image.fromarray(noise(3)).quantize(16), "PNG", transparency=0),
        encoded(noise(4)[:, :, 0].astype(np.uint16) * 257, "PNG"),
        encoded(Image.fromarray(noise(5)).convert("CMYK"), "JPEG"),
        encoded(noise(6)[:, :, 0], "PNG"),
    ],
    ids=["rotated by EXIF", "alpha", "palette with a hole", "16 bits", "CMYK", "grey"],
)
def test_an_image_is_seen_as_its_file_is(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    expected = read_image(tmp_path / "a.png")[0]
    np.testing.assert_array_equal(pixels_of(Image.open(io.BytesIO(content))), expected)
    np.testing.assert_array_equal(pixels_of(str(tmp_path / "a.png")), expected)


def test_exif_rotation_is_applied() -> None:
    image = Image.open(io.BytesIO(encoded(noise(1), "PNG", exif=rotated())))
    np.testing.assert_array_equal(pixels_of(image), np.rot90(noise(1), -1))


def test_a_grey_array_is_three_equal_colours() -> None:
    grey = noise(0)[:, :, 0]
    np.testing.assert_array_equal(pixels_of(grey), np.dstack([grey] * 3))


@pytest.mark.parametrize(
    ("source", "status", "reason"),
    [
        (noise(0).astype(np.float32), "unreadable", "found float32 of"),
        (noise(0, (40, 48, 4)), "unreadable", r"\(40, 48, 4\)"),
        (noise(0, (0, 48, 3)), "unreadable", r"\(0, 48, 3\)"),
        (noise(0, (5,)), "unreadable", r"\(5,\)"),
        (None, "unreadable", "found NoneType"),
        (7, "unreadable", "found int"),
        (Path("nowhere.png"), "unreadable", "No such file"),
        (Image.open(io.BytesIO(cut(encoded(noise(0), "PNG")))), "unreadable", "damaged: "),
        (Image.open(io.BytesIO(white_png(9_000, 8_000))), "too large", "more than 64 megapixels"),
        (Image.new("F", (40, 40)), "unreadable", "floating-point"),
    ],
)
def test_what_cannot_be_judged_has_a_row_with_a_reason(one: Detector, source: Any, status: str, reason: str) -> None:
    found = one.predict([noise(0), source, noise(1)])
    assert found["status"].tolist() == ["ok", status, "ok"]
    assert found["reason"].str.contains(reason).tolist() == [False, True, False]
    assert found["probability"].isna().tolist() == [False, True, False]
    assert found["verdict"].tolist()[1] == ""
    assert not found["uncertain"][1]


@pytest.mark.parametrize("mode", ["resize", "crop"])
def test_every_hostile_file_has_a_row(member: Member, mode: Any, tmp_path: Path) -> None:
    expected = make_hostile(tmp_path)
    files = [tmp_path / name for name in expected]
    shown = Member(member.module, Preparation(mode), member.calibration, {})
    found = detector(shown).predict([*files, noise(0, (1, 1, 3)), noise(0, (1, 3000, 3))], batch_size=4)
    failed = [status == "unreadable" for status in expected.values()]
    assert (found["status"] != "ok").tolist() == [*failed, False, False]
    assert (found["reason"] != "").tolist() == [*failed, False, False]
    large = [name for name, status in zip(expected, found["status"], strict=False) if status == "too large"]
    assert large == ["120_megapixels.png", "400_megapixels.png"]


@pytest.mark.parametrize("margin", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_no_number_is_a_row_that_says_so(
    margin: float, member: Member, calibration: Calibration
) -> None:
    odd = Detector(
        [member], lambda margins: np.where(np.arange(margins.shape[1]) == 1, margin, 0.5), calibration, "none"
    )
    found = odd.predict([noise(1), noise(2), noise(3)])
    assert found["status"].tolist() == ["ok", "no number", "ok"]
    assert str(margin) in found["reason"].iloc[1]
    assert found["probability"].isna().tolist() == [False, True, False]


def test_what_is_no_picture_fault_is_raised(one: Detector) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield noise(0)
        raise UserError("the list ends here")

    with pytest.raises(UserError, match="the list ends here"):
        one.predict(broken())


# ------------------------------------------------------------------------------------------------- how it is judged


def test_pixels_are_normalised_to_the_bit_as_in_training(member: Member) -> None:
    pixels = noise(7, (SIZE, SIZE, 3))
    (found,) = member.prepared(pixels, "none")
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    np.testing.assert_array_equal(found, normalise(batch, member.module.backbone.input_spec)[0].numpy())
    spec = member.module.backbone.input_spec
    np.testing.assert_allclose(found.transpose(1, 2, 0), (pixels / 255 - spec.mean) / spec.std, atol=1e-6)


def test_margins_are_the_networks_own(one: Detector, member: Member) -> None:
    pixels = noise(8, (SIZE, SIZE, 3))
    spec = member.module.backbone.input_spec
    image = torch.from_numpy(((pixels / 255 - spec.mean) / spec.std).astype(np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad():
        real, fake = member.module.backbone.network(image)[0].tolist()
    (judged,) = one.judge([pixels])
    assert judged.margin == pytest.approx(fake - real, abs=1e-5)
    p = 1 / (1 + np.exp(-(fake - real) / member.calibration.temperature))
    assert one.predict([pixels])["probability"][0] == pytest.approx(p, abs=1e-5)


def test_flip_is_the_mean_with_the_mirrored_image(member: Member, one: Detector) -> None:
    pixels = noise(9, (SIZE, SIZE, 3))
    apart = [judged.margin for judged in one.judge([pixels, pixels[:, ::-1]])]
    (together,) = detector(member, "flip").judge([pixels])
    assert apart[0] != apart[1]
    assert together.margin == pytest.approx(np.mean(apart), abs=1e-5)


def test_crops_are_the_whole_and_five_parts(member: Member) -> None:
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[:2] = 255  # rows that only the whole and the two upper crops hold
    whole, *parts = member.prepared(pixels, "crops")
    np.testing.assert_array_equal(whole, member.prepared(pixels, "none")[0])
    assert [bool(part.max() > 0) for part in parts] == [True, True, False, False, False]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_come_in_the_order_of_the_sources(one: Detector, batch_size: int) -> None:
    sources: list[Any] = [noise(n) if n % 4 else None for n in range(25)]
    alone = [next(one.judge([source])).margin for source in sources]
    found = [judged.margin for judged in one.judge(sources, batch_size=batch_size)]
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_batches_are_full_whatever_cannot_be_judged(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    margins = member.margins
    monkeypatch.setattr(member, "margins", lambda images: sizes.append(len(images)) or margins(images))
    sources = [None, None, noise(0), None, *map(noise, range(7)), None]
    assert len(list(detector(member).judge(sources, batch_size=4))) == len(sources)
    assert sizes == [4, 4]


def test_nothing_but_what_cannot_be_judged_comes_to_an_end(one: Detector) -> None:
    found = list(one.judge(itertools.repeat(None, 200), batch_size=2))
    assert [judged.status for judged in found] == ["unreadable"] * 200


def test_a_list_without_end_is_read_only_as_far_as_needed(one: Detector) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield noise(number % 3)

    answers = one.judge(endless(), batch_size=4)
    for _ in range(40):
        next(answers)
    answers.close()
    assert 40 <= taken <= 40 + 8 * 4


def test_an_own_reader_gives_the_pixels(one: Detector) -> None:
    def read(seed: int) -> np.ndarray:
        if seed == 1:
            raise UnreadableImage("not this one")
        return noise(seed)

    found = list(one.judge([0, 1, 2], read))
    assert found[1] == Judged(pytest.approx(np.nan, nan_ok=True), "unreadable", "not this one")
    assert [found[0].margin, found[2].margin] == pytest.approx(
        [judged.margin for judged in one.judge([noise(0), noise(2)])], abs=1e-5
    )


def test_verdicts_are_at_the_threshold_asked_for(one: Detector) -> None:
    images = [noise(n, (8, 8, 3)) for n in range(30)]
    for name, threshold in one.calibration.thresholds.items():
        table = one.predict(images, name)
        assert ((table["verdict"] == "fake") == (table["probability"] > threshold.value)).all()


# ------------------------------------------------------------------------------------------------------- ensembles


def with_temperature(calibration: Calibration, temperature: float) -> Calibration:
    return Calibration.from_dict({**calibration.as_dict(), "temperature": temperature})


@pytest.mark.parametrize(
    ("how", "weights", "expected"),
    [
        ("mean", [], lambda p: p.mean(axis=0)),
        ("logit_mean", [], lambda p: 1 / (1 + np.exp(-np.log(p / (1 - p)).mean(axis=0)))),
        ("stacked", [0.3, 2.0, -0.5], lambda p: 1 / (1 + np.exp(-(0.3 + [2, -0.5] @ np.log(p / (1 - p)))))),
    ],
)
def test_a_combination_is_of_calibrated_figures(
    calibration: Calibration, how: str, weights: list[float], expected: Any
) -> None:
    margins = np.random.default_rng(0).normal(0, 3, (2, 20))
    temperatures = [0.5, 4.0]
    combine = combination(how, [with_temperature(calibration, t) for t in temperatures], weights)
    p = 1 / (1 + np.exp(-margins / np.array(temperatures)[:, None]))
    np.testing.assert_allclose(1 / (1 + np.exp(-combine(margins))), expected(p), atol=1e-12)


@pytest.mark.parametrize(("how", "weights"), [("vote", []), ("mean", [1.0]), ("stacked", [1.0])])
def test_another_combination_is_refused(calibration: Calibration, how: str, weights: list[float]) -> None:
    with pytest.raises(ValueError, match="expected one of mean, logit_mean, stacked with its weights"):
        combination(how, [calibration], weights)


# --------------------------------------------------------------------------------------------------------- refusals


def test_no_checkpoint_is_read_where_it_could_run_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UserError, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set"):
        Member.load(tmp_path / "best.ckpt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tta": "mirror"}, "tta=mirror: expected one of none, flip, crops"),
        ({"device": "tpu"}, "device=tpu: expected"),
    ],
)
def test_options_are_checked(options: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"status": "complete"}')
    with pytest.raises(UserError, match=message):
        Detector.load(tmp_path, **options)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"status": "running"}')
    with pytest.raises(UserError, match="expected the folder of a complete run"):
        Detector.load(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card")
def test_a_graphics_card_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"status": "complete"}')
    with pytest.raises(UserError, match="expected a graphics card that PyTorch can use, found none"):
        Detector.load(tmp_path, device="cuda")
