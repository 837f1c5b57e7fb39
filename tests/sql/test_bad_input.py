# SPDX-License-Identifier: ISC
"""Bad arguments: each gets an error that names its field, and nothing is written."""
import fixture
from support import tap

# What is called ({name} is a breaker that does not exist), and the field that the error names.
CALLS = [
    # names
    ("report_drift(NULL, 0.5, 1)", "name"),
    ("report_drift('', 0.5, 1)", "name"),
    ("report_drift(repeat('x', 129), 0.5, 1)", "name"),
    ("report_drift(repeat('é', 64) || 'x', 0.5, 1)", "name"),
    (r"report_drift(E'a\nb', 0.5, 1)", "name"),
    (r"report_drift(E'a\tb', 0.5, 1)", "name"),
    ("report_drift('a' || chr(127), 0.5, 1)", "name"),
    ("report_drift('a' || chr(133), 0.5, 1)", "name"),
    ("report_schema_error('', 5)", "name"),
    ("disable('', 'why')", "name"),
    ("enable('')", "name"),
    ("reset(NULL)", "name"),
    ("set_policy('', failure_threshold => 1)", "name"),
    # scores
    ("report_drift('{name}', NULL, 1)", "drift_score"),
    ("report_drift('{name}', 'NaN', 1)", "drift_score"),
    ("report_drift('{name}', 'Infinity', 1)", "drift_score"),
    ("report_drift('{name}', '-Infinity', 1)", "drift_score"),
    ("report_drift('{name}', 1.0000000000000002, 1)", "drift_score"),
    ("report_drift('{name}', -5e-324::float8, 1)", "drift_score"),
    # counts
    ("report_drift('{name}', 0.5, 0)", "sample_count"),
    ("report_drift('{name}', 0.5, -1)", "sample_count"),
    ("report_drift('{name}', 0.5, NULL)", "sample_count"),
    ("report_drift('{name}', 0.5, 9007199254740992)", "sample_count"),
    ("report_schema_error('{name}', -1)", "count"),
    ("report_schema_error('{name}', NULL)", "count"),
    # details
    ("report_drift('{name}', 0.5, 1, '[]')", "details"),
    ("report_drift('{name}', 0.5, 1, '\"text\"')", "details"),
    ("report_drift('{name}', 0.5, 1, 'null')", "details"),
    ("report_schema_error('{name}', 1, '5')", "details"),
    ("report_schema_error('{name}', 1, jsonb_build_object('a', repeat('x', 65536)))", "details"),
    # people's words
    ("disable('{name}', NULL)", "reason"),
    ("disable('{name}', '')", "reason"),
    ("disable('{name}', repeat('x', 1025))", "reason"),
    (r"disable('{name}', E'a\x07b')", "reason"),
    ("disable('{name}', 'why', by => '')", "by"),
    ("disable('{name}', 'why', by => repeat('x', 129))", "by"),
    (r"disable('{name}', 'why', by => E'a\nb')", "by"),
    ("enable('{name}', by => '')", "by"),
    ("enable('{name}', reason => '')", "reason"),
    (r"enable('{name}', reason => E'\x1b[31m')", "reason"),
    # times
    ("disable('{name}', 'why', until => clock_timestamp())", "until"),
    ("disable('{name}', 'why', until => '2001-01-01')", "until"),
    ("disable('{name}', 'why', until => '-infinity')", "until"),
    ("disable('{name}', 'why', until => '10000-01-01Z')", "until"),
    ("disable('{name}', 'why', until => '2999-01-01', ttl => '1 h')", "ttl_seconds"),
    ("disable('{name}', 'why', ttl => '0')", "ttl_seconds"),
    ("disable('{name}', 'why', ttl => '-1 s')", "ttl_seconds"),
    ("disable('{name}', 'why', ttl => '3651 days')", "ttl_seconds"),
    # questions
    ("get_incidents('{name}', false, 0)", "limit"),
    ("get_incidents('{name}', false, 1001)", "limit"),
    ("get_incidents('{name}', false, NULL)", "limit"),
    ("incidents_json('{name}', false, -1)", "limit"),
    # policies
    ("set_policy('{name}', drift_threshold => 1.5)", "drift_threshold"),
    ("set_policy('{name}', failure_threshold => 0)", "failure_threshold"),
    ("set_policy('{name}', schema_error_threshold => -1)", "schema_error_threshold"),
    ("set_policy('{name}', default_ttl => '-1 s')", "default_ttl_seconds"),
    ("set_policy('{name}', default_ttl => '3651 d')", "default_ttl_seconds"),
    ("set_policy('{name}', drift_threshold => 0.5, by => '')", "by"),
    ("set_policy('{name}', follow_fleet => '{{nonsense}}')", "nonsense"),
    ("set_policy('{name}', drift_threshold => 0.5, follow_fleet => '{{drift_threshold}}')", "drift_threshold"),
    ("set_policy(NULL, follow_fleet => '{{drift_threshold}}')", "drift_threshold"),
    ("set_policy(NULL, failure_threshold => 0)", "failure_threshold"),
]

# Values of a policy's fields in JSON that are none.
POLICIES = {
    "drift_threshold": ["-0.1", "1.1", '"0.5"', "true", "[]", "{}", "1e400"],
    "failure_threshold": ["0", "-1", "1.5", "2147483648", '"3"', "true"],
    "schema_error_threshold": ["0", "2.5", "1e10", "[1]"],
    "default_ttl_seconds": ["-1", "0.0000001", "315360001", '"1 h"', "false"],
    "auto_recover": ["0", "1", '"yes"', "[]"],
    "disabled": ["true", "null", "{}"],
}


class BadInput(fixture.SqlTest):
    def everything(self):
        return self.row("""SELECT (SELECT count(*) FROM cbshm.breaker) b, (SELECT count(*) FROM cbshm.incident) i,
            (SELECT count(*) FROM cbshm.alert_queue) q, (SELECT count(*) FROM cbshm.audit_log) a,
            (SELECT count(*) FROM cbshm.request) r, (SELECT version FROM cbshm.settings) s""")

    def test_functions(self):
        before = self.everything()
        for call, field in CALLS:
            with self.subTest(call=call):
                error = self.refused("SELECT cbshm." + call.format(name=self.name))
                self.assertEqual(error.detail, field)
                self.assertNotEqual(error.message, "")
        self.assertEqual(self.everything(), before)

    def test_policies(self):
        before = self.everything()
        for field, values in POLICIES.items():
            for value in values:
                for name in (fixture.quote(self.name), "NULL"):
                    with self.subTest(field=field, value=value, name=name):
                        error = self.refused(f"""SELECT cbshm.set_policy_json({name}, '{{"{field}": {value}}}')""")
                        self.assertEqual(error.detail, field)
                        self.assertIn(field, error.message)
        self.assertEqual(self.everything(), before)

    def test_policy_that_is_no_object(self):
        for changes in ("'[]'", "'5'", "'null'", "NULL"):
            self.assertEqual(self.refused(f"SELECT cbshm.set_policy_json('x', {changes})").detail, "changes")

    def test_policy_at_the_edges(self):
        for changes in ('{"drift_threshold": 0}', '{"drift_threshold": 1.0}', '{"drift_threshold": 1e-400}',
                        '{"failure_threshold": 1}', '{"failure_threshold": 2147483647}', '{"failure_threshold": 3.0}',
                        '{"default_ttl_seconds": 0}', '{"default_ttl_seconds": 0.000001}',
                        '{"default_ttl_seconds": 315360000}'):
            with self.subTest(changes=changes):
                self.value(f"cbshm.set_policy_json('{self.name}', '{changes}')")

    def test_one_bad_field_spoils_a_policy(self):
        before = self.everything()
        self.refused(f"""SELECT cbshm.set_policy_json('{self.name}',
                     '{{"drift_threshold": 0.5, "failure_threshold": 0}}')""")
        self.assertEqual(self.everything(), before)

    def test_messages(self):
        for call, message in (
                ("report_drift('x', 'NaN', 1)", "drift_score must be a number from 0 to 1; it is NaN"),
                ("report_drift('x', NULL, 1)", "drift_score must be a number from 0 to 1; it is missing"),
                ("report_drift('', 1, 1)", "name must be 1 to 128 bytes long; it has 0"),
                ("disable('x', 'why', until => '-infinity')", "until must be in the future; it is -infinity, and")):
            self.assertTrue(self.refused("SELECT cbshm." + call).message.startswith(message))


if __name__ == "__main__":
    tap.main()
