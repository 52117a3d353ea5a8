"""Initial weights for networks without batch norm."""

from torch import nn


def glorot_(net: nn.Module) -> None:
    """Fill every convolution and dense layer with Glorot-uniform weights and zero biases, in place.

    What the authors' Keras starts from. With torch's own default a LeNet without normalisation stays at chance for many
    epochs of a short schedule.

    Reference:
        Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010, equation 16.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
