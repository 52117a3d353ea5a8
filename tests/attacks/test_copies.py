import gc
import logging
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_lightning.attacks import copies
from amc_lightning.attacks.copies import Execution, copies_of
from amc_lightning.attacks.fold import CraftingCopy
from tests.attacks.conftest import SmallNet, seeded

FAST = Execution(fast=True)
BOTH = Execution(fast=True, bf16=True)


def images() -> Tensor:
    with seeded(5):
        return torch.rand(4, 1, 12, 12)


def fast_of(model: nn.Module, x: Tensor | None = None) -> CraftingCopy | None:
    return copies_of(model, images() if x is None else x, FAST)["float32"]


def small_net() -> nn.Module:
    with seeded(0):
        return SmallNet().eval()


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of models that were traced, in order."""
    from amc_lightning.attacks import fold

    seen: list[str] = []
    record = fold.record

    def counted(model: nn.Module, dtype: torch.dtype | None) -> object:
        seen.append(type(model).__name__)
        return record(model, dtype)

    monkeypatch.setattr(fold, "record", counted)
    return seen


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


# --- the caller's images ---------------------------------------------------------------------------------------------


class Writes(nn.Module):
    """Writes to its images, in a way that the trace may or may not see."""

    def __init__(self, write: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner, self.write = small_net(), write

    def forward(self, x: Tensor) -> Tensor:
        self.write(x)
        return self.inner(x)


class Assigns(Writes):
    def __init__(self) -> None:
        super().__init__(lambda x: x)

    def forward(self, x: Tensor) -> Tensor:
        x[:, :, 0] = 0.5
        return self.inner(x)


class RectifiesInPlace(Writes):
    def __init__(self) -> None:
        super().__init__(lambda x: x)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.relu(x))


WRITERS: dict[str, Callable[[], nn.Module]] = {
    "method": lambda: Writes(lambda x: x.sub_(0.1)),
    "view": lambda: Writes(lambda x: x.flatten(1)[:, :3].mul_(0.5)),
    "out": lambda: Writes(lambda x: torch.mul(x, 0.5, out=x)),
    "function": lambda: Writes(lambda x: functional.relu(x, inplace=True)),
    "assignment": Assigns,
    "layer": RectifiesInPlace,
}


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", WRITERS)
def test_the_callers_images_are_left_alone(
    name: str, memory: torch.memory_format, warnings: Callable[[], list[str]]
) -> None:
    x = (images() - 0.2).contiguous(memory_format=memory)
    before = x.clone()
    assert copies_of(WRITERS[name]().eval(), x, BOTH) == {"float32": None, "bfloat16": None}
    assert torch.equal(x, before)
    assert len(warnings()) == 1
    if name != "assignment":
        assert "its forward writes to its images" in warnings()[0]


class WritesUnseen(nn.Module):
    """What it decides by a plain value hides the writing from the trace, not from the comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_net()

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            return self.inner(x - 0.1)
        return self.inner(x.sub_(0.1))


def test_what_only_the_model_itself_writes_does_not_reach_the_caller() -> None:
    x = images()
    before = x.clone()
    fast_of(WritesUnseen().eval(), x)
    assert torch.equal(x, before)


# --- models that change ----------------------------------------------------------------------------------------------


class Refused(nn.Module):
    """Can be traced only while ``branches`` is off; ``calls`` counts passes."""

    def __init__(self, *, branches: bool = True, counts: bool = False) -> None:
        super().__init__()
        self.inner, self.branches, self.counts, self.calls = small_net(), branches, counts, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.counts:
            self.calls += 1
        if self.branches and x.sum() > 1e9:
            return self.inner(1 - x)
        return self.inner(x)


class Changing(nn.Module):
    """Answers for the trace as it does for images only while ``honest``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.honest = small_net(), True

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (2.0 if isinstance(x, torch.fx.Proxy) and not self.honest else 1.0)


def test_a_new_recording_is_compared_with_the_model_again(warnings: Callable[[], list[str]], traces: list[str]) -> None:
    model = Changing().eval()
    assert fast_of(model) is not None
    model.honest = False
    assert fast_of(model) is None
    assert fast_of(model) is None
    assert [message.rpartition(": ")[2] for message in warnings()] == ["its logits differ by more than 1e-5"]
    assert len(traces) == 2
    model.honest = True
    assert fast_of(model) is not None
    assert len(warnings()) == 1


def test_a_copy_in_bfloat16_alone_is_compared_again_too() -> None:
    model = Changing().eval()
    assert copies_of(model, images(), Execution(bf16=True))["bfloat16"] is not None
    model.honest = False
    assert copies_of(model, images(), Execution(bf16=True)) == {"float32": None, "bfloat16": None}


@pytest.mark.parametrize("execution", [FAST, BOTH, Execution(bf16=True)], ids=str)
def test_a_hook_that_goes_gives_the_copy_back(
    execution: Execution, warnings: Callable[[], list[str]], traces: list[str]
) -> None:
    model = small_net()
    wanted = {name: copy is not None for name, copy in copies_of(model, images(), execution).items()}
    traced = len(traces)
    for _ in range(3):
        handle = model.head.register_forward_hook(lambda *_: None)
        assert copies_of(model, images(), execution) == {"float32": None, "bfloat16": None}
        assert copies_of(model, images(), execution) == {"float32": None, "bfloat16": None}
        handle.remove()
        found = copies_of(model, images(), execution)
        assert {name: copy is not None for name, copy in found.items()} == wanted
    assert len(warnings()) == 1
    assert len(traces) == traced


def test_a_hook_that_was_there_first_is_no_verdict(warnings: Callable[[], list[str]]) -> None:
    model = small_net()
    handle = model.head.register_forward_hook(lambda *_: None)
    assert fast_of(model) is None
    handle.remove()
    assert fast_of(model) is not None
    assert len(warnings()) == 1


def test_one_warning_for_each_reason(warnings: Callable[[], list[str]]) -> None:
    model = Refused().eval()
    for _ in range(2):
        handle = model.inner.register_forward_hook(lambda *_: None)
        assert fast_of(model) is None
        handle.remove()
        assert fast_of(model) is None
    assert len(warnings()) == 2


def test_a_model_that_cannot_is_not_traced_at_every_call(warnings: Callable[[], list[str]], traces: list[str]) -> None:
    model = Refused().eval()
    for _ in range(6):
        assert copies_of(model, images(), BOTH) == {"float32": None, "bfloat16": None}
    assert len(traces) == 1
    assert len(warnings()) == 1
    model.branches = False
    assert fast_of(model) is not None
    assert len(traces) == 2


@pytest.mark.parametrize("branches", [False, True])
def test_a_model_that_counts_its_calls_is_not_traced_at_every_call(
    branches: bool, warnings: Callable[[], list[str]], traces: list[str]
) -> None:
    model, x = Refused(branches=branches, counts=True).eval(), images()
    for _ in range(20):
        model(x)
        fast_of(model)
    assert fast_of(model) is None
    assert len(traces) <= 5
    assert len(warnings()) == 1
    assert ("change from call to call" in warnings()[0]) is not branches
    for _ in range(40):  # it has come to rest
        made = fast_of(model)
    assert (made is None) is branches
    assert len(traces) <= 6


def test_a_restless_model_with_several_attacks_a_step_is_not_traced_for_ever(traces: list[str]) -> None:
    model, x = Refused(branches=False, counts=True).eval(), images()
    for _ in range(20):
        model(x)
        for _ in range(3):
            fast_of(model)
    assert len(traces) <= 9


def test_what_is_remembered_does_not_keep_the_model() -> None:
    for model in (small_net(), Refused().eval()):
        fast_of(model)
    alive = weakref.ref(model)
    assert model in copies._COPIES
    del model
    gc.collect()
    assert alive() is None


# --- compiled models -------------------------------------------------------------------------------------------------


def test_a_compiled_model_is_copied_from_the_original() -> None:
    model, x = small_net(), images()
    compiled = torch.compile(model, backend="eager")
    made = copies_of(compiled, x, BOTH)
    assert made["float32"] is not None
    assert made["bfloat16"] is not None
    assert made["float32"].agrees(x, model(x))
    assert fast_of(model) is made["float32"]
    with torch.no_grad():
        model.head[2].weight.mul_(2.0)
    again = fast_of(compiled)
    assert again is not None
    assert again.agrees(x, model(x))


def test_a_pre_hook_inside_a_compiled_model_is_not_passed_over(warnings: Callable[[], list[str]]) -> None:
    model = small_net()
    model.register_forward_pre_hook(lambda module, inputs: (1 - inputs[0],))
    assert fast_of(model) is not None
    assert fast_of(torch.compile(model, backend="eager")) is None
    assert "forward pre-hook" in warnings()[0]


def test_the_comparison_is_no_call_that_a_model_counts() -> None:
    model = Refused(branches=False, counts=True).eval()
    made = fast_of(model)
    assert made is not None
    assert model.calls == 0
    assert fast_of(model) is made
    assert made.recordings == 1
