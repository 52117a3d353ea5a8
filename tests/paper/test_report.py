"""From a sweep over systems to the paper's tables, and from its results alone to the same bytes."""

import json
import shutil

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from amc_lightning.config import CONF_DIR, register
from tests.test_cascade import TOY, composed
from tests.test_run import door, read

SYSTEMS = sorted(
    path.stem for path in (CONF_DIR / "system").glob("*.yaml") if not path.stem.startswith(("norms_", "attacks_"))
)  # those of the paper; the others are compared in tests/field
SWEEP = (
    *TOY, "trainer.threads=1", "evaluation.attacks=[fgsm,pgm]", "evaluation.gallery=2", "figures=false",
    "cascade.undefended_epochs=1", "evaluation.squeezing=[bit_depth_1]", "hydra.mode=MULTIRUN",
)  # fmt: skip
CHOSEN = "undefended,at_fgsm,at_vap,at_eap,at_pgm,amc_target_hardened,amc_without_fgsm,amc_no_transfer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A toy sweep over some systems."""
    folder = tmp_path_factory.mktemp("systems")
    done = door(*SWEEP, f"system={CHOSEN}", f"hydra.sweep.dir={folder / 'sweep'}", f"store.root={folder / 'store'}")
    assert done.status == 0, done.err
    assert f"The paper's tables, Figure 1 and claims: {folder / 'sweep' / 'tables.md'}" in done.out
    return folder


def report(folder, name, *manifests):
    given = ",".join(f"'{path}'" for path in manifests)
    return door("task=report", f"report.manifests=[{given}]", f"report.folder={folder / name}")


def contents(folder):
    """Every file of a report."""
    places = ["tables.md", "claims.md", "claims.csv", *folder.glob("tables/*"), *folder.glob("figures/*")]
    return {(folder / place).relative_to(folder).as_posix(): (folder / place).read_bytes() for place in places}


# --- systems ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_says_its_name(name):
    assert composed(f"system={name}").system.name == name


@pytest.mark.parametrize("experiment", ["digits_tables", "mnist_tables", "svhn_tables", "cifar10_tables"])
def test_the_sweeps_run_every_system_once(experiment):
    register()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("config", overrides=[f"+experiment={experiment}"], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        assert cfg.hydra.mode.name == "MULTIRUN"
        named = [name.strip() for name in cfg.hydra.sweeper.params.system.split(",")]
    assert sorted(named) == SYSTEMS


@pytest.mark.parametrize("name", SYSTEMS)
def test_tables_on_mnist_are_made_as_they_say(name):
    config = composed("+experiment=mnist_tables", f"system={name}")
    by_proxy = name.endswith("_proxy")
    assert config.threat_model.name == ("black_box_label" if by_proxy else "white_box")
    assert (config.cascade.epochs, config.evaluation.limit) == ((2, 512) if by_proxy else (4, None))
    wanted = ["black_box_label", "black_box_noisy_label", "black_box_probabilities"] if by_proxy else ["white_box"]
    assert config.evaluation.threat_models == wanted
    assert config.dataset.limit == 20000


@pytest.mark.parametrize(
    ("name", "order", "current_share", "transfer"),
    [
        ("undefended", [], 0.8, "parent"),
        ("at_eap", ["eap"], 0.8, "parent"),
        ("amc_target_hardened", ["fgsm", "vap", "eap", "pgm"], 0.8, "parent"),
        ("amc_reverse", ["pgm", "eap", "vap", "fgsm"], 0.8, "parent"),
        ("amc_no_transfer", ["fgsm", "vap", "eap", "pgm"], 0.8, "none"),
        ("amc_no_replay", ["fgsm", "vap", "eap", "pgm"], 1.0, "parent"),
        ("amc_without_vap", ["fgsm", "eap", "pgm"], 0.8, "parent"),
    ],
)
def test_rows_differ_as_the_paper_says(name, order, current_share, transfer):
    cascade = composed(f"system={name}").cascade
    assert (cascade.order, cascade.current_share, cascade.transfer) == (order, current_share, transfer)


@pytest.mark.slow
def test_without_transfer_stages_that_nobody_needs_are_not_trained(folder):
    results = read(folder / "sweep" / "7")
    assert (results["system"], [stage["index"] for stage in results["stages"]]) == ("amc_no_transfer", [0, 4])
    whole = door(
        *SWEEP, "hydra.mode=RUN", "system=amc_no_transfer", "evaluation.stages=all",
        f"hydra.run.dir={folder / 'whole'}", f"store.root={folder / 'store'}",
    )  # fmt: skip
    assert whole.status == 0, whole.err
    stages = read(folder / "whole")["stages"]
    assert [stage["index"] for stage in stages] == [0, 1, 2, 3, 4]
    assert stages[-1]["key"] == results["stages"][-1]["key"]  # the same model, from the store


# --- the report ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_manifest_names_every_row_and_its_model(folder):
    manifest = json.loads((folder / "sweep" / "manifest.json").read_text())
    assert [row["system"] for row in manifest["runs"]] == CHOSEN.split(",")
    for row in manifest["runs"]:
        assert row["key"] == read(folder / "sweep" / row["folder"])["stages"][-1]["key"]


@pytest.mark.slow
def test_the_sweep_ends_with_the_tables_that_its_rows_fill(folder):
    found = contents(folder / "sweep")
    for name in ("table2", "table3", "table5", "table6", "ablations"):
        assert {f"tables/{name}.{end}" for end in ("md", "csv", "tex")} <= set(found)
    assert "tables/table4.md" not in found
    assert "figures/table3.png" in found
    links = found["tables.md"].decode()
    for name in found:
        if name.endswith((".png", ".md")) and name != "tables.md":
            assert f"({name})" in links


@pytest.mark.slow
def test_results_alone_give_the_same_bytes(folder, tmp_path):
    """Only what the manifest, results.json, the flags and the pictures say counts: no store, no job files."""
    for run in (folder / "sweep").glob("[0-9]*"):
        (tmp_path / "alone" / run.name).mkdir(parents=True)
        for name in ("results.json", "examples.npz", "gallery.npz"):
            shutil.copy(run / name, tmp_path / "alone" / run.name / name)
    shutil.copy(folder / "sweep" / "manifest.json", tmp_path / "alone")
    done = report(tmp_path, "alone", tmp_path / "alone" / "manifest.json")
    assert done.status == 0, done.err
    assert contents(tmp_path / "alone") == contents(folder / "sweep")


@pytest.mark.slow
def test_what_is_published_gives_the_same_bytes_and_is_small(folder, tmp_path):
    given = f"report.manifests=['{folder / 'sweep' / 'manifest.json'}']"
    published = f"report.publish={tmp_path / 'published'}"
    done = door("task=report", given, f"report.folder={tmp_path}", published, "report.pictures=[toy]")
    assert done.status == 0, done.err
    done = report(tmp_path, "again", tmp_path / "published" / "manifest.json")
    assert done.status == 0, done.err
    assert contents(tmp_path / "again") == contents(folder / "sweep")
    for run in (folder / "sweep").glob("[0-9]*"):
        copy = tmp_path / "published" / f"toy_{read(run)['system']}_0"
        assert (copy / "examples.npz").stat().st_size < (run / "examples.npz").stat().st_size
    assert len(list((tmp_path / "published").glob("*/gallery.npz"))) == 1


@pytest.mark.slow
def test_images_of_others_are_not_published(folder, tmp_path):
    given = f"report.manifests=['{folder / 'sweep' / 'manifest.json'}']"
    done = door("task=report", given, f"report.folder={tmp_path}", f"report.publish={tmp_path / 'published'}")
    assert done.status == 0, done.err
    assert not list((tmp_path / "published").glob("*/gallery.npz"))


@pytest.mark.slow
def test_two_datasets_make_one_report(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder / "sweep", other)
    for path in other.glob("[0-9]*/results.json"):
        results = json.loads(path.read_text())
        results["dataset"]["name"] = "mnist"
        path.write_text(json.dumps(results))
    manifest = json.loads((other / "manifest.json").read_text())
    for row in manifest["runs"]:
        row["dataset"] = "mnist"
    (other / "manifest.json").write_text(json.dumps(manifest))
    done = report(tmp_path, "both", folder / "sweep" / "manifest.json", other / "manifest.json")
    assert done.status == 0, done.err
    text = (tmp_path / "both" / "tables" / "table3.md").read_text()
    assert text.index("mnist") < text.index("toy")  # the paper's datasets come first
    assert "85.4" in text  # the paper's own number


@pytest.mark.slow
def test_a_sweep_that_is_no_row_has_no_tables(tmp_path):
    done = door(*SWEEP, "cascade.order=[fgsm],[pgm]", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.status == 0, done.err
    assert not (tmp_path / "sweep" / "manifest.json").exists()
    assert not (tmp_path / "sweep" / "tables.md").exists()


@pytest.mark.slow
def test_two_jobs_of_one_row_are_in_no_table(folder):
    """They differ in a setting that the tables do not show; the sweep itself is fine."""
    done = door(
        *SWEEP, "system=at_fgsm", "cascade.epochs=1,2", f"hydra.sweep.dir={folder / 'twice'}",
        f"store.root={folder / 'store'}",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert not (folder / "twice" / "manifest.json").exists()
    assert not (folder / "twice" / "tables.md").exists()


# --- bad input -------------------------------------------------------------------------------------------------------


def broken(folder, tmp_path, change):
    shutil.copytree(folder / "sweep", tmp_path / "sweep")
    path = tmp_path / "sweep" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return report(tmp_path, "report", path)


@pytest.mark.slow
def test_results_of_another_model_are_refused(folder, tmp_path):
    done = broken(folder, tmp_path, lambda manifest: manifest["runs"][1].update(key="0" * 64))
    assert done.status == 2
    assert "is not the finished run of at_fgsm on toy, seed 0, key 000000000000" in done.message


@pytest.mark.slow
def test_a_run_that_is_gone_is_named(folder, tmp_path):
    done = broken(folder, tmp_path, lambda manifest: manifest["runs"][1].update(folder="gone"))
    assert done.status == 2
    assert "gone" in done.message
    assert "does not exist" in done.message


@pytest.mark.parametrize("content", ["", "{", '{"format": 9, "runs": []}', '{"format": 1}', "[]"])
def test_a_manifest_that_is_none_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    done = report(tmp_path, "report", tmp_path / "manifest.json")
    assert done.status == 2
    assert f"report.manifests: '{tmp_path / 'manifest.json'}' cannot be read" in done.message


@pytest.mark.slow
def test_two_models_of_one_row_are_refused(folder, tmp_path):
    other = tmp_path / "other"
    done = door(
        *SWEEP, "system=undefended", "cascade.undefended_epochs=2", f"hydra.sweep.dir={other}",
        f"store.root={folder / 'store'}",
    )  # fmt: skip
    assert done.status == 0, done.err
    done = report(tmp_path, "report", folder / "sweep" / "manifest.json", other / "manifest.json")
    assert done.status == 2
    assert "has another undefended on toy with seed 0" in done.message


@pytest.mark.slow
def test_truncated_flags_are_named(folder, tmp_path):
    shutil.copytree(folder / "sweep", tmp_path / "sweep")
    path = tmp_path / "sweep" / "5" / "examples.npz"
    path.write_bytes(path.read_bytes()[:100])
    done = report(tmp_path, "report", tmp_path / "sweep" / "manifest.json")
    assert done.status == 2
    assert str(path) in done.message


def test_a_report_without_a_manifest_is_refused():
    done = door("task=report")
    assert done.status == 2
    assert "report.manifests: [] names no manifest" in done.message
