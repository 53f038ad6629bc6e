import re

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from hf_fip.data.embedded import CORPUS_TEXTS, REVIEWS_TEST, REVIEWS_TRAIN
from hf_fip.data.reviews import write_reviews
from hf_fip.tasks import resolve_dataset


WORLDS = ("restaurants", "films")


@pytest.fixture(scope="module")
def reviews():
    return {
        (name, split): resolve_dataset(f"embedded:{name}", split=split)[:]
        for name in WORLDS
        for split in ("train", "test")
    }


@pytest.fixture(scope="module")
def classifiers(reviews):
    return {name: fit(reviews[name, "train"]["text"], reviews[name, "train"]["label"]) for name in WORLDS}


def fit(texts, labels):
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=1000))
    return model.fit(texts, labels)


def test_the_digits_are_all_there_once_in_two_stratified_splits():
    train, test = (resolve_dataset("embedded:digits", split=split) for split in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert np.asarray(train[0]["image"]).shape == (8, 8) and train[0]["image"].mode == "L"
    assert max(np.asarray(image).max() for image in test["image"]) == 255
    shares = np.bincount(test["label"][:]) / np.bincount(train["label"][:] + test["label"][:])
    assert train.features["label"].names == [str(digit) for digit in range(10)]
    assert np.all(np.abs(shares - 0.2) < 0.01)


@pytest.mark.parametrize("name", WORLDS)
def test_reviews_are_balanced_texts_of_20_to_60_words(reviews, name):
    for split, size in (("train", REVIEWS_TRAIN), ("test", REVIEWS_TEST)):
        texts, labels = reviews[name, split]["text"], reviews[name, split]["label"]
        assert len(texts) == size and sum(labels) == size // 2
        assert all(20 <= len(text.split()) <= 60 for text in texts)
        assert all(re.fullmatch(r"[A-Z][\w ,.]+\.", text) for text in texts)
    assert resolve_dataset(f"embedded:{name}").features["label"].names == ["negative", "positive"]


def test_no_text_is_in_two_splits_or_in_the_corpus(reviews):
    corpus = resolve_dataset("embedded:corpus")
    assert corpus.column_names == ["text"] and len(corpus) == CORPUS_TEXTS
    texts = [text for split in reviews.values() for text in split["text"]] + corpus["text"][:]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", WORLDS)
def test_sentiment_can_be_learned_but_not_perfectly(reviews, classifiers, name):
    accuracy = classifiers[name].score(reviews[name, "test"]["text"], reviews[name, "test"]["label"])
    assert 0.93 <= accuracy <= 0.98


def test_the_worlds_differ_but_share_words_of_sentiment(reviews, classifiers):
    for name, other in (WORLDS, WORLDS[::-1]):
        transferred = classifiers[name].score(reviews[other, "test"]["text"], reviews[other, "test"]["label"])
        own = classifiers[name].score(reviews[name, "test"]["text"], reviews[name, "test"]["label"])
        assert 0.7 < transferred < own
    texts = {split: [text for name in WORLDS for text in reviews[name, split]["text"]] for split in ("train", "test")}
    world = fit(texts["train"], [0] * REVIEWS_TRAIN + [1] * REVIEWS_TRAIN)
    assert world.score(texts["test"], [0] * REVIEWS_TEST + [1] * REVIEWS_TEST) > 0.99


def test_the_texts_are_the_same_on_every_machine():
    # Changed texts change every number measured on them: a change here needs a line in the changelog.
    texts, labels = write_reviews("restaurants", 2, "train")
    assert labels == [0, 1]
    assert texts[0] == (
        "I came in on Wednesday with my boss and ordered the ribs for dinner. Everyone at the table called the salad"
        " very tiresome. The coffee was fairly sad. The waiter was surprisingly awful. The dining room was truly"
        " unpleasant. I left hungry and unhappy."
    )
    assert write_reviews("films", 2, "train")[0] == write_reviews("films", 9, "train")[0][:2]
    assert write_reviews("films", 2, "train")[0] != write_reviews("films", 2, "test")[0]
