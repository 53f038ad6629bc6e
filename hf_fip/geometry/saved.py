"""Spectra kept beside a graph, one file for each node and metric, and read back for the report."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..errors import InputError
from ..graph.files import replace_text
from ..graph.node import is_node_id
from .spectrum import Spectrum


SPECTRA_FOLDER = "spectra"
FORMAT_VERSION = 1


def save_spectrum(folder: str | os.PathLike[str], node: str, spectrum: Spectrum) -> Path:
    """
    Writes a spectrum as `FOLDER/spectra/<node>-<metric>.json`, in one step; one of the same node and metric is
    replaced.

    Args:
        folder (`str` or `Path`): the graph's folder (`graph.folder`).
        node (`str`): id of the node whose weights it belongs to.
        spectrum ([`Spectrum`]): its spectrum.

    Returns:
        `Path`: the file. It holds `{"format_version": 1, "node": <id>, **spectrum.to_dict()}`.

    Raises:
        [`InputError`]: if `node` cannot be part of a file's name.
    """
    if not is_node_id(node):
        raise InputError(f"node={node!r} is no node's id: pass graph.nodes' key, for example 'base'")
    path = Path(folder, SPECTRA_FOLDER, f"{node}-{spectrum.metric or 'operator'}.json")
    data = {"format_version": FORMAT_VERSION, "node": node, **spectrum.to_dict()}
    replace_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")
    return path


def load_spectra(folder: str | os.PathLike[str] | None) -> dict[str, list[Spectrum]]:
    """
    The readable spectra beside a graph. The files may come from anyone; nothing in them is trusted.

    Args:
        folder (`str` or `Path`, *optional*): the graph's folder; `None` for a graph without one.

    Returns:
        `dict[str, list[Spectrum]]`: by node, in the order of the files' names; what is no spectrum is left out.
    """
    found: dict[str, list[Spectrum]] = {}
    if folder is None:
        return found
    for path in sorted(Path(folder, SPECTRA_FOLDER).glob("[!.]*.json")):
        try:
            data = json.loads(path.read_bytes())
            node, spectrum = str(data["node"]), Spectrum.from_dict(data)
        except (OSError, ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError, OverflowError):
            continue
        found.setdefault(node, []).append(spectrum)
    return found
