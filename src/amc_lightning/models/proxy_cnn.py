"""The paper's proxy: four convolutions and two dense layers (section 4.4)."""

from torch import Tensor, nn

from amc_lightning.models.initial import glorot_


class ProxyCNN(nn.Module):
    """Return logits of the proxy network: 3x3 convolutions, 2x2 max pooling after every two, two dense layers.

    As in the paper 32-32-64-64 channels and dense 512; ``width`` makes it narrower for smaller images.

    Pooling stands before ReLU, as in ``LeNet``: the same function, faster.

    Args:
        in_channels: C of the images.
        image_size: H and W, each >= 4.
        num_classes: K.
        width: channels of the first two convolutions; the other two have twice as many, the dense layer 16 times.

    Reference:
        Vijaykeerthy et al., IJCNN 2019, section 4.4 (four convolutional and two dense layers, ReLU, dropout
        [0.4, 0.3, 0.2]); spec.md section 10 settles where the dropout goes: after the two pools and after dense 512.
    """

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int, width: int = 32) -> None:
        super().__init__()
        height, columns = image_size
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Dropout(0.4),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Dropout(0.3),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(2 * width * (height // 4) * (columns // 4), 16 * width),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(16 * width, num_classes),
        )
        glorot_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of images x (B, C, H, W) in [0, 1]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
