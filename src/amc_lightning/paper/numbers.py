"""The numbers of the paper's Tables 2, 3, 5 and 6, error rates in percent; ``report.paper_table4`` has the others."""

from collections.abc import Mapping

from amc_lightning.paper.trained import AMC_SYSTEM, LOCAL_PROXY
from amc_lightning.report.paper_table4 import AMC, ATTACKS
from amc_lightning.report.record import UNDEFENDED

AT, AT_PROXY, TARGET, LOCAL, PROXY = "at", "at_proxy", AMC_SYSTEM, LOCAL_PROXY, "proxy"
"""Rows of Table 2, beside ``UNDEFENDED``."""

TABLE_2: Mapping[str, Mapping[str, float]] = {
    "mnist": {UNDEFENDED: 0.9, AT: 1.4, AT_PROXY: 1.1, TARGET: 1.4, LOCAL: 1.1, PROXY: 0.2},
    "svhn": {UNDEFENDED: 3.3, AT: 2.7, AT_PROXY: 3.2, TARGET: 1.3, LOCAL: 3.5, PROXY: 6.0},
    "cifar10": {UNDEFENDED: 9.5, AT: 10.4, AT_PROXY: 11.7, TARGET: 9.3, LOCAL: 9.9, PROXY: 17.1},
}
"""Clean error by dataset and row: Vijaykeerthy et al., IJCNN 2019, Table 2."""

TABLE_3: Mapping[str, Mapping[str, tuple[float, float, float, float]]] = {
    "mnist": {
        UNDEFENDED: (85.4, 86.6, 88.9, 69.3),
        "fgsm": (5.5, 51.2, 65.9, 42.4),
        "eap": (74.2, 15.4, 66.4, 50.4),
        "pgm": (31.6, 27.0, 4.4, 33.1),
        "vap": (27.6, 40.6, 64.6, 19.6),
        AMC: (5.1, 8.4, 3.1, 3.2),
    },
    "svhn": {
        UNDEFENDED: (75.7, 95.0, 97.6, 34.6),
        "fgsm": (2.7, 94.2, 94.5, 36.9),
        "eap": (91.6, 8.4, 91.56, 89.9),
        "pgm": (31.6, 58.3, 29.3, 49.3),
        "vap": (26.7, 83.6, 94.3, 15.8),
        AMC: (2.4, 4.9, 25.1, 4.5),
    },
    "cifar10": {
        UNDEFENDED: (86.2, 94.4, 97.2, 94.4),
        "fgsm": (12.0, 94.5, 95.1, 36.5),
        "eap": (90.0, 30.1, 96.7, 50.5),
        "pgm": (30.7, 35.4, 63.5, 29.3),
        "vap": (28.9, 70.5, 92.1, 13.0),
        AMC: (10.6, 23.9, 62.5, 11.0),
    },
}
"""White-box error by dataset and system, under F, E, P, V: Vijaykeerthy et al., IJCNN 2019, Table 3.

A system is called after the attack of its adversarial training; ``AMC`` is the target-hardened one.
"""

TABLE_5: Mapping[str, Mapping[tuple[str, str], tuple[float, float]]] = {
    "mnist": {
        ("paper", "eap"): (8.4, 3.1),
        ("paper", "pgm"): (3.1, 2.9),
        ("stronger", "eap"): (89.7, 44.6),
        ("stronger", "pgm"): (98.8, 6.73),
    },
    "svhn": {
        ("paper", "eap"): (4.9, 2.1),
        ("paper", "pgm"): (25.1, 10.1),
        ("stronger", "eap"): (94.2, 39.3),
        ("stronger", "pgm"): (98.1, 40.5),
    },
    "cifar10": {
        ("paper", "eap"): (23.9, 19.2),
        ("paper", "pgm"): (62.5, 49.6),
        ("stronger", "eap"): (93.9, 36.9),
        ("stronger", "pgm"): (97.6, 38.2),
    },
}
"""White-box error of AMC, and of AMC and feature squeezing, by dataset, strength and attack.

Reference:
    Vijaykeerthy et al., IJCNN 2019, Table 5; its "normal" is the strength ``paper`` here. Its examples were made
    without the squeezing and squeezed afterwards (``Scripts/e2e.sh`` of the authors' code).
"""

TABLE_6: Mapping[str, tuple[float, float, float]] = {
    "mnist": (85.4, 15.4, 14.8),
    "svhn": (75.7, 12.1, 11.0),
    "cifar10": (86.2, 24.7, 23.9),
}
"""White-box error under FGSM of the undefended model, of AMC without FGSM, and of that with feature squeezing.

Reference:
    Vijaykeerthy et al., IJCNN 2019, Table 6, by dataset.
"""


def table2_number(dataset: str, row: str) -> float | None:
    """Return the paper's clean error; None where it has none."""
    return TABLE_2.get(dataset, {}).get(row)


def table3_number(dataset: str, row: str, attack: str) -> float | None:
    """Return the paper's white-box error; None where it has none.

    Example:
        >>> table3_number("mnist", "amc", "eap"), table3_number("mnist", "amc", "eap@budget")
        (8.4, None)
    """
    numbers = TABLE_3.get(dataset, {}).get(row)
    return None if numbers is None or attack not in ATTACKS else numbers[ATTACKS.index(attack)]


def table5_number(dataset: str, strength: str, attack: str, *, squeezed: bool) -> float | None:
    """Return the paper's error of AMC, bare or squeezed afterwards; None where it has none.

    Example:
        >>> table5_number("mnist", "stronger", "pgm", squeezed=True)
        6.73
    """
    pair = TABLE_5.get(dataset, {}).get((strength, attack))
    return None if pair is None else pair[squeezed]


def table6_number(dataset: str, row: int) -> float | None:
    """Return the paper's error under FGSM as the unseen attack; None where it has none.

    Args:
        dataset: its name.
        row: 0 the undefended model, 1 AMC without FGSM, 2 the same, squeezed afterwards.
    """
    return TABLE_6[dataset][row] if dataset in TABLE_6 else None
