"""Every shipped setting composes, is explained and equals its default in code; every mistake is named."""

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from deepfake import config
from deepfake.config import RecapConfig, SyntheticConfig, TrainConfig, conf_dir, parse_recap, parse_train
from deepfake.errors import UserError

CONF = Path(conf_dir())
INLINE = ["trunk"]  # sections that stand in train.yaml itself: nobody has two of them to choose from
GROUPS = [field.name for field in fields(TrainConfig) if is_dataclass(field.type) and field.name not in INLINE]
CHOICES = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = sorted(
    file.relative_to(CONF / "experiment").with_suffix("").as_posix() for file in (CONF / "experiment").rglob("*.yaml")
)
# What a choice leaves open on purpose, and a user must say.
NEEDED = {("model", "timm"): ["model.timm=convnext_tiny"], ("data", "folder"): ["data.root=/faces"]}


@pytest.fixture(autouse=True, scope="module")
def hydra() -> Iterator[None]:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    return compose("train", overrides=list(overrides))


def parsed(*overrides: str) -> TrainConfig:
    return parse_train(composed(*overrides))


def refusal(*overrides: str) -> str:
    """The message with which settings are refused: one line."""
    with pytest.raises(UserError) as caught:
        parsed(*overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# ---------------------------------------------------------------------------------------------- what is shipped


def test_defaults_compose() -> None:
    cfg = parsed()
    assert isinstance(cfg.data, SyntheticConfig)
    assert cfg.model.timm == "efficientnet_b0"


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group: str, choice: str) -> None:
    cfg = parsed(f"{group}={choice}", *NEEDED.get((group, choice), []))
    assert getattr(cfg, group).name == choice


def test_every_choice_in_code_has_its_file_and_the_reverse() -> None:
    assert {choice for group, choice in CHOICES if group == "scheduler"} == set(config.SCHEDULERS)
    assert {choice for group, choice in CHOICES if group == "data"} == set(config.DATA)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_with_every_job_of_its_sweep(experiment: str) -> None:
    whole = compose("train", overrides=[f"experiment={experiment}"], return_hydra_config=True)
    sweep = OmegaConf.to_container(whole.hydra.sweeper.params or OmegaConf.create({}))
    assert isinstance(sweep, dict)
    axes = [[f"{key}={value}" for value in str(values).split(",")] for key, values in sweep.items()]
    for job in itertools.product(*axes):
        parsed(f"experiment={experiment}", *job)
    if experiment.startswith("sweep/"):
        assert len(list(itertools.product(*axes))) > 1


def test_experiments_of_both_kinds_are_found() -> None:
    assert {name.split("/")[0] for name in EXPERIMENTS} >= {"report", "sweep"}


def test_recap_composes() -> None:
    assert parse_recap(compose("recap")) == RecapConfig()


# ------------------------------------------------------------------------------------ defaults and explanations


def defaults_of(schema: Any) -> dict[str, Any]:
    """The plain values of a dataclass; groups, and what has no default, left out."""
    instance = schema()
    return {
        field.name: getattr(instance, field.name)
        for field in fields(schema)
        if not is_dataclass(field.type) and getattr(instance, field.name) != "???"
    }


@pytest.mark.parametrize(
    ("file", "schema"),
    [
        ("train", config.TrainConfig),
        ("recap", config.RecapConfig),
        ("audit", config.AuditConfig),
        ("spectra", config.SpectraConfig),
        ("explain", config.ExplainConfig),
        ("report", config.ReportConfig),
        ("app", config.AppConfig),
        ("evaluate", config.EvaluateConfig),
        ("robustness", config.RobustnessConfig),
        ("generalise", config.GeneraliseConfig),
        ("model/efficientnet", config.ModelConfig),
        ("augment/study", config.AugmentConfig),
        ("trainer/auto", config.TrainerConfig),
        ("logger/tensorboard", config.LoggerConfig),
        *((f"scheduler/{name}", schema) for name, schema in config.SCHEDULERS.items()),
        *((f"data/{name}", schema) for name, schema in config.DATA.items()),
    ],
)
def test_defaults_in_yaml_equal_those_in_code(file: str, schema: Any) -> None:
    group, _, choice = file.partition("/")
    if choice:
        section = OmegaConf.to_container(composed(f"{group}={choice}"), resolve=True)[group]  # type: ignore[index]
    else:
        section = OmegaConf.to_container(compose(file), resolve=True)
    assert isinstance(section, dict)
    expected = defaults_of(schema)
    assert {key: section[key] for key in expected} == expected


def explained(file: Path) -> dict[str, str]:
    """{key: comment} of the lines `key: value # comment`, inner ones too."""
    return dict(re.findall(r"^ *(\w+):[^#\n]*# (\S.*)$", file.read_text(encoding="utf-8"), re.MULTILINE))


def lines_to_explain() -> Iterator[tuple[str, str]]:
    yield from (("train.yaml", name) for name in defaults_of(config.TrainConfig))
    yield from (("train.yaml", name) for name in defaults_of(config.TrunkConfig))
    yield from (("recap.yaml", name) for name in defaults_of(config.RecapConfig))
    yield from (("audit.yaml", name) for name in defaults_of(config.AuditConfig))
    yield from (("spectra.yaml", name) for name in defaults_of(config.SpectraConfig))
    yield from (("explain.yaml", name) for name in defaults_of(config.ExplainConfig))
    yield from (("app.yaml", name) for name in defaults_of(config.AppConfig))
    yield from (("predict.yaml", name) for name in defaults_of(config.PredictConfig))
    yield from (("evaluate.yaml", name) for name in defaults_of(config.EvaluateConfig))
    yield from (("robustness.yaml", name) for name in defaults_of(config.RobustnessConfig))
    own = defaults_of(config.GeneraliseConfig).keys() - defaults_of(TrainConfig).keys()
    yield from (("generalise.yaml", name) for name in sorted(own))
    for group, choice in CHOICES:
        # `name` is the choice itself, told in the file's first line.
        for key, value in yaml.safe_load((CONF / group / f"{choice}.yaml").read_text()).items():
            if key not in ("name", "defaults"):
                yield from ((f"{group}/{choice}.yaml", k) for k in [key, *(value if isinstance(value, dict) else [])])


@pytest.mark.parametrize(("file", "key"), lines_to_explain())
def test_every_knob_is_explained_on_its_line(file: str, key: str) -> None:
    assert key in explained(CONF / file)


def test_every_field_of_every_class_stands_in_a_yaml() -> None:
    missing = []
    for group in GROUPS:
        files = [yaml.safe_load((CONF / group / f"{c}.yaml").read_text()) for g, c in CHOICES if g == group]
        schemas = {"scheduler": config.SCHEDULERS, "data": config.DATA}.get(group)
        default = next(field for field in fields(TrainConfig) if field.name == group).default_factory
        assert default is not MISSING
        for schema in schemas.values() if schemas else [type(default())]:
            names = {field.name for field in fields(schema)}
            missing += [f"{group}.{n}" for n in names if not any(n in file for file in files)]
    whole = yaml.safe_load((CONF / "train.yaml").read_text())
    missing += [f"trunk.{n}" for n in defaults_of(config.TrunkConfig) if n not in whole["trunk"]]
    assert missing == []


@pytest.mark.parametrize("file", [f"{group}/{choice}.yaml" for group, choice in CHOICES])
def test_every_choice_says_in_its_first_line_what_it_is(file: str) -> None:
    assert re.match(r"# \S.*\.?\n", (CONF / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("command", "schema"),
    [
        ("train", TrainConfig),
        ("recap", RecapConfig),
        ("audit", config.AuditConfig),
        ("spectra", config.SpectraConfig),
        ("explain", config.ExplainConfig),
        ("report", config.ReportConfig),
        ("app", config.AppConfig),
        ("predict", config.PredictConfig),
        ("evaluate", config.EvaluateConfig),
        ("robustness", config.RobustnessConfig),
    ],
)
def test_help_describes_every_plain_value(command: str, schema: Any) -> None:
    text = compose(command, return_hydra_config=True).hydra.help.template
    for name in defaults_of(schema):
        assert re.search(rf"^{name} +\S", text, re.MULTILINE), name


def test_settings_need_no_torch() -> None:
    code = "import sys, deepfake.config; print(sorted({'torch', 'lightning', 'timm', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("unfreeze=-1", "0, 1, 2, ... (the last stages that train beside the classifier) or all"),
        ("unfreeze=some", "or all"),
        ("unfreeze=1.5", "or all"),
        ("unfreeze=true", "or all"),
        ("epochs=0", "at least 1"),
        ("views=0", "auto, all (another view of each training image in every epoch) or a whole number of at least 1"),
        ("views=some", "auto, all (another view"),
        ("views=1.5", "auto, all (another view"),
        ("views=true", "auto, all (another view"),
        ("batch_size=0", "at least 1"),
        ("accumulate=0", "at least 1"),
        ("seed=-1", "a whole number from 0"),
        ("seed=4294967296", "to 4294967295"),
        ("view_seed=-1", "a whole number from 0"),
        ("lr=0", "a number above 0"),
        ("lr=nan", "a number above 0"),
        ("patience=0", "at least 1, or null"),
        ("cache=on", "auto or off"),
        ("audit=maybe", "warn, strict or off"),
        ("data.preprocess=stretch", "resize (squash to the network's square), crop"),
        ("data.face_margin=-1", "a share of the face's side"),
        ("data.cache.max_gb=0", "a number of gigabytes above 0"),
        ("data.cache.max_gb=inf", "a number of gigabytes above 0"),
        ("data.max_megapixels=inf", "a finite number above 0"),
        ("data.face_margin=0.5", "data.preprocess=face beside it"),
        ("data.preprocess=face data.equalise=true", "one of the two"),
        ("data.manifest=x.csv", "data.root=FOLDER with it"),
        ("data.group='('", "a regular expression"),
        ("cache_max_gb=0", "above 0"),
        ("name=a/b", "one folder name"),
        ("name=..", "one folder name"),
        ("name='a\nb'", "one folder name"),
        ("name=''", "one folder name"),
        ("model.drop_rate=1", "[0, 1)"),
        ("scheduler=plateau scheduler.factor=1", "between 0 and 1"),
        ("scheduler=plateau scheduler.patience=-1", "at least 0"),
        ("scheduler=cosine scheduler.warmup_epochs=-1", "at least 0"),
        ("scheduler=cosine scheduler.final_factor=1.5", "[0, 1]"),
        ("data.fractions=[0.5,0.5]", "three shares above 0 that sum to 1"),
        ("data.fractions=[0.7,0.2,0.2]", "three shares above 0 that sum to 1"),
        ("data.fractions=[0.8,0.2,0]", "three shares above 0 that sum to 1"),
        ("data.workers=-1", "at least 0"),
        ("data.limit=0", "a number of images, or null"),
        ("data.max_megapixels=0", "above 0"),
        ("data.shortcut=color", "size, jpeg or null"),
        ("augment.rotation=181", "[0, 180]"),
        ("augment.translation=1", "[0, 1)"),
        ("augment.flip=1.1", "[0, 1]"),
        ("augment.blur=1.1", "a probability in [0, 1]"),
        ("augment.noise=nan", "a probability in [0, 1]"),
        ("augment.blur_min=-1", "pixels in [0, 100]"),
        ("augment.blur_max=inf", "pixels in [0, 100]"),
        ("augment.shrink_min=0", "a factor in [0.1, 1]"),
        ("augment.shrink_max=1.5", "a factor in [0.1, 1]"),
        ("augment.noise_max=25", "a standard deviation in [0, 1]"),
        ("augment.jpeg_min=0", "a quality from 1 to 100"),
        ("augment.jpeg_max=101", "a quality from 1 to 100"),
        ("trunk.engine=tensorrt", "one of auto, eager, compile, onnxruntime, openvino"),
        ("trunk.precision=float16", "one of auto, float32, bfloat16"),
        ("trunk.keep=[-1]", "values of unfreeze"),
        ("augment.brightness=1", "[0, 1)"),
        ("trainer.devices=0", "a whole number of at least 1"),
        ("trainer.precision=64", "32-true, bf16-mixed or 16-mixed"),
        ("trainer.max_batches=0", "at least 1, or null"),
        ("logger.image_grid=-1", "0 or more"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(overrides: str, expected: str) -> None:
    *choice, last = overrides.split(" ")
    message = refusal(*choice, last)
    assert message.startswith(last.split("=")[0] + "=")
    assert " is refused: expected " in message
    assert expected in message


@pytest.mark.parametrize(
    ("overrides", "both"),
    [
        ("scheduler=plateau patience=2", ("scheduler.patience=2", "patience=2")),
        ("scheduler=cosine epochs=1", ("scheduler.warmup_epochs=1", "epochs=1")),
        ("trainer=cpu trainer.precision=16-mixed", ("trainer.precision=16-mixed", "trainer.accelerator=cpu")),
        ("data.root=/faces data.shortcut=size", ("data.root", "data.shortcut")),
    ],
)
def test_settings_that_contradict_each_other_are_both_named(overrides: str, both: tuple[str, str]) -> None:
    message = refusal(*overrides.split())
    assert all(name in message for name in both)


@pytest.mark.parametrize("overrides", ["patience=null", "patience=3 scheduler.patience=2"])
def test_a_scheduler_that_acts_before_training_stops_is_accepted(overrides: str) -> None:
    assert parsed("scheduler=plateau", *overrides.split()).scheduler.name == "plateau"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+epoch=3", "unknown setting epoch: did you mean epochs?"),
        ("+data.roots=/x", "unknown setting data.roots: did you mean data.root?"),
        ("+model.input_sise=3", "unknown setting model.input_sise: did you mean model.input_size?"),
        ("+scheduler.qqq=1", "unknown setting scheduler.qqq: known here: name."),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(override: str, message: str) -> None:
    assert refusal(override) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs=many", r"^epochs: .*many"),
        ("data.cache.enabled=perhaps", r"^data\.cache\.enabled: .*perhaps"),
        ("data.fractions=half", r"^data\.fractions: "),
        ("epochs=null", r"^epochs: "),
        ("output_dir=${nowhere}", r"^output_dir: .*nowhere"),
        ("name=${oc.env:DEEPFAKE_NO_SUCH_VARIABLE}", r"^name: .*DEEPFAKE_NO_SUCH_VARIABLE"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(override: str, message: str) -> None:
    assert re.search(message, refusal(override))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=timm", "model.timm is missing: add model.timm=VALUE to the command."),
        ("data=folder", "data.root is missing: expected the folder that holds your images"),
    ],
)
def test_a_missing_value_is_named_with_what_to_add(override: str, message: str) -> None:
    assert refusal(override).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheduler": {"name": "step"}}, "scheduler: expected one of none, plateau, cosine, found 'step'"),
        ({"data": {"name": "url"}}, "data: expected one of synthetic, folder, found 'url'"),
        ({"data": None}, "data: expected one of synthetic, folder, found None"),
    ],
)
def test_a_choice_that_does_not_exist_is_answered_with_those_that_do(settings: dict, message: str) -> None:
    whole = OmegaConf.to_container(composed()) | settings  # type: ignore[operator]
    with pytest.raises(UserError, match=re.escape(message)):
        parse_train(OmegaConf.create(whole))


@pytest.mark.parametrize("runs", ["5", "null", "[]", "[a,3]", "''"])
def test_recap_wants_folders(runs: str) -> None:
    with pytest.raises(UserError, match=r"runs=.* is refused: expected a folder, or a list"):
        parse_recap(compose("recap", overrides=[f"runs={runs}"]))


def test_recap_takes_one_folder_or_several_and_nothing_unknown() -> None:
    assert parse_recap(compose("recap", overrides=["runs=[a,b]", "output=c"])) == RecapConfig(["a", "b"], "c")
    with pytest.raises(UserError, match="unknown setting run: did you mean runs"):
        parse_recap(compose("recap", overrides=["+run=a"]))


# --------------------------------------------------------------------------------------------- meaning of paths


def test_a_root_alone_means_the_folder() -> None:
    assert parsed("data.root=/faces", "data.limit=5") == parsed("data=folder", "data.root=/faces", "data.limit=5")


def test_paths_do_not_depend_on_where_the_command_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    cfg = parsed("data.root=faces", "model.weights=net.safetensors")
    assert cfg.data.root == str(tmp_path / "faces")
    assert cfg.model.weights == str(tmp_path / "net.safetensors")
    assert parsed("data.root='~/faces'").data.root == "/home/someone/faces"


@pytest.mark.parametrize("weights", config.WEIGHTS)
def test_the_names_of_weights_are_no_paths(weights: str) -> None:
    assert parsed(f"model.weights={weights}").model.weights == weights
