"""How far a classifier's confidence is from its accuracy."""

import datasets
import evaluate

from hf_fip.ensembles.uncertainty import calibration_error


_DESCRIPTION = "Expected calibration error: mean gap between confidence and accuracy over bins of equal width."
_CITATION = """\
@inproceedings{guo2017calibration,
  title={On calibration of modern neural networks},
  author={Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.}, booktitle={ICML}, year={2017}}
"""
_INPUTS = """
Args:
    predictions (`list[list[float]]`): class probabilities, one row per example.
    references (`list[int]`): the right classes.
    bins (`int`, *optional*, defaults to 15): number of bins.
Returns:
    `expected_calibration_error`: from 0 to 1.
Example:
    >>> Calibration().compute(predictions=[[0.75, 0.25], [0.75, 0.25]], references=[0, 1])
    {'expected_calibration_error': 0.25}
"""


class Calibration(evaluate.Metric):
    """See [`~hf_fip.ensembles.expected_calibration_error`] for the definition."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, bins=15):
        return {"expected_calibration_error": calibration_error(predictions, references, bins)}
