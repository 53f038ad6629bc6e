"""
Ensembles of nodes: one model that answers with the mean of its members' probabilities (`modeling`), how sure it is
(`uncertainty`), and how different its members are: inside (`diversity`) and to an attacker (`coherence`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import attributes_of


if TYPE_CHECKING:
    from .coherence import input_coherence, input_gradients
    from .diversity import layer_activations, layer_diversity, linear_cka
    from .modeling import (
        Ensemble,
        EnsembleConfig,
        EnsembleForImageClassification,
        EnsembleForSequenceClassification,
    )
    from .uncertainty import expected_calibration_error, mutual_information, predictive_entropy

# Imported when they are first used: ensembles are registered wherever transformers is, which must cost nothing else.
_HOMES = {
    "Ensemble": "modeling",
    "EnsembleConfig": "modeling",
    "EnsembleForImageClassification": "modeling",
    "EnsembleForSequenceClassification": "modeling",
    "expected_calibration_error": "uncertainty",
    "input_gradients": "coherence",
    "input_coherence": "coherence",
    "layer_activations": "diversity",
    "layer_diversity": "diversity",
    "linear_cka": "diversity",
    "mutual_information": "uncertainty",
    "predictive_entropy": "uncertainty",
}

__all__ = [
    "Ensemble",
    "EnsembleConfig",
    "EnsembleForImageClassification",
    "EnsembleForSequenceClassification",
    "expected_calibration_error",
    "input_coherence",
    "input_gradients",
    "layer_activations",
    "layer_diversity",
    "linear_cka",
    "mutual_information",
    "predictive_entropy",
]


__getattr__ = attributes_of(__name__, _HOMES)
