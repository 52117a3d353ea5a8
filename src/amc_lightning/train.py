"""Train one stage: which images, attacks and weights go in, and how it is watched; ``fit.py`` does the rest."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from pytorch_lightning.loggers import Logger
from rich.console import Console
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack
from amc_lightning.checkpoint import random_states, set_random_states
from amc_lightning.config import Config, stage_names
from amc_lightning.data import ImageData
from amc_lightning.fit import Fitter, Trained
from amc_lightning.joint import RULES
from amc_lightning.mixed_batch import MakesBatches
from amc_lightning.mixer import Mixer
from amc_lightning.plan import PassCount
from amc_lightning.rows import attack_rows, predict
from amc_lightning.seeding import derive, generator
from amc_lightning.stage import StageModule
from amc_lightning.stages import Stage, shares_of, stage_seed, validation_interval


class StageTrainer:
    """Train the stages of a configuration, each by itself.

    Args:
        config: the checked configuration.
        data: the prepared dataset.
        attacks: the attacks as training crafts them, by name.
        device: where to train.
        console: where progress is shown.
    """

    def __init__(
        self,
        config: Config,
        data: ImageData,
        attacks: Mapping[str, GuardedAttack],
        *,
        device: torch.device,
        console: Console,
    ) -> None:
        self.config = config
        self.data = data
        self.attacks = attacks
        self.device = device
        self.console = console
        self.fitter = Fitter(config, device=device, console=console)

    def new_net(self, *seed: int | str) -> nn.Module:
        """Return a fresh network; its initial weights depend on the seed only, and no global random state moves."""
        return self.fitter.new_net(self.config.model, *seed)

    def train(
        self,
        stage: Stage,
        parent: Path | bytes | None,
        *,
        craft_on: nn.Module | None = None,
        folder: Path,
        work: Path,
        logger: Logger | None,
    ) -> Trained:
        """Train a stage, or what is left of it where ``work`` holds a checkpoint.

        Args:
            stage: which.
            parent: weights to start from, as a file or its content; None for fresh ones.
            craft_on: the local proxy that examples are crafted on; None for the network that is trained.
            folder: where a person looks: metrics so far, and the last good weights if the stage fails.
            work: where checkpoints go, and are looked for.
            logger: a further logger beside the stage's own metrics.

        Raises:
            TrainingDivergedError: if a loss stops being finite.
            StageStoppedError: on Ctrl-C.
        """
        seed = stage_seed(self.config, stage)
        net = self.new_net(seed)
        passes = PassCount()
        return self.fitter.fit(
            self._module(net, stage, seed, passes, craft_on),
            self.data.batches("train", shuffle_seed=derive(seed, "order"), device=self.device),
            title=f"stage {stage.index}/{len(stage_names(self.config.cascade))} {stage.name}",
            epochs=stage.epochs,
            validate_every=validation_interval(self.config, stage),
            parent=parent,
            folder=folder,
            work=work,
            logger=logger,
            passes=passes,
            counted=[net] if craft_on is None else [net, craft_on],
            pick_best=self.config.cascade.pick == "best",
        )

    def _module(
        self, net: nn.Module, stage: Stage, seed: int, passes: PassCount, craft_on: nn.Module | None
    ) -> StageModule:
        cascade = self.config.cascade
        shares = shares_of(self.config, stage)
        attacks = [self.attacks[name] for name in shares]
        mixer: MakesBatches | None = None
        if attacks and cascade.joint is not None:
            mixer = RULES[cascade.joint](attacks, seed=seed, label=cascade.label)
        elif attacks:
            mixer = Mixer(attacks, list(shares.values()), seed=seed, label=cascade.label)  # type: ignore[arg-type]
        return StageModule(
            net,
            title=stage.title,
            seed=seed,
            mixer=mixer,
            alpha=cascade.alpha,
            augment=self.fitter.augment(),
            augment_clean=cascade.augment_clean,
            augment_adversarial=cascade.augment_adversarial,
            craft_on=craft_on,
            make_optimizer=self.fitter.optimizer,
            make_schedule=self.fitter.schedule(stage.epochs),
            validate=partial(self._validate, self._watched(attacks), passes, craft_on),
        )

    def _watched(self, attacks: list[GuardedAttack]) -> list[GuardedAttack]:
        """Return the attacks of the validation: those trained with; for MSD, which has no norm, those it stands for."""
        if attacks and self.config.cascade.joint == "msd":
            return [self.attacks[name] for name in self.config.cascade.order]
        return attacks

    def _validate(
        self, attacks: list[GuardedAttack], passes: PassCount, craft_on: nn.Module | None, net: nn.Module
    ) -> dict[str, float]:
        """Return clean error on the whole validation split and each attack's on a fixed seeded subset, in percent."""
        states = random_states()  # a model may draw in eval mode too
        try:
            return self._errors(attacks, passes, craft_on, net)
        finally:
            set_random_states(states)

    def _errors(
        self, attacks: list[GuardedAttack], passes: PassCount, craft_on: nn.Module | None, net: nn.Module
    ) -> dict[str, float]:
        images, labels = self.data.tensors("validation", self.device)
        size = self.config.evaluation.batch_size
        counted = replace(passes)  # watching is not training: what follows is not billed
        errors = {"clean": _percent(predict(net, images, batch_size=size) != labels)}
        count = min(self.config.cascade.validate_rows, len(labels))
        if count == 0:
            return errors
        rng = generator(self.config.dataset.split_seed, "validation subset")
        subset = torch.randperm(len(labels), generator=rng)[:count].to(labels.device)
        for attack in attacks:
            outcome = attack_rows(
                net,
                attack,
                images[subset],
                labels[subset],
                seed=self.config.evaluation.seed,
                batch_size=size,
                craft_on=craft_on,
            )
            errors[attack.name] = 100 * float(outcome.wrong.mean())
        passes.gradient, passes.forward = counted.gradient, counted.forward
        return errors


def _percent(wrong: Tensor) -> float:
    return 100 * float(wrong.double().mean())
