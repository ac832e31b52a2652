"""Bugs of looking at the features while an encoder is pretrained."""

from tests.mutations import Plant, Row

FILE = "mpp/transfer/while_training.py"
SIGNS = "tests/monitor/test_signs.py::test_"
UNIT, RUNS = "tests/transfer/test_while_training.py::test_", "tests/pipeline/test_features_while_training.py::test_"
ROWS: list[Plant | Row] = [
    Row(
        "what fills a batch up is drawn", "mpp/mains/pretrain_looks.py", "min(config.log.pictures, int(weight.sum()))", "config.log.pictures",
        "tests/monitor/test_pictures.py::test_a_batch_that_is_filled_up_is_drawn_without_what_fills_it_up",
    ),
    Row(
        "those asked about are trained on", FILE, "asked = ids_of(sets.holdout, round", "asked = ids_of(sets.training, round",
        UNIT + "those_asked_about_are_held_out_and_the_bank_is_trained_on",
    ),
    Row(
        "a look costs what it likes", FILE, "images = int(min(asked.images, affordable / LEAST_LOOKS))", "images = asked.images",
        UNIT + "looks_cost_a_hundredth_of_the_samples_at_most_and_are_five_to_twenty",
    ),
    Row(
        "a stand-in is looked at twice", FILE, '~batch["replaced"] if batch', '~(batch["replaced"] & False) if batch',
        UNIT + "an_image_that_cannot_be_read_is_left_out",
    ),
    Row(
        "shares of processes stay as they come", FILE, "return ids[order], values[torch.from_numpy(order)]", "return ids, values",
        UNIT + "figures_are_those_of_the_features_and_the_same_on_any_number_of_processes",
    ),
    Row(
        "labels stand beside other images", FILE,
        "[self.chosen.of_bank.labels_of(bank_ids), self.chosen.of_asked.labels_of(asked_ids)]", "[self.chosen.of_bank.labels_of(asked_ids), self.chosen.of_asked.labels_of(bank_ids)]",
        UNIT + "classes_that_features_tell_apart_are_told_apart_and_shuffled_ones_are_not",
    ),
    Row(
        "the bank is part of the rank", FILE, "in spread(new).items()", "in spread(torch.cat([known, new])).items()",
        UNIT + "figures_are_those_of_the_features_and_the_same_on_any_number_of_processes",
    ),
    Row(
        "a look leaves the model in evaluation mode", "mpp/mains/pretrain_looks.py",
        "gathered, samples_seen)\n    run.engine.train(True)\n", "gathered, samples_seen)\n",
        RUNS + "a_run_that_is_looked_at_has_the_weights_of_one_that_is_not",
    ),
    Row(
        "a run that begins keeps the rows of another", "mpp/monitor/board.py", "if samples_seen else []  # a run", "if True else []  # a run",
        RUNS + "a_run_that_begins_anew_has_its_own_look_at_the_beginning_alone",
    ),
    Row(
        "skill that rises is complained of", "mpp/monitor/signs.py", "skill < self._skill + margin:", "True:", SIGNS + "early_or_uncertain_skill_says_nothing",
    ),
    Row(
        "early skill counts", "mpp/monitor/signs.py", "if skill is not None and samples >= course.settled:", "if skill is not None:",
        SIGNS + "early_or_uncertain_skill_says_nothing",
    ),
    Row(
        "the noise of single steps is a loss that rises", "mpp/monitor/signs.py", "if seen > since] +", "if False] +",
        SIGNS + "rows_of_single_steps_are_no_rise_by_their_noise",
    ),
    Row(
        "a skill that has risen is called no better", "mpp/monitor/skill.py", 'if skill > began else "no better"', 'if False else "no better"',
        "tests/monitor/test_skill.py::test_the_verdict_is_on_the_last_skill_beyond_what_the_images_leave_open",
    ),
    Row(
        "a run too short for looks says nothing of it", FILE, 'else [f"features are not looked at', 'else [] and [f"features are not looked at',
        UNIT + "a_short_run_is_not_looked_at_and_none_is_where_nobody_wants_it",
    ),
    Row(
        "a few short steps are called waiting", "mpp/monitor/signs.py", " and self._waiting >= WAITED_SECONDS:", ":",
        SIGNS + "waiting_is_said_when_it_lasts_for_three_rows_and_a_minute",
    ),
    Row(
        "a flat channel is passed over", "mpp/data/shards.py", "if deviation <= LEAST_DEVIATION]", "if deviation < LEAST_DEVIATION]",
        "tests/pipeline/test_signs.py::test_a_channel_that_is_the_same_everywhere_is_told_before_the_first_step",
    ),
    Row(
        "a note is repeated", "mpp/monitor/signs.py", "        self.said |= found.keys()\n", "", SIGNS + "skill_that_says_that_something_is_wrong_is_said_once",
    ),
    Row(
        "a resumed run explains itself once more", "mpp/monitor/board.py", "        signs.see_again(rows_of(self.run_dir))\n", "",
        "tests/pipeline/test_signs.py::test_a_rate_that_teaches_nothing_is_told_while_the_run_goes_on_and_not_again_when_it_is_resumed",
    ),
    Row(
        "a figure is written that no table knows", "mpp/mains/pretrain.py", '"target/own_loss": own / times', '"target/own": own / times',
        "tests/pipeline/test_figures.py::test_a_run_writes_the_figures_of_the_table_and_no_others[pretraining]",
    ),
    Row(
        "a figure of the table is written by nobody", "mpp/mains/finetune_end.py", 'f"{kind}/balanced_accuracy": final.balanced_accuracy', 'f"{kind}/accuracy": final.accuracy',
        "tests/pipeline/test_figures.py::test_a_run_writes_the_figures_of_the_table_and_no_others[fine-tuning]",
    ),
    Row(
        "a figure's pattern goes before its name", "mpp/monitor/figures.py", "known.get(name) or next(", "next(",
        "tests/monitor/test_figures.py::test_a_figure_is_found_by_its_name_or_by_the_pattern_it_fits",
    ),
    Row(
        "features that shrink in the warm-up are a collapse", "mpp/monitor/signs.py", ' and row["samples"] >= self.course.settled, LOOKS', ", LOOKS",
        SIGNS + "features_that_shrink_to_a_quarter_have_collapsed",
    ),
    Row(
        "one look is enough for a collapse", "mpp/monitor/signs.py", "LOOKS_IN_A_ROW = 2", "LOOKS_IN_A_ROW = 1", SIGNS + "features_that_shrink_to_a_quarter_have_collapsed",
    ),
    Row(
        "a skill that is nearly perfect is good news", "mpp/monitor/signs.py", "elif skill - margin > PERFECT:", "elif skill > 1:",
        SIGNS + "skill_that_says_that_something_is_wrong_is_said_once",
    ),
    Row(
        "an uncertain skill is nearly perfect", "mpp/monitor/signs.py", "elif skill - margin > PERFECT:", "elif skill > PERFECT:",
        SIGNS + "early_or_uncertain_skill_says_nothing",
    ),
    Row(
        "a skill that has risen to that of the trivial predictor is held against the run", "mpp/monitor/signs.py", " and skill < self._settled_skill + margin:", ":",
        SIGNS + "early_or_uncertain_skill_says_nothing",
    ),
    Row(
        "a deviation that was large may not shrink", "mpp/monitor/signs.py", "value < min(SHRUNK * first, least)", "value < SHRUNK * first",
        SIGNS + "a_deviation_that_is_not_small_is_no_collapse_however_large_it_was",
    ),
]  # fmt: skip
