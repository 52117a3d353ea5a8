"""What a black-box adversary gets: answers to queries, counted and within a budget, and nothing else of the target."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amc_lightning.errors import UserError

Target = Callable[[Tensor], Tensor]
"""Anything that answers a batch of images (B, C, H, W) float32 in [0, 1]: a network, or a service far away."""
Says = Literal["logits", "probabilities", "labels"]
QUERY_BATCH = 512
"""Images per query to a target; each of them counts as one query."""


class QueryBudgetError(UserError):
    """A budget of queries is used up. What was answered before stays valid, and is kept by whoever asked."""


class Kind(Protocol):
    """One kind of answer, such as ``Label``: a class with this attribute and this method can be named in a YAML."""

    draws: bool
    """Whether answers hold noise, so that a query's place among the others matters."""

    def answer(self, scores: Tensor, numbers: NDArray[np.float64]) -> Tensor:
        """Turn what the target says into what the adversary gets to see.

        Args:
            scores: probabilities, (B, K) float32, each row summing to 1; or class indices, (B,) int64, of a target that
                says no more.
            numbers: two random numbers in [0, 1) for each query, (B, 2) float64.

        Returns:
            Class indices, (B,) int64, or what is shown of the probabilities, (B, K) float32.
        """
        ...


class Label:
    """The predicted class and nothing else, the paper's most generic interface (section 4.4).

    Example:
        >>> Label().answer(torch.tensor([[0.2, 0.8]]), np.zeros((1, 2))).tolist()
        [1]
    """

    draws: ClassVar[bool] = False

    def answer(self, scores: Tensor, numbers: NDArray[np.float64]) -> Tensor:
        """Return the predicted classes, (B,) int64; see ``Kind``."""
        return scores if scores.ndim == 1 else scores.argmax(dim=1)


class NoisyLabel:
    """The predicted class, but with some probability another one, each of the others alike.

    Args:
        flip: probability that an answer is another class, in [0, 1].
        num_classes: K; needed for a target that says labels only.

    Raises:
        UserError: if ``flip`` is out of range.

    Example:
        >>> scores = torch.tensor([[0.2, 0.8, 0.0], [0.2, 0.8, 0.0]])
        >>> NoisyLabel(0.1).answer(scores, np.array([[0.5, 0.7], [0.05, 0.7]])).tolist()
        [1, 2]
    """

    draws: ClassVar[bool] = True

    def __init__(self, flip: float = 0.1, num_classes: int | None = None) -> None:
        if not 0 <= flip <= 1:
            raise UserError("threat_model.interface.flip", flip, "is out of range", "allowed: [0, 1]", "Change it.")
        self.flip = flip
        self.num_classes = num_classes

    def answer(self, scores: Tensor, numbers: NDArray[np.float64]) -> Tensor:
        """Return classes, (B,) int64; see ``Kind``.

        Raises:
            UserError: if the target says labels only and the number of classes is not given.
        """
        labels = Label().answer(scores, numbers)
        classes = self.num_classes if scores.ndim == 1 else scores.shape[1]
        if classes is None:
            raise UserError(
                "threat_model.interface.num_classes",
                None,
                "is not set",
                "needed where a target says labels only",
                "Give the number of classes.",
            )
        flipped, others = torch.from_numpy(numbers).to(labels.device).unbind(dim=1)
        other = (others * (classes - 1)).long().clamp_(max=classes - 2)
        other = other + (other >= labels).long()  # all classes but the answer
        return torch.where(flipped < self.flip, other, labels)


class Probabilities:
    """The probabilities, or what a service shows of them: rounded, or those of the likeliest classes only.

    What is not shown is 0; nothing is scaled back to a sum of 1.

    Args:
        decimals: digits behind the point that are shown, >= 0; None for all.
        top: classes that are shown, >= 1; None for all.

    Raises:
        UserError: if an argument is out of range.

    Example:
        >>> Probabilities(decimals=1, top=2).answer(torch.tensor([[0.04, 0.31, 0.65]]), np.zeros((1, 2))).tolist()
        [[0.0, 0.30000001192092896, 0.6000000238418579]]
    """

    draws: ClassVar[bool] = False

    def __init__(self, decimals: int | None = None, top: int | None = None) -> None:
        for name, value, least in (("decimals", decimals, 0), ("top", top, 1)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise UserError(
                    f"threat_model.interface.{name}",
                    value,
                    "is out of range",
                    f"allowed: a whole number >= {least}, or null for all",
                    "Change it.",
                )
        self.decimals = decimals
        self.top = top

    def answer(self, scores: Tensor, numbers: NDArray[np.float64]) -> Tensor:
        """Return what is shown of the probabilities, (B, K) float32 in [0, 1]; see ``Kind``.

        Raises:
            UserError: if the target says labels only.
        """
        if scores.ndim == 1:
            raise UserError(
                "threat_model.interface",
                "Probabilities",
                "has nothing to show, as the target says labels only",
                "known for such a target: Label, NoisyLabel",
                "Choose one of them.",
            )
        shown = scores.float()
        if self.top is not None and self.top < shown.shape[1]:
            likeliest = shown.topk(self.top, dim=1).indices  # a mask by value would show ties twice
            shown = torch.zeros_like(shown).scatter_(1, likeliest, shown.gather(1, likeliest))
        return shown if self.decimals is None else shown.round(decimals=self.decimals)


class PredictiveInterface:
    """Ask a target, count the queries, and show no more than the kind of interface allows.

    Images are detached before they are sent, answers carry no graph, and no attribute is the target or holds its
    weights. That keeps honest code honest; Python hides nothing from one who digs (in a closure).

    If the target fails (a service that does not answer), its error goes on as it is and the failed batch is not
    counted: trying again is the caller's choice.

    Args:
        target: answers batches; see ``Target``. A network is asked in the mode it is in: put it into eval mode first.
        kind: what is shown of an answer.
        says: what the target returns: ``logits`` or ``probabilities``, (B, K), or ``labels``, (B,) whole numbers.
        seed: seeds the noise of answers, which depends on it and on how many queries came before.
        budget: most queries that are answered, >= 0; None for any number.
        asked: queries that were answered before, by an interface like this one that is gone on with.
        key: the setting the budget comes from, for messages.

    Attributes:
        queries: images answered so far, ``asked`` included.
        kind: as given.
        budget: as given.
    """

    def __init__(
        self,
        target: Target,
        kind: Kind,
        *,
        says: Says = "logits",
        seed: int = 0,
        budget: int | None = None,
        asked: int = 0,
        key: str = "threat_model.budget",
    ) -> None:
        self.kind = kind
        self.budget = budget
        self.queries = asked
        self.key = key
        rng = np.random.default_rng(seed)
        if asked:
            rng.random((asked, 2))  # what the earlier answers drew

        def ask(x: Tensor) -> Tensor:
            with torch.no_grad():
                scores = _checked(target(x.detach().clone()), len(x), says)
                return kind.answer(scores, rng.random((len(x), 2))).detach()

        self._ask = ask  # a closure, so that no attribute is the target

    @property
    def left(self) -> int | None:
        """Queries that are left; None for any number."""
        return None if self.budget is None else max(0, self.budget - self.queries)

    def __call__(self, x: Tensor) -> Tensor:
        """Answer a batch.

        Args:
            x: images, (B, C, H, W) float32 in [0, 1].

        Returns:
            Class indices, (B,) int64, or probabilities as they are shown, (B, K) float32; without gradient.

        Raises:
            QueryBudgetError: if the whole batch is not within the budget; nothing is asked then.
            UserError: if the target's answers have another shape than they should.
        """
        if self.left is not None and len(x) > self.left:
            raise QueryBudgetError(
                self.key,
                self.budget,
                f"is used up: {self.queries:,} queries are answered, and {len(x):,} more are asked",
                "the answers so far are kept",
                "Raise the budget, or ask less (dataset.proxy.limit).",
            )
        answers = self._ask(x)
        self.queries += len(x)
        return answers


def gather(
    interface: PredictiveInterface,
    images: Tensor,
    *,
    known: Tensor | None = None,
    keep: Callable[[Tensor], None] = lambda answers: None,
) -> Tensor:
    """Ask about every image of a set, in order, and lose nothing that was answered.

    Args:
        interface: whom to ask.
        images: (N, C, H, W) uint8, or float32 in [0, 1].
        known: answers to the first images, from an earlier call that was stopped; they are not asked about again.
        keep: given all answers so far when asking stops before its end, whatever stops it.

    Returns:
        Class indices (N,) int64, or probabilities (N, K) float32, on the CPU.

    Raises:
        QueryBudgetError: if the budget does not reach to the end; what it reaches to is asked and kept.
        UserError: if the target's answers have another shape than they should; whatever the target itself raises.
    """
    parts = [] if known is None else [known]
    done = 0 if known is None else len(known)
    try:
        while done < len(images):
            left = interface.left
            size = QUERY_BATCH if left is None or left == 0 else min(QUERY_BATCH, left)
            x = images[done : done + size]
            parts.append(interface(x.float() / 255 if x.dtype == torch.uint8 else x).cpu())
            done += len(x)
    finally:
        if done < len(images) and parts:
            keep(torch.cat(parts))
    return torch.cat(parts)


def _checked(said: Any, rows: int, says: Says) -> Tensor:
    """Return what a target said as probabilities (B, K) or labels (B,); refuse what is neither."""
    shape = tuple(getattr(said, "shape", ()))
    fits = len(shape) == (1 if says == "labels" else 2) and shape[0] == rows
    if not isinstance(said, Tensor) or not fits or (says == "labels") == said.is_floating_point():
        wanted = "(B,) whole numbers" if says == "labels" else "(B, K) floating-point numbers"
        raise UserError(
            "target",
            f"{type(said).__name__} {shape}",
            f"is no answer to {rows} images",
            f"{says} are {wanted}",
            "Mend it.",
        )
    if says == "labels":
        return said.long()
    if not bool(torch.isfinite(said).all()):
        raise UserError("target", says, "are not all finite", "finite numbers", "Look at the model's weights.")
    return said.float().softmax(dim=1) if says == "logits" else said.float()
