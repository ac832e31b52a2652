"""What the flight recorder notes of a batch."""

import torch

from mpp.train.flight import labels_check, masks_check


def test_what_is_drawn_for_labelled_images_changes_their_check():
    batch = {
        "label": torch.tensor([1, 0]),
        "erase": torch.tensor([[0, 0, 4, 4], [0, 0, 0, 0]]),
        "noise": torch.tensor([5, 6]),
        "share": torch.tensor([0.5, 0.5]),
        "paste": torch.tensor([[1, 2, 3, 4]] * 2),
    }
    checks = [labels_check(batch), *(labels_check(batch | {name: value + 1}) for name, value in batch.items())]
    assert len(set(checks)) == 6 and masks_check(batch) is None
    assert labels_check({"kind": batch["label"]}) is None
    plain = {"label": batch["label"]}
    assert labels_check(plain) == labels_check(plain | {"image": torch.zeros(2)}) != labels_check(batch)
