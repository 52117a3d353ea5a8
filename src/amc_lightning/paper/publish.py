"""What a report is made of, small enough to lie beside it: anyone can make the report again from that."""

import io
from pathlib import Path

import numpy as np

from amc_lightning.paper.flags import EXAMPLES_FILE
from amc_lightning.paper.manifest import Row, write_manifest
from amc_lightning.paper.runs import Run, Runs, undefended
from amc_lightning.report.decisive import DIAGNOSES
from amc_lightning.report.diagnosis_reading import DIAGNOSIS_FILE
from amc_lightning.report.node import RESULTS_FILE
from amc_lightning.report.reading import GALLERY_FILE
from amc_lightning.results import write_whole


def publish(runs: Runs, folder: Path, *, pictures: frozenset[str]) -> Path:
    """Copy what the report needs of every run, and write the manifest of the copies.

    Of the per-example results these are labels and which rows were wrong; sizes of perturbations are left out.

    Args:
        runs: what is copied.
        folder: where to.
        pictures: datasets of which the kept images of one run, that of Figure 1, are copied too; those of others may
            not be passed on.

    Returns:
        Path of the manifest.

    Raises:
        UserError: if a run's per-example results are missing or damaged.
        OSError: if a file cannot be read or written.
    """
    rows = []
    for run in runs.every:
        place = f"{run.dataset}_{run.system}_{run.seed}"
        write_whole(folder / place / RESULTS_FILE, (run.folder / RESULTS_FILE).read_bytes())
        write_whole(folder / place / EXAMPLES_FILE, _flags(run))
        for path in _diagnoses(run.folder):
            write_whole(folder / place / path.relative_to(run.folder), path.read_bytes())
        rows.append(Row(run.system, run.dataset, run.seed, run.last.key, place))
    for dataset in runs.datasets:
        shown = undefended(run for run in runs.every if run.dataset == dataset and (run.folder / GALLERY_FILE).exists())
        if shown is not None and dataset in pictures:
            place = f"{shown.dataset}_{shown.system}_{shown.seed}"
            write_whole(folder / place / GALLERY_FILE, (shown.folder / GALLERY_FILE).read_bytes())
    return write_manifest(folder, rows)


def _diagnoses(folder: Path) -> list[Path]:
    """Return the diagnoses of a run's last model, bare and with a squeezing in front."""
    return sorted([*folder.glob(DIAGNOSIS_FILE), *folder.glob(f"{DIAGNOSES}/*/{DIAGNOSIS_FILE}")])


def _flags(run: Run) -> bytes:
    kept = {
        name: array for name, array in run.flags.arrays.items() if name.startswith("labels/") or name.endswith("/wrong")
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **kept)
    return buffer.getvalue()
