"""All checks, in the order in which to fix what they find."""

from __future__ import annotations

from . import base_checks, library_checks
from .diagnosis import BAD, Diagnosis, note
from .facts import Facts

CHECKS = (
    base_checks.check_environment,
    base_checks.check_python,
    base_checks.check_setuptools,
    base_checks.check_torch,
    base_checks.check_torchvision,
    base_checks.check_gpu,
    base_checks.check_numpy,
    base_checks.check_opencv,
    library_checks.check_stack,
    library_checks.check_owners,
    library_checks.check_contnet_mm,
    library_checks.check_imports,
    library_checks.check_ops,
    library_checks.check_checkpoints,
    library_checks.check_mim,
    library_checks.check_libraries,
)


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
