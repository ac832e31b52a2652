"""What each paper says of each recipe.  A paper is one file here, and one name in the line at the end; a recipe is one list of claims, under the name
of its YAML."""

from mpp.claims.claim import Claim
from mpp.claims.papers import beit, capi, crossmae, data2vec, ijepa, mae, maskfeat, pixio, pretexts, simmim, vit

PAPERS = (vit, mae, crossmae, pixio, simmim, maskfeat, beit, data2vec, ijepa, capi, pretexts)
CLAIMS: dict[str, list[Claim]] = {name: claims for paper in PAPERS for name, claims in paper.CLAIMS.items()}
