"""What a finished run's answers are worth after the images have travelled: `python -m deepfake.robustness --help`."""

from omegaconf import DictConfig

from deepfake.command import command
from deepfake.config import RobustnessConfig, parse_robustness


def run(cfg: RobustnessConfig) -> int:
    """Every perturbation of the grid, and recompression of one class alone: tables, a figure, every answer.

    Returns:
        Exit status: 0 done, 3 done, with images that could not be judged.

    Raises:
        UserError: no such run or data, or images of neither class that can be judged.
    """
    from deepfake.perturbing import judge_perturbed  # imports torch: --help need not wait for it

    return judge_perturbed(cfg)


@command("robustness")
def main(cfg: DictConfig) -> int:
    """Entry point of the command."""
    return run(parse_robustness(cfg))


if __name__ == "__main__":
    main()
