"""All checks, in the order in which to fix what they find."""

from __future__ import annotations

from . import base_checks, library_checks
from .diagnosis import BAD, Diagnosis, note
from .facts import Facts

# A check is a function named check_*; they run in the order of their files.
CHECKS = [
    function
    for module in (base_checks, library_checks)
    for name, function in vars(module).items()
    if name.startswith('check_')
]


def examine(facts: Facts) -> list[Diagnosis]:
    """Run all checks; a diagnosis that an earlier problem explains becomes a note."""
    diagnoses: list[Diagnosis] = []
    for diagnosis in (found for check in CHECKS for found in check(facts)):
        problems = {found.about for found in diagnoses if found.status == 'problem'}
        cause = next((cause for cause in diagnosis.causes if cause in problems), None)
        if cause and diagnosis.status in BAD:
            text = f'look again when {cause} is fixed ({diagnosis.text})'
            diagnosis = note(diagnosis.about, text)
        diagnoses.append(diagnosis)
    return diagnoses
