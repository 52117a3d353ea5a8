"""Datasets: read, checked, balanced, split, and served in batches from the device."""

from amc_lightning.data.augment import Augment
from amc_lightning.data.batches import Batch, Batches
from amc_lightning.data.images import Images, Source
from amc_lightning.data.module import SPLITS, ImageData
from amc_lightning.data.proxy import Part, ProxyData

__all__ = ["SPLITS", "Augment", "Batch", "Batches", "ImageData", "Images", "Part", "ProxyData", "Source"]
