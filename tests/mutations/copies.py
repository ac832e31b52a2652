"""Bugs that the tests of run folders kept in a store must find: the order of writes, what is believed, who may write, who waits for whom."""

from tests.mutations import Plant, Row

COPIER, COPIES = "tests/remote/test_copier.py::", "tests/train/test_copies.py::"
FILE, ASKED = "mpp/remote/copier.py", "mpp/train/copies.py"

ROWS = [
    Row(
        "what a stopped run leaves is not copied",
        "mpp/train/run.py",
        "                self.finish_copies()\n            raise\n",
        "                pass\n            raise\n",
        "tests/pipeline/test_copies.py::test_a_run_that_bad_numbers_have_stopped_leaves_what_tells_why_in_the_store",
    ),
    Row(
        "a trunk in a store is looked for on the disk",
        "mpp/train/branch.py",
        "path = Path(local(asked))",
        "path = Path(asked)",
        f"{COPIES}test_a_branch_begins_at_a_run_in_a_store_or_at_one_of_its_checkpoints_and_is_the_same_from_any_folder",
    ),
    Row(
        "a branch from a store is another one from each folder",
        "mpp/train/branch.py",
        "if is_url(asked) else str(Path(asked).resolve())",
        "if not asked else str(Path(asked).resolve())",
        f"{COPIES}test_a_branch_begins_at_a_run_in_a_store_or_at_one_of_its_checkpoints_and_is_the_same_from_any_folder",
    ),
    Row(
        "what is no place for a run is a fault of the program",
        ASKED,
        "    except ValidationError as error:\n",
        "    except ZeroDivisionError as error:\n",
        f"{COPIES}test_what_is_no_place_for_a_run_is_an_error_of_one_line",
    ),
    Row(
        "a lease that is let go is written again",
        FILE,
        "            if not self._has_let_go:\n",
        "            if True:\n",
        f"{COPIER}test_who_has_let_go_counts_no_more_not_even_where_a_count_was_under_way",
    ),
    Row(
        "a lease is let go while it is counted",
        FILE,
        "        with self._counting:\n            self._has_let_go = True\n",
        "        if True:\n            self._has_let_go = True\n",
        f"{COPIER}test_who_has_let_go_counts_no_more_not_even_where_a_count_was_under_way",
    ),
    Row(
        "the flight recorder is not copied",
        FILE,
        'FOLDERS = ("tensorboard", "pictures", FLIGHT,',
        'FOLDERS = ("tensorboard", "pictures",',
        f"{COPIER}test_what_the_flight_recorder_has_removed_goes_in_the_store_too",
    ),
    Row(
        "a store tells of stops that are over",
        FILE,
        "        if over:\n",
        "        if over and not over:\n",
        f"{COPIER}test_what_the_flight_recorder_has_removed_goes_in_the_store_too",
    ),
    Row(
        "what went wrong is not brought back",
        FILE,
        'parts[0] in ("checkpoints", LEASE, *ANEW)',
        'parts[0] in ("checkpoints", LEASE, *WHOLE)',
        f"{COPIER}test_an_empty_machine_gets_the_checkpoint_byte_for_byte_and_what_a_resume_needs",
    ),
    Row(
        "a checkpoint exists in the store before its parts do",
        FILE,
        """        for name in sorted(record["files"]):
            if name not in have:""",
        """        self.store.put(f"{there}/COMMIT.json", data)
        for name in sorted(record["files"]):
            if name not in have:""",
        f"{COPIER}test_what_makes_a_checkpoint_exist_is_written_last_and_what_a_resume_needs_before_it "
        f"{COPIER}test_a_kill_at_any_write_leaves_the_older_checkpoint_and_nothing_half_named",
    ),
    Row(
        "what lies beside a checkpoint comes after it exists",
        FILE,
        """        self.put_beside()
        self.check_lease()
        self.store.put(f"{there}/COMMIT.json", data)
""",
        """        self.check_lease()
        self.store.put(f"{there}/COMMIT.json", data)
        self.put_beside()
""",
        COPIER + "test_what_makes_a_checkpoint_exist_is_written_last_and_what_a_resume_needs_before_it",
    ),
    Row(
        "older checkpoints go before the newer is whole",
        FILE,
        """        self.put_beside()
        self.check_lease()
        self.store.put(f"{there}/COMMIT.json", data)
        self._moved()
        self.commits[folder] = record
        self._prune(keep)
""",
        """        self.commits[folder] = record
        self._prune(keep)
        self.put_beside()
        self.check_lease()
        self.store.put(f"{there}/COMMIT.json", data)
        self._moved()
""",
        COPIER + "test_older_checkpoints_are_deleted_by_the_rule_of_the_disk_once_the_newer_is_whole",
    ),
    Row(
        "those that are kept for good are deleted in the store",
        FILE,
        ' if number < keep or self.commits[folder].get("kept")}',
        " if number < keep}",
        COPIER + "test_older_checkpoints_are_deleted_by_the_rule_of_the_disk_once_the_newer_is_whole",
    ),
    Row(
        "a checkpoint is deleted in the order of its names",
        FILE,
        "for batch in (first, [path for path in paths if path not in first]):",
        "for batch in [paths[::-1]]:",
        COPIER + "test_older_checkpoints_are_deleted_by_the_rule_of_the_disk_once_the_newer_is_whole",
    ),
    Row(
        "parts of two courses of a run are mixed under one step",
        FILE,
        "            self._delete(folder)\n        for name in sorted",
        "            pass\n        for name in sorted",
        COPIER + "test_a_checkpoint_of_the_same_step_from_another_course_is_replaced_and_never_mixed",
    ),
    Row(
        "what is fetched is not compared with its sha256",
        FILE,
        '            if sha256_of(to / name) != facts["sha256"]:',
        "            if False:",
        COPIER + "test_a_part_that_is_not_what_was_committed_is_found_out",
    ),
    Row(
        "a fetched checkpoint exists before what lies beside it is there",
        FILE,
        "        if beside:\n            done += self._fetch_beside(bar)\n",
        '        write_atomically(to / "COMMIT.json", json.dumps(record).encode())\n        if beside:\n            done += self._fetch_beside(bar)\n',
        COPIER + "test_a_fetch_that_ends_early_has_fetched_no_checkpoint",
    ),
    Row(
        "names of objects lead where they like",
        FILE,
        "not all(map(PLAIN.fullmatch, parts))",
        "not parts",
        COPIER + "test_objects_whose_names_lead_elsewhere_are_not_fetched",
    ),
    Row(
        "names of parts lead where they like",
        FILE,
        "PLAIN.fullmatch(name) and isinstance(facts, dict)",
        "isinstance(facts, dict)",
        COPIER + "test_what_cannot_be_a_checkpoint_is_passed_over_aloud",
    ),
    Row(
        "nobody asks whose the place is before it commits",
        FILE,
        """        self.put_beside()
        self.check_lease()
""",
        "        self.put_beside()\n",
        COPIER + "test_who_was_taken_over_commits_and_deletes_nothing_any_more",
    ),
    Row(
        "a lease that counts is taken over",
        FILE,
        "or found.has_ended or",
        "or found.has_ended or found.is_elsewhere or",
        COPIER + "test_a_second_run_is_refused_while_the_first_one_lives",
    ),
    Plant(
        "a lease is believed as soon as it is written",
        "mpp.remote.copier:Copy.confirm",
        "lambda self: None",
        COPIER + "test_of_two_that_begin_in_the_same_instant_one_goes_on",
    ),
    Row(
        "whoever leaves lets go of another's lease",
        FILE,
        "            if found is not None and found.token == self.owner.token:\n                self.store.remove",
        "            if found is not None:\n                self.store.remove",
        COPIER + "test_who_was_taken_over_commits_and_deletes_nothing_any_more",
    ),
    Row(
        "a file that grows is read while it does",
        FILE,
        "            still = temporary(path)\n",
        "            still = path.with_name(path.name)\n",
        COPIER + "test_a_file_that_is_too_large_for_memory_is_copied_as_it_was_at_one_instant",
    ),
    Row(
        "a store that hangs is waited for without end",
        FILE,
        "            if self._busy and time.monotonic() - self._last > retries.PATIENCE.stall_seconds:",
        "            if False:",
        COPIER + "test_a_process_whose_store_hangs_says_so_and_is_ended",
    ),
    Row(
        "a copy that failed is forgotten until the next commit",
        ASKED,
        "while not (self._in_hand or self._waiting",
        "while not (self._waiting",
        f"{COPIES}test_a_store_that_stays_away_ends_the_run_after_as_long_as_was_said "
        f"{COPIES}test_a_process_that_dies_is_started_again_and_sends_only_what_is_missing",
    ),
    Row(
        "those that are kept for good are passed over when a newer one waits",
        ASKED,
        'self._waiting = [*(each for each in self._waiting if each.record.get("kept")), commit]',
        "self._waiting = [commit]",
        COPIES + "test_the_one_in_hand_stays_on_the_disk_and_the_newest_comes_next_with_those_that_are_kept",
    ),
    Row(
        "the checkpoint in hand may be deleted from the disk",
        ASKED,
        "for each in [self._in_hand, *self._waiting] if each}",
        "for each in self._waiting}",
        COPIES + "test_the_one_in_hand_stays_on_the_disk_and_the_newest_comes_next_with_those_that_are_kept",
    ),
    Row(
        "a run deletes from the disk what is being copied",
        "mpp/train/commit.py",
        " and folder < max(kept) and folder not in spared:",
        " and folder < max(kept):",
        COPIES + "test_the_one_in_hand_stays_on_the_disk_and_the_newest_comes_next_with_those_that_are_kept",
    ),
    Row(
        "the disk's commit is gone on from, however old",
        ASKED,
        "isinstance(resume, int) or here.step >= copied.step)",
        "True)",
        COPIES + "test_the_newest_commit_of_disk_and_store_is_gone_on_from",
    ),
    Row(
        "what a run has left behind in the store is gone on from again",
        ASKED,
        "for newer in [each for each in self.there if each > step]:",
        "for newer in []:",
        COPIES + "test_a_step_that_is_asked_for_comes_from_the_store_where_the_disk_has_none",
    ),
    Plant(
        "copies of another run are written over",
        "mpp.train.copies:Copies.refuse_other_run",
        "lambda self, commit: None",
        COPIES + "test_another_runs_copies_are_refused_whichever_is_newer",
    ),
    Row(
        "the run goes on without copies for ever",
        ASKED,
        "        if left <= 0 or taken_over:",
        "        if taken_over:",
        COPIES + "test_a_store_that_stays_away_ends_the_run_after_as_long_as_was_said",
    ),
    Row(
        "a run ends without its last files",
        ASKED,
        "            self._ending = self._beside = True",
        "            self._ending = True",
        COPIES + "test_all_is_there_when_the_run_has_ended_and_the_place_is_let_go",
    ),
    Row(
        "a key in a URL is taken",
        "mpp/config/pretrain.py",
        '        if re.search(r"[@?]", url):',
        "        if False:",
        COPIES + "test_a_place_that_cannot_be_one_is_refused_and_no_key_is_shown",
    ),
    Row(
        "a run ends before its copies are there",
        "mpp/train/run.py",
        "        if self._copy_to:\n            finish =",
        "        if False:\n            finish =",
        "tests/pipeline/test_copies.py::test_a_run_killed_in_the_middle_of_a_copy_goes_on_on_an_empty_machine_as_if_nothing_had_happened",
    ),
    Row(
        "a process that copies waits for the end of a pipe that loader processes hold",
        FILE,
        '            if request["do"] == "leave":',
        '            if request["do"] == "never":',
        COPIES + "test_a_place_is_let_go_although_a_fork_holds_the_pipe",
    ),
    Row(
        "a reader takes what is damaged in the store",
        ASKED,
        "not (fault := _fetch(helper, commit, beside=False)):",
        "not (fault := _fetch(helper, commit, beside=False) and None):",
        COPIES + "test_a_reader_gets_the_newest_whole_commit_once_and_into_the_cache",
    ),
    Row(
        "a reader fetches a run anew each time",
        ASKED,
        "if _is_there(commit) or not (fault",
        "if not (fault",
        COPIES + "test_a_reader_gets_the_newest_whole_commit_once_and_into_the_cache",
    ),
    Row(
        "no time is left for the last copy",
        "mpp/train/saving.py",
        " + (self._copies.seconds if self._copies else 0.0))",
        ")",
        "tests/train/test_saving.py::test_the_last_commit_leaves_time_for_its_copy_and_comes_at_once_where_no_store_takes_any",
    ),
    Row(
        "a run whose store stays away trains on",
        "mpp/train/saving.py",
        "        if self._copies and self._copies.given_up:",
        "        if False:",
        "tests/train/test_saving.py::test_the_last_commit_leaves_time_for_its_copy_and_comes_at_once_where_no_store_takes_any",
    ),
    Row(
        "what is being copied is deleted from the disk",
        "mpp/train/saving.py",
        "self._copies.in_hand if self._copies else ()",
        "()",
        "tests/train/test_saving.py::test_what_is_being_copied_is_told_before_anything_is_deleted",
    ),
]
