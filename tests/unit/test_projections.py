"""Projections: idempotent, no longer than they have to be, exact in what they promise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertForMaskedLM, ViTConfig, ViTForImageClassification

from hf_fip import InputError
from hf_fip.models import FiveLayerCNNConfig, FiveLayerCNNForImageClassification
from hf_fip.objectives import KeepZeros, Pull, get_projection, register_projection
from hf_fip.objectives.codes import CODES, Masks
from hf_fip.objectives.projections import Projection, structured
from hf_fip.objectives.prunable import prunable_weights
from hf_fip.objectives.schedules import get_schedule, segments
from hf_fip.objectives.scores import get_score, metric_diagonal
from hf_fip.objectives.selection import kth_smallest, smallest
from hf_fip.storage import shrink
from hf_fip.terms import apply_gradient_terms
from tests.testing_utils import BERT, classifier


LEVELS = st.floats(0.0, 0.99)
SEEDS = st.integers(0, 2**16)


def some_weights(seed: int, *, ties: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "linear": torch.randn(8, 16, generator=generator),
        "convolution": torch.randn(12, 4, 2, 2, generator=generator),
        "small": torch.randn(4, 8, generator=generator) / 10,
    }
    return {name: weight.mul(3).round() if ties else weight for name, weight in weights.items()}


def zeros_in(weights) -> int:
    return sum(int((weight == 0).sum()) for weight in weights.values())


def size_of(weights) -> int:
    return sum(weight.numel() for weight in weights.values())


def distance(first, second) -> float:
    return torch.stack([(first[n] - second[n]).square().sum() for n in first]).sum().sqrt().item()


@settings(deadline=None, max_examples=40)
@given(
    projection=st.sampled_from(["unstructured", "block", "low_rank", "2:4", "1:4", "int8", "int4"]),
    level=LEVELS,
    seed=SEEDS,
    ties=st.booleans(),
)
def test_projecting_twice_is_projecting_once(projection, level, seed, ties):
    projection = get_projection(projection)
    level = level if projection.target is None else min(level, projection.target)
    once = projection(some_weights(seed, ties=ties), level)
    twice = projection(once, level)
    tolerance = 1e-5 if projection.name == "low_rank" else 0.0
    for name, weight in once.items():
        torch.testing.assert_close(twice[name], weight, rtol=0, atol=tolerance)


@settings(deadline=None, max_examples=40)
@given(
    projection=st.sampled_from(["unstructured", "block", "low_rank", "2:4"]),
    levels=st.tuples(LEVELS, LEVELS),
    seed=SEEDS,
)
def test_the_set_of_a_higher_level_is_further_away(projection, levels, seed):
    projection = get_projection(projection)
    low, high = sorted(min(level, projection.target or 1.0) for level in levels)
    weights = some_weights(seed)
    assert distance(weights, projection(weights, low)) <= distance(weights, projection(weights, high)) + 1e-5
    assert distance(weights, projection(weights, 0.0)) == pytest.approx(0, abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(projection=st.sampled_from(["unstructured", "block", "int4", "low_rank"]), seed=SEEDS, level=LEVELS)
def test_nothing_in_the_set_is_nearer_than_the_projection(projection, seed, level):
    """Compared with the projections of other points, which lie in the set too."""
    projection = get_projection(projection)
    level = projection.target or level
    weights = some_weights(seed)
    nearest = distance(weights, projection(weights, level))
    if projection.name == "quantization":
        # Each scale is a function of the weights: other points of the same grid.
        grid = projection.code(weights, level)
        others = [grid.apply({n: w + torch.randn_like(w) for n, w in weights.items()}) for _ in range(3)]
    else:
        others = [projection(some_weights(seed + i), level) for i in range(1, 4)]
    if projection.name == "low_rank":
        # The whole set is a product: compare tensor by tensor.
        for name, weight in weights.items():
            own = (weight - projection(weights, level)[name]).norm()
            assert all(own <= (weight - other[name]).norm() + 1e-5 for other in others)
        return
    assert all(nearest <= distance(weights, other) + 1e-5 for other in others)


@settings(deadline=None, max_examples=60)
@given(level=LEVELS, seed=SEEDS, scope=st.sampled_from(["global", "layer"]), ties=st.booleans())
def test_sparsity_is_exact_to_one_weight_whatever_the_ties(level, seed, scope, ties):
    weights = some_weights(seed, ties=ties)
    code = get_projection("unstructured", scope=scope).code(weights, level)
    marked = {name: int(mask.sum()) for name, mask in code.pruned.items()}
    if scope == "global":
        assert abs(sum(marked.values()) - level * size_of(weights)) <= 0.5
    else:
        assert all(abs(marked[name] - level * weight.numel()) <= 0.5 for name, weight in weights.items())
    if not ties:
        assert zeros_in(code.apply(weights)) == sum(marked.values())


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, pattern=st.sampled_from([(2, 4), (1, 4), (3, 4), (1, 2), (2, 8)]), ties=st.booleans())
def test_n_of_m_keeps_the_n_largest_of_each_group(seed, pattern, ties):
    n, m = pattern
    weights = some_weights(seed, ties=ties)
    projection = get_projection(f"{n}:{m}")
    for name, weight in projection(weights, projection.target).items():
        groups, before = weight.reshape(-1, m), weights[name].reshape(-1, m)
        assert ((groups != 0).sum(1) <= n).all()
        kept = before.abs().sort(1, descending=True).values[:, :n].square().sum(1)
        torch.testing.assert_close(groups.square().sum(1), kept)
    halfway = projection.code(weights, projection.target / 2)
    final = projection.code(weights, projection.target)
    assert sum(int(mask.sum()) for mask in halfway.pruned.values()) == round(projection.target / 2 * size_of(weights))
    assert sum(int(mask.sum()) for mask in final.pruned.values()) == round(projection.target * size_of(weights))
    if not ties:
        assert all((halfway.pruned[name] <= final.pruned[name]).all() for name in weights)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, level=LEVELS)
def test_blocks_are_whole_and_exact_to_one(seed, level):
    weights = some_weights(seed)
    pruned = get_projection("block", rows=4, columns=2).code(weights, level).pruned
    for mask in pruned.values():
        tiles = mask.flatten(1).view(len(mask) // 4, 4, -1, 2).float().mean((1, 3))
        assert ((tiles == 0) | (tiles == 1)).all()
    assert abs(sum(int(mask.sum()) for mask in pruned.values()) / 8 - level * size_of(weights) / 8) <= 0.5


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, bits=st.integers(2, 8), share=st.floats(0.0, 1.0))
def test_quantised_weights_lie_on_few_values_no_further_than_half_a_step(seed, bits, share):
    weights = some_weights(seed)
    weights["dead"] = torch.zeros(2, 4)
    projection = get_projection("quantization", bits=bits)
    code = projection.code(weights, share)
    projected = code.apply(weights)
    for name, weight in projected.items():
        scale = code.scales[name].view(-1, *[1] * (weight.ndim - 1))
        assert ((weight - weights[name]).abs() <= scale / 2 * 1.001).all()
        if share == 1:
            assert all(len(row.unique()) <= 2**bits - 1 for row in weight.flatten(1))
            assert torch.equal((weight / scale).round() * scale, weight)
    if share < 1:
        on_grid = sum(int(mask.sum()) for mask in code.on_grid.values())
        assert on_grid == round(share * size_of(weights))


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, level=LEVELS)
def test_low_rank_is_the_truncated_singular_value_decomposition(seed, level):
    weights = some_weights(seed)
    weights["tall"] = weights["linear"].T.contiguous()
    weights["of rank one"] = torch.outer(weights["linear"][0], weights["small"][0])
    code = get_projection("low_rank").code(weights, level)
    ranks = code.record()["ranks"]
    for name, weight in code.apply(weights).items():
        matrix = weights[name].flatten(1).double()
        assert ranks.get(name, min(matrix.shape)) == max(1, round((1 - level) * min(matrix.shape)))
        rank = max(1, round((1 - level) * min(matrix.shape)))
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        expected = (u[:, :rank] * s[:rank]) @ v[:rank]
        torch.testing.assert_close(weight.flatten(1).double(), expected, rtol=0, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, k=st.integers(1, 600_000), rounded=st.booleans(), dtype=st.sampled_from(["float32", "bfloat16"]))
def test_the_threshold_among_many_is_exact(seed, k, rounded, dtype):
    """Against a full sort; more values than are partitioned directly, with ties, zeros and other types."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(500, 600, generator=generator).to(getattr(torch, dtype)) for _ in range(2)]
    tensors[1][:100] = 0
    if rounded:
        tensors[0] = tensors[0].mul(4).round()
    magnitudes = torch.cat([tensor.abs().float().flatten() for tensor in tensors]).sort().values
    threshold = kth_smallest(tensors, k)
    assert threshold.value == magnitudes[k - 1].item()
    assert threshold.below == int((magnitudes < threshold.value).sum())
    assert threshold.equal == int((magnitudes == threshold.value).sum())
    marked = smallest({"0": tensors[0], "1": tensors[1]}, k)
    assert sum(int(mask.sum()) for mask in marked.values()) == k
    assert max(t.abs()[m].max() for t, m in zip(tensors, marked.values(), strict=True) if m.any()) == threshold.value


def test_the_fisher_score_is_the_weight_times_the_root_of_its_mean_squared_gradient():
    score, weight = get_score("fisher"), torch.nn.Parameter(torch.tensor([[2.0, -1.0, 3.0]]))
    assert score.values({"w": weight}) is None
    for gradient in ([[1.0, 3.0, 0.0]], [[-2.0, 5.0, 0.0]]):
        weight.grad = torch.tensor(gradient)
        score.observe({"w": weight})
    mean = 0.999 * torch.tensor([[1.0, 9.0, 0.0]]) + 0.001 * torch.tensor([[4.0, 25.0, 0.0]])
    torch.testing.assert_close(score.values({"w": weight})["w"], weight.detach().abs() * mean.sqrt())


def test_scores_decide_instead_of_magnitudes():
    weights = {"a": torch.tensor([[1.0, 2.0, 3.0, 4.0]])}
    scores = {"a": torch.tensor([[4.0, 3.0, 2.0, 1.0]])}
    assert get_projection("unstructured")(weights, 0.5, scores)["a"].tolist() == [[1.0, 2.0, 0.0, 0.0]]


def _vit():
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, image_size=8, patch_size=4
    )
    return ViTForImageClassification(config)


MODELS = {
    "bert": lambda: classifier(num_attention_heads=4),
    "vit": _vit,
    "cnn": lambda: FiveLayerCNNForImageClassification(
        FiveLayerCNNConfig(image_size=12, channels=(8, 6), hidden_sizes=(16, 8), num_labels=3)
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("level", [0.2, 0.6, 0.99])
def test_structured_zeros_are_units_that_nothing_passes_through(name, level):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    include = ["classifier"] if name == "cnn" else []
    weights = prunable_weights(model, include=include)
    projection = get_projection("structured").for_model(model, list(weights))
    units = projection.parameters["units"]
    code = projection.code(weights, level)
    with torch.no_grad():
        code.pull_(weights, 1.0)
    total = sum(weights[n].numel() for n in code.names())
    largest = max(sum(weights[n].numel() // u.number for n, _, _ in u.members) for u in units)
    if level < 0.9:
        assert abs(zeros_in({n: weights[n] for n in code.names()}) - level * total) <= largest
    inputs = (
        {"input_ids": torch.tensor([[5, 6, 7, 8]])}
        if name == "bert"
        else {"pixel_values": torch.randn(2, model.config.num_channels, *[model.config.image_size] * 2)}
    )
    before = model(**inputs).logits
    parameters = dict(model.named_parameters())
    for group in units:
        inside, (out, dim, _) = group.members[:-1], group.members[-1]
        gone = (weights[out].movedim(dim, 0).reshape(group.number, -1) == 0).all(1)
        assert not gone.all(), "each layer keeps a unit"
        # What goes in no longer matters, so the unit's rows and columns could be taken away.
        for member, _, width in inside:
            rows = gone.repeat_interleave(width)
            with torch.no_grad():
                parameters[member][rows] = 7.0
                parameters[member.replace("weight", "bias")][rows] = -3.0
    torch.testing.assert_close(model(**inputs).logits, before)


def test_heads_alone_can_be_chosen():
    model = classifier(num_attention_heads=4)
    weights = prunable_weights(model)
    projection = get_projection({"name": "structured", "kinds": ["heads"]}).for_model(model, list(weights))
    names = projection.code(weights, 0.5).names()
    assert names and all("attention" in name for name in names)


def test_heads_of_a_model_made_smaller_keep_their_size():
    model = classifier(num_attention_heads=4)
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.output.dense.weight[:, 4:8] = 0
    smaller = shrink(model)
    weights = prunable_weights(smaller)
    projection = get_projection({"name": "structured", "kinds": ["heads"]}).for_model(smaller, list(weights))
    units = projection.parameters["units"]
    assert [(group.number, {width for _, _, width in group.members}) for group in units] == [(3, {4}), (4, {4})]
    for name, mask in projection.code(weights, 0.5).pruned.items():
        rows = mask if name.endswith(("query.weight", "key.weight", "value.weight")) else mask.T
        heads = rows.reshape(-1, 4 * rows.shape[1]).float().mean(1)
        assert ((heads == 0) | (heads == 1)).all() and 0 < heads.mean() < 1


def test_what_is_pruned_by_default():
    names = list(prunable_weights(classifier()))
    assert all("encoder" in name or "pooler" in name for name in names)
    assert all(name.endswith("weight") and "Norm" not in name for name in names)
    language_model = BertForMaskedLM(classifier().config)
    assert not any("embeddings" in name or "decoder" in name for name in prunable_weights(language_model))
    with_head = prunable_weights(classifier(), include=["classifier"], exclude=["*attention*"])
    assert "classifier.weight" in with_head and not any("attention" in name for name in with_head)
    assert len(prunable_weights(classifier(), include=["*"])) == len(prunable_weights(classifier())) + 4


def test_users_register_their_own():
    @register_projection("signs", target=lambda parameters: 1.0)
    def signs(weights, level, scores=None, *, size=0.1):
        return {name: weight.sign() * size for name, weight in weights.items()}

    @register_projection("first_row")
    def first_row(weights, level, scores=None):
        return {
            name: torch.arange(len(w)).view(-1, *[1] * (w.ndim - 1)).expand_as(w) == 0 for name, w in weights.items()
        }

    weights = some_weights(0)
    assert get_projection("signs", size=0.5)(weights, 1.0)["small"].abs().unique().tolist() == [0.5]
    projected = get_projection("first_row")(weights, 0.5)
    assert (projected["linear"][0] == 0).all() and (projected["linear"][1:] == weights["linear"][1:]).all()


def test_what_users_return_is_checked():
    @register_projection("of_another")
    def of_another(weights, level, scores=None, *, what="shape"):
        masks = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        changed = {"shape": masks["linear"][:, 1:], "mixed": weights["linear"]}
        return masks | ({"unknown": masks["linear"]} if what == "name" else {"linear": changed[what]})

    for what, message in (
        ("shape", r"'linear' of shape \(8, 15\), \(8, 16\) here.*another architecture"),
        ("name", "'unknown' lies, which is missing here.*another architecture"),
        ("mixed", "'of_another' returned both masks and weights"),
    ):
        with pytest.raises(InputError, match=message):
            get_projection("of_another", what=what).code(some_weights(0), 0.5)


def test_a_code_of_the_users_own_comes_back_from_a_checkpoint():
    class Shrunk(Masks):
        kind = "shrunk"

    assert CODES["shrunk"] is Shrunk
    weights = some_weights(0)
    again = CODES["shrunk"].from_tensors(Shrunk({"linear": weights["linear"] > 0}).tensors())
    assert (again.apply(weights)["linear"] <= 0).all()


@pytest.mark.parametrize(
    ("projection", "level"), [("unstructured", 0.5), ("int4", 0.5), ("int8", 1.0), ("low_rank", 0.5)]
)
def test_codes_pull_hold_and_come_back_from_a_checkpoint(projection, level):
    weights = some_weights(3)
    code = get_projection(projection).code(weights, level)
    again = CODES[code.kind].from_tensors(code.tensors())
    target = code.apply(weights)
    for name, weight in again.apply(weights).items():
        assert torch.equal(weight, target[name])
    moved = {name: weight.clone() for name, weight in weights.items()}
    code.pull_(moved, 0.25)
    gradients = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    code.add_gradient_(gradients, weights, 2.0)
    for name in target:
        torch.testing.assert_close(moved[name], weights[name].lerp(target[name], 0.25))
        torch.testing.assert_close(gradients[name], 2 * (weights[name] - target[name]))
    assert code.distance(weights).item() == pytest.approx(distance(weights, target), rel=1e-5)
    code.pull_(moved, 1.0)
    assert code.distance(moved).item() == pytest.approx(0, abs=1e-5)


def test_the_metrics_diagonal_is_that_of_the_dense_jacobian():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 4, dtype=torch.float64)
    inputs = torch.randn(5, 3, dtype=torch.float64)
    rounds = 4000

    def outputs_of(number):
        return model(inputs) if number < rounds else None

    found = metric_diagonal(model, outputs_of, probabilities=False)
    expected = inputs.square().mean(0).expand(4, 3)
    torch.testing.assert_close(found["weight"].double(), expected, rtol=0.15, atol=0)
    p = model(inputs).softmax(-1).detach()
    fisher = metric_diagonal(model, outputs_of, probabilities=True)
    exact = torch.einsum("xo,xi->oi", p * (1 - p), inputs.square()) / 5
    torch.testing.assert_close(fisher["weight"].double(), exact, rtol=0.15, atol=0)


def test_the_level_rises_to_each_target_and_stays():
    path = segments([0.5, 0.8], [10, 30], start=0.1, ramp=0.5)
    levels = [s.level(t, get_schedule("cubic")) for s in path for t in range(s.begin + 1, s.end + 1)]
    assert levels == sorted(levels)
    assert levels[4:10] == [0.5] * 6 and levels[-11:] == [0.8] * 11
    assert levels[0] > 0.1 + 0.4 / 5, "fast at first"
    assert [get_schedule([0.2, 0.6, 1.0])(done) for done in (0.0, 0.4, 0.99, 1.0)] == [0.2, 0.6, 1.0, 1.0]
    one_step = segments([0.5], [1], start=0.0, ramp=0.7)[0]
    assert one_step.freeze == 1 and one_step.level(1, get_schedule("linear")) == 0.5


@pytest.mark.parametrize(
    ("projection", "message"),
    [
        ("magic", "projection='magic' is unknown: use one of .*unstructured"),
        ("5:4", "n=5, m=4.*0 < n < m"),
        ("4:4", "n=4, m=4"),
        ({"name": "block", "tiles": 3}, "'block' has no parameter 'tiles' .*columns, rows|rows, columns"),
    ],
)
def test_projections_that_do_not_exist_are_refused(projection, message):
    with pytest.raises(InputError, match=message):
        get_projection(projection)


def test_what_does_not_fit_the_weights_is_refused():
    weights = {"layer": torch.randn(6, 10)}
    with pytest.raises(InputError, match="'layer' has 10 inputs, which 4 does not divide"):
        get_projection("2:4").code(weights, 0.5)
    with pytest.raises(InputError, match="'layer' is 6 x 10, which tiles of 4 x 4 do not divide"):
        get_projection("block").code(weights, 0.5)
    for rows in (0, "4", 2.0):
        with pytest.raises(InputError, match=f"rows={rows!r}, columns=4: give whole numbers"):
            get_projection("block", rows=rows).code(weights, 0.5)
    with pytest.raises(InputError, match="bits=9"):
        get_projection("quantization", bits=9).code(weights, 1.0)
    with pytest.raises(InputError, match="scope='half'"):
        get_projection("unstructured", scope="half").code(weights, 0.5)
    with pytest.raises(InputError, match="units"):
        structured(weights, 0.5)


def test_heads_on_a_network_without_any_are_refused():
    model = MODELS["cnn"]()
    with pytest.raises(InputError, match="FiveLayerCNN.* has no heads"):
        get_projection("structured", kinds=["heads"]).for_model(model, list(prunable_weights(model)))
    with pytest.raises(InputError, match="kinds=.*layers"):
        get_projection("structured", kinds=["layers"]).for_model(model, [])
    with pytest.raises(InputError, match="has no heads and no neurons and no filters"):
        get_projection("structured").for_model(torch.nn.Linear(2, 2), ["weight"])


def test_nothing_left_to_prune_is_refused():
    with pytest.raises(InputError, match="nothing is left to compress"):
        prunable_weights(classifier(), exclude=["*"])
    with pytest.raises(InputError, match="include='heads' fits none"):
        prunable_weights(classifier(), include=["heads"])


def test_a_projection_goes_through_json():
    for name in ("unstructured", "2:4", "int4", {"name": "block", "rows": 2}):
        projection = get_projection(name)
        assert isinstance(projection, Projection)
        assert get_projection(projection.to_dict()) == projection
    assert BERT["num_attention_heads"] == 2


def test_zeros_are_kept_in_embeddings_too_where_they_were_compressed():
    model = classifier()
    embeddings = model.bert.embeddings
    with torch.no_grad():
        embeddings.word_embeddings.weight.masked_fill_(torch.rand(64, 16) < 0.5, 0.0)
        embeddings.position_embeddings.weight.zero_()
        embeddings.token_type_embeddings.weight.fill_(1.0)
    keeping = KeepZeros()
    keeping.begin_segment(model)
    assert set(keeping.weights) == {"bert.embeddings.word_embeddings.weight"}
    zeros = embeddings.word_embeddings.weight == 0
    assert keeping.report() == {"zeros_kept": int(zeros.sum())}
    with torch.no_grad():
        embeddings.word_embeddings.weight.add_(1.0)
    keeping.constrain_weights_([])
    assert torch.equal(embeddings.word_embeddings.weight == 0, zeros)
    # The padding's row alone is no compression.
    fresh = classifier(vocab_size=1000)
    with torch.no_grad():
        fresh.bert.embeddings.word_embeddings.weight[0] = 0.0
    keeping = KeepZeros()
    keeping.begin_segment(fresh)
    assert not keeping.weights


def test_the_pull_is_as_strong_under_the_scaling_of_fp16_losses():
    """The gradient is complete, and still multiplied by the scale, when the analytic part is added."""
    found = []
    for scale in (1.0, 1024.0):
        model = classifier(seed=1)
        pull = Pull(get_projection("unstructured"), [0.5], [10], decoupled=False, strength=0.3)
        pull.begin_segment(model)
        pull.move_weights_([], 1)
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, scale)
        apply_gradient_terms([pull], parameters, scale=scale)
        found.append({name: weight.grad / scale for name, weight in pull.weights.items()})
        for name, gradient in found[-1].items():
            expected = 1 + 0.3 * pull.weights[name].detach() * pull.code.pruned[name]
            torch.testing.assert_close(gradient, expected)
    assert any(mask.any() for mask in pull.code.pruned.values())
