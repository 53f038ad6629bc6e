"""Mean functional distance of a model's outputs to reference outputs on the same inputs."""

import datasets
import evaluate

from hf_fip.metrics.mean_distance import mean_distance


_DESCRIPTION = "How far a network's outputs lie from reference outputs on the same inputs."
_CITATION = """\
@article{raghavan2024engineering,
  title={Engineering flexible machine learning systems by traversing functionally invariant paths},
  author={Raghavan, Guruprasad and Tharwat, Bahey and Hari, Surya Narayanan and Satani, Dhruvil and Liu, Rex and
          Thomson, Matt},
  journal={Nature Machine Intelligence}, year={2024}}
"""
_INPUTS = """
Args:
    predictions (`list[list[float]]`): the outputs (logits), one row per example.
    references (`list[list[float]]`): the reference outputs of the same examples.
    distance (`str`, *optional*, defaults to `"l2"`): name of the functional distance.
Returns:
    `functional_distance` in the distance's `unit`, and its `standard_error`.
"""


class FunctionalDistance(evaluate.Metric):
    """See [`hf_fip.functional`] for the distances and their units."""

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.List(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": row, "references": row}),
        )

    def _compute(self, predictions, references, distance="l2"):
        return mean_distance(predictions, references, distance)
