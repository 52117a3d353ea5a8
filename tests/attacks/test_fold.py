import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.attacks.fold import CannotFold, CraftingCopy
from amc_lightning.models import LeNet, ProxyCNN, ResNet32
from tests.attacks.conftest import SmallNet, seeded


def with_statistics(net: nn.Module) -> nn.Module:
    """Give every batch norm statistics, and gains and shifts, as different as training makes them."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.running_mean is not None:
                module.running_mean.normal_(0.0, 0.5)
                module.running_var.copy_(torch.logspace(-1, 1, module.num_features))
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.3)
    return net


def plain_logits(net: nn.Module, images: Tensor) -> Tensor:
    return copy.deepcopy(net).eval()(images)


def gradient(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    (result,) = torch.autograd.grad(function(images)[:, 0].sum(), images)
    return result


def same_function(net: nn.Module, images: Tensor) -> bool:
    """Whether a copy has the logits, and in float64 the gradients, of the net in eval mode."""
    assert CraftingCopy(net).agrees(images, plain_logits(net, images))
    net, images = copy.deepcopy(net).double().eval(), images.double()
    crafting = CraftingCopy(net)
    assert crafting(images).dtype is torch.float64
    assert crafting.agrees(images, net(images), tolerance=1e-12)
    torch.testing.assert_close(gradient(crafting, images), gradient(net, images), rtol=1e-9, atol=1e-12)
    return True


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("kind", "shape"), [(ResNet32, (3, 16, 16)), (LeNet, (1, 28, 28)), (LeNet, (1, 17, 19)), (ProxyCNN, (1, 12, 12))]
)
def test_our_networks(kind: type[nn.Module], shape: tuple[int, int, int], trained: bool) -> None:
    with seeded(0):
        net = kind(shape[0], shape[1:], 10)
        if trained:
            with_statistics(net)
        assert same_function(net, torch.rand(5, *shape))


def test_statistics_of_real_passes() -> None:
    with seeded(0):
        net, x = ResNet32(3, (16, 16), 10), torch.rand(8, 3, 16, 16)
        for _ in range(3):
            net(3 * torch.rand_like(x))
        assert same_function(net, x)


def test_net_in_train_mode_with_a_frozen_norm(net: nn.Module, batch, device: torch.device) -> None:
    x, _ = batch(7)
    assert net.training
    crafting = CraftingCopy(net)
    assert not [m for m in crafting._recording.net.modules() if isinstance(m, nn.BatchNorm2d | nn.Dropout)]
    assert crafting.agrees(x, plain_logits(net, x))
    assert not crafting.agrees(x, plain_logits(net, x) + 1e-3)
    assert crafting.agrees(x[:0], plain_logits(net, x[:0]))
    assert not crafting.agrees(x, plain_logits(net, x[:3]))
    assert not crafting.agrees(x, plain_logits(net, x) * torch.nan)


class Mean(nn.Module):
    """Features, whose mean over the pixels are the logits."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean(dim=(2, 3))


class ConvolutionTwice(nn.Module):
    def __init__(self, *, share_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(3)
        self.bn2 = self.bn1 if share_norm else nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv(x)))
        x = functional.relu(self.bn2(self.conv(x)))
        return self.conv(x).mean(dim=(2, 3))


class ConvolutionWithTwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (self.bn(y).relu() + self.other(y) + torch.relu(y)).mean(dim=(2, 3))


class NormWithTwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return (functional.relu(y) + y).mean(dim=(2, 3))


class Handmade(nn.Module):
    """What models do besides calling layers: buffers, views, strides, arguments with defaults, functional dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("std", torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1))
        self.gain = nn.Parameter(torch.rand(8, 1, 1))
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.a_b = nn.ModuleDict({"c": nn.Linear(8 * 36, 16)})
        self.a = nn.ModuleDict({"b_c": nn.Linear(16, 5)})

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x * (1 / self.std) - torch.tensor(0.25)
        x = functional.relu(self.bn1(self.conv1(x))) * self.gain
        x = self.conv2(x) + functional.pad(x[:, :4, ::2, ::2], (0, 0, 0, 0, 2, 2)) + x[:, :, ::2, ::2]
        if mask is not None:
            x = x * mask
        if self.training:
            x = x + torch.randn_like(x)
        x = functional.dropout(x, 0.5, self.training)
        size = x.size(0) + 0
        x = torch.relu(self.a_b["c"](x.view(size, -1)))
        return self.a["b_c"](x)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "grouped and dilated": lambda: Mean(nn.Conv2d(3, 6, 3, groups=3, dilation=2, padding=2), nn.BatchNorm2d(6)),
    "strided, reflected, no bias": lambda: Mean(
        nn.Conv2d(3, 6, 3, stride=2, padding=1, padding_mode="reflect", bias=False), nn.BatchNorm2d(6), nn.ReLU()
    ),
    "norm without affine": lambda: Mean(nn.Conv2d(3, 6, 3, padding="same"), nn.BatchNorm2d(6, affine=False, eps=0.1)),
    "some affine": lambda: Mean(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False), nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
    ),
    "norm without statistics": lambda: Mean(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
    "norm first": lambda: Mean(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3)),
    "other norms": lambda: Mean(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.PReLU(6), nn.ConvTranspose2d(6, 4, 3)),
    "convolution twice": lambda: ConvolutionTwice(share_norm=False),
    "both twice": lambda: ConvolutionTwice(share_norm=True),
    "two norms": ConvolutionWithTwoReaders,
    "two readers": NormWithTwoReaders,
    "handmade": Handmade,
    "one layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 5)),
    "attention": lambda: nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(144, 2, 16), nn.Flatten()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    with seeded(0):
        net = with_statistics(LAYERS[name]())
        assert same_function(net, torch.rand(4, 3, 12, 12))


def test_a_layer_alone() -> None:
    with seeded(0):
        assert same_function(nn.Linear(4, 3), torch.rand(5, 4))


@pytest.mark.parametrize("padding", [0, 2, (1, 3)])
@pytest.mark.parametrize("kernel", [5, 7, (6, 5)])
def test_blocks_of_pixels(padding: int | tuple[int, int], kernel: int | tuple[int, int]) -> None:
    with seeded(0):
        net = Mean(nn.Conv2d(1, 6, kernel, padding=padding), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
        with_statistics(net)
        for size in ((16, 16), (13, 18)):
            assert same_function(net, torch.rand(3, 1, *size))
        assert CraftingCopy(net)._recording.blocked


def test_refresh_follows_training(net: nn.Module, batch) -> None:
    x, y = batch(8)
    crafting, half = CraftingCopy(net), CraftingCopy(net, dtype=torch.bfloat16)
    before, recording = crafting(x), crafting._recording
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert torch.equal(crafting(x), before)
    crafting.refresh()
    half.refresh()
    assert crafting.agrees(x, plain_logits(net, x))
    assert not crafting.agrees(x, before)
    assert crafting._recording is recording
    torch.testing.assert_close(half(x), crafting(x), rtol=0.05, atol=0.05)


def test_refresh_follows_what_forward_reads_itself() -> None:
    with seeded(0):
        net, x = with_statistics(Handmade()), torch.rand(4, 3, 12, 12)
    crafting = CraftingCopy(net)
    with torch.no_grad():
        net.gain.mul_(2)
        net.std.mul_(2)
    crafting.refresh()
    assert crafting.agrees(x, plain_logits(net, x))


def test_refresh_follows_replaced_parts(net: nn.Module, batch) -> None:
    x, _ = batch(4)
    crafting = CraftingCopy(net)
    net.body[4].weight = nn.Parameter(net.body[4].weight.detach() * 2)
    net.body[2] = nn.ELU()
    net.body[5] = nn.BatchNorm2d(8, affine=False).to(x.device)
    net.head[4] = nn.Linear(16, 7).to(x.device)
    crafting.refresh()
    assert crafting.agrees(x, plain_logits(net, x))
    net.double()
    crafting.refresh()
    assert crafting(x.double()).dtype is torch.float64
    assert crafting.agrees(x.double(), plain_logits(net, x.double()), tolerance=1e-12)


class Settings(nn.Module):
    """A forward with what a trace keeps as it was: numbers, flags, what is None, functions, layers called in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 4, 3, padding=2), nn.BatchNorm2d(4), nn.LeakyReLU(0.1))
        self.scale, self._shift, self.flips, self.powers = 1.0, 0.5, False, [1, 2]
        self.activation, self.mask = torch.tanh, None
        self.register_buffer("gain", None)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.convs:
            x = layer(x)
        x = self.activation(self.scale * x + self._shift)
        x = sum(x**power for power in self.powers).mean(dim=(2, 3))
        x = x if self.mask is None else x * self.mask
        x = x if self.gain is None else x * self.gain
        return -x if self.flips else x


def _negative(net: nn.Module, x: Tensor) -> Tensor:
    return net.convs(x).mean(dim=(2, 3))


def _replace(net: nn.Module, **settings: int) -> None:
    new = nn.Conv2d(3, 4, 3, **{"padding": 2, **settings})
    new.load_state_dict(net.convs[0].state_dict())
    net.convs[0] = new


def _reorder(net: nn.Module) -> None:
    net.convs._modules["1"] = net.convs._modules.pop("1")


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "a layer appended": lambda net: net.convs.append(nn.Softplus()),
    "layers in another order": _reorder,
    "dilation of another": lambda net: _replace(net, dilation=2),
    "stride of another": lambda net: _replace(net, stride=2),
    "padding of another": lambda net: _replace(net, padding=0),
    "dilation": lambda net: setattr(net.convs[0], "dilation", (2, 2)),
    "slope": lambda net: setattr(net.convs[2], "negative_slope", 0.7),
    "eps": lambda net: setattr(net.convs[1], "eps", 0.5),
    "a number": lambda net: setattr(net, "scale", 2.0),
    "a private number": lambda net: setattr(net, "_shift", -0.5),
    "a flag": lambda net: setattr(net, "flips", True),
    "a list": lambda net: net.powers.append(3),
    "a function": lambda net: setattr(net, "activation", torch.sigmoid),
    "a tensor for None": lambda net: setattr(net, "mask", torch.rand(4)),
    "a buffer for None": lambda net: setattr(net, "gain", torch.rand(4)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_refresh_follows_settings(name: str) -> None:
    with seeded(0):
        net, x = with_statistics(Settings()), torch.rand(4, 3, 12, 12)
        crafting = CraftingCopy(net)
        recording = crafting._recording
        crafting.refresh()
        assert crafting._recording is recording
        CHANGES[name](net)
        logits = plain_logits(net, x)
        assert not crafting.agrees(x, logits)
        crafting.refresh()
        assert crafting.agrees(x, logits)
        assert crafting._recording is not recording
        recording = crafting._recording
        crafting.refresh()
        assert crafting._recording is recording


def test_refresh_follows_a_class_whose_forward_is_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    with seeded(0):
        net, x = Settings(), torch.rand(4, 3, 12, 12)
    crafting = CraftingCopy(net)
    monkeypatch.setattr(Settings, "forward", _negative)
    crafting.refresh()
    assert crafting.agrees(x, plain_logits(net, x))


def test_refresh_gives_up_on_attributes_that_change_from_call_to_call() -> None:
    net, x = Settings(), torch.rand(4, 3, 12, 12)
    crafting = CraftingCopy(net)
    for _ in range(3):
        net.scale += 1
        crafting.refresh()
    for _ in range(6):
        net.scale += 1
        with pytest.raises(CannotFold, match=r"its plain attributes change from call to call .*'scale'"):
            crafting.refresh()
    assert crafting.recordings == 4
    net.scale = 3.0
    for _ in range(30):
        try:
            crafting.refresh()
        except CannotFold:
            continue
    assert crafting.agrees(x, plain_logits(net, x))


def test_a_setting_changed_once_in_a_while_is_followed() -> None:
    """As one that is scheduled by the epoch."""
    net, x = Settings(), torch.rand(4, 3, 12, 12)
    crafting = CraftingCopy(net)
    for _ in range(8):
        net.scale += 0.5
        for _ in range(20):
            crafting.refresh()
    assert crafting.agrees(x, plain_logits(net, x))


@pytest.mark.gpu
def test_refresh_follows_to_another_device(batch) -> None:
    net = LeNet(1, (28, 28), 10)
    crafting = CraftingCopy(net)
    net.to("cuda")
    crafting.refresh()
    x = torch.rand(4, 1, 28, 28, device="cuda")
    assert crafting.agrees(x, net(x))


def test_live_model_is_not_touched(net: nn.Module, batch) -> None:
    x, _ = batch(6)
    tensors = [*net.parameters(), *net.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    gradients = [(p.grad, p.grad.clone(), p.requires_grad) for p in net.parameters()]
    versions, modes = [tensor._version for tensor in tensors], [module.training for module in net.modules()]
    keys, random_state = [set(vars(module)) for module in net.modules()], torch.get_rng_state()
    for dtype in (None, torch.bfloat16):
        crafting = CraftingCopy(net, dtype=dtype)
        gradient(crafting, x)
        crafting.refresh()
        assert not any(p.requires_grad for p in crafting._recording.net.parameters())
    own = {tensor.data_ptr() for tensor in (*crafting._recording.net.parameters(), *crafting._recording.net.buffers())}
    assert own.isdisjoint(tensor.data_ptr() for tensor in tensors)
    assert all(map(torch.equal, before, tensors))
    assert all(map(lambda a, b: a is b, tensors, [*net.parameters(), *net.buffers()]))
    for parameter, (grad, value, requires_grad) in zip(net.parameters(), gradients, strict=True):
        assert parameter.grad is grad
        assert torch.equal(grad, value)
        assert parameter.requires_grad == requires_grad
    assert versions == [tensor._version for tensor in tensors]
    assert modes == [module.training for module in net.modules()]
    assert keys == [set(vars(module)) for module in net.modules()]
    assert torch.equal(random_state, torch.get_rng_state())
    again = pickle.loads(pickle.dumps(net))
    assert torch.equal(plain_logits(again, x), plain_logits(net, x))


def test_works_from_inference_mode(net: nn.Module, batch) -> None:
    x, _ = batch(4)
    with torch.inference_mode():
        crafting = CraftingCopy(net)
        crafting.refresh()
    assert gradient(crafting, x).shape == x.shape


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return -grad


reverse = Reverse.apply


class ReversesGradients(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return reverse(x).flatten(1)


class StopsGradients(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * 2
        return (x + y).flatten(1)


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x


class ReadsStrides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.as_strided((2, 4), (4, 1))


class CountsInABuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        return x.flatten(1)


class CountsInPlace(CountsInABuffer):
    def forward(self, x: Tensor) -> Tensor:
        self.n.add_(1)
        return x.flatten(1)


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.register_buffer("hist", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.inner.hist = torch.cat([self.inner.hist, x.mean().view(1)])
        return x.flatten(1)


class AddsToItsOwn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(3)
        total.add_(x.mean())
        return x.flatten(1)[:, :3] + total


class WritesToImages(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.1)
        return x.flatten(1)


class Unregistered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(4, 3)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


class Uncopyable(nn.Module):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("there can be only one")

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def hooked(register: str, hook: Callable[..., None], *, inner: bool) -> nn.Module:
    net = SmallNet()
    getattr(net.body[0] if inner else net, register)(hook)
    return net


def patched() -> nn.Module:
    net = SmallNet()
    net.body.forward = lambda x: x
    return net


BAD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "branch": (Branching, "Branching: torch.fx cannot trace it .TraceError"),
    "custom function": (ReversesGradients, "torch.autograd.Function"),
    "no_grad": (StopsGradients, "switches gradients off"),
    "two outputs": (TwoOutputs, "one tensor"),
    "strides": (ReadsStrides, r"strides .as_strided."),
    "buffer": (CountsInABuffer, "its forward changes its buffer 'n'"),
    "buffer in place": (CountsInPlace, "its forward changes its tensor 'n'"),
    "buffer of a part": (Remembers, "its forward changes its buffer 'inner.hist'"),
    "constant": (AddsToItsOwn, "its forward writes to a tensor that it makes"),
    "images": (WritesToImages, "its forward writes to its images"),
    "not a submodule": (Unregistered, "torch.fx cannot trace it"),
    "copy": (Uncopyable, "there can be only one"),
    "forward hook": (lambda: hooked("register_forward_hook", lambda *_: None, inner=False), "it has a forward or back"),
    "inner pre-hook": (lambda: hooked("register_forward_pre_hook", lambda *_: None, inner=True), "'body.0' has a forw"),
    "backward": (
        lambda: hooked("register_full_backward_hook", lambda *_: None, inner=True),
        "'body.0' has a forward o",
    ),
    "backward pre": (lambda: hooked("register_full_backward_pre_hook", lambda *_: None, inner=True), "'body.0' has"),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "it has a parametrization"),
    "spectral norm": (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 2))), "'0' has a forward pre-hook"),
    "spectral norm alone": (lambda: nn.utils.spectral_norm(nn.Linear(2, 2)), "it has a forward pre-hook"),
    "instance forward": (patched, "'body' has a forward or __call__ of its own"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses(name: str) -> None:
    make, reason = BAD[name]
    with pytest.raises(CannotFold, match=reason):
        CraftingCopy(make())


def test_refuses_a_hook_that_came_later(net: nn.Module) -> None:
    crafting = CraftingCopy(net)
    handle = net.head[2].register_forward_hook(lambda *_: None)
    with pytest.raises(CannotFold, match=r"'head.2' has a forward or backward hook"):
        crafting.refresh()
    handle.remove()
    crafting.refresh()


def test_pre_hooks_of_the_model_are_left_to_the_caller(net: nn.Module, batch) -> None:
    x, _ = batch(4)
    calls = []
    net.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    crafting = CraftingCopy(net)
    crafting.refresh()
    crafting(x)
    assert calls == []


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_copy_does_not_keep_the_model(dtype: torch.dtype | None) -> None:
    net = SmallNet()
    cache = weakref.WeakKeyDictionary({net: CraftingCopy(net, dtype=dtype)})
    crafting, alive = cache[net], weakref.ref(net)
    gradient(crafting, torch.rand(2, 1, 12, 12))
    del net
    gc.collect()
    assert alive() is None
    assert not cache
    with pytest.raises(RuntimeError, match="deleted"):
        crafting.refresh()
    assert crafting(torch.rand(2, 1, 12, 12)).shape == (2, 5)


def test_bfloat16_points_the_same_way(net: nn.Module, batch) -> None:
    x, _ = batch(16)
    crafting = CraftingCopy(net, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in crafting._recording.net.parameters()} == {torch.bfloat16}
    assert crafting(x).dtype is torch.float32
    fast = gradient(crafting, x)
    assert fast.dtype is torch.float32
    cosine = torch.cosine_similarity(fast.flatten(), gradient(copy.deepcopy(net).eval(), x).flatten(), dim=0)
    assert cosine > 0.98  # 0.993 on a CPU, 0.9885 on an H100


@pytest.mark.parametrize("kind", [LeNet, ResNet32])
def test_double_backward(kind: type[nn.Module]) -> None:
    with seeded(0):
        net = with_statistics(kind(1, (16, 16), 10)).double().eval()
        x, direction = torch.rand(2, 1, 16, 16).double(), torch.randn(2, 1, 16, 16).double()
    crafting = CraftingCopy(net)

    def curvature(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        point = x.clone().requires_grad_()
        logits = function(point)
        w = torch.zeros_like(logits, requires_grad=True)
        (pulled,) = torch.autograd.grad(logits, point, w, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, w, direction, retain_graph=True)
        (first,) = torch.autograd.grad(logits.logsumexp(dim=1).sum(), point, create_graph=True)
        (second,) = torch.autograd.grad(first, point, direction)
        return pushed, second

    for own, plain in zip(curvature(crafting), curvature(net), strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-8, atol=1e-10)


def test_gradients_can_be_viewed() -> None:
    """As attacks do that take a norm per row."""
    with seeded(0):
        crafting = CraftingCopy(ResNet32(3, (8, 8), 10))
        assert gradient(crafting, torch.rand(2, 3, 8, 8)).view(2, -1).shape == (2, 192)


def test_weights_are_channels_last() -> None:
    crafting = CraftingCopy(ResNet32(3, (8, 8), 10))
    convolutions = [module for module in crafting._recording.net.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 31
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convolutions)


@pytest.mark.parametrize("size", [(12, 12), (13, 12), (12, 13)])
def test_pooling_without_indices_is_pooling(size: tuple[int, int]) -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(1, 6, 5, padding=2),
                nn.MaxPool2d(2),
                nn.ReLU(),
                nn.MaxPool2d(kernel_size=(2, 2)),
                nn.Flatten(),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model = Pools().eval()
    images = torch.rand(4, 1, *size, generator=torch.Generator().manual_seed(0))
    images[:, :, :4] = 0.0  # ties
    copy = CraftingCopy(model)
    with torch.no_grad():
        torch.testing.assert_close(copy(images), model(images), rtol=0, atol=1e-6)
    gradients = []
    for function in (copy, model):
        point = images.clone().requires_grad_()
        logits = function(point)
        torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-6)
        gradients += torch.autograd.grad(logits.square().sum(), point)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)
    assert copy.has_derivative()
