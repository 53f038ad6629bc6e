"""The operator Scattering: networks that compute the same from other features."""

from __future__ import annotations

from typing import Any

from ..objectives.displacement import Displacement
from ..objectives.random_steps import RandomSteps
from .diversification import Diversification


class Scattering(Diversification):
    """
    An isofunctional path for ensembles: every segment begins with a random step, and its other steps bring the outputs
    on the anchors back; see [`~hf_fip.objectives.random_steps.RandomSteps`]. Nothing repels, and no label is used.

    A repulsion of the weights goes far in directions that change little, and leaves them sensitive to attacked inputs;
    random steps do not choose, and the points have to find the function again.

    Args:
        step_length (`float`, *optional*, defaults to 0.6): Length of the random steps, as a share of each
            layer's norm.
        branch (`str`, *optional*, defaults to `"scattered"`): Name of the path in the graph.
        options: As in [`Diversification`], without those of a repulsion.

    Raises:
        [`InputError`]: for arguments that cannot work, or do not fit the node's model.

    Example:

    ```python
    ensemble = Ensemble.from_nodes(Scattering(path_points=10)(graph["base"]))
    ```
    """

    def __init__(self, *, step_length: float = 0.6, branch: str = "scattered", **options: Any):
        self.step_length = step_length
        super().__init__(repulsion=None, branch=branch, **options)
        self.parameters["step_length"] = step_length

    def _displacement(self, seed: int) -> Displacement:
        return RandomSteps(self.step_length, points=self.points, seed=seed, **self.layers)
