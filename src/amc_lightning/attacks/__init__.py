"""Attacks: one guard around every `torchattacks.attack.Attack`, and the paper's own three written out.

``build`` turns a YAML file of ``conf/attack`` and overriding parameters into a ``GuardedAttack``; calling that crafts
adversarial images and leaves the model exactly as it was.
"""

from amc_lightning.attacks.attack import GuardedAttack
from amc_lightning.attacks.build import build
from amc_lightning.attacks.eap import EAP
from amc_lightning.attacks.guard import guarded
from amc_lightning.attacks.pgm import PGM
from amc_lightning.attacks.vap import VAP

__all__ = ["EAP", "PGM", "VAP", "GuardedAttack", "build", "guarded"]
