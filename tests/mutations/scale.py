"""Bugs that the tests of feeding and of the ends of a large set must find: splits, features, probes, descriptors, advice."""

from tests.mutations import Plant, Row

SPLIT = "tests/transfer/test_split.py::"

ROWS = [
    Row(
        "members of a class in the order of the file",
        "mpp/transfer/split.py",
        "shuffled = labels[order]",
        "shuffled, order = labels, np.arange(len(labels))",
        SPLIT + "test_the_same_rows_are_held_out_as_by_a_loop_over_the_classes",
    ),
    Plant(
        "places in a class counted from the first class on",
        "mpp.transfer.split:_by_class",
        "lambda labels, order: (*real(labels, order)[:2], np.arange(len(labels)))",
        SPLIT + "test_the_same_few_labels_are_drawn_as_by_a_loop_over_the_classes",
    ),
    Row(
        "every class is looked for in all the labels",
        "mpp/transfer/split.py",
        "    found = shuffled[by_class]",
        "    [np.flatnonzero(labels == label) for label in np.unique(labels)]\n    found = shuffled[by_class]",
        SPLIT + "test_no_class_is_looked_for_in_all_the_labels",
    ),
]
