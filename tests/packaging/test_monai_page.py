"""The recipes of docs/monai.md run as they stand there."""

import json
import re
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from scp_models.networks import PositionedNetwork
from tests.support.monai_networks import CASES

matplotlib.use("Agg")
PAGE = Path(__file__).parents[2] / "docs" / "monai.md"


@pytest.fixture
def files(tmp_path):
    """Two heads with two lesions."""
    result = []
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (48, 48, 16)), indexing="ij"))
    for k in range(2):
        label = np.zeros((48, 48, 16), np.uint8)
        label[14:18, 20:26, 4:10], label[30:34, 20 + k : 26 + k, 4:10] = 1, 2
        image = 100.0 * ((grid**2).sum(0) < 0.8) + 50 * (label > 0) + np.random.default_rng(k).random(label.shape)
        item = {}
        for name, values in (("image", image.astype(np.float32)), ("label", label)):
            item[name] = str(tmp_path / f"{name}{k}.nii.gz")
            nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 3.0, 1.0])), item[name])
        result.append(item)
    return result


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_recipes_run(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"files": files}
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks("python")) == 5
    assert names["loss"].isfinite()
    assert names["logits"].shape == (3, 48, 48, 16) and names["logits"].isfinite().all()
    assert len(names["scores"]) == 5 and float(names["scores"]["lesion_dice"]) == 1


def test_the_bundles_network_is_built():
    (block,) = blocks("json")
    parser = ConfigParser(json.loads("{" + block + "}"))
    assert isinstance(parser.get_parsed_content("network_def"), PositionedNetwork)


def test_the_table_has_the_networks_and_layers_that_are_tested():
    table = PAGE.read_text(encoding="utf-8").partition("## Networks")[2].partition("\n## ")[0]
    for name, case in CASES.items():
        if name.startswith(("plain", "UNet and")):
            continue
        architecture = name.partition(",")[0]
        row = next(
            line for line in table.splitlines() if line.startswith("|") and f"`{architecture}`" in line.split("|")[1]
        )
        assert f"`{case.layers[0]}`" in row, name
        assert ("keep_layer" in row) == case.keep_layer, name
