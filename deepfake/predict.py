"""Ask a finished run about images: `python -m deepfake.predict --help`."""

from omegaconf import DictConfig

from deepfake.command import command
from deepfake.config import PredictConfig, parse_predict


def run(cfg: PredictConfig) -> int:
    """P(fake) and a verdict for every image of the input, one row a file, in its order.

    Returns:
        Exit status: 0 done, 3 done, with files that could not be judged.

    Raises:
        UserError: no such run or input, a checkpoint that does not fit, an output that cannot be written.
    """
    from deepfake.predicting import predict  # imports torch: --help need not wait for it

    return predict(cfg)


@command("predict")
def main(cfg: DictConfig) -> int:
    """Entry point of the command."""
    return run(parse_predict(cfg))


if __name__ == "__main__":
    main()
