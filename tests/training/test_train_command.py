"""`attnops train`: help, errors, folders of runs, recipes."""

from __future__ import annotations

import csv
import functools
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from tiny_training import config_file, state_of

from attnops.models import create_model
from attnops.models.normalization import CAFFE, IMAGENET
from attnops.training import load_trained
from attnops.training.engine.command import _CLI, _length, main
from attnops.training.engine.optimization import (
    OptimizerOptions,
    ScheduleOptions,
    factor_of,
    parameter_groups,
)
from attnops.training.recipes import list_recipes, recipe_path


def test_the_help_names_recipes_and_options(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in list_recipes())
    assert max(map(len, text.split("recipes:")[0].splitlines())) <= 100
    for option in ("--data.root", "--resume", "--trainer.max_steps", "--help-all"):
        assert option in text
    assert main([]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "camvid_segnxt_t"], "did you mean camvid_segnext_t"),
        (["--config"], "needs the name of a recipe"),
        (["--data.root", "/nowhere"], "/nowhere: no such folder"),
        (["--model.network", "segnext_x"], "no network 'segnext_x'"),
        (["--model.options.depth", "3"], "has no option 'depth'"),
        (["--model.options.num_classes", "3"], "the data has 7 classes"),
        (["--model.loss.class_weight", "[1.0, 2.0]"], "has 2 entries"),
        (["--model.optimizer.lr", "-1.0"], "lr must be a positive number"),
        (["--trainer.max_steps", "-1"], "how long"),
        (["--checkpoint.every_n_steps", "0"], "must be at least 1"),
        (["--resume", "/nowhere/last.ckpt"], "no such checkpoint"),
    ],
)
def test_errors_say_what_to_do(train, capfd, tmp_path, options, message):
    try:
        assert train(*options) == 2
    except SystemExit as error:  # jsonargparse's own
        assert error.code == 2
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "runs").exists(), "a run that did not begin leaves nothing"


def test_every_run_has_a_folder_of_its_own(train, run, capfd):
    for _ in range(2):
        assert train("--trainer.max_steps", 2) == 0
    out = capfd.readouterr().out
    for number in (1, 2):
        folder = run(number)
        assert {"last.ckpt", "config.yaml", "environment.txt", "metrics.csv", "tensorboard"} <= {
            path.name for path in folder.iterdir()
        }
        assert str(folder) in out
        assert "git revision: " in (folder / "environment.txt").read_text()
    one, two = (state_of(run(number) / "last.ckpt") for number in (1, 2))
    assert all(torch.equal(one["state_dict"][k], two["state_dict"][k]) for k in one["state_dict"])
    for text in ("step 2/2", "img/s", "loss", "GiB", "left", "mIoU", "waiting for data"):
        assert text in out


def test_the_saved_configuration_gives_the_same_run(train, run, tmp_path):
    assert train("--trainer.max_steps", 2, "--model.optimizer.lr", 0.02) == 0
    saved = run() / "config.yaml"
    assert yaml.safe_load(saved.read_text())["model"]["optimizer"]["lr"] == 0.02
    again = tmp_path / "again"
    assert main(["--config", str(saved), "--trainer.default_root_dir", str(again)]) == 0
    one, two = (state_of(f / "last.ckpt") for f in (run(), again / "config-0001"))
    assert all(torch.equal(one["state_dict"][k], two["state_dict"][k]) for k in one["state_dict"])


def test_the_network_comes_back_from_a_checkpoint(train, run):
    assert train("--trainer.max_steps", 2, "--model.options.seed", 5) == 0
    network, info = load_trained(run() / "last.ckpt")
    assert network.config["name"] == "tiny" and network.config["seed"] == 5
    assert info.name == "shapes" and info.num_classes == len(info.palette) == 7
    assert network.normalization == IMAGENET and not network.training
    images = torch.randint(256, (1, 3, 32, 48)).float()
    assert network.predict(network.normalization(images)).shape == (1, 32, 48)
    for path, kind in (
        (run() / "none.ckpt", FileNotFoundError),
        (run() / "config.yaml", ValueError),
    ):
        with pytest.raises(kind, match=str(path.name)) as error:
            load_trained(path)
        assert "weights_only" not in str(error.value)  # an option of torch, not of ours


def test_the_best_checkpoint_is_that_of_the_best_validation(train, run):
    assert train("--trainer.max_steps", 12, "--trainer.val_check_interval", 2) == 0
    with open(run() / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["val/mIoU"]]
    assert len(rows) == 6
    best = max(rows, key=lambda row: float(row["val/mIoU"]))
    assert state_of(run() / "best.ckpt")["global_step"] == int(best["step"])
    assert state_of(run() / "last.ckpt")["global_step"] == 12
    assert float(rows[-1]["learning_rate"]) < float(rows[0]["learning_rate"])


@pytest.mark.parametrize(
    "options",
    [
        ("--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", 1.0),
        ("--model.channels_last", "false", "--trainer.gradient_clip_val", 1.0),
        (
            "--model.normalization",
            "published",
            "--trainer.max_epochs",
            1,
            "--trainer.max_steps",
            -1,
        ),
        ("--model.loss.class_weight", "[1,1,1,2,1,1,0.5]", "--model.loss.label_smoothing", 0.1),
        ("--model.loss.class_weight", "balanced"),
        ("--model.protocol", "{scales: [0.5, 1.0], flip: true}", "--data.num_workers", 1),
        pytest.param(("--model.compile", "true"), marks=[pytest.mark.inductor, pytest.mark.slow]),
    ],
)
def test_options_run(train, run, options):
    assert train("--trainer.max_steps", 2, *options) == 0
    assert state_of(run() / "last.ckpt")["global_step"] == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--model.network", "segnext_t", "--data.crop_size", "[16,40]"), "crop_size is 16x40"),
        (("--trainer.accelerator", "tpu"), "attnops train: "),  # Lightning's own words
    ],
)
def test_what_cannot_run_is_said_before_there_is_a_run(train, tmp_path, capsys, options, text):
    assert train(*options) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_lengths_in_passes_over_the_data():
    data = SimpleNamespace(steps_per_epoch=40)  # of one process
    given = {"max_steps": -1, "max_epochs": 3, "accumulate_grad_batches": 2}
    given |= {"fast_dev_run": False, "val_check_interval": 0.5}
    length = _length(given, data, processes=1)
    assert length == {"max_steps": 60, "max_epochs": -1, "val_check_interval": 20}
    length = _length(given, data, processes=4)
    assert length == {"max_steps": 15, "max_epochs": -1, "val_check_interval": 5}
    assert _length(given | {"max_steps": 7}, data, 1)["max_steps"] == 7  # what is reached first
    assert _length(given | {"max_steps": 99}, data, 1)["max_steps"] == 60


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    class Parsed(_CLI):
        def instantiate_classes(self):
            pass

    return Parsed(["--config", config_file(tmp_path_factory.mktemp("config"))]).parser


@functools.cache
def network_of(name, options):
    with torch.device("meta"):
        return create_model(name, num_classes=11, **json.loads(options))


@pytest.mark.parametrize("name", list_recipes())
def test_recipes(parser, name):
    """Options that exist, and a network that can be built with them."""
    config = parser.parse_args(["--config", str(recipe_path(name)), "--data.root", "shapes"])
    model, trainer = config["model"], config["trainer"]
    assert (trainer["max_steps"] > 0) != (trainer["max_epochs"] is not None)
    options = model["options"] or {}
    network = network_of(model["network"], json.dumps(options))
    assert len(parameter_groups(network, _options(model["optimizer"]))) > 0
    size = config["data"]["crop_size"]
    assert min(size) >= network.smallest_side
    assert len(name) <= 40 and recipe_path(name).read_text().startswith("# ")


def _options(config):
    return OptimizerOptions(**vars(config))


def test_groups_of_segnext_are_the_published_ones():
    """Ten times the rate for the head, no decay for norms; everything once."""
    with torch.device("meta"):
        network = create_model("segnext_t")
    groups = parameter_groups(network, OptimizerOptions())
    names = {id(p): name for name, p in network.named_parameters()}
    found = {(g["lr"], g["weight_decay"]): [names[id(p)] for p in g["params"]] for g in groups}
    assert {(round(lr / 6e-5), decay) for lr, decay in found} == {
        (1, 0.0),
        (1, 0.01),
        (10, 0.0),
        (10, 0.01),
    }
    for (lr, decay), members in found.items():
        assert all(name.startswith("backbone.") == (round(lr / 6e-5) == 1) for name in members)
        assert all(("norm" in name or "down." in name) for name in members if decay == 0)
    assert sorted(n for members in found.values() for n in members) == sorted(names.values())


def test_groups_of_deeplab_are_the_published_ones():
    with torch.device("meta"):
        network = create_model("deeplab_attention")
    options = OptimizerOptions(
        "sgd", 1e-3, 5e-4, heads=["cls", "attention"], bias_lr=2.0, decay_biases=False
    )
    groups = parameter_groups(network, options)
    rates = sorted((round(g["lr"] / 1e-3), g["weight_decay"]) for g in groups)
    assert rates == [(1, 5e-4), (2, 0.0), (10, 5e-4), (20, 0.0)]


def test_schedules():
    poly = factor_of(ScheduleOptions(power=0.9, warmup_steps=10, warmup_factor=0.1), 110)
    assert [round(poly(i), 6) for i in (0, 5, 10, 60, 110)] == [0.1, 0.55, 1.0, 0.535887, 0.0]
    assert factor_of(ScheduleOptions(warmup_steps=1500), 20)(10) == 1.0  # cut short
    step = factor_of(ScheduleOptions("step", milestones=[2000, 4000]), 6000)
    assert [step(i) for i in (0, 1999, 2000, 4000)] == pytest.approx([1, 1, 0.1, 0.01])
    assert factor_of(ScheduleOptions("constant"), 10)(9) == 1.0


def test_normalisation_turns_colours_round_where_the_authors_did():
    image = torch.arange(3, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert torch.allclose(
        CAFFE(image)[0, :, 0, 0], torch.tensor([2.0, 1, 0]) - torch.tensor(CAFFE.mean)
    )
    wanted = (torch.tensor([0.0, 1, 2]) - torch.tensor(IMAGENET.mean)) / torch.tensor(IMAGENET.std)
    assert torch.allclose(IMAGENET(image)[0, :, 0, 0], wanted)


@pytest.mark.slow
def test_the_console_command(tmp_path):
    """The fixed form, as users type it."""
    command = [sys.executable, "-m", "attnops", "train", "--config", "shapes_segnext_t"]
    command += ["--data.root", "shapes", "--seed_everything", "3", "--trainer.max_steps", "2"]
    command += ["--trainer.deterministic", "true", "--trainer.default_root_dir", str(tmp_path)]
    command += ["--data.limit", "8", "--data.batch_size", "2", "--trainer.limit_val_batches", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert [p.parent.parent for p in tmp_path.rglob("last*.ckpt")] == [tmp_path]
