"""Runs cases in forked processes, so that a crash, a hang or a memory bomb is of one case alone.

Each process writes what it does into a journal: which case it starts, and how that ended. Where it
dies, the last case that was started is to blame, and a new process goes on with the next one.
"""

import json
import os
import re
import resource
import signal
import sys
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

CHUNK = 200  # cases of one process
GIGABYTE = 1 << 30
# Address space of a process beyond what it has; more cannot hurt the machine.
SAFETY = 6 * GIGABYTE
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What code in a file would do that has any effect; Python tells of each.
EFFECTS = re.compile(
    r'os\.(system|exec|fork|forkpty|posix_spawn|spawn|startfile|mkdir|rmdir|remove|rename|link|'
    r'symlink|chmod|chown|truncate|kill|putenv|unsetenv|utime)|subprocess\.Popen|shutil\..+|'
    r'socket\.(connect|bind|sendto)|ctypes\.dlopen|pty\.spawn|urllib\.Request|webbrowser\.open'
)


@dataclass(frozen=True)
class Result:
    """How a case ended.

    Args:
        number: Of the case.
        verdict: What the check returned; or 'failed', 'died' or 'hung'.
        detail: Why.
        gigabytes: How much more memory the process had resident at most.
    """

    number: int
    verdict: str
    detail: str = ''
    gigabytes: float = 0.0

    @property
    def is_failure(self):
        return self.verdict in ('failed', 'died', 'hung')


class Watch:
    """Lists what happens while a case runs that code in a file would do."""

    def __init__(self):
        self.active, self.seen = False, []
        sys.addaudithook(self._hear)

    def _hear(self, event, args):
        if not self.active:
            return
        writes = event == 'open' and isinstance(args[2], int) and args[2] & WRITES
        if writes or EFFECTS.fullmatch(event):
            self.seen.append(f'{event} {args[:1]}')


def run_cases(check, numbers, folder, seconds=60, gigabytes=2.0, jobs=1):
    """Run ``check(number, watch)`` for each number and return the results in their order.

    Args:
        check: Returns a verdict in a word or two, and raises AssertionError for a failure.
        numbers: Of the cases.
        folder: For the journals.
        seconds: After which a case counts as hanging.
        gigabytes: Of resident memory that a case may add.
        jobs: Processes at a time.
    """
    numbers = list(numbers)
    todo = [numbers[i : i + CHUNK] for i in range(0, len(numbers), CHUNK)]
    running, results, count = {}, {}, 0
    while todo or running:
        while todo and len(running) < jobs:
            journal, count = Path(folder, f'journal{count}'), count + 1
            chunk = todo.pop(0)
            running[_fork(check, chunk, journal, seconds)] = (chunk, journal)
        pid, status = os.wait()
        if pid not in running:  # of somebody else
            continue
        chunk, journal = running.pop(pid)
        done = _read(journal, os.waitstatus_to_exitcode(status))
        results.update((result.number, result) for result in done)
        rest = [number for number in chunk if number not in results]
        assert done or not rest, f'no case runs at all: {journal.read_text()}'
        if rest:
            todo.append(rest)
    return [_judge(results[number], gigabytes) for number in numbers]


def assert_all_pass(check, numbers, folder, **limits):
    """Run cases as :func:`run_cases` does, print how many came out how; return those counts."""
    results = run_cases(check, numbers, folder, **limits)
    counts = Counter(result.verdict for result in results)
    for verdict, count in sorted(counts.items()):
        print(f'{count:5} {verdict}')
    print(f'most memory: {max(result.gigabytes for result in results):.2f} GB')
    failures = [result for result in results if result.is_failure]
    for result in failures:
        print(f'{result.number}: {result.verdict} {result.detail}')
    assert not failures, f'{len(failures)} of {len(results)} failed'
    assert len(results) == len([*numbers])
    return counts


def _judge(result, gigabytes):
    if result.gigabytes > gigabytes and not result.is_failure:
        detail = f'takes {result.gigabytes:.1f} GB: {result.verdict} {result.detail}'
        return Result(result.number, 'failed', detail, result.gigabytes)
    return result


def _fork(check, numbers, journal, seconds):
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:  # in the child, which never returns
        _work(check, numbers, journal, seconds)
        os._exit(0)
    except BaseException:
        journal.open('a').write(traceback.format_exc())
        os._exit(1)


def _work(check, numbers, journal, seconds):
    # What libraries print; a crash of Python itself is told here as well.
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    room = _status('VmSize') + SAFETY
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever it does
    watch = Watch()
    with journal.open('a') as file:
        for number in numbers:
            print(json.dumps([number]), file=file, flush=True)
            Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
            before = _status('VmHWM')
            signal.alarm(seconds)
            try:
                verdict, detail = check(number, watch), ''
            except Exception as error:
                verdict = 'failed'
                detail = f'{type(error).__name__}: {error}'
                if not isinstance(error, AssertionError):
                    detail += '\n' + traceback.format_exc(limit=-6)
            signal.alarm(0)
            watch.active = False
            grown = (_status('VmHWM') - before) / GIGABYTE
            print(json.dumps([number, verdict, detail, grown]), file=file, flush=True)


def _read(journal, status):
    """Return the results in a journal; the case that the process died in is one of them."""
    results, started = [], None
    for line in journal.read_text().splitlines():
        if not line.startswith('['):
            continue
        values = json.loads(line)
        started = values[0] if len(values) == 1 else None
        if len(values) > 1:
            results.append(Result(*values))
    if started is not None:
        hung = status == -signal.SIGALRM
        results.append(Result(started, 'hung' if hung else 'died', f'exit status {status}'))
    return results


def _status(key):
    """Return a figure of this process in bytes."""
    text = Path('/proc/self/status').read_text()
    return int(re.search(rf'{key}:\s*(\d+) kB', text)[1]) * 1024
