"""Bugs that the tests of probes on features, of probes beside the encoder and of their figures must find."""

from tests.mutations import Row

LOGISTIC, METRICS, NEIGHBOURS = "tests/transfer/test_logistic.py", "tests/transfer/test_metrics.py", "tests/transfer/test_neighbours.py"
FEW_SHOT, ONLINE, PLOTS = "tests/transfer/test_few_shot.py", "tests/transfer/test_online.py", "tests/transfer/test_plots.py"
ROWS_OF_PROBES, RANKS = "tests/transfer/test_probe_rows.py", "tests/train/test_several_ranks.py"

ROWS = [
    # Rows of the table.
    Row(
        "gains have the other sign", "mpp/probing.py", "for name in (PRETRAINED, other))", "for name in (other, PRETRAINED))",
        f"{ROWS_OF_PROBES}::test_a_gain_is_positive_where_the_encoder_is_the_better_one",
    ),
    Row(
        "the bootstrap has the other direction", "mpp/transfer/metrics.py", "margin = 2 * ahead - differing", "margin = differing - 2 * ahead",
        f"{ROWS_OF_PROBES}::test_a_gain_is_positive_where_the_encoder_is_the_better_one",
    ),
    Row(
        "extraction has colours of its own", "mpp/probing.py", "resolution, asked.crop, loaded.mean, loaded.std, asked.precision)", "resolution, asked.crop, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), asked.precision)",
        f"{ROWS_OF_PROBES}::test_every_row_sees_colours_as_the_encoder_was_trained_with",
    ),
    Row(
        "the encoder's deviation is not used", "mpp/transfer/extractors.py", "found = self.backbone.layers(normalise(images, self.spec.mean, self.spec.std), layers)",
        "found = self.backbone.layers(normalise(images, self.spec.mean, (0.5, 0.5, 0.5)), layers)",
        f"{ROWS_OF_PROBES}::test_features_are_those_of_timms_own_model_on_images_normalised_by_the_folders_own_numbers",
    ),
    Row(
        "raw pixels are not normalised as the encoder's", "mpp/transfer/extractors.py", "pixels = normalise(images, self.spec.mean, self.spec.std)", "pixels = images.float() / 255",
        f"{ROWS_OF_PROBES}::test_every_row_sees_colours_as_the_encoder_was_trained_with",
    ),
    Row(
        "the random row keeps the norms that were trained", "mpp/probing.py", "    baselines[RANDOM].about[\"source\"]",
        "    kept = {n: t for n, t in loaded.net.state_dict().items() if 'norm' in n}\n    baselines[RANDOM].extractor.backbone.net.load_state_dict(kept, strict=False)  # type: ignore\n"
        "    baselines[RANDOM].about[\"source\"]",
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
        "confidence = torch.cat([sure for _, _, sure in everything], dim=1)[:, place]", "confidence = torch.cat([sure for _, _, sure in everything], dim=1)",
        f"{RANKS}::test_answers_of_probes_beside_the_encoder_stand_by_image_whichever_part_comes_first",
    ),
    Row(
        "a key of probing is read by nobody", "mpp/probing.py", "config.features.pixel_side)", "32)",
        "tests/transfer/test_every_key.py::test_every_key_changes_what_it_says",
    ),
    Row(
        "registers are pooled as patches", "mpp/transfer/extractors.py", "        prefix = self.backbone.prefix\n", "        prefix = 1\n",
        f"{ROWS_OF_PROBES}::test_features_are_those_of_timms_own_model_on_images_normalised_by_the_folders_own_numbers",
    ),
    # Logistic regression.
    Row(
        "the penalty does not know how many images there are", "mpp/transfer/logistic.py", "decay = 1 / (strength * len(rows))", "decay = 1 / strength",
        f"{LOGISTIC}::test_probabilities_are_those_of_scikit_learn_at_every_strength",
    ),
    Row(
        "the bias is penalised", "mpp/transfer/logistic.py", "gradient[:, :-1] += decay * point[:, :-1]", "gradient += decay * point",
        f"{LOGISTIC}::test_probabilities_are_those_of_scikit_learn_at_every_strength",
    ),
    Row(
        "the bias of raw features forgets their mean", "mpp/transfer/logistic.py", " - weight @ data.mean.double()", "",
        f"{LOGISTIC}::test_probabilities_are_those_of_scikit_learn_at_every_strength",
    ),
    Row(
        "every strength counts as converged", "mpp/transfer/logistic.py", "[norm <= tolerance for norm in gradients]", "[True for _ in gradients]",
        f"{LOGISTIC}::test_what_has_not_converged_says_so",
    ),
    Row(
        "coordinates are not changed", "mpp/transfer/logistic.py", "turned = ((gradient[:, :-1] @ directions) * root.square()) @ directions.T",
        "turned = gradient[:, :-1]", f"{LOGISTIC}::test_few_passes_are_enough_for_correlated_features",
    ),
    Row(
        "features are standardised in place", "mpp/transfer/logistic.py", "return values[:, where][rows] if isinstance(where, slice)",
        "return values[rows[0] : rows[-1] + 1, where] if isinstance(where, slice)", f"{LOGISTIC}::test_features_and_the_global_generator_are_left_as_they_were",
    ),
    Row(
        "what is read again is not standardised", "mpp/transfer/logistic.py", "yield self._read(chosen).sub_(self.mean).mul_(self.scale)", "yield self._read(chosen)",
        f"{LOGISTIC}::test_what_does_not_fit_into_memory_is_read_again_with_the_same_outcome",
    ),
    Row(
        "the first step downhill will do", "mpp/transfer/logistic.py", "            if lower or level or count >= most_passes:", "            lower = True\n            if True:",
        f"{LOGISTIC}::test_the_minimum_of_a_steep_valley_is_found_without_a_good_first_step",
    ),
    # Figures.
    Row(
        "rows and columns of the confusion matrix are exchanged", "mpp/transfer/metrics.py", "truth.cpu().long() * classes + predicted.cpu().long()",
        "predicted.cpu().long() * classes + truth.cpu().long()", f"{METRICS}::test_confusion_and_balanced_accuracy_are_those_of_scikit_learn",
    ),
    Row(
        "classes without images count as wrong", "mpp/transfer/metrics.py", "    return mean, (max(0.0, mean - half), min(1.0, mean + half))",
        "    mean *= len(present) / len(images)\n    return mean, (max(0.0, mean - half), min(1.0, mean + half))",
        f"{METRICS}::test_a_class_without_images_has_no_figure_and_does_not_count",
    ),
    Row(
        "balanced accuracy has the interval of one class", "mpp/transfer/metrics.py", "half = NORMAL * math.sqrt(variance) / len(present)",
        "half = NORMAL * math.sqrt(variance / len(present))", f"{METRICS}::test_the_interval_of_balanced_accuracy_holds_the_truth_as_often_as_it_says",
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
        "the bootstrap is not paired", "mpp/transfer/metrics.py", "    a_only, b_only = int((correct_a & ~correct_b).sum()), int((~correct_a & correct_b).sum())",
        "    a_only, b_only = int(correct_a.sum()), int(correct_b.sum())", f"{METRICS}::test_the_paired_bootstrap_is_that_of_resampling_images_one_by_one",
    ),
    Row(
        "the number of images that differ is taken for certain", "mpp/transfer/metrics.py", "differing = _binomial(images, differ / images, first)",
        "differing = np.full(RESAMPLES, differ)", f"{METRICS}::test_the_paired_bootstrap_is_that_of_resampling_images_one_by_one",
    ),
    Row(
        "McNemar's test is one-sided", "mpp/transfer/metrics.py", "min(1.0, 2 * tail)", "min(1.0, tail)",
        f"{METRICS}::test_mcnemars_test_is_scipys_binomial_test",
    ),
    # Neighbours and few-shot.
    Row(
        "places in the bank are those of the piece", "mpp/transfer/neighbours.py", "torch.cat([index for _, index in found]) + first", "torch.cat([index for _, index in found])",
        f"{NEIGHBOURS}::test_the_bank_in_pieces_has_the_same_neighbours_as_the_whole_bank",
    ),
    Row(
        "the best of the pieces are not sorted anew", "mpp/transfer/neighbours.py", "best, kept = best.topk(k, dim=1)",
        "kept = torch.arange(k, device=device).expand(len(best), -1)\n            best = best[:, :k]",
        f"{NEIGHBOURS}::test_the_bank_in_pieces_has_the_same_neighbours_as_the_whole_bank",
    ),
    Row(
        "the bank is not normalised", "mpp/transfer/neighbours.py", "known = normalize(known.to(device), dim=1)", "known = known.to(device)",
        f"{NEIGHBOURS}::test_the_bank_in_pieces_has_the_same_neighbours_as_the_whole_bank",
    ),
    Row(
        "votes count the same", "mpp/transfer/neighbours.py", "weight = ((near - near[:, :1]) / temperature).exp()", "weight = torch.ones_like(near)",
        f"{NEIGHBOURS}::test_votes_of_every_k_and_temperature_are_those_of_a_plain_loop",
    ),
    Row(
        "a low temperature overflows", "mpp/transfer/neighbours.py", "((near - near[:, :1]) / temperature).exp()", "(near / temperature).exp()",
        f"{NEIGHBOURS}::test_votes_of_every_k_and_temperature_are_those_of_a_plain_loop",
    ),
    Row(
        "neighbours vote twice in a grid", "mpp/transfer/neighbours.py", "labels[:, counted : grid[i]], weight[:, counted : grid[i]]", "labels[:, : grid[i]], weight[:, : grid[i]]",
        f"{NEIGHBOURS}::test_votes_of_every_k_and_temperature_are_those_of_a_plain_loop",
    ),
    Row(
        "the spread shrinks with the number of draws", "mpp/transfer/few_shot.py", "float(np.std(accuracies, ddof=1))", "float(np.std(accuracies, ddof=1) / len(accuracies) ** 0.5)",
        f"{FEW_SHOT}::test_mean_and_spread_are_over_draws",
    ),
    Row(
        "few-shot targets are 0 and 1", "mpp/transfer/few_shot.py", "torch.full((len(x), classes), -1.0,", "torch.full((len(x), classes), 0.0,",
        f"{FEW_SHOT}::test_the_class_predicted_is_that_of_a_penalised_constant_column",
    ),
    # Beside the encoder.
    Row(
        "the last images of an epoch are dropped", "mpp/transfer/online.py", "np.array_split(order, self.per_epoch))",
        "np.array_split(order[: len(order) // self.batch * self.batch], self.per_epoch))", f"{ONLINE}::test_every_row_is_in_one_step_of_an_epoch_on_any_number_of_processes",
    ),
    Row(
        "every epoch has the first one's order", "mpp/transfer/online.py", "Draws(self.seed, PROBE, BATCHES, epoch)", "Draws(self.seed, PROBE, BATCHES, 0)",
        f"{ONLINE}::test_every_row_is_in_one_step_of_an_epoch_on_any_number_of_processes",
    ),
    Row(
        "images that do not come are passed over", "mpp/transfer/online.py", "                if len(images) != len(rows) or len(labels) != len(rows):",
        "                if len(images) == 0:\n                    continue\n                if len(images) > len(rows):", f"{ONLINE}::test_images_that_do_not_come_stop_the_training",
    ),
    Row(
        "the cosine begins before the warm-up ends", "mpp/transfer/online.py", "(epoch - warmup_epochs) / (epochs - warmup_epochs)", "epoch / epochs",
        f"{ONLINE}::test_the_rate_is_that_of_maes_schedule",
    ),
    Row(
        "processes keep their gradients to themselves", "mpp/transfer/online.py", "    distributed.all_reduce(flat)\n", "    flat *= distributed.get_world_size()\n",
        f"{ONLINE}::test_two_processes_train_the_heads_that_one_trains",
    ),
    Row(
        "BatchNorm keeps the biased variance", "mpp/transfer/mae_probe.py", "max(images - 1, 1)", "images",
        f"{ONLINE}::test_maes_probe_is_batch_norm_and_a_linear_layer_under_lars",
    ),
    Row(
        "all rates share LARS's norms", "mpp/transfer/mae_probe.py", "weight.norm(dim=(1, 2), keepdim=True), w_gradient.norm(dim=(1, 2), keepdim=True)",
        "weight.norm(), w_gradient.norm()", f"{ONLINE}::test_maes_probe_is_batch_norm_and_a_linear_layer_under_lars",
    ),
    Row(
        "biases are scaled by LARS", "mpp/transfer/mae_probe.py", "b_velocity.mul_(MOMENTUM).add_(b_gradient)", "b_velocity.mul_(MOMENTUM).add_(TRUST * b_gradient)",
        f"{ONLINE}::test_maes_probe_is_batch_norm_and_a_linear_layer_under_lars",
    ),
    Row(
        "the class token is averaged with the patches", "mpp/transfer/mae_probe.py", "tokens[layer][:, self.prefix :].float().mean(dim=1)", "tokens[layer].float().mean(dim=1)",
        f"{ONLINE}::test_maes_probe_is_batch_norm_and_a_linear_layer_under_lars",
    ),
    Row(
        "BatchNorm sees one forward pass", "mpp/transfer/mae_probe.py", "        x = torch.cat([features for features, _ in self.seen])\n        y = torch.cat([labels for _, labels in self.seen])",
        "        x, y = self.seen[-1]", f"{ONLINE}::test_the_size_of_a_forward_pass_does_not_matter",
    ),
    Row(
        "the attentive probe looks at the class token", "mpp/transfer/attentive.py", "layer_norm(tokens[:, self.prefix :].float()", "layer_norm(tokens.float()",
        f"{ONLINE}::test_the_attentive_probe_is_cross_attention_with_keys_and_values_of_every_token",
    ),
    Row(
        "attention is not scaled", "mpp/transfer/attentive.py", "query, key) / math.sqrt(width)", "query, key)",
        f"{ONLINE}::test_the_attentive_probe_is_cross_attention_with_keys_and_values_of_every_token",
    ),
    Row(
        "biases of the attentive probe decay", "mpp/transfer/attentive.py", '{"params": weights.biases, "weight_decay": 0.0}', '{"params": weights.biases, "weight_decay": weight_decay}',
        f"{ONLINE}::test_the_attentive_probe_is_cross_attention_with_keys_and_values_of_every_token",
    ),
    Row(
        "the attentive probe learns from the last forward pass alone", "mpp/transfer/attentive.py", "        with torch.enable_grad():",
        "        self.optimiser.zero_grad()\n        with torch.enable_grad():", f"{ONLINE}::test_the_size_of_a_forward_pass_does_not_matter",
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
]  # fmt: skip
