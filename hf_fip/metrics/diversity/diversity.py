"""How differently networks represent the same inputs."""

import datasets
import evaluate

from hf_fip.ensembles.diversity import representation_diversity


_DESCRIPTION = (
    "Diversity score of representations of the same inputs: 1 minus the mean over all pairs of networks of the linear "
    "centred kernel alignment (CKA), with the unbiased estimator."
)
_CITATION = """\
@inproceedings{kornblith2019similarity,
  title={Similarity of neural network representations revisited},
  author={Kornblith, Simon and Norouzi, Mohammad and Lee, Honglak and Hinton, Geoffrey}, booktitle={ICML}, year={2019}}
"""
_INPUTS = """
Args:
    predictions (`list[list[list[float]]]`): one entry per input, at least 4: the activations of each network.
Returns:
    `diversity`: from 0 (all networks have the same representation) to about 1.
Example:
    >>> inputs = [[0.0, 1.0], [2.0, 1.0], [1.0, 3.0], [4.0, 0.0], [2.0, 2.0]]
    >>> Diversity().compute(predictions=[[x, x] for x in inputs])
    {'diversity': 0.0}
"""


class Diversity(evaluate.Metric):
    """See [`~hf_fip.ensembles.layer_diversity`] for the definition, and for models instead of activations."""

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.List(datasets.List(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": row}),
        )

    def _compute(self, predictions):
        return {"diversity": representation_diversity(list(zip(*predictions, strict=True)))}
