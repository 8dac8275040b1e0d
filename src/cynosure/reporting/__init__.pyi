from cynosure.reporting.compare_page import comparison_page as comparison_page
from cynosure.reporting.predict_page import prediction_page as prediction_page
from cynosure.reporting.writing import REPORT as REPORT
from cynosure.reporting.writing import protocols_page as protocols_page
from cynosure.reporting.writing import report as report
from cynosure.reporting.writing import write_page as write_page
