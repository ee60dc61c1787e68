"""docs/memory.md: its table is what plans say, and its shapes are those of the presets."""

import re

import pytest
import yaml

from benchmarks.memory_table import LENGTHS, PAGE, needs
from benchmarks.preset_shapes import SHAPES
from hub.config.option import conf_dir
from hub.plan.fitting import _billions
from hub.system.known_gpus import shipped_gpus

CELL = re.compile(r"([\d.]+): (\w+)")


def table():
    """(Preset, algorithm) -> its cells."""
    rows = re.findall(r"^\| (\w+) \| (\w+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {(preset, algo): [cell.strip() for cell in cells.split("|")] for preset, algo, cells in rows if preset in SHAPES}


def test_every_cell_names_a_known_gpu_that_has_so_much_memory():
    gpus, rows = shipped_gpus(), table()
    assert rows
    for (preset, algo), cells in rows.items():
        assert len(cells) == len(LENGTHS)
        found = [CELL.fullmatch(cell) for cell in cells if cell]
        assert all(found), (preset, algo, cells)
        needed = [float(match[1]) for match in found]
        assert needed == sorted(needed), "a longer sample takes no less"
        for match in found:
            assert match[2] == "none" or gpus[match[2]].memory_bytes >= float(match[1]) * 2**30 * 0.99, (preset, algo)


def test_the_shapes_have_the_parameters_that_the_presets_say():
    for preset, shape in SHAPES.items():
        held = yaml.safe_load((conf_dir() / "model" / f"{preset}.yaml").read_text(encoding="utf-8"))
        assert held["family"] == shape["model_type"]
        hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
        size = shape.get("head_dim") or hidden // shape["num_attention_heads"]
        attention = 2 * hidden * size * (shape["num_attention_heads"] + shape["num_key_value_heads"])
        matrices = layers * (attention + 3 * hidden * shape["intermediate_size"])
        total = matrices + (1 if shape["tie_word_embeddings"] else 2) * hidden * shape["vocab_size"]
        assert total / 1e9 == pytest.approx(_billions(held["notes"]), rel=0.03), preset


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "algo"), [("llama3_2_1b", "lora_sft"), ("llama3_2_1b", "sft")])
def test_cells_are_what_plans_say(preset, algo):
    stored = table().get((preset, algo))
    if stored is None:
        pytest.fail(f"{preset} {algo} is not in the table. Type python -m benchmarks.memory_table --write")
    for cell, need in zip(stored, needs(preset, algo), strict=True):
        gib, gpu = CELL.fullmatch(cell).groups()
        assert need.least_gib == pytest.approx(float(gib), abs=max(0.06, 0.01 * float(gib)))
        assert (need.gpu or "none") == gpu
