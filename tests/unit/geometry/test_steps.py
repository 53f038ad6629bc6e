"""Exact steps against a dense solution in float64, on any problem: regular, singular, hard, without a gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fip import InputError
from hf_fip.geometry.correction import drift_correction
from hf_fip.geometry.dual import drift_gradient
from hf_fip.geometry.steps import fip_step, isofunctional_step
from tests.unit.geometry.dense import DenseMetric, minimum_on_sphere


METHODS = ["lanczos", "dual"]


@st.composite
def problems(draw):
    """A metric of any rank and range of eigenvalues, a gradient of any size, and a length."""
    seed, weights = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 9))
    anchors, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(anchors, outputs, weights, dtype=torch.float64, generator=generator)
    decades = draw(st.sampled_from([0.0, 4.0]))
    jacobian = jacobian * 10 ** (-decades * torch.rand(weights, dtype=torch.float64, generator=generator))
    weighting = None
    if draw(st.booleans()):
        # Of less than full rank, as the Fisher metric's.
        p = torch.rand(anchors, outputs, dtype=torch.float64, generator=generator).softmax(-1)
        weighting = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    metric = DenseMetric(jacobian * 10 ** draw(st.floats(-3, 3)), weighting)
    gradient = torch.randn(weights, dtype=torch.float64, generator=generator) * 10 ** draw(st.floats(-3, 3))
    kind = draw(st.sampled_from(["generic", "generic", "hard", "zero"]))
    if kind == "hard":
        d, u = torch.linalg.eigh(metric.matrix())
        bottom = u[:, d - d[0] <= 1e-12 * d[-1]]
        for _ in range(2):
            gradient = gradient - bottom @ (bottom.T @ gradient)
    elif kind == "zero":
        gradient = torch.zeros_like(gradient)
    return metric, gradient, 10 ** draw(st.floats(-3, 3)), draw(st.sampled_from([1e-3, 1.0, 1e3])), generator


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(problem=problems())
def test_the_step_is_the_global_minimum(method, problem):
    metric, gradient, epsilon, beta, generator = problem
    matrix = metric.matrix()
    d = torch.linalg.eigvalsh(matrix)
    options = {"method": method, "tolerance": 1e-10, "max_products": 400, "generator": generator}
    if not matrix.any():
        with pytest.raises(InputError, match="is zero"):
            fip_step(metric, gradient, epsilon, beta=beta, **options)
        return
    if gradient.any():
        step = fip_step(metric, gradient, epsilon, beta=beta, **options)
    else:
        step = isofunctional_step(metric, epsilon, **options)
    expected, multiplier, hard = minimum_on_sphere(matrix, beta / 2 * gradient, epsilon)

    def value(theta):
        return float(theta @ matrix @ theta + beta * theta @ gradient)

    scale = float(d[-1] * epsilon**2 + beta * gradient.norm() * epsilon)
    assert step.converged
    assert float(step.theta.norm()) == pytest.approx(epsilon, rel=1e-9)
    assert abs(value(step.theta) - value(expected)) <= 1e-6 * scale
    # Stationary, with g + λ I positive semidefinite: sufficient for a global minimum, whatever the reference says.
    residual = (matrix @ step.theta + step.multiplier * step.theta + beta / 2 * gradient).norm()
    assert float(residual) * epsilon <= 1e-6 * scale
    assert step.multiplier >= -float(d[0]) - 1e-6 * float(d[-1])
    if not hard and multiplier + float(d[0]) > 1e-4 * float(d[-1]):
        assert float((step.theta - expected).norm()) <= 1e-6 * epsilon
        assert step.multiplier == pytest.approx(multiplier, rel=1e-6, abs=1e-6 * float(d[-1]))
    assert step.output_change == pytest.approx(float(step.theta @ matrix @ step.theta), abs=1e-6 * scale)
    assert step.objective_change == pytest.approx(float(step.theta @ gradient), rel=1e-6, abs=1e-300)
    assert step.residual == pytest.approx(float(residual), abs=1e-6 * scale / epsilon)


def spectrum(values, *, seed=0):
    """A metric with these eigenvalues, and its eigenvectors."""
    torch.manual_seed(seed)
    d = torch.tensor(values, dtype=torch.float64)
    u, _ = torch.linalg.qr(torch.randn(len(d), len(d), dtype=torch.float64))
    return DenseMetric((u * d.sqrt()).T.unsqueeze(0)), u


@pytest.mark.parametrize("method", METHODS)
def test_the_multiplier_of_each_regime(method):
    """Above 0 for short steps, negative where a regular g asks for less than the length, minus the bottom if hard."""
    metric, u = spectrum([1.0, 2.0, 4.0])
    gradient = u @ torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64)
    short, long = (fip_step(metric, gradient, epsilon, method=method) for epsilon in (0.1, 10.0))
    assert short.multiplier > 0 and not short.hard_case
    assert -1.0 < long.multiplier < 0 and not long.hard_case
    hard = fip_step(metric, gradient - u[:, 0] * 2.0, 10.0, method=method)
    assert hard.hard_case and hard.multiplier == pytest.approx(-1.0)
    assert float(u[:, 1] @ hard.theta) == pytest.approx(-1.0 / (2.0 - 1.0))


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_within_the_range_leaves_the_rest_of_the_length_to_the_null_space(method):
    metric, u = spectrum([0.0, 0.0, 0.0, 1.0, 3.0])
    gradient = 2 * u[:, 4]
    start = u[:, 1] + 5 * u[:, 4]
    step = fip_step(metric, gradient, 2.0, method=method, start=start)
    expected = -u[:, 4] / 3 + u[:, 1] * math.sqrt(4 - 1 / 9)
    torch.testing.assert_close(step.theta, expected, rtol=1e-7, atol=1e-7)
    assert step.multiplier == pytest.approx(0.0, abs=1e-9)
    assert step.hard_case


@pytest.mark.parametrize("method", METHODS)
def test_the_isofunctional_direction_is_the_start_within_the_null_space(method):
    metric, u = spectrum([0.0, 0.0, 0.0, 0.5, 3.0])
    start = torch.randn(5, dtype=torch.float64)
    step = isofunctional_step(metric, 0.1, method=method, start=start, tolerance=1e-10)
    within = u[:, :3] @ (u[:, :3].T @ start)
    torch.testing.assert_close(step.theta, 0.1 * within / within.norm(), rtol=1e-6, atol=1e-9)
    assert step.converged and step.hard_case
    assert abs(step.output_change) < 1e-12
    again = [isofunctional_step(metric, 0.1, method=method, generator=torch.Generator().manual_seed(7)) for _ in "ab"]
    assert torch.equal(again[0].theta, again[1].theta), "the random direction is the generator's"


@pytest.mark.parametrize("method", METHODS)
def test_the_isofunctional_direction_of_a_regular_metric_is_its_smallest_eigenvector(method):
    metric, u = spectrum([0.1, 0.5, 3.0, 7.0])
    step = isofunctional_step(metric, 2.0, method=method, tolerance=1e-10)
    assert abs(float(step.theta @ u[:, 0])) == pytest.approx(2.0)
    assert step.output_change == pytest.approx(0.4)


@pytest.mark.parametrize("method", METHODS)
def test_a_walk_goes_back_along_the_stiff_and_on_along_the_flat(method):
    """What the gradient asks of directions below the stated flatness is ignored: they follow the start."""
    metric, u = spectrum([1e-9, 2e-9, 5e-9, 1.0, 3.0])
    gradient = u @ torch.tensor([1e-6, 1e-6, 1e-6, 0.0, 0.6], dtype=torch.float64)
    start = u @ torch.tensor([0.0, 3.0, 4.0, 9.0, 9.0], dtype=torch.float64)
    walk = fip_step(metric, gradient, 2.0, method=method, start=start, flatness=1e-6)
    on = (4 - 0.01) ** 0.5
    expected = u @ torch.tensor([0.0, 0.6 * on, 0.8 * on, 0.0, -0.1], dtype=torch.float64)
    torch.testing.assert_close(walk.theta, expected, rtol=1e-5, atol=1e-5)
    exact = fip_step(metric, gradient, 2.0, method=method, start=start)
    assert float(u[:, 0] @ exact.theta) < -0.5


@pytest.mark.parametrize("method", METHODS)
def test_where_no_output_depends_on_the_gradients_direction_it_is_steepest_descent(method):
    """Products that are zero do not make a metric zero: only those with a random vector do."""
    jacobian = torch.zeros(2, 2, 5, dtype=torch.float64)
    jacobian[..., 4] = 1.0
    metric = DenseMetric(jacobian)
    gradient = torch.tensor([3.0, 0.0, -4.0, 0.0, 0.0], dtype=torch.float64)
    step = fip_step(metric, gradient, 0.5, method=method)
    torch.testing.assert_close(step.theta, -0.1 * gradient)
    assert step.converged and step.multiplier == pytest.approx(5.0) and step.output_change == 0.0
    start = torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    still = isofunctional_step(metric, 0.5, method=method, start=start)
    torch.testing.assert_close(still.theta, start / 4)


def test_a_dual_form_larger_than_memory_is_refused_with_the_number():
    metric = DenseMetric(torch.randn(50, 2, 1000, dtype=torch.float64))
    gradient = torch.ones(1000, dtype=torch.float64)
    # Room for 30 anchors of 2 vectors, and for their basis.
    metric.memory_limit_gb = 60 * 2 * 8000 / 2**30
    message = r"50 rows with 2 outputs takes 0.00149 GiB, above memory_limit_gb=0.000894; use at most 30 rows"
    for call in (
        lambda: fip_step(metric, gradient, 1.0, method="dual"),
        lambda: isofunctional_step(metric, 1.0, method="dual"),
        lambda: drift_correction(metric, torch.ones(50, 2), method="dual"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert fip_step(metric, gradient, 1.0).converged
    assert drift_correction(metric, torch.ones(50, 2)).after >= 0


def test_few_products_give_a_step_of_the_right_length_that_is_not_called_converged():
    torch.manual_seed(0)
    metric = DenseMetric(torch.randn(20, 3, 200, dtype=torch.float64))
    gradient = torch.randn(200, dtype=torch.float64)
    values, steps = [], []
    for products in (1, 2, 4, 100):
        metric.products = 0
        step = fip_step(metric, gradient, 0.3, max_products=products)
        assert metric.products == step.products <= products
        assert float(step.theta.norm()) == pytest.approx(0.3)
        assert step.residual == pytest.approx(
            float((metric @ step.theta + step.multiplier * step.theta + gradient / 2).norm()), abs=1e-9
        )
        values.append(step.output_change + step.objective_change)
        steps.append(step)
    assert [step.converged for step in steps] == [False, False, False, True]
    assert values == sorted(values, reverse=True), "more products never make it worse"


def test_a_long_step_of_few_products_goes_where_the_outputs_are_flat():
    """A gradient in the range of g, as that of a drift: its Krylov space alone holds nothing but stiff directions."""
    torch.manual_seed(0)
    metric = DenseMetric(torch.randn(20, 3, 400, dtype=torch.float64))
    gradient = metric.vjp(torch.randn(20, 3, dtype=torch.float64)) / 1e3
    step = fip_step(metric, gradient, 1.0, max_products=12)
    stiffest = float(torch.linalg.eigvalsh(metric.matrix())[-1])
    assert step.output_change < 1e-3 * stiffest


def test_float32_reaches_what_float32_can():
    torch.manual_seed(0)
    metric = DenseMetric(torch.randn(5, 2, 40))
    gradient = torch.randn(40)
    exact = DenseMetric(metric.jacobian.double())
    expected = fip_step(exact, gradient.double(), 0.5, tolerance=1e-12).theta
    for method in METHODS:
        step = fip_step(metric, gradient, 0.5, method=method, tolerance=1e-5)
        assert step.converged and step.theta.dtype == torch.float32
        torch.testing.assert_close(step.theta.double(), expected, rtol=1e-4, atol=1e-5)


# ---- The drift ---------------------------------------------------------------------------------------------------


def drifted(seed=0, weights=None):
    torch.manual_seed(seed)
    metric = DenseMetric(torch.randn(6, 2, 30, dtype=torch.float64), weights)
    return metric, torch.randn(6, 2, dtype=torch.float64)


@pytest.mark.parametrize("method", ["cg", "dual"])
def test_the_correction_undoes_the_drift_with_the_shortest_step(method):
    metric, drift = drifted()
    found = drift_correction(metric, drift, method=method, tolerance=1e-12, max_products=60)
    rows = metric.jacobian.flatten(0, 1)
    torch.testing.assert_close(found.theta, -torch.linalg.pinv(rows) @ drift.flatten(), rtol=1e-8, atol=1e-8)
    assert found.before == pytest.approx(float(drift.square().sum() / 6))
    assert found.after < 1e-12
    assert found.residual < 1e-9


@pytest.mark.parametrize("method", ["cg", "dual"])
def test_a_damped_correction_solves_the_damped_equation(method):
    """With a weighting too; and what it says will be left is what is left."""
    weights = torch.diag_embed(torch.rand(6, 2, dtype=torch.float64))
    metric, drift = drifted(weights=weights)
    found = drift_correction(metric, drift, damping=0.3, method=method, tolerance=1e-12, max_products=60)
    right = drift_gradient(metric, drift) / 2
    matrix = metric.matrix() + 0.3 * torch.eye(30, dtype=torch.float64)
    torch.testing.assert_close(found.theta, -torch.linalg.solve(matrix, right), rtol=1e-8, atol=1e-8)
    left = drift + metric.jvp(found.theta)
    assert found.after == pytest.approx(float((left * metric.weighting(left)).sum() / 6))


def test_few_products_undo_most_of_a_drift():
    metric, drift = drifted()
    metric.products = 0
    found = drift_correction(metric, drift, max_products=5)
    assert metric.products == found.products == 5
    assert found.after < 0.2 * found.before


def test_the_drift_gradient_is_that_of_the_functional_distance():
    metric, reference = drifted()
    w = torch.zeros(30, dtype=torch.float64, requires_grad=True)
    outputs = metric.jvp(w) + 1.0
    (expected,) = torch.autograd.grad((outputs - reference).square().sum(-1).mean(), w)
    torch.testing.assert_close(drift_gradient(metric, 1.0 - reference), expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_with_a_drift_aims_back(method):
    """It minimises |r + J theta|^2 / N + beta theta^T grad L on the sphere."""
    metric, drift = drifted()
    gradient = torch.randn(30, dtype=torch.float64)
    step = fip_step(metric, gradient, 0.2, beta=0.5, drift=drift, method=method, tolerance=1e-10)

    def value(theta):
        return float((drift + metric.jvp(theta)).square().sum() / 6 + 0.5 * theta @ gradient)

    best = value(step.theta)
    torch.manual_seed(1)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(20):
            other = step.theta + size * torch.randn(30, dtype=torch.float64)
            assert value(other * (0.2 / other.norm())) >= best - 1e-12


def test_no_drift_needs_no_correction():
    metric, drift = drifted()
    found = drift_correction(metric, torch.zeros_like(drift))
    assert not found.theta.any() and found.products == 0 and found.after == 0.0


class Broken(DenseMetric):
    def __matmul__(self, vectors):
        return super().__matmul__(vectors) * math.nan

    def vjp(self, changes):
        return super().vjp(changes) * math.nan


METRIC = DenseMetric(torch.ones(1, 1, 3, dtype=torch.float64))
ZERO = DenseMetric(torch.zeros(2, 2, 3, dtype=torch.float64))
BROKEN = Broken(torch.ones(1, 1, 3, dtype=torch.float64))
ONES = torch.ones(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fip_step(METRIC, ONES, 0.0), "epsilon=0.0 has to be above 0"),
        (lambda: fip_step(METRIC, ONES, math.nan), "epsilon=nan"),
        (lambda: isofunctional_step(METRIC, -1.0), "epsilon=-1.0"),
        (lambda: fip_step(METRIC, ONES, 1.0, beta=-1.0), "beta=-1.0"),
        (lambda: fip_step(METRIC, ONES[:2], 1.0), r"gradient of shape \[2\].*\[3\]"),
        (lambda: fip_step(METRIC, ONES * math.inf, 1.0), "gradient holds NaN or infinite"),
        (lambda: fip_step(METRIC, 0 * ONES, 1.0), "gradient is zero .*isofunctional_step"),
        (lambda: fip_step(METRIC, ONES, 1.0, beta=0.0), "gradient is zero .*beta=0.0"),
        (lambda: fip_step(ZERO, ONES, 1.0), "g is zero: no output depends"),
        (lambda: fip_step(ZERO, ONES, 1.0, method="dual"), "g is zero"),
        (lambda: isofunctional_step(ZERO, 1.0), "g is zero"),
        (lambda: isofunctional_step(ZERO, 1.0, method="dual"), "g is zero"),
        (lambda: fip_step(METRIC, ONES, 1.0, start=0 * ONES), "start of shape"),
        (lambda: fip_step(METRIC, ONES, 1.0, method="newton"), "method='newton'.*lanczos, dual"),
        (lambda: fip_step(METRIC, ONES, 1.0, max_products=0), "max_products=0"),
        (lambda: fip_step(METRIC, ONES, 1.0, flatness=1.0), "flatness=1.0"),
        (lambda: fip_step(METRIC, ONES, 1.0, drift=ONES), r"drift of shape \[3\]"),
        (lambda: fip_step(BROKEN, ONES, 1.0), "g: a product is not finite"),
        (lambda: fip_step(BROKEN, ONES, 1.0, method="dual"), "g: a product is not finite"),
        (lambda: drift_correction(METRIC, ONES), r"drift of shape \[3\]"),
        (lambda: drift_correction(METRIC, torch.full((1, 1), math.nan)), "finite"),
        (lambda: drift_correction(METRIC, torch.ones(1, 1), damping=-1.0), "damping=-1.0"),
        (lambda: drift_correction(METRIC, torch.ones(1, 1), method="lu"), "method='lu'.*cg, dual"),
        (lambda: drift_correction(BROKEN, torch.ones(1, 1)), "not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
