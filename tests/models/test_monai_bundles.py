"""The head in MONAI's bundles, and in an algorithm of Auto3DSeg."""

import json
import shutil
import sys
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
from monai.apps.auto3dseg import AutoRunner

from tests.support.monai_bundle import bundle_config, check_trained, write_volumes

TEMPLATES = Path(__file__).parents[1] / "support" / "auto3dseg_templates"


def test_a_bundle_trains_a_network_with_the_head(tmp_path):
    write_volumes(tmp_path)
    (tmp_path / "train.json").write_text(json.dumps(bundle_config(tmp_path)))
    monai.bundle.run(run_id="run", config_file=str(tmp_path / "train.json"))
    check_trained(tmp_path / "model.pt", bundle_config(tmp_path))


def test_auto3dseg_runs_with_an_algorithm_of_ours(tmp_path):
    """Its analysis, generation, training and ensemble; the algorithm from a template in a local folder, since the
    published ones build their networks themselves."""
    volumes, templates, work = (tmp_path / name for name in ("volumes", "templates", "work"))
    volumes.mkdir()
    write_volumes(volumes)
    training = [{"image": f"image{k}.nii.gz", "label": f"label{k}.nii.gz", "fold": k} for k in range(2)]
    datalist = {"training": training, "testing": [{"image": "image0.nii.gz"}]}
    (tmp_path / "datalist.json").write_text(json.dumps(datalist))
    shutil.copytree(TEMPLATES, templates)
    (templates / "scp" / "configs").mkdir()
    template = templates / "scp" / "configs" / "hyper_parameters.yaml"
    monai.bundle.ConfigParser.export_config_file(bundle_config("nowhere", epochs=3), str(template), fmt="yaml")
    source = {"modality": "MRI", "dataroot": str(volumes), "datalist": str(tmp_path / "datalist.json"), "num_fold": 1}
    runner = AutoRunner(str(work), source, algos="scp", templates_path_or_url=str(templates))
    runner.set_device_info(cuda_visible_devices="0", cmd_prefix=sys.executable)
    runner.set_analyze_params({"device": "cpu", "worker": 0, "do_ccp": False})
    runner.run()

    config = monai.bundle.ConfigParser.load_config_file(str(work / "scp_0" / "configs" / template.name))
    assert config["classes"] == 3 and [Path(item["image"]).name for item in config["data"]] == ["image1.nii.gz"]
    check_trained(work / "scp_0" / "model.pt", config)
    score = json.loads((work / "scp_0" / "algo_object.json").read_text())["best_metric"]
    assert 0 <= score <= 1
    (prediction,) = (work / "ensemble_output").rglob("*.nii.gz")
    label = np.asarray(nib.load(prediction).dataobj)
    assert label.shape == (24, 16, 8) and set(np.unique(label)) <= {0, 1, 2}
