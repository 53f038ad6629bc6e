"""
Attacks on image classifiers: bounded changes of the pixels that raise the loss.

What an attack proves depends on whose gradients it follows. Made on the network that is measured it is *white-box*;
made on another one, the surrogate, it is a *transfer* attack, and an accuracy that survives it says nothing of an
attacker who has the network itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .errors import InputError
from .forward import logits_of


@dataclass(frozen=True)
class PixelScale:
    """
    How `pixel_values` come from pixels in [0, 1]: `(pixels - mean) / std`, each channel by itself. Attacks are bounded
    in pixels, and models read `pixel_values`.

    Args:
        mean (`tuple[float, ...]`, *optional*, defaults to `(0.0,)`): one value for each channel, or one for all.
        std (`tuple[float, ...]`, *optional*, defaults to `(1.0,)`): likewise.

    Raises:
        [`InputError`]: lengths that differ, or a `std` of zero.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise InputError(f"mean={self.mean}, std={self.std}: give as many of each, every std above 0.")

    @classmethod
    def from_processor(cls, processor: Any) -> PixelScale:
        """
        The scale of an image processor, whose resizing and cropping play no part: what is attacked is what the model
        reads.

        Args:
            processor: an image processor with `image_mean`, `image_std` and `rescale_factor`.

        Raises:
            [`InputError`]: its pixels are not rescaled to [0, 1], so that a bound in pixels has no meaning.
        """
        factor = processor.rescale_factor if getattr(processor, "do_rescale", False) else 1.0
        if not math.isclose(255 * factor, 1, rel_tol=1e-3):
            raise InputError(f"processor: rescale_factor={factor} does not scale 0…255 to 0…1; use 1 / 255.")
        if not getattr(processor, "do_normalize", False):
            return cls()
        return cls(tuple(processor.image_mean), tuple(processor.image_std))

    def to_pixels(self, pixel_values: Tensor) -> Tensor:
        """From `pixel_values`, `[batch, channels, height, width]`, to pixels in [0, 1]."""
        return pixel_values * self._channels(self.std, pixel_values) + self._channels(self.mean, pixel_values)

    def to_pixel_values(self, pixels: Tensor) -> Tensor:
        """From pixels in [0, 1] to what the model reads."""
        return (pixels - self._channels(self.mean, pixels)) / self._channels(self.std, pixels)

    def _channels(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        if len(values) not in (1, like.shape[1]):
            raise InputError(f"scale has {len(values)} channels and pixel_values have {like.shape[1]}; give one each.")
        return like.new_tensor(values).view(1, -1, 1, 1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """
    How far the best wrong output lies above the right one, `[batch]`; positive where the prediction is wrong. Its
    gradient does not vanish where a network is sure of itself (Carlini and Wagner, 2017, f6 with the sign turned).

    Args:
        logits (`torch.Tensor`): `[batch, classes]`.
        labels (`torch.Tensor`): `[batch]`.
    """
    right = torch.nn.functional.one_hot(labels, logits.shape[-1]).bool()
    return logits.masked_fill(right, -math.inf).amax(-1) - logits[right]


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels, reduction="none")


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": _cross_entropies, "margin": margin}


def fgsm(
    model: nn.Module,
    pixel_values: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    scale: PixelScale | None = None,
    loss: str = "cross_entropy",
    batch_size: int = 256,
) -> Tensor:
    """
    The fast gradient sign method (Goodfellow et al., 2015): one step of `epsilon` along the sign of the gradient.

    Args:
        model (`nn.Module`): whose gradients are followed; used as it is, so put it in evaluation mode.
        pixel_values (`torch.Tensor`): `[batch, channels, height, width]`, as the model reads them.
        labels (`torch.Tensor`): `[batch]`, the right classes.
        epsilon (`float`): the largest change of a pixel, on the scale from 0 to 1.
        scale ([`PixelScale`], *optional*): how `pixel_values` come from pixels; by default they are pixels.
        loss (`str`, *optional*, defaults to `"cross_entropy"`): or `"margin"`.
        batch_size (`int`, *optional*, defaults to 256): images at a time; no result depends on it.

    Returns:
        `torch.Tensor`: the attacked `pixel_values`, whose pixels lie in [0, 1] and within `epsilon` of the given ones.

    Raises:
        [`InputError`]: `epsilon` not above 0, pixels outside [0, 1], labels that do not fit, or an unknown loss.
    """
    return pgd(
        model,
        pixel_values,
        labels,
        epsilon=epsilon,
        step_size=epsilon,
        steps=1,
        random_start=False,
        scale=scale,
        loss=loss,
        batch_size=batch_size,
    )


def pgd(
    model: nn.Module,
    pixel_values: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    scale: PixelScale | None = None,
    loss: str = "cross_entropy",
    seed: int = 0,
    batch_size: int = 256,
) -> Tensor:
    """
    Projected gradient descent in the L∞ ball (Madry et al., 2018): steps along the sign of the loss's gradient, each
    followed by the projection onto the ball and onto [0, 1].

    Of all iterates of all restarts each image keeps the strongest: a wrongly classified one before a rightly
    classified one, then the one with the higher loss. So more restarts never help the model.

    Args:
        model (`nn.Module`): whose gradients are followed; used as it is, so put it in evaluation mode.
        pixel_values (`torch.Tensor`): `[batch, channels, height, width]`, as the model reads them.
        labels (`torch.Tensor`): `[batch]`, the right classes.
        epsilon (`float`): the largest change of a pixel, on the scale from 0 to 1.
        steps (`int`, *optional*, defaults to 20): gradients per restart.
        step_size (`float`, *optional*, defaults to `2.5 * epsilon / steps`): change of a pixel per step, on the same
            scale; the default reaches the ball's border from anywhere in it.
        restarts (`int`, *optional*, defaults to 1): how often to start anew.
        random_start (`bool`, *optional*, defaults to `True`): start at a uniformly drawn point of the ball; otherwise
            at the image.
        scale ([`PixelScale`], *optional*): how `pixel_values` come from pixels; by default they are pixels.
        loss (`str`, *optional*, defaults to `"cross_entropy"`): or `"margin"`.
        seed (`int`, *optional*, defaults to 0): of the random starts; the first of more restarts are those of fewer.
        batch_size (`int`, *optional*, defaults to 256): images at a time; no result depends on it.

    Returns:
        `torch.Tensor`: the attacked `pixel_values`, whose pixels lie in [0, 1] and within `epsilon` of the given ones.

    Raises:
        [`InputError`]: a bound, a step or a number of them not above 0, pixels outside [0, 1], labels that do not fit,
            or an unknown loss.
    """
    scale = scale or PixelScale()
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise InputError(f"epsilon={epsilon}: give the largest change of a pixel, above 0, as 8 / 255.")
    step_size = 2.5 * epsilon / max(steps, 1) if step_size is None else step_size
    if steps < 1 or restarts < 1 or batch_size < 1 or not step_size > 0:
        raise InputError(
            f"steps={steps}, restarts={restarts}, step_size={step_size}, batch_size={batch_size}: all lie above 0."
        )
    if loss not in LOSSES:
        raise InputError(f"loss={loss!r} is unknown; choose one of: {', '.join(LOSSES)}")
    if pixel_values.ndim != 4 or not len(pixel_values) or labels.shape != pixel_values.shape[:1]:
        raise InputError(
            f"pixel_values {tuple(pixel_values.shape)}, labels {tuple(labels.shape)}: expected (batch, channels, "
            "height, width) and (batch,), with at least one image."
        )
    pixels = scale.to_pixels(pixel_values)
    if float(pixels.min()) < -1e-3 or float(pixels.max()) > 1 + 1e-3:
        raise InputError(
            f"pixel_values are pixels from {float(pixels.min()):.3g} to {float(pixels.max()):.3g}, not within [0, 1]: "
            "give the image processor's scale, PixelScale.from_processor(processor)."
        )
    pixels = pixels.clamp(0, 1)
    starts = [pixels] if not random_start else [_near(pixels, epsilon, seed, number) for number in range(restarts)]
    found = [
        _strongest(
            lambda images: logits_of(model(pixel_values=scale.to_pixel_values(images))),
            pixels[part],
            [start[part] for start in starts],
            labels[part],
            epsilon=epsilon,
            steps=steps,
            step_size=step_size,
            loss=LOSSES[loss],
        )
        for part in torch.arange(len(pixels)).split(batch_size)
    ]
    return scale.to_pixel_values(torch.cat(found))


def _near(pixels: Tensor, epsilon: float, seed: int, restart: int) -> Tensor:
    """A point of the ball around each image. Drawn on the CPU, so that all devices draw alike."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + restart)
    noise = torch.rand(pixels.shape, generator=generator).to(pixels)
    return (pixels + epsilon * (2 * noise - 1)).clamp(0, 1)


def _strongest(
    logits: Callable[[Tensor], Tensor],
    pixels: Tensor,
    starts: list[Tensor],
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    low, high = (pixels - epsilon).clamp(min=0), (pixels + epsilon).clamp(max=1)
    best, best_loss = pixels.clone(), pixels.new_full((len(pixels),), -math.inf)
    best_wrong = torch.zeros_like(labels, dtype=torch.bool)
    for start in starts:
        attacked = start
        for step in range(steps + 1):
            last = step == steps
            attacked = attacked.detach().requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                outputs = logits(attacked)
                losses = loss(outputs, labels)
            wrong = outputs.detach().argmax(-1) != labels
            better = (wrong & ~best_wrong) | ((wrong == best_wrong) & (losses.detach() > best_loss))
            best[better], best_loss[better] = attacked.detach()[better], losses.detach()[better]
            best_wrong |= wrong
            if not last:
                (gradient,) = torch.autograd.grad(losses.sum(), attacked)
                attacked = (attacked.detach() + step_size * gradient.sign()).clamp(low, high)
    return best
