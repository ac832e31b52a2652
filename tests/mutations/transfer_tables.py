"""Bugs that the tests of what a probe reads, and of the table over runs, must find."""

from tests.mutations import Plant, Row

RESULTS, PROBE, LABELLED = "tests/transfer/test_results.py", "tests/transfer/test_linear_probe.py", "tests/data/test_labelled.py"

ROWS = [
    Row(
        "rows of one name hide each other",
        "mpp/tabulating.py",
        "if names[line.name] == 1 else",
        "if True else",
        f"{RESULTS}::test_every_row_is_shown_where_one_run_was_measured_twice",
    ),
    Row(
        "subsets drawn by other seeds stand in one table",
        "mpp/tabulating.py",
        '*((about["seed"],) if some else ())',
        "",
        f"{RESULTS}::test_a_feature_rank_alone_and_other_subsets_of_a_split_have_tables_of_their_own",
    ),
    Row(
        "figures of other data are overwritten",
        "mpp/probing.py",
        'before["identity"] != images.identity',
        'before["identity"] is None',
        f"{PROBE}::test_figures_of_other_data_are_not_overwritten_unasked",
    ),
    Row(
        "a warm-up may last as long as the training",
        "mpp/transfer/probes/online.py",
        "if self.warmup_epochs >= self.epochs:",
        "if False:",
        f"{PROBE}::test_a_warm_up_as_long_as_the_training_is_refused",
    ),
    Row(
        "splits are taken for classes",
        "mpp/data/folder_images.py",
        "if layout.split_level == layout.level and",
        "if False and",
        f"{LABELLED}::test_a_folder_of_splits_and_a_single_class_are_no_labelled_set",
    ),
    Plant(
        "too few images are told when all were extracted",
        "mpp.probing:divide",
        "lambda *given: extract() or real(*given)",
        f"{PROBE}::test_too_few_images_of_a_class_are_told_by_name_before_anything_is_extracted",
    ),
    Row(
        "a class without images hides every few-shot figure",
        "mpp/transfer/probes/few_shot.py",
        "smallest = int(present[counts[present].argmin()])",
        "smallest = int(counts.argmin())",
        f"{PROBE}::test_classes_without_images_are_said_and_hide_no_figure",
    ),
]
