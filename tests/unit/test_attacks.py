"""Attacks: bounds in pixels whatever the model reads, strength, and the optimum where it is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_fip.attacks import PixelScale, fgsm, margin, pgd
from hf_fip.errors import InputError
from hf_fip.models import FiveLayerCNNConfig, FiveLayerCNNForImageClassification


SCALE = PixelScale((0.4, 0.5, 0.3), (0.2, 0.25, 0.3))


class Linear(nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(inputs, 2)

    def forward(self, pixel_values):
        return {"logits": self.layer(pixel_values.flatten(1))}


def network(seed: int = 0, channels: int = 3) -> FiveLayerCNNForImageClassification:
    torch.manual_seed(seed)
    config = FiveLayerCNNConfig(
        num_channels=channels, image_size=12, channels=(4, 4), hidden_sizes=(16, 8), num_labels=4
    )
    model = FiveLayerCNNForImageClassification(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return model.eval()


def images(number: int = 16, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(number, channels, 12, 12, generator=generator)
    # Some pixels at the ends of the range, which no attack may leave.
    pixels = ((pixels - 0.5) * 1.5 + 0.5).clamp(0, 1)
    return SCALE.to_pixel_values(pixels), torch.randint(0, 4, (number,), generator=generator)


def losses(model: nn.Module, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(pixel_values).logits, labels, reduction="none")


@settings(max_examples=12, deadline=None)
@given(
    epsilon=st.sampled_from([1 / 255, 8 / 255, 0.3, 2.0]),
    steps=st.integers(1, 4),
    restarts=st.integers(1, 2),
    random_start=st.booleans(),
    loss=st.sampled_from(["cross_entropy", "margin"]),
)
def test_attacked_pixels_stay_near_and_in_range(epsilon, steps, restarts, random_start, loss):
    given_values, labels = images()
    attacked = pgd(
        network(),
        given_values,
        labels,
        epsilon=epsilon,
        steps=steps,
        restarts=restarts,
        random_start=random_start,
        scale=SCALE,
        loss=loss,
    )
    before, after = SCALE.to_pixels(given_values), SCALE.to_pixels(attacked)
    assert float((after - before).abs().max()) <= epsilon + 1e-6
    assert float(after.min()) >= -1e-6 and float(after.max()) <= 1 + 1e-6
    assert not attacked.requires_grad and attacked.dtype == given_values.dtype


def test_on_a_linear_model_both_reach_the_best_attack_there_is():
    model, scale = Linear(16), PixelScale((0.3,), (0.7,))
    pixels = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels, epsilon = torch.arange(20) % 2, 0.1
    weight = model.layer.weight[1] - model.layer.weight[0]
    # With two classes the loss rises along the difference of the rows, whatever the image: corner of box and range.
    towards = torch.where(labels[:, None] == 1, -weight.sign(), weight.sign()).view_as(pixels)
    best = (pixels + epsilon * towards).clamp(0, 1)
    for found in (
        fgsm(model, scale.to_pixel_values(pixels), labels, epsilon=epsilon, scale=scale),
        pgd(model, scale.to_pixel_values(pixels), labels, epsilon=epsilon, steps=30, scale=scale, loss="margin"),
    ):
        torch.testing.assert_close(scale.to_pixels(found), best, atol=1e-5, rtol=0)


def test_steps_are_stronger_than_one_step_and_both_than_none():
    values, labels = images(64)
    model = network()
    options = {"epsilon": 0.1, "scale": SCALE}
    clean, once = losses(model, values, labels), losses(model, fgsm(model, values, labels, **options), labels)
    often = losses(model, pgd(model, values, labels, steps=20, **options), labels)
    assert clean.mean() < once.mean() < often.mean()


class Wave(nn.Module):
    """Its loss rises from the middle of the range and falls again: a long step overshoots."""

    def forward(self, pixel_values):
        height = torch.sin(10 * (pixel_values.flatten(1).mean(1) - 0.5))
        return {"logits": torch.stack([height, torch.zeros_like(height)], 1)}


def test_one_step_is_taken_whether_or_not_it_serves():
    """FGSM is that step; of a longer attack an image keeps the best it has met."""
    pixels, labels = torch.full((3, 1, 2, 2), 0.51), torch.ones(3, dtype=torch.long)

    def height(attacked):
        return Wave()(attacked)["logits"][:, 0]

    with torch.no_grad():
        once = fgsm(Wave(), pixels, labels, epsilon=0.4)
    torch.testing.assert_close(once, pixels + 0.4)
    assert (height(once) < height(pixels)).all()
    assert (height(pgd(Wave(), pixels, labels, epsilon=0.4, steps=20, step_size=0.05)) > 0.95).all()


def test_without_a_random_start_the_first_attack_begins_at_the_image():
    values, labels = images(8)
    options = {"epsilon": 0.05, "steps": 2, "scale": SCALE, "random_start": False}
    alone = pgd(network(), values, labels, seed=0, **options)
    assert torch.equal(alone, pgd(network(), values, labels, seed=1, **options)), "nothing is drawn"
    more = pgd(network(), values, labels, restarts=4, **options)
    assert (losses(network(), more, labels) >= losses(network(), alone, labels) - 1e-5).all()
    assert not torch.equal(more, alone)


def test_more_restarts_are_never_worse_for_any_image():
    values, labels = images(64)
    model = network()
    options = {"epsilon": 0.05, "steps": 3, "scale": SCALE}
    before_wrong, before_losses = torch.zeros(64, dtype=torch.bool), torch.full((64,), -1.0)
    for restarts in (1, 2, 4):
        attacked = pgd(model, values, labels, restarts=restarts, **options)
        with torch.no_grad():
            wrong = model(attacked).logits.argmax(-1) != labels
        now = losses(model, attacked, labels)
        assert not (before_wrong & ~wrong).any()
        same = wrong == before_wrong
        assert (now[same] >= before_losses[same] - 1e-5).all()
        before_wrong, before_losses = wrong, now
    assert (now > losses(model, pgd(model, values, labels, **options), labels)).any()


def test_batches_and_repetition_change_nothing():
    values, labels = images(10)
    options = {"epsilon": 0.05, "steps": 4, "restarts": 2, "scale": SCALE}
    whole = pgd(network(), values, labels, **options)
    torch.testing.assert_close(pgd(network(), values, labels, batch_size=3, **options), whole, atol=1e-6, rtol=0)
    assert not torch.equal(pgd(network(), values, labels, **{**options, "seed": 1}), whole)


def test_the_model_is_left_as_it_was():
    model, (values, labels) = network(), images(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pgd(model, values, labels, epsilon=0.1, steps=2, scale=SCALE)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_the_scale_is_the_image_processors():
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5] * 3)
    scale = PixelScale.from_processor(processor)
    assert scale == PixelScale((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    picture = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    read = torch.tensor(
        processor([Image.fromarray(picture.permute(1, 2, 0).numpy())], return_tensors="np")["pixel_values"]
    )
    torch.testing.assert_close(scale.to_pixels(read)[0] * 255, picture.float(), atol=1e-3, rtol=0)
    processor.do_normalize = False
    assert PixelScale.from_processor(processor) == PixelScale()
    processor.rescale_factor = 1 / 127.5
    with pytest.raises(InputError, match="rescale_factor=0.0078"):
        PixelScale.from_processor(processor)


def test_margin_is_positive_exactly_where_the_prediction_is_wrong():
    logits, labels = torch.tensor([[3.0, 1.0, 2.0], [1.0, 5.0, 2.0]]), torch.tensor([0, 2])
    assert margin(logits, labels).tolist() == [-1.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0"),
        ({"epsilon": -0.1}, "epsilon=-0.1"),
        ({"epsilon": float("nan")}, "epsilon=nan"),
        ({"steps": 0}, "steps=0"),
        ({"restarts": 0}, "restarts=0"),
        ({"loss": "hinge"}, "loss='hinge'"),
        ({"scale": None}, "not within"),
        ({"scale": PixelScale((0.5, 0.5), (0.2, 0.2))}, "2 channels"),
        ({"pixel_values": torch.full((4, 3, 12, 12), math.nan)}, "not within"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "labels"),
        ({"labels": torch.tensor([0, 1, 2, 4])}, "labels from 0 to 4: the model has 4 classes"),
        ({"labels": torch.tensor([0, 1, 2, -100]), "loss": "margin"}, "labels from -100 to 2"),
        ({"pixel_values": torch.zeros(0, 3, 12, 12), "labels": torch.zeros(0, dtype=torch.long)}, "labels"),
    ],
    ids=["zero", "negative", "nan", "steps", "restarts", "loss", "no scale", "channels", "nan pixels", "batches"]
    + ["labels", "label too high", "no label", "empty"],
)
def test_bad_input_is_one_line(changes, message):
    values, labels = images(4)
    options = {"pixel_values": values, "labels": labels, "epsilon": 0.1, "scale": SCALE, **changes}
    with pytest.raises(InputError, match=message) as error:
        pgd(network(), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_a_network_without_finite_outputs_does_not_pass_for_robust(attack):
    values, labels = images(4)
    broken = network()
    with torch.no_grad():
        broken.classifier.bias[0] = math.nan
    with pytest.raises(InputError, match="not finite"):
        attack(broken, values, labels, epsilon=0.1, scale=SCALE)
    model = network()
    model.classifier.register_forward_pre_hook(lambda module, given: ((given[0] * 0).sqrt() + given[0],))
    with pytest.raises(InputError, match="gradient, is not finite"):
        attack(model, values, labels, epsilon=0.1, scale=SCALE)
