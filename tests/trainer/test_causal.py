"""Causal language models: learned on one corpus, then on another, with the perplexity of the first kept."""

import itertools
import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_fip import ContinualLearning, FIPConfig, FIPTrainer, ModelGraph, begin_graph
from hf_fip.data.causal import NextTokenCollator, causal_arguments, next_token_likelihoods, next_token_rows
from hf_fip.data.masking import perplexity
from hf_fip.errors import InputError
from hf_fip.models.loading import load_model, load_processor
from hf_fip.task_data import TaskData
from hf_fip.tasks import Task, features
from tests.testing_utils import assert_same_weights, weights


ANIMALS = ["the", "cat", "dog", "bird", "sat", "slept", "on", "under", "mat", "chair", "tree", "again"]
PRICES = ["prices", "wages", "rents", "rose", "fell", "in", "first", "second", "third", "quarter", "slowly", "the"]
WORDS = sorted({*ANIMALS, *PRICES})
KINDS = [(["the"], ["cat", "dog", "bird"], ["sat", "slept"], ["on", "under"], ["the"], ["mat", "chair", "tree"])]
KINDS += [(["prices", "wages", "rents"], ["rose", "fell"], ["in"], ["the"], ["first", "second", "third"], ["quarter"])]
TRAINING = {"max_steps": 40, "batch_size": 8, "learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True}


def sentences(kind):
    texts = [" ".join(words) for words in itertools.product(*KINDS[kind])]
    return [text + ending for ending in (" again", "", " slowly") for text in texts]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two small corpora as local files, with the empty lines and lone words that corpora have."""
    folder = tmp_path_factory.mktemp("corpora")
    for kind, name in enumerate(("animals", "prices")):
        (folder / name).mkdir()
        texts = sentences(kind)
        splits = {"train": [" ", "the", *texts[::2], *texts[::2]], "test": texts[1::2]}
        for split, rows in splits.items():
            lines = "\n".join(json.dumps({"text": row, "label": i % 2}) for i, row in enumerate(rows))
            (folder / name / f"{split}.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A small GPT-2, whose tokenizer, like the original's, has an end token and none for padding."""
    folder = tmp_path_factory.mktemp("model")
    model = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<|end|>", *WORDS])}, unk_token="<|end|>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|end|>", model_max_length=16)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=16)
    config.bos_token_id = config.eos_token_id = 0
    config.initializer_range = 0.1
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def task(name, corpora, **options):
    return Task(name=name, dataset=str(corpora / name), kind="text-generation", **options)


@pytest.fixture(scope="module")
def base(corpora, model_folder, tmp_path_factory):
    graph = str(tmp_path_factory.mktemp("begun") / "graph")
    return begin_graph(graph, model=str(model_folder), task=task("animals", corpora), training=TRAINING)


def test_a_corpus_is_learned_and_the_perplexity_of_the_earlier_one_kept(base, corpora):
    assert base.task == "text-generation"
    assert 1 < base.metrics["animals/perplexity"] < 4, "the words of each place in the sentence"
    kept = ContinualLearning(
        task("prices", corpora), anchors=24, path_points=2, distance_budget=0.1, training=TRAINING
    )
    path = kept(base)
    naive = ContinualLearning(task("prices", corpora), method="naive", path_points=1, training=TRAINING)(base)
    before = base.metrics["animals/perplexity"]
    assert path.end.protocol["budget"]["anchors"]["distance"] <= 0.1
    assert path.end.metrics["animals/perplexity"] < before * math.exp(0.1)
    assert path.end.metrics["prices/perplexity"] < 4
    assert naive.end.metrics["animals/perplexity"] > 2 * before
    assert path.end.protocol["anchors"]["positions"] == 8
    assert path.end.functional_distance["name"] == "kl"
    assert path.end.protocol["scenario"] == "domain-incremental"
    shapes = [{name: p.shape for name, p in node.load_model().named_parameters()} for node in (base, path.end)]
    assert shapes[0] == shapes[1], "the words are the same: no output node is added"


def test_perplexity_is_that_of_all_tokens_but_the_first_and_a_query_finds_it(base, corpora):
    model, tokenizer = base.load_model().eval(), load_processor(base.folder)
    total = number = 0
    for text in task("animals", corpora).load("test")["text"]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += cross_entropy(logits.double(), ids[0, 1:], reduction="sum").item()
        number += ids.shape[1] - 1
    expected = math.exp(total / number)
    assert base.metrics["animals/perplexity"] == pytest.approx(expected, rel=1e-5)
    graph = ModelGraph.load(base.folder.parent.parent)
    rows = graph.query(str(corpora / "animals"), split="test", progress=False).ranking
    found = {row["node"]: row["value"] for row in rows}
    assert found[base.id] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_pretraining_continues_within_the_budget(adapted, base, corpora, tmp_path):
    """With the trainer alone: full weights, or an adapter of PEFT on weights that stay where they are."""
    tokenizer = load_processor(base.folder)
    data = TaskData(tokenizer, None, 0, None)
    rows = {
        name: (data.features(task(name, corpora), [], "train"), data.features(task(name, corpora), [], "test"))
        for name in ("animals", "prices")
    }
    model = load_model(base.folder)
    before = weights(model)
    if adapted:
        config = LoraConfig(
            task_type="CAUSAL_LM", r=8, lora_alpha=32, target_modules="all-linear", fan_in_fan_out=True
        )
        model = get_peft_model(model, config)
    trainer = FIPTrainer(
        model=model,
        args=FIPConfig(
            str(tmp_path),
            functional_distance="kl",
            distance_budget=0.1,
            beta=0.5,
            max_steps=40,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            path_points=2,
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=1,
            save_strategy="no",
        ),
        train_dataset=rows["prices"][0],
        anchor_dataset=rows["animals"][0],
        heldout_dataset=rows["animals"][1],
        eval_dataset={name: test for name, (_, test) in rows.items()},
        data_collator=NextTokenCollator(tokenizer),
        preprocess_logits_for_metrics=next_token_likelihoods,
        compute_metrics=perplexity,
        processing_class=tokenizer,
    )
    trainer.train()
    root, end = trainer.graph.root, trainer.graph["fip"]
    assert end.metrics["animals/perplexity"] < root.metrics["animals/perplexity"] * math.exp(0.1)
    assert end.metrics["prices/perplexity"] < root.metrics["prices/perplexity"] / 2
    held_out = {one["kind"]: one for one in end.protocol["budget"]["held_out"]}
    assert held_out["distance"]["asked"] == 0.1
    assert trainer.state.log_history[0]["functional_distance"] == pytest.approx(0, abs=1e-6)
    loaded = end.load_model()
    inputs = tokenizer("the cat sat on", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, trainer.model.eval()(**inputs).logits)
    if adapted:
        assert isinstance(loaded, PeftModel)
        assert_same_weights(weights(loaded.unload()), before)


@pytest.mark.parametrize("method", ["fip", "lora"])
def test_a_llama_goes_on_to_other_texts_too(method, corpora, model_folder, tmp_path):
    """Rotary positions, no biases, fewer keys than queries; every layer of it takes an adapter."""
    torch.manual_seed(0)
    words = load_processor(model_folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    base = begin_graph(
        str(tmp_path / "graph"), model=str(tmp_path / "model"), task=task("animals", corpora), training=TRAINING
    )
    adapter = {"adapter": {"rank": 8, "alpha": 32}} if method == "lora" else {"distance_budget": 0.1}
    learn = ContinualLearning(
        task("prices", corpora), method=method, anchors=24, path_points=1, training=TRAINING, **adapter
    )
    end = learn(base).end
    before = base.metrics["animals/perplexity"]
    assert before < 6 and end.metrics["prices/perplexity"] < 8, "of 24 words"
    assert end.metrics["animals/perplexity"] <= before * math.exp(0.1)
    assert end.protocol["scenario"] == ("task-incremental" if method == "lora" else "domain-incremental")
    if method == "lora":
        assert_same_weights(weights(end.load_model().unload()), weights(base.load_model()))


def test_labels_are_replayed_at_the_kept_positions_only(base, corpora):
    path = ContinualLearning(task("prices", corpora), method="er", anchors=24, path_points=1, training=TRAINING)(base)
    assert path.end.protocol["anchors"]["positions"] == 8
    assert path.end.metrics["animals/perplexity"] < 2 * base.metrics["animals/perplexity"]


def test_texts_keep_their_end_token_and_padding_is_not_scored(model_folder):
    tokenizer = load_processor(model_folder)
    batch = NextTokenCollator(tokenizer)([{"input_ids": [3, 4, 0]}, {"input_ids": [5, 6, 7, 8, 0]}])
    assert batch["labels"].tolist() == [[3, 4, 0, -100, -100], [5, 6, 7, 8, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 5]
    assert tokenizer.pad_token is None, "the caller's tokenizer is left as it is"


def test_padding_changes_no_likelihood(model_folder):
    model, collate = load_model(model_folder), NextTokenCollator(load_processor(model_folder))
    rows = [{"input_ids": [3, 4, 5]}, {"input_ids": [5, 6, 7, 8, 9, 2]}]

    def found(rows):
        batch = collate(rows)
        with torch.no_grad():
            return next_token_likelihoods(
                model(**{k: v for k, v in batch.items() if k != "labels"}).logits, batch["labels"]
            )

    torch.testing.assert_close(found(rows), torch.cat([found(rows[:1]), found(rows[1:])]))
    assert found(rows)[:, 1].tolist() == [2, 5]


def test_a_tokenizer_without_any_token_to_pad_with_is_refused(model_folder):
    tokenizer = load_processor(model_folder)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither a pad_token nor an eos_token"):
        NextTokenCollator(tokenizer)


def test_texts_of_one_token_and_token_types_are_left_out(model_folder, corpora):
    rows = features(task("animals", corpora).load(), load_processor(model_folder))
    assert min(map(len, rows["input_ids"])) == 1
    kept = next_token_rows(rows)
    assert min(map(len, kept["input_ids"])) > 1
    assert not {"token_type_ids", "labels"} & set(kept.column_names)


def test_what_the_user_gives_goes_before_the_defaults_of_causal_models():
    assert causal_arguments({"distance_budget": 0.1})["beta"] == pytest.approx(0.5)
    given = {"functional_distance": "l2", "distance_budget": 0.1, "anchor_positions": 3}
    assert causal_arguments(given) == given
    assert causal_arguments({"distance_budget": 0.1, "beta": 3.0})["beta"] == 3.0
