"""Models that the package makes itself: pre-training from nothing, and a cache that only ever holds complete ones."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from hf_fip.errors import InputError
from hf_fip.models import embedded, load_model, load_processor, task_of
from hf_fip.models.initialization import count_vectors, initialize_from_counts_
from hf_fip.models.pretraining import pretrain_masked_lm, train_tokenizer


TINY = {
    "vocab_size": 150,
    "config": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 24,
    },
    "seq_length": 16,
    "batch_size": 8,
    "progress": False,
}
FOODS = ("soup", "bread", "fish", "pasta")
FILMS = ("plot", "hero", "scene", "score")


def texts(count: int = 300, seed: int = 0) -> list[str]:
    """Words of one of two kinds in a fixed order: what stands beside a masked word tells most of it."""
    random = np.random.default_rng(seed)
    sentences = []
    for _ in range(count):
        words, verb, end = ((FOODS, "tasted", "chef"), (FILMS, "looked", "actor"))[int(random.integers(2))]
        sentences.append(f"The {random.choice(words)} {verb} good and the {end} smiled.")
    return sentences


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


def write_data(root: Path, count: int = 40) -> Path:
    (root / "imdb").mkdir(parents=True)
    rows = [json.dumps({"text": text, "label": 0}) for text in texts(count)]
    (root / "imdb" / "train.jsonl").write_text("\n".join(rows))
    return root


@torch.no_grad()
def masked_loss(folder: Path, sentences: list[str]) -> float:
    """Mean loss in nats of each word of the sentences when it alone is masked."""
    model, tokenizer = load_model(folder), load_processor(folder)
    losses = []
    for sentence in sentences:
        ids = torch.tensor(tokenizer(sentence)["input_ids"])
        places = torch.arange(1, len(ids) - 1)
        inputs = ids.repeat(len(places), 1)
        inputs[torch.arange(len(places)), places] = tokenizer.mask_token_id
        logits = model(input_ids=inputs).logits[torch.arange(len(places)), places]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[places]).item())
    return float(np.mean(losses))


def test_pre_training_learns_what_words_stand_together(tmp_path):
    folder = pretrain_masked_lm(texts(), tmp_path / "bert", **TINY, epochs=8, learning_rate=1e-2)
    # Two kinds of sentence and four words in one place: log 4 for one word of ten, when all else is known.
    assert masked_loss(folder, texts(20, seed=1)) < 0.5
    model, tokenizer = load_model(folder), load_processor(folder)
    assert task_of(model) == "fill-mask" and model.config.vocab_size == len(tokenizer) <= 150
    assert model.config.hidden_dropout_prob == 0.1


def test_pre_training_is_a_function_of_the_seed(tmp_path):
    one, same, other = (
        weights(pretrain_masked_lm(texts(40), tmp_path / name, **TINY, seed=seed))
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, same[name], rtol=0, atol=0)
    assert any((one[name] != other[name]).any() for name in one)


def test_pre_training_leaves_the_callers_random_numbers_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    pretrain_masked_lm(texts(20), tmp_path / "bert", **TINY)
    embedded.build("cnn", cache_dir=tmp_path)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_documents_longer_than_a_sequence_are_learned_from_too(tmp_path):
    long = [" ".join(texts(30)), "A short one."]
    assert weights(pretrain_masked_lm(long, tmp_path / "bert", **TINY, epochs=1.5))


@pytest.mark.parametrize("nothing", [[], ["", "  \n"], ["<br />"]])
def test_pre_training_needs_text(nothing, tmp_path):
    with pytest.raises(InputError, match="texts"):
        pretrain_masked_lm(nothing, tmp_path / "bert", **TINY)
    assert not list(tmp_path.iterdir())


def test_pre_training_refuses_what_cannot_work(tmp_path):
    with pytest.raises(InputError, match="exists"):
        pretrain_masked_lm(texts(5), tmp_path, **TINY)
    with pytest.raises(InputError, match="epochs=0"):
        pretrain_masked_lm(texts(5), tmp_path / "bert", **TINY, epochs=0)
    with pytest.raises(InputError, match="seq_length=64"):
        pretrain_masked_lm(texts(5), tmp_path / "bert", **{**TINY, "seq_length": 64})


def test_an_interrupted_pre_training_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(BertForMaskedLM, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain_masked_lm(texts(5), tmp_path / "bert", **TINY)
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_lowers_case_and_drops_markup(tmp_path):
    tokenizer = train_tokenizer(texts(), 150, 24)
    plain = tokenizer("the soup tasted good.")["input_ids"]
    assert tokenizer("The SOUP<br /><br/>tasted <unk>good @-@ .")["input_ids"] == plain
    assert tokenizer.decode(plain) == "[CLS] the soup tasted good. [SEP]"
    tokenizer.save_pretrained(tmp_path)
    again = load_processor(tmp_path)
    assert again("The SOUP<br />tasted good.", truncation=True)["input_ids"] == plain
    assert len(again("soup " * 50, truncation=True)["input_ids"]) == 24


def test_words_of_a_kind_have_vectors_of_a_kind():
    tokenizer = train_tokenizer(texts(), 150, 24)
    documents = tokenizer(texts(), add_special_tokens=False)["input_ids"]
    stream = np.concatenate([[*ids, -1, -1, -1, -1, -1] for ids in documents])
    vectors = count_vectors(stream, len(tokenizer), 12)
    assert np.allclose(vectors.std(axis=1), 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    food, film = ([vectors[tokenizer.convert_tokens_to_ids(word)] for word in words] for words in (FOODS, FILMS))
    assert np.mean(np.array(food) @ np.array(food).T) > np.mean(np.array(food) @ np.array(film).T) + 0.5


@torch.no_grad()
def test_two_heads_start_by_reading_the_neighbours():
    config = BertConfig(
        vocab_size=60, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, attn_implementation="eager"
    )
    torch.manual_seed(0)
    model = BertForMaskedLM(config).eval()
    documents = [np.random.default_rng(seed).integers(5, 60, 40) for seed in range(30)]
    initialize_from_counts_(model, documents)
    ids = torch.from_numpy(documents[0])[None]
    attention = model(ids, output_attentions=True).attentions[0][0]
    inside = torch.arange(5, 35)
    assert (attention[0, inside].argmax(-1) == inside - 1).float().mean() > 0.7
    assert (attention[1, inside].argmax(-1) == inside + 1).float().mean() > 0.7
    frequencies = np.bincount(np.concatenate(documents), minlength=60) + 1
    expected = torch.from_numpy(np.log(frequencies / frequencies.sum())).float()
    torch.testing.assert_close(model.cls.predictions.bias, expected)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cnn", (2, 1, 28, 28)),
        ("resnet20", (2, 3, 32, 32)),
        ("vgg16-small", (2, 3, 32, 32)),
        ("vit-tiny", (2, 1, 8, 8)),
    ],
)
def test_an_untrained_model_depends_on_the_seed_only(name, shape, tmp_path):
    folder = embedded.build(name, cache_dir=tmp_path / "one")
    again = embedded.build(name, cache_dir=tmp_path / "two")
    other = embedded.build(name, cache_dir=tmp_path / "one", seed=1)
    assert folder.name == again.name and folder != other
    for key, tensor in weights(folder).items():
        torch.testing.assert_close(tensor, weights(again)[key], rtol=0, atol=0)
    assert not torch.equal(weights(folder)["classifier.weight"], weights(other)["classifier.weight"])
    model = load_model(folder)
    assert model(torch.zeros(shape)).logits.shape == (2, 10) and task_of(model) == "image-classification"
    assert load_processor(folder).size["height"] == shape[-1]


def test_a_pre_trained_model_is_made_once_for_a_recipe_and_its_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "BERT_MINI", TINY)
    data = write_data(tmp_path / "data")
    folder = embedded.build("bert-mini", cache_dir=tmp_path / "cache", data_root=data)
    made = os.stat(folder / "model.safetensors").st_mtime_ns
    assert embedded.build("bert-mini", cache_dir=tmp_path / "cache", data_root=data, seed=7) == folder
    assert os.stat(folder / "model.safetensors").st_mtime_ns == made

    monkeypatch.setattr(embedded, "BERT_MINI", {**TINY, "epochs": 2})
    recipe = embedded.build("bert-mini", cache_dir=tmp_path / "cache", data_root=data)
    more = write_data(tmp_path / "more", count=41)
    assert len({folder, recipe, embedded.build("bert-mini", cache_dir=tmp_path / "cache", data_root=more)}) == 3


def test_a_small_gpt2_reads_texts_from_a_beginning_token_and_predicts_the_next_ones(tmp_path):
    data = write_data(tmp_path / "data")
    folder = embedded.build("gpt2-mini", cache_dir=tmp_path / "cache", data_root=data)
    model, tokenizer = load_model(folder), load_processor(folder)
    assert task_of(model) == "text-generation"
    inputs = tokenizer(["A good film."], return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["input_ids"][0, 0] == tokenizer.bos_token_id == model.config.bos_token_id
    assert tokenizer.eos_token_id not in inputs["input_ids"], "a text that is cut does not seem to end"
    assert tokenizer.model_max_length == model.config.n_positions
    assert model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    assert embedded.build("gpt2-mini", cache_dir=tmp_path / "cache", data_root=data) == folder
    assert embedded.build("gpt2-mini", cache_dir=tmp_path / "cache", data_root=data, seed=1) != folder


def test_the_cache_is_in_the_home_of_hugging_face_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    assert embedded.build("cnn").parent == tmp_path / "hf_fip"


def test_what_cannot_be_built_is_refused(tmp_path):
    with pytest.raises(InputError, match="bert-demo, bert-mini, gpt2-demo, gpt2-mini, cnn, lenet, resnet20, vgg16"):
        embedded.build("bert-large", cache_dir=tmp_path)
    with pytest.raises(InputError, match="data_root.*imdb_unsupervised"):
        embedded.build("bert-mini", cache_dir=tmp_path)
    with pytest.raises(InputError, match="none of the texts"):
        embedded.build("bert-mini", cache_dir=tmp_path, data_root=tmp_path)
    assert not list(tmp_path.iterdir())


def build_in_a_process(cache: Path, data: Path) -> subprocess.Popen:
    code = f"""
from hf_fip.models import embedded
embedded.BERT_MINI = {TINY!r}
print(embedded.build("bert-mini", cache_dir={str(cache)!r}, data_root={str(data)!r}))
"""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


def visible(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if not path.name.startswith(".")]


def wait_for_the_lock(process: subprocess.Popen, cache: Path) -> Path:
    while process.poll() is None:
        if locks := list(cache.glob(".*.lock")):
            return locks[0]
        time.sleep(0.005)
    raise AssertionError("the process ended without building")


def test_a_killed_build_leaves_nothing_half_made_and_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "BERT_MINI", TINY)
    cache, data = tmp_path / "cache", write_data(tmp_path / "data", count=1000)
    process = build_in_a_process(cache, data)
    lock = wait_for_the_lock(process, cache)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert visible(cache) == []
    # What a process leaves that is killed while it writes the files.
    leftover = cache / f"{lock.name.removesuffix('.lock')}.12345"
    leftover.mkdir()
    (leftover / "config.json").write_text("{")

    folder = embedded.build("bert-mini", cache_dir=cache, data_root=data)
    assert visible(cache) == [folder.name] and not leftover.exists()
    assert load_model(folder).config.hidden_size == 32


def test_of_two_processes_one_makes_the_model_and_the_other_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "BERT_MINI", TINY)
    cache, data = tmp_path / "cache", write_data(tmp_path / "data", count=300)
    process = build_in_a_process(cache, data)
    wait_for_the_lock(process, cache)
    monkeypatch.setattr(embedded, "pretrain_masked_lm", lambda *args, **kwargs: pytest.fail("made twice"))
    folder = embedded.build("bert-mini", cache_dir=cache, data_root=data)
    assert folder == Path(process.communicate()[0].strip()) and process.returncode == 0
    assert load_model(folder).config.hidden_size == 32


@pytest.mark.slow
def test_the_demo_model_knows_the_reviews_it_was_trained_on(tmp_path):
    folder = embedded.build("bert-demo", cache_dir=tmp_path)
    from hf_fip.tasks import resolve_dataset

    reviews = resolve_dataset("embedded:restaurants", split="test")["text"][:50]
    assert masked_loss(folder, reviews) < 0.5 * math.log(load_model(folder).config.vocab_size)
