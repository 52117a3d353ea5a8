"""Attacks: one interface, ``attack(model, x, y) -> x_adv``, and one guard around every `torchattacks.attack.Attack`.

``load`` gives an attack by name; ``build`` makes one from a YAML file of ``conf/attack`` and overriding parameters.
Calling it crafts adversarial images and leaves the model exactly as it was. FGSM, PGM, VAP and EAP are written out
here; any class of `torchattacks` joins by a YAML file.
"""

from amc_lightning.attacks.attack import Crafted, GuardedAttack, share_clean
from amc_lightning.attacks.autoattack import AutoAttack
from amc_lightning.attacks.ball import Norm
from amc_lightning.attacks.build import build
from amc_lightning.attacks.copies import PLAIN, Execution
from amc_lightning.attacks.cw import CW
from amc_lightning.attacks.deepfool import DeepFool
from amc_lightning.attacks.eap import EAP
from amc_lightning.attacks.fgsm import FGSM
from amc_lightning.attacks.guard import guarded
from amc_lightning.attacks.load import load
from amc_lightning.attacks.msd import MSD
from amc_lightning.attacks.noise import RandomNoise
from amc_lightning.attacks.pgm import PGDL1, PGDL2, PGM
from amc_lightning.attacks.reference import APGDCE, APGDT, FAB, Square
from amc_lightning.attacks.vap import VAP
from amc_lightning.attacks.view import opened

__all__ = [
    "APGDCE",
    "APGDT",
    "CW",
    "EAP",
    "FAB",
    "FGSM",
    "MSD",
    "PGDL1",
    "PGDL2",
    "PGM",
    "PLAIN",
    "VAP",
    "AutoAttack",
    "Crafted",
    "DeepFool",
    "Execution",
    "GuardedAttack",
    "Norm",
    "RandomNoise",
    "Square",
    "build",
    "guarded",
    "load",
    "opened",
    "share_clean",
]
