"""``task=store``: what it lists, explains, verifies and removes, on entries with real recipes and short weights."""

import io
import os
import time
from collections import Counter

import pytest
from rich.console import Console

from amc_lightning.build import build_attacks
from amc_lightning.entry import key_of
from amc_lightning.errors import UserError
from amc_lightning.recipe import outcome_recipe
from amc_lightning.store import Store
from amc_lightning.storekeeping import DAY, MISSING, differences, keep_store
from tests.test_recipe import configured, recipes_of
from tests.test_run import door

SETTINGS = {"keys": [], "unused_days": None, "max_mb": None, "dry_run": False}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def put(store, *overrides):
    """Publish all stages of a configuration, and return their entries."""
    config = configured(*overrides)
    facts = {"minutes": 1.25, "config": {"dataset": {"name": config.dataset.name}}}
    return [store.publish(recipe, facts, {"weights.safetensors": b"w" * 1000}) for recipe in recipes_of(config)]


def measure(store, entry, *attacks):
    """Publish measurements of a stage: clean, and under some attacks."""
    built = build_attacks(configured(), list(attacks), "white_box")
    for attack in (None, *built.values()):
        recipe = outcome_recipe(entry.key, attack, rows="rows", seed=0, batch_size=8, keep=2)
        store.publish(recipe, {"gradient_passes": 1.0}, {"outcome.safetensors": b"o" * 100})


def keep(store, action, **settings):
    """Return exit status and what is printed."""
    console = Console(file=io.StringIO(), width=200)
    status = keep_store(store, console, action=action, **{**SETTINGS, **settings})
    return status, console.file.getvalue()


def spoil(entry):
    (entry.folder / "weights.safetensors").write_bytes(b"other")


# --- list ------------------------------------------------------------------------------------------------------------


def test_stages_are_listed_below_what_they_start_from(store):
    m0, fgsm, vap, pgm = put(store)
    _, _, other_pgm = put(store, "cascade.order=[fgsm,pgm]")
    (_, alone) = put(store, "cascade.order=[pgm]")
    measure(store, m0, "fgsm", "pgm")
    measure(store, pgm)
    status, text = keep(store, "list")
    assert status == 0
    title, head, *rows, total = text.splitlines()
    assert title == f"6 stages in {store.root}"
    assert head.split() == ["key", "stage", "dataset", "seed", "minutes", "measured", "MB", "last", "used"]
    day = time.strftime("%Y-%m-%d", time.localtime(store.record(m0.key).used))
    expected = [
        (m0, "undefended", 3), (fgsm, "fgsm", 0), (vap, "vap", 0), (pgm, "pgm", 1),
        (other_pgm, "pgm", 0), (alone, "pgm", 0),
    ]  # fmt: skip
    assert sorted(row.split() for row in rows) == sorted(
        [entry.key[:12], name, "toy", "0", "1.2", str(count), "0.0", day] for entry, name, count in expected
    )
    tree = [row[14:].partition("toy")[0].rstrip() for row in rows]
    assert tree == ["undefended", "  fgsm", "    pgm", "    vap", "      pgm", "  pgm"]
    size = sum(store.record(key).size for key in store.keys()) / 1e6  # noqa: SIM118 - no mapping
    assert total == f"4 measurements, {size:.1f} MB in all; 0 unfinished"


def test_a_stage_whose_parent_is_gone_and_one_from_given_weights_are_listed(store, tmp_path):
    (tmp_path / "mine").write_bytes(b"weights")
    given = put(store, "cascade.order=[fgsm]", f"cascade.start_from={tmp_path / 'mine'}")
    m0, fgsm = put(store, "cascade.order=[fgsm]")
    assert store.remove(m0.key)
    _, text = keep(store, "list")
    rows = [line[14:].rstrip() for line in text.splitlines()[2:-1]]
    assert rows[0].startswith("  fgsm")
    assert rows[1].startswith("given weights")
    assert rows[2].startswith("  fgsm")
    assert text.splitlines()[2].startswith(fgsm.key[:12])
    assert text.splitlines()[4].startswith(given[1].key[:12])


def test_unfinished_and_damaged_ones_are_counted(store):
    m0, *_ = put(store, "cascade.order=[fgsm]")
    store.work("f" * 64).mkdir()
    spoilt = m0.folder / "entry.json"
    spoilt.write_bytes(spoilt.read_bytes()[:-5])
    status, text = keep(store, "list")
    assert status == 1
    assert "1 stages in" in text
    assert "1 unfinished" in text
    assert f"damaged: {m0.key[:12]} (entry.json has another checksum); it is set aside and computed again when" in text
    assert m0.folder.is_dir(), "looking changes nothing"


def test_entries_of_another_kind_harm_no_list(store):
    put(store, "cascade.order=[fgsm]")
    store.publish({"n": 1}, {}, {})
    store.publish({"kind": "proxy", "parent": 3}, {}, {})
    store.publish({"kind": "stage", "parent": 3}, {"minutes": "long", "config": [1]}, {})
    store.publish(
        {"kind": "stage", "attack": "[red]", "parent": None}, {"config": {"dataset": {"name": "[b]x[/b]"}}}, {}
    )
    store.publish({"kind": "outcome"}, {}, {})
    status, text = keep(store, "list")
    assert status == 0
    assert "4 stages in" in text
    assert "[red]" in text
    assert "[b]x[/b]" in text
    assert "1 measurements" in text


def test_a_store_that_is_not_there_is_one_clear_line(tmp_path):
    for action in ("list", "explain", "verify", "prune"):
        with pytest.raises(
            UserError, match=r"store.root: '.*nowhere' does not exist; the folder of a store. Set store.root"
        ):
            keep(Store(tmp_path / "nowhere"), action)
    assert os.listdir(tmp_path) == []


def test_an_empty_store_has_nothing(store):
    assert keep(store, "list")[1].splitlines()[0] == f"0 stages in {store.root}"
    assert keep(store, "verify") == (0, "0 of 0 entries are sound\n")


# --- explain ---------------------------------------------------------------------------------------------------------


def explained(store, one, other):
    return {
        difference.setting: (difference.one, difference.other)
        for difference in differences(store, store.record(one.key), store.record(other.key))
    }


ABOVE = ("parent > ", "parent > parent > ", "parent > parent > parent > ")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("cascade.alpha=0.4", {f"{place}alpha": (0.5, 0.4) for place in ("", *ABOVE[:2])}),
        ("seed=1", {f"{place}seed": (0, 1) for place in ("", *ABOVE)}),
        ("cascade.epochs=[1,2,1]", {"parent > epochs": (1, 2)}),
        ("cascade.epochs=[1,1,2]", {"epochs": (1, 2)}),
        ("cascade.undefended_epochs=9", {"parent > parent > parent > epochs": (2, 9)}),
        ("attack_params.white_box.pgm.nb_iter=3", {"attacks.3.arguments.nb_iter": (15, 3)}),
        (
            "attack_params.white_box.vap.eps=4",
            {"attacks.2.arguments.eps": (5, 4), "parent > attacks.2.arguments.eps": (5, 4)},
        ),
        ("cascade.current_share=0.7", {
            "attacks.1.share": ("1/10", "3/20"), "attacks.2.share": ("1/10", "3/20"),
            "attacks.3.share": ("4/5", "7/10"),
            "parent > attacks.1.share": ("1/5", "3/10"), "parent > attacks.2.share": ("4/5", "7/10"),
        }),
        ("model.dropout=0.1", {f"{place}model.arguments.dropout": (MISSING, 0.1) for place in ("", *ABOVE)}),
        ("optimizer.nesterov=1", {f"{place}optimizer.arguments.nesterov": (True, 1) for place in ("", *ABOVE)}),
        ("cascade.transfer=none", {
            "parent > " + name: values for name, values in {
                "alpha": (0.5, MISSING), "attack": ("vap", None), "augment_adversarial": (False, MISSING),
                "epochs": (1, 2), "index": (2, 0), "label": ("predicted", MISSING), "versions.attacks": (1, MISSING),
            }.items()
        }),
    ],
)  # fmt: skip
def test_exactly_the_settings_that_differ_are_named(override, expected, store):
    one, other = put(store)[-1], put(store, override)[-1]
    found = explained(store, one, other)
    if override == "cascade.transfer=none":  # of what starts from other stages the stages are told, too
        assert found.pop("parent > parent")[1] is None
        assert [attack["name"] for attack in found.pop("parent > attacks")[0]] == ["fgsm", "vap"]
    assert found == expected


def test_the_attack_that_is_another_is_named(store):
    one, other = put(store, "cascade.order=[pgm]")[-1], put(store, "cascade.order=[fgsm]")[-1]
    found = explained(store, one, other)
    assert found["attack"] == ("pgm", "fgsm")
    assert found["attacks.1.name"] == ("pgm", "fgsm")
    assert found["attacks.1.arguments.eps"] == (0.3, 0.1)
    assert not [name for name in found if "parent" in name]


def test_a_parent_that_is_gone_is_told_by_its_key(store):
    one, other = put(store, "cascade.order=[fgsm]"), put(store, "cascade.order=[fgsm]", "seed=1")
    assert store.remove(other[0].key)
    assert explained(store, one[1], other[1]) == {"seed": (0, 1), "parent": (one[0].key, other[0].key)}
    _, text = keep(store, "explain", keys=[one[1].key, other[1].key])
    assert one[0].key[:12] in text
    assert one[0].key[:13] not in text


def test_two_measurements_differ_in_attack_or_model(store):
    m0, fgsm = put(store, "cascade.order=[fgsm]")
    for entry in (m0, fgsm):
        measure(store, entry, "fgsm", "pgm")
    found = [entry for entry in map(store.load, store.keys()) if entry.recipe["kind"] == "outcome"]
    of = {(entry.recipe["model"], (entry.recipe["attack"] or {}).get("name")): entry for entry in found}
    assert "attack.name" in explained(store, of[m0.key, "fgsm"], of[m0.key, "pgm"])
    assert explained(store, of[m0.key, "fgsm"], of[fgsm.key, "fgsm"])["model > index"] == (0, 1)


def test_the_explanation_is_a_table(store):
    one, other = put(store)[-1], put(store, "cascade.alpha=0.4", "seed=1")[-1]
    status, text = keep(store, "explain", keys=[one.key[:10], other.key])
    assert status == 0
    title, head, *rows = text.splitlines()
    assert title.strip() == "What they differ in"
    assert head.split() == ["setting", one.key[:12], other.key[:12]]
    assert [row.split()[-2:] for row in rows if row.split()[-3] == "alpha"] == [["0.5", "0.4"]] * 3
    assert [row.split()[-2:] for row in rows if row.split()[-3] == "seed"] == [["0", "1"]] * 4
    assert len(rows) == 7


def test_one_entry_is_the_same_as_itself(store):
    (m0,) = put(store, "defence=undefended", "cascade.order=[]")
    assert keep(store, "explain", keys=[m0.key[:8], m0.key]) == (0, "They are the same entry.\n")


def first_digit(store, fits):
    counts = Counter(key[0] for key in store.keys())  # noqa: SIM118 - no mapping
    return next(digit for digit in "0123456789abcdef" if fits(counts[digit]))


def test_keys_that_are_not_two_or_not_there_are_told(store):
    m0, *_ = put(store)
    for keys in ([], [m0.key], [m0.key] * 3):
        with pytest.raises(UserError, match=rf"store.keys: .* has {len(keys)} keys; two, to be compared. Write"):
            keep(store, "explain", keys=keys)
    absent = first_digit(store, lambda count: count == 0) * 3
    for action in ("explain", "verify"):
        with pytest.raises(UserError, match=f"store.keys: '{absent}' is the beginning of no key; 4 keys are in"):
            keep(store, action, keys=[m0.key, absent])
    for n in range(20):
        store.publish({"n": n}, {}, {})
    shared = first_digit(store, lambda count: count > 1)
    with pytest.raises(UserError, match=f"store.keys: '{shared}' is the beginning of several keys; these begin so: "):
        keep(store, "explain", keys=[m0.key, shared])


def test_a_damaged_entry_is_not_explained(store):
    m0, fgsm, *_ = put(store)
    (m0.folder / "entry.json").write_text("{}")
    with pytest.raises(UserError, match=rf"store.keys: '{m0.key[:12]}' is damaged \(entry.json has another checksum\)"):
        keep(store, "explain", keys=[m0.key, fgsm.key])


# --- verify ----------------------------------------------------------------------------------------------------------


def test_a_sound_store_is_verified(store):
    entries = put(store)
    before = store.record(entries[0].key).used
    assert keep(store, "verify") == (0, "4 of 4 entries are sound\n")
    assert store.record(entries[0].key).used == before, "reading everything is no use of it"


def test_damage_is_named_and_is_an_exit_status(store):
    entries = put(store)
    spoil(entries[1])
    (entries[2].folder / "SHA256SUMS").unlink()
    status, text = keep(store, "verify")
    assert status == 1
    assert text.splitlines()[0] == "2 of 4 entries are sound"
    assert f"damaged: {entries[1].key[:12]} (weights.safetensors has another checksum)" in text
    assert f"damaged: {entries[2].key[:12]} (SHA256SUMS is missing)" in text
    assert all(entry.folder.is_dir() for entry in entries), "looking changes nothing"
    assert keep(store, "verify", keys=[entries[0].key[:9]]) == (0, "1 of 1 entries are sound\n")
    assert keep(store, "verify", keys=[entries[1].key[:9]])[0] == 1


# --- prune -----------------------------------------------------------------------------------------------------------


def use(entry, days):
    """Set when an entry was last used, days ago."""
    then = time.time() - days * DAY
    os.utime(entry.folder / "SHA256SUMS", (then, then))


def age(folder, days):
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - days * DAY,) * 2, follow_symlinks=False)


def left(store, entries):
    return [entry.folder.is_dir() for entry in entries]


def test_what_was_not_used_for_long_goes(store):
    entries = put(store)
    for entry, days in zip(entries, (40, 5, 31, 0), strict=True):
        use(entry, days)
    status, text = keep(store, "prune", unused_days=30)
    assert status == 0
    assert text.startswith("removed: 2 of 4 entries, 0.0 of 0.0 MB, 0 folders of unfinished or damaged ones")
    assert left(store, entries) == [False, True, False, True]
    assert keep(store, "verify") == (0, "2 of 2 entries are sound\n")
    assert os.listdir(store.root / "tmp") == os.listdir(store.root / "locks") == []


def test_what_was_not_used_longest_goes_until_it_fits(store):
    entries = put(store)
    for entry, days in zip(entries, (1, 4, 2, 3), strict=True):
        use(entry, days)
    fits = sum(entry.size for entry in entries[::2]) / 1e6
    keep(store, "prune", max_mb=fits)
    assert left(store, entries) == [True, False, True, False]
    keep(store, "prune", max_mb=fits)
    assert left(store, entries) == [True, False, True, False]
    keep(store, "prune", max_mb=0)
    assert left(store, entries) == [False] * 4


def test_both_criteria_may_be_given(store):
    entries = put(store)
    for entry, days in zip(entries, (9, 8, 7, 40), strict=True):
        use(entry, days)
    keep(store, "prune", unused_days=30, max_mb=sum(entry.size for entry in entries[1:3]) / 1e6)
    assert left(store, entries) == [False, True, True, False]


def test_a_dry_run_says_the_same_and_removes_nothing(store):
    entries = put(store)
    use(entries[0], 40)
    work = store.work("f" * 64)
    work.mkdir()
    age(work, 40)
    (store.root / "damaged" / "x").mkdir(parents=True)
    age(store.root / "damaged" / "x", 40)
    _, text = keep(store, "prune", unused_days=30, dry_run=True)
    assert text.startswith("would go: 1 of 4 entries, 0.0 of 0.0 MB, 2 folders of unfinished or damaged ones")
    assert left(store, entries) == [True] * 4
    assert work.is_dir()
    assert (store.root / "damaged" / "x").is_dir()
    _, again = keep(store, "prune", unused_days=30)
    assert again.replace("removed", "would go") == text
    assert left(store, entries) == [False, True, True, True]
    assert not work.exists()
    assert os.listdir(store.root / "damaged") == []


def test_what_is_being_made_stays(store):
    entries = put(store)
    use(entries[0], 40)
    work = store.work("f" * 64)
    work.mkdir()
    age(work, 40)
    with store.lock(entries[0].key), store.lock(work.name):
        _, text = keep(store, "prune", unused_days=30)
        assert text.startswith("removed: 0 of 4 entries")
        assert entries[0].folder.is_dir()
        assert work.is_dir()
    keep(store, "prune", unused_days=30)
    assert not entries[0].folder.exists()
    assert not work.exists()


def test_unfinished_work_goes_by_the_newest_of_it(store):
    old, new = store.work("e" * 64), store.work("f" * 64)
    for work in (old, new):
        (work / "0badcafe").mkdir(parents=True)
        (work / "0badcafe" / "1.ckpt").write_text("checkpoint")
        age(work, 40)
    os.utime(new / "0badcafe" / "1.ckpt")
    keep(store, "prune", max_mb=0)
    assert old.is_dir(), "by size only finished results go"
    keep(store, "prune", unused_days=30)
    assert not old.exists()
    assert new.is_dir()


def test_what_is_being_written_stays_whatever_is_asked(store):
    writing = store.root / "tmp" / "aside"
    writing.mkdir()
    (writing / "weights.safetensors").write_bytes(b"half")
    keep(store, "prune", unused_days=0)
    assert writing.is_dir()
    age(writing, 2)
    keep(store, "prune", unused_days=0)
    assert not writing.exists()


def test_what_was_set_aside_goes_even_if_it_is_no_folder(store, tmp_path):
    outside = tmp_path / "outside"
    (outside / "mine").mkdir(parents=True)
    damaged = store.root / "damaged"
    damaged.mkdir()
    (damaged / "file").write_text("an entry?")
    (damaged / "link").symlink_to(outside)
    store.work("f" * 64).symlink_to(outside)
    age(damaged, 40)
    age(store.root / "work", 40)
    keep(store, "prune", unused_days=30)
    assert os.listdir(damaged) == os.listdir(store.root / "work") == []
    assert (outside / "mine").is_dir()


def test_damage_found_by_the_way_is_told(store):
    entries = put(store)
    (entries[0].folder / "entry.json").write_text("{}")
    status, text = keep(store, "prune", unused_days=30)
    assert status == 1
    assert "removed: 0 of 3 entries" in text
    assert f"damaged: {entries[0].key[:12]}" in text


def test_pruning_needs_a_criterion(store):
    entries = put(store)
    with pytest.raises(UserError, match=r"store.unused_days: None is not set, nor is store.max_mb; .*store.max_mb=500"):
        keep(store, "prune")
    assert left(store, entries) == [True] * 4


# --- through the door ------------------------------------------------------------------------------------------------


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    """An empty working directory, which must stay so."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert os.listdir(folder) == []


def test_the_door_lists_and_leaves_no_folder(store, cwd):
    m0, *_ = put(store)
    done = door("task=store", f"store.root={store.root}")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[0] == f"4 stages in {store.root}"
    assert m0.key[:12] in done.out


def test_the_door_explains(store, cwd):
    one, other = put(store)[-1], put(store, "cascade.alpha=0.4")[-1]
    done = door("task=store", "store.action=explain", f"store.keys=['{one.key[:9]}','{other.key[:9]}']",
                f"store.root={store.root}")  # fmt: skip
    assert (done.status, done.err) == (0, "")
    assert "alpha" in done.out


def test_the_doors_status_says_whether_all_is_sound(store, cwd):
    entries = put(store)
    verify = ("task=store", "store.action=verify", f"store.root={store.root}")
    assert door(*verify).status == 0
    spoil(entries[0])
    done = door(*verify)
    assert (done.status, done.err) == (1, "")
    assert "3 of 4 entries are sound" in done.out


def test_the_door_prunes(store, cwd, monkeypatch):
    monkeypatch.setenv("AMC_STORE", str(store.root))
    entries = put(store)
    use(entries[0], 40)
    assert door("task=store", "store.action=prune", "store.unused_days=30", "store.dry_run=true").status == 0
    assert left(store, entries) == [True] * 4
    done = door("task=store", "store.action=prune", "store.unused_days=30")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("removed: 1 of 4 entries")
    assert left(store, entries) == [False, True, True, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("store.action=prune",), "store.unused_days: None is not set, nor is store.max_mb"),
        (("store.action=shrink",), "store.action: 'shrink' is not known; known: list, explain, verify, prune"),
        (("store.action=verify", "store.keys=[12e4]"), "store.keys: '120000.0' is not the beginning of a key"),
        (("store.root=nowhere",), "store.root: 'nowhere' does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_line(settings, message, store, cwd):
    done = door("task=store", f"store.root={store.root}", *settings)
    assert done.status == 2
    assert message in done.message


def test_a_key_that_looks_like_a_number_is_found(store):
    for n in range(3000):
        key = key_of({"n": n})
        if key[:2].isdigit() and key[0] != "0":
            store.publish({"n": n}, {}, {})
            break
    assert door("task=store", "store.action=verify", f"store.keys=[{key[:2]}]", f"store.root={store.root}").status == 0
