"""Ensembles as models, and what is said of them: uncertainty, diversity, coherence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, TaskType, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_fip.ensembles import (
    Ensemble,
    EnsembleConfig,
    EnsembleForImageClassification,
    EnsembleForSequenceClassification,
    expected_calibration_error,
    input_coherence,
    input_gradients,
    layer_activations,
    layer_diversity,
    linear_cka,
    mutual_information,
    predictive_entropy,
)
from hf_fip.ensembles.diversity import representation_diversity
from hf_fip.ensembles.stacking import can_stack
from hf_fip.errors import InputError
from hf_fip.models import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    FiveLayerCNNConfig,
    FiveLayerCNNForImageClassification,
    load_model,
    save_model,
)
from tests.hub.clients import connected
from tests.hub.server import HubServer
from tests.query.families import family, model_of
from tests.testing_utils import case, images, run_python


def cnn(seed: int = 0, **changes) -> FiveLayerCNNForImageClassification:
    torch.manual_seed(seed)
    sizes = {"num_channels": 3, "image_size": 8, "channels": (4, 4), "hidden_sizes": (16, 8), "num_labels": 4}
    return FiveLayerCNNForImageClassification(FiveLayerCNNConfig(**{**sizes, **changes})).eval()


def resnet(seed: int = 0) -> CifarResNetForImageClassification:
    torch.manual_seed(seed)
    model = CifarResNetForImageClassification(CifarResNetConfig(image_size=8, num_labels=4))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def vit(seed: int = 0) -> ViTForImageClassification:
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    return ViTForImageClassification(config).eval()


MAKERS = {"cnn": cnn, "resnet": resnet, "vit": vit, "bert": lambda seed: model_of("sequence-classification", seed)}


def batch(kind: str, examples: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    if kind != "bert":
        return {"pixel_values": torch.randn(examples, 3, 8, 8, generator=generator)}
    mask = torch.ones(examples, 9, dtype=torch.long)
    mask[0, 4:] = 0
    return {"input_ids": torch.randint(3, 64, (examples, 9), generator=generator), "attention_mask": mask}


def mean_of(models: list[nn.Module], inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([model(**inputs).logits.double().softmax(-1) for model in models]).mean(0)


# ---- One model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_the_answer_is_the_members_mean_stacked_or_not(kind):
    models, inputs = [MAKERS[kind](seed) for seed in range(3)], batch(kind)
    ensemble = Ensemble.from_models(models)
    for ensemble.stacked in (None, False, True):
        output = ensemble(**inputs, labels=torch.tensor([0, 1, 1, 0, 1]))
        torch.testing.assert_close(output.logits.double().exp(), mean_of(models, inputs), atol=1e-6, rtol=1e-5)
        wanted = -mean_of(models, inputs)[range(5), [0, 1, 1, 0, 1]].log().mean()
        assert output.loss.item() == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("kind", ["cnn", "resnet", "vit"])
def test_an_attacker_gets_the_same_gradient_stacked_or_not(kind):
    ensemble = Ensemble.from_models([MAKERS[kind](seed) for seed in range(3)])
    labels, gradients = torch.tensor([0, 1, 1, 0, 1]), []
    for ensemble.stacked in (False, True):
        gradients.append(input_gradients(ensemble, batch(kind)["pixel_values"], labels))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "auto", "made_as"),
    [
        ("cnn", AutoModelForImageClassification, EnsembleForImageClassification),
        ("resnet", AutoModelForImageClassification, EnsembleForImageClassification),
        ("bert", AutoModelForSequenceClassification, EnsembleForSequenceClassification),
    ],
    ids=["cnn", "resnet", "bert"],
)
def test_it_is_saved_and_loaded_like_any_model(kind, auto, made_as, tmp_path):
    ensemble, inputs = Ensemble.from_models([MAKERS[kind](seed) for seed in range(3)]), batch(kind)
    ensemble.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    for loaded in (auto.from_pretrained(tmp_path), made_as.from_pretrained(tmp_path), load_model(tmp_path)):
        assert type(loaded) is made_as and loaded.config.id2label == ensemble.config.id2label
        assert torch.equal(loaded(**inputs).logits, ensemble(**inputs).logits)


def test_a_plain_import_of_the_package_is_enough_to_load_it(tmp_path):
    Ensemble.from_models([cnn(0), cnn(1)]).save_pretrained(tmp_path / "ensemble")
    script = tmp_path / "load.py"
    script.write_text(
        "import hf_fip\nimport sys\n"
        "from transformers import AutoModelForImageClassification\n"
        "model = AutoModelForImageClassification.from_pretrained(sys.argv[1])\n"
        "print(type(model).__name__, len(model.members), 'datasets' in sys.modules)\n"
    )
    done = run_python(script, str(tmp_path / "ensemble"))
    assert done.stdout.split() == ["EnsembleForImageClassification", "2", "False"], done.stderr


def test_it_is_pushed_to_the_hub_and_loaded_from_there(tmp_path):
    ensemble, inputs = Ensemble.from_models([cnn(0), cnn(1)]), batch("cnn")
    with HubServer() as server, connected(server.endpoint, server.token, tmp_path / "cache"):
        ensemble.push_to_hub("tester/ensemble", private=True)
        loaded = AutoModelForImageClassification.from_pretrained("tester/ensemble")
    assert torch.equal(loaded(**inputs).logits, ensemble(**inputs).logits)


def test_nodes_of_a_graph_and_a_branch_of_it(tmp_path):
    graph = family(tmp_path / "graph", cnn, 4, task="image-classification")
    ensemble = Ensemble.from_nodes(list(graph)[1:])
    assert ensemble.config.nodes == ["fip-1", "fip-2", "fip-3"] and not ensemble.training
    inputs = batch("cnn")
    torch.testing.assert_close(
        ensemble(**inputs).logits.double().exp(), mean_of([n.load_model() for n in list(graph)[1:]], inputs)
    )
    assert Ensemble.from_graph(str(graph.folder), "fip").config.nodes == [node.id for node in graph]
    with pytest.raises(InputError, match="branch='diverse' is none of the graph's: fip"):
        Ensemble.from_graph(graph, "diverse")


def test_compressed_nodes_and_adapters_become_ordinary_members(tmp_path):
    sparse = cnn(0)
    with torch.no_grad():
        sparse.hidden[0].weight[torch.rand(sparse.hidden[0].weight.shape) < 0.9] = 0
    save_model(sparse, tmp_path / "sparse", sparse_format="bitmask")
    ensemble = Ensemble.from_models([load_model(tmp_path / "sparse"), cnn(1)])
    ensemble.save_pretrained(tmp_path / "ensemble")
    inputs = batch("cnn")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "ensemble")
    torch.testing.assert_close(loaded(**inputs).logits.double().exp(), mean_of([sparse, cnn(1)], inputs))

    text = model_of("sequence-classification")
    adapter = get_peft_model(text, LoraConfig(r=2, task_type=TaskType.SEQ_CLS, init_lora_weights=False)).eval()
    wanted = mean_of([adapter], batch("bert"))
    merged = Ensemble.from_models([adapter])
    torch.testing.assert_close(merged(**batch("bert")).logits.double().exp(), wanted, atol=1e-5, rtol=1e-4)
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_a_trainer_evaluates_and_trains_it(tmp_path):
    ensemble = Ensemble.from_models([cnn(seed, num_labels=2) for seed in range(2)])
    rows = images(24, seed=1)
    args = TrainingArguments(str(tmp_path), report_to="none", max_steps=30, learning_rate=1e-2, use_cpu=True)
    trainer = Trainer(ensemble, args, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    batch_of_all = rows[:]
    assert before == pytest.approx(ensemble.eval()(**batch_of_all).loss.item(), rel=1e-4)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def test_other_architectures_are_run_one_by_one():
    models = [cnn(0), cnn(1, channels=(4, 6)), resnet()]
    ensemble, inputs = Ensemble.from_models(models), batch("cnn")
    torch.testing.assert_close(ensemble(**inputs).logits.double().exp(), mean_of(models, inputs))
    assert not can_stack(models)
    ensemble.stacked = True
    with pytest.raises(InputError, match="stacked=True"):
        ensemble(**inputs)


def _renamed(model):
    model.config.id2label = {0: "cat", 1: "dog", 2: "b", 3: "c"}
    return model


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (lambda: [], "at least one member"),
        (lambda: [cnn(), cnn(num_labels=3)], "member number 1 has the labels"),
        (lambda: [cnn(), _renamed(cnn())], r"labels \['cat', 'dog', 'b', 'c'\] and the first"),
        (lambda: [cnn(num_labels=1)], "num_labels=1"),
        (lambda: [case("fill-mask")["model"]], "BertForMaskedLM: ensembles are made of classifiers"),
        (lambda: [cnn(num_labels=2), model_of("sequence-classification")], "and the first a FiveLayerCNN"),
    ],
    ids=["none", "more labels", "other labels", "regression", "fill-mask", "kinds"],
)
def test_what_is_no_ensemble_is_refused_in_one_line(models, message):
    with pytest.raises(InputError, match=message) as error:
        Ensemble.from_models(models())
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="members="):
        EnsembleForImageClassification(EnsembleConfig())


def test_its_weights_are_the_members_and_nothing_else(tmp_path):
    models = [cnn(0), cnn(1)]
    Ensemble.from_models(models).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == {f"members.{i}.{name}" for i in range(2) for name in models[i].state_dict()}


# ---- Uncertainty ---------------------------------------------------------------------------------------------------


def test_certainty_disagreement_and_doubt_are_told_apart():
    sure, other, doubt = (torch.tensor(p).log() for p in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5]))
    cases = torch.stack([torch.stack([sure, sure, doubt]), torch.stack([sure, other, doubt])])
    log2 = math.log(2)
    torch.testing.assert_close(predictive_entropy(cases), torch.tensor([0, log2, log2]), atol=1e-6, rtol=0)
    # Agreed: nothing; opposed: all of it is disagreement; both in doubt: none of it is.
    torch.testing.assert_close(mutual_information(cases), torch.tensor([0, log2, 0]), atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), members=st.integers(1, 5), scale=st.floats(0.1, 20))
def test_information_lies_between_nothing_and_the_entropy(seed, members, scale):
    generator = torch.Generator().manual_seed(seed)
    answers = (scale * torch.randn(members, 7, 4, generator=generator)).double().log_softmax(-1)
    entropy, information = predictive_entropy(answers), mutual_information(answers)
    assert (information >= 0).all() and (information <= entropy + 1e-9).all() and (entropy <= math.log(4) + 1e-9).all()
    if members == 1:
        torch.testing.assert_close(information, torch.zeros_like(information), atol=1e-12, rtol=0)


def test_calibration_error_by_hand():
    # Two bins of [0.5, 0.6) at 1/2 and of [0.8, 0.9) at 1: |1 - 0.5...| each with its share.
    probabilities = torch.tensor([[0.55, 0.45], [0.45, 0.55], [0.85, 0.15], [0.15, 0.85]])
    labels = torch.tensor([0, 0, 0, 1])
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx(0.5 * 0.05 + 0.5 * 0.15)
    assert expected_calibration_error(torch.eye(3), torch.arange(3)) == 0
    assert expected_calibration_error(torch.eye(3), (torch.arange(3) + 1) % 3) == 1


def test_answers_drawn_from_the_probabilities_are_calibrated():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(20000, 5, generator=generator).softmax(-1)
    labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    assert expected_calibration_error(probabilities, labels) < 0.02
    assert expected_calibration_error((3 * probabilities.log()).softmax(-1), labels) > 0.15


@pytest.mark.parametrize(
    ("probabilities", "labels", "bins", "message"),
    [
        (torch.randn(3, 2), torch.arange(3) % 2, 15, "sum to 1"),
        (torch.ones(3, 1), torch.zeros(2), 15, "expected"),
        (torch.ones(0, 2), torch.zeros(0), 15, "at least one example"),
        (torch.ones(2, 1), torch.zeros(2), 0, "bins=0"),
    ],
    ids=["logits", "labels", "empty", "bins"],
)
def test_what_has_no_calibration_is_refused(probabilities, labels, bins, message):
    with pytest.raises(InputError, match=message):
        expected_calibration_error(probabilities, labels, bins)


# ---- Diversity and coherence ---------------------------------------------------------------------------------------


def test_alignment_does_not_see_rotation_scale_or_shift():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(40, 6, generator=generator)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    assert linear_cka(first, 3 * first @ rotation + 5) == pytest.approx(1, abs=1e-9)
    assert linear_cka(first, first[:, :3]) < 0.999


def test_alignment_of_unrelated_representations_is_nothing_even_with_many_features():
    generator = torch.Generator().manual_seed(0)
    values = [linear_cka(*torch.randn(2, 50, 500, generator=generator)) for _ in range(20)]
    # The plain estimator gives 0.9 here.
    assert abs(np.mean(values)) < 0.02


def test_alignment_agrees_with_the_definition_of_the_unbiased_estimator():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(9, 3, generator=generator).double() for _ in range(2))

    def hsic(k, n):
        # The mean over all quadruples of distinct inputs, of which the closed form is a shortcut.
        first, second = k
        total, count = 0.0, 0
        for i in range(n):
            for j in range(n):
                for q in range(n):
                    for r in range(n):
                        if len({i, j, q, r}) == 4:
                            total += first[i, j] * (second[i, j] + second[q, r] - 2 * second[i, q])
                            count += 1
        return total / count

    kernels = [v @ v.T for v in (x, y)]
    wanted = hsic(kernels, 9) / (hsic([kernels[0]] * 2, 9) * hsic([kernels[1]] * 2, 9)) ** 0.5
    assert linear_cka(x, y) == pytest.approx(float(wanted), rel=1e-9)


def test_copies_have_no_diversity_and_strangers_have_some_in_every_layer():
    inputs = {"pixel_values": torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    same = layer_diversity([cnn(0), cnn(0), cnn(0)], inputs)
    strangers = layer_diversity([cnn(0), cnn(1), cnn(2)], inputs)
    layers = ["convolutions.0", "convolutions.1", "hidden.0", "hidden.1", "classifier"]
    assert list(same) == list(strangers) == layers
    assert all(abs(value) < 1e-9 for value in same.values())
    assert all(value > 0.02 for value in strangers.values())
    one = [layer_activations(cnn(seed), inputs, ["hidden.0"])["hidden.0"] for seed in range(3)]
    assert representation_diversity(one) == pytest.approx(strangers["hidden.0"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: layer_diversity([cnn()], {"pixel_values": x}), "1 given"),
        (lambda x: layer_activations(cnn(), {"pixel_values": x}, ["layer9"]), "'layer9' is no module"),
        (lambda x: linear_cka(x.flatten(1)[:3], x.flatten(1)[:3]), "3 and 3 inputs"),
        (lambda x: linear_cka(x.flatten(1), x.flatten(1)[:5]), "8 and 5 inputs"),
        (lambda x: representation_diversity([x.flatten(1)]), "at least 2 networks"),
        (lambda x: layer_diversity([cnn(), vit()], {"pixel_values": x}), None),
        (lambda x: input_coherence(x.flatten(1), x.flatten(1)[:, 1:]), "give both"),
    ],
    ids=["one", "layer", "few", "unequal", "one table", "strangers", "coherence"],
)
def test_what_cannot_be_compared_is_refused(call, message):
    inputs = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    if message is None:
        # Both call their head `classifier`: what they share is compared.
        assert list(call(inputs)) == ["classifier"]
        return
    with pytest.raises(InputError, match=message):
        call(inputs)


def test_coherence_is_a_cosine_however_small_the_gradients():
    gradients = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    surrogate = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    wanted = torch.tensor([1.0, 0.5**0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(input_coherence(gradients, surrogate), wanted)
    torch.testing.assert_close(input_coherence(gradients * 1e-30, surrogate), wanted)


def test_input_gradients_are_those_of_each_input_alone():
    model, pixels, labels = cnn(), batch("cnn")["pixel_values"].double(), torch.tensor([0, 1, 2, 3, 0])
    model = model.double()
    found = input_gradients(model, pixels, labels)
    step = torch.zeros_like(pixels)
    step[2, 1, 3, 4] = 1e-6
    with torch.no_grad():
        up, down = (nn.functional.cross_entropy(model(pixels + s).logits[2], labels[2]) for s in (step, -step))
    assert float(found[2].view(3, 8, 8)[1, 3, 4]) == pytest.approx(float((up - down) / 2e-6), rel=1e-4)
    assert input_coherence(found, found).tolist() == pytest.approx([1.0] * 5)


def test_the_package_names_the_ensemble():
    import hf_fip

    assert hf_fip.Ensemble is Ensemble and "Ensemble" in hf_fip.__all__
