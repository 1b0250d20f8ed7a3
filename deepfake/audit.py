"""Audit a data set before training on it: `python -m deepfake.audit --help`."""

from omegaconf import DictConfig

from deepfake.command import command
from deepfake.config import AuditConfig, parse_audit


def run(cfg: AuditConfig) -> int:
    """Look for shortcuts, leaks, duplicates and broken files; leave a page, its data and the catalogue.

    Returns:
        Exit status: 0 clean, 3 doubtful, 4 loud.

    Raises:
        UserError: no images, or settings that do not fit them.
    """
    from deepfake.auditing import audit  # scikit-learn and the decoders: --help need not wait for them

    return audit(cfg)


@command("audit")
def main(cfg: DictConfig) -> int:
    """Entry point of the command."""
    return run(parse_audit(cfg))


if __name__ == "__main__":
    main()
