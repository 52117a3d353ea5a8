"""Draw docs/figures/deformed_digits.png: python -m tests.data.contact_sheet <folder with MNIST>."""

import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn.functional import pad

from amc_lightning.data import Images
from amc_lightning.data.deform import deform
from amc_lightning.data.sources import digits, mnist

FIGURE = Path(__file__).parents[2] / "docs" / "figures" / "deformed_digits.png"
VERSIONS = 8


def panel(images: Images) -> np.ndarray:
    """Return one row per class: a training image and deformed versions of it, with grey lines between."""
    rng = np.random.default_rng(8)
    base = torch.from_numpy(images.x[[rng.choice(np.flatnonzero(images.y == k)) for k in range(10)]])
    made = deform(base.repeat_interleave(VERSIONS, 0), seed=0).unflatten(0, (10, VERSIONS))
    cells = pad(torch.cat([base[:, None], made], 1)[:, :, 0], (1, 1, 1, 1), value=90)
    return cells.permute(0, 2, 1, 3).flatten(2).flatten(0, 1).numpy()


def main() -> None:
    mpl.use("Agg")
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 6.0), layout="constrained")
    for ax, title, source in zip(
        axes, ("MNIST, 28x28", "scikit-learn's digits, 16x16"), (mnist(Path(sys.argv[1])), digits(Path())), strict=True
    ):
        picture = panel(source.train)
        ax.imshow(picture, cmap="gray", interpolation="nearest")
        ax.axvline(picture.shape[1] / (VERSIONS + 1) - 0.5, color="tab:orange", linewidth=2)
        ax.set_title(f"{title}\nleft: training image; right: deformed", fontsize=10)
        ax.axis("off")
    figure.suptitle("Deformed digits, the images that proxies are trained on", fontsize=12)
    figure.savefig(FIGURE, dpi=110, metadata={"Software": None}, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
