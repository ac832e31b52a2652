"""Bugs that the tests of feeding and of the ends of a large set must find: splits, features, probes, descriptors, advice."""

from tests.mutations import Plant, Row

SPLIT = "tests/transfer/test_split.py::"
SHARDS, ORDER, ADVICE = "tests/data/test_shards.py::", "tests/data/test_order.py::", "tests/prep/test_advice.py::"
LARGE = "tests/data/test_large_sets.py::test_"
EXTRACTION, PROBE = "tests/transfer/test_extraction.py::", "tests/transfer/test_linear_probe.py::"
DEALT = "tests/pipeline/test_probe_processes.py::test_probes_dealt_out_to_processes_give_the_same_figures_to_the_digit"

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
    # Descriptors, and samples that are fetched ahead.
    Row(
        "a copy of a set forgets how many shards it keeps open",
        "mpp/data/shards.py",
        "    opened.keep_open(open_files)\n",
        "",
        SHARDS + "test_as_many_stay_open_as_a_process_will_read_within_half_of_its_limit_also_in_a_copy",
    ),
    Row(
        "open shards take the whole limit",
        "mpp/data/shards.py",
        "min(files, limit // 2)",
        "min(files, limit)",
        SHARDS + "test_as_many_stay_open_as_a_process_will_read_within_half_of_its_limit_also_in_a_copy",
    ),
    Plant(
        "samples are fetched ahead one at a time",
        "mpp.data.pixels:StoredPixels.ahead",
        "lambda self, samples: real(self, samples[:1])",
        SHARDS + "test_the_samples_of_a_batch_are_asked_for_together_before_the_first_is_read",
    ),
    Row(
        "the places of another sample are fetched",
        "mpp/data/shards.py",
        "os.posix_fadvise(handle, row.offset, row.size,",
        "os.posix_fadvise(handle, 0, row.size,",
        SHARDS + "test_the_samples_of_a_batch_are_asked_for_together_before_the_first_is_read",
    ),
    Row(
        "a vanished shard ends the fetching ahead",
        "mpp/data/shards.py",
        "            except OSError:\n                return",
        "            except ZeroDivisionError:\n                return",
        SHARDS + "test_what_cannot_be_fetched_ahead_is_left_to_the_read",
    ),
    Row(
        "a stretch begins with a shard",
        "mpp/data/order.py",
        "int(whole) + 2)",
        "int(whole) + 1)",
        f"{ORDER}test_a_process_reads_from_no_more_shards_than_are_said_to_be_in_its_reach "
        f"{ORDER}test_the_reach_is_the_share_of_the_shards_and_with_blocks_that_of_the_streams",
    ),
    Row(
        "blocks are left out of the reach",
        "mpp/data/order.py",
        "        return min(reach, max(1, self.streams // world) * each)",
        "        return reach",
        f"{ORDER}test_the_reach_is_the_share_of_the_shards_and_with_blocks_that_of_the_streams "
        f"{ADVICE}test_a_large_set_says_from_how_many_shards_a_process_reads_and_what_blocks_and_larger_shards_change",
    ),
    Row(
        "blocks are advised where they change nothing",
        "mpp/prep/advice.py",
        "wide >= OFTEN * narrow",
        "wide >= narrow",
        ADVICE + "test_nothing_is_said_of_feeding_where_it_is_no_question",
    ),
    # Manifests and memory.
    Row(
        "some ids are taken from an array of all",
        "mpp/data/crop_dataset.py",
        "return self.pool.start + places * self.pool.step if isinstance(self.pool, range) else self.pool[places]",
        "return np.asarray(self.pool)[places]",
        LARGE + "a_rank_and_its_sampler_hold_nothing_by_the_sample",
    ),
    Row(
        "some images are drawn by a permutation of all",
        "mpp/transfer/split.py",
        "Draws(seed, PROBE, SUBSET, key).first_of_permutation(total, count)",
        "np.sort(Draws(seed, PROBE, SUBSET, key).permutation(total)[:count])",
        LARGE + "a_rank_and_its_sampler_hold_nothing_by_the_sample",
    ),
    Row(
        "places of a stretch of keys are taken for those of all",
        "mpp/rng.py",
        "np.concatenate([found, first + few])",
        "np.concatenate([found, few])",
        LARGE + "the_first_of_a_permutation_are_those_of_the_whole_one",
    ),
    Row(
        "the mean size is of all rows of the index",
        "mpp/data/device_jpegs.py",
        'source.index[some]["size"]',
        'source.index["size"]',
        LARGE + "what_is_read_of_the_index_does_not_grow_with_the_set",
    ),
    Row(
        "all entries of a manifest are objects at once",
        "mpp/data/shard_table.py",
        "while more and len(part) < STRETCH:",
        "while more:",
        LARGE + "a_shard_of_the_manifest_takes_a_rank_a_few_dozen_bytes_and_a_keeper_few_more",
    ),
    Row(
        "a rank keeps an object for each shard",
        "mpp/data/shards.py",
        'manifest.model_dump(exclude={"shards"})',
        "manifest.model_dump()",
        LARGE + "a_shard_of_the_manifest_takes_a_rank_a_few_dozen_bytes_and_a_keeper_few_more",
    ),
    Row(
        "every epoch's line of shards is kept",
        "mpp/data/order.py",
        "if len(self._epochs) == EPOCHS:",
        "if False:",
        LARGE + "a_shard_of_the_manifest_takes_a_rank_a_few_dozen_bytes_and_a_keeper_few_more",
    ),
    Row(
        "an entry is named by its place among those read with it",
        "mpp/data/shard_table.py",
        'entries + int(each["loc"][0])',
        'int(each["loc"][0])',
        LARGE + "an_entry_that_is_none_is_named_by_its_place_in_the_whole_list",
    ),
    Row(
        "entries of another version are called wrong",
        "mpp/data/shard_format.py",
        "if (kind := (content",
        "if not failed and (kind := (content",
        LARGE + "an_entry_that_is_none_is_named_by_its_place_in_the_whole_list",
    ),
    Row(
        "entries are sealed in the order in which they are written",
        "mpp/data/shard_format.py",
        '{"bytes":%(bytes)d,"name":%(name)s,',
        '{"name":%(name)s,"bytes":%(bytes)d,',
        LARGE + "a_manifest_is_written_sealed_and_read_as_if_it_were_one_object",
    ),
    Row(
        "stretches of entries stand without a comma between them",
        "mpp/data/shard_table.py",
        'yield (between if first else "") + ',
        "yield ",
        LARGE + "a_manifest_is_written_sealed_and_read_as_if_it_were_one_object",
    ),
    Row(
        "the list of shards is looked for anywhere in the manifest",
        "mpp/data/shard_format.py",
        """partition('\\n "shards": []')""",
        """partition('"shards": []')""",
        LARGE + "a_manifest_is_written_sealed_and_read_as_if_it_were_one_object",
    ),
    Row(
        "shards are looked up as if they were listed by name",
        "mpp/data/keeper.py",
        "np.searchsorted(self._names, wanted, sorter=self._by_name)",
        "np.searchsorted(self._names, wanted)",
        LARGE + "an_entry_is_found_by_its_name_in_any_order_of_the_list",
    ),
    Plant(
        "prints are made of whole columns",
        "mpp.data.shard_index:ShardIndex.of_each",
        "lambda self, work, dtype: work(self[:])",
        LARGE + "prints_and_labels_of_a_set_take_what_they_are_and_a_stretch_of_rows",
    ),
    Row(
        "sizes are asked for one after the other",
        "mpp/data/shard_faults.py",
        "pool.map(lambda part: [ask(entry) for entry in part], parts)",
        "map(lambda part: [ask(entry) for entry in part], parts)",
        LARGE + "sizes_of_many_shards_are_asked_for_at_once_and_told_in_order",
    ),
    # Hashes of tables.
    Row(
        "only the first stretch of a table is hashed",
        "mpp/transfer/extraction.py",
        "        file.seek(start)\n",
        "",
        EXTRACTION + "test_tables_are_hashed_stretch_by_stretch_and_each_stretch_is_looked_at",
    ),
    Row(
        "a table's last, short stretch is left out",
        "mpp/transfer/extraction.py",
        "for at in range(0, size, STRETCH)]",
        "for at in range(0, size - STRETCH, STRETCH)]",
        EXTRACTION + "test_tables_are_hashed_stretch_by_stretch_and_each_stretch_is_looked_at",
    ),
    Row(
        "hashes of processes are put together in the wrong order",
        "mpp/transfer/extraction.py",
        "found[number % world.size][number // world.size]",
        "found[-1 - number % world.size][number // world.size]",
        DEALT,
    ),
    # Probes that are dealt out, what they take, extraction alone.
    Row(
        "every process fits the first one's probes",
        "mpp/probing.py",
        "        parts = to_first(world, together(world, fit_mine), len(units_of(job)))",
        "        mine[:] = units_of(job)[:: world.size]\n        parts = to_first(world, together(world, fit_mine), len(units_of(job)))",
        DEALT,
    ),
    Row(
        "repeats that are dealt out share a seed",
        "mpp/probing.py",
        "row, seed = job.rows[name], config.seed + number",
        "row, seed = job.rows[name], config.seed + world.rank",
        DEALT,
    ),
    Row(
        "the velocity of heads is not counted",
        "mpp/transfer/probes/linear.py",
        "4 * heads * (2 * (",
        "4 * heads * (1 * (",
        PROBE + "test_what_probes_take_is_counted_from_heads_columns_and_batch",
    ),
    Row(
        "a grid that does not fit is noticed after extraction",
        "mpp/probing.py",
        "    if not config.extract_only:\n        state_memory(job)\n    tables = job.extract(job.train, job.samples)\n",
        "    tables = job.extract(job.train, job.samples)\n    state_memory(job)\n",
        PROBE + "test_a_grid_that_does_not_fit_is_refused_before_anything_is_extracted_and_says_what_to_lower",
    ),
    Row(
        "extracting alone leaves test to the probe",
        "mpp/probing.py",
        "    if job.test is not None:\n        for name, table in job.extract(",
        "    if False:\n        for name, table in job.extract(",
        PROBE + "test_extracting_alone_reads_no_test_split_and_the_probe_finds_all_of_it",
    ),
    Row(
        "loader processes of a look end with it",
        "mpp/data/loader.py",
        "stays=bool(self.workers)",
        "stays=False",
        "tests/data/test_loader.py::test_what_is_read_again_is_read_by_the_same_processes_and_is_the_same",
    ),
    Row(
        "every look has loader processes of its own",
        "mpp/finetuning.py",
        "        if id(data) not in self.read:\n",
        "        if True:\n",
        "tests/pipeline/test_finetune.py::test_looks_at_the_hold_out_share_their_loader_processes",
    ),
]
