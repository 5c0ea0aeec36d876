"""Networks made ready to label images on a CPU: folded, compiled, saved."""

from .deployment import Deployed, deploy, load_deployed
from .memory import keep_freed_memory

__all__ = ["Deployed", "deploy", "keep_freed_memory", "load_deployed"]
