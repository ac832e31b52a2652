"""Bugs that the tests of fine-tuning must find."""

from tests.mutations import Plant, Row

CROPS = "tests/data/test_labelled_crops.py::test_"
MODEL = "tests/model/test_classifier.py::test_"
STEP = "tests/train/test_classify.py::test_"
DECAY = "tests/train/test_layer_decay.py::test_"
RUN = "tests/pipeline/test_finetune.py::test_"
HAND = "tests/pipeline/test_finetune_by_hand.py::test_"
SET = "tests/data/test_finetune_set.py::test_"
CONFIG = "tests/config/test_finetune.py::test_"
FIELDS = "tests/pipeline/test_finetune_fields.py::test_"
REPEATS = "tests/pipeline/test_finetune_repeats.py::test_"
FIGURES = "tests/pipeline/test_finetune_figures.py::test_"
FOLDER = "tests/interop/test_encoder_folder.py::test_"

ROWS = [
    # What a step sees.
    Plant(
        "partners depend on the micro-batch", "mpp.data.crop_dataset:CropDataset._columns",
        "lambda self, keys, shown: real(self, [(epoch, sample, place - keys[0][2]) for epoch, sample, place in keys], shown)", CROPS + "world_and_micro_batch_change_nothing_not_even_partners",
    ),
    Row(
        "a pair is parted", "mpp/data/batch_plan.py", "plan = plan_batch(global_batch, streams, world, micro_batch_max, together)",
        "plan = plan_batch(global_batch, streams, world, micro_batch_max)", CROPS + "world_and_micro_batch_change_nothing_not_even_partners",
    ),
    Plant(
        "the two of a pair have shares of their own", "mpp.data.crop_dataset:CropDataset._columns",
        "lambda self, keys, shown: real(self, [(epoch, sample, 2 * place) for epoch, sample, place in keys], shown)",
        CROPS + "world_and_micro_batch_change_nothing_not_even_partners",
    ),
    Plant(
        "every epoch erases and colours alike", "mpp.data.crop_dataset:seed_of", "lambda seed, purpose, epoch, *rest: real(seed, purpose, 0, *rest)",
        CROPS + "colours_are_timms_rand_augment_under_the_samples_own_seed_and_the_global_generators_stay",
    ),
    Row(
        "RandAugment leaves the global generator elsewhere", "mpp/data/recolour.py", "        random.setstate(python)\n", "",
        CROPS + "colours_are_timms_rand_augment_under_the_samples_own_seed_and_the_global_generators_stay",
    ),
    Plant(
        "a replaced sample keeps its label", "mpp.data.crop_dataset:CropDataset._columns",
        "lambda self, keys, shown: real(self, keys, torch.tensor([sample for _, sample, _ in keys]))",
        CROPS + "a_replaced_sample_brings_its_own_label_and_stands_within_the_ids",
    ),
    Plant(
        "an image outside of the chosen ones stands in", "mpp.data.crop_dataset:CropDataset.stand_in",
        "lambda self, sample, step: (sample + step) % len(self.labels)",
        CROPS + "a_replaced_sample_brings_its_own_label_and_stands_within_the_ids",
    ),
    Row(
        "the order takes images that were not chosen", "mpp/data/order.py", "ids = self.chosen[ids]", "pass", CROPS + "the_order_over_some_images_takes_each_of_them_once_an_epoch",
    ),
    Row(
        "cutmix keeps the share that was drawn", "mpp/data/mixing.py", "return 1 - (box[2] - box[0]) * (box[3] - box[1]) / (width * height), box", "return share, box",
        CROPS + "a_box_covers_what_the_partner_gives_and_mixup_has_none",
    ),
    Row(
        "targets are not mixed", "mpp/model/classifier.py", "return targets * share[:, None] + partners(targets) * (1 - share[:, None])", "return targets",
        MODEL + "targets_are_timms",
    ),
    Row(
        "smoothing takes from the true class alone", "mpp/model/classifier.py", "1 - smoothing + smoothing / classes)", "1 - smoothing)", MODEL + "targets_are_timms",
    ),
    Row(
        "the box is pasted upright where it lies", "mpp/train/classify.py", "inside = (rows >= top) & (rows < bottom) & (columns >= left)",
        "inside = (rows >= left) & (rows < right) & (columns >= top)", MODEL + "a_pair_is_mixed_as_timm_mixes_it",
    ),
    Row(
        "all erased boxes show one noise", "mpp/train/classify.py", "torch.Generator(device).manual_seed(seed)", "torch.Generator(device).manual_seed(0)",
        STEP + "images_are_flipped_normalised_and_erased_with_the_samples_own_noise",
    ),
    # The model.
    Row(
        "a classifier has its final norm behind the pooling", "mpp/model/classifier.py", "wanted[behind] = config.norm == \"pooled\" or isinstance(net.norm, nn.Identity)", "pass",
        MODEL + "at_its_own_size_the_encoder_is_carried_over_bit_for_bit",
    ),
    Row(
        "another grid has positions of its own", "mpp/model/classifier.py", "    if fresh and positions is not None", "    if positions is not None",
        MODEL + "a_slope_in_learned_positions_stays_a_slope_along_each_side",
    ),
    Row(
        "height and width are exchanged", "mpp/model/classifier.py", "net.set_input_size(img_size=size,", "net.set_input_size(img_size=size[::-1],",
        MODEL + "a_slope_in_learned_positions_stays_a_slope_along_each_side",
    ),
    Row(
        "fixed positions are trained", "mpp/model/classifier.py", "            parameter.requires_grad_(False)  # fixed", "            pass  # fixed", MODEL + "fixed_positions_stay_fixed",
    ),
    Row(
        "the first block learns as slowly as the embeddings", "mpp/train/optim.py", "int(block[1]) + 1 if block else", "int(block[1]) if block else",
        DECAY + "layers_are_numbered_as_maes_code_numbers_them",
    ),
    Row(
        "the head decays by a layer", "mpp/train/optim.py", "layer_decay ** (last - key[0])", "layer_decay ** (last + 1 - key[0])",
        DECAY + "rates_and_decay_are_timms_but_for_the_final_norm_which_learns_with_the_head",
    ),
    # What is measured.
    Row(
        "padding counts", "mpp/train/classify.py", "batch[\"position\"].numpy() < len(data.ids)", "batch[\"position\"].numpy() >= 0",
        STEP + "every_image_is_measured_once_and_in_the_order_of_the_ids",
    ),
    Row(
        "images counted twice pass", "mpp/train/classify.py", "if not (times == 1).all():", "if not (times >= 1).all():", STEP + "a_measurement_that_counts_an_image_twice_fails",
    ),
    Row(
        "few labels are not class-balanced", "mpp/transfer/split.py", "    return np.sort(members[place < np.array(wanted, np.int64)[of]])", "    return np.sort(members[: sum(wanted)])",
        "tests/transfer/test_few_labels.py::test_every_class_gives_its_share_and_at_least_one",
    ),
    Plant(
        'the average has a long memory from the start', 'mpp.train.average:short_at_first',
        'lambda decay: lambda step: decay',
        STEP + "the_average_follows_its_formula_and_starts_with_a_short_memory",
    ),
    Plant(
        'the average starts again on resume', 'mpp.train.average:WeightAverage.restore',
        'lambda self, commit: None',
        RUN + "a_resumed_run_is_bit_identical_its_average_too",
    ),
    Row(
        "all layers learn alike", "mpp/train/engine.py", "learning_rate * group.get(\"lr_scale\", 1.0)", "learning_rate", RUN + "layers_learn_at_their_own_rates",
    ),
    # A whole run, computed again by hand.
    Row(
        'weights are chosen on the test split', 'mpp/mains/finetune_end.py',
        '        on_holdout = measured(tuned, sets.holdout)',
        '        on_holdout = measured(tuned, sets.test or sets.holdout)',
        HAND + "the_holdout_chooses_though_the_test_split_would_choose_otherwise",
    ),
    Row(
        'the weights as they are leave the run whatever was chosen', 'mpp/mains/finetune_end.py',
        'final_weights(run.engine, tuned.average if chosen == AVERAGE else None)',
        'final_weights(run.engine, None)',
        HAND + "the_holdout_chooses_though_the_test_split_would_choose_otherwise",
    ),
    Row(
        "from scratch keeps the encoder", "mpp/mains/finetune_job.py", "loaded.fresh(seed_of(config.seed, INIT, 0)) if random else copy", "copy",
        HAND + "from_scratch_nothing_of_the_encoder_is_left",
    ),
    Row(
        "the new head has one width whatever is asked for", "mpp/model/classifier.py", "head.weight.normal_(std=config.head_std)", "head.weight.normal_(std=0.02)",
        HAND + "the_first_weights_are_the_encoders_on_another_grid_and_a_new_head",
    ),
    Row(
        'the average takes the weights before the step', 'mpp/train/run.py',
        '            self.norm = run.engine.update(self.rate, self.weight_decay, by_depth=self.logs)\n            if run.average:',
        '            average, engine, update = run.average, run.engine, run.engine.update\n            average and average.update(engine, self.number)\n'
        '            self.norm = update(self.rate, self.weight_decay, by_depth=self.logs)\n            if False:',
        HAND + "the_average_after_every_step",
    ),
    Plant(
        "the average's clock is a step late", 'mpp.train.average:WeightAverage.update',
        'lambda self, engine, step: real(self, engine, step - 1)',
        HAND + "the_average_after_every_step",
    ),
    Row(
        'the average has a decay of its own', 'mpp/mains/finetune.py',
        'short_at_first(config.optim.ema)',
        'short_at_first(0.99)',
        HAND + "the_average_after_every_step",
    ),
    Row(
        "targets are not smoothed", "mpp/mains/finetune.py", "len(sets.classes), augment.smoothing, loaded.mean", "len(sets.classes), 0.0, loaded.mean",
        HAND + "rate_loss_and_norm_of_every_step_with_adamw",
    ),
    Row(
        "training normalises by other colours than the encoder's", "mpp/mains/finetune.py", "augment.smoothing, loaded.mean, loaded.std, world.device)",
        "augment.smoothing, (0.5,) * 3, (0.5,) * 3, world.device)", HAND + "rate_loss_and_norm_of_every_step_with_adamw",
    ),
    Row(
        "measuring normalises by other colours than the encoder's", 'mpp/mains/finetune_end.py',
        '        mean=loaded.mean,\n        std=loaded.std,\n        micro_batch=run',
        '        mean=(0.5,) * 3,\n        std=(0.5,) * 3,\n        micro_batch=run',
        HAND + "every_look_at_the_holdout_from_scratch",
    ),
    Row(
        'every step drops the same paths', 'mpp/train/run.py',
        'DROP_PATH, done, run.world.rank',
        'DROP_PATH, 0, run.world.rank',
        HAND + "rate_loss_and_norm_of_every_step_with_adamw",
    ),
    Row(
        "gradients are summed over a micro-batch", "mpp/mains/finetune.py", "step.backward(loss.mean())", "step.backward(loss.sum())",
        HAND + "rate_loss_and_norm_of_every_step_with_sgd",
    ),
    Row(
        'the rate is a step ahead', 'mpp/train/run.py',
        'learning_rate(done * run.global_batch',
        'learning_rate((done + 1) * run.global_batch',
        HAND + "rate_loss_and_norm_of_every_step_with_sgd",
    ),
    Row(
        'nothing is clipped', 'mpp/train/run.py',
        'world, system, self.config.optim.clip_norm)',
        'world, system, 0.0)',
        HAND + "weights_after_every_step_of_adamw",
    ),
    Row(
        'the hold-out is measured in training mode', 'mpp/mains/finetune_end.py',
        '        run.engine.train(False)\n',
        '',
        HAND + "every_look_at_the_holdout_of_weights_and_average",
    ),
    Row(
        'after a look at the hold-out no path is dropped any more', 'mpp/mains/finetune_end.py',
        '        run.engine.train(True)\n',
        '',
        HAND + "rate_loss_and_norm_of_every_step_with_adamw",
    ),
    Row(
        "the hold-out is looked at every epoch", "mpp/mains/finetune.py", "order.steps_per_epoch * config.log.holdout_every_epochs", "order.steps_per_epoch",
        HAND + "every_look_at_the_holdout_from_scratch",
    ),
    Row(
        "the hold-out has one size whatever is asked for", "mpp/mains/finetune_job.py", "fraction=data.holdout_fraction,", "fraction=0.1,", HAND + "the_results_count_what_was_seen[sgd-job1-random]",
    ),
    Row(
        "a share of the labels is all of them", "mpp/mains/finetune_job.py", "fraction=data.label_fraction, per_class", "fraction=None, per_class",
        HAND + "the_results_count_what_was_seen[adamw-job0-pretrained]",
    ),
    Row(
        "few labels of a class are all of them", "mpp/mains/finetune_job.py", "per_class=data.labels_per_class", "per_class=None", HAND + "the_results_count_what_was_seen[sgd-job1-random]",
    ),
    Row(
        'samples seen are the images there are', 'mpp/mains/finetune_end.py',
        '"samples_seen": commit.samples_seen,',
        '"samples_seen": about["train_images"],',
        HAND + "the_results_count_what_was_seen[sgd-job1-random]",
    ),
    # What was asked for arrives.
    Row("the cosine ends at nothing", "mpp/mains/finetune_job.py", "        final_lr=optim.final_lr,\n", "", CONFIG + "the_schedule_has_every_number_that_was_asked_for"),
    Row("the rate is not scaled with the batch", "mpp/mains/finetune_job.py", "        lr_batch=optim.lr_batch,\n", "", CONFIG + "the_schedule_has_every_number_that_was_asked_for"),
    Row("the warm-up is always in epochs", "mpp/mains/finetune_job.py", "optim.warmup_steps if optim.warmup_steps is not None else ", "", CONFIG + "the_schedule_has_every_number_that_was_asked_for"),
    Row(
        "fine-tuning has AdamW's usual betas", "mpp/train/optim.py", "momentum=optim.momentum, fused=True)\n    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, ",
        "momentum=optim.momentum, fused=True)\n    return torch.optim.AdamW(groups, lr=0.0, ", DECAY + "each_optimiser_has_the_numbers_that_were_asked_for",
    ),
    Row(
        "fine-tuning has AdamW's usual epsilon", "mpp/train/optim.py", "momentum=optim.momentum, fused=True)\n    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, eps=optim.eps, ",
        "momentum=optim.momentum, fused=True)\n    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, ", DECAY + "each_optimiser_has_the_numbers_that_were_asked_for",
    ),
    Row("SGD has no momentum of its own", "mpp/train/optim.py", "momentum=optim.momentum", "momentum=0.9", DECAY + "each_optimiser_has_the_numbers_that_were_asked_for"),
    Row(
        "norms and biases decay, matrices do not", "mpp/train/optim.py", "0.0 if key[1] else weight_decay", "weight_decay if key[1] else 0.0",
        DECAY + "rates_and_decay_are_timms_but_for_the_final_norm_which_learns_with_the_head",
    ),
    Row("no path is dropped", "mpp/model/classifier.py", "        wanted[\"drop_path_rate\"] = config.drop_path\n", "        pass\n", MODEL + "drop_path_grows_to_the_rate_of_the_last_block"),
    Row("whole images are measured", "mpp/data/finetune_set.py", "Centre(size, config.data.test_crop)", "Centre(size, 1.0)", SET + "training_crops_are_made_as_asked_for_and_measured_ones_are_plain_centres"),
    Row(
        "what is measured is cropped at random", "mpp/data/finetune_set.py", "        Centre(size, config.data.test_crop),\n", "        Augment(size, (0.2, 1.0), (0.75, 1.33), True, False, False),\n",
        SET + "training_crops_are_made_as_asked_for_and_measured_ones_are_plain_centres",
    ),
    Row("a quarter is erased", "mpp/data/finetune_set.py", "erasing=augment.erasing,", "erasing=0.25,", SET + "training_crops_are_made_as_asked_for_and_measured_ones_are_plain_centres"),
    Row(
        "alphas of mixup and cutmix are exchanged", "mpp/data/finetune_set.py", "Mixing(augment.mixup, augment.cutmix,", "Mixing(augment.cutmix, augment.mixup,",
        SET + "training_crops_are_made_as_asked_for_and_measured_ones_are_plain_centres",
    ),
    Row(
        "crops are wanted in the ratio of a square", "mpp/data/finetune_set.py", "ratio = (augment.crop_ratio[0] * width / height, augment.crop_ratio[1] * width / height)",
        "ratio = augment.crop_ratio", SET + "training_crops_are_made_as_asked_for_and_measured_ones_are_plain_centres",
    ),
    Row("held out images are trained on", "mpp/data/finetune_set.py", "kept, held = hold_out(train.labels, ", "_, held = hold_out(train.labels, ", SET + "training_crops_are_made_as_asked_for_and_measured_ones_are_plain_centres"),
    Row("the share of cutmix is mixup's", "mpp/data/mixing.py", "kind < self.cut)", "kind >= self.cut)", CROPS + "one_pair_in_five_is_cut_where_that_is_asked_for_and_each_kind_has_its_own_alpha"),
    Row(
        "boxes have mixup's alpha", "mpp/data/mixing.py", "self.cutmix if cuts else self.mixup", "self.mixup if cuts else self.cutmix",
        CROPS + "one_pair_in_five_is_cut_where_that_is_asked_for_and_each_kind_has_its_own_alpha",
    ),
    Row("the config's page grows without a test", "mpp/config/finetune.py", "    holdout_every_epochs: Positive = 1", "    sounds: Positive = 1\n    holdout_every_epochs: Positive = 1", FIELDS + "the_table_has_every_field_and_no_other"),
    Plant(
        'a logged loss is the mean from the beginning', 'mpp.train.meters:Meters.look',
        'lambda self, clear: real(self, False)',
        FIELDS + "a_logged_loss_is_the_mean_since_the_line_before",
    ),
    Row(
        'without a hold-out the average is not asked', 'mpp/mains/finetune_end.py',
        'if on_holdout else AVERAGE if tuned.average else WEIGHTS',
        'if on_holdout else WEIGHTS',
        FIELDS + "without_a_test_split_the_holdout_is_reported_and_without_a_holdout_the_average",
    ),
    Row(
        'a resumed run has seen no bad sample', 'mpp/train/run.py',
        'self.bad_samples = commit.record["bad_samples"]',
        'self.bad_samples = 0',
        FIELDS + "a_resumed_run_goes_on_counting_bad_samples_and_seconds",
    ),
    Row(
        'a resumed run begins its seconds anew', 'mpp/mains/finetune.py',
        'round(seconds_before + run.speed.seconds',
        'round(run.speed.seconds',
        FIELDS + "a_resumed_run_goes_on_counting_bad_samples_and_seconds",
    ),
    Row("predictions of two processes stay in the order they came", "mpp/train/classify.py", "        predicted[order].astype", "        predicted.astype", STEP + "two_processes_find_of_every_image_what_one_finds"),
    Row("confidences of two processes stay in the order they came", "mpp/train/classify.py", "        confidence[order].astype", "        confidence.astype", STEP + "two_processes_find_of_every_image_what_one_finds"),
    Row("labels of two processes stay in the order they came", "mpp/train/classify.py", "        truth[order].astype", "        truth.astype", STEP + "two_processes_find_of_every_image_what_one_finds"),
    Row(
        "the loss is of this process's images", "mpp/train/classify.py", "float(losses[order].mean())", "float(mine[4].mean())", STEP + "two_processes_find_of_every_image_what_one_finds",
    ),
    Row(
        'the test split is read with what was not chosen, too', 'mpp/mains/finetune_end.py',
        'measured(tuned, sets.test, names=[chosen])',
        'measured(tuned, sets.test)',
        HAND + "the_holdout_chooses_though_the_test_split_would_choose_otherwise",
    ),
    # Repeats.
    Plant(
        "all repeats draw the same labels", "mpp.data.finetune_set:FinetuneSet.redrawn",
        "lambda self, seed, few_labels: replace(self, training=replace(self.training, seed=seed))",
        SET + "another_draw_takes_other_labels_and_holds_out_the_same " + REPEATS + "a_repeat_is_bit_equal_to_the_same_seed_alone_on_the_same_holdout[2]",
    ),
    Plant(
        "each repeat holds out other images", "mpp.mains.finetune_job:repeat_of",
        "lambda job, number: real(__import__('dataclasses').replace(job, sets=open_job(config_of_repeat(job.config, number, job.run_dir).model_copy("
        "update={'data': job.config.data}), job.run_dir, job.argv).sets), number) if number else real(job, number)",
        REPEATS + "a_repeat_is_bit_equal_to_the_same_seed_alone_on_the_same_holdout[2]",
    ),
    Plant(
        "a repeat alone would hold out other images", "mpp.mains.finetune_job:config_of_repeat",
        "lambda config, number, run_dir: real(config, number, run_dir).model_copy(update={'data': config.data})",
        CONFIG + "a_repeat_is_asked_for_as_a_run_alone_with_a_seed_of_its_own_and_the_holdout_of_all",
    ),
    Row(
        "all repeats begin with the same head", "mpp/mains/finetune.py", "build = lambda repeat: classifier_of(repeat.config,", "build = lambda repeat: classifier_of(job.config,",
        REPEATS + "a_repeat_is_bit_equal_to_the_same_seed_alone_on_the_same_holdout[2]",
    ),
    Plant(
        "a repeat that has finished is done again", "mpp.mains.finetune_job:is_measured", "lambda repeat, seal: False",
        REPEATS + "more_repeats_are_added_to_those_that_have_finished_which_are_left_alone",
    ),
    Plant(
        "results chosen by another metric count as measured", "mpp.mains.finetune_job:_measures_alike", "lambda found, job: True",
        REPEATS + "another_metric_chooses_anew_from_what_was_trained",
    ),
    Plant(
        "each repeat reads the test split anew", "mpp.mains.finetune_job:Job.read_test", "lambda self, world: (setattr(self, 'reads', 0), real(self, world))[1]",
        REPEATS + "the_test_split_is_read_once_for_all_repeats",
    ),
    Plant(
        "the joint result holds the first repeat alone", "mpp.mains.finetune_report:side_by_side", "lambda folders, row, probe: real([folders[0]] * len(folders), row, probe)",
        REPEATS + "the_one_result_joins_the_repeats_draws_by_images",
    ),
    Row(
        "repeats are listed beside the joint result", "mpp/transfer/repeats.py", 'MEASURED = "measured.json"', 'MEASURED = "results.json"',
        REPEATS + "the_one_result_joins_the_repeats_draws_by_images",
    ),
    Plant(
        "the encoder of a series is the first repeat's", "mpp.mains.finetune_report:best_repeat", "lambda found, metric: 0",
        FIGURES + "the_best_repeat_is_the_first_of_the_best_on_the_holdout_by_the_metric",
    ),
    Plant(
        "a series is extended in part", "mpp.mains.finetune_job:refuse_unlike", "lambda repeats: None", REPEATS + "what_would_mix_unlike_repeats_is_refused",
    ),
    Plant(
        "a repeat that was measured is left out", "mpp.mains.finetune_job:refuse_other_layout", "lambda config, run_dir: None", REPEATS + "what_would_mix_unlike_repeats_is_refused",
    ),
    Row(
        "repeats of other rates are a way out", "mpp/train/resume.py", "    if repeats > 1:\n", "    if repeats > 9:\n",
        "tests/train/test_course.py::test_the_way_out_leads_to_the_newest_commit_that_can_be_gone_on_from",
    ),
    # Unequal classes.
    Plant(
        "every choice is by top-1", "mpp.train.classify:Predictions.figure", "lambda self, metric: self.accuracy",
        STEP + "balanced_accuracy_is_scikit_learns_over_the_classes_that_have_images",
    ),
    Row(
        "class weights are those of a micro-batch", "mpp/train/classify.py", "parts if weight is None else parts * weight)", "parts if weight is None else parts * weight / weight.mean())",
        STEP + "the_loss_is_torchs_weighted_or_not_on_soft_and_on_mixed_targets",
    ),
    Row(
        "a class without labels counts in the weights", "mpp/train/classify.py", "(counts > 0).sum())", "classes)",
        STEP + "balanced_weights_are_scikit_learns_and_those_of_a_class_without_labels_are_0",
    ),
    Row(
        "class weights are of labels that are not trained on", "mpp/mains/finetune.py", "balanced_weights(sets.labels,", "balanced_weights(sets.training.labels,",
        FIELDS + "a_field_changes_what_it_is_said_to_change_and_nothing_else[optim.class_weight]",
    ),
    Row(
        "a top-1 below the largest class passes unnoticed", "mpp/transfer/rows.py", "named = int(counts.argmax())", "named = int(counts.argmin())",
        FIGURES + "a_top_1_below_the_largest_class_cannot_pass_unnoticed",
    ),
    # What an encoder's own pretraining was.
    Row(
        "each seed is a recipe of its own", "mpp/interop/pretraining.py", '    del known["seed"]\n', "",
        FOLDER + "seeds_of_one_pretraining_recipe_are_told_from_other_recipes_wherever_the_encoder_lies",
    ),
    Row(
        "an encoder that was moved forgets its pretraining", "mpp/mains/pretrain.py", "commit.seal, pretraining_of(commit, network))", "commit.seal)",
        FOLDER + "seeds_of_one_pretraining_recipe_are_told_from_other_recipes_wherever_the_encoder_lies",
    ),
]  # fmt: skip
