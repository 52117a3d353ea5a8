"""ResNet-32 for 32x32 images: the paper's target for SVHN and CIFAR-10."""

import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut without parameters (option A)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.extra_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, channels, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.extra_channels:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.extra_channels))
        return F.relu(out + shortcut)


class ResNet32(nn.Module):
    """Return logits of the 6n+2 CIFAR ResNet with n = 5: three groups of 16, 32 and 64 channels.

    Args:
        in_channels: C of the images.
        image_size: accepted for a common signature; global pooling makes any H, W >= 4 work.
        num_classes: K.

    Reference:
        He et al., Deep residual learning for image recognition, 2016, section 4.2 (CIFAR-10, shortcut option A,
        zero-padded channels).
    """

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        del image_size
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        groups = []
        for width_in, width, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
            blocks = [ResidualBlock(width_in, width, stride)] + [ResidualBlock(width, width, 1) for _ in range(4)]
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of images x (B, C, H, W) in [0, 1]."""
        features = self.groups(F.relu(self.bn(self.conv(x))))
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits
