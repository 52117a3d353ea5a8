"""Give back a trained network from a run folder."""

import json
from pathlib import Path

import yaml
from torch import nn

from amc_lightning.config import instantiate
from amc_lightning.errors import UserError
from amc_lightning.transfer import load_weights


def load(run_folder: str | Path, stage: int | None = None) -> nn.Module:
    """Return a network of a run, on the CPU, in eval mode; by default the last stage's, the one to deploy.

    The run's config names the network's class, which is imported and must be an ``nn.Module``: load run folders only
    from people whose code you would run. Weights are safetensors and hold no code.

    Args:
        run_folder: the output folder of a run; it may have stopped, its finished stages are there.
        stage: index of a finished stage; None for the last.

    Returns:
        The network: from images (B, C, H, W) float32 in [0, 1] to logits (B, K).

    Raises:
        UserError: if the folder is no run, or has no such stage, or a file in it is damaged.
    """
    folder = Path(run_folder)
    try:
        results = json.loads((folder / "results.json").read_text())
        config = yaml.safe_load((folder / "config.yaml").read_text())
        names = {int(entry["index"]): str(entry["name"]) for entry in results["stages"]}
        model = dict(config["model"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(
            "run_folder",
            str(folder),
            f"is not a readable run ({type(error).__name__}: {error})",
            "a folder with results.json and config.yaml",
            "Give the output folder of a run.",
        ) from error
    if not names or (stage is not None and stage not in names):
        raise UserError(
            "stage",
            stage,
            "is not a finished stage of this run",
            f"finished: {sorted(names)}",
            "Choose one of them, or run the experiment to its end.",
        )
    index = max(names) if stage is None else stage
    net = instantiate(model, key="model", kind=nn.Module)
    assert isinstance(net, nn.Module)
    load_weights(net, folder / "stages" / f"{index}_{names[index]}" / "weights.safetensors", key="run_folder")
    return net.eval()
