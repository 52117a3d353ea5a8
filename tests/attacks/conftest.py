"""Networks and batches whose rows differ, for the tests of the attacks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn


class SmallNet(nn.Module):
    """LeNet in small, with what an attack could damage: batch-norm statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.head(self.body(x))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Every test that attacks ``net`` is repeated on a GPU with ``pytest -m gpu``.

    Convolutions there are in full float32, as the guard has them: many tests compare with what a net says outside it.
    """
    if not torch.cuda.is_available():
        yield torch.device(request.param)
        return
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield torch.device(request.param)
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def net(device: torch.device) -> nn.Module:
    """A SmallNet in train mode whose first batch norm is frozen, with statistics of its own and gradients in place."""
    with seeded(0):
        net = SmallNet()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0.0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
    net.body[1].eval()
    net.head[-1].bias.requires_grad = False
    return net.to(device)


@pytest.fixture
def batch(net: nn.Module, device: torch.device) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Images of different brightness, with flat black and white parts, and the labels the net gives to most of them."""

    def make(size: int) -> tuple[Tensor, Tensor]:
        with seeded(1):
            x = torch.rand(size, 1, 12, 12) * torch.linspace(0.4, 1.0, max(size, 1))[:size].view(-1, 1, 1, 1)
        x[:, :, :3] = 0.0
        x[:, :, 3, :4] = 1.0
        with seeded(2), torch.no_grad():
            x, y = x.to(device), torch.randint(5, (size,)).to(device)
            modes = [module.training for module in net.modules()]
            net.eval()
            y[: size - size // 4] = net(x[: size - size // 4]).argmax(dim=1)
            for module, mode in zip(net.modules(), modes, strict=True):
                module.training = mode
        return x, y

    return make
