import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase, __version__
from transformers.utils import logging

from ..errors import InputError


logger = logging.get_logger(__name__)

LONGEST_TEXT = 512
_IMAGES_PER_BATCH = 256
_LARGE_BYTES = 8 * 2**30


def features(dataset: Dataset, processor: Any, *, label_offset: int = 0, max_length: int | None = None) -> Dataset:
    """
    Turns texts or images into what a model reads, for `Trainer` as it is.

    The result is cached next to the data set under a fingerprint of the arguments, so the same call in another process
    gives the same rows. The processor is left as it was.

    Args:
        dataset (`datasets.Dataset`): with the column `text` or `image` and, if labelled, `label`, as
            [`~hf_fip.tasks.Task.load`] gives it.
        processor (`PreTrainedTokenizerBase` or image processor): of the model.
        label_offset (`int`, *optional*, defaults to 0): added to every label, for a head that grew.
        max_length (`int`, *optional*): tokens after which a text is cut; by default the tokenizer's
            `model_max_length`, and at most 512.

    Returns:
        `datasets.Dataset`: for texts `input_ids` and the tokenizer's other inputs, not padded (a padding collator
        does that per batch); for images `pixel_values`, float32 tensors `[channels, height, width]`, with one channel
        where the processor's `image_mean` has one value, else three. `labels` where the data set has labels. Images
        are kept as bytes that the data set's format decodes, so do not give an image data set another format.

    Raises:
        [`InputError`]: the data set is empty, has neither texts nor images, or the processor is missing or does not
            fit.
    """
    columns = dataset.column_names
    modality = next((column for column in ("text", "image") if column in columns), None)
    if modality is None:
        raise InputError(f"dataset has no column 'text' or 'image', only {', '.join(columns)}: load it with a Task.")
    if len(dataset) == 0:
        raise InputError("dataset is empty: give one with rows.")
    if processor is None:
        wanted = "tokenizer" if modality == "text" else "image processor"
        raise InputError(f"processor=None cannot read the column {modality!r}: save the model with its {wanted}.")
    if isinstance(processor, PreTrainedTokenizerBase) != (modality == "text"):
        raise InputError(f"processor={type(processor).__name__} cannot read the column {modality!r}.")
    if modality == "text":
        return _tokenized(dataset, processor, label_offset, max_length)
    return _pixels(dataset, processor, label_offset)


def _tokenized(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, label_offset: int, max_length: int | None
) -> Dataset:
    length = max_length or min(tokenizer.model_max_length, LONGEST_TEXT)
    fingerprint = _fingerprint(dataset, describe_tokenizer(tokenizer), label_offset, length)
    # Truncation is a lasting setting of fast tokenizers, which the caller's would save with its files.
    tokenizer = copy.deepcopy(tokenizer)

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        inputs = dict(tokenizer(batch["text"], truncation=True, max_length=length, padding=False))
        return inputs | _labels(batch, label_offset)

    return dataset.with_format(None).map(
        tokenize, batched=True, remove_columns=dataset.column_names, new_fingerprint=fingerprint, desc="Tokenizing"
    )


def _pixels(dataset: Dataset, processor: Any, label_offset: int) -> Dataset:
    mean = getattr(processor, "image_mean", None)
    mode = "L" if isinstance(mean, (list, tuple)) and len(mean) == 1 else "RGB"

    def process(images: list) -> np.ndarray:
        values = processor([image.convert(mode) for image in images], return_tensors="np")["pixel_values"]
        return np.asarray(values, dtype=np.float32)

    dataset = dataset.with_format(None)
    shape = process([dataset[0]["image"]]).shape[1:]
    size = 4 * int(np.prod(shape)) * len(dataset)
    if size > _LARGE_BYTES:
        logger.warning(
            f"The pixels of {len(dataset)} images take {size / 2**30:.0f} GiB on disk: max_train takes fewer."
        )

    def encode(batch: dict[str, list]) -> dict[str, list]:
        values = process(batch["image"])
        if values.shape[1:] != shape:
            raise InputError(
                f"processor gives images of the sizes {shape} and {values.shape[1:]}: set do_resize=True."
            )
        return {"pixel_values": [value.tobytes() for value in values]} | _labels(batch, label_offset)

    types = {"pixel_values": Value("binary")} | ({"labels": Value("int64")} if "label" in dataset.features else {})
    encoded = dataset.map(
        encode,
        batched=True,
        batch_size=_IMAGES_PER_BATCH,
        writer_batch_size=_IMAGES_PER_BATCH,
        remove_columns=dataset.column_names,
        features=Features(types),
        new_fingerprint=_fingerprint(dataset, processor.to_json_string(), label_offset),
        desc="Processing images",
    )
    return encoded.with_transform(_Pixels(shape))


@dataclass(frozen=True)
class _Pixels:
    """
    Format of an image data set: bytes to tensors. Bytes are read about ten times faster than Arrow's lists of floats;
    equality by shape lets `concatenate_datasets` keep the format.
    """

    shape: tuple[int, int, int]

    def __call__(self, batch: dict[str, list]) -> dict[str, Any]:
        batch = dict(batch)
        if "pixel_values" in batch:
            values = torch.frombuffer(bytearray().join(batch["pixel_values"]), dtype=torch.float32)
            batch["pixel_values"] = values.view(-1, *self.shape)
        if "labels" in batch:
            batch["labels"] = torch.tensor(batch["labels"])
        return batch


def _labels(batch: dict[str, list], label_offset: int) -> dict[str, list[int]]:
    return {"labels": [label + label_offset for label in batch["label"]]} if "label" in batch else {}


def _fingerprint(dataset: Dataset, *arguments: Any) -> str:
    # The fingerprint that datasets would make depends on the processor's state, which changes with its first use.
    return Hasher.hash(json.dumps([dataset._fingerprint, __version__, "hf_fip.features.1", *arguments]))


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a tokenizer does, as text: equal for tokenizers that treat every text alike."""
    if tokenizer.is_fast:
        vocabulary = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    else:
        vocabulary = [tokenizer.get_vocab(), tokenizer.init_kwargs]
    settings = [type(tokenizer).__name__, tokenizer.truncation_side, tokenizer.model_input_names]
    return json.dumps([settings, vocabulary], sort_keys=True, default=str)


def digest(dataset: Any) -> str:
    """
    A short name for a data set's content, equal between processes and machines.

    Args:
        dataset (`datasets.Dataset` or `torch.utils.data.Dataset`): with a length and rows by number; a
            `datasets.Dataset`'s format plays no part.

    Returns:
        `str`: 16 hexadecimal digits, from its length, its column names and up to 16 evenly spaced rows.
    """
    if isinstance(dataset, Dataset):
        dataset = dataset.with_format(None)
    state, length = hashlib.sha256(), len(dataset)
    _update(state, [length, getattr(dataset, "column_names", None)])
    for index in np.unique(np.linspace(0, length - 1, 16).round().astype(int)) if length else []:
        _update(state, dataset[int(index)])
    return state.hexdigest()[:16]


def _update(state: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value):
            state.update(key.encode())
            _update(state, value[key])
    elif isinstance(value, torch.Tensor):
        _update(state, value.detach().cpu().double().numpy())
    elif isinstance(value, np.ndarray) or hasattr(value, "getpixel"):
        # An image's pixels, not its file: encoders differ between versions.
        array = np.asarray(value)
        state.update(f"{array.shape}{array.dtype}".encode() + array.tobytes())
    elif isinstance(value, bytes):
        state.update(value)
    elif isinstance(value, tuple) or (isinstance(value, list) and any(hasattr(item, "shape") for item in value)):
        for item in value:
            _update(state, item)
    else:
        state.update(json.dumps(value, default=str).encode())
