"""The rival libraries, imported only when a parity test runs, and models whose margins are realistic."""

import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

BATCH = 192
SIDE = 12


@dataclass(frozen=True)
class Case:
    """A classifier in eval mode, and images with labels; most labels are the classifier's own answers."""

    model: nn.Module
    x: Tensor
    y: Tensor

    def double(self) -> "Case":
        return Case(deepcopy(self.model).double(), self.x.double(), self.y)


@pytest.fixture(scope="session")
def foolbox() -> ModuleType:
    """A missing library is an error, not a skip: these tests run only when asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports from scipy.ndimage.filters
        import foolbox
    return foolbox


@pytest.fixture(scope="session")
def art() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import art
        import art.attacks.evasion
        import art.estimators.classification
    return art


@pytest.fixture(autouse=True)
def _own_randomness() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits, up-sampled: flat black borders, strokes between 0 and 1, (1797, 1, 12, 12)."""
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    x = functional.interpolate(x, size=(SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
    return x, torch.tensor(bunch.target)


@pytest.fixture(scope="session")
def linear(digits: tuple[Tensor, Tensor]) -> Case:
    return _trained(nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 10)), *digits)


@pytest.fixture(scope="session")
def conv(digits: tuple[Tensor, Tensor]) -> Case:
    """A small net with batch norm, rectifiers and max pooling, whose flat backgrounds tie."""
    return _trained(_conv(nn.ReLU, nn.MaxPool2d), *digits)


@pytest.fixture(scope="session")
def smooth(digits: tuple[Tensor, Tensor]) -> Case:
    """The same with tanh and average pooling: differentiable as often as one likes."""
    return _trained(_conv(nn.Tanh, nn.AvgPool2d), *digits)


@pytest.fixture(params=["linear", "conv"])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(request.param)
    return found


def _conv(activation: type[nn.Module], pool: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        activation(),
        pool(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        activation(),
        pool(2),
        nn.Flatten(),
        nn.Linear(16 * (SIDE // 4) ** 2, 10),
    )


def _trained(net: nn.Module, x: Tensor, y: Tensor) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in net.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        order = torch.randperm(len(x))
        x, y = x[order], y[order]
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(8):
            for rows in torch.randperm(len(x) - BATCH).split(64):
                optimizer.zero_grad()
                functional.cross_entropy(net(x[BATCH + rows]), y[BATCH + rows]).backward()
                optimizer.step()
    net.eval()
    x, y = x[:BATCH], y[:BATCH]
    with torch.no_grad():
        assert (net(x).argmax(dim=1) == y).float().mean() > 0.9
    return Case(net, x, y)
