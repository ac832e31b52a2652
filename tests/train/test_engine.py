import pytest

from mpp.base.errors import UserError
from mpp.train.engine import check_version


@pytest.mark.parametrize("version", ["0.17.6", "0.9.0", "0.16.10+cu12"])
def test_a_deepspeed_that_is_too_old_is_refused_with_one_that_works(version):
    with pytest.raises(UserError, match=rf"DeepSpeed {version.replace('+', '.')} is too old: .*pip install deepspeed=="):
        check_version(version)


@pytest.mark.parametrize("version", ["0.18.0", "0.19.8", "1.0.0"])
def test_later_ones_are_taken(version):
    check_version(version)
