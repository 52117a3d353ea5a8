"""The store as a library: one result a key, made once, whole or not there, and never believed without a check."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amc_lightning import store as store_module
from amc_lightning.entry import DamagedError, contents_of, key_of, read_entry
from amc_lightning.errors import UserError
from amc_lightning.store import Store
from tests.disks import KINDS, ROOT, on_small_disk
from tests.test_results import disk_full_after

RECIPE = {"kind": "stage", "n": 1}
KEY = key_of(RECIPE)
WEIGHTS = "weights.safetensors"
FILES = {WEIGHTS: bytes(range(256)) * 4}
FACTS = {"minutes": 0.5}


def made(work):
    return FACTS, FILES


def never(work):
    raise AssertionError("there is an entry")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def entry(store):
    """A sound entry."""
    return store.obtain(RECIPE, made)[0]


def rest(store):
    """What lies in the store's folders for what is unfinished."""
    return sorted(
        str(path.relative_to(store.root)) for name in ("work", "tmp") for path in (store.root / name).glob("*")
    )


# --- made once -------------------------------------------------------------------------------------------------------


def test_a_result_is_made_once_and_loaded_ever_after(store):
    first, new = store.obtain(RECIPE, made)
    assert new
    assert (first.key, first.recipe, first.facts, first.files) == (KEY, RECIPE, FACTS, FILES)
    again, new = store.obtain({"n": 1.0, "kind": "stage"}, never)
    assert not new
    assert again.files == FILES
    assert (again.facts, again.created, again.folder) == (first.facts, first.created, first.folder)
    assert (
        again.size
        == first.size
        == sum(path.stat().st_size for path in first.folder.iterdir()) - len((first.folder / "SHA256SUMS").read_bytes())
    )


def test_other_recipes_are_other_results(store, entry):
    other, new = store.obtain({**RECIPE, "n": 2}, lambda work: ({"minutes": 1}, {WEIGHTS: b"other"}))
    assert new
    assert other.files == {WEIGHTS: b"other"}
    assert store.keys() == sorted([KEY, other.key])


def test_an_entry_is_what_the_layout_says(store, entry):
    assert entry.folder == store.root / "entries" / KEY[:2] / KEY
    assert sorted(os.listdir(entry.folder)) == ["SHA256SUMS", "entry.json", WEIGHTS]
    record = json.loads((entry.folder / "entry.json").read_text())
    assert (record["format"], record["key"], record["recipe"], record["facts"]) == (1, KEY, RECIPE, FACTS)
    assert {"torch", "numpy", "amc_lightning"} <= set(record["versions"])


def test_the_checksums_are_those_of_sha256sum(entry):
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=entry.folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"entry.json: OK\n{WEIGHTS}: OK\n")


def test_nothing_is_left_of_what_was_unfinished(store):
    def make(work):
        work.mkdir(parents=True)
        (work / "checkpoint").write_text("half")
        return made(work)

    store.obtain(RECIPE, make)
    assert rest(store) == []
    assert os.listdir(store.root / "locks") == []


def test_what_fails_is_not_published_and_keeps_its_work(store):
    def make(work):
        work.mkdir(parents=True)
        (work / "checkpoint").write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        store.obtain(RECIPE, make)
    assert store.keys() == []
    assert rest(store) == [f"work/{KEY}"]
    with store.lock(KEY, on_wait=pytest.fail):
        pass  # nobody holds it any more

    def go_on(work):
        assert (work / "checkpoint").read_text() == "half"
        return made(work)

    assert store.obtain(RECIPE, go_on)[1]
    assert rest(store) == []


def test_a_key_that_is_not_there_is_none_and_makes_no_folder(store):
    assert store.load(KEY) is None
    assert not store.has(KEY)
    assert not store.root.exists()


def test_no_lock_is_taken_where_an_entry_is(store, entry, monkeypatch):
    monkeypatch.setattr(Store, "lock", lambda *_, **__: pytest.fail("a lock"))
    found, new = store.obtain(RECIPE, never)
    assert (found.files, new) == (FILES, False)


def test_being_asked_for_is_on_record_and_being_looked_at_is_not(store, entry):
    os.utime(entry.folder / "SHA256SUMS", (1e9, 1e9))
    store.record(KEY), store.check(KEY), store.has(KEY)
    assert store.record(KEY).used == 1e9
    store.load(KEY)
    assert time.time() - store.record(KEY).used < 60


def test_a_key_is_found_by_its_beginning(store):
    keys = [store.obtain({"kind": "stage", "n": n}, made)[0].key for n in range(40)]
    alone = next(key for key in keys if sum(other[:3] == key[:3] for other in keys) == 1)
    assert store.find(alone[:3]) == store.find(alone) == alone
    digit = next(key[0] for key in keys if sum(other[0] == key[0] for other in keys) > 1)
    with pytest.raises(UserError, match=rf"store.keys: '{digit}' is the beginning of several keys; .*Give more digits"):
        store.find(digit)
    with pytest.raises(UserError, match=r"store.keys: 'fffff' is the beginning of no key; 40 keys are in"):
        store.find("fffff")


@pytest.mark.parametrize("number", ["120000.0", "-5", "inf", ""])
def test_what_is_no_beginning_of_a_key_is_told_how_to_be_one(number, store, entry):
    # Hydra reads 12e4 as a number; 77 it reads as one too, which does no harm.
    with pytest.raises(UserError, match=r"store.keys: .* is not the beginning of a key; .*digits 0-9a-f.*quotes"):
        store.find(number)


# --- damage ----------------------------------------------------------------------------------------------------------


def write_record(folder, **changes):
    """Write another record, with checksums that fit."""
    record = json.loads((folder / "entry.json").read_text()) | changes
    resum(folder, **{"entry.json": json.dumps(record).encode()})


def resum(folder, **files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    names = ["entry.json", *(path.name for path in folder.glob("*.safetensors"))]
    sums = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (folder / "SHA256SUMS").write_text(sums)


def truncate(name):
    return lambda folder: os.truncate(folder / name, 10)


def flip(name):
    def spoil(folder):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return spoil


def nested(folder):
    resum(folder, **{"entry.json": b'{"recipe": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"})


DAMAGE = {
    "record truncated": (truncate("entry.json"), "entry.json has another checksum"),
    "weights truncated": (truncate(WEIGHTS), f"{WEIGHTS} has another checksum"),
    "sums truncated": (truncate("SHA256SUMS"), "SHA256SUMS has a line that is no checksum of a plain file"),
    "sums empty": (lambda folder: (folder / "SHA256SUMS").write_text(""), "SHA256SUMS has a line that is no checksum"),
    "sums of data only": (
        lambda folder: (folder / "SHA256SUMS").write_text((folder / "SHA256SUMS").read_text().partition("\n")[2]),
        "SHA256SUMS does not name entry.json",
    ),
    "record flipped": (flip("entry.json"), "entry.json has another checksum"),
    "weights flipped": (flip(WEIGHTS), f"{WEIGHTS} has another checksum"),
    "sums flipped": (flip("SHA256SUMS"), "SHA256SUMS|is missing|has another checksum"),
    "record missing": (lambda folder: (folder / "entry.json").unlink(), "entry.json is missing"),
    "weights missing": (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "sums missing": (lambda folder: (folder / "SHA256SUMS").unlink(), "SHA256SUMS is missing"),
    "another key's": (lambda folder: write_record(folder, recipe={"n": 2}), "not the record of this key"),
    "another format": (lambda folder: write_record(folder, format=2), "of another format than 1"),
    "recipe of NaN": (lambda folder: write_record(folder, recipe={"n": float("nan")}), "entry.json cannot be read"),
    "recipe no object": (lambda folder: write_record(folder, recipe=[1]), "entry.json"),
    "facts no object": (lambda folder: write_record(folder, facts=[1]), "entry.json is not the record"),
    "record no object": (lambda folder: resum(folder, **{"entry.json": b"[]"}), "entry.json cannot be read"),
    "record no JSON": (lambda folder: resum(folder, **{"entry.json": b"\xff{"}), "entry.json cannot be read"),
    "record nested": (nested, r"entry.json cannot be read \(RecursionError\)"),
    "huge number": (lambda folder: resum(folder, **{"entry.json": b"9" * 10_000}), "entry.json cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_set_aside_and_computed_again(damage, store, entry, caplog):
    spoil, problem = DAMAGE[damage]
    spoil(entry.folder)
    with pytest.raises(DamagedError, match=problem):
        store.check(KEY)
    assert entry.folder.exists(), "looking changes nothing"
    again, new = store.obtain(RECIPE, made)
    assert new
    assert again.files == FILES
    ((_, level, message),) = caplog.record_tuples
    assert level == logging.WARNING
    assert f"store: entry {KEY[:12]} is damaged (" in message
    (aside,) = (store.root / "damaged").iterdir()
    assert f"It is set aside in {aside} and computed again." in message
    assert aside.name.startswith(KEY)
    assert store.obtain(RECIPE, never)[0].files == FILES
    assert rest(store) == []


def test_no_flipped_bit_passes(entry):
    for path in sorted(entry.folder.iterdir()):
        content = path.read_bytes()
        with path.open("r+b", buffering=0) as file:
            for place, byte in enumerate(content):
                for bit in range(8) if path.name == "SHA256SUMS" else (place % 8,):
                    os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), place)
                    with pytest.raises(DamagedError):
                        read_entry(entry.folder, KEY)
                os.pwrite(file.fileno(), bytes([byte]), place)
    read_entry(entry.folder, KEY)


def test_an_entry_under_the_wrong_key_is_damaged(store, entry):
    wrong = key_of({"kind": "stage", "n": 2})
    place = store.root / "entries" / wrong[:2] / wrong
    place.parent.mkdir(exist_ok=True)
    entry.folder.rename(place)
    assert store.load(wrong) is None
    with pytest.raises(DamagedError, match=r"entry\.json is not the record of this key"):
        store.check(wrong)


def test_of_two_that_meet_the_same_damage_one_mends_it_and_the_other_takes_what_it_made(
    store, entry, monkeypatch, caplog
):
    flip(WEIGHTS)(entry.folder)
    reading = store_module.read_entry

    def beaten(folder, key):
        monkeypatch.setattr(store_module, "read_entry", reading)
        try:
            return reading(folder, key)
        finally:
            assert Store(store.root).obtain(RECIPE, made)[1]  # the other one is faster

    monkeypatch.setattr(store_module, "read_entry", beaten)
    again, new = store.obtain(RECIPE, never)
    assert (again.files, new) == (FILES, False)
    assert len(caplog.records) == len(list((store.root / "damaged").iterdir())) == 1


def test_looking_sets_nothing_aside(store, entry, caplog):
    flip(WEIGHTS)(entry.folder)
    assert store.load(KEY) is None
    assert entry.folder.exists()
    assert caplog.records == []


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOENT])
def test_a_file_that_cannot_be_read_is_damage_and_one_that_may_not_is_told(code, store, entry, monkeypatch):
    opening = os.open

    def broken(path, *arguments):
        if str(path).endswith(WEIGHTS):
            raise OSError(code, os.strerror(code), str(path))
        return opening(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", broken)
        with pytest.raises(DamagedError, match=f"{WEIGHTS} cannot be read"):
            store.check(KEY)
        code = errno.EACCES
        with pytest.raises(PermissionError):
            store.check(KEY)


def test_what_is_removed_while_it_is_read_is_not_there(store, entry, monkeypatch, caplog):
    reading = store_module.read_entry

    def removed(folder, key):
        assert Store(store.root).remove(key)
        return reading(folder, key)

    monkeypatch.setattr(store_module, "read_entry", removed)
    assert store.load(KEY) is None
    assert caplog.records == []


# --- entries from elsewhere ------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    """A file that no entry has any business with, at the place that ``../../../../outside`` of an entry names."""
    path = tmp_path / "outside"
    path.write_text("mine")
    return path


def sums_name(name):
    def spoil(folder, outside):
        line = f"{hashlib.sha256(outside.read_bytes()).hexdigest()}  {name or outside}\n"
        (folder / "SHA256SUMS").write_text((folder / "SHA256SUMS").read_text() + line)

    return spoil


def linked(name):
    """The file's content is what the checksum says, but it lies elsewhere."""

    def spoil(folder, outside):
        outside.write_bytes((folder / name).read_bytes())
        (folder / name).unlink()
        (folder / name).symlink_to(outside)

    return spoil


def fifo(name):
    def spoil(folder, outside):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return spoil


def sparse(name):
    return lambda folder, outside: os.truncate(folder / name, 1 << 40)


def folder_instead(name):
    def spoil(folder, outside):
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def linked_folder(folder, outside):
    folder.rename(outside.parent / "elsewhere")
    folder.symlink_to(outside.parent / "elsewhere")


def dangling_folder(folder, outside):
    folder.rename(outside.parent / "elsewhere")
    folder.symlink_to(outside.parent / "nowhere")


def file_for_folder(folder, outside):
    folder.rename(outside.parent / "elsewhere")
    folder.write_text("an entry?")


NO_CHECKSUM = "SHA256SUMS has a line that is no checksum of a plain file"
HOSTILE = {
    "a path upwards": (sums_name("../../../../outside"), NO_CHECKSUM),
    "an absolute path": (sums_name(None), NO_CHECKSUM),
    "a hidden name": (sums_name(".bashrc"), NO_CHECKSUM),
    "a pickle": (sums_name("weights.pkl"), NO_CHECKSUM),
    "a link as weights": (linked(WEIGHTS), f"{WEIGHTS} is no plain file"),
    "a link as record": (linked("entry.json"), "entry.json is no plain file"),
    "a link as sums": (linked("SHA256SUMS"), "SHA256SUMS is no plain file"),
    "a fifo as weights": (fifo(WEIGHTS), f"{WEIGHTS} is no plain file"),
    "a fifo as record": (fifo("entry.json"), "entry.json is no plain file"),
    "a fifo as sums": (fifo("SHA256SUMS"), "SHA256SUMS is no plain file"),
    "a folder as weights": (folder_instead(WEIGHTS), f"{WEIGHTS} is no plain file"),
    "a terabyte of record": (sparse("entry.json"), "entry.json has 1099511627776 bytes"),
    "a terabyte of sums": (sparse("SHA256SUMS"), "SHA256SUMS has 1099511627776 bytes"),
    "a link as folder": (linked_folder, "not a folder"),
    "a link to nowhere as folder": (dangling_folder, "not a folder"),
    "a file as folder": (file_for_folder, "not a folder"),
}  # fmt: skip


@pytest.mark.parametrize("trick", HOSTILE)
def test_an_entry_from_elsewhere_reaches_nothing_outside(trick, store, entry, outside, caplog):
    spoil, problem = HOSTILE[trick]
    spoil(entry.folder, outside)
    before = {path: path.read_bytes() for path in (outside, *outside.parent.glob("elsewhere/*"))}
    begun = time.monotonic()
    for look in (store.check, store.record):
        try:
            look(KEY)
        except DamagedError as error:
            assert problem in str(error)  # noqa: PT017 - a record may be sound where the data are not
    again, new = store.obtain(RECIPE, made)
    assert time.monotonic() - begun < 2, "nothing waits for a fifo, or reads a terabyte"
    assert new
    assert again.files == FILES
    assert problem in caplog.text
    assert not again.folder.is_symlink()
    assert {path: path.read_bytes() for path in before} == before


def test_links_where_the_store_writes_are_not_followed(store, outside):
    elsewhere = outside.parent / "checkpoints"
    elsewhere.mkdir()
    (elsewhere / "1.ckpt").write_text("mine")
    (store.root / "locks").mkdir(parents=True)
    (store.root / "locks" / f"{KEY}.holder").symlink_to(outside)
    (store.root / "work" / KEY).mkdir(parents=True)
    (store.root / "work" / KEY / "0badcafe").symlink_to(elsewhere)

    def make(work):
        assert not (work / "0badcafe").exists(), "whoever removes old checkpoints there removes mine"
        return made(work)

    store.obtain(RECIPE, make)
    assert outside.read_text() == "mine"
    assert (elsewhere / "1.ckpt").read_text() == "mine"


def test_a_lock_that_is_a_link_is_not_followed(store, outside):
    (store.root / "locks").mkdir(parents=True)
    (store.root / "locks" / f"{KEY}.lock").symlink_to(outside)
    with pytest.raises(OSError, match="symbolic links"):
        store.obtain(RECIPE, never)
    assert outside.read_text() == "mine"


# --- several processes -----------------------------------------------------------------------------------------------


ASK = """
import json, os, sys, time
from pathlib import Path
from amc_lightning.store import Store

root, name = Path(sys.argv[1]), sys.argv[2]

def make(work):
    work.mkdir(parents=True, exist_ok=True)
    (root / f"made_by_{name}").touch()
    while not (root / f"{name}_may_end").exists():
        time.sleep(0.01)
    return {"by": name, "minutes": 0}, {"weights.safetensors": b"weights"}

def told(holder):
    (root / f"{name}_was_told").write_text(holder)

entry, new = Store(root / "store").obtain({"kind": "stage", "n": 1}, make, on_wait=told)
print(json.dumps([entry.facts["by"], new]))
"""

STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
        process.communicate()


def started(program, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def wait_for(path, *processes):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return path


def answer(process):
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return json.loads(out)


def test_of_two_that_ask_at_once_one_makes_it_and_the_other_is_told_who(tmp_path, store):
    first = started(ASK, tmp_path, "first")
    wait_for(tmp_path / "made_by_first", first)
    second = started(ASK, tmp_path, "second")
    wait_for(tmp_path / "second_was_told", first, second)
    (tmp_path / "first_may_end").touch()
    assert answer(first) == ["first", True]
    assert answer(second) == ["first", False]
    assert not (tmp_path / "made_by_second").exists()
    assert (tmp_path / "second_was_told").read_text() == f"process {first.pid} on {os.uname().nodename}"
    assert rest(store) == []
    assert os.listdir(store.root / "locks") == []


def test_one_that_is_killed_lets_the_other_make_it(tmp_path, store):
    first = started(ASK, tmp_path, "first")
    wait_for(tmp_path / "made_by_first", first)
    second = started(ASK, tmp_path, "second")
    wait_for(tmp_path / "second_was_told", first, second)
    (tmp_path / "second_may_end").touch()
    first.kill()
    assert answer(second) == ["second", True]
    assert rest(store) == []
    assert os.listdir(store.root / "locks") == []


PUBLISH = """
import sys, time
from pathlib import Path
from amc_lightning.store import Store

root, name = Path(sys.argv[1]), sys.argv[2]
(root / f"{name}_is_ready").touch()
while not (root / "go").exists():
    pass
for n in range(100):
    Store(root / "store").publish({"n": n}, {"by": name}, {"weights.safetensors": name.encode() * 1000})
print("0")
"""


def test_two_that_publish_the_same_keys_at_the_same_time_leave_one_sound_entry_of_each(tmp_path, store):
    processes = [started(PUBLISH, tmp_path, name) for name in ("first", "second")]
    for name in ("first", "second"):
        wait_for(tmp_path / f"{name}_is_ready", *processes)
    (tmp_path / "go").touch()
    assert [answer(process) for process in processes] == [0, 0]
    assert len(store.keys()) == 100
    for entry in map(store.load, store.keys()):
        assert entry.files == {WEIGHTS: entry.facts["by"].encode() * 1000}
    assert rest(store) == []
    assert not (store.root / "damaged").exists()


def test_an_entry_that_was_published_meanwhile_stands(store):
    def overtaken(work):
        Store(store.root).publish(RECIPE, {"minutes": 2}, {WEIGHTS: b"theirs"})
        return made(work)

    entry, _ = store.obtain(RECIPE, overtaken)
    assert entry.files == {WEIGHTS: b"theirs"}
    assert entry.facts == {"minutes": 2}
    assert rest(store) == []


def test_a_damaged_entry_that_was_put_there_meanwhile_does_not_stand(store):
    def overtaken(work):
        flip(WEIGHTS)(Store(store.root).publish(RECIPE, {"minutes": 2}, {WEIGHTS: b"theirs"}).folder)
        return made(work)

    assert store.obtain(RECIPE, overtaken)[0].files == FILES
    assert rest(store) == []


def test_a_holder_that_ends_while_it_is_asked_who_it_is_does_not_matter(store, monkeypatch):
    gone = store.root / "locks" / f"{KEY}.holder"
    reading = Path.read_text

    def late(path, *args, **kwargs):
        if path == gone:
            raise FileNotFoundError(path)
        return reading(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", late)

    class WaitedError(Exception):
        pass

    def told(holder):
        raise WaitedError(holder)

    with store.lock(KEY), pytest.raises(WaitedError, match="another process"):
        store.obtain(RECIPE, never, on_wait=told)


@pytest.mark.parametrize("place", ["entries", "work"])
def test_what_is_locked_is_not_removed(place, store, entry):
    work = store.work(KEY)
    work.mkdir(parents=True)
    remove = store.remove if place == "entries" else store.remove_work
    with store.lock(KEY):
        assert not Store(store.root).remove(KEY)
        assert not Store(store.root).remove_work(KEY)
        assert entry.folder.is_dir()
        assert work.is_dir()
    assert remove(KEY)
    assert (entry.folder.exists(), work.exists()) == (place == "work", place == "entries")
    assert rest(store) == ([f"work/{KEY}"] if place == "entries" else [])
    assert os.listdir(store.root / "locks") == []


def test_removing_what_is_not_there_does_nothing(store):
    store.prepare()
    assert store.remove(KEY)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_refused_in_one_line(code, store, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"store.root: .* is on a file system without locks; one that has them"):
        store.obtain(RECIPE, never)


# --- disks -----------------------------------------------------------------------------------------------------------


def test_preparing_makes_the_folder(store):
    store.prepare()
    store.prepare()
    assert rest(store) == []


def test_a_file_where_the_store_should_be_is_one_clear_line(tmp_path):
    (tmp_path / "taken").write_text("mine")
    for root in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(
            UserError, match=r"store.root: '.*taken.*' cannot be written \((Not a directory|File exists)"
        ):
            Store(root).prepare()
    assert (tmp_path / "taken").read_text() == "mine"


FULL_DISK = """
import errno
import fcntl
import json
from amc_lightning.store import Store

store = Store(disk.place / "store")
store.prepare()
store.obtain({"n": 1}, lambda work: ({}, {"weights.safetensors": b"small"}))
disk.fill(leave=100_000)
try:
    store.obtain({"n": 2}, lambda work: ({}, {"weights.safetensors": b"x" * 500_000}))
    error = None
except OSError as found:
    error = found.strerror
small = store.load(store.keys()[0])
left = [str(path) for name in ("tmp", "work") for path in (store.root / name).iterdir()]
keys = len(store.keys())
disk.free()
_, new = store.obtain({"n": 2}, lambda work: ({}, {"weights.safetensors": b"x" * 500_000}))
sound = small.files == {"weights.safetensors": b"small"}
print(json.dumps({"error": error, "full": disk.full, "sound": sound, "left": left, "keys": keys, "new": new,
                  "damaged": (store.root / "damaged").exists()}))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_publishes_nothing_and_harms_nothing(kind, tmp_path):
    found = on_small_disk(kind, tmp_path, FULL_DISK, size="2m")
    assert found.pop("error") == found.pop("full")
    assert found == {"sound": True, "left": [], "keys": 1, "new": True, "damaged": False}


def test_a_disk_that_fills_up_between_two_files_leaves_nothing(store, entry):
    with disk_full_after(5000), pytest.raises(OSError, match="File too large"):
        store.publish({"n": 2}, {}, {"a.safetensors": b"a", "b.safetensors": b"b" * 6000})
    assert rest(store) == []
    assert store.keys() == [KEY]


READ_ONLY = """
import json, os
from amc_lightning.errors import UserError
from amc_lightning.store import Store

store = Store(disk.place / "store")
sound = store.obtain({"n": 1}, lambda work: ({}, {"weights.safetensors": b"small"}))[0]
spoilt = store.obtain({"n": 2}, lambda work: ({}, {"weights.safetensors": b"small"}))[0]
(spoilt.folder / "weights.safetensors").write_bytes(b"other")
os.utime(sound.folder / "SHA256SUMS", (1e9, 1e9))
disk.make_read_only()
entry, new = store.obtain({"n": 1}, None)
told = []
for ask in (store.prepare, lambda: Store(disk.place / "new").prepare(), lambda: store.obtain({"n": 2}, None)):
    try:
        ask()
    except (UserError, OSError) as error:
        told.append(str(error))
print(json.dumps({"read": entry.files == sound.files and not new, "used": store.record(sound.key).used,
                  "told": told, "there": spoilt.folder.is_dir()}))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_that_cannot_be_written_can_be_read_and_says_so_in_one_line(kind, tmp_path):
    found = on_small_disk(kind, tmp_path, READ_ONLY, size="2m")
    assert (found["read"], found["used"], found["there"]) == (True, 1e9, True)
    prepare, new, damaged = found["told"]
    assert prepare.startswith(f"store.root: '{tmp_path / 'store'}' cannot be written (Read-only file system); ")
    assert new.startswith(f"store.root: '{tmp_path / 'new'}' cannot be written (Read-only file system); ")
    assert "Read-only file system" in damaged


def test_names_that_no_reader_accepts_are_not_written(store):
    with pytest.raises(ValueError, match=r"weights\.pkl"):
        store.publish(RECIPE, FACTS, {"weights.pkl": b""})
    assert store.keys() == []
    with pytest.raises(ValueError, match=r"weights\.pkl"):
        contents_of(RECIPE, FACTS, {"weights.pkl": b""})
