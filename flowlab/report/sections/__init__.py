"""The sections of the report, a class and a file each."""

from flowlab.report.sections.calibration import Calibration
from flowlab.report.sections.classifier import Classifier
from flowlab.report.sections.columns import Columns
from flowlab.report.sections.log_likelihood import LogLikelihood
from flowlab.report.sections.missing import Missing
from flowlab.report.sections.model import Members, Schema, Summary, Training
from flowlab.report.sections.pairs import Pairs
from flowlab.report.sections.privacy import Privacy
from flowlab.report.sections.rules import Rules
from flowlab.report.sections.section import Section
from flowlab.report.sections.transfer import Transfer
from flowlab.report.sections.validity import Validity

# In the order of the page.
SECTIONS: tuple[type[Section], ...] = (
    LogLikelihood,
    Columns,
    Pairs,
    Classifier,
    Transfer,
    Missing,
    Validity,
    Rules,
    Privacy,
    Calibration,
    Members,
    Training,
    Schema,
    Summary,
)
# In the order of the overview: the model itself, how near its rows are to real ones, what they are good for.
OVERVIEW: tuple[type[Section], ...] = (
    LogLikelihood,
    Calibration,
    Classifier,
    Columns,
    Pairs,
    Missing,
    Validity,
    Transfer,
    Privacy,
)

__all__ = ["OVERVIEW", "SECTIONS", "Section"]
