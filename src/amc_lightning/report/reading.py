"""A run folder's files as typed values: results.json, gallery.npz and metrics.csv.

Everything a report shows comes through here, so that a damaged or foreign file is one clear message and not a traceback
half-way through a figure.
"""

import csv
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from amc_lightning.errors import UserError
from amc_lightning.report.node import DO, RESULTS_FILE, Node
from amc_lightning.report.record import Dataset, Epoch, Evaluation, Gallery, Norm, Rate, Results, Stage, Strength

FORMAT = 1
GALLERY_FILE = "gallery.npz"
METRICS_FILE = "metrics.csv"
_ID_COLUMNS = ("stage", "name", "epoch", "step")


def read_results(folder: Path) -> Results:
    """Read and check ``results.json`` of a run folder.

    Args:
        folder: the run's output folder.

    Returns:
        The checked results.

    Raises:
        UserError: if the file is missing, is not JSON (a truncated file is not), has another format number, or lacks
            or misspells a field.
    """
    path = Path(folder) / RESULTS_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(RESULTS_FILE, str(path), "does not exist", "a run writes it at its end", DO) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        problem = f"is not complete JSON ({error})"
        raise UserError(RESULTS_FILE, str(path), problem, "a whole file of format 1 is read", DO) from None
    if not isinstance(raw, dict):
        problem = f"holds a {type(raw).__name__}, not an object"
        raise UserError(RESULTS_FILE, str(path), problem, "a file of format 1 is read", DO)
    return parse_results(raw)


def parse_results(raw: Mapping[str, object]) -> Results:
    """Check a results.json that is already in memory; see ``read_results``.

    Raises:
        UserError: if the format number is another, or a field is missing or of a wrong type.
    """
    node = Node(raw, "")
    if raw.get("format") != FORMAT:
        where, problem = f"{RESULTS_FILE}: format", "is not a format that this version reads"
        raise UserError(where, raw.get("format"), problem, f"known: {FORMAT}", "Use the version that wrote the file.")
    data = node.child("dataset")
    evaluated = node.texts("evaluated")
    shape = data.numbers("shape")
    return Results(
        experiment=node.text("experiment"),
        defence=node.text("defence"),
        created=node.text("created"),
        status=node.text("status"),
        seed=int(node.number("seed")),
        device=node.text("device"),
        threads=int(node.number("threads")),
        versions={key: str(value) for key, value in node.child("versions").raw.items()},
        commit=node.optional_text("commit"),
        dataset=Dataset(
            name=data.text("name"),
            verified=data.flag("verified"),
            fingerprint=data.text("fingerprint"),
            class_names=data.texts("class_names"),
            shape=(int(shape[0]), int(shape[1]), int(shape[2])) if len(shape) == 3 else data.fail("shape", "C, H, W"),
            counts=data.child("counts").counts(),
            counts_read=data.child("counts_read").counts(),
            limit=None if data.raw.get("limit") is None else int(data.number("limit")),
        ),
        threat_model=node.text("threat_model"),
        preset=node.text("preset"),
        order=node.texts("order"),
        evaluated=evaluated,
        budget={
            name: (entry.text("norm"), entry.number("radius"))
            for name, entry in node.child("budget").children().items()
            if name in evaluated
        },
        attacks={
            strength: {name: dict(parameters.raw) for name, parameters in entry.children().items()}
            for strength, entry in node.child("attacks").children().items()
        },
        stages=tuple(_stage(entry) for entry in node.items("stages")),
    )


def read_gallery(folder: Path) -> Gallery | None:
    """Read the pictures of a run, ``gallery.npz``; None where the run kept none.

    Raises:
        UserError: if the file is there and is truncated or lacks its clean images or labels.
    """
    path = Path(folder) / GALLERY_FILE
    if not path.exists():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return Gallery(x=arrays["x"], y=arrays["y"], arrays=arrays)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        problem = f"cannot be read ({error})"
        raise UserError(GALLERY_FILE, str(path), problem, "an .npz with x and y is read", DO) from None


def read_epochs(folder: Path) -> list[Epoch]:
    """Read ``metrics.csv`` and average every metric over each epoch; empty where the run kept no such file.

    Averaging is over the rows in which a metric is present: training metrics come several times an epoch, validation
    metrics once. Values that are not finite are left out.

    Returns:
        Epochs in the order of training.

    Raises:
        UserError: if the columns stage, name or epoch are missing, or a cell is no number.
    """
    path = Path(folder) / METRICS_FILE
    if not path.exists():
        return []
    seen: dict[tuple[int, int], tuple[str, dict[str, list[float]]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        try:
            for row in csv.DictReader(file, strict=True):
                key = (int(row["stage"]), int(row["epoch"]))
                values = seen.setdefault(key, (row["name"], {}))[1]
                for metric, cell in row.items():
                    if metric not in _ID_COLUMNS and cell and math.isfinite(float(cell)):
                        values.setdefault(metric, []).append(float(cell))
        except (KeyError, ValueError, TypeError, csv.Error) as error:
            problem = f"has a row that cannot be read ({error!r})"
            allowed = "columns stage, name, epoch, step, then numbers"
            raise UserError(METRICS_FILE, str(path), problem, allowed, DO) from None
    return [
        Epoch(stage, name, epoch, {metric: sum(numbers) / len(numbers) for metric, numbers in values.items()})
        for (stage, epoch), (name, values) in sorted(seen.items(), key=lambda item: item[0])
    ]


def _stage(node: Node) -> Stage:
    evaluation = node.child("evaluation")
    return Stage(
        index=int(node.number("index")),
        name=node.text("name"),
        attack=node.optional_text("attack"),
        epochs=int(node.number("epochs")),
        steps=int(node.number("steps")),
        minutes=node.number("minutes"),
        rows=node.child("rows").counts(),
        passes_per_image=node.number("gradient_passes_per_image"),
        evaluation=Evaluation(
            clean=_rate(evaluation.child("clean")),
            paper=_rates(evaluation, "paper"),
            check=_rates(evaluation, "check"),
        ),
        key=node.optional_text("key") or "",
        from_store="from_store" in node.raw and node.flag("from_store"),
    )


def _rates(node: Node, strength: Strength) -> dict[str, Rate]:
    return {name: _rate(entry) for name, entry in node.child(strength).children().items()}


def _rate(node: Node) -> Rate:
    return Rate(
        n=int(node.number("n")),
        wrong=node.number("wrong"),
        error=node.number("error"),
        low=node.number("low"),
        high=node.number("high"),
        norms={
            name: Norm(entry.number("median"), entry.number("max"))
            for name, entry in node.child("norms", optional=True).children().items()
        },
        quantiles={
            name: {quantile: entry.number(quantile) for quantile in entry.raw}
            for name, entry in node.child("quantiles", optional=True).children().items()
            if None not in entry.raw.values()  # null where no row was fooled
        },
        gradient_passes=node.optional_number("gradient_passes"),
        zero_gradient=int(node.optional_number("zero_gradient") or 0),
    )
