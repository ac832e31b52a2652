"""Bugs that the tests of bad numbers, the flight recorder, replay and passed-over samples must find."""

from tests.mutations import Plant, Row

BAD = "tests/pipeline/test_bad_numbers.py::"
REPLAY = "tests/pipeline/test_replay.py::"
SPIKES = "tests/monitor/test_spikes.py::"
MAGNITUDES = "tests/monitor/test_magnitudes.py::"
ORDER = "tests/data/test_order.py::"
SKIPPED = BAD + "test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all_counted_and_resumed_to_the_same_bits"
STOPPED = BAD + "test_too_many_in_a_row_stop_the_run_with_the_last_commit_as_it_was_and_a_flight_dump_of_each_rank"
PASSED = BAD + "test_steps_that_see_a_skipped_position_are_passed_over_and_what_comes_behind_is_unchanged"
WRITTEN = BAD + "test_a_skipped_step_is_written_down_by_each_rank_with_the_weights_of_the_step_behind_where_those_have_moved"
MANY = BAD + "test_of_many_skipped_steps_the_newest_stay_and_the_weights_of_one_of_them"
NEAREST = REPLAY + "test_a_skipped_step_is_taken_again_with_the_weights_that_are_nearest"
TUNING = "tests/pipeline/test_replay_of_finetuning.py::"
BYTES = TUNING + "test_every_batch_is_the_one_that_the_trainer_saw_byte_for_byte"
LOSS = TUNING + "test_the_loss_is_the_one_that_was_noted_and_images_are_named_with_their_labels"
AGAIN = REPLAY + "test_the_batch_is_the_one_that_was_logged_and_its_loss_is_the_one_that_was_noted"

ROWS = [
    # Steps that are not finite.
    Row(
        "a resumed optimiser counts skipped steps as its own", "mpp/train/checkpoint.py", "engine.set_steps(commit.optimiser_steps)",
        "engine.set_steps(commit.step)", SKIPPED,
    ),
    Row(
        "a resumed run forgets how many steps it has skipped", "mpp/train/bad_numbers.py", 'commit.record.get("skipped_steps", 0) if', "0 if", SKIPPED,
    ),
    Row(
        "one loss that is not finite hides the mean of all", "mpp/train/meters.py",
        "torch.where(torch.isfinite(added).all(), added, 0.0) if self.finite else added", "added", SKIPPED,
    ),
    Row(
        "skipped steps are never forgiven", "mpp/train/bad_numbers.py", "        self.in_a_row = 0\n        self.optimiser_steps += 1",
        "        self.optimiser_steps += 1", BAD + "test_a_skipped_step_changes_no_weight_and_its_commit_waits_for_the_next_that_is_taken",
    ),
    Row(
        "a commit is written in a skipped step", "mpp/train/run.py", "run._owed = bool(run.numbers.in_a_row) and", "run._owed = False and",
        BAD + "test_a_skipped_step_changes_no_weight_and_its_commit_waits_for_the_next_that_is_taken",
    ),
    Row(
        "a commit that waited is never written", "mpp/train/run.py", "self.commits = run._owed or self.crosses", "self.commits = self.crosses",
        SKIPPED.replace("a_step_that_is_not_finite_on_one_rank_is_skipped_by_all_counted_and_resumed_to_the_same_bits", "a_commit_that_fell_into_a_skipped_step_is_written_in_the_next"),
    ),
    Row(
        "one step too many is allowed in a row", "mpp/train/bad_numbers.py", "= self.in_a_row <= self._allowed and", "= self.in_a_row <= self._allowed + 1 and", STOPPED,
    ),
    Row(
        "the advice looks back from the last skipped step", "mpp/train/bad_numbers.py", "self._first - 2, self._repeats", "number - 2, self._repeats", STOPPED,
    ),
    Row(
        "a run that has learned nothing skips its first step", "mpp/train/bad_numbers.py", "self.in_a_row <= self._allowed and bool(self.optimiser_steps)",
        "self.in_a_row <= self._allowed", BAD + "test_a_run_whose_first_step_is_not_finite_stops_at_once",
    ),
    # What a skipped step leaves.
    Row(
        "weights of a dump have their name before they are on the disk", "mpp/train/flight.py", "        sync_path(part)\n", "",
        "tests/train/test_flight.py::test_weights_are_on_the_disk_before_they_have_their_name",
    ),
    Row(
        "only rank 0 writes a skipped step down", "mpp/train/flight.py", '        self._try_to_write(f"the gradient of', '        if self.world.first:\n            self._try_to_write(f"the gradient of',
        WRITTEN,
    ),
    Row(
        "weights of the step behind count as those of the skipped one", "mpp/train/bad_numbers.py", "self._keep_weights(now if moved else self._first - 1, now,",
        "self._keep_weights(self._first - 1, now,", WRITTEN,
    ),
    Row(
        "weights that stood still count as moved", "mpp/train/run.py", "not self.passed and not self._agreed.read()[0]", "not self.passed", MANY,
    ),
    Row(
        "dumps of skipped steps pile up", "mpp/train/flight.py", "[: max(0, len(dumps) - SKIPPED)]", "[:0]", MANY,
    ),
    Row(
        "the weights of the first skipped step are never followed by others", "mpp/train/bad_numbers.py", "self.skipped_steps >= self._keep_again",
        "not self._keep_again", MANY,
    ),
    Row(
        "each skipped step writes the weights anew", "mpp/train/bad_numbers.py", "self.in_a_row == 1 and self.skipped_steps >= self._keep_again",
        "self.in_a_row == 1", MANY,
    ),
    Row(
        "the end of a run takes what tells of a skipped step", "mpp/train/flight.py", "if not skipped_dumps(self.folder):", "if True:", WRITTEN,
    ),
    Row(
        "the note of a skipped step names rank 0 whoever it was", "mpp/train/flight.py", "self.skipped_path(step, next(at_fault, 0))",
        "self.skipped_path(step, 0)", SKIPPED,
    ),
    Row(
        "a disk that is full ends a run that skips a step", "mpp/train/bad_numbers.py", "except (OSError, SafetensorError):", "except SafetensorError:",
        BAD + "test_where_weights_cannot_be_kept_the_run_goes_on_and_the_dump_says_none",
    ),
    Row(
        "the trace of a skipped step takes the room of the next checkpoint", "mpp/train/flight.py", "< (1 + CHECKPOINT) * needed", "< needed",
        "tests/train/test_flight.py::test_weights_of_a_run_that_goes_on_leave_room_for_its_next_checkpoint",
    ),
    # The flight recorder.
    Row(
        "what is noted of a batch keeps the batch", "mpp/train/flight.py", "samples[:: self.views].copy(),", "samples[:: self.views],",
        "tests/train/test_flight.py::test_what_is_noted_of_a_batch_keeps_none_of_its_memory",
    ),
    Row(
        "the message names the dump of rank 0 whoever it was", "mpp/train/flight.py", 'return self.folder / f"rank{rank}.json"', 'return self.folder / "rank0.json"',
        STOPPED,
    ),
    Row(
        "a dump after an error is written only where the program says so itself", "mpp/base/errors.py", "    if status:\n        error = sys", "    if status < 0:\n        error = sys",
        BAD + "test_an_error_of_any_kind_leaves_a_flight_dump_that_says_why",
    ),
    Row(
        "the watchman ends a process before its dump is written", "mpp/processes/watch.py",
        '            errors.stopping("ended by the watchman, because of another process", device=False)\n', "",
        BAD + "test_a_rank_that_stands_still_because_another_was_killed_is_ended_with_its_dump",
    ),
    Row(
        "a stop as asked leaves no dump", "mpp/train/run.py", 'self.flight.write_together(f"stopped as asked at step {step.number}")', "pass",
        BAD + "test_a_signal_that_is_heeded_leaves_a_dump_of_each_rank_and_a_run_that_goes_on_to_its_end_takes_them_away",
    ),
    Row(
        "a finished run keeps the dumps of earlier stops", "mpp/train/run.py", "self.flight.close(remove=True)", "self.flight.close(remove=False)",
        BAD + "test_a_signal_that_is_heeded_leaves_a_dump_of_each_rank_and_a_run_that_goes_on_to_its_end_takes_them_away",
    ),
    Row(
        "the loss in a dump is the sum over micro-batches", "mpp/train/flight.py", "loss.detach() / self.accumulation", "loss.detach()", AGAIN,
    ),
    # Loss spikes.
    Row(
        "a spike is told in each of its steps", "mpp/monitor/spikes.py", "high and not self.inside, high", "high, high",
        SPIKES + "test_a_spike_is_told_where_it_begins_once_and_how_far_it_stands_above",
    ),
    Row(
        "a spike widens what counts as noise", "mpp/monitor/spikes.py", "min(above, DEVIATIONS * deviation) if high else above", "above",
        SPIKES + "test_one_spike_hides_no_other_and_a_level_that_stays_is_learned",
    ),
    Row(
        "a loss that falls is a spike", "mpp/monitor/spikes.py", "and above > max(", "and abs(above) > max(",
        SPIKES + "test_noise_and_a_loss_that_falls_hold_no_spike " + SPIKES + "test_a_step_far_below_is_none",
    ),
    Row(
        "spikes are looked for from the first step on", "mpp/monitor/spikes.py", "self.steps >= WINDOW and", "self.steps >= 2 and",
        SPIKES + "test_the_first_steps_conclude_nothing",
    ),
    Row(
        "a resumed run learns the running mean anew", "mpp/train/bad_numbers.py", 'Spikes(**commit.record.get("spikes", {}))', "Spikes()",
        BAD + "test_a_loss_spike_is_told_once_with_its_samples_and_counted_across_a_resume",
    ),
    Row(
        "the samples of a spike are those of the step behind it", "mpp/train/bad_numbers.py",
        "first, end = (step - 1) * self._global_batch, step * self._global_batch", "first, end = step * self._global_batch, (step + 1) * self._global_batch",
        BAD + "test_a_loss_spike_is_told_once_with_its_samples_and_counted_across_a_resume",
    ),
    # Samples passed over.
    Row(
        "a range is rounded inwards to steps", "mpp/data/order.py", "range(first // global_batch, min(steps, -(-end // global_batch)))",
        "range(-(-first // global_batch), min(steps, end // global_batch))", ORDER + "test_steps_that_see_any_position_of_a_range_are_passed_over_whole",
    ),
    Row(
        "the loader reads what is passed over", "mpp/mains/pretrain.py", "run.first_step, run.total_steps, passed=passed)", "run.first_step, run.total_steps)",
        PASSED,
    ),
    Row(
        "a step that is passed over decays the weights", "mpp/train/run.py", "        if self.passed:\n            self.norm = torch.full",
        "        if False:\n            self.norm = torch.full", PASSED,
    ),
    Row(
        "steps that are passed over count as the optimiser's", "mpp/train/run.py", "        elif not asked.passed:\n", "        else:\n", PASSED,
    ),
    Row(
        "what was trained on may be passed over afterwards", "mpp/train/run_folder.py",
        '            _check_still_to_come(commit, theirs.get(key) or [], ours.get(key) or [])\n', "",
        BAD + "test_what_was_trained_on_cannot_be_passed_over_any_more",
    ),
    # Replay.
    Row(
        "a step is taken again with the step behind it", "mpp/mains/replay.py", 'noted["step"] - 1))[', 'noted["step"]))[', AGAIN,
    ),
    Row(
        "the newest weights are taken whatever the step", "mpp/mains/replay.py", "if each.step < step), None)", "if each.step), None)",
        REPLAY + "test_with_one_rank_the_gradient_norm_is_that_of_the_run",
    ),
    Row(
        "the paths that stochastic depth drops are others", "mpp/mains/replay.py", "        torch.manual_seed(self.noise_seed)\n", "", AGAIN,
    ),
    Row(
        "changed pixels go unnoticed", "mpp/mains/replay.py", 'each["pixels"] == pixels_check(batch["image"]) for', 'each["pixels"] == each["pixels"] for',
        REPLAY + "test_other_pixels_are_told",
    ),
    Row(
        "any weights count as those of the step", "mpp/mains/replay.py", "commit.step, commit.step - (step - 1))", "commit.step, 0)",
        REPLAY + "test_with_older_weights_it_says_that_they_have_moved",
    ),
    Row(
        "weights of a later skipped step are taken for those of this one", "mpp/mains/replay.py", '(opened.metadata() or {}).get("step") != str(kept)', "not opened.metadata()",
        NEAREST,
    ),
    Row(
        "weights of the step behind count as those of the step", "mpp/mains/replay.py", "late = max(0, kept", "late = 0 * max(0, kept", NEAREST,
    ),
    Row(
        "an average that has moved on counts as the step's own", "mpp/mains/replay.py", 'dump.facts["average"] - (step - 1) if average else 0', "0",
        REPLAY + "test_an_average_that_has_moved_on_is_told",
    ),
    Row(
        "weights that were kept go before the commit of the step itself", "mpp/mains/replay.py", "if not (late < short or not (late or average)):", "if False:",
        REPLAY + "test_a_commit_that_is_the_step_s_own_goes_before_weights_of_the_step_behind",
    ),
    Row(
        "a replay of fine-tuning counts images that are held out", "mpp/mains/replay_job.py", "done, done + 1, self.training.ids)", "done, done + 1)", BYTES,
    ),
    Row(
        "a replay of fine-tuning smooths no label", "mpp/mains/replay_job.py", "self.config.augment.smoothing", "0.0", BYTES,
    ),
    Row(
        "a replay of fine-tuning weighs all classes alike", "mpp/mains/replay_job.py", "if self.config.optim.class_weight else None", "if False else None", LOSS,
    ),
    Row(
        "a replay of fine-tuning drops no path", "mpp/mains/replay_job.py", "WithLoss(classifier, weight).train()", "WithLoss(classifier, weight).eval()", LOSS,
    ),
    Row(
        "changed labels go unnoticed", "mpp/mains/replay.py", "each[job.drawn] == job.check(batch)", "each[job.drawn] == each[job.drawn]",
        TUNING + "test_changed_labels_and_another_encoder_are_told",
    ),
    Row(
        "labels alone are noted, not what is mixed and erased", "mpp/train/flight.py", '("label", "erase", "noise", "share", "paste")', '("label",)',
        "tests/train/test_flight.py::test_what_is_drawn_for_labelled_images_changes_their_check",
    ),
    Row(
        "a weight that is not finite goes unnamed", "mpp/mains/replay.py", "if not torch.isfinite(parameter).all()]", "if torch.isnan(parameter).all()]",
        TUNING + "test_a_weight_that_is_not_finite_is_found_and_the_module_that_uses_it",
    ),
    Row(
        "the partner of a mixed image is the image itself", "mpp/mains/replay_job.py", '["sample"][row ^ 1]', '["sample"][row]', LOSS,
    ),
    Row(
        "the pictures of a replay leave out the standard deviation", "mpp/mains/replay_job.py", "normalised * std + mean", "normalised + mean",
        TUNING + "test_what_is_shown_is_what_the_model_was_given",
    ),
    Plant(
        "only the whole model is watched", "mpp.monitor.magnitudes:largest", "lambda value: 0.0",
        MAGNITUDES + "test_the_first_module_whose_output_is_not_finite_is_named_and_what_led_there",
    ),
    Row(
        "what goes into a module is not looked at", "mpp/monitor/magnitudes.py", "given.append(math.isfinite(largest((inputs, named))))", "given.append(True)",
        MAGNITUDES + "test_what_is_computed_between_modules_is_told_apart",
    ),
    Row(
        "gradients of weights are not looked at", "mpp/monitor/magnitudes.py", "            if weight.requires_grad:\n", "            if not weight.requires_grad:\n",
        MAGNITUDES + "test_gradients_are_followed_from_the_loss_on",
    ),
    Row(
        "hooks stay on the model", "mpp/monitor/magnitudes.py", "        for handle in handles:\n            handle.remove()\n", "        pass\n",
        MAGNITUDES + "test_nothing_is_left_behind_on_the_model",
    ),
]  # fmt: skip
