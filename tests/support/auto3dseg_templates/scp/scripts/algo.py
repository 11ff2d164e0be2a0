"""What Auto3DSeg asks for the configuration of a fold."""

from pathlib import Path

from monai.apps.auto3dseg import BundleAlgo
from monai.auto3dseg import datafold_read
from monai.bundle import ConfigParser


class ScpAlgo(BundleAlgo):
    def fill_template_config(self, data_stats_filename, algo_path, fold=0, **kwargs):
        source = ConfigParser.load_config_file(self.data_list_file)
        labels = ConfigParser.load_config_file(data_stats_filename)["stats_summary"]["label_stats"]["labels"]
        training, validation = datafold_read(source["datalist"], source["dataroot"], fold)
        filled = {"data": training, "validation": validation, "folder": algo_path, "classes": len(labels)}
        path = Path(algo_path) / "configs" / "hyper_parameters.yaml"
        ConfigParser.export_config_file(ConfigParser.load_config_file(path) | filled, str(path), fmt="yaml")
        return {path.name: filled}
