"""Outcomes of measurements as entries of the store."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from amc_lightning.entry import REMOVE, Entry
from amc_lightning.errors import UserError
from amc_lightning.rows import NORMS, Outcome

OUTCOME = "outcome.safetensors"


def packed(outcome: Outcome) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
    """Return an outcome as facts and files of an entry; what the labels say is left out."""
    arrays = {"predicted": outcome.predicted, "kept": outcome.kept}
    if outcome.crafter_predicted is not None:
        arrays["crafter_predicted"] = outcome.crafter_predicted
    arrays |= {f"norm_{name}": sizes for name, sizes in outcome.norms.items()}
    facts = {"gradient_passes": outcome.gradient_passes, "zero_gradient": outcome.zero_gradient}
    return facts, {OUTCOME: save({name: np.ascontiguousarray(array) for name, array in arrays.items()})}


def unpacked(entry: Entry, labels: NDArray[np.int64]) -> Outcome:
    """Return the outcome of an entry.

    Args:
        entry: what ``packed`` was published as.
        labels: true classes of the rows, (N,) int64.

    Raises:
        UserError: if it is no outcome, or one of other rows.
    """
    wrong = UserError("store.root", str(entry.folder), "is not an outcome of these rows", f"{len(labels)} rows", REMOVE)
    try:
        arrays = load(entry.file(OUTCOME))
        predicted, kept = arrays["predicted"], arrays["kept"]
        passes = float(entry.facts["gradient_passes"])
        unmoved = entry.facts["zero_gradient"]
        unmoved = None if unmoved is None else int(unmoved)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise wrong from error
    # in our order: that of the file's table is anyone's
    norms: dict[str, NDArray[np.float64]] = {name: arrays[f"norm_{name}"] for name in NORMS if f"norm_{name}" in arrays}
    crafter = arrays.get("crafter_predicted")
    given = (predicted, *norms.values()) if crafter is None else (predicted, crafter, *norms.values())
    if any(array.shape != labels.shape for array in given):
        raise wrong
    return Outcome(predicted != labels, predicted, norms, kept, passes, unmoved, crafter)


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """Return SHA-256 over images and labels in their order, in hexadecimal."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    for tensor in (images, labels):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
