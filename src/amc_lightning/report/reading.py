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
from amc_lightning.report.record import Crafting, Dataset, Epoch, Gallery, Interface, ProxyData, Results, Squeezing
from amc_lightning.report.stage_reading import read_stage

FORMATS = (1, 2)
"""Format 1 has one evaluation a stage, under the threat model that the defender hardened for."""
GALLERY_FILE = "gallery.npz"
METRICS_FILE = "metrics.csv"
_KNOWN = " or ".join(map(str, FORMATS))
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
        raise UserError(RESULTS_FILE, str(path), problem, f"a whole file of format {_KNOWN} is read", DO) from None
    if not isinstance(raw, dict):
        problem = f"holds a {type(raw).__name__}, not an object"
        raise UserError(RESULTS_FILE, str(path), problem, f"a file of format {_KNOWN} is read", DO)
    return parse_results(raw)


def parse_results(raw: Mapping[str, object]) -> Results:
    """Check a results.json that is already in memory; see ``read_results``.

    Raises:
        UserError: if the format number is another, or a field is missing or of a wrong type.
    """
    node = Node(raw, "")
    number = raw.get("format")
    if isinstance(number, bool) or number not in FORMATS:
        where, problem = f"{RESULTS_FILE}: format", "is not a format that this version reads"
        raise UserError(where, number, problem, f"known: {_KNOWN}", "Use the version that wrote the file.")
    threat_model = node.text("threat_model")
    threat_models = (threat_model,) if number == 1 else node.texts("threat_models")
    if not threat_models:
        node.fail("threat_models", "at least one threat model")
    parameters = {threat_model: node.child("attacks")} if number == 1 else node.child("attacks").children()
    data = node.child("dataset")
    evaluated, order = node.texts("evaluated"), node.texts("order")
    shape = data.numbers("shape")
    interfaces = node.child("interfaces", optional=True)
    known = {name: _interface(entry) for name, entry in interfaces.children().items()}
    stages = tuple(read_stage(entry, threat_models, is_first=number == 1) for entry in node.items("stages"))
    for name in threat_models:
        if name not in interfaces.raw and any(name in s.evaluations and s.evaluations[name].proxies for s in stages):
            interfaces.fail(name, "an object, as attacks were made on proxies")
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
        threat_model=threat_model,
        preset=node.text("preset"),
        order=order,
        evaluated=evaluated,
        budget={
            name: (entry.text("norm"), entry.number("radius"))
            for name, entry in node.child("budget").children().items()
            if name in evaluated
        },
        attacks={
            name: {
                strength: {attack: dict(entry.raw) for attack, entry in members.children().items()}
                for strength, members in strengths.children().items()
            }
            for name, strengths in parameters.items()
        },
        stages=stages,
        threat_models=threat_models,
        interfaces={name: found for name, found in known.items() if name in threat_models},
        hardening=known.get(threat_model),
        proxy_data=_proxy_data(node.optional_child("proxy_data")),
        crafting=_crafting(node.optional_child("crafting"), len(order)),
        system=node.optional_text("system") or "",
        squeezings={
            name: Squeezing(entry.text("name"), dict(entry.child("settings").raw), entry.flag("adaptive"))
            for name, entry in node.child("squeezings", optional=True).children().items()
        },
        num_parameters=None if (size := node.optional_number("parameters")) is None else int(size),
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


def _interface(node: Node) -> Interface:
    budget = node.optional_number("budget")
    settings = dict(node.child("settings", optional=True).raw)
    return Interface(node.text("kind"), settings, None if budget is None else int(budget))


def _proxy_data(node: Node | None) -> ProxyData | None:
    if node is None:
        return None
    return ProxyData(
        source=node.text("source"),
        **{key: int(node.number(key)) for key in ("read", "overlapping", "repeated", "kept")},
        verified=node.flag("verified"),
        halves=node.flag("halves"),
    )


def _crafting(node: Node | None, stages: int) -> Crafting | None:
    if node is None:
        return None
    joint = node.optional_text("joint")
    stages = stages if joint is None else 1
    epochs = node.numbers("epochs")
    if len(epochs) != stages or not all(type(value) is int and value >= 0 for value in epochs):
        node.fail("epochs", f"{stages} whole numbers, one for each attack of the order")
    return Crafting(
        column=node.one_of("column", ("white_box", "black_box")),
        attacks={name: dict(entry.raw) for name, entry in node.child("attacks").children().items()},
        epochs=tuple(map(int, epochs)),
        transfer=node.one_of("transfer", ("parent", "none")),
        joint=joint,
    )
