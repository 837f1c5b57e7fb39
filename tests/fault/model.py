# SPDX-License-Identifier: ISC
"""What one breaker may answer, in the order in which its operations took effect.

A state is (reason, failures, version, moved): why it is open (None: it is closed), the bad reports in a row, the version that
the last authoritative read showed, and whether something has changed since. The calls are

    ("disable", reason)   -> changed          every reason is used once, so that it tells whose opening it is
    ("enable",)           -> changed
    ("report", score)     -> tripped
    ("fetch",)            -> (reason or None, failures, version)

An answer of None is one that nobody has heard.
"""
THRESHOLD = 0.2
FAILURES = 3  # the fleet's failure_threshold
INITIAL = (None, 0, None, True)


def trip_reason(score):
    return f"Drift exceeded threshold: {score:.4f} > {THRESHOLD}"


def _disable(state, call, answer):
    if answer is False:
        return None
    return call[1], state[1], state[2], True


def _enable(state, _, answer):
    is_open = state[0] is not None
    if answer is not None and answer != is_open:
        return None
    return (None, 0, state[2], True) if is_open else state


def _report(state, call, answer):
    reason, failures, version, moved = state
    if call[1] <= THRESHOLD:
        if answer:
            return None
        return state if failures == 0 else (reason, 0, version, True)
    trips = reason is None and failures + 1 >= FAILURES
    if answer is not None and answer != trips:
        return None
    return trip_reason(call[1]) if trips else reason, failures + 1, version, True


def _fetch(state, _, answer):
    if answer is None:
        return state
    reason, failures, version = answer
    if (reason, failures) != state[:2]:
        return None
    # One commit may hold many operations, but nothing changes without a version, and no version without a change.
    if state[2] is not None and (version < state[2] or (version != state[2] and not state[3])):
        return None
    return reason, failures, version, False


_STEPS = {"disable": _disable, "enable": _enable, "report": _report, "fetch": _fetch}


def step(state, call, answer):
    return _STEPS[call[0]](state, call, answer)
