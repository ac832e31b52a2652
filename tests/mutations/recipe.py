"""Bugs in the choices of a recipe, one list for all of them."""

from tests.mutations import Plant, Row

FEATURES, TEACHER, TAUGHT = (
    "tests/recipe/test_features_target.py::test_",
    "tests/train/test_teacher.py::test_",
    "tests/pipeline/test_teacher.py::test_",
)
ROWS: list[Plant | Row] = [
    # Features of a teacher.
    Plant(
        "features are of the first blocks", "mpp.model.encoder:Encoder.behind_blocks",
        "lambda self, embeddings, last: real(self, embeddings, len(self.vit.blocks))[:last]",
        FEATURES + "goals_are_the_normed_mean_of_the_normed_outputs_of_the_teachers_last_blocks",
    ),
    Row(
        "features of blocks are averaged before they are normed", "mpp/recipe/targets/features.py",
        "torch.stack([self._normed(tokens) for tokens in patches])", "torch.stack(patches)",
        FEATURES + "goals_are_the_normed_mean_of_the_normed_outputs_of_the_teachers_last_blocks",
    ),
    Row(
        "the class token is taken for a patch of the teacher", "mpp/recipe/targets/features.py", "tokens[:, teacher.prefix :]", "tokens",
        FEATURES + "goals_are_the_normed_mean_of_the_normed_outputs_of_the_teachers_last_blocks",
    ),
    Row(
        "the teacher sees raw colours", "mpp/recipe/targets/features.py", "teacher.embed(normalise(images, self.mean, self.std))", "teacher.embed(images)",
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
        "a picture has components of its own for predictions", "mpp/recipe/targets/features.py", "points = truth.flatten(0, 1)", "points = goal.flatten(0, 1)",
        FEATURES + "a_picture_shows_three_principal_components_of_the_truth_and_predictions_on_the_same",
    ),
    Plant(
        "the ramp of the teacher counts steps and not samples", "mpp.recipe.teacher:TeacherKnobs.decay_at",
        "lambda self, samples_seen: real(self, samples_seen // 4)",
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
        "the encoder that is handed on is the teacher", "mpp/pretraining.py", 'read_tensors(commit, "weight/" + PREFIX)', 'read_tensors(commit, "ema/")',
        TAUGHT + "the_encoder_that_is_handed_on_is_the_students",
    ),
]  # fmt: skip
