"""Bugs that the tests of probes on features, of probes beside the encoder and of their figures must find."""

from tests.mutations import Plant, Row

LOGISTIC, METRICS, NEIGHBOURS = "tests/transfer/test_logistic.py", "tests/transfer/test_metrics.py", "tests/transfer/test_neighbours.py"
FEW_SHOT, ONLINE, PLOTS = "tests/transfer/test_few_shot.py", "tests/transfer/test_online.py", "tests/transfer/test_plots.py"
VERDICT, GRID = "tests/transfer/test_verdict.py", "tests/transfer/test_grid.py"
MISTAKES = "tests/transfer/test_worst_mistakes.py"
ROWS_OF_PROBES, RANKS = "tests/transfer/test_probe_rows.py", "tests/train/test_several_ranks.py"

ROWS = [
    # Rows of the table.
    Plant(
        'gains have the other sign', 'mpp.transfer.metrics:difference',
        'lambda a, b, *more, **named: real(b, a, *more, **named)',
        f"{VERDICT}::test_an_encoder_is_better_worse_or_not_shown_to_be",
    ),
    Plant(
        "extraction has colours of its own", "mpp.transfer.rows:spec_of",
        "lambda *given: __import__('dataclasses').replace(real(*given), mean=(0.5,) * 3, std=(0.5,) * 3)",
        f"{ROWS_OF_PROBES}::test_every_row_sees_colours_as_the_encoder_was_trained_with",
    ),
    Row(
        "the encoder's deviation is not used", "mpp/transfer/extractors.py", "return self.of_normalised(normalise(images, self.spec.mean, self.spec.std), layers, predictor)",
        "return self.of_normalised(normalise(images, self.spec.mean, (0.5, 0.5, 0.5)), layers, predictor)",
        f"{ROWS_OF_PROBES}::test_features_are_those_of_timms_own_model_on_images_normalised_by_the_folders_own_numbers",
    ),
    Row(
        "raw pixels are not normalised as the encoder's", "mpp/transfer/extractors.py", "        pixels = normalise(images, self.spec.mean, self.spec.std)\n", "        pixels = images.float() / 255\n",
        f"{ROWS_OF_PROBES}::test_every_row_sees_colours_as_the_encoder_was_trained_with",
    ),
    Row(
        'the random row keeps the norms that were trained', "mpp/mains/probe_job.py",
        '        row = row_of(RANDOM, fresh, digest_of(fresh), predictor, loaded)',
        "        fresh.load_state_dict({n: t for n, t in loaded.net.state_dict().items() if 'norm' in n}, strict=False)\n        row = row_of(RANDOM, fresh, digest_of(fresh), predictor, loaded)",
        f"{ROWS_OF_PROBES}::test_the_random_row_has_no_tensor_that_was_trained",
    ),
    Row(
        "confidences stay in the order of the ranks", "mpp/train/classify.py", "confidence[order].astype(np.float32)", "confidence.astype(np.float32)",
        f"{RANKS}::test_predictions_of_several_ranks_stand_in_the_order_of_the_ids_with_their_own_confidences",
    ),
    Row(
        "true classes stay in the order of the ranks", "mpp/train/classify.py", "truth[order].astype(np.int64)", "truth.astype(np.int64)",
        f"{RANKS}::test_predictions_of_several_ranks_stand_in_the_order_of_the_ids_with_their_own_confidences",
    ),
    Row(
        "confidences beside the encoder stay in the order of the parts", "mpp/transfer/in_the_loop.py",
        "confidence = torch.cat([sure for _, _, sure in everything], dim=1)[:, order]", "confidence = torch.cat([sure for _, _, sure in everything], dim=1)",
        f"{RANKS}::test_answers_of_probes_beside_the_encoder_stand_by_image_whichever_part_comes_first",
    ),
    Row(
        "a key of probing is read by nobody", "mpp/mains/probe_job.py", "config.features.pixel_side)", "32)",
        "tests/transfer/test_every_key.py::test_every_key_changes_what_it_says",
    ),
    Row(
        "registers are pooled as patches", "mpp/transfer/extractors.py", "tokens[:, self.backbone.prefix :].mean(dim=1)", "tokens[:, 1:].mean(dim=1)",
        f"{ROWS_OF_PROBES}::test_features_are_those_of_timms_own_model_on_images_normalised_by_the_folders_own_numbers",
    ),
    # Logistic regression.
    Row(
        'the penalty does not know how many images there are', 'mpp/transfer/probes/logistic.py',
        'decay = (2 if count == 2 else 1) / (strength * len(rows))',
        'decay = (2 if count == 2 else 1) / strength',
        f"{LOGISTIC}::test_probabilities_are_those_of_scikit_learn_at_every_strength",
    ),
    Row(
        'two classes have two vectors', 'mpp/transfer/probes/logistic.py',
        '(2 if count == 2 else 1)',
        '1',
        f"{LOGISTIC}::test_c_is_scikit_learns_whatever_the_classes",
    ),
    Row(
        'a class without images takes part', 'mpp/transfer/probes/logistic.py',
        'present = np.unique(labels[rows])',
        'present = np.arange(classes)',
        f"{LOGISTIC}::test_c_is_scikit_learns_whatever_the_classes",
    ),
    Row(
        'class weights are not used', 'mpp/transfer/probes/logistic.py',
        '            if self.weights is not None:',
        '            if False:',
        f"{LOGISTIC}::test_c_is_scikit_learns_whatever_the_classes",
    ),
    Row(
        "the bias is penalised", "mpp/transfer/probes/logistic.py", "gradient[:, :-1] += decay * point[:, :-1]", "gradient += decay * point",
        f"{LOGISTIC}::test_probabilities_are_those_of_scikit_learn_at_every_strength",
    ),
    Row(
        'the bias of raw features forgets their mean', 'mpp/transfer/probes/logistic.py',
        ' - inside @ data.mean.double()',
        '',
        f"{LOGISTIC}::test_probabilities_are_those_of_scikit_learn_at_every_strength",
    ),
    Row(
        "every strength counts as converged", "mpp/transfer/probes/logistic.py", "[norm <= tolerance for norm in gradients]", "[True for _ in gradients]",
        f"{LOGISTIC}::test_what_has_not_converged_says_so",
    ),
    Plant(
        'coordinates are not changed', 'mpp.transfer.probes.logistic:Coordinates.scaled',
        'lambda self, gradient, curvature, decay: gradient',
        f"{LOGISTIC}::test_few_passes_are_enough_for_correlated_features",
    ),
    Plant(
        "features are standardised in place", "mpp.transfer.probes.logistic:_read",
        "lambda values, rows, where: values[rows[0] : rows[-1] + 1, where] if isinstance(where, slice) else real(values, rows, where)",
        f"{LOGISTIC}::test_features_and_the_global_generator_are_left_as_they_were",
    ),
    Row(
        "what is read again is not standardised", "mpp/transfer/probes/logistic.py", "yield self._read(chosen).sub_(self.mean).mul_(self.scale)", "yield self._read(chosen)",
        f"{LOGISTIC}::test_what_does_not_fit_into_memory_is_read_again_with_the_same_outcome",
    ),
    Row(
        "the first step downhill will do", "mpp/transfer/probes/logistic.py", "            if lower or level or count >= most_passes:", "            lower = True\n            if True:",
        f"{LOGISTIC}::test_the_minimum_of_a_steep_valley_is_found_without_a_good_first_step",
    ),
    # Figures.
    Plant(
        "rows and columns of the confusion matrix are exchanged", "mpp.transfer.metrics:confusion_matrix",
        "lambda predicted, truth, classes: real(truth, predicted, classes)",
        f"{METRICS}::test_confusion_and_balanced_accuracy_are_those_of_scikit_learn",
    ),
    Plant(
        'classes without images count as wrong', 'mpp.transfer.metrics:run_means',
        'lambda values, strata=None: real(values, strata) * (1 if strata is None else len(np.unique(strata)) / (strata.max() + 2))',
        f"{METRICS}::test_a_class_without_images_has_no_figure_and_does_not_count",
    ),
    Row(
        'balanced accuracy has the interval of one class', 'mpp/transfer/metrics.py',
        '/ count / len(groups) ** 2',
        '/ count / len(groups)',
        f"{METRICS}::test_the_interval_of_balanced_accuracy_holds_the_truth_as_often_as_it_says",
    ),
    Row(
        "bins hold their lower edge", "mpp/transfer/metrics.py", "(sure * BINS).ceil().long().sub(1)", "(sure * BINS).long()",
        f"{METRICS}::test_calibration_error_is_that_of_a_plain_loop_over_bins",
    ),
    Row(
        "bins weigh the same", "mpp/transfer/metrics.py", '"ece": float((hits - sures).abs().sum()) / len(hit)',
        '"ece": float(((hits - sures).abs() / images.clamp_min(1)).mean())', f"{METRICS}::test_calibration_error_is_that_of_a_plain_loop_over_bins",
    ),
    Row(
        'answers are not paired by image', 'mpp/transfer/metrics.py',
        'parts = of_images(ours.mean((0, 1)) - theirs.mean((0, 1)), strata, OF_DIFFERENCES)',
        'parts = of_images(ours.mean((0, 1)), strata, OF_SHARES) + of_images(theirs.mean((0, 1)), strata, OF_SHARES)',
        f"{METRICS}::test_the_interval_of_a_difference_is_about_that_of_resampling_images",
    ),
    Plant(
        'draws of the labels are taken for certain', 'mpp.transfer.metrics:of_runs',
        'lambda means, one_more=False: [part for part in real(means, one_more) if part.source != DRAWS]',
        f"{METRICS}::test_intervals_over_draws_and_images_hold_the_truth_as_often_as_they_say",
    ),
    Plant(
        'seeds of the network are taken for certain', 'mpp.transfer.metrics:of_runs',
        'lambda means, one_more=False: [part for part in real(means, one_more) if part.source != SEEDS]',
        f"{METRICS}::test_intervals_over_draws_and_images_hold_the_truth_as_often_as_they_say",
    ),
    Plant(
        'a further seed is expected as near as the mean of several', 'mpp.transfer.metrics:of_runs',
        'lambda means, one_more=False: real(means)',
        f"{METRICS}::test_one_more_seed_is_expected_farther_off_than_their_mean",
    ),
    Row(
        'paired draws are compared unpaired', 'mpp/transfer/metrics.py',
        'if same_draws and means[0]',
        'if False and means[0]',
        f"{METRICS}::test_paired_draws_are_compared_draw_by_draw",
    ),
    Plant(
        'equal scores count as in order', 'mpp.transfer.metrics:placements',
        'lambda score, truth: real(score + 1e-9 * truth, truth)',
        f"{METRICS}::test_areas_and_average_precisions_are_those_of_scikit_learn",
    ),
    Plant(
        'equal scores come one by one', 'mpp.transfer.metrics:average_precision',
        'lambda score, wanted: real(score - 1e-9 * np.arange(len(score)), wanted)',
        f"{METRICS}::test_areas_and_average_precisions_are_those_of_scikit_learn",
    ),
    Row(
        "McNemar's test is one-sided", 'mpp/transfer/metrics.py',
        'binomtest(a_only, a_only + b_only)',
        "binomtest(min(a_only, b_only), a_only + b_only, alternative='less')",
        f"{METRICS}::test_mcnemars_test_counts_the_tails_of_coin_tosses",
    ),
    # Grids and verdicts.
    Plant(
        'grids end where they were set', 'mpp.transfer.grid:Axis.beyond',
        'lambda self, values, upwards: None',
        f"{GRID}::test_a_grid_grows_at_the_end_where_its_best_value_lies_until_it_is_inside",
    ),
    Row(
        'a choice at the end of its grid is not marked', 'mpp/transfer/grid.py',
        'if axis.grows and best[i] in (0, len(values[i]) - 1)]',
        'if False]',
        f"{GRID}::test_what_lies_at_the_limit_is_marked",
    ),
    Row(
        'a level stretch widens a grid', 'mpp/transfer/grid.py',
        'return max(tied, key=inside)',
        'return tied[0]',
        f"{GRID}::test_a_level_stretch_is_no_reason_to_grow_and_ties_go_inside",
    ),
    Row(
        'baselines are taken at the probe that suits the encoder', 'mpp/transfer/verdict.py',
        'else theirs.best()',
        'else ours.best()',
        f"{VERDICT}::test_each_row_is_taken_at_the_best_of_its_own_probes_by_the_hold_out",
    ),
    Row(
        'one random initialisation will do', 'mpp/transfer/verdict.py',
        'if theirs.name == RANDOM and found["runs"][1][0] == 1:',
        'if False:',
        f"{VERDICT}::test_one_random_initialisation_is_no_evidence",
    ),
    Row(
        'pretraining is held against the mean of the initialisations', 'mpp/transfer/verdict.py',
        'new_seed=theirs.name == RANDOM',
        'new_seed=False',
        f"{VERDICT}::test_a_further_initialisation_that_does_best_of_all_is_no_pretraining",
    ),
    Row(
        'one draw of few labels is evidence', 'mpp/transfer/verdict.py',
        'if one_draw and draws == 1 and',
        'if False and',
        f"{VERDICT}::test_one_draw_of_few_labels_shows_nothing_and_several_do",
    ),
    Row(
        'the other metric is not asked', 'mpp/transfer/verdict.py',
        'and contrary["p"] < COVERED and',
        'and False and',
        f"{VERDICT}::test_where_the_other_metric_shows_the_contrary_nothing_is_shown",
    ),
    Plant(
        'choices go by accuracy whatever was asked for', 'mpp.transfer.probes.contract:share_right',
        "lambda predicted, truth, metric: real(predicted, truth, 'accuracy')",
        "tests/transfer/test_protocol.py::test_choices_are_made_by_the_metric_that_was_asked_for",
    ),
    Plant(
        'balanced weights are forgotten', 'mpp.transfer.probes.contract:Train.class_weights',
        'lambda self, rows: None',
        "tests/transfer/test_protocol.py::test_balanced_weights_answer_the_rare_class_more_often",
    ),
    # Neighbours and few-shot.
    Row(
        "places in the bank are those of the piece", "mpp/transfer/probes/knn.py", "torch.cat([index for _, index in found]) + first", "torch.cat([index for _, index in found])",
        f"{NEIGHBOURS}::test_the_bank_in_pieces_has_the_same_neighbours_as_the_whole_bank",
    ),
    Row(
        "the best of the pieces are not sorted anew", "mpp/transfer/probes/knn.py", "best, kept = best.topk(k, dim=1)",
        "kept = torch.arange(k, device=device).expand(len(best), -1)\n            best = best[:, :k]",
        f"{NEIGHBOURS}::test_the_bank_in_pieces_has_the_same_neighbours_as_the_whole_bank",
    ),
    Row(
        "the bank is not normalised", "mpp/transfer/probes/knn.py", "known = normalize(known.to(device), dim=1)", "known = known.to(device)",
        f"{NEIGHBOURS}::test_the_bank_in_pieces_has_the_same_neighbours_as_the_whole_bank",
    ),
    Plant(
        "votes count the same", "mpp.transfer.probes.knn:vote",
        "lambda similarity, *more, **named: real(torch.zeros_like(similarity), *more, **named)",
        f"{NEIGHBOURS}::test_votes_of_every_k_and_temperature_are_those_of_a_plain_loop",
    ),
    Row(
        "a low temperature overflows", "mpp/transfer/probes/knn.py", "((near - near[:, :1]) / temperature).exp()", "(near / temperature).exp()",
        f"{NEIGHBOURS}::test_votes_of_every_k_and_temperature_are_those_of_a_plain_loop",
    ),
    Row(
        "neighbours vote twice in a grid", "mpp/transfer/probes/knn.py", "labels[:, counted : grid[i]], weight[:, counted : grid[i]]", "labels[:, : grid[i]], weight[:, : grid[i]]",
        f"{NEIGHBOURS}::test_votes_of_every_k_and_temperature_are_those_of_a_plain_loop",
    ),
    Row(
        'the spread shrinks with the number of draws', 'mpp/transfer/metrics.py',
        'float(np.std(by_draw, ddof=1))',
        'float(np.std(by_draw, ddof=1) / draws**0.5)',
        f"{METRICS}::test_mean_and_spread_are_over_draws",
    ),
    Row(
        "few-shot targets are 0 and 1", "mpp/transfer/probes/few_shot.py", "torch.full((len(x), classes), -1.0,", "torch.full((len(x), classes), 0.0,",
        f"{FEW_SHOT}::test_the_class_predicted_is_that_of_a_penalised_constant_column",
    ),
    # Beside the encoder.
    Plant(
        "the last images of an epoch are dropped", "mpp.transfer.probes.online:Steps.epoch",
        "lambda self, epoch: real(self, epoch)[:-1]",
        f"{ONLINE}::test_every_row_is_in_one_step_of_an_epoch_on_any_number_of_processes",
    ),
    Plant(
        "every epoch has the first one's order", "mpp.transfer.probes.online:Steps.epoch",
        "lambda self, epoch: real(self, 0)",
        f"{ONLINE}::test_every_row_is_in_one_step_of_an_epoch_on_any_number_of_processes",
    ),
    Row(
        "images that do not come are passed over", "mpp/transfer/probes/online.py", "                    if len(labels) != len(rows):",
        "                    if len(labels) == 0:\n                        continue\n                    if len(labels) > len(rows):", f"{ONLINE}::test_images_that_do_not_come_stop_the_training",
    ),
    Plant(
        "the cosine begins before the warm-up ends", "mpp.transfer.probes.online:cosine",
        "lambda epoch, epochs, warm_up: epoch / warm_up if epoch < warm_up else 0.5 * (1 + math.cos(math.pi * epoch / epochs))",
        f"{ONLINE}::test_the_rate_is_that_of_maes_schedule",
    ),
    Plant(
        "processes keep their gradients to themselves", "mpp.transfer.probes.online:sum_over_processes",
        "lambda parts: [part * distributed.get_world_size() for part in parts] if distributed.is_initialized() else real(parts)",
        f"{ONLINE}::test_two_processes_train_the_heads_that_one_trains",
    ),
    Row(
        "BatchNorm keeps the biased variance", "mpp/transfer/probes/mae.py", "max(images - 1, 1)", "images",
        f"{ONLINE}::test_maes_probe_is_batch_norm_and_a_linear_layer_under_lars",
    ),
    Row(
        "all heads learn at the first one's rate", "mpp/transfer/probes/mae.py", "gradient, rate * factor", "gradient, self.rates[0] * factor",
        f"{ONLINE}::test_maes_probe_is_batch_norm_and_a_linear_layer_under_lars",
    ),
    Plant(
        "weights learn without LARS", "mpp.transfer.probes.mae:MaeHeads._lars",
        "lambda self: torch.optim.SGD([{'params': group['params']} for group in real(self).param_groups], lr=0.0, momentum=MOMENTUM)",
        f"{ONLINE}::test_maes_probe_is_batch_norm_and_a_linear_layer_under_lars",
    ),
    Plant(
        "biases are scaled by LARS", "mpp.transfer.probes.mae:MaeHeads._lars",
        "lambda self: (lambda lars: [group.update(always_adapt=True) for group in lars.param_groups] and lars)(real(self))",
        f"{ONLINE}::test_maes_probe_is_batch_norm_and_a_linear_layer_under_lars",
    ),
    Plant(
        "the class token is averaged with the patches", "mpp.transfer.probes.mae:MaeHeads._pool",
        "lambda self, tokens: (vars(self).update(prefix=0), real(self, tokens))[1]",
        f"{ONLINE}::test_maes_probe_is_batch_norm_and_a_linear_layer_under_lars",
    ),
    Plant(
        "BatchNorm sees one forward pass", "mpp.transfer.probes.mae:MaeHeads.see",
        "lambda self, tokens, labels: (self.seen.clear(), real(self, tokens, labels))[1]",
        f"{ONLINE}::test_the_size_of_a_forward_pass_does_not_matter",
    ),
    Plant(
        "the attentive probe looks at the class token", "mpp.transfer.probes.attentive:AttentiveHeads.logits",
        "lambda self, layer, tokens: (vars(self).update(prefix=0), real(self, layer, tokens))[1]",
        f"{ONLINE}::test_the_attentive_probe_is_cross_attention_with_keys_and_values_of_every_token",
    ),
    Row(
        "attention is not scaled", "mpp/transfer/probes/attentive.py", "query, key) / math.sqrt(width)", "query, key)",
        f"{ONLINE}::test_the_attentive_probe_is_cross_attention_with_keys_and_values_of_every_token",
    ),
    Row(
        "biases of the attentive probe decay", "mpp/transfer/probes/attentive.py", '{"params": weights.biases, "weight_decay": 0.0}', '{"params": weights.biases, "weight_decay": weight_decay}',
        f"{ONLINE}::test_the_attentive_probe_is_cross_attention_with_keys_and_values_of_every_token",
    ),
    Plant(
        "the attentive probe learns from the last forward pass alone", "mpp.transfer.probes.attentive:AttentiveHeads.see",
        "lambda self, tokens, labels: (self.optimiser.zero_grad(), real(self, tokens, labels))[1]",
        f"{ONLINE}::test_the_size_of_a_forward_pass_does_not_matter",
    ),
    # Pictures.
    Row(
        "right answers are listed as confusions", "mpp/transfer/plots.py", "apart = np.where(np.eye(len(names), dtype=bool), 0, matrix)", "apart = matrix",
        f"{PLOTS}::test_the_most_frequent_confusions_are_listed_and_right_answers_are_not",
    ),
    Row(
        "single confusions are averaged away", "mpp/transfer/plots.py", "step).max(axis=(1, 3))", "step).mean(axis=(1, 3))",
        f"{PLOTS}::test_one_confusion_among_a_thousand_classes_is_seen",
    ),
    Row(
        "the hold-out of a probe beside the encoder is cropped as features are",
        "mpp/transfer/probes/online.py",
        "train.split.choose, self.crop)",
        "train.split.choose)",
        "tests/transfer/test_online.py::test_answers_are_to_the_crops_of_the_source_on_the_hold_out_and_at_the_end",
    ),
    Row(
        "a probe beside the encoder answers to the features' crop",
        "mpp/transfer/in_the_loop.py",
        "replace(self.extractor.spec, crop=crop)",
        "self.extractor.spec",
        "tests/train/test_several_ranks.py::test_a_probe_beside_the_encoder_answers_to_the_crop_it_asks_for",
    ),
    Plant(
        "all rows' matrices but the first are left out", "mpp.transfer.plots:confusions",
        "lambda matrices, names, title: real(dict(list(matrices.items())[:1]), names, title)",
        f"{PLOTS}::test_every_row_has_its_matrix_as_a_panel_while_classes_are_few_and_as_a_file_of_its_own_beyond",
    ),
    Plant(
        "rows whose names are alike overwrite each other's picture", "mpp.transfer.plots:file_names",
        "lambda stem, rows: {row: f\"{stem}-{re.sub('[^A-Za-z0-9]+', '-', row)}.png\" for row in rows}",
        f"{PLOTS}::test_every_row_has_its_matrix_as_a_panel_while_classes_are_few_and_as_a_file_of_its_own_beyond",
    ),
    Plant(
        "shares are of the class given", "mpp.transfer.plots:_numbered",
        "lambda axes, matrix, names, title: real(axes, matrix.T, names, title)",
        f"{PLOTS}::test_a_matrix_with_numbers_says_counts_and_shares_and_how_many_images_each_class_has",
    ),
    Plant(
        "long names lose their ends", "mpp.transfer.plots:clipped",
        "lambda name, fits: real(name, fits) if fits(name) else next(name[:n] + '…' for n in range(len(name), -1, -1) if n < 2 or fits(name[:n] + '…'))",
        f"{PLOTS}::test_names_too_long_keep_both_ends_and_letters_the_font_lacks_are_told_apart",
    ),
    # The surest mistakes.
    Row(
        "a mistake is placed in words too long for its tile", "mpp/transfer/mistakes.py", "crops.pixels.source.name_of(", "crops.pixels.source.where(",
        f"{MISTAKES}::test_each_error_stands_beside_its_own_image_as_the_probe_saw_it",
    ),
    Plant(
        "right answers stand among the mistakes", "mpp.transfer.mistakes:worst",
        "lambda predicted, confidence, truth, most=MOST: np.argsort(-confidence.numpy(), kind='stable')[:most]",
        f"{MISTAKES}::test_the_surest_errors_come_first_and_of_equally_sure_ones_the_first",
    ),
    Plant(
        "the least sure mistakes are shown", "mpp.transfer.mistakes:worst",
        "lambda predicted, confidence, truth, most=MOST: real(predicted, -confidence, truth, most)",
        f"{MISTAKES}::test_each_error_stands_beside_its_own_image_as_the_probe_saw_it",
    ),
    Row(
        "a mistake stands beside the image of its rank", "mpp/transfer/mistakes.py", "Parts(crops.ids, [rows] if len(rows) else [])",
        "Parts(crops.ids, [range(len(rows))] if len(rows) else [])", f"{MISTAKES}::test_each_error_stands_beside_its_own_image_as_the_probe_saw_it",
    ),
    Row(
        "small images are blurred", "mpp/transfer/mistakes.py", "Image.Resampling.NEAREST", "Image.Resampling.BILINEAR",
        f"{MISTAKES}::test_images_of_any_size_keep_their_shape_small_ones_by_whole_pixels",
    ),
    Plant(
        "pictures are of the last draw", "mpp.transfer.results:first_run", "lambda given: Answers(given.predicted[-1], given.confidence[-1]) if given.predicted.ndim > 1 else given",
        f"{MISTAKES}::test_pictures_are_of_every_row_that_answered_and_of_the_first_of_several_draws",
    ),
]  # fmt: skip
