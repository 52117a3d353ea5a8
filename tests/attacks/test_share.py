"""One pass at the clean images for all attacks of a batch: made once, and the result is that of each attack alone."""

from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from amc_lightning.attacks import GuardedAttack, load, opened, share_clean
from amc_lightning.attacks.base import Start
from amc_lightning.mixer import Mixer, stage_shares
from tests.attacks.conftest import SmallNet, seeded

Batch = Callable[[int], tuple[Tensor, Tensor]]
LABELS = pytest.mark.parametrize("label", ["true", "predicted"])
FAST = {
    "fgsm": {"eps": 0.1},
    "pgm": {"eps": 0.1, "eps_iter": 0.03, "nb_iter": 4},
    "eap": {"max_iterations": 6, "binary_search_steps": 3, "initial_const": 10.0, "learning_rate": 0.1},
    "vap": {"eps": 1.0, "num_iters": 2},
    "torchattacks_fgsm": {"eps": 0.1},
    "torchattacks_pgd": {"eps": 0.1, "nb_iter": 2, "rand_init": False},
}
PAPERS_ORDER = ("fgsm", "vap", "eap", "pgm")


def make(name: str, **settings: object) -> GuardedAttack:
    return load(name, **(FAST[name] | settings))


@pytest.fixture
def net(net: SmallNet) -> SmallNet:
    """In float64, so that no sign of a gradient depends on which rows were passed together."""
    return net.double()


@pytest.fixture
def batch(net: SmallNet, device: torch.device) -> Batch:
    """Images in float32 with a flat black part, and labels most of which are the net's own."""

    def make(size: int) -> tuple[Tensor, Tensor]:
        with seeded(1):
            x, y = torch.rand(size, 1, 12, 12).to(device), torch.randint(5, (size,)).to(device)
        x[:, :, :3] = 0.0
        if size > 0:
            y[size // 4 :] = answers(net, x[size // 4 :])
        return x, y

    return make


class Recording(nn.Module):
    """Keeps every row it is shown, and whether a gradient was to come."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.passes: list[tuple[Tensor, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append((x.detach().clone(), x.requires_grad))
        return self.inner(x)

    def times(self, x: Tensor) -> list[int]:
        """Return how often each row of ``x`` came by."""
        seen = torch.cat([rows for rows, _ in self.passes])
        return [int((seen == row).flatten(1).all(dim=1).sum()) for row in x]

    def rows(self, *, gradient: bool) -> int:
        return sum(len(rows) for rows, asked in self.passes if asked is gradient)


def answers(net: nn.Module, x: Tensor) -> Tensor:
    """Return the net's labels in eval mode, as attacks see it."""
    with opened(net, x, None) as view, torch.no_grad():
        return view(x).argmax(dim=1)


def rows_of(*counts: int) -> list[Tensor]:
    """Return parts of a shuffled batch."""
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(8))
    return list(torch.split(order, counts))


@LABELS
def test_every_part_gets_what_a_pass_of_its_own_would_tell(label: str, net: nn.Module, batch: Batch) -> None:
    x, y = batch(12)
    x = x.double()
    parts = list(zip([make(name) for name in PAPERS_ORDER], rows_of(3, 4, 3, 2), strict=True))
    with opened(net, x, y) as view:
        shared = share_clean(view, x, y, parts, label=label)
        logits = view(x).detach()
        for (attack, rows), (aim, start) in zip(parts, shared, strict=True):
            wanted = logits[rows].argmax(dim=1) if label == "predicted" and attack.uses_labels else y[rows]
            assert torch.equal(aim, wanted)
            if attack.name == "pgm" and label == "true":
                assert start is None
                continue
            torch.testing.assert_close(start.logits, logits[rows], rtol=0, atol=1e-12)
            assert not start.logits.requires_grad
            if attack.name in ("vap", "pgm"):
                assert start.gradient is None
                continue
            point = x[rows].requires_grad_()
            alone = view(point)
            direction = attack.attack_class.clean_direction(alone.detach(), wanted, **attack.arguments)
            (gradient,) = torch.autograd.grad(alone, point, direction)
            torch.testing.assert_close(start.gradient, gradient, rtol=0, atol=1e-12)


@LABELS
def test_every_row_is_passed_at_most_once(label: str, net: nn.Module, batch: Batch) -> None:
    x, y = batch(12)
    x, model = x.double(), Recording(net)
    fgsm, vap, eap, pgm = rows_of(3, 4, 3, 2)
    parts = list(zip([make(name) for name in PAPERS_ORDER], (fgsm, vap, eap, pgm), strict=True))
    with opened(model, x, y) as view:
        share_clean(view, x, y, parts, label=label)
        assert (view.gradient_rows, view.forward_rows) == (6, 4 if label == "true" else 6)
    assert [len(rows) for rows, asked in model.passes if asked] == [6], "what needs a gradient goes together"
    assert len(model.passes) == 2, "what needs logits only goes together"
    assert model.times(x[fgsm]) + model.times(x[eap]) == [1] * 6
    assert model.times(x[vap]) == [1] * 4
    assert model.times(x[pgm]) == [int(label == "predicted")] * 2


@LABELS
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_is_that_of_every_attack_alone(
    label: str, fast: bool, dtype: torch.dtype, net: nn.Module, batch: Batch
) -> None:
    x, y = batch(18)
    x, y = x.to(dtype), y.clone()
    y[::3] = (y[::3] + 1) % 5
    names = [*PAPERS_ORDER, "torchattacks_fgsm", "torchattacks_pgd"]
    attacks = [make(name, label=label, fast=fast) for name in names]
    parts = list(zip(attacks, rows_of(3, 3, 4, 4, 2, 2), strict=True))
    noise = {attack.name: attack.draw_noise(x.shape, torch.Generator().manual_seed(2)) for attack in attacks}

    def cut(attack: GuardedAttack, rows: Tensor) -> Tensor | None:
        return None if noise[attack.name] is None else noise[attack.name][rows]

    with opened(net, x, y, attacks[0].execution) as view:
        shared = share_clean(view, x, y, parts, label=label)
        together = [
            attack(view, x[rows], aim, noise=cut(attack, rows), start=start)
            for (attack, rows), (aim, start) in zip(parts, shared, strict=True)
        ]
    for (attack, rows), x_adv in zip(parts, together, strict=True):
        alone = attack(net, x[rows], y[rows], noise=cut(attack, rows))
        assert x_adv.dtype == dtype
        torch.testing.assert_close(x_adv, alone, rtol=0, atol=1e-6, msg=attack.name)
        assert not torch.equal(x_adv, x[rows])


@LABELS
def test_all_rows_for_several_attacks(label: str, net: nn.Module, batch: Batch) -> None:
    """Rows None: as an evaluation does, every attack on the whole batch."""
    x, y = batch(6)
    x = x.double()
    attacks = [make("fgsm", label=label), make("eap", label=label), make("vap", label=label)]
    with opened(net, x, y) as view:
        shared = share_clean(view, x, y, [(attack, None) for attack in attacks], label=label)
        together = [attack(view, x, aim, start=start) for attack, (aim, start) in zip(attacks, shared, strict=True)]
    for attack, x_adv in zip(attacks, together, strict=True):
        torch.testing.assert_close(x_adv, attack(net, x, y), rtol=0, atol=1e-9)


def test_labels_that_nobody_needs_may_be_missing(net: nn.Module, batch: Batch) -> None:
    x = batch(4)[0].double()
    with opened(net, x, None) as view:
        ((aim, start),) = share_clean(view, x, None, [(make("vap"), None)], label="true")
        assert aim is None
        assert start.logits.shape == (4, 5)
        ((aim, _),) = share_clean(view, x, None, [(make("fgsm"), None)], label="predicted")
        assert torch.equal(aim, start.logits.argmax(dim=1))


@pytest.mark.parametrize("name", ["pgm", "torchattacks_fgsm", "torchattacks_pgd"])
def test_what_needs_nothing_is_not_passed(name: str, net: nn.Module, batch: Batch) -> None:
    x, y = batch(4)
    x, model, rows = x.double(), Recording(net), torch.tensor([2, 0])
    with opened(model, x, y) as view:
        ((aim, start),) = share_clean(view, x, y, [(make(name), rows)], label="true")
        assert torch.equal(aim, y[rows])
        assert start is None
        assert model.passes == []
        ((aim, start),) = share_clean(view, x, y, [(make(name), rows)], label="predicted")
        assert [len(seen) for seen, _ in model.passes] == [2]
        assert torch.equal(aim, answers(net, x[rows]))


def test_pgm_from_the_image_itself_shares_its_gradient(net: nn.Module, batch: Batch) -> None:
    x, y = batch(4)
    x, attack, model = x.double(), make("pgm", rand_init=False), Recording(net)
    with opened(model, x, y) as view:
        ((aim, start),) = share_clean(view, x, y, [(attack, None)], label="true")
        x_adv = attack(view, x, aim, start=start)
    assert model.rows(gradient=True) == 4 * 4
    assert model.times(x) == [1] * 4
    torch.testing.assert_close(x_adv, attack(net, x, y), rtol=0, atol=1e-12)


@LABELS
@pytest.mark.parametrize("counts", [(0, 4, 0, 0), (4, 0, 0, 0), (0, 0, 2, 2), (1, 0, 3, 0), (0, 0, 0, 4)], ids=str)
def test_parts_may_be_empty(label: str, counts: tuple[int, ...], net: nn.Module, batch: Batch) -> None:
    x, y = batch(4)
    x = x.double()
    parts = list(zip([make(name) for name in PAPERS_ORDER], rows_of(*counts), strict=True))
    with opened(net, x, y) as view:
        shared = share_clean(view, x, y, parts, label=label)
        results = [
            attack(view, x[rows], aim, start=start) for (attack, rows), (aim, start) in zip(parts, shared, strict=True)
        ]
    for (attack, rows), (aim, _), x_adv in zip(parts, shared, results, strict=True):
        assert len(aim) == len(rows) == len(x_adv)
        wanted = answers(net, x[rows]) if label == "predicted" and attack.uses_labels and len(rows) > 0 else y[rows]
        assert torch.equal(aim, wanted)


@LABELS
def test_an_empty_batch(label: str, net: nn.Module, batch: Batch) -> None:
    x, y = batch(0)
    x = x.double()
    attacks = [make(name) for name in PAPERS_ORDER]
    with opened(net, x, y) as view:
        shared = share_clean(view, x, y, [(attack, None) for attack in attacks], label=label)
        for attack, (aim, start) in zip(attacks, shared, strict=True):
            assert attack(view, x, aim, start=start).shape == (0, 1, 12, 12)


def test_no_parts(net: nn.Module, batch: Batch) -> None:
    x, y = batch(3)
    with opened(net, x.double(), y) as view:
        assert share_clean(view, x.double(), y, [], label="predicted") == []


def test_in_bf16_labels_and_logits_are_the_plain_models(batch: Batch, net: nn.Module) -> None:
    net.float()
    x, y = batch(8)
    execution = make("fgsm", bf16=True).execution
    exact = answers(net, x)
    with opened(net, x, y, execution) as view:
        ((aim, start),) = share_clean(view, x, y, [(make("fgsm"), None)], label="predicted")
        assert (view.gradient_rows, view.forward_rows) == (8, 8)
        assert torch.equal(aim, exact)
        with torch.no_grad():
            torch.testing.assert_close(start.logits, view.judge(x), rtol=0, atol=1e-6)
        assert start.gradient.dtype == torch.float32


def test_a_start_goes_to_another_type_whole() -> None:
    start = Start(torch.ones(2, 3), torch.ones(2, 1, 4, 4)).to(torch.float64)
    assert (start.logits.dtype, start.gradient.dtype) == (torch.float64, torch.float64)
    assert Start(torch.ones(2, 3)).to(torch.float64).gradient is None


def mixer(label: str, names: Sequence[str] = PAPERS_ORDER, **settings: object) -> Mixer:
    attacks = [make(name, **settings) for name in names]
    shares = stage_shares(len(names), current_share=Fraction(4, 5), shares=None)
    return Mixer(attacks, shares, seed=3, label=label)


@LABELS
@pytest.mark.parametrize("fast", [False, True])
def test_the_mixer_makes_one_clean_pass_for_all_four(label: str, fast: bool, net: nn.Module, batch: Batch) -> None:
    x, y = batch(30)
    x, model = x.double(), Recording(net)
    mixed = mixer(label)(model, x, y, step=0)
    sizes = mixed.source.bincount(minlength=4).tolist()
    assert sizes == [2, 2, 2, 24]
    assert model.times(x[mixed.source < 3]) == [1] * 6
    assert model.times(x[mixed.source == 3]) == [int(label == "predicted")] * 24


@LABELS
def test_the_passes_of_a_mixed_batch_are_counted_exactly(label: str, net: nn.Module, batch: Batch) -> None:
    x, y = batch(30)
    x, model = x.double(), Recording(net)
    mixed = mixer(label, ("fgsm", "vap", "pgm"))(model, x, y, step=0)
    fgsm, vap, pgm = mixed.source.bincount(minlength=3).tolist()
    assert (fgsm, vap, pgm) == (3, 3, 24)
    assert model.rows(gradient=True) == fgsm * 1 + vap * 2 + pgm * 4
    assert model.rows(gradient=False) == vap * 1 + (pgm if label == "predicted" else 0)
    # gradient and logits at the clean images, two of VAP, four of PGM
    assert len(model.passes) == 2 + 2 + 4


@LABELS
def test_a_float64_model_in_the_mixer(label: str, net: nn.Module, batch: Batch) -> None:
    """Images in float32: crafted in float64 all the same, as every attack alone is."""
    x, y = batch(30)
    for fast in (False, True):
        mixed = mixer(label, fast=fast)(net, x, y, step=0)
        assert mixed.x.dtype == torch.float32
        fgsm = mixed.source == 0
        alone = make("fgsm", label=label)(net, x[fgsm], y[fgsm])
        torch.testing.assert_close(mixed.x[fgsm], alone, rtol=0, atol=1e-7)
        again = mixer(label)(net, x.double(), y, step=0)
        torch.testing.assert_close(mixed.x.double(), again.x, rtol=0, atol=1e-6)


def test_torchattacks_own_classes_in_the_mixer(net: nn.Module, batch: Batch) -> None:
    x, y = batch(20)
    x, model = x.double(), Recording(net)
    mixed = mixer("predicted", ("fgsm", "torchattacks_fgsm"))(model, x, y, step=0)
    theirs = mixed.source == 1
    assert theirs.sum() == 16
    expected = make("torchattacks_fgsm", label="predicted")(net, x[theirs], y[theirs])
    torch.testing.assert_close(mixed.x[theirs], expected, rtol=0, atol=1e-9)
    # Their class makes its own pass after the shared one that told the labels.
    assert model.times(x[theirs]) == [2] * 16
