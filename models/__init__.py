"""The published networks on top of attnops.nn, and their checkpoints."""

from . import checkpoints
from ._model import SegmentationModel
from ._registry import create_model, list_models, model_options
from .ann import ANN
from .backbones.mscan import MSCAN
from .backbones.resnet import DilatedResNet
from .checkpoints import LoadReport, MappingError, export_checkpoint, load_checkpoint
from .checkpoints import ann as _ann  # noqa: F401  (registers its formats)
from .checkpoints import backbones as _backbones  # noqa: F401
from .checkpoints import gald as _gald  # noqa: F401
from .checkpoints import segnext as _segnext  # noqa: F401
from .deeplab import DeepLabAttention
from .deploy import Deployed, deploy, load_deployed
from .export import export_onnx, export_program
from .gald import GALDv1, GALDv2
from .sanet import SANet
from .segnext import SegNeXt

__all__ = [
    "ANN",
    "MSCAN",
    "DeepLabAttention",
    "Deployed",
    "DilatedResNet",
    "GALDv1",
    "GALDv2",
    "LoadReport",
    "MappingError",
    "SANet",
    "SegNeXt",
    "SegmentationModel",
    "checkpoints",
    "create_model",
    "deploy",
    "export_checkpoint",
    "export_onnx",
    "export_program",
    "list_models",
    "load_checkpoint",
    "load_deployed",
    "model_options",
]
