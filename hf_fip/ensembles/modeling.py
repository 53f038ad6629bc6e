from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput

# Registers the package's own networks, which may be members. Nothing else of the package is imported here but where it
# is used: this module is imported along with transformers, when the others may be on their way.
from .. import models as _networks  # noqa: F401
from ..errors import InputError


# Measured on a CPU with ten members: below both, one stacked forward takes about half the time of a loop; above
# either, copying the weights and grouped convolutions take as long or longer.
STACKED_EXAMPLES = 8
STACKED_WEIGHTS = 200_000


@strict
class EnsembleConfig(PreTrainedConfig):
    r"""
    Configuration of an [`Ensemble`].

    Args:
        members (`list[dict]`, *optional*, defaults to `[]`):
            The members' configurations, `model_type` included.
        nodes (`list[str]`, *optional*, defaults to `[]`):
            The nodes they were taken from, for the record.
    """

    model_type = "fip_ensemble"

    members: list[dict[str, Any]] | tuple[dict[str, Any], ...] = ()
    nodes: list[str] | tuple[str, ...] = ()

    def __post_init__(self, **kwargs):
        # Tuples come back from config.json as lists: keep one type so that equal configurations compare equal.
        self.members = list(self.members)
        self.nodes = list(self.nodes)
        super().__post_init__(**kwargs)


class Ensemble(PreTrainedModel):
    """
    Classifiers that answer together: the class probabilities are the mean of the members', and `logits` their
    logarithm, so that loss, accuracy and softmax are the ensemble's. Made by [`~Ensemble.from_nodes`],
    [`~Ensemble.from_graph`] or [`~Ensemble.from_models`], and loaded, saved and pushed like any other model.

    Members of one architecture run as one where that is faster, with the same outputs: in evaluation mode, on few
    examples and with small weights. `stacked` decides instead where it is set to `True` or `False`.

    Source: the paper's section on adversarial attack sums the members' softmax outputs; the mean has the same argmax.

    Args:
        config ([`EnsembleConfig`]): the members' configurations and the labels.

    Raises:
        [`~hf_fip.errors.InputError`]: no members.

    Example:

    ```python
    path = Diversification(path_points=10)(graph["base"])
    ensemble = Ensemble.from_nodes(path)
    ensemble.save_pretrained("ensemble")
    graph["base"].load_processor().save_pretrained("ensemble")
    AutoModelForImageClassification.from_pretrained("ensemble")   # after `import hf_fip`
    ```
    """

    config: EnsembleConfig
    config_class = EnsembleConfig
    base_model_prefix = "ensemble"
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules: list[str] = []
    _auto_class_of_members: Any = None

    def __init__(self, config: EnsembleConfig):
        super().__init__(config)
        if not config.members:
            raise InputError("members=[]: an ensemble has at least one; make it with Ensemble.from_nodes(nodes).")
        self.num_labels = config.num_labels
        self.stacked: bool | None = None
        self.members = nn.ModuleList(
            self._auto_class_of_members.from_config(AutoConfig.for_model(**member)) for member in config.members
        )
        self.post_init()

    # ---- Making one --------------------------------------------------------------------------------------------

    @classmethod
    def from_models(cls, models: Sequence[nn.Module], *, nodes: Sequence[str] = ()) -> Ensemble:
        """
        The ensemble of models. They become its members as they are, not as copies; adapters are merged.

        Args:
            models (`Sequence[nn.Module]`): `PreTrainedModel`s or `PeftModel`s, all classifiers of images or all of
                texts, with the same labels in the same order.
            nodes (`Sequence[str]`, *optional*): what they are called, for the record.

        Returns:
            [`EnsembleForImageClassification`] or [`EnsembleForSequenceClassification`], in evaluation mode.

        Raises:
            [`~hf_fip.errors.InputError`]: no models, models that are no classifiers of one kind, or other labels.
        """
        models = [model.merge_and_unload() if hasattr(model, "merge_and_unload") else model for model in models]
        if not models:
            raise InputError("models=[]: an ensemble has at least one member.")
        for number, model in enumerate(models):
            _check_member(model, models[0], nodes[number] if nodes else f"number {number}")
        made_as = _class_for(models[0])
        if not issubclass(made_as, cls):
            raise InputError(f"{cls.__name__} of {type(models[0]).__name__}: use {made_as.__name__}, or Ensemble.")
        config = EnsembleConfig(
            members=[_member_config(model.config) for model in models],
            nodes=list(nodes),
            id2label=dict(models[0].config.id2label),
            label2id=dict(models[0].config.label2id),
        )
        # Without memory: the members' own weights take the place of those made here.
        with torch.device("meta"):
            ensemble = made_as(config)
        ensemble.members = nn.ModuleList(models)
        return ensemble.eval()

    @classmethod
    def from_nodes(cls, nodes: Iterable[Any], **kwargs: Any) -> Ensemble:
        """
        The ensemble of nodes of a model graph, a path for example.

        Args:
            nodes (iterable of [`~hf_fip.Node`]): at least one.
            kwargs: passed on to `from_pretrained`.

        Returns:
            [`Ensemble`], as [`~Ensemble.from_models`] gives it.

        Raises:
            [`~hf_fip.errors.InputError`]: as [`~Ensemble.from_models`], or a node without files.
        """
        nodes = list(nodes)
        return cls.from_models([node.load_model(**kwargs) for node in nodes], nodes=[node.id for node in nodes])

    @classmethod
    def from_graph(cls, graph: Any, branch: str, **kwargs: Any) -> Ensemble:
        """
        The ensemble of all nodes of a branch.

        Args:
            graph ([`~hf_fip.ModelGraph`] or `str`): the graph or its folder.
            branch (`str`): name of the branch, as `"diverse"`.
            kwargs: passed on to `from_pretrained`.

        Returns:
            [`Ensemble`], as [`~Ensemble.from_models`] gives it.

        Raises:
            [`~hf_fip.errors.InputError`]: no such branch, or as [`~Ensemble.from_models`].
        """
        from ..graph import ModelGraph

        graph = graph if isinstance(graph, ModelGraph) else ModelGraph.load(graph)
        nodes = [node for node in graph if node.name == branch]
        if not nodes:
            known = ", ".join(dict.fromkeys(node.name for node in graph))
            raise InputError(f"branch={branch!r} is none of the graph's: {known}.")
        return cls.from_nodes(nodes, **kwargs)

    # ---- Running it --------------------------------------------------------------------------------------------

    def member_log_probabilities(self, **inputs: Any) -> Tensor:
        """
        What each member says.

        Args:
            inputs: what the members read, without labels.

        Returns:
            `torch.Tensor` of shape `(members, examples, classes)`: logarithms of probabilities, in float32.
        """
        from ..forward import logits_of
        from .stacking import stacked_logits

        if self._stacks(inputs):
            logits = stacked_logits(self.members, inputs)
        else:
            logits = torch.stack([logits_of(member(**inputs)) for member in self.members])
        return logits.float().log_softmax(-1)

    def _stacks(self, inputs: Mapping[str, Any]) -> bool:
        if self.training or self.stacked is False:
            return False
        if self.stacked is None:
            examples = max((len(value) for value in inputs.values() if isinstance(value, Tensor)), default=0)
            weights = sum(weight.numel() for weight in self.members[0].parameters())
            if examples > STACKED_EXAMPLES or weights > STACKED_WEIGHTS:
                return False
        from .stacking import can_stack

        if can_stack(self.members):
            return True
        if self.stacked:
            raise InputError("stacked=True, but the members differ in architecture; leave it at None.")
        return False

    def _answer(
        self,
        inputs: dict[str, Any],
        labels: Tensor | None,
        return_dict: bool | None,
        output_class: type,
        **kwargs: Any,
    ) -> Any:
        given = {name: value for name, value in inputs.items() if value is not None}
        logits = self.member_log_probabilities(**given).logsumexp(0) - math.log(len(self.members))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        if not (self.config.return_dict if return_dict is None else return_dict):
            return (logits,) if loss is None else (loss, logits)
        return output_class(loss=loss, logits=logits)


class EnsembleForImageClassification(Ensemble):
    """An [`Ensemble`] of image classifiers."""

    main_input_name = "pixel_values"
    _auto_class_of_members = AutoModelForImageClassification

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput | tuple:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Images, normalised by the image processor.
            labels (`torch.Tensor` of shape `(batch,)`, *optional*):
                Class indices. With them the output holds the mean cross-entropy of the ensemble as `loss`.
            return_dict (`bool`, *optional*, defaults to `config.return_dict`):
                Whether to return an [`~transformers.modeling_outputs.ImageClassifierOutput`] or a plain tuple.
            kwargs (additional keyword arguments, *optional*):
                Passed on to the loss, as `num_items_in_batch`.

        Returns:
            [`~transformers.modeling_outputs.ImageClassifierOutput`]: `loss`, and `logits` of shape
            `(batch, num_labels)`, the logarithms of the mean probabilities.
        """
        return self._answer({"pixel_values": pixel_values}, labels, return_dict, ImageClassifierOutput, **kwargs)


class EnsembleForSequenceClassification(Ensemble):
    """An [`Ensemble`] of classifiers of texts that share one tokenizer."""

    _auto_class_of_members = AutoModelForSequenceClassification

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple:
        r"""
        Args:
            input_ids (`torch.Tensor` of shape `(batch, tokens)`): The texts.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 0 where there is padding.
            token_type_ids (`torch.Tensor` of shape `(batch, tokens)`, *optional*): For members that read them.
            labels (`torch.Tensor` of shape `(batch,)`, *optional*):
                Class indices. With them the output holds the mean cross-entropy of the ensemble as `loss`.
            return_dict (`bool`, *optional*, defaults to `config.return_dict`):
                Whether to return a [`~transformers.modeling_outputs.SequenceClassifierOutput`] or a plain tuple.
            kwargs (additional keyword arguments, *optional*):
                Passed on to the loss, as `num_items_in_batch`.

        Returns:
            [`~transformers.modeling_outputs.SequenceClassifierOutput`]: `loss`, and `logits` of shape
            `(batch, num_labels)`, the logarithms of the mean probabilities.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self._answer(inputs, labels, return_dict, SequenceClassifierOutput, **kwargs)


def _class_for(model: nn.Module) -> type[Ensemble]:
    name = type(model).__name__
    return EnsembleForImageClassification if "ForImageClassification" in name else EnsembleForSequenceClassification


def _check_member(model: nn.Module, first: nn.Module, called: str) -> None:
    from ..forward import OutputKind, output_kind

    config = model.config
    if output_kind(model) is not OutputKind.EXAMPLE:
        raise InputError(f"member {called} is a {type(model).__name__}: ensembles are made of classifiers.")
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise InputError(
            f"member {called} has num_labels={config.num_labels}, problem_type={config.problem_type!r}: ensembles are "
            "made of classifiers with one right label of at least two."
        )
    if _class_for(model) is not _class_for(first):
        raise InputError(f"member {called} is a {type(model).__name__} and the first a {type(first).__name__}.")
    names, expected = ([c.id2label[i] for i in range(c.num_labels)] for c in (config, first.config))
    if names != expected:
        raise InputError(
            f"member {called} has the labels {names} and the first {expected}: members share one label space."
        )


def _member_config(config: PreTrainedConfig) -> dict[str, Any]:
    # Files of compressed nodes say how they are stored; the weights in memory are dense, and saved anew.
    content = config.to_dict()
    content.pop("quantization_config", None)
    return content


AutoConfig.register(EnsembleConfig.model_type, EnsembleConfig, exist_ok=True)
AutoModelForImageClassification.register(EnsembleConfig, EnsembleForImageClassification, exist_ok=True)
AutoModelForSequenceClassification.register(EnsembleConfig, EnsembleForSequenceClassification, exist_ok=True)
