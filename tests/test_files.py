import pytest
from safetensors import SafetensorError

from mpp.files import writing


@pytest.mark.parametrize(
    ("raised", "named"),
    [
        (OSError(28, "No space left on device"), True),
        (SafetensorError("Error while serializing: I/O error: No such file or directory (os error 2)"), True),
        (OSError(2, "No such file or directory", "its-own"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_fails_while_a_file_is_written_names_the_file(tmp_path, raised, named):
    with pytest.raises(OSError) as error, writing(tmp_path / "weights"):
        raise raised
    assert error.value.filename == (str(tmp_path / "weights") if named else "its-own")


def test_a_fault_of_the_tensors_themselves_stays_what_it_is(tmp_path):
    with pytest.raises(SafetensorError, match="InvalidHeader"), writing(tmp_path / "weights"):
        raise SafetensorError("Error while serializing: InvalidHeader")
