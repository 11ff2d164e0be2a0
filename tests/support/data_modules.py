"""Data modules that are ready to train from."""

from scp_models.data import SegmentationDataModule


def prepared_module(root, tmp_path, **options):
    options = {"roi_size": (16, 20), "batch_size": 4, "cache_dir": str(tmp_path / "cache"), **options}
    data = SegmentationDataModule(str(root), "wmh", **options)
    data.prepare_data()
    data.setup("fit")
    return data
