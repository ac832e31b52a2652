"""What processes agree on before they train, what they ask of the disk, and how they save."""

from tests.mutations import Row

PEERS, LOCKS, SAVING, DISKS = (
    "tests/processes/test_peers.py::test_",
    "tests/disk/test_locks.py::test_",
    "tests/train/test_saving.py::test_",
    "tests/disk/test_patience.py::test_",
)
SHARDS, OPENS, CHECKPOINTS = (
    "tests/data/test_shards.py::test_",
    "tests/pipeline/test_opens.py::test_",
    "tests/pipeline/test_checkpoints.py::test_",
)
COUNTED = OPENS + "a_start_and_a_resumption_ask_the_same_of_the_disk_whatever_the_number_of_processes"

FIRST, LOADER = "tests/pipeline/test_loaders_first.py::test_", "tests/data/test_loader.py::test_"

WEIGHTS = "tests/pipeline/test_same_weights.py::test_ranks_that_read_other_weights_are_named_before_anything_is_computed"
LEAVE = "tests/data/test_loader_processes.py::test_loader_processes_leave_nothing_in_the_folder_for_temporary_files"

ROWS = [
    Row(
        "rank 0 leaves before others have read what it told last", "mpp/processes/peers.py",
        "        if self.store is None or self.joined:\n", "        if self.store is None or self.joined or not status:\n",
        PEERS + "rank_0_with_whom_the_store_ends_leaves_last",
    ),
    # Weights that each process reads for itself.
    Row(
        "weights that a run begins from are not compared", "mpp/mains/pretrain.py",
        "agree_on_weights(peers, {**brought.digests, **begun})", "agree_on_weights(peers, brought.digests)", WEIGHTS + "[pretrain-words0-init_from]",
    ),
    Row(
        "each rank has a teacher of its own", "mpp/mains/pretrain.py",
        "agree_on_weights(peers, {**brought.digests, **begun})", "agree_on_weights(peers, begun)", WEIGHTS + "[pretrain-words1-target.encoder]",
    ),
    Row(
        "each rank fine-tunes what it finds", "mpp/mains/finetune_job.py",
        '    agree_on_weights(peers, {"encoder": loaded.digest})\n', "", WEIGHTS + "[finetune-words2-encoder]",
    ),
    Row(
        "the encoders beside a probe's are not compared", "mpp/mains/probe_job.py",
        '"encoder": loaded.digest, **{f"beside.{source}": each.digest for source, each in beside.items()}', '"encoder": loaded.digest', WEIGHTS + "[linear_probe-words4-beside.weights]",
    ),
    # What loader processes leave.
    Row(
        "each loader process makes a folder for its sockets", "mpp/data/handing_over.py", "    _make_folder()\n    gc.collect()\n", "    gc.collect()\n", LEAVE + "[finishes]",
    ),
    Row(
        "a process that ends at once leaves its folder of sockets", "mpp/base/errors.py",
        "        shutil.rmtree(folder, ignore_errors=True)\n", "        pass\n", LEAVE + "[is_ended]",
    ),
    Row(
        "nobody removes what a killed process has left", "mpp/disk/sockets.py", "    sweep(kind)\n", "",
        LEAVE + "[is_killed] tests/data/test_shard_cache.py::"
        "test_the_sockets_of_a_keeper_that_was_killed_go_when_the_next_one_begins_and_those_of_one_that_lives_stay",
    ),
    Row(
        "the sockets of a process that lives are swept away", "mpp/disk/sockets.py",
        "                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)\n", "", LEAVE + "[is_killed]",
    ),
    Row(
        "the sockets of a process that has only begun are swept away", "mpp/disk/sockets.py", "BEGINNING = 60.0", "BEGINNING = -1e9", LEAVE + "[is_killed]",
    ),
    Row(
        "a long path for temporary files is taken for sockets", "mpp/disk/sockets.py", "if len(tempfile.gettempdir()) > 60", "if len(tempfile.gettempdir()) > 600",
        "tests/data/test_loader_processes.py::test_a_long_path_for_temporary_files_is_none_for_sockets",
    ),
    Row(
        "what a kill has left half-written stays in a run folder", "mpp/train/run_folder.py", "        for path in folder.glob(TEMPORARY):", "        for path in []:",
        "tests/pipeline/test_resume.py::test_whoever_holds_a_run_folder_removes_what_a_kill_has_left_half_written",
    ),
    # A place that another run holds.
    Row(
        "a folder that another run holds is for a person to mend", "mpp/base/errors.py", "has not ended yet.\"\"\"\n\n    status = UNMET\n", "has not ended yet.\"\"\"\n",
        f"{PEERS}what_stops_one_stops_all_with_the_same_words tests/pipeline/test_resume.py::test_a_run_folder_takes_one_run_at_a_time",
    ),
    Row(
        "other ranks say that a person must mend it", "mpp/processes/peers.py", "raise error_told(*told[\"error\"])", "raise UserError(told[\"error\"][0])",
        f"{PEERS}what_stops_one_stops_all_with_the_same_words",
    ),
    Row(
        "a place in a store that another run holds is for a person to mend", "mpp/train/copies.py",
        "BusyError.status if kind == BusyError.__name__ else self.status", "self.status",
        "tests/train/test_copies.py::test_a_place_that_another_run_holds_may_be_tried_again",
    ),
    # Loader processes begin before the processes join.
    Row(
        "fine-tuning joins before its loader processes begin", "mpp/mains/finetune.py",
        "    loaders = Loaders(job, left, peers) if left else None\n    world = start(run_dir, config.system, peers) if config.repeats > 1 else None\n",
        "    world = start(run_dir, config.system, peers)\n    loaders = Loaders(job, left, peers) if left else None\n",
        FIRST + "fine_tuning_forks_before_it_joins_for_all_repeats_and_all_that_is_measured",
    ),
    Row(
        "processes that are not asked yet do not begin", "mpp/data/loader.py", "        if workers:\n            begun(self._loader)\n", "",
        FIRST + "fine_tuning_forks_before_it_joins_for_all_repeats_and_all_that_is_measured",
    ),
    Row(
        "each repeat has loader processes of its own", "mpp/mains/finetune.py",
        "return self._training.batches(", "return LoaderProcesses([self.placed[repeat.number]], run.workers, False, local_world).batches(",
        FIRST + "fine_tuning_forks_before_it_joins_for_all_repeats_and_all_that_is_measured",
    ),
    Row(
        "pretraining's loader processes begin with the first step", "mpp/data/loader.py",
        "handed_over(loader, phase, begun(loader))", "handed_over(loader, phase)",
        FIRST + "pretraining_forks_before_it_joins",
    ),
    Row(
        "a finished fine-tuning begins loader processes", "mpp/mains/finetune.py", "if not is_finished(repeat, peers)]", "if True]",
        FIRST + "so_does_one_that_goes_on_and_its_repeats_have_the_bits_of_one_process",
    ),
    Row(
        "every repeat is trained on the labels of the first", "mpp/mains/finetune.py",
        "replace(repeat.sets.training, pixels=pixels) for repeat in repeats}", "replace(repeats[0].sets.training, pixels=pixels) for repeat in repeats}",
        "tests/pipeline/test_finetune_repeats.py::test_a_repeat_is_bit_equal_to_the_same_seed_alone_on_the_same_holdout",
    ),
    Row(
        "loader processes read the first of their sets, whichever is asked for", "mpp/data/loader.py",
        "        return ((number, keys) for", "        return ((0, keys) for",
        LOADER + "the_same_processes_read_several_sets_one_after_the_other_and_nothing_before_they_are_asked",
    ),
    Row(
        "loader processes read ahead before they are asked", "mpp/data/loader.py",
        "        self._asked = _Asked()\n", "        self._asked = _Asked()\n        self._asked.sampler = EveryOnce(datasets[0].ids, 1, 0, 1)\n",
        LOADER + "the_same_processes_read_several_sets_one_after_the_other_and_nothing_before_they_are_asked",
    ),
    # Who they are, and what they ask of the disk.
    Row(
        "who differs is not looked at", "mpp/processes/peers.py", "if fact != theirs[0]]", "if fact is None]",
        PEERS + "processes_that_are_not_alike_stop_and_say_who_differs_in_what",
    ),
    Row(
        "one that has left is waited for", "mpp/processes/peers.py", 'if store.check(["left"]):', "if False:",
        PEERS + "who_waits_for_one_that_has_left_is_told_and_waits_no_longer",
    ),
    Row(
        "what stops one stops nobody else", "mpp/processes/peers.py", "    if failed := next(filter(None, failures), None):", "    if failed := failures and failures[0]:",
        PEERS + "what_stops_one_stops_all_with_the_same_words",
    ),
    Row(
        "the code is not compared", "mpp/processes/agreement.py", 'facts = {"program": program, "mpp": f"{mpp.__version__} ({code_digest()[:12]})",', 'facts = {"program": program,',
        CHECKPOINTS + "processes_with_other_settings_or_another_mpp_are_named_before_they_train",
    ),
    Row(
        "a folder that is not shared is trained in", "mpp/train/run_folder.py", "if token != held]", "if token is None]",
        CHECKPOINTS + "a_process_that_sees_another_folder_under_the_runs_name_is_named",
    ),
    Row(
        "every rank checks the shards", "mpp/data/shards.py", "    if not same and peers.first_of_host:", "    if True:",
        COUNTED,
    ),
    Row(
        "every rank reads the whole commit", "mpp/train/commit.py", "name))[rank::size]", "name))",
        COUNTED,
    ),
    Row(
        "an index that was cut reads as zeros", "mpp/data/shard_index.py", "        if len(data) < size:\n            raise", "        data = data.ljust(size, b'\\0')\n        if len(data) < size:\n            raise",
        SHARDS + "an_index_that_is_cut_under_a_run_is_an_error_and_no_bus_error",
    ),
    Row(
        "a stale handle stays open", "mpp/disk/patience.py", "            again()\n", "            pass\n",
        DISKS + "what_time_may_mend_is_waited_for_with_growing_waits",
    ),
    Row(
        "a missing file is waited for as a server is", "mpp/disk/patience.py", "if error.errno in PASSING else min(SHORT, disks.patience)", "if error.errno else 0.0",
        DISKS + "it_is_given_up_in_the_end_and_soon_where_time_mends_nothing",
    ),
    Row(
        "a lease does not count on", "mpp/disk/locks.py", "                count += 1\n", "",
        LOCKS + "a_lease_counts_on_for_as_long_as_it_is_held",
    ),
    Row(
        "whoever lives elsewhere is taken for dead", "mpp/disk/locks.py", "        if owner != self._last:\n", "        if self._last is None:\n",
        LOCKS + "a_lock_whose_holder_on_another_host_lives_is_not_taken_over",
    ),
    Row(
        "a lock that outlives its machine is for ever", "mpp/disk/locks.py", "                    if lockable:\n", "                    if not lockable:\n",
        LOCKS + "a_lock_that_outlives_its_dead_machine_is_taken_over_and_keeps_others_out_again",
    ),
    Row(
        "who was taken over goes on writing", "mpp/disk/locks.py", "                leave_at_once(2)\n", "                return\n",
        LOCKS + "a_holder_that_was_taken_over_while_it_was_suspended_ends_at_once",
    ),
    Row(
        "a failed save ends the run", "mpp/train/saving.py", "if shared_sum([self.world.first and left <= 0], self.world)[0]:", "if True:",
        SAVING + "a_checkpoint_that_a_disk_did_not_take_is_told_of_and_another_is_due_a_minute_later",
    ),
    Row(
        "failed saves are borne for ever", "mpp/train/saving.py", "if shared_sum([self.world.first and left <= 0], self.world)[0]:", "if False:",
        SAVING + "the_run_ends_when_no_disk_has_taken_one_for_as_long_as_was_said",
    ),
    Row(
        "the run ends before its last checkpoint exists", "mpp/train/saving.py", "                if ends or not self.config.background:\n", "                if not self.config.background:\n",
        SAVING + "a_checkpoint_exists_once_its_parts_are_there_or_the_run_ends",
    ),
    Row(
        "the checkpoint before is forgotten", "mpp/train/saving.py", "                self._finish()  # the one before, whose part others may still write\n", "",
        SAVING + "a_checkpoint_exists_once_its_parts_are_there_or_the_run_ends",
    ),
    Row(
        "no time is left for the last save", "mpp/train/saving.py", "spare = SPARE_SECONDS + SPARE_SAVES * (self._longest + (self._copies.seconds if self._copies else 0.0))", "spare = SPARE_SECONDS",
        SAVING + "a_last_commit_comes_before_a_deadline_with_time_for_three_saves",
    ),
    Row(
        "a share that is missing is committed", "mpp/train/checkpoint.py", "except Exception as error:  # whatever it is", "except (OSError, SafetensorError) as error:  # whatever it is",
        "tests/pipeline/test_resume.py::test_a_share_that_could_not_be_written_for_whatever_reason_is_not_committed",
    ),
    Row(
        "a save takes as long as its copy", "mpp/train/saving.py", "self._copied + pending.seconds + ", "self._copied + ",
        SAVING + "a_last_commit_comes_before_a_deadline_with_time_for_three_saves",
    ),
    Row(
        "moments are hashed by who wants weights", "mpp/train/commit.py", "if fault := self.fault(self.of_weights):", "if fault := self.fault():",
        "tests/train/test_commit.py::test_readers_of_weights_do_not_read_moments",
    ),
]  # fmt: skip
