"""Bugs that the tests of codebooks and frozen teachers must find."""

from tests.mutations import Plant, Row

TARGET, FIT = "tests/recipe/test_codebook_target.py::test_", "tests/test_fit_codebook.py::test_"
LENT, RUNS = "tests/interop/test_lent.py::test_", "tests/pipeline/test_lent_targets.py::test_"
ROWS: list[Plant | Row] = [
    # The target.
    Row(
        "the nearest centre is the one with the largest product", "mpp/recipe/codes.py",
        "centres.square().sum(1) / 2", "centres.square().sum(1) * 0",
        TARGET + "goals_are_the_nearest_centres_by_hand_and_the_loss_is_the_cross_entropy",
    ),
    Row(
        "the nearest centre is found with squares that are not halved", "mpp/recipe/codes.py",
        "centres.square().sum(1) / 2", "centres.square().sum(1)",
        TARGET + "the_nearest_centre_does_not_depend_on_how_many_are_looked_at_at_once",
    ),
    Plant(
        "a code is drawn as the truth is", "mpp.recipe.targets.codebook:Codes.picture",
        "lambda self, goal, patches, truth: real(self, truth, patches, truth)",
        TARGET + "a_code_is_drawn_as_its_centre_is_by_the_target_that_it_is_of",
    ),
    Plant(
        "a codebook's centres are saved with the model", "mpp.recipe.model:PretrainingModel.__init__",
        "lambda self, *words: (real(self, *words), setattr(self, 'codebook', getattr(self.target, 'codebook', None)))[0]",
        TARGET + "a_model_learns_the_codes_that_it_has_lent_and_keeps_none_of_them",
    ),
    # Fitting.
    Plant(
        "dead centres stay where they are", "mpp.mains.fit_codebook:moved",
        "lambda points, centres, codes, errors, counts, device: torch.where((counts > 0)[:, None], "
        "real(points, centres, codes, errors, counts, device), centres)",
        FIT + "a_dead_centre_goes_to_the_point_that_is_farthest_from_its_own",
    ),
    Row(
        "a dead centre goes to the point that is nearest to its own", "mpp/mains/fit_codebook.py",
        "errors.topk(len(dead)).indices", "(-errors).topk(len(dead)).indices",
        FIT + "a_dead_centre_goes_to_the_point_that_is_farthest_from_its_own",
    ),
    Row(
        "k-means stops one move short", "mpp/mains/fit_codebook.py", "if moves == iterations or", "if moves == iterations - 1 or",
        FIT + "iterations_and_tolerance_end_it",
    ),
    Row(
        "k-means++ goes by the distance from the newest centre alone", "mpp/mains/fit_codebook.py",
        "distances = distances.minimum((among", "distances = torch.as_tensor((among",
        FIT + "k_means_plus_plus_finds_groups_that_lie_apart_where_random_points_often_do_not",
    ),
    Row(
        "patches that pass in parts are counted for the codes of the first part", "mpp/mains/fit_codebook.py",
        "next(rows)[None]", "codes[: len(part)].to(device)[None]",
        FIT + "points_that_pass_in_parts_give_the_same_centres",
    ),
    Row(
        "held-out images are fitted to", "mpp/mains/fit_codebook.py",
        "goals.of_images(sets.training, images, an_image)", "goals.of_images(sets.holdout, images, an_image)",
        FIT + "held_out_images_are_not_fitted_to",
    ),
    Row(
        "padding of the last batch is fitted to", "mpp/mains/fit_codebook.py",
        'real = batch["position"] < len(ids)', 'real = batch["position"] >= 0',
        FIT + "the_same_words_write_the_same_bytes_and_another_seed_others",
    ),
    Row(
        "perplexity is in bits", "mpp/mains/fit_codebook.py", "shares.clamp_min(1e-300).log()", "shares.clamp_min(1e-300).log2()",
        FIT + "what_is_written_is_what_was_fitted_and_the_figures_are_those_of_numpy",
    ),
    # What is lent.
    Row(
        "a codebook of other shards is learned", "mpp/interop/lent.py", "manifest is not None and facts.shards != manifest", "False",
        LENT + "a_codebook_that_is_not_there_of_other_shards_or_of_another_size_is_refused_with_the_command",
    ),
    Row(
        "a damaged codebook is learned", "mpp/interop/codebook_file.py", "    if not whole:\n", "    if False:\n",
        LENT + "a_codebook_that_is_damaged_or_none_is_refused",
    ),
    Row(
        "goals of a codebook are in the units of the run", "mpp/interop/lent.py",
        "facts.patch_size, facts.mean, facts.std, facts.encoder", "facts.patch_size, config.data.mean, facts.std, facts.encoder",
        LENT + "a_codebook_is_lent_with_the_target_that_it_is_of_in_the_units_that_it_was_fitted_in",
    ),
    Row(
        "a codebook is known by where its encoder lies", "mpp/interop/codebook_file.py", 'facts["of"].pop("encoder", None)', "pass",
        LENT + "codes_of_a_frozen_encoders_features_ask_for_that_encoder_and_are_known_wherever_it_lies",
    ),
    Row(
        "a frozen teacher sees colours as the run normalises them", "mpp/interop/lent.py",
        "loaded.mean, loaded.std)\n\n\n@torch.no_grad()", "(0.5, 0.5, 0.5), (0.5, 0.5, 0.5))\n\n\n@torch.no_grad()",
        LENT + "goals_of_a_frozen_encoder_are_the_layer_normed_outputs_that_timm_gives",
    ),
    Row(
        "a norm behind the pooling is forgotten in a teacher", "mpp/model/backbone.py", "if norm is not net.norm:", "if False:",
        LENT + "positions_of_a_teacher_of_other_images_are_resampled_and_a_norm_behind_the_pooling_is_found",
    ),
    Row(
        "any encoder is a teacher", "mpp/interop/lent.py", "    if not same:\n", "    if False:\n",
        LENT + "an_encoder_that_is_no_vision_transformer_is_refused",
    ),
    Row(
        "a run goes on with another teacher or codebook", "mpp/mains/pretrain.py", "{**sets.manifests, **brought.digests}", "sets.manifests",
        RUNS + "a_run_that_goes_on_with_another_is_refused_by_name_and_its_recipe_is_another",
    ),
    Row(
        "what is lent may not move", "mpp/train/run_folder.py", ', "target.encoder", "target.path")', ")",
        RUNS + "a_resumed_run_is_the_uninterrupted_one_bit_for_bit_wherever_it_lies_by_now",
    ),
]  # fmt: skip
