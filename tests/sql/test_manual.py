# SPDX-License-Identifier: ISC
"""What cbshm-sql(7) says can be done, can be done; what there is to be called is in it."""
import os
import re

import fixture
from support import tap


class Manual(fixture.SqlTest):
    with open(os.path.join(tap.source_dir(), "man", "cbshm-sql.7"), encoding="utf-8") as page:
        TEXT = page.read()

    def test_examples(self):
        examples = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", self.TEXT.split(".Sh EXAMPLES")[1], re.M | re.S)
        self.assertGreater(len(examples), 5)
        self.run_sql("DROP ROLE IF EXISTS cbagent")
        for example in examples:
            with self.subTest(example=example):
                self.run_sql(example.replace("\\e", "\\"))
        self.assertEqual(self.actions("costsim_v2"), ["create", "trip", "disable", "disable", "enable", "disable",
                                                      "enable", "policy", "policy"])
        self.assertEqual(self.incidents("costsim_v2")[0]["details"], {"worst": "eu-west"})
        self.assertEqual(self.value("cbshm.policy_json(NULL)")["default_ttl_seconds"], 12 * 3600)

    def test_functions(self):
        """A function for callers has its path pinned for them; its parameters are named as the page names them."""
        functions = self.rows("SELECT proname AS name, coalesce(proargnames[1:pronargs], '{}') AS parameters "
                              "FROM pg_proc WHERE prosecdef AND pronamespace = 'cbshm'::regnamespace "
                              "AND prorettype <> 'trigger'::regtype")
        self.assertGreater(len(functions), 10)
        page = self.TEXT.replace("\\\n", "")
        self.assertEqual(sorted(re.findall(r"^\.It Fn cbshm\.(.*)$", page, re.M)), sorted(
            " ".join([function["name"], *function["parameters"]]) for function in functions))

    def test_tables(self):
        self.assertEqual(sorted(re.findall(r"^\.It Li cbshm\.(\w+)$", self.TEXT, re.M)), sorted(
            each["relname"] for each in self.rows("SELECT relname FROM pg_class WHERE relkind IN ('r', 'v') "
                                                  "AND relnamespace = 'cbshm'::regnamespace")))

    def test_roles(self):
        self.assertEqual(sorted(re.findall(r"^\.It Li (cbshm_\w+)$", self.TEXT, re.M)), sorted(
            each["rolname"] for each in self.rows("SELECT rolname FROM pg_roles WHERE rolname LIKE 'cbshm\\_%'")))

    def test_columns_of_the_breaker(self):
        section = self.TEXT.split(".It Li cbshm.breaker\n")[1].split("It may be written")[0]
        for column in self.breaker_columns():
            self.assertRegex(section, rf"\b{column}\b")

    def breaker_columns(self):
        return [each["column_name"] for each in self.rows(
            "SELECT column_name FROM information_schema.columns "
            "WHERE table_schema = 'cbshm' AND table_name = 'breaker'")]


if __name__ == "__main__":
    tap.main()
