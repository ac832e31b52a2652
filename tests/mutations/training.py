"""Bugs that the tests of masks, models and training must find."""

from tests.mutations import Plant, Row

ROWS = [
    Row(
        "a damaged checkpoint that was asked for has no remedy", "mpp/train/commit.py", 'f"{error}; bring it back from a copy, or give another checkpoint"', "str(error)",
        "tests/train/test_commit.py::test_a_run_sees_most_damage_before_its_processes_join",
    ),
    Row(
        "an encoder of another width is called by the name alone", "mpp/model/architecture.py", 'return f"{name} ({changed})" if changed else name', "return name",
        "tests/model/test_encoder.py::test_words_for_an_encoder_name_what_of_its_shape_is_not_that_of_its_name",
    ),
    Plant(
        "a commit is due only where a step ends on a multiple", "mpp.train.run:Step.crosses",
        "lambda self, every: every is not None and self.samples_seen % every == 0",
        "tests/train/test_run.py::test_what_is_done_every_so_many_samples_is_due_in_the_step_that_reaches_each_multiple",
    ),
    Row(
        "skill is a ratio of rounding errors", "mpp/monitor/skill.py", "math.isfinite(self.loss) and self.loss >= LEAST_LOSS", "self.loss > 0",
        "tests/monitor/test_skill.py::test_a_baseline_of_rounding_errors_or_of_no_number_defines_no_skill",
    ),
    # What is hidden, and what becomes of it.
    Row(
        'the loss is on visible patches too', 'mpp/recipe/masking.py',
        'predicted = hidden if places.predicted is None else places.predicted',
        'predicted = np.tile(np.arange(patches), (len(draws), 1))',
        "tests/recipe/test_masking.py::test_every_patch_that_is_not_visible_is_predicted",
    ),
    Row(
        'kept patches are left out of the loss', 'mpp/recipe/masking.py',
        'predicted = hidden if places.predicted is None else places.predicted',
        'predicted = ((kind == MASKED) | (kind == SWAPPED)).nonzero()[1].reshape(len(draws), -1)',
        "tests/recipe/test_masking.py::test_every_patch_that_is_not_visible_is_predicted",
    ),
    Row(
        'only masked patches are in the loss', 'mpp/recipe/masking.py',
        'predicted = hidden if places.predicted is None else places.predicted',
        'predicted = (kind == MASKED).nonzero()[1].reshape(len(draws), -1)',
        "tests/recipe/test_model.py::test_kept_and_swapped_patches_are_in_the_loss_but_not_in_the_skill",
    ),
    Row(
        'the mask is inverted', 'mpp/recipe/masking.py',
        'visible = (kind == VISIBLE).nonzero()[1]',
        'visible = kind.nonzero()[1]',
        "tests/recipe/test_masking.py::test_a_dropping_encoder_keeps_the_floor_of_what_is_left",
    ),
    Row(
        'a swap may show the patch itself', 'mpp/recipe/masking.py',
        '(swapped + 1 + steps)',
        '(swapped + steps)',
        "tests/recipe/test_masking.py::test_a_swapped_patch_shows_another_and_all_others_themselves",
    ),
    Plant(
        'swaps come from near patches only', 'mpp.recipe.masking:below_of',
        'lambda bits, bound: real(bits, 4)',
        "tests/recipe/test_masking.py::test_the_source_of_a_swap_is_uniform_over_the_other_positions",
    ),
    Plant(
        'swaps show the corrupted embedding', 'mpp.recipe.corruptions.replace:corrupt',
        'lambda embeddings, kind, source, mask_token: real(torch.where((kind == MASKED).unsqueeze(-1), mask_token, embeddings), kind, source, mask_token)',
        "tests/recipe/test_masking.py::test_a_swap_shows_the_clean_embedding_even_of_a_masked_or_swapped_source",
    ),
    Plant(
        'shares are rounded one by one', 'mpp.recipe.corruptions.replace:largest_remainder',
        'lambda total, shares: [(counts := [round(total * share) for share in shares])[0] + total - sum(counts), *counts[1:]]',
        "tests/recipe/test_masking.py::test_largest_remainder_agrees_with_exact_fractions",
    ),
    Plant(
        'a dropping encoder rounds what it keeps', 'mpp.recipe.corruptions.drop:DropCorruption.hidden',
        'lambda self, patches, ratio: patches - max(1, round(patches * (1 - ratio)))',
        "tests/recipe/test_masking.py::test_a_dropping_encoder_keeps_the_floor_of_what_is_left",
    ),
    Row(
        'masks are applied to pixels', 'mpp/recipe/model.py',
        'self.corruption.embeddings(embeddings, masks, self.mask_token)',
        'self.corruption.embeddings(embeddings, masks, self.encoder.embed(torch.zeros_like(images))[0, 0])',
        "tests/recipe/test_model.py::test_the_encoder_sees_the_papers_corruption_of_embeddings",
    ),
    Plant(
        'the mask token hides the position', "mpp.recipe.model:PretrainingModel.forward",
        "lambda self, images, *masks: setattr(self.corruption.__class__, 'embeddings', lambda corruption, embeddings, masks, token: __import__('mpp.recipe.corruptions.replace', fromlist=['corrupt']).corrupt(embeddings + "
        "(place := self.encoder.vit.pos_embed[:, self.encoder.prefix :]), masks.kind, masks.source, token) - place) or real(self, images, *masks)",
        "tests/recipe/test_model.py::test_masked_patches_know_their_place",
    ),
    Row(
        "a dropping encoder attends to hidden patches", "mpp/model/encoder.py",
        "return self.blocks(embeddings, visible) if every else self.norm(self.blocks(embeddings, visible, last=1)[0])",
        "tokens = self.norm(self.blocks(embeddings, last=1)[0])\n        return tokens if visible is None else "
        "torch.cat([tokens[:, : self.prefix], gather_tokens(tokens[:, self.prefix :], visible)], dim=1)",
        "tests/model/test_encoder.py::test_the_encoder_cannot_see_dropped_patches",
    ),
    Row(
        "the class token is taken for a patch when dropping", "mpp/model/encoder.py", "gather_tokens(patches, visible)", "gather_tokens(tokens, visible)",
        "tests/model/test_encoder.py::test_the_encoder_cannot_see_dropped_patches",
    ),
    Row(
        'visible patches are not put back in their places', 'mpp/recipe/decoders/transformer.py',
        'everywhere.scatter(1, places.unsqueeze(-1).expand_as(shown), shown)',
        'torch.cat([shown, everywhere[:, shown.shape[1] :]], dim=1)',
        "tests/recipe/test_mae_oracle.py::test_predictions_loss_and_gradients_equal_the_oracles",
    ),
    Row(
        'the decoder has no positions', 'mpp/recipe/decoders/transformer.py',
        'self.blocks(tokens + self.pos_embed)',
        'self.blocks(tokens)',
        "tests/recipe/test_mae_oracle.py::test_predictions_loss_and_gradients_equal_the_oracles",
    ),
    Row(
        'rows and columns of fixed positions are exchanged', 'mpp/model/tokens.py',
        'for place in (column, row)]',
        'for place in (row, column)]',
        "tests/recipe/test_mae_oracle.py::test_fixed_positions_equal_those_of_the_oracle",
    ),
    Plant(
        'the linear decoder counts the class token as a patch', 'mpp.recipe.decoders.linear:Linear.forward',
        'lambda self, tokens, places, predicted: self.head(gather_tokens(tokens, predicted))',
        "tests/recipe/test_model.py::test_a_linear_decoder_maps_each_predicted_patchs_own_token",
    ),
    Row(
        'building a model moves the global generator', 'mpp/recipe/model.py',
        '    with torch.random.fork_rng(devices=[]):',
        '    if True:',
        "tests/recipe/test_model.py::test_the_same_seed_builds_the_same_model_and_leaves_the_global_generator_alone",
    ),
    # What must be predicted.
    Plant(
        'colour bins are off by one level', 'mpp.recipe.targets.colors:color_class',
        'lambda colors, bits: real(colors.clamp(0, 255) + 1, bits)',
        "tests/recipe/test_targets.py::test_the_3_bit_class_of_a_colour_is_64_red_8_green_1_blue",
    ),
    Plant(
        'mean colours are rounded before binning', 'mpp.recipe.targets.colors:color_class',
        'lambda colors, bits: real(colors.clamp(0, 255).round(), bits)',
        "tests/recipe/test_targets.py::test_a_mean_just_below_an_edge_stays_below",
    ),
    Plant(
        'the class puts blue first', 'mpp.recipe.targets.colors:color_class',
        'lambda colors, bits: real(colors.flip(-1), bits)',
        "tests/recipe/test_targets.py::test_the_3_bit_class_of_a_colour_is_64_red_8_green_1_blue",
    ),
    Row(
        "patches are normalised by the batch's statistics", 'mpp/recipe/targets/pixels.py',
        'middle = values.mean(dim=(2, 3, 4), keepdim=True)',
        'middle = values.mean(dim=(0, 1, 2, 3, 4), keepdim=True)',
        "tests/recipe/test_targets.py::test_each_patch_is_normalised_by_its_own_mean_and_unbiased_variance",
    ),
    Row(
        'the variance is biased', 'mpp/recipe/targets/pixels.py',
        'keepdim=True, unbiased=True)',
        'keepdim=True, unbiased=False)',
        "tests/recipe/test_targets.py::test_a_zero_predictor_on_normalised_pixels_loses_one_less_one_value",
    ),
    Row(
        'the deviation is normalised per channel', 'mpp/recipe/targets/pixels.py',
        'values.var(dim=(2, 3, 4), keepdim=True',
        'values.var(dim=(2, 3), keepdim=True',
        "tests/recipe/test_mae_oracle.py::test_predictions_loss_and_gradients_equal_the_oracles",
    ),
    Plant(
        'predictions are read channel by channel', 'mpp.recipe.targets.pixels:Pixels.answer',
        'lambda self, prediction: prediction.float().unflatten(-1, (3, self.patch_size, self.patch_size)).permute(0, 1, 3, 4, 2)',
        "tests/recipe/test_mae_oracle.py::test_patches_are_in_the_order_of_the_oracles_patchify",
    ),
    Row(
        'patches are cut column by column', 'mpp/recipe/patches.py',
        'p).permute(0, 2, 4, 1, 3, 5).reshape(batch, -1',
        'p).permute(0, 4, 2, 1, 3, 5).reshape(batch, -1',
        "tests/recipe/test_targets.py::test_patches_lie_where_the_patch_embedding_puts_them",
    ),
    Plant(
        'the target is taken from the wrong places', 'mpp.recipe.targets.base:PatchTarget.__call__',
        'lambda self, images, masks, teacher=None: self.cells(patchify(images, self.patch_size)[:, : masks.predicted.shape[1]])',
        "tests/recipe/test_model.py::test_the_loss_is_about_all_predicted_patches_and_no_other",
    ),
    Row(
        "the target is the image before its flip", "mpp/train/step.py", "posed(batch[\"image\"].to(device, non_blocking=True), batch[\"pose\"])", "batch[\"image\"].to(device, non_blocking=True)",
        "tests/recipe/test_model.py::test_the_target_is_the_clean_flipped_unnormalised_image",
    ),
    Row(
        "images are flipped upside down", "mpp/data/poses.py", "images.flip(3), images)", "images.flip(2), images)",
        "tests/recipe/test_model.py::test_images_are_flipped_left_to_right_where_the_batch_says_so",
    ),
    # How it is trained.
    Row(
        "biases and norms decay", "mpp/train/optim.py", "return parameter.ndim < 2 or name", "return name",
        "tests/train/test_optim.py::test_only_matrices_and_kernels_decay",
    ),
    Row(
        "tokens decay", "mpp/train/optim.py", " or name.rsplit(\".\", 1)[-1] in TOKENS", "", "tests/train/test_optim.py::test_only_matrices_and_kernels_decay",
    ),
    Row(
        "the schedule is a step ahead", "mpp/train/schedule.py", "    done = samples_seen - began", "    done = samples_seen - began + global_batch", "tests/train/test_schedule.py::test_the_rate_of_each_step_is_exactly_this",
    ),
    Row(
        "the cosine ignores warm-up", "mpp/train/schedule.py", "(done - warmup) / rest", "samples_seen / optim.total_samples",
        "tests/train/test_schedule.py::test_the_rate_of_each_step_is_exactly_this",
    ),
    Row(
        "the final rate is added to the peak", "mpp/train/schedule.py", "(peak - optim.final_lr) * 0.5", "peak * 0.5",
        "tests/train/test_schedule.py::test_the_rate_of_each_step_is_exactly_this",
    ),
    # What is reported and kept.
    Row(
        "skill is over kept patches too", "mpp/monitor/skill.py", "        masked = kind == MASKED\n", "        masked = kind != VISIBLE\n",
        "tests/monitor/test_skill.py::test_only_masked_patches_count",
    ),
    Row(
        'training skill is over kept patches too', 'mpp/recipe/model.py',
        '(kind.gather(1, predicted) == MASKED)',
        '(kind.gather(1, predicted) >= MASKED)',
        "tests/recipe/test_model.py::test_kept_and_swapped_patches_are_in_the_loss_but_not_in_the_skill",
    ),
    Row(
        "the nearest visible patch may be a kept one", "mpp/monitor/skill.py", "hidden = (kind != VISIBLE)", "hidden = (kind == MASKED)",
        "tests/monitor/test_skill.py::test_only_masked_patches_count",
    ),
    Row(
        "the baseline is chosen on the hold-out", "mpp/monitor/skill.py", "chosen = min(best, key=lambda name: best[name][0])",
        "chosen = min(on_holdout, key=lambda name: on_holdout[name])",
        "tests/monitor/test_skill.py::test_the_best_predictor_is_chosen_on_the_sample_not_on_the_holdout",
    ),
    Row(
        "the step resumed from is cut away", "mpp/monitor/board.py", "if _samples(line) <= samples_seen]", "if _samples(line) < samples_seen]",
        "tests/monitor/test_board.py::test_after_a_resume_nothing_is_left_from_behind_the_resumed_step",
    ),
    Row(
        "event files of one second are in no order", "mpp/monitor/board.py", "1 + int(stamp[1])", "int(stamp[1])",
        "tests/monitor/test_board.py::test_whatever_the_clock_says_tensorboard_reads_the_newer_file_last",
    ),
    Row(
        "event files follow the clock", "mpp/monitor/board.py", "*(1 + int(stamp[1]) for stamp in stamps if stamp)", "*()",
        "tests/monitor/test_board.py::test_whatever_the_clock_says_tensorboard_reads_the_newer_file_last",
    ),
    Row(
        "TensorBoard is not cut back", "mpp/monitor/board.py", "samples_seen + 1 if samples_seen else 0", "0",
        "tests/monitor/test_board.py::test_tensorboard_forgets_what_the_resumed_run_has_not_written_again",
    ),
    Row(
        "a cut file passes for a commit", "mpp/train/commit.py", "if found != facts[\"bytes\"]:", "if found > facts[\"bytes\"]:",
        "tests/train/test_commit.py::test_a_run_sees_most_damage_before_its_processes_join",
    ),
    Row(
        "the hash is not compared", "mpp/train/commit.py", "if found != self.record[\"files\"][name][\"sha256\"]:", "if len(found) != 64:",
        "tests/train/test_commit.py::test_a_turned_bit_is_found_by_the_hash",
    ),
    Row(
        "a checkpoint that is missing means a fresh start", "mpp/train/commit.py", "if commit is None and resume == \"must\":", "if False:",
        "tests/train/test_commit.py::test_resume_must_is_an_error_where_nothing_was_committed",
    ),
    Row(
        "what is being written is pruned", "mpp/train/commit.py", "if folder not in kept and folder < max(kept) and folder not in spared:", "if folder not in kept:",
        "tests/train/test_commit.py::test_pruning_keeps_the_newest_commits_and_what_is_being_written",
    ),
    Row(
        "a commit does not vouch for itself", "mpp/train/commit.py", "        return \"COMMIT.json does not fit its own seal\"", "        pass",
        "tests/train/test_commit.py::test_every_changed_byte_of_a_commit_is_noticed_or_harmless",
    ),
    Row(
        "a commit need not agree with its folder", "mpp/train/commit.py", "type(step) is not int or f\"{step:09d}\" != folder.name", "type(step) is not int",
        "tests/train/test_commit.py::test_a_run_sees_most_damage_before_its_processes_join",
    ),
    Row(
        "without a whole checkpoint a run begins again", "mpp/train/commit.py", "    if commit is None and (damaged or any(", "    if resume == 0 and (damaged or any(",
        "tests/train/test_commit.py::test_a_run_whose_only_checkpoints_were_set_aside_damaged_does_not_begin_again_by_itself",
    ),
    Row(
        "damaged commits are pruned", "mpp/train/commit.py", "            set_aside_damaged(error)\n", "            pass\n",
        "tests/train/test_commit.py::test_a_damaged_commit_does_not_count_among_those_kept_and_is_set_aside_not_deleted",
    ),
    Row(
        "numbers that are not finite are read back", "mpp/train/commit.py", "if not_finite(tensor)]:", "if False]:",
        "tests/train/test_commit.py::test_readers_pass_over_a_damaged_commit_aloud_and_leave_it_as_it_is",
    ),
    Row(
        "numbers that are not finite are taken from others", "mpp/interop/read_encoder.py", "if not_finite(tensor)]", "if False]",
        "tests/interop/test_encoder_folder.py::test_an_encoder_that_is_not_finite_is_refused_whoever_wrote_it",
    ),
    Row(
        "an encoder folder does not vouch for itself", "mpp/interop/encoder_folder.py", "    if about.get(\"seal\") != _seal(config):", "    if False:",
        "tests/interop/test_encoder_folder.py::test_every_changed_byte_of_an_encoder_folder_is_noticed_or_harmless",
    ),
    Row(
        "no rank reads its own share of a commit", "mpp/train/commit.py", "name))[rank::size]", "name))[::size]",
        "tests/pipeline/test_checkpoints.py::test_two_processes_agree_on_what_is_damaged_though_only_one_has_read_it",
    ),
    Row(
        "numbers that are not finite are committed", "mpp/train/checkpoint.py", "[name for name, tensor in mine.items() if not_finite(tensor)]", "list[str]()",
        "tests/pipeline/test_checkpoints.py::test_a_state_that_is_not_finite_is_not_committed_and_pushes_out_none_that_is",
    ),
    Row(
        "the advice leads back to the broken gradient", "mpp/train/resume.py", "if commit.step <= step)", "if commit.step <= step + 1)",
        "tests/pipeline/test_checkpoints.py::test_the_advice_after_a_broken_gradient_works_as_it_stands",
    ),
    Row(
        "settings change without a word", "mpp/train/run_folder.py", "if key in config.resume_changes or (", "if key.startswith(\"optim.\") or (",
        "tests/pipeline/test_checkpoints.py::test_a_setting_that_changes_results_is_changed_only_when_it_is_named",
    ),
    Row(
        'an extension stretches the old cosine', 'mpp/train/run.py',
        'run.global_batch, run.course.began)',
        'run.global_batch)',
        "tests/pipeline/test_checkpoints.py::test_a_finished_run_is_extended_in_a_cycle_of_its_own_and_a_kill_inside_changes_nothing",
    ),
    Row(
        "a resumed extension forgets where it began", "mpp/train/resume.py", "*commit.record.get(\"extended_at\", ()), ", "*(), ",
        "tests/pipeline/test_checkpoints.py::test_a_finished_run_is_extended_in_a_cycle_of_its_own_and_a_kill_inside_changes_nothing",
    ),
    Row(
        'a finished run goes through everything again', 'mpp/mains/pretrain.py',
        '    if run.commit and run.course.finished:',
        '    if False:',
        "tests/pipeline/test_checkpoints.py::test_a_finished_run_says_so_and_touches_nothing",
    ),
    Row(
        "a lock that cannot be had is passed over", "mpp/disk/locks.py", "                if shared:\n                    return\n", "                return\n",
        "tests/disk/test_locks.py::test_without_locks_another_program_of_this_host_is_kept_out_for_as_long_as_it_runs",
    ),
    Plant(
        "the export names another normalisation", "mpp.interop.encoder_folder:timm_preprocessing", "lambda size, mean, std, crop: real(size, std, std, crop)",
        "tests/interop/test_encoder_folder.py::test_timm_loads_the_folder_by_itself_with_equal_features",
    ),
    Row(
        "timm moves the final norm behind its pooling", "mpp/model/encoder.py", "        known.pooled_norm: False,\n", "",
        "tests/model/test_encoder.py::test_every_token_leaves_under_the_final_norm",
    ),
    Row(
        "timm cannot build the export without a class token", "mpp/interop/encoder_folder.py", "if key != \"num_classes\"}",
        "if key not in (\"num_classes\", \"global_pool\")}", "tests/interop/test_encoder_folder.py::test_timm_loads_the_folder_by_itself_with_equal_features",
    ),
    # Of several ranks, and over a stop.
    Plant(
        'hold-out figures are of rank 0 alone', 'mpp.train.meters:Meters.look',
        'lambda self, clear: self.sums.tolist()',
        "tests/train/test_several_ranks.py::test_loss_and_skill_of_the_hold_out_are_over_the_images_of_all_ranks_once",
    ),
    Plant(
        "images that fill up the last batch count in the hold-out", "mpp.data.loader:fixed_batches",
        "lambda *words: ((rows, torch.ones(len(weight))) for rows, weight in real(*words))",
        "tests/train/test_several_ranks.py::test_loss_and_skill_of_the_hold_out_are_over_the_images_of_all_ranks_once",
    ),
    Plant(
        'training figures are of rank 0 alone', 'mpp.train.meters:Meters.look',
        'lambda self, clear: (self.sums.tolist(), self.sums.zero_() if clear else None)[0]',
        "tests/pipeline/test_counts.py::test_figures_of_two_processes_are_those_of_one",
    ),
    Plant(
        'figures are since the start of the run', 'mpp.train.meters:Meters.look',
        'lambda self, clear: real(self, False)',
        "tests/pipeline/test_by_hand.py::test_loss_skill_norm_and_update_of_two_steps_after_a_look_at_the_holdout",
    ),
    Row(
        'bad samples are counted anew after a resume', 'mpp/train/run.py',
        'self.bad_samples = commit.record["bad_samples"]',
        'self.bad_samples = 0',
        "tests/pipeline/test_counts.py::test_the_count_of_bad_samples_goes_on_after_a_resume",
    ),
    Row(
        'bad samples of rank 0 alone are counted', 'mpp/train/run.py',
        '        run.bad_samples += bad\n',
        '        run.bad_samples += self._bad\n',
        "tests/pipeline/test_counts.py::test_figures_of_two_processes_are_those_of_one",
    ),
    Row(
        "registers decay", "mpp/train/optim.py", "\"reg_token\", ", "", "tests/train/test_optim.py::test_no_token_and_no_position_decays_here_or_in_fine_tuning",
    ),
    Row(
        "mask tokens decay", "mpp/train/optim.py", "\"mask_token\", \"pos_embed\"", "\"pos_embed\"", "tests/train/test_optim.py::test_no_token_and_no_position_decays_here_or_in_fine_tuning",
    ),
    Row(
        "positions decay", "mpp/train/optim.py", "\"mask_token\", \"pos_embed\"", "\"mask_token\"", "tests/train/test_optim.py::test_no_token_and_no_position_decays_here_or_in_fine_tuning",
    ),
    Row(
        "tables of relative positions decay", "mpp/train/optim.py", ", \"relative_position_bias_table\")", ")", "tests/train/test_optim.py::test_tables_of_relative_positions_do_not_decay",
    ),
    Plant(
        "the decoder's places are shifted without a class token", "mpp.recipe.decoders.transformer:add_positions",
        "lambda decoder, learned, width, prefix, grid: (real(decoder, learned, width, max(prefix, 1), grid), "
        "setattr(decoder, 'pos_embed', decoder.pos_embed[:, : prefix + grid[0] * grid[1]]))",
        "tests/recipe/test_model.py::test_each_patch_has_its_own_place_in_the_decoder_and_tokens_before_the_patches_have_none",
    ),
    Plant(
        "registers take the first places of the decoder", "mpp.recipe.decoders.transformer:add_positions",
        "lambda decoder, learned, width, prefix, grid: (real(decoder, learned, width, min(prefix, 1), grid), "
        "setattr(decoder, 'pos_embed', torch.cat([decoder.pos_embed, decoder.pos_embed[:, min(prefix, 1) :]], 1)[:, : prefix + grid[0] * grid[1]]))",
        "tests/recipe/test_model.py::test_each_patch_has_its_own_place_in_the_decoder_and_tokens_before_the_patches_have_none",
    ),
    Row(
        "registers are taken for patches", "mpp/model/encoder.py", "self.prefix: int = vit.num_prefix_tokens", "self.prefix: int = int(vit.cls_token is not None)",
        "tests/recipe/test_model.py::test_visible_patches_keep_their_own_embedding_and_place_behind_class_token_and_registers",
    ),
    Row(
        "visible patches have the first places", "mpp/model/encoder.py", "        tokens, rotations = self._positioned(embeddings)\n        if visible is not None:\n",
        "        if visible is not None:\n            embeddings = torch.cat([gather_tokens(embeddings, visible), embeddings[:, visible.shape[1] :]], dim=1)\n"
        "            visible = torch.arange(visible.shape[1]).expand_as(visible)\n        tokens, rotations = self._positioned(embeddings)\n        if visible is not None:\n",
        "tests/recipe/test_model.py::test_visible_patches_keep_their_own_embedding_and_place_behind_class_token_and_registers",
    ),
    # In which precision.
    Row(
        "ZeRO 3 has DeepSpeed's own linear layer", "mpp/train/engine.py", "\"memory_efficient_linear\": False", "\"memory_efficient_linear\": True",
        "tests/pipeline/test_precision.py::test_every_zero_stage_trains_alike_in_bf16_on_one_process_and_on_two",
    ),
    Row(
        "ZeRO rounds gradients unasked", "mpp/train/engine.py", "    if not reduced:\n", "    if False:\n",
        "tests/pipeline/test_precision.py::test_every_zero_stage_trains_alike_in_bf16_on_one_process_and_on_two",
    ),
    Row(
        "processes exchange rounded gradients at stage 0", "mpp/train/engine.py", "\"communication_data_type\": system.gradient_precision", "\"communication_data_type\": \"bf16\"",
        "tests/pipeline/test_precision.py::test_every_zero_stage_trains_alike_in_bf16_on_one_process_and_on_two",
    ),
    Row(
        "gradients asked for in bf16 are exchanged in fp32", "mpp/train/engine.py", "reduced = system.gradient_precision == \"bf16\"", "reduced = False",
        "tests/pipeline/test_precision.py::test_gradients_exchanged_in_bf16_are_rounded_because_somebody_asked",
    ),
    Row(
        "bf16 is fp32", "mpp/train/engine.py", "\"enabled\": system.precision == \"bf16\"", "\"enabled\": False",
        "tests/pipeline/test_precision.py::test_bf16_is_torchs_autocast_and_fp32_is_not",
    ),
    Row(
        "fp32 is bf16", "mpp/train/engine.py", "\"enabled\": system.precision == \"bf16\"", "\"enabled\": True",
        "tests/pipeline/test_precision.py::test_bf16_is_torchs_autocast_and_fp32_is_not",
    ),
    # Whole runs.
    Plant(
        'learning rate counted in steps', 'mpp.train.run:learning_rate',
        'lambda samples, schedule, batch, began: real(samples // batch, schedule, batch, began)',
        "tests/pipeline/test_by_hand.py::test_the_learning_rate_of_every_step",
    ),
    Row(
        "loss summed over patches", "mpp/mains/pretrain.py", "step.backward(loss.mean() + own)", "step.backward(loss.sum(1).mean() + own)",
        "tests/pipeline/test_by_hand.py::test_loss_skill_norm_and_update_of_two_steps_after_a_look_at_the_holdout",
    ),
    Plant(
        'no dropping of paths after the hold-out', 'mpp.train.engine:Engine.train',
        'lambda self, mode: real(self, False)',
        "tests/pipeline/test_by_hand.py::test_loss_skill_norm_and_update_of_two_steps_after_a_look_at_the_holdout",
    ),
    Row(
        'hold-out skill over kept patches too', 'mpp/mains/pretrain_looks.py',
        'loss * counted * masked, counted * masked)',
        'loss * counted, counted)',
        "tests/pipeline/test_by_hand.py::test_loss_and_skill_of_the_holdout",
    ),
    Row(
        "accumulation scaled twice", "mpp/train/engine.py", "self.deepspeed.backward(loss)",
        "self.deepspeed.backward(loss / self.deepspeed.gradient_accumulation_steps())",
        "tests/pipeline/test_resume.py::test_worlds_accumulations_and_stages_give_one_result_and_a_checkpoint_of_one_resumes_on_another",
    ),
    Plant(
        'moments not restored', 'mpp.train.engine:Engine.set_moment',
        'lambda self, parameter, kind, value: None',
        "tests/pipeline/test_resume.py::test_a_resumed_run_with_drop_path_is_bit_identical_and_its_metrics_are_cut_back",
    ),
    Row(
        'drop-path noise starts again on resume', 'mpp/train/run.py',
        'DROP_PATH, done, run.world.rank',
        'DROP_PATH, done - run.first_step, run.world.rank',
        "tests/pipeline/test_resume.py::test_a_resumed_run_with_drop_path_is_bit_identical_and_its_metrics_are_cut_back",
    ),
    # What may be asked for.
    Row(
        "unknown keys pass", "mpp/config/schema.py", "extra=\"forbid\"", "extra=\"ignore\"",
        "tests/config/test_pretrain.py::test_a_key_that_resembles_none_is_not_led_astray",
    ),
    Row(
        "3e-4 is a word", "mpp/config/schema.py", "(\\.[0-9]*)?)([eE][-+]?[0-9]+)?", "\\.[0-9]*)([eE][-+][0-9]+)?",
        "tests/config/test_pretrain.py::test_scalars_are_those_of_yaml_1_2",
    ),
    Row(
        "a repeated key silently wins", "mpp/config/schema.py", "            seen.add(key.value)\n", "", "tests/config/test_pretrain.py::test_a_repeated_key_is_an_error_that_names_its_line",
    ),
    # What a run says of itself.
    Plant(
        "every run that ends has learned", "mpp.monitor.skill:verdict",
        "lambda baseline, course, images: (lambda found: found and type(found)('yes', found.words, found.figures))(real(baseline, course, images))",
        "tests/pipeline/test_verdict.py::test_a_run_that_learned_nothing_does_not_end_with_done_alone",
    ),
    Row(
        "a run below a rule that knows more than the model has learned nothing", "mpp/monitor/skill.py",
        'if baseline.knows_more and last["holdout/loss"] < baseline.losses["constant"]:', "if False:",
        "tests/monitor/test_skill.py::test_below_a_rule_that_reads_what_the_model_may_not_a_run_is_judged_beside_a_constant",
    ),
    Row(
        "a constant is taken for a rule that knows more", "mpp/monitor/skill.py", 'self.looks_beyond and self.name != "constant"', "self.looks_beyond",
        "tests/monitor/test_skill.py::test_a_trivial_rule_that_knows_more_than_the_model_says_so_and_a_constant_never_does",
    ),
    Row(
        "to be below a rule that knows more is a sign", "mpp/monitor/signs.py", "if skill <= margin and course.knows_more:", "if False:",
        "tests/monitor/test_signs.py::test_to_be_below_a_rule_that_knows_more_than_the_model_is_no_sign",
    ),
    Row(
        "codes of gradients count as told by their own patch", "mpp/recipe/targets/codebook.py", "return self.codebook.of.looks_beyond", "return False",
        "tests/recipe/test_codebook_target.py::test_a_target_says_whether_its_goals_tell_of_other_patches",
    ),
    Plant(
        "a teacher's goals count as told by their own patch", "mpp.recipe.targets.base:FixedTarget.looks_beyond", "False",
        "tests/recipe/test_features_target.py::test_goals_of_a_teacher_tell_of_every_patch_and_say_so",
    ),
    Row(
        "a run does not know that its target looks beyond a patch", "mpp/mains/pretrain_looks.py", "held_out, model.target.looks_beyond", "held_out",
        "tests/pipeline/test_lent_targets.py::test_a_frozen_encoders_skill_says_that_its_trivial_rules_know_more",
    ),
    Row(
        "a skill within its error counts", "mpp/monitor/skill.py", "if skill > margin:", "if skill > 0:",
        "tests/monitor/test_skill.py::test_the_verdict_is_on_the_last_skill_beyond_what_the_images_leave_open",
    ),
    Row(
        "any rise of the skill counts as learning", "mpp/monitor/skill.py", "if skill - began > math.hypot(", "if skill > began or 0 * math.hypot(",
        "tests/monitor/test_skill.py::test_the_verdict_is_on_the_last_skill_beyond_what_the_images_leave_open",
    ),
    Row(
        "the skill's error is of the total instead of the mean", "mpp/monitor/skill.py", "- 2 * mean * self.loss_patches + mean**2 * self.patches_patches", "",
        "tests/monitor/test_skill.py::test_the_standard_error_is_the_spread_of_the_skill_over_drawn_holdouts",
    ),
    Row(
        "a finished run keeps its verdict to itself", "mpp/mains/pretrain.py", 'if known := commit.record.get("baseline"):', "if known := None:",
        "tests/pipeline/test_verdict.py::test_a_run_that_learned_says_so_and_says_it_again_when_it_is_asked_for_once_more",
    ),
]  # fmt: skip
