"""What this package tells a user when it cannot go on: bad input, diverged training, an interruption."""

from pathlib import Path

FOLDERS = {"stage": "stages", "proxy": "proxies"}
"""Where training leaves files below a run folder, by what is trained."""


class UserError(ValueError):
    """Bad input from outside: a setting, a file, a model. Says what, where, what is allowed and what to do.

    The program's door prints ``str(error)`` alone and exits with status 2; everything else is a bug and keeps its
    traceback.

    Args:
        key: where the value came from: a dotted setting, or a file.
        value: the offending value; shown with ``repr`` unless it is a ``str`` of a whole phrase in ``problem``.
        problem: what is wrong with it, continuing the sentence "<key>: <value> ...".
        allowed: what would have been accepted, such as "known: eap, fgsm".
        do: what to do next, one sentence.

    Example:
        >>> print(UserError("cascade.order", "pgdd", "is not a known attack", "known: eap, fgsm", "Add a YAML."))
        cascade.order: 'pgdd' is not a known attack; known: eap, fgsm. Add a YAML.
    """

    def __init__(self, key: str, value: object, problem: str, allowed: str, do: str) -> None:
        super().__init__(f"{key}: {value!r} {problem}; {allowed}. {do}")
        self.key = key
        self.value = value

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by message, so that a job in another process can hand the error back."""
        return _restore, (type(self), self.args, self.__dict__)


class NotFiniteError(ValueError):
    """An attack returned NaN or infinity, as a model with such weights or images makes it."""


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a finite number; the weights of the last whole epoch are kept beside the stage.

    Args:
        stage: title of the stage, such as "2 vap".
        epoch: index of the epoch, from 0.
        step: index of the step within the stage, from 0.
        problem: what is not finite, such as "the loss became nan".
        kind: "stage", or "proxy" for a proxy of that stage.
    """

    def __init__(self, stage: str, epoch: int, step: int, problem: str, *, kind: str = "stage") -> None:
        kept = f"{FOLDERS[kind]}/{stage.replace(' ', '_')}/last_good.safetensors"
        super().__init__(
            f"{kind} {stage}: {problem} in epoch {epoch + 1}, step {step + 1}; needed: finite numbers. "
            f"{_kept(epoch or None)} are in {kept}, and finished stages stay. Lower schedule.peak_lr, or look at the "
            "images and attacks of this stage."
        )


class StageStoppedError(RuntimeError):
    """Training was interrupted (Ctrl-C) inside a stage.

    Args:
        stage: title of the stage, such as "2 vap".
        kept: file with weights of the stage.
        epochs: whole epochs behind those weights; None for none.
        kind: "stage", or "proxy" for a proxy of that stage.
    """

    def __init__(self, stage: str, kept: Path, *, epochs: int | None, kind: str = "stage") -> None:
        super().__init__(f"interrupted in {kind} {stage}; finished stages stay. {_kept(epochs)} are in {kept}")


def _kept(epochs: int | None) -> str:
    return "Its starting weights (no epoch was finished)" if epochs is None else f"Its weights after epoch {epochs}"


def _restore(cls: type[UserError], args: tuple[str, ...], state: dict[str, object]) -> UserError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error
