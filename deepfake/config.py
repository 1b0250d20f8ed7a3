"""Typed settings: what is allowed, what contradicts what, and where conf/ is. Imports no torch.

The YAML files in conf/ hold every knob with its reason; Hydra composes them; `parse_train` turns the result into
the dataclasses below or refuses it by name, before anything is built.
"""

import difflib
import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deepfake.errors import UserError


def conf_dir() -> str:
    """Absolute path of conf/: inside the package in a wheel, beside the package in a checkout."""
    packaged = Path(__file__).parent / "conf"
    return str(packaged if packaged.is_dir() else Path(__file__).parents[1] / "conf")


@dataclass
class ModelConfig:
    name: str = MISSING
    timm: str = MISSING  # name of the network in timm
    weights: str = "pretrained"  # pretrained | package | none | a file
    input_size: int | None = None  # pixels; None = the network's own
    drop_rate: float = 0.0  # dropout before the classifier, [0, 1)


@dataclass
class SchedulerConfig:
    name: str = "none"


@dataclass
class PlateauConfig(SchedulerConfig):
    name: str = "plateau"
    factor: float = 0.5  # (0, 1)
    patience: int = 2  # epochs


@dataclass
class CosineConfig(SchedulerConfig):
    name: str = "cosine"
    warmup_epochs: int = 1
    final_factor: float = 0.01  # last learning rate as a share of lr, [0, 1]


@dataclass
class CacheConfig:
    enabled: bool = True
    dir: str = "outputs/.cache"
    max_gb: float = 20.0  # of decoded images


@dataclass
class DataConfig:
    name: str = "folder"
    root: str | None = None
    manifest: str | None = None  # CSV or Parquet below root: path, label and, if there, source, group and split
    group: str | None = None  # regular expression on file names
    hold_out: list[str] = field(default_factory=list)  # sources for the test part alone
    limit: int | None = None  # images in all
    fractions: list[float] = field(default_factory=lambda: [0.7, 0.15, 0.15])  # train, validation, test
    split_seed: int = 0
    preprocess: str = "resize"  # resize | crop | face
    face_margin: float = 0.3  # share of the face's side, on each side
    equalise: bool = False
    cache: CacheConfig = field(default_factory=CacheConfig)
    workers: int = 0
    max_megapixels: float = 64.0


@dataclass
class SyntheticConfig(DataConfig):
    name: str = "synthetic"
    images_per_source: int = 100
    size: int = 256  # pixels
    shortcut: str | None = None  # size | jpeg
    seed: int = 0


@dataclass
class AugmentConfig:
    name: str = "study"
    rotation: float = 15.0  # degrees to either side
    translation: float = 0.1  # share of the side, to either side
    flip: float = 0.5  # probability
    brightness: float = 0.2  # factor within 1 +- this
    blur: float = 0.0  # probability; its standard deviation from min to max, in pixels
    blur_min: float = 0.0
    blur_max: float = 3.0
    shrink: float = 0.0  # probability; the factor of the sides from min to max
    shrink_min: float = 0.5
    shrink_max: float = 1.0
    noise: float = 0.0  # probability; its standard deviation from min to max, where black is 0 and white is 1
    noise_min: float = 0.0
    noise_max: float = 0.1
    jpeg: float = 0.0  # probability; quality from min to max
    jpeg_min: int = 30
    jpeg_max: int = 100


@dataclass
class TrainerConfig:
    name: str = "auto"
    accelerator: str = "auto"
    strategy: str = "auto"  # auto | ddp
    devices: int = 1  # processes
    precision: str = "32-true"
    deterministic: bool = True
    max_batches: int | None = None
    progress: bool = True


@dataclass
class TrunkConfig:
    engine: str = "auto"  # auto | eager | compile | onnxruntime | openvino
    precision: str = "auto"  # auto | float32 | bfloat16
    keep: list[int] = field(default_factory=list)  # values of `unfreeze` whose trunk output is stored too
    threads: int | None = None  # of a pass; None: as many as PyTorch takes


@dataclass
class LoggerConfig:
    name: str = "tensorboard"
    tensorboard: bool = True
    image_grid: int = 32  # training images shown once, after augmentation


@dataclass
class TrainConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    unfreeze: Any = 0  # 0, 1, 2, ... or "all"
    seed: int = 0
    epochs: int = 20
    views: Any = "auto"  # augmented views of a training image: "auto", "all" (one an epoch) or 1, 2, ...
    view_seed: int = 0  # which views
    batch_size: int = 32
    accumulate: int = 4  # batches a step
    lr: float = 1e-4
    patience: int | None = 3  # epochs; None = no early stopping
    cache: str = "auto"  # auto | off
    cache_max_gb: float = 20.0
    audit: str = "warn"  # warn | strict | off
    output_dir: str = "outputs"
    name: str | None = None
    force: bool = False
    resume: str = "auto"  # auto | must | never


@dataclass
class AuditConfig:
    data: DataConfig = field(default_factory=DataConfig)
    spectrum: bool = True
    size: int = 224  # pixels
    interpolation: str = "bicubic"  # bicubic | bilinear
    output: str | None = None
    output_dir: str = "outputs"
    progress: bool = True


@dataclass
class SpectraConfig:
    data: DataConfig = field(default_factory=DataConfig)
    square: int | None = None  # pixels
    window: bool = False  # Hann
    size: int = 224  # pixels
    interpolation: str = "bicubic"  # bicubic | bilinear
    pairs: dict[str, str] | None = None  # fake source: its real source
    image: str | None = None
    output: str | None = None
    output_dir: str = "outputs"
    progress: bool = True


@dataclass
class PredictConfig:
    run: str = MISSING
    input: Any = MISSING  # a file, a folder, a CSV, or a list of files
    output: str = "predictions.csv"  # .csv or .jsonl
    threshold: str = "half"  # half | eer | balanced_accuracy | fpr_1 | fpr_5
    tta: str = "none"  # none | flip | crops
    sheet: int = 6  # images in the picture; 0 = no picture
    explain: bool = False  # a heat map for each image
    engine: str = "auto"  # auto | eager | compile | onnxruntime | openvino
    device: str = "auto"  # auto | cpu | cuda
    batch_size: int = 32
    max_megapixels: float = 64.0
    progress: bool = True


@dataclass
class EvaluateConfig:
    data: DataConfig = field(default_factory=DataConfig)
    run: Any = MISSING  # a run folder, or a list of them
    ensemble: str | None = None  # mean | logit_mean | stacked
    tta: str = "none"  # none | flip | crops
    threshold: str = "half"  # half | eer | balanced_accuracy | fpr_1 | fpr_5
    pairs: dict[str, str] | None = None  # fake source: its real source
    baselines: bool = True
    mistakes: int = 12  # pictures
    output: str | None = None
    output_dir: str = "outputs"
    engine: str = "auto"  # auto | eager | compile | onnxruntime | openvino
    batch_size: int = 32
    progress: bool = True


@dataclass
class RobustnessConfig:
    data: DataConfig = field(default_factory=DataConfig)
    run: str = MISSING
    perturbations: list[str] | None = None  # kinds; None = all
    limit: int | None = None  # images
    threshold: str = "half"  # half | eer | balanced_accuracy | fpr_1 | fpr_5
    tta: str = "none"  # none | flip | crops
    output: str | None = None
    output_dir: str = "outputs"
    engine: str = "auto"  # auto | eager | compile | onnxruntime | openvino
    batch_size: int = 32
    progress: bool = True


@dataclass
class ExplainConfig:
    data: DataConfig = field(default_factory=DataConfig)
    run: str = MISSING
    method: str = "auto"  # auto | grad-cam | rollout
    images: int = 100  # whose places are hidden
    shifts: int = 4  # of the map, to random places
    hide: str = "blur"  # blur | mean
    filtered: int = 400  # images
    cutoffs: list[float] = field(default_factory=lambda: [0.01, 0.02, 0.04, 0.08, 0.16, 0.24, 0.32, 0.4])
    probed: int = 2000  # training images
    sheet: int = 8  # pictures
    threshold: str = "half"  # half | eer | balanced_accuracy | fpr_1 | fpr_5
    output: str | None = None
    output_dir: str = "outputs"
    engine: str = "auto"  # auto | eager | compile | onnxruntime | openvino
    batch_size: int = 32
    progress: bool = True


@dataclass
class GeneraliseConfig(TrainConfig):
    protocol: str = "both"  # leave_one_out | train_one | both
    threshold: str = "balanced_accuracy"  # half | eer | balanced_accuracy | fpr_1 | fpr_5
    pairs: dict[str, str] | None = None  # fake source: its real source


@dataclass
class ReportConfig:
    run: Any = MISSING  # a run folder, or a list of them


@dataclass
class RecapConfig:
    runs: Any = "outputs"
    output: str | None = None


@dataclass
class AppConfig:
    run: str = MISSING
    threshold: str = "half"  # half | eer | balanced_accuracy | fpr_1 | fpr_5
    tta: str = "none"  # none | flip | crops
    host: str = "127.0.0.1"
    port: int = 8501  # 0 = any that is free
    open_browser: bool = True
    max_files: int = 20  # at once
    max_megabytes: int = 20  # of a file
    max_megapixels: float = 64.0
    reference_images: int = 200  # training images of a source
    engine: str = "auto"  # auto | eager | compile | onnxruntime | openvino
    device: str = "auto"  # auto | cpu | cuda
    progress: bool = True


# Names to classes, in code: nothing read from a file ever decides what is instantiated.
SCHEDULERS: dict[str, type[SchedulerConfig]] = {
    "none": SchedulerConfig,
    "plateau": PlateauConfig,
    "cosine": CosineConfig,
}
WEIGHTS = ("pretrained", "package", "none")  # anything else is a file
RESUME = ("auto", "must", "never")
STRATEGIES = ("auto", "ddp")
ENGINES = ("auto", "eager", "compile", "onnxruntime", "openvino")
PRECISIONS = ("auto", "float32", "bfloat16")
PREPROCESS = ("resize", "crop", "face")
TTA = ("none", "flip", "crops")
DEVICES = ("auto", "cpu", "cuda")
COMBINE = ("mean", "logit_mean", "stacked")
THRESHOLDS = ("half", "eer", "balanced_accuracy", "fpr_1", "fpr_5")
PERTURBATIONS = ("jpeg", "blur", "resize", "noise", "rotation", "flip", "crop")
METHODS = ("auto", "grad-cam", "rollout")
HIDE = ("blur", "mean")
LARGEST_SPECTRUM = 1024  # pixels of a side: 8 MB a spectrum
PROTOCOLS = ("leave_one_out", "train_one", "both")
DATA: dict[str, type[DataConfig]] = {"synthetic": SyntheticConfig, "folder": DataConfig}


def parse_train(cfg: DictConfig) -> TrainConfig:
    """Composed configuration to typed settings, checked across fields.

    Raises:
        UserError: an unknown, missing, ill-typed or contradictory setting, named.
    """
    typed = _training(TrainConfig, cfg)
    assert isinstance(typed, TrainConfig)  # noqa: S101 - for the type checker
    return typed


def _training(kind: type[TrainConfig], cfg: DictConfig) -> TrainConfig:
    settings = _plain(cfg)
    schema = kind(scheduler=_choose(SCHEDULERS, "scheduler", settings)(), data=_data_schema(settings))
    typed = _typed(schema, settings)
    assert isinstance(typed, kind)  # noqa: S101 - for the type checker
    _check(typed)
    _check_data(typed.data)
    if typed.model.weights not in WEIGHTS:
        typed.model.weights = _absolute(typed.model.weights)
    return typed


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def parse_audit(cfg: DictConfig) -> AuditConfig:
    """Composed configuration of the audit to typed settings; refuses what is unknown or contradictory by name."""
    settings = _plain(cfg)
    typed = _typed(AuditConfig(data=_data_schema(settings)), settings)
    assert isinstance(typed, AuditConfig)  # noqa: S101 - for the type checker
    _check_data(typed.data)
    _expect(typed.size >= 32, f"size={typed.size}", "at least 32 pixels")
    _expect(
        typed.interpolation in ("bicubic", "bilinear"), f"interpolation={typed.interpolation}", "bicubic or bilinear"
    )
    return typed


def parse_spectra(cfg: DictConfig) -> SpectraConfig:
    """Composed configuration of the spectra to typed settings; refuses what is unknown or contradictory by name."""
    settings = _plain(cfg)
    typed = _typed(SpectraConfig(data=_data_schema(settings)), settings)
    assert isinstance(typed, SpectraConfig)  # noqa: S101 - for the type checker
    _check_data(typed.data)
    for name in ("group", "hold_out", "fractions", "split_seed", "workers"):
        given = getattr(typed.data, name)
        _expect(
            given == getattr(DataConfig(), name), f"data.{name}={given}", "to leave it out, for nothing is split here"
        )
    most = f"at most {LARGEST_SPECTRUM:,}, for each source keeps a dozen spectra of that size in memory"
    _expect(
        typed.square is None or 16 <= typed.square <= LARGEST_SPECTRUM,
        f"square={typed.square}",
        f"at least 16 pixels, or null to choose, and {most}",
    )
    _expect(32 <= typed.size <= LARGEST_SPECTRUM, f"size={typed.size}", f"at least 32 pixels, and {most}")
    _expect(
        typed.interpolation in ("bicubic", "bilinear"), f"interpolation={typed.interpolation}", "bicubic or bilinear"
    )
    if typed.image is not None:
        _expect_paths("image", typed.image, "an image")
    return typed


def parse_predict(cfg: DictConfig) -> PredictConfig:
    """Composed configuration of the prediction to typed settings; refuses what is unknown by name."""
    typed = _typed(PredictConfig(), _plain(cfg))
    assert isinstance(typed, PredictConfig)  # noqa: S101 - for the type checker
    _expect(typed.engine in ENGINES, f"engine={typed.engine}", f"one of {', '.join(ENGINES)}")
    _expect_paths("input", typed.input, "an image, a folder, a CSV, or a list [A,B] of images")
    _expect(
        Path(typed.output).suffix in (".csv", ".jsonl"),
        f"output={typed.output}",
        "a file name that ends in .csv, or in .jsonl for JSON Lines",
    )
    given = typed.input if isinstance(typed.input, list) else [typed.input]
    _expect(
        _absolute(typed.output) not in map(_absolute, given),
        f"output={typed.output} with input={typed.input}",
        "another file, for the answers would replace the list of the images",
    )
    _expect(typed.threshold in THRESHOLDS, f"threshold={typed.threshold}", f"one of {', '.join(THRESHOLDS)}")
    _expect(typed.tta in TTA, f"tta={typed.tta}", f"one of {', '.join(TTA)}")
    _expect(typed.device in DEVICES, f"device={typed.device}", f"one of {', '.join(DEVICES)}")
    _expect(typed.sheet >= 0, f"sheet={typed.sheet}", "0 or more images")
    _expect(typed.batch_size >= 1, f"batch_size={typed.batch_size}", "a whole number of at least 1")
    _expect(_finite(typed.max_megapixels), f"max_megapixels={typed.max_megapixels}", "a finite number above 0")
    return typed


def parse_evaluate(cfg: DictConfig) -> EvaluateConfig:
    """Composed configuration of the evaluation to typed settings; refuses what is unknown by name."""
    settings = _plain(cfg)
    typed = _typed(EvaluateConfig(data=_data_schema(settings)), settings)
    assert isinstance(typed, EvaluateConfig)  # noqa: S101 - for the type checker
    _expect_paths("run", typed.run, "the folder of a run, or a list [A,B] of them")
    runs = typed.run if isinstance(typed.run, list) else [typed.run]
    _expect(len(set(runs)) == len(runs), f"run={typed.run}", "each run once")
    _expect(typed.ensemble in (None, *COMBINE), f"ensemble={typed.ensemble}", f"one of {', '.join(COMBINE)}, or null")
    _expect(
        typed.ensemble is None or len(runs) > 1,
        f"ensemble={typed.ensemble} with run={typed.run}",
        "a list run=[A,B] of at least two runs",
    )
    _expect(typed.tta in TTA, f"tta={typed.tta}", f"one of {', '.join(TTA)}")
    _expect(typed.threshold in THRESHOLDS, f"threshold={typed.threshold}", f"one of {', '.join(THRESHOLDS)}")
    _expect(typed.engine in ENGINES, f"engine={typed.engine}", f"one of {', '.join(ENGINES)}")
    _expect(typed.batch_size >= 1, f"batch_size={typed.batch_size}", "a whole number of at least 1")
    _expect(typed.mistakes >= 0, f"mistakes={typed.mistakes}", "0 or more pictures")
    _check_evaluated(typed.data)
    return typed


def parse_robustness(cfg: DictConfig) -> RobustnessConfig:
    """Composed configuration of the robustness test to typed settings; refuses what is unknown by name."""
    settings = _plain(cfg)
    if isinstance(settings.get("perturbations"), str):
        settings["perturbations"] = [settings["perturbations"]]  # one kind needs no brackets
    typed = _typed(RobustnessConfig(data=_data_schema(settings)), settings)
    assert isinstance(typed, RobustnessConfig)  # noqa: S101 - for the type checker
    _expect_paths("run", typed.run, "the folder of a run")
    kinds = typed.perturbations
    _expect(
        kinds is None or (bool(kinds) and set(kinds) <= set(PERTURBATIONS)),
        f"perturbations={kinds}",
        f"some of {', '.join(PERTURBATIONS)}, or null for all",
    )
    _expect(typed.limit is None or typed.limit >= 1, f"limit={typed.limit}", "a number of images, or null for all")
    _expect(typed.threshold in THRESHOLDS, f"threshold={typed.threshold}", f"one of {', '.join(THRESHOLDS)}")
    _expect(typed.tta in TTA, f"tta={typed.tta}", f"one of {', '.join(TTA)}")
    _expect(typed.engine in ENGINES, f"engine={typed.engine}", f"one of {', '.join(ENGINES)}")
    _expect(typed.batch_size >= 1, f"batch_size={typed.batch_size}", "a whole number of at least 1")
    _check_evaluated(typed.data)
    return typed


def parse_explain(cfg: DictConfig) -> ExplainConfig:
    """Composed configuration of the explanation to typed settings; refuses what is unknown by name."""
    settings = _plain(cfg)
    typed = _typed(ExplainConfig(data=_data_schema(settings)), settings)
    assert isinstance(typed, ExplainConfig)  # noqa: S101 - for the type checker
    _expect_paths("run", typed.run, "the folder of a run")
    for name, choices in (("method", METHODS), ("hide", HIDE), ("threshold", THRESHOLDS), ("engine", ENGINES)):
        given = getattr(typed, name)
        _expect(given in choices, f"{name}={given}", f"one of {', '.join(choices)}")
    for name in ("images", "shifts", "filtered", "probed", "batch_size"):
        _expect(getattr(typed, name) >= 1, f"{name}={getattr(typed, name)}", "a whole number of at least 1")
    _expect(typed.sheet >= 0, f"sheet={typed.sheet}", "0 or more pictures")
    cutoffs = typed.cutoffs
    _expect(
        len(cutoffs) >= 2 and sorted(set(cutoffs)) == cutoffs and cutoffs[0] > 0 and cutoffs[-1] <= 0.5,
        f"cutoffs={cutoffs}",
        "at least two frequencies in (0, .5] cycles a pixel, ascending",
    )
    _check_evaluated(typed.data)
    return typed


def parse_generalise(cfg: DictConfig) -> GeneraliseConfig:
    """Composed configuration of the generalisation test to typed settings, checked as those of a training."""
    typed = _training(GeneraliseConfig, cfg)
    assert isinstance(typed, GeneraliseConfig)  # noqa: S101 - for the type checker
    _expect(typed.protocol in PROTOCOLS, f"protocol={typed.protocol}", f"one of {', '.join(PROTOCOLS)}")
    _expect(typed.threshold in THRESHOLDS, f"threshold={typed.threshold}", f"one of {', '.join(THRESHOLDS)}")
    _expect(
        not typed.data.hold_out,
        f"data.hold_out={typed.data.hold_out}",
        "to leave it out: each generator is held out in its turn",
    )
    return typed


def parse_app(cfg: DictConfig) -> AppConfig:
    """Composed configuration of the local page to typed settings; refuses what is unknown by name."""
    typed = _typed(AppConfig(), _plain(cfg))
    assert isinstance(typed, AppConfig)  # noqa: S101 - for the type checker
    _expect_paths("run", typed.run, "the folder of a run")
    _expect(typed.threshold in THRESHOLDS, f"threshold={typed.threshold}", f"one of {', '.join(THRESHOLDS)}")
    _expect(typed.tta in TTA, f"tta={typed.tta}", f"one of {', '.join(TTA)}")
    _expect(bool(typed.host), f"host={typed.host}", "an address or a name of this computer")
    _expect(0 <= typed.port <= 65_535, f"port={typed.port}", "a number from 1 to 65535, or 0 for any that is free")
    for name in ("max_files", "max_megabytes", "reference_images"):
        _expect(getattr(typed, name) >= 1, f"{name}={getattr(typed, name)}", "a whole number of at least 1")
    _expect(_finite(typed.max_megapixels), f"max_megapixels={typed.max_megapixels}", "a finite number above 0")
    _expect(typed.engine in ENGINES, f"engine={typed.engine}", f"one of {', '.join(ENGINES)}")
    _expect(typed.device in DEVICES, f"device={typed.device}", f"one of {', '.join(DEVICES)}")
    return typed


def _check_evaluated(d: DataConfig) -> None:
    """Settings of the data to judge: what a run decided, or what there is no data for, is no setting here."""
    own = not isinstance(d, SyntheticConfig) and d.root is None
    decided = ("preprocess", "face_margin", "equalise", "group", "hold_out", "fractions", "split_seed", "workers")
    default = DataConfig()
    for name in (*decided, *(("manifest", "limit", "max_megapixels") if own else ())):
        given = getattr(d, name)
        _expect(
            given == getattr(default, name),
            f"data.{name}={given}",
            "data.root=FOLDER beside it, for without it the run's own test part is judged as it is"
            if name not in decided
            else "to leave it out: images are prepared as the run prepared its own, and are never split",
        )
    if not own:
        _check_data(d)


def parse_report(cfg: DictConfig) -> ReportConfig:
    """Composed configuration of the page of a run to typed settings; refuses what is unknown by name."""
    typed = _typed(ReportConfig(), _plain(cfg))
    assert isinstance(typed, ReportConfig)  # noqa: S101 - for the type checker
    _expect_paths("run", typed.run, "the folder of a run, or a list [A,B] of them")
    return typed


def parse_recap(cfg: DictConfig) -> RecapConfig:
    """Composed configuration of the comparison to typed settings; refuses what is unknown by name."""
    typed = _typed(RecapConfig(), _plain(cfg))
    assert isinstance(typed, RecapConfig)  # noqa: S101 - for the type checker
    _expect_paths("runs", typed.runs, "a folder, or a list [A,B] of folders")
    return typed


def _plain(cfg: DictConfig) -> dict[Any, Any]:
    try:
        settings = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise _refusal(error) from error
    assert isinstance(settings, dict)  # noqa: S101 - for the type checker
    return settings


def _refusal(error: OmegaConfBaseException) -> UserError:
    return UserError(f"{error.full_key or 'settings'}: {str(error).splitlines()[0]}.")


def _data_schema(settings: dict[Any, Any]) -> DataConfig:
    data = settings.get("data") or {}
    if data.get("name") == "synthetic" and data.get("root") is not None:
        settings["data"] = data = _own_folder(data)
    if data.get("name") == "synthetic" and data.get("manifest") is not None:
        raise UserError(
            f"data.manifest={data['manifest']} is refused: expected data.root=FOLDER with it, for the built-in "
            f"data has none."
        )
    if isinstance(data.get("hold_out"), str):
        data["hold_out"] = [data["hold_out"]]  # one source needs no brackets
    schema = _choose(DATA, "data", settings)()
    assert isinstance(schema, DataConfig)  # noqa: S101 - for the type checker
    return schema


def _own_folder(data: dict[str, Any]) -> dict[str, Any]:
    """`data.root=FOLDER` alone means `data=folder`: the built-in data's own knobs no longer apply."""
    own = {f.name: f.default for f in fields(SyntheticConfig)} | {"name": "synthetic"}
    common = {f.name for f in fields(DataConfig)}
    changed = [key for key, value in data.items() if key in own and key not in common and value != own[key]]
    if changed:
        raise UserError(
            f"data.root and data.{changed[0]} contradict each other: data.{changed[0]} belongs to the built-in "
            f"data, data.root to a folder of yours. Leave one out."
        )
    return {key: value for key, value in data.items() if key not in own or key in common} | {"name": "folder"}


def _choose(choices: dict[str, Any], group: str, settings: dict[Any, Any]) -> Any:
    name = (settings.get(group) or {}).get("name")
    if name not in choices:
        raise UserError(f"{group}: expected one of {', '.join(choices)}, found {name!r}.")
    return choices[name]


def _typed(schema: Any, settings: Any) -> Any:
    unknown = _unknown_keys(OmegaConf.structured(schema), settings)
    if unknown:
        key, known = unknown
        place, _, last = key.rpartition(".")
        near = difflib.get_close_matches(last, known, n=1)
        hint = (
            f"did you mean {place and place + '.'}{near[0]}?" if near else f"known here: {', '.join(sorted(known))}."
        )
        raise UserError(f"unknown setting {key}: {hint}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), settings)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{missing[0]} is missing: add {missing[0]}=VALUE to the command.")
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise _refusal(error) from error


def _unknown_keys(schema: Any, settings: Any, prefix: str = "") -> tuple[str, list[str]] | None:
    """First key of `settings` that `schema` does not know, with the keys known at that place."""
    for key, value in settings.items():
        if key not in schema.keys():  # noqa: SIM118 - "in" denies keys whose value is missing
            return prefix + str(key), [str(k) for k in schema]
        section = schema._get_node(key)
        # What is null by default, as `pairs`, takes any key.
        if isinstance(value, dict) and OmegaConf.is_dict(section) and not section._is_none():
            found = _unknown_keys(schema[key], value, f"{prefix}{key}.")
            if found:
                return found
    return None


def _check(c: TrainConfig) -> None:
    _expect(
        c.unfreeze == "all" or (type(c.unfreeze) is int and c.unfreeze >= 0),
        f"unfreeze={c.unfreeze}",
        "0, 1, 2, ... (the last stages that train beside the classifier) or all",
    )
    for name in ("epochs", "batch_size", "accumulate"):
        _expect(getattr(c, name) >= 1, f"{name}={getattr(c, name)}", "a whole number of at least 1")
    _expect(
        c.views in ("auto", "all") or (type(c.views) is int and c.views >= 1),
        f"views={c.views}",
        "auto, all (another view of each training image in every epoch) or a whole number of at least 1",
    )
    for name in ("seed", "view_seed"):
        _expect(0 <= getattr(c, name) < 2**32, f"{name}={getattr(c, name)}", "a whole number from 0 to 4294967295")
    _expect(_finite(c.lr), f"lr={c.lr}", "a number above 0, such as 1e-4")
    _expect(c.patience is None or c.patience >= 1, f"patience={c.patience}", "at least 1, or null for none")
    _expect(0 <= c.model.drop_rate < 1, f"model.drop_rate={c.model.drop_rate}", "a share in [0, 1)")
    _expect(
        c.name is None or (c.name not in ("", ".", "..") and not set(c.name) & set("/\\\0\n")),
        f"name={c.name!r}",
        "one folder name, without slashes",
    )

    s = c.scheduler
    if isinstance(s, PlateauConfig):
        _expect(0 < s.factor < 1, f"scheduler.factor={s.factor}", "a number between 0 and 1")
        _expect(s.patience >= 0, f"scheduler.patience={s.patience}", "a whole number of at least 0")
        _expect(
            c.patience is None or s.patience < c.patience,
            f"scheduler.patience={s.patience} with patience={c.patience}",
            "a scheduler.patience below patience, for else training stops before the learning rate ever falls",
        )
    if isinstance(s, CosineConfig):
        _expect(
            0 <= s.warmup_epochs < c.epochs,
            f"scheduler.warmup_epochs={s.warmup_epochs} with epochs={c.epochs}",
            "a warm-up of at least 0 epochs and shorter than the training",
        )
        _expect(0 <= s.final_factor <= 1, f"scheduler.final_factor={s.final_factor}", "a share in [0, 1]")

    _expect(c.trunk.engine in ENGINES, f"trunk.engine={c.trunk.engine}", f"one of {', '.join(ENGINES)}")
    _expect(
        c.trunk.precision in PRECISIONS, f"trunk.precision={c.trunk.precision}", f"one of {', '.join(PRECISIONS)}"
    )
    _expect(
        not (c.trunk.engine == "onnxruntime" and c.trunk.precision == "bfloat16"),
        "trunk.engine=onnxruntime with trunk.precision=bfloat16",
        "float32 there, for it has no convolution of bfloat16 for the processor",
    )
    _expect(all(n >= 0 for n in c.trunk.keep), f"trunk.keep={c.trunk.keep}", "values of unfreeze: [0,2]")
    _expect(c.trunk.threads is None or c.trunk.threads >= 1, f"trunk.threads={c.trunk.threads}", "1 or more, or null")
    _expect(c.cache in ("auto", "off"), f"cache={c.cache}", "auto or off")
    _expect(_finite(c.cache_max_gb), f"cache_max_gb={c.cache_max_gb}", "a number of gigabytes above 0")
    _expect(c.audit in ("warn", "strict", "off"), f"audit={c.audit}", "warn, strict or off")

    a = c.augment
    _expect(0 <= a.rotation <= 180, f"augment.rotation={a.rotation}", "degrees in [0, 180]")
    _expect(0 <= a.translation < 1, f"augment.translation={a.translation}", "a share of the side in [0, 1)")
    _expect(0 <= a.flip <= 1, f"augment.flip={a.flip}", "a probability in [0, 1]")
    _expect(0 <= a.brightness < 1, f"augment.brightness={a.brightness}", "a share in [0, 1)")
    for kind, least, most, expected in (
        ("blur", 0, 100, "pixels in [0, 100]"),
        ("shrink", 0.1, 1, "a factor in [0.1, 1]"),
        ("noise", 0, 1, "a standard deviation in [0, 1], where black is 0 and white is 1"),
        ("jpeg", 1, 100, "a quality from 1 to 100"),
    ):
        probability, low, high = (getattr(a, f"{kind}{end}") for end in ("", "_min", "_max"))
        _expect(0 <= probability <= 1, f"augment.{kind}={probability}", "a probability in [0, 1]")
        _expect(least <= low <= most, f"augment.{kind}_min={low}", expected)
        _expect(least <= high <= most, f"augment.{kind}_max={high}", expected)
        _expect(
            low <= high,
            f"augment.{kind}_min={low} with augment.{kind}_max={high}",
            "a minimum that is not above the maximum",
        )

    _expect(c.resume in RESUME, f"resume={c.resume}", f"one of {', '.join(RESUME)}")
    _expect(not (c.force and c.resume == "must"), "force=true with resume=must", "one of the two: force begins anew")

    t = c.trainer
    _expect(t.strategy in STRATEGIES, f"trainer.strategy={t.strategy}", f"one of {', '.join(STRATEGIES)}")
    _expect(t.devices >= 1, f"trainer.devices={t.devices}", "a whole number of at least 1")
    _expect(
        t.devices <= c.batch_size,
        f"trainer.devices={t.devices} with batch_size={c.batch_size}",
        "at least one image of a batch for each process",
    )
    _expect(
        t.devices == 1 or t.accelerator != "mps",
        f"trainer.devices={t.devices} with trainer.accelerator=mps",
        "one process there, for it has no way to add up over several",
    )
    _expect(
        t.precision in ("32-true", "bf16-mixed", "16-mixed"),
        f"trainer.precision={t.precision}",
        "32-true, bf16-mixed or 16-mixed",
    )
    _expect(
        not (t.precision == "16-mixed" and t.accelerator == "cpu"),
        "trainer.precision=16-mixed with trainer.accelerator=cpu",
        "bf16-mixed or 32-true on a processor",
    )
    _expect(
        t.max_batches is None or t.max_batches >= 1,
        f"trainer.max_batches={t.max_batches}",
        "at least 1, or null for all",
    )
    _expect(c.logger.image_grid >= 0, f"logger.image_grid={c.logger.image_grid}", "0 or more images")


def _check_data(d: DataConfig) -> None:
    _expect(
        len(d.fractions) == 3 and min(d.fractions) > 0 and abs(sum(d.fractions) - 1) < 1e-6,
        f"data.fractions={d.fractions}",
        "three shares above 0 that sum to 1: train, validation, test",
    )
    _expect(d.workers >= 0, f"data.workers={d.workers}", "a whole number of at least 0")
    _expect(d.limit is None or d.limit >= 1, f"data.limit={d.limit}", "a number of images, or null for all")
    _expect(_finite(d.max_megapixels), f"data.max_megapixels={d.max_megapixels}", "a finite number above 0")
    if isinstance(d, SyntheticConfig):
        _expect(d.shortcut in (None, "size", "jpeg"), f"data.shortcut={d.shortcut}", "size, jpeg or null")
    elif d.root is None:
        raise UserError(
            "data.root is missing: expected the folder that holds your images, such as real/ and fake/, or 0-NAME "
            "and 1-NAME folders; add data.root=/path/to/faces."
        )
    _expect(
        d.preprocess in PREPROCESS,
        f"data.preprocess={d.preprocess}",
        "resize (squash to the network's square), crop (native resolution) or face (detect, align, crop)",
    )
    _expect(0 <= d.face_margin <= 2, f"data.face_margin={d.face_margin}", "a share of the face's side in [0, 2]")
    _expect(
        d.face_margin == DataConfig.face_margin or d.preprocess == "face",
        f"data.face_margin={d.face_margin} with data.preprocess={d.preprocess}",
        "data.preprocess=face beside it, for nothing else has a margin",
    )
    _expect(
        not (d.equalise and d.preprocess == "face"),
        "data.equalise=true with data.preprocess=face",
        "one of the two: faces are cut out in other sizes, and would not be equal",
    )
    _expect(_finite(d.cache.max_gb), f"data.cache.max_gb={d.cache.max_gb}", "a number of gigabytes above 0")
    if d.group is not None:
        try:
            re.compile(d.group)
        except re.error as error:
            raise UserError(
                f"data.group={d.group} is refused: expected a regular expression ({error}), in two quotes, such as "
                f"\"data.group='(\\d+)_.*'\"."
            ) from error
    # Absolute, so that the same command from another folder is the same run.
    if d.root is not None:
        d.root = _absolute(d.root)


def _expect_paths(name: str, given: Any, expected: str) -> None:
    paths = given if isinstance(given, list) else [given]
    _expect(bool(paths) and all(isinstance(path, str) and path for path in paths), f"{name}={given}", expected)


def _finite(value: float) -> bool:
    return 0 < value < math.inf


def _expect(holds: bool, found: str, expected: str) -> None:
    if not holds:
        raise UserError(f"{found} is refused: expected {expected}.")
