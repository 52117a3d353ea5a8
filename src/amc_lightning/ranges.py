"""Which values settings may take: numbers and choices, and each attack parameter, as one table by name."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Rational, Real
from typing import Any, TypeGuard

from amc_lightning.errors import UserError


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    """Take numpy's numbers, but no fractions: tensors cannot be multiplied by them."""
    return _is_whole(value) or (isinstance(value, Real) and not isinstance(value, Rational))


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


@dataclass(frozen=True)
class _Range:
    """What one parameter may be, as checks and in words.

    Args:
        allowed: in words.
        is_kind: whether a value is of the right kind at all.
        other: what is said of a value that is not.
        holds: whether a value of that kind is in its range.
    """

    allowed: str
    is_kind: Callable[[object], bool]
    other: str
    holds: Callable[[Any], bool] = lambda value: True


def _number(allowed: str, holds: Callable[[Any], bool], *, or_null: bool = False) -> _Range:
    def finite(value: Any) -> bool:
        return value is None or (-math.inf < value < math.inf and holds(value))

    return _Range(
        f"allowed: a finite number {allowed}",
        lambda value: _is_number(value) or (or_null and value is None),
        "is no number",
        finite,
    )


def _whole(low: int) -> _Range:
    return _Range(f"allowed: a whole number >= {low}", _is_whole, "is no whole number", lambda value: value >= low)


def _one_of(*choices: str) -> _Range:
    return _Range(f"known: {', '.join(choices)}", lambda value: value in choices, "is not known")


_NOT_NEGATIVE = _number(">= 0", lambda value: value >= 0)
_POSITIVE = _number("> 0", lambda value: value > 0)
_POSITIVE_OR_NULL = _number("> 0, or null", lambda value: value > 0, or_null=True)
_COUNT = _whole(1)
_SWITCH = _Range("allowed: true, false", _is_switch, "is no switch")

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
    "square_seed": _whole(0),
    "nb_candidate": _whole(2),
    "overshoot": _POSITIVE,
    "max_iter": _COUNT,
    "xi": _POSITIVE,
    "num_iters": _COUNT,
    "linf": _number("in [0, 1]", lambda value: 0 <= value <= 1),
    "l2": _NOT_NEGATIVE,
    "l1": _NOT_NEGATIVE,
    "method": _one_of("exact", "logit", "finite"),
    # names that torchattacks' own classes use
    "alpha": _POSITIVE,
    "steps": _COUNT,
    "random_start": _SWITCH,
}


def check_ranges(params: Mapping[str, object], *, key: str, foreign: bool = False) -> None:
    """Check every parameter that the table knows.

    Args:
        params: parameters under the project's names.
        key: dotted setting that holds them, for the message.
        foreign: the attack's class is of another package, which may spell its norms differently.

    Raises:
        UserError: naming the first parameter of a wrong type or out of its range.
    """
    for name, value in params.items():
        rule = RANGES.get(name)
        if rule is None or (foreign and name == "norm"):
            continue
        problem = "is out of range" if rule.is_kind(value) else rule.other
        if not rule.is_kind(value) or not rule.holds(value):
            raise UserError(f"{key}.{name}", value, problem, rule.allowed, f"Correct {key}.{name}.")


def check_budget(eps: float, norm: str, image_shape: Sequence[int] | None, *, key: str) -> None:
    """Check that a radius is not larger than the whole box [0, 1]^n in its norm.

    Args:
        eps: radius in pixel units of [0, 1], >= 0.
        norm: ``linf``, ``l2`` or ``l1``, in upper or lower case; others are not checked.
        image_shape: (C, H, W); without it only l-inf can be checked.
        key: dotted setting of the radius, for the message.

    Raises:
        UserError: if the radius is larger.
    """
    pixels = None if image_shape is None else math.prod(image_shape)
    largest = {"linf": 1.0, "l2": pixels and math.sqrt(pixels), "l1": pixels and float(pixels)}.get(norm.lower())
    if largest is None or eps <= largest:
        return
    reason = "pixels lie in [0, 1]" if norm.lower() == "linf" else f"the images have {pixels} pixels in [0, 1]"
    do = "Give eps in units of [0, 1]: 8/255 = 0.031, not 8." if norm.lower() == "linf" else f"Lower {key}."
    raise UserError(
        key, eps, f"is larger than the whole image in {norm}", f"allowed: 0 to {largest:.4g}, as {reason}", do
    )


def check_choice(key: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a value that is none of the allowed ones; the nearest is suggested.

    Raises:
        UserError: if it is none of them.
    """
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        do = f"Did you mean {close[0]}?" if close else "Choose one of them."
        raise UserError(key, value, "is not known", f"known: {', '.join(allowed)}", do)


def check_number(key: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Refuse a number outside [low, high], or (low, high] with ``open_low``.

    Raises:
        UserError: if it is outside, or not finite.
    """
    inside = math.isfinite(value) and (low < value if open_low else low <= value) and value <= high
    if not inside:
        left, right = "(" if open_low else "[", ")" if high == math.inf else "]"
        upper = "infinity" if high == math.inf else f"{high:g}"
        raise UserError(key, value, "is out of range", f"allowed: {left}{low:g}, {upper}{right}", f"Change {key}.")
