# SPDX-License-Identifier: ISC
"""Is there an order of these operations, each somewhere between its invocation and its return, that one object could have gone through?

The search of Wing and Gong ("Testing and verifying concurrent objects", 1993) with Lowe's memory of what was tried before
("Testing for linearizability", 2017): a set of operations in some state of the object need not be looked at twice.
It knows nothing of breakers; what an object may answer is a model's business, see model.py.
"""
import math
from typing import Any, NamedTuple


class Operation(NamedTuple):
    """
    One call of one client. `returned` is infinite if nobody knows whether it has returned, or with what.
    required: it is known to have happened; else the search may leave it out.
    twin: operations without an answer that differ in nothing but the time of their invocation have the same one, and
    are tried in that order only (None: it has no twin).
    """
    invoked: float
    returned: float
    call: Any
    answer: Any
    required: bool = True
    twin: Any = None


class _Node:
    """A call or a return in the list of all of them, in the order of time."""
    __slots__ = ("number", "is_return", "before", "after", "partner")

    def __init__(self, number, is_return):
        self.number = number
        self.is_return = is_return
        self.before = self.after = self.partner = None


def _link(operations):
    """The head of the list. At the same instant calls come before returns, so that nothing is forbidden that may have been."""
    events = [(operation.invoked, 0, number) for number, operation in enumerate(operations)]
    events += [(operation.returned, 1, number) for number, operation in enumerate(operations)
               if operation.returned != math.inf]
    head = last = _Node(-1, False)
    calls = {}
    for _, is_return, number in sorted(events):
        node = _Node(number, bool(is_return))
        last.after, node.before, last = node, last, node
        if is_return:
            calls[number].partner = node
        else:
            calls[number] = node
    return head


def _lift(node):
    """Takes a call and its return out of the list."""
    for each in (node, node.partner):
        if each is not None:
            each.before.after = each.after
            if each.after is not None:
                each.after.before = each.before


def _put_back(node):
    for each in (node.partner, node):
        if each is not None:
            each.before.after = each
            if each.after is not None:
                each.after.before = each


def _earlier_twins(operations):
    """For each operation the bit of the twin that goes before it, 0 if there is none."""
    last, bits = {}, []
    order = sorted(range(len(operations)), key=lambda number: operations[number].invoked)
    bits = [0] * len(operations)
    for number in order:
        twin = operations[number].twin
        if twin is not None:
            bits[number] = last.get(twin, 0)
            last[twin] = 1 << number
    return bits


def find_order(operations, step, state):
    """
    (order, stuck): the numbers of the operations in an order that explains them all, and None; or the longest such
    beginning that was found, and the state in which nothing fitted any more.

    step(state, call, answer) is the state after it, or None if the object in that state would not have answered so.
    States must be hashable and not None.
    """
    head = _link(operations)
    twins = _earlier_twins(operations)
    wanted = sum(operation.required for operation in operations)
    tried = set()
    taken = []  # (node, the state and the set before it)
    done = 0    # the set of operations taken, as bits
    best, stuck = [], state
    node = head.after
    while wanted > 0:
        if node is not None and not node.is_return:
            operation = operations[node.number]
            bit = 1 << node.number
            after = None
            if twins[node.number] & done == twins[node.number]:
                after = step(state, operation.call, operation.answer)
            if after is None or (done | bit, after) in tried:
                node = node.after
                continue
            tried.add((done | bit, after))
            taken.append((node, state, done))
            state, done = after, done | bit
            wanted -= operation.required
            _lift(node)
            node = head.after
            continue
        # Whoever returns here should have been taken before, or nothing is left: one step back.
        if len(taken) > len(best):
            best, stuck = [each[0].number for each in taken], state
        if not taken:
            return best, stuck
        node, state, done = taken.pop()
        wanted += operations[node.number].required
        _put_back(node)
        node = node.after
    return [each[0].number for each in taken], None


def is_linearizable(operations, step, state):
    return find_order(operations, step, state)[1] is None
