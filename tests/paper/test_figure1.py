"""Figure 1 shows only images that M0 is right about when clean and wrong about when perturbed."""

import numpy as np
import pytest

from amc_lightning.errors import UserError
from amc_lightning.paper.figure1 import ATTACKS, Choice, choose, write_figure1
from amc_lightning.paper.runs import Runs
from amc_lightning.report.record import Gallery
from tests.paper.claims_fixture import make_run, stage

Y = np.array([3, 1, 4, 5])


def arrays(fooled, *, clean_wrong=(), shape=(1, 4, 4), absent=()):
    """A gallery of four images: by attack, the rows whose perturbed copies get another answer."""
    x = np.random.default_rng(0).random((4, *shape)).astype(np.float32)
    clean = Y.copy()
    clean[list(clean_wrong)] += 1
    found = {"x": x, "y": Y, "clean_predicted/0": clean}
    for attack in ATTACKS:
        if attack in absent:
            continue
        predicted = Y.copy()
        predicted[list(fooled.get(attack, ()))] += 1
        found |= {f"x_adv/0/{attack}": 1 - x, f"predicted/0/{attack}": predicted}
    return found


def gallery(*args, **kwargs):
    found = arrays(*args, **kwargs)
    return Gallery(found["x"], found["y"], found)


def test_an_image_that_every_attack_fooled_fills_the_row():
    fooled = {"fgsm": (0, 2), "eap": (0, 1, 2, 3), "pgm": (2, 3), "vap": (2,)}
    assert choose(gallery(fooled)) == Choice(2, dict.fromkeys(ATTACKS, 2))


def test_of_equal_images_the_first():
    assert choose(gallery(dict.fromkeys(ATTACKS, (3, 1)))) == Choice(1, dict.fromkeys(ATTACKS, 1))


def test_an_image_that_is_wrong_when_clean_is_never_shown():
    fooled = {"fgsm": (0, 1), "eap": (0, 1), "pgm": (0, 1), "vap": (0,)}
    found = choose(gallery(fooled, clean_wrong=(0,)))
    assert found == Choice(1, {"fgsm": 1, "eap": 1, "pgm": 1})


def test_another_image_stands_in_where_the_first_is_not_fooled():
    fooled = {"fgsm": (1,), "eap": (0, 1, 3), "pgm": (1, 3), "vap": (3,)}
    found = choose(gallery(fooled))
    assert found == Choice(1, {"fgsm": 1, "eap": 1, "pgm": 1, "vap": 3})
    assert found.own == 3


def test_an_attack_that_fooled_nothing_has_no_image():
    found = choose(gallery({"eap": (2,), "pgm": (2, 3)}))
    assert found == Choice(2, {"eap": 2, "pgm": 2})


@pytest.mark.parametrize("fooled", [{}, {"fgsm": (0,)}])
def test_nothing_to_show(fooled):
    assert choose(gallery(fooled, clean_wrong=(0,))) is None


def test_every_picture_shown_is_of_a_fooled_image():
    rng = np.random.default_rng(7)
    for _ in range(200):
        fooled = {attack: np.flatnonzero(rng.random(4) < 0.4) for attack in ATTACKS}
        wrong = np.flatnonzero(rng.random(4) < 0.3)
        made = gallery(fooled, clean_wrong=wrong)
        found = choose(made)
        able = {attack for attack in ATTACKS if set(fooled[attack]) - set(wrong)}
        assert (set() if found is None else set(found.shown)) == able
        for attack, row in {} if found is None else found.shown.items():
            assert row in fooled[attack]
            assert row not in wrong
            assert found.row not in fooled[attack] or row == found.row


def keep(run, content):
    np.savez_compressed(run.folder / "gallery.npz", **content)
    return run


def test_the_picture_of_gray_and_colour_datasets(tmp_path):
    fooled = {"fgsm": (1,), "eap": (1, 3), "pgm": (3,)}
    gray = keep(make_run(tmp_path, "amc_target_hardened", {}), arrays(fooled))
    colour = make_run(tmp_path, "undefended", {}, dataset="svhn", shape=(3, 8, 8))
    keep(colour, arrays(fooled, shape=(3, 8, 8), absent=("vap",)))
    path = write_figure1(Runs((gray, colour)), tmp_path)
    assert path == tmp_path / "figures" / "figure1.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_no_picture_without_a_gallery_of_m0(tmp_path):
    plain = make_run(tmp_path, "at_fgsm", {})
    assert write_figure1(Runs((plain,)), tmp_path) is None
    only_later = {k.replace("/0", "/1"): v for k, v in arrays(dict.fromkeys(ATTACKS, (0,))).items()}
    keep(plain, only_later)
    assert write_figure1(Runs((plain,)), tmp_path) is None
    hardened = make_run(tmp_path, "at_vap", {}, stages=(stage(1, "vap"),))  # no M0 in it: the weights were given
    keep(hardened, arrays(dict.fromkeys(ATTACKS, (0,))))
    assert write_figure1(Runs((hardened,)), tmp_path) is None
    assert not (tmp_path / "figures").exists()


def test_a_damaged_gallery_is_one_clear_message(tmp_path):
    run = make_run(tmp_path, "at_fgsm", {})
    (run.folder / "gallery.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"gallery\.npz"):
        write_figure1(Runs((run,)), tmp_path)
