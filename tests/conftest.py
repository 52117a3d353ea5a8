import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Small nets gain nothing from a second thread, and lose much where something else runs beside the tests.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# A job started in the background ignores Ctrl-C, and so would every program it starts; some tests are about Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect (not skip) tests on real data where AMC_SHARED_DATA does not say where it is."""
    if os.environ.get("AMC_SHARED_DATA"):
        return
    unset = [item for item in items if item.get_closest_marker("shared_data")]
    if unset:
        config.hook.pytest_deselected(items=unset)
        items[:] = [item for item in items if item not in unset]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """On CI a skipped test is a failure unless it needs a GPU: a silent skip is how a suite rots."""
    report = (yield).get_result()
    silent = report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("gpu") is None
    if os.environ.get("CI") and silent:
        report.outcome = "failed"
        report.longrepr = f"skipped on CI: {report.longrepr}"


@pytest.fixture
def shared_data() -> Path:
    """Folder of the real data sets."""
    return Path(os.environ["AMC_SHARED_DATA"])


@pytest.fixture(autouse=True, scope="session")
def _store_of_wider_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what a module's fixtures train out of the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep a user's own settings out of the tests, and what one test leaves behind out of another."""
    torch.set_flush_denormal(False)  # a run sets it for its process
    monkeypatch.setenv("AMC_STORE", str(tmp_path / "amc_store"))
    for name in ("AMC_DATA", "WANDB_API_KEY", "WANDB_MODE", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
