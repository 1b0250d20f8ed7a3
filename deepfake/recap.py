"""Compare finished runs: `python -m deepfake.recap --help`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from deepfake.command import command
from deepfake.config import RecapConfig, parse_recap
from deepfake.console import terminal


def compare(folders: Sequence[Path], output: Path, missing: Sequence[Mapping[str, Any]] = ()) -> None:
    """Print the comparison of all runs in some folders and write it as CSV, Markdown, picture and page.

    Args:
        folders: run folders, or folders that hold run folders.
        output: where the files go.
        missing: jobs of a sweep that came to no run, for the page: number, overrides, status and message.

    Raises:
        UserError: there is no complete run in any of them.
    """
    # They import pandas and matplotlib: --help need not wait for them.
    from deepfake.reporting import comparison
    from deepfake.reporting.sweep_page import write_sweep_page

    summaries = comparison.load_runs(folders)
    files = comparison.write_comparison(summaries, output)
    files["html"] = write_sweep_page(summaries, output, missing)
    console = terminal()
    console.print(comparison.to_rich(comparison.comparison_table(summaries)))
    for file in files.values():
        console.print(f"  {file}", markup=False, highlight=False, soft_wrap=True)


def run(cfg: RecapConfig) -> None:
    runs = [cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs)
    folders = [Path(run).expanduser() for run in runs]
    compare(folders, Path(cfg.output).expanduser() if cfg.output else folders[0])


@command("recap")
def main(cfg: DictConfig) -> None:
    """Entry point of the command."""
    run(parse_recap(cfg))


if __name__ == "__main__":
    main()
