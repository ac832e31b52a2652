"""Bugs in tiles of scans and in windows of grey levels, which the tests must find."""

from tests.mutations import Plant, Row

ROWS: list[Plant | Row] = [
    Row(
        'tiles leave the rim out', 'mpp/prep/tiles.py', 'self.tile - self.overlap), length - self.tile]',
        'self.tile - self.overlap)] or [0]', 'tests/prep/test_tiles.py::test_tiles_are_full_cover_every_pixel_and_overlap_as_asked_but_for_the_last',
    ),
    Row(
        'the overlap is added to the stride', 'mpp/prep/tiles.py', 'range(0, length - self.tile, self.tile - self.overlap)',
        'range(0, length - self.tile, self.tile)', 'tests/prep/test_tiles.py::test_tiles_are_full_cover_every_pixel_and_overlap_as_asked_but_for_the_last',
    ),
    Row(
        'rows and columns of a tile change places', 'mpp/prep/tiles.py', 'drawn.crop((tile.x, tile.y, tile.x + cutting.tile, tile.y + cutting.tile))',
        'drawn.crop((tile.y, tile.x, tile.y + cutting.tile, tile.x + cutting.tile))',
        'tests/prep/test_tiles.py::test_every_tile_of_every_scan_is_stored_once_with_its_pixels_its_label_and_its_place',
    ),
    Row(
        "every tile bears its scan's colour profile", 'mpp/prep/tiles.py', '        image.info = clear',
        '        image.info = dict(drawn.info)', 'tests/prep/test_tiles.py::test_a_tile_of_a_lossless_image_is_the_slice_of_its_pixels',
    ),
    Row(
        'tiles of a JPEG lose twice', 'mpp/prep/tiles.py', 'options.encode == "keep" and not options.resize',
        'options.encode == "keep"',
        'tests/prep/test_tiles.py::test_tiles_of_a_jpeg_are_jpegs_or_without_loss_where_that_is_asked_for_or_something_else_follows',
    ),
    Row(
        'tiles of one scan are trained on and held out', 'mpp/prep/plan.py', 'else Grouping("", field=SCAN)',
        'else None', 'tests/prep/test_tiles.py::test_a_scan_lies_in_one_split_and_its_tiles_are_shuffled_among_those_of_others',
    ),
    Row(
        'tiles of scans that changed are taken over', 'mpp/prep/tiles.py', 'json.dumps([wanted, scans.stamp, scans.levels])',
        'json.dumps([wanted, scans.levels])', 'tests/prep/test_tiles.py::test_scans_that_changed_since_they_were_cut_are_cut_again',
    ),
    Row(
        'all is cut again after a kill', 'mpp/prep/tiles.py', 'if not (work.folder / job.name).exists()]',
        'if True]', 'tests/prep/test_tiles.py::test_interrupted_anywhere_the_same_command_ends_with_the_same_bytes_and_cuts_nothing_twice',
    ),
    Row(
        'hours of cutting are thrown away', 'mpp/prep/plan.py', '            hours = (FETCHED, TILES)', '            hours = (FETCHED,)',
        'tests/prep/test_tiles.py::test_what_was_cut_is_kept_when_the_run_is_stopped',
    ),
    Row(
        'a rejected scan vanishes', 'mpp/prep/tiles.py', '                yield _row([-1, *told, str(error)])',
        '                pass', 'tests/prep/test_tiles.py::test_scans_that_cannot_be_cut_are_rejects_with_their_reason',
    ),
    Plant(
        'verify passes over where tiles are from', 'mpp.prep.verify_shard:ShardCheck._place_faults',
        "lambda self, stream, row, room, cutting: stream.skip(1024) or iter(())",
        'tests/prep/test_tiles.py::test_a_place_that_cannot_be_is_a_fault',
    ),
    Row(
        'a window is rounded down', 'mpp/data/levels.py', '* 255 / (high - low) + 0.5)', '* 255 / (high - low))',
        'tests/prep/test_windows.py::test_a_window_is_exact_to_the_nearest_level_and_counts_what_it_clips',
    ),
    Row(
        "a PGM's window is of spread levels", 'mpp/data/levels.py', 'elif image.format == "PPM" and image.mode == "I" and', 'elif False and',
        'tests/prep/test_windows.py::test_raw_levels_of_every_kind_of_file_go_through_the_window',
    ),
    Row(
        'a window turns white and black round', 'mpp/data/decode.py', 'pixels = 255 - pixels if white_is_zero else pixels', 'pixels = pixels',
        'tests/prep/test_windows.py::test_white_is_zero_is_turned_round_and_orientation_applied',
    ),
    Row(
        'big-endian numbers are believed', 'mpp/data/levels.py', 'tags.prefix == b"MM":', 'False:',
        'tests/prep/test_windows.py::test_what_no_window_can_be_of_is_rejected_with_the_reason',
    ),
    Row(
        'the manifest forgets the window', 'mpp/prep/making.py', '"window": list(args.window) if args.window else None}', '"window": None}',
        'tests/prep/test_windows.py::test_a_set_made_through_a_window_holds_its_levels_and_says_so',
    ),
    Row(
        'what is around a source reads labels its own way', 'mpp/prep/source.py', 'return self.source.class_names(labels)', 'return super().class_names(labels)',
        'tests/prep/test_around.py::test_where_labels_are_names_they_are_no_numbers_for_whatever_is_around',
    ),
]  # fmt: skip
