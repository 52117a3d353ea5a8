"""Convolutions of a crafting copy, batch norm folded in or in a form that a CPU does faster; cheaper operations."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

# Pixels a side of the blocks that `BlockedConv2d` takes as channels: 16 fill the vector units that 1 leaves empty.
BLOCK = 4
Name = tuple[str, str]  # of a tensor of the live model: the name of its module, and the attribute there
Values = Mapping[Name, Tensor | None]


@dataclass(frozen=True)
class FoldedPair:
    """One call of a convolution and of the batch norm after it, by their names in the live model."""

    convolution: str
    norm: str
    eps: float
    own: nn.Conv2d


def fill_folds(folds: Sequence[FoldedPair], values: Values) -> None:
    """Compute all weights and biases; the short vectors joined, in float64 where there is one."""
    device = folds[0].own.weight.device
    exact = torch.float32 if device.type == "mps" else torch.float64
    sizes = [fold.own.out_channels for fold in folds]

    def joined(names: Sequence[Name], otherwise: float) -> Tensor:
        vectors = [values[name] for name in names]
        missing = (
            {size: torch.full((size,), otherwise, device=device) for size in set(sizes)}
            if any(vector is None for vector in vectors)
            else {}
        )
        present = [missing[size] if vector is None else vector for vector, size in zip(vectors, sizes, strict=True)]
        return torch.cat(present).to(exact)

    variance = joined([(fold.norm, "running_var") for fold in folds], 1.0)
    mean = joined([(fold.norm, "running_mean") for fold in folds], 0.0)
    gain = joined([(fold.norm, "weight") for fold in folds], 1.0)
    shift = joined([(fold.norm, "bias") for fold in folds], 0.0)
    bias = joined([(fold.convolution, "bias") for fold in folds], 0.0)
    eps = torch.tensor([fold.eps for fold in folds], dtype=exact).repeat_interleave(torch.tensor(sizes))
    scale = gain * (variance + eps.to(device)).rsqrt()
    shift = (bias - mean) * scale + shift
    torch._foreach_copy_([cast("Tensor", fold.own.bias) for fold in folds], torch.split(shift, sizes))
    weights = [cast("Tensor", values[fold.convolution, "weight"]) for fold in folds]
    factors = torch.split(scale.to(weights[0].dtype).view(-1, 1, 1, 1), sizes)
    for fold, weight, factor in zip(folds, weights, factors, strict=True):
        own = fold.own.weight
        if own.dtype == weight.dtype == factor.dtype:
            torch.mul(weight, factor, out=own)
        else:  # casting first: to cast and to reorder at once is slow
            own.copy_((weight * factor).to(own.dtype))


def is_blockable(own: nn.Conv2d) -> bool:
    """Return whether blocks were found faster: few channels, and a kernel that fills enough of its blocks."""
    return (
        own.in_channels == 1
        and own.out_channels <= 8
        and own.padding_mode == "zeros"
        and not isinstance(own.padding, str)
        and own.stride == own.dilation == (1, 1)
        and min(own.kernel_size) > BLOCK
    )


class BlockedConv2d(nn.Module):
    """A convolution of images with one channel that works on blocks of pixels as channels, which a CPU does faster.

    With 1 channel in, the gradient by the images leaves most of a vector unit idle: in a LeNet it alone takes half of
    the time. A block of pixels of the result depends on a few neighbouring blocks of the image, so this is a
    convolution again, with 16 times the channels, a smaller kernel, and zeros in it. From plain operations, so that
    it can be differentiated twice.

    Args:
        plain: the convolution whose current weights ``fill`` takes over.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(plain.padding, str)
        self.plain = plain
        self.padding = plain.padding
        height, width = plain.kernel_size
        self.reach = (-(-(height + BLOCK - 1) // BLOCK), -(-(width + BLOCK - 1) // BLOCK))
        # Which entry of the plain kernel stands where, from 1; 0 for a zero.
        entries = torch.arange(1, plain.weight.numel() + 1).view(plain.out_channels, height, width)
        place = entries.new_zeros(plain.out_channels, BLOCK, BLOCK, BLOCK, BLOCK, *self.reach)
        for down in range(BLOCK):
            for right in range(BLOCK):
                kernel = entries.new_zeros(plain.out_channels, self.reach[0] * BLOCK, self.reach[1] * BLOCK)
                kernel[:, down : down + height, right : right + width] = entries
                kernel = kernel.view(-1, self.reach[0], BLOCK, self.reach[1], BLOCK)
                place[:, down, right] = kernel.permute(0, 2, 4, 1, 3)
        self.place = place.view(plain.out_channels * BLOCK**2, BLOCK**2, *self.reach)
        self.weight = plain.weight.new_zeros(self.place.shape)
        self.bias = None if plain.bias is None else plain.bias.new_zeros(len(self.place))

    def fill(self) -> None:
        """Spread the plain weights over the blocks."""
        entries = torch.cat([self.plain.weight.new_zeros(1), self.plain.weight.flatten()])
        self.weight.copy_(entries[self.place])
        if self.bias is not None and self.plain.bias is not None:
            self.bias.copy_(self.plain.bias.repeat_interleave(BLOCK**2))

    def forward(self, images: Tensor) -> Tensor:
        """Return what the plain convolution gives for images (..., 1, H, W), contiguous."""
        if not (torch.is_grad_enabled() and images.requires_grad):  # forward alone, the plain one is faster
            plain: Tensor = self.plain(images)
            return plain
        sizes, needed = [], []
        for side, kernel, padding, reach in zip(
            images.shape[-2:], self.plain.kernel_size, self.padding, self.reach, strict=True
        ):
            sizes.append(side + 2 * padding - kernel + 1)
            needed.append((-(-sizes[-1] // BLOCK) + reach - 1) * BLOCK - side - padding)
        margins = (self.padding[1], needed[1], self.padding[0], needed[0])
        padded = functional.pad(images, margins) if any(margins) else images
        blocks = functional.conv2d(functional.pixel_unshuffle(padded, BLOCK), self.weight, self.bias)
        features = functional.pixel_shuffle(blocks, BLOCK)
        return features[..., : sizes[0], : sizes[1]]


def subsampling(node: fx.Node) -> tuple[int, int] | None:
    """Return the steps if a node is ``x[:, :, ::down, ::right]`` and nobody writes to the result."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    index: Any = node.args[1]
    if not isinstance(index, tuple) or len(index) != 4 or not all(isinstance(part, slice) for part in index):
        return None
    steps = [1 if part.step is None else part.step for part in index]
    whole = all(part.start in (None, 0) and part.stop is None for part in index)
    readers = (functional.pad, operator.add, torch.add, add_)
    read_only = all(user.op == "call_function" and user.target in readers for user in node.users)
    if not whole or not read_only or not all(type(step) is int for step in steps) or steps[:2] != [1, 1]:
        return None
    return None if steps[2:] == [1, 1] else (steps[2], steps[3])


def subsample(features: Tensor, step_down: int, step_right: int) -> Tensor:
    """Return every so-manyth pixel as a pooling of 1x1 windows; the gradient of a slice would lose the format."""
    if features.dim() != 4 or not features.is_floating_point():
        return features[:, :, ::step_down, ::step_right]
    return functional.avg_pool2d(features, 1, (step_down, step_right))


def add_(total: Tensor, other: Tensor) -> Tensor:
    """Return the sum, in place of ``total`` where it has its shape and dtype."""
    tensors = isinstance(total, Tensor) and isinstance(other, Tensor)
    if tensors and total.shape == other.shape and total.dtype == other.dtype:
        return total.add_(other)
    return total + other


class PairedMaxPool2d(nn.MaxPool2d):
    """A 2x2 max pooling that keeps no indices where no gradient will ask for them: on a CPU ten times as fast."""

    def forward(self, features: Tensor) -> Tensor:
        """Return what max pooling gives for features (..., H, W)."""
        wants_gradient = torch.is_grad_enabled() and features.requires_grad
        if wants_gradient or features.shape[-1] % 2 or features.shape[-2] % 2:
            pooled: Tensor = super().forward(features)
            return pooled
        rows = torch.maximum(features[..., ::2, :], features[..., 1::2, :])
        return torch.maximum(rows[..., ::2], rows[..., 1::2])


def paired(module: nn.Module | Tensor) -> PairedMaxPool2d | None:
    """Return the paired form of a 2x2 max pooling; None for anything else."""
    if type(module) is not nn.MaxPool2d or module.return_indices or module.ceil_mode:
        return None
    plain = module.kernel_size, module.stride, module.padding, module.dilation
    return (
        PairedMaxPool2d(2)
        if plain in ((2, 2, 0, 1), ((2, 2), (2, 2), 0, 1), ((2, 2), (2, 2), (0, 0), (1, 1)))
        else None
    )
