"""Loading every implementation, once, when attnops is imported."""

from __future__ import annotations

import importlib
import warnings

from .. import _dispatch

# backend -> module whose register_all() registers its implementations
MODULES = {
    "reference": "attnops._backends.reference",
    "cpu": "attnops._backends.cpu",
    "triton": "attnops.kernels",
    "cuda": "attnops._backends.cuda",
}


def load_implementations() -> None:
    """Load what can be loaded; the reason why the rest cannot is kept for `backends()`.

    What is installed but does not load, whatever it raises, is also named in one warning.
    """
    faults = []
    for backend, module in MODULES.items():
        try:
            importlib.import_module(module).register_all()
        except Exception as error:
            reason = str(error) or repr(error)
            if not isinstance(error, ImportError):
                reason = f"{type(error).__name__}: {reason}"
            _dispatch.report_missing(backend, reason, getattr(error, "ops", None))
            if not _is_absence(backend, error):
                faults.append(f"{backend}: {reason}")
    if faults:
        warnings.warn(
            "attnops: backends that are installed do not load; their ops run on the others "
            "(`python -m attnops.env` lists them).\n" + "\n".join(faults),
            RuntimeWarning,
            stacklevel=3,
        )


def _is_absence(backend: str, error: Exception) -> bool:
    """Whether the backend is just not installed."""
    if isinstance(error, _dispatch.BackendNotInstalled):
        return True
    return backend == "triton" and isinstance(error, ModuleNotFoundError) and error.name == "triton"
