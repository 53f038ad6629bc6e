"""Packing a tensor loses nothing, and what is damaged is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_fip.errors import InputError
from hf_fip.storage import bitmask, gaps, grid
from hf_fip.storage.encoding import decode, encode


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SPECIAL = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-40, 1.0]


def assert_same_bits(result: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal bit by bit, except that negative zero has become positive zero."""
    assert result.shape == expected.shape and result.dtype == expected.dtype
    expected = torch.where(expected == 0, torch.zeros_like(expected), expected)
    bits = [
        tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
        for tensor in (result, expected)
    ]
    assert torch.equal(*bits)


@st.composite
def tensors(draw, dims=(0, 3)):
    shape = draw(st.lists(st.integers(0, 70), min_size=dims[0], max_size=dims[1]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
    kept = draw(st.sampled_from([0.0, 0.001, 0.02, 0.1, 0.5, 1.0]))
    tensor = tensor * (torch.rand(shape, generator=generator) < kept)
    special = draw(st.sampled_from(SPECIAL))
    tensor[torch.rand(shape, generator=generator) < 0.01] = special
    return tensor.to(draw(st.sampled_from(DTYPES)))


@given(tensors())
def test_bitmask_and_gaps_give_back_every_bit(tensor):
    for form in (bitmask, gaps):
        where, values, shape = form.pack(tensor)
        assert_same_bits(form.unpack(where, values, shape), tensor)
    assert bitmask.pack(tensor)[0].nbytes == -(-tensor.numel() // 8)


@given(tensors(dims=(2, 3)), st.sampled_from(["auto", "bitmask", "gaps"]))
def test_what_is_encoded_is_smaller_and_gives_back_every_bit(tensor, positions):
    parts = encode(tensor, positions=positions)
    if parts is not None:
        assert_same_bits(decode(parts), tensor)
        assert sum(part.nbytes for part in parts.values()) < tensor.nbytes


def test_runs_of_zeros_longer_than_a_gap_can_say():
    for length in (254, 255, 256, 510, 32766, 32767, 32768, 100_000):
        for values in ([], [2.0], [2.0, 3.0]):
            tensor = torch.cat([*(torch.tensor([*[0.0] * length, value]) for value in values), torch.zeros(length)])
            where, kept, shape = gaps.pack(tensor)
            assert torch.equal(gaps.unpack(where, kept, shape), tensor)


@pytest.mark.parametrize("kept", [0.002, 0.5, 1.0])
def test_tensors_of_many_chunks(kept):
    torch.manual_seed(0)
    tensor = torch.randn(3, bitmask.CHUNK + 5) * (torch.rand(3, bitmask.CHUNK + 5) < kept)
    tensor[1, -700:] = 0.0
    for form in (bitmask, gaps):
        where, values, shape = form.pack(tensor)
        assert torch.equal(form.unpack(where, values, shape), tensor)
        for wrong in (values[1:], torch.cat([values, values[:1]])):
            with pytest.raises(InputError, match=f"{len(wrong)} are stored"):
                form.unpack(where, wrong, shape)


def test_views_that_are_not_contiguous():
    tensor = (torch.randn(90, 80) * (torch.rand(90, 80) < 0.1)).T[::2]
    assert torch.equal(decode(encode(tensor)), tensor)


@pytest.mark.parametrize("levels", [127, 100, 7, 1])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_on_a_grid_are_stored_as_integers(levels, sparsity, dtype):
    torch.manual_seed(0)
    scale = torch.rand(60, dtype=dtype) + 0.1
    codes = torch.randint(-levels, levels + 1, (60, 200)) * (torch.rand(60, 200) >= sparsity)
    weight = codes.to(dtype) * scale[:, None]
    parts = encode(weight)
    assert_same_bits(decode(parts), weight)
    content = parts["nibbles"] if levels <= 7 else parts["codes"]
    kept = 1 - sparsity if {"bitmask", "gaps"} & parts.keys() else 1
    assert content.nbytes < 1.1 * kept * weight.numel() * (0.5 if levels <= 7 else 1)


def test_a_narrow_grid_needs_its_scale():
    scale = (torch.rand(40) + 0.1).bfloat16()
    weight = torch.randint(-127, 128, (40, 100)).bfloat16() * scale[:, None]
    assert encode(weight) is None
    parts = encode(weight, scale=scale)
    assert parts["codes"].dtype == torch.int8
    assert_same_bits(decode(parts), weight)


def test_weights_on_no_grid_are_not_taken_for_one():
    torch.manual_seed(0)
    weight = torch.randn(50, 60)
    assert grid.find_scale(weight) is None and encode(weight) is None
    on_grid = (weight / 0.01).round() * 0.01
    on_grid[30, 7] += 1e-6
    assert grid.find_scale(on_grid) is None
    with pytest.raises(InputError, match="grid"):
        encode(weight, scale=torch.full((50,), 0.01))


@given(st.lists(st.integers(-8, 7), max_size=9))
def test_nibbles(codes):
    codes = torch.tensor(codes, dtype=torch.int8)
    packed = grid.pack_nibbles(codes)
    assert packed.nbytes == -(-len(codes) // 2)
    assert torch.equal(grid.unpack_nibbles(packed, len(codes)), codes)


def sparse_parts(kept: float = 0.3) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return encode(torch.randn(40, 50) * (torch.rand(40, 50) < kept))


def damages() -> dict[str, dict[str, torch.Tensor]]:
    parts, few = sparse_parts(), sparse_parts(0.02)
    on_grid = encode((torch.randn(40, 50) / 0.01).round().clamp(-127, 127) * torch.tensor(0.01), positions="bitmask")
    return {
        "values short": {**parts, "values": parts["values"][1:]},
        "values of integers": {**parts, "values": parts["values"].int()},
        "values missing": {name: part for name, part in parts.items() if name != "values"},
        "shape missing": {name: part for name, part in parts.items() if name != "shape"},
        "shape negative": {**parts, "shape": -parts["shape"]},
        "shape of another size": {**parts, "shape": torch.tensor([41, 50])},
        "shape of floats": {**parts, "shape": parts["shape"].float()},
        "bitmask short": {**parts, "bitmask": parts["bitmask"][1:]},
        "bit flipped": {**parts, "bitmask": parts["bitmask"] ^ torch.eye(1, len(parts["bitmask"])).byte()[0]},
        "bitmask as integers": {**parts, "bitmask": parts["bitmask"].int()},
        "gaps short": {**few, "gaps": few["gaps"][1:]},
        "gaps beyond the end": {**few, "gaps": few["gaps"].clamp_min(200)},
        "gaps negative": {**few, "gaps": -few["gaps"].to(torch.int16)},
        "gaps for a huge shape": {**few, "shape": torch.tensor([1 << 30, 1 << 20])},
        "two kinds of positions": {**parts, "gaps": few["gaps"]},
        "codes without scale": {name: part for name, part in on_grid.items() if name != "scale"},
        "scale of another length": {**on_grid, "scale": on_grid["scale"][1:]},
        "codes short": {**on_grid, "codes": on_grid["codes"][1:]},
    }


@pytest.mark.parametrize("damage", damages())
def test_damaged_parts_are_refused_in_one_line(damage):
    with pytest.raises(InputError) as error:
        decode(damages()[damage])
    assert "\n" not in str(error.value)


def test_unpacking_elsewhere_than_on_the_cpu_gives_the_same():
    tensor = torch.randn(40, 51) * (torch.rand(40, 51) < 0.3)
    where = tensor.flatten().nonzero().flatten()
    for places in ([(0, where)], [(0, where[:70]), (40, where[70:] - 40)]):
        placed = bitmask.place(places, tensor.flatten()[where], tensor.numel())
        assert torch.equal(placed.view_as(tensor), tensor)
    bits, values, _ = bitmask.pack(tensor)
    assert torch.equal(bitmask.place(bitmask._places_at_once(bits), values, tensor.numel()).view_as(tensor), tensor)
