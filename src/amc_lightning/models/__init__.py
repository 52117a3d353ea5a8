"""Classifiers that return logits, and squeezers to put in front of them.

Inputs (B, C, H, W) float32 in [0, 1]; any normalisation belongs inside the net.
"""

from amc_lightning.models.lenet import LeNet
from amc_lightning.models.preact_resnet import PreActResNet18
from amc_lightning.models.proxy_cnn import ProxyCNN
from amc_lightning.models.resnet import ResNet32
from amc_lightning.models.squeezing import BitDepth, MedianSmoothing, Squeezed

__all__ = ["BitDepth", "LeNet", "MedianSmoothing", "PreActResNet18", "ProxyCNN", "ResNet32", "Squeezed"]
