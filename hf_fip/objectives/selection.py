"""The smallest of very many scores, exactly, without sorting them: where a network is cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


# Values whose order brackets the threshold, and values looked at together, which stay in the processor's cache.
SAMPLE = 2**16
CHUNK = 2**16
# Below this many values one partition is faster than sampling.
FEW = 2**18


@dataclass(frozen=True)
class Threshold:
    """
    The k-th smallest of some magnitudes.

    Args:
        value (`float`): The magnitude.
        below (`int`): How many are strictly smaller.
        equal (`int`): How many are equal to it.
    """

    value: float
    below: int
    equal: int


def kth_smallest(values: Sequence[Tensor], k: int) -> Threshold:
    """
    The exact k-th smallest of all |values|.

    On a CPU a sample brackets the threshold; a single pass over the float bits, whose order as integers is that of the
    magnitudes, counts what lies below the bracket and collects the few values inside (after Floyd and Rivest,
    "Expected time bounds for selection", 1975). A bracket that misses is widened.

    Args:
        values (sequence of `Tensor`): Floating-point tensors of any shapes, on one device. NaN counts as largest.
        k (`int`): From 1 to the number of values.

    Returns:
        [`Threshold`]
    """
    if values[0].device.type != "cpu":
        return _on_device(torch.cat([value.detach().abs().flatten().float() for value in values]), k)
    total = sum(value.numel() for value in values)
    if total <= FEW:
        return _of_few(np.concatenate(list(_bits(values, FEW))), k)
    low, high = _bracket(values, total, k)
    while True:
        below, inside = _count(values, low, high)
        if below < k <= below + len(inside):
            found = _of_few(inside, k - below)
            return Threshold(found.value, found.below + below, found.equal)
        # All bits: the next pass is sure to succeed.
        low, high = low.dtype.type(0), np.iinfo(low.dtype).max


def smallest(scores: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """
    Marks exactly the `k` smallest of all |scores|; of equal ones, those that come first.

    Args:
        scores (mapping of `str` to `Tensor`): Floating-point scores by name.
        k (`int`): From 0 to the number of scores.

    Returns:
        `dict[str, torch.Tensor]`: boolean, true at the `k` smallest, in the scores' shapes.
    """
    if k <= 0 or not scores:
        return {name: torch.zeros_like(score, dtype=torch.bool) for name, score in scores.items()}
    threshold = kth_smallest(list(scores.values()), k)
    marked = {name: score.detach().abs() <= threshold.value for name, score in scores.items()}
    surplus = threshold.below + threshold.equal - k
    for name in reversed(list(marked)) if surplus else ():
        tied = (scores[name].detach().abs() == threshold.value).flatten().nonzero()[:, 0]
        spared = tied[max(0, len(tied) - surplus) :]
        marked[name].view(-1)[spared] = False
        surplus -= len(spared)
        if surplus == 0:
            break
    return marked


def _on_device(magnitudes: Tensor, k: int) -> Threshold:
    value = magnitudes.kthvalue(k).values
    counts = torch.stack([value.double(), (magnitudes < value).sum().double(), (magnitudes == value).sum().double()])
    found, below, equal = counts.tolist()
    return Threshold(found, int(below), int(equal))


def _bits(values: Sequence[Tensor], size: int) -> Iterator[np.ndarray]:
    """Magnitudes as unsigned integers of the same order, in chunks of at most `size`."""
    for value in values:
        flat = value.detach().reshape(-1)
        if flat.dtype not in (torch.float32, torch.float64):
            flat = flat.float()
        bits, mask = _unsigned(flat.numpy())
        for start in range(0, len(bits), size):
            yield bits[start : start + size] & mask


def _unsigned(values: np.ndarray) -> tuple[np.ndarray, np.unsignedinteger]:
    unsigned = np.uint32 if values.dtype == np.float32 else np.uint64
    return values.view(unsigned), unsigned(np.iinfo(unsigned).max >> 1)


def _float(bits: np.unsignedinteger) -> float:
    return float(bits.view(np.float32 if bits.dtype == np.uint32 else np.float64))


def _of_few(bits: np.ndarray, k: int) -> Threshold:
    value = np.partition(bits, k - 1)[k - 1]
    return Threshold(_float(value), int(np.count_nonzero(bits < value)), int(np.count_nonzero(bits == value)))


def _bracket(values: Sequence[Tensor], total: int, k: int) -> tuple[np.unsignedinteger, np.unsignedinteger]:
    """Bits between which the k-th value lies, but for about one time in a million."""
    rng = np.random.default_rng(0)
    drawn = []
    for value in values:
        size = max(1, SAMPLE * value.numel() // total)
        indices = torch.from_numpy(rng.integers(0, value.numel(), size))
        drawn.append(value.detach().reshape(-1)[indices])
    sample = np.sort(np.concatenate(list(_bits(drawn, SAMPLE))))
    share = k / total
    spread = 5 * np.sqrt(share * (1 - share) * len(sample)) + 5
    low, high = int(share * len(sample) - spread), int(share * len(sample) + spread)
    top = np.iinfo(sample.dtype).max
    return (sample[low] if low >= 0 else sample.dtype.type(0)), (sample[high] if high < len(sample) else top)


def _count(
    values: Sequence[Tensor], low: np.unsignedinteger, high: np.unsignedinteger | int
) -> tuple[int, np.ndarray]:
    """How many magnitudes are below `low`, and those from `low` to `high`."""
    dtype = low.dtype
    bits, marked = np.empty(CHUNK, dtype), np.empty(CHUNK, bool)
    width = dtype.type(int(high) - int(low))
    below, inside = 0, []
    for value in values:
        flat = value.detach().reshape(-1)
        if flat.dtype not in (torch.float32, torch.float64):
            flat = flat.float()
        whole, mask = _unsigned(flat.numpy())
        for start in range(0, len(whole), CHUNK):
            chunk = whole[start : start + CHUNK]
            part, found = bits[: len(chunk)], marked[: len(chunk)]
            np.bitwise_and(chunk, mask, out=part)
            below += int(np.count_nonzero(np.less(part, low, out=found)))
            # Unsigned differences wrap around: one comparison finds both ends of the bracket.
            np.subtract(part, low, out=part)
            np.less_equal(part, width, out=found)
            # Few lie inside: look at eight marks at a time.
            marked[len(chunk) : -(-len(chunk) // 8) * 8] = False
            eights = np.flatnonzero(marked[: -(-len(chunk) // 8) * 8].view(np.uint64))
            near = bits.reshape(-1, 8)[eights][marked.reshape(-1, 8)[eights]]
            inside.append(near + low)
    return below, np.concatenate(inside)
