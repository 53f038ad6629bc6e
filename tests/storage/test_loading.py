"""What is saved small comes back as an ordinary model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, Trainer

from hf_fip import FIPTrainer
from hf_fip.errors import InputError
from hf_fip.models import load_model, save_model
from hf_fip.storage import save_compressed
from tests.storage.models import BERT, bert, pixels, quantize, silence, sparsify, vit, weight_bytes, words
from tests.testing_utils import ROOT, arguments, assert_same_weights, case, run_python, texts, weights


MODELS = {"bert": bert, "vit": vit}


def config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("sparse_format", ["auto", "bitmask", "dense"])
@pytest.mark.parametrize("sparsity", [0.5, 0.97])
def test_a_sparse_model_comes_back_bit_by_bit(tmp_path, kind, sparse_format, sparsity):
    model = sparsify(MODELS[kind](), sparsity)
    save_model(model, tmp_path, sparse_format=sparse_format)
    assert not hasattr(model.config, "quantization_config")
    assert ("quantization_config" in config_of(tmp_path)) == (sparse_format != "dense")

    loaded = type(model).from_pretrained(tmp_path)
    assert_same_weights(weights(model), weights(loaded))
    assert all(weight.requires_grad and weight.is_contiguous() for weight in loaded.parameters())
    assert not getattr(loaded, "is_quantized", False) and not hasattr(loaded.config, "quantization_config")
    loaded.float().half().float()


def test_a_quantized_model_comes_back_bit_by_bit(tmp_path):
    model = quantize(bert())
    save_model(model, tmp_path / "int8")
    save_model(model, tmp_path / "dense", sparse_format="dense")
    assert_same_weights(weights(model), weights(load_model(tmp_path / "int8")))
    assert weight_bytes(tmp_path / "int8") < 0.3 * weight_bytes(tmp_path / "dense")
    save_model(quantize(model, levels=7), tmp_path / "int4")
    assert_same_weights(weights(model), weights(load_model(tmp_path / "int4")))
    assert weight_bytes(tmp_path / "int4") < 0.2 * weight_bytes(tmp_path / "dense")


@pytest.mark.parametrize("sparsity, share", [(0.9, 0.25), (0.99, 0.05)])
def test_the_whole_file_shrinks_where_all_matrices_are_sparse(tmp_path, sparsity, share):
    config = BertConfig(vocab_size=2000, hidden_size=128, num_hidden_layers=2, num_attention_heads=2)
    model = sparsify(BertForMaskedLM(config), sparsity)
    save_model(model, tmp_path / "sparse")
    save_model(model, tmp_path / "dense", sparse_format="dense")
    assert weight_bytes(tmp_path / "sparse") <= share * weight_bytes(tmp_path / "dense")
    assert_same_weights(weights(model), weights(load_model(tmp_path / "sparse")))


def test_a_dense_model_gets_ordinary_files(tmp_path):
    save_model(bert(), tmp_path)
    assert "quantization_config" not in config_of(tmp_path)
    assert not any(":" in name for name in load_file(tmp_path / "model.safetensors"))


def test_a_fresh_process_loads_with_transformers_once_hf_fip_is_imported(tmp_path):
    models = {"sparse": sparsify(bert(), 0.9), "quantized": quantize(vit()), "structured": silence(bert())}
    expected = {}
    for name, model in models.items():
        save_model(model, tmp_path / name, sparse_format="structured" if name == "structured" else "auto")
        with torch.no_grad():
            expected[name] = model(**(pixels() if name == "quantized" else words())).logits
        save_file(weights(model), tmp_path / f"{name}.safetensors")
    save_file(expected, tmp_path / "logits.safetensors")
    script = tmp_path / "script.py"
    for order in (
        "import hf_fip, sys\nassert not {'torch', 'transformers'} & sys.modules.keys()\nimport transformers",
        "import transformers\nimport hf_fip",
        "import hf_fip, importlib.util\nimportlib.util.find_spec('transformers.modeling_utils')\nimport transformers",
    ):
        script.write_text(f"""{order}
import torch
from safetensors.torch import load_file
from tests.storage.models import pixels, words
names = dict.fromkeys(("sparse", "structured"), "Sequence") | {{"quantized": "Image"}}
autos = {{name: getattr(transformers, f"AutoModelFor{{kind}}Classification") for name, kind in names.items()}}
logits = load_file(r"{tmp_path}/logits.safetensors")
for name, auto in autos.items():
    model = auto.from_pretrained(r"{tmp_path}/" + name)
    if name != "structured":
        saved = load_file(r"{tmp_path}/" + name + ".safetensors")
        assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        found = model(**(pixels() if name == "quantized" else words())).logits
    torch.testing.assert_close(found, logits[name])
print("same")
""")
        done = run_python(script)
        assert done.stdout.strip() == "same", done.stderr[-2000:]


def test_sharded_files_and_another_dtype(tmp_path):
    model = sparsify(bert(), 0.8)
    save_compressed(model, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_weights(weights(model), weights(load_model(tmp_path)))
    narrow = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert_same_weights({name: value.bfloat16() for name, value in weights(model).items()}, weights(narrow))


def test_a_bfloat16_model(tmp_path):
    model = sparsify(bert().bfloat16(), 0.9)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert_same_weights(weights(model), weights(loaded))


def test_a_body_is_loaded_from_the_files_of_a_classifier(tmp_path):
    model = sparsify(bert(), 0.9)
    save_model(model, tmp_path)
    assert_same_weights(weights(model.bert), weights(AutoModel.from_pretrained(tmp_path)))


def test_another_head_is_started_afresh(tmp_path):
    save_model(sparsify(bert(), 0.9), tmp_path)
    other = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert other.classifier.weight.shape == (5, 64) and other.classifier.weight.count_nonzero() == 5 * 64


def test_saving_again(tmp_path):
    model = sparsify(bert(), 0.9)
    save_model(model, tmp_path / "first")
    loaded = load_model(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in config_of(tmp_path / "dense")
    save_model(loaded, tmp_path / "sparse")
    assert weight_bytes(tmp_path / "sparse") == weight_bytes(tmp_path / "first")
    for folder in ("dense", "sparse"):
        assert_same_weights(weights(model), weights(load_model(tmp_path / folder)))
    # Over the old files too.
    save_model(loaded, tmp_path / "first", sparse_format="dense")
    assert "quantization_config" not in config_of(tmp_path / "first")
    assert_same_weights(weights(model), weights(load_model(tmp_path / "first")))


def test_tied_weights_are_stored_once(tmp_path):
    model = sparsify(BertForMaskedLM(BertConfig(**BERT)), 0.9)
    save_model(model, tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert not any(name.startswith("cls.predictions.decoder.weight") for name in names)
    loaded = load_model(tmp_path)
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    assert_same_weights(weights(model), weights(loaded))


def test_negative_zeros_are_zeros(tmp_path):
    model = bert()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_((torch.rand(weight.shape) < 0.1).float())
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert_same_weights(weights(model), weights(loaded))
    assert "quantization_config" in config_of(tmp_path)


def test_an_adapter_on_a_sparse_base(tmp_path):
    model = sparsify(bert(), 0.9)
    save_model(model, tmp_path / "base")
    base = load_model(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False))
    save_model(adapted, tmp_path / "adapter")
    loaded = load_model(tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**words()).logits, adapted.eval()(**words()).logits)


def test_a_loaded_sparse_model_is_trained_like_any_other(tmp_path):
    case_ = case("sequence-classification")
    model = sparsify(bert(vocab_size=64), 0.9)
    save_model(model, tmp_path / "sparse")
    case_["model"] = load_model(tmp_path / "sparse")
    before = weights(case_["model"])
    trainer = FIPTrainer(**case_, args=arguments(tmp_path / "run"))
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in weights(trainer.model).items())
    assert [node.load_model().dtype for node in trainer.graph] == [torch.float32] * len(trainer.graph)

    plain = Trainer(load_model(tmp_path / "sparse"), arguments(tmp_path / "plain"), train_dataset=texts(16, seed=1))
    plain.data_collator = trainer.data_collator
    plain.train()
    plain.save_model(tmp_path / "plain" / "model")
    assert_same_weights(weights(plain.model), weights(load_model(tmp_path / "plain" / "model")))


def damage(folder, change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


NAME = "bert.encoder.layer.0.output.dense.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.update({f"{NAME}:values": tensors[f"{NAME}:values"][1:].clone()}),
        lambda tensors: tensors.update({f"{NAME}:bitmask": tensors[f"{NAME}:bitmask"][1:].clone()}),
        lambda tensors: tensors.update({f"{NAME}:bitmask": ~tensors[f"{NAME}:bitmask"]}),
        lambda tensors: tensors.pop(f"{NAME}:values"),
        lambda tensors: tensors.pop(f"{NAME}:shape"),
        lambda tensors: tensors.update({f"{NAME}:gaps": tensors[f"{NAME}:bitmask"].clone()}),
    ],
)
def test_damaged_weights_are_refused_in_one_line(tmp_path, change):
    save_model(sparsify(bert(), 0.6), tmp_path)
    damage(tmp_path, change)
    for load in (load_model, AutoModelForSequenceClassification.from_pretrained):
        with pytest.raises(InputError, match=NAME.replace(".", r"\.")) as error:
            load(tmp_path)
        assert "\n" not in str(error.value)


def test_a_file_cut_short_is_refused_in_one_line(tmp_path):
    save_model(sparsify(bert(), 0.6), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        {"format_version": 2},
        {"format_version": None},
        {"groups": {}},
        {"groups": [3]},
        {"groups": [{"kind": "heads", "count": 4, "kept": "0-9", "rows": {}, "columns": {}}]},
        {"groups": [{"kind": "heads", "count": 4, "kept": "2,1", "rows": {}, "columns": {}}]},
        {"groups": [{"kind": "heads", "count": 10**9, "kept": "0", "rows": {}, "columns": {}}]},
        {"groups": [{"kind": "heads", "count": 4, "kept": "0", "rows": {"bert": 16}, "columns": {}}]},
        {"groups": [{"kind": "neurons", "count": 9, "kept": "0", "rows": {"classifier": 1}, "columns": {}}]},
        {"stored_as": {"a": 1}},
    ],
)
def test_a_damaged_configuration_is_refused_in_one_line(tmp_path, content):
    save_model(sparsify(bert(), 0.6), tmp_path)
    config = config_of(tmp_path)
    config["quantization_config"] |= content
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="quantization_config") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


def test_bad_arguments(tmp_path):
    with pytest.raises(InputError, match="sparse_format='zip'"):
        save_model(bert(), tmp_path, sparse_format="zip")
    with pytest.raises(InputError, match="grid"):
        save_model(bert(), tmp_path, scales={"bert.pooler.dense.weight": torch.ones(64)})


def test_importing_the_package_costs_no_heavy_import():
    code = "import hf_fip, sys; print(sorted({'torch', 'transformers', 'numpy', 'safetensors'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("module", ["structures", "resizing", "conversions", "saving"])
def test_each_module_may_be_imported_first(module):
    """Whatever imports transformers' models first sets off the registration, which needs these modules whole."""
    code = f"import hf_fip, hf_fip.storage.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
