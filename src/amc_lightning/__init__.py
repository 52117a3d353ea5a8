"""Adversarial Model Cascades: harden a classifier against several attacks at once, and measure what that bought."""

from amc_lightning.errors import UserError

__version__ = "0.1.0"
__all__ = ["ThreatModel", "UserError", "__version__", "diagnose", "load"]


def __getattr__(name: str) -> object:
    """Import the rest on first use, so that looking at the version or the help does not wait for torch."""
    if name == "load":
        from amc_lightning.deploy import load

        return load
    if name in ("ThreatModel", "diagnose"):
        from amc_lightning import referee

        return getattr(referee, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
