"""The page of a finished run, made anew: `python -m deepfake.report --help`."""

from pathlib import Path

from omegaconf import DictConfig

from deepfake.command import command
from deepfake.config import ReportConfig, parse_report
from deepfake.console import terminal
from deepfake.errors import UserError
from deepfake.runs import is_complete, unwritable


def run(cfg: ReportConfig) -> None:
    """Write report.html into the folder of each run, from what lies there.

    Raises:
        UserError: one of them is no complete run, before any page is written; a folder cannot be written.
    """
    from deepfake.reporting.run_page import write_run_page  # imports pandas: --help need not wait for it

    folders = [Path(run).expanduser() for run in (cfg.run if isinstance(cfg.run, list) else [cfg.run])]
    for folder in folders:
        if not is_complete(folder):
            raise UserError(
                f"run={folder}: expected the folder of a complete run, found none. Train it, or name another; "
                f"python -m deepfake.recap makes the page of several runs."
            )
    for folder in folders:
        try:
            page = write_run_page(folder)
        except OSError as error:
            raise unwritable(folder, error.strerror, "run") from error
        terminal().print(page, markup=False, highlight=False, soft_wrap=True)


@command("report")
def main(cfg: DictConfig) -> None:
    """Entry point of the command."""
    run(parse_report(cfg))


if __name__ == "__main__":
    main()
