"""One attack with its parameters, as the method uses it: images in, adversarial images out, nothing else changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from amc_lightning.attacks.base import Attack, TakesNoise, full_precision
from amc_lightning.attacks.guard import guarded
from amc_lightning.attacks.randomness import isolated_randomness
from amc_lightning.errors import NotFiniteError

Norm = Literal["linf", "l2", "l1"]
Label = Literal["true", "predicted"]


@dataclass(frozen=True)
class GuardedAttack:
    """A `torchattacks` attack class and its arguments behind the guard; made by ``build``.

    The attack object is made anew in every call: it keeps the device its model had when it was made.

    Args:
        name: the name in configs, keys and tables, such as ``pgm``.
        attack_class: a subclass of `torchattacks.attack.Attack`.
        arguments: keywords of its constructor, checked.
        params: the same under the project's own names, for records.
        norm: norm of the budget; None for an unbounded search.
        eps: radius of the budget in pixel units of [0, 1]; None for an unbounded search.
        uses_labels: whether the attack looks at labels at all.
        label: whose labels: ``true`` those given, ``predicted`` the model's own answers on the clean images.
    """

    name: str
    attack_class: type[Attack]
    arguments: Mapping[str, object]
    params: Mapping[str, object]
    norm: Norm | None
    eps: float | None
    uses_labels: bool
    label: Label = "true"

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Craft adversarial images on ``model``, which comes back bit for bit as it was.

        Works in train mode, under ``no_grad``, ``inference_mode`` and autocast. The same noise gives the same result;
        the global random states are neither used nor moved.

        Args:
            model: returns logits, (B, K) of any float type; on the device of ``x``.
            x: images, (B, C, H, W) float32 in [0, 1].
            y: class indices, (B,) int64; ignored where the attack or ``label`` does not ask for them.
            noise: rows of ``draw_noise``, (B, C, H, W); drawn from ``generator`` if left out.
            generator: a CPU generator; without noise and generator, one seeded with 0 is used.

        Returns:
            x_adv, like ``x``, in [0, 1], without gradient.

        Raises:
            NotFiniteError: if the result is not finite.
            ValueError: if noise is given that does not fit.
        """
        if x.shape[0] == 0:
            with torch.inference_mode(False):
                return x.detach().clone()
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        if noise is None:
            noise = self.draw_noise(x.shape, generator)
        elif not issubclass(self.attack_class, TakesNoise) or noise.shape != x.shape:
            raise ValueError(f"attack {self.name}: noise of shape {tuple(noise.shape)} for images {tuple(x.shape)}")
        seed = int(torch.randint(2**31, (1,), generator=generator))
        with guarded(model), isolated_randomness(seed, x.device):
            images, labels = x.detach().clone(), y.to(x.device, copy=True)
            view = _LogitsView(model, images)
            if self.uses_labels and self.label == "predicted":
                with torch.no_grad():
                    labels = view(images).argmax(dim=1)
            attack = self.attack_class(view, **self.arguments)
            keywords = {} if noise is None else {"noise": noise.to(x, copy=True)}
            x_adv = attack(images, labels, **keywords).detach().to(x.dtype)
            if not x_adv.isfinite().all():
                raise NotFiniteError(
                    f"attack {self.name} returned values that are not finite; look at the model's weights"
                )
            return x_adv.clamp_(0.0, 1.0)

    @property
    def max_passes(self) -> int | None:
        """Gradient passes per row at most, for estimates; None for a class that does not say."""
        count = getattr(self.attack_class, "gradient_passes", None)
        return None if count is None else int(count(**self.arguments))

    def draw_noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor | None:
        """Draw the start noise of a whole batch, to be cut to rows and given back as ``noise``.

        Args:
            shape: (B, C, H, W) of the images.
            generator: a CPU generator.

        Returns:
            (B, C, H, W) float32 on the CPU; None for an attack that takes no noise.
        """
        if not issubclass(self.attack_class, TakesNoise):
            return None
        return self.attack_class.draw_noise(shape, generator, **self.arguments)


class _LogitsView(nn.Module):
    """What an attack sees of a model: its logits, on the images' device, and no switch to turn.

    `torchattacks` calls ``eval`` and ``train`` on what it is given and takes its device from the first parameter.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.anchor = nn.Parameter(images.new_empty(0), requires_grad=False)
        self.model = model
        self.training = False

    def train(self, mode: bool = True) -> "_LogitsView":
        """Leave every mode alone: the guard has set them."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's logits in at least float32."""
        return full_precision(self.model(images))
