"""Judge finished runs honestly, alone, together or against each other: `python -m deepfake.evaluate --help`."""

from omegaconf import DictConfig

from deepfake.command import command
from deepfake.config import EvaluateConfig, parse_evaluate


def run(cfg: EvaluateConfig) -> int:
    """Every figure of a run with its interval, beside the baselines; of several the paired comparison.

    Returns:
        Exit status: 0 done, 3 done, with images that could not be judged.

    Raises:
        UserError: no such run or data, or runs that cannot be put together or compared.
    """
    from deepfake.evaluating import evaluate  # imports torch: --help need not wait for it

    return evaluate(cfg)


@command("evaluate")
def main(cfg: DictConfig) -> int:
    """Entry point of the command."""
    return run(parse_evaluate(cfg))


if __name__ == "__main__":
    main()
