"""Supervised fine-tuning with TRL: its SFTTrainer makes the data, the FIPTrainer travels the path."""

from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from hf_fip import FIPConfig, FIPTrainer
from hf_fip.models.loading import load_model
from tests.testing_utils import VOCABULARY, assert_same_weights, tokenizer, weights


trl = pytest.importorskip("trl", reason="TRL is not installed")

RUN = {
    "max_steps": 12,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
}
KEPT = {"functional_distance": "kl", "distance_budget": 0.05, "path_points": 1}


@pytest.fixture
def words():
    from tokenizers import pre_tokenizers

    words = tokenizer()
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens({"eos_token": "w63"})
    return words


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0)
    config.eos_token_id = 63
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


ANSWERS = Dataset.from_list([{"prompt": f"w5 w{6 + i % 9}", "completion": f" w{20 + i % 9} w4"} for i in range(36)])
OLD = Dataset.from_list([{"text": f"w{30 + i % 20} w{31 + i % 20} w{32 + i % 20}"} for i in range(40)])


def test_what_trl_prepared_is_learned_and_the_function_on_other_texts_kept(folder, words, tmp_path):
    sft = trl.SFTTrainer(
        load_model(folder),
        trl.SFTConfig(str(tmp_path / "sft"), max_length=16, **RUN),
        train_dataset=ANSWERS,
        eval_dataset={"old": OLD},
        processing_class=words,
    )
    trainer = FIPTrainer(
        model=sft.model,
        args=FIPConfig(str(tmp_path / "fip"), logging_steps=1, **KEPT, **RUN),
        train_dataset=sft.train_dataset,
        anchor_dataset=sft.eval_dataset["old"],
        data_collator=sft.data_collator,
        processing_class=sft.processing_class,
    )
    trainer.train()
    losses = [log["loss_task"] for log in trainer.state.log_history if "loss_task" in log]
    assert losses[-1] < losses[0] - 0.5
    end = trainer.graph["fip"]
    assert end.protocol["budget"]["anchors"]["distance"] <= 0.05
    # Prompts are no targets, and the anchors are scored at every token but the first.
    assert sft.train_dataset[0]["labels"][:2] == [-100, -100]
    assert trainer.preservation.anchors.rows == 3 * len(OLD)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    with torch.no_grad():
        torch.testing.assert_close(end.load_model()(**inputs).logits, trainer.model.eval()(**inputs).logits)


def test_one_class_of_both_takes_the_same_steps(folder, words, tmp_path):
    @dataclass
    class FIPSFTConfig(FIPConfig, trl.SFTConfig):
        pass

    class FIPSFTTrainer(FIPTrainer, trl.SFTTrainer):
        pass

    def run(name, config, trainer_class, **given):
        trainer = trainer_class(
            model=load_model(folder),
            args=config(str(tmp_path / name), **KEPT, **RUN),
            anchor_dataset=prepared.eval_dataset["old"],
            processing_class=words,
            **given,
        )
        trainer.train()
        return weights(trainer.graph["fip"].load_model())

    settings = trl.SFTConfig(str(tmp_path / "sft"), **RUN)
    prepared = trl.SFTTrainer(
        load_model(folder), settings, train_dataset=ANSWERS, eval_dataset={"old": OLD}, processing_class=words
    )
    apart = {"train_dataset": prepared.train_dataset, "data_collator": prepared.data_collator}
    first = run("apart", FIPConfig, FIPTrainer, **apart)
    second = run("together", FIPSFTConfig, FIPSFTTrainer, train_dataset=ANSWERS)
    assert_same_weights(first, second)
