"""How far what raises one network's loss raises another's."""

import datasets
import evaluate

from hf_fip.ensembles.coherence import mean_coherence


_DESCRIPTION = (
    "Mean cosine a · b / (|a| |b|) of a network's input gradients a with those of a surrogate b on the same inputs."
)
_CITATION = """\
@article{kariyappa2019improving,
  title={Improving adversarial robustness of ensembles with diversity training},
  author={Kariyappa, Sanjay and Qureshi, Moinuddin K.}, journal={arXiv:1901.09981}, year={2019}}
"""
_INPUTS = """
Args:
    predictions (`list[list[float]]`): the network's gradient of the loss with respect to each input, flat.
    references (`list[list[float]]`): the surrogate's, of the same inputs.
Returns:
    `coherence`: from -1 to 1.
Example:
    >>> Coherence().compute(predictions=[[1.0, 0.0], [0.0, 2.0]], references=[[3.0, 0.0], [1.0, 0.0]])
    {'coherence': 0.5}
"""


class Coherence(evaluate.Metric):
    """See [`~hf_fip.ensembles.input_coherence`] for the definition, and for gradients as tensors."""

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": row, "references": row}),
        )

    def _compute(self, predictions, references):
        return {"coherence": mean_coherence(predictions, references)}
