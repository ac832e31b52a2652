"""Bugs that the tests of ImageNet, as shards and as class folders, must find."""

from tests.mutations import Plant, Row

SAME = "tests/prep/test_imagenet.py::test_class_folders_of_the_same_images_give_the_same_classes_labels_and_features"

ROWS = [
    Row(
        "the suffix tells what an image of a class folder is", "mpp/data/folder_images.py", "    return storable(data)",
        '    return data if file.lower().endswith((".jpeg", ".jpg", ".png")) else storable(data)', "tests/data/test_labelled.py::test_the_content_decides_what_an_image_is_and_not_its_suffix",
    ),
    Plant(
        "an image of a class folder is looked up by its place in the class", "mpp.data.folder_images:FolderImages.read",
        "lambda self, sample: real(self, sample % len(self.classes))", SAME,
    ),
]  # fmt: skip
