"""Bugs that the tests of streams must find."""

from tests.mutations import Plant, Row

T = "tests/data/test_streams.py::test_"
WHOLE = "tests/pipeline/test_training_on_streams.py::test_two_ranks_train_on_unequal_tars_go_on_after_a_stop_and_write_no_secret"
FILE, TAR = "mpp/data/streams.py", "mpp/data/whole_tar.py"
TOGETHER = T + "readers_together_see_every_sample_once_in_a_pass_also_where_there_are_fewer_tars_than_readers"
ONE = T + "one_reader_sees_every_sample_of_every_tar_once_a_pass_each_time_in_another_order"
RESUME = T + "a_resume_begins_passes_of_another_order_and_crops_of_another_draw"
CUT = T + "a_tar_that_is_cut_anywhere_is_named_wherever_the_cut_lies"
HELD = T + "the_first_readable_images_are_held_out_and_their_tars_are_not_trained_on"
SECRET = T + "credentials_in_a_word_are_in_no_file_and_no_line"

ORPHAN = T + "a_loader_process_that_waits_for_a_command_ends_with_its_rank_and_so_does_the_command"

ROWS: list[Plant | Row] = [
    Row(
        "what is no address leaves a traceback",
        FILE,
        '        except ValueError:\n            raise ConfigError(\n                f"data.shards: {tar.name} is no address',
        '        except ZeroDivisionError:\n            raise ConfigError(\n                f"data.shards: {tar.name} is no address',
        T + "an_address_that_is_none_is_one_line_and_one_by_ipv6_is_taken_in_full",
    ),
    Row(
        "an image of any size is read into memory",
        FILE,
        "if member.size > MAX_FILE_BYTES and",
        "if member.size < 0 and",
        T + "an_image_that_would_fill_the_memory_is_refused_by_its_header_and_other_files_are_passed_over",
    ),
    Row(
        "what a stream is counts as a fault of its colours",
        "mpp/checks/images.py",
        "flat = [] if sets.stream else sets.remarks",
        "flat = sets.remarks",
        "tests/pipeline/test_doctor.py::test_a_stream_is_examined_and_what_is_weaker_is_said",
    ),
    Row("a loader process outlives its rank", FILE, "while os.getppid() == parent:", "while parent:", ORPHAN),
    Row("the command of a loader process outlives it", FILE, "        if self._reading:\n            self._reading.kill()\n", "", ORPHAN),
    # Who reads which sample when.
    Row("all ranks read the same tars of a stream", FILE, "self.rank, self.ranks)\n            own", "0, 1)\n            own", TOGETHER),
    Row("loader processes of a stream read the same tars", FILE, "share(of_rank, worker, workers)", "share(of_rank, 0, 1)", TOGETHER),
    Plant("those who share a tar each read all of it", "mpp.data.streams:every", "lambda samples, nth, of: samples", TOGETHER),
    Row(
        "the tars of a stream keep their order from pass to pass",
        FILE,
        "self.first_step, number).permutation",
        "self.first_step, 0).permutation",
        ONE,
    ),
    Row("a resume passes over the tars as the start did", FILE, "SHARDS, self.first_step, number", "SHARDS, 0, number", RESUME),
    Row("a resume shuffles in its buffer as the start did", FILE, "STREAM, self.first_step, number", "STREAM, 0, number", RESUME),
    Row("what comes again after a resume is cropped as before", FILE, "self.first_step * PASSES + number", "number", RESUME),
    Row("the buffer of a stream mixes nothing", FILE, "shuffle(self.buffer,", "shuffle(1,", T + "the_buffer_mixes_what_lies_side_by_side"),
    Row(
        "a fork reads on where its parent was",
        FILE,
        "if self._reader is None or self._reader[0] != (os.getpid(), worker):",
        "if self._reader is None:",
        T + "loader_processes_deal_out_tars_and_are_those_of_the_main_process_when_there_is_one",
    ),
    Row(
        "samples of a stream are kept for ever",
        FILE,
        "        self.stream.let_go()\n",
        "",
        T + "crop_and_mask_of_a_batch_are_those_of_a_set_of_shards_for_the_same_key_and_bytes",
    ),
    Row(
        "a bad image of a stream stands in for itself",
        FILE,
        "yield self.stream.take()[1]",
        "yield sample",
        T + "a_bad_image_is_noted_by_tar_and_key_and_the_next_readable_one_stands_in",
    ),
    # Tars that are not whole.
    Plant("the end of the bytes is the end of a tar", "mpp.data.whole_tar:WholeTar.check_end", "lambda self: None", CUT),
    Row("a member of a tar may be shorter than its header says", TAR, "if len(data) < min(size, self._content):", "if size < 0:", CUT),
    Row(
        "what lies behind the end mark of a tar does not count",
        TAR,
        'if chunk.strip(b"\\0"):',
        "if len(chunk) % 2:",
        T + "a_damaged_header_and_tars_joined_by_cat_are_no_ends",
    ),
    Row(
        "a header that is none ends a tar",
        TAR,
        "if self._header != ZEROS:",
        "if not self._header:",
        T + "a_damaged_header_and_tars_joined_by_cat_are_no_ends",
    ),
    Row(
        "a command may fail once it has written something",
        TAR,
        "if status not in self._stream.ignore_status:",
        "if status < 0:",
        T + "a_command_that_fails_is_named_with_its_status_whenever_it_fails",
    ),
    Row(
        "a command that is read in part is waited for",
        TAR,
        "            command.kill()",
        "            pass",
        T + "reading_a_tar_in_part_leaves_no_command_behind",
    ),
    Row(
        "a tar without images is passed over",
        FILE,
        "if not self._images:",
        "if self._images is None:",
        T + "what_is_no_tar_of_images_is_refused",
    ),
    Row(
        "one of several images of a key is taken",
        FILE,
        "if len(fields) > 1:",
        "if len(fields) > 9:",
        T + "what_is_no_tar_of_images_is_refused",
    ),
    # The hold-out.
    Row("tars that are held out from are trained on", FILE, "Stream(words, tars[used:], seed", "Stream(words, tars, seed", HELD),
    Row("what cannot be decoded is held out", FILE, "decode(data, max_pixels).shape[:2]", "check_header(data, max_pixels)[:0:-1]", HELD),
    Row(
        "all tars are held out",
        FILE,
        "or used >= len(tars):",
        "or used > len(tars):",
        T + "a_hold_out_that_leaves_nothing_is_refused_with_numbers",
    ),
    Row(
        "a run goes on with another hold-out of its stream",
        "mpp/data/training_set.py",
        "{kept.identity if kept else ''}",
        "{bool(kept)}",
        T + "what_a_run_depends_on_is_the_names_of_the_tars_and_the_hold_out",
    ),
    # What is said, and what is not.
    Row(
        "epochs of a stream are counted all the same",
        FILE,
        "if given and is_stream(words):",
        "if given and not words:",
        T + "what_needs_a_set_of_known_size_is_refused_with_the_remedy",
    ),
    Row(
        "a stream asks for a codebook of its own",
        "mpp/interop/lent.py",
        " and not is_stream(config.data.shards):",
        ":",
        "tests/interop/test_lent.py::test_a_codebook_of_other_shards_goes_with_a_stream_to_which_none_can_be_fitted",
    ),
    Row(
        "what is wrong with a word is said with its credentials",
        "mpp/config/schema.py",
        "hidden(_one_line(error, schema))",
        "_one_line(error, schema)",
        T + "a_word_that_is_wrong_is_told_without_its_credentials",
    ),
    Row(
        "tars and folders of shards are mixed",
        FILE,
        "if any(streams) and not all(streams):",
        "if not words:",
        T + "tars_and_folders_of_shards_in_one_list_are_refused",
    ),
    Row("a config is written down with its credentials", "mpp/config/pretrain.py", "return hidden(shards) if", "return shards if", SECRET),
    Row("a tar is called by its credentials", FILE, "Tar(hidden(name), url)", "Tar(name, url)", SECRET),
    Plant("credentials in commands are shown", "mpp.remote.retries:hidden", "lambda text: shown(text)", SECRET),
    Row(
        "the command line is written down with credentials",
        "mpp/train/run_folder.py",
        "shlex.join(map(hidden, sys.argv",
        "shlex.join(map(str, sys.argv",
        WHOLE,
    ),
    Row(
        "fewer tars than readers is not said",
        FILE,
        '        if len(self.tars) >= readers:\n            return ""',
        '        if readers:\n            return ""',
        T + "the_start_says_in_one_line_what_is_weaker_and_where_tars_are_fewer_than_readers",
    ),
]
