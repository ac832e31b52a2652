"""Bugs that the tests of several sources must find."""

from tests.mutations import Plant, Row

ORDER, JOINED, RUNS = (
    "tests/data/test_mixed_order.py::test_",
    "tests/data/test_joined_shards.py::test_",
    "tests/pipeline/test_sources.py::test_",
)
OVERLAP = "tests/transfer/test_overlap.py::test_"
BY_HAND = ORDER + "each_place_has_the_sample_that_counting_one_after_the_other_finds"
SHARES = ORDER + "every_step_has_the_floor_or_the_ceiling_of_its_share_of_each_source"

ROWS = [
    # The order by weight.
    Plant(
        "all streams turn alike, so that a step is of one source",
        "mpp.data.mixed_order:MixedOrder._within",
        "lambda self, step, phase: real(self, step, 0 * phase)",
        SHARES,
    ),
    Plant(
        "the circle does not turn from step to step",
        "mpp.data.mixed_order:MixedOrder._within",
        "lambda self, step, phase: real(self, 0 * step, phase)",
        ORDER + "after_any_step_a_source_is_within_twice_the_digit_sum_of_its_share_in_each_stream_and_in_all",
    ),
    Row(
        "the base divides the streams", "mpp/data/mixed_order.py", "for prime in PRIMES if self.streams % prime)", "for prime in PRIMES if not self.streams % prime or prime == 3)",
        ORDER + "after_any_step_a_source_is_within_twice_the_digit_sum_of_its_share_in_each_stream_and_in_all",
    ),
    Row(
        "the end of an arc is rounded to a turn", "mpp/data/mixed_order.py",
        "math.ceil((end - floor) * self._turns * self.streams)", "round((end - floor) * self._turns) * self.streams",
        ORDER + "weights_that_a_step_can_have_are_had_by_every_step_to_the_sample",
    ),
    Plant(
        "the step itself counts among those before it",
        "mpp.data.mixed_order:MixedOrder._before",
        "lambda self, step, phase, edge: real(self, step + 1, phase, edge)",
        BY_HAND,
    ),
    Row(
        "what a stream has had in the step itself is forgotten", "mpp/data/mixed_order.py",
        "self._before(step, phase, source) + in_step", "self._before(step, phase, source) + 0 * in_step",
        ORDER + "a_source_gives_each_of_its_samples_at_most_once_in_each_of_its_own_epochs",
    ),
    Row(
        "rest of a step count is off by one", "mpp/data/mixed_order.py", "left = whole + (digit < rest)", "left = whole + (digit <= rest)",
        BY_HAND,
    ),
    Row(
        "all sources share one order", "mpp/data/mixed_order.py", "seed_of(self.seed, SOURCES, 1 + number)", "self.seed",
        ORDER + "two_sources_of_one_make_do_not_go_in_step",
    ),
    Row(
        "ids of the second source begin at 0", "mpp/data/mixed_order.py", "ids[here] = self.first_ids[number] + own", "ids[here] = own",
        ORDER + "a_source_gives_each_of_its_samples_at_most_once_in_each_of_its_own_epochs",
    ),
    Row(
        "a sample that comes again has its old key", "mpp/data/mixed_order.py", "            ids[here] = self", "            epoch[here] = 0\n            ids[here] = self",
        BY_HAND,
    ),
    Plant(
        "neighbouring places have neighbouring points",
        "mpp.data.mixed_order:_stride",
        "lambda places: 1",
        ORDER + "neighbouring_places_have_about_the_shares_of_the_step",
    ),
    Row(
        "a decimal weight is taken for the binary number beside it", "mpp/data/mixed_order.py", "Fraction(repr(weight))", "Fraction(weight)",
        ORDER + "weights_are_taken_as_they_are_written_and_scaled",
    ),
    Plant(
        "the reach is that of the first source",
        "mpp.data.mixed_order:MixedOrder.shards_in_reach",
        "lambda self, world: self.sources[0].shards_in_reach(world)",
        ORDER + "a_process_reads_from_no_more_shards_than_are_said_to_be_in_its_reach",
    ),
    Row(
        "a source may be smaller than the streams", "mpp/data/mixed_order.py", ") < self.streams:", ") < 0:",
        ORDER + "a_source_that_is_smaller_than_the_streams_is_refused_with_what_fits",
    ),
    Plant(
        "passes forget the weights",
        "mpp.data.mixed_order:MixedOrder.passes",
        "lambda self, samples: [samples / self.samples for _ in self.sources]",
        ORDER + "an_epoch_of_the_mix_is_as_many_samples_as_there_are_and_passes_say_how_often_each_source_is_seen",
    ),
    # Sets as one.
    Row(
        "held-out images stand behind their own set, not behind all", "mpp/data/joined_shards.py",
        "        self.stretches = tuple(stretches)", "        self.stretches = tuple(sorted(stretches, key=lambda each: each.source))",
        JOINED + "ids_run_through_what_is_trained_on_set_after_set_and_then_through_what_is_held_out",
    ),
    Row(
        "a stretch of held-out images begins with the first of its set", "mpp/data/joined_shards.py",
        "return each.source, each.first + sample - self.starts[at]", "return each.source, sample - self.starts[at]",
        JOINED + "ids_run_through_what_is_trained_on_set_after_set_and_then_through_what_is_held_out",
    ),
    Row(
        "columns are laid out set after set", "mpp/data/joined_shards.py",
        "np.concatenate([columns[each.source][each.first : each.first + each.count] for each in self.stretches])", "np.concatenate(columns)",
        JOINED + "ids_run_through_what_is_trained_on_set_after_set_and_then_through_what_is_held_out",
    ),
    Row(
        "the rest of a hold-out goes to the first sets, whatever their remainders", "mpp/data/joined_shards.py",
        "key=lambda number: -(rest * sizes[number] % every)", "key=lambda number: 0",
        JOINED + "a_hold_out_is_shared_by_size_with_one_of_each",
    ),
    Row(
        "the deviation of all is the mean of deviations", "mpp/data/joined_shards.py",
        "np.sqrt(shares @ (deviations**2 + means**2) - mean**2)", "(shares @ deviations)",
        JOINED + "mean_and_deviation_are_those_of_all_samples_together",
    ),
    Row(
        "classes of sets that have others are one set's", "mpp/data/joined_shards.py",
        "alike = all(each.classes == sources[0].classes for each in sources)", "alike = True",
        JOINED + "classes_are_those_of_the_sources_where_all_have_the_same",
    ),
    Row(
        "each set keeps as many shards open as all may", "mpp/data/joined_shards.py",
        "max(1, count * may // sum(wanted))", "count",
        JOINED + "open_files_are_shared_by_shards_and_what_comes_next_is_told_to_each_set",
    ),
    Row(
        "joined sets are not told what comes next", "mpp/data/pixels.py", "        self.source.ahead(samples)\n", "        pass\n",
        JOINED + "open_files_are_shared_by_shards_and_what_comes_next_is_told_to_each_set",
    ),
    Row(
        "images that sources share are not looked for", "mpp/data/joined_shards.py", "        if len(self) > LOOKED_THROUGH:", "        if len(self):",
        JOINED + "images_that_sources_share_are_counted_and_those_that_leak_into_the_hold_out",
    ),
    Row(
        "one set may be given twice", "mpp/data/joined_shards.py", "if other := known.get(source.manifest_hash):", "if other := known.get(word + '/'):",
        JOINED + "what_cannot_be_joined_is_refused_in_one_line",
    ),
    Row(
        "a hold-out may be one of the sources", "mpp/data/training_set.py", "if data.holdout_shards and (both", "if not data.shards and (both",
        JOINED + "what_cannot_be_joined_is_refused_in_one_line",
    ),
    Row(
        "a hold-out of several sets is of the first alone", "mpp/data/joined_shards.py",
        "first = shared_out(samples, sizes) if samples < sum(sizes) else sizes", "first = sizes",
        JOINED + "a_hold_out_of_its_own_may_be_several_sets_and_takes_the_first_of_each",
    ),
    Row(
        "weights are not heard", "mpp/data/training_set.py", "if weights is None or not isinstance", "if True or not isinstance",
        RUNS + "every_step_of_a_run_has_its_share_of_each_source_and_its_log_says_which_sample_is_whose",
    ),
    Row(
        "held-out images count for another source", "mpp/mains/pretrain_looks.py", '(batch["origin"] == number)', '(batch["origin"] != number)',
        RUNS + "the_hold_out_loss_is_that_of_the_sources_each_by_its_images",
    ),
    Row(
        "sources may change their places in a resumed run", "mpp/data/joined_shards.py",
        '"".join(each.manifest_hash for each in sources)', '"".join(sorted(each.manifest_hash for each in sources))',
        JOINED + "the_hash_of_all_tells_their_order",
    ),
    Row(
        "of several sources the first alone counts as seen", "mpp/transfer/overlap.py", "for word, identity in zip(words, identities, strict=True)]", "for word, identity in list(zip(words, identities, strict=True))[:1]]",
        OVERLAP + "a_run_on_several_sources_tells_each_with_its_own_hold_out",
    ),
    Row(
        "a new key makes shipped references strange", "mpp/train/run_folder.py", "if key not in LATER or value != LATER[key]}", "}",
        "tests/monitor/test_reference.py::test_the_demo_s_reference_is_that_of_its_config",
    ),
]  # fmt: skip
