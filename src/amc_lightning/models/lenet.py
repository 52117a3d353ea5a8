"""LeNet-5 with ReLU and max pooling: the paper's target for MNIST."""

from torch import Tensor, nn

from amc_lightning.models.initial import glorot_


class LeNet(nn.Module):
    """Return logits of a LeNet: 6@5x5, 16@5x5, 2x2 max pooling after each, then 120, 84 and ``num_classes`` units.

    Pooling stands before ReLU: the two commute, and ReLU then has a quarter of the values to look at. No padding from
    28x28 on; padding 2 below, so that small images (the 16x16 digits) keep a feature map.

    Args:
        in_channels: C of the images.
        image_size: H and W, each >= 8.
        num_classes: K.

    Reference:
        LeCun et al., Gradient-based learning applied to document recognition, 1998 (the layer sizes); spec.md section
        10 settles ReLU, pooling and padding, which the paper leaves open.
    """

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        height, width = image_size
        padding = 0 if min(height, width) >= 28 else 2
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5, padding=padding),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(6, 16, 5, padding=padding),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )

        def reduced(side: int) -> int:
            for _ in range(2):
                side = (side + 2 * padding - 4) // 2
            return side

        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * reduced(height) * reduced(width), 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )
        glorot_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of images x (B, C, H, W) in [0, 1]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
