ttt
from torch import Tensor

from pyro_mixtures.errors import PartitionError
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.labelled_guide import LabelledGuide
from pyro_mixtures.infer.parallel_guide import ParallelGuide


