"""Training on the fused loss, inside of the tools that people train with."""

from cynosure.train.trainer import TrainerPatch as TrainerPatch
from cynosure.train.trainer import patch as patch
