"""The figures of a run folder."""

import logging
import re
from pathlib import Path

from matplotlib.figure import Figure

from amc_lightning.report.curves import draw_curves
from amc_lightning.report.examples import draw_examples
from amc_lightning.report.heat_map import draw_error_rates
from amc_lightning.report.palette import save
from amc_lightning.report.reading import read_epochs, read_gallery, read_results
from amc_lightning.report.record import Results

log = logging.getLogger(__name__)

FIGURES_FOLDER = "figures"
EXAMPLES, ERROR_RATES, TRAINING_CURVES = "examples.png", "error_rates.png", "training_curves.png"


def error_rates_file(results: Results, threat_model: str) -> str:
    """Return the name of the heat map under one threat model; the primary one's has no addition."""
    if threat_model == results.primary:
        return ERROR_RATES
    return f"error_rates_{re.sub(r'[^A-Za-z0-9._-]', '_', threat_model)}.png"


def write_figures(folder: Path) -> list[Path]:
    """Draw and write every figure the files of a run folder allow.

    Args:
        folder: the run's output folder, with results.json and, where they were kept, gallery.npz and metrics.csv.

    Returns:
        Paths of the written PNGs.

    Raises:
        UserError: if a file is there and cannot be read.
    """
    folder = Path(folder)
    results = read_results(folder)
    gallery = read_gallery(folder)
    drawn: dict[str, Figure | None] = {
        EXAMPLES: None if gallery is None else draw_examples(results, gallery),
        **{
            error_rates_file(results, name): draw_error_rates(results.under(name))
            for name in results.threat_models
            if name not in results.squeezings  # a picture of the one without the other would mislead
        },
        TRAINING_CURVES: draw_curves(results, read_epochs(folder)),
    }
    written = []
    for name, figure in drawn.items():
        if figure is None:
            log.info("%s is not drawn: the run kept nothing to show in it.", name)
        else:
            written.append(save(figure, folder / FIGURES_FOLDER / name))
    return written
