import dataclasses
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value, concatenate_datasets
from PIL import Image as PILImage
from transformers import BertTokenizer, Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_fip.data import augment
from hf_fip.data.augment import mixed_copies, shifted_copies
from hf_fip.data.sampling import stratified_indices
from hf_fip.errors import InputError
from hf_fip.tasks import Task, digest, features, resolve_dataset


ROOT = Path(__file__).parents[2]
REVIEW_TYPES = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def reviews(rows=6, offset=0):
    texts = [f"review number {offset + i}" for i in range(rows)]
    return Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(rows)]}, REVIEW_TYPES)


def pictures(rows=6, mode="L"):
    rng = np.random.default_rng(0)
    shape = (8, 6) if mode == "L" else (8, 6, 3)
    images = [PILImage.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)) for _ in range(rows)]
    types = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog", "cow"])})
    return Dataset.from_dict({"image": images, "label": [i % 3 for i in range(rows)]}, types)


def save(folder: Path, **splits: Dataset) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for split, dataset in splits.items():
        dataset.to_parquet(folder / f"{split}.parquet")
    return str(folder)


def table(path: Path, **columns: list) -> str:
    Dataset.from_dict(columns).to_json(path)
    return str(path)


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def tokenizer(**kwargs) -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "review", "number", *map(str, range(10))]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)}, **kwargs)


def image_processor(channels=1, size=8) -> ViTImageProcessorPil:
    half = [0.5] * channels
    return ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=half, image_std=half)


# Where data lies


def test_a_folders_files_are_its_splits_and_column_types_survive(tmp_path):
    spec = save(tmp_path / "set", train=pictures(6), test=pictures(3))
    train, test = resolve_dataset(spec), resolve_dataset(spec, split="test")
    assert (len(train), len(test)) == (6, 3)
    assert train.features == pictures().features
    assert np.array_equal(np.asarray(train[2]["image"]), np.asarray(pictures()[2]["image"]))


def test_a_folders_sub_folders_are_its_configurations(tmp_path):
    save(tmp_path / "set" / "yelp", train=reviews(4))
    save(tmp_path / "set" / "imdb", train=reviews(6))
    assert len(resolve_dataset(str(tmp_path / "set"), config="yelp")) == 4
    for config in (None, "amazon"):
        with pytest.raises(InputError, match="one of imdb, yelp") as error:
            resolve_dataset(str(tmp_path / "set"), config=config)
        one_line(error)


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "csv"])
def test_a_file_of_any_type_gives_its_rows(tmp_path, kind):
    path = tmp_path / f"reviews.{kind}"
    getattr(reviews(5), f"to_{kind.removesuffix('l')}")(path)
    assert resolve_dataset(str(path))["text"][:] == reviews(5)["text"][:]
    assert len(resolve_dataset(str(path), split="train[:40%]")) == 2


@pytest.mark.parametrize(
    ("spec", "config", "split", "folder", "file"),
    [
        ("fancyzhx/yelp_polarity", "plain_text", "train", "yelp_polarity", "train"),
        ("stanfordnlp/imdb", None, "train", "imdb", "train"),
        ("stanfordnlp/imdb", None, "unsupervised", "imdb_unsupervised", "train"),
        ("ylecun/mnist", "mnist", "test", "mnist", "test"),
        ("zalando-datasets/fashion-mnist", None, "train", "fashion_mnist", "train"),
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "validation", "wikitext2", "validation"),
        ("Salesforce/wikitext", "wikitext-2-v1", "test", "wikitext2", "test"),
        ("someone/sentences", "yelp", "train", "sentences/yelp", "train"),
    ],
)
def test_hub_ids_are_found_in_data_root(tmp_path, spec, config, split, folder, file):
    save(tmp_path / "root" / folder, **{file: reviews(4)})
    assert len(resolve_dataset(spec, config=config, split=split, data_root=tmp_path / "root")) == 4


def test_another_configuration_is_not_mistaken_for_the_local_copy(tmp_path):
    save(tmp_path / "root" / "wikitext2", train=reviews(4))
    save(tmp_path / "root" / "glue", train=reviews(4))
    for spec, config in [("Salesforce/wikitext", "wikitext-103-v1"), ("nyu-mll/glue", "sst2")]:
        with pytest.raises(InputError, match=config):
            resolve_dataset(spec, config=config, data_root=tmp_path / "root")


def test_what_does_not_exist_is_named_with_what_does(tmp_path):
    root = tmp_path / "root"
    spec = save(root / "imdb", train=reviews(4), test=reviews(2))
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "broken.parquet").write_text("text")
    (tmp_path / "empty").mkdir()
    cases = [
        ({"spec": str(tmp_path / "nowhere")}, "nowhere.*does not exist"),
        ({"spec": "folder/reviews.csv"}, "reviews.csv.*does not exist"),
        ({"spec": str(tmp_path / "notes.txt")}, "notes.txt.*parquet, .json, .jsonl, .csv"),
        ({"spec": str(tmp_path / "broken.parquet")}, "broken.parquet.*cannot be read"),
        ({"spec": str(tmp_path / "empty")}, "empty.*cannot be read"),
        ({"spec": "ylecun/mnist", "data_root": root}, "ylecun/mnist.*holds imdb"),
        ({"spec": "ylecun/mnist", "data_root": tmp_path / "nowhere"}, "data_root=.*is not a folder"),
        ({"spec": spec, "split": "validation"}, "split='validation'.*train, test"),
        ({"spec": spec, "config": "plain"}, "config='plain'"),
        ({"spec": "embedded:films", "split": "dev"}, "split='dev'.*train, test"),
        ({"spec": "embedded:books"}, "embedded:books.*digits, restaurants, films, corpus"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message) as error:
            resolve_dataset(**arguments)
        one_line(error)


def test_without_a_network_local_data_work_and_a_hub_id_says_what_to_do(tmp_path):
    spec = save(tmp_path / "set", train=reviews(20))
    words = sorted(tokenizer().get_vocab(), key=tokenizer().get_vocab().get)
    code = f"""
import json
from transformers import BertTokenizer
from hf_fip.tasks import Task, digest, features, resolve_dataset
rows = Task("mine", {spec!r}, max_train=10).load()
ready = features(Task("films", "embedded:films").load("test"), BertTokenizer(vocab=dict(zip({words}, range(99)))))
try:
    resolve_dataset("stanfordnlp/imdb")
except ValueError as error:
    message = str(error)
print(json.dumps([message, digest(rows), digest(ready), ready._fingerprint]))
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONHASHSEED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    message, *others = json.loads(run.stdout.splitlines()[-1])
    assert "data_root" in message and "\n" not in message
    # The other process had another cache and another hash seed: a resumed run meets the same rows all the same.
    rows = Task("mine", spec, max_train=10).load()
    ready = features(Task("films", "embedded:films").load("test"), tokenizer())
    assert others == [digest(rows), digest(ready), ready._fingerprint]


# Tasks


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"sentence": ["a", "b"], "label": [0, 1]}, ["text", "label"]),
        ({"title": ["x", "y"], "content": ["a", "b"], "label": [0, 1]}, ["text", "label"]),
        ({"opinion": ["a", "b"], "labels": ["no", "yes"]}, ["text", "label"]),
        ({"text": ["a", "b"]}, ["text"]),
    ],
)
def test_columns_are_found_by_their_names(tmp_path, columns, expected):
    rows = Task("task", table(tmp_path / "rows.jsonl", **columns)).load()
    assert rows.column_names == expected
    assert rows["text"][:] == ["a", "b"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "review": ["b"], "label": [0]}, "input column could be any of text, review"),
        ({"premise": ["a"], "hypothesis": ["b"], "label": [0]}, "any of premise, hypothesis"),
        ({"value": [1], "label": [0]}, "input column was not found.*value, label"),
        ({"text": ["a"], "label": [0], "labels": [1]}, "label column could be any of label, labels"),
    ],
)
def test_columns_that_are_not_clear_are_asked_for(tmp_path, columns, message):
    with pytest.raises(InputError, match=message) as error:
        Task("task", table(tmp_path / "rows.jsonl", **columns)).load()
    one_line(error)


def test_columns_given_are_taken_and_missing_ones_listed(tmp_path):
    spec = table(tmp_path / "rows.jsonl", text=["a", "b"], summary=["c", "d"], label=[0, 1], stars=[5, 1])
    rows = Task("task", spec, input_column="summary", label_column="stars").load()
    assert rows["text"][:] == ["c", "d"] and rows["label"][:] == [1, 0]
    for wrong in ({"input_column": "body"}, {"label_column": "mark"}):
        with pytest.raises(InputError, match="the columns are text, summary, label, stars"):
            Task("task", spec, **wrong).load()
    with pytest.raises(InputError, match="neither text nor images"):
        Task("task", spec, input_column="stars").load()


def test_classes_are_kept_in_the_order_given_and_numbered_from_zero():
    everything = Task("digits", "embedded:digits").load("test")
    for classes, names in [([7, 5], ["7", "5"]), (["9", 0], ["9", "0"])]:
        task = Task("digits", "embedded:digits", classes=classes)
        rows = task.load("test")
        assert rows.features["label"].names == names == task.label_names()
        kept = [(np.asarray(row["image"]).tobytes(), str(row["label"])) for row in everything]
        kept = [(image, names.index(name)) for image, name in kept if name in names]
        assert [(np.asarray(row["image"]).tobytes(), row["label"]) for row in rows] == kept


def test_classes_that_do_not_exist_are_refused_with_the_list(tmp_path):
    spec = save(tmp_path / "set", train=pictures())
    for classes in (["horse"], [3], [-1]):
        with pytest.raises(InputError, match="0 cat, 1 dog, 2 cow"):
            Task("pets", spec, classes=classes).load()
    with pytest.raises(InputError, match="each once"):
        Task("pets", spec, classes=["cat", 0]).load()
    with pytest.raises(InputError, match="no labels"):
        Task("words", "embedded:corpus", classes=[0]).load()


def test_samples_are_stratified_and_decided_by_the_seed():
    task = Task("digits", "embedded:digits", max_train=200, max_test=50)
    first, again, other = task.load(seed=1), task.load(seed=1), task.load(seed=2)
    assert len(first) == 200 and len(task.load("test")) == 50
    assert digest(first) == digest(again) != digest(other)
    counts = np.bincount(first["label"][:])
    whole = np.bincount(Task("digits", "embedded:digits").load()["label"][:])
    assert np.abs(counts - 200 * whole / whole.sum()).max() <= 1


@pytest.mark.parametrize("size", [1, 7, 10, 99, 100, 101])
def test_a_sample_has_the_size_asked_and_no_row_twice(size):
    indices = stratified_indices([0] * 80 + [1] * 15 + [2] * 5, size)
    assert len(indices) == len(set(indices.tolist())) == min(size, 100)


@pytest.mark.parametrize(
    ("train", "test", "names", "numbers"),
    [
        ([10, 2, 2, 10], [10, 10], ["2", "10"], [1, 1]),
        ([-1, 1, 1, -1], [1, -1], ["-1", "1"], [1, 0]),
        (["b", "c", "a", "a"], ["c", "b"], ["a", "b", "c"], [2, 1]),
        ([True, False, True, True], [True, False], ["False", "True"], [1, 0]),
    ],
)
def test_plain_labels_become_classes_that_the_training_split_numbers(tmp_path, train, test, names, numbers):
    (tmp_path / "set").mkdir()
    table(tmp_path / "set" / "train.jsonl", text=list("wxyz"), label=train)
    table(tmp_path / "set" / "test.jsonl", text=list("wx"), label=test)
    task = Task("task", str(tmp_path / "set"))
    assert task.load("train").features["label"].names == task.load("test").features["label"].names == names
    assert task.load("test")["label"][:] == numbers


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, None, 1], "empty in 1 rows"), ([0.5, 1.5, 2.0], "holds 0.5"), ([[1], [2], [3]], r"holds \[1\]")],
)
def test_labels_that_are_not_classes_are_refused(tmp_path, labels, message):
    with pytest.raises(InputError, match=message) as error:
        Task("task", table(tmp_path / "rows.jsonl", text=["a", "b", "c"], label=labels)).load()
    one_line(error)


def test_a_class_that_training_never_saw_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    table(tmp_path / "set" / "train.jsonl", text=["a", "b"], label=["good", "bad"])
    table(tmp_path / "set" / "test.jsonl", text=["a"], label=["ugly"])
    with pytest.raises(InputError, match="ugly.*only bad, good"):
        Task("task", str(tmp_path / "set")).load("test")


def test_texts_that_are_missing_are_refused(tmp_path):
    with pytest.raises(InputError, match="'text'.*empty in 1 rows"):
        Task("task", table(tmp_path / "rows.jsonl", text=["a", None], label=[0, 1])).load()


def test_a_split_whose_labels_are_all_unknown_counts_as_unlabelled(tmp_path):
    unknown = Dataset.from_dict({"text": ["a", "b"], "label": [-1, -1]}, REVIEW_TYPES)
    rows = Task("task", save(tmp_path / "set", train=unknown)).load()
    assert rows.column_names == ["text"]


def test_a_task_survives_json():
    task = Task("digits", "embedded:digits", classes=["3", 1], max_train=20, label_column="label")
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert set(task.to_dict()) == {field.name for field in dataclasses.fields(Task)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a", "dataset": "b", "clases": [1]}, "no key clases: the keys are name, dataset"),
        ({"name": "a"}, "needs dataset"),
        ({"name": "a/b", "dataset": "c"}, "name='a/b'"),
        ({"name": "a", "dataset": "c", "max_train": 0}, "max_train=0"),
        ({"name": "a", "dataset": "c", "max_test": "9"}, "max_test='9'"),
        ({"name": "a", "dataset": "c", "classes": 3}, "classes=3"),
        ({"name": "a", "dataset": "c", "config": 1}, "config=1"),
    ],
)
def test_a_task_of_wrong_values_is_refused(values, message):
    with pytest.raises(InputError, match=message) as error:
        Task.from_dict(values)
    one_line(error)


def test_a_task_knows_its_modality_and_label_names(tmp_path):
    root = tmp_path / "root"
    save(root / "pets", train=pictures())
    save(root / "imdb", train=reviews())
    pets, imdb = Task("pets", "someone/pets"), Task("imdb", "stanfordnlp/imdb")
    assert (pets.modality(root), pets.label_names(root)) == ("image", ["cat", "dog", "cow"])
    assert (imdb.modality(root), imdb.label_names(root)) == ("text", ["neg", "pos"])
    assert Task("words", "embedded:corpus").label_names() == []


# Model inputs


def test_texts_become_token_ids_cut_but_not_padded():
    rows = Dataset.from_dict({"text": ["review number 1", "review", "1 2 3 4 5 6 7"], "label": [0, 1, 1]})
    ready = features(rows, tokenizer(), label_offset=4, max_length=6)
    assert set(ready.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert [len(ids) for ids in ready["input_ids"]] == [5, 3, 6]
    assert ready[0]["input_ids"] == [2, 5, 6, 8, 3]
    assert ready["labels"][:] == [4, 5, 5]


@pytest.mark.parametrize(("model_max_length", "expected"), [(20, 20), (10**30, 512)])
def test_texts_are_cut_at_the_models_length_and_at_512(model_max_length, expected):
    rows = Dataset.from_dict({"text": ["review " * 600]})
    ready = features(rows, tokenizer(model_max_length=model_max_length))
    assert len(ready[0]["input_ids"]) == expected
    assert "labels" not in ready.column_names


def test_tokenizing_leaves_the_tokenizer_as_it_was_and_its_use_leaves_the_fingerprint():
    own = tokenizer()
    before = own.backend_tokenizer.to_str()
    first = features(reviews(), own, max_length=8)
    assert own.backend_tokenizer.to_str() == before
    own(["review"], truncation=True, padding="max_length", max_length=4)
    assert features(reviews(), own, max_length=8)._fingerprint == first._fingerprint
    others = [
        features(reviews(), own, max_length=7),
        features(reviews(), own, max_length=8, label_offset=1),
        features(reviews(offset=1), own, max_length=8),
        features(reviews(), tokenizer(model_input_names=["input_ids"]), max_length=8),
    ]
    assert first._fingerprint not in {other._fingerprint for other in others}


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_the_processors_pixels(mode, channels):
    rows, processor = pictures(5, mode), image_processor(channels)
    ready = features(rows, processor, label_offset=10)
    images = [image.convert("L" if channels == 1 else "RGB") for image in rows["image"]]
    expected = torch.from_numpy(processor(images, return_tensors="np")["pixel_values"])
    batch = ready[:]
    assert batch["pixel_values"].dtype == torch.float32 and batch["pixel_values"].shape == (5, channels, 8, 8)
    assert torch.equal(batch["pixel_values"], expected)
    assert torch.equal(batch["labels"], torch.tensor(rows["label"][:]) + 10)
    assert torch.equal(ready[3]["pixel_values"], expected[3])


def test_image_inputs_can_be_selected_joined_stripped_and_sent_to_workers():
    ready = features(pictures(5), image_processor())
    joined = concatenate_datasets([features(pictures(3), image_processor(), label_offset=3), ready.select([4, 2])])
    assert torch.equal(joined[3]["pixel_values"], ready[4]["pixel_values"])
    assert set(joined.remove_columns("labels")[0]) == {"pixel_values"}
    assert torch.equal(pickle.loads(pickle.dumps(joined))[:]["pixel_values"], joined[:]["pixel_values"])


def test_trainer_takes_image_inputs_as_they_are(tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, num_labels=3,
    )  # fmt: skip
    ready = features(pictures(12), image_processor())
    args = TrainingArguments(
        str(tmp_path), num_train_epochs=30, learning_rate=3e-2, save_strategy="no", report_to="none", use_cpu=True
    )
    args.disable_tqdm = True
    trainer = Trainer(ViTForImageClassification(config), args, train_dataset=ready, eval_dataset=ready)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.7 * before


def test_a_processor_that_does_not_fit_is_refused():
    cases = [
        (reviews(), None, "save the model with its tokenizer"),
        (pictures(), None, "save the model with its image processor"),
        (reviews(), image_processor(), "ViTImageProcessorPil cannot read the column 'text'"),
        (pictures(), tokenizer(), "BertTokenizer cannot read the column 'image'"),
        (reviews(0), tokenizer(), "dataset is empty"),
        (Dataset.from_dict({"body": ["a"]}), tokenizer(), "no column 'text' or 'image', only body"),
    ]
    for rows, processor, message in cases:
        with pytest.raises(InputError, match=message) as error:
            features(rows, processor)
        one_line(error)


# Digests


def test_a_digest_is_the_contents_not_the_formats_or_the_files(tmp_path):
    rows, images = reviews(40), pictures()
    assert len(digest(rows)) == 16 and int(digest(rows), 16) >= 0
    assert digest(rows) == digest(rows.with_format("torch")) == digest(resolve_dataset(save(tmp_path, train=rows)))
    bitmaps = images.cast_column("image", Image(decode=False)).map(as_bitmap)
    assert digest(images) == digest(bitmaps.cast_column("image", Image()))
    changed = [reviews(41), reviews(40, offset=1), rows.rename_column("text", "body"), rows.remove_columns("label")]
    assert len({digest(dataset) for dataset in (rows, *changed)}) == 5


def as_bitmap(row):
    encoded = io.BytesIO()
    PILImage.open(io.BytesIO(row["image"]["bytes"])).save(encoded, "bmp")
    return {"image": {"bytes": encoded.getvalue(), "path": None}}


def test_a_digest_of_tensors_sees_every_value():
    values = torch.arange(3000.0).reshape(3, 1000)
    other = values.clone()
    other[1, 500] += 1
    pairs = [torch.utils.data.TensorDataset(v, torch.tensor([0, 1, 2])) for v in (values, values.clone(), other)]
    assert digest(pairs[0]) == digest(pairs[1]) != digest(pairs[2])


# Real data sets


@pytest.fixture
def data_root():
    root = Path(os.environ.get("HF_FIP_DATA_ROOT", ROOT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip("HF_FIP_DATA_ROOT names no folder with the real data sets")
    return root


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("task", "rows", "classes"),
    [
        (Task("yelp", "fancyzhx/yelp_polarity"), 4000, 2),
        (Task("imdb", "stanfordnlp/imdb"), 4000, 2),
        (Task("reviews", "stanfordnlp/imdb", train_split="unsupervised"), 3000, 0),
        (Task("wiki", "Salesforce/wikitext", "wikitext-2-raw-v1", train_split="validation"), 3760, 0),
        (Task("sentences", "sentiment_sentences", "amazon"), 800, 2),
        (Task("mnist", "ylecun/mnist"), 20000, 10),
        (Task("fashion", "zalando-datasets/fashion_mnist", max_train=500), 500, 10),
        (Task("cifar10", "uoft-cs/cifar10"), 2000, 10),
        (Task("cifar100", "uoft-cs/cifar100"), 10000, 100),
    ],
)
def test_the_real_data_sets_load_by_their_hub_ids(data_root, task, rows, classes):
    loaded = task.load(data_root=data_root)
    assert len(loaded) == rows
    assert loaded.column_names == [task.modality(data_root), *(["label"] if classes else [])]
    assert len(task.label_names(data_root)) == classes


def test_classes_are_named_anew_where_data_sets_call_them_differently(tmp_path):
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]})
    rows = rows.cast_column("label", ClassLabel(names=["1", "2"]))
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / f"{split}.parquet")
    task = Task(name="t", dataset=str(tmp_path), class_names=["negative", "positive"])
    assert task.label_names() == ["negative", "positive"] == task.load("train").features["label"].names
    assert list(task.load("train")["label"]) == [0, 1, 0]
    with pytest.raises(InputError, match="class_names of task 't' has 1 names for 2 classes"):
        Task(name="t", dataset=str(tmp_path), class_names=["only"]).label_names()


def test_shifted_copies_keep_the_image_first_and_shift_by_whole_pixels():
    image = PILImage.new("L", (5, 5))
    image.putpixel((2, 2), 255)
    rows = Dataset.from_dict(
        {"image": [image, image], "label": [0, 1]}, features=Features({"image": Image(), "label": Value("int64")})
    )
    copies = shifted_copies(rows, 1)
    assert len(copies) == 18 and list(copies["label"]) == [0] * 9 + [1] * 9
    bright = {tuple(int(v[0]) for v in np.nonzero(np.asarray(copies[i]["image"]))) for i in range(9)}
    assert bright == {(y, x) for y in (1, 2, 3) for x in (1, 2, 3)}
    assert np.asarray(copies[0]["image"])[2, 2] == 255
    with pytest.raises(InputError, match="anchor_shift=1 shifts images"):
        shifted_copies(Dataset.from_dict({"text": ["a"]}), 1)
    for pixels in (-1, 1.5):
        with pytest.raises(InputError, match=f"anchor_shift={pixels} has to be a whole number"):
            shifted_copies(rows, pixels)


def test_mixtures_are_mostly_the_image_that_they_follow():
    dark, bright = PILImage.new("L", (4, 4), 0), PILImage.new("RGB", (8, 8), (200, 100, 0))
    rows = Dataset.from_dict(
        {"image": [dark, bright], "label": [0, 1]}, features=Features({"image": Image(), "label": Value("int64")})
    )
    mixed = mixed_copies(rows, 30)
    assert list(mixed["label"]) == [0] * 31 + [1] * 31
    assert [mixed[i]["image"].size for i in (0, 5, 31, 40)] == [(4, 4), (4, 4), (8, 8), (8, 8)]
    assert mixed[0]["image"].mode == "L" and np.asarray(mixed[31]["image"]).max() == 200
    red = np.array([np.asarray(mixed[i]["image"])[0, 0, 0] for i in (*range(1, 31), *range(32, 62))])
    assert red[:30].max() <= 100 <= red[30:].min()
    assert len(set(red)) > 15
    again = mixed_copies(rows, 30, seed=1)
    assert any(np.any(np.asarray(again[i]["image"]) != np.asarray(mixed[i]["image"])) for i in range(1, 31))
    with pytest.raises(InputError, match="anchor_mix=1 mixes images"):
        mixed_copies(Dataset.from_dict({"text": ["a"]}), 1)
    for number in (-1, 1.5):
        with pytest.raises(InputError, match=f"anchor_mix={number} has to be a whole number"):
            mixed_copies(rows, number)


def test_mixtures_that_are_too_many_are_told(monkeypatch):
    told = []
    monkeypatch.setattr(augment.logger, "warning", told.append)
    rows = Dataset.from_dict({"image": [PILImage.new("L", (3, 3))] * 6}, features=Features({"image": Image()}))
    assert len(mixed_copies(rows, 5, most=20)) == 18 and not told
    assert len(mixed_copies(rows, 5, most=11)) == 6
    assert len(told) == 1 and "anchor_mix=5: no copies are made of 6 anchors" in told[0]


def test_shifted_copies_that_are_too_many_are_told(monkeypatch):
    told = []
    monkeypatch.setattr(augment.logger, "warning", told.append)
    rows = Dataset.from_dict({"image": [PILImage.new("L", (3, 3))] * 6}, features=Features({"image": Image()}))
    assert len(shifted_copies(rows, 1, most=13)) == 12 and not told
    assert len(shifted_copies(rows, 1, most=11)) == 6
    assert len(told) == 1 and "anchor_shift=1: no copies are made of 6 anchors" in told[0]
