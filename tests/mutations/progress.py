"""Bugs of what is told of work that lasts."""

from tests.mutations import Plant, Row

FILE = "mpp/base/progress.py"
TEST = "tests/base/test_progress.py::test_"
ROWS: list[Plant | Row] = [
    Row(
        "a pipe is told of short work", FILE, "_line_due = self._began + LINE_SECONDS", "_line_due = self._began",
        TEST + "nothing_is_said_of_what_ends_within_a_minute",
    ),
    Row(
        "a pipe is told all the time", FILE, "_line_due = now + LINE_SECONDS", "_line_due = now",
        TEST + "in_a_pipe_a_plain_line_a_minute_says_what_how_much_at_what_rate_and_the_time_left",
    ),
    Row(
        "each part of the work has a minute of its own", FILE, "if not _open and self._began - _closed > SHOWN_AFTER:", "if True:",
        TEST + "the_minute_is_that_of_the_whole_work_and_the_line_names_all_it_is_inside_of",
    ),
    Row(
        "what follows at once has a minute of its own", FILE, " and self._began - _closed > SHOWN_AFTER", "",
        TEST + "parts_of_some_seconds_that_follow_each_other_are_not_silent_for_minutes",
    ),
    Row(
        "a pause counts as work", FILE, "if not _open and self._began - _closed > SHOWN_AFTER:", "if _line_due == 0.0:",
        TEST + "nothing_is_said_of_what_ends_within_a_minute",
    ),
    Row(
        "the time left is that of all", FILE, "(self.total - self.done) * seconds", "self.total * seconds",
        TEST + "in_a_pipe_a_plain_line_a_minute_says_what_how_much_at_what_rate_and_the_time_left",
    ),
    Row(
        "what takes longer than was thought has a negative time left", FILE, " and self.done <= self.total", "",
        TEST + "more_than_was_expected_is_no_negative_time",
    ),
    Row(
        "every rank speaks", FILE, 'os.environ.get("RANK", "0") == "0"', "True", TEST + "a_second_rank_is_silent",
    ),
    Row("workers speak", FILE, '"0" and multiprocessing.parent_process() is None', '"0"', TEST + "a_worker_process_is_silent"),
    Row("quiet is not heeded", FILE, "not quiet and ", "", TEST + "quiet_is_quiet"),
    Plant(
        "a pipe is taken for a terminal", "mpp.base.progress:on_terminal", "lambda: True",
        TEST + "in_a_pipe_a_plain_line_a_minute_says_what_how_much_at_what_rate_and_the_time_left",
    ),
    Row(
        "names are written as they are", FILE, 'text.printable(": ".join([*outer, self.what]))', '": ".join([*outer, self.what])',
        TEST + "names_reach_neither_pipe_nor_terminal_as_anything_but_letters",
    ),
    Row(
        "the bar stays", FILE, "        drawn = _drawn\n        _clear()\n        _open.remove(self)\n", "        drawn = _drawn\n        _open.remove(self)\n",
        TEST + "on_a_terminal_one_line_moves_and_is_gone_at_the_end",
    ),
    Row(
        "a line is drawn each time", FILE, "self._next = now + REDRAWN_AFTER", "self._next = now",
        TEST + "on_a_terminal_one_line_moves_and_is_gone_at_the_end",
    ),
    Row(
        "a terminal is told of short work", FILE, "self._next += SHOWN_AFTER", "pass",
        TEST + "what_ends_within_a_second_is_not_shown_unless_asked_for",
    ),
    Row(
        "lines are printed behind the bar", "mpp/base/text.py",
        "    with making_room():\n        print(printable(text), file", "    if True:\n        print(printable(text), file",
        TEST + "lines_and_tables_stand_whole_between_the_moves_of_a_bar",
    ),
    Row(
        "JSON is printed behind the bar", "mpp/base/text.py",
        "    with making_room():\n        print(json", "    if True:\n        print(json",
        TEST + "lines_and_tables_stand_whole_between_the_moves_of_a_bar",
    ),
    Row(
        "a shorter line leaves the end of a longer one", FILE, "{' ' * (_drawn - disp_len(line))}", "",
        TEST + "a_shorter_line_leaves_nothing_of_a_longer_one",
    ),
    Row(
        "a long name pushes the time left out", FILE, "if disp_len(bar.name) <= room else", "if True else",
        TEST + "a_line_is_never_wider_than_the_terminal",
    ),
    Row(
        "the outer work hides the inner one", FILE, "if _open[-1] is not self:", "if _open[0] is not self:",
        TEST + "the_inner_work_is_shown_and_then_the_outer_again",
    ),
    Row(
        "the outer work is not shown again", FILE, "        if drawn and _open:\n            _open[-1]._look()\n", "",
        TEST + "the_inner_work_is_shown_and_then_the_outer_again",
    ),
    Row(
        "an interrupt leaves nothing", FILE, "isinstance(error, KeyboardInterrupt)", "False",
        TEST + "an_error_takes_the_line_away_and_an_interrupt_says_where_it_fell",
    ),
    Row(
        "an interrupt is told of by all it fell through", FILE, ' and not getattr(error, "told", False)', "",
        TEST + "an_error_takes_the_line_away_and_an_interrupt_says_where_it_fell",
    ),
    Row(
        "what cannot move yet is not shown", FILE, "        if self._at_once:\n            self._look()\n        elif on_terminal():", "        if on_terminal():",
        TEST + "the_last_line_of_what_is_killed_names_what_it_was_doing",
    ),
    Row(
        "a dumb terminal is moved on", FILE, ' and os.environ.get("TERM") != "dumb"', "",
        TEST + "a_dumb_terminal_gets_plain_lines_and_a_notebook_a_line_that_moves",
    ),
    Row(
        "a lock is waited for in silence", "mpp/disk/locks.py", "            bar.update(0)\n            time.sleep(0.1)", "            time.sleep(0.1)",
        TEST + "what_is_waited_for_is_said_and_then_had",
    ),
    Row(
        "a hash leaves out the end", "mpp/disk/files.py", "while piece := file.read(HASHED):", "while len(piece := file.read(HASHED)) == HASHED:",
        TEST + "a_file_is_hashed_aloud",
    ),
    Row(
        "long phases are told the watch alone", "mpp/processes/watch.py", "with Progress(phase, total, unit, at_once=True) as bar:", "with Progress(phase, total, unit) as bar:",
        TEST + "what_the_watch_is_told_of_a_terminal_is_told_of_too",
    ),
]  # fmt: skip
