"""Every YAML that ships is accepted by the classes it names, as LightningCLI reads them."""

from __future__ import annotations

import copy
from pathlib import Path

import jsonargparse
import lightning
import pytest
import yaml

from train.synth_cli import load_config

CONFIGS = Path(__file__).parents[2] / "train" / "configs"
STAGES = sorted(p for p in CONFIGS.glob("*.yaml") if "model" in yaml.safe_load(p.read_text()))
OTHERS = sorted(set(CONFIGS.glob("*.yaml")) - set(STAGES))


def parse(data: dict) -> jsonargparse.Namespace:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int | bool)
    parser.add_subclass_arguments(lightning.LightningModule, "model", required=True)
    parser.add_subclass_arguments(lightning.LightningDataModule, "data", required=True)
    parser.add_class_arguments(lightning.Trainer, "trainer")
    return parser.parse_object(data)


def test_all_are_known() -> None:
    stages = ["codec-gan", "codec", "dialogue", "encoder", "speak"]
    assert [p.stem for p in STAGES] == [f"{preset}-{stage}" for preset in ("pocket", "test") for stage in stages]
    assert [p.name for p in OTHERS] == ["pocket-synth.yaml", "test-synth.yaml"]


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_a_stage_config_is_accepted(path: Path) -> None:
    data = yaml.safe_load(path.read_text())
    parsed = parse(copy.deepcopy(data))
    assert parsed.model.init_args.num_steps == parsed.data.init_args.num_steps > 0
    assert data["trainer"]["max_epochs"] == 1
    data["model"]["init_args"]["number_of_steps"] = 3
    with pytest.raises(jsonargparse.ArgumentError, match="number_of_steps"):
        parse(data)


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_a_stage_uses_only_parts_that_are_built(path: Path) -> None:
    built = {part.name: part for part in load_config(CONFIGS / f"{path.stem.split('-')[0]}-synth.yaml").parts}
    data = yaml.safe_load(path.read_text())["data"]["init_args"]
    for key in ("parts", "user_parts", "answer_parts", "speak_parts"):
        for name in data.get(key, []):
            assert name in built and built[name].split == "train"
            assert built[name].role == ("user" if name.startswith("user") else "agent")


def test_the_bank_config_keeps_the_splits_apart() -> None:
    parts = load_config(CONFIGS / "pocket-synth.yaml").parts
    assert {p.split for p in parts if p.role == "user"} == {"train", "val", "test"}
    assert all(p.split in p.name for p in parts if p.split != "train")
    assert len({p.seed for p in parts if p.role == "user"}) == sum(p.role == "user" for p in parts)
