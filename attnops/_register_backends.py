"""Loading every implementation, once, when attnops is imported."""

from __future__ import annotations

import importlib

from . import _dispatch

# backend -> module whose register_all() registers its implementations
MODULES = {
    "reference": "attnops._backends.reference",
    "cpu": "attnops._backends.cpu",
    "triton": "attnops.kernels",
    "cuda": "attnops._backends.cuda",
}


def load_implementations() -> None:
    """Load what can be loaded; the reason why the rest cannot is kept for `backends()`."""
    for backend, module in MODULES.items():
        try:
            importlib.import_module(module).register_all()
        except ImportError as error:
            _dispatch.report_missing(backend, str(error))
