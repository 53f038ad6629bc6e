import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.func import functional_call, jacrev

from hf_fip.errors import InputError
from hf_fip.functional import Distance, functional_distance, get_distance, known_distances, register_distance


BUILT_IN = ["l2", "kl", "bhattacharyya", "hellinger", "fdr"]
OF_PROBABILITIES = [name for name in BUILT_IN if name != "l2"]

# Widths around the vector lengths of CPU kernels, whose tails take another code path.
SHAPES = [(5, 2), (3, 10), (7, 17), (2, 1031), (3, 4, 33)]


def logits(*shape, seed=0, spread=3.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def value_and_gradient(name, outputs, reference, mask=None, **parameters):
    outputs = outputs.detach().clone().requires_grad_()
    distances = functional_distance(name, outputs, reference, mask, **parameters)
    (gradient,) = torch.autograd.grad(distances.sum(), outputs)
    return distances.detach(), gradient


def assert_exactly_zero(distances, gradient):
    assert torch.equal(distances, torch.zeros_like(distances))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", BUILT_IN)
def test_zero_with_zero_gradient_where_equal(name, shape, dtype):
    for spread in (0.0, 1.0, 30.0):
        reference = logits(*shape, spread=spread, dtype=dtype)
        assert_exactly_zero(*value_and_gradient(name, reference, reference))


@pytest.mark.parametrize("name", BUILT_IN)
def test_zero_where_equal_whatever_the_memory_layout(name):
    reference = logits(6, 33)
    joint = torch.cat([logits(5, 33, seed=1), reference])[5:]
    transposed = reference.t().contiguous().t()
    for outputs in (joint, transposed):
        assert_exactly_zero(*value_and_gradient(name, outputs, reference))


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3)])
def test_regression_l2_is_the_squared_difference(shape):
    reference, outputs = logits(*shape), logits(*shape, seed=1)
    expected = (outputs - reference).square().reshape(4, -1).sum(1)
    distances, gradient = value_and_gradient("l2", outputs, reference)
    torch.testing.assert_close(distances, expected)
    torch.testing.assert_close(gradient, 2 * (outputs - reference))
    assert_exactly_zero(*value_and_gradient("l2", reference, reference))


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("name", OF_PROBABILITIES)
def test_probabilities_of_a_single_output_are_refused(name, shape):
    with pytest.raises(InputError, match="single output"):
        functional_distance(name, logits(*shape), logits(*shape))


def explicit_distance(name, outputs, reference, temperature=2.0):
    p, q = reference.double().softmax(-1), outputs.double().softmax(-1)
    if name == "kl":
        p, q = (reference.double() / temperature).softmax(-1), (outputs.double() / temperature).softmax(-1)
    return {
        "l2": lambda: (outputs.double() - reference.double()).square().sum(-1),
        "kl": lambda: temperature**2 * (p * (p / q).log()).sum(-1),
        "bhattacharyya": lambda: -(p * q).sqrt().sum(-1).log(),
        "hellinger": lambda: 1 - (p * q).sqrt().sum(-1),
        "fdr": lambda: (p - q).square().sum(-1).sqrt(),
    }[name]()


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("name", BUILT_IN)
def test_values_are_those_of_the_definition(name, spread):
    outputs, reference = logits(50, 7, spread=spread), logits(50, 7, seed=1, spread=spread)
    expected = explicit_distance(name, outputs, reference).float()
    torch.testing.assert_close(functional_distance(name, outputs, reference), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_takes_a_temperature(temperature):
    outputs, reference = logits(50, 7), logits(50, 7, seed=1)
    expected = explicit_distance("kl", outputs, reference, temperature).float()
    assert get_distance("kl").parameters == {"temperature": 2.0}
    assert get_distance("kl", temperature=temperature).parameters == {"temperature": temperature}
    torch.testing.assert_close(
        functional_distance("kl", outputs, reference, temperature=temperature), expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(InputError, match="temperature"):
        functional_distance("kl", logits(2, 3), logits(2, 3), temperature=temperature)


@pytest.mark.parametrize("name", BUILT_IN)
def test_near_the_reference_values_and_gradients_keep_their_accuracy(name):
    # Where training under a tight budget lives; the definitions as written lose their digits in float32 here.
    reference = logits(20, 7)
    outputs = reference + logits(20, 7, seed=1, spread=3e-3)
    distances, gradient = value_and_gradient(name, outputs, reference)
    exact, exact_gradient = value_and_gradient(name, outputs.double(), reference.double())
    torch.testing.assert_close(distances.double(), exact, rtol=2e-2, atol=5e-7 if name == "kl" else 1e-9)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=2e-2, atol=1e-3 * exact_gradient.abs().max())


@pytest.mark.parametrize("name", BUILT_IN)
def test_rounding_makes_no_distance_negative_and_stops_no_gradient(name):
    reference = logits(1000, 7, spread=1.0)
    outputs = reference + logits(1000, 7, seed=1, spread=1e-4)
    distances, gradient = value_and_gradient(name, outputs, reference)
    _, exact = value_and_gradient(name, outputs.double(), reference.double())
    assert (distances >= 0).all()
    assert ((gradient - exact).norm(dim=-1) < 0.1 * exact.norm(dim=-1)).all()


@pytest.mark.parametrize("name", ["l2", "bhattacharyya", "hellinger", "fdr"])
def test_symmetric_distances(name):
    a, b = logits(20, 7), logits(20, 7, seed=1)
    torch.testing.assert_close(functional_distance(name, a, b), functional_distance(name, b, a))


@pytest.mark.parametrize("name", OF_PROBABILITIES)
def test_a_shift_of_all_logits_changes_no_probability(name):
    reference = logits(20, 7)
    assert functional_distance(name, reference + 5.0, reference).max() < 1e-6


any_logits = arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(2, 9)),
    elements=st.one_of(st.floats(-1e4, 1e4, width=32), st.sampled_from([-1e4, 0.0, 1e4]), st.floats(-3, 3, width=32)),
)


@settings(max_examples=30, deadline=None)
@given(outputs=any_logits, data=st.data())
@pytest.mark.parametrize("name", BUILT_IN)
def test_finite_and_non_negative_for_logits_up_to_ten_thousand(name, outputs, data):
    width = data.draw(st.integers(2, outputs.shape[1]))
    elements = st.one_of(st.sampled_from([-1e4, 0.0, 1e4]), st.floats(-1e4, 1e4, width=32))
    reference = data.draw(arrays(np.float32, (outputs.shape[0], width), elements=elements))
    distances, gradient = value_and_gradient(name, torch.from_numpy(outputs), torch.from_numpy(reference))
    assert distances.isfinite().all() and (distances >= 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", OF_PROBABILITIES)
def test_opposite_certainties_are_finite(name):
    outputs, reference = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[-1e4, 1e4, 0.0]])
    distances, gradient = value_and_gradient(name, outputs, reference)
    assert distances.isfinite().all() and gradient.isfinite().all()
    expected = {"kl": 4e4, "bhattacharyya": 1e4 - math.log(3), "hellinger": 1.0, "fdr": math.sqrt(2)}[name]
    torch.testing.assert_close(distances, torch.tensor([expected]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", BUILT_IN)
def test_half_precision_outputs_are_compared_in_float32(name, dtype):
    outputs, reference = logits(20, 7, dtype=dtype), logits(20, 7, seed=1, dtype=dtype)
    distances, gradient = value_and_gradient(name, outputs, reference)
    assert distances.dtype == torch.float32 and gradient.dtype == dtype
    assert torch.equal(distances, functional_distance(name, outputs.float(), reference.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(distances, functional_distance(name, outputs, reference))


@pytest.mark.parametrize("name", BUILT_IN)
def test_float64_stays_float64(name):
    outputs, reference = logits(2, 3, dtype=torch.float64), logits(2, 3, seed=1)
    assert functional_distance(name, outputs, reference).dtype == torch.float64


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_reference_gets_no_gradient(name):
    outputs, reference = logits(2, 3).requires_grad_(), logits(2, 3, seed=1).requires_grad_()
    functional_distance(name, outputs, reference).sum().backward()
    assert reference.grad is None and outputs.grad is not None


@pytest.mark.parametrize("name", BUILT_IN)
def test_tokens_are_averaged_over_the_scored_positions_alone(name):
    outputs, reference = logits(3, 4, 6), logits(3, 4, 6, seed=1)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    outputs[0, 2], reference[1, 3] = math.nan, math.inf
    distances, gradient = value_and_gradient(name, outputs, reference, mask)
    positions = functional_distance(name, outputs[mask.bool()], reference[mask.bool()])
    torch.testing.assert_close(distances, torch.stack([positions[:3].mean(), torch.tensor(0.0), positions[3]]))
    assert torch.equal(gradient[~mask.bool()], torch.zeros(8, 6))
    assert gradient[mask.bool()].isfinite().all()


@pytest.mark.parametrize("name", BUILT_IN)
def test_all_positions_are_scored_without_a_mask(name):
    outputs, reference = logits(3, 4, 6), logits(3, 4, 6, seed=1)
    everywhere = functional_distance(name, outputs, reference, torch.ones(3, 4))
    torch.testing.assert_close(functional_distance(name, outputs, reference), everywhere)


@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 5)])
@pytest.mark.parametrize("name", OF_PROBABILITIES)
def test_grown_head_is_unchanged_where_new_classes_have_no_probability(name, shape):
    reference = logits(*shape)
    outputs = torch.cat([reference, torch.full((*shape[:-1], 3), -1e4)], dim=-1)
    assert_exactly_zero(*value_and_gradient(name, outputs, reference))


@pytest.mark.parametrize("name", OF_PROBABILITIES)
def test_grown_head_counts_the_probability_that_new_classes_take(name):
    reference, new = logits(40, 5), logits(40, 3, seed=1)
    outputs = torch.cat([reference, new], dim=-1)
    taken = outputs.double().softmax(-1)[:, 5:].sum(-1)
    temperature_two = (outputs.double() / 2).softmax(-1)[:, 5:].sum(-1)
    p = reference.double().softmax(-1)
    expected = {
        "kl": -4 * torch.log1p(-temperature_two),
        "bhattacharyya": -torch.log1p(-taken) / 2,
        "hellinger": 1 - torch.sqrt(1 - taken),
        "fdr": (
            (p * taken.unsqueeze(-1)).square().sum(-1) + outputs.double().softmax(-1)[:, 5:].square().sum(-1)
        ).sqrt(),
    }[name]
    distances, gradient = value_and_gradient(name, outputs, reference)
    torch.testing.assert_close(distances, expected.float(), rtol=1e-4, atol=1e-6)
    assert (gradient[:, 5:].sum(-1) > 0).all(), "descent must lower the new classes"


def test_grown_head_l2_holds_new_nodes_at_the_mean_old_output():
    reference = logits(6, 5)
    mean = reference.mean(dim=-1, keepdim=True)
    assert_exactly_zero(*value_and_gradient("l2", torch.cat([reference, mean, mean], dim=-1), reference))
    risen = torch.cat([reference, mean, mean + 3.0], dim=-1)
    torch.testing.assert_close(functional_distance("l2", risen, reference), torch.full((6,), 9.0))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_head_that_shrank_is_refused(name):
    with pytest.raises(InputError, match="may grow, never shrink"):
        functional_distance(name, logits(2, 3), logits(2, 5))


@pytest.mark.parametrize(
    "outputs, reference, mask",
    [
        ((2, 3), (4, 3), None),
        ((2, 3), (2,), None),
        ((3,), (2,), None),
        ((2, 3, 4), (2, 4), None),
        ((2, 3, 4, 5), (2, 3, 4, 5), None),
        ((2, 3, 4), (2, 3, 4), (2, 4)),
        ((2, 3), (2, 3), (2,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(outputs, reference, mask):
    mask = None if mask is None else torch.ones(mask)
    with pytest.raises(InputError, match="shape"):
        functional_distance("l2", logits(*outputs), logits(*reference), mask)


def test_scale_of_l2_is_the_total_variance_over_the_examples():
    l2 = get_distance("l2")
    reference = logits(200, 3000) + 1000.0
    expected = torch.from_numpy(reference.double().numpy().var(axis=0)).sum().float()
    torch.testing.assert_close(l2.scale(reference), expected)
    torch.testing.assert_close(l2.scale(reference[:, 0]), reference[:, 0].double().var(correction=0).float())

    tokens, mask = logits(4, 6, 5), torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    torch.testing.assert_close(l2.scale(tokens, mask), l2.scale(tokens[mask]))
    assert l2.scale(tokens.bfloat16()).dtype == torch.float32
    assert l2.scale(reference[:1]) == 0.0


def test_share_of_variance_has_no_unit():
    # A budget of 2 % must mean the same for a model whose logits are ten times as large.
    l2, outputs, reference = get_distance("l2"), logits(50, 5), logits(50, 5, seed=1)
    share = l2.per_example(outputs, reference) / l2.scale(reference)
    torch.testing.assert_close(l2.per_example(10 * outputs, 10 * reference) / l2.scale(10 * reference), share)


@pytest.mark.parametrize("name", OF_PROBABILITIES)
def test_scale_of_probabilities_is_one(name):
    assert get_distance(name).scale(logits(5, 3)) == 1.0


def test_unknown_names_list_the_known_ones():
    with pytest.raises(InputError, match="functional_distance='l3' is unknown.*bhattacharyya.*l2"):
        get_distance("l3")
    with pytest.raises(InputError, match="no parameter 'temprature'.*temperature"):
        get_distance("kl", temprature=4.0)
    assert set(BUILT_IN) <= set(known_distances())


def test_users_register_their_own():
    def define():
        @register_distance("total_variation", unit="probability")
        def total_variation(outputs, reference, *, power=1.0):
            return ((outputs.softmax(-1) - reference.softmax(-1)).abs().sum(-1) / 2) ** power

    define()
    define()
    outputs, reference = logits(4, 6), logits(4, 5, seed=1)
    expected = (outputs.softmax(-1) - torch.nn.functional.pad(reference.softmax(-1), (0, 1))).abs().sum(-1) / 2
    torch.testing.assert_close(functional_distance("total_variation", outputs, reference), expected)
    torch.testing.assert_close(
        functional_distance("total_variation", outputs, reference, power=2.0), expected.square()
    )
    distance = get_distance("total_variation")
    assert isinstance(distance, Distance) and distance.unit == "probability"
    assert get_distance(distance, power=2.0).parameters == {"power": 2.0}


def test_a_built_in_name_cannot_be_taken():
    with pytest.raises(InputError, match="'kl' is already"):

        @register_distance("kl")
        def another(outputs, reference):
            return outputs.sum(-1)


class TestMetricTensor:
    """D(w + t v) / t^2 tends to v^T g v, with g assembled from the explicit Jacobian, in float64."""

    INPUTS = logits(3, 4, seed=5, spread=1.0, dtype=torch.float64)

    @staticmethod
    def network(nodes):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, nodes)).double()

    def flat(self, nodes):
        network = self.network(nodes)
        names, shapes = zip(*[(name, p.shape) for name, p in network.named_parameters()], strict=True)
        weights = torch.cat([p.detach().flatten() for p in network.parameters()])

        def f(w):
            parts = w.split([shape.numel() for shape in shapes])
            parameters = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
            return functional_call(network, parameters, (self.INPUTS,))

        return f, weights

    @staticmethod
    def output_metric(name, z, temperature):
        if name == "l2":
            return torch.eye(z.shape[-1], dtype=z.dtype).expand(len(z), -1, -1)
        p = (z / temperature).softmax(-1) if name == "kl" else z.softmax(-1)
        fisher = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
        # The Fisher information in z / T, times 1 / T^2 in z, which the distance's factor T^2 undoes.
        return {"kl": fisher / 2, "bhattacharyya": fisher / 8, "hellinger": fisher / 8, "fdr": fisher @ fisher}[name]

    @pytest.mark.parametrize(
        "name, temperature",
        [("l2", None), ("kl", 1.0), ("kl", 4.0), ("bhattacharyya", None), ("hellinger", None), ("fdr", None)],
    )
    def test_second_order_expansion(self, name, temperature):
        f, w = self.flat(nodes=5)
        z, jacobian = f(w), jacrev(f)(w)
        metric = torch.einsum("bik,bij,bjl->bkl", jacobian, self.output_metric(name, z, temperature), jacobian)
        distance = get_distance(name, **({"temperature": temperature} if temperature else {}))
        for seed in range(3):
            v = logits(len(w), seed=seed, spread=1.0, dtype=torch.float64)
            expected = torch.einsum("k,bkl,l->b", v, metric, v)
            errors = []
            for t in (1e-2, 1e-3, 1e-4):
                d = distance.per_example(f(w + t * v), z)
                d = d.square() if name == "fdr" else d
                errors.append(((d / t**2 - expected).abs() / expected).max().item())
            assert errors[-1] < 1e-2 and errors[-1] < errors[0] / 20, errors

    @pytest.mark.parametrize("name", ["l2", "kl", "bhattacharyya", "hellinger"])
    def test_hessian_at_the_reference_is_twice_the_metric(self, name):
        f, w = self.flat(nodes=5)
        z, jacobian = f(w), jacrev(f)(w)
        metric = torch.einsum("bik,bij,bjl->kl", jacobian, self.output_metric(name, z, 2.0), jacobian)
        hessian = torch.autograd.functional.hessian(lambda w: functional_distance(name, f(w), z).sum(), w)
        torch.testing.assert_close(hessian, 2 * metric, rtol=1e-9, atol=1e-12)
