"""Partition a batch over the attacks of a stage, and perturb each part with its attack."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack, opened, share_clean
from amc_lightning.mixed_batch import MixedBatch
from amc_lightning.seeding import generator


def stage_shares(stage_index: int, *, current_share: Fraction, shares: Sequence[Fraction] | None) -> list[Fraction]:
    """Return the share of each attack 1..stage_index in the adversarial half of a batch at that stage.

    The current attack gets ``current_share``; the rest is split equally over the earlier attacks. With an explicit
    vector (the paper's lambda) the first ``stage_index`` entries are used, rescaled to sum to 1.

    Args:
        stage_index: position of the current attack, from 1.
        current_share: share of the current attack, in (0, 1]; stage 1 is always wholly its own attack.
        shares: None for the 80/20 rule; else one share per attack of the whole order, in [0, 1], summing to 1.

    Returns:
        ``stage_index`` shares in cascade order, summing to exactly 1.

    Raises:
        ValueError: if the first ``stage_index`` entries of ``shares`` are all zero.

    Reference:
        Vijaykeerthy et al., IJCNN 2019, section 4.2: 80 % current, the remaining 20 % equally over all previous
        attacks. Summed over four stages this gives 1.7083 : 1.2083 : 1.0833 : 1; the paper prints
        1.6625 : 1.1625 : 1.0375 : 1, which does not follow from its rule.

    Example:
        >>> [str(s) for s in stage_shares(3, current_share=Fraction(4, 5), shares=None)]
        ['1/10', '1/10', '4/5']
        >>> [str(s) for s in stage_shares(2, current_share=Fraction(4, 5), shares=[Fraction(1, 4)] * 4)]
        ['1/2', '1/2']
    """
    if shares is not None:
        head = list(shares[:stage_index])
        total = sum(head)
        if total == 0:
            raise ValueError(f"the shares of the first {stage_index} attacks are all zero: nothing to train on")
        return [share / total for share in head]
    if stage_index == 1:
        return [Fraction(1)]
    earlier = (1 - current_share) / (stage_index - 1)
    return [earlier] * (stage_index - 1) + [current_share]


def partition(
    batch_size: int, shares: Sequence[Fraction], carry: Sequence[Fraction]
) -> tuple[list[int], list[Fraction]]:
    """Split a batch over attacks so that shares are exact on average.

    Largest-remainder rounding; what a batch owes each attack is carried to the next, so that small batches still reach
    every earlier attack. No attack ever strays from its exact total by as much as one row per attack.

    Args:
        batch_size: rows to hand out, >= 0.
        shares: share of each attack, in cascade order; each in [0, 1], summing to exactly 1.
        carry: rows still owed from earlier batches, one per attack, summing to 0; zeros at the start of a stage.

    Returns:
        Row counts, summing to ``batch_size``, and the carry for the next batch.

    Raises:
        ValueError: if the shares do not sum to 1, or the lengths differ.

    Reference:
        Vijaykeerthy et al., IJCNN 2019, section 4.2; rounding as spec.md section 2 settles it.

    Example:
        >>> sizes, carry = partition(3, [Fraction(1, 5), Fraction(4, 5)], [Fraction(0), Fraction(0)])
        >>> sizes, [str(rows) for rows in carry]
        ([1, 2], ['-2/5', '2/5'])
        >>> partition(3, [Fraction(1, 5), Fraction(4, 5)], carry)[0]
        [0, 3]
    """
    if len(shares) != len(carry):
        raise ValueError(f"{len(shares)} shares but {len(carry)} carries")
    if sum(shares) != 1:
        raise ValueError(f"the shares sum to {sum(shares)}, not to 1")
    owed = [share * batch_size + rest for share, rest in zip(shares, carry, strict=True)]
    sizes = [max(0, rows.__floor__()) for rows in owed]
    # An attack that is ahead of its share (negative debt) gets nothing; the rows it would give back come from the
    # attacks that are owed least, which is what handing out by largest remainder, up or down, does.
    while sum(sizes) < batch_size:
        index = max(range(len(owed)), key=lambda i: (owed[i] - sizes[i], i))
        sizes[index] += 1
    while sum(sizes) > batch_size:
        index = min((i for i in range(len(owed)) if sizes[i] > 0), key=lambda i: (owed[i] - sizes[i], i))
        sizes[index] -= 1
    return sizes, [rows - size for rows, size in zip(owed, sizes, strict=True)]


class Mixer:
    """Craft the adversarial half of each batch of a stage.

    Rows are assigned at random and without overlap. The order of rows and the attacks' noise depend on
    (seed, step, attack) only, the number of rows of each attack on the carry: with both, any step can be crafted again.

    Args:
        attacks: the attacks of the order up to the stage's own, in cascade order; the first one's execution serves
            all, since they share one view of the model.
        shares: one share per attack, summing to exactly 1.
        seed: the stage's seed.
        label: whose label an attack moves away from: the true one, or the crafting model's own prediction (CleverHans'
            default of the paper's time; it avoids label leaking).
    """

    def __init__(
        self,
        attacks: Sequence[GuardedAttack],
        shares: Sequence[Fraction],
        *,
        seed: int,
        label: Literal["true", "predicted"],
    ) -> None:
        self.attacks = tuple(attacks)
        self.shares = tuple(shares)
        self.seed = seed
        self.label: Literal["true", "predicted"] = label
        self.carry = [Fraction(0)] * len(self.attacks)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, step: int) -> MixedBatch:
        """Perturb every row of a batch with one attack, crafted on ``model``.

        Args:
            model: the network the examples are crafted on; left bit for bit as it was.
            x: clean images, not augmented, (B, C, H, W) float32 in [0, 1].
            y: true class indices, (B,) int64.
            step: number of the training step within the stage; decides the randomness.

        Returns:
            The adversarial batch, row i made from ``x[i]``.
        """
        sizes, carry = partition(len(x), self.shares, self.carry)
        order = torch.randperm(len(x), generator=generator(self.seed, step, "mixer"))
        x_adv = torch.empty_like(x)
        source = torch.empty_like(y)
        parts = [
            (index, attack, rows.to(x.device))
            for index, (attack, rows) in enumerate(zip(self.attacks, torch.split(order, sizes), strict=True))
            if len(rows) > 0
        ]
        with opened(model, x, y, self.attacks[0].execution) as view:
            # One pass at the clean images for the whole batch: labels, FGSM's gradient, EAP's first, VAP's answers.
            starts = share_clean(view, x, y, [(attack, rows) for _, attack, rows in parts], label=self.label)
            for (index, attack, rows), (aim, start) in zip(parts, starts, strict=True):
                rng = generator(self.seed, step, attack.name)
                noise = attack.draw_noise(tuple(x.shape), rng)
                cut = None if noise is None else noise[rows.to(noise.device)].to(x)
                x_adv[rows] = attack(view, x[rows], aim, noise=cut, generator=rng, start=start)
                source[rows] = index
        self.carry = carry  # only now: a batch that failed owes nothing
        return MixedBatch(x=x_adv, y=y, source=source)

    def observe(self, wrong: Tensor, source: Tensor) -> None:
        """Do nothing: the shares of a stage are fixed."""

    def state_dict(self) -> dict[str, list[list[int]]]:
        """Return the carry as plain integers, for an in-stage checkpoint."""
        return {"carry": [[rest.numerator, rest.denominator] for rest in self.carry]}

    def load_state_dict(self, state: dict[str, list[list[int]]]) -> None:
        """Restore what ``state_dict`` returned."""
        self.carry = [Fraction(numerator, denominator) for numerator, denominator in state["carry"]]
