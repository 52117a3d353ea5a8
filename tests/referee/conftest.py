"""Small models of 8x8 digits for the referee: one without a defence, one soundly hardened."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from sklearn.datasets import load_digits
from torch import nn

from amc_lightning.attacks import load
from amc_lightning.referee import Level, ThreatModel

EPS = 0.1
THREAT = ThreatModel("linf", EPS)
SMALL = Level(
    name="small", rows=96, steps=20, restarts=1, curve_rows=48, curve_steps=20, apgd_steps=10, target_classes=2,
    queries=100, noise_draws=20, substitute_epochs=20,
)  # fmt: skip
"""As quick, but smaller still."""


@pytest.fixture(scope="session")
def digits():
    """Training images and labels, then held-out ones: (N, 1, 8, 8) float32 in [0, 1], in mixed order."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8)[order] / 16
    y = torch.from_numpy(labels).long()[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def network(seed=0):
    """A small network of 8x8 images, with weights of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(256, 48), nn.ReLU(), nn.Linear(48, 10),
        )  # fmt: skip


def trained(x, y, *, attack=None, epochs=8, seed=0):
    """A network trained on clean images, or on those of an attack."""
    net = network(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=rng).split(100):
            given = x[rows] if attack is None else attack(net, x[rows], y[rows], generator=rng)
            optimizer.zero_grad()
            F.cross_entropy(net(given), y[rows]).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="session")
def undefended(digits):
    """Trained on clean images."""
    return trained(*digits[:2])


@pytest.fixture(scope="session")
def sound(digits):
    """Plainly adversarially trained: PGD in the l-inf ball of the claim."""
    attack = load("pgm", eps=EPS, eps_iter=None, nb_iter=5)
    return trained(*digits[:2], attack=attack, epochs=14)


@pytest.fixture
def rows(digits):
    """Held-out images and labels that are examined."""
    return digits[2][: SMALL.rows], digits[3][: SMALL.rows]
