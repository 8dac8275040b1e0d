"""Measuring: a model's loss on texts, token by token, and the figures made of it."""

from cynosure.measure.comparison import Comparison as Comparison
from cynosure.measure.comparison import compare as compare
from cynosure.measure.divergence import diverge as diverge
from cynosure.measure.gate import Gate as Gate
from cynosure.measure.gate import Verdict as Verdict
from cynosure.measure.gate import junit as junit
from cynosure.measure.meter import Meter as Meter
from cynosure.measure.prediction import Prediction as Prediction
from cynosure.measure.prediction import predict as predict
from cynosure.measure.protocols import check_all_own as check_all_own
from cynosure.measure.protocols import score_all as score_all
from cynosure.measure.run import Corpus as Corpus
from cynosure.measure.run import score as score
from cynosure.measure.scores import Scores as Scores
from cynosure.measure.scores import open_run as open_run
from cynosure.measure.scoring import Progress as Progress
from cynosure.measure.stats import Statistics as Statistics
from cynosure.measure.store import check_own as check_own
