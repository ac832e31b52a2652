"""Bugs that data_prep's tests must find."""

from tests.mutations import Plant, Row

ROWS = [
    Plant(
        'a name reaches the terminal as it is', 'mpp.base.text:printable', 'str',
        "tests/base/test_text.py::test_what_a_terminal_obeys_is_written_out "
        "tests/prep/test_hostile_names.py::test_no_program_lets_a_name_through_to_the_terminal",
    ),
    Row(
        "a line feed in a name begins a line of its own",
        "mpp/base/text.py",
        "    if _PLAIN.fullmatch(said):\n",
        "    if all(letter.isprintable() or letter == '\\n' for letter in said):\n",
        "tests/base/test_text.py::test_what_a_terminal_obeys_is_written_out",
    ),
    Plant(
        'a large colour profile makes a PNG a bad sample', 'mpp.data.decode:_PNG_TEXTS', 'real[1:]',
        "tests/prep/test_pixels.py::test_a_png_is_as_good_as_its_pixels_however_large_its_texts_are",
    ),
    Plant(
        "a set's own limit of pixels is forgotten when it is opened", 'mpp.data.shard_faults:most_pixels', 'lambda source: real({})',
        "tests/prep/test_pixels.py::test_larger_images_are_taken_where_max_pixels_says_so_and_every_program_knows",
    ),
    Plant(
        'a small part of 16 bits is passed over', 'mpp.prep.prepare:say_small_range', "lambda counts: ''",
        "tests/prep/test_pixels.py::test_12_bit_data_in_16_bit_files_is_spoken_of",
    ),
    Row(
        "an upright TIFF is turned in its header", "mpp/data/decode.py", 'image.format != "TIFF" and ', "",
        "tests/data/test_decode.py::test_exif_orientation_is_applied_and_the_header_agrees",
    ),
    Plant(
        "a PPM of 4,095 levels is not deep", "mpp.data.decode:bits_a_channel", 'lambda image: 16 if "16" in str(image.tile) else 8',
        "tests/data/test_levels.py::test_a_ppm_is_deep_by_its_greatest_level",
    ),
    Row(
        "a format that Pillow decodes by other means has no depth", "mpp/data/levels.py", 'if image.format == "PPM":', 'if cast(Any, image).tile[0].args and image.format == "PPM":',
        "tests/data/test_levels.py::test_other_formats_have_8_bits",
    ),
    Row(
        "val's single images are told, too", "mpp/prep/summary.py", 'if split == "train":', "if split:",
        "tests/prep/test_holdout.py::test_val_has_of_each_class_its_share_and_train_keeps_a_single_image_which_is_told",
    ),
    Row(
        "verifying holds a job a shard", "mpp/prep/verifying.py", "return Jobs(manifest, ends), manifest.bytes", "return list(Jobs(manifest, ends)), manifest.bytes",
        "tests/prep/test_verify_shards.py::test_jobs_are_made_when_they_are_asked_for_and_only_of_shards_with_something_to_look_at",
    ),
    # Order, parts, one file's way, repeats, archives.
    Plant(
        'repeats of val are kept in train', 'mpp.prep.repeats:rank_of', 'lambda job: TRAIN - real(job)',
        'tests/prep/test_repeats.py::test_what_is_left_holds_every_image_once_and_val_keeps_what_train_shares_with_it',
    ),
    Row(
        'equal checksums are equal images', 'mpp/prep/repeats.py', 'image.size)).digest()',
        'image.size)).digest()[:0]', 'tests/prep/test_repeats.py::test_groups_are_those_of_a_plain_comparison_also_where_checksums_collide_and_in_any_bucket',
    ),
    Plant(
        'a test split loses its repeats', 'mpp.prep.repeats:rank_of', 'lambda job: max(real(job), MADE_BY_US)',
        'tests/prep/test_repeats.py::test_a_test_split_of_the_source_stays_whole_and_train_loses_what_it_shares_with_it',
    ),
    Plant(
        'a shard with repeats counts as finished', 'mpp.prep.shard_job:_hash', "lambda drop: ''",
        'tests/prep/test_repeats.py::test_a_run_stopped_among_the_shards_it_makes_anew_ends_with_the_same_bytes',
    ),
    Row(
        'of a repeated name the first counts', 'mpp/prep/shuffle.py', '*repeated, (_, line) = same',
        '(_, line), *repeated = same', 'tests/prep/test_shuffle.py::test_of_a_repeated_name_the_last_counts_and_splits_are_apart',
    ),
    Row(
        'the stamp depends on the order of listing', 'mpp/prep/shuffle.py', 'self._stamp = (self._stamp + int',
        'self._stamp = (self._stamp * 3 + int', 'tests/prep/test_shuffle.py::test_the_stamp_changes_with_any_item_and_not_with_their_order',
    ),
    Plant(
        'the whole list is held in memory', 'mpp.prep.shuffle:Buckets._spill', 'lambda self: None',
        'tests/prep/test_shuffle.py::test_memory_does_not_grow_with_the_list',
    ),
    Row(
        'the order depends on that of listing', 'mpp/prep/shuffle.py', 'lines.sort(key=lambda line: line[:KEY_BYTES])',
        'pass', 'tests/prep/test_shuffle.py::test_every_item_occurs_once_and_neither_the_order_of_listing_nor_the_buffer_matters',
    ),
    Plant(
        'the seed does not matter', 'mpp.prep.shuffle:shuffle', 'lambda source, seed, folder, tick: real(source, 0, folder, tick)',
        'tests/prep/test_shuffle.py::test_positions_are_uniform',
    ),
    Row(
        "a part makes other parts' shards", 'mpp/prep/making.py', 'jobs = jobs[part::parts]',
        'jobs = jobs[part:]', 'tests/prep/test_parts.py::test_each_part_makes_its_own_shards_and_only_those',
    ),
    Row(
        'a part is made twice at a time', 'mpp/prep/plan.py', '            hold(f"lock-{part}-of-{parts}", f"another run of part {part}/{parts} is at work here; wait for it or stop it")\n',
        '', 'tests/prep/test_parts.py::test_a_part_is_made_by_one_run_at_a_time_and_the_end_waits_for_none',
    ),
    Row(
        'parts of different files make one set', 'mpp/prep/plan.py', 'if found and found["plan"]["stamp"] != listed.stamp:',
        'if False:', 'tests/prep/test_parts.py::test_a_part_of_other_files_or_options_is_refused',
    ),
    Row(
        'what is behind an end mark is lost', 'mpp/prep/sources/archives.py', '        while (chunk := file.read(CHUNK)) and not any(chunk):',
        '        while chunk := b"":', 'tests/prep/test_endings.py::test_joined_tars_give_the_images_of_all_whatever_end_mark_lies_between',
    ),
    Row(
        'bytes behind a compressed stream are passed over', 'mpp/prep/sources/archives.py', 'waiting, first = stream.unused_data or file.read(PACKED_CHUNK), False',
        'waiting, first = b"", False', 'tests/prep/test_endings.py::test_bytes_behind_a_compressed_stream_that_are_none_are_counted',
    ),
    Plant(
        'a zip joined to another hides it', 'mpp.prep.sources.archives:refuse_more_in_zip', 'lambda path, entries: None',
        'tests/prep/test_endings.py::test_a_zip_with_more_than_its_directory_lists_is_refused',
    ),
    Row(
        'verify looks for larger images than were indexed', 'mpp/prep/verify_shard.py', ', max_pixels=most_pixels(source))', ')',
        'tests/prep/test_endings.py::test_an_image_that_was_too_large_for_an_index_is_none_that_verify_misses',
    ),
    Plant(
        'verify reads no further than the index', 'mpp.prep.verify_shard:ShardCheck._unlisted_images', 'lambda self, listed: iter(())',
        'tests/prep/test_endings.py::test_a_foreign_index_lists_images_behind_an_end_mark_and_verify_names_those_that_one_does_not',
    ),
    Row(
        'bytes behind a pickle are passed over', 'mpp/data/cifar.py', '        if behind:',
        '        if False:', 'tests/prep/test_cifar.py::test_what_is_behind_the_rows_of_a_batch_is_named',
    ),
    Row(
        'a hard link is what its target became', 'mpp/prep/sources/links.py', '                file = files.get(target)',
        '                file = None', 'tests/prep/test_links.py::test_a_hard_link_is_what_its_target_was_before_it_and_else_what_comes_next',
    ),
    Row(
        'links are followed round in a circle', 'mpp/prep/sources/links.py', '        if folder in above:',
        '        if False:', 'tests/prep/test_links.py::test_a_folder_its_tar_and_its_zip_give_the_same_images',
    ),
    Plant(
        'val is drawn without regard to classes', 'mpp.prep.plan:divide', 'lambda folder, split, val, seed, class_of, *rest: real(folder, split, val, seed, class_of and (lambda item: 0), *rest)',
        'tests/prep/test_holdout.py::test_val_has_of_each_class_its_share_and_train_keeps_a_single_image_which_is_told',
    ),
    Row(
        'a thing is in two splits', 'mpp/prep/holdout.py', '(thing in apart if grouping else',
        '(False if grouping else', 'tests/prep/test_holdout.py::test_the_images_of_one_thing_are_in_one_split',
    ),
    Row(
        'a class goes to val as a whole', 'mpp/prep/holdout.py', 'if chosen[number] < count - 1]',
        'if chosen[number] < count]', 'tests/prep/test_holdout.py::test_quotas_are_exact_and_no_class_is_off_by_an_image_or_loses_its_last',
    ),
    Row(
        'an OUT of the old draw is finished with the new one', 'mpp/prep/making.py', '"val_by_class": True if args.val and args.labels else None}',
        '"val_by_class": None}', 'tests/prep/test_holdout.py::test_an_out_begun_when_val_was_drawn_from_all_classes_together_is_refused',
    ),
    Plant(
        'what another run has made is removed', 'mpp.prep.destination:Destination.begun', 'lambda self: real(self) and False',
        'tests/prep/test_two_runs.py::test_what_another_run_finished_while_this_one_waited_stays',
    ),
    Row(
        'a removed lock counts', 'mpp/disk/locks.py', 'if os.path.samestat(os.fstat(lock.fileno()), path.stat()):',
        'if lock:', 'tests/prep/test_two_runs.py::test_a_lock_that_its_holder_removed_keeps_others_out_all_the_same',
    ),
    Plant(
        'a header is enough for a cut image', 'mpp.prep.prepare:looks_whole', 'lambda data, form: True',
        'tests/prep/test_prepare.py::test_a_file_cut_anywhere_is_refused_without_asking_for_a_decode',
    ),
    Plant(
        "a preview's end is the end of the image", 'mpp.prep.prepare:_scan_start', 'lambda data: 0',
        'tests/prep/test_prepare.py::test_a_file_cut_anywhere_is_refused_without_asking_for_a_decode',
    ),
    Plant(
        'a decompression bomb fills the disk', 'mpp.prep.sources.archives:BOMB_RATIO', '1 << 60',
        'tests/prep/test_hostile_archives.py::test_a_decompression_bomb_is_refused_before_it_fills_the_disk',
    ),
    Row(
        'checksums in a zip are not compared', 'mpp/prep/sources/archives.py', 'if zlib.crc32(data) != crc or len(data) != item.size:',
        'if len(data) != item.size:', 'tests/prep/test_hostile_archives.py::test_a_changed_byte_is_survived_and_in_a_zip_never_changes_an_image',
    ),
    Plant(
        'damage in a zip is a traceback', 'mpp.prep.sources.archives:DAMAGED_ZIP', '(zipfile.BadZipFile,)',
        'tests/prep/test_hostile_archives.py::test_no_byte_of_a_zips_directory_can_stop_the_program',
    ),
    Row(
        'names may lead out of the archive', 'mpp/data/class_folders.py', 'if ".." in folders or last == "..":',
        'if False:', 'tests/prep/test_hostile_archives.py::test_nothing_that_an_archive_names_is_written_or_followed',
    ),
    Row(
        'an image may change after it was listed', 'mpp/prep/sources/folder.py', 'if (status.st_size, status.st_mtime_ns) != (item.size, item.place[0]):',
        'if False:', 'tests/prep/test_disks.py::test_an_image_that_changed_since_it_was_listed_stops_the_run',
    ),
    Plant(
        'sizes that lie are believed', 'mpp.prep.source:check_size', 'lambda item, most=0: None if item.size > MAX_FILE_BYTES else real(item)',
        'tests/prep/test_hostile_archives.py::test_a_size_beyond_any_photograph_is_rejected_before_it_is_read',
    ),
    # Lists, CIFAR, ImageNet, parquet, WebDataset tars, and indexes of tars from elsewhere.
    Plant(
        'a checksum is not compared', 'mpp.prep.sources.checksum:verify_once', 'lambda *words: None',
        'tests/prep/test_open_source.py::test_a_checksum_is_compared_once_before_anything_is_unpacked_or_listed',
    ),
    Row(
        'a noted checksum outlives its file', 'mpp/prep/sources/checksum.py', 'if note.exists() and note.read_bytes() == state:',
        'if note.exists():', 'tests/prep/test_open_source.py::test_a_checksum_is_compared_once_before_anything_is_unpacked_or_listed',
    ),
    Plant(
        'CIFAR is unpickled before its checksum', 'mpp.prep.sources.cifar:verify_once', 'lambda *words: None',
        'tests/prep/test_cifar.py::test_another_archive_than_the_official_one_is_not_even_unpacked',
    ),
    Plant(
        'pickles may name anything', 'mpp.data.cifar:ArrayUnpickler.find_class', 'pickle.Unpickler.find_class',
        'tests/prep/test_cifar.py::test_a_hostile_pickle_is_refused_by_name_and_never_run tests/data/test_labelled.py::test_a_cifar_pickle_is_never_run_even_if_its_checksum_were_right',
    ),
    Plant(
        'pickles may choose a codec', 'mpp.data.cifar:ArrayUnpickler.ALLOWED', "real | {('_codecs', 'encode'): __import__('_codecs').encode}",
        'tests/prep/test_cifar.py::test_a_hostile_pickle_is_refused_by_name_and_never_run',
    ),
    Row(
        "the planes of CIFAR's pixels are mixed up", 'mpp/data/cifar.py', '.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)',
        '.reshape(-1, 32, 32, 3)', 'tests/prep/test_cifar.py::test_every_pixel_label_and_split_is_as_the_archive_holds_it',
    ),
    Row(
        'CIFAR-100 takes coarse labels', 'mpp/data/cifar.py', 'table[:, header_bytes - 1]',
        'table[:, 0]', 'tests/prep/test_cifar.py::test_every_pixel_label_and_split_is_as_the_archive_holds_it',
    ),
    Plant(
        "CIFAR's classes are in alphabetical order", 'mpp.prep.sources.cifar:Cifar.class_names', 'lambda self, labels: sorted(labels)',
        'tests/prep/test_cifar.py::test_shards_hold_what_torchvision_reads',
    ),
    Row(
        "ImageNet's classes are in the order of the devkit", 'mpp/prep/sources/imagenet.py', 'return sorted(leaves.values()), ',
        'return list(leaves.values()), ', 'tests/prep/test_imagenet.py::test_classes_and_their_numbers_are_torchvisions',
    ),
    Row(
        "ImageNet's inner nodes are classes", 'mpp/prep/sources/imagenet.py', ' for row in synsets if not row["num_children"]}',
        ' for row in synsets}', 'tests/prep/test_imagenet.py::test_a_development_kit_is_understood_as_torchvision_does',
    ),
    Plant(
        'labels of val are one off', 'mpp.prep.sources.imagenet:read_devkit', 'lambda path: (lambda names, truth: (names, truth[1:] + truth[:1]))(*real(path))',
        'tests/prep/test_imagenet.py::test_classes_and_their_numbers_are_torchvisions',
    ),
    Row(
        'offsets count from the inner tar', 'mpp/prep/sources/imagenet.py', '(info.offset_data + item.place[0],)',
        'item.place', 'tests/prep/test_imagenet.py::test_classes_and_their_numbers_are_torchvisions',
    ),
    Plant(
        'a devkit is believed', 'mpp.prep.sources.imagenet:ImageNet.unpack', 'lambda self, scratch, bar: self',
        'tests/prep/test_imagenet.py::test_the_development_kit_is_always_checked_and_the_tars_when_asked',
    ),
    Plant(
        "links in ImageNet's tar are followed", 'mpp.prep.sources.imagenet:irregular', "lambda info: ''",
        'tests/prep/test_imagenet.py::test_what_is_no_image_of_a_class_is_counted_and_never_followed',
    ),
    Row(
        'an inner tar reads on into the next one', 'mpp/prep/sources/archives.py', 'max(0, min(len(buffer), self._size - self._at))',
        'len(buffer)', 'tests/prep/test_imagenet.py::test_damage_inside_the_inner_tars_is_named',
    ),
    Row(
        'a byte-order mark is part of the first path', 'mpp/prep/sources/lists.py', '("utf-8-sig", "surrogateescape")',
        '("utf-8", "surrogateescape")', 'tests/prep/test_lists.py::test_every_kind_of_list_is_recognised_and_gives_the_same_rows',
    ),
    Row(
        'a list may change while it is listed', 'mpp/prep/sources/lists.py', '        if state_of(self.path) != self.state:',
        '        if False:', 'tests/prep/test_lists.py::test_a_list_that_changes_while_it_is_listed_is_refused',
    ),
    Row(
        'pipes of a list are read', 'mpp/prep/sources/lists.py', '            if not stat.S_ISREG(status.st_mode):',
        '            if stat.S_ISDIR(status.st_mode):', 'tests/prep/test_lists.py::test_a_path_that_leads_to_no_image_file_is_a_reject_and_not_an_error',
    ),
    Row(
        'a huge file of a list is read', 'mpp/prep/sources/lists.py', '            if not 0 < status.st_size <= self.most_bytes:',
        '            if not 0 < status.st_size:', 'tests/prep/test_lists.py::test_a_path_that_leads_to_no_image_file_is_a_reject_and_not_an_error',
    ),
    Plant(
        "a path that leads nowhere stops the run", 'mpp.prep.sources.lists:NOT_THERE', '()',
        'tests/prep/test_lists.py::test_a_path_that_leads_to_no_image_file_is_a_reject_and_not_an_error',
    ),
    Plant(
        'a list is held in memory', 'mpp.prep.sources.lists:lines', 'lambda path: iter(list(real(path)))',
        'tests/prep/test_lists.py::test_a_long_list_is_never_in_memory',
    ),
    Row(
        'one number makes all labels numbers', 'mpp/prep/source.py', 'all(map(str.isdecimal, labels))',
        'any(map(str.isdecimal, labels))', 'tests/prep/test_lists.py::test_labels_of_digits_are_class_numbers_and_others_are_names',
    ),
    # What is an image, a class, a split, a header.
    Plant(
        'val is trained on', 'mpp.prep.layouts:LaidOut._split', 'lambda self, item: item.split',
        'tests/prep/test_layouts.py::test_split_folders_become_splits_and_their_folders_the_classes',
    ),
    Row(
        'split folders are classes', 'mpp/data/class_folders.py', 'if class_level != outer and top.splits and (',
        'if False and (', 'tests/prep/test_layouts.py::test_split_folders_become_splits_and_their_folders_the_classes',
    ),
    Row(
        'splits within classes are no splits', 'mpp/data/class_folders.py', 'if class_level != inner and len(below.splits) > 1:',
        'if False:', 'tests/prep/test_layouts.py::test_the_user_may_say_which_level_is_which',
    ),
    Row(
        'a changed layout is taken for a complete set', 'mpp/prep/making.py', 'survey(laid_out(source, found["plan"]["levels"])).stamp',
        'survey(source).stamp', 'tests/prep/test_layouts.py::test_split_folders_become_splits_and_their_folders_the_classes',
    ),
    Row(
        "what a notebook leaves behind is a class", 'mpp/data/class_folders.py', 'return folder.startswith(".") or folder in SYSTEM_FOLDERS',
        'return folder in SYSTEM_FOLDERS', 'tests/data/test_class_folders.py::test_links_are_followed_once_and_what_is_left_out_is_counted',
    ),
    Plant(
        'a header of other words is an image', 'mpp.prep.sources.lists:_is_header', "lambda path, first, second: ''",
        'tests/prep/test_lists.py::test_a_header_of_unknown_words_is_no_image_and_the_advice_reads_the_list_right',
    ),
    Row(
        'a header in the middle makes a class', 'mpp/prep/sources/lists.py', '            if number:\n                raise DataError(f"{path}: line {line} repeats',
        '            if False:\n                raise DataError(f"{path}: line {line} repeats', 'tests/prep/test_lists.py::test_what_a_list_is_not_is_said_with_what_was_found',
    ),
    Row(
        'blanks round cells are part of them', 'mpp/prep/sources/lists.py', 'yield table.line_num, [cell.strip() for cell in row]',
        'yield table.line_num, row', 'tests/prep/test_lists.py::test_every_kind_of_list_is_recognised_and_gives_the_same_rows',
    ),
    Row(
        'one large label makes all smaller ones classes', 'mpp/data/class_folders.py', '    if classes <= max(SPARSE_CLASSES, SPARSE_TIMES * present):',
        '    if True:', 'tests/prep/test_layouts.py::test_classes_without_images_are_named_and_label_names_makes_none',
    ),
    Plant(
        'empty classes are not mentioned', 'mpp.prep.layouts:remarks_on_labels', 'lambda source, classes, labels: []',
        'tests/prep/test_layouts.py::test_classes_without_images_are_named_and_label_names_makes_none',
    ),
    Row(
        'short rows pass', 'mpp/prep/sources/lists.py', '        if len(cells) != table.columns and kind == "csv":',
        '        if len(cells) < table.columns and kind == "csv":', 'tests/prep/test_lists.py::test_what_is_wrong_with_a_list_is_named_with_its_line',
    ),
    Row(
        'an image may shrink while it is read', 'mpp/prep/sources/lists.py', '        if len(data) != status.st_size:',
        '        if False:', 'tests/prep/test_lists.py::test_an_image_that_changes_while_it_is_read_ends_the_run',
    ),
    Row(
        'a format need not be that of the file', 'mpp/prep/sources/__init__.py', '    if kind != archive:',
        '    if not archive:', 'tests/prep/test_open_source.py::test_a_source_is_of_the_format_that_it_is_and_of_no_other_archive',
    ),
    Row(
        'a key ends at the last dot', 'mpp/prep/sources/webdataset.py', 'stem, _, field = base.partition(".")',
        'stem, _, field = base.rpartition(".")', 'tests/prep/test_webdataset_source.py::test_keys_and_fields_are_those_of_webdataset',
    ),
    Plant(
        'of several images one is taken', 'mpp.prep.sources.webdataset:WebDataset._image', 'lambda self, tar, key, fields: next((field for field in fields.values() if field.is_image), None)',
        'tests/prep/test_webdataset_source.py::test_a_key_with_several_images_is_refused_until_one_is_chosen',
    ),
    Plant(
        'class names of our own shards are lost', 'mpp.prep.sources.webdataset:WebDataset.class_number', 'lambda self, label, numbers: numbers[label]',
        'tests/prep/test_webdataset_source.py::test_mpps_own_shards_keep_their_class_names',
    ),
    Row(
        'captions vanish in silence', 'mpp/prep/sources/webdataset.py', 'ignored["." + name.rpartition(".")[2]] += 1',
        'pass', 'tests/prep/test_webdataset_source.py::test_img2dataset_output_is_re_sharded_and_says_what_stays_behind',
    ),
    Plant(
        "img2dataset's folder is taken for parquet", 'mpp.prep.sources.parquet:is_parquet', "lambda folder: any(name.endswith('.parquet') for name in _files_below(str(folder), ''))",
        'tests/prep/test_webdataset_source.py::test_which_folders_are_taken_for_webdataset',
    ),
    Plant(
        'class names of parquet are sorted', 'mpp.prep.sources.parquet:Parquet.class_names', 'lambda self, labels: sorted(real(self, labels))',
        'tests/prep/test_parquet.py::test_a_hugging_face_folder_keeps_its_splits_bytes_labels_and_class_names',
    ),
    Row(
        'checksums in parquet are not compared', 'mpp/prep/sources/parquet.py', 'page_checksum_verification=True',
        'page_checksum_verification=False', 'tests/prep/test_parquet.py::test_damage_is_named',
    ),
    Row(
        'rows unpacked for other columns are taken over', 'mpp/prep/sources/parquet.py', 'status.st_mtime_ns, repr(self.columns), *',
        'status.st_mtime_ns, *', 'tests/prep/test_parquet.py::test_what_was_unpacked_is_kept_unless_the_file_or_the_columns_changed',
    ),
    Row(
        'rows without bytes are empty images', 'mpp/prep/sources/rows.py', '-1 if data is None else len(data),',
        "len(data or b''),", 'tests/prep/test_parquet.py::test_rows_without_bytes_are_rejected_with_their_path',
    ),
    Row(
        'two data sets are one', 'mpp/prep/sources/parquet.py', 'if found != (columns or found):',
        'if False:', 'tests/prep/test_parquet.py::test_two_data_sets_in_one_folder_and_a_full_disk_are_refused',
    ),
    Row(
        'of several columns one is taken', 'mpp/prep/sources/parquet.py', 'if len(found) != 1:',
        'if not found:', 'tests/prep/test_parquet.py::test_columns_are_found_by_type_and_the_unclear_are_asked_for',
    ),
    Row(
        'a foreign index has wrong checksums', 'mpp/prep/indexing.py', 'zlib.crc32(done.data), done.width',
        'zlib.crc32(done.data[:-1]), done.width', 'tests/prep/test_index_shards.py::test_every_sample_has_the_bytes_and_the_label_that_webdataset_gives',
    ),
    Row(
        'rejects shift the keys', 'mpp/prep/indexing.py', 'first += record.counts["images"]',
        'first += record.entry["samples"]', 'tests/prep/test_index_shards.py::test_what_cannot_stay_in_place_is_listed_and_numbered_all_the_same',
    ),
    Row(
        'a converted image is indexed as it was', 'mpp/prep/indexing.py', 'if done.data is not data:',
        'if False:', 'tests/prep/test_index_shards.py::test_what_cannot_stay_in_place_is_listed_and_numbered_all_the_same',
    ),
    Row(
        'colours come from the first tars only', 'mpp/prep/indexing.py', '2 ** max(0, math.ceil(math.log2(MEAN_STD_IMAGES / len(tars))))',
        'MEAN_STD_IMAGES', 'tests/prep/test_index_shards.py::test_the_colours_come_from_the_beginning_of_every_tar',
    ),
    Plant(
        'finished tars are read again', 'mpp.prep.indexing:read_record', 'lambda job, work: None',
        'tests/prep/test_index_shards.py::test_a_run_that_ended_between_two_tars_goes_on_and_ends_with_the_same_bytes',
    ),
    Row(
        'an index is overwritten', 'mpp/prep/indexing.py', 'if (folder / MANIFEST).exists() and not out.scratch.exists():',
        'if False:', 'tests/prep/test_index_shards.py::test_bad_input_is_one_line_that_says_what_to_do',
    ),
    Plant(
        'notes for another tar are used', 'mpp.prep.destination:Destination.state', 'lambda self, split, shard: []',
        'tests/prep/test_index_shards.py::test_notes_made_for_other_options_or_another_tar_are_not_used',
    ),
    Row(
        'a tar without its end mark is whole', 'mpp/prep/sources/archives.py', 'if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):',
        'if False:', 'tests/prep/test_index_shards.py::test_a_cut_tar_is_refused_by_its_name',
    ),
    # Servers and object stores.
    Row(
        'a range from elsewhere is taken', 'mpp/remote/web.py', 'int(sent[1]) != start or ',
        '', 'tests/prep/test_remote.py::test_a_download_survives_a_server_that_recovers',
    ),
    Row(
        'a dead server is a reject', 'mpp/remote/web.py', 'if status >= 500 or status in TRY_AGAIN:',
        'if status in TRY_AGAIN:', 'tests/prep/test_remote.py::test_a_row_of_a_dead_server_stops_the_run',
    ),
    Row(
        'a file may change between ranges', 'mpp/remote/urls.py', 'if (answer.size, answer.tag) != (expected.size, expected.tag):',
        'if False:', 'tests/prep/test_remote.py::test_a_file_that_was_another_one_for_a_while_is_named',
    ),
    Row(
        'a file may change after its last range', 'mpp/remote/urls.py', 'if found is None or (found.size, found.tag) != (expected.size, expected.tag):',
        'if found is None:', 'tests/prep/test_remote.py::test_a_file_that_changes_after_its_last_range_is_named',
    ),
    Row(
        'parts of an older file are kept', 'mpp/remote/urls.py', 'if noted != known or not part.exists()',
        'if not part.exists()', 'tests/prep/test_remote.py::test_what_was_fetched_of_a_file_that_has_changed_since_is_thrown_away',
    ),
    Row(
        'a short answer counts as a whole range', 'mpp/remote/urls.py', 'if start < done:',
        'if False:', 'tests/prep/test_remote.py::test_a_download_survives_a_server_that_recovers',
    ),
    Row(
        'a killed download begins again', 'mpp/remote/urls.py', '            write_atomically(note, json.dumps([known, done]).encode())\n',
        '', 'tests/prep/test_remote.py::test_a_killed_download_goes_on_where_it_was',
    ),
    Row(
        'a row may name a local file', 'mpp/remote/urls.py', 'if protocol not in LISTED or (',
        'if (', 'tests/prep/test_remote.py::test_a_row_may_name_no_other_protocol',
    ),
    Plant(
        'a full disk is tried again for minutes', 'mpp.remote.retries:_OF_THIS_MACHINE', '()',
        'tests/prep/test_remote.py::test_a_full_disk_is_not_taken_for_a_server_in_trouble',
    ),
    Plant(
        'an upload is believed', 'mpp.remote.s3:S3Store._compare', 'lambda self, path, local: self.info(path)',
        'tests/prep/test_remote.py::test_an_upload_that_did_not_arrive_as_it_was_is_found',
    ),
    Row(
        'an object may change after it was listed', 'mpp/remote/s3.py', '                    return None\n', '                    pass\n', 'tests/prep/test_remote.py::test_an_object_that_changed_after_it_was_listed_is_named',
    ),
    Row(
        'a listing ends with its first page', 'mpp/remote/s3.py', 'if not page.get("IsTruncated"):',
        'if True:', 'tests/prep/test_remote.py::test_a_prefix_gives_the_shards_of_its_folder',
    ),
    Plant(
        'an old listing serves a new OUT', 'mpp.prep.destination:Destination.forget', 'lambda self: None',
        'tests/prep/test_remote.py::test_a_bucket_emptied_and_begun_anew_does_not_meet_an_old_listing',
    ),
    Plant(
        'what other machines made is made again', 'mpp.prep.destination:StoreDestination.state', 'lambda self, split, shard: None',
        'tests/prep/test_remote.py::test_parts_made_on_many_machines_meet_in_the_bucket',
    ),
    Row(
        'a half-fetched source is thrown away', 'mpp/prep/plan.py', 'None if any((out.scratch / name).exists() for name in hours) else out.abandon()',
        'out.abandon()', 'tests/prep/test_remote.py::test_a_half_fetched_source_outlives_a_dead_server',
    ),
    # Verifying and inspecting.
    Row(
        'rows may overlap', 'mpp/data/shard_faults.py', '("row that overlaps", offset < lowest,',
        '("row that overlaps", offset < 0,', 'tests/data/test_shards.py::test_rows_are_checked_alike_in_stretches_of_any_length',
    ),
    Row(
        'a stretch of rows forgets the one before', 'mpp/data/shard_faults.py', 'free, last_key = int(offset[-1]) + int(size[-1]) + BLOCK, int(key[-1])',
        'free, last_key = BLOCK, -1', 'tests/data/test_shards.py::test_rows_are_checked_alike_in_stretches_of_any_length',
    ),
    Row(
        'wrong rows are not all counted', 'mpp/data/shard_faults.py', 'len(found) - LISTED if nth == LISTED else 0',
        '0', 'tests/data/test_shards.py::test_many_wrong_rows_are_all_counted_and_few_are_told',
    ),
    Row(
        'a changed manifest opens', 'mpp/data/shard_faults.py', 'if manifest.check != check_of(manifest):',
        'if False:', 'tests/data/test_shards.py::test_open_names_what_is_wrong',
    ),
    Row(
        'the layout of the manifest does not matter', 'mpp/prep/verifying.py', 'if digest != digest_of(manifest):',
        'if False:', 'tests/prep/test_verify_shards.py::test_a_manifest_that_was_laid_out_anew_opens_but_is_not_as_it_was_written',
    ),
    Row(
        'smuggled members go unseen', 'mpp/prep/verify_shard.py', 'yield self._fault("unlisted member", said, at)',
        'pass', 'tests/prep/test_verify_shards.py::test_a_member_that_the_index_does_not_list_is_a_fault_though_every_hash_fits',
    ),
    Row(
        "a tar's end mark is trusted", 'mpp/prep/verify_shard.py', 'between two samples at byte {at}", at)\n                continue',
        'between two samples at byte {at}", at)\n                stream.skip(until - stream.at)\n                continue', 'tests/prep/test_verify_shards.py::test_a_member_that_the_index_does_not_list_is_a_fault_though_every_hash_fits',
    ),
    Row(
        "a payload's CRC is not compared", 'mpp/prep/verify_shard.py', '        if found != row.crc32:',
        '        if False:', 'tests/prep/test_verify_shards.py::test_one_flipped_bit_anywhere_is_found_and_its_place_named',
    ),
    Row(
        'padding may hold anything', 'mpp/prep/verify_shard.py', 'if not self.foreign and any(padding):',
        'if False:', 'tests/prep/test_verify_shards.py::test_bytes_in_the_padding_and_odd_header_fields_are_faults_though_every_hash_fits',
    ),
    Row(
        'odd fields of a header pass', 'mpp/prep/verify_shard.py', '        if not said and not self.foreign:',
        '        if False:', 'tests/prep/test_verify_shards.py::test_bytes_in_the_padding_and_odd_header_fields_are_faults_though_every_hash_fits',
    ),
    Plant(
        'a label in the tar may differ', 'mpp.prep.verify_shard:ShardCheck._label_faults', 'lambda self, blocks, start, row: iter(())',
        'tests/prep/test_verify_shards.py::test_labels_are_compared_with_the_cls_members',
    ),
    Row(
        "a shard's sha256 is not compared", 'mpp/prep/verify_shard.py', 'if (found := stream.digest.hexdigest()) != self.entry.sha256:',
        'if not (found := stream.digest.hexdigest()):', 'tests/prep/test_verify_shards.py::test_without_an_index_the_shards_are_still_read',
    ),
    Row(
        'a size in pixels may differ', 'mpp/prep/verify_shard.py', 'if (width, height) != (row.width, row.height):',
        'if False:', 'tests/prep/test_verify_shards.py::test_a_wrong_row_is_found_though_every_hash_fits',
    ),
    Row(
        'only listed faults count', 'mpp/prep/verify_shard.py', 'self.counts.update(other.counts)',
        'self.counts.update({kind: len(faults) for kind, faults in other.first.items()})', 'tests/prep/test_verify_shards.py::test_all_faults_are_counted_and_few_of_a_kind_are_told',
    ),
    Plant(
        'mean and std are believed', 'mpp.prep.verify_claims:TOLERANCE', '1.0',
        'tests/prep/test_verify_shards.py::test_wrong_claims_about_the_images_are_found_though_the_manifest_is_sealed',
    ),
    Row(
        'the size histogram is believed', 'mpp/prep/verify_claims.py', 'if found != manifest.short_sides:',
        'if False:', 'tests/prep/test_verify_shards.py::test_wrong_claims_about_the_images_are_found_though_the_manifest_is_sealed',
    ),
    Plant(
        'faults end with status 0', 'mpp.prep.verifying:run', 'lambda args: real(args) * 0',
        'tests/prep/test_verify_shards.py::test_a_file_cut_at_any_length_is_found',
    ),
    Row(
        'a split that lost its manifest is passed over', 'mpp/prep/splits.py', '((path / MANIFEST).exists() or any(path.glob("*.tar")))',
        '(path / MANIFEST).exists()', 'tests/prep/test_verify_shards.py::test_lost_and_stray_files_are_faults',
    ),
    Plant(
        'the ends of shards are not sampled', 'mpp.prep.splits:spread', 'lambda samples, budget, seed, with_edges=False: real(samples, budget, seed)',
        'tests/prep/test_verify_shards.py::test_chosen_samples_are_spread_over_all_shards_and_repeatable',
    ),
    Row(
        'an unreadable image vanishes from the sheet', 'mpp/prep/inspecting.py', '            cells.append(Cell(caption, None, str(error)))',
        '            continue', 'tests/prep/test_inspect_shards.py::test_a_damaged_image_has_an_empty_cell_and_is_named',
    ),
    Plant(
        'long names run into the next cell', 'mpp.prep.inspect_sheet:fit', 'lambda text, face, width: text',
        'tests/prep/test_inspect_shards.py::test_captions_and_reasons_stay_in_their_cell',
    ),
    # Several labels of one image.
    Plant(
        "a list of numbers is a class", "mpp.prep.multi_label:_is_numbers", "lambda label: False",
        "tests/prep/test_multi_label.py::test_several_labels_are_refused_by_name_with_the_sample_and_the_remedy_which_works",
    ),
    Plant(
        "a list in parquet, JSON or numpy is a class of its text", "mpp.prep.multi_label:_is_list", "lambda label: False",
        "tests/prep/test_multi_label.py::test_several_labels_are_refused_by_name_with_the_sample_and_the_remedy_which_works",
    ),
    Plant(
        "whatever has a separator is several labels", "mpp.prep.multi_label:_joins", "lambda label, known: bool(_SEPARATORS.search(label))",
        "tests/prep/test_multi_label.py::test_what_is_one_classes_name",
    ),
    Plant(
        "names of several words are several labels", "mpp.prep.multi_label:_joins", "lambda label, known: real(label.replace(' ', '|'), known)",
        "tests/prep/test_multi_label.py::test_a_name_of_several_words_stays_one_class",
    ),
    Row(
        "several labels are refused of images that need none", "mpp/prep/plan.py", "if args.labels and (several :=", "if (several :=",
        "tests/prep/test_multi_label.py::test_several_labels_are_refused_by_name_with_the_sample_and_the_remedy_which_works",
    ),
    Row(
        "tars in place lose what is wrong with their labels", "mpp/prep/indexing.py", "    if several_in([label]):", "    if False:",
        "tests/prep/test_multi_label.py::test_tars_that_are_indexed_in_place_are_refused_likewise",
    ),
    Row(
        "attributes are looked for in a folder", "mpp/data/labelled.py", "    if SEVERAL.match(", "    if False and (",
        "tests/prep/test_multi_label.py::test_torchvisions_sets_of_several_labels_are_no_classification",
    ),
    # Tars and shards of a store.
    Row(
        'a tar of a store stays in scratch', 'mpp/prep/fetching.py', '            if done:\n                path.unlink(missing_ok=True)',
        '            if done:\n                pass', 'tests/prep/test_index_stores.py::test_no_more_than_a_tar_a_worker_lies_in_scratch',
    ),
    Row(
        'a tar of a store is fetched again for its bytes', 'mpp/prep/indexing.py', 'index_tar(work, job, lambda count: tick(0))',
        'index_tar(work, job, lambda count: work.out.store.read(work.out._path(job.name), 0, 1))', 'tests/prep/test_index_stores.py::test_tars_in_a_store_get_the_manifest_and_the_index_of_their_folder_and_each_is_fetched_once',
    ),
    Row(
        'the manifest is in the store before the index', 'mpp/prep/indexing.py', '    for name in (INDEX, MANIFEST):\n        work.out.publish',
        '    for name in (MANIFEST, INDEX):\n        work.out.publish', 'tests/prep/test_index_stores.py::test_tars_in_a_store_get_the_manifest_and_the_index_of_their_folder_and_each_is_fetched_once',
    ),
    Row(
        'a prefix is indexed with what lies deeper', 'mpp/prep/fetching.py', 'self.store.items(self.root, deep=False)',
        'self.store.items(self.root)', 'tests/prep/test_index_stores.py::test_tars_in_a_store_get_the_manifest_and_the_index_of_their_folder_and_each_is_fetched_once',
    ),
    Row(
        'records of a store are on this machine alone', 'mpp/prep/fetching.py', '        super().put(name, data)\n        if name.endswith(".done"):',
        '        if not name.endswith(".done"):\n            super().put(name, data)\n        else:', 'tests/prep/test_index_stores.py::test_another_machine_goes_on_from_the_records_in_the_store',
    ),
    Row(
        'a tar that changed after it was indexed stays in the manifest', 'mpp/prep/indexing.py', '        out.look()  # what changed since shows now',
        '        pass', 'tests/prep/test_index_stores.py::test_a_tar_that_changes_while_it_is_fetched_or_later_is_noticed_and_read_anew',
    ),
    Plant(
        'a tar that became shorter while it was fetched is a wrong address', 'mpp.remote.urls:_stat_or_none', 'lambda url: None',
        'tests/prep/test_index_stores.py::test_a_tar_that_changes_while_it_is_fetched_or_later_is_noticed_and_read_anew',
    ),
    Plant(
        'what came of a tar is believed', 'mpp.remote.s3:S3Store.differs', "lambda self, path, local: ''",
        'tests/prep/test_index_stores.py::test_a_tar_that_never_comes_as_the_store_says_it_is_is_named tests/prep/test_index_stores.py::test_a_store_that_misbehaves_for_a_while_changes_nothing',
    ),
    Row(
        'a store without leave to write is known at the end', 'mpp/prep/indexing.py', '            out.refuse_read_only()\n',
        '            pass\n', 'tests/prep/test_index_stores.py::test_a_store_that_may_not_be_written_to_is_known_before_a_tar_is_fetched',
    ),
    Plant(
        'tars fill the scratch disk', 'mpp.prep.fetching:refuse_small_scratch', 'lambda folder, sizes, workers: None',
        'tests/prep/test_index_stores.py::test_a_scratch_disk_too_small_for_the_tars_of_all_workers_is_refused_with_what_fits',
    ),
    Plant(
        'half a tar is fetched anew after a kill', 'mpp.prep.fetching:sweep', 'lambda folder, kept=(): real(folder)',
        'tests/prep/test_index_stores.py::test_what_was_fetched_of_a_tar_before_the_kill_is_not_fetched_again',
    ),
    Plant(
        'a full scratch disk has no name', 'mpp.prep.fetching:writing', 'lambda path: nullcontext()',
        'tests/prep/test_index_stores.py::test_a_scratch_disk_that_fills_up_is_one_line_and_no_server_in_trouble',
    ),
    Row(
        'messages name the scratch folder', 'mpp/prep/indexing.py', 'str(error).replace(str(path), work.out.where(job.name))',
        'str(error)', 'tests/prep/test_index_stores.py::test_a_cut_tar_is_named_by_its_url_and_taken_away_the_others_are_not_read_again',
    ),
    Row(
        'a run killed while it cleaned up in a store is refused', 'mpp/prep/indexing.py', 'is not None and not out.notes:',
        'is not None:', 'tests/prep/test_index_stores.py::test_a_run_killed_while_it_cleaned_up_is_complete',
    ),
    Plant(
        'a half-made split in a store is indexed', 'mpp.prep.fetching:TarsInStore.is_part_of_made', 'lambda self: False',
        'tests/prep/test_index_stores.py::test_bad_input_is_one_line_and_leaves_nothing',
    ),
    Plant(
        'verify believes the sizes of shards in a store', 'mpp.prep.verify_places:StorePlace.sizes', 'lambda self, manifest: {}',
        'tests/prep/test_verify_stores.py::test_what_is_found_in_a_store_is_what_is_found_in_a_folder',
    ),
    Plant(
        'verify passes over stray tars in a store', 'mpp.prep.verify_places:StorePlace.tars', 'lambda self: []',
        'tests/prep/test_verify_stores.py::test_what_is_found_in_a_store_is_what_is_found_in_a_folder',
    ),
    Row(
        'verify counts the bytes of a store twice', 'mpp/prep/verify_places.py', 'yield lambda count: tick(0)',
        'yield tick', 'tests/prep/test_verify_stores.py::test_what_is_found_in_a_store_is_what_is_found_in_a_folder',
    ),
    Row(
        'what verify fetched stays', 'mpp/prep/verify_places.py', '            finally:\n                remove_scratch(scratch)',
        '            finally:\n                pass', 'tests/prep/test_verify_stores.py::test_what_is_found_in_a_store_is_what_is_found_in_a_folder',
    ),
    Row(
        'verify takes the other splits of a store for no splits', 'mpp/prep/splits.py', 'if "/" not in folder and not folder.startswith(".")',
        'if (not folder or folder == "train")', 'tests/prep/test_verify_stores.py::test_all_splits_of_an_out_are_looked_at_and_more_workers_say_the_same',
    ),
    Row(
        "the contact sheet of a set is taken for a set", "mpp/prep/sources/__init__.py", 'if is_ours(path / "train"):', "if False:",
        "tests/prep/test_make_shards.py::test_a_folder_of_splits_is_no_folder_of_images_though_a_contact_sheet_lies_in_it",
    ),
    Row(
        "names of a zip are DOS's letters unless it says otherwise", "mpp/prep/sources/archives.py", 'info.filename.encode("cp437").decode()', "info.filename",
        "tests/prep/test_links.py::test_a_zip_without_the_mark_for_utf8_has_the_names_that_were_meant",
    ),
]  # fmt: skip
