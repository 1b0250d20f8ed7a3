"""What a run knows of its training images: kept, believed only where it is ours, and far as validation says."""

import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from deepfake import reference, runs
from deepfake.analysis.spectra import FLOOR, gray
from deepfake.checkpoints import write_checkpoint
from deepfake.config import conf_dir, parse_train
from deepfake.data.catalog import read_catalogue
from deepfake.data.images import read_image, resize
from deepfake.judging import Detector
from deepfake.models.weights import read_checkpoint
from deepfake.reference import FILE, NoReference, Reference, features, reference_of
from deepfake.train import run as train
from tests.test_predict import TINY


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Soft blobs on soft ground, of two sources: what is hard or loud is unlike them."""
    root = tmp_path_factory.mktemp("blobs")
    random = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    for source, tint in (("0-camera", (1.0, 0.8, 0.6)), ("1-gan", (0.6, 0.8, 1.0))):
        (root / source).mkdir()
        for number in range(40):
            at, wide = random.uniform(-0.2, 0.2, 2), random.uniform(0.3, 0.5)
            blob = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / wide**2)
            pixels = 60 + 150 * blob[..., None] * np.array(tint) + random.normal(0, 2, (48, 48, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / source / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = [*TINY, f"data.root={root}", f"output_dir={tmp_path_factory.mktemp('outputs')}"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse_train(compose("train", overrides=given))
    train(cfg)
    return runs.run_folder(cfg)


@pytest.fixture(scope="module")
def detector(trained: Path) -> Detector:
    return Detector.load(trained, "eager")


@pytest.fixture(scope="module")
def made(trained: Path, detector: Detector) -> Reference:
    return reference_of(trained, detector, 200, "eager", show=False)


@pytest.fixture
def run(trained: Path, made: Reference, tmp_path: Path) -> Path:
    """A copy, with the file that was kept."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def makings(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """How often a reference is made."""
    made: list[None] = []
    make = reference._made
    monkeypatch.setattr(reference, "_made", lambda *given: made.append(None) or make(*given))
    return made


def part(run: Path, root: Path, name: str) -> list[np.ndarray]:
    table = read_catalogue(run / "manifest.parquet")
    return [read_image(root / path)[0] for path in table.loc[table["split"] == name, "path"]]


# ------------------------------------------------------------------------------------------------------- what it says


def test_the_distance_is_that_to_the_tenth_nearest_training_image(
    made: Reference, detector: Detector, trained: Path, root: Path
) -> None:
    training = np.stack([features(detector.members, pixels) for pixels in part(trained, root, "train")])
    asked = np.stack([features(detector.members, pixels) for pixels in part(trained, root, "test")])
    nearest, _ = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(training).kneighbors(asked)
    assert [made.distance(row) for row in asked] == pytest.approx(nearest[:, -1], abs=1e-5)


def test_with_fewer_training_images_it_is_that_to_the_farthest(made: Reference) -> None:
    few = replace(made, features=np.eye(3, dtype=np.float32))
    assert few.distance(np.array([0.6, 0.8, 0.0], np.float32)) == pytest.approx(1.0)


def test_far_is_what_one_in_a_hundred_validation_images_exceeds(made: Reference) -> None:
    many = replace(made, validation=np.arange(1000) / 1000)
    assert many.far == 0.99
    assert (many.validation > many.far).sum() == 9
    assert many.nearer(0.5) == 0.5
    few = replace(made, validation=np.array([0.1, 0.3]))
    assert few.far == 0.3


def test_images_like_the_training_ones_pass_and_others_are_far(
    made: Reference, detector: Detector, trained: Path, root: Path
) -> None:
    def far(pixels: np.ndarray) -> bool:
        return made.distance(features(detector.members, pixels)) > made.far

    random = np.random.default_rng(1)
    text = np.full((48, 48, 3), 255, np.uint8)
    text[::4, ::2] = 0
    assert sum(map(far, part(trained, root, "test"))) <= 1
    assert far(random.integers(0, 256, (48, 48, 3), dtype=np.uint8))
    assert far(text)


def test_the_spectra_are_means_of_power_of_what_the_network_is_shown(
    made: Reference, detector: Detector, trained: Path, root: Path
) -> None:
    table = read_catalogue(trained / "manifest.parquet")
    rows = table[(table["split"] == "train") & (table["source"] == "1-gan")]
    spec = detector.members[0].module.backbone.input_spec
    powers = []
    for path in rows["path"]:
        shown = gray(resize(read_image(root / path)[0], spec.size, spec.interpolation))
        power = np.abs(np.fft.fftshift(np.fft.fft2(shown - shown.mean()))) ** 2 / spec.size**4
        v, u = np.indices(power.shape) - spec.size // 2
        radius = np.rint(np.hypot(v, u))
        powers.append([power[radius == k].mean() for k in range(spec.size // 2 + 1)])
    assert made.sources.tolist() == ["0-camera", "1-gan"]
    assert made.labels.tolist() == [0, 1]
    assert made.counts[1] == len(rows)
    assert made.profiles[1] == pytest.approx(10 * np.log10(np.mean(powers, axis=0) + FLOOR), abs=1e-6)


def test_members_of_an_ensemble_count_alike(detector: Detector) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    (member,) = detector.members
    twice, once = features([member, member], pixels), features([member], pixels)
    assert np.linalg.norm(twice) == pytest.approx(1)
    assert twice == pytest.approx(np.tile(once, 2) / np.sqrt(2))


# ------------------------------------------------------------------------------------------------------ what is kept


def test_what_was_kept_is_taken_though_the_images_are_gone(
    run: Path, detector: Detector, made: Reference, makings: list[None]
) -> None:
    away(run, run / "absent")
    found = reference_of(run, detector, 200, "eager", show=False)
    assert makings == []
    for name, array in asdict(made).items():
        np.testing.assert_array_equal(getattr(found, name), array)


def away(run: Path, root: Path) -> None:
    """Where the run says that its images are."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["root"] = str(root)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


@pytest.mark.parametrize("change", ["images", "weights"])
def test_another_number_of_images_or_other_weights_are_looked_at_anew(
    run: Path, makings: list[None], change: str
) -> None:
    if change == "weights":
        held = read_checkpoint(run / runs.BEST)
        held["state_dict"] = {name: tensor + 0 for name, tensor in held["state_dict"].items()}
        held["deepfake"]["more"] = "otherwise"
        write_checkpoint(run / runs.BEST, held)
    reference_of(run, Detector.load(run, "eager"), 5 if change == "images" else 200, "eager", show=False)
    assert len(makings) == 1


def test_other_members_of_an_ensemble_or_another_order_are_another_identity(tmp_path: Path) -> None:
    (tmp_path / "members").mkdir()
    found = set()
    for content in ('["a", "b"]', '["b", "a"]', '["a"]'):
        (tmp_path / runs.ENSEMBLE).write_text(content)
        found.add(reference._identity(tmp_path, 200))
    assert len(found) == 3


class Trap:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return exec, ("raise AssertionError('a file was executed')",)


def hostile(file: Path, kind: str) -> None:
    with np.load(file) as arrays:
        held = dict(arrays)
    match kind:
        case "pickled":
            held["features"] = np.array([Trap()], dtype=object)
        case "not finite":
            held["features"] = held["features"] * np.nan
        case "other widths":
            held["features"] = held["features"][:, 1:]
        case "other sizes":
            held["profiles"] = held["profiles"][:, 1:]
        case "rows missing":
            held["profiles"] = held["profiles"][1:]
        case "in disorder":
            held["validation"] = held["validation"][::-1]
        case "no images":
            held["features"] = held["features"][:0]
        case "labels":
            held["labels"] = held["labels"] + 7
        case "names":
            held["sources"] = np.arange(2)
        case "incomplete":
            del held["counts"]
    if kind == "packed":
        np.savez_compressed(file, **held)
    elif kind == "a pickle":
        file.write_bytes(pickle.dumps(Trap()))
    elif kind == "cut short":
        file.write_bytes(file.read_bytes()[:-200])
    elif kind == "encrypted":
        content = bytearray(file.read_bytes())
        for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            content[content.index(signature) + flags] |= 1
        file.write_bytes(content)
    elif kind == "odd header":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("identity.npy", b"\x93NUMPY\x01\x00\x03\x00(((")
    elif kind == "a folder":
        file.unlink()
        file.mkdir()
    else:
        np.savez(file, **held)


@pytest.mark.parametrize(
    "kind",
    ["pickled", "not finite", "other widths", "other sizes", "rows missing", "in disorder", "no images", "labels",
     "names", "incomplete", "packed", "a pickle", "cut short", "encrypted", "odd header", "a folder"],
)  # fmt: skip
def test_a_file_that_is_not_ours_is_not_believed(run: Path, detector: Detector, kind: str) -> None:
    hostile(run / FILE, kind)
    away(run, run / "absent")  # so that none can be made
    with pytest.raises(NoReference, match=r"^the folder of its training images is not here$"):
        reference_of(run, detector, 200, "eager", show=False)


def test_a_link_in_its_place_is_not_followed(run: Path, detector: Detector, tmp_path: Path) -> None:
    (run / FILE).unlink()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (run / FILE).symlink_to(victim)
    reference_of(run, detector, 3, "eager", show=False)
    assert victim.read_text() == "mine"
    assert not (run / FILE).is_symlink()


def test_where_it_cannot_be_kept_it_is_used_all_the_same(
    run: Path, detector: Detector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reference, "write_bytes", full)
    assert reference_of(run, detector, 3, "eager", show=False).counts.tolist() == [3, 3]
    assert "not kept (No space left on device)" in caplog.text


def test_images_that_have_changed_are_no_reference(run: Path, detector: Detector, root: Path, tmp_path: Path) -> None:
    (run / FILE).unlink()
    changed = shutil.copytree(root, tmp_path / "changed")
    files = sorted(changed.rglob("*.png"))
    for file in files[:60]:
        file.write_bytes(files[-1].read_bytes())
    away(run, changed)
    with pytest.raises(NoReference, match=r"^of \d+ of its images only \d+ are still where and as they were$"):
        reference_of(run, detector, 200, "eager", show=False)


@pytest.mark.parametrize("absent", ["config.yaml", "manifest.parquet"])
def test_a_folder_that_does_not_say_what_it_was_trained_on_gives_none(
    run: Path, detector: Detector, absent: str
) -> None:
    (run / FILE).unlink()
    (run / absent).unlink()
    with pytest.raises(NoReference, match="does not say which its training images were"):
        reference_of(run, detector, 200, "eager", show=False)
