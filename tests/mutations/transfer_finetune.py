"""Bugs that the tests of fine-tuning must find."""

from tests.mutations import Row

CROPS = "tests/data/test_labelled_crops.py::test_"
MODEL = "tests/model/test_classifier.py::test_"
STEP = "tests/train/test_classify.py::test_"
DECAY = "tests/train/test_layer_decay.py::test_"
RUN = "tests/pipeline/test_finetune.py::test_"

ROWS = [
    # What a step sees.
    Row(
        "partners depend on the micro-batch", "mpp/data/labelled_crops.py", "self.mixing.draw(self.seed, position // 2, height, width)",
        "self.mixing.draw(self.seed, (position - keys[0][2]) // 2, height, width)", CROPS + "world_and_micro_batch_change_nothing_not_even_partners",
    ),
    Row(
        "a pair is parted", "mpp/data/order.py", "plan = plan_batch(global_batch, streams, world, micro_batch_max, together)",
        "plan = plan_batch(global_batch, streams, world, micro_batch_max)", CROPS + "world_and_micro_batch_change_nothing_not_even_partners",
    ),
    Row(
        "the two of a pair have shares of their own", "mpp/data/labelled_crops.py", "self.mixing.draw(self.seed, position // 2,", "self.mixing.draw(self.seed, position,",
        CROPS + "world_and_micro_batch_change_nothing_not_even_partners",
    ),
    Row(
        "every epoch erases and colours alike", "mpp/data/labelled_crops.py", "seed_of(self.seed, RAND_AUGMENT, epoch, sample)", "seed_of(self.seed, RAND_AUGMENT, 0, sample)",
        CROPS + "colours_are_timms_rand_augment_under_the_samples_own_seed_and_the_global_generators_stay",
    ),
    Row(
        "RandAugment leaves the global generator elsewhere", "mpp/data/labelled_crops.py", "        random.setstate(python)\n", "",
        CROPS + "colours_are_timms_rand_augment_under_the_samples_own_seed_and_the_global_generators_stay",
    ),
    Row(
        "a replaced sample keeps its label", "mpp/data/labelled_crops.py", "self.labels[shown.numpy()]", "self.labels[[sample for _, sample, _ in keys]]",
        CROPS + "a_replaced_sample_brings_its_own_label_and_stands_within_the_ids",
    ),
    Row(
        "an image outside of the chosen ones stands in", "mpp/data/labelled_crops.py",
        "int(self.ids[(int(np.searchsorted(self.ids, sample)) + step) % len(self.ids)])", "(sample + step) % len(self.labels)",
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
        "unreadable images are measured as another", "mpp/train/classify.py", "        for fault in batch[\"bad\"]:\n", "        for fault in ():\n",
        STEP + "a_measurement_leaves_no_image_out",
    ),
    Row(
        "few labels are not class-balanced", "mpp/transfer/split.py", "members = order[labels[order] == label]\n        count = per_class", "members = order\n        count = per_class",
        "tests/transfer/test_few_labels.py::test_every_class_gives_its_share_and_at_least_one",
    ),
    Row(
        "the average has a long memory from the start", "mpp/train/average.py", "min(self.decay, (1 + step) / (10 + step))", "self.decay",
        STEP + "the_average_follows_its_formula_and_starts_with_a_short_memory",
    ),
    Row(
        "the average starts again on resume", "mpp/finetuning.py", "            average.restore(commit)\n", "            pass\n", RUN + "a_resumed_run_is_bit_identical_its_average_too",
    ),
    Row(
        "all layers learn alike", "mpp/train/engine.py", "learning_rate * group.get(\"lr_scale\", 1.0)", "learning_rate", RUN + "layers_learn_at_their_own_rates",
    ),
]  # fmt: skip
