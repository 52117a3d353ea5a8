"""The quickstart notebook runs from top to bottom, shortened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quickstart_runs(tmp_path):
    overrides = "dataset.limit=200 cascade.undefended_epochs=2 cascade.epochs=1 evaluation.limit=40"
    environment = {
        **os.environ,
        "AMC_NOTEBOOK_OVERRIDES": overrides,
        "PYTHONPATH": str(ROOT / "src"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "JUPYTER_DATA_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "pytest", "--nbmake", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    done = subprocess.run(
        [*command, f"--rootdir={ROOT}", str(ROOT / "notebooks" / "quickstart.ipynb")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "1 passed" in done.stdout
