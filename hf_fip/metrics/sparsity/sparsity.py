"""Share of exact zeros among a model's weights."""

import datasets
import evaluate

from hf_fip.metrics.zeros import share_of_zeros


_DESCRIPTION = "Share of exact zeros among the weights with at least two dimensions, from 0 to 1."
_INPUTS = """
Args:
    predictions (`list[str]`): folders of models with safetensors files.
    model (`torch.nn.Module` or `str`): one model in memory, or one folder, in place of `predictions`.
Returns:
    `sparsity`, the mean over the models, and `sparsities`, one for each.
"""


class Sparsity(evaluate.Metric):
    """See [`~hf_fip.metrics.zeros.share_of_zeros`]."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def compute(self, *, predictions=None, model=None, **kwargs):
        """As [`evaluate.Metric.compute`], or of one `model`, which may be in memory."""
        return super().compute(predictions=predictions, **kwargs) if model is None else self._compute([model])

    def _compute(self, predictions):
        shares = [share_of_zeros(model) for model in predictions]
        return {"sparsity": sum(shares) / len(shares), "sparsities": shares}
