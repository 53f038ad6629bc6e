"""
Attacks on image classifiers: bounded changes of the pixels that raise the loss.

What an attack proves depends on whose gradients it follows. Made on the network that is measured it is *white-box*;
made on another one, the surrogate, it is a *transfer* attack, and an accuracy that survives it says nothing of an
attacker who has the network itself.

No library: both attacks are short, torchattacks needs torchvision and an old version of requests, and foolbox and ART
put wrappers of their own around a model.
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
    The fast gradient sign method (Goodfellow et al., 2015): one step of `epsilon` along the sign of the gradient,
    whether or not it serves.

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
        [`InputError`]: `epsilon` not above 0, pixels outside [0, 1], labels that do not fit, an unknown loss, or
            outputs that are not finite.
    """
    attack = _Attack(model, pixel_values, labels, epsilon=epsilon, scale=scale, loss=loss, batch_size=batch_size)
    return attack.found(attack.once)


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
            the first time at the image.
        scale ([`PixelScale`], *optional*): how `pixel_values` come from pixels; by default they are pixels.
        loss (`str`, *optional*, defaults to `"cross_entropy"`): or `"margin"`.
        seed (`int`, *optional*, defaults to 0): of the random starts; the first of more restarts are those of fewer.
        batch_size (`int`, *optional*, defaults to 256): images at a time; no result depends on it.

    Returns:
        `torch.Tensor`: the attacked `pixel_values`, whose pixels lie in [0, 1] and within `epsilon` of the given ones.

    Raises:
        [`InputError`]: a bound, a step or a number of them not above 0, pixels outside [0, 1], labels that do not fit,
            an unknown loss, or outputs that are not finite.
    """
    attack = _Attack(model, pixel_values, labels, epsilon=epsilon, scale=scale, loss=loss, batch_size=batch_size)
    step_size = 2.5 * epsilon / max(steps, 1) if step_size is None else step_size
    if steps < 1 or restarts < 1 or not step_size > 0:
        raise InputError(f"steps={steps}, restarts={restarts}, step_size={step_size}: all lie above 0.")
    drawn = [attack.near(seed, number) if random_start or number else attack.pixels for number in range(restarts)]
    return attack.found(lambda part: attack.strongest(part, [start[part] for start in drawn], steps, step_size))


class _Attack:
    """What is attacked, checked and in pixels, and how: some images at a time."""

    def __init__(
        self,
        model: nn.Module,
        pixel_values: Tensor,
        labels: Tensor,
        *,
        epsilon: float,
        scale: PixelScale | None,
        loss: str,
        batch_size: int,
    ) -> None:
        self.model, self.epsilon, self.batch_size = model, epsilon, batch_size
        self.scale = scale or PixelScale()
        if not (epsilon > 0 and math.isfinite(epsilon)):
            raise InputError(f"epsilon={epsilon}: give the largest change of a pixel, above 0, as 8 / 255.")
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: give at least 1.")
        if loss not in LOSSES:
            raise InputError(f"loss={loss!r} is unknown; choose one of: {', '.join(LOSSES)}")
        if pixel_values.ndim != 4 or not len(pixel_values) or labels.shape != pixel_values.shape[:1]:
            raise InputError(
                f"pixel_values {tuple(pixel_values.shape)}, labels {tuple(labels.shape)}: expected (batch, channels, "
                "height, width) and (batch,), with at least one image."
            )
        pixels = self.scale.to_pixels(pixel_values.detach())
        # Written so that NaN is refused too.
        if not (float(pixels.min()) >= -1e-3 and float(pixels.max()) <= 1 + 1e-3):
            raise InputError(
                f"pixel_values are pixels from {float(pixels.min()):.3g} to {float(pixels.max()):.3g}, not within "
                "[0, 1]: give the image processor's scale, PixelScale.from_processor(processor)."
            )
        self.loss, self.labels, self.pixels = LOSSES[loss], labels, pixels.clamp(0, 1)

    def found(self, attack: Callable[[Tensor], Tensor]) -> Tensor:
        """Attacked `pixel_values`, from an attack on the images with these indices."""
        return self.scale.to_pixel_values(
            torch.cat([attack(part) for part in torch.arange(len(self.pixels)).split(self.batch_size)])
        )

    def near(self, seed: int, restart: int) -> Tensor:
        """A point of the ball around each image. Drawn on the CPU, so that all devices draw alike."""
        generator = torch.Generator().manual_seed(1_000_003 * seed + restart)
        noise = torch.rand(self.pixels.shape, generator=generator).to(self.pixels)
        return (self.pixels + self.epsilon * (2 * noise - 1)).clamp(0, 1)

    def once(self, part: Tensor) -> Tensor:
        pixels = self.pixels[part].requires_grad_()
        with torch.enable_grad():
            _, losses = self._measured(pixels, self.labels[part])
        return self._moved(pixels, losses, self.epsilon).clamp(0, 1)

    def strongest(self, part: Tensor, starts: list[Tensor], steps: int, step_size: float) -> Tensor:
        pixels, labels = self.pixels[part], self.labels[part]
        low, high = (pixels - self.epsilon).clamp(min=0), (pixels + self.epsilon).clamp(max=1)
        best, best_loss = pixels.clone(), pixels.new_full((len(pixels),), -math.inf)
        best_wrong = torch.zeros_like(labels, dtype=torch.bool)
        for start in starts:
            attacked = start
            for step in range(steps + 1):
                last = step == steps
                attacked = attacked.detach().requires_grad_(not last)
                with torch.set_grad_enabled(not last):
                    wrong, losses = self._measured(attacked, labels)
                better = (wrong & ~best_wrong) | ((wrong == best_wrong) & (losses.detach() > best_loss))
                best[better], best_loss[better] = attacked.detach()[better], losses.detach()[better]
                best_wrong |= wrong
                if not last:
                    attacked = self._moved(attacked, losses, step_size).clamp(low, high)
        return best

    def _measured(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Which images are classified wrongly, and their losses."""
        logits = logits_of(self.model(pixel_values=self.scale.to_pixel_values(pixels)))
        if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[-1]:
            raise InputError(
                f"labels from {int(labels.min())} to {int(labels.max())}: the model has {logits.shape[-1]} classes."
            )
        losses = self.loss(logits, labels)
        _refuse_not_finite(losses)
        return logits.detach().argmax(-1) != labels, losses

    def _moved(self, pixels: Tensor, losses: Tensor, length: float) -> Tensor:
        (gradient,) = torch.autograd.grad(losses, pixels, torch.ones_like(losses))
        _refuse_not_finite(gradient)
        return pixels.detach() + length * gradient.sign()


def _refuse_not_finite(values: Tensor) -> None:
    # An attack that nothing can steer would find nothing, and pass for robustness.
    if not torch.isfinite(values).all():
        raise InputError("model: its loss on attacked images, or the gradient, is not finite; check its weights.")
