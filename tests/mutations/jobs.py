"""Bugs that the tests of starting, staying alive and ending must find."""

from tests.mutations import Plant, Row

WATCHMAN, WORLD, PROGRAMS, DISKS = (
    "tests/processes/test_watchman.py",
    "tests/processes/test_launch.py",
    "tests/test_programs.py",
    "tests/pipeline/test_disks.py",
)
SCRIPTS, DOCKER = "tests/test_job_scripts.py", "tests/test_dockerfile.py"
ALIVE, RESUME, SBATCH, NODE = "tests/pipeline/test_alive.py", "tests/pipeline/test_resume.py", "jobs/slurm/run.sbatch", "jobs/k8s/node.sh"

ROWS = [
    Row(
        "a node of a job ends before its ranks have committed", "jobs/slurm/node.sh", "trap : TERM #", "#",
        f"{SCRIPTS}::test_a_node_that_slurm_ends_waits_until_its_ranks_have_committed",
    ),
    Row(
        "a controller that gives no answer has said no", SBATCH, '    scontrol "$@" "$SLURM_JOB_ID" && return\n', '    scontrol "$@" "$SLURM_JOB_ID"; return\n',
        f"{SCRIPTS}::test_a_controller_that_is_too_busy_to_answer_is_asked_again",
    ),
    Row(
        "a job of an older SLURM does not know when it ends", SBATCH, "    export SLURM_JOB_END_TIME\n", "",
        f"{SCRIPTS}::test_a_run_knows_when_its_job_ends_from_any_slurm",
    ),
    Row(
        "a job whose end is not known ends today", SBATCH, "[[ $ends == *T*:* ]]", "[[ $ends != N/A ]]",
        f"{SCRIPTS}::test_a_run_knows_when_its_job_ends_from_any_slurm",
    ),
    Row(
        "a stopped rank is let be", "mpp/processes/watchman.py", "if each.stopped >= patience:", "if each.stopped >= slow:",
        f"{WATCHMAN}::test_a_rank_that_others_wait_for_is_named_with_its_host_process_and_step",
    ),
    Row(
        "a rank that loads for long is taken for late", "mpp/processes/watchman.py", "min(self.still, self.idle) if self.slow and not self.waits else self.still",
        "self.still", f"{WATCHMAN}::test_a_rank_that_is_slow_is_let_be",
    ),
    Row(
        "a rank is late though nobody has waited for it", "mpp/processes/watchman.py", "if min(each.stuck, waited) >= each.allowed(patience, slow)]",
        "if each.stuck >= each.allowed(patience, slow)]", f"{WATCHMAN}::test_a_rank_is_not_late_before_another_has_waited_as_long",
    ),
    Row(
        "the one who waits is named", "mpp/processes/watchman.py", "if each.stack is not None and not each.in_a_collective]",
        "if each.stack is not None and each.in_a_collective]", f"{WATCHMAN}::test_where_all_came_equally_far_their_stacks_tell_who_waits",
    ),
    Row(
        "a slow disk ends the job as a hung rank does", "mpp/processes/watchman.py", "if here and all(each.stuck >= slow for each in here):",
        "if here and all(each.stuck >= patience for each in here):",
        f"{WATCHMAN}::test_where_all_wait_for_a_slow_disk_together_nobody_is_late_before_the_longer_time",
    ),
    Row(
        "a job outlives a rank that failed alone", "mpp/processes/watchman.py", "if each.status not in (RUNNING, 0) and", "if each.status not in (RUNNING, 0, 2) and",
        f"{WATCHMAN}::test_a_rank_that_died_is_named_at_once_and_one_that_left_with_an_error_speaks_for_itself",
    ),
    Row(
        "a pod without LOCAL_RANK is refused", "mpp/processes/launch.py", "elif local_size in (None, 1):", "elif local_size == 1:",
        f"{WORLD}::test_a_launch_is_what_the_launcher_says_or_the_only_one_that_can_be",
    ),
    Row(
        "a rank beyond the world is taken", "mpp/processes/launch.py", "if rank >= size:", "if rank > size:",
        f"{WORLD}::test_what_is_missing_or_cannot_be_is_one_line",
    ),
    Row(
        "a batch script takes itself for one of its job's tasks", "mpp/processes/launch.py", 'if not said.get("SLURM_STEP_ID", "").isdigit() or said', "if said",
        f"{WORLD}::test_a_launch_is_what_the_launcher_says_or_the_only_one_that_can_be",
    ),
    Row(
        "help waits for torch", "mpp/results.py", "from mpp.base.errors import Parser, interruptible, run_program", "import torch\nfrom mpp.base.errors import Parser, interruptible, run_program",
        f"{PROGRAMS}::test_help_and_config_are_shown_without_importing_what_is_slow",
    ),
    Plant(
        'an interrupt while importing is a traceback', 'mpp.base.interrupts:end_at_once', 'lambda number, frame: (_ for _ in ()).throw(KeyboardInterrupt)',
        f"{PROGRAMS}::test_an_interrupt_while_importing_is_quiet",
    ),
    Row(
        "a full disk is a traceback", "mpp/base/errors.py", '    "ENOSPC": "make room there",\n', "", f"{DISKS}::test_every_fault_of_a_disk_has_a_line_with_a_remedy",
    ),
    Row(
        "a full disk has no name", "mpp/disk/files.py", "            error.filename = str(path)\n", "            pass\n",
        f"{DISKS}::test_a_full_disk_is_named_with_the_file_that_did_not_fit",
    ),
    Row(
        "what cannot be flushed has no name", "mpp/disk/files.py", "    with writing(path):\n        handle = os.open", "    if True:\n        handle = os.open",
        "tests/disk/test_files.py::test_what_cannot_be_flushed_is_named",
    ),
    Row(
        "what safetensors could not write has no name", "mpp/disk/files.py", ", str(path)) from error", ") from error",
        "tests/disk/test_files.py::test_what_fails_while_a_file_is_written_names_the_file",
    ),
    Row(
        "curves go on into a deleted file", "mpp/monitor/board.py", "if not self.path.exists():", "if False:",
        "tests/monitor/test_board.py::test_curves_do_not_go_on_into_a_folder_that_was_taken_away",
    ),
    Row(
        'the first step is silent', 'mpp/train/run.py',
        'self.shown = self.logs or self.number == run.first_step + 1',
        'self.shown = self.logs',
        "tests/pipeline/test_first_line.py::test_the_first_step_is_shown_at_once_and_the_log_is_as_sparse_as_asked",
    ),
    Row(
        "all processes of a SLURM node share one core", SBATCH, '--kill-on-bad-exit=1 --cpus-per-task="$cores" bash', "--kill-on-bad-exit=1 bash",
        f"{SCRIPTS}::test_the_launcher_gets_all_cores_of_its_node_and_the_words_as_they_are",
    ),
    Row(
        "a batch job takes half a core for a loader", SBATCH, '"$cores" -lt $((2 * processes))', '"$cores" -lt $((processes))',
        f"{SCRIPTS}::test_a_batch_job_takes_whole_nodes_and_refuses_less_than_two_cores_a_process",
    ),
    Row(
        "a batch job shares its nodes", SBATCH, "#SBATCH --exclusive\n", "", f"{SCRIPTS}::test_a_batch_job_takes_whole_nodes_and_refuses_less_than_two_cores_a_process",
    ),
    Row(
        "words of a batch job are split", SBATCH, '"$port" "$@" &', '"$port" $@ &', f"{SCRIPTS}::test_the_launcher_gets_all_cores_of_its_node_and_the_words_as_they_are",
    ),
    Row(
        "a cancelled batch job comes back", SBATCH, '  runs || return\n', "", f"{SCRIPTS}::test_a_batch_job_that_runs_out_of_time_asks_its_ranks_and_is_queued_again_but_not_one_that_is_cancelled",
    ),
    Row(
        "a batch job that was cancelled counts as one that failed", SBATCH, ' || ! runs; then', "; then", f"{SCRIPTS}::test_a_batch_job_that_fails_is_queued_again_where_that_may_help",
    ),
    Row(
        "a finished batch job is queued again", SBATCH, '[ "$status" != 0 ] && again=1', "again=1",
        f"{SCRIPTS}::test_a_batch_job_that_runs_out_of_time_asks_its_ranks_and_is_queued_again_but_not_one_that_is_cancelled",
    ),
    Row(
        "a commit of an earlier start counts as progress", SBATCH, 'COMMIT.json -newer "$hostfile" -print', "COMMIT.json -print",
        f"{SCRIPTS}::test_a_batch_job_that_fails_is_queued_again_where_that_may_help",
    ),
    Row(
        "a batch job fails without a commit for ever", SBATCH, '-lt 3 ] && again=1', "-lt 3000 ] && again=1",
        f"{SCRIPTS}::test_a_batch_job_ends_when_it_has_failed_three_times_in_a_row_without_a_commit",
    ),
    Row(
        "failures are counted over the whole of a batch job", SBATCH, '  rm -f "$failures"\n  again=1', "  again=1",
        f"{SCRIPTS}::test_a_batch_job_ends_when_it_has_failed_three_times_in_a_row_without_a_commit",
    ),
    Row(
        "failures of an older job are counted", SBATCH, '[ -n "${SLURM_RESTART_COUNT:-}" ] || rm', "true || rm",
        f"{SCRIPTS}::test_a_batch_job_ends_when_it_has_failed_three_times_in_a_row_without_a_commit",
    ),
    Row(
        "a batch job with a wrong config is tried three times", SBATCH, 'elif [ "$status" != 2 ]; then', "else",
        f"{SCRIPTS}::test_a_batch_job_that_fails_is_queued_again_where_that_may_help",
    ),
    Row(
        "a pod fails though its commits advance", NODE, '-newer "$hostfile" -print', '-newer "$hostfile" -false -print',
        f"{SCRIPTS}::test_the_status_of_a_pod_says_whether_it_counts_as_a_failure",
    ),
    Row(
        "a pod that waits for others cannot be stopped", NODE, '[ "$asked" = 0 ] || exit "$again"', ":",
        f"{SCRIPTS}::test_a_pod_waits_for_the_name_of_the_last_and_ends_when_it_is_asked_to",
    ),
    Row(
        "a pod's restarts count as failures", "jobs/k8s/pretrain.yaml", "values: [75]", "values: [76]",
        f"{SCRIPTS}::test_the_manifest_says_the_same_number_of_nodes_everywhere_and_knows_the_statuses_of_its_pods",
    ),
    Row(
        "pods cannot find each other before they are ready", "jobs/k8s/pretrain.yaml", "publishNotReadyAddresses: true", "publishNotReadyAddresses: false",
        f"{SCRIPTS}::test_the_manifest_says_the_same_number_of_nodes_everywhere_and_knows_the_statuses_of_its_pods",
    ),
    Row(
        "the image runs as root", "jobs/Dockerfile", "USER 1000\n", "", f"{DOCKER}::test_the_base_is_pinned_and_supported_and_the_image_does_not_run_as_root",
    ),
    Row(
        "a run that was asked to stop passes for finished", "mpp/mains/pretrain.py", "return 0 if finished else AGAIN", "return 0",
        f"{RESUME}::test_a_signal_to_the_whole_group_leaves_the_loader_its_work_and_commits",
    ),
    Row(
        "a rank that is ended because of another has failed itself", "mpp/processes/watch.py", "leave_at_once(errors.AGAIN)", "leave_at_once(2)",
        f"{ALIVE}::test_a_killed_rank_is_named_with_the_signal",
    ),
    Row(
        "a watchman parses what strangers say", "mpp/processes/watchman.py", "if not hmac.compare_digest(peer.unread[: len(self.token)], self.token):", "if False:",
        f"{WATCHMAN}::test_of_a_stranger_nothing_is_parsed_and_he_is_sent_away_at_once",
    ),
    Row(
        "strangers may stay", "mpp/processes/watchman.py", "if peer.waited > SECONDS_TO_SPEAK:", "if False:",
        f"{WATCHMAN}::test_a_stranger_who_says_nothing_is_told_nothing_and_goes_after_a_while",
    ),
    Row(
        "as many strangers as like keep a watchman's files open", "mpp/processes/watchman.py", "for number in strangers[:-MOST_STRANGERS]:", "for number in []:",
        f"{WATCHMAN}::test_however_many_strangers_connect_a_watchman_gets_through_and_none_who_has_is_dropped",
    ),
    Row(
        "strangers push watchmen out", "mpp/processes/watchman.py", "for number, peer in self.peers.items() if not peer.known]", "for number, peer in self.peers.items()]",
        f"{WATCHMAN}::test_however_many_strangers_connect_a_watchman_gets_through_and_none_who_has_is_dropped",
    ),
    Row(
        "a watchman tells strangers", "mpp/processes/watchman.py", "        for peer in self.known_peers:\n            self.send(peer, {\"here\": True})",
        "        for peer in self.peers.values():\n            self.send(peer, {\"here\": True})",
        f"{WATCHMAN}::test_a_stranger_who_says_nothing_is_told_nothing_and_goes_after_a_while",
    ),
    Row(
        "a watchman listens on all networks", "mpp/processes/watch.py", "if literal or alone else []:", "if False else []:",
        f"{WATCHMAN}::test_the_listener_is_on_the_interface_that_the_address_names_where_all_ranks_mean_the_same_by_it",
    ),
    Row(
        "a watchman listens where other hosts cannot reach it", "mpp/processes/watch.py", "if literal or alone else []:", "if True else []:",
        f"{WATCHMAN}::test_the_listener_is_on_the_interface_that_the_address_names_where_all_ranks_mean_the_same_by_it",
    ),
    Row(
        "the watchmen's token is in a command line", "mpp/processes/watch.py", '"-S", watchman.__file__, json.dumps(dataclasses.asdict(orders))]', '"-S", watchman.__file__, json.dumps(dataclasses.asdict(orders)), token]',
        f"{WATCHMAN}::test_the_token_is_not_among_the_words_of_a_process",
    ),
    Row(
        "each node starts as the first", "jobs/slurm/node.sh", '--node_rank "$SLURM_NODEID"', "--node_rank 0",
        f"{SCRIPTS}::test_a_node_of_a_batch_job_launches_from_its_own_disk_where_there_is_an_image",
    ),
    Row(
        "a node goes on with the environment of the shared disk", "jobs/slurm/node.sh", 'export PATH="$venv/bin:$PATH"', "true",
        f"{SCRIPTS}::test_a_node_of_a_batch_job_launches_from_its_own_disk_where_there_is_an_image",
    ),
    Row(
        "a pod whose launcher was killed is finished", NODE, """if [ "$status" = 0 ] && pgrep""", """if false && pgrep""",
        f"{SCRIPTS}::test_the_status_of_a_pod_says_whether_it_counts_as_a_failure",
    ),
    Row(
        "rank 0's death between two calls of the store is a traceback", "mpp/processes/peers.py",
        "            with self._reaching():\n                told = _unpacked(self.store.get(name))", "            told = _unpacked(self.store.get(name))",
        "tests/processes/test_peers.py::test_rank_0s_death_between_two_calls_is_told_by_one_process_of_each_host",
    ),
    Row(
        "nobody of rank 0's host tells of its death", "mpp/processes/peers.py", "for rank, host in enumerate(self.hosts) if rank and host ==",
        "for rank, host in enumerate(self.hosts) if host ==",
        "tests/processes/test_peers.py::test_rank_0s_death_between_two_calls_is_told_by_one_process_of_each_host",
    ),
    Row(
        "a disk that fails for a moment makes a commit damaged", "mpp/train/commit.py", "found = patiently(lambda: sha256_of(path), str(path))", "found = sha256_of(path)",
        "tests/train/test_commit.py::test_a_disk_that_fails_for_a_moment_makes_no_commit_damaged_or_absent",
    ),
    Row(
        "a disk that fails for a moment hides a commit", "mpp/train/commit.py", "except (FileNotFoundError, IsADirectoryError, NotADirectoryError):", "except OSError:",
        "tests/train/test_commit.py::test_a_disk_that_fails_for_a_moment_makes_no_commit_damaged_or_absent",
    ),
    Row(
        "sample logs keep what a resumed run sees again", "mpp/train/run_folder.py", 'int(line.split("\\t")[0]) < position)', 'int(line.split("\\t")[0]) < position + 1)',
        "tests/pipeline/test_chaos.py::test_runs_killed_by_chance_end_with_every_sample_once_and_the_bits_of_an_uninterrupted_run",
    ),
    Row(
        "a watchman whose rank was killed before it looked is a traceback", "mpp/processes/watchman.py", "    except ProcessLookupError:  # it was killed", "    except ChildProcessError:  # it was killed",
        f"{WATCHMAN}::test_a_rank_that_was_killed_while_its_watchman_started_is_named_as_one_killed_later",
    ),
    Row(
        "ZeRO-3 goes on only where the number of processes divides every parameter", "mpp/train/engine.py", "yield nn.functional.pad(value.flatten(), (0, with_padding - own))", "yield value",
        f"{RESUME}::test_each_zero_stage_on_processes_that_divide_no_parameter_too_resumes_to_the_same_bits",
    ),
    Row(
        "who calls a program from Python has a rank that ends without a word", "mpp/processes/world.py", '    watch.leaves(0, "", said=True)\n', "",
        f"{ALIVE}::test_ranks_that_call_a_program_end_in_order_though_none_says_so",
    ),
    Row(
        "a full disk under a folder's lock names no file", "mpp/disk/locks.py", "        with writing(part):\n            part.write_text(json.dumps(asdict(mine)))", "        part.write_text(json.dumps(asdict(mine)))",
        f"{DISKS}::test_and_where_the_lock_of_a_folder_says_whose_it_is",
    ),
]  # fmt: skip
