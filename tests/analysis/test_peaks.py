"""What stands out: the built-in generators' traces at their exact frequencies, and nothing in what is real."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest

from deepfake.analysis.peaks import Peak, Relief, Replica, find_peaks, find_replicas, height_at, relief, told
from deepfake.analysis.spectra import MeanSpectrum, SpectrumMoments, centre_square, gray, power_spectrum
from deepfake.data.images import read_image
from deepfake.data.synthetic import SOURCES, TRACES, make_face

SIZE, PICTURES = 128, 40
CAMERAS = [source for source in SOURCES if source.startswith("0-")]
GENERATORS = [source for source in SOURCES if source.startswith("1-")]


def mean(images: Iterable[np.ndarray]) -> MeanSpectrum:
    """Of gray images in [0, 1]."""
    moments = SpectrumMoments()
    for image in images:
        moments.add(power_spectrum(image))
    return moments.result()


@pytest.fixture(scope="module")
def pictures() -> dict[str, list[np.ndarray]]:
    return {source: [make_face(source, number, SIZE, 0) for number in range(PICTURES)] for source in SOURCES}


@pytest.fixture(scope="module")
def spectra(pictures: dict[str, list[np.ndarray]]) -> dict[str, MeanSpectrum]:
    return {source: mean(gray(image) for image in images) for source, images in pictures.items()}


@pytest.fixture(scope="module")
def reliefs(spectra: dict[str, MeanSpectrum]) -> dict[str, Relief]:
    return {source: relief(spectrum) for source, spectrum in spectra.items()}


def found_in(source: str, reliefs: dict[str, Relief]) -> list[Peak]:
    return find_peaks(reliefs[source], [reliefs[camera] for camera in CAMERAS])


@pytest.mark.parametrize("source", GENERATORS)
def test_a_generators_peaks_are_found_at_their_frequencies_and_nowhere_else(
    source: str, reliefs: dict[str, Relief]
) -> None:
    found = [(peak.down, peak.across) for peak in found_in(source, reliefs)]
    assert sorted(found) == sorted(TRACES.get(source, ()))


@pytest.mark.parametrize("source", GENERATORS)
def test_copies_are_found_where_pixels_are_repeated_and_nowhere_else(
    source: str, spectra: dict[str, MeanSpectrum]
) -> None:
    found = find_replicas(spectra[source], [spectra[camera] for camera in CAMERAS])
    expected = {(0.0, 0.5), (0.5, 0.0)} if source == "1-Nearest" else set()
    assert {(replica.down, replica.across) for replica in found} == expected
    assert {replica.period for replica in found} <= {2}


@pytest.mark.parametrize("source", CAMERAS)
def test_one_camera_held_against_the_other_is_no_generator(
    source: str, spectra: dict[str, MeanSpectrum], reliefs: dict[str, Relief]
) -> None:
    """Though the one's mosaic leaves 10 dB more at (1/2, 1/2)."""
    (other,) = set(CAMERAS) - {source}
    assert find_peaks(reliefs[source], [reliefs[other]]) == []
    assert find_replicas(spectra[source], [spectra[other]]) == []


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("few", [3, 8, 20])
def test_few_real_images_give_no_false_alarm(camera: str, few: int, pictures: dict[str, list[np.ndarray]]) -> None:
    """Means of few images are rough."""
    parts = [mean(map(gray, pictures[camera][start : start + few])) for start in (0, 20)]
    assert find_peaks(*_against(parts[0], parts[1])) == []
    assert find_replicas(parts[0], [parts[1]]) == []


@pytest.mark.real
def test_no_source_of_real_faces_stands_out_of_the_others(assets: Path) -> None:
    folders = sorted((assets / "faces").glob("0-*"))
    spectra = [
        mean(gray(centre_square(read_image(file)[0], 200)) for file in sorted(folder.iterdir())[:60])
        for folder in folders
    ]
    reliefs = [relief(spectrum) for spectrum in spectra]
    assert len(folders) > 1
    for number in range(len(folders)):
        assert find_peaks(reliefs[number], reliefs[:number] + reliefs[number + 1 :]) == []
        assert find_replicas(spectra[number], spectra[:number] + spectra[number + 1 :]) == []


@pytest.mark.parametrize("images", [1, 2, 5, 30])
@pytest.mark.parametrize("size", [32, 65, 128])
def test_noise_has_no_peaks(images: int, size: int) -> None:
    random = np.random.default_rng(images * size)
    ours, theirs = (mean(random.random((images, size, size))) for _ in range(2))
    assert find_peaks(*_against(ours, theirs)) == []


def test_one_odd_picture_is_no_trace_of_its_source(pictures: dict[str, list[np.ndarray]]) -> None:
    """A striped shirt in one image of forty stands out of the mean power, not of the mean of the decibels."""
    images = [gray(image) for image in pictures["0-CameraA"]]
    stripes = 0.3 * np.cos(2 * np.pi * 40 * np.arange(SIZE) / SIZE)
    real = mean(images)
    odd = relief(mean([*images[:-1], np.clip(images[-1] + stripes, 0, 1)]))
    assert odd.height[SIZE // 2, SIZE // 2 + 40] > 20
    assert find_peaks(odd, [relief(real)]) == []


def test_what_most_images_have_is_a_trace_at_its_frequency_with_an_interval(
    pictures: dict[str, list[np.ndarray]],
) -> None:
    images = [gray(image) for image in pictures["0-CameraA"]]
    wave = 0.003 * np.cos(2 * np.pi * (40 * np.arange(SIZE) - 21 * np.arange(SIZE)[:, None]) / SIZE)
    (peak,) = find_peaks(*_against(mean([image + wave for image in images]), mean(images)))
    assert (peak.down * SIZE, peak.across * SIZE) == (21, -40)
    assert peak.low < peak.above < peak.high
    assert peak.period is None
    # The wave's power is .003^2 / 4 at each of its two frequencies; the rest is noise of the images themselves.
    around = mean(images).power[SIZE // 2 + 19 : SIZE // 2 + 24, SIZE // 2 - 42 : SIZE // 2 - 37].mean()
    assert peak.height == pytest.approx(10 * np.log10(1 + 0.003**2 / 4 / around), abs=1.5)


@pytest.mark.parametrize(("decibels", "found"), [(4, 0), (9, 1)])
def test_a_small_difference_is_no_trace_however_sure(decibels: int, found: int) -> None:
    """Real sources differ by as much."""
    images = np.random.default_rng(0).normal(0.5, 0.1, (300, 32, 32))
    power = 0.1**2 / 32**2  # of the noise at each frequency
    amplitude = 2 * np.sqrt(power * (10 ** (decibels / 10) - 1))
    wave = amplitude * np.cos(2 * np.pi * 11 * np.arange(32) / 32)
    suspect, (real,) = _against(mean(images + wave), mean(images))
    assert suspect.noise < 0.5
    assert len(find_peaks(suspect, [real])) == found


def test_a_source_that_is_sharper_in_all_directions_has_no_copies() -> None:
    images = np.random.default_rng(0).normal(0, 0.1, (10, SIZE, SIZE))
    frequencies = np.abs(np.fft.fftfreq(SIZE))
    high = np.where(np.hypot(frequencies[:, None], frequencies) > 0.42, 4, 1)
    sharper = np.fft.ifft2(np.fft.fft2(images) * high).real
    assert find_replicas(mean(sharper), [mean(images)]) == []


def test_a_frequency_between_two_is_one_peak_at_the_nearer() -> None:
    random = np.random.default_rng(0)
    images = random.random((20, SIZE, SIZE)) / 10
    wave = 0.02 * np.cos(2 * np.pi * 40.3 * np.arange(SIZE) / SIZE)
    (peak,) = find_peaks(*_against(mean(images + wave), mean(images)))
    assert (peak.down, peak.across) == (0, 40 / SIZE)


@pytest.mark.parametrize("beside", [0, 1])
def test_what_one_real_source_has_too_is_no_trace(beside: int, pictures: dict[str, list[np.ndarray]]) -> None:
    images = [gray(image) for image in pictures["0-CameraA"]]
    ours, theirs = (0.003 * np.cos(2 * np.pi * k * np.arange(SIZE) / SIZE) for k in (40, 40 + beside))
    plain, same = relief(mean(images)), relief(mean([image + theirs for image in images]))
    suspect = relief(mean([image + ours for image in images]))
    assert len(find_peaks(suspect, [plain])) == 1
    assert find_peaks(suspect, [plain, same]) == []


def test_a_ridge_along_an_axis_is_no_peak() -> None:
    """The cross that edges of images leave, in the suspect alone."""
    random = np.random.default_rng(0)
    images = random.random((20, SIZE, SIZE)) / 10
    ramp = np.linspace(0, 1, SIZE)
    assert find_peaks(*_against(mean(images + ramp), mean(images))) == []


def test_a_checkerboard_alone_is_a_cameras_mosaic(pictures: dict[str, list[np.ndarray]]) -> None:
    images = [gray(image) for image in pictures["0-CameraA"]]
    rows, columns = np.indices((SIZE, SIZE)) % 2
    real, mosaic = mean(images), mean([image + 0.01 * (rows ^ columns) for image in images])
    suspect = relief(mosaic)
    assert height_at(suspect, [relief(real)], 0.5, 0.5) > 8
    assert find_peaks(suspect, [relief(real)]) == []
    upsampled = relief(mean([image + 0.01 * (rows & columns) for image in images]))
    found = {(peak.down, peak.across) for peak in find_peaks(upsampled, [relief(real)])}
    assert found == {(0, 0.5), (0.5, 0), (0.5, 0.5)}


def test_without_real_sources_nothing_can_be_said(
    spectra: dict[str, MeanSpectrum], reliefs: dict[str, Relief]
) -> None:
    assert find_peaks(reliefs["1-Transposed"], []) == []
    assert find_replicas(spectra["1-Nearest"], []) == []


def test_spectra_of_two_sizes_are_refused(reliefs: dict[str, Relief]) -> None:
    small = relief(mean(np.random.default_rng(0).random((2, 32, 32))))
    with pytest.raises(ValueError, match=r"expected spectra of one size, found \[128, 32\]"):
        find_peaks(reliefs["0-CameraA"], [small])


def test_the_height_at_a_peak_is_what_was_found_there(reliefs: dict[str, Relief]) -> None:
    cameras = [reliefs[camera] for camera in CAMERAS]
    for peak in found_in("1-Transposed", reliefs):
        height = height_at(reliefs["1-Transposed"], cameras, peak.down, peak.across)
        assert height == pytest.approx(peak.above)
    assert height_at(reliefs["1-Transposed"], cameras, 0.3, 0.17) < 3


def test_periods_are_named_with_what_leaves_them(reliefs: dict[str, Relief]) -> None:
    first, second = told(found_in("1-Transposed", reliefs), [], jpeg=0)
    assert first.startswith("period 2 px, ")
    assert all(
        place in first for place in ("dB above the real sources at (", "(0, 1/2)", "(1/2, 1/2)", "upsampling by 2")
    )
    assert second.startswith("period 4 px, ")
    assert "(0, 1/4)" in second
    assert second.endswith(": nearest or transposed upsampling by 4")


def test_what_jpeg_makes_of_a_trace_is_not_called_another_upsampling(pictures: dict[str, list[np.ndarray]]) -> None:
    """Pixel shuffle by 2, saved as JPEG: its blocks multiply the pattern, and (1/2, 1/4) is no upsampling by 4."""

    def saved(image: np.ndarray) -> np.ndarray:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 93])
        return gray(cv2.imdecode(data, cv2.IMREAD_COLOR))

    files = {source: mean(map(saved, pictures[source])) for source in (*CAMERAS, "1-PixelShuffle")}
    peaks = find_peaks(relief(files["1-PixelShuffle"]), [relief(files[camera]) for camera in CAMERAS])
    found = {(peak.down, peak.across) for peak in peaks}
    assert found > {(0, 1 / 2), (1 / 2, 0)}
    assert all(8 * down % 1 == 8 * across % 1 == 0 for down, across in found)
    sentences = told(peaks, [], jpeg=1)
    assert [sentence.partition(",")[0] for sentence in sentences] == ["period 2 px", "further peaks"]
    assert "the blocks of JPEG, 8 px wide" in sentences[1]


@pytest.mark.parametrize(
    ("frequency", "period", "jpeg", "expected"),
    [
        (
            (0, 1 / 8),
            8,
            0.5,
            "period 8 px, 12 dB above the real sources at (0, 1/8): the blocks of JPEG (50 % of its",
        ),
        (
            (0, 1 / 8),
            8,
            0.0,
            "period 8 px, 12 dB above the real sources at (0, 1/8): the blocks of JPEG, or upsampling",
        ),
        ((1 / 16, 0), 16, 0.0, "period 16 px, 12 dB above the real sources at (1/16, 0): nearest or transposed"),
        ((1 / 5, 0), 5, 0.0, "period 5 px, 12 dB above the real sources at (1/5, 0): a pattern that repeats"),
        ((0.31, 0.125), None, 0.0, "peaks, 12 dB above the real sources at (0.310, 1/8): a pattern that repeats"),
        ((3 / 8, 1 / 2), 8, 1.0, "peaks, 12 dB above the real sources at (3/8, 1/2): what the blocks of JPEG"),
    ],
)
def test_each_kind_of_peak_has_its_words(
    frequency: tuple[float, float], period: int | None, jpeg: float, expected: str
) -> None:
    (sentence,) = told([Peak(*frequency, 12, 11, 13, 12, period)], [], jpeg)
    assert sentence.startswith(expected)


def test_copies_have_their_words() -> None:
    assert told([], [Replica(0, 0.5, 4.2, 2)], 0) == [
        "copies of the low frequencies beside (0, 1/2), 4 dB above the real sources: nearest upsampling by 2, or "
        "another that smooths as little"
    ]


def test_many_places_are_counted() -> None:
    peaks = [Peak(0.1, 0.01 * number, 10, 9, 11, 10, None) for number in range(10)]
    (sentence,) = told(peaks, [], 0)
    assert " and 3 more: " in sentence


def _against(suspect: MeanSpectrum, real: MeanSpectrum) -> tuple[Relief, list[Relief]]:
    return relief(suspect), [relief(real)]
