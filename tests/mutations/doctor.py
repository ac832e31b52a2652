"""Bugs in what is looked at before a run is begun, which the tests must find."""

from tests.mutations import Plant, Row

FINDING, MACHINE = "tests/checks/test_finding.py::test_", "tests/checks/test_machine.py::test_"
FOLDER, LINKS = "tests/checks/test_folder.py::test_", "tests/checks/test_links.py::test_"
IMAGES, RECIPE = "tests/checks/test_images.py::test_", "tests/checks/test_recipe.py::test_"
ORDER, DOCTOR = "tests/data/test_order.py::test_", "tests/pipeline/test_doctor.py::test_"
LABELLED, TUNING = "tests/checks/test_labelled.py::test_", "tests/pipeline/test_doctor_finetune.py::test_"
FAULT = TUNING + "each_fault_is_one_failed_check_with_its_fix"
PEERS, ALONE = "tests/processes/test_peers.py::test_", "tests/pipeline/test_alone.py::test_"
ROWS: list[Plant | Row] = [
    Row(
        "machines that are meant count although none are", "mpp/doctor.py", "    if not arguments.gpus and (", "    if arguments.gpus and (",
        "tests/pipeline/test_doctor.py::test_a_wrong_command_has_a_status_of_its_own",
    ),
    Row(
        "who gives a run to replay is not told of its dumps", "mpp/mains/replay.py", "if there else GIVE", "if not there else GIVE",
        "tests/pipeline/test_replay.py::test_what_cannot_be_replayed_is_refused_in_one_line",
    ),
    Plant(
        "a check that failed leaves status 0", "mpp.checks.finding:status", "lambda findings: 0",
        FINDING + "ranks_that_differ_are_named_and_the_worst_comes_first",
    ),
    Row(
        "of ranks that are well the first is told", "mpp/checks/finding.py", 'key=lambda each: float("inf") if each.figure is None else each.figure', "key=lambda each: each.ranks",
        FINDING + "what_is_the_same_everywhere_is_told_once_and_the_least_where_figures_differ",
    ),
    Row(
        "who differs is not named", "mpp/checks/finding.py", "    if not of_all:\n", "    if False:\n",
        FINDING + "ranks_that_differ_are_named_and_the_worst_comes_first",
    ),
    Row(
        "the fix begins at the first semicolon", "mpp/checks/finding.py", '.rpartition("; ")', '.partition("; ")',
        FINDING + "of_an_error_the_words_behind_the_last_semicolon_are_the_fix",
    ),
    Row(
        "a GPU that torch does not see is no fault", "mpp/checks/machine.py", "if DRIVER.exists() and not hidden:", "if hidden:",
        MACHINE + "a_machine_without_a_driver_trains_on_its_cores_and_one_whose_gpu_is_not_seen_fails",
    ),
    Row(
        "cores are not shared by ranks", "mpp/checks/machine.py", "share = usable / local_size", "share = float(usable)",
        MACHINE + "a_gpu_wants_two_cores_and_a_process_one",
    ),
    Row(
        "a missing compiler is no matter", "mpp/checks/machine.py", "if lacking := missing(own):", "if lacking := \"\":",
        MACHINE + "what_will_be_compiled_is_told_and_what_cannot_be_is_a_warning",
    ),
    Row(
        "shared memory of one process is enough", "mpp/data/loader.py", "in_flight = min((PREFETCHED + 1) * workers, len(sampler)) * local_world", "in_flight = min((PREFETCHED + 1) * workers, len(sampler))",
        MACHINE + "shared_memory_must_hold_the_batches_in_flight",
    ),
    Row(
        "open files of loader processes are not counted", "mpp/checks/machine.py", "TENSORS * (PREFETCHED + 1) * workers", "TENSORS * workers",
        MACHINE + "few_open_files_fail",
    ),
    Row(
        "the limit of a container is not looked at", "mpp/base/machine.py", "least = min(least, of(group, old))", "least",
        "tests/base/test_machine.py::test_a_container_has_what_its_limits_leave",
    ),
    Row(
        "one process has torch's threads whatever its container's quota", "mpp/processes/world.py", 'if "OMP_NUM_THREADS" not in os.environ:', 'if local_size > 1 and "OMP_NUM_THREADS" not in os.environ:',
        "tests/processes/test_launch.py::test_a_process_has_its_share_of_the_usable_cores_as_threads_and_no_more_than_torch_would_take",
    ),
    Row(
        "only the innermost group limits", "mpp/base/machine.py", "                if group == top:\n", "                if True:\n",
        "tests/base/test_machine.py::test_the_narrowest_of_all_limits_around_a_process_holds",
    ),
    Row(
        "remembered files are not free", "mpp/base/machine.py", "return used - remembered", "return used",
        "tests/base/test_machine.py::test_a_container_has_what_its_limits_leave",
    ),
    Row(
        "a part of a core is a whole one beyond the first", "mpp/base/machine.py", "max(1, int(min(allowed,", "max(1, math.ceil(min(allowed,",
        "tests/base/test_machine.py::test_a_container_has_what_its_limits_leave",
    ),
    Row(
        "no quota at all is taken for one", "mpp/base/machine.py", "if int(quota) > 0 else math.inf", "if int(quota) > 0 else 0",
        "tests/base/test_machine.py::test_without_limits_the_machine_is_all_there_is",
    ),
    Row(
        "the token stays", "mpp/checks/folder.py", "            token.unlink(missing_ok=True)\n", "            pass\n",
        FOLDER + "a_folder_that_all_see_is_well_and_nothing_is_left_in_it",
    ),
    Row(
        "every process looks at what rank 0 wrote where it looks itself", "mpp/checks/folder.py", "peers.gather(seen)", "peers.gather(True)",
        FOLDER + "who_does_not_see_it_is_named_and_nothing_is_left",
    ),
    Row(
        "a run that trains is not seen", "mpp/checks/folder.py", "            taken = True\n", "            taken = False\n",
        FOLDER + "a_run_that_trains_is_told_and_not_disturbed",
    ),
    Row(
        "no room for the checkpoint that is being written", "mpp/checks/folder.py", "most = checkpoint.keep + 1 + for_good", "most = checkpoint.keep + for_good",
        FOLDER + "a_disk_must_hold_one_checkpoint_more_than_are_kept",
    ),
    Row(
        "checkpoints that are kept for good need no room", "mpp/checks/folder.py", "total_samples // checkpoint.keep_every_samples if", "0 if",
        FOLDER + "a_disk_must_hold_one_checkpoint_more_than_are_kept",
    ),
    Row(
        "moments need no room", "mpp/checks/recipe.py", "return 4 * (1 + moments) * trained", "return 4 * trained",
        RECIPE + "a_checkpoint_has_the_bytes_that_are_committed",
    ),
    Row(
        "an average needs no room", "mpp/checks/recipe.py", "4 * (frozen + averaged)", "4 * frozen",
        RECIPE + "a_checkpoint_has_the_bytes_that_are_committed",
    ),
    Row(
        "a rate that does not follow the batch is well", "mpp/checks/recipe.py", "and not 1 / APART <= batch / theirs <= APART:", "and False:",
        RECIPE + "the_rate_after_scaling_is_told_beside_that_of_the_file",
    ),
    Row(
        "memory that was seen to be taken does not count", "mpp/checks/recipe.py", "if max(held, peak) > room:", "if held > room:",
        RECIPE + "memory_is_held_against_what_there_is_and_the_fix_fits",
    ),
    Row(
        "a run is as fast as the faster of loader and step", "mpp/checks/recipe.py", "each = min(views, loaded) if loaded else views", "each = max(views, loaded) if loaded else views",
        RECIPE + "a_run_is_as_long_as_its_samples_at_the_slower_of_loader_and_step",
    ),
    Row(
        "slow ranks are held against the slowest", "mpp/checks/recipe.py", "middle = sorted(views)[len(views) // 2]", "middle = min(views)",
        RECIPE + "ranks_that_others_would_wait_for_are_named",
    ),
    Row(
        "entropy in nats passes for bits", "mpp/checks/images.py", "(shares * shares.log2())", "(shares * shares.log())",
        IMAGES + "the_label_entropy_of_a_target_is_that_of_its_classes",
    ),
    Row(
        "images of one colour have something to predict", "mpp/checks/images.py", "    if not baseline.defines_skill:\n", "    if False:\n",
        IMAGES + "noise_leaves_something_to_predict_and_one_colour_nothing",
    ),
    Row(
        "damaged images are no matter", "mpp/checks/images.py", "    if bad:\n", "    if False:\n",
        IMAGES + "images_that_cannot_be_read_fail",
    ),
    Row(
        "a slow loader is well", "mpp/checks/images.py", "    if rate.rank < step:\n", "    if rate.core < 0:\n",
        IMAGES + "a_loader_that_does_not_keep_up_is_a_warning_with_the_cores_that_would",
    ),
    Row(
        "training processes need no core", "mpp/checks/images.py", "math.ceil(per_node * step / core) + per_node", "math.ceil(per_node * step / core)",
        IMAGES + "the_cores_of_a_node_that_is_not_here_are_counted",
    ),
    Row(
        "clocks are compared with the sign turned", "mpp/checks/links.py", "(before + after) / 2 - float(heard)", "float(heard) - (before + after) / 2",
        LINKS + "clocks_that_agree_are_well_and_a_host_whose_clock_is_off_is_named",
    ),
    Row(
        "the slowest host is the one whose last rank is slow", "mpp/checks/links.py", "{min(inside)[0]:.3g} (the slowest: {min(inside)[1]})", "{inside[-1][0]:.3g} (the slowest: {inside[-1][1]})",
        LINKS + "an_exchange_that_takes_longer_than_arithmetic_is_a_warning",
    ),
    Row(
        "sums that are wrong pass", "mpp/checks/links.py", "if not low == high == sum(each + 1 for each in ranks):", "if not low == high:",
        DOCTOR + "an_exchange_that_gives_wrong_sums_fails",
    ),
    Row(
        "the examination holds the folder", "mpp/mains/doctor.py", "lambda: folder.held(*dict", "lambda: self.run_dir.mkdir() or folder.held(*dict",
        DOCTOR + "a_run_that_would_go_well_is_told_so_and_nothing_is_left",
    ),
    Row(
        "without shards nothing else is looked at", "mpp/mains/doctor_pretraining.py", "        elif self.config.fit or self.config.budget or self.config.optim.epochs:\n", "        else:\n",
        DOCTOR + "shards_that_are_not_as_the_manifest_says_fail",
    ),
    Row(
        "streams for other worlds need not divide the batch", "mpp/data/batch_plan.py", "-least) if samples % v == 0), None)", "-least) if samples >= v), None)",
        ORDER + "streams_for_several_worlds_are_the_largest_that_all_of_them_divide",
    ),
    Row(
        "nodes fit where their number does", "mpp/data/batch_plan.py", "if streams % (left * per_node) == 0]", "if streams % left == 0]",
        ORDER + "the_nodes_that_fit_are_those_whose_processes_may_share_a_batch",
    ),
    Row(
        "what is proposed fits without the nodes that are there", "mpp/data/batch_plan.py", "for n in (nodes, *wanted)]", "for n in wanted]",
        ORDER + "what_is_proposed_lets_a_run_go_on_without_the_nodes_that_are_lost",
    ),
    Row(
        "a run says nothing of nodes that it may lose", "mpp/train/run.py", "if peers.nodes > 1 and peers.size == peers.nodes * peers.local_size:", "if peers.nodes > peers.size:",
        "tests/train/test_plan_words.py::test_a_run_on_several_nodes_says_with_how_many_of_them_it_goes_on",
    ),
    Row(
        "what fails at rank 0 alone ends the examination", "mpp/mains/doctor.py", "lambda: attempt(name, work).as_dict()", "lambda: work().as_dict()",
        DOCTOR + "a_disk_that_fails_under_a_check_is_a_finding_and_the_others_follow",
    ),
    Row(
        "any config is one of pretraining", "mpp/doctor.py", "if fewest == strange[PretrainConfig]:", "if tree is not None:",
        TUNING + "which_program_is_meant_is_known_by_the_keys",
    ),
    Row(
        "a probe passes for a fine-tuning", "mpp/doctor.py", "if fewest == strange[FinetuneConfig]:", "if tree is not None:",
        TUNING + "which_program_is_meant_is_known_by_the_keys",
    ),
    Row(
        "the doctor downloads what is not there", "mpp/mains/doctor_finetuning.py", "peers, download=False)", "peers, download=True)",
        FAULT,
    ),
    Row(
        "without an encoder nothing else is looked at", "mpp/mains/doctor_finetuning.py", "if loaded else UNREAD\n", "if loaded else self.report.end(peers)\n",
        TUNING + "without_an_encoder_the_images_are_looked_at_nevertheless",
    ),
    Row(
        "who reads another encoder is not noticed", "mpp/mains/doctor_finetuning.py", "if digest != digests[0]), None):", "if digest is None), None):",
        TUNING + "two_processes_look_at_themselves_and_who_has_another_encoder_is_named",
    ),
    Row(
        "the other layout of a run folder is not looked for", "mpp/mains/doctor_finetuning.py", "if not report.passes(\"start\", lambda: peers.together(layout)):", "if False:",
        FAULT,
    ),
    Row(
        "repeats that were extended apart may go on", "mpp/mains/doctor_finetuning.py", "if repeats is None or not report.passes(\"start\", lambda: refuse_unlike(repeats)):", "if repeats is None:",
        TUNING + "what_has_been_done_of_it_is_told_and_left_as_it_is",
    ),
    Row(
        "a run that has been measured is measured again", "mpp/mains/doctor_finetuning.py", "    if run.commit and run.course.finished and is_measured(repeat, run.commit.seal):\n", "    if False:\n",
        TUNING + "what_has_been_done_of_it_is_told_and_left_as_it_is",
    ),
    Row(
        "the preset is not settled", "mpp/mains/doctor_finetuning.py", "        self.config, sets, said = settled\n", "        _, sets, said = settled\n",
        TUNING + "a_preset_is_settled_as_the_run_would",
    ),
    Row(
        "SGD has two moments", "mpp/mains/doctor_finetuning.py", "else int(config.optim.momentum > 0)", "else 2",
        TUNING + "what_is_kept_and_held_follows_from_the_optimiser",
    ),
    Row(
        "an average is not held", "mpp/mains/doctor_finetuning.py", "beside = [model] if config.optim.ema else []", "beside = []",
        TUNING + "what_is_kept_and_held_follows_from_the_optimiser",
    ),
    Row(
        "moments are always two", "mpp/train/zero_costs.py", "beside, moments = FLOAT * parameters.beside, parameters.moments", "beside, moments = FLOAT * parameters.beside, 2",
        TUNING + "what_is_kept_and_held_follows_from_the_optimiser",
    ),
    Row(
        "SGD may take no more than AdamW", "mpp/checks/recipe.py", '"sgd": 0.5', '"sgd": 1e-2',
        RECIPE + "sgd_takes_rates_at_which_adamw_diverges",
    ),
    Row(
        "pairs are torn apart by what is proposed", "mpp/checks/recipe.py", "largest_batch(stage, size, room) // together * together", "largest_batch(stage, size, room)",
        RECIPE + "memory_is_held_against_what_there_is_and_the_fix_fits",
    ),
    Row(
        "repeats take no time", "mpp/checks/recipe.py", "days = repeats * total /", "days = total /",
        RECIPE + "a_run_is_as_long_as_its_samples_at_the_slower_of_loader_and_step",
    ),
    Row(
        "repeats share one disk's worth of checkpoints", "mpp/checks/folder.py", "sum(max(1, most - each) for each in there_now)", "max(1, most - sum(there_now))",
        FOLDER + "a_disk_must_hold_one_checkpoint_more_than_are_kept",
    ),
    Row(
        "only the first folder is asked whether a run trains there", "mpp/checks/folder.py", "for run_dir in run_dirs]\n    return", "for run_dir in run_dirs[:1]]\n    return",
        FOLDER + "a_run_that_trains_is_told_and_not_disturbed",
    ),
    Row(
        "classes are counted with what is held out", "mpp/checks/labelled.py", "np.bincount(sets.labels, minlength", "np.bincount(sets.source(\"train\").labels, minlength",
        LABELLED + "classes_are_counted_as_they_are_trained_on",
    ),
    Row(
        "few held-out images are well", "mpp/checks/labelled.py", "if sets.test is None and held < FEW_HELD:", "if held < 0:",
        LABELLED + "few_held_out_images_that_are_all_there_is_to_report_on_are_a_warning",
    ),
    Row(
        "held-out images are not looked at", "mpp/checks/labelled.py", "[replace(sets.holdout, leaves_none_out=False)] if sets.holdout", "[replace(sets.holdout, leaves_none_out=False)] if not sets.holdout",
        LABELLED + "damaged_images_are_found_wherever_in_train_they_are_and_test_is_not_looked_at",
    ),
    Row(
        "test images are looked at, too", "mpp/checks/labelled.py", "    source = sets.source(\"train\")\n    if bad:\n", "    source = sets.source(\"train\")\n    bad += [b for t in [sets.test] if t for b in next(iter(fixed_batches(replace(t, leaves_none_out=False), t.ids, 32)))[0][\"bad\"]]\n    if bad:\n",
        LABELLED + "damaged_images_are_found_wherever_in_train_they_are_and_test_is_not_looked_at",
    ),
    Row(
        "pixels of damaged images are guessed to be none", "mpp/checks/images.py", "sum(some) / max(1, len(some)))", "sum(some) / min(LOOKED_AT, len(ids)))",
        IMAGES + "pixels_of_images_without_an_index_are_those_of_some_of_them",
    ),
    Row(
        "nobody watches the processes of an examination", "mpp/mains/doctor.py", "            if peers.size > 1:\n                watch_over", "            if peers.size > 9:\n                watch_over",
        DOCTOR + "a_process_that_dies_while_clocks_are_compared_is_a_failed_check_that_names_it",
    ),
    Row(
        "a process that leaves ends the examination without a word", "mpp/mains/doctor.py", "        report.break_off(peers, str(error))\n", "",
        DOCTOR + "a_process_that_dies_while_clocks_are_compared_is_a_failed_check_that_names_it",
    ),
    Row(
        "the rank is not told what its watchman would say", "mpp/processes/watchman.py", "f\"{END}{line}\".encode()", "END.encode()",
        DOCTOR + "a_process_that_dies_while_clocks_are_compared_is_a_failed_check_that_names_it",
    ),
    Row(
        "a watchman speaks beside its rank", "mpp/processes/watchman.py", "if self.orders.rank_speaks and self.mine.here", "if self.orders.rank_speaks and not self.mine.here",
        DOCTOR + "a_process_that_dies_while_clocks_are_compared_is_a_failed_check_that_names_it",
    ),
    Row(
        "clocks wait for a host that has left", "mpp/processes/peers.py", "                if store.check([\"left\"]):\n", "                if False:\n",
        LINKS + "a_host_that_leaves_while_clocks_are_compared_is_named_and_nobody_waits_for_it",
    ),
    Row(
        "processes that do not meet are a mistake of the config", "mpp/base/errors.py", "do not answer.\"\"\"\n\n    status = UNMET\n", "do not answer.\"\"\"\n\n    status = 2\n",
        PEERS + "processes_that_do_not_meet_end_with_a_status_for_a_few_more_tries",
    ),
    Row(
        "any error ends with the same status", "mpp/base/errors.py", "        status = error.status\n", "        status = 2\n",
        PEERS + "processes_that_do_not_meet_end_with_a_status_for_a_few_more_tries",
    ),
    Row(
        "what a person must mend is tried again by the others", "mpp/processes/peers.py", "kind = UserError if status == UserError.status else GoneError", "kind = GoneError",
        PEERS + "who_waits_for_one_that_has_left_is_told_and_waits_no_longer",
    ),
    Row(
        "who waited for a process that was interrupted is at fault", "mpp/processes/peers.py", "kind = UserError if status == UserError.status else GoneError", "kind = UserError",
        PEERS + "who_has_ended_otherwise_lets_the_others_be_started_again",
    ),
    Row(
        "processes that never meet are tried for ever", "jobs/k8s/pretrain.yaml", "values: [75]", "values: [69, 75]",
        "tests/test_job_scripts.py::test_the_manifest_says_the_same_number_of_nodes_everywhere_and_knows_the_statuses_of_its_pods",
    ),
    Row(
        "a process alone listens for others", "mpp/processes/world.py", 'else "gloo" if launch.size > 1 else copies_alone()', 'else "gloo"',
        ALONE + "a_training_of_one_process_listens_on_no_port",
    ),
]  # fmt: skip
