"""The guard by itself: whatever is done inside, the model comes back."""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc_lightning.attacks import guarded
from amc_lightning.attacks.guard import unwrapped
from amc_lightning.attacks.randomness import isolated_randomness
from amc_lightning.errors import UserError
from tests.attacks.conftest import SmallNet


def test_inside_everything_is_still_and_gradients_flow(net: nn.Module) -> None:
    with torch.inference_mode(), torch.autocast(net.head[-1].weight.device.type, dtype=torch.bfloat16), guarded(net):
        assert not any(module.training for module in net.modules())
        assert not any(parameter.requires_grad for parameter in net.parameters())
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled("cuda")
    assert net.training
    assert not net.body[1].training


def test_undoes_what_is_done_to_gradients_and_buffers(net: nn.Module, device: torch.device) -> None:
    first = net.body[0].weight
    gradient, values = first.grad, first.grad.clone()
    norm = net.body[5]
    mean, mean_values = norm.running_mean, norm.running_mean.clone()
    variance, variance_values = norm.running_var, norm.running_var.clone()
    count = norm.num_batches_tracked
    with guarded(net):
        net.zero_grad(set_to_none=False)
        first.grad = torch.ones_like(first)
        net.train()
        net(torch.rand(4, 1, 12, 12, device=device))
        norm.running_var = torch.zeros(8)
    assert first.grad is gradient
    assert torch.equal(gradient, values)
    assert norm.running_mean is mean
    assert torch.equal(mean, mean_values)
    assert norm.running_var is variance
    assert torch.equal(variance, variance_values)
    assert norm.num_batches_tracked is count
    assert count == 0


def test_restoring_keeps_a_graph_of_the_caller_valid(net: nn.Module, device: torch.device) -> None:
    """A frozen batch norm has saved its statistics for backward; writing them back must not void that."""
    loss = net(torch.rand(4, 1, 12, 12, device=device)).sum()
    with guarded(net):
        net(torch.rand(4, 1, 12, 12, device=device))
    loss.backward()


def test_never_calls_a_users_own_train_or_eval() -> None:
    class Proud(nn.Sequential):
        def train(self, mode: bool = True) -> nn.Module:
            raise AssertionError("train was called")

        def eval(self) -> nn.Module:
            raise AssertionError("eval was called")

    model = nn.Sequential(Proud(nn.Linear(2, 2), nn.Dropout()))
    with guarded(model):
        assert not model[0][1].training
    assert model[0][1].training


def test_nests_and_restores_when_the_inner_part_raises(net: nn.Module) -> None:
    modes = [module.training for module in net.modules()]
    frozen = [parameter.requires_grad for parameter in net.parameters()]
    with guarded(net):
        with pytest.raises(KeyError, match="inner"), guarded(net):
            raise KeyError("inner")
        assert not any(module.training for module in net.modules())
        assert not any(parameter.requires_grad for parameter in net.parameters())
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == frozen


def test_a_model_without_parameters() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout())
    with guarded(model):
        assert not model[1].training
    assert model[1].training


def test_a_training_step_around_an_attack_is_the_one_without_it(net: nn.Module, device: torch.device) -> None:
    """Between forward and backward of a step: the graph, the statistics and the gradients stay whole."""
    net.zero_grad()
    x = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0)).to(device)
    net.head[1].p = 0.0
    state = {name: value.clone() for name, value in net.state_dict().items()}
    gradients = []
    for attacked in (False, True):
        net.load_state_dict(state)
        net.zero_grad()
        loss = net(x).square().mean()
        if attacked:
            with guarded(net):
                inside = x.clone().requires_grad_()
                net(inside).sum().backward()
        loss.backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.requires_grad])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def noop(*_: object, **__: object) -> None:
    """Be a hook."""


def everything(net: nn.Module) -> list[object]:
    """All of a model that an attack could touch: objects by identity, values by copy, hooks in order."""
    tensors = [*net.parameters(), *net.buffers(), *[p.grad for p in net.parameters() if p.grad is not None]]
    held = [
        [
            (name, [*collection.items()] if name.endswith("hooks") else [(key, id(value)) for key, value in pairs])
            for name, collection in vars(module).items()
            if isinstance(collection, dict)
            for pairs in [collection.items()]
        ]
        for module in net.modules()
    ]
    own = [
        (type(module), module.training, module._is_full_backward_hook, {*module._non_persistent_buffers_set})
        for module in net.modules()
    ]
    return [
        held,
        own,
        [*net.state_dict()],
        [(id(t), t.requires_grad, t.dtype, t.stride(), t.data_ptr(), t.detach().clone().tolist()) for t in tensors],
        [id(p.grad) for p in net.parameters()],
        [buffer._version for buffer in net.buffers()],
    ]


DAMAGE: dict[str, Callable[[nn.Module], object]] = {
    "mode": lambda net: net.train(),
    "a parameter replaced": lambda net: setattr(net.head[-1], "bias", nn.Parameter(torch.zeros(5))),
    "a parameter set to None": lambda net: setattr(net.head[-1], "bias", None),
    "a parameter removed": lambda net: delattr(net.body[0], "weight"),
    "a parameter added": lambda net: net.register_parameter("extra", nn.Parameter(torch.zeros(1))),
    "a parameter removed and put back": lambda net: net.body[0].register_parameter(
        "weight", net.body[0]._parameters.pop("weight")
    ),
    "parameters thawed": lambda net: net.requires_grad_(True),
    "a gradient set": lambda net: setattr(net.body[0].weight, "grad", torch.zeros_like(net.body[0].weight)),
    "gradients filled": lambda net: net.requires_grad_()(torch.rand(4, 1, 12, 12)).sum().backward(),
    "a buffer written": lambda net: net.body[5].running_mean.add_(1.0),
    "a buffer written through data": lambda net: net.body[5].running_mean.data.add_(1.0),
    "a buffer replaced": lambda net: setattr(net.body[5], "running_var", torch.zeros(8)),
    "a buffer set to None": lambda net: setattr(net.body[5], "running_var", None),
    "a buffer removed": lambda net: delattr(net, "hidden"),
    "a buffer added": lambda net: net.register_buffer("extra", torch.zeros(1)),
    "a hidden buffer added": lambda net: net.register_buffer("extra", torch.zeros(1), persistent=False),
    "a hidden buffer made visible": lambda net: net.register_buffer("hidden", torch.zeros(3)),
    "an empty buffer filled": lambda net: setattr(net, "empty", torch.zeros(3)),
    "a channels-last buffer written": lambda net: net.kernel.zero_(),
    "a submodule replaced": lambda net: net.body.__setitem__(2, nn.Sigmoid()),
    "a submodule removed": lambda net: net.body.__delitem__(2),
    "a submodule added": lambda net: net.head.append(nn.Dropout()),
    "another dtype": lambda net: net.double(),
    "another memory": lambda net: setattr(net.body[0].weight, "data", torch.zeros_like(net.body[0].weight)),
    "another shape": lambda net: setattr(net.body[0].weight, "data", net.body[0].weight.data[:2]),
    "a buffer's other memory": lambda net: setattr(net.body[5].running_var, "data", torch.zeros(8)),
    "a hook added": lambda net: net.register_forward_hook(noop),
    "a hook with all options added": lambda net: net.register_forward_hook(noop, with_kwargs=True, always_call=True),
    "a hook before forward added": lambda net: net.body[2].register_forward_pre_hook(noop, with_kwargs=True),
    "a hook added in front": lambda net: net.body[0].register_forward_hook(noop, prepend=True),
    "a hook of backward added": lambda net: net.body[2].register_full_backward_hook(noop),
    "a hook before backward added": lambda net: net.body[2].register_full_backward_pre_hook(noop),
    "a hook of backward added and removed": lambda net: net.body[2].register_full_backward_hook(noop).remove(),
    "hooks thrown away": lambda net: setattr(net.body[0], "_forward_hooks", OrderedDict()),
    "hooks removed": lambda net: net.body[0]._forward_hooks.popitem(last=False),
    "hooks reordered": lambda net: net.body[0]._forward_hooks.move_to_end(next(iter(net.body[0]._forward_hooks))),
    "a hook of state_dict added": lambda net: net.register_state_dict_post_hook(noop),
    "a hook of load_state_dict added": lambda net: net.register_load_state_dict_pre_hook(noop),
}


@pytest.mark.parametrize("raises", [False, True], ids=["", "raises"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_undoes(damage: str, raises: bool) -> None:
    net = furnished()
    before = everything(net)
    with suppress(KeyError), guarded(net):
        still = everything(net)
        DAMAGE[damage](net)
        assert everything(net) != still, "no damage was done"
        if raises:
            raise KeyError
    assert everything(net) == before


def furnished() -> nn.Module:
    """A net that has one of everything that can be damaged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SmallNet()
        net.register_buffer("empty", None)
        net.register_buffer("hidden", torch.ones(3), persistent=False)
        net.register_buffer("kernel", torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last))
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
    net.body[1].eval()
    net.head[-1].bias.requires_grad = False
    net.head[-1].bias.grad = None
    for _ in range(2):
        net.body[0].register_forward_hook(lambda *_: None)
    return net


def test_a_hooks_handle_still_removes_it(net: nn.Module) -> None:
    handle = net.register_forward_hook(noop)
    with guarded(net):
        net._forward_hooks.clear()
    handle.remove()
    assert not net._forward_hooks


def test_restoring_keeps_a_graph_over_a_written_buffer_valid() -> None:
    """The buffer's values are back, so its version counter, which backward looks at, must be too."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    model, x = Counting(), torch.ones(2, requires_grad=True)
    loss = model(x).sum()
    with guarded(model):
        model(x)
    loss.backward()
    assert x.grad.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("error", [None, KeyError("of the attack")])
def test_says_so_if_weights_were_written_in_place(net: nn.Module, error: Exception | None) -> None:
    mean = net.body[5].running_mean.clone()
    message = (
        r"^model: an attack wrote in place to body\.0\.weight and 1 more of SmallNet, which cannot be undone; allowed: "
    )
    with pytest.raises(RuntimeError, match=message) as caught, guarded(net):  # noqa: PT012
        net.body[0].weight.mul_(2.0)
        net.head[-1].bias.zero_()
        net.body[5].running_mean.zero_()
        if error is not None:
            raise error
    assert caught.value.__context__ is error
    assert net.training
    assert net.body[0].weight.requires_grad
    assert torch.equal(net.body[5].running_mean, mean)


def test_memory_shared_and_expanded() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model.register_buffer("one", torch.ones(1).expand(3))
    model.register_buffer("row", torch.arange(3.0).expand(1, -1))
    model.register_buffer("same", model.row)
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    with guarded(model):
        assert not model[1].weight.requires_grad
        model.same.zero_()
        model.sparse.mul_(2.0)
    assert model[1].weight is model[0].weight
    assert model[0].weight.requires_grad
    assert model.row is model.same
    assert model.row.tolist() == [[0.0, 1.0, 2.0]]
    assert model.sparse.to_dense().tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64],
)
def test_buffers_of_any_dtype(dtype: torch.dtype) -> None:
    model = nn.Module()
    model.register_buffer("some", torch.ones(3).to(dtype))
    model.register_buffer("one", torch.tensor(1.0).to(dtype))
    model.register_buffer("none", torch.empty(0, dtype=dtype))
    with guarded(model):
        model.some.copy_(torch.zeros(3))
        model.one.copy_(torch.zeros(()))
    assert model.some.tolist() == [1, 1, 1]
    assert model.one.tolist() == 1


def test_a_model_made_in_inference_mode_comes_back() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with guarded(model), torch.inference_mode():
        model[1].running_mean.add_(1.0)
    assert model[1].running_mean.tolist() == [0.0, 0.0]
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_model_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
    message = "^model: 'LazyLinear' has no parameters yet; needed: .* Pass one batch through the model first.$"
    with pytest.raises(UserError, match=message), guarded(model):
        pass
    model(torch.zeros(1, 3))
    with guarded(model):
        assert not model[1].weight.requires_grad
    assert model[1].weight.requires_grad


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is (deprecated|not supported)")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("compile_", [torch.jit.script, lambda net: torch.jit.trace(net, torch.rand(2, 1, 12, 12))])
def test_a_torchscript_model(compile_: Callable[[nn.Module], nn.Module]) -> None:
    with torch.random.fork_rng(devices=[]):
        net = SmallNet()
        net.head[1].p = 0.0
        script = compile_(net)
    weight, norm = dict(script.named_parameters())["body.0.weight"], dict(script.named_modules())["body.5"]
    mean = norm.running_mean.clone()
    gradient = torch.ones_like(weight)
    weight.grad = gradient
    with guarded(script):
        assert not any(module.training for module in script.modules())
        x = torch.rand(2, 1, 12, 12, requires_grad=True)
        script(x).sum().backward()
        assert x.grad.any()
        norm.running_mean.add_(1.0)
    assert all(module.training for module in script.modules())
    assert all(parameter.requires_grad for parameter in script.parameters())
    assert weight.grad is gradient
    assert torch.equal(norm.running_mean, mean)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "normalised",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
    ids=["weight hook", "spectral hook", "weight parametrization", "spectral parametrization"],
)
def test_a_training_step_over_normalised_weights_is_the_one_without_an_attack(
    normalised: Callable[[nn.Module], nn.Module],
) -> None:
    """Weights that are computed anew in each forward, some from buffers that move in train mode."""
    x, results = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)), []
    for attacked in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(normalised(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
        losses = [model(x).square().sum()]
        for _ in range(2 * attacked):
            with guarded(model):
                inside = x.clone().requires_grad_()
                model.train()(inside).sum().backward()
        losses.append(model(x).square().sum())
        sum(losses).backward()
        results.append([*[p.grad for p in model.parameters()], *model.buffers()])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_a_compiled_model_is_compiled_once_for_each_mode(net: nn.Module) -> None:
    """Every step goes back and forth between the two; neither may be forgotten, nor the model left frozen."""
    compiled_graphs = []

    def backend(graph: nn.Module, _: list[Tensor]) -> Callable[..., object]:
        compiled_graphs.append(graph)
        return graph.forward

    net.head[1].p = 0.0
    device = net.head[-1].weight.device
    compiled, x = torch.compile(net, backend=backend), torch.rand(4, 1, 12, 12, device=device)
    counts = []
    for _ in range(3):
        compiled(x).sum().backward()
        with guarded(compiled):
            inside = x.clone().requires_grad_()
            logits = compiled(inside)
            logits.sum().backward()
            torch.testing.assert_close(logits, net(x))
            assert inside.grad.any()
        counts.append(len(compiled_graphs))
    assert counts[0] == counts[1] == counts[2] == 2
    assert compiled.training
    assert not net.body[1].training


def test_unwrapped_takes_parallel_wrappers_off_and_nothing_else() -> None:
    inner = nn.Linear(2, 2)
    compiled = torch.compile(inner, backend="eager")
    assert unwrapped(inner) is inner
    assert unwrapped(nn.DataParallel(nn.DataParallel(inner))) is inner
    assert unwrapped(compiled) is compiled
    assert unwrapped(nn.DataParallel(compiled)) is compiled
    assert unwrapped(torch.compile(nn.DataParallel(compiled), backend="eager")) is compiled


# --- float32 precision and autocast ---

LIBRARIES = {
    "generic": ("all",),
    "mkldnn": ("all", "matmul", "conv", "rnn"),
    "cuda": ("all", "matmul", "conv", "rnn"),
}
SETTINGS: dict[str, Callable[[], object]] = {
    "default": lambda: None,
    "highest": lambda: torch.set_float32_matmul_precision("highest"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "old products": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "old convolutions": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "new products": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "new products, off": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee"),
    "new convolutions": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "none"),
    "new of CUDA": lambda: setattr(torch.backends.cudnn, "fp32_precision", "tf32"),
    "new of all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "new of all, bfloat16": lambda: setattr(torch.backends, "fp32_precision", "bf16"),
    "new CPU products": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "new CPU convolutions": lambda: setattr(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
    "new of the CPU": lambda: torch._C._set_fp32_precision_setter("mkldnn", "all", "bf16"),
    "mixed": lambda: (
        torch.set_float32_matmul_precision("medium"),
        setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee"),
        setattr(torch.backends.cudnn, "allow_tf32", False),
        setattr(torch.backends.cudnn.conv, "fp32_precision", "tf32"),
    ),
}


@pytest.fixture
def precision() -> Iterator[None]:
    """Put the precision settings back to torch's defaults afterwards."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for library, kinds in LIBRARIES.items():
        for kind in kinds:
            if (library, kind) not in (("cuda", "conv"), ("cuda", "rnn")):
                torch._C._set_fp32_precision_setter(library, kind, "none")


def answers() -> list[object]:
    """What every getter says, also where it raises; under other general settings too, to see who follows them."""

    def ask(getter: Callable[[], object]) -> object:
        try:
            return getter()
        except RuntimeError:
            return "raises"

    get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    general, found = get("generic", "all"), []
    for setting in (general, "none", "ieee", "tf32"):
        put("generic", "all", setting)
        found.append([get(library, kind) for library, kinds in LIBRARIES.items() for kind in kinds])
        found.append(ask(torch.get_float32_matmul_precision))
        found.append(ask(lambda: torch.backends.cuda.matmul.allow_tf32))
        found.append(ask(lambda: torch.backends.cudnn.allow_tf32))
    put("generic", "all", general)
    return found


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("setting", SETTINGS)
def test_products_are_in_full_float32_and_the_callers_settings_come_back(setting: str) -> None:
    model = nn.Linear(2, 2)
    SETTINGS[setting]()
    before = answers()
    with suppress(KeyError), guarded(model), guarded(model):
        for library in ("mkldnn", "cuda"):
            for kind in ("matmul", "conv", "rnn"):
                assert torch._C._get_fp32_precision_getter(library, kind) in ("none", "ieee"), (library, kind)
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cuda.matmul.allow_tf32 is False
        assert torch.backends.cudnn.allow_tf32 is False
        raise KeyError
    assert answers() == before


@pytest.mark.usefixtures("precision")
def test_a_product_inside_is_the_one_of_full_precision() -> None:
    a, b = torch.rand(2, 256, 256, generator=torch.Generator().manual_seed(0))
    exact = a @ b
    torch.set_float32_matmul_precision("medium")
    with guarded(nn.Identity()):
        assert torch.equal(a @ b, exact)


def test_autocast_is_off_for_a_model_without_parameters_too() -> None:
    """It has no device by which to know which autocast to turn off."""
    torch.set_autocast_enabled("cuda", True)
    try:
        with suppress(KeyError), guarded(nn.Identity()):
            assert not torch.is_autocast_enabled("cuda")
            raise KeyError
        assert torch.is_autocast_enabled("cuda")
    finally:
        torch.set_autocast_enabled("cuda", False)


# --- random states ---


def random_states(device: torch.device) -> list[object]:
    states = [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]
    return [*states, torch.cuda.get_rng_state(device).tolist()] if device.type == "cuda" else states


def draw(device: torch.device) -> list[float]:
    """Draw one number, and of a pair of normals one, from everyone."""
    return [
        torch.randn(1).item(),
        torch.randn(1, device=device).item(),
        float(np.random.standard_normal()),
        random.gauss(0.0, 1.0),
    ]


def test_randomness_is_isolated_both_ways(device: torch.device) -> None:
    draw(device)
    before = random_states(device)
    drawn = []
    for outside in (0, 1):
        with isolated_randomness(3, device):
            drawn.append(draw(device))
        assert random_states(device) == before
        if outside == 0:
            draw(device)
            before = random_states(device)
    assert drawn[0] == drawn[1]


def test_randomness_comes_back_when_the_body_raises_or_the_seed_is_refused(device: torch.device) -> None:
    before = random_states(device)
    with suppress(KeyError), isolated_randomness(3, device):
        draw(device)
        raise KeyError
    assert random_states(device) == before
    with pytest.raises(ValueError, match="Seed must be between 0"), isolated_randomness(2**32, device):
        pass
    assert random_states(device) == before
