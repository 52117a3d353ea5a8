"""The page of a diagnosis and its pictures, from diagnosis.json and nothing else."""

from pathlib import Path

from amc_lightning.report.diagnosis_figures import write_diagnosis_figures
from amc_lightning.report.diagnosis_reading import read_diagnosis
from amc_lightning.report.diagnosis_text import diagnosis_markdown, diagnosis_table, diagnosis_text
from amc_lightning.results import write_whole

__all__ = ["PAGE", "diagnosis_table", "diagnosis_text", "write_diagnosis"]

PAGE = "diagnosis.md"


def write_diagnosis(folder: Path) -> Path:
    """Write the pictures and then the page that embeds them.

    Args:
        folder: with diagnosis.json.

    Returns:
        Path of diagnosis.md.

    Raises:
        UserError: if diagnosis.json is missing, damaged or of another format.
        OSError: if a file cannot be written.
    """
    folder = Path(folder)
    found = read_diagnosis(folder)
    text = diagnosis_markdown(found, write_diagnosis_figures(found, folder))
    write_whole(folder / PAGE, text.encode())
    return folder / PAGE
