"""A run folder as a run writes it, made up but consistent: every rate follows from counts."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

N_TEST, N_ATTACK, N_GALLERY = 350, 140, 12
# rows wrong of N_ATTACK, per stage of the cascade: undefended, fgsm, vap, eap, pgm
WRONG = {
    "fgsm": (129, 40, 30, 27, 24),
    "vap": (121, 75, 33, 30, 29),
    "eap": (140, 139, 138, 136, 137),
    "eap@budget": (138, 120, 99, 41, 38),
    "pgm": (140, 120, 110, 60, 33),
    "unseen": (88, 66, 44, 33, 22),
}
PGM_CHECK = (140, 128, 121, 75, 46)
WORST = {"paper": (140, 133, 121, 78, 52), "check": (140, 136, 128, 90, 61)}
CLEAN_TEST = (10, 8, 9, 11, 12)
CLEAN_ATTACK = (4, 3, 4, 5, 5)
PARAMS: dict[str, dict[str, Any]] = {
    "fgsm": {"eps": 0.1},
    "vap": {"eps": 5.0, "xi": 1.0, "num_iters": 6},
    "eap": {"beta": 0.01, "binary_search_steps": 5, "max_iterations": 8, "initial_const": 0.001, "learning_rate": 0.1},
    "pgm": {"eps": 0.3, "nb_iter": 15, "eps_iter": 0.01, "rand_init": True, "keep_best": False},
    "unseen": {"eps": 0.2},
}


def wilson(wrong: float, n: int) -> dict[str, Any]:
    """A rate as a run writes it."""
    z, p = 1.959963984540054, wrong / n
    centre, scale = (p + z * z / (2 * n)), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (100 * (centre + sign * half) / scale for sign in (-1, 1))
    return {"n": n, "wrong": wrong, "error": 100 * p, "low": low, "high": high}


def _norms(attack: str, stage: int) -> dict[str, Any]:
    size = {"fgsm": 1.0, "vap": 3.0, "eap": 2.0, "pgm": 2.5}.get(attack.split("@")[0], 1.5) + 0.1 * stage
    linf = {"median": 0.1 * size, "max": 0.3}
    return {"linf": linf, "l2": {"median": size, "max": 1.5 * size}, "l1": {"median": 8 * size, "max": 12 * size}}


def _evaluation(stage: int, attacks: Sequence[str]) -> dict[str, Any]:
    evaluation: dict[str, Any] = {"clean": {**wilson(CLEAN_TEST[stage], N_TEST), "split": "test"}}
    for strength in ("paper", "check"):
        rates = {"clean": wilson(CLEAN_ATTACK[stage], N_ATTACK)}
        counts = []
        for attack in attacks:
            wrong = PGM_CHECK[stage] if (attack, strength) == ("pgm", "check") else WRONG[attack][stage]
            rates[attack] = {**wilson(wrong, N_ATTACK), "norms": _norms(attack, stage)}
            if attack != "unseen":  # a class that does not say how many rows gave it no gradient
                rates[attack] |= {"gradient_passes": PARAMS[attack].get("nb_iter", 1.0), "zero_gradient": 0}
            counts.append(wrong)
            if attack == "eap":
                rates["eap"]["quantiles"] = {
                    key: {"0.1": scale, "0.5": 2 * scale, "0.9": 4 * scale + stage}
                    for key, scale in (("elastic_net", 1.6), ("l1", 5.0), ("l2", 0.9))
                }
                rates["eap@budget"] = {**wilson(WRONG["eap@budget"][stage], N_ATTACK), "norms": _norms(attack, stage)}
        if counts:
            rates["mean"] = wilson(sum(counts) / len(counts), N_ATTACK)
            rates["worst"] = wilson(WORST[strength][stage], N_ATTACK)
        evaluation[strength] = rates
    return evaluation


def _agreement(agree: int) -> dict[str, Any]:
    rate = wilson(agree, N_TEST)
    return {"n": N_TEST, "agree": agree, "share": rate["error"], "low": rate["low"], "high": rate["high"]}


def _proxy(agree: int, wrong: int) -> dict[str, Any]:
    return {
        "key": "cd" * 32,
        "images": 2000,
        "queries": 2000,
        "epochs": 10,
        "minutes": 0.25,
        "gradient_passes_per_image": 10.0,
        "clean": wilson(wrong, N_TEST),
        "agreement": _agreement(agree),
    }


def black_box(white_box: dict[str, Any], *, agree: int = 320, architectures: Sequence[str] = ("proxy_cnn",)) -> Any:
    """A white-box evaluation as if it were a black-box one: half as many rows wrong, P'' nearly always."""
    found: dict[str, Any] = {"clean": white_box["clean"], "paper": {}, "check": {}, "transfer": {}}
    for strength in ("paper", "check"):
        moved = {}
        for name, rate in white_box[strength].items():
            n = rate["n"]
            found[strength][name] = {**rate, **wilson(rate["wrong"] // 2, n)}
            if name not in ("clean", "mean", "worst"):
                own = {"architecture": architectures[-1], "proxy": wilson(n - 5, n)}
                found[strength][name] |= own
                moved[name] = wilson(rate["wrong"] // 3, n)
        found["transfer"][strength] = moved
    found["proxies"] = {name: _proxy(agree - 20 * i, 30) for i, name in enumerate(architectures)}
    return found


INTERFACES = {
    "black_box_label": {"kind": "label", "settings": {}, "budget": None},
    "black_box_noisy_label": {"kind": "noisy_label", "settings": {"flip": 0.1}, "budget": 2000},
    "black_box_probabilities": {"kind": "probabilities", "settings": {"decimals": None}, "budget": None},
}
PROXY_DATA = {
    "source": "deformed_digits",
    "read": 2100,
    "overlapping": 12,
    "repeated": 88,
    "kept": 2000,
    "verified": True,
    "halves": False,
}


def as_format_1(raw: dict[str, Any]) -> dict[str, Any]:
    """The same results as a run wrote them before black-box threat models."""
    (name,) = raw["threat_models"]
    stages = []
    for stage in raw["stages"]:
        old = {key: value for key, value in stage.items() if key not in ("evaluations", "proxy")}
        stages.append({**old, "evaluation": stage["evaluations"][name]})
    new = ("threat_models", "interfaces", "proxy_data", "crafting")
    old = {key: value for key, value in raw.items() if key not in new}
    return {**old, "format": 1, "attacks": raw["attacks"][name], "stages": stages}


def under_black_box(
    raw: dict[str, Any], names: Sequence[str] = tuple(INTERFACES), *, with_white_box: bool = False, **kwargs: Any
) -> dict[str, Any]:
    """The same results measured under black-box threat models, instead of the white box or beside it."""
    models = [*(["white_box"] if with_white_box else []), *names]
    stages = []
    for stage in raw["stages"]:
        own = stage["evaluations"]["white_box"]
        made = {name: own if name == "white_box" else black_box(own, **kwargs) for name in models}
        if stage["index"] == 0:
            made = {name: {**found, "transfer": None} for name, found in made.items()}
        stages.append({**stage, "evaluations": made})
    return {
        **raw,
        "threat_models": models,
        "interfaces": {name: INTERFACES.get(name, INTERFACES["black_box_label"]) for name in names},
        "attacks": dict.fromkeys(models, raw["attacks"]["white_box"]),
        "proxy_data": PROXY_DATA,
        "stages": stages,
    }


def hardened_by_proxy(raw: dict[str, Any], interface: str = "black_box_label") -> dict[str, Any]:
    """The same results as if every stage's adversarial images had been made on a proxy P'."""
    stages = []
    for stage in raw["stages"]:
        proxy = {**_proxy(300, 40), "architecture": "proxy_cnn", "interface": interface, "from_store": False}
        stages.append({**stage, "proxy": proxy if stage["index"] else None})
    crafting = {**raw["crafting"], "column": "black_box"}
    return {**raw, "threat_model": interface, "crafting": crafting, "stages": stages}


def results(order: Sequence[str], evaluated: Sequence[str], shape: tuple[int, int, int]) -> dict[str, Any]:
    """The content of results.json for a cascade over ``order``, measured in a white box."""
    names = ["undefended", *order]
    seen: list[str] = []
    stages = []
    for index, name in enumerate(names):
        seen += [] if index == 0 else [name]
        share = {attack: (700 if attack == name else 300 // len(seen)) for attack in seen}
        stages.append(
            {
                "index": index,
                "name": name,
                "attack": None if index == 0 else name,
                "folder": f"stages/{index}_{name}",
                "key": f"{index}a" * 32,
                "from_store": index == 0,
                "epochs": 20 if index else 40,
                "steps": 180 if index else 360,
                "minutes": 0.2 + 0.25 * index,
                "rows": share,
                "gradient_passes_per_image": 40.0 if index == 0 else 400.0 * index,
                "evaluations": {"white_box": _evaluation(index, evaluated)},
                "proxy": None,
            }
        )
    check = {name: dict(PARAMS[name]) for name in evaluated}
    if "pgm" in check:
        check["pgm"].update(nb_iter=40, eps_iter=0.01875, keep_best=True)
    return {
        "format": 2,
        "experiment": "digits_amc",
        "defence": "amc",
        "created": "2026-11-20T16:00:00+00:00",
        "status": "finished",
        "seed": 0,
        "device": "cpu",
        "threads": 2,
        "versions": {"python": "3.11.7", "torch": "2.13.0", "amc_lightning": "0.1.0"},
        "commit": "0123456789abcdef",
        "dataset": {
            "name": "digits",
            "verified": True,
            "fingerprint": "sha256:abcd",
            "class_names": [str(digit) for digit in range(10)],
            "shape": list(shape),
            "counts": {"train": 1040, "validation": 210, "attack": N_ATTACK, "test": N_TEST},
            "counts_read": {"train": 1080, "test": 717},
            "limit": None,
        },
        "threat_model": "white_box",
        "threat_models": ["white_box"],
        "interfaces": {},
        "proxy_data": None,
        "crafting": {
            "column": "white_box",
            "attacks": {name: dict(PARAMS[name]) for name in order},
            "epochs": [20] * len(order),
            "transfer": "parent",
        },
        "preset": "paper",
        "order": list(order),
        "evaluated": list(evaluated),
        "budget": {"eap": {"norm": "l1", "radius": 10.0}},
        "attacks": {"white_box": {"paper": {name: PARAMS[name] for name in evaluated}, "check": check}},
        "stages": stages,
    }


def _gallery(order: Sequence[str], evaluated: Sequence[str], shape: tuple[int, int, int]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    channels, height, width = shape
    y = np.arange(N_GALLERY) % 10
    rows, cols = np.mgrid[0:height, 0:width] / max(height, width)
    x = np.stack([np.sin(3 * rows + k) * np.cos(5 * cols + 2 * k) for k in range(N_GALLERY)]) * 0.5 + 0.5
    x = np.repeat(x[:, None], channels, axis=1).astype(np.float32)
    arrays: dict[str, Any] = {"x": x, "y": y}
    for stage in range(len(order) + 1):
        arrays[f"clean_predicted/{stage}"] = np.where(np.arange(N_GALLERY) == 0, (y + 1) % 10, y)
        for attack in evaluated:
            noise = rng.choice([-0.1, 0.1], x.shape)
            fooled = rng.random(N_GALLERY) < (0.9 if stage == 0 else 0.4)
            arrays[f"x_adv/{stage}/{attack}"] = np.clip(x + noise, 0, 1).astype(np.float32)
            arrays[f"predicted/{stage}/{attack}"] = np.where(fooled, (y + 3) % 10, y)
    return arrays


def _metrics(path: Path, order: Sequence[str]) -> None:
    names = ["undefended", *order]
    attacks = [f"{split}/err/{attack}" for split in ("train", "val") for attack in order]
    fields = ["stage", "name", "epoch", "step", "train/loss", "train/err/clean", "val/err/clean", *attacks]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=fields)
        writer.writeheader()
        for stage, name in enumerate(names):
            for epoch in range(4 if stage == 0 else 3):
                head = {"stage": stage, "name": name, "epoch": epoch}
                decay = math.exp(-0.6 * epoch)
                for step in (2 * epoch, 2 * epoch + 1):
                    row = {**head, "step": step, "train/loss": 2 * decay + 0.1, "train/err/clean": 60 * decay}
                    row |= {f"train/err/{attack}": 80 * decay + 5 for attack in order[:stage]}
                    writer.writerow(row)
                row = {**head, "step": 2 * epoch + 1, "val/err/clean": 50 * decay + 4}
                row |= {f"val/err/{attack}": 70 * decay + 10 for attack in order[:stage]}
                writer.writerow(row)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run folder and returns it."""

    def make(
        order: Sequence[str] = ("fgsm", "vap", "eap", "pgm"),
        evaluated: Sequence[str] = ("fgsm", "vap", "eap", "pgm"),
        shape: tuple[int, int, int] = (1, 16, 16),
        also: Callable[[dict[str, Any]], dict[str, Any]] = dict,
        **changes: Any,
    ) -> Path:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        (folder / "results.json").write_text(json.dumps({**also(results(order, evaluated, shape)), **changes}))
        np.savez(folder / "gallery.npz", **_gallery(order, evaluated, shape))
        _metrics(folder / "metrics.csv", order)
        return folder

    return make
