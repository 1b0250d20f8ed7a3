"""A page in the browser that asks a finished run about images: `python -m deepfake.app --help`."""

from omegaconf import DictConfig

from deepfake.command import command
from deepfake.config import AppConfig, parse_app


def run(cfg: AppConfig) -> int:
    """Serve the page until Ctrl-C.

    Returns:
        Exit status: 130 ended by Ctrl-C, 0 by whoever started it in the background.

    Raises:
        UserError: no such run, a missing package, an address that cannot be had.
    """
    from deepfake.serving import serve  # imports torch: --help need not wait for it

    return serve(cfg)


@command("app")
def main(cfg: DictConfig) -> int:
    """Entry point of the command."""
    return run(parse_app(cfg))


if __name__ == "__main__":
    main()
