"""Bugs in what is settled for a small set, which the tests must find."""

from tests.mutations import Plant, Row

RULES, SETTLING, LABELS = (
    "tests/config/test_small.py::test_",
    "tests/pipeline/test_settling.py::test_",
    "tests/config/test_finetune.py::test_",
)
ROWS: list[Plant | Row] = [
    Row(
        "a budget is measured at the batch of a long run", "mpp/mains/settling.py",
        'if fit.open_keys(samples).get("data.global_batch") == keys.get("data.global_batch"):', "if True:",
        SETTLING + "the_speed_is_measured_at_the_batch_that_the_run_has",
    ),
    Row(
        "a preset is fitted to any few images", "mpp/mains/settling.py", "len(shards) < small.LEAST_IMAGES", "not len(shards)",
        "tests/pipeline/test_settling.py::test_a_preset_is_not_fitted_to_a_handful_of_images_unless_the_batch_is_given",
    ),
    Row(
        "a run that goes on is settled anew", "mpp/mains/settling.py", "    if commit:\n", "    if False:\n",
        SETTLING + "a_finished_run_is_trained_on_by_more_epochs_with_what_it_was_begun_with",
    ),
    Row(
        "epochs pass over held-out images", "mpp/mains/settling.py", "(self.facts.images - held_out)", "self.facts.images",
        SETTLING + "a_preset_settles_what_is_left_open_and_says_so",
    ),
    Row(
        "a budget begins with the first step", "mpp/mains/settling.py", " - (time.time() - psutil.Process().create_time())", "",
        SETTLING + "the_speed_is_measured_at_the_batch_that_the_run_has",
    ),
    Row(
        "a preset has the last say", "mpp/config/schema.py", "_over(below or {}, given(path, words))", "_over(given(path, words), below or {})",
        RULES + "what_a_file_or_a_word_names_stays",
    ),
    Row(
        "a batch does not go through the processes", "mpp/config/small.py", " // facts.processes * facts.processes or facts.processes", "",
        RULES + "every_set_machine_and_length_gives_a_run",
    ),
    Row(
        "the rate goes by the batch, not by its root", "mpp/config/small.py", "RATE * math.sqrt(batch / RATE_BATCH)", "RATE * batch / RATE_BATCH",
        RULES + "the_rate_goes_by_the_root_of_the_batch_that_is_asked_for",
    ),
    Plant(
        "a hold-out of its own is taken for a part of the set", "mpp.config.small:held_out",
        "lambda facts: max(1, min(MOST_HELD_OUT, round(HELD_OUT * facts.images)))",
        RULES + "a_twentieth_of_the_set_is_held_out_or_what_there_is_of_another",
    ),
    Plant(
        "few labels are fine-tuned on as many are", "mpp.config.small:tuning", "lambda labels, epochs=None, batch=None: real(10_000, epochs, batch)",
        LABELS + "the_preset_for_few_labels_mixes_and_repeats_where_labels_are_few_and_goes_by_the_measured_rate",
    ),
    Row(
        "the warm-up of fine-tuning may exceed the epochs that are asked for", "mpp/config/small.py",
        '"optim.warmup_epochs": WARM_UP * epochs', '"optim.warmup_epochs": WARM_UP * max(EPOCHS, math.ceil(TUNED_ON / labels))',
        LABELS + "any_number_of_labels_gives_a_run_of_the_preset_for_few",
    ),
    Row(
        "what a preset of fine-tuning says is not what it does", "mpp/mains/finetune_job.py", "return config, sets.drawn(config.augment, size, mean), (", "return config, sets, (",
        "tests/pipeline/test_finetune.py::"
        "test_a_preset_settles_what_is_left_open_by_the_number_of_labels_and_a_run_that_goes_on_has_the_same",
    ),
    Row(
        "a preset's length is judged by a batch that it does not have", "mpp/config/pretrain.py",
        'settled(self.data, "global_batch") and self.optim.total_samples', "self.optim.total_samples",
        SETTLING + "a_length_in_samples_is_taken_however_short_and_the_rest_follows_from_it",
    ),
    Row(
        "a hold-out of its own is not looked at", "mpp/mains/settling.py",
        'apart = len(open_shards(config.data.holdout_shards, peers, key="data.holdout_shards")) if config.data.holdout_shards else 0', "apart = 0",
        SETTLING + "with_a_hold_out_of_its_own_no_image_of_the_set_is_held_out",
    ),
    Row(
        "a small set is sent to the papers' own recipe", "mpp/prep/advice.py", "if manifest.samples > FEW:", "if True:",
        "tests/prep/test_advice.py::test_a_small_set_goes_to_the_preset_of_its_usual_size",
    ),
    Row(
        "a class is told by its surface", "data_prep/demo_surfaces.py", "grain, shape = Draws(0, PREP, number, GRAIN)", "grain, shape = Draws(0, PREP, number, len(kind))",
        "tests/test_demo_surfaces.py::test_a_defect_lies_on_the_surface_that_its_number_has_without_one",
    ),
    Row(
        "all defects lie at one place", "data_prep/demo_surfaces.py", "Draws(0, PREP, number, SHAPE)", "Draws(0, PREP, 0, SHAPE)",
        "tests/test_demo_surfaces.py::test_a_defect_lies_on_the_surface_that_its_number_has_without_one",
    ),
    Row(
        "a smaller draw is another one", "data_prep/demo_surfaces.py", "Image.fromarray(draw(number, kind))", "Image.fromarray(draw(images - number, kind))",
        "tests/test_demo_surfaces.py::test_a_smaller_draw_is_the_beginning_of_a_larger_one",
    ),
]  # fmt: skip
