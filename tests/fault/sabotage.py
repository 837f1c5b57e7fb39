# SPDX-License-Identifier: ISC
"""Systems that are broken on purpose: to see that the judge of a run notices.

Each is a context: what it breaks is whole again afterwards (nothing is dropped that a statement may be using). REMARKS says
what the judge must have to say. Broken is either what is around the agents, or the program of some of them.
"""
import contextlib
import threading
import time

# At the end of the transaction, when the client is as good as told, the row becomes what it was. Taking back what is as it
# was makes no new version: without a look at that, it would be taken back for ever.
_UNDO = """
CREATE OR REPLACE FUNCTION cbshm.undo() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    UPDATE cbshm.breaker SET disabled = OLD.disabled, disabled_by = OLD.disabled_by,
        disabled_reason = OLD.disabled_reason, disabled_until = OLD.disabled_until,
        consecutive_failures = OLD.consecutive_failures
    WHERE name = NEW.name;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER undo AFTER UPDATE ON cbshm.breaker DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (NEW.version > OLD.version AND NEW.version % 4 = 3) EXECUTE FUNCTION cbshm.undo();
"""
_COUNT_TWICE = """
CREATE OR REPLACE FUNCTION cbshm.undo() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    UPDATE cbshm.breaker SET consecutive_failures = consecutive_failures + 1 WHERE name = NEW.name;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER undo AFTER UPDATE ON cbshm.breaker DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (NEW.consecutive_failures > OLD.consecutive_failures AND NEW.version % 4 = 3) EXECUTE FUNCTION cbshm.undo();
"""
_STALE = """
DROP SCHEMA IF EXISTS sound, unsound CASCADE;
DROP TABLE IF EXISTS cbshm.stale;
CREATE SCHEMA sound;
ALTER FUNCTION cbshm.state_json(text) SET SCHEMA sound;
CREATE TABLE cbshm.stale (name text PRIMARY KEY, said jsonb);
CREATE FUNCTION cbshm.state_json(name text) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    said jsonb;
BEGIN
    IF random() < 0.2 THEN
        SELECT s.said INTO said FROM cbshm.stale s WHERE s.name = state_json.name;
    END IF;
    IF said IS NULL THEN
        said := sound.state_json(name);
        INSERT INTO cbshm.stale VALUES (name, said) ON CONFLICT DO NOTHING;
    END IF;
    RETURN said;
END $$;
GRANT EXECUTE ON FUNCTION cbshm.state_json TO cbshm_agent;
"""


@contextlib.contextmanager
def _in_the_database(system, do, undo):
    system.primary.psql(f"BEGIN; {do}; COMMIT")
    yield
    system.primary.psql(f"BEGIN; {undo}; COMMIT")


def lost_writes(system):
    """One change of four is taken back in the transaction that makes it."""
    return _in_the_database(system, _UNDO, "DROP TRIGGER undo ON cbshm.breaker")


def counted_twice(system):
    return _in_the_database(system, _COUNT_TWICE, "DROP TRIGGER undo ON cbshm.breaker")


def stale_reads(system):
    """One read of five is answered with what was so once."""
    return _in_the_database(system, _STALE, "CREATE SCHEMA unsound; "
                            "ALTER FUNCTION cbshm.state_json SET SCHEMA unsound; "
                            "ALTER FUNCTION sound.state_json SET SCHEMA cbshm")


def wrong_mirror(system):
    """Every other row that says disabled comes to the agents without."""
    columns = system.primary.psql("SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute "
                                  "WHERE attrelid = 'cbshm.mirror'::regclass AND attnum > 0")
    wrong = columns.replace(" disabled,", " disabled AND random() > 0.5 AS disabled,")
    right = system.primary.value("SELECT pg_get_viewdef('cbshm.mirror'::regclass)").rstrip(";")
    # The same view with the same type: functions return its rows.
    return _in_the_database(system, f"CREATE OR REPLACE VIEW cbshm.mirror AS SELECT {wrong} FROM ({right}) m",
                            f"CREATE OR REPLACE VIEW cbshm.mirror AS {right}")


@contextlib.contextmanager
def segment_goes_back(system):
    """The first host's segment is what it was a moment ago, again and again."""
    stop = threading.Event()

    def run():
        with open("/dev/shm" + system.agents[0].segment, "r+b", buffering=0) as file:
            while not stop.is_set():
                file.seek(4096)
                old = file.read()
                stop.wait(0.1)
                file.seek(4096)
                file.write(old)
    thread = threading.Thread(target=run)
    thread.start()
    yield
    stop.set()
    thread.join()
    system.agents[0].restart()


@contextlib.contextmanager
def asynchronous(system):
    """Commits wait for no standby, and the one that is promoted lacks the last of them."""
    system.primary.psql("ALTER SYSTEM SET synchronous_standby_names = ''")
    system.primary.psql("SELECT pg_reload_conf()")
    time.sleep(0.3)
    system.standby.kill9()
    yield
    system.primary, system.standby = system.standby, system.primary
    system.standby.kill9()
    system.primary.start()
    system.primary.promote()
    system.standby.follow(system.primary)
    system.primary.wait_for_standby()
    system.wait_for_writes()


@contextlib.contextmanager
def _broken_agents(system, fault):
    """Those whose connections can be cut have this fault; see broken_agent.c."""
    for agent in system.agents[1:]:
        agent.program, agent.prefix = "tests/fault/broken_agent", ("env", f"CBSHM_BROKEN={fault}")
        agent.restart()
    try:
        yield
    finally:
        for agent in system.agents[1:]:
            agent.program, agent.prefix = "agent/cbagent", ()
            agent.restart()


def misreads(system):
    """Takes every other row that says disabled for one that says enabled."""
    return _broken_agents(system, "misreads")


def answers_early(system):
    """Before the segment shows what was written."""
    return _broken_agents(system, "answers-early")


def believes(system):
    """Says of transactions that were rolled back that they were committed."""
    return _broken_agents(system, "believes")


@contextlib.contextmanager
def repeats(system):
    """Carries out again whatever was under way when the connection went, though it was committed."""
    with _broken_agents(system, "repeats"):
        for _ in range(16):
            system.cut_connection()
            system.wait_for_writes()
            system.next_round()
        yield


REMARKS = {
    lost_writes: "not linearizable",
    counted_twice: "not linearizable",
    stale_reads: "not linearizable|same version twice",
    wrong_mirror: "not what was committed",
    segment_goes_back: "an older version|is not seen",
    asynchronous: "an acknowledged write is missing",
    misreads: "not what was committed",
    answers_early: "is not seen",
    believes: "an acknowledged write is missing",
    repeats: "not linearizable",
}
