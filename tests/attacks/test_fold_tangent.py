import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.attacks.fold import CraftingCopy
from amc_lightning.models import LeNet, ProxyCNN, ResNet32
from tests.attacks.conftest import SmallNet, seeded
from tests.attacks.test_fold import LAYERS, Mean, with_statistics


def double_backward(function: Callable[[Tensor], Tensor], images: Tensor, direction: Tensor) -> Tensor:
    point = images.clone().requires_grad_()
    logits = function(point)
    w = torch.zeros_like(logits, requires_grad=True)
    (pulled,) = torch.autograd.grad(logits, point, w, create_graph=True)
    (pushed,) = torch.autograd.grad(pulled, w, direction)
    return pushed


def by_rows(net: nn.Module, images: Tensor, direction: Tensor) -> Tensor:
    """Return J d from one backward pass per class."""
    point = images.clone().requires_grad_()
    logits = net(point)
    rows = [torch.autograd.grad(column.sum(), point, retain_graph=True)[0] for column in logits.unbind(dim=1)]
    return torch.stack([(row * direction).flatten(1).sum(dim=1) for row in rows], dim=1)


def like_autograd(net: nn.Module, images: Tensor) -> bool:
    """Whether the product is that of the live net's own gradients, by copies in float64 and in float32."""
    net, images = copy.deepcopy(net).double().eval(), images.double()
    with seeded(3):
        direction = torch.randn_like(images)
    before = images.clone(), direction.clone()
    crafting = CraftingCopy(net)
    with torch.no_grad():
        result = crafting.linearised(images.requires_grad_(), direction)
    assert result is not None
    assert not result[0].requires_grad
    logits, pushed = crafting.linearised(images, direction.requires_grad_())
    assert pushed.dtype is torch.float64
    assert not pushed.requires_grad
    # Without a gradient to come a copy may take another way.
    torch.testing.assert_close(result, (logits, pushed), rtol=1e-12, atol=1e-12)
    images, direction = images.detach(), direction.detach()
    expected = by_rows(net, images, direction)
    size = expected.abs().max()
    assert size > 1e-3
    torch.testing.assert_close(pushed, expected, rtol=1e-10, atol=float(1e-10 * size))
    assert torch.equal(images, before[0])
    assert torch.equal(direction, before[1])

    single = CraftingCopy(net.float())
    logits, pushed = single.linearised(images.float(), direction.float())
    assert pushed.dtype is torch.float32
    assert (pushed - expected).abs().max() <= 1e-5 * size
    return same_pass(single, images.float(), direction.float())


def same_pass(crafting: CraftingCopy, images: Tensor, direction: Tensor) -> bool:
    """Whether logits and the gradient by the images are, to the bit, those of a call."""
    v = torch.linspace(-1, 1, 32).view(2, -1)

    def both(run: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        point = images.clone().requires_grad_()
        logits = run(point)
        weights = v[0, : logits.shape[1]].to(logits).expand_as(logits)
        return logits, torch.autograd.grad(logits, point, weights)[0]

    return all(map(torch.equal, both(crafting), both(lambda x: crafting.linearised(x, direction)[0])))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("kind", "shape"), [(ResNet32, (3, 16, 16)), (LeNet, (1, 28, 28)), (LeNet, (1, 17, 19)), (ProxyCNN, (1, 12, 12))]
)
def test_our_networks(kind: type[nn.Module], shape: tuple[int, int, int], trained: bool) -> None:
    with seeded(0):
        net = kind(shape[0], shape[1:], 10)
        if trained:
            with_statistics(net)
        x, direction = torch.rand(4, *shape), torch.randn(4, *shape)
    assert like_autograd(net, x)
    net, x, direction = net.double().eval(), x.double(), direction.double()
    _, pushed = CraftingCopy(net).linearised(x, direction)
    torch.testing.assert_close(pushed, double_backward(net, x, direction), rtol=1e-10, atol=1e-12)


def test_small_net(net: nn.Module, batch) -> None:
    x, _ = batch(7)
    assert like_autograd(net, x)
    pushed = CraftingCopy(net).linearised(x[:0], x[:0])
    assert [tuple(part.shape) for part in pushed] == [(0, 5), (0, 5)]


def test_a_layer_alone() -> None:
    with seeded(0):
        assert like_autograd(nn.Linear(4, 3), torch.rand(5, 4))


class Function(nn.Module):
    """A function of features, with a constant of the model's own, between two convolutions."""

    def __init__(self, function: Callable[..., Tensor], *, parts: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.LazyLinear(4)
        self.function, self.parts = function, parts
        self.register_buffer("constant", torch.rand(8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self.first(x), self)
        return self.last(x.reshape(x.shape[0], -1))


def of_layers(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Function(lambda x, net: net.parts(x), parts=nn.Sequential(*layers))


def concatenated(x: Tensor, net: Function) -> Tensor:
    return torch.cat([x, torch.zeros_like(x), functional.relu(x)], dim=1)


def branches(x: Tensor, net: Function) -> Tensor:
    """Values with several readers, sums of one with itself and with another's alias."""
    y = x + 1
    z = torch.relu(y)
    return (y + y) * 0.5 + torch.relu(x) + z + (x + net.constant).relu() + (net.constant + 0.1)


def gate(x: Tensor, net: Function) -> Tensor:
    return x * functional.adaptive_avg_pool2d(x, 1).sigmoid()


def in_place(x: Tensor, net: Function) -> Tensor:
    x = x * 2
    x += net.constant
    x = functional.relu(x - 1.5, inplace=True)
    x = functional.leaky_relu(x + functional.max_pool2d(x, 3, 1, 1) * -0.6, 0.2, inplace=True)
    return (x / 3).relu_()


def arithmetic(x: Tensor, net: Function) -> Tensor:
    x = (2 - x) * net.constant / 3 - net.constant
    x = torch.sub(x, torch.mul(x, 0.3)) - 0.2
    return torch.add(-x, x.mul(0.7)).add(net.constant.exp()).div(net.constant)


def shapes(x: Tensor, net: Function) -> Tensor:
    n, c, h, w = x.shape
    x = x.view(n, c // 2, 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
    x = functional.pad(x, (1, 2, 0, 1)).permute(0, 2, 3, 1)[:, 1:, ::2].unsqueeze(1).squeeze(1)
    return torch.flatten(x.relu(), 1) - x.mean(dim=(1, 2, 3)).unsqueeze(1) + x.sum(dim=-1).flatten(1).mean(1, True)


FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "max pool": of_layers(nn.MaxPool2d(3, 2, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 1, dilation=2)),
    "ceil": of_layers(nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(2, ceil_mode=True)),
    "max pool functions": lambda: Function(
        lambda x, _: functional.max_pool2d(torch.max_pool2d(x, 2), 3, stride=1, padding=1)
    ),
    "average": of_layers(nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten()),
    "average functions": lambda: Function(
        lambda x, _: functional.adaptive_avg_pool2d(functional.avg_pool2d(x, 3, 1), 2)
    ),
    "norm": of_layers(nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8, affine=False), nn.ReLU6(inplace=True)),
    "one-dimensional": of_layers(nn.Flatten(2), nn.Conv1d(8, 4, 5, stride=2), nn.BatchNorm1d(4), nn.ReLU()),
    "smooth": of_layers(nn.GELU(), nn.SiLU(inplace=True), nn.Softplus(beta=2.0), nn.Tanh(), nn.Sigmoid(), nn.Mish()),
    "slopes": of_layers(nn.LeakyReLU(0.1, inplace=True), nn.ELU(), nn.PReLU(8), nn.CELU(), nn.Hardtanh(-0.3, 0.3)),
    "hard": of_layers(nn.Hardswish(), nn.Hardsigmoid(), nn.LogSigmoid(), nn.Softsign(), nn.SELU()),
    "smooth functions": lambda: Function(
        lambda x, _: functional.gelu(x, approximate="tanh").tanh() + functional.silu(x) + torch.sigmoid(x) ** 2
    ),
    "powers": lambda: Function(lambda x, _: (x.abs() + 0.1).sqrt().log() + x.clamp(-0.3, 0.4).square().exp()),
    "padding": of_layers(nn.ReflectionPad2d(1), nn.ZeroPad2d((1, 0, 2, 1)), nn.ReplicationPad2d(2)),
    "reflected": lambda: Function(lambda x, _: functional.pad(x.relu(), (1, 1, 2, 0), mode="reflect")),
    "pixels": of_layers(nn.PixelShuffle(2), nn.ReLU(), nn.PixelUnshuffle(3), nn.Unflatten(1, (2, 9))),
    "concatenated": lambda: Function(concatenated),
    "branches": lambda: Function(branches),
    "gate": lambda: Function(gate),
    "in place": lambda: Function(in_place),
    "arithmetic": lambda: Function(arithmetic),
    "shapes": lambda: Function(shapes),
    "constants": lambda: Function(lambda x, net: net.constant.expand(8, 12, 12) + x.mean(dim=(2, 3), keepdim=True)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    with seeded(0):
        net, x = FUNCTIONS[name](), torch.rand(3, 3, 12, 12)
        with torch.no_grad():
            net(x)
        assert like_autograd(with_statistics(net), x)


KNOWN = ("grouped", "strided", "norm without affine", "some", "norm first", "convolution", "both", "two", "hand", "one")


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_the_copy(name: str) -> None:
    with seeded(0):
        net, x = with_statistics(LAYERS[name]()), torch.rand(4, 3, 12, 12)
        if name.startswith(KNOWN):
            assert like_autograd(net, x)
        else:
            assert CraftingCopy(net).linearised(x, x) is None


def aliased(x: Tensor, net: Function) -> Tensor:
    """Overwrites what is read again under another name."""
    y = x * 2
    flat = y.view(y.shape[0], -1)
    return functional.relu(flat, inplace=True) + y.flatten(1)


def read_again(x: Tensor, net: Function) -> Tensor:
    y = x * 2
    return functional.leaky_relu(y, 0.1, inplace=True) + y


UNKNOWN: dict[str, Callable[[Tensor, Function], Tensor]] = {
    "attention": lambda x, _: (x.flatten(2) @ x.flatten(2).mT).softmax(dim=-1),
    "matrix product": lambda x, _: x @ x,
    "softmax": lambda x, _: torch.softmax(x, dim=1),
    "division": lambda x, _: 1 / (x.abs() + 1),
    "rounded division": lambda x, _: torch.div(x, 0.1, rounding_mode="floor") + x,
    "maximum": lambda x, _: torch.maximum(x, x.flip(-1)),
    "own norm": lambda x, _: functional.layer_norm(x, x.shape[-1:]),
    "weighted sum": lambda x, _: torch.add(x, x, alpha=2),
    "by keyword": lambda x, _: torch.relu(input=x),
    "power of tensors": lambda x, net: (x.abs() + 1) ** net.constant,
    "padded with ones": lambda x, _: functional.pad(x, (1, 1), value=1.0),
    "assigned": lambda x, _: torch.zeros_like(x).copy_(x),
    "overwritten": lambda x, _: (x * 2).mul_(3),
    "aliased": aliased,
    "read again": read_again,
    "constant": lambda x, _: torch.zeros_like(x),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_none_for_what_is_not_known(name: str) -> None:
    net, x = Function(UNKNOWN[name]), torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        net(x)
    crafting = CraftingCopy(net)
    assert crafting.linearised(x, x) is None
    assert crafting.linearised(x, x) is None


def test_none_where_statistics_or_indices_are_the_batch_s() -> None:
    x = torch.rand(4, 3, 12, 12)
    for layer in (nn.BatchNorm2d(6, track_running_stats=False), nn.InstanceNorm2d(6), nn.Softmax2d()):
        assert CraftingCopy(Mean(nn.Conv2d(3, 6, 3), nn.ReLU(), layer)).linearised(x, x) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_none_in_half_precision(dtype: torch.dtype) -> None:
    x = torch.rand(2, 1, 12, 12)
    assert CraftingCopy(SmallNet(), dtype=dtype).linearised(x, x) is None
    assert CraftingCopy(SmallNet().to(dtype)).linearised(x, x) is None


def test_copy_of_another_dtype() -> None:
    with seeded(0):
        net, x, direction = SmallNet().eval(), torch.rand(2, 1, 12, 12), torch.randn(2, 1, 12, 12)
    crafting = CraftingCopy(net, dtype=torch.float64)
    logits, pushed = crafting.linearised(x, direction)
    assert logits.dtype is pushed.dtype is torch.float64
    expected = double_backward(crafting, x.double(), direction.double())
    torch.testing.assert_close(pushed, expected, rtol=1e-10, atol=1e-12)


def test_kinks_are_taken_as_autograd_takes_them() -> None:
    """On flat images every window of the pooling has a tie, and ReLU stands at 0 where the bias is 0."""
    x = torch.zeros(4, 1, 12, 12)
    x[1], x[2], x[3, :, :6] = 0.5, 1.0, 1.0
    with seeded(0):
        conv, head = nn.Conv2d(1, 6, 3, bias=False), nn.Linear(6 * 25, 3)
        direction = torch.randn_like(x)
    net = nn.Sequential(conv, nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), head)
    net, x, direction = net.double(), x.double(), direction.double()
    _, pushed = CraftingCopy(net).linearised(x, direction)
    torch.testing.assert_close(pushed, double_backward(net, x, direction), rtol=1e-10, atol=1e-12)
    assert not pushed[0].any()
    assert pushed[1:].abs().amax(dim=1).min() > 0


def test_ties_in_channels_last_images() -> None:
    with seeded(0):
        net, direction = SmallNet().double().eval(), torch.randn(2, 1, 12, 12).double()
    x = torch.full((2, 1, 12, 12), 0.3).double()
    for form in (torch.contiguous_format, torch.channels_last):
        _, pushed = CraftingCopy(net).linearised(x.contiguous(memory_format=form), direction)
        torch.testing.assert_close(pushed, double_backward(net, x, direction), rtol=1e-10, atol=1e-12)


def test_refresh_is_followed(net: nn.Module, batch) -> None:
    x, y = batch(8)
    direction = x.flip(0) - 0.5
    crafting = CraftingCopy(net)
    _, before = crafting.linearised(x, direction)
    made = crafting._with_tangent
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert torch.equal(crafting.linearised(x, direction)[1], before)
    crafting.refresh()
    _, after = crafting.linearised(x, direction)
    torch.testing.assert_close(after, double_backward(copy.deepcopy(net).eval(), x, direction), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after, before, rtol=1e-2)
    assert crafting._with_tangent is made
    net.body[2] = nn.ELU()
    crafting.refresh()
    torch.testing.assert_close(
        crafting.linearised(x, direction)[1],
        double_backward(copy.deepcopy(net).eval(), x, direction),
        rtol=1e-4,
        atol=1e-5,
    )
    net.body[2] = nn.Softmax2d()
    crafting.refresh()
    assert crafting.linearised(x, direction) is None


def test_refresh_of_what_forward_reads_itself_is_followed() -> None:
    with seeded(0):
        net, x = with_statistics(LAYERS["handmade"]()), torch.rand(4, 3, 12, 12)
    crafting = CraftingCopy(net)
    _, before = crafting.linearised(x, x)
    with torch.no_grad():
        net.gain.mul_(2)
        net.std.mul_(2)
    crafting.refresh()
    _, after = crafting.linearised(x, x)
    torch.testing.assert_close(after, double_backward(copy.deepcopy(net).eval(), x, x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after, before, rtol=1e-2)


def test_blocks_of_pixels_are_refreshed() -> None:
    with seeded(0):
        net, x, direction = LeNet(1, (16, 16), 10), torch.rand(3, 1, 16, 16), torch.randn(3, 1, 16, 16)
    crafting = CraftingCopy(net)
    assert crafting._recording.blocked
    _, before = crafting.linearised(x, direction)
    with torch.no_grad():
        net.features[0].weight.mul_(2)
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.bias.zero_()
    crafting.refresh()
    _, after = crafting.linearised(x, direction)
    torch.testing.assert_close(after, double_backward(net, x, direction), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after, before, rtol=1e-2)


def test_one_step_takes_one_pass_beside_the_logits(net: nn.Module, batch) -> None:
    """Every convolution runs once for the logits and once for their change."""
    x, _ = batch(3)
    crafting = CraftingCopy(net)
    crafting.linearised(x, x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        crafting.linearised(x, x)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["aten::conv2d"] == 4
    assert counts["aten::linear"] == 4
