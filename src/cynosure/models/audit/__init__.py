"""An audit of a model, its loss and its batches."""

from cynosure.models.audit.findings import Audit as Audit
from cynosure.models.audit.findings import Finding as Finding
from cynosure.models.audit.findings import Made as Made
from cynosure.models.audit.run import audit as audit
