"""What is computed does not change unseen: the source of each component beside its version.

``make versions NOTE="why nothing computed changes"`` writes the record anew.
"""

import ast
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from amc_lightning import recipe
from amc_lightning.recipe import COMPONENTS

PACKAGE = Path(recipe.__file__).parent
RECORD = Path(__file__).with_name("component_sources.yaml")

Record = dict[str, dict[str, Any]]
"""By component: version, digest of the source, and why earlier changes of it changed nothing that is computed."""


def plan(node: object) -> str:
    """Dump a syntax tree without docstrings, and as every Python does: what one has as empty another leaves out."""
    if isinstance(node, ast.AST):
        fields = [f"{name}={plan(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])]
        return f"{type(node).__name__}({', '.join(fields)})"
    if isinstance(node, list):
        return f"[{', '.join(plan(item) for item in node if not is_docstring(item))}]"
    return repr(node)


def is_docstring(node: object) -> bool:
    """Say whether a statement is a text alone, such as what describes a constant above it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def digest(files: Mapping[str, str]) -> str:
    """Return the digest of some source files, by name."""
    text = "".join(f"{name}\n{plan(ast.parse(source))}\n" for name, source in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def sources(component: str) -> dict[str, str]:
    """Return the source files of a component by their place in the package."""
    paths = [path for pattern in COMPONENTS[component] for path in PACKAGE.glob(pattern)]
    return {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in paths}


def now() -> Record:
    """Return version and digest of every component as they are."""
    return {name: {"version": recipe.VERSIONS[name], "digest": digest(sources(name))} for name in COMPONENTS}


def updated(old: Record, new: Record, note: str | None) -> Record:
    """Return the record to write: notes are kept as long as the version they are about.

    Raises:
        ValueError: if a source changed and neither its version nor a note says why that is right.
    """
    record = {}
    for name, found in new.items():
        before = old.get(name, {"version": None, "digest": None, "notes": []})
        notes = list(before["notes"]) if before["version"] == found["version"] else []
        if before["version"] == found["version"] and before["digest"] != found["digest"]:
            if not note:
                raise ValueError(advice(name))
            notes.append(note)
        record[name] = {**found, "notes": notes}
    return record


def advice(name: str) -> str:
    """Say what to do about a component whose source changed."""
    return (
        f"The source of the component {name!r} changed: {', '.join(COMPONENTS[name])}. If that changes what is "
        f"computed, raise VERSIONS[{name!r}] in src/amc_lightning/recipe.py and run `make versions`: older results are "
        "then not taken for new ones. If it does not, say why: "
        '`make versions NOTE="why nothing computed changes"`.'
    )


def read_record() -> Record:
    """Return the record as it was written last."""
    return yaml.safe_load(RECORD.read_text()) or {}


# --- the guard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_changes_with_its_version_or_a_note(name):
    known = read_record().get(name, {})
    found = now()[name]
    assert {key: known.get(key) for key in found} == found, advice(name)


def test_every_component_has_a_version_and_a_record():
    assert set(recipe.VERSIONS) == set(COMPONENTS) == set(read_record())
    assert all(isinstance(version, int) for version in recipe.VERSIONS.values())


@pytest.mark.parametrize(
    ("name", "pattern"), [(name, pattern) for name, patterns in COMPONENTS.items() for pattern in patterns]
)
def test_every_pattern_names_files(name, pattern):
    assert any(PACKAGE.glob(pattern)), f"{name}: there is no {pattern}"


def test_notes_are_sentences():
    for found in read_record().values():
        assert all(isinstance(note, str) and len(note) > 10 for note in found["notes"])


# --- the digest ------------------------------------------------------------------------------------------------------

SOURCE = '''"""A module."""

import math

STEPS = 3
"""How many."""


class Attack:
    """An attack."""

    eps: float = 0.1

    def craft(self, x, y=None):
        """Return x."""
        # a comment
        return x + self.eps * math.pi


async def wait():
    """Wait."""
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""', '"""Another text."""'),
        ('"""How many."""', '"""Steps."""'),
        ('"""An attack."""', '"""An attack.\n\n    Args:\n        eps: radius.\n    """'),
        ('"""Return x."""', ""),
        ("# a comment", "# another one"),
        ("x + self.eps * math.pi", "(x\n                + self.eps * math.pi)"),
        ("y=None", "y = None"),
        ("0.1", "1e-1"),
    ],
)
def test_what_computes_nothing_changes_no_digest(old, new):
    assert SOURCE.count(old) == 1
    assert digest({"a.py": SOURCE.replace(old, new)}) == digest({"a.py": SOURCE})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("STEPS = 3", "STEPS = 4"),
        ("0.1", "0.2"),
        ("x + self", "x - self"),
        ("x + self.eps * math.pi", "(x + self.eps) * math.pi"),
        ("y=None", "y=0"),
        ("y=None", "*, y=None"),
        ("return x +", "return +x +"),
        ("import math", "import cmath as math"),
        ("async def", "def"),
        ("class Attack:", "class Attack(object):"),
    ],
)
def test_what_computes_something_changes_the_digest(old, new):
    assert SOURCE.count(old) == 1
    assert digest({"a.py": SOURCE.replace(old, new)}) != digest({"a.py": SOURCE})


def test_a_file_that_comes_goes_or_is_renamed_changes_the_digest():
    one, two = {"a.py": SOURCE}, {"a.py": SOURCE, "b.py": ""}
    assert len({digest(one), digest(two), digest({"b.py": SOURCE}), digest({})}) == 4


# --- the record ------------------------------------------------------------------------------------------------------

OLD: Record = {
    "attacks": {"version": 1, "digest": "a", "notes": ["Names only."]},
    "models": {"version": 1, "digest": "m", "notes": []},
}


def found(**changes: Any) -> Record:
    return {name: {"version": 1, "digest": name[0], **changes.get(name, {})} for name in ("attacks", "models")}


def test_what_did_not_change_is_kept_as_it_is():
    assert updated(OLD, found(), None) == updated(OLD, found(), "a note nobody needs") == OLD


def test_a_change_needs_a_note_which_is_kept():
    changed = found(attacks={"digest": "b"})
    for note in (None, ""):
        with pytest.raises(ValueError, match=r"source of the component 'attacks' changed.*raise VERSIONS\['attacks'\]"):
            updated(OLD, changed, note)
    assert updated(OLD, changed, "Annotations only.") == {
        "attacks": {"version": 1, "digest": "b", "notes": ["Names only.", "Annotations only."]},
        "models": OLD["models"],
    }


def test_a_raised_version_needs_no_note_and_ends_those_about_the_one_before():
    changed = found(attacks={"digest": "b", "version": 2})
    assert updated(OLD, changed, None)["attacks"] == {"version": 2, "digest": "b", "notes": []}


def test_a_new_component_is_taken_over_and_one_that_is_gone_is_dropped():
    assert updated({}, found(), None) == {name: {**new, "notes": []} for name, new in found().items()}
    assert set(updated({**OLD, "proxies": OLD["models"]}, found(), None)) == {"attacks", "models"}


if __name__ == "__main__":
    try:
        record = updated(read_record() if RECORD.exists() else {}, now(), " ".join(sys.argv[1:]).strip())
    except ValueError as error:
        sys.exit(str(error))
    RECORD.write_text(yaml.safe_dump(record, sort_keys=False, width=120))
