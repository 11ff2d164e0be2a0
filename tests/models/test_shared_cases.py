"""Small inputs from the field that once showed faults, where they lie beside the checkout: what each prints."""

from pathlib import Path

import pytest

from tests.support.processes import run_python

CASES = Path(__file__).parents[3] / "shared" / "cases"
RIGHT = {
    "batched_gradients": ["cpu torch.Size([1, 1, 3, 3, 1, 4, 3, 3])"],
    "datalist_labels": ["training[0] expected a 'label' that is one path, got"],
    "functionalize": ["cpu torch.Size([1, 1, 6, 7])"],
    "label_flipped": ["equals the image's own mask: True", "expected one real number per voxel, got RGB", "read True"],
    "modality_flipped": ["channels equal as read: True ; mirrored: False"],
    "negative_dim": [],
    "nnunet_layout": ["[('c0', False), ('c1', True), ('c2', True)]", "channels=('MR',), labels={'background': (0,)"],
    "positioned_leak": ["logits right: True ; later plain call right: True ; placement left: None"],
    "positioned_threads": ["wrong results: 0 of 100; later plain call right: True"],
    "triton_folder": ["not usable: Triton is not installed", "BackendUnavailable"],
}


@pytest.mark.skipif(not CASES.is_dir(), reason="no cases beside this checkout (../shared/cases)")
@pytest.mark.parametrize("name", RIGHT)
def test_a_case_of_the_field_prints_what_is_right(name):
    printed = run_python(CASES / f"{name}.py").stdout
    assert all(words in printed for words in RIGHT[name]), printed


def test_what_moved_to_the_description_is_still_found():
    from scp_models.data import description, tasks

    for name in ("read_description", "task_of_data_set", "Description"):
        with pytest.warns(DeprecationWarning, match=f"description.{name} now; the old name goes in version"):
            assert getattr(tasks, name) is getattr(description, name)
    assert not hasattr(tasks, "another_name")
