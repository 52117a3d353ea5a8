"""What results.json says of a run before anything is trained."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from amc_lightning.attacks import GuardedAttack
from amc_lightning.config import Config, ThreatModelConfig, stage_epochs
from amc_lightning.data import ImageData
from amc_lightning.measure_plan import MeasurementPlan
from amc_lightning.proxies import Proxies


def header(
    config: Config,
    data: ImageData,
    training: Mapping[str, GuardedAttack],
    plan: MeasurementPlan,
    net: nn.Module,
) -> dict[str, Any]:
    """Return the entries of results.json that are known before training.

    Args:
        config: the checked configuration.
        data: the prepared dataset.
        training: the attacks as training crafts them, by name; empty where nothing is trained.
        plan: what models are measured with.
        net: a network like those that are measured.
    """
    device, threats, proxies = plan.device, plan.threats, plan.proxies
    return {
        "experiment": config.name,
        "system": config.system.name or None,
        "defence": config.defence.name,
        "seed": config.seed,
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "dataset": {
            "name": data.name,
            "verified": data.verified,
            "fingerprint": data.fingerprint,
            "class_names": list(data.class_names),
            "shape": list(data.shape),
            "counts": data.counts,
            "counts_read": data.counts_read,
            "limit": config.dataset.limit,
        },
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "threat_model": config.threat_model.name,
        "threat_models": list(threats),
        "interfaces": {
            name: _interface(config.threat_models[name])
            for name in dict.fromkeys([config.threat_model.name, *config.evaluation.threat_models])
            if config.threat_models[name].interface is not None
        },
        "squeezings": {
            name: {"name": squeezer.name, "settings": config.squeezings[squeezer.name], "adaptive": squeezer.adaptive}
            for name, squeezer in plan.squeezers.items()
        },
        "proxy_data": None if proxies is None else _proxy_data(config, proxies),
        "crafting": None
        if config.task.name == "evaluate"
        else {
            "column": config.cascade.craft_params,
            "attacks": {name: dict(attack.params) for name, attack in training.items()},
            "epochs": stage_epochs(config.cascade),
            "transfer": config.cascade.transfer,
            "joint": config.cascade.joint,
        },
        "preset": config.preset.name,
        "order": config.cascade.order,
        "evaluated": config.evaluation.attacks,
        "budget": {name: {"norm": "l1", "radius": radius} for name, radius in config.dataset.budget.items()},
        "attacks": {
            threat_model: {
                strength: {name: dict(attack.params) for name, attack in members.items()}
                for strength, members in strengths.items()
            }
            for threat_model, strengths in threats.items()
        },
    }


_KINDS = {"Label": "label", "NoisyLabel": "noisy_label", "Probabilities": "probabilities"}


def _interface(model: ThreatModelConfig) -> dict[str, Any]:
    assert model.interface is not None
    path = str(model.interface["_target_"])
    package, _, name = path.rpartition(".")
    return {
        "kind": _KINDS.get(name, path) if package == "amc_lightning.threat" else path,
        "settings": {key: value for key, value in model.interface.items() if key != "_target_"},
        "budget": model.budget,
    }


def _proxy_data(config: Config, proxies: Proxies) -> dict[str, Any]:
    assert config.dataset.proxy.source is not None
    source = str(config.dataset.proxy.source["_target_"])
    return {
        "source": source.rpartition(".")[2] if source.startswith("amc_lightning.") else source,
        **proxies.images.counts,
        "verified": proxies.images.verified,
        "halves": config.proxy.halves,
    }
