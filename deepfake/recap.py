"""Compare finished runs: `python -m deepfake.recap --help`."""

import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from deepfake.config import RecapConfig, conf_dir, parse_recap
from deepfake.console import say_error, terminal
from deepfake.errors import UserError


def compare(folders: Sequence[Path], output: Path) -> None:
    """Print the comparison of all runs in some folders and write it as CSV, Markdown and picture.

    Raises:
        UserError: there is no complete run in any of them.
    """
    from deepfake.reporting import comparison  # imports pandas and matplotlib: --help need not wait for them

    summaries = comparison.load_runs(folders)
    files = comparison.write_comparison(summaries, output)
    console = terminal()
    console.print(comparison.to_rich(comparison.comparison_table(summaries)))
    for file in files.values():
        console.print(f"  {file}", markup=False, highlight=False, soft_wrap=True)


def run(cfg: RecapConfig) -> None:
    runs = [cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs)
    folders = [Path(run).expanduser() for run in runs]
    compare(folders, Path(cfg.output).expanduser() if cfg.output else folders[0])


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="recap")
def main(cfg: DictConfig) -> None:
    """Entry point of the command."""
    try:
        run(parse_recap(cfg))
    except UserError as error:
        say_error(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
