"""Repulsion: its gradient is that of its loss, its angles are spread evenly, and it says how far the weights went."""

import math

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from hf_fip import InputError
from hf_fip.objectives import Displacement, Repulsion
from hf_fip.objectives.displacement import layer_weights
from hf_fip.objectives.repulsion import FIRST_STEP
from hf_fip.terms import apply_gradient_terms, apply_weight_terms
from tests.testing_utils import BERT, VOCABULARY, classifier


def network(seed: int = 0, dtype=torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4)).to(dtype)


def wandered(repulsion: Repulsion, model: nn.Module, step: int, *, seed: int = 1, length: float = 0.3) -> None:
    """The term after `step` optimizer steps, at weights somewhere near those it began with."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += length * torch.randn_like(p)
    repulsion._step = step


def gradients_of(term: Repulsion, model: nn.Module) -> dict[str, torch.Tensor]:
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    apply_gradient_terms([term], list(model.parameters()))
    return {name: p.grad - 1 for name, p in model.named_parameters()}


def expected_loss(term: Repulsion, weights: list[torch.Tensor], goals: list[float]) -> torch.Tensor:
    """L(w) as the docstring of Repulsion states it."""
    total = 0.0
    for reference, goal in zip(term.references, goals, strict=True):
        for w, r in zip(weights, reference.values(), strict=True):
            w, r = w.reshape(-1), r.to(w).reshape(-1)
            if term.kind == "cosine":
                missing = torch.nn.functional.cosine_similarity(w, r, dim=0) - goal
                total = total + 0.5 * missing.clamp(min=0).square()
            else:
                total = total - (w - r).norm() / r.norm()
    return term.strength * total / len(weights)


@pytest.mark.parametrize(
    ("kind", "options", "dtype"),
    [
        ("cosine", {}, torch.float32),
        ("cosine", {"away_from": "points"}, torch.float32),
        ("distance", {}, torch.float32),
        ("distance", {"away_from": "points"}, torch.float32),
        ("cosine", {}, torch.bfloat16),
    ],
    ids=["cosine", "cosine from points", "distance", "distance from points", "bfloat16"],
)
def test_the_gradient_is_that_of_the_stated_loss(kind, options, dtype):
    model = network(dtype=dtype)
    term = Repulsion(kind, points=[10, 20], strength=0.7, ramp=1.0, **options)
    term.begin_segment(model)
    wandered(term, model, 10)
    term.begin_segment(model)
    wandered(term, model, 14, seed=2)
    found = gradients_of(term, model)
    weights = [p.detach().double().requires_grad_() for p in term.layers.values()]
    # 15 steps, of which 5 of 10 in the second segment.
    goals = [math.cos(math.radians(67.5))] if not options else [0.0, math.cos(math.radians(45))]
    loss = expected_loss(term, weights, goals if kind == "cosine" else [0.0] * len(term.references))
    assert loss != 0
    for name, gradient in zip(term.layers, torch.autograd.grad(loss, weights), strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(found[name].double(), gradient, rtol=tolerance, atol=tolerance)
    assert set(term.layers) == {"0.weight", "3.weight"}
    assert all(not g.any() for name, g in found.items() if name not in term.layers), "biases and norms are not pushed"


def test_growth_is_no_way_out_of_an_angle_and_nothing_is_pushed_beyond_it():
    model = network()
    term = Repulsion(points=[10])
    term.begin_segment(model)
    wandered(term, model, 8)
    found = gradients_of(term, model)
    for name, weight in term.layers.items():
        assert found[name].norm() > 0
        assert abs((found[name] * weight.detach()).sum()) < 1e-6 * found[name].norm() * weight.norm()
    with torch.no_grad():
        for weight in term.layers.values():
            weight.neg_()
    assert all(not g.any() for g in gradients_of(term, model).values())


def test_the_angles_of_the_points_are_evenly_spread():
    term = Repulsion(points=[10, 20, 30], angle=60.0, ramp=0.5)
    asked = []
    for step in range(30):
        term._step = step
        asked.append(math.degrees(math.acos(term._goal(0))))
    assert [asked[9], asked[19], asked[29]] == pytest.approx([20, 40, 60])
    assert asked == sorted(asked)
    assert asked[5:10] == pytest.approx([20] * 5), "held before a point, where the function is restored"


def test_a_path_leaves_its_start_in_a_direction_of_its_seed():
    """Where the weights are those it is repelled from, the repulsion is zero: without a first step nothing moved."""
    moved = []
    for seed in (0, 0, 1):
        model = network()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        term = Repulsion(points=[10], seed=seed)
        term.begin_segment(model)
        assert all(not g.any() or g.norm() < 1e-6 for g in gradients_of(term, model).values())
        apply_weight_terms([term], list(model.parameters()), 1)
        steps = {name: p.detach() - before[name] for name, p in model.named_parameters()}
        for name in term.layers:
            assert steps[name].norm() == pytest.approx(FIRST_STEP * before[name].norm().item(), rel=1e-3)
        after = model[0].weight.detach().clone()
        apply_weight_terms([term], list(model.parameters()), 2)
        assert torch.equal(model[0].weight, after), "only once"
        moved.append(steps["0.weight"])
    assert torch.equal(moved[0], moved[1]) and not torch.equal(moved[0], moved[2])


def test_the_displacement_is_told_of_all_weights_and_of_each_layer():
    model = network()
    start = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    term = Displacement(include=["2"], exclude=["0"])
    term.begin_segment(model)
    wandered(Repulsion(points=[1]), model, 0)
    record = term.report()["displacement"]
    now = {name: p.detach().double() for name, p in model.named_parameters()}

    def check(found, names):
        w = torch.cat([now[name].reshape(-1) for name in names])
        w0 = torch.cat([start[name].reshape(-1) for name in names])
        assert found["distance"] == pytest.approx(((w - w0).norm() / w0.norm()).item(), rel=1e-5)
        assert found["norm_ratio"] == pytest.approx((w.norm() / w0.norm()).item(), rel=1e-5)
        assert found["cosine"] == pytest.approx((w @ w0 / w.norm() / w0.norm()).item(), rel=1e-5)

    check(record, list(now))
    assert list(record["layers"]) == ["2.weight", "3.weight"], "2.bias is zero and points nowhere"
    for name, found in record["layers"].items():
        check(found, [name])
    assert term.logs() == {key: record[key] for key in ("cosine", "norm_ratio")}


def test_embeddings_and_vocabulary_decoders_are_left_alone_unless_named():
    bert = BertForMaskedLM(BertConfig(**BERT))
    found = layer_weights(bert)
    assert found and all(w.ndim == 2 for w in found.values())
    assert not any("embeddings" in name or "decoder" in name for name in found)
    gpt = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=8, tie_word_embeddings=False)
    )
    assert not {"lm_head.weight", "transformer.wte.weight", "transformer.wpe.weight"} & layer_weights(gpt).keys()
    assert "lm_head.weight" in layer_weights(gpt, include=["lm_head"])
    assert "classifier.weight" in layer_weights(classifier()), "a head of labels is a layer like any other"
    frozen = classifier()
    frozen.bert.requires_grad_(False)
    assert set(layer_weights(frozen)) == {"classifier.weight"}


def test_points_survive_a_checkpoint():
    model = network()
    term = Repulsion(points=[5, 10], away_from="points")
    term.begin_segment(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    wandered(term, model, 5)
    term.begin_segment(model)
    wandered(term, model, 7, seed=3)
    expected = gradients_of(term, model)
    other = network(seed=5)
    other.load_state_dict({**other.state_dict(), **start})
    resumed = Repulsion(points=[5, 10], away_from="points")
    state = term.state_dict()
    # A checkpoint promises no order of its tensors.
    resumed.load_state_dict({key: state[key] for key in sorted(state, reverse=True)})
    resumed.begin_segment(other)
    other.load_state_dict(model.state_dict())
    for name, gradient in gradients_of(resumed, other).items():
        assert torch.equal(gradient, expected[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "magnetic"}, "repulsion='magnetic' is unknown; choose one of: cosine, distance"),
        ({"away_from": "home"}, "away_from='home' is unknown"),
        ({"strength": 0}, "strength=0 .*above 0"),
        ({"strength": math.inf}, "strength=inf .*finite"),
        ({"strength": math.nan}, "strength=nan"),
        ({"angle": 0}, "angle=0 .*between 0 and 180"),
        ({"angle": 200.0}, "angle=200.0"),
        ({"ramp": 1.5}, "ramp=1.5"),
        ({"schedule": "sudden"}, "schedule='sudden'"),
        ({"include": ["encoder"]}, "include='encoder' fits none"),
        ({"exclude": ["*"]}, "no layer of Sequential is left"),
    ],
)
def test_values_that_cannot_work_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        Repulsion(**{"points": [4], **options}).begin_segment(network())
    assert "\n" not in str(error.value)
