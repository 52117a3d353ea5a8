"""Which values each attack parameter may take, as one table by name."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from amc_lightning.errors import UserError


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _at_least_0(value: object) -> bool:
    return _is_number(value) and value >= 0  # type: ignore[operator]


def _above_0(value: object) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]


@dataclass(frozen=True)
class _Range:
    """What one parameter may be, as a check and in words."""

    holds: Callable[[object], bool]
    allowed: str


_NOT_NEGATIVE = _Range(_at_least_0, "allowed: a finite number >= 0")
_POSITIVE = _Range(_above_0, "allowed: a finite number > 0")
_POSITIVE_OR_NULL = _Range(lambda value: value is None or _above_0(value), "allowed: a finite number > 0, or null")
_COUNT = _Range(
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1, "allowed: a whole number >= 1"
)
_SWITCH = _Range(lambda value: isinstance(value, bool), "allowed: true, false")


def _one_of(*choices: str) -> _Range:
    return _Range(lambda value: value in choices, f"allowed: {', '.join(choices)}")


RANGES: Mapping[str, _Range] = {
    "eps": _NOT_NEGATIVE,
    "eps_iter": _POSITIVE_OR_NULL,
    "nb_iter": _COUNT,
    "rand_init": _SWITCH,
    "restarts": _COUNT,
    "keep_best": _SWITCH,
    "compact": _SWITCH,
    "beta": _NOT_NEGATIVE,
    "binary_search_steps": _COUNT,
    "max_iterations": _COUNT,
    "initial_const": _POSITIVE,
    "learning_rate": _POSITIVE,
    "confidence": _NOT_NEGATIVE,
    "decision_rule": _one_of("EN", "L1"),
    "abort_early": _SWITCH,
    "norm": _one_of("linf", "l2", "l1"),
    "n_target_classes": _COUNT,
    "n_queries": _COUNT,
    "square_seed": _Range(lambda value: isinstance(value, int) and _at_least_0(value), "allowed: a whole number >= 0"),
    "nb_candidate": _Range(
        lambda value: isinstance(value, int) and _at_least_0(value) and value >= 2, "allowed: a whole number >= 2"
    ),
    "overshoot": _POSITIVE,
    "max_iter": _COUNT,
    "xi": _POSITIVE,
    "num_iters": _COUNT,
    "method": _one_of("exact", "logit", "finite"),
    # names that torchattacks' own classes use
    "alpha": _POSITIVE,
    "steps": _COUNT,
    "random_start": _SWITCH,
}


def check_ranges(params: Mapping[str, object], *, key: str) -> None:
    """Check every parameter that the table knows.

    Args:
        params: parameters under the project's names.
        key: dotted setting that holds them, for the message.

    Raises:
        UserError: naming the first parameter out of its range.
    """
    for name, value in params.items():
        rule = RANGES.get(name)
        if rule is not None and not rule.holds(value):
            raise UserError(f"{key}.{name}", value, "is out of range", rule.allowed, f"Correct {key}.{name}.")


def check_budget(eps: float, norm: str, image_shape: Sequence[int] | None, *, key: str) -> None:
    """Check that a radius is not larger than the whole box [0, 1]^n in its norm.

    Args:
        eps: radius in pixel units of [0, 1], >= 0.
        norm: ``linf``, ``l2`` or ``l1``.
        image_shape: (C, H, W); without it only l-inf can be checked.
        key: dotted setting of the radius, for the message.

    Raises:
        UserError: if the radius is larger.
    """
    pixels = None if image_shape is None else math.prod(image_shape)
    largest = {"linf": 1.0, "l2": pixels and math.sqrt(pixels), "l1": pixels and float(pixels)}[norm]
    if largest is None or eps <= largest:
        return
    reason = "pixels lie in [0, 1]" if norm == "linf" else f"the images have {pixels} pixels in [0, 1]"
    do = "Give eps in units of [0, 1]: 8/255 = 0.031, not 8." if norm == "linf" else f"Lower {key}."
    raise UserError(
        key, eps, f"is larger than the whole image in {norm}", f"allowed: 0 to {largest:.4g}, as {reason}", do
    )
