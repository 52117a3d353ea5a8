"""Where this package finds its own files."""

from pathlib import Path

_PACKAGED = Path(__file__).parent / "conf"
CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "conf"
"""Where the YAML lives: inside an installed wheel, or at the top of a checkout."""
