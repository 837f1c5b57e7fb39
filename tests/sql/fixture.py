# SPDX-License-Identifier: ISC
"""What the tests of the schema share: one server a script, one breaker a test, and what must hold after each."""
import json
import re
import time
import unittest

from support.postgres import Postgres, PostgresError

_server = None


def server():
    """A server with the schema; it goes away with the script."""
    global _server
    if _server is None:
        _server = Postgres().migrate()
    return _server


def quote(value):
    """A Python value as an SQL literal."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"'{value}'::float8" if isinstance(value, float) else str(value)
    if isinstance(value, dict):
        value = json.dumps(value)
    return "'" + str(value).replace("'", "''") + "'"


def array(values, kind):
    """A list as an SQL array."""
    return f"ARRAY[{', '.join(quote(value) for value in values)}]::{kind}[]"


# The alerts of an incident: one for each of its ends so far, with the same labels.
_INCIDENTS_WITHOUT_ALERTS = """
SELECT i.* FROM cbshm.incident i WHERE i.resolved IS DISTINCT FROM (i.resolved_at IS NOT NULL)
   OR (SELECT array_agg(q.kind ORDER BY q.id) FROM cbshm.alert_queue q WHERE q.incident_id = i.id)
      IS DISTINCT FROM CASE WHEN i.resolved THEN '{disable,enable}'::text[] ELSE '{disable}' END
   OR (SELECT count(DISTINCT q.payload -> 'labels') FROM cbshm.alert_queue q WHERE q.incident_id = i.id) <> 1"""

# An open breaker has one open incident, its own; a closed one has none.
_BREAKERS_WITHOUT_INCIDENT = """
SELECT b.name, b.disabled, b.incident_id, i.id FROM cbshm.breaker b
FULL JOIN (SELECT * FROM cbshm.incident WHERE resolved_at IS NULL) i ON i.breaker = b.name
WHERE b.incident_id IS DISTINCT FROM i.id"""

# The last audited decision is the one that stands.
_DECISIONS_WITHOUT_AUDIT = """
SELECT b.name, b.incident_id, a.new_values FROM cbshm.breaker b, LATERAL (
    SELECT * FROM cbshm.audit_log l WHERE l.breaker = b.name AND (l.new_values || l.old_values) ? 'disabled'
       OR l.breaker = b.name AND l.new_values ? 'incident_id' ORDER BY l.id DESC LIMIT 1) a
WHERE b.incident_id::text IS DISTINCT FROM a.new_values ->> 'incident_id'"""


class SqlTest(unittest.TestCase):
    """self.db is an open session of the superuser, self.name a breaker that nobody else uses."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.db = server().session()

    @classmethod
    def tearDownClass(cls):
        cls.db.close()

    def setUp(self):
        self.name = self.id().split(".")[-1]

    def tearDown(self):
        for query in (_INCIDENTS_WITHOUT_ALERTS, _BREAKERS_WITHOUT_INCIDENT, _DECISIONS_WITHOUT_AUDIT):
            self.assertEqual(self.rows(query), [])

    # ---- asking ----

    def run_sql(self, sql):
        return self.db.execute(sql)

    def rows(self, query, session=None):
        """The rows of a query, as dictionaries."""
        text = (session or self.db).execute(f"SELECT coalesce(jsonb_agg(to_jsonb(t)), '[]') FROM ({query}) t")
        return json.loads(text)

    def row(self, query, session=None):
        rows = self.rows(query, session)
        self.assertEqual(len(rows), 1, query)
        return rows[0]

    def value(self, expression, session=None):
        """The value of an expression, as JSON has it."""
        text = (session or self.db).execute(f"SELECT jsonb_build_array({expression})")
        return json.loads(text)[0]

    def breaker(self, name=None):
        """The row; None if there is none."""
        rows = self.rows(f"SELECT * FROM cbshm.breaker WHERE name = {quote(name or self.name)}")
        return rows[0] if rows else None

    def version(self, name=None):
        return self.breaker(name)["version"]

    def incidents(self, name=None):
        """Oldest first."""
        return self.rows(f"SELECT * FROM cbshm.incident WHERE breaker = {quote(name or self.name)} ORDER BY timestamp")

    def alerts(self, name=None):
        return self.rows(f"SELECT * FROM cbshm.alert_queue WHERE breaker = {quote(name or self.name)} ORDER BY id")

    def audit(self, name=None):
        return self.rows(f"SELECT * FROM cbshm.audit_log WHERE breaker = {quote(name or self.name)} ORDER BY id")

    def actions(self, name=None):
        return [entry["action"] for entry in self.audit(name)]

    def traces(self, name=None):
        """Everything there is about a breaker: to show that nothing was written."""
        return (self.breaker(name), self.incidents(name), self.alerts(name), self.audit(name))

    # ---- doing ----

    def drift(self, score, samples=10, details=None, name=None):
        return self.value(f"cbshm.report_drift({quote(name or self.name)}, {quote(float(score))}, {samples}, "
                          f"{quote(details)})")

    def schema_error(self, count, details=None, name=None):
        return self.value(f"cbshm.report_schema_error({quote(name or self.name)}, {count}, {quote(details)})")

    def disable(self, reason="why", name=None, session=None, **more):
        """(changed, incident). more: by, until, ttl, request_id."""
        given = "".join(f", {key} => {quote(value)}" for key, value in more.items())
        done = self.row(f"SELECT * FROM cbshm.disable({quote(name or self.name)}, {quote(reason)}{given})", session)
        return done["changed"], done["incident"]

    def enable(self, name=None, session=None, **more):
        given = "".join(f", {key} => {quote(value)}" for key, value in more.items())
        return self.value(f"cbshm.enable({quote(name or self.name)}{given})", session)

    def recover(self, name=None, session=None):
        return self.value(f"cbshm.recover({quote(name or self.name)})", session)

    def policy(self, **fields):
        given = "".join(f", {key} => {value}" for key, value in fields.items())
        return self.value(f"cbshm.set_policy({quote(self.name)}{given})")

    def expire(self, name=None):
        """Waits until the TTL of an open breaker has passed, however short it is."""
        self.run_sql("SELECT pg_sleep_until(disabled_until + interval '1 ms') FROM cbshm.breaker "
                     f"WHERE name = {quote(name or self.name)}")

    # ---- claiming ----

    def refused(self, sql, sqlstate="22023", session=None):
        """The error of a statement, whose SQLSTATE is given."""
        with self.assertRaises(PostgresError) as caught:
            (session or self.db).execute(sql)
        self.assertEqual(caught.exception.sqlstate, sqlstate, str(caught.exception))
        return caught.exception

    def assertSeconds(self, expression, seconds, name=None):
        """An interval of the row's: some work lies between two readings of the clock, on a busy machine even more."""
        found = self.row(f"SELECT extract(epoch FROM {expression})::float8 AS s FROM cbshm.breaker "
                         f"WHERE name = {quote(name or self.name)}")["s"]
        self.assertAlmostEqual(found, seconds, delta=2)


class Listener:
    """Hears what is said on the channel."""

    def __init__(self):
        self.session = server().session()
        self.session.execute("LISTEN cbshm")

    def hear(self, count, timeout=5):
        """The payloads of the next notifications without the rows; waits a moment for more than there should be."""
        return [payload.split("\x01")[0] for payload in self.hear_whole(count, timeout)]

    def hear_whole(self, count, timeout=5):
        heard = []
        end = time.monotonic() + timeout
        while len(heard) < count and time.monotonic() < end:
            heard += self._poll(0.01)
        return heard + self._poll(0.05)

    def _poll(self, seconds):
        text = self.session.execute(f"SELECT pg_sleep({seconds})")
        return re.findall(r'notification "cbshm" with payload "(.*)" received from', text)
