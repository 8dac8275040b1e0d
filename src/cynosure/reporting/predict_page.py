"""The page of a prediction: the distribution of one next token."""

from typing import TYPE_CHECKING, Any

from cynosure.measure import percent
from cynosure.reporting.page import Page

if TYPE_CHECKING:
    from cynosure.measure import Prediction


def prediction_page(prediction: "Prediction") -> Page:
    """Return the page of a prediction."""
    context: dict[str, Any] = {
        "top": [(token.token, token.probability, percent(token.probability)) for token in prediction.top],
        "truth": [(token, percent(token.probability)) for token in prediction.truth],
        "rest": percent(max(0.0, 1 - sum(token.probability for token in prediction.top))),
    }
    title = f"What {prediction.model} expects next"
    return Page("predict.html.j2", title, prediction.model, prediction.to_json(), [], context)
