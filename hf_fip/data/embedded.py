import functools

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from ..errors import InputError
from .reviews import LABELS, WORLDS, write_reviews
from .sampling import stratified_indices


REVIEWS_TRAIN = 2000
REVIEWS_TEST = 500
CORPUS_TEXTS = 8000
DIGITS_TEST_SHARE = 0.2

NAMES = ("digits", *WORLDS, "corpus")


def embedded_dataset(name: str) -> DatasetDict:
    """
    A data set that the package makes itself: the same rows on every machine, without a network.

    Args:
        name (`str`):
            `"digits"`: scikit-learn's 1,797 handwritten digits, 8 x 8 grey images (`image`, `label`), 80 % `train` and
            20 % `test`. `"restaurants"` and `"films"`: reviews from a seeded grammar with the labels negative and
            positive (`text`, `label`), 2,000 `train` and 500 `test` each. `"corpus"`: 8,000 further reviews of both
            kinds without labels (`text`, only `train`), to pre-train a language model on.

    Raises:
        [`InputError`]: no embedded data set has this name.
    """
    if name not in NAMES:
        raise InputError(f"dataset='embedded:{name}' does not exist: the embedded data sets are {', '.join(NAMES)}.")
    return _make(name)


@functools.cache
def _make(name: str) -> DatasetDict:
    if name == "digits":
        return _digits()
    if name == "corpus":
        halves = [write_reviews(world, CORPUS_TEXTS // 2, "corpus")[0] for world in WORLDS]
        texts = [text for pair in zip(*halves, strict=True) for text in pair]
        return DatasetDict(train=Dataset.from_dict({"text": texts}, Features({"text": Value("string")})))
    return DatasetDict(train=_reviews(name, REVIEWS_TRAIN, "train"), test=_reviews(name, REVIEWS_TEST, "test"))


def _reviews(name: str, count: int, split: str) -> Dataset:
    texts, labels = write_reviews(name, count, split)
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(LABELS))})
    return Dataset.from_dict({"text": texts, "label": labels}, features)


def _digits() -> DatasetDict:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("dataset='embedded:digits' needs scikit-learn: pip install hf_fip[demo].") from None
    from PIL import Image as PILImage

    digits = load_digits()
    greys = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    rows = {"image": [PILImage.fromarray(grey) for grey in greys], "label": digits.target.tolist()}
    everything = Dataset.from_dict(rows, features)
    test = stratified_indices(digits.target, round(DIGITS_TEST_SHARE * len(greys)))
    train = np.setdiff1d(np.arange(len(greys)), test)
    return DatasetDict(train=everything.select(train), test=everything.select(test))
