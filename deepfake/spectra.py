"""The spectra of a data set, source by source: `python -m deepfake.spectra --help`."""

from omegaconf import DictConfig

from deepfake.command import command
from deepfake.config import SpectraConfig, parse_spectra


def run(cfg: SpectraConfig) -> int:
    """Mean spectra of every source before and after the network's preparation, and what stands out in the fakes.

    Returns:
        Exit status: 0 done, 3 done, with files that were left out.

    Raises:
        UserError: no images, or settings that do not fit them.
    """
    from deepfake.analysing import analyse  # the decoders and matplotlib: --help need not wait for them

    return analyse(cfg)


@command("spectra")
def main(cfg: DictConfig) -> int:
    """Entry point of the command."""
    return run(parse_spectra(cfg))


if __name__ == "__main__":
    main()
