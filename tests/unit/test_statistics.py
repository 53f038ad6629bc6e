import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, skew, t, ttest_1samp

from hf_fip.errors import InputError
from hf_fip.functional import (
    binomial_interval,
    certify_changed_share,
    certify_disagreement,
    certify_distance,
    mean_interval,
)


def skewed(n, seed=0, mean=0.01):
    return np.random.default_rng(seed).lognormal(math.log(mean) - 0.5, 1.0, n)


@pytest.mark.parametrize("changed, n", [(0, 10), (1, 10), (10, 10), (8, 1000), (3, 149)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_binomial_interval_is_clopper_pearson(changed, n, confidence):
    expected = binomtest(changed, n).proportion_ci(confidence, method="exact")
    assert binomial_interval(changed, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_known_values():
    # 149 inputs without a change show 2 % one-sided; two-sided it takes 183.
    assert binomial_interval(0, 149, confidence=0.9) == pytest.approx((0.0, 1 - 0.05 ** (1 / 149)))
    assert binomial_interval(0, 149, confidence=0.9)[1] < 0.02 < binomial_interval(0, 148, confidence=0.9)[1]
    assert binomial_interval(0, 149) == pytest.approx((0.0, 1 - 0.025 ** (1 / 149)))
    assert binomial_interval(0, 183)[1] < 0.02 < binomial_interval(0, 182)[1]
    assert binomial_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("n", [5, 50, 500])
def test_binomial_interval_covers_every_true_share(n):
    intervals = np.array([binomial_interval(changed, n) for changed in range(n + 1)])
    for share in np.linspace(0.0, 1.0, 101):
        probability = binom.pmf(np.arange(n + 1), n, share)
        assert probability @ ((intervals[:, 0] <= share) & (share <= intervals[:, 1])) >= 0.95
        assert probability @ (intervals[:, 1] < share) <= 0.025 + 1e-9


def test_a_false_budget_is_rarely_certified():
    # Where 2.2 % of all inputs change, a certificate for 2 % is false.
    rng = np.random.default_rng(0)
    false = [certify_disagreement(int(rng.binomial(2000, 0.022)), 2000, 0.02).certified for _ in range(1000)]
    assert np.mean(false) <= 0.025


def test_mean_interval_is_students_for_symmetric_values():
    values = np.concatenate([5 - np.arange(20.0) / 10, 5 + np.arange(20.0) / 10])
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert mean_interval(torch.tensor(values)) == pytest.approx((expected.low, expected.high))


def test_mean_interval_covers_the_mean_of_skewed_values():
    # Student's t, made for symmetric values, has its upper end too low far more often than asked.
    rng = np.random.default_rng(0)
    samples, mean = rng.lognormal(0.0, 1.0, (2000, 200)), math.exp(0.5)
    too_low = np.mean([mean_interval(values)[1] < mean for values in samples])
    too_high = np.mean([mean_interval(values)[0] > mean for values in samples])
    students = np.mean([ttest_1samp(values, 0.0).confidence_interval(0.95).high < mean for values in samples])
    assert too_low < 0.045 < students and too_high < 0.035


def test_mean_interval_inverts_halls_transformation():
    values = skewed(50)
    n, spread = len(values), values.std(ddof=1)
    skewness = skew(values)
    for end, quantile in zip(mean_interval(values), (t.ppf(0.975, n - 1), t.ppf(0.025, n - 1)), strict=True):
        w = (values.mean() - end) / spread
        transformed = w + skewness * w**2 / 3 + skewness**2 * w**3 / 27 + skewness / (6 * n)
        assert math.sqrt(n) * transformed == pytest.approx(quantile)


def test_mean_interval_has_the_unit_of_its_values():
    low, high = mean_interval(skewed(100))
    assert mean_interval(1e-12 * skewed(100)) == pytest.approx((1e-12 * low, 1e-12 * high), rel=1e-9)


@pytest.mark.parametrize("values", [[], [0.3]])
def test_one_value_says_nothing_about_a_mean(values):
    assert mean_interval(values) == (0.0, math.inf)


def test_identical_functions_have_distance_zero():
    assert mean_interval(torch.zeros(40)) == (0.0, 0.0)
    assert certify_distance(torch.zeros(40), 0.02).certified


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 3000), data=st.data(), budget=st.floats(0.001, 0.5))
def test_disagreement_is_certified_from_the_number_of_inputs_named(n, data, budget):
    changed = data.draw(st.integers(0, min(n, 20)))
    certificate = certify_disagreement(changed, n, budget)
    assert certificate.certified == (certificate.high <= budget)
    if changed / n >= budget:
        assert certificate.inputs_needed is None and not certificate.certified
    elif certificate.inputs_needed is not None:
        assert certificate.certified == (certificate.inputs_needed <= n)


@pytest.mark.parametrize("changed, n", [(0, 100), (1, 200), (4, 500)])
def test_the_number_of_inputs_named_is_the_smallest_that_would_do(changed, n):
    needed = certify_disagreement(changed, n, 0.02).inputs_needed
    # At a multiple of n the same rate is a whole number of changes.
    enough, too_few = math.ceil(needed / n), needed // n
    assert certify_disagreement(changed * enough, n * enough, 0.02).certified
    if changed == 0:
        assert certify_disagreement(0, needed, 0.02).certified
        assert not certify_disagreement(0, needed - 1, 0.02).certified
    else:
        assert not certify_disagreement(changed * too_few, n * too_few, 0.02).certified


def test_disagreement_above_the_budget_cannot_be_certified():
    certificate = certify_disagreement(30, 1000, 0.02)
    assert not certificate.certified and certificate.inputs_needed is None
    assert "no number of held-out inputs would do" in certificate.message


def test_messages_state_the_share_the_interval_and_the_way_out():
    assert certify_disagreement(8, 1000, 0.02).message == (
        "kept: at most 1.58 % of unseen inputs change their prediction "
        "(0.8 % of 1,000 seen, 95 % interval 0.346 to 1.58 %; asked 2 %)"
    )
    assert certify_disagreement(0, 100, 0.02).message == (
        "not certified: at most 3.63 % of unseen inputs change their prediction "
        "(0 % of 100 seen, 95 % interval 0 to 3.63 %; asked 2 %); about 183 held-out inputs would do"
    )
    assert certify_disagreement(8, 1000, None).message == (
        "at most 1.58 % of unseen inputs change their prediction (0.8 % of 1,000 seen, 95 % interval 0.346 to 1.58 %)"
    )


def test_without_held_out_inputs_nothing_is_certified():
    disagreement, distance = certify_disagreement(0, 0, 0.02), certify_distance([], 0.02)
    assert (disagreement.low, disagreement.high, disagreement.inputs_needed) == (0.0, 1.0, 183)
    assert (distance.low, distance.high, distance.inputs_needed) == (0.0, math.inf, 30)
    for certificate in (disagreement, distance):
        assert certificate.value is None and certificate.inputs == 0 and not certificate.certified
        assert "no held-out inputs seen" in certificate.message


def test_distance_is_certified_by_the_upper_end():
    values = skewed(400)
    low, high = mean_interval(values)
    kept, broken = certify_distance(values, high * 1.001), certify_distance(values, high * 0.999)
    assert kept.certified and kept.message.startswith("kept: ")
    assert not broken.certified and broken.message.startswith("not certified: ")
    assert (kept.low, kept.value, kept.high) == (low, pytest.approx(values.mean()), high)
    assert kept.inputs_needed <= 400 < broken.inputs_needed


@pytest.mark.parametrize("budget", [0.011, 0.013, 0.02])
def test_the_number_of_inputs_named_for_a_distance_would_do(budget):
    values = skewed(1000, mean=0.01)
    values *= 0.01 / values.mean()
    needed = certify_distance(values, budget).inputs_needed
    # Copies keep the mean, the spread and the skewness, so only the number of inputs differs.
    enough, too_few = math.ceil(needed / 1000), needed // 1000
    assert certify_distance(np.tile(values, enough), budget).certified
    assert too_few == 0 or not certify_distance(np.tile(values, too_few), budget).certified


def test_few_inputs_certify_no_mean():
    # However close the values lie together: the one that matters may not be among them.
    certificate = certify_distance(np.full(29, 0.001), 0.02)
    assert not certificate.certified and certificate.inputs_needed == 30
    assert certify_distance(np.full(30, 0.001), 0.02).certified


def test_distance_above_the_budget_cannot_be_certified():
    certificate = certify_distance(skewed(100, mean=0.05), 0.02)
    assert not certificate.certified and certificate.inputs_needed is None
    assert "no number of held-out inputs would do" in certificate.message


def test_without_a_budget_only_the_interval_is_reported():
    for certificate in (certify_disagreement(8, 1000, None), certify_distance(skewed(100), None)):
        assert certificate.certified is None and certificate.asked is None and certificate.inputs_needed is None
        assert 0 < certificate.low < certificate.value < certificate.high


@pytest.mark.parametrize(
    "certificate",
    [
        certify_disagreement(8, 1000, 0.02),
        certify_disagreement(np.int64(8), np.int64(1000), 0.02),
        certify_disagreement(0, 0, 0.02),
        certify_distance(skewed(100), 0.02),
        certify_distance([], 0.02),
    ],
)
def test_certificates_are_json(certificate):
    data = json.loads(json.dumps(certificate.to_dict(), allow_nan=False))
    assert data["kind"] in ("disagreement", "distance") and data["confidence"] == 0.95
    assert data["high"] == (certificate.high if math.isfinite(certificate.high) else None)


@pytest.mark.parametrize(
    "call",
    [
        lambda: binomial_interval(5, 4),
        lambda: binomial_interval(-1, 4),
        lambda: binomial_interval(1, 4, confidence=95),
        lambda: mean_interval([0.1, math.nan]),
        lambda: mean_interval([0.1, -0.2]),
        lambda: mean_interval(torch.zeros(2, 2)),
        lambda: mean_interval([0.1, 0.2], confidence=1.0),
        lambda: certify_disagreement(1, 10, 0.0),
        lambda: certify_disagreement(1, 10, 2.0),
        lambda: certify_distance([0.1] * 40, 0.0),
        lambda: certify_distance([0.1] * 40, math.nan),
    ],
)
def test_bad_arguments_are_refused_in_one_line(call):
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_share_of_changed_predictions_is_not_certified_by_too_few_texts_without_change():
    few = certify_changed_share(np.zeros(100), 0.02)
    assert few.certified is False and few.high == pytest.approx(binomial_interval(0, 100)[1])
    assert few.inputs_needed == 183
    assert certify_changed_share(np.zeros(183), 0.02).certified
    mixed = certify_changed_share(np.tile([0.0, 0.0, 0.0, 0.1], 200), 0.05)
    assert mixed.certified and mixed.kind == "disagreement" and mixed.low < 0.025 < mixed.high
    assert certify_changed_share(np.zeros(5), None).certified is None
