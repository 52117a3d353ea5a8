"""Classifiers that return logits. Inputs (B, C, H, W) float32 in [0, 1]; any normalisation belongs inside the net."""

from amc_lightning.models.lenet import LeNet
from amc_lightning.models.proxy_cnn import ProxyCNN
from amc_lightning.models.resnet import ResNet32

__all__ = ["LeNet", "ProxyCNN", "ResNet32"]
