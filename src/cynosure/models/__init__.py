"""Models and tokenizers: found by name, loaded, and split into a body and a head."""

from cynosure.models.audit import audit as audit
from cynosure.models.check import check as check
from cynosure.models.head import Head as Head
from cynosure.models.head import hidden_states as hidden_states
from cynosure.models.head import read_head as read_head
from cynosure.models.load import LanguageModel as LanguageModel
from cynosure.models.load import load as load
from cynosure.models.packed import check_apart as check_apart
from cynosure.models.regimes import Regimes as Regimes
from cynosure.models.split import SplitModel as SplitModel
from cynosure.models.split import split as split
