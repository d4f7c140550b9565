"""What was found: rows of measures by recipe and window, their log on disk, and results files."""

from fp4scope.ledger import claim
from fp4scope.ledger.checks import MOST_NATS, require_reported
from fp4scope.ledger.files import read_results, results_from_json, results_to_json
from fp4scope.ledger.log import Found, Job, Log, check_folder
from fp4scope.ledger.measures import MEASURES, ROUTERS, ROUTING, STRATA, Value
from fp4scope.ledger.results import Results
from fp4scope.ledger.rows import Key, Ledger, Rows
from fp4scope.ledger.schema import ActivationRecord, ErrorRecord, LocalError
from fp4scope.ledger.strata import CLASS, POSITION, STRATIFICATIONS, names_of, octave_of
from fp4scope.ledger.tasks import TASKS, Documents, TaskResults, read_tasks
