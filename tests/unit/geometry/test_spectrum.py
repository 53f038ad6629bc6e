"""Spectra against matrices whose eigenvalues are known, in float64."""

import json
import math

import numpy as np
import pytest
import torch

from hf_fip.errors import InputError
from hf_fip.geometry import DenseOperator, MetricTensor, Spectrum, find_spectrum
from hf_fip.geometry.density import lanczos_density
from hf_fip.geometry.krylov import Krylov
from hf_fip.geometry.pictures import spectrum_figure
from hf_fip.geometry.saved import load_spectra, save_spectrum
from hf_fip.models.lenet import LeNet300100Config, LeNet300100ForImageClassification


def operator(eigenvalues: list[float] | np.ndarray, dimension: int, dtype=torch.float64) -> DenseOperator:
    """A matrix with these eigenvalues, and zeros."""
    values = torch.zeros(dimension, dtype=torch.float64)
    values[: len(eigenvalues)] = torch.as_tensor(np.asarray(eigenvalues), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator, dtype=torch.float64))
    return DenseOperator(((q * values) @ q.T).to(dtype))


def lenet(anchors: int, metric: str = "l2", **options) -> MetricTensor:
    torch.manual_seed(0)
    config = LeNet300100Config(num_channels=1, image_size=6, num_labels=3, hidden_sizes=(20, 10))
    inputs = {"pixel_values": torch.randn(anchors, 1, 6, 6)}
    return MetricTensor(LeNet300100ForImageClassification(config), inputs, metric, dtype=torch.float64, **options)


# Eight orders of magnitude, as in a trained network.
WIDE = 10.0 ** np.linspace(2, -6, 120)


def test_the_largest_eigenvalues_are_exact():
    g = operator(WIDE, 700)
    found = find_spectrum(g, top=12, method="lanczos", vectors=True, tolerance=1e-10)
    np.testing.assert_allclose(found.eigenvalues, WIDE[:12], rtol=1e-9)
    v = found.vectors
    torch.testing.assert_close(v.T @ v, torch.eye(12, dtype=v.dtype), rtol=0.0, atol=1e-9)
    torch.testing.assert_close(g @ v, v * torch.tensor(found.eigenvalues), rtol=1e-6, atol=1e-6)
    assert found.method == "lanczos" and not found.is_exact and found.rank is None
    assert found.products >= 12 + 4 * 40


def test_the_density_tells_how_many_directions_are_flat():
    found = find_spectrum(operator(WIDE, 700), top=12, method="lanczos")
    assert sum(count for _, count in found.tail) == pytest.approx(700 - 12)
    for threshold in (10, 1, 0.1, 1e-2, 1e-3):
        assert found.count_above(threshold) == pytest.approx((threshold < WIDE).sum(), abs=8)
    assert found.trace == pytest.approx(WIDE.sum(), rel=0.05)
    assert found.participation_ratio == pytest.approx(WIDE.sum() ** 2 / (WIDE**2).sum(), rel=0.1)
    shares = WIDE / WIDE.sum()
    assert found.entropy_rank == pytest.approx(math.exp(-(shares @ np.log(shares))), rel=0.1)


def test_lanczos_steps_as_many_as_there_are_eigenvalues_give_them_exactly():
    values = [5.0] * 30 + [2.0] * 20
    tail = lanczos_density(operator(values, 100), probes=40, steps=3)
    counts = {value: sum(c for v, c in tail if abs(v - value) < 1e-6) for value in (5.0, 2.0, 0.0)}
    assert sum(counts.values()) == pytest.approx(100)
    assert counts[5.0] == pytest.approx(30, abs=4)
    assert counts[2.0] == pytest.approx(20, abs=4)
    assert counts[0.0] == pytest.approx(50, abs=4)


def test_known_eigenvectors_are_left_out_of_the_density():
    g = operator([1e6, 1.0, 1.0, 1.0], 50)
    _, vectors = torch.linalg.eigh(g.matrix)
    tail = lanczos_density(g, probes=20, steps=3, without=vectors[:, -1:])
    assert max(value for value, _ in tail) == pytest.approx(1.0)
    assert sum(count for value, count in tail if value > 0.5) == pytest.approx(3, abs=1.5)


@pytest.mark.parametrize("metric", ["l2", "fisher"])
def test_all_methods_find_the_same_spectrum(metric):
    exact = np.linalg.eigvalsh((g := lenet(4, metric)).product(torch.eye(g.shape[0], dtype=g.dtype)).numpy())[::-1]
    dual, dense = (find_spectrum(g, top=3, method=method, vectors=True) for method in ("dual", "dense"))
    lanczos = find_spectrum(g, top=3, method="lanczos", vectors=True, tolerance=1e-10)
    assert g.rank_bound == 4 * (3 if metric == "l2" else 2)
    for found in (dual, dense):
        assert found.is_exact and found.rank == g.rank_bound
        np.testing.assert_allclose(found.eigenvalues[: g.rank_bound], exact[: g.rank_bound], rtol=1e-7)
        assert found.trace == pytest.approx(exact.sum())
    np.testing.assert_allclose(lanczos.eigenvalues, exact[:3], rtol=1e-8)
    for found in (dual, dense, lanczos):
        assert (found.metric, found.num_rows, found.num_outputs) == (metric, 4, 3)
        torch.testing.assert_close((found.vectors.T @ lanczos.vectors).abs(), torch.eye(3).double(), atol=1e-5, rtol=0)


def test_a_network_of_few_anchors_needs_no_products_with_g():
    found = find_spectrum(g := lenet(4))
    assert found.method == "dual" and found.products == 0
    assert found.forward_backwards == pytest.approx((1 + 2 * g.num_outputs) / 3)


@pytest.mark.parametrize("metric", ["l2", "fisher"])
def test_the_rank_is_no_larger_than_the_rows_and_outputs_allow(metric):
    """A Krylov space from any vector closes at the rank, but for a dimension of the null space and rounding."""
    g = lenet(3, metric)
    krylov = Krylov(g)
    krylov.start(torch.randn(g.shape[0], dtype=g.dtype))
    while krylov.expand():
        pass
    values = np.linalg.eigvalsh(krylov.matrix)
    assert len(krylov) <= g.rank_bound + 3
    assert (values > 1e-10 * values[-1]).sum() == g.rank_bound
    assert g.rank_bound == (9 if metric == "l2" else 6)


def test_effective_ranks_of_equal_eigenvalues_are_their_number():
    found = find_spectrum(operator([3.0] * 7, 40), top=7)
    assert found.participation_ratio == pytest.approx(7)
    assert found.entropy_rank == pytest.approx(7)
    assert found.rank == 7 and found.orders_of_magnitude == pytest.approx(0, abs=1e-6)


def test_the_share_of_flat_directions():
    found = find_spectrum(operator([100.0, 1.0, 0.01], 50))
    # A step of 0.1 along an eigenvector changes the outputs by 0.1 * sqrt(l): by 1, 0.1, 0.01.
    assert found.flat_share(step=0.1, change=2.0) == 1.0
    assert found.flat_share(step=0.1, change=0.5) == pytest.approx(1 - 1 / 50)
    assert found.flat_share(step=0.1, change=0.05) == pytest.approx(1 - 2 / 50)
    assert found.flat_share(step=0.1, change=1e-3) == pytest.approx(1 - 3 / 50)
    assert found.orders_of_magnitude == pytest.approx(4)


def test_the_same_seed_gives_the_same_spectrum():
    g = operator(WIDE, 600, torch.float32)
    assert find_spectrum(g, method="lanczos") == find_spectrum(g, method="lanczos")
    assert find_spectrum(g, method="lanczos") != find_spectrum(g, method="lanczos", seed=1)


def test_a_spectrum_is_saved_beside_a_graph_and_read_back(tmp_path):
    found = {"base": find_spectrum(lenet(4)), "fip-1": find_spectrum(operator(WIDE, 600), top=5)}
    for node, one in found.items():
        path = save_spectrum(tmp_path, node, one)
        assert path.parent == tmp_path / "spectra"
        assert json.loads(path.read_text())["node"] == node
    save_spectrum(tmp_path, "base", find_spectrum(lenet(4, "fisher")))
    save_spectrum(tmp_path, "base", found["base"])
    (tmp_path / "spectra" / "broken.json").write_text('{"node": "x", "eigenvalues": [NaN]}')
    (tmp_path / "spectra" / "list.json").write_text("[]")
    sound = {"node": "base", **found["base"].to_dict()}
    unsound = [{"dimension": 3}, {"dimension": 10**400}, {"eigenvalues": [1e200]}, {"tail": [[0.0, -1.0]]}]
    for number, change in enumerate([*unsound, {"noise": 1e9}]):
        (tmp_path / "spectra" / f"unsound-{number}.json").write_text(json.dumps({**sound, **change}))
    loaded = load_spectra(tmp_path)
    assert loaded.keys() == found.keys()
    assert [one.metric for one in loaded["base"]] == ["fisher", "l2"]
    assert loaded["base"][1] == found["base"] and loaded["fip-1"] == [found["fip-1"]]
    assert load_spectra(tmp_path / "nowhere") == load_spectra(None) == {}
    with pytest.raises(InputError, match="no node's id"):
        save_spectrum(tmp_path, "../escape", found["base"])


def test_the_picture_shows_every_spectrum_on_logarithmic_axes():
    spectra = {
        "exact": find_spectrum(lenet(4)),
        "estimated": find_spectrum(operator(WIDE, 600), method="lanczos", top=5),
    }
    figure = spectrum_figure(spectra)
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == list(spectra)
    for trace in figure.data:
        assert all(value > 0 for values in (trace.x, trace.y) for value in values if value is not None)
    assert figure.data[0].y[0] == spectra["exact"].eigenvalues[0]
    density = next(trace for trace in figure.data if trace.mode == "lines+markers")
    assert sum(count for count in density.y if count) == spectra["exact"].rank
    assert {axis.type for axis in (figure.layout.xaxis, figure.layout.yaxis2)} == {"log"}
    with pytest.raises(InputError, match="none to draw"):
        spectrum_figure({})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "power"}, "method='power' is unknown"),
        ({"top": 0}, "top=0 must be at least 1"),
        ({"probes": 0}, "probes=0 must be at least 1"),
        ({"steps": -1}, "steps=-1 must be at least 1"),
        ({"method": "dual"}, "needs a MetricTensor"),
    ],
    ids=["method", "top", "probes", "steps", "dual"],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        find_spectrum(operator([1.0], 3), **arguments)


def test_a_matrix_larger_than_memory_is_refused_with_the_number():
    g = lenet(4, memory_limit_gb=1e-3)
    with pytest.raises(InputError, match=r"matrix of 983 weights takes 0.0072 GiB, above memory_limit_gb=0.001"):
        find_spectrum(g, method="dense")
    assert find_spectrum(g, method="dual").rank == 12


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_a_zero_metric_is_refused(method):
    with pytest.raises(InputError, match="g is zero"):
        find_spectrum(operator([], 600 if method == "lanczos" else 5), method=method)


@pytest.mark.parametrize("step", [0.0, -1.0, math.inf])
def test_a_step_has_a_length(step):
    with pytest.raises(InputError, match="step="):
        Spectrum((1.0,), 3, ((0.0, 2.0),), True, 1e-12).flat_share(step, 1.0)
