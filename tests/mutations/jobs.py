"""Bugs that the tests of starting, staying alive and ending must find."""

from tests.mutations import Plant, Row

WATCHMAN, WORLD, PROGRAMS, DISKS = "tests/test_watchman.py", "tests/test_place.py", "tests/test_programs.py", "tests/pipeline/test_disks.py"

ROWS = [
    Row(
        "a stopped rank is let be", "mpp/watchman.py", "if each.stopped >= patience:", "if each.stopped >= slow:",
        f"{WATCHMAN}::test_a_rank_that_others_wait_for_is_named_with_its_host_process_and_step",
    ),
    Row(
        "a rank that loads for long is taken for late", "mpp/watchman.py", "min(self.still, self.idle) if self.slow and not self.waits else self.still",
        "self.still", f"{WATCHMAN}::test_a_rank_that_is_slow_is_let_be",
    ),
    Row(
        "a rank is late though nobody has waited for it", "mpp/watchman.py", "if min(each.stuck, waited) >= each.allowed(patience, slow)]",
        "if each.stuck >= each.allowed(patience, slow)]", f"{WATCHMAN}::test_a_rank_is_not_late_before_another_has_waited_as_long",
    ),
    Row(
        "the one who waits is named", "mpp/watchman.py", "if each.stack is not None and not each.in_a_collective]",
        "if each.stack is not None and each.in_a_collective]", f"{WATCHMAN}::test_where_all_came_equally_far_their_stacks_tell_who_waits",
    ),
    Row(
        "a slow disk ends the job as a hung rank does", "mpp/watchman.py", "if here and all(each.stuck >= slow for each in here):",
        "if here and all(each.stuck >= patience for each in here):",
        f"{WATCHMAN}::test_where_all_wait_for_a_slow_disk_together_nobody_is_late_before_the_longer_time",
    ),
    Row(
        "a job outlives a rank that failed alone", "mpp/watchman.py", "if each.status not in (RUNNING, 0) and", "if each.status not in (RUNNING, 0, 2) and",
        f"{WATCHMAN}::test_a_rank_that_died_is_named_at_once_and_one_that_left_with_an_error_speaks_for_itself",
    ),
    Row(
        "a pod without LOCAL_RANK is refused", "mpp/place.py", "elif local_size in (None, 1):", "elif local_size == 1:",
        f"{WORLD}::test_a_place_is_what_the_launcher_says_or_the_only_one_that_can_be",
    ),
    Row(
        "a rank beyond the world is taken", "mpp/place.py", "if rank >= size:", "if rank > size:",
        f"{WORLD}::test_what_is_missing_or_cannot_be_is_one_line",
    ),
    Row(
        "a batch script takes itself for one of its job's tasks", "mpp/place.py", 'if not said.get("SLURM_STEP_ID", "").isdigit() or said', "if said",
        f"{WORLD}::test_a_place_is_what_the_launcher_says_or_the_only_one_that_can_be",
    ),
    Row(
        "help waits for torch", "mpp/results.py", "from mpp.errors import Parser, interruptible, run_program", "import torch\nfrom mpp.errors import Parser, interruptible, run_program",
        f"{PROGRAMS}::test_help_and_config_are_shown_without_importing_what_is_slow",
    ),
    Plant(
        'an interrupt while importing is a traceback', 'mpp.interrupts:end_at_once', 'lambda number, frame: (_ for _ in ()).throw(KeyboardInterrupt)',
        f"{PROGRAMS}::test_an_interrupt_while_importing_is_quiet",
    ),
    Row(
        "a full disk is a traceback", "mpp/errors.py", '    "ENOSPC": "make room there",\n', "", f"{DISKS}::test_every_fault_of_a_disk_has_a_line_with_a_remedy",
    ),
    Row(
        "a full disk has no name", "mpp/files.py", "            error.filename = str(path)\n", "            pass\n",
        f"{DISKS}::test_a_full_disk_is_named_with_the_file_that_did_not_fit",
    ),
    Row(
        "what safetensors could not write has no name", "mpp/files.py", ", str(path)) from error", ") from error",
        "tests/test_files.py::test_what_fails_while_a_file_is_written_names_the_file",
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
]  # fmt: skip
