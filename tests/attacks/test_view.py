"""What attacks see of a model: bad batches and models are refused in one line, and every path gives plain's result."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack, load, opened
from amc_lightning.errors import NotFiniteError, UserError
from amc_lightning.plan import counting
from tests.attacks.conftest import SmallNet, seeded
from tests.attacks.test_attack_contract import assert_same_state, state_of

Batch = Callable[[int], tuple[Tensor, Tensor]]
FAST = {
    "fgsm": {"eps": 0.1},
    "pgm": {"eps": 0.1, "eps_iter": 0.03, "nb_iter": 4},
    "eap": {"max_iterations": 6, "binary_search_steps": 3, "initial_const": 1.0, "learning_rate": 0.1},
    "vap": {"eps": 1.0, "num_iters": 2},
}
PAPERS = pytest.mark.parametrize("name", FAST)


def make(name: str, **settings: object) -> GuardedAttack:
    return load(name, **(FAST[name] | settings))


def exactly(message: str) -> str:
    return rf"\A{re.escape(message)}\Z"


@dataclass
class Rows:
    """Rows that entered a model, counted from outside."""

    gradient: int = 0
    forward: int = 0


@contextmanager
def watched(net: nn.Module) -> Iterator[Rows]:
    """Count independently of the view: by whether the images that arrive ask for a gradient."""
    rows = Rows()

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            rows.gradient += len(inputs[0])
        else:
            rows.forward += len(inputs[0])

    handle = net.register_forward_pre_hook(hook)
    try:
        yield rows
    finally:
        handle.remove()


FORM = "needed: (B, C, H, W) float32 in [0, 1]."
HALF = "Add .float(): attacks decide in float32, whatever the model computes in."
IMAGES = f"{FORM} Add .float() / 255 to 8-bit images."
PIXELS = "is not a range of pixels; allowed: [0, 1]. Divide 8-bit images by 255, and normalise inside the model."
INDICES = "are no labels of 3 images; needed: class indices, (3,) int64. Give one class index per image."


def with_value(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x[1, 0, 5, 5] = value
    return x


BAD_BATCHES: dict[str, tuple[Callable[[Tensor, Tensor], tuple[object, object]], str]] = {
    "three dimensions": (
        lambda x, y: (x[:, 0], y),
        f"x: '(3, 12, 12) torch.float32' are no images; {FORM} Add x.unsqueeze(0) for a single image.",
    ),
    "uint8": (
        lambda x, y: ((x * 255).to(torch.uint8), y),
        f"x: '(3, 1, 12, 12) torch.uint8' are no images; {IMAGES}",
    ),
    "float16": (
        lambda x, y: (x.half(), y),
        f"x: '(3, 1, 12, 12) torch.float16' are no images; {FORM} {HALF}",
    ),
    "array": (lambda x, y: (x.numpy(), y), f"x: 'ndarray' are no images; {FORM} Give a tensor."),
    "NaN": (lambda x, y: (with_value(x, torch.nan), y), f"x: 'NaN among its values' {PIXELS}"),
    "infinite": (lambda x, y: (with_value(x, torch.inf), y), f"x: 'values from 0 to inf' {PIXELS}"),
    "0 to 255": (lambda x, y: (x * 255, y), f"x: 'values from 0 to 255' {PIXELS}"),
    "normalised": (lambda x, y: (x * 2 - 1, y), f"x: 'values from -1 to 1' {PIXELS}"),
    "slightly negative": (lambda x, y: (with_value(x, -3e-6), y), f"x: 'values from -3e-06 to 1' {PIXELS}"),
    "slightly above": (lambda x, y: (with_value(x, 1.001), y), f"x: 'values from 0 to 1.001' {PIXELS}"),
    "float labels": (lambda x, y: (x, y.float()), f"y: '(3,) torch.float32' {INDICES}"),
    "int32 labels": (lambda x, y: (x, y.int()), f"y: '(3,) torch.int32' {INDICES}"),
    "one-hot labels": (lambda x, y: (x, torch.eye(5).long()[y]), f"y: '(3, 5) torch.int64' {INDICES}"),
    "too few labels": (lambda x, y: (x, y[:2]), f"y: '(2,) torch.int64' {INDICES}"),
    "negative label": (
        lambda x, y: (x, torch.tensor([0, -1, 2])),
        "y: -1 is no class; allowed: 0 to K - 1. Correct the labels.",
    ),
    "label K": (
        lambda x, y: (x, torch.tensor([0, 5, 2])),
        "y: 5 is a label, but the model has 5 classes; allowed: 0 to 4. Match the labels to the model.",
    ),
}


@pytest.mark.parametrize("problem", BAD_BATCHES)
@pytest.mark.parametrize("name", ["fgsm", "eap"])
def test_a_bad_batch_is_refused_in_one_line(name: str, problem: str) -> None:
    net, x, y = small_net(), *small_batch(3)
    change, message = BAD_BATCHES[problem]
    before = state_of(net)
    with pytest.raises(UserError, match=exactly(message)):
        make(name)(net, *change(x, y))
    assert_same_state(before, state_of(net))


def test_a_list_of_labels_is_refused_in_one_line() -> None:
    net, (x, _) = small_net(), small_batch(3)
    with pytest.raises(
        UserError, match=r"\Ay: '?list'? are no labels of 3 images; needed: class indices, \(3,\) int64"
    ):
        make("fgsm")(net, x, [0, 1, 2])


def test_rounding_may_leave_the_box_and_is_brought_back() -> None:
    net, (x, y) = small_net(), small_batch(3)
    for value in (-5e-7, 1 + 5e-7):
        x_adv = make("fgsm", eps=0.0)(net, with_value(x, value), y)
        assert ((x_adv >= 0) & (x_adv <= 1)).all()


def small_net() -> SmallNet:
    """The net of the fixture, without a device."""
    with seeded(0):
        net = SmallNet()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0.0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
    net.body[1].eval()
    return net


def small_batch(size: int) -> tuple[Tensor, Tensor]:
    """Images with a black and a white pixel each, and labels 0 to 4."""
    with seeded(1):
        x = torch.rand(size, 1, 12, 12)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = 0.0, 1.0
    return x, torch.arange(size) % 5


class Ending(nn.Module):
    """A net with something wrong at its end."""

    def __init__(self, end: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner = small_net()
        self.end = end

    def forward(self, x: Tensor) -> object:
        return self.end(self.inner(x))


SHAPE = "needed: logits of shape (B, K) with K >= 2. Return logits from its forward."
BAD_MODELS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "softmax": (
        lambda logits: logits.softmax(dim=1),
        "model: 'Ending' returns probabilities, which attack {name} cannot use; needed: logits, before any softmax. "
        "Remove the softmax from the end of the model.",
    ),
    "tuple": (lambda logits: (logits, logits), f"model: 'Ending' returns 'tuple' for 3 images; {SHAPE}"),
    "one logit": (lambda logits: logits[:, :1], f"model: 'Ending' returns (3, 1) for 3 images; {SHAPE}"),
    "no axis of classes": (lambda logits: logits[:, 0], f"model: 'Ending' returns (3,) for 3 images; {SHAPE}"),
    "4-D": (lambda logits: logits[:, :, None, None], f"model: 'Ending' returns (3, 5, 1, 1) for 3 images; {SHAPE}"),
    "another batch": (lambda logits: logits[:2], f"model: 'Ending' returns (2, 5) for 3 images; {SHAPE}"),
    "detached": (
        Tensor.detach,
        "model: 'Ending' passes no gradient back to its images; needed: a forward without detach, no_grad or numpy. "
        "Attack a differentiable stand-in of the model.",
    ),
}


def without_quotes(message: str) -> str:
    return message.replace("'", "")


@pytest.mark.parametrize("problem", BAD_MODELS)
@PAPERS
@pytest.mark.parametrize("label", ["true", "predicted"])
def test_a_bad_model_is_refused_in_one_line(name: str, problem: str, label: str) -> None:
    end, message = BAD_MODELS[problem]
    model, (x, y) = Ending(end), small_batch(3)
    before = state_of(model)
    with pytest.raises(UserError) as raised:
        make(name, label=label)(model, x, y)
    assert without_quotes(str(raised.value)) == without_quotes(message.format(name=name))
    assert_same_state(before, state_of(model))


@PAPERS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_in_half_precision_are_noticed_too(name: str, dtype: torch.dtype) -> None:
    """Their sums are off by rounding of their own."""
    model = Ending(lambda logits: logits.softmax(dim=1).to(dtype))
    with pytest.raises(UserError, match="returns probabilities"):
        make(name)(model, *small_batch(8))


def test_positive_logits_and_a_log_softmax_are_no_probabilities() -> None:
    x, y = small_batch(3)
    for end in (lambda logits: logits - logits.min() + 1, lambda logits: logits.log_softmax(dim=1)):
        make("fgsm")(Ending(end), x, y)


BROKEN = [
    ("fgsm", {}),
    ("fgsm", {"label": "predicted"}),
    ("pgm", {}),
    ("pgm", {"rand_init": False}),
    ("pgm", {"restarts": 2}),
    ("pgm", {"keep_best": True}),
    ("pgm", {"compact": True}),
    ("pgm", {"compact": True, "restarts": 2}),
    ("pgm", {"compact": True, "rand_init": False}),
    ("pgm", {"label": "predicted"}),
    ("eap", {}),
    ("eap", {"abort_early": True}),
    ("eap", {"label": "predicted"}),
    ("vap", {}),
    ("vap", {"method": "logit"}),
    ("vap", {"method": "finite", "xi": 1e-2}),
]


@pytest.mark.parametrize(
    ("where", "value"), [("first", torch.nan), ("last", torch.nan), ("one class", torch.nan), ("last", torch.inf)]
)
@pytest.mark.parametrize(("name", "settings"), BROKEN, ids=str)
def test_a_model_with_broken_weights_is_reported(
    name: str, settings: dict[str, object], where: str, value: float
) -> None:
    """The sign of NaN is 0, and no comparison with it holds: unnoticed, images come back clean and count as robust."""
    net, (x, y) = small_net(), small_batch(5)
    weight = {"first": net.body[0].weight, "last": net.head[-1].weight, "one class": net.head[-1].weight[3]}[where]
    weight.data.fill_(value)
    before = state_of(net)
    message = f"attack {name} returned values that are not finite; look at the model's weights"
    with pytest.raises(NotFiniteError, match=exactly(message)):
        make(name, **settings)(net, x, y)
    torch.testing.assert_close(state_of(net), before, rtol=0, atol=0, equal_nan=True)


def test_one_broken_row_is_enough() -> None:
    class BrokenInTheDark(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * torch.where(x.flatten(1).mean(dim=1, keepdim=True) < 0.2, torch.nan, 1.0)

    x, y = small_batch(5)
    x[3] *= 0.1
    for name, settings in BROKEN:
        with pytest.raises(NotFiniteError, match=f"attack {name} returned values"):
            make(name, **settings)(BrokenInTheDark(), x, y)


@PAPERS
def test_a_float64_model_is_attacked_in_float64(name: str) -> None:
    """Computed in float32 at any point, the result would be 1e-7 off, or by whole steps where a sign is decided."""
    net, (x, y) = small_net().double(), small_batch(5)
    noise = make(name).draw_noise(x.shape, torch.Generator().manual_seed(3))
    exact = make(name).craft(net, x.double(), y, noise=noise)
    rounded = make(name).craft(net, x, y, noise=noise)
    assert exact.x_adv.dtype == torch.float64
    assert rounded.x_adv.dtype == torch.float32
    assert torch.equal(rounded.x_adv, exact.x_adv.float())
    norm = {"fgsm": "linf", "pgm": "linf", "vap": "l2"}.get(name)
    if norm is not None:
        assert (rounded.distances[norm] <= FAST[name]["eps"] + 1e-6).all()
        assert (exact.distances[norm] <= FAST[name]["eps"] + 1e-12).all()


@PAPERS
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("images", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_models_and_images_of_any_float_type(name: str, fast: bool, dtype: torch.dtype, images: torch.dtype) -> None:
    net, (x, y) = small_net().to(dtype), small_batch(5)
    before = state_of(net)
    crafted = make(name, fast=fast).craft(net, x.to(images), y)
    assert crafted.x_adv.dtype == images
    assert ((crafted.x_adv >= 0) & (crafted.x_adv <= 1)).all()
    assert any(crafted.distances["linf"] > 0)
    assert_same_state(before, state_of(net))


@PAPERS
def test_a_model_without_parameters(name: str) -> None:
    class Contrast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, :6].mean(dim=(1, 2)), x[:, 0, 6:].mean(dim=(1, 2))], dim=1) * 50

    x, _ = small_batch(4)
    y = Contrast()(x).argmax(dim=1)
    crafted = make(name, **({"rand_init": False} if name == "pgm" else {})).craft(Contrast(), x, y)
    assert (crafted.distances["linf"] > 0).all()
    if name in ("fgsm", "pgm"):
        # what favours the label is darkened
        sign = torch.ones(4, 1, 12, 12)
        sign[y == 0, :, :6] = sign[y == 1, :, 6:] = -1.0
        torch.testing.assert_close(crafted.x_adv, (x + 0.1 * sign).clamp(0, 1), rtol=0, atol=1e-6)


class Mixed(nn.Module):
    """Convolutions in one float type, the head in another."""

    def __init__(self, first: torch.dtype, last: torch.dtype) -> None:
        super().__init__()
        net = small_net()
        self.body, self.head, self.last = net.body.to(first), net.head.to(last), last

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.head(self.body(x).to(self.last))


@PAPERS
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("first", "last"),
    [(torch.float32, torch.float64), (torch.float64, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_a_model_of_mixed_dtypes(name: str, first: torch.dtype, last: torch.dtype, fast: bool) -> None:
    model, (x, y) = Mixed(first, last), small_batch(5)
    crafted = make(name, fast=fast).craft(model, x, y)
    assert crafted.x_adv.dtype == torch.float32
    assert (crafted.distances["linf"] > 0).any()


@PAPERS
def test_a_batch_of_one_with_two_classes(name: str) -> None:
    with seeded(0):
        model = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
    x, _ = small_batch(1)
    y = model(x).argmax(dim=1)
    crafted = make(name).craft(model, x, y)
    assert crafted.distances["linf"] > 0
    if name != "vap":
        assert crafted.fooled.all()


@PAPERS
def test_the_fast_path_is_the_plain_one(name: str, net: nn.Module, batch: Batch) -> None:
    x, y = batch(8)
    noise = make(name).draw_noise(x.shape, torch.Generator().manual_seed(3))
    before = state_of(net)
    plain = make(name)(net, x, y, noise=noise)
    fast = make(name, fast=True)(net, x, y, noise=noise)
    assert_same_state(before, state_of(net))
    # A gradient that is nothing but rounding has any sign.
    differing = ((fast - plain).abs() > 1e-3).flatten(1).double().mean(dim=1)
    assert (differing < 0.02).all()
    net.double()
    plain, fast = make(name)(net, x, y, noise=noise), make(name, fast=True)(net, x, y, noise=noise)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-6)


@PAPERS
@pytest.mark.parametrize("execution", [{"fast": True}, {"bf16": True}, {"fast": True, "bf16": True}], ids=str)
def test_no_path_touches_the_model(name: str, execution: dict[str, bool], net: nn.Module, batch: Batch) -> None:
    x, y = batch(5)
    before = state_of(net)
    crafted = make(name, **execution).craft(net, x, y)
    assert_same_state(before, state_of(net))
    assert (crafted.distances["linf"] > 0).any()


@pytest.mark.parametrize("execution", [{"fast": True}, {"bf16": True}], ids=str)
def test_the_fast_path_follows_training(execution: dict[str, bool], batch: Batch, net: nn.Module) -> None:
    x, y = batch(5)
    net.double()
    attack = make("pgm", rand_init=False, **execution)
    before = attack(net, x, y)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(-1.0) if parameter.dim() > 1 else parameter.add_(0.2)
        net.body[5].running_var.mul_(3.0)
    after = attack(net, x, y)
    assert not torch.equal(after, before)
    assert torch.equal(after, attack(copy_of(net), x, y)), "not what a copy made now would give"
    if "fast" in execution:
        torch.testing.assert_close(after, make("pgm", rand_init=False)(net, x, y), rtol=0, atol=1e-6)


def copy_of(net: nn.Module) -> nn.Module:
    copy = small_net().to(next(net.parameters()))
    copy.load_state_dict(net.state_dict())
    return copy


class Branching(nn.Module):
    """Cannot be traced: what it does depends on the values of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_net()

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().sum()) > 1e9:
            return self.inner(1 - x)
        return self.inner(x)


class Baked(nn.Module):
    """Can be traced, but the trace keeps a number that belongs to one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_net()

    def forward(self, x: Tensor) -> Tensor:
        scale = float(x.detach().mean()) if isinstance(x, Tensor) else 2.0
        return self.inner(x) * scale


class InFloat32(nn.Module):
    """Makes a float32 tensor of its own, which a copy in bfloat16 may not be able to take."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * torch.full(x.shape, 0.9, dtype=torch.float32))


@pytest.mark.parametrize("execution", [{"fast": True}, {"bf16": True}, {"fast": True, "bf16": True}], ids=str)
@pytest.mark.parametrize("kind", [Branching, Baked], ids=lambda kind: kind.__name__)
@PAPERS
def test_a_model_that_cannot_be_folded_is_attacked_plainly_with_one_warning(
    name: str, kind: type[nn.Module], execution: dict[str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    model, (x, y) = kind(), small_batch(5)
    expected = make(name)(model, x, y)
    attack = make(name, **execution)
    before = state_of(model)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(attack(model, x, y), expected)
        assert torch.equal(attack(model, x, y), expected)
        assert torch.equal(make(name, **execution)(model, x, y), expected)
    assert_same_state(before, state_of(model))
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert message.startswith(f"attacks use the plain {kind.__name__}, not a faster copy: ")
    assert "\n" not in message
    if kind is Baked:
        assert message.endswith("its logits differ by more than 1e-5")


def test_a_model_that_cannot_run_in_bfloat16_is_attacked_plainly_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, (x, y) = InFloat32(), small_batch(5)
    expected = make("fgsm")(model, x, y)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert ((make("fgsm", bf16=True)(model, x, y) - expected).abs() > 1e-3).double().mean() < 0.02
    assert len(caplog.records) == 1


def test_a_hook_that_came_later_sends_the_attack_back_to_the_plain_model(caplog: pytest.LogCaptureFixture) -> None:
    net, (x, y) = small_net(), small_batch(5)
    attack = make("fgsm", fast=True)
    attack(net, x, y)
    handle = net.head.register_forward_hook(lambda module, inputs, output: output * torch.linspace(-1, 1, 5))
    expected = make("fgsm")(net, x, y)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(attack(net, x, y), expected)
        assert torch.equal(attack(net, x, y), expected)
    assert len(caplog.records) == 1
    handle.remove()


def test_a_hook_of_the_model_that_changes_its_images_is_heeded() -> None:
    """As one that normalises them does."""
    net, (x, y) = small_net().double(), small_batch(5)
    attack = make("fgsm", fast=True)
    attack(net, x, y)
    net.register_forward_pre_hook(lambda module, inputs: (1 - inputs[0],))
    torch.testing.assert_close(attack(net, x, y), make("fgsm")(net, x, y), rtol=0, atol=1e-6)


def test_a_hook_with_keywords_is_called_as_it_wants_to_be() -> None:
    net, (x, y) = small_net(), small_batch(5)
    seen = []
    net.register_forward_pre_hook(lambda module, inputs, keywords: seen.append(len(inputs[0])), with_kwargs=True)
    make("fgsm", fast=True)(net, x, y)
    assert seen[-1] == 5


@PAPERS
@pytest.mark.parametrize("label", ["true", "predicted"])
def test_the_fast_path_shows_the_models_hooks_as_many_rows(name: str, label: str) -> None:
    """In every call, the first one too, in which the copy is compared with the model."""
    net, (x, y) = small_net().double(), small_batch(5)
    counts = []
    for fast in (False, True, True):
        with counting(net) as count:
            make(name, fast=fast, label=label)(net, x, y)
        counts.append((count.gradient, count.forward))
    assert counts[0] == counts[2]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("fast", [False, True])
@PAPERS
def test_bf16_decides_in_float32(name: str, fast: bool) -> None:
    """What is wrong only in bfloat16 does not count: an answer, a label to turn away from, a distance."""
    net, (x, _) = small_net(), small_batch(64)
    net.eval()
    with torch.no_grad():
        net.head[-1].weight.mul_(0.02)  # logits so close that 8 bits change the answers of some rows
        y = net(x).argmax(dim=1)
    crafted = make(name, fast=fast, bf16=True).craft(net, x, y)
    with torch.no_grad():
        answers = net(crafted.x_adv).argmax(dim=1)
    assert torch.equal(crafted.predicted, answers)
    assert torch.equal(crafted.fooled, answers != y)
    own = make(name, fast=fast, bf16=True, label="predicted")(net, x)
    # its pass is another one: on some processors a gradient of 8 bits that is nearly zero may change its sign
    assert (own != crafted.x_adv).float().mean() < 1e-3


@pytest.mark.parametrize("execution", [{"bf16": True}, {"fast": True, "bf16": True}], ids=str)
def test_what_eap_changes_in_bf16_fools_the_float32_model(execution: dict[str, bool]) -> None:
    """Its images end on the decision boundary, where bfloat16 and float32 disagree on one in eight."""
    net, (x, _) = small_net(), small_batch(64)
    net.eval()
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    y[::16] = (y[::16] + 1) % 5  # wrong from the start: to come back as they are
    settings = {"binary_search_steps": 6, "max_iterations": 30, "learning_rate": 0.02, "beta": 1e-3}
    crafted = make("eap", **settings, **execution).craft(net, x, y)
    changed = crafted.distances["linf"] > 0
    assert changed.sum() > 30
    assert crafted.fooled[changed].all()
    assert not changed[::16].any()
    plain = make("eap", **settings).craft(net, x, y)
    assert crafted.fooled.sum() >= plain.fooled.sum() - 2
    assert crafted.distances["l2"][changed].mean() < 1.1 * plain.distances["l2"][plain.fooled].mean()


@pytest.mark.parametrize("compact", [False, True])
def test_what_pgm_keeps_as_fooling_in_bf16_fools_the_float32_model(compact: bool) -> None:
    """Steps so small that points right behind the boundary are on the path."""
    net, (x, _) = small_net(), small_batch(64)
    net.eval()
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    settings = {"eps": 0.1, "eps_iter": 0.004, "nb_iter": 20, "rand_init": False, "compact": compact, "keep_best": True}
    crafted = make("pgm", bf16=True, **settings).craft(net, x, y)
    plain = make("pgm", **settings).craft(net, x, y)
    assert 5 < plain.fooled.sum() < 64
    assert (crafted.fooled != plain.fooled).sum() <= 2
    if compact:
        # A row that left the batch did so because it fools; one that was thought to would have left too early.
        stopped = crafted.distances["linf"] < 0.075
        assert crafted.fooled[stopped].all()


Counts = tuple[float, float]
COUNTS: list[tuple[str, dict[str, object], Counts, Counts]] = [
    # settings, then (gradient, forward) passes per row with true and with predicted labels
    ("fgsm", {}, (1, 0), (1, 0)),
    ("fgsm", {"bf16": True}, (1, 0), (1, 1)),
    ("pgm", {"nb_iter": 5}, (5, 0), (5, 1)),
    ("pgm", {"nb_iter": 5, "rand_init": False}, (5, 0), (5, 0)),
    ("pgm", {"nb_iter": 5, "keep_best": True}, (5, 1), (5, 2)),
    ("pgm", {"nb_iter": 2, "restarts": 3}, (6, 3), (6, 4)),
    ("vap", {"num_iters": 3, "method": "logit"}, (3, 1), (3, 1)),
    ("vap", {"num_iters": 3, "method": "exact"}, (3, 1), (3, 1)),
    ("vap", {"num_iters": 3, "method": "finite", "xi": 0.1}, (3, 1), (3, 1)),
]


@pytest.mark.parametrize(("name", "settings", "given", "predicted"), COUNTS, ids=str)
def test_passes_are_what_a_hook_counts(
    name: str, settings: dict[str, object], given: Counts, predicted: Counts
) -> None:
    net, (x, y) = small_net(), small_batch(5)
    for label, wanted in (("true", given), ("predicted", predicted)):
        attack = make(name, label=label, **settings)
        attack(net, x, y)  # what is compared once is compared now
        with watched(net) as rows:
            crafted = attack.craft(net, x, y)
        assert (crafted.gradient_passes, crafted.forward_passes) == wanted
        # craft's own look at the result is not the attack's work
        assert (rows.gradient, rows.forward) == (5 * wanted[0], 5 * wanted[1] + 5)
        assert attack.max_passes == wanted[0]


@pytest.mark.parametrize("abort_early", [False, True])
@pytest.mark.parametrize("label", ["true", "predicted"])
def test_passes_of_eap_are_what_a_hook_counts(label: str, abort_early: bool) -> None:
    net, (x, _) = small_net(), small_batch(5)
    net.eval()
    y = net(x).argmax(dim=1)
    attack = make("eap", label=label, abort_early=abort_early, beta=0.0)
    with watched(net) as rows:
        crafted = attack.craft(net, x, y)
    assert rows.gradient == round(5 * crafted.gradient_passes)
    assert rows.forward - 5 == round(5 * crafted.forward_passes)
    if abort_early:
        assert crafted.gradient_passes <= 1 + 3 * 5
    else:
        # One at the clean image for all search steps; an iteration judges its point, if that may be the nearest yet,
        # and takes a gradient at another, which for the first iterate is the same.
        assert crafted.gradient_passes == 1 + 3 * 5 == attack.max_passes
        assert 0 < crafted.forward_passes <= 3 * 5


def test_passes_of_a_batch_that_leaves_in_parts_are_a_mean() -> None:
    net, (x, _) = small_net(), small_batch(4)
    net.eval()
    y = net(x).argmax(dim=1)
    y[0] = (y[0] + 1) % 5
    crafted = make("pgm", eps=1e-6, nb_iter=5, compact=True).craft(net, x, y)
    # The wrong row leaves after one pass, the others stay for five and their end.
    assert crafted.gradient_passes == (1 + 3 * 5) / 4
    assert crafted.forward_passes == 3 / 4


def test_several_attacks_may_share_a_view() -> None:
    net, (x, y) = small_net(), small_batch(5)
    alone = [make(name)(net, x, y) for name in FAST]
    before = state_of(net)
    with opened(net, x, y) as view:
        shared = [make(name)(view, x, y) for name in FAST]
        assert view.gradient_rows > 0
    assert_same_state(before, state_of(net))
    for one, other in zip(shared, alone, strict=True):
        assert torch.equal(one, other)
