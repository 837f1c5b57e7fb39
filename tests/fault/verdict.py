# SPDX-License-Identifier: ISC
"""What the records of a run and the database at its end say together: every rule that was broken, as text."""
import bisect
import json
import math
import multiprocessing
from collections import Counter, defaultdict

from fault import model
from fault.client import Seen
from fault.linearizability import Operation, find_order


class Database:
    """What the last primary says of these breakers: the openings, and the decision at every version."""

    def __init__(self, postgres, breakers):
        names = "'" + json.dumps(sorted(breakers)) + "'::jsonb"
        self.incidents = {}              # by id
        self.openings = defaultdict(list)  # by reason
        self.closings = defaultdict(list)  # by who: versions
        self.decisions = defaultdict(list)  # by breaker: (version, reason or None), ascending
        for row in postgres.rows("SELECT id, breaker, version, reason, resolved_at IS NOT NULL "
                                 f"FROM cbshm.incident WHERE {names} ? breaker"):
            self.incidents[row[0]] = row
            self.openings[row[1], row[3]].append(row)
        for breaker, version, action, actor, was, now in postgres.rows(
                "SELECT breaker, version, action, actor, old_values, new_values FROM cbshm.audit_log "
                f"WHERE {names} ? breaker ORDER BY breaker, version"):
            was, now = json.loads(was), json.loads(now)
            if action == "enable":
                self.closings[breaker, actor].append(int(version))
            if "disabled_reason" in now or "disabled_reason" in was or not self.decisions[breaker]:
                self.decisions[breaker].append((int(version), now.get("disabled_reason")))
        self.last = {row[0]: Seen(row[1], int(row[2]), int(row[3])) for row in postgres.rows(
            f"SELECT name, disabled_reason, consecutive_failures, version FROM cbshm.breaker WHERE {names} ? name")}
        self.alerts = Counter((row[0], row[1]) for row in postgres.rows(
            f"SELECT incident_id, kind FROM cbshm.alert_queue WHERE {names} ? breaker"))

    def decision(self, breaker, version):
        timeline = self.decisions[breaker]
        at = bisect.bisect_right(timeline, version, key=lambda each: each[0])
        return timeline[at - 1][1] if at else None


def _count(record, database):
    """How often a disable or enable of a person stands in the database."""
    if record.kind == "disable":
        return len(database.openings[record.breaker, record.argument])
    return len(database.closings[record.breaker, record.argument])


def acknowledged(records, database):
    """No acknowledged write is missing, nothing that failed was applied, nothing was applied twice."""
    for record in records:
        if record.kind == "report" and record.answer is not None and record.answer not in database.incidents:
            yield f"the incident of an acknowledged report is missing: {record}"
        if record.kind not in ("disable", "enable"):
            continue
        count = _count(record, database)
        changed = record.outcome == "ok" and (record.answer if record.kind == "enable" else record.answer[0])
        if changed and count == 0:
            yield f"an acknowledged write is missing: {record}"
        elif not changed and record.outcome != "unknown" and count > 0:
            yield f"a write that changed nothing is there: {record}"
        elif count > 1:
            yield f"a write was applied {count} times: {record}"
        if record.outcome == "ok" and record.kind == "disable" and record.answer[1] not in database.incidents:
            yield f"the incident of an acknowledged disable is missing: {record}"


def whole(database):
    """Incidents, their alerts and the breakers fit together."""
    unresolved = Counter(row[1] for row in database.incidents.values() if row[4] != "t")
    for breaker, seen in database.last.items():
        if unresolved[breaker] != (seen.reason is not None):
            yield f"{breaker} has {unresolved[breaker]} open incidents, and is {seen}"
    for identifier, row in database.incidents.items():
        alerts = (database.alerts[identifier, "disable"], database.alerts[identifier, "enable"])
        if alerts != (1, row[4] == "t"):
            yield f"incident {row} has {alerts} alerts of opening and closing"


def _version(record, database):
    """The version that an acknowledged decision made; None if it made none, or only moved the counter."""
    if record.outcome != "ok":
        return None
    if record.kind == "enable":
        found = database.closings[record.breaker, record.argument] if record.answer else []
        return found[0] if found else None
    incident = {"disable": record.answer and record.answer[1], "report": record.answer}.get(record.kind)
    return int(database.incidents[incident][2]) if incident in database.incidents else None


def _floors(records, database):
    """By host and breaker: from when on no process there may see an older version than this."""
    floors = defaultdict(list)
    for record in sorted(records, key=lambda each: each.returned):
        version = _version(record, database)
        if version is not None:
            floor = floors[record.host, record.breaker]
            floor.append((record.returned, max(version, floor[-1][1] if floor else 0)))
    return floors


def segments(records, database):
    """What is read from shared memory was committed, never goes back for a process, and holds every write of the host."""
    floors = _floors(records, database)
    last = {}
    reported = set()  # (process, breaker): a bad report was acknowledged since the last look
    for record in sorted(records, key=lambda each: each.invoked):
        key = record.process, record.breaker
        if record.kind == "report" and record.outcome == "ok" and record.argument > model.THRESHOLD:
            reported.add(key)
        if record.kind != "segment" or record.outcome == "unknown":
            continue
        seen, floor = record.answer, floors[record.host, record.breaker]
        at = bisect.bisect_left(floor, record.invoked, key=lambda each: each[0])
        if record.outcome == "fail":
            if at or key in last:
                yield f"a breaker is gone: {record}"
            continue
        if seen.version < last.get(key, 0):
            yield f"an older version after {last[key]}: {record}"
        if at and seen.version < floor[at - 1][1]:
            yield f"a write of this host, version {floor[at - 1][1]}, is not seen: {record}"
        if key in reported and key in last and seen.version <= last[key]:
            yield f"an own report is not seen, {last[key]} before it: {record}"
        if database.decision(record.breaker, seen.version) != seen.reason:
            yield f"not what was committed, {database.decision(record.breaker, seen.version)}: {record}"
        reported.discard(key)
        last[key] = max(seen.version, last.get(key, 0))


def one_truth(records):
    """One version of a breaker has one content, wherever and however it is read."""
    contents = {}
    for record in records:
        if isinstance(record.answer, Seen):
            first = contents.setdefault((record.breaker, record.answer.version), record)
            if first.answer != record.answer:
                yield f"the same version twice: {first} and {record}"


def _operation(record, database):
    """As the checker of linearizability takes it; None if it has no effect and says nothing."""
    if record.outcome == "fail":
        return None
    call = {"disable": ("disable", record.argument), "enable": ("enable",), "report": ("report", record.argument),
            "fetch": ("fetch",)}[record.kind]
    if record.outcome == "ok":
        answer = {"disable": lambda: record.answer[0], "enable": lambda: record.answer,
                  "report": lambda: record.answer is not None, "fetch": lambda: tuple(record.answer)}[record.kind]()
        return Operation(record.invoked, record.returned, call, answer)
    if record.kind == "fetch":
        return None
    if record.kind == "report":
        return Operation(record.invoked, math.inf, call, None, False, call)
    # Of a decision the database knows in the end whether it was taken.
    if _count(record, database) == 0:
        return None
    return Operation(record.invoked, math.inf, call, True)


def histories(records, database):
    """(breaker, operations), the last read being that of the database at the end."""
    by_breaker = defaultdict(list)
    end = max((record.returned for record in records), default=0) + 1
    for record in records:
        operation = _operation(record, database) if record.kind != "segment" else None
        if operation:
            by_breaker[record.breaker].append(operation)
    for breaker, operations in by_breaker.items():
        operations.append(Operation(end, end + 1, ("fetch",), tuple(database.last[breaker])))
    return list(by_breaker.items())


def _check(history):
    breaker, operations = history
    order, stuck = find_order(operations, model.step, model.INITIAL)
    if stuck is None:
        return None
    left = sorted((operation for number, operation in enumerate(operations) if number not in order),
                  key=lambda each: each.invoked)
    return (f"{breaker}: not linearizable: {len(order)} of {len(operations)} operations explained, then in {stuck} none of "
            + ", ".join(map(str, left[:4])))


def linearizable(found, processes=2):
    """Checks all histories, in processes of their own."""
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from filter(None, pool.imap_unordered(_check, found, 8))


def anomalies(records, postgres):
    """(every rule broken, counts of what was checked)."""
    database = Database(postgres, {record.breaker for record in records})
    found = histories(records, database)
    broken = [*acknowledged(records, database), *whole(database), *segments(records, database), *one_truth(records),
              *linearizable(found)]
    kinds = Counter((record.kind, record.outcome) for record in records)
    counts = {"records": len(records), "operations": sum(len(operations) for _, operations in found), "breakers": len(found),
              "acknowledged": sum(count for (kind, outcome), count in kinds.items()
                                  if outcome == "ok" and kind not in ("segment", "fetch")),
              "unknown": sum(count for (_, outcome), count in kinds.items() if outcome == "unknown"),
              "failed": sum(count for (_, outcome), count in kinds.items() if outcome == "fail"),
              "segment_reads": kinds["segment", "ok"], "incidents": len(database.incidents)}
    return broken, counts
