"""An audit of a model, its loss and its batches."""

from cynosure.models.auditing.findings import Audit as Audit
from cynosure.models.auditing.findings import Finding as Finding
from cynosure.models.auditing.findings import Made as Made
from cynosure.models.auditing.run import audit as audit
