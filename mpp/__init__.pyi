from mpp.api import FeatureSet as FeatureSet
from mpp.api import ImageEncoder as ImageEncoder
from mpp.api import load_encoder as load_encoder

__version__: str
