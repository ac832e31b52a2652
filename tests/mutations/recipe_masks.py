"""Bugs that the tests of masks, corruptions and the classic pretexts must find."""

from tests.mutations import Plant, Row

MASKS = "tests/recipe/test_masks.py::test_"
CORRUPTIONS = "tests/recipe/test_corruptions.py::test_"
PRETEXTS = "tests/recipe/test_pretexts.py::test_"
SIMMIM = "tests/recipe/test_simmim_oracle.py::test_"
ROWS: list[Plant | Row] = [
    # Masks.
    Row(
        "units are laid on a grid of columns x rows", "mpp/recipe/masks/random.py", "grid[0] // self.unit, grid[1] // self.unit)",
        "grid[1] // self.unit, grid[0] // self.unit)", MASKS + "units_are_hidden_whole_and_as_simmims_generator_draws_them",
    ),
    Plant(
        "hidden patches of units come in reading order", "mpp.recipe.masks.random:RandomMask.draw",
        "lambda self, *words: Places(np.sort(real(self, *words).hidden))",
        MASKS + "units_are_equally_often_hidden_and_their_patches_equally_often_masked_swapped_and_kept",
    ),
    Plant(
        "the first hidden patches are predicted", "mpp.recipe.masks.base:ThinnedMask.thinned",
        "lambda self, hidden, patches, draws: None if self.predicted is None else np.sort(hidden)[:, : self._count(patches)]",
        MASKS + "the_predicted_patches_are_any_of_the_hidden_ones",
    ),
    Plant(
        "predicted patches are those that are masked first", "mpp.recipe.masks.base:ThinnedMask.thinned",
        "lambda self, hidden, patches, draws: None if self.predicted is None else hidden[:, : self._count(patches)]",
        MASKS + "which_are_predicted_says_nothing_of_which_are_swapped",
    ),
    Plant(
        "a share that is predicted is one of the hidden ones", "mpp.recipe.masks.base:ThinnedMask.thinned",
        "lambda self, hidden, patches, draws: real(self, hidden, hidden.shape[1], draws)",
        MASKS + "counts_of_every_mask_follow_from_the_config_and_its_parts_fit_together",
    ),
    Row(
        "the roll goes up and down alone", "mpp/recipe/masks/inverse_block.py", "(rows, columns) if self.roll", "(rows, columns - width + 1) if self.roll",
        MASKS + "with_the_roll_all_places_are_hidden_equally_often_and_without_it_the_border_more",
    ),
    Row(
        "a shape that does not fit is squeezed and not drawn anew", "mpp/recipe/masks/inverse_block.py",
        "math.log(min(max(aspect, count / columns**2), rows**2 / count))", "math.log(aspect)", MASKS + "the_visible_block_is_capis_on_any_grid",
    ),
    Row(
        "the width of the visible block is rounded", "mpp/recipe/masks/inverse_block.py", "math.ceil(math.sqrt(", "round(math.sqrt(",
        MASKS + "the_visible_block_is_capis_on_any_grid",
    ),
    Row("CAPI hides one patch more", "mpp/recipe/masks/inverse_block.py", "= 166 / 256", "= 0.65", MASKS + "capis_numbers"),
    Row(
        "shapes of target blocks are log-uniform", "mpp/recipe/masks/multi_block.py", "(low + (high - low) * shape)", "(low * (high / low) ** shape)",
        MASKS + "targets_and_context_are_ijepas_on_any_grid",
    ),
    Row(
        "the context is cleared of the first target block alone", "mpp/recipe/masks/multi_block.py", "wanted[sample, targets[sample]] = 2",
        "wanted[sample, targets[sample, 0]] = 2", MASKS + "targets_and_context_are_ijepas_on_any_grid",
    ),
    Row(
        "the context is taken from the whole grid", "mpp/recipe/masks/multi_block.py", "wanted[sample] = 1", "wanted[sample] = 0",
        MASKS + "the_context_is_kept_to_its_rectangle_where_enough_of_it_is_left",
    ),
    Row(
        "the upper rows of the context are kept", "mpp/recipe/masks/multi_block.py", "order = permutations(patches, draws)",
        "order = np.sort(permutations(patches, draws))", MASKS + "targets_and_context_are_ijepas_on_any_grid",
    ),
    Row(
        "target blocks never touch the border below", "mpp/recipe/masks/multi_block.py", "int(down * (grid[0] - height + 1))", "int(down * (grid[0] - height))",
        MASKS + "a_target_block_lies_anywhere_on_the_grid_equally_often",
    ),
    Row(
        "a block's rows are those of a square grid", "mpp/recipe/masks/base.py", "% grid[0] * grid[1]", "% grid[0] * grid[0]",
        MASKS + "the_visible_block_is_capis_on_any_grid",
    ),
    Row(
        "target blocks are sorted into each other", "mpp/recipe/masking.py", "predicted if self.mask.groups > 1 else np.sort(predicted)", "np.sort(predicted)",
        MASKS + "targets_and_context_are_ijepas_on_any_grid",
    ),
    Plant(
        "all masks of a batch are the first one's", "mpp.recipe.masks.multi_block:MultiBlockMask.draw",
        "lambda self, grid, corruption, draws: Places(*(np.repeat(part[:1], len(draws), axis=0) for part in real(self, grid, corruption, draws)[:2]))",
        MASKS + "a_batch_has_the_masks_of_its_samples_one_by_one_in_any_company",
    ),
    Row(
        "patches are turned clockwise", "mpp/recipe/masks/turn.py", "np.rot90(patches, turn)", "np.rot90(patches, -turn)",
        MASKS + "a_turn_moves_every_patch_as_the_image_turns_and_all_four_are_equally_likely",
    ),
    Row(
        "everything may be hidden and nothing shown", "mpp/recipe/masks/all.py", "if not corruption.shows_all:", "if corruption.name == 'drop':",
        MASKS + "masks_that_cannot_be_are_refused_with_value_rule_and_remedy",
    ),
    Row(
        "a remedy names a share that is refused too", "mpp/recipe/masks/base.py", "math.ceil(1e4 * least / of)", "math.floor(1e4 * least / (2 * of))",
        MASKS + "the_shares_that_a_refusal_names_are_taken",
    ),
    # Corruptions.
    Row(
        "a swapped patch shows its own pixels", "mpp/recipe/corruptions/replace.py", "gather_patches(patchify(images, side), masks.source)",
        "patchify(images, side)", CORRUPTIONS + "pixels_are_replaced_patch_by_patch_by_kind",
    ),
    Row(
        "the mask patch is never learned", "mpp/recipe/corruptions/replace.py", "HALF * (1 + mask_token.to(shown.dtype))",
        "HALF * (1 + mask_token.detach().to(shown.dtype))", CORRUPTIONS + "the_mask_patch_is_learned_from_the_masked_patches_and_spared_by_weight_decay",
    ),
    Row(
        "the mask patch is counted from black", "mpp/recipe/corruptions/replace.py", "HALF * (1 + mask_token.to(shown.dtype))",
        "2 * HALF * mask_token.to(shown.dtype)", CORRUPTIONS + "the_mask_patch_in_pixels_counts_from_mid_grey_in_halves_of_the_range",
    ),
    Row(
        "pixels are replaced at every place that is predicted", "mpp/recipe/corruptions/replace.py",
        "(masks.kind == MASKED)[:, :, None, None, None], patch", "(masks.kind > 0)[:, :, None, None, None], patch",
        CORRUPTIONS + "pixels_that_are_masked_cannot_influence_a_prediction_and_all_others_can",
    ),
    Plant(
        "nothing is hidden in pixel space", "mpp.recipe.corruptions.replace:ReplaceCorruption.pixels", "lambda self, images, masks, mask_token: images",
        CORRUPTIONS + "pixels_that_are_masked_cannot_influence_a_prediction_and_all_others_can",
    ),
    Plant(
        "the picture of pixels shows grey", "mpp.recipe.corruptions.replace:ReplaceCorruption.picture", "CorruptionSection.picture",
        CORRUPTIONS + "its_picture_is_what_the_encoder_is_given_and_that_of_embeddings_is_grey_where_masked",
    ),
    Row(
        "all colours are equally bright", "mpp/recipe/corruptions/grey.py", "(0.299, 0.587, 0.114)", "(1 / 3, 1 / 3, 1 / 3)",
        CORRUPTIONS + "hidden_patches_are_as_grey_as_pillow_makes_them_and_visible_ones_untouched",
    ),
    Row(
        "visible patches lose their colour too", "mpp/recipe/corruptions/grey.py", "(masks.kind == MASKED)[:, :, None, None, None]",
        "(masks.kind >= 0)[:, :, None, None, None]", CORRUPTIONS + "hidden_patches_are_as_grey_as_pillow_makes_them_and_visible_ones_untouched",
    ),
    Row(
        "grey images have as many rows as columns", "mpp/recipe/corruptions/grey.py", "(images.shape[2] // side, images.shape[3] // side)",
        "(images.shape[3] // side, images.shape[2] // side)", CORRUPTIONS + "hidden_patches_are_as_grey_as_pillow_makes_them_and_visible_ones_untouched",
    ),
    Plant(
        "grey leaves the colour of one channel", "mpp.recipe.corruptions.grey:GreyCorruption.pixels",
        "lambda self, images, masks, mask_token: torch.cat([real(self, images, masks, mask_token)[:, :2], images[:, 2:]], dim=1)",
        CORRUPTIONS + "what_is_hidden_by_grey_cannot_influence_a_prediction_but_brightness_can",
    ),
    Row(
        "images are turned clockwise", "mpp/recipe/corruptions/rotate.py", "torch.rot90(images, turn, (2, 3))", "torch.rot90(images, turn, (3, 2))",
        CORRUPTIONS + "images_are_turned_whole_as_their_mask_says",
    ),
    # Distances and targets.
    Row(
        "the smooth L1 bends at one", "mpp/recipe/distances.py", "beta=self.beta", "beta=1.0", PRETEXTS + "distances_are_torchs_with_their_gradients",
    ),
    Row(
        "the smooth L1 of pixels bends where it likes", "mpp/recipe/targets/pixels.py", "Distance(self.loss, self.beta)", "Distance(self.loss)",
        PRETEXTS + "the_loss_of_pixels_is_torchs_over_the_values_of_each_patch",
    ),
    Row(
        "a and b change places", "mpp/recipe/targets/chroma.py", "500 * (x - y), 200 * (y - z)", "200 * (y - z), 500 * (x - y)",
        PRETEXTS + "lab_is_skimages_there_and_back",
    ),
    Row(
        "colours of a screen are taken for linear ones of exponent 2.2", "mpp/recipe/targets/chroma.py", "((share + 0.055) / 1.055) ** 2.4", "share**2.2",
        PRETEXTS + "lab_is_skimages_there_and_back",
    ),
    Row(
        "colours of a patch are read column by column", "mpp/recipe/targets/chroma.py", "permute(0, 1, 3, 4, 2))[..., 1:]", "permute(0, 1, 4, 3, 2))[..., 1:]",
        PRETEXTS + "goals_are_a_and_b_of_each_pixel_in_tens_in_reading_order",
    ),
    Row(
        "a picture of colour has one brightness", "mpp/recipe/targets/chroma.py", "[..., :1]", "[..., :1] * 0 + 50",
        PRETEXTS + "a_perfect_picture_of_colour_is_the_image_and_one_without_colour_is_as_bright",
    ),
    Row(
        "colours below the screen's come up again", "mpp/recipe/targets/chroma.py", ".T).clamp(0, 1)", ".T).abs()",
        PRETEXTS + "colours_that_no_screen_shows_are_cut_channel_by_channel_as_skimage_does",
    ),
    Plant(
        "the goal is how far the image must be turned back", "mpp.recipe.targets.rotation:Rotation.__call__",
        "lambda self, images, masks, teacher=None: -real(self, images, masks) % TURNS",
        PRETEXTS + "the_goal_is_how_far_torch_would_turn_the_image",
    ),
    Row(
        "the corners of a turned grid are taken clockwise", "mpp/recipe/places.py", "(0, side - 1, patches - 1, patches - side)",
        "(0, patches - side, patches - 1, side - 1)", PRETEXTS + "the_goal_is_how_far_torch_would_turn_the_image",
    ),
    Row(
        "the picture lights the other side", "mpp/recipe/targets/rotation.py", "torch.rot90(upright, turn, (1, 2))", "torch.rot90(upright, -turn, (1, 2))",
        PRETEXTS + "the_picture_of_rotation_lights_the_side_where_the_top_went",
    ),
    Row(
        "the class token is pooled with the patches", "mpp/recipe/decoders/pooled.py", "tokens[:, self.prefix :].mean(1, keepdim=True)",
        "tokens.mean(1, keepdim=True)", PRETEXTS + "a_pooled_decoder_says_the_same_of_every_place_from_the_mean_of_the_patches_alone",
    ),
    Row(
        "a pixel's vote does not depend on its gradient", "mpp/recipe/targets/hog.py", "length.where(number == k, 0)", "(number == k).float()",
        PRETEXTS + "histograms_of_our_gradients_are_skimages_and_normalised_as_it_does_blocks_of_one_cell",
    ),
    Plant(
        "gradients look one way", "mpp.recipe.targets.hog:gradients", "lambda images: (real(images)[0], real(images)[0])",
        PRETEXTS + "where_sobel_and_central_differences_agree_the_target_is_skimages_hog",
    ),
    # SimMIM, whole.
    Plant(
        "pixels are predicted colour by colour", "mpp.recipe.targets.pixels:Pixels.answer",
        "lambda self, prediction: prediction.float().unflatten(-1, (3, self.patch_size, self.patch_size)).permute(0, 1, 3, 4, 2)",
        SIMMIM + "predictions_loss_and_gradients_equal_the_oracles",
    ),
    Row(
        "masked patches show nothing in place of the mask token", "mpp/recipe/corruptions/replace.py", "mask_token.to(shown.dtype), shown)",
        "0 * mask_token.to(shown.dtype), shown)", SIMMIM + "predictions_loss_and_gradients_equal_the_oracles",
    ),
]  # fmt: skip
