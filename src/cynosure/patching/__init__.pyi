from cynosure.patching.causal import causal_lm_loss as causal_lm_loss
from cynosure.patching.entry import patch as patch
from cynosure.patching.entry import unpatch as unpatch
from cynosure.patching.find import find_causal_lm as find_causal_lm
from cynosure.patching.labelled import Objective as Objective
from cynosure.patching.model import Patch as Patch
from cynosure.patching.trainer import TrainerPatch as TrainerPatch
