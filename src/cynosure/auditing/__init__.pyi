from cynosure.auditing.checks import Check as Check
from cynosure.auditing.checks import check as check
from cynosure.auditing.findings import Audit as Audit
from cynosure.auditing.findings import Finding as Finding
from cynosure.auditing.findings import Made as Made
from cynosure.auditing.run import audit as audit
