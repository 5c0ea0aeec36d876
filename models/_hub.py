"""save_pretrained and from_pretrained, through huggingface_hub where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ._options import plain
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

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config.json and model.safetensors into a folder, and what huggingface_hub adds.

        Where the classifier was exchanged, the folder has its number of classes. On any failure the
        folder keeps what it had.

        Args:
            save_directory: the folder; made if it is not there.
            options: of huggingface_hub: repo_id, push_to_hub, model_card_kwargs, ...

        Raises:
            ValueError: the network has no name to be loaded by, was changed otherwise than in its
                classifier since `create_model`, or has tensors on the meta device.
            TypeError: an option cannot be written as JSON, a module as backbone for example.
        """
        self._saved_config()  # before anything is touched
        config = Path(save_directory) / CONFIG
        before = config.read_bytes() if config.is_file() else None
        try:
            return super().save_pretrained(save_directory, **options)
        except BaseException:
            # huggingface_hub begins with removing it.
            if before is not None and not config.exists():
                config.write_bytes(before)
            raise

    def _save_pretrained(self, save_directory: Path) -> None:
        from safetensors.torch import save_model

        config = self._saved_config()
        with TemporaryDirectory(prefix=".saving-", dir=save_directory) as temporary:
            written = Path(temporary)
            save_model(self, str(written / WEIGHTS))
            (written / CONFIG).write_text(json.dumps(config, indent=2))
            for name in (WEIGHTS, CONFIG):
                (written / name).replace(save_directory / name)

    def _saved_config(self) -> dict[str, Any]:
        """Name and options by which `create_model` makes a network that takes these weights."""
        if self.config is None:
            raise ValueError(
                "save_pretrained: this network has no name to be loaded by; make it with "
                "attnops.models.create_model"
            )
        config = {}
        for name, value in self.config.items():
            config[name] = plain(value)
            try:
                json.dumps(config[name])
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"save_pretrained: the option {name} of this {config['name']} is a "
                    f"{type(value).__name__}, which cannot be written as JSON ({error}); save its "
                    "state_dict() with torch.save instead"
                ) from None
        empty = [key for key, value in self.state_dict().items() if value.is_meta]
        if empty:
            raise ValueError(
                f"save_pretrained: {empty[0]} and {len(empty) - 1} others are on the meta device, "
                "without values; load a checkpoint first"
            )
        return self._with_our_classes(config)

    def _with_our_classes(self, config: dict[str, Any]) -> dict[str, Any]:
        wanted = _shapes(self)
        differing = _differing(wanted, config)
        if not differing:
            return config
        for key in differing:
            if key in wanted and wanted[key] and wanted[key][0] != config["num_classes"]:
                other = config | {"num_classes": wanted[key][0]}
                if wanted[key][0] > 1 and not _differing(wanted, other):
                    return other
        raise ValueError(
            f"save_pretrained: this {config['name']} was changed since create_model made it, in "
            f"{', '.join(differing[:8])}, so that from_pretrained could not load it; save its "
            "state_dict() with torch.save instead"
        )

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
        from .checkpoints import load_checkpoint

        download = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        download = {name: options.pop(name) for name in download if name in options}
        if not config or "name" not in config:
            raise ValueError(
                f"from_pretrained: {model_id} has no {CONFIG} with the name of a network, as "
                "save_pretrained writes it"
            )
        model = create_model(**_without_download(config | options))
        if not isinstance(model, cls):
            raise TypeError(
                f"{cls.__name__}.from_pretrained: {model_id} holds a {type(model).__name__}"
            )
        file = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            file = hf_hub_download(model_id, WEIGHTS, **download)
        if strict:
            load_checkpoint(model, file)
        else:
            from safetensors.torch import load_model

            load_model(model, str(file), strict=False)
        return model.to(map_location).eval()


def _without_download(config: dict[str, Any]) -> dict[str, Any]:
    """The options, without the one that fetches weights which others replace."""
    return config | {"pretrained": False} if "pretrained" in config else config


def _shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _differing(wanted: dict[str, tuple[int, ...]], config: dict[str, Any]) -> list[str]:
    """Keys by whose shapes a network with these options differs."""
    with torch.device("meta"):
        found = _shapes(create_model(**_without_download(config)))
    return [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
