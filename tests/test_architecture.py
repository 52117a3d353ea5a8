"""The house's rules, read from the source: imports point one way, rooms stay small, errors are never swallowed."""

import ast
import os
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "amc_lightning"
MODULES = sorted(SOURCE.rglob("*.py"))
NAMES = [".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in MODULES]

# What each room may import of the package itself; a room is a module or a folder. Anything not listed is refused.
FOUNDATION = {"errors", "seeding"}
MAY_IMPORT = {
    "__init__": {"deploy", "errors", "referee"},
    "__main__": {
        "config", "errors", "examine", "explain", "pages", "paper", "report", "run", "store", "storekeeping", "sweep",
    },
    "errors": set(),
    "seeding": set(),
    "schema": {"places"},
    "ranges": {"errors"},
    "places": set(),
    "attacks": FOUNDATION | {"places", "ranges"},
    "data": FOUNDATION,
    "models": FOUNDATION,
    "metrics": FOUNDATION,
    "transfer": FOUNDATION | {"results"},
    "explain": {"errors", "schema"},
    "cascade_checks": {"errors", "ranges", "schema"},
    "diagnosis_check": {"errors", "ranges", "schema"},
    "checks": {"cascade_checks", "diagnosis_check", "errors", "ranges", "schema"},
    "config": {"checks", "errors", "explain", "schema"},
    "model_check": FOUNDATION | {"attacks"},
    "mixed_batch": {"attacks"},
    "mixer": FOUNDATION | {"attacks", "mixed_batch"},
    "joint": FOUNDATION | {"attacks", "mixed_batch"},
    "plan": FOUNDATION | {"attacks"},
    "rows": FOUNDATION | {"attacks"},
    "evaluate": FOUNDATION | {"attacks", "metrics", "rows"},
    "stage": FOUNDATION | {"data", "metrics", "mixed_batch"},
    "keep": {"stage"},
    "progress": {"stage"},
    "results": {"__init__", "errors"},
    "entry": {"errors", "results"},
    "store": {"entry", "errors", "results"},  # knows nothing of the method: what a result is, its recipe says
    "storekeeping": {"entry", "errors", "store"},
    "report": {"errors", "results"},  # of results nothing but how a file is written whole
    "paper": {"errors", "report", "results"},
    "field": {"errors", "paper", "report", "results"},
    "pages": {"field", "paper", "report"},
    "referee": FOUNDATION | {"attacks", "data", "metrics", "models", "report", "results"},
    "sweep": {"errors", "pages", "paper", "report", "results"},
    "tracking": {"errors", "report"},
    "deploy": {"config", "errors", "transfer"},
    "build": {"attacks", "config", "data", "errors"},
    "stages": {"config", "mixer", "seeding"},
    "recipe": {"attacks", "config", "entry", "errors"},
    "checkpoint": {"data", "plan", "results"},
    "train": FOUNDATION | {
        "attacks", "checkpoint", "config", "data", "fit", "joint", "mixed_batch", "mixer", "plan", "rows", "stage",
        "stages",
    },
    "threat": {"errors"},  # an adversary's interface knows nothing of the method
    "proxy": {"stage"},
    "proxy_recipe": {"attacks", "config", "data", "entry", "recipe", "seeding", "stages"},
    "stage_recipe": {"attacks", "config", "entry", "errors", "proxy_recipe", "recipe", "stages"},
    "fit": FOUNDATION | {"attacks", "checkpoint", "config", "data", "keep", "plan", "progress", "stage", "transfer"},
    "proxies": FOUNDATION | {
        "attacks", "config", "data", "entry", "fit", "mixer", "plan", "proxy", "proxy_recipe", "results", "store",
        "threat", "transfer",
    },
    "cascade": {
        "checkpoint", "entry", "errors", "proxies", "results", "stage_recipe", "stages", "store", "train", "transfer",
    },
    "measure_plan": {
        "attacks", "config", "data", "entry", "evaluate", "outcome", "proxies", "proxy_recipe", "recipe",
        "stage_recipe", "stages", "store",
    },
    "measure": {
        "attacks", "cascade", "entry", "errors", "evaluate", "measure_plan", "models", "outcome", "proxies",
        "proxy_recipe", "rows",
    },
    "outcome": {"entry", "errors", "rows"},
    "planning": {"attacks", "cascade", "measure_plan", "plan", "proxy_recipe", "stages"},
    "header": {"attacks", "config", "data", "measure_plan", "proxies"},
    "equal_cost": {"attacks", "config", "errors", "stages"},
    "examine": {
        "attacks", "build", "config", "data", "diagnosis_check", "entry", "errors", "fit", "measure_plan",
        "model_check", "models", "referee", "report", "stage_recipe", "store", "stored", "transfer",
    },
    "stored": {"config", "entry", "errors", "schema", "stage_recipe", "stages", "store"},
    "run": {
        "__init__", "attacks", "build", "cascade", "config", "data", "entry", "equal_cost", "errors", "fit", "header",
        "measure", "measure_plan", "model_check", "planning", "proxies", "proxy_recipe", "report", "results",
        "stage_recipe", "stages", "store", "stored", "tracking", "train",
    },
}  # fmt: skip
# Where a package of others may be named, at most.
ONLY_IN = {
    "hydra": {"__main__", "config", "schema", "checks", "explain", "sweep"},
    "omegaconf": {"__main__", "config", "schema", "checks", "explain", "sweep"},
    "torchattacks": {"attacks"},
    "pyautoattack": {"attacks"},
    "wandb": {"tracking"},
    "filelock": {"store", "sweep"},
    "kornia": {"data"},
    "pooch": {"data"},
    "sklearn": {"data"},
    "PIL": {"data", "report"},
    "matplotlib": {"field", "paper", "report"},
    "torchvision": {"__main__"},  # asks whether one is there that cannot be imported
    "lightning": set(),
    "pickle": {"checkpoint", "data", "transfer"},  # checkpoint and transfer name its error
}


def room(name):
    return name.partition(".")[0]


@cache
def imports(path):
    """Every module that a file names in an import, at any depth, in full."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_rooms(path):
    """Rooms of the package that a file imports from, its own aside."""
    own = room(NAMES[MODULES.index(path)])
    found = set()
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "amc_lightning":
            first = rest.partition(".")[0]
            found.add(first if (SOURCE / first).is_dir() or (SOURCE / f"{first}.py").is_file() else "__init__")
    return found - {own}


def test_every_room_is_in_the_plan():
    assert {room(name) for name in NAMES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_point_one_way(path):
    name = NAMES[MODULES.index(path)]
    extra = own_rooms(path) - MAY_IMPORT[room(name)]
    assert not extra, f"{name} imports {sorted(extra)}"


def test_the_plan_itself_has_no_circle():
    done = set()
    waiting = {name: needs - {"__init__"} for name, needs in MAY_IMPORT.items()}
    while waiting:
        ready = {name for name, needs in waiting.items() if needs <= done}
        assert ready, f"these import each other: {sorted(waiting)}"
        done |= ready
        waiting = {name: needs for name, needs in waiting.items() if name not in ready}


@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_a_package_of_others_is_named_in_its_rooms_only(package):
    naming = {
        name
        for name, path in zip(NAMES, MODULES, strict=True)
        if package in {found.partition(".")[0] for found in imports(path)}
    }
    assert {name for name in naming if room(name) not in ONLY_IN[package]} == set()


def test_the_report_reads_files_only():
    for name, path in zip(NAMES, MODULES, strict=True):
        if room(name) == "report":
            packages = {found.partition(".")[0] for found in imports(path)}
            assert not packages & {"torch", "pytorch_lightning", "torchmetrics"}, name
            assert {found for found in imports(path) if found.startswith("amc_lightning.results")} <= {
                "amc_lightning.results.write_whole"
            }, name
    code = "import sys, amc_lightning.report; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_no_module_outgrows_a_room(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{lines} lines"


def test_the_files_a_newcomer_reads_first_are_short():
    for name in ("stage", "mixer"):
        assert len((SOURCE / f"{name}.py").read_text().splitlines()) <= 200, name


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_no_error_is_swallowed_whole(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ExceptHandler):
            continue
        assert node.type is not None, f"{path}:{node.lineno}"
        caught = {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)}
        assert "Exception" not in caught, f"{path}:{node.lineno}"
        if "BaseException" in caught:
            last = node.body[-1]
            assert isinstance(last, ast.Raise), f"{path}:{node.lineno} must raise again"
            assert last.exc is None, f"{path}:{node.lineno} must raise again"
        assert not all(isinstance(statement, ast.Pass) for statement in node.body), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_nothing_is_evaluated_seeded_globally_or_loaded_loosely(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in ("eval", "exec", "pl.seed_everything", "seed_everything", "print") or (
            called == "print" and path.name == "__main__.py"
        ), f"{path}:{node.lineno} {called}"
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called.endswith("load_state_dict"):
            assert keywords.get("strict", "True") == "True", f"{path}:{node.lineno}"
        if called == "torch.load":
            assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"
        if called in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_assert_is_not_how_a_user_is_told(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assert):
            assert node.msg is None, f"{path}:{node.lineno}: a message is for people, so it belongs in a UserError"


def test_no_room_is_called_after_what_it_is_not():
    assert not {name.rpartition(".")[2] for name in NAMES} & {"utils", "helpers", "misc", "common"}


# --- the tests' own rules --------------------------------------------------------------------------------------------


def test_pytest_is_set_up_to_be_strict():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert settings["filterwarnings"][0] == "error"
    assert all(entry.startswith("ignore:") and len(entry) > 20 for entry in settings["filterwarnings"][1:])
    assert settings["xfail_strict"] is True
    for option in ("--strict-markers", "--strict-config", "--doctest-modules", "not slow and not gpu and not parity"):
        assert option in settings["addopts"]
    assert {marker.partition(":")[0] for marker in settings["markers"]} == {"slow", "gpu", "parity", "shared_data"}
    assert settings["timeout"] <= 600


def test_the_settings_are_in_force(pytestconfig):
    assert pytestconfig.getini("xfail_strict") is True
    assert pytestconfig.getini("filterwarnings")[0] == "error"
    assert pytestconfig.getoption("strict_markers")


def test_no_test_is_expected_to_fail():
    mark = "pytest.mark." + "xfail"
    assert [path.name for path in (ROOT / "tests").rglob("*.py") if mark in path.read_text()] == []
