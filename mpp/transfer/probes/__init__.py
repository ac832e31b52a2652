"""The probes, in the order of the table's columns: a new one is a file beside this one and a line in this list (contract.py says what it holds)."""

from mpp.transfer.probes.attentive import AttentiveProbe
from mpp.transfer.probes.contract import Probe
from mpp.transfer.probes.few_shot import FewShotProbe
from mpp.transfer.probes.knn import KnnProbe
from mpp.transfer.probes.linear import LinearProbe
from mpp.transfer.probes.logistic import LogisticProbe
from mpp.transfer.probes.mae import MaeProbe

PROBES: tuple[type[Probe], ...] = (LinearProbe, LogisticProbe, MaeProbe, AttentiveProbe, KnnProbe, FewShotProbe)
