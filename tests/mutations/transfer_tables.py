"""Bugs that the tests of what a probe reads, and of the table over runs, must find."""

from tests.mutations import Plant, Row

PRINTS, LEDGER = "tests/data/test_fingerprints.py", "tests/transfer/test_ledger.py"
NEAR = "tests/transfer/test_near_duplicates.py"
OVERLAP = "tests/transfer/test_overlap.py"
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
    # What images are, and how often they have been read.
    Plant(
        "images of one CRC-32 and of other sizes are the same",
        "mpp.data.fingerprints:packed",
        "lambda crc32, size: crc32.astype(np.uint64)",
        f"{PRINTS}::test_overlap_is_that_of_sets_of_crc_and_size",
    ),
    Plant(
        "an image that a set holds twice is like one",
        "mpp.data.fingerprints:content_id",
        "lambda prints: real(np.unique(prints))",
        f"{PRINTS}::test_the_content_is_the_same_for_the_same_images_in_any_order_and_for_no_others",
    ),
    Row(
        "the order of images is their content",
        "mpp/data/fingerprints.py",
        "np.sort(prints).astype",
        "prints.astype",
        f"{PRINTS}::test_images_are_the_same_in_arrays_shards_and_folders",
    ),
    Plant(
        "every image of shards is read to know what it is",
        "mpp.data.shards:ShardSet.prints",
        "property(lambda self: np.array([self.read(sample)[0] for sample in range(len(self))]))",
        f"{PRINTS}::test_no_image_of_shards_is_read",
    ),
    Row(
        "prints are kept whatever becomes of the files",
        "mpp/data/fingerprints.py",
        "\\n{images.stamp}",
        "\\n{images.identity[:0]}",
        f"{PRINTS}::test_what_took_long_to_read_is_kept_until_a_file_changes",
    ),
    Row(
        "only the folder's own reads are counted",
        "mpp/transfer/ledger.py",
        "[own] if note else [own, shared]",
        "[own]",
        f"{LEDGER}::test_reads_are_counted_by_content_over_all_folders",
    ),
    Row(
        "the same read in two files counts twice",
        "mpp/transfer/ledger.py",
        'entry.get("id") or f"{path',
        'f"{path',
        f"{LEDGER}::test_one_read_found_in_several_files_counts_once",
    ),
    Row(
        "splits that were made again are others",
        "mpp/transfer/ledger.py",
        "if content and noted else",
        "if False else",
        f"{LEDGER}::test_reads_are_counted_by_content_over_all_folders",
    ),
    Row(
        "a full disk leaves half a line",
        "mpp/transfer/ledger.py",
        "            os.ftruncate(file.fileno(), size)\n",
        "",
        f"{LEDGER}::test_a_full_disk_leaves_no_half_line_in_the_ledger",
    ),
    Row(
        "a ledger that cannot be written stops the probe",
        "mpp/transfer/ledger.py",
        "except (OSError, UserError) as error:\n            reason",
        "except UserError as error:\n            reason",
        f"{LEDGER}::test_a_ledger_that_cannot_be_written_is_noted_and_the_folder_counts_alone",
    ),
    # Images that were seen before.
    Row(
        "a hold-out is compared with itself",
        "mpp/transfer/overlap.py",
        "overlap(prints, train.prints[fitted])",
        "overlap(prints, train.prints)",
        f"{OVERLAP}::test_a_hold_out_of_train_is_compared_with_the_rest",
    ),
    Plant(
        "accuracies without the shared images are those of the shared ones",
        "mpp.transfer.overlap:Overlap.without",
        "lambda self, *given: real(Overlap(self.name, ~self.train), *given)",
        f"{OVERLAP}::test_accuracies_without_the_images_of_train_are_of_the_others_alone",
    ),
    Row(
        "shards that have changed are counted",
        "mpp/transfer/overlap.py",
        "if images.identity == identity:",
        "if True:",
        f"{OVERLAP}::test_what_has_moved_or_changed_is_said_and_not_counted",
    ),
    Row(
        "what is not known counts as none",
        "mpp/transfer/overlap.py",
        "return None if self.mask is None else int(self.mask.sum())",
        "return 0 if self.mask is None else int(self.mask.sum())",
        f"{OVERLAP}::test_what_has_moved_or_changed_is_said_and_not_counted {OVERLAP}::test_the_program_counts_shared_images_and_says_what_is_left_without_them",
    ),
    Plant(
        "what an encoder began from is forgotten",
        "mpp.transfer.overlap:_began_from",
        "lambda *_: []",
        f"{OVERLAP}::test_a_run_that_began_from_another_was_trained_on_what_that_one_was",
    ),
    Plant(
        "a pretraining set is looked for where the program stands alone",
        "mpp.transfer.overlap:_places",
        "lambda path, commit: iter([Path(path)])",
        f"{OVERLAP}::test_a_run_tells_what_it_was_pretrained_on_from_wherever_it_is_looked_at",
    ),
    Row(
        "any checkpoint beside an encoder folder is its own",
        "mpp/transfer/overlap.py",
        "if commit.seal == seal",
        "if True",
        f"{OVERLAP}::test_what_others_were_trained_on_is_not_known",
    ),
    Row(
        "fine-tuning compares with all of train, also what it left out",
        "mpp/finetuning.py",
        "np.union1d(trained, held), encoders",
        "np.arange(len(train)), encoders",
        "tests/pipeline/test_finetune.py::test_the_vit_protocol_from_scratch_on_few_labels_and_a_test_split_read_once",
    ),
    Row(
        "the same bytes count as looking alike too",
        "mpp/transfer/near_duplicates.py",
        "(self.correlation >= self.threshold) & ~self.same",
        "self.correlation >= self.threshold",
        f"{NEAR}::test_copies_that_were_altered_a_little_are_found_and_nothing_else",
    ),
    Row(
        "bright images look like each other",
        "mpp/transfer/near_duplicates.py",
        "grey -= grey.mean()",
        "grey = grey.copy()",
        f"{NEAR}::test_the_correlation_is_numpys_of_the_grey_versions",
    ),
    Row(
        "the place in train's subset is taken for an id",
        "mpp/transfer/near_duplicates.py",
        "fitted[place[:, 0].numpy()]",
        "place[:, 0].numpy()",
        f"{NEAR}::test_copies_that_were_altered_a_little_are_found_and_nothing_else",
    ),
]
