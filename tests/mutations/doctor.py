"""Bugs in what is looked at before a run is begun, which the tests must find."""

from tests.mutations import Plant, Row

FINDING, MACHINE = "tests/checks/test_finding.py::test_", "tests/checks/test_machine.py::test_"
FOLDER, LINKS = "tests/checks/test_folder.py::test_", "tests/checks/test_links.py::test_"
IMAGES, RECIPE = "tests/checks/test_images.py::test_", "tests/checks/test_recipe.py::test_"
ORDER, DOCTOR = "tests/data/test_order.py::test_", "tests/pipeline/test_doctor.py::test_"
ROWS: list[Plant | Row] = [
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
        "a missing compiler is no matter", "mpp/checks/machine.py", "    elif not gxx:\n", "    elif False:\n",
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
        "the limit of a container is not looked at", "mpp/checks/machine.py", "return min(free, most - used)", "return free",
        MACHINE + "free_memory_is_the_containers_where_that_is_less",
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
        "moments need no room", "mpp/checks/recipe.py", "return 12 * trained + 4 * (frozen + averaged)", "return 4 * trained + 4 * (frozen + averaged)",
        RECIPE + "a_checkpoint_has_the_bytes_that_are_committed",
    ),
    Row(
        "an average needs no room", "mpp/checks/recipe.py", "4 * (frozen + averaged)", "4 * frozen",
        RECIPE + "a_checkpoint_has_the_bytes_that_are_committed",
    ),
    Row(
        "a rate that does not follow the batch is well", "mpp/checks/recipe.py", "if not 1 / APART <= batch / theirs <= APART:", "if False:",
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
        "clocks are compared with the sign turned", "mpp/checks/links.py", "(before + after) / 2 - float(store.get(told))", "float(store.get(told)) - (before + after) / 2",
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
        "the examination holds the folder", "mpp/examining.py", "lambda: folder.held(self.run_dir))", "lambda: self.run_dir.mkdir() or folder.held(self.run_dir))",
        DOCTOR + "a_run_that_would_go_well_is_told_so_and_nothing_is_left",
    ),
    Row(
        "without shards nothing else is looked at", "mpp/examining.py", "        elif self.config.fit or self.config.budget or self.config.optim.epochs:\n", "        else:\n",
        DOCTOR + "shards_that_are_not_as_the_manifest_says_fail",
    ),
    Row(
        "streams for other worlds need not divide the batch", "mpp/data/order.py", "-least) if samples % v == 0), None)", "-least) if samples >= v), None)",
        ORDER + "streams_for_several_worlds_are_the_largest_that_all_of_them_divide",
    ),
    Row(
        "nodes fit where their number does", "mpp/data/order.py", "if streams % (left * per_node) == 0]", "if streams % left == 0]",
        ORDER + "the_nodes_that_fit_are_those_whose_processes_may_share_a_batch",
    ),
    Row(
        "what is proposed fits without the nodes that are there", "mpp/data/order.py", "for n in (nodes, *wanted)]", "for n in wanted]",
        ORDER + "what_is_proposed_lets_a_run_go_on_without_the_nodes_that_are_lost",
    ),
    Row(
        "a run says nothing of nodes that it may lose", "mpp/train/run.py", "if peers.nodes > 1 and peers.size == peers.nodes * peers.local_size:", "if peers.nodes > peers.size:",
        "tests/train/test_plan_words.py::test_a_run_on_several_nodes_says_with_how_many_of_them_it_goes_on",
    ),
    Row(
        "what fails at rank 0 alone ends the examination", "mpp/examining.py", "lambda: attempt(name, work).as_dict()", "lambda: work().as_dict()",
        DOCTOR + "a_disk_that_fails_under_a_check_is_a_finding_and_the_others_follow",
    ),
]  # fmt: skip
