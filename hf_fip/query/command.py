"""What `hf-fip query` does."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..graph.show import plain_text
from .queries import query
from .result import QUERIES_FOLDER, QueryResult
from .sharing import Processes


logger = logging.get_logger(__name__)

ARGUMENTS = (
    "metric",
    "config",
    "split",
    "text_column",
    "label_column",
    "max_samples",
    "strategy",
    "nodes",
    "data_root",
    "batch_size",
    "max_length",
    "seed",
    "confidence",
    "budget",
)


def run_query(graph: Any, args: argparse.Namespace) -> str | None:
    """
    Queries a graph, saves the whole ranking where the report finds it, and gives what to print.

    Args:
        graph (`ModelGraph`): the graph.
        args (`argparse.Namespace`): the options of the command line.

    Returns:
        `str`, *optional*: JSON or a table; `None` in all processes but the first.
    """
    if not args.debug:
        # A bar for each architecture that is loaded says nothing.
        logging.disable_progress_bar()
    result = query(graph, args.dataset, **{name: getattr(args, name) for name in ARGUMENTS})
    if not Processes.started().is_first:
        return None
    saved = _save(result, graph, args.output)
    shown = QueryResult(**{**vars(result), "ranking": result.ranking[: args.top]})
    if args.json:
        return json.dumps(shown.to_dict(), allow_nan=False)
    return _text(shown, graph, saved)


def _save(result: QueryResult, graph: Any, output: str | None) -> Path | None:
    if output is not None:
        return result.save(output)
    folder = getattr(graph, "folder", None)
    if folder is None:
        return None
    try:
        return result.save(Path(folder) / QUERIES_FOLDER / result.file_name)
    except OSError as error:
        logger.warning(f"not saved for the report ({error}); give --output FILE to save it elsewhere.")
        return None


def _text(result: QueryResult, graph: Any, saved: Path | None) -> str:
    best = graph[result.best]
    work = f"{result.forward_examples:,} of {result.full_forward_examples:,} forward examples"
    split, samples, nodes = (result.protocol[key] for key in ("split", "samples", "nodes"))
    data = plain_text(result.dataset) + (f" ({plain_text(split)})" if split else "")
    lines = [
        f"{data}: {samples:,} examples, {nodes} nodes scored, {work}",
        "",
        result.table(),
        "",
        f"best  {plain_text(best.id)}: {_how_to_load(best, graph)}",
    ]
    return "\n".join(lines + ([f"saved  {saved}"] if saved else []))


def _how_to_load(node: Any, graph: Any) -> str:
    source = getattr(node, "source", None)
    if source is not None:
        revision = "" if source.revision in (None, "main") else f", revision={source.revision!r}"
        return f"from_pretrained({source.repo!r}{revision})"
    return f"hf_fip.ModelGraph.load({str(graph.folder)!r})[{node.id!r}].load_model()"
