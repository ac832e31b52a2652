"""Bugs that the tests of feature tables, of what is chosen on them, and of labelled images must find."""

from tests.mutations import Plant, Row

EXTRACTION, PROTOCOL = "tests/transfer/test_extraction.py::", "tests/transfer/test_protocol.py::"
ROWS = [
    # One contract for both sides.
    Row(
        "mean pooling takes the class token in", "mpp/transfer/extractors.py", "tokens[:, self.backbone.prefix :].mean(dim=1)", "tokens.mean(dim=1)",
        "tests/transfer/test_features.py::test_mean_pooling_leaves_the_class_token_out_and_norms_come_before_pooling",
    ),
    Row(
        "layers leave without the final norm", "mpp/model/backbone.py", "return [norm(tokens) for tokens in self.unnormed(images, layers)]",
        "return self.unnormed(images, layers)",
        "tests/model/test_backbone.py::test_every_token_leaves_under_the_final_norm",
    ),
    Row(
        "layers are off by one", "mpp/model/backbone.py", "            if i + 1 in layers:\n", "            if i in layers:\n                i -= 1\n",
        "tests/model/test_backbone.py::test_layers_are_timms_own_intermediates_under_the_final_norm",
    ),
    Plant(
        "features of other specs are let in", "mpp.transfer.protocol:refuse_other_features",
        "lambda *_: None",
        PROTOCOL + "test_a_probe_cannot_be_tested_on_other_features_than_it_was_trained_on",
    ),
    Row(
        "specs are compared without masking", "mpp/transfer/features.py", "        if ours.get(name) != theirs.get(name):",
        "        if name != 'masking' and ours.get(name) != theirs.get(name):",
        "tests/transfer/test_features.py::test_sides_that_differ_in_anything_are_refused",
    ),
    Row(
        "the extractor keeps training mode", "mpp/model/backbone.py", "return Backbone(net, predictor).eval().requires_grad_(False)",
        "return Backbone(net, predictor).requires_grad_(False)", "tests/model/test_backbone.py::test_a_copy_for_another_size_measures_without_noise",
    ),
    # Each image once, and again when something has changed.
    Plant(
        "the key forgets the versions", "mpp.transfer.extraction:VERSIONS",
        "()",
        EXTRACTION + "test_a_table_is_used_again_only_while_nothing_has_changed",
    ),
    Row(
        "the key forgets which images", "mpp/transfer/extraction.py",
        "hashlib.sha256(np.ascontiguousarray(samples, dtype=np.int64).tobytes()).hexdigest()", '"all"',
        EXTRACTION + "test_a_table_is_used_again_only_while_nothing_has_changed",
    ),
    Plant(
        "the key takes the identity of the data for its stamp", "mpp.data.folder_images:FolderImages._hash", "lambda self, with_times: real(self, False)",
        "tests/data/test_labelled.py::test_an_edited_file_changes_the_stamp_and_another_name_or_size_the_identity",
    ),
    Plant(
        "cached tables are believed", "mpp.transfer.extraction:_check",
        "lambda *_: None",
        EXTRACTION + "test_a_cached_table_of_other_features_under_the_right_key_is_found",
    ),
    Row(
        "the check runs at the same batch size", "mpp/transfer/extraction.py",
        "np.array_split(rows, -(-len(rows) // CHECK_BATCH))", "[np.arange(min(16, len(samples)))]",
        EXTRACTION + "test_an_extractor_that_sees_its_batch_is_caught",
    ),
    Plant(
        "bytes of cached tables are believed", "mpp.transfer.extraction:_hash_stretch",
        "lambda path, start, left: 'as written'",
        EXTRACTION + "test_a_flipped_bit_in_a_cached_table_is_found",
    ),
    Row(
        "repeated images pass", "mpp/transfer/extraction.py", "    if missing or repeated:\n", "    if missing and repeated > 99:\n",
        EXTRACTION + "test_rows_counted_twice_or_never_stop_the_probe",
    ),
    Plant(
        "processes share no work", "mpp.transfer.extraction:own_rows",
        "lambda count, batch, world: [range(count)]",
        "tests/pipeline/test_probe_processes.py::test_two_processes_make_the_same_table_as_one",
    ),
    Row(
        "probes ask for other loader processes than they were told", "mpp/transfer/extraction.py",
        "workers = config.workers if config.workers is not None else default_workers(world.local_size)", "workers = default_workers(world.local_size)",
        "tests/transfer/test_every_key.py::test_every_key_changes_what_it_says",
    ),
    Plant(
        "a probe passes over images that it cannot read", "mpp.transfer.extraction:centre_crops",
        "lambda *given: __import__('dataclasses').replace(real(*given), leaves_none_out=False)",
        EXTRACTION + "test_a_damaged_image_stops_the_probe_and_is_named",
    ),
    # Nothing is chosen where figures are read.
    Plant(
        "k chosen with the query among the neighbours", "mpp.transfer.probes.knn:neighbours_of",
        "lambda train, bank, *more: real(train, train.split.both, *more)",
        PROTOCOL + "test_k_and_ridge_are_chosen_on_images_that_are_neither_neighbours_nor_shots",
    ),
    Plant(
        "shots drawn from the hold-out too", "mpp.transfer.probes.few_shot:draw_shots",
        "lambda labels, rows, *more: real(labels, np.arange(len(labels)), *more)",
        PROTOCOL + "test_k_and_ridge_are_chosen_on_images_that_are_neither_neighbours_nor_shots",
    ),
    Row(
        "the winner is not trained again", "mpp/transfer/probes/linear.py", "heads(train.split.both, ", "heads(train.split.fit, ",
        PROTOCOL + "test_the_winner_and_the_bank_get_the_hold_out_too",
    ),
    Row(
        'logistic regression is not fitted again', 'mpp/transfer/probes/logistic.py',
        'fitted = path_on(train.split.both,',
        'fitted = path_on(train.split.fit,',
        PROTOCOL + "test_the_winner_and_the_bank_get_the_hold_out_too",
    ),
    Plant(
        'the first of the grid wins', 'mpp.transfer.grid:_pick',
        'lambda scores, axes: (0,) * scores.ndim',
        PROTOCOL + "test_the_winner_is_the_best_of_the_hold_out",
    ),
    Plant(
        "the hold-out overlaps what is fitted", "mpp.transfer.split:hold_out",
        "lambda labels, *more: (np.arange(len(labels)), real(labels, *more)[1])",
        "tests/transfer/test_probes.py::test_splits_hold_a_share_of_every_class_and_do_not_overlap",
    ),
    Plant(
        "reads of a test split are not counted", "mpp.transfer.ledger:reads_of", "lambda *given: tuple(min(1, count) for count in real(*given))",
        "tests/transfer/test_ledger.py::test_reads_are_counted_by_content_over_all_folders",
    ),
    # Labelled images.
    Plant(
        "classes in the order of the folder", "mpp.data.class_folders:class_names", "lambda labels, source, *, numbers: real(labels, source, numbers=numbers)[::-1]",
        "tests/data/test_labelled.py::test_a_folder_of_classes_is_torchvisions_image_folder",
    ),
    Plant(
        "planes are taken for rows", "mpp.data.array_images:ArrayImages.read", "lambda self, sample: png(Image.fromarray(self.pixels[sample].swapaxes(0, 1).copy()))",
        "tests/data/test_labelled.py::test_cifar_is_what_torchvision_reads",
    ),
    Row(
        "probes read CIFAR before its checksums", "mpp/data/array_images.py", "if not all(check_integrity(folder / file, md5) for file, md5 in checksums):",
        "if False:", "tests/data/test_labelled.py::test_a_cifar_file_of_another_checksum_is_not_read_but_fetched_again",
    ),
    Plant(
        'runs on other images share a table', 'mpp.mains.results:measured_on',
        'lambda result, contents: real(result, contents)[1:]',
        "tests/transfer/test_results.py::test_runs_on_the_same_images_share_a_table_and_baselines_are_shown_once",
    ),
]  # fmt: skip
