"""docs/training.md: its commands, options and blocks of code are true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from attnops import cli
from attnops.training.commands import check, evaluate, predict
from attnops.training.engine.command import _CLI, _with_recipes

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, text in BLOCKS if not language for line in text.splitlines()]
OPTIONS = re.findall(r"`(--(?:trainer|data|model|checkpoint)\.[^`]+)`", PAGE)
PLACEHOLDERS = {"N": "2", "X": "1.0", "FILE": "weights.pth", "VALUE": "2"}
SMALL = "--trainer.max_steps 2 --trainer.limit_val_batches 1 --data.crop_size [64,64]"
SMALL += " --data.batch_size 2 --data.limit 4 --data.num_workers 0"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the page's files and data in it, where the commands run."""
    monkeypatch.chdir(tmp_path)
    (text,) = (text for language, text in BLOCKS if language == "yaml")
    Path(text.splitlines()[0].removeprefix("# ")).write_text(text)
    for folder in ("images", "masks"):
        (tmp_path / "my_data" / folder).mkdir(parents=True)
    for number in range(20):
        pixels = torch.randint(256, (64, 80, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(f"my_data/images/{number}.png")
        labels = torch.randint(2, (64, 80), dtype=torch.uint8).numpy()
        Image.fromarray(labels).save(f"my_data/masks/{number}.png")
    return tmp_path


def arguments_of(command: str) -> list[str]:
    """What comes behind `attnops`, or `-m attnops` under torchrun."""
    words = shlex.split(command)
    return words[words.index("attnops") + 1 :]


@pytest.fixture
def parse(place):
    class Parsed(_CLI):
        def instantiate_classes(self):
            pass

    parser = Parsed(["--config", "my.yaml"]).parser
    return lambda arguments: parser.parse_args(_with_recipes(arguments)[0])


def test_the_page_has_commands_and_options() -> None:
    assert len(COMMANDS) >= 10 and len(OPTIONS) >= 20
    assert {arguments_of(c)[0] for c in COMMANDS} == {"train", "eval", "predict", "check"}


def test_every_command_and_option_is_understood(parse) -> None:
    for command in COMMANDS:
        name, *arguments = arguments_of(command)
        if name == "train":
            assert parse(arguments)["data"]["root"]
        elif name == "check":
            assert check.main(arguments) == 0
        else:
            {"eval": evaluate, "predict": predict}[name]._parser().parse_args(arguments)
    for option in OPTIONS:
        words = [PLACEHOLDERS.get(word, word) for word in shlex.split(option)]
        words[0] = words[0].replace("KEY", "rank")
        found = parse(["--config", "my.yaml", *(words if len(words) > 1 else [])])
        for part in words[0].removeprefix("--").split("."):
            assert part in found, option
            found = found[part]


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(place, capfd) -> None:
    """With few steps of small images; what needs eight processes or other data is left out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for language, text in BLOCKS:
            if language == "python":
                values: dict = {}
                exec(text, values)
                assert values["info"].name == "shapes" and not values["network"].training
            for command in text.splitlines() if not language else ():
                if command.startswith("torchrun") or "--trainer.devices" in command:
                    continue
                arguments = arguments_of(command)
                if arguments[0] == "train":
                    arguments += SMALL.split()
                assert cli.main(arguments) == 0, command
                out = capfd.readouterr().out
                assert arguments[0] != "eval" or "mIoU" in out
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    listed = re.findall(
        r"`([a-z]+\.[a-z]+|tensorboard/)`", PAGE.split("| file |")[1].split("\n\n")[0]
    )
    present = {path.name for path in (place / "runs" / "my-0001").iterdir()}
    assert {name.rstrip("/") for name in listed} - {"previous.ckpt"} <= present
    assert len(list((place / "labels").iterdir())) >= 40  # labels and overlays
