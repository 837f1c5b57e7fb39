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
        for function in functions:
            with self.subTest(function=function["name"]):
                self.assertIn(" ".join([".It Fn cbshm." + function["name"], *function["parameters"]]) + "\n", page)

    def test_tables(self):
        for each in self.rows("SELECT relname FROM pg_class WHERE relnamespace = 'cbshm'::regnamespace "
                              "AND relkind IN ('r', 'v')"):
            self.assertIn(f".It Li cbshm.{each['relname']}\n", self.TEXT)

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
