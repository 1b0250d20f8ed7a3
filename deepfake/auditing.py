"""One audit from settings to a page: catalogue, spectra, findings, verdict."""

import hashlib
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from deepfake.analysis.audit import report
from deepfake.analysis.shortcuts import Shortcut, spectrum_shortcut
from deepfake.analysis.spectra import gray, power_spectrum, radial_profile
from deepfake.config import AuditConfig
from deepfake.console import log, logging_to_terminal, progress
from deepfake.data.catalog import write_catalogue
from deepfake.data.images import UnreadableImage
from deepfake.data.prepared import PreparedImages
from deepfake.dataset import Catalogue, cache_folder, catalogue, preparation, say_unreadable
from deepfake.errors import UserError
from deepfake.files import write_json
from deepfake.inputs import InputSpec
from deepfake.reporting.audit_page import write_page

STATUS = {"clean": 0, "doubtful": 3, "loud": 4}


def audit(cfg: AuditConfig) -> int:
    """See `deepfake.audit.run`."""
    began = time.monotonic()
    with logging_to_terminal():
        found = catalogue(cfg.data, cfg.progress)
        if not (found.table["status"] != "unreadable").any():
            raise UserError(
                f"{found.root}: expected images, found {len(found.table)} files and none that can be read."
            )
        say_unreadable(found.table)
        spectrum = _spectrum(cfg, found) if cfg.spectrum else None
        findings = report(found.table, cfg.data.equalise, spectrum)
        content = {
            "root": str(found.root.absolute()),
            **findings,
            "settings": asdict(cfg),
            "seconds": round(time.monotonic() - began, 1),
            "command": shlex.join(["python", "-m", "deepfake.audit", *sys.argv[1:]]),
        }
        folder = _folder(cfg, found.root)
        try:
            write_catalogue(found.table, folder / "catalogue.csv")
            write_json(folder / "audit.json", content)
            write_page(folder / "audit.html", content, found.table, found.root)
        except OSError as error:
            raise UserError(
                f"output: expected a folder that can be written, found {folder} ({error.strerror}). "
                f"Name another with output=..."
            ) from error
        for finding in findings["findings"]:
            say = log.info if finding["level"] == "note" else log.warning
            say("%-8s %s", finding["level"], finding["sentence"])
        log.info("verdict  %s. %s", findings["verdict"], findings["sentence"])
        log.info("page     %s", folder / "audit.html")
    return STATUS[findings["verdict"]]


def _folder(cfg: AuditConfig, root: Path) -> Path:
    if cfg.output is not None:
        return Path(cfg.output).expanduser()
    # Two folders of the same name, or two ways to look at one, are two audits.
    key = hashlib.sha256(f"{root.absolute()}:{asdict(cfg.data)}".encode()).hexdigest()[:8]
    return Path(cfg.output_dir).expanduser() / "audits" / f"{root.absolute().name}-{key}"


def _spectrum(cfg: AuditConfig, found: Catalogue) -> Shortcut | None:
    """What the power spectrum of the images, as a network would see them, tells by itself."""
    rows = found.table[found.table["split"] != ""].reset_index(drop=True)
    if any(rows.loc[rows["split"] == part, "label"].nunique() < 2 for part in ("train", "test")):
        return None
    images = PreparedImages(
        InputSpec(cfg.size, (0.0,) * 3, (1.0,) * 3, cfg.interpolation),
        cache_folder(cfg.data),
        cfg.data.max_megapixels,
        preparation(cfg.data, rows),
        cfg.data.cache.max_gb,
    )

    def profile(row: tuple[str, str]) -> np.ndarray | None:
        path, sha256 = row
        try:
            return radial_profile(power_spectrum(gray(images.read(found.root / path, sha256))))
        except UnreadableImage:
            return None  # no face in it, or changed meanwhile
        finally:
            advance()

    with progress("spectra", len(rows), cfg.progress) as advance, ThreadPoolExecutor() as pool:
        profiles = list(pool.map(profile, zip(rows["path"], rows["sha256"], strict=True)))
    there = pd.Series([p is not None for p in profiles])
    return spectrum_shortcut(
        np.stack([p for p in profiles if p is not None]), rows.loc[there, "label"], rows.loc[there, "split"]
    )
