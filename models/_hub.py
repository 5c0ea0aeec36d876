"""save_pretrained and from_pretrained, through huggingface_hub where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ._registry import create_model

try:
    from huggingface_hub import PyTorchModelHubMixin as _HubMixin
    from huggingface_hub import hf_hub_download
except ModuleNotFoundError:

    class _HubMixin:
        def __init_subclass__(cls, **metadata: Any) -> None:
            super().__init_subclass__()

        def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
            raise ImportError(_HINT)

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> None:
            raise ImportError(_HINT)


_HINT = (
    "save_pretrained and from_pretrained need huggingface_hub and safetensors: "
    'pip install "attnops[models]"'
)
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class HubMixin(_HubMixin, library_name="attnops", pipeline_tag="image-segmentation"):
    """Saves a network as its name, its options and its weights; made for `SegmentationModel`.

    `save_pretrained(folder)` writes config.json and model.safetensors; `from_pretrained` takes that
    folder, without a network, or the name of a repository on the Hugging Face Hub. Every class
    loads every network of its own kind, `SegmentationModel.from_pretrained` any.
    """

    config: dict[str, Any] | None = None  # set by create_model

    def _save_pretrained(self, save_directory: Path) -> None:
        from safetensors.torch import save_model

        if self.config is None:
            raise ValueError(
                "save_pretrained: this network has no name to be loaded by; make it with "
                "attnops.models.create_model"
            )
        save_model(self, str(save_directory / WEIGHTS))
        (save_directory / CONFIG).write_text(json.dumps(self.config, indent=2))

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        config: dict[str, Any] | None = None,
        map_location: str = "cpu",
        strict: bool = True,
        **options: Any,
    ) -> Any:
        from safetensors.torch import load_model

        download = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        download = {name: options.pop(name) for name in download if name in options}
        if not config or "name" not in config:
            raise ValueError(
                f"from_pretrained: {model_id} has no {CONFIG} with the name of a network, as "
                "save_pretrained writes it"
            )
        model = create_model(**(config | options))
        if not isinstance(model, cls):
            raise TypeError(
                f"{cls.__name__}.from_pretrained: {model_id} holds a {type(model).__name__}"
            )
        file = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            file = hf_hub_download(model_id, WEIGHTS, **download)
        load_model(model, str(file), strict=strict, device=map_location)
        return model.to(map_location).eval()
