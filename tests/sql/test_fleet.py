# SPDX-License-Identifier: ISC
"""Barriers and agents, from SQL."""
import glob

import fixture
from support import tap


class Barriers(fixture.SqlTest):
    def setUp(self):
        super().setUp()
        self.run_sql("DELETE FROM cbshm.agent")

    def beat(self, instance, version="0.1"):
        self.value(f"cbshm.heartbeat('h', '{instance}', '{version}', 1)")

    def announce(self):
        return self.row("SELECT barrier, moment FROM cbshm.announce_barrier()")

    def acknowledge(self, instance, barrier):
        self.run_sql(f"SELECT cbshm.acknowledge_barrier('h', '{instance}', {barrier})")

    def fleet(self, barrier):
        return self.value(f"cbshm.fleet_json({barrier['barrier']}, '{barrier['moment']}')")

    def test_numbers_rise_and_are_told(self):
        listener = fixture.Listener()
        first, second = self.announce(), self.announce()
        self.assertGreater(second["barrier"], first["barrier"])
        self.assertEqual(self.value("cbshm.last_barrier()"), second["barrier"])
        told = [payload.split("\x01") for payload in listener.hear_whole(2)]
        self.assertEqual([said for said, _ in told], [f"b {first['barrier']}", f"b {second['barrier']}"])
        self.assertEqual([seal for _, seal in told], [self.value(f"cbshm.seal('{said}')") for said, _ in told])

    def test_nobody_has_acknowledged_the_first(self):
        """An agent may acknowledge what it reads before anybody has announced anything."""
        self.run_sql("CREATE DATABASE fresh")
        last = fixture.server().psql  # a database of its own, since others have announced in this one
        for path in sorted(glob.glob(tap.source_dir() + "/sql/[0-9]*.sql")):
            with open(path, encoding="utf-8") as file:
                last("BEGIN;" + file.read() + "COMMIT;", db="fresh")
        read = int(last("SELECT cbshm.last_barrier()", db="fresh"))
        self.assertGreater(int(last("SELECT barrier FROM cbshm.announce_barrier()", db="fresh")), read)

    def test_fleet(self):
        for instance in ("a", "b", "c"):
            self.beat(instance)
        barrier = self.announce()
        fleet = self.fleet(barrier)
        self.assertEqual((fleet["hosts"], fleet["in_force"], fleet["slowest_ms"]), (3, 0, None))
        self.assertEqual([each["instance"] for each in fleet["behind"]], ["a", "b", "c"])
        self.acknowledge("a", barrier["barrier"])
        self.acknowledge("b", barrier["barrier"] + 1)
        self.acknowledge("nobody", barrier["barrier"])
        fleet = self.fleet(barrier)
        self.assertEqual((fleet["hosts"], fleet["in_force"]), (3, 2))
        self.assertGreater(fleet["slowest_ms"], 0)
        self.assertEqual([each["instance"] for each in fleet["behind"]], ["c"])
        self.run_sql("UPDATE cbshm.agent SET last_seen_at = last_seen_at - interval '11 s' WHERE instance = 'c'")
        fleet = self.fleet(barrier)
        self.assertEqual((fleet["hosts"], fleet["in_force"], fleet["behind"]), (2, 2, []))
        self.assertEqual([(each["instance"], each["live"]) for each in fleet["silent"]], [("c", False)])
        self.run_sql("SELECT cbshm.remove_agent('h', 'c')")
        self.assertEqual(self.fleet(barrier)["silent"], [])

    def test_an_answer_is_a_sign_of_life(self):
        self.beat("a")
        self.run_sql("UPDATE cbshm.agent SET last_seen_at = last_seen_at - interval '1 minute'")
        barrier = self.announce()
        self.acknowledge("a", barrier["barrier"])
        self.assertEqual(self.fleet(barrier)["in_force"], 1)

    def test_names_are_few(self):
        self.run_sql("SELECT cbshm.heartbeat('h', 'i' || i, '0.1', 1) FROM generate_series(1, 120) i")
        fleet = self.fleet(self.announce())
        self.assertEqual((fleet["hosts"], len(fleet["behind"])), (120, 50))
        self.assertEqual(len(self.value("cbshm.agents_json(7)")), 7)

    def test_long_dead_agents_are_forgotten(self):
        for instance in ("old", "new"):
            self.beat(instance)
        self.run_sql("UPDATE cbshm.agent SET last_seen_at = now() - interval '25 hours' WHERE instance = 'old'")
        self.announce()
        self.assertEqual([each["instance"] for each in self.value("cbshm.agents_json(10)")], ["new"])

    def test_trouble_comes_first(self):
        for instance in ("a", "b", "c"):
            self.beat(instance)
        barrier = self.announce()
        self.acknowledge("a", barrier["barrier"])
        self.acknowledge("c", barrier["barrier"])
        self.assertEqual([(each["instance"], each["behind"]) for each in self.value("cbshm.agents_json(10)")],
                         [("b", True), ("a", False), ("c", False)])


if __name__ == "__main__":
    tap.main()
