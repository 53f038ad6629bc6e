"""What a query found."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..graph.files import replace_text
from ..graph.show import plain_text


QUERIES_FOLDER = "queries"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class QueryResult:
    """
    A ranking of a family's models.

    Args:
        metric (`str`): what was measured.
        dataset (`str`): on what.
        ranking (`list[dict]`): best first, each with `node`, `branch`, `value`, `samples` (how many examples it saw)
            and `standard_error`; in a race also `dropped_by` (`"test"`, `"budget"`, or `None` for those that reached
            the end, which come first).
        forward_examples (`int`): how many examples were run through models, all models together.
        full_forward_examples (`int`): how many the full ranking takes.
        unscored (`list[dict]`): the other nodes, each with `node` and `reason`.
        protocol (`dict`): what defines the values: split, seed, masks, lengths, strategy, ….
        notes (`list[str]`): what a reader has to know.
    """

    metric: str
    dataset: str
    ranking: list[dict[str, Any]]
    forward_examples: int
    full_forward_examples: int
    unscored: list[dict[str, str]] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def best(self) -> str:
        """The id of the node that suits the data best: `graph[result.best].load_model()`."""
        return self.ranking[0]["node"]

    def to_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict`: what `--json` prints; strict JSON can hold it.
        """
        return {
            "metric": self.metric,
            "dataset": self.dataset,
            "ranking": [{key: _finite(value) for key, value in row.items()} for row in self.ranking],
            "forward_examples": self.forward_examples,
            "full_forward_examples": self.full_forward_examples,
            "unscored": self.unscored,
            **self.protocol,
            "notes": self.notes,
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """
        Writes the result as JSON, in one step.

        Args:
            path (`str` or `Path`): the file; folders are made.

        Returns:
            `Path`: the file.
        """
        path = Path(path).expanduser()
        text = json.dumps({"format_version": FORMAT_VERSION, **self.to_dict()}, indent=1, allow_nan=False)
        replace_text(path, text + "\n")
        return path

    @property
    def file_name(self) -> str:
        """A name for its file, the same for the same question: `imdb-test-perplexity.json`."""
        parts = [re.split(r"[/:]", self.dataset.rstrip("/"))[-1], self.protocol.get("config")]
        parts += [self.protocol.get("split"), self.metric]
        name = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", str(part)) for part in parts if part)
        return f"{name.lstrip('.')[:120]}.json"

    def table(self) -> str:
        """
        The ranking as lines of text.

        Returns:
            `str`: rank, node, branch, value and samples, then the others and the notes.
        """
        title = self.metric + (" per character" if self.protocol.get("per") == "character" else "")
        races = any(row["samples"] != self.ranking[0]["samples"] for row in self.ranking)
        rows = [["", "node", "branch", title, "", "examples", "dropped by" if races else ""]]
        for rank, row in enumerate(self.ranking, 1):
            error = row["standard_error"]
            shown = "" if error is None or not math.isfinite(error) else f"± {error:.2g}"
            digits = 4 if not shown or not error else _digits(row["value"], error)
            value = f"{row['value']:.{digits}g}" if digits > 0 else "–"
            cells = [str(rank), plain_text(row["node"]), plain_text(row["branch"]), value, shown]
            rows.append([*cells, f"{row['samples']:,}", row.get("dropped_by") or ""])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        right = (0, 3, 5)
        lines = []
        for row in rows:
            cells = [
                cell.rjust(width) if place in right else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        if self.unscored:
            lines += ["", f"not scored ({len(self.unscored)}):"]
            lines += [f"  {plain_text(row['node'])}: {plain_text(row['reason'])}" for row in self.unscored]
        lines += [""] * bool(self.notes) + [plain_text(note) for note in self.notes]
        return "\n".join(lines)


def _digits(value: float, error: float) -> int:
    """Significant digits down to the second of the standard error."""
    if not value or not math.isfinite(value):
        return 4
    return min(12, max(4, 2 + math.floor(math.log10(abs(value))) - math.floor(math.log10(error))))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
