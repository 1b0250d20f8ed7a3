"""What a network knows of generators it has never seen: `python -m deepfake.generalise --help`."""

from omegaconf import DictConfig

from deepfake.command import command
from deepfake.config import GeneraliseConfig, parse_generalise


def run(cfg: GeneraliseConfig) -> int:
    """Leave each generator out of the training in turn, train on each alone, and compare.

    Returns:
        Exit status: 0 done, 1 trainings failed; the others are told.

    Raises:
        UserError: settings, data or weights do not fit, or every training failed.
    """
    from deepfake.generalising import generalise  # imports torch: --help need not wait for it

    return generalise(cfg)


@command("generalise")
def main(cfg: DictConfig) -> int:
    """Entry point of the command."""
    return run(parse_generalise(cfg))


if __name__ == "__main__":
    main()
