"""All checks in the order in which to mend what they find."""

from __future__ import annotations

from . import ground, libraries
from .facts import Facts
from .finding import BAD, Finding

CHECKS = (
    ground.check_environment,
    ground.check_python,
    ground.check_setuptools,
    ground.check_torch,
    ground.check_torchvision,
    ground.check_gpu,
    ground.check_numpy,
    ground.check_opencv,
    libraries.check_stack,
    libraries.check_owners,
    libraries.check_contnet_mm,
    libraries.check_ranges,
    libraries.check_imports,
    libraries.check_ops,
    libraries.check_checkpoints,
    libraries.check_mim,
    libraries.check_libraries,
)


def examine(facts: Facts) -> list[Finding]:
    """Judges an environment.

    Args:
        facts: What is there.

    Returns:
        The findings. One that an earlier problem explains is turned into a note.
    """
    findings: list[Finding] = []
    for check in CHECKS:
        for finding in check(facts):
            problems = {found.about for found in findings if found.status == 'problem'}
            cause = next((cause for cause in finding.causes if cause in problems), None)
            if cause and finding.status in BAD:
                text = f'look again when {cause} is mended ({finding.text})'
                finding = Finding('note', finding.about, text)
            findings.append(finding)
    return findings
