"""The numbers of the paper's Table 4, error rates in percent under black-box attacks."""

from collections.abc import Mapping

ATTACKS = ("fgsm", "eap", "pgm", "vap")
"""The columns F, E, P, V."""

AMC, UNDEFENDED = "amc", "undefended"
"""Names of two rows; the others are called after the attack of AT[P]."""

TABLE_4: Mapping[str, Mapping[str, tuple[float, float, float, float]]] = {
    "mnist": {
        UNDEFENDED: (83.2, 8.7, 81.9, 30.9),
        "fgsm": (17.2, 3.68, 25.1, 21.3),
        "eap": (82.3, 1.5, 52.3, 28.8),
        "pgm": (52.6, 3.78, 21.3, 4.5),
        "vap": (31.3, 4.0, 39.5, 27.03),
        AMC: (18.2, 1.3, 20.8, 2.4),
    },
    "svhn": {
        UNDEFENDED: (72.7, 18.8, 71.4, 31.4),
        "fgsm": (62.2, 15.1, 67.4, 27.4),
        "eap": (70.8, 12.9, 68.6, 29.1),
        "pgm": (64.3, 11.4, 54.0, 25.9),
        "vap": (69.4, 15.8, 54.7, 26.8),
        AMC: (55.3, 8.8, 44.5, 19.9),
    },
    "cifar10": {
        UNDEFENDED: (66.9, 16.0, 44.6, 36.4),
        "fgsm": (65.4, 16.0, 43.7, 35.1),
        "eap": (66.6, 16.0, 44.2, 35.4),
        "pgm": (65.6, 18.3, 43.6, 35.1),
        "vap": (65.8, 16.2, 43.7, 34.8),
        AMC: (59.2, 16.1, 41.3, 30.7),
    },
}
"""By dataset and system: Vijaykeerthy et al., IJCNN 2019, Table 4; the interface that answers with labels."""


def paper_number(dataset: str, system: str, attack: str) -> float | None:
    """Return the paper's error rate; None where it has none.

    Example:
        >>> paper_number("mnist", "amc", "pgm"), paper_number("digits", "amc", "pgm")
        (20.8, None)
    """
    row = TABLE_4.get(dataset, {}).get(system)
    return None if row is None or attack not in ATTACKS else row[ATTACKS.index(attack)]
