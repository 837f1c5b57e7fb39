# SPDX-License-Identifier: ISC
"""The checker of histories itself: what could have been passes, what could not is found."""
import itertools
import math
import random
import unittest

from fault import model
from fault.linearizability import Operation, find_order, is_linearizable
from support import tap

BAD, GOOD = 0.9, 0.1


def op(invoked, returned, call, answer, **how):
    return Operation(invoked, returned, call, answer, **how)


def lost(invoked, call, required=False, twin=None):
    """Called, and never heard of again."""
    return Operation(invoked, math.inf, call, None, required, twin)


def possible(*operations):
    return is_linearizable(list(operations), model.step, model.INITIAL)


class Known(unittest.TestCase):
    """Histories whose verdict is known."""

    def test_one_after_the_other(self):
        self.assertTrue(possible(op(0, 1, ("disable", "a"), True), op(2, 3, ("fetch",), ("a", 0, 5)),
                                 op(4, 5, ("enable",), True), op(6, 7, ("fetch",), (None, 0, 6)),
                                 op(8, 9, ("enable",), False)))

    def test_stale_read(self):
        self.assertFalse(possible(op(0, 1, ("disable", "a"), True), op(2, 3, ("fetch",), (None, 0, 1))))

    def test_read_beside_a_write_may_see_either(self):
        for seen in (("a", 0, 2), (None, 0, 1)):
            self.assertTrue(possible(op(0, 10, ("disable", "a"), True), op(1, 2, ("fetch",), seen)))

    def test_new_then_old(self):
        """Two reads during one write: old then new is fine, new then old is not."""
        write = op(0, 10, ("disable", "a"), True)
        self.assertTrue(possible(write, op(1, 2, ("fetch",), (None, 0, 1)), op(3, 4, ("fetch",), ("a", 0, 2))))
        self.assertFalse(possible(write, op(1, 2, ("fetch",), ("a", 0, 2)), op(3, 4, ("fetch",), (None, 0, 2))))

    def test_lost_write(self):
        self.assertFalse(possible(op(0, 1, ("report", BAD), False), op(2, 3, ("report", BAD), False),
                                  op(4, 5, ("fetch",), (None, 1, 3))))

    def test_write_applied_twice(self):
        self.assertFalse(possible(op(0, 1, ("report", BAD), False), op(2, 3, ("fetch",), (None, 2, 3))))

    def test_two_cannot_both_trip(self):
        first = [op(i, i + 0.5, ("report", BAD), False) for i in range(2)]
        self.assertTrue(possible(*first, op(2, 9, ("report", BAD), True), op(2, 9, ("report", BAD), False)))
        self.assertFalse(possible(*first, op(2, 9, ("report", BAD), True), op(2, 9, ("report", BAD), True)))

    def test_two_cannot_both_enable(self):
        opening = op(0, 1, ("disable", "a"), True)
        self.assertTrue(possible(opening, op(2, 9, ("enable",), True), op(2, 9, ("enable",), False)))
        self.assertFalse(possible(opening, op(2, 9, ("enable",), True), op(2, 9, ("enable",), True)))

    def test_good_report_begins_anew(self):
        history = [op(0, 1, ("report", BAD), False), op(2, 3, ("report", GOOD), False), op(4, 5, ("report", BAD), False)]
        self.assertTrue(possible(*history, op(6, 7, ("fetch",), (None, 1, 9))))
        self.assertFalse(possible(*history, op(6, 7, ("fetch",), (None, 2, 9))))

    def test_unknown_may_have_happened_or_not(self):
        for seen in ((None, 0, 1), (None, 1, 2)):
            self.assertTrue(possible(lost(0, ("report", BAD)), op(5, 6, ("fetch",), seen)))
        self.assertFalse(possible(lost(0, ("report", BAD)), op(5, 6, ("fetch",), (None, 2, 2))))

    def test_unknown_may_happen_late(self):
        """But not go away again, and not before it was called."""
        self.assertTrue(possible(lost(0, ("disable", "a")), op(1, 2, ("fetch",), (None, 0, 1)),
                                 op(3, 4, ("fetch",), ("a", 0, 2))))
        self.assertFalse(possible(lost(0, ("disable", "a")), op(1, 2, ("fetch",), ("a", 0, 2)),
                                  op(3, 4, ("fetch",), (None, 0, 2))))
        self.assertFalse(possible(op(1, 2, ("fetch",), ("a", 0, 2)), lost(3, ("disable", "a"))))

    def test_unknown_that_is_known_to_have_happened(self):
        self.assertTrue(possible(lost(0, ("disable", "a"), True), op(1, 2, ("disable", "b"), True),
                                 op(5, 6, ("fetch",), ("b", 0, 3))))

    def test_versions(self):
        self.assertFalse(possible(op(0, 1, ("fetch",), (None, 0, 2)), op(2, 3, ("fetch",), (None, 0, 3))),
                         "a version without a change")
        self.assertFalse(possible(op(0, 1, ("fetch",), (None, 0, 3)), op(2, 3, ("disable", "a"), True),
                                  op(4, 5, ("fetch",), ("a", 0, 2))), "versions go back")

    def test_what_it_says_of_a_failure(self):
        order, stuck = find_order([op(0, 1, ("disable", "a"), True), op(2, 3, ("fetch",), (None, 0, 1))],
                                  model.step, model.INITIAL)
        self.assertEqual((order, stuck), ([0], ("a", 0, None, True)))

    def test_many_unknown_reports(self):
        """Twins are tried in one order only: else these are 2^40 sets."""
        unknown = [lost(i, ("report", BAD), twin="bad") for i in range(40)]
        opening = op(100, 101, ("disable", "a"), True)
        self.assertTrue(possible(opening, *unknown, op(200, 201, ("fetch",), ("a", 17, 18))))
        self.assertFalse(possible(opening, *unknown, op(200, 201, ("fetch",), ("a", 41, 42))))


def by_permutations(operations):
    """The definition, carried out: every order of every subset that holds the required ones."""
    optional = [each for each in operations if not each.required]
    for size in range(len(optional) + 1):
        for chosen in itertools.combinations(optional, size):
            kept = [each for each in operations if each.required] + list(chosen)
            for order in itertools.permutations(kept):
                if any(later.returned < earlier.invoked
                       for i, earlier in enumerate(order) for later in order[i + 1:]):
                    continue
                state = model.INITIAL
                for each in order:
                    state = state and model.step(state, each.call, each.answer)
                if state:
                    return True
    return False


class Random(unittest.TestCase):
    def simulate(self, random_, clients, count):
        """A history that did happen: each operation takes effect at a moment between its two ends."""
        state, version, history = model.INITIAL[:2], 1, []
        moments = sorted(random_.uniform(0, count) for _ in range(count))
        for number, moment in enumerate(moments):
            kind = random_.choice(("disable", "enable", "report", "report", "fetch"))
            call = {"disable": ("disable", f"r{number}"), "enable": ("enable",), "fetch": ("fetch",),
                    "report": ("report", random_.choice((BAD, BAD, GOOD)))}[kind]
            was = state
            if kind == "fetch":
                answer = (*state, version)
            else:
                after = model.step((*state, None, True), call, None)
                state = after[:2]
                version += state != was
                answer = {"disable": True, "enable": was[0] is not None,
                          "report": was[0] is None and state[0] is not None}[kind]
            ends = (moment - random_.random() * clients, moment + random_.random() * clients)
            unknown = random_.random() < 0.1
            history.append(Operation(ends[0], math.inf if unknown else ends[1], call, None if unknown else answer,
                                     not unknown))
        return history

    def test_what_happened_is_possible(self):
        for seed in range(200):
            history = self.simulate(random.Random(seed), 4, 60)
            self.assertTrue(possible(*history), f"seed {seed}")

    def test_agrees_with_the_definition(self):
        """Answers are changed at random: the search and the definition say the same, and often no."""
        verdicts = []
        for seed in range(300):
            random_ = random.Random(seed)
            history = self.simulate(random_, 3, 6)
            number = random_.randrange(len(history))
            changed = history[number]
            if changed.answer is not None and changed.call[0] != "fetch":
                history[number] = changed._replace(answer=not changed.answer)
            elif changed.answer is not None:
                history[number] = changed._replace(answer=(changed.answer[0], changed.answer[1] + 1, changed.answer[2]))
            verdicts.append(possible(*history))
            self.assertEqual(verdicts[-1], by_permutations(history), f"seed {seed}: {history}")
        tap.note(f"{verdicts.count(False)} of {len(verdicts)} changed histories are impossible")
        self.assertGreater(verdicts.count(False), 50)
        self.assertGreater(verdicts.count(True), 10)


if __name__ == "__main__":
    tap.main()
