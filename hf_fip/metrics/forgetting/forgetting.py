"""Average accuracy, backward and forward transfer and forgetting, from a matrix of accuracies."""

import datasets
import evaluate

from hf_fip.metrics.accuracy_matrix import continual_learning_metrics


_DESCRIPTION = "What continual learning did: average accuracy, backward transfer, forgetting, forward transfer."
_CITATION = """\
@inproceedings{lopezpaz2017gradient,
  title={Gradient episodic memory for continual learning},
  author={Lopez-Paz, David and Ranzato, Marc'Aurelio}, booktitle={NeurIPS}, year={2017}}
@inproceedings{chaudhry2018riemannian,
  title={Riemannian walk for incremental learning},
  author={Chaudhry, Arslan and Dokania, Puneet and Ajanthan, Thalaiyasingam and Torr, Philip},
  booktitle={ECCV}, year={2018}}
"""
_INPUTS = """
Args:
    predictions (`list[list[float]]`): row i, column j: accuracy on task j after tasks 0 to i were learned.
    baseline (`list[float]`, *optional*): accuracies of a model that learned nothing, for the forward transfer.
Returns:
    `average_accuracy`, `backward_transfer`, `forgetting` and, with a baseline, `forward_transfer`.
Example:
    >>> Forgetting().compute(predictions=[[0.9, 0.5], [0.7, 0.8]])
    {'average_accuracy': 0.75, 'backward_transfer': -0.2, 'forgetting': 0.2}
"""


class Forgetting(evaluate.Metric):
    """See [`~hf_fip.metrics.accuracy_matrix.continual_learning_metrics`] for the definitions."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.List(datasets.Value("float64"))}),
        )

    def _compute(self, predictions, baseline=None):
        return continual_learning_metrics(predictions, baseline)
