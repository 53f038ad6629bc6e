"""Standard errors say how far estimates stray; estimates through the leader stray less."""

import math

import numpy as np
import pytest

from hf_fip.query.estimates import estimate_from_part, jackknife_error, ratio, standard_error
from hf_fip.query.racing import clearly_worse


def texts(rng, examples):
    """Losses and tokens of texts of different lengths and difficulties."""
    tokens = rng.integers(1, 30, examples).astype(float)
    return tokens * rng.gamma(3, 1.0, examples), tokens


def test_the_ratio_weighs_texts_by_their_tokens():
    loss, tokens = np.array([2.0, 30.0]), np.array([1.0, 10.0])
    assert ratio(loss, tokens) == pytest.approx(32 / 11)


def test_the_standard_error_is_the_spread_over_repeated_samples():
    rng = np.random.default_rng(0)
    draws = [texts(rng, 200) for _ in range(800)]
    spread = np.std([ratio(*draw) for draw in draws])
    told = np.mean([standard_error(*draw) for draw in draws])
    assert told == pytest.approx(spread, rel=0.08)


def test_one_example_has_no_standard_error():
    assert math.isnan(standard_error(np.array([1.0]), np.array([2.0])))


def test_an_estimate_through_the_leader_is_centred_and_its_error_is_its_spread():
    rng = np.random.default_rng(1)
    values, errors, own = [], [], []
    for _ in range(600):
        leader, tokens = texts(rng, 300)
        loss = leader + tokens * (0.1 + 0.2 * rng.normal(size=300))
        value, error = estimate_from_part(loss[:40], tokens[:40], leader, tokens)
        values.append(value)
        errors.append(error)
        own.append(ratio(loss[:40], tokens[:40]))
    assert np.mean(values) == pytest.approx(3.1, abs=0.02)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.1)
    assert np.std(values) < 0.5 * np.std(own)


def test_an_estimate_from_all_examples_is_the_ratio_itself():
    rng = np.random.default_rng(2)
    leader, tokens = texts(rng, 100)
    loss = leader + rng.normal(size=100)
    value, error = estimate_from_part(loss, tokens, leader, tokens)
    assert value == pytest.approx(ratio(loss, tokens))
    assert error == pytest.approx(standard_error(loss, tokens))


def test_the_jackknife_agrees_with_the_error_of_a_mean():
    values = np.random.default_rng(3).normal(size=2000)
    error = jackknife_error(lambda kept: float(values[kept].mean()), 2000)
    assert error == pytest.approx(values.std(ddof=1) / 2000**0.5, rel=0.4)


def test_a_paired_test_sees_what_an_unpaired_one_cannot():
    rng = np.random.default_rng(4)
    loss, tokens = texts(rng, 100)
    pair = np.stack([loss, loss + 0.02 * tokens * rng.uniform(0.5, 1.5, 100)])
    weight = np.stack([tokens, tokens])
    assert abs(np.diff(ratio(pair, weight))[0]) < standard_error(pair, weight).min()
    assert clearly_worse(pair, weight, 1000, 1e-4).tolist() == [False, True]


def test_a_test_errs_as_often_as_it_says():
    """Two equally good models: each is called worse in a share of the samples that is the error rate, not more."""
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(1500):
        loss, tokens = texts(rng, 60)
        pair = np.stack([loss, loss + tokens * rng.normal(size=60)])
        wrong += bool(clearly_worse(pair, np.stack([tokens, tokens]), 10**6, 0.05, leader=0)[1])
    assert 0.03 < wrong / 1500 < 0.07
