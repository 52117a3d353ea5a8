"""Where a model and its numbers come from, as far as its examiner was told."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor


def hash_of_each(images: Tensor) -> list[str]:
    """Return a hash of each image, (N, C, H, W) uint8 or float32 in [0, 1]; a uint8 image and its float copy agree."""
    pixels = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    rows = pixels.cpu().contiguous().flatten(1).numpy()
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in rows]


def row_hashes(images: Tensor) -> frozenset[str]:
    """Return the hashes of images, as ``Provenance`` takes them; see ``hash_of_each``."""
    return frozenset(hash_of_each(images))


@dataclass(frozen=True)
class Provenance:
    """What is known of a model beside its weights; everything is optional, and what is not told is not judged.

    Attributes:
        trained_against: names of the attacks whose examples it was trained on; empty for an undefended model.
        picked: ``last`` for the last weights, ``best`` for those that were best on ``chosen_on``.
        chosen_on: hashes (``row_hashes``) of the images that weights, epochs or hyper-parameters were chosen on.
        trained_on: hashes of the images that it was trained on.
        seeds: how many seeds the claim rests on.
        record: what is on file of the run, such as the content of its results.json.
        artefacts: what makes the claim repeatable, by what it is: ``config``, ``seed``, ``versions``, ``examples``,
            ``command``, ``weights`` (a hash).
        pipeline: hash (``pipeline_hash``) of the object that is deployed; None if nobody said.
        claimed_error: the error rate in percent that the claim quotes under its threat model; None if nobody said.
    """

    trained_against: tuple[str, ...] | None = None
    picked: Literal["last", "best"] | None = None
    chosen_on: frozenset[str] | None = None
    trained_on: frozenset[str] | None = None
    seeds: int | None = None
    record: Mapping[str, Any] | None = None
    artefacts: Mapping[str, str] = field(default_factory=dict)
    pipeline: str | None = None
    claimed_error: float | None = None
