"""Perplexity of a masked or causal language model on texts, by the definitions of `hf_fip.query`."""

import datasets
import evaluate

from hf_fip.query.perplexity import perplexity


_DESCRIPTION = (
    "Perplexity of a language model on texts: exp(total negative log-likelihood / number of scored tokens). Masked "
    "language models: of masked tokens, with masks that depend on the seed and the text's number alone."
)
_INPUTS = """
Args:
    predictions (`list[str]`): the texts.
    model (`str`): a folder with a model and its tokenizer, or a Hub id.
    batch_size, max_length, mask_probability, seed, device (*optional*): as `hf_fip.query.query` takes them.
Returns:
    `perplexity`, its `standard_error` clustered by text, and `samples`, the number of texts.
"""


class Perplexity(evaluate.Metric):
    """See [`hf_fip.query.query`] for the definitions."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions, model, **settings):
        return perplexity(model, predictions, **settings)
