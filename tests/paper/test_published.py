"""The results in docs/results: the report can be made again from them, and is the one that lies there."""

from pathlib import Path

import pytest

from amc_lightning.paper.manifest import read_runs
from tests.test_run import door

RESULTS = Path(__file__).parents[2] / "docs" / "results"
MANIFESTS = sorted(RESULTS.glob("*/manifest.json"))


def test_there_are_published_results():
    assert {path.parent.name for path in MANIFESTS} >= {"mnist", "cifar10"}


@pytest.mark.slow
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.parent.name)
def test_the_report_is_made_again_from_what_is_published(manifest, tmp_path):
    """Every text and table, byte for byte; pictures depend on the version of matplotlib."""
    done = door("task=report", f"report.manifests=['{manifest}']", f"report.folder={tmp_path}")
    assert done.status == 0, done.err
    names = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.suffix in (".md", ".csv", ".tex")]
    assert len(names) >= 4  # a page, and a table in three forms
    for name in names:
        assert (tmp_path / name).read_bytes() == (manifest.parent / name).read_bytes(), name
    drawn = {path.name for path in tmp_path.rglob("*.png")}
    assert drawn >= {path.name for path in manifest.parent.rglob("*.png")}


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.parent.name)
def test_every_published_rate_is_a_count_of_the_published_flags(manifest):
    counted = 0
    for run in read_runs([manifest]).every:
        for stage in run.results.stages:
            for name, evaluation in stage.evaluations.items():
                for strength in ("paper", "check", "stronger", "judge"):
                    for attack, rate in evaluation.rates(strength).items():
                        wrong = run.flags.wrong(stage.index, strength, attack, threat_model=name)
                        if wrong is not None:
                            assert (len(wrong), wrong.sum()) == (rate.n, rate.wrong)
                            counted += 1
    assert counted > 50
