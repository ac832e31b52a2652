from mpp.door import FeatureSet as FeatureSet
from mpp.door import ImageEncoder as ImageEncoder
from mpp.door import load_encoder as load_encoder

__version__: str
