"""The forgetting budget of a node in words: what was asked, what was reached, what held-out inputs certify."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_fip.report.layout import distance_text, number, percent


if TYPE_CHECKING:
    from hf_fip.graph import Node

KINDS = {"distance": "functional distance", "disagreement": "changed predictions"}


@dataclass(frozen=True)
class BudgetRecord:
    """
    One kind of drift on one node.

    Args:
        node (`Node`): The node.
        kind (`str`): `"distance"` (share of the outputs' variance) or `"disagreement"` (share of the inputs).
        asked (`float`, *optional*): The budget; `None` if this kind was only measured.
        anchors (`float`, *optional*): Reached on the anchors.
        held_out (`float`, *optional*): Reached on held-out inputs of the earlier tasks.
        interval (`tuple[float, float]`, *optional*): 95 % interval of `held_out`.
        inputs (`int`, *optional*): Number of held-out inputs.
        certified (`bool`, *optional*): Whether the whole interval is within the budget.
        message (`str`): What the certificate says in words.
        inputs_needed (`int`, *optional*): How many inputs would do to certify.
    """

    node: Node
    kind: str
    asked: float | None = None
    anchors: float | None = None
    held_out: float | None = None
    interval: tuple[float, float] | None = None
    inputs: int | None = None
    certified: bool | None = None
    message: str = ""
    inputs_needed: int | None = None

    def text(self, value: float | None) -> str:
        """A value of this kind as people read it."""
        return percent(value) if self.kind == "disagreement" else distance_text(self.node, value)

    @property
    def kept(self) -> bool | None:
        """Whether the anchors kept the budget; `None` if there is none or nothing was measured."""
        if self.asked is None or self.anchors is None:
            return None
        return self.anchors <= self.asked


@dataclass(frozen=True)
class Verdict:
    """
    A node's budget in a word (`status`: `"certified"`, `"kept"`, `"exceeded"` or `"none"`), in a few (`label`), and
    the numbers that decided it (`detail`).
    """

    status: str
    label: str
    detail: str = ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _of_kind(values: Mapping[str, Any], kind: str) -> float | None:
    return next((found for key in (kind, f"{kind}_budget") if (found := number(values.get(key))) is not None), None)


def _whole(value: Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def budget_records(node: Node) -> list[BudgetRecord]:
    """The kinds of drift that `node.protocol["budget"]` reports; empty for a node without a budget report."""
    report = _mapping(node.protocol.get("budget"))
    asked, anchors = _mapping(report.get("asked")), _mapping(report.get("anchors"))
    held_out = report.get("held_out") if isinstance(report.get("held_out"), list) else []
    certificates = {str(entry.get("kind")): entry for entry in held_out if isinstance(entry, Mapping)}
    records = []
    for kind in KINDS:
        entry = certificates.get(kind, {})
        low, high = number(entry.get("low")), number(entry.get("high"))
        record = BudgetRecord(
            node=node,
            kind=kind,
            asked=_of_kind(asked, kind) if _of_kind(asked, kind) is not None else number(entry.get("asked")),
            anchors=_of_kind(anchors, kind),
            held_out=number(entry.get("value")),
            interval=(low, high) if low is not None and high is not None else None,
            inputs=_whole(entry.get("inputs")),
            certified=entry.get("certified") if isinstance(entry.get("certified"), bool) else None,
            message=str(entry.get("message") or ""),
            inputs_needed=_whole(entry.get("inputs_needed")),
        )
        if any(value is not None for value in (record.asked, record.anchors, record.held_out)):
            records.append(record)
    return records


def asked_distance(node: Node) -> float | None:
    """The distance budget the node was made under, or `None`."""
    return next((record.asked for record in budget_records(node) if record.kind == "distance"), None)


def verdict(node: Node) -> Verdict:
    """Whether the node keeps its forgetting budget on the anchors, and whether held-out inputs certify it."""
    records = budget_records(node)
    asked = [record for record in records if record.asked is not None]
    if not asked:
        # Where nothing was asked, the number people understand is told for comparison.
        return Verdict("none", "no budget", "; ".join(_sentence(r) for r in records if r.kind == "disagreement"))
    if exceeded := [record for record in asked if record.kept is False]:
        return Verdict("exceeded", "exceeded", "; ".join(map(_sentence, exceeded)))
    uncertified = [record for record in asked if not record.certified]
    detail = "; ".join(map(_sentence, uncertified or asked))
    if not uncertified:
        return Verdict("certified", "certified", detail)
    kept = all(record.kept for record in asked)
    return Verdict("kept", "kept on the anchors, not certified" if kept else "not certified", detail)


def _sentence(record: BudgetRecord) -> str:
    parts = []
    if record.asked is not None:
        parts.append(f"asked {record.text(record.asked)}")
    if record.anchors is not None:
        parts.append(f"{record.text(record.anchors)} on the anchors")
    if record.held_out is not None:
        interval = [record.text(end) for end in record.interval or ()]
        parts.append(f"{record.text(record.held_out)} held out" + (f" ({' to '.join(interval)})" if interval else ""))
    needed = ""
    if record.certified is False and record.inputs_needed:
        needed = f"; {record.inputs_needed:,} held-out inputs would do to certify it"
    return f"{KINDS[record.kind]}: {', '.join(parts)}{needed}"
