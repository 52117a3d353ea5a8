"""The paper's proxy: four convolutions and two dense layers (section 4.4)."""

from torch import Tensor, nn

from amc_lightning.models.initial import glorot_


class ProxyCNN(nn.Module):
    """Return logits of the proxy network: 32-32-64-64 channels (3x3), 2x2 max pooling after every two, dense 512.

    Pooling stands before ReLU, as in ``LeNet``: the same function, faster.

    Args:
        in_channels: C of the images.
        image_size: H and W, each >= 4.
        num_classes: K.

    Reference:
        Vijaykeerthy et al., IJCNN 2019, section 4.4 (four convolutional and two dense layers, ReLU, dropout
        [0.4, 0.3, 0.2]); spec.md section 10 settles where the dropout goes: after the two pools and after dense 512.
    """

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        height, width = image_size
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Dropout(0.4),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Dropout(0.3),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * (height // 4) * (width // 4), 512),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(512, num_classes),
        )
        glorot_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of images x (B, C, H, W) in [0, 1]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
