"""What a finished run looks at, and whether that is so: `python -m deepfake.explain --help`."""

from omegaconf import DictConfig

from deepfake.command import command
from deepfake.config import ExplainConfig, parse_explain


def run(cfg: ExplainConfig) -> int:
    """Heat maps of a run's answers, a check whether they are faithful, and the frequencies that decide.

    Returns:
        Exit status: 0 done, 3 done, with images that could not be judged.

    Raises:
        UserError: no such run or data, or a network that such maps cannot be made of.
    """
    from deepfake.probing import explain  # imports torch: --help need not wait for it

    return explain(cfg)


@command("explain")
def main(cfg: DictConfig) -> int:
    """Entry point of the command."""
    return run(parse_explain(cfg))


if __name__ == "__main__":
    main()
