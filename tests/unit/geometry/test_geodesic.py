"""Paths on surfaces whose geodesics are known, and on a small network."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from hf_fip import InputError
from hf_fip.geometry.geodesic import (
    covariant_acceleration,
    length_of_outputs,
    length_of_points,
    path_length,
    refine_path,
)
from hf_fip.geometry.surfaces import MetricSurface, OutputSurface, network_surface
from tests.testing_utils import classifier


def plane(w):
    """Polar coordinates (r, φ): straight lines are geodesics, though not straight in the coordinates."""
    return torch.stack([w[0] * torch.cos(w[1]), w[0] * torch.sin(w[1])])


def sphere(w):
    """Colatitude and longitude on the unit sphere: great circles are geodesics."""
    return torch.stack([w[0].sin() * w[1].cos(), w[0].sin() * w[1].sin(), w[0].cos()])


def sphere_metric(w):
    return torch.diag(torch.stack([torch.ones_like(w[0]), w[0].sin().square()]))


def half_plane(w):
    """(x, y) with y > 0: half circles around points of the x axis are geodesics."""
    return torch.eye(2, dtype=w.dtype) / w[1].square()


def line_in_polar(steps):
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    x, y = 1 + 0 * t, -1 + 2 * t
    return torch.stack([torch.hypot(x, y), torch.atan2(y, x)], dim=1)


def great_circle(steps):
    """A quarter of the great circle that rises at 45 degrees to the equator, at constant speed."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64) * math.pi / 2
    x, y, z = t.cos(), t.sin() * math.sqrt(0.5), t.sin() * math.sqrt(0.5)
    return torch.stack([torch.acos(z), torch.atan2(y, x)], dim=1)


def half_circle(steps):
    """An arc of the unit circle, at constant hyperbolic speed."""
    t = torch.linspace(-1, 1, steps + 1, dtype=torch.float64)
    return torch.stack([t.tanh(), 1 / t.cosh()], dim=1)


SURFACES = {
    "plane": (OutputSurface(plane), line_in_polar, 2.0),
    "sphere": (OutputSurface(sphere), great_circle, math.pi / 2),
    "sphere-by-its-metric": (MetricSurface(sphere_metric), great_circle, math.pi / 2),
    "half-plane": (MetricSurface(half_plane), half_circle, 2.0),
}


@pytest.fixture(params=SURFACES)
def case(request):
    return SURFACES[request.param]


def test_length_and_energy_of_a_geodesic(case):
    surface, geodesic, length = case
    for infinitesimal in (False, True):
        found = length_of_points(geodesic(64), surface, infinitesimal=infinitesimal)
        assert found.length == pytest.approx(length, rel=1e-3)
        assert found.energy == pytest.approx(length**2, rel=2e-3)
        assert len(found.segments) == 64


def test_a_geodesic_has_no_covariant_acceleration(case):
    """To the order of the differences: four times less with steps half as long."""
    surface, geodesic, _ = case
    coarse, fine = (covariant_acceleration(geodesic(steps), surface).norm(dim=1).max() for steps in (16, 32))
    assert fine < 0.05
    assert fine < 0.3 * coarse
    plain = geodesic(32).diff(n=2, dim=0).norm(dim=1).max() * 32**2
    assert plain > 0.5, "the coordinates hide that it is straight, which makes the test one"


def test_acceleration_of_a_circle_of_latitude():
    """∇_γ' γ' = -ω² sin θ cos θ ∂_θ, whichever way the metric is given."""
    steps, omega, theta = 8, 2.0, 0.7
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    path = torch.stack([torch.full_like(t, theta), omega * t], dim=1)
    expected = torch.tensor([-(omega**2) * math.sin(theta) * math.cos(theta), 0.0], dtype=torch.float64)
    for surface in (OutputSurface(sphere), MetricSurface(sphere_metric)):
        found = covariant_acceleration(path, surface)
        torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-6, atol=1e-6)


def test_acceleration_of_a_horizontal_line_in_the_half_plane():
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    path = torch.stack([3 * t, torch.full_like(t, 2.0)], dim=1)
    found = covariant_acceleration(path, MetricSurface(half_plane))
    expected = torch.tensor([0.0, 9 / 2], dtype=torch.float64)
    torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-8, atol=1e-8)


def test_refinement_finds_the_geodesic(case):
    """From the straight line in the coordinates, ends fixed; never to more energy."""
    surface, geodesic, length = case
    goal = geodesic(16)
    weights = torch.linspace(0, 1, 17, dtype=torch.float64).unsqueeze(1)
    start = goal[0] * (1 - weights) + goal[-1] * weights
    refined = refine_path(start, surface, iterations=200)
    assert refined.after < refined.before
    assert torch.equal(refined.points[0], start[0]) and torch.equal(refined.points[-1], start[-1])
    assert (refined.points - goal).norm(dim=1).max() < 5e-3
    assert (start - goal).norm(dim=1).max() > 0.05
    found = length_of_points(refined.points, surface)
    assert found.length == pytest.approx(length, rel=5e-3)
    assert found.energy == pytest.approx(refined.after)


def test_a_geodesic_cannot_be_refined():
    path = great_circle(8)
    refined = refine_path(path, OutputSurface(sphere))
    torch.testing.assert_close(refined.points, path, rtol=1e-6, atol=1e-6)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x):
        return {"logits": self.layers(x)}


def surface_inputs():
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return network_surface(Small().double(), {"x": surface_inputs()})


def test_a_networks_connection_is_that_of_its_outputs(network):
    """Γ as defined, `g^+ J^T f''(v, v) / N`, with J and f'' formed explicitly."""
    surface, point = network
    torch.manual_seed(1)
    velocity = torch.randn_like(point)
    x = surface_inputs()

    def outputs(w):
        first, second = w[:12].view(4, 3), w[16:24].view(2, 4)
        return torch.tanh(x @ first.T + w[12:16]) @ second.T + w[24:]

    torch.testing.assert_close(outputs(point), surface.outputs(point))
    jacobian = torch.func.jacrev(outputs)(point).flatten(0, 1)
    hessian = torch.func.hessian(outputs)(point).flatten(0, 1)
    curvature = torch.einsum("opq,p,q->o", hessian, velocity, velocity)
    expected = torch.linalg.pinv(jacobian) @ curvature
    torch.testing.assert_close(surface.connection(point, velocity), expected, rtol=1e-6, atol=1e-6)


def test_refining_a_networks_path_lowers_velocity_and_acceleration(network):
    surface, point = network
    torch.manual_seed(2)
    path = torch.stack([point + 0.5 * t * torch.ones_like(point) for t in torch.linspace(0, 1, 7)]).double()
    path[1:-1] += 0.2 * torch.randn_like(path[1:-1])
    plain = refine_path(path, surface, iterations=60)
    smooth = refine_path(path, surface, smoothness=1e-3, iterations=60)
    energies = [length_of_points(p, surface).energy for p in (path, plain.points, smooth.points)]
    bends = [p.diff(n=2, dim=0).square().sum() for p in (path, plain.points, smooth.points)]
    assert energies[1] < 0.5 * energies[0] and energies[2] < 0.5 * energies[0]
    assert bends[2] < 0.1 * bends[1]


def test_a_path_takes_the_outputs_at_each_point_once():
    taken = []

    def outputs(w):
        taken.append(w)
        return sphere(w)

    path, surface = great_circle(8), OutputSurface(outputs)
    found = length_of_points(path, surface)
    assert len(taken) == 9
    assert found.segments == pytest.approx([float(surface.chord(a, b).sqrt()) for a, b in pairwise(path)])


def test_lengths_from_outputs_equal_those_from_points(network):
    surface, point = network
    path = torch.stack([point, point + 0.1, point - 0.1])
    outputs = torch.stack([surface.outputs(w) for w in path])
    assert length_of_outputs(outputs).segments == pytest.approx(length_of_points(path, surface).segments)
    expected = (outputs[1] - outputs[0]).square().sum(-1).mean().sqrt()
    assert length_of_outputs(outputs).segments[0] == pytest.approx(float(expected))


class Recorded:
    """A node as far as a path is concerned: it loads its model."""

    def __init__(self, model):
        self.id, self.model = "node", model

    def load_model(self):
        return self.model


def test_length_of_a_path_of_nodes():
    inputs = {"input_ids": torch.arange(3, 15).view(3, 4), "attention_mask": torch.ones(3, 4, dtype=torch.long)}
    models = [classifier(seed=seed) for seed in (0, 1, 0)]
    found = path_length([Recorded(model.train()) for model in models], inputs)
    with torch.no_grad():
        outputs = [model.eval()(**inputs).logits for model in models]
    expected = (outputs[1] - outputs[0]).square().sum(-1).mean().sqrt().item()
    assert found.segments == pytest.approx((expected, expected))
    assert found.length == pytest.approx(2 * expected)
    batches = ({name: values[part] for name, values in inputs.items()} for part in (slice(0, 2), slice(2, 3)))
    assert path_length([Recorded(model) for model in models], batches).segments == pytest.approx(found.segments)


def test_a_grown_head_ends_the_path():
    inputs = {"input_ids": torch.tensor([[5, 6]])}
    with pytest.raises(InputError, match=r"nodes: the outputs of 'node' have the shape \[1, 3\].*\[1, 2\]"):
        path_length([Recorded(classifier()), Recorded(classifier(num_labels=3))], inputs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: path_length([], {}), "nodes: 0 given"),
        (lambda: length_of_outputs(torch.zeros(1, 2, 3)), r"outputs of shape \[1, 2, 3\]"),
        (lambda: length_of_outputs(torch.full((2, 2, 3), math.nan)), "finite"),
        (lambda: refine_path(torch.zeros(2, 2), OutputSurface(plane)), "3 points or more"),
        (lambda: refine_path(torch.zeros(3, 2), OutputSurface(plane), smoothness=-1), "smoothness=-1"),
        (lambda: covariant_acceleration(torch.zeros(3), OutputSurface(plane)), r"points of shape \[3\]"),
        (lambda: network_surface(classifier().requires_grad_(False), {}), "none of its weights is trainable"),
    ],
    ids=["no-nodes", "one-point", "nan", "no-inner-point", "smoothness", "flat-points", "nothing-trainable"],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
