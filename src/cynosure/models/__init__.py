"""Models and tokenizers: found by name, loaded, and split into a body and a head."""

from cynosure.models.auditing import audit as audit
from cynosure.models.checks import check as check
from cynosure.models.head import Head as Head
from cynosure.models.head import hidden_states as hidden_states
from cynosure.models.head import read_head as read_head
from cynosure.models.loading import LanguageModel as LanguageModel
from cynosure.models.loading import load as load
from cynosure.models.packed import check_apart as check_apart
from cynosure.models.regimes import Regimes as Regimes
from cynosure.models.splitting import SplitModel as SplitModel
from cynosure.models.splitting import split as split
