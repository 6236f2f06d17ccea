"""The losses against their formulas, at a perfect fit, and which networks each loop trains."""

import math

import pytest
import torch
from torch import Tensor

from loss_definition import (
    LOOPS,
    SynergyLoss,
    coefficient_loss,
    parameter_loss,
    runs_inverse,
    runs_refiner,
    total,
    wing_loss,
)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def wing_slowly(prediction: Tensor, target: Tensor) -> float:
    values = []
    for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        d = abs(p - t)
        near, far = 10 * math.log(1 + d / 2), d - (10 - 10 * math.log(1 + 10 / 2))
        values.append(near if d < 10 else far)
    return sum(values) / len(values)


def test_wing_is_the_formula():
    prediction, target = random(3, 3, 68, scale=12), random(3, 3, 68, seed=1, scale=12)
    assert ((prediction - target).abs() > 10).any()
    assert wing_loss(prediction, target).item() == pytest.approx(wing_slowly(prediction, target))


def test_wing_does_not_broadcast():
    with pytest.raises(ValueError, match="expected one shape"):
        wing_loss(torch.zeros(2, 3, 68), torch.zeros(2, 1, 68))


def test_wing_is_continuous_where_its_parts_meet():
    around = torch.tensor([10 - 1e-9, 10, 10 + 1e-9], dtype=torch.float64)
    values = [wing_loss(d[None], torch.zeros(1)).item() for d in around]
    assert max(values) - min(values) < 1e-7
    assert values[1] == pytest.approx(10 * math.log(6))


def test_wing_has_no_limit_and_keeps_its_slope():
    d = torch.tensor([1e6], dtype=torch.float64, requires_grad=True)
    wing_loss(d, torch.zeros(1)).backward()
    assert d.grad.item() == 1


def mean_square(values: Tensor) -> float:
    return sum(v * v for v in values.tolist()) / len(values)


def test_parameter_loss_is_the_formula():
    a, b = random(4, 62), random(4, 62, seed=1)
    d = a - b
    expected = [math.sqrt(mean_square(row[:12]) + mean_square(row[12:])) for row in d]
    assert parameter_loss(a, b).tolist() == pytest.approx(expected)


def test_coefficient_loss_is_misaligned_as_published_or_aligned():
    inverse, target = random(4, 62), random(4, 62, seed=1)
    published = [
        math.sqrt(mean_square(i[:50] - t[12:])) for i, t in zip(inverse, target, strict=True)
    ]
    aligned = [
        math.sqrt(mean_square(i[12:] - t[12:])) for i, t in zip(inverse, target, strict=True)
    ]
    assert coefficient_loss(inverse, target).tolist() == pytest.approx(published)
    assert coefficient_loss(inverse, target, aligned=True).tolist() == pytest.approx(aligned)


def leaves(batch: int = 2) -> dict[str, Tensor]:
    """What the criterion takes, all different, and a gradient asked of every prediction."""
    shapes = {"parameters": (62,), "landmarks": (3, 68), "refined": (3, 68), "inverse": (62,)}
    tensors = {k: random(batch, *s, seed=i) for i, (k, s) in enumerate(shapes.items())}
    for tensor in tensors.values():
        tensor.requires_grad_()
    return tensors | {
        "target": random(batch, 62, seed=8),
        "target_landmarks": random(batch, 3, 68, seed=9, scale=9),
    }


@pytest.mark.parametrize("aligned", [False, True])
def test_five_terms_and_their_weights(aligned):
    x = leaves()
    terms = SynergyLoss()(**x, aligned=aligned)
    expected = {
        "loss_LMK_f0": 0.05 * wing_loss(x["landmarks"], x["target_landmarks"]),
        "loss_LMK_pointNet": 0.05 * wing_loss(x["refined"], x["target_landmarks"]),
        "loss_Param_In": 0.02 * parameter_loss(x["parameters"], x["target"]),
        "loss_Param_S2": 0.02 * coefficient_loss(x["inverse"], x["target"], aligned),
        "loss_Param_S1S2": 0.001 * coefficient_loss(x["inverse"], x["parameters"], aligned),
    }
    assert list(terms) == list(expected)  # the published recipe has no others
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    assert total(terms).item() == pytest.approx(sum(v.mean().item() for v in expected.values()))


def test_both_predictions_learn_from_each_other():
    x = leaves()
    SynergyLoss()(**x, aligned=False)["loss_Param_S1S2"].sum().backward()
    assert (x["inverse"].grad[:, :50] != 0).all() and (x["parameters"].grad[:, 12:] != 0).all()
    assert not x["inverse"].grad[:, 50:].any() and not x["parameters"].grad[:, :12].any()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("aligned", [False, True])
def test_a_perfect_fit_costs_nothing_and_has_finite_gradients(loop, aligned):
    x = leaves()
    with torch.no_grad():
        x["parameters"].copy_(x["target"])
        x["landmarks"].copy_(x["target_landmarks"])
        x["refined"].copy_(x["target_landmarks"])
        x["inverse"][:, 12:] = x["target"][:, 12:]
        if not aligned:
            x["inverse"][:, :50] = x["target"][:, 12:]
    terms = SynergyLoss(loop)(**x, aligned=aligned)
    assert [name for name, term in terms.items() if term.any()] == []
    total(terms).backward()
    for key in ("parameters", "landmarks", "refined", "inverse"):
        assert x[key].grad is None or torch.isfinite(x[key].grad).all()


@pytest.mark.parametrize("loss", [parameter_loss, coefficient_loss])
def test_what_is_no_number_is_no_perfect_fit(loss):
    prediction = torch.zeros(3, 62)
    prediction[1] = torch.nan
    assert loss(prediction, torch.ones(3, 62)).isnan().tolist() == [False, True, False]


def test_one_perfect_sample_does_not_spoil_the_others():
    x = leaves()
    with torch.no_grad():
        x["parameters"][0] = x["target"][0]
    SynergyLoss()(**x, aligned=False)["loss_Param_In"].sum().backward()
    assert not x["parameters"].grad[0].any() and (x["parameters"].grad[1] != 0).all()


@pytest.mark.parametrize(("loop", "names"), LOOPS.items())
def test_loops_leave_terms_out(loop, names):
    x = leaves()
    if not runs_inverse(loop):
        x["inverse"] = None
    if not runs_refiner(loop):
        x["refined"] = None
    assert tuple(SynergyLoss(loop)(**x, aligned=False)) == names
