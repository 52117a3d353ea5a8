"""The model under examination, the images, and what was found out about them so far."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack, Norm, guarded, load
from amc_lightning.errors import UserError
from amc_lightning.referee.evidence import percent
from amc_lightning.referee.level import Level
from amc_lightning.referee.pipeline import pipeline_hash
from amc_lightning.referee.provenance import Provenance
from amc_lightning.referee.threat_model import ThreatModel
from amc_lightning.seeding import generator

AttackFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""An attack of the claim's own: (model, x, y) to adversarial images like x."""
ORDERS: Mapping[Norm, float] = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}
OVERSTEP = 1e-6
"""Share of eps by which a norm may be larger (E4 of the project's list)."""
ROUNDING = 6e-8
"""What float32 rounds a pixel of x + delta by, at most: half an ulp of 1."""
PGD: Mapping[Norm, str] = {"linf": "pgm", "l2": "pgd_l2", "l1": "pgd_l1"}
_NO_GRADIENT = ("passes no gradient back", "not have been used in the graph")
"""What attacks, and torch, say of a model whose images end in ``detach``, ``no_grad`` or NumPy."""


def lacks_gradient(error: Exception) -> bool:
    """Return whether an attack ended because the model passes no gradient back to its images."""
    return any(phrase in str(error) for phrase in _NO_GRADIENT)


@dataclass(frozen=True)
class Attempt:
    """Images that an attack made, and what a model answers to them.

    Attributes:
        x_adv: (N, C, H, W), as the attack returned them, on the CPU.
        wrong: whether the model's answers to them are not the labels, (N,) bool, on the CPU.
        distances: by norm, size of each row's perturbation in pixel units, (N,) float64.
    """

    x_adv: Tensor
    wrong: Tensor
    distances: Mapping[Norm, Tensor]

    @property
    def error(self) -> float:
        """Error rate in percent."""
        return percent(self.wrong)


@dataclass
class Case:
    """Everything that the checks of one diagnosis share.

    Attributes:
        model: the model under examination, in eval mode for the whole diagnosis, returning logits (B, K).
        x: images, (N, C, H, W) float32 in [0, 1], on the model's device; the level's number of rows at most.
        y: true class indices, (N,) int64.
        threat: the threat model of the claim.
        level: how much work to take.
        given: the claim's own attacks, by name, which are examined too.
        undefended: a model of the same task without a defence, which every sound attack breaks; None if there is none.
        substitute: another model of the task, to transfer examples from; None to train a small one.
        train: images and labels a substitute or a reference may be trained on; None for none: then it is rows of the
            case itself.
        provenance: what is known beside the model.
        batch_size: rows a call.
        seed: of everything random.
        curves: what the plots show, filled by the checks: by name ``error_by_eps``, ``error_by_steps``, ``loss``.
        progress: told what is being done.
        returns_probabilities: whether the model as it was given returns them; ``model`` is then wrapped.
        memo: what checks found out and share, by a name of their own.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: ThreatModel
    level: Level
    given: Mapping[str, AttackFunction] = field(default_factory=dict)
    undefended: nn.Module | None = None
    substitute: nn.Module | None = None
    train: tuple[Tensor, Tensor] | None = None
    provenance: Provenance = field(default_factory=Provenance)
    batch_size: int = 256
    seed: int = 0
    curves: dict[str, Any] = field(default_factory=dict)
    progress: Callable[[str], None] = lambda text: None
    returns_probabilities: bool = False
    memo: dict[str, Any] = field(default_factory=dict)
    _attempts: dict[tuple[Any, ...], Attempt] = field(default_factory=dict)
    _attacked: list[nn.Module | None] = field(default_factory=list)  # kept alive: attempts are known by their id

    pipeline_before: str = field(init=False)
    """Hash of the model as it came, before anything was done with it."""

    def __post_init__(self) -> None:
        """Remember what the model is."""
        self.pipeline_before = pipeline_hash(self.model)

    @cached_property
    def logits(self) -> Tensor:
        """Clean logits of all rows, (N, K) float32, on the CPU."""
        return self.answers(self.model, self.x)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.logits.shape[1]

    @property
    def chance(self) -> float:
        """Error rate of guessing, in percent: 100 (1 - 1/K)."""
        return 100 * (1 - 1 / self.num_classes)

    @property
    def least_error_on_grey(self) -> float:
        """Least error that a model can have where all rows may be one and the same image, in percent.

        It gives that image one answer, which is right for the rows of one class: 100 less the largest class's share.
        """
        return 100 * (1 - float(self.y.bincount().max()) / len(self.y))

    @cached_property
    def clean_wrong(self) -> Tensor:
        """Whether each row is wrong as it is, (N,) bool, on the CPU."""
        return self.logits.argmax(1) != self.y.cpu()

    @property
    def clean_error(self) -> float:
        """Clean error rate of the rows in percent."""
        return percent(self.clean_wrong)

    def answers(self, model: nn.Module, x: Tensor) -> Tensor:
        """Return a model's logits, (N, K) float32 on the CPU, to images (N, C, H, W), in eval mode."""
        device = self.x.device
        with guarded(model), torch.no_grad():
            parts = [model(part.to(device)).float().cpu() for part in torch.split(x, self.batch_size)]
        return torch.cat(parts)

    def attack(
        self, name: str, *, eps: float | None = None, norm: Norm | None = None, **settings: Any
    ) -> GuardedAttack:
        """Return an attack at the claim's radius, or another: ``pgd`` (best iterate kept), or a name of conf/attack.

        Args:
            name: ``pgd``, ``single_step``, or a file of conf/attack that takes ``eps`` and ``norm``.
            eps: another radius.
            norm: another norm.
            **settings: further parameters of the attack.
        """
        norm, eps = norm or self.threat.norm, self.threat.eps if eps is None else eps
        seed = self.seed
        if name == "pgd":
            given = {"nb_iter": self.level.steps, "restarts": self.level.restarts, "eps_iter": None, "keep_best": True}
            return load(PGD[norm], eps=eps, seed=seed, **{**given, **settings})
        if name == "single_step":
            return load(PGD[norm], eps=eps, eps_iter=eps, nb_iter=1, rand_init=False, seed=seed, **settings)
        return load(name, eps=eps, norm=norm, seed=seed, **settings)

    def attempt(
        self,
        attack: GuardedAttack,
        *,
        model: nn.Module | None = None,
        rows: int | None = None,
        on: nn.Module | None = None,
    ) -> Attempt:
        """Attack rows once; the same attempt asked for again is remembered.

        Of a model that passes no gradient back, an attack that needs one leaves the images as they are.

        Args:
            attack: as ``attack`` returns it.
            model: what is attacked; the model under examination by default.
            rows: leading rows; all by default.
            on: another model that the examples are crafted on (transfer).
        """
        model = self.model if model is None else model
        key = (attack, attack.params.__repr__(), id(model), rows, id(on))
        if key not in self._attempts:
            self.progress(f"{attack.name} on {len(self.x[:rows])} rows")
            self._attempts[key] = self._made(attack, model, self.x[:rows], self.y[:rows], on)
            self._attacked += [model, on]
        return self._attempts[key]

    def _made(self, attack: GuardedAttack, model: nn.Module, x: Tensor, y: Tensor, on: nn.Module | None) -> Attempt:
        noise = attack.draw_noise(tuple(x.shape), generator(self.seed, "referee", attack.name))
        rng = generator(self.seed, "referee", attack.name, "calls")
        images = []
        for start in range(0, len(x), self.batch_size):
            cut = slice(start, start + self.batch_size)
            part = None if noise is None else noise[cut].to(x)
            try:
                crafted = attack.craft(on or model, x[cut], y[cut], noise=part, generator=rng)
            except (UserError, RuntimeError) as error:
                if not lacks_gradient(error):
                    raise
                images.append(x[cut])
            else:
                images.append(crafted.x_adv)
        return self.judged(model, x, y, torch.cat(images))

    def attempt_given(self, name: str, *, model: nn.Module | None = None, rows: int | None = None) -> Attempt:
        """Attack rows with one of the claim's own attacks, as it is; remembered as well.

        Raises:
            UserError: if it does not return images like those it got.
        """
        model = self.model if model is None else model
        key = ("given", name, id(model), rows)
        if key in self._attempts:
            return self._attempts[key]
        self.progress(f"{name} (given) on {len(self.x[:rows])} rows")
        x, y = self.x[:rows], self.y[:rows]
        images = []
        for start in range(0, len(x), self.batch_size):
            part, labels = x[start : start + self.batch_size], y[start : start + self.batch_size]
            with guarded(model):
                x_adv = self.given[name](model, part.clone(), labels.clone())
            if not isinstance(x_adv, Tensor) or x_adv.shape != part.shape:
                what = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
                raise UserError(
                    f"attacks.{name}",
                    name,
                    f"returns {what} for images {tuple(part.shape)}",
                    "images like those it gets",
                    "Correct the attack.",
                )
            images.append(x_adv.detach().to(x))
        self._attempts[key] = self.judged(model, x, y, torch.cat(images))
        self._attacked.append(model)
        return self._attempts[key]

    def judged(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Attempt:
        """Return what a model answers to perturbed copies of rows, and how far away they are.

        Args:
            model: returns logits, (B, K).
            x: images, (N, C, H, W) float32 in [0, 1].
            y: true class indices, (N,) int64.
            x_adv: copies of x, perturbed; like x.
        """
        predicted = self.answers(model, x_adv).argmax(1)
        delta = (x_adv.double() - x.double()).flatten(1)
        distances = {norm: torch.linalg.vector_norm(delta, order, dim=1).cpu() for norm, order in ORDERS.items()}
        return Attempt(x_adv.cpu(), predicted != y.cpu(), distances)

    def whole_box(self, norm: Norm) -> float:
        """Return the radius of a norm, in pixel units, that holds the whole box [0, 1]^(CHW) around every image."""
        pixels = float(self.x[0].numel())
        sizes: dict[Norm, float] = {"linf": 1.0, "l2": math.sqrt(pixels), "l1": pixels}
        return sizes[norm]

    def high_radius(self, norm: Norm) -> float:
        """Return the radius of a norm from which the grey image is within reach of every image: half of that."""
        return self.whole_box(norm) / 2

    @property
    def largest_norm(self) -> float:
        """The largest norm that counts as within the claim's ball: eps (1 + 1e-6), and float32's rounding of x + delta.

        Each pixel is rounded by at most half an ulp of 1; in l2 and l1 these add up.
        """
        return self.threat.eps * (1 + OVERSTEP) + ROUNDING * self.whole_box(self.threat.norm)

    def inside_claim(self, attempt: Attempt) -> Tensor:
        """Return which rows of an attempt lie in the claim's ball (``largest_norm``) and in [0, 1], (N,) bool."""
        images = attempt.x_adv.flatten(1)
        near = attempt.distances[self.threat.norm] <= self.largest_norm
        return near & (images.amin(1) >= 0) & (images.amax(1) <= 1)

    def attempts_at_claim(self) -> list[tuple[str, Attempt]]:
        """Return every attempt so far on the model under examination and on all rows, with the attack's name.

        Whatever it was made for, a row of it counts as wrong here only inside the claim's ball.
        """
        found = []
        for key, attempt in self._attempts.items():
            if key[2] != id(self.model) or len(attempt.wrong) != len(self.x):
                continue
            name = f"{key[1]} (given)" if key[0] == "given" else str(key[0].name)
            found.append((name, replace(attempt, wrong=attempt.wrong & self.inside_claim(attempt))))
        return found
