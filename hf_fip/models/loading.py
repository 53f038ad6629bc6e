from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import transformers
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from ..errors import InputError
from ..storage.saving import save_compressed
from .heads import grow_head, label_names_of, replace_head


AUTO_CLASSES = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "fill-mask": AutoModelForMaskedLM,
    "text-generation": AutoModelForCausalLM,
    "image-classification": AutoModelForImageClassification,
}
_CLASS_NAME_PARTS = {
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
}
_PEFT_TASKS = {
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
    "CAUSAL_LM": "text-generation",
}
_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download")

# Not "config.json": with that file in it, transformers takes an adapter's folder for a complete model and fails.
BASE_CONFIG_FILE = "base_config.json"


def task_of(model: PreTrainedModel | PeftModel) -> str:
    """
    What a model is for, by its class name, or by its `loss_type` where the name does not tell.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model.

    Returns:
        `str`: `"sequence-classification"`, `"token-classification"`, `"fill-mask"`, `"text-generation"`,
        `"image-classification"` or `"other"`.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    for text in (type(model).__name__, getattr(model, "loss_type", None) or ""):
        for part, task in _CLASS_NAME_PARTS.items():
            if part in text:
                return task
    return "other"


def load_model(
    folder_or_id: str | os.PathLike, *, task: str | None = None, is_trainable: bool = False, **kwargs
) -> PreTrainedModel | PeftModel:
    """
    Load a model from a folder or the Hub, as the class that it was saved from.

    A folder with an `adapter_config.json` is loaded as a `PeftModel` on its base model. Only safetensors files are
    read, and no code that comes with a model is run.

    Args:
        folder_or_id (`str` or `os.PathLike`): a folder written by `save_pretrained` or
            [`~hf_fip.models.loading.save_model`], or a Hub id.
        task (`str`, *optional*): load with the head of this task instead of the recorded one (a fresh head where the
            files have none); one of the names that [`~hf_fip.models.loading.task_of`] returns.
        is_trainable (`bool`, *optional*, defaults to `False`): whether an adapter is loaded to be trained further.
        kwargs (additional keyword arguments, *optional*): passed on to `from_pretrained`, as `num_labels`, `dtype` or
            `revision`.

    Returns:
        `PreTrainedModel` or `PeftModel`, in evaluation mode.

    Raises:
        [`~hf_fip.errors.InputError`]: nothing to load there, weights in another format than safetensors, an unknown
        architecture or task, or `trust_remote_code=True`.
    """
    source = os.fspath(folder_or_id)
    if kwargs.pop("trust_remote_code", False):
        raise InputError("trust_remote_code=True: hf_fip runs no code that comes with a model; leave it out.")
    if task is not None and task not in AUTO_CLASSES:
        raise InputError(f"task={task!r}: use one of {', '.join(AUTO_CLASSES)}.")
    kwargs["use_safetensors"] = True
    hub_arguments = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
    if _find(source, "adapter_config.json", **hub_arguments):
        return _load_adapter(source, task, is_trainable, hub_arguments, kwargs)
    return _load_full(source, _class_for(source, task, hub_arguments), kwargs)


def save_model(
    model: PreTrainedModel | PeftModel,
    folder: str | os.PathLike,
    *,
    state_dict: dict[str, Tensor] | None = None,
    sparse_format: str = "auto",
    scales: Mapping[str, Tensor] | None = None,
):
    """
    Save a model so that [`~hf_fip.models.loading.load_model`] gives it back: the whole model, or of a `PeftModel` its
    `default` adapter, with the base model's configuration (labels included) as `base_config.json` beside it. Sparse
    and quantized models take as few bytes as they can, see [`~hf_fip.storage.saving.save_compressed`].

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model.
        folder (`str` or `os.PathLike`): where to; made if missing.
        state_dict (`dict[str, torch.Tensor]`, *optional*, defaults to `model.state_dict()`):
            The weights to write, named as in `model`, where they had to be gathered first.
        sparse_format (`str`, *optional*, defaults to `"auto"`):
            `"auto"`, `"bitmask"`, `"structured"`, or `"dense"` for files that load without `hf_fip` too. An adapter is
            saved as it is.
        scales (`Mapping[str, torch.Tensor]`, *optional*):
            By weight, one scale per row, of weights known to lie on a grid. By default it is found where it can be.

    Raises:
        [`~hf_fip.errors.InputError`]: a `PeftModel` whose active adapter is not called `default`, an unknown format,
        or weights off the grid of their scale.
    """
    if not isinstance(model, PeftModel):
        save_compressed(model, folder, sparse_format=sparse_format, state_dict=state_dict, scales=scales)
        return
    if model.active_adapter != "default":
        raise InputError(f"model: its active adapter is called {model.active_adapter!r}; only 'default' is saved.")
    model.save_pretrained(folder, selected_adapters=["default"], state_dict=state_dict)
    config = model.get_base_model().config
    config.architectures = [type(model.get_base_model()).__name__]
    config.to_json_file(Path(folder) / BASE_CONFIG_FILE)


def load_checkpoint_(model: nn.Module, folder: str | os.PathLike) -> bool:
    """
    Loads the weights of a checkpoint as `from_pretrained` does. The Trainer's own loader takes the tensor names in the
    file as they are, but models whose names changed between versions (ViT, for one) are saved under the old ones: it
    would leave their weights as they were, with only a warning.

    Args:
        model (`nn.Module`): The model that receives them, in place.
        folder (`str` or `os.PathLike`): The checkpoint.

    Returns:
        `bool`: whether the model is one that can be loaded so.
    """
    if not isinstance(model, PreTrainedModel):
        return False
    saved = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
    model.load_state_dict(saved.state_dict())
    return True


def load_processor(folder_or_id: str | os.PathLike, **kwargs) -> PreTrainedTokenizerBase | BaseImageProcessor | None:
    """
    Load the tokenizer, or else the image processor, that was saved with a model.

    Args:
        folder_or_id (`str` or `os.PathLike`): a folder or a Hub id. For an adapter without one of its own the base
            model's is loaded.
        kwargs (additional keyword arguments, *optional*): passed on to `from_pretrained`, as `revision`.

    Returns:
        A tokenizer, an image processor, or `None` where there is neither.

    Raises:
        [`~hf_fip.errors.InputError`]: neither a folder nor a Hub id that can be reached.
    """
    source = os.fspath(folder_or_id)
    hub_arguments = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
    if any(_find(source, name, **hub_arguments) for name in ("tokenizer_config.json", "tokenizer.json", "vocab.txt")):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **kwargs)
    if _find(source, "preprocessor_config.json", **hub_arguments):
        return AutoImageProcessor.from_pretrained(source, trust_remote_code=False, **kwargs)
    if _find(source, "adapter_config.json", **hub_arguments):
        base, revision = _base_of(source, PeftConfig.from_pretrained(source, **hub_arguments))
        return load_processor(base, **{**kwargs, "revision": revision})
    return None


def _find(source: str, name: str, **hub_arguments) -> str | None:
    """Path of a file in a folder or a Hub repository, `None` if the place exists but has no such file."""
    if os.path.isdir(source):
        path = os.path.join(source, hub_arguments.get("subfolder", ""), name)
        return path if os.path.isfile(path) else None
    try:
        return cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub_arguments)
    except (OSError, ValueError) as error:
        raise _unreachable(source, error) from error


def _unreachable(source: str, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"model={source!r}: give a folder with config.json and model.safetensors, or the id of a model on the Hub "
        f"({reason})"
    )


def _class_for(source: str, task: str | None, hub_arguments: dict) -> type:
    """The class to load with: the recorded architecture, or the Auto class of `task` for another head."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **hub_arguments)
    except (OSError, ValueError) as error:
        raise _unreachable(source, error) from error
    if task is not None:
        return AUTO_CLASSES[task]
    return _architecture(config, source)


def _architecture(config: PreTrainedConfig, source: str) -> type[PreTrainedModel]:
    """
    The model class that a configuration names: one of transformers' own, or one registered with an Auto class.

    Args:
        config (`PreTrainedConfig`): the configuration.
        source (`str`): where it comes from, for the error message.

    Returns:
        The class.

    Raises:
        [`~hf_fip.errors.InputError`]: no architecture named, or an unknown one.
    """
    if not config.architectures:
        raise InputError(f"model={source!r}: its configuration names no architecture; say the task to load it for.")
    name = config.architectures[0]
    candidates = [getattr(transformers, name, None)]
    candidates += [auto._model_mapping.get(type(config), None) for auto in AUTO_CLASSES.values()]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, PreTrainedModel) and candidate.__name__ == name:
            return candidate
    raise InputError(
        f"model={source!r}: its architecture {name!r} is neither one of transformers {transformers.__version__} nor "
        "registered with an Auto class; import the module that registers it."
    )


def _load_full(source: str, model_class: type, kwargs: dict):
    try:
        return model_class.from_pretrained(source, trust_remote_code=False, **kwargs)
    except (OSError, SafetensorError) as error:
        raise _unreachable(source, error) from error


def _base_of(source: str, config: PeftConfig) -> tuple[str, str | None]:
    """The base model of an adapter and its revision; a folder that was moved along with the adapter is found."""
    base = config.base_model_name_or_path or ""
    beside = Path(source).resolve().parent / Path(base).name
    if not os.path.isdir(base) and os.path.isdir(source) and Path(base).name and beside.is_dir():
        return str(beside), None
    return base, config.revision


def _load_adapter(source: str, task: str | None, is_trainable: bool, hub_arguments: dict, kwargs: dict) -> PeftModel:
    weights = _find(source, "adapter_model.safetensors", **hub_arguments)
    if weights is None:
        raise InputError(f"model={source!r}: its adapter is not stored as adapter_model.safetensors; save it so.")
    peft_config = PeftConfig.from_pretrained(source, **hub_arguments)
    base, revision = _base_of(source, peft_config)
    base_kwargs = {name: value for name, value in kwargs.items() if name not in hub_arguments}
    base_arguments = {name: hub_arguments[name] for name in ("token", "cache_dir") if name in hub_arguments}
    base_arguments |= {} if revision is None else {"revision": revision}

    base_config_file = _find(source, BASE_CONFIG_FILE, **hub_arguments)
    recorded = None
    if task is None and base_config_file:
        recorded = AutoConfig.from_pretrained(base_config_file, trust_remote_code=False)
        model_class = _architecture(recorded, source)
    else:
        model_class = _class_for(base, task or _PEFT_TASKS.get(peft_config.task_type), base_arguments)
    model, report = _load_full(base, model_class, {**base_kwargs, **base_arguments, "output_loading_info": True})
    _check_complete(source, report["missing_keys"], weights)
    if recorded is not None:
        _match_labels(model, [name for _, name in sorted(recorded.id2label.items())])
    model = PeftModel.from_pretrained(model, source, config=peft_config, is_trainable=is_trainable, **hub_arguments)
    return model.eval()


def _check_complete(source: str, missing: set[str], weights: str):
    """
    What the base's files lack was random when the adapter was trained, and must have been saved with it: the pooler of
    a BERT whose base is a masked language model, for example.
    """
    with safe_open(weights, framework="pt") as file:
        saved = {name.removeprefix("base_model.model.") for name in file.keys()}
    lost = sorted(missing - saved)
    if lost:
        raise InputError(
            f"model={source!r}: neither its adapter nor its base model holds {lost[0]} ({len(lost)} such weights); "
            "name the module in `modules_to_save` of the adapter's configuration and train it again."
        )


def _match_labels(model: PreTrainedModel, names: list[str]):
    """Give the base model the head that it had when the adapter was saved: the adapter's weights must fit on it."""
    old = label_names_of(model)
    if names[: len(old)] == old and len(names) > len(old):
        grow_head(model, names[len(old) :])
    elif names != old:
        replace_head(model, names)
