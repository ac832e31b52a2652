"""Where probes look: every block, the last one, the predictor's first block."""

from tests.mutations import Plant, Row

PLACES, RESULTS = "tests/transfer/test_probe_places.py", "tests/transfer/test_results.py"
FEATURE = f"{PLACES}::test_the_predictors_feature_is_the_mean_of_its_first_block_at_all_places_when_all_are_seen"
BEST = f"{PLACES}::test_the_best_place_and_the_last_block_have_a_figure_each_and_the_last_is_measured_as_if_alone"
RANDOM_ROW = f"{PLACES}::test_the_predictor_of_a_random_row_is_as_a_run_with_its_seed_starts_and_each_has_a_key_of_its_own"
ATTENTIVE = f"{PLACES}::test_the_attentive_probe_chooses_its_layer_on_the_hold_out_and_reads_the_last_beside_it"
SHOWN = f"{PLACES}::test_the_last_block_has_a_column_and_places_are_said"
ROWS = [
    Plant(
        "the last block may be better on the hold-out than the best of all places", "mpp.transfer.probes.linear:best_of_all", "lambda *both: list(both)",
        f"{PLACES}::test_the_last_block_is_the_best_place_too_where_rates_that_were_widened_for_it_alone_made_it_so",
    ),
    Row(
        "the predictor reads tokens that are not normed", "mpp/model/backbone.py", "else norm(found[self.depth])", "else found[self.depth]", FEATURE,
    ),
    Row(
        "a predictor of sums reads normed blocks", "mpp/model/backbone.py", "[found[layer] for layer in every] if", "[norm(found[layer]) for layer in every] if", FEATURE,
    ),
    Row(
        "the predictor is asked for every place but the last", "mpp/model/backbone.py", "found[self.depth].shape[1] - self.prefix, device", "found[self.depth].shape[1] - self.prefix - 1, device",
        FEATURE,
    ),
    Plant(
        "the predictor's feature is its last block's", "mpp.recipe.decoders.cross_attention:CrossAttention.first_block",
        "lambda self, tokens, places, queries: self._through(self.blocks, tokens, places, queries)",
        f"{PLACES}::test_of_several_blocks_the_first_alone_counts_and_other_sizes_have_other_places",
    ),
    Plant(
        "a predictor keeps the places of the size it was trained at", "mpp.recipe.decoders.cross_attention:CrossAttention.at_grid", "lambda self, grid: real(self, self.grid)",
        f"{PLACES}::test_of_several_blocks_the_first_alone_counts_and_other_sizes_have_other_places",
    ),
    Row(
        "the predictor of a run is not loaded", "mpp/interop/read_encoder.py", "        net.load_state_dict(weights)\n", "        pass\n", FEATURE,
    ),
    Plant("the random row has the predictor that was trained", "mpp.interop.loaded_encoder:LoadedPredictor.fresh", "lambda self, seed: self", RANDOM_ROW),
    Row("the predictor of a random row starts as the encoder does", "mpp/mains/probe_job.py", "fresh(seed_of(seed, INIT, 1))", "fresh(seed_of(seed, INIT, 0))", RANDOM_ROW),
    Row(
        "predictors share the key of their tables", "mpp/transfer/rows.py", "spec = replace(spec, predictor=predictor.digest)", 'spec = replace(spec, predictor="predictor")', RANDOM_ROW,
    ),
    Row(
        "tables of before there were predictors are not found", "mpp/transfer/features.py", "return known if self.predictor else", "return known if True else",
        f"{PLACES}::test_an_encoder_without_one_has_no_such_feature_and_asking_for_it_is_refused",
    ),
    Row("the linear probe's last block is the best place", "mpp/transfer/probes/linear.py", "picked.append((yield from chosen(ends)))", "picked.append((yield from chosen(train.variants)))", BEST),
    Row(
        "the last block's answers are another head's", "mpp/transfer/probes/linear.py", "trained.only(blocks.index((variant, (rate,))))", "trained.only(0)", BEST,
    ),
    Row("the neighbours' last block is the best place", "mpp/transfer/probes/knn.py", "if variant.layers == (train.last,)]", "]", BEST),
    Row("neighbours are looked for at the features asked for, whatever was chosen", "mpp/transfer/probes/knn.py", "images.features.of(self.variant)", "images.features.of(self.train.own)", BEST),
    Plant(
        "the curve shows the worst score of a place", "mpp.transfer.probes.linear:scores_by_place",
        "lambda places: real((layer, pooling, -score) for layer, pooling, score in places)", BEST,
    ),
    Row("the attentive probe's last layer is the first", "mpp/transfer/probes/online.py", "chosen(of_layer[train.last])", "chosen(of_layer[layers[0]])", ATTENTIVE),
    Row("the attentive probe looks at the layer asked for alone", "mpp/transfer/probes/attentive.py", "for variant in train.variants for layer", "for variant in train.variants[:1] for layer", ATTENTIVE),
    Row("a class's accuracies are taken for a column", "mpp/transfer/table.py", 'isinstance(found.get("accuracy"), float | int)', '"accuracy" in found', SHOWN),
    Row("places are not said", "mpp/transfer/table.py", 'if "place" in column.figures.get(name, {})', 'if "places" in column.figures.get(name, {})', SHOWN),
    Row(
        "a wide table stays wide", "mpp/transfer/table.py", "if used > widest and i > starts[-1]:", "if False:",
        f"{PLACES}::test_a_table_that_is_too_wide_goes_on_below_with_its_rows",
    ),
    Plant(
        "scores by block are the first seed's", "mpp.transfer.protocol:_mean_by_layer", "lambda runs: runs[0]",
        f"{PLACES}::test_scores_by_block_are_the_mean_over_seeds_and_stand_side_by_side",
    ),
    Row(
        "neighbours of older results share a column with those at a chosen place", "mpp/transfer/results.py", 'setdefault("curve", False)', 'setdefault("curve", True)',
        f"{RESULTS}::test_results_of_before_places_were_chosen_stand_beside_those_of_today",
    ),
]  # fmt: skip
