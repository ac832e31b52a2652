"""Bugs that the tests of feeding and of the ends of a large set must find: splits, features, probes, descriptors, advice."""

from tests.mutations import Plant, Row

SPLIT = "tests/transfer/test_split.py::"
SHARDS, ORDER, ADVICE = "tests/data/test_shards.py::", "tests/data/test_order.py::", "tests/prep/test_advice.py::"
EXTRACTION, PROBE = "tests/transfer/test_extraction.py::", "tests/transfer/test_linear_probe.py::"
DIVIDED = "tests/transfer/test_divided.py::"
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
        "        parts = to_first(world, together(world, fit_mine), len(units))",
        "        mine[:] = units[:: world.size]\n        parts = to_first(world, together(world, fit_mine), len(units))",
        DEALT,
    ),
    Row(
        "every process searches the whole grid",
        "mpp/probing.py",
        "find(searches, world.rank, world.size, share, begins)",
        "find(searches, 0, 1, share, begins)",
        DEALT,
    ),
    Row(
        "what all have searched is searched again by one",
        "mpp/probing.py",
        "before = searched.get((name, number, probe.key))",
        "before = None",
        DEALT,
    ),
    Row(
        "searches are dealt out one after the other",
        "mpp/transfer/probes/divided.py",
        "in sorted(line):",
        "in line:",
        DIVIDED + "test_each_of_two_processes_has_half_of_every_search_and_twelve_trials_keep_twelve_busy",
    ),
    Row(
        "trials are dealt out by number, whatever they cost",
        "mpp/transfer/probes/divided.py",
        "shares[min(processes - 1, int((before + own / 2) / whole * processes))].append((number, trial))",
        "shares[min(processes - 1, int(sum(map(len, shares)) / len(line) * processes))].append((number, trial))",
        DIVIDED + "test_every_trial_is_dealt_once_and_nobody_has_more_than_a_share_and_one_trial",
    ),
    Row(
        "what trials gave is told in the order of the processes",
        "mpp/transfer/probes/divided.py",
        "[found[number, trial] for trial in range(len(trials.costs))]",
        "[one for part, _ in reversed(parts) for (of, _), one in part.items() if of == number]",
        DIVIDED + "test_any_number_of_processes_finds_to_the_digit_what_one_finds",
    ),
    Row(
        "seconds are those of one process",
        "mpp/transfer/probes/divided.py",
        "sum(took.get(number, 0.0) for _, took in parts)",
        "max(took.get(number, 0.0) for _, took in parts)",
        DIVIDED + "test_rounds_go_on_for_those_that_ask_and_seconds_are_those_of_all_processes",
    ),
    Row(
        "a share reads the whole table",
        "mpp/transfer/probes/linear.py",
        "columns = torch.unique(torch.cat([columns.cpu() for columns in variants]))",
        "columns = torch.arange(1 + max(int(columns.max()) for columns in variants))",
        DIVIDED + "test_only_the_columns_that_are_needed_are_read",
    ),
    Row(
        "a block is standardised by its neighbour's columns",
        "mpp/transfer/probes/linear.py",
        "Heads(block.columns.to(device), means[of_block[i]], scales[of_block[i]], ",
        "Heads(block.columns.to(device), means[0][: w.shape[1]], scales[of_block[i]], ",
        DIVIDED + "test_a_block_has_the_same_bits_whatever_is_trained_beside_it",
    ),
    Row(
        "the memory of a share is stated as that of the whole grid",
        "mpp/transfer/probes/linear.py",
        "for width, count in blocks]], processes)",
        "for width, count in blocks]], 1)",
        DIVIDED + "test_the_memory_that_is_stated_is_what_the_largest_share_holds",
    ),
    Row(
        "memory is asked for as if one process did all",
        "mpp/probe_job.py",
        "probe.memory(widths, len(job.train.classes), job.world.size)",
        "probe.memory(widths, len(job.train.classes))",
        PROBE + "test_processes_that_share_a_grid_need_less_each_and_room_for_all_of_a_machine",
    ),
    Row(
        "room is asked for no more processes than there are rows",
        "mpp/probe_job.py",
        "beside = job.world.local_size if key in divided else min(",
        "beside = min(",
        PROBE + "test_processes_that_share_a_grid_need_less_each_and_room_for_all_of_a_machine",
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
        "sum(2 * (width + 1) * count for width",
        "sum((width + 1) * count for width",
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
        "stays=bool(workers)",
        "stays=False",
        "tests/data/test_loader.py::test_what_is_read_again_is_read_by_the_same_processes_and_is_the_same",
    ),
    Row(
        "every look has loader processes of its own",
        "mpp/finetuning.py",
        "kept=tuned.loaders.measuring,",
        "kept=None,",
        "tests/pipeline/test_finetune.py::test_everything_is_measured_by_the_same_loader_processes",
    ),
]
