"""Measuring: a model's loss on texts, token by token, and the figures made of it."""

from cynosure.measure.predict import Prediction as Prediction
from cynosure.measure.predict import predict as predict
from cynosure.measure.score import Progress as Progress
from cynosure.measure.score import score as score
from cynosure.measure.stats import Summary as Summary
from cynosure.measure.stats import Totals as Totals
