"""PreAct-ResNet-18 for 32x32 images: what the papers on robustness to several norms train on CIFAR-10."""

from typing import Literal

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "softplus": nn.Softplus}
"""Softplus is log(1 + exp(x)): smooth everywhere, so that gradients have no kinks."""


class PreActBlock(nn.Module):
    """Batch norm and activation before each of two 3x3 convolutions; nothing follows the sum.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input, else the input itself.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, channels, H/stride, W/stride)."""
        activated = self.activation(self.bn1(x))
        out: Tensor = self.conv2(self.activation(self.bn2(self.conv1(activated))))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class PreActResNet18(nn.Module):
    """Return logits of a pre-activation ResNet: four groups of two blocks with 64, 128, 256 and 512 channels.

    The stem is one 3x3 convolution without batch norm; the second to fourth group halve the image. 11.2 million
    parameters, some 24 times those of ``ResNet32``.

    Args:
        in_channels: C of the images.
        image_size: accepted for a common signature; global pooling makes any H, W >= 8 work.
        num_classes: K.
        activation: ``relu``, or ``softplus`` as Croce and Hein have it.

    Raises:
        ValueError: for any other ``activation``.

    Reference:
        He et al., Identity mappings in deep residual networks, 2016, https://arxiv.org/abs/1603.05027, figure 4e and
        the appendix (a last batch norm and activation before pooling); the widths of ResNet-18 are those of He et al.,
        Deep residual learning for image recognition, 2016, table 1. Used by Maini, Wong and Kolter, Adversarial
        robustness against the union of multiple perturbation models, ICML 2020, https://arxiv.org/abs/1909.04068, and,
        with softplus, by Croce and Hein, Adversarial robustness against multiple and single l_p-threat models via quick
        fine-tuning of robust classifiers, ICML 2022, https://arxiv.org/abs/2105.12508.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: tuple[int, int],
        num_classes: int,
        activation: Literal["relu", "softplus"] = "relu",
    ) -> None:
        super().__init__()
        del image_size
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be relu or softplus, not {activation!r}")
        kind = ACTIVATIONS[activation]
        self.conv = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        groups = []
        for width_in, width, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
            first = PreActBlock(width_in, width, stride, kind)
            groups.append(nn.Sequential(first, PreActBlock(width, width, 1, kind)))
        self.groups = nn.Sequential(*groups)
        self.bn = nn.BatchNorm2d(512)
        self.activation = kind()
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of images x (B, C, H, W) in [0, 1]."""
        features = self.activation(self.bn(self.groups(self.conv(x))))
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits
