"""Bugs that the tests of what a probe reads, and of the table over runs, must find."""

from tests.mutations import Plant, Row

RESULTS, PROBE, LABELLED = "tests/transfer/test_results.py", "tests/transfer/test_linear_probe.py", "tests/data/test_labelled.py"

ROWS = [
    Row(
        "rows of one name hide each other",
        "mpp/transfer/joined.py",
        "if seen[line.name] > 1 and line.cells:",
        "if False:",
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
    Plant(
        "what was measured otherwise stands in one column",
        "mpp.transfer.joined:_key",
        "lambda value: real({k: v for k, v in value.items() if k != 'labels'} if isinstance(value, dict) and 'draws' in value else value)",
        f"{RESULTS}::test_what_was_measured_otherwise_stands_apart_and_is_named",
    ),
    Plant(
        "baselines that differ hide each other",
        "mpp.transfer.joined:_agree",
        "lambda *_: True",
        f"{RESULTS}::test_a_baseline_that_was_measured_twice_with_other_figures_is_shown_twice",
    ),
    Row(
        "a baseline shows the first run alone",
        "mpp/transfer/joined.py",
        "known.cells = own | known.cells",
        "known.cells = known.cells",
        f"{RESULTS}::test_a_baseline_has_what_any_of_the_runs_has_measured_of_it",
    ),
    Row(
        "repeats report on images that others learned from",
        "mpp/probing.py",
        "free = np.setdiff1d(np.arange(len(labels)), first[reported])",
        "free = np.arange(len(labels))",
        f"{PROBE}::test_divisions_of_repeats_share_no_reported_image_and_have_as_many_labels",
    ),
    Row(
        "every repeat draws the same labels",
        "mpp/probing.py",
        "subset(len(free), len(kept), seed)]",
        "subset(len(free), len(kept), config.seed)]",
        f"{PROBE}::test_divisions_of_repeats_share_no_reported_image_and_have_as_many_labels",
    ),
]
