"""One audit from settings to a page: catalogue, spectra, findings, verdict."""

import hashlib
import logging
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from deepfake.analysis.audit import near_duplicates, report
from deepfake.analysis.shortcuts import Shortcut, spectrum_shortcut
from deepfake.analysis.spectra import gray, power_spectrum, radial_profile
from deepfake.config import AuditConfig
from deepfake.console import log, logging_to_terminal, progress, remembering
from deepfake.data.catalog import safe_csv, write_catalogue
from deepfake.data.images import UnreadableImage
from deepfake.data.prepared import Preparation, PreparedImages
from deepfake.dataset import Catalogue, cache_folder, catalogue, left_out, preparation, say_left_out
from deepfake.errors import UserError
from deepfake.files import write_json, write_text
from deepfake.inputs import InputSpec
from deepfake.reporting.audit_page import write_page
from deepfake.runs import expect_writable, unwritable

STATUS = {"clean": 0, "doubtful": 3, "loud": 4}


def audit(cfg: AuditConfig) -> int:
    """See `deepfake.audit.run`."""
    began = time.monotonic()
    setting = "output_dir" if cfg.output is None else "output"
    with logging_to_terminal():
        expect_writable(Path(cfg.output or cfg.output_dir).expanduser(), setting)
        with remembering() as said:
            found = catalogue(cfg.data, cfg.progress)
        if not (found.table["status"] != "unreadable").any():
            raise UserError(
                f"{found.root}: expected images, found {len(found.table)} files and none that can be read."
            )
        say_left_out(found.table)
        how = preparation(cfg.data, found.table)
        spectrum = None
        if cfg.spectrum:
            spectrum, found = _spectrum(cfg, found, how)
        warnings = [record.getMessage() for record in said if record.levelno >= logging.WARNING]
        findings = report(found.table, how.equalise, spectrum, cfg.data.hold_out, warnings)
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
            near = near_duplicates(found.table[found.table["status"] != "unreadable"])
            write_text(folder / "near_duplicates.csv", safe_csv(near))
            write_json(folder / "audit.json", content)
            write_page(folder / "audit.html", content, found.table, found.root)
        except OSError as error:
            raise unwritable(folder, error.strerror, setting) from error
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


def _spectrum(cfg: AuditConfig, found: Catalogue, how: Preparation) -> tuple[Shortcut | None, Catalogue]:
    """What the power spectrum of the images, as a network would see them, tells by itself.

    Returns it, None where a part lacks a class, and the catalogue without what could not be prepared.
    """
    rows = found.table[found.table["split"] != ""].reset_index(drop=True)
    images = PreparedImages(
        InputSpec(cfg.size, (0.0,) * 3, (1.0,) * 3, cfg.interpolation),
        cache_folder(cfg.data),
        cfg.data.max_megapixels,
        how,
        cfg.data.cache.max_gb,
    )

    def profile(row: tuple[str, str]) -> np.ndarray | str:
        path, sha256 = row
        try:
            return radial_profile(power_spectrum(gray(images.read(found.root / path, sha256))))
        except UnreadableImage as error:
            return str(error)  # no face in it, or changed meanwhile
        finally:
            advance()

    with progress("spectra", len(rows), cfg.progress) as advance, ThreadPoolExecutor() as pool:
        profiles = list(pool.map(profile, zip(rows["path"], rows["sha256"], strict=True)))
    there = pd.Series([isinstance(p, np.ndarray) for p in profiles], dtype=bool)
    if not there.all():
        reasons = [p for p in profiles if isinstance(p, str)]
        table = left_out(found.table, rows.loc[~there, ["path"]].assign(reason=reasons))
        found = found._replace(table=table)
        say_left_out(table[table["path"].isin(rows.loc[~there, "path"])])
    rows = rows[there]
    if any(len(set(rows.loc[rows["split"] == part, "label"])) < 2 for part in ("train", "test")):
        return None, found
    power = np.stack([p for p in profiles if isinstance(p, np.ndarray)])
    return spectrum_shortcut(power, rows["label"], rows["split"]), found
