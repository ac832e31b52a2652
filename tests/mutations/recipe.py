"""Bugs that the tests of a recipe's choices must find."""

from tests.mutations import Plant, Row

HOG = "tests/recipe/test_hog.py::"
FEATURES, TEACHER, TAUGHT = (
    "tests/recipe/test_features_target.py::test_",
    "tests/train/test_teacher.py::test_",
    "tests/pipeline/test_teacher.py::test_",
)
ROWS: list[Plant | Row] = [
    # Block-wise masks.
    Plant(
        "hidden patches of a block mask come in reading order", "mpp.recipe.masks.block:BlockMask.draw",
        "lambda self, *words: Places(np.sort(real(self, *words).hidden))",
        "tests/recipe/test_block_mask.py::test_masked_swapped_and_kept_patches_lie_anywhere_in_the_blocks",
    ),
    Plant(
        "all block masks of a batch are the first one's", "mpp.recipe.masks.block:BlockMask.draw",
        "lambda self, grid, corruption, draws: Places(np.repeat(real(self, grid, corruption, draws).hidden[:1], len(draws), axis=0))",
        "tests/recipe/test_block_mask.py::test_a_batch_has_the_masks_of_its_samples_one_by_one",
    ),
    Plant(
        "what BEiT leaves short is filled in reading order", "mpp.recipe.masks.block:BlockMask.blocks",
        "lambda self, grid, count, draws: real(self, grid, count - 1, draws) | (np.arange(grid[0] * grid[1]) == "
        "np.flatnonzero(~real(self, grid, count - 1, draws))[0])",
        "tests/recipe/test_block_mask.py::test_blocks_are_beits_on_any_grid",
    ),
    Row(
        "shapes of blocks are uniform, so more are high than wide", "mpp/recipe/masks/block.py",
        "math.exp(low + (high - low) * next(numbers))",
        "self.aspect[0] + (self.aspect[1] - self.aspect[0]) * next(numbers)",
        "tests/recipe/test_block_mask.py::test_blocks_are_beits_on_any_grid",
    ),
    Row(
        "a block's row is a square grid's", "mpp/recipe/masks/block.py", "(top * columns + start)", "(top * rows + start)",
        "tests/recipe/test_block_mask.py::test_blocks_are_beits_on_any_grid",
    ),
    # Histograms of oriented gradients.
    Plant(
        "opposite gradients are two orientations", "mpp.recipe.targets.hog:orientation",
        "lambda right, down, bins: (torch.atan2(right, down) * (bins / math.pi)).long() % bins",
        HOG + "test_brightness_contrast_and_inversion_of_a_channel_change_nothing",
    ),
    Plant(
        "bins are counted from the horizontal", "mpp.recipe.targets.hog:orientation", "lambda right, down, bins: real(down, right, bins)",
        HOG + "test_a_ramp_votes_for_the_bin_of_its_direction_and_for_no_other",
    ),
    Plant(
        "gradients stop at the border of a patch", "mpp.recipe.targets.hog:Hog.__call__",
        "lambda self, images, masks, teacher=None: real(self, gather_patches(patchify(images, self.patch_size), masks.predicted).flatten(0, 1), "
        "masks._replace(predicted=masks.predicted.new_zeros(masks.predicted.numel(), 1))).unflatten(0, masks.predicted.shape).squeeze(2)",
        HOG + "test_a_gradient_reaches_one_pixel_into_the_next_patch_and_no_farther",
    ),
    Plant(
        "borders are repeated and not mirrored", "mpp.recipe.targets.hog:gradients",
        "lambda images: tuple(slope[..., 1:-1, 1:-1] for slope in real(F.pad(images, (1, 1, 1, 1), mode='replicate')))",
        HOG + "test_goals_are_those_of_plain_loops",
    ),
    Plant(
        "a patch's histograms share one length", "mpp.recipe.targets.hog:F.normalize", "lambda votes, dim: real(votes.flatten(-2), dim=-1).view(votes.shape)",
        HOG + "test_every_histogram_is_of_unit_length_and_not_negative",
    ),
    Plant(
        "a stroke runs along the gradient", "mpp.recipe.targets.hog:strokes", "lambda bins, side: real(bins, side).transpose(-1, -2)",
        HOG + "test_a_stroke_is_itself_an_edge_of_its_bin",
    ),
    # Features of a teacher.
    Plant(
        "features are of the first blocks", "mpp.model.encoder:Encoder.blocks",
        "lambda self, embeddings, visible=None, last=None: real(self, embeddings, visible)[1:][:last]",
        FEATURES + "goals_are_the_normed_mean_of_the_normed_outputs_of_the_teachers_last_blocks",
    ),
    Row(
        "features of blocks are averaged before they are normed", "mpp/recipe/targets/features.py",
        "self._normed(tokens) if self.norm_blocks else tokens", "tokens",
        FEATURES + "goals_are_the_normed_mean_of_the_normed_outputs_of_the_teachers_last_blocks",
    ),
    Row(
        "the class token is taken for a patch of the teacher", "mpp/recipe/teacher.py", "[:, self.net.prefix :]", "",
        FEATURES + "goals_are_the_normed_mean_of_the_normed_outputs_of_the_teachers_last_blocks",
    ),
    Row(
        "the teacher sees raw colours", "mpp/recipe/teacher.py", "self.net.embed(normalise(images, self.mean, self.std))", "self.net.embed(images)",
        FEATURES + "goals_are_the_normed_mean_of_the_normed_outputs_of_the_teachers_last_blocks",
    ),
    Row(
        "the teacher drops paths", "mpp/train/average.py", "copy.deepcopy(net).eval()", "copy.deepcopy(net)",
        FEATURES + "the_teacher_drops_no_path_and_draws_no_random_number",
    ),
    Row(
        "the teacher is rounded by autocast", "mpp/recipe/model.py", "torch.autocast(images.device.type, enabled=False)", "torch.no_grad()",
        FEATURES + "goals_and_loss_are_float32_under_autocast_to_bfloat16",
    ),
    Row(
        "the teacher is a part of the model", "mpp/recipe/model.py", "self._lent = [teacher]", "self._lent = nn.ModuleList([teacher])",
        FEATURES + "the_teacher_gets_no_gradient_keeps_nothing_for_one_and_is_no_part_of_the_model",
    ),
    Row(
        "a picture has components of its own for predictions", "mpp/recipe/targets/features.py", "points = truth.flatten(0, -2)", "points = goal.flatten(0, -2)",
        FEATURES + "a_picture_shows_three_principal_components_of_the_truth_and_predictions_on_the_same",
    ),
    # Whether a moving target still tells images apart.
    Row(
        "the place explains what the mean explains", "mpp/monitor/collapse.py", "(by_place / images - mean).square()", "(by_place / images).square()",
        "tests/monitor/test_collapse.py::test_the_share_that_the_place_explains_is_that_of_an_analysis_of_variance",
    ),
    Row(
        "a target that codes the place is no collapse", "mpp/monitor/collapse.py", "if share > MOSTLY:", "if share > 1:",
        "tests/monitor/test_collapse.py::test_a_run_whose_target_collapsed_ends_with_that_verdict",
    ),
    Row(
        "the collapse is looked for in the predicted patches alone", "mpp/mains/pretrain_looks.py",
        "model.target(images, everywhere(Masks(*masks)), model.teacher).flatten(2)", "model.target(images, Masks(*masks), model.teacher).flatten(2)",
        TAUGHT + "what_is_left_of_the_differences_between_images_is_measured_on_the_hold_out",
    ),
    Plant(
        "the ramp of the teacher counts steps and not samples", "mpp.recipe.teacher:TeacherKnobs.decay_at",
        "lambda self, samples_seen, *words: real(self, samples_seen // 4, *words)",
        TEACHER + "the_teacher_begins_as_the_encoder_and_follows_it_by_hand_over_three_steps",
    ),
    Row(
        "the teacher is the encoder itself", "mpp/train/average.py", "copy.deepcopy(net).eval().requires_grad_(False)", "net.eval()",
        TEACHER + "the_teacher_begins_as_the_encoder_and_follows_it_by_hand_over_three_steps",
    ),
    Plant(
        "the teacher begins again on resume", "mpp.train.average:WeightAverage.restore", "lambda self, commit: None",
        TAUGHT + "a_resumed_run_is_the_uninterrupted_one_bit_for_bit_its_teacher_too",
    ),
    Plant(
        "the teacher misses a step", "mpp.train.average:WeightAverage.update",
        "lambda self, engine, step: real(self, engine, step) if step not in (4, 8) else None",
        TAUGHT + "the_teacher_in_each_commit_is_the_average_by_hand_from_the_first_weights_on",
    ),
    Row(
        "the encoder that is handed on is the teacher", "mpp/interop/encoder_folder.py", '{"encoder": "weight/" + PREFIX, ', '{"encoder": "ema/vit.", ',
        TAUGHT + "the_encoder_that_is_handed_on_is_the_students",
    ),
]  # fmt: skip
