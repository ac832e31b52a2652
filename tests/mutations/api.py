"""Bugs of what `import mpp` gives."""

from tests.mutations import Plant, Row

FILE = "mpp/api.py"
TEST = "tests/test_api.py::test_"
SAME = TEST + "an_image_is_preprocessed_to_the_bit_as_the_files_of_a_set_whatever_it_is_given_as"
POOLED = TEST + "features_are_pooled_as_asked_and_tokens_lie_where_their_patches_do"
CACHE = TEST + "a_cache_is_used_again_but_never_for_weights_that_have_changed"
LEARNS = TEST + "it_is_frozen_until_it_is_thawed_and_then_learns"
FOLDERS = TEST + "folders_of_classes_and_of_images_are_taken_in_their_order"
ROWS: list[Plant | Row] = [
    Row("an opened image is taken as its pixels", "mpp/data/decode.py", "image.tile and image.fp and image.tell() == 0", "False", SAME),
    Row(
        "an opened image has its file read away", "mpp/data/decode.py", "        image.fp.seek(place)  # where the decoder goes on\n", "", SAME,
    ),
    Row(
        "a later frame is the first", "mpp/data/decode.py", "image.fp and image.tell() == 0", "image.fp", TEST + "what_was_loaded_or_changed_is_taken_as_its_pixels_are",
    ),
    Row(
        "a loaded image loses its turn", "mpp/data/decode.py", "exif[_ORIENTATION] = _orientation(image)", "exif[_ORIENTATION] = 1",
        TEST + "what_was_loaded_or_changed_is_taken_as_its_pixels_are",
    ),
    Row(
        "the whole image is squeezed into the square", FILE, "Centre(self.image_size, self._asked.crop).box(width, height)", "(0, 0, width, height)",
        TEST + "the_square_of_the_encoder_s_own_size_is_normalised_and_nothing_else",
    ),
    Row(
        "the crop is not heeded", FILE, "Centre(self.image_size, self._asked.crop)", "Centre(self.image_size)",
        TEST + "the_square_of_the_encoder_s_own_size_is_normalised_and_nothing_else",
    ),
    Row(
        "colours are not normalised", FILE, "normalise(torch.from_numpy(self._square(image)), self.mean, self.std)", "torch.from_numpy(self._square(image)) / 255",
        TEST + "the_square_of_the_encoder_s_own_size_is_normalised_and_nothing_else",
    ),
    Row("all layers stand in the features", FILE, "[:, self._columns.to(self.device)]", "", POOLED),
    Row("tokens are those of the last block", FILE, "layer = self.layers[-1]\n        found", "layer = self.backbone.depth\n        found", POOLED),
    Row("tokens count the class token", FILE, "found[:, self.backbone.prefix :]", "found[:, self.backbone.prefix - 1 : -1]", POOLED),
    Row("both is the mean alone", FILE, '{"pooling": pooling,', '{"pooling": "mean" if pooling == "both" else pooling,', POOLED),
    Plant(
        "a device that is not there is found out by torch", "mpp.api:usable_device", "lambda asked: __import__('torch').device(asked or 'cpu')",
        TEST + "a_device_that_is_not_there_is_told_before_anything_is_read",
    ),
    Row(
        "the teacher is not asked for", FILE, "read_encoder(_as_timm(source), network=network)", 'read_encoder(_as_timm(source), network="encoder")',
        TEST + "the_teacher_is_asked_for_by_name",
    ),
    Row(
        "a name of timm's hides what lies here", FILE, "not Path(source).exists() and ", "", TEST + "a_name_of_timm_s_counts_where_no_such_path_exists",
    ),
    Row("weights that were trained have the old ones' table", FILE, "(weights := weights_digest(self.backbone.state_dict())) != self._weights", "False", CACHE),
    Row("a set is measured in training mode", FILE, "                module.training = training\n", "                module.training = False\n", LEARNS),
    Row("what is loaded is not frozen", FILE, "        self.requires_grad_(False).eval()\n", "", LEARNS),
    Plant(
        "gradients do not reach the encoder", "mpp.transfer.extractors:EncoderExtractor.of_normalised",
        "__import__('torch').no_grad()(real)", LEARNS,
    ),
    Row("labels stand in another order", FILE, "np.array(found.labels)", "np.sort(found.labels)[::-1].copy()", FOLDERS),
    Row("a flat folder has no order", FILE, "inside := sorted(file.name for file in walk(folder, Counter()))", "inside := sorted((file.name for file in walk(folder, Counter())), reverse=True)", FOLDERS),
    Row(
        "a name in the interface is not there", "mpp/__init__.py", '"ImageEncoder", ', "", TEST + "what_type_checkers_are_told_is_what_there_is",
    ),
    Row(
        "import mpp waits for torch", "mpp/__init__.py", "import importlib\n", "import importlib\n\nimport mpp.base.rng, numpy\n",
        TEST + "import_mpp_is_free_of_torch_and_says_what_it_has",
    ),
    Row("a program has no name", "mpp/__main__.py", '    "conformance",\n', "", TEST + "mpp_calls_the_programs_by_name"),
    Row(
        "an empty list is an index out of bounds", "mpp/api.py", "        if not images:\n", "        if images is None:\n",
        "tests/test_api.py::test_features_of_no_file_are_refused_in_words",
    ),
]  # fmt: skip
