"""The first node of a graph: a model fine-tuned on a first task."""

from __future__ import annotations

from typing import Any

from transformers import set_seed

from ..data.resolve import EMBEDDED
from ..errors import InputError
from ..graph import ModelGraph, Node
from ..models.embedded import build
from ..models.heads import replace_head
from ..models.loading import load_model, load_processor
from ..path import Origin
from ..task_data import TaskData
from ..tasks import LANGUAGE_MODELLING, Task
from ..trainer import FIPTrainer
from .travel import path_config, training_arguments, travel


def begin_graph(
    graph: ModelGraph | str,
    *,
    model: str,
    task: Task,
    training: dict[str, Any] | None = None,
    seed: int = 0,
    data_root: str | None = None,
    max_length: int | None = None,
) -> Node:
    """
    Fine-tunes a model on a first task and records it as the root of a graph, the node `base`. Where the graph has that
    node already, it is returned.

    Args:
        graph (`ModelGraph` or `str`): The graph or its folder.
        model (`str`): Hub id, folder, or `embedded:NAME`; its head is replaced by one for the task's labels,
            or kept for language modelling.
        task (`Task`): The first task.
        training (`dict`, *optional*): [`FIPConfig`] fields; `epochs` and `batch_size` for short.
        seed (`int`, *optional*, defaults to 0): Seed of the head and of the order of the data.
        data_root (`str`, *optional*): Local folder with the data sets, instead of the Hub.
        max_length (`int`, *optional*): Tokens kept of a text.

    Returns:
        [`Node`]: the root.

    Raises:
        [`InputError`]: if the graph has another root.
    """
    graph = graph if isinstance(graph, ModelGraph) else ModelGraph(graph)
    parameters = {
        "model": model,
        "task": task.to_dict(),
        "seed": seed,
        "max_length": max_length,
        **training_arguments(training),
    }
    if graph.nodes:
        if graph.root.parameters != parameters:
            raise InputError(
                f"graph={str(graph.folder)!r} holds another graph: its root was made with {graph.root.parameters}; "
                "choose another folder"
            )
        return graph.root
    source = model
    if model.startswith(EMBEDDED):
        source = build(model.removeprefix(EMBEDDED), data_root=data_root, seed=seed)
    processor = load_processor(source)
    if processor is None:
        raise InputError(
            f"model={model!r}: no tokenizer or image processor was found there; without a network give a folder, or "
            "embedded:bert-mini, embedded:cnn, …"
        )
    set_seed(seed)
    if task.kind in LANGUAGE_MODELLING:
        network, space = load_model(source, task=task.kind), []
    else:
        names = task.label_names(data_root)
        kind = {"text": "sequence-classification", "image": "image-classification"}[task.modality(data_root)]
        network, space = load_model(source, task=kind), list(range(len(names)))
        replace_head(network, names)
    data = TaskData(processor, data_root, seed, max_length)
    trainer = FIPTrainer(
        model=network,
        args=path_config(graph, "base", training_arguments(training), seed, path=parameters),
        train_dataset=data.features(task, space, "train"),
        **data.evaluation([task], {task.name: space}),
        processing_class=processor,
        graph=graph,
        origin=Origin(
            operator="FineTuning",
            parameters=parameters,
            protocol={"tasks": [task.to_dict()], "label_space": {task.name: space}, "model": model},
            root_only=True,
        ),
    )
    travel(trainer)
    return trainer.graph.root
