"""Every YAML that ships is accepted by the classes it names, as LightningCLI reads them."""

from __future__ import annotations

import copy
from pathlib import Path

import jsonargparse
import lightning
import pytest
import torch
import yaml

from duplex.cli import main as duplex
from duplex.model import DuplexModel
from train.synth_cli import load_config

CONFIGS = Path(__file__).parents[2] / "train" / "configs"
ON_TOP = CONFIGS / "base-ours.yaml"  # of base.yaml
STAGES = sorted(p for p in CONFIGS.glob("*.yaml") if "model" in yaml.safe_load(p.read_text()) and p != ON_TOP)
OTHERS = sorted(set(CONFIGS.glob("*.yaml")) - set(STAGES) - {ON_TOP})
BANKS = {"base": ["pocket"], "mine": ["pocket"], "small": ["pocket", "small"]}  # whose parts it is trained on


def parse(data: dict) -> jsonargparse.Namespace:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int | bool)
    parser.add_subclass_arguments(lightning.LightningModule, "model", required=True)
    parser.add_subclass_arguments(lightning.LightningDataModule, "data", required=True)
    parser.add_class_arguments(lightning.Trainer, "trainer")
    return parser.parse_object(data)


def test_all_are_known() -> None:
    stages = ["codec-gan", "codec", "dialogue", "encoder", "speak"]
    pocket, small, test = ([f"{preset}-{stage}" for stage in stages] for preset in ("pocket", "small", "test"))
    assert [p.stem for p in STAGES] == ["base-voice", "base", "mine", *pocket, small[2], small[3], *test]
    assert [p.name for p in OTHERS] == ["pocket-synth.yaml", "small-synth.yaml", "test-synth.yaml"]


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_a_stage_config_is_accepted(path: Path) -> None:
    data = yaml.safe_load(path.read_text())
    parsed = parse(copy.deepcopy(data))
    assert parsed.model.init_args.num_steps == parsed.data.init_args.num_steps > 0
    assert data["trainer"]["max_epochs"] == 1
    data["model"]["init_args"]["number_of_steps"] = 3
    with pytest.raises(jsonargparse.ArgumentError, match="number_of_steps"):
        parse(data)


@pytest.mark.parametrize("path", [*STAGES, ON_TOP], ids=lambda p: p.stem)
def test_a_stage_uses_only_parts_that_are_built(path: Path) -> None:
    preset = path.stem.split("-")[0]
    configs = [load_config(CONFIGS / f"{name}-synth.yaml") for name in BANKS.get(preset, [preset])]
    built = {part.name: part for config in configs for part in config.parts}
    data = yaml.safe_load(path.read_text())["data"]["init_args"]
    for key in ("parts", "user_parts", "answer_parts", "speak_parts"):
        for name in data.get(key, []):
            assert name in built and built[name].split == "train"
            assert built[name].role == ("user" if name.startswith("user") else "agent")


def printed(capsys: pytest.CaptureFixture[str], *paths: Path) -> dict:
    """The settings that `duplex train` makes of configs, the last one counting most."""
    with pytest.raises(SystemExit) as ended:
        duplex(["train", "fit", *[word for path in paths for word in ("--config", str(path))], "--print_config"])
    assert ended.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_the_recipe_of_ours_lies_on_top_of_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    paper, ours = printed(capsys, CONFIGS / "base.yaml"), printed(capsys, CONFIGS / "base.yaml", ON_TOP)
    for settings in (paper, ours):
        model = settings["model"]["init_args"]
        assert (model["learning_rate"], model["schedule"], model["warmup_steps"], model["num_steps"]) == (
            3e-4,
            "inverse_sqrt",
            2500,
            100000,
        )
        assert settings["trainer"]["gradient_clip_val"] == 1.0 and model["model"]["encoder"]["kind"] == "cache_aware"
    loss = paper["model"]["init_args"]["loss"]
    assert (loss["text"], loss["sil"], loss["bos"], loss["eos"], loss["token"], loss["silent_codes"]) == (3.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    data, changed = paper["data"]["init_args"], ours["data"]["init_args"]
    assert (data["alignment"], data["composer"]["gap_frames"], changed["alignment"], changed["composer"]["gap_frames"]) == (
        "turn", [8, 8], "word", [4, 5],
    )  # fmt: skip
    assert ours["model"]["init_args"]["model"]["heard_channel"] and not paper["model"]["init_args"]["model"]["heard_channel"]


def test_base_has_the_papers_sizes() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(lightning.LightningModule, "model", required=True)
    config = yaml.safe_load((CONFIGS / "base.yaml").read_text())["model"]
    stage = parser.instantiate(parser.parse_object({"model": config})).model
    with torch.device("meta"):
        model = DuplexModel(stage.config)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    tiny_llama = sizes["backbone"] + 2 * 32000 * 2048
    assert tiny_llama == 1_100_048_384 and 108e6 < sizes["encoder"] < 112e6


def test_the_bank_config_keeps_the_splits_apart() -> None:
    parts = [part for name in BANKS["small"] for part in load_config(CONFIGS / f"{name}-synth.yaml").parts]
    assert {p.split for p in parts if p.role == "user"} == {"train", "val", "test"}
    assert all(p.split in p.name for p in parts if p.split != "train")
    assert len({p.seed for p in parts if p.role == "user"}) == sum(p.role == "user" for p in parts)
