"""Train against several attacks at once: the multi-attack baselines that a cascade is compared with.

Each makes the adversarial half of a batch in its own way; everything else, from the loss to the accounting, is the
cascade's. A joint stage has one network, one optimiser and one schedule for all attacks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack, opened, share_clean
from amc_lightning.attacks.base import loss_order
from amc_lightning.attacks.view import ModelView
from amc_lightning.mixed_batch import MixedBatch
from amc_lightning.seeding import generator

MEMORY = 0.9
"""How much of its running robust error E-AT keeps from one batch of an attack to the next."""


class Joint(ABC):
    """What the rules have in common.

    Args:
        attacks: all attacks of the order.
        seed: the stage's seed.
        label: whose label an attack moves away from: the true one, or the model's own prediction.
    """

    def __init__(self, attacks: Sequence[GuardedAttack], *, seed: int, label: Literal["true", "predicted"]) -> None:
        self.attacks = tuple(attacks)
        self.seed = seed
        self.label: Literal["true", "predicted"] = label

    @abstractmethod
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, step: int) -> MixedBatch:
        """Perturb every row of a batch; arguments as of ``Mixer``.

        Returns:
            The adversarial batch: row i was made from row i modulo B.
        """

    def observe(self, wrong: Tensor, source: Tensor) -> None:  # noqa: B027 - most rules do nothing
        """Be told which adversarial rows the model being trained got wrong; most rules do not care."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed stage needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most rules keep nothing
        """Restore what ``state_dict`` returned."""

    def _crafted(self, view: ModelView, x: Tensor, y: Tensor, step: int, places: Sequence[int]) -> list[Tensor]:
        """Attack all rows with each of some attacks; one pass at the clean images serves all of them."""
        chosen = [self.attacks[place] for place in places]
        starts = share_clean(view, x, y, [(attack, None) for attack in chosen], label=self.label)
        found = []
        for attack, (aim, start) in zip(chosen, starts, strict=True):
            rng = generator(self.seed, step, attack.name)
            noise = attack.draw_noise(tuple(x.shape), rng)
            noise = None if noise is None else noise.to(x)
            found.append(attack(view, x, aim, noise=noise, generator=rng, start=start))
        return found

    def _of_one(self, model: nn.Module, x: Tensor, y: Tensor, step: int, place: int) -> MixedBatch:
        """Attack all rows with one attack."""
        with opened(model, x, y, self.attacks[0].execution) as view:
            (x_adv,) = self._crafted(view, x, y, step, [place])
        return MixedBatch(x=x_adv, y=y, source=torch.full_like(y, place))


class Average(Joint):
    """AVG: every row under every attack; the loss is the mean over all of them.

    Reference:
        Tramer and Boneh, NeurIPS 2019, https://arxiv.org/abs/1904.13000, section 2, the "avg" strategy.
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, step: int) -> MixedBatch:
        """Return k * B rows for k attacks, attack by attack."""
        with opened(model, x, y, self.attacks[0].execution) as view:
            parts = self._crafted(view, x, y, step, range(len(self.attacks)))
        source = torch.arange(len(self.attacks), device=y.device).repeat_interleave(len(y))
        return MixedBatch(x=torch.cat(parts), y=y.repeat(len(parts)), source=source)


class Maximum(Joint):
    """MAX: every row under the attack whose example has the largest cross-entropy.

    Reference:
        Tramer and Boneh, NeurIPS 2019, https://arxiv.org/abs/1904.13000, section 2, the "max" strategy.
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, step: int) -> MixedBatch:
        """Return B rows, each from the attack that hurts it most; of equal ones the first in the order."""
        with opened(model, x, y, self.attacks[0].execution) as view:
            parts = self._crafted(view, x, y, step, range(len(self.attacks)))
            with torch.no_grad():
                losses = torch.stack([loss_order(view(part).float(), y) for part in parts])
        source = losses.argmax(dim=0)
        return MixedBatch(x=torch.stack(parts)[source, torch.arange(len(y), device=y.device)], y=y, source=source)


class Steepest(Joint):
    """MSD: every row under one attack whose steps choose among the norms; the attack is ``attacks[0]``.

    Reference:
        Maini et al., ICML 2020, https://arxiv.org/abs/1909.04068, section 4.
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, step: int) -> MixedBatch:
        """Return B rows, all from the one attack."""
        return self._of_one(model, x, y, step, 0)


class Sampled(Joint):
    """SAT: every batch under one attack, drawn evenly.

    Reference:
        Madaan et al., ICML 2021, https://arxiv.org/abs/2006.12135, section 3, stochastic adversarial training.
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, step: int) -> MixedBatch:
        """Return B rows, all from the attack that was drawn for this step."""
        return self._of_one(model, x, y, step, _draw(self.seed, step, [1.0] * len(self.attacks)))


class Extremes(Joint):
    """E-AT: every batch under one attack, drawn in proportion to its running robust error in training.

    The paper's claim is that the l-inf and the l1 ball are enough, so the order should hold one attack in each.

    Reference:
        Croce and Hein, ICML 2022, https://arxiv.org/abs/2105.12508, section 4 (the extreme norms, the biased choice).
        Its running error is kept here with ``MEMORY``, from the batches that trained.
    """

    def __init__(self, attacks: Sequence[GuardedAttack], *, seed: int, label: Literal["true", "predicted"]) -> None:
        super().__init__(attacks, seed=seed, label=label)
        self.errors = [1.0] * len(self.attacks)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, step: int) -> MixedBatch:
        """Return B rows, all from the attack that was drawn for this step."""
        return self._of_one(model, x, y, step, _draw(self.seed, step, self.errors))

    def observe(self, wrong: Tensor, source: Tensor) -> None:
        """Take the error of a batch into the running error of its attack."""
        place = int(source[0])
        self.errors[place] = MEMORY * self.errors[place] + (1 - MEMORY) * float(wrong.double().mean())

    def state_dict(self) -> dict[str, Any]:
        """Return the running errors."""
        return {"errors": list(self.errors)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the running errors."""
        self.errors = [float(error) for error in state["errors"]]


RULES: Mapping[str, Callable[..., Joint]] = {
    "avg": Average,
    "max": Maximum,
    "msd": Steepest,
    "sat": Sampled,
    "e_at": Extremes,
}
"""The baselines by the value of ``cascade.joint``."""


def _draw(seed: int, step: int, weights: Sequence[float]) -> int:
    """Draw one place with these weights; evenly where all are zero."""
    shares = torch.tensor(weights, dtype=torch.float64)
    if float(shares.sum()) == 0:
        shares = torch.ones_like(shares)
    return int(torch.multinomial(shares, 1, generator=generator(seed, step, "joint")))
