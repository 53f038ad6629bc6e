"""
Model files that are as small as the model is sparse, and that `from_pretrained` still loads.

`bitmask` and `gaps` say where the weights that are not zero lie, `grid` stores weights on a per-channel integer grid,
`encoding` picks what is smallest for a tensor, `structures` removes whole heads, neurons and filters, `saving` writes
a model and `quantizer` is what transformers calls when it loads one. `registration` is the only part that `import
hf_fip` runs.
"""

from ..lazy import attributes_of


_HOMES = {
    "SPARSE_FORMATS": "saving",
    "StructureGroup": "structures",
    "decode": "encoding",
    "encode": "encoding",
    "save_compressed": "saving",
    "shrink": "structures",
    "structure_groups": "structures",
}

__all__ = list(_HOMES)


__getattr__ = attributes_of(__name__, _HOMES)
