"""The metric tensor against the explicit Jacobian in float64, on every kind of model."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hf_fip.errors import InputError
from hf_fip.functional import functional_distance
from hf_fip.geometry import DenseOperator, MetricTensor, fip_step
from hf_fip.models.cnn import FiveLayerCNNConfig, FiveLayerCNNForImageClassification
from hf_fip.models.lenet import LeNet300100Config, LeNet300100ForImageClassification
from tests.testing_utils import case, classifier


IMAGES = {"num_channels": 1, "image_size": 8, "num_labels": 3}
KINDS = ["lenet", "cnn", "bert", "vit", "fill-mask", "text-generation"]


def network(kind: str, anchors: int = 4) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A tiny model in training mode with its dropout on, and inputs with padding."""
    torch.manual_seed(0)
    if kind == "lenet":
        model = LeNet300100ForImageClassification(LeNet300100Config(**IMAGES, hidden_sizes=(6, 5)))
    elif kind == "cnn":
        config = FiveLayerCNNConfig(**IMAGES, channels=(3, 4), hidden_sizes=(6, 5), paddings=(1, 1))
        model = FiveLayerCNNForImageClassification(config)
    elif kind == "bert":
        model = classifier(num_labels=3)
        assert model.config._attn_implementation == "sdpa"
    else:
        model = case({"vit": "image-classification"}.get(kind, kind))["model"]
    if kind in ("lenet", "cnn", "vit"):
        return model.train(), {"pixel_values": torch.randn(anchors, 3 if kind == "vit" else 1, 8, 8)}
    inputs = {"input_ids": torch.randint(3, 64, (anchors, 7)), "attention_mask": torch.ones(anchors, 7).long()}
    inputs["attention_mask"][1, 4:] = 0
    if kind != "bert":
        inputs["labels"] = torch.full((anchors, 7), -100)
        inputs["labels"][0, 2] = inputs["labels"][0, 3] = inputs["labels"][1, 1] = 5
    return model.train(), inputs


def reference(kind: str, model: nn.Module, inputs: dict[str, torch.Tensor], metric: str):
    """Outputs `[N, C]`, Jacobian `[N, C, n]` and `H` `[N, C, C]`, row by row by plain backward passes."""
    model = copy.deepcopy(model).double().eval()
    labels = inputs.get("labels")
    model_inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items() if k != "labels"}
    outputs = model(**model_inputs).logits
    if labels is not None:
        if kind == "text-generation":
            outputs, labels = outputs[:, :-1], labels[:, 1:]
        outputs = outputs[labels != -100]
    parameters = [p for p in model.parameters() if p.requires_grad]
    options = {"retain_graph": True, "materialize_grads": True}
    gradients = [torch.autograd.grad(o, parameters, **options) for o in outputs.reshape(-1)]
    rows = [torch.cat([part.reshape(-1) for part in gradient]) for gradient in gradients]
    p = outputs.detach().softmax(-1)
    h = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    h = torch.eye(p.shape[1], dtype=p.dtype).expand_as(h) if metric == "l2" else h
    return outputs.detach(), torch.stack(rows).view(*outputs.shape, -1), h


@pytest.mark.parametrize("metric", ["l2", "fisher"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_explicit_matrix(kind, metric):
    model, inputs = network(kind)
    outputs, j, h = reference(kind, model, inputs, metric)
    g = MetricTensor(model, inputs, metric, dtype=torch.float64)
    assert g.shape == (j.shape[2], j.shape[2]) and g.num_rows == len(j)

    generator = torch.Generator().manual_seed(1)
    v = torch.randn(j.shape[2], 3, generator=generator, dtype=torch.float64)
    u = torch.randn(*outputs.shape, 2, generator=generator, dtype=torch.float64)
    jv = torch.einsum("rcn,nk->rck", j, v)
    expected = torch.einsum("rcn,rcd,rdk->nk", j, h, jv) / len(j)
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(g.outputs, outputs, **close)
    torch.testing.assert_close(g @ v, expected, **close)
    torch.testing.assert_close(g @ v[:, 0], expected[:, 0], **close)
    torch.testing.assert_close(g.jvp(v), jv, **close)
    torch.testing.assert_close(g.jvp(v[:, 0]), jv[..., 0], **close)
    torch.testing.assert_close(g.vjp(u), torch.einsum("rcn,rck->nk", j, u), **close)
    torch.testing.assert_close(g.rows().view_as(j), j, **close)
    torch.testing.assert_close(g.weighting(u), torch.einsum("rcd,rdk->rck", h, u), **close)
    torch.testing.assert_close(g.root(g.root_transposed(u)), g.weighting(u), **close)
    torch.testing.assert_close(g.vjp(g.weighting(g.jvp(v[:, 0]))) / g.num_rows, expected[:, 0], **close)

    # Any root of H gives the same eigenvalues.
    values = torch.linalg.eigvalsh(g.gram())
    s = torch.linalg.cholesky(h + 1e-14 * torch.eye(h.shape[1], dtype=h.dtype))
    rows = torch.einsum("rdc,rdn->rcn", s, j).flatten(0, 1)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(rows @ rows.T / len(j)), rtol=1e-7, atol=1e-9)


class Logits(nn.Module):
    """A model as `curvlinops` takes it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(**inputs).logits


@pytest.mark.parametrize("kind", ["cnn", "bert"])
@pytest.mark.parametrize("metric", ["l2", "fisher"])
def test_agrees_with_curvlinops(kind, metric):
    curvlinops = pytest.importorskip("curvlinops")
    model, inputs = network(kind)
    twin = Logits(copy.deepcopy(model).double().eval())
    twin.model.set_attn_implementation("eager")
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    g = MetricTensor(model, inputs, metric, dtype=torch.float64)
    loss = nn.MSELoss() if metric == "l2" else nn.CrossEntropyLoss()
    targets = torch.zeros_like(g.outputs) if metric == "l2" else torch.zeros(len(g.outputs), dtype=torch.long)
    options = {"check_deterministic": False, "batch_size_fn": lambda batch: len(next(iter(batch.values())))}
    ggn = curvlinops.GGNLinearOperator(twin, loss, list(twin.parameters()), [(inputs, targets)], **options)
    v = torch.randn(g.shape[0], dtype=torch.float64)
    # The mean squared error averages over the outputs, too, and its second derivative is 2.
    scale = g.num_outputs / 2 if metric == "l2" else 1.0
    torch.testing.assert_close(g @ v, scale * (ggn @ v), rtol=1e-8, atol=1e-10)


def test_anchors_in_chunks_give_the_same():
    model, inputs = network("bert", anchors=6)
    whole = MetricTensor(model, inputs, dtype=torch.float64)
    batches = [{k: v[:4] for k, v in inputs.items()}, {k: v[4:, :5] for k, v in inputs.items()}]
    shorter = {k: torch.cat([v[:4], torch.nn.functional.pad(v[4:, :5], (0, 2))]) for k, v in inputs.items()}
    padded = MetricTensor(model, shorter, dtype=torch.float64)
    v = torch.randn(whole.shape[0], dtype=torch.float64)
    one = whole._products.needs.bytes_per_anchor / 2**30
    for g, expected in [
        (MetricTensor(model, inputs, dtype=torch.float64, chunk_size=4), whole),
        # Memory for two anchors and a half: chunks of two, made anew for each product.
        (MetricTensor(model, inputs, dtype=torch.float64, memory_limit_gb=2.5 * one), whole),
        (MetricTensor(model, batches, dtype=torch.float64), padded),
    ]:
        for _ in range(2):
            torch.testing.assert_close(g @ v, expected @ v, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(g.jvp(v), expected.jvp(v), rtol=1e-9, atol=1e-11)


def test_gram_matrix_in_blocks_is_the_same():
    model, inputs = network("lenet", anchors=9)
    whole = MetricTensor(model, inputs, dtype=torch.float64)
    # Room for nine rows of the Jacobian: blocks of one anchor, two of them held.
    blocked = MetricTensor(model, inputs, dtype=torch.float64, memory_limit_gb=9.5 * 8 * whole.shape[0] / 2**30)
    torch.testing.assert_close(blocked.gram(), whole.gram(), rtol=1e-12, atol=1e-14)
    assert blocked.cost.vjps > whole.cost.vjps


@pytest.mark.parametrize("metric", ["l2", "fisher"])
def test_a_product_is_the_functional_distance_of_a_small_step(metric):
    model, inputs = network("bert")
    g = MetricTensor(model, inputs, metric, dtype=torch.float64)
    d = 1e-5 * torch.randn(g.shape[0], dtype=torch.float64)
    moved = g.at(g.weights + d).outputs
    if metric == "l2":
        distance = functional_distance("l2", moved, g.outputs).mean()
    else:
        distance = 2 * functional_distance("kl", moved, g.outputs, temperature=1.0).mean()
    torch.testing.assert_close(d @ (g @ d), distance, rtol=1e-3, atol=0.0)


def test_the_operator_is_that_of_the_weights_it_was_made_at():
    model, inputs = network("cnn")
    g = MetricTensor(model, inputs, dtype=torch.float64)
    v = torch.randn(g.shape[0], dtype=torch.float64)
    before, weights = g @ v, g.weights
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    torch.testing.assert_close(g @ v, before, rtol=0.0, atol=0.0)
    torch.testing.assert_close(g.weights, weights, rtol=0.0, atol=0.0)
    there = g.at(1.3 * weights)
    torch.testing.assert_close(there @ v, MetricTensor(model, inputs, dtype=torch.float64) @ v, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(g @ v, before, rtol=0.0, atol=0.0)
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, 1.3 * other)


def test_the_model_is_left_as_it_is():
    model, inputs = network("bert")
    model.bert.pooler.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    g = MetricTensor(model, inputs)
    g @ torch.randn(g.shape[0])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_trainable_weights_count():
    model, inputs = network("bert")
    model.bert.requires_grad_(False)
    g = MetricTensor(model, inputs)
    head = dict(model.named_parameters())
    assert g.shape[0] == head["classifier.weight"].numel() + head["classifier.bias"].numel()
    parts = g.unflatten(g.weights)
    assert parts.keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(parts[name], head[name]) for name in parts)
    assert torch.equal(g.flatten(parts), g.weights)


def test_half_precision_weights_are_computed_in_single():
    model, inputs = network("bert")
    g = MetricTensor(model.to(torch.bfloat16), inputs)
    exact = MetricTensor(model, inputs, dtype=torch.float64)
    v = torch.randn(g.shape[0])
    assert g.dtype == torch.float32 and (g @ v).dtype == torch.float32
    torch.testing.assert_close(g @ v, (exact @ v).float(), rtol=1e-3, atol=1e-5)


def test_scipy_sees_the_same_operator():
    model, inputs = network("lenet")
    g = MetricTensor(model, inputs, dtype=torch.float64)
    v = np.random.default_rng(0).normal(size=(g.shape[0], 2))
    scipy_operator = g.as_scipy()
    np.testing.assert_allclose(scipy_operator @ v, (g @ torch.from_numpy(v)).numpy(), rtol=1e-12)
    np.testing.assert_allclose(scipy_operator @ v[:, 0], (g @ torch.from_numpy(v[:, 0])).numpy(), rtol=1e-12)


def test_the_dual_form_takes_one_pass_for_each_output():
    """A row of the Jacobian needs its own anchor alone."""
    model, inputs = network("lenet", anchors=8)
    g = MetricTensor(model, inputs, dtype=torch.float64)
    gradient = torch.randn(g.shape[0], dtype=torch.float64)
    step = fip_step(g, gradient, 0.1, method="dual")
    assert step.converged and step.vjps == 8 * 3
    # Those, one product to tell the residual, and what it prepares.
    assert g.cost.vjps == pytest.approx(3 + 2) and g.cost.jvps == 1
    exact = fip_step(g, gradient, 0.1, tolerance=1e-10)
    torch.testing.assert_close(step.theta, exact.theta, rtol=1e-6, atol=1e-9)


def test_kept_graphs_make_a_product_cost_four_forwards():
    model, inputs = network("lenet")
    g = MetricTensor(model, inputs)
    v = torch.randn(g.shape[0])
    g @ v
    before = g.cost.forward_backwards
    g @ v
    assert g.cost.products == 2
    assert g.cost.forward_backwards - before == pytest.approx(4 / 3)


class Once(torch.autograd.Function):
    """x^2 with a derivative that cannot be differentiated again."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class OnceAndForward(Once):
    """The same with a forward-mode derivative."""

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * ctx.saved_tensors[0] * tangent


class Toy(nn.Module):
    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.activation = nn.Linear(4, 5), nn.Linear(5, 3), activation

    def forward(self, x):
        return {"logits": self.second(self.activation(self.first(x)))}


def test_forward_mode_serves_layers_without_a_second_derivative():
    x = torch.randn(6, 4)
    g, exact = (MetricTensor(Toy(f), {"x": x}, dtype=torch.float64) for f in (OnceAndForward.apply, torch.square))
    v = torch.randn(g.shape[0], dtype=torch.float64)
    torch.testing.assert_close(g @ v, exact @ v)
    assert g.cost.forwards > exact.cost.forwards


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "kl"}, "metric='kl' is unknown: use one of 'l2', 'fisher'"),
        ({"anchors": {}}, "anchors"),
        ({"anchors": []}, "anchors: there are none"),
        ({"anchors": {"x": torch.zeros(0, 4)}}, "anchors"),
        ({"anchors": {"x": torch.full((2, 4), float("nan"))}}, "outputs on the anchors are not finite"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"memory_limit_gb": 0}, "memory_limit_gb=0"),
        ({"memory_limit_gb": 1e-9}, "one of them takes"),
        ({"dtype": torch.int8}, "dtype=torch.int8"),
        ({"model": Toy(Once.apply)}, "neither twice nor in forward mode"),
        ({"model": Toy(torch.Tensor.detach), "frozen": "second"}, "cannot be differentiated"),
        ({"frozen": ""}, "none of its weights is trainable"),
        ({"integers": True}, "integers (torch.int8)"),
        ({"model": nn.Linear(4, 1), "metric": "fisher", "anchors": {"input": torch.randn(2, 4)}}, "has one output"),
    ],
    ids=[
        "metric",
        "no-inputs",
        "no-batches",
        "no-anchors",
        "nan-anchors",
        "chunk",
        "memory",
        "one-anchor-too-large",
        "dtype",
        "no-derivatives",
        "detached",
        "nothing-trainable",
        "integers",
        "one-output",
    ],
)
def test_bad_input_is_one_clear_line(change, message):
    model = change.get("model", Toy(torch.tanh))
    if "frozen" in change:
        model.get_submodule(change["frozen"]).requires_grad_(False)
    if "integers" in change:
        model = nn.Module()
        model.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    arguments = {k: v for k, v in change.items() if k in ("metric", "chunk_size", "memory_limit_gb", "dtype")}
    with pytest.raises(InputError) as error:
        MetricTensor(model, change.get("anchors", {"x": torch.randn(2, 4)}), **arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_models_with_an_output_per_token_need_scored_positions():
    model, inputs = network("fill-mask")
    del inputs["labels"]
    with pytest.raises(InputError, match="add 'labels'"):
        MetricTensor(model, inputs)


def test_too_many_rows_for_a_gram_matrix_are_refused_with_the_number():
    model, inputs = network("lenet", anchors=50)
    g = MetricTensor(model, inputs, memory_limit_gb=5e-5)
    with pytest.raises(InputError, match=r"50 rows with 3 outputs takes 8.38e-05 GiB.*use at most 38 rows"):
        g.gram()
    g @ g.weights
    few = MetricTensor(model, inputs, memory_limit_gb=10 * 3 * g.shape[0] * 4 / 2**30)
    with pytest.raises(InputError, match=r"Jacobian of 50 rows with 3 outputs.*use at most 10 rows"):
        few.rows()


def test_bad_vectors_are_refused():
    model, inputs = network("lenet")
    g = MetricTensor(model, inputs)
    with pytest.raises(InputError, match="does not fit the operator"):
        g @ torch.zeros(3)
    with pytest.raises(InputError, match="does not fit the weights"):
        g.jvp(torch.zeros(3))
    with pytest.raises(InputError, match="do not fit the outputs"):
        g.vjp(torch.zeros(3, 3))
    with pytest.raises(InputError, match="not finite"):
        g @ torch.full((g.shape[0],), torch.nan)
    with pytest.raises(InputError, match="missing or not trainable"):
        g.flatten({})
    with pytest.raises(InputError, match="not square"):
        DenseOperator(torch.zeros(2, 3))


def test_gradient_checkpointing_is_no_obstacle():
    model, inputs = network("bert")
    g = MetricTensor(model, inputs, dtype=torch.float64)
    model.activation_checkpointing_enable()
    v = torch.randn(g.shape[0], dtype=torch.float64)
    torch.testing.assert_close(MetricTensor(model, inputs, dtype=torch.float64) @ v, g @ v)
    assert model.is_activation_checkpointing


def test_adapters_alone_may_be_trainable():
    from peft import LoraConfig, get_peft_model

    model, inputs = network("bert")
    adapted = get_peft_model(model, LoraConfig(target_modules=["query"], r=2, init_lora_weights=False))
    g = MetricTensor(adapted, inputs)
    assert g.shape[0] == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    v = torch.randn(g.shape[0])
    assert v @ (g @ v) > 0
