"""Which model of a family suits this data?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from ..errors import InputError
from .candidates import LANGUAGE, Candidate, Processors, candidates
from .data import Examples, load_examples
from .encoding import Encoded, encode_images, encode_texts, tokens_at_most
from .metrics import Metric, get_metric
from .racing import Race, race, run_all
from .ranking import ranking
from .result import QueryResult
from .runner import Runner
from .sharing import Processes


if TYPE_CHECKING:
    from ..graph import ModelGraph, Node

logger = logging.get_logger(__name__)

STRATEGIES = ("full", "racing")
METHOD = "blocking race by paired t tests with Bonferroni's correction (Moore and Lee 1994, Birattari et al. 2002)"
METHOD_BUDGET = "sequential halving within the budget (Karnin et al. 2013)"


def query(
    graph: ModelGraph | Iterable[Node],
    dataset: str | Dataset | Sequence[str],
    *,
    metric: str = "perplexity",
    config: str | None = None,
    split: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    max_samples: int | None = None,
    strategy: str = "full",
    top: int | None = None,
    nodes: Sequence[str] | None = None,
    data_root: str | Path | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    mask_probability: float = 0.15,
    seed: int = 0,
    confidence: float = 0.95,
    budget: float | None = 0.2,
    greater_is_better: bool | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> QueryResult:
    """
    Ranks the models of a family by how well they suit a data set.

    Perplexity, by our definitions: masked language models, `exp` of the mean negative log-likelihood of the masked
    tokens, with masks that depend on the seed and the row's number alone; causal ones, `exp` of the total negative
    log-likelihood by the number of tokens, in windows; classifiers, `exp` of the mean cross-entropy of the labels.
    Sums are taken over all examples in float64. Masked models under different tokenizers are not compared. Causal ones
    are, per character: `exp(total negative log-likelihood / number of characters of the scored tokens)`.

    Under `accelerate launch` the processes share the models; each returns the whole result.

    Args:
        graph (`ModelGraph` or `Iterable[Node]`): the family, local or from the Hub.
        dataset (`str`, `Dataset` or `Sequence[str]`):
            A data set's SPEC (Hub id, local folder or file, `embedded:NAME`), a data set, or texts.
        metric (`str`, *optional*, defaults to `"perplexity"`): see [`hf_fip.query.metrics`].
        config (`str`, *optional*): the data set's configuration.
        split (`str`, *optional*): its split; by default the first of `test`, `validation`, `train`.
        text_column (`str`, *optional*): its column of texts or images; found by its name if not given.
        label_column (`str`, *optional*): its column of labels; found by its name if not given.
        max_samples (`int`, *optional*): most examples, a random sample.
        strategy (`str`, *optional*, defaults to `"full"`):
            `"full"`: every model on every example. `"racing"`: finds the best, and drops the others early; see
            [`hf_fip.query.racing`]. Dropped models keep an estimate.
        top (`int`, *optional*): how many of the best to return; all by default.
        nodes (`Sequence[str]`, *optional*): ids or branches to query instead of all nodes.
        data_root (`str` or `Path`, *optional*): folder with local copies of Hub data sets.
        batch_size (`int`, *optional*, defaults to 32): examples of the longest batch; others hold as many tokens.
        max_length (`int`, *optional*): most tokens of a text (causal models: of a window); by default 512 or what the
            models read.
        mask_probability (`float`, *optional*, defaults to 0.15): share of tokens masked.
        seed (`int`, *optional*, defaults to 0): of the sample, the masks and the order of a race.
        confidence (`float`, *optional*, defaults to 0.95): of the tests of a race.
        budget (`float`, *optional*, defaults to 0.2): largest share of the full ranking's work that a race may take;
            `None` for no limit.
        greater_is_better (`bool`, *optional*): the order, for metrics of `evaluate` not known here.
        device (`str` or `torch.device`, *optional*): where models run; an accelerator if there is one.
        progress (`bool`, *optional*, defaults to `True`): whether a bar on standard error shows the progress.

    Returns:
        [`QueryResult`]

    Raises:
        [`InputError`]: bad arguments, or no node that can score the data. Nothing was run then.
    """
    _check(strategy, top, batch_size, mask_probability, confidence, budget)
    measured = get_metric(metric, greater_is_better)
    if strategy == "racing" and not measured.can_race:
        raise InputError(f"strategy='racing' needs a mean over examples, which metric={metric!r} is not: use 'full'.")
    chosen, reference = _chosen(graph, nodes, measured)
    examples = load_examples(
        dataset,
        config=config,
        split=split,
        text_column=text_column,
        label=label_column,
        max_samples=max_samples,
        data_root=data_root,
        seed=seed,
    )
    processors = Processors()
    found, reasons = candidates(chosen, examples, measured, processors)
    masks = {"mask_probability": mask_probability, "seed": seed}
    encoded, length = _encoded(examples, found, processors, max_length, **masks)
    examples, encoded, skipped = _scorable(examples, encoded, strategy, seed)
    per = _per(found)
    weights = {key: _weights(one, measured, per) for key, one in encoded.items()}

    referred = None if reference is None else _taken_out(found, reference, reasons, measured)
    processes = Processes.started(device)
    work = (len(found) + (referred is not None)) * len(examples)
    silent = None if progress and processes.is_first else True
    with tqdm(total=work, unit="example", desc=measured.name, leave=False, disable=silent) as bar:
        runner = Runner(found, encoded, weights, measured, _truth(examples), processes, batch_size, advance=bar.update)
        if referred is not None:
            runner.refer_to(referred)
        if strategy == "racing":
            ran = race(runner.score, len(found), len(examples), confidence=confidence, budget=budget)
        else:
            ran = run_all(runner.score, len(found), len(examples))

    reasons |= {found[model].node.id: reason for model, reason in runner.failed.items()}
    for candidate, reason in zip(found, ran.dropped_by, strict=True):
        if reason == "failed":
            reasons.setdefault(candidate.node.id, "its outputs are not finite")
    rows = ranking(found, ran, runner.metric, examples)
    if not rows:
        raise InputError(f"no node could be scored: {found[0].node.id} {reasons[found[0].node.id]}.")
    protocol = {
        "config": examples.config,
        "split": examples.split,
        "column": examples.column,
        "samples": len(examples),
        "left_out": examples.left_out + skipped,
        "task": found[0].task,
        "per": per,
        "greater_is_better": measured.greater_is_better,
        "seed": seed,
        **({} if length is None else {"max_length": length, "texts_at_max_length": _cut(encoded)}),
        **({"mask_probability": mask_probability} if found[0].task == "fill-mask" else {}),
        **({} if referred is None else {"reference": referred.node.id, "unit": measured.distance.unit}),
        "strategy": strategy,
        **(_race_protocol(ran, confidence, budget) if strategy == "racing" else {}),
        "nodes": len(rows),
    }
    extra = 0 if referred is None else len(examples)
    left = {node.id: reasons[node.id] for node in chosen if node.id in reasons}
    return QueryResult(
        metric=metric,
        dataset=examples.name,
        ranking=rows[:top],
        forward_examples=ran.forward_examples + extra,
        full_forward_examples=len(found) * len(examples) + extra,
        unscored=[{"node": name, "reason": reason} for name, reason in (_unreadable(graph, nodes) | left).items()],
        protocol=protocol,
        notes=_notes(found, ran, per),
    )


def _check(
    strategy: str, top: int | None, batch_size: int, mask_probability: float, confidence: float, budget: float | None
) -> None:
    if strategy not in STRATEGIES:
        raise InputError(f"strategy={strategy!r} is unknown: use one of {', '.join(STRATEGIES)}.")
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: give a number of at least 1.")
    for name, share in (("mask_probability", mask_probability), ("confidence", confidence), ("budget", budget)):
        if share is not None and not (0 < share < 1 or (name != "confidence" and share == 1)):
            raise InputError(f"{name}={share}: give a share between 0 and 1.")


def _chosen(
    graph: ModelGraph | Iterable[Node], names: Sequence[str] | None, metric: Metric
) -> tuple[list[Node], Node | None]:
    """The nodes to query, with the reference of a distance, and that one again."""
    every = list(graph)
    if not every:
        raise InputError("graph is empty: add nodes first.")
    wanted = every if names is None else [node for name in names for node in _named(graph, every, name, "nodes")]
    wanted = list(dict.fromkeys(wanted))
    if metric.reference is None:
        return wanted, None
    reference = _named(graph, every, metric.reference, "metric")[-1]
    return wanted if reference in wanted else [*wanted, reference], reference


def _named(graph: Any, every: list[Node], name: str, argument: str) -> list[Node]:
    """One node by its id, or a branch's nodes in order."""
    found = [node for node in every if node.id == name] or [node for node in every if node.name == name]
    if not found and hasattr(graph, "endpoints"):
        try:
            return [graph[name]]
        except KeyError as error:
            raise InputError(f"{argument}: {error}") from None
    if not found:
        raise InputError(f"{argument}: no node or branch {name!r} among {', '.join(node.id for node in every[:8])}.")
    return found


def _unreadable(graph: Any, nodes: Sequence[str] | None) -> dict[str, str]:
    """Items of a Collection that are no nodes, with the reasons."""
    return {} if nodes is not None else dict(getattr(graph, "unreadable", {}))


def _encoded(
    examples: Examples,
    found: list[Candidate],
    processors: Processors,
    max_length: int | None,
    mask_probability: float,
    seed: int,
) -> tuple[dict[str, Encoded], int | None]:
    """The examples for each processor, and the most tokens of a text (`None` for images)."""
    keys = list(dict.fromkeys(one.processor for one in found))
    if examples.modality == "image":
        return {key: encode_images(examples, processors.loaded[key]) for key in keys}, None
    configs = {key: [one.config for one in found if one.processor == key] for key in keys}
    # One length for all: what a model reads of a text decides how well it does.
    length = min(tokens_at_most(processors.longest[key], configs[key], max_length) for key in keys)
    settings = {"max_length": length, "mask_probability": mask_probability, "seed": seed}
    return {key: encode_texts(examples, processors.loaded[key], found[0].task, **settings) for key in keys}, length


def _scorable(
    examples: Examples, encoded: dict[str, Encoded], strategy: str, seed: int
) -> tuple[Examples, dict[str, Encoded], int]:
    """The examples with something to score for every model, for a race in random order, and how many others were."""
    scored = np.logical_and.reduce([one.tokens > 0 for one in encoded.values()])
    rows = np.flatnonzero(scored)
    if len(rows) < 2:
        raise InputError(f"dataset={examples.name!r} has {len(rows)} texts with a token to score: give at least 2.")
    if strategy == "racing":
        rows = np.random.default_rng(seed).permutation(rows)
    elif len(rows) == len(scored):
        return examples, encoded, 0
    return examples.take(rows), {key: one.take(rows) for key, one in encoded.items()}, int((~scored).sum())


def _per(found: list[Candidate]) -> str:
    """What values are per: different tokenizers' tokens are different things, characters are not."""
    if found[0].task not in LANGUAGE:
        return "label"
    return "character" if len({one.processor for one in found}) > 1 else "token"


def _weights(encoded: Encoded, metric: Metric, per: str) -> np.ndarray:
    if per == "label" or not metric.per_token:
        return np.ones(len(encoded.windows))
    return encoded.characters if per == "character" and metric.kind == "perplexity" else encoded.tokens


def _truth(examples: Examples) -> torch.Tensor | None:
    if examples.labels is None:
        return None
    place = {name: number for number, name in enumerate(examples.classes)}
    return torch.tensor([place[name] for name in examples.labels])


def _taken_out(found: list[Candidate], reference: Node, reasons: dict[str, str], metric: Metric) -> Candidate:
    """Removes the reference of a distance from those that are ranked."""
    for place, candidate in enumerate(found):
        if candidate.node.id == reference.id:
            reasons[reference.id] = "is the reference of the distance"
            if len(found) == 1:
                raise InputError(f"metric={metric.name!r}: no other node can be compared with {reference.id!r}.")
            return found.pop(place)
    raise InputError(f"metric={metric.name!r}: {reference.id!r} {reasons[reference.id]}.")


def _cut(encoded: dict[str, Encoded]) -> int:
    return sum(one.cut for one in encoded.values())


def _race_protocol(ran: Race, confidence: float, budget: float | None) -> dict[str, Any]:
    return {
        "method": METHOD if budget is None else f"{METHOD}; {METHOD_BUDGET}",
        "confidence": confidence,
        "budget": budget,
        "looks": ran.looks,
        "dropped_by_test": ran.dropped_by.count("test"),
        "dropped_by_budget": ran.dropped_by.count("budget"),
    }


def _notes(found: list[Candidate], ran: Race, per: str) -> list[str]:
    notes = []
    if per == "character":
        notes.append(
            "The models have different tokenizers: perplexities are per character, exp(total negative log-likelihood "
            "/ characters of the scored tokens)."
        )
    by_position = sum(one.rule == "position" for one in found)
    if by_position:
        notes.append(f"Labels were matched by position for {by_position} nodes: one side's names say nothing.")
    dropped = ran.dropped_by.count("budget")
    if dropped:
        notes.append(f"The race's budget dropped {dropped} nodes that no test told from the best: near ties.")
    return notes
