"""Feature squeezing: images are simplified in front of a network, and gradients pass nevertheless.

A squeezer's answer depends on its images in steps or by selection, so an attack that differentiates it as it stands is
led astray (rounding has no gradient at all) and the defence looks better than it is. Each squeezer here therefore has a
stand-in for its backward pass. The answer itself is exact: what the stand-in adds is made of ``x - x.detach()``, which
is zero, in plain operations, so that gradients can be differentiated again and `torch.fx` can record them.

An attack that takes a difference of answers for a derivative does not see the stand-in: VAP with ``method: logit``
finds that short steps change nothing in rounded images. VAP's default, ``exact``, is right.

Reference:
    Xu, Evans and Qi, Feature squeezing, https://arxiv.org/abs/1704.01155. Athalye, Carlini and Wagner, Obfuscated
    gradients give a false sense of security, ICML 2018, https://arxiv.org/abs/1802.00420, section 4.1 (BPDA).
"""

import torch
from torch import Tensor, nn

REACH = 0.1
"""Distance from the median, in pixel units of [0, 1], at which a neighbour's part in the gradient has fallen to 1/e.

Measured on LeNets of MNIST and digits, 200 images each: 0.05 and 0.2 fool about as many."""


class BitDepth(nn.Module):
    """Round images to ``2**bits`` levels, black and white among them; backward it is the identity.

    Halves go to the even level, so with 1 bit 0.5 becomes 0. With 8 bits images that were read from bytes stay as they
    are.

    Args:
        bits: bits per channel, 1 to 16.

    Raises:
        UserError: for any other ``bits``.

    Reference:
        Xu, Evans and Qi, on color depth: 1 bit on MNIST, 4 or 5 on CIFAR-10. The code of AMC's authors squeezes to 8
        bits (ART's ``FeatureSqueezing``), which moves no pixel by more than 1/510. The gradient: Athalye, Carlini and
        Wagner, section 4.1.

    Example:
        >>> BitDepth(2)(torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0])) * 3
        tensor([0., 1., 2., 2., 3.])
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        if not _is_whole(bits) or not 1 <= bits <= 16:
            raise ValueError(f"bits must be a whole number from 1 to 16, not {bits!r}")
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """Return images of few levels, like x (B, C, H, W) float in [0, 1]."""
        highest = (1 << self.bits) - 1
        fixed = x.detach()
        return (fixed * highest).round() / highest + (x - fixed)

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        return f"bits={self.bits}"


class MedianSmoothing(nn.Module):
    """Replace each pixel by the median of a square window around it, channel by channel.

    As SciPy's ``median_filter`` with its default border: in a window of even size the pixel stands below and right of
    the centre and the larger of the two middle values is taken; beyond the border the image is mirrored, the edge pixel
    repeated.

    Backward it is a weighted mean of the window, in which neighbours count the more the nearer they are to the median
    in value (``REACH``). The true derivative sees one pixel of each window: an attack moves all pixels at once and
    another is the median then, while pixels that are no median anywhere never move. The identity leaves out that
    neighbours have a say. Fooled of 200 on a LeNet of digits, 3x3 windows, radius 0.1, with the true derivative,
    the identity, the plain mean and this: PGM 110, 112, 116, 125 (and 112 where it does not look at the squeezer); FGSM
    84, 99, 105, 107. In 2x2 windows and on MNIST this one was ahead too, except for VAP: there the plain mean, and in
    2x2 windows the others as well, were as good or up to a seventh better.

    Args:
        size: side of the window, >= 2; both sides of the images must be >= ``size // 2``. Work grows with its fourth
            power; meant for 2 to 5.

    Raises:
        UserError: for any other ``size``.

    Reference:
        Xu, Evans and Qi, on local smoothing: 2x2 and 3x3 windows, with SciPy's conventions.

    Example:
        >>> image = torch.tensor([[0.0, 0.1, 0.2], [0.3, 1.0, 0.5], [0.6, 0.7, 0.8]])
        >>> float(MedianSmoothing(3)(image.view(1, 1, 3, 3))[0, 0, 1, 1])
        0.5
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if not _is_whole(size) or size < 2:
            raise ValueError(f"size must be a whole number >= 2, not {size!r}")
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Return smoothed images, like x (B, C, H, W) float in [0, 1]."""
        fixed = x.detach()
        neighbours = self._neighbours(fixed)
        median = _ranked(neighbours, len(neighbours) // 2)
        weights = [((neighbour - median).abs() * (-1 / REACH)).exp() for neighbour in neighbours]
        changes = self._neighbours(x - fixed)  # zero
        weight, change = weights[0], weights[0] * changes[0]
        for own, other in zip(weights[1:], changes[1:], strict=True):
            weight, change = weight + own, change + own * other
        return median + change / weight

    def _neighbours(self, images: Tensor) -> list[Tensor]:
        """Return the image shifted to each place of the window, (B, C, H, W) each."""
        before, after = self.size // 2, (self.size - 1) // 2
        starts = [slice(place, place + 1) for place in reversed(range(before))]
        ends = [slice(-place - 1, -place or None) for place in range(after)]
        tall = torch.cat([*(images[..., s, :] for s in starts), images, *(images[..., s, :] for s in ends)], dim=-2)
        padded = torch.cat([*(tall[..., s] for s in starts), tall, *(tall[..., s] for s in ends)], dim=-1)
        # Ends counted from the back: sizes are not known where `torch.fx` records this.
        cuts = [slice(place, place + 1 - self.size or None) for place in range(self.size)]
        return [padded[..., down, right] for down in cuts for right in cuts]

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        return f"size={self.size}"


class Squeezed(nn.Module):
    """A network behind a squeezer: what is deployed, and hence what is to be attacked.

    Args:
        net: returns logits; it is kept as it is, its weights as ``net.*`` of the state dict.
        squeezer: from images to images of the same shape, without weights of its own.
    """

    def __init__(self, net: nn.Module, squeezer: nn.Module) -> None:
        super().__init__()
        self.squeezer = squeezer
        self.net = net
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of images x (B, C, H, W) in [0, 1]."""
        logits: Tensor = self.net(self.squeezer(x))
        return logits


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ranked(values: list[Tensor], rank: int) -> Tensor:
    """Return the ``rank``-th smallest entry, from 0, at each place; the largest rise to the end until it is reached."""
    values = list(values)
    for end in reversed(range(rank, len(values))):
        for place in range(end):
            larger = torch.maximum(values[place], values[place + 1])
            if end > rank:
                values[place] = torch.minimum(values[place], values[place + 1])
            values[place + 1] = larger
    return values[rank]
