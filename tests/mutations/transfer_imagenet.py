"""Bugs that the tests of ImageNet, as shards and as class folders, must find."""

from tests.mutations import Row

SAME = "tests/data_prep/test_imagenet.py::test_class_folders_of_the_same_images_give_the_same_classes_labels_and_features"

ROWS = [
    Row("ImageNet's capital suffix is taken for no JPEG", "mpp/data/labelled.py", "file.lower().endswith(STORED)", "file.endswith(STORED)", SAME),
    Row(
        "an image of a class folder is looked up by its place in the class", "mpp/data/labelled.py",
        "return _file_bytes(self.files[sample])", "return _file_bytes(self.files[sample % len(self.classes)])", SAME,
    ),
]  # fmt: skip
