"""The geometry of a network: the metric tensor on anchors, its spectrum, exact steps and paths. No Trainer inside."""

from .correction import Correction, drift_correction
from .density import lanczos_density
from .geodesic import PathLength, RefinedPath, covariant_acceleration, path_length, refine_path
from .linear_operator import DenseOperator, SymmetricOperator
from .metric_tensor import MetricTensor
from .saved import load_spectra, save_spectrum
from .spectrum import Spectrum, find_spectrum
from .steps import ExactStep, fip_step, isofunctional_step
from .surfaces import MetricSurface, OutputSurface, Surface, network_surface


__all__ = [
    "Correction",
    "DenseOperator",
    "ExactStep",
    "MetricSurface",
    "MetricTensor",
    "OutputSurface",
    "PathLength",
    "RefinedPath",
    "Spectrum",
    "Surface",
    "SymmetricOperator",
    "covariant_acceleration",
    "drift_correction",
    "find_spectrum",
    "fip_step",
    "isofunctional_step",
    "lanczos_density",
    "load_spectra",
    "network_surface",
    "path_length",
    "refine_path",
    "save_spectrum",
]
