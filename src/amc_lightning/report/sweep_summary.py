"""The summary of a sweep, written anew from the files of its jobs: summary.md, summary.json, pictures and tables."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from amc_lightning.report.columns import Column
from amc_lightning.report.sweep_comparison import Choice, choices, order_rows, spread, sweep_columns
from amc_lightning.report.sweep_heat_map import OrderMap, draw_orders, order_map, save_orders
from amc_lightning.report.sweep_markdown import sweep_text
from amc_lightning.report.sweep_reading import read_entries
from amc_lightning.report.sweep_record import Entry, OrderRow
from amc_lightning.report.table4 import black_box_tables
from amc_lightning.report.table4_file import TABLE_4, write_table4
from amc_lightning.report.table4_markdown import section
from amc_lightning.results import write_whole

SUMMARY_FILE = "summary.md"
DATA_FILE = "summary.json"
ORDERS = "figures/orders.png"
FORMAT = 1


def write_summary(folder: Path, entries: Sequence[Entry] | None = None) -> Path | None:
    """Write the summary of a sweep from what its jobs have left so far, each file in one step.

    Whoever calls this holds the sweep's lock: jobs may end at the same time.

    Args:
        folder: the sweep's folder.
        entries: the jobs that have ended, as ``read_entries`` gives them; read if left out.

    Returns:
        Path of summary.md; None if no job has ended.

    Raises:
        OSError: if a file cannot be written.
    """
    entries = read_entries(folder) if entries is None else entries
    if not entries:
        return None
    shown = sweep_columns(entries)
    rows = order_rows(entries)
    found = choices(rows)
    picture = None if _is_of_systems(entries) else order_map(rows, shown, found)
    figure = None
    if picture is not None:
        figure = _identity(picture)
        if not ((folder / ORDERS).exists() and _drawn(folder) == figure):
            save_orders(draw_orders(picture), folder / ORDERS)
    data = {**_data(entries, shown, rows, found), "figure": figure}
    write_whole(folder / DATA_FILE, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
    tables = black_box_tables(entries)
    write_table4(folder, tables)
    black_box = list(section(tables, TABLE_4)) if tables else []
    text = sweep_text(entries, shown, rows, found, None if picture is None else ORDERS, black_box)
    write_whole(folder / SUMMARY_FILE, text.encode())
    return folder / SUMMARY_FILE


def _is_of_systems(entries: Sequence[Entry]) -> bool:
    """Say whether the jobs are rows of the paper's tables, which have pictures of their own."""
    return any(entry.results is not None and entry.results.system for entry in entries)


def _identity(picture: OrderMap) -> str:
    """Return a digest of all that a picture shows."""
    return sha256(repr(picture).encode()).hexdigest()


def _drawn(folder: Path) -> str | None:
    """Return the digest of the picture that is there; None if it cannot be told."""
    try:
        raw = json.loads((folder / DATA_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return raw.get("figure") if isinstance(raw, dict) else None


def _data(
    entries: Sequence[Entry], columns: Sequence[Column], rows: Sequence[OrderRow], found: Sequence[Choice]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "jobs": [_job(entry, columns) for entry in entries],
        "orders": [_order(row, columns) for row in rows],
        "best": [_choice(choice) for choice in found],
    }


def _job(entry: Entry, columns: Sequence[Column]) -> dict[str, Any]:
    rates = {_key(column): entry.rate(column) for column in columns}
    return {
        **asdict(entry.job),
        "status": entry.status,
        "problem": entry.problem,
        "validation": entry.validation,
        "errors": {
            key: {"error": rate.error, "low": rate.low, "high": rate.high, "n": rate.n}
            for key, rate in rates.items()
            if rate is not None
        },
    }


def _order(row: OrderRow, columns: Sequence[Column]) -> dict[str, Any]:
    errors = {_key(column): row.errors(column) for column in columns}
    return {
        "settings": row.settings,
        "order": row.order,
        "seeds": row.seeds,
        "validation": row.validation(),
        "mean": {key: math.fsum(values) / len(values) for key, values in errors.items() if values},
        "spread": {key: asdict(found) for key, values in errors.items() if (found := spread(values)) is not None},
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "settings": choice.settings,
        "attacks": choice.attacks,
        "seeds": choice.seeds,
        "ranked": [{"order": row.order, "validation": value} for row, value in choice.ranked],
        "gap": choice.gap,
        "resolution": choice.resolution,
        "rows": choice.rows,
        "is_resolved": choice.is_resolved,
    }


def _key(column: Column) -> str:
    return column.key if column.group == "clean" else f"{column.strength}/{column.key}"
