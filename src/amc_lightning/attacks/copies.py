"""How passes are made while crafting: through the model itself, or through copies of it that are kept and refreshed."""

import logging
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from amc_lightning.attacks.fold import CannotFold, CraftingCopy, Settings, Unsettled, Watch, modules_of, settings_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Execution:
    """How passes are made while crafting.

    Attributes:
        fast: through a copy of the model with batch norm folded into convolutions and channels-last memory; the same
            logits to 1e-5, which is checked on the first batch and on that after each change of the model other than of
            its weights (else the plain model, with one warning for each reason).
        bf16: gradients in bfloat16; what is decided (fooled or not, labels, distances) stays in float32.
    """

    fast: bool = False
    bf16: bool = False


PLAIN = Execution()


@torch.no_grad()
def copies_of(model: nn.Module, images: Tensor, execution: Execution) -> dict[str, CraftingCopy | None]:
    """Return the copies of a model, with its weights of now; a new recording is compared with the model on ``images``.

    A compiled model is copied from the original. Where there is no copy a warning says why, once; one is made when the
    reason is gone, or may be since the model has changed.
    """
    original = _original(model)
    known = _COPIES.setdefault(original, _Known())
    wanted: dict[str, CraftingCopy | None] = {"float32": None, "bfloat16": None}
    try:
        if original is not model and original._forward_pre_hooks:
            raise CannotFold("it has a forward pre-hook inside what is compiled")
        if execution.fast:
            wanted["float32"] = known.exact.current(original, images)
        if execution.bf16:
            wanted["bfloat16"] = known.half.current(original, images)
    except CannotFold as error:
        reason = str(error)  # a log that kept the error would keep the model by its traceback
        if reason not in known.warned:
            known.warned.add(reason)
            _log.warning("attacks use the plain %s, not a faster copy: %s", type(original).__name__, reason)
    return wanted


class _Kept:
    """What is known of the copy of one model in its own dtype; a copy that works is kept while the model has hooks.

    Attributes:
        copy: the copy, whether or not it agrees with the model; None if there is none.
        checked: the recording of it that was found to agree.
        refusal: why there is none.
        refused: what the model was when that was found out.
        watch: whether that changes so often that trying again is not worth it.
    """

    dtype: torch.dtype | None = None

    def __init__(self) -> None:
        self.copy: CraftingCopy | None = None
        self.checked = 0
        self.refusal = ""
        self.refused: Settings = ()
        self.watch = Watch()

    def current(self, model: nn.Module, images: Tensor) -> CraftingCopy:
        """Return the copy, refreshed and checked.

        Raises:
            CannotFold: if there is none. Tracing is slow: a model that was refused is tried again when it has changed.
        """
        if self.refusal:
            settings = settings_of(modules_of(model))
            if self.watch.restless(settings) or settings == self.refused:
                raise CannotFold(self.refusal)
            self.refusal = ""
        try:
            if self.copy is None:
                self.copy, self.checked = CraftingCopy(model, dtype=self.dtype), 0
            else:
                self.copy.refresh()
            if self.checked != self.copy.recordings:
                self.check(model, self.copy, images)
                self.checked = self.copy.recordings
        except Unsettled:
            raise
        except CannotFold as error:
            settings = settings_of(modules_of(model))  # raises for hooks, which may go: no verdict
            self.watch.restless(settings)
            self.copy, self.refusal, self.refused = None, str(error), settings
            raise
        return self.copy

    def check(self, model: nn.Module, copy: CraftingCopy, images: Tensor) -> None:
        """Raise CannotFold if the copy does not give the model's logits for a few images."""
        images = _few(model, images)
        version = images._version
        agrees = copy.agrees(images, _unnoticed(model, images.clone()))
        if images._version != version:
            raise CannotFold("its forward writes to its images")
        if not agrees:
            raise CannotFold("its logits differ by more than 1e-5")


class _KeptInHalf(_Kept):
    """The same of the copy in bfloat16, which is good if the other one is and it can be called."""

    dtype = torch.bfloat16

    def __init__(self, exact: _Kept) -> None:
        super().__init__()
        self.exact = exact

    def check(self, model: nn.Module, copy: CraftingCopy, images: Tensor) -> None:
        self.exact.current(model, images)
        try:
            copy(_few(model, images))
        except RuntimeError as error:
            raise CannotFold(f"it does not work in {self.dtype} ({error})") from error


@dataclass
class _Known:
    exact: _Kept = field(default_factory=_Kept)
    half: _KeptInHalf = field(init=False)
    warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.half = _KeptInHalf(self.exact)


_COPIES: "WeakKeyDictionary[nn.Module, _Known]" = WeakKeyDictionary()


def _few(model: nn.Module, images: Tensor) -> Tensor:
    """Return a few images of their own memory, in the model's dtype and the copy's format."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
    memory = torch.channels_last if images.dim() == 4 else torch.contiguous_format
    return images[:8].detach().to(own).clone(memory_format=memory)


def _unnoticed(model: nn.Module, images: Tensor) -> Tensor:
    """Return the model's logits from a pass that whoever counts them shall not see: no hooks, attributes as before."""
    attributes = [(vars(module), vars(module).copy()) for module in model.modules()]
    try:
        logits: Tensor = model.forward(images)
    finally:
        for now, before in attributes:
            for key in now.keys() - before.keys():
                del now[key]
            now.update(before)
    return logits


def _original(model: nn.Module) -> nn.Module:
    """Return what was compiled; by name, since to import the class of compiled modules takes seconds."""
    while type(model).__name__ == "OptimizedModule" and "_orig_mod" in model._modules:
        model = model.get_submodule("_orig_mod")
    return model
