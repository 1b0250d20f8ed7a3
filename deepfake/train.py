"""Train one network, or with -m a sweep: `python -m deepfake.train --help`."""

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from deepfake import sweep
from deepfake.command import command
from deepfake.config import TrainConfig, parse_train


def run(cfg: TrainConfig) -> float:
    """Train, judge the best checkpoint, leave a run folder that stands alone.

    Returns:
        The best epoch's value of what the detector monitors (validation loss); lower is better.

    Raises:
        UserError: settings, data or weights do not fit; nothing is left that a later run takes for complete.
    """
    from deepfake.training import train  # imports torch: --help and refused settings need not wait for it

    return train(cfg)


@command("train", sweeps=True, around=sweep.supervised)
def main(cfg: DictConfig) -> float:
    """Entry point of the command."""
    return sweep.job(cfg) if HydraConfig.get().mode == RunMode.MULTIRUN else run(parse_train(cfg))


if __name__ == "__main__":
    main()
