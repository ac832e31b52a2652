"""Bugs that the tests of order, loader, crops and bad samples must find."""

from tests.mutations import Plant, Row

ORDER, LOADER, PROCESSES, BAD, AUGMENT, CROP, IMAGES = (
    f"tests/data/test_{name}.py::test_" for name in ("order", "loader", "loader_processes", "bad_samples", "augment", "crop", "images")
)
LOG = "tests/train/test_sample_log.py::test_"

ROWS = [
    Plant(
        "white is zero, and stays dark",
        "mpp.data.levels:_grey",
        "lambda levels, most, white_is_zero=False: real(levels, most)",
        "tests/data/test_levels.py::test_a_grey_tiff_of_every_depth_runs_from_black_to_white_or_is_refused",
    ),
    Row(
        "12 bits are taken for 16",
        "mpp/data/levels.py",
        "most, stated = 2**bits - 1, ",
        "most, stated = 2 ** (16 if bits == 12 else bits) - 1, ",
        "tests/data/test_levels.py::test_a_grey_tiff_of_every_depth_runs_from_black_to_white_or_is_refused",
    ),
    Row(
        "signed levels are let in",
        "mpp/data/levels.py",
        "    if formats != {1}:\n",
        "    if not formats <= {1, 2}:\n",
        "tests/data/test_levels.py::test_signed_and_floating_point_levels_are_refused",
    ),
    Row(
        "a transparent level is compared at the wrong depth",
        "mpp/data/levels.py",
        "(transparent & (2**bits - 1)) * 255 // (2**bits - 1)",
        "transparent & (2**bits - 1)",
        "tests/data/test_levels.py::test_a_transparent_level_of_every_depth_is_white_and_no_other_is",
    ),
    Row(
        "a transparent 16-bit colour is compared by its upper halves",
        "mpp/data/levels.py",
        " & (_lower_bytes(data) == lower)",
        "",
        "tests/data/test_levels.py::test_a_transparent_colour_is_white_and_its_nearest_neighbour_is_not",
    ),
    Row(
        "which examples a test sees depends on the modules that are loaded",
        "tests/conftest.py",
        "providers._get_local_constants = lambda: providers._local_constants",
        "",
        "tests/test_draws.py::test_examples_do_not_depend_on_which_modules_are_loaded",
    ),
    # Who sees what, and when.
    Plant(
        "a rank's streams overlap its neighbour's",
        "mpp.data.order:Order.places",
        "lambda self, step, rank, world: step * self.batch + rank + np.arange(self.batch // world, dtype=np.int64)",
        ORDER + "48_samples_in_12_streams_are_the_same_on_any_world",
    ),
    Plant(
        "ranks deal out samples in turn",
        "mpp.data.order:Order.places",
        "lambda self, step, rank, world: np.arange(step * self.batch + rank, (step + 1) * self.batch, world, dtype=np.int64)",
        ORDER + "48_samples_in_12_streams_are_the_same_on_any_world",
    ),
    Plant(
        "every epoch has the first one's order",
        "mpp.data.order:_epoch_of",
        "lambda order, epoch: real(order, 0)",
        ORDER + "epochs_seeds_and_batches_differ_in_their_order",
    ),
    Plant(
        "the same few are always left over",
        "mpp.data.order:_epoch_of",
        "lambda order, epoch: replace(real(order, epoch), offset=0)",
        ORDER + "the_few_left_over_differ_from_epoch_to_epoch",
    ),
    Plant(
        "streams share one permutation",
        "mpp.data.order:_Epoch._keys",
        "lambda self, stream, block: real(self, 0 * stream, block)",
        ORDER + "the_order_is_golden",
    ),
    Plant(
        "an epoch is a table of its samples",
        "mpp.data.order:_epoch_of",
        "lambda order, epoch: (np.arange(order.samples), real(order, epoch))[1]",
        ORDER + "ten_million_samples_in_ten_thousand_shards_need_no_set_up",
    ),
    Plant(
        "a resumed sampler skips a step",
        "mpp.data.order:OrderSampler.__iter__",
        "lambda self: itertools.islice(real(self), self.plan.accumulation, None)",
        ORDER + "a_sampler_resumed_at_a_step_yields_exactly_the_rest",
    ),
    Row(
        "micro-batches are as small as can be",
        "mpp/data/order.py",
        "next(a for a in range(1, share + 1) if",
        "max(a for a in range(1, share + 1) if",
        ORDER + "accumulation_is_the_smallest_that_fits",
    ),
    Row(
        "an epoch with views holds as many samples as one without",
        "mpp/data/order.py",
        "    samples = global_batch // views\n",
        "    samples = global_batch\n",
        ORDER + "with_views_a_batch_holds_fewer_samples_and_positions_count_views",
    ),
    Plant(
        "positions count samples where a sample has views",
        "mpp.data.order:OrderSampler.__iter__",
        "lambda self: ([(epoch, sample, position // self.plan.views) for epoch, sample, position in keys] for keys in real(self))",
        ORDER
        + "with_views_a_batch_holds_fewer_samples_and_positions_count_views "
        + LOG
        + "any_number_of_processes_and_workers_logs_the_same_samples_crops_masks_and_pixels",
    ),
    # What a sample looks like.
    Plant(
        "crops are the same in every epoch",
        "mpp.data.crop_dataset:Draws",
        "lambda seed, purpose, epoch, *rest: real(seed, purpose, 0 if purpose == CROP else epoch, *rest)",
        LOADER + "crop_flip_and_mask_belong_to_seed_epoch_and_sample_alone",
    ),
    Plant(
        "masks depend on the place in the batch",
        "mpp.data.crop_dataset:CropDataset._columns",
        "lambda self, keys, shown: real(self, [(epoch, position, position) for epoch, _, position in keys], shown)",
        LOADER + "crop_flip_and_mask_belong_to_seed_epoch_and_sample_alone",
    ),
    Plant(
        "all views of a sample are one crop",
        "mpp.data.crop_dataset:Draws",
        "lambda seed, purpose, epoch, sample, view: real(seed, purpose, epoch, sample, 0 if purpose == CROP else view)",
        IMAGES + "views_of_a_sample_stand_side_by_side_and_have_draws_of_their_own",
    ),
    Plant(
        "views that share a crop share the mask too",
        "mpp.data.crop_dataset:Draws",
        "lambda seed, purpose, epoch, sample, view: real(seed, purpose, epoch, sample, 0 if purpose == MASK else view)",
        IMAGES + "views_that_differ_in_their_mask_share_crop_and_flip",
    ),
    Plant(
        "an image is decoded for each of its views",
        "mpp.data.pixels:StoredPixels.cut",
        "lambda self, sample, boxes, size: [real(self, sample, [box], size)[0] for box in boxes]",
        IMAGES + "an_image_with_several_views_is_read_and_decoded_once",
    ),
    Row(
        "the crop's ratio is uniform",
        "mpp/data/augment.py",
        "aspect = math.exp(low + ratio * (high - low))",
        "aspect = ratios[0] + ratio * (ratios[1] - ratios[0])",
        AUGMENT + "crops_are_distributed_as_torchvisions",
    ),
    Row(
        "uniform numbers lose their lowest bits",
        "mpp/rng.py",
        "(bits >> np.uint64(11)) * 2.0**-53",
        "(bits >> np.uint64(12)) * 2.0**-52",
        "tests/test_rng.py::test_uniform_is_the_upper_53_bits",
    ),
    Row(
        "bits go on at the next whole block",
        "mpp/rng.py",
        "return philox.random_raw(ahead + count)[ahead:]",
        "return philox.random_raw(count)",
        "tests/test_rng.py",
    ),
    # Pixels.
    Row(
        "crops are shrunk without antialiasing",
        "mpp/data/crop.py",
        'mode="bicubic", antialias=True)',
        'mode="bicubic", antialias=False)',
        CROP + "resizing_is_torchvisions_own",
    ),
    Plant(
        "reduced decodes hold a crop barely once",
        "mpp.data.crop:SPARE",
        "1",
        CROP + "a_reduced_size_still_holds_the_crop_twice_over",
    ),
    Plant(
        "the x axis of a turned photograph runs forwards",
        "mpp.data.crop:BACKWARDS_X",
        "(2, 3, 7, 8)",
        CROP + "a_box_finds_its_pixels_in_the_stored_image",
    ),
    Plant(
        "the crop of a turned photograph stays turned",
        "mpp.data.crop:turned",
        "lambda planes, orientation: planes",
        CROP + "a_turned_photograph_is_cropped_upright",
    ),
    Plant(
        "a cut JPEG passes where the crop lies above the cut",
        "mpp.data.crop:plain_jpeg",
        'lambda data, max_pixels: real(data + b"\\xff\\xd9", max_pixels)',
        CROP + "a_cut_jpeg_is_bad_even_where_the_crop_lies_above_the_cut",
        in_libjpeg=True,
    ),
    Row(
        "an image of another size than its index is let in",
        "mpp/data/crop.py",
        "    if image.size != (",
        "    if False and image.size != (",
        CROP + "an_image_of_another_size_than_its_index_says_is_bad",
    ),
    Row(
        "the device's weights reach over the box",
        "mpp/data/pixels.py",
        "    weight = weight * ((pixel >= low[:, None]) & (pixel < high[:, None]))[:, None]\n",
        "",
        IMAGES + "bicubic_weights_sum_to_one_and_stay_inside_the_box",
    ),
    Plant(
        "the device cuts the image beside",
        "mpp.data.pixels:DevicePixels.complete",
        'lambda self, batch, views, size: batch.update(image=cut_on_device(self.pixels[batch["sample"] - self.first], batch["box"], size)) or []',
        IMAGES + "a_bad_sample_is_replaced_as_it_is_from_shards",
    ),
    # Bad samples, and what is none.
    Plant(
        "a replacement comes from the hold-out",
        "mpp.data.crop_dataset:CropDataset.stand_in",
        "lambda self, sample, step: (sample + step) % len(self.images.source)",
        BAD + "replacement_is_cyclic_within_the_training_samples",
    ),
    Plant(
        "bad samples go unrecorded",
        "mpp.data.crop_dataset:CropDataset._open",
        "lambda self, *words: (*real(self, *words)[:3], [])",
        BAD + "every_fault_on_the_way_is_recorded",
    ),
    Plant(
        "a replacement has crops of its own",
        "mpp.data.crop_dataset:CropDataset._open",
        "lambda self, sample, position, views: (lambda shown, boxes, pixels, faults: (shown, *real(self, shown, position, [self.augment.draw(Draws(self.seed, CROP, 0, shown))] * len(views))[1:3], faults) if faults else (shown, boxes, pixels, faults))(*real(self, sample, position, views))",
        BAD + "a_bad_sample_is_replaced_by_the_next_readable_one_with_its_own_seed",
    ),
    Plant(
        "running out of memory makes a bad sample",
        "mpp.data.crop_dataset:BadSample",
        "(real, MemoryError)",
        PROCESSES + "running_out_of_memory_is_an_error_of_the_run_and_no_bad_sample",
    ),
    Plant(
        "any error makes a bad sample",
        "mpp.data.crop_dataset:BadSample",
        "Exception",
        BAD + "a_program_fault_is_no_bad_sample",
    ),
    Row(
        "bad samples that others meet on their way count again",
        "mpp/train/bad_samples.py",
        'return sum(fault["bad"] == fault["sample"] for fault in bad)',
        "return len(bad)",
        "tests/train/test_bad_sample_log.py::test_a_row_of_bad_samples_counts_each_once_though_each_meets_those_behind_it",
    ),
    Plant(
        "a worker's fault is called its death",
        "mpp.data.handing_over:DIED",
        '"DataLoader worker"',
        PROCESSES + "a_fault_of_the_program_in_a_worker_keeps_its_traceback",
    ),
    Row(
        "turned photographs in RAM are turned before they are resized",
        "mpp/data/pixels.py",
        "turned(resize(pixels[top:bottom, left:right], as_stored_size(size, orientation)), orientation)",
        "resize(turned(pixels[top:bottom, left:right].transpose(2, 0, 1), orientation).transpose(1, 2, 0), size)",
        IMAGES + "turned_photographs_in_ram_give_the_same_bits",
    ),
    Plant(
        "the hold-out is trained on",
        "mpp.data.training_set:without_last",
        "lambda samples_per_shard, holdout: real(samples_per_shard, max(0, holdout - 1))",
        LOADER + "the_last_samples_are_held_out_of_training",
    ),
    Plant(
        "padding of the hold-out is counted",
        "mpp.data.loader:fixed_batches",
        "lambda *words: ((rows, torch.ones(len(weight))) for rows, weight in real(*words))",
        LOADER + "fixed_batches_weigh_each_sample_once_and_padding_nothing",
    ),
    Plant(
        "what the device refuses stays what it was",
        "mpp.data.device_jpegs:DeviceJpegs.complete",
        "lambda self, *words: (real(self, *words), [])[1]",
        "tests/data/test_device_jpegs.py::test_what_the_device_refuses_is_judged_by_the_cpu",
    ),
    Plant(
        "whatever is whole is left to nvJPEG",
        "mpp.data.device_jpegs:is_safe",
        "lambda data: True",
        "tests/data/test_device_jpegs.py::test_whole_jpegs_are_safe_but_for_grey_ones_with_sampling_factors",
    ),
    Plant(
        "a measurement takes the next image for a bad one",
        "mpp.data.crop_dataset:CropDataset.leaves_none_out",
        "property(lambda self: False, lambda self, wanted: None)",
        BAD + "what_is_measured_has_no_stand_ins tests/train/test_classify.py::test_a_measurement_leaves_no_image_out",
    ),
    Plant(
        "what was handed over is copied out of pinned memory",
        "mpp.data.handing_over:unpacked",
        "lambda batch: {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in real(batch).items()}",
        LOADER + "what_is_packed_comes_out_as_views_of_what_was_handed_over",
    ),
    Plant(
        "pixels in RAM ask the file again for its size",
        "mpp.data.pixels:MemoryPixels.size_of",
        "lambda self, sample: self.source.size_of(sample)",
        IMAGES + "a_file_that_cannot_be_read_is_a_bad_sample_in_memory_too",
    ),
    Row(
        "a centre's rims are rounded down",
        "mpp/data/augment.py",
        "left, top = round((width - w) / 2), round((height - h) / 2)",
        "left, top = (width - w) // 2, (height - h) // 2",
        "tests/data/test_labelled_crops.py::test_the_centre_square_is_torchvisions_centre_crop",
    ),
    Row(
        "a centre's sides are rounded down",
        "mpp/data/augment.py",
        "round(self.share * (limit / rows))",
        "int(self.share * (limit / rows))",
        "tests/data/test_labelled_crops.py::test_the_centre_of_any_shape_is_the_largest_box_of_it_and_lies_in_the_middle",
    ),
    Row(
        "height and width of a centre are exchanged",
        "mpp/data/augment.py",
        "rows, columns = (self.size, self.size) if isinstance(self.size, int) else self.size\n        limit",
        "columns, rows = (self.size, self.size) if isinstance(self.size, int) else self.size\n        limit",
        "tests/data/test_labelled_crops.py::test_the_centre_of_any_shape_is_the_largest_box_of_it_and_lies_in_the_middle",
    ),
    Plant(
        "rows that were dealt out are numbered anew",
        "mpp.data.order:Parts.__iter__",
        "lambda self: ([(epoch, sample, place) for place, (epoch, sample, _) in enumerate(keys)] for keys in real(self))",
        "tests/data/test_labelled_crops.py::test_parts_that_were_dealt_out_come_with_their_rows",
    ),
    # Processes and logs.
    Row(
        "open files stay few",
        "mpp/machine.py",
        "        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n",
        "        pass\n",
        PROCESSES + "the_limit_on_open_files_is_raised_as_far_as_the_system_lets_it",
    ),
    Plant(
        "a slot is used again while its batch waits",
        "mpp.data.crop_dataset:PREFETCHED",
        "0",
        LOADER + "batches_do_not_depend_on_the_number_of_workers",
    ),
    Row(
        "batches of another size take shared memory anew",
        "mpp/data/crop_dataset.py",
        "if slot is None or len(slot) < needed:",
        "if slot is None or len(slot) != needed:",
        PROCESSES + "batches_of_any_size_share_the_slots_of_shared_memory_and_no_two_in_flight_one",
    ),
    Row(
        "a batch of a worker stays in its slot",
        "mpp/data/loader.py",
        '            batch["image"] = torch.from_numpy(batch["image"].numpy().copy())\n',
        "            pass\n",
        LOADER + "batches_do_not_depend_on_the_number_of_workers",
    ),
    Plant(
        "batches are copied on their way",
        "mpp.data.crop_dataset:_room_for_images",
        "lambda *shape: torch.empty(shape, dtype=torch.uint8)",
        PROCESSES + "a_worker_writes_its_images_into_shared_memory",
    ),
    Row(
        "a resumed run's logs keep what it sees again",
        "mpp/train/run_folder.py",
        'int(line.split("\\t")[0]) < position)',
        'int(line.split("\\t")[0]) <= position)',
        LOG
        + "logs_are_cut_back_to_the_position_a_run_resumes_from "
        + LOG
        + "a_run_stopped_anywhere_goes_on_with_another_world_and_misses_and_repeats_nothing",
    ),
]
