"""Bugs of the pictures and pages that people read, and of the board's layout."""

from tests.mutations import Plant, Row

REPORT, FOLDER, CHARTS = (
    "tests/pipeline/test_report.py::test_",
    "tests/pages/test_run_folder.py::test_",
    "tests/pages/test_charts.py::test_",
)
BOARD = "tests/pipeline/test_board_of_runs.py::test_"
ROWS: list[Plant | Row] = [
    Row(
        "names from outside are obeyed", "mpp/pages/page.py", "autoescape=True", "autoescape=False",
        REPORT + "names_from_outside_are_shown_and_never_obeyed",
    ),
    Row(
        "charts share their names", "mpp/pages/charts.py", 'own = f"c{next(_number)}-"', 'own = "c-"', CHARTS + "two_charts_on_one_page_share_no_name",
    ),
    Row(
        "a thinned line loses its end", "mpp/pages/charts.py", "(len(points) - 1) / (most - 1)", "(len(points) - 1) / most",
        CHARTS + "a_long_line_is_thinned_evenly_with_both_ends",
    ),
    Row(
        "ink is black by night, too", "mpp/pages/charts.py", 'svg.replace(INK, "currentColor")', 'svg.replace(INK, "#000")',
        CHARTS + "it_is_well_formed_with_its_words_as_text_and_no_colour_or_address_of_its_own",
    ),
    Row(
        "figures that are not finite are drawn as nothing", "mpp/pages/run_folder.py", "if row.get(name) is not None]", "if name in row]",
        FOLDER + "a_curve_is_of_the_rows_that_have_a_finite_figure",
    ),
    Row(
        "the clock forgets what went before", "mpp/pages/run_folder.py", 'seconds += (row["samples"] - samples) / rate', 'seconds = (row["samples"] - samples) / rate',
        FOLDER + "the_clock_adds_up_what_the_rows_between_took",
    ),
    Row(
        "every key is said to be the usual one", "mpp/pages/run_folder.py", "Key(name, shown(value), not usual(name, value),", "Key(name, shown(value), False,",
        FOLDER + "every_key_has_its_value_its_source_and_whether_it_is_the_usual_one",
    ),
    Row(
        "run folders count as a difference", "mpp/pages/run_folder.py", "if key not in GIVEN_ELSEWHERE]", "]",
        FOLDER + "what_differs_between_runs_stands_beside_each_other_but_for_where_they_lie",
    ),
    Row(
        "a counter of energy that begins anew goes back", "mpp/monitor/energy.py", "new + (whole - old) for", "new - old for",
        "tests/monitor/test_energy.py::test_a_counter_that_begins_anew_goes_on",
    ),
    Row(
        "parts of a package are counted twice", "mpp/monitor/energy.py", 'if folder.name.count(":") == 1:', "if True:",
        "tests/monitor/test_energy.py::test_packages_are_summed_and_what_lies_below_them_is_not_counted_twice",
    ),
    Row(
        "a reference of another seed is not found", "mpp/train/run_folder.py", 'not in (*PATHS, *LIMITS, PASSED_OVER, "seed")}', "not in (*PATHS, *LIMITS, PASSED_OVER)}",
        "tests/monitor/test_reference.py::test_the_identity_is_of_recipe_scale_and_images_and_not_of_seed_place_or_speed",
    ),
    Row(
        "a reference of other images is taken", "mpp/train/run_folder.py", "json.dumps([known, depends_on], sort_keys=True)", "json.dumps([known], sort_keys=True)",
        "tests/monitor/test_reference.py::test_the_identity_is_of_recipe_scale_and_images_and_not_of_seed_place_or_speed",
    ),
    Row(
        "a band goes on beyond its points", "mpp/monitor/reference.py", "if not self.samples[0] <= samples <= self.samples[-1]:", "if False:",
        "tests/monitor/test_reference.py::test_between_its_points_it_is_straight_and_beyond_them_there_is_none",
    ),
    Row(
        "norms by depth are those after clipping", "mpp/train/engine.py",
        '            asked = self._parts if by_depth else {}\n            self._gradient_norms = norms({name: [_gradient(each) for each in part] for name, part in asked.items()})\n            norm = nn.utils.clip_grad_norm_(self._trained, self.clip_norm or float("inf"))\n',
        '            norm = nn.utils.clip_grad_norm_(self._trained, self.clip_norm or float("inf"))\n            asked = self._parts if by_depth else {}\n            self._gradient_norms = norms({name: [_gradient(each) for each in part] for name, part in asked.items()})\n',
        BOARD + "every_chart_has_curves_and_every_curve_its_chart",
    ),
    Row(
        "the projector's words stand beside other pictures", "mpp/monitor/projector.py", "(number % columns * side, number // columns * side)", "(number // columns * side, number % columns * side)",
        "tests/monitor/test_projector.py::test_features_words_and_small_pictures_stand_in_one_order",
    ),
    Row(
        "hyper-parameters are not written down", "mpp/monitor/board.py", "summary.custom_scalars(layout), experiment, start)", "summary.custom_scalars(layout))",
        BOARD + "what_changes_results_is_among_the_hyper_parameters_and_features_are_projected",
    ),
    Row(
        "pictures show swapped patches as they were", "mpp/recipe/corruptions/base.py", "gather_patches(patchify(images, patch_size), masks.source)", "patchify(images, patch_size)",
        "tests/monitor/test_pictures.py::test_the_second_panel_is_what_the_encoder_sees_and_frames_tell_swapped_from_kept",
    ),
    Row(
        "what is hidden and not asked for passes for a prediction", "mpp/monitor/pictures.py", "shown = patchify(sees, side)", "shown = clean",
        "tests/monitor/test_pictures.py::test_only_predicted_places_show_anything_but_what_the_encoder_sees",
    ),
    Row(
        "a guess has the true mean and deviation", "mpp/monitor/pictures.py", "target.picture(answer, pooled, truth)", "target.picture(answer, own, truth)",
        "tests/monitor/test_pictures.py::test_the_guess_knows_nothing_of_the_hidden_patches_and_has_the_statistics_of_the_nearest_seen_ones",
    ),
    Row(
        "statistics are lent by hidden patches, too", "mpp/monitor/pictures.py", "far = apart.masked_fill(~seen[:, None], torch.iinfo(apart.dtype).max)", "far = apart",
        "tests/monitor/test_pictures.py::test_the_nearest_patches_seen_are_those_of_least_distance_on_the_grid",
    ),
    Row(
        "kept patches are not told apart", "mpp/monitor/pictures.py", "FRAMES = {SWAPPED: (230, 159, 0), KEPT: (0, 114, 178)}", "FRAMES = {SWAPPED: (230, 159, 0)}",
        "tests/monitor/test_pictures.py::test_the_second_panel_is_what_the_encoder_sees_and_frames_tell_swapped_from_kept",
    ),
    Row(
        "the loss of one patch is drawn in another", "mpp/monitor/pictures.py", "torch.from_numpy(scale.colours(losses))", "torch.from_numpy(scale.colours(losses[:, ::-1].copy()))",
        "tests/monitor/test_pictures.py::test_the_last_panel_is_the_loss_of_each_predicted_patch_beside_the_trivial_one",
    ),
    Row(
        "damaged results are left out without a word", "mpp/pages/page.py", "return find_results(measured) if measured else []",
        "return []", REPORT + "damaged_results_are_named_and_not_left_out",
    ),
    Row(
        "a page's command has what a launcher adds", "mpp/pages/page.py", 'if not word.startswith("--local_rank")', "if word",
        "tests/pages/test_run_folder.py::test_the_command_of_a_page_can_be_given_to_a_shell",
    ),
]  # fmt: skip
