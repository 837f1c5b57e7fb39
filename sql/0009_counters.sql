-- 0009_counters.sql - a row that only counts costs as little as it can
--
-- SPDX-License-Identifier: ISC
--
-- Most changes of a breaker are counters. Triggers of their own give them their version and their
-- notification, and nothing of what a decision or a policy carries along is even looked for. What report()
-- has counted is told by the agent that called it, once a second for each breaker: a notification in every
-- transaction would make all of them wait for each other, to the end of their commits.

-- What is made here belongs to the owner of all the rest.
SET LOCAL ROLE cbshm_owner;

CREATE FUNCTION cbshm.breaker_counts() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	NEW.version := OLD.version + 1;
	NEW.updated_at := clock_timestamp();
	RETURN NEW;
END
$$;

CREATE FUNCTION cbshm.breaker_counted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM pg_notify('cbshm', format('n %s %s', NEW.version, NEW.name));
	RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION cbshm.breaker_after() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF TG_OP = 'INSERT' THEN
		PERFORM cbshm.welcome(NEW, NULL);
	ELSIF TG_OP = 'DELETE' THEN
		PERFORM cbshm.bury(OLD, 'delete');
	ELSIF OLD.name <> NEW.name THEN
		PERFORM cbshm.bury(OLD, 'rename');
		PERFORM cbshm.welcome(NEW, 'rename');
	ELSIF OLD.version <> NEW.version THEN
		PERFORM cbshm.record_change(OLD, NEW, NULL);
		PERFORM pg_notify('cbshm', format('c %s %s', NEW.version, NEW.name));
	END IF;
	RETURN NULL;
END
$$;

-- Triggers fire in the order of their names: breaker_counts sees what breaker_before_update has left, a new
-- version above all, and then has nothing to do.
DROP TRIGGER breaker_before ON cbshm.breaker;
CREATE TRIGGER breaker_before BEFORE INSERT ON cbshm.breaker
	FOR EACH ROW EXECUTE FUNCTION cbshm.breaker_before();
CREATE TRIGGER breaker_before_update BEFORE UPDATE ON cbshm.breaker
	FOR EACH ROW WHEN (
		(OLD.name, OLD.disabled, OLD.disabled_by, OLD.disabled_reason, OLD.opened_at,
		 OLD.disabled_until, OLD.incident_id, OLD.version, OLD.drift_threshold,
		 OLD.failure_threshold, OLD.schema_error_threshold, OLD.default_ttl, OLD.auto_recover,
		 OLD.created_at, OLD.updated_at)
		IS DISTINCT FROM
		(NEW.name, NEW.disabled, NEW.disabled_by, NEW.disabled_reason, NEW.opened_at,
		 NEW.disabled_until, NEW.incident_id, NEW.version, NEW.drift_threshold,
		 NEW.failure_threshold, NEW.schema_error_threshold, NEW.default_ttl, NEW.auto_recover,
		 NEW.created_at, NEW.updated_at))
	EXECUTE FUNCTION cbshm.breaker_before();
CREATE TRIGGER breaker_counts BEFORE UPDATE ON cbshm.breaker
	FOR EACH ROW WHEN (
		OLD.version = NEW.version
		AND (OLD.consecutive_failures, OLD.last_failure_at)
		    IS DISTINCT FROM (NEW.consecutive_failures, NEW.last_failure_at))
	EXECUTE FUNCTION cbshm.breaker_counts();

DROP TRIGGER breaker_after ON cbshm.breaker;
CREATE TRIGGER breaker_after AFTER INSERT OR DELETE ON cbshm.breaker
	FOR EACH ROW EXECUTE FUNCTION cbshm.breaker_after();
CREATE TRIGGER breaker_after_update AFTER UPDATE ON cbshm.breaker
	FOR EACH ROW WHEN (
		(OLD.name, OLD.disabled, OLD.disabled_by, OLD.disabled_reason, OLD.opened_at,
		 OLD.disabled_until, OLD.incident_id, OLD.drift_threshold, OLD.failure_threshold,
		 OLD.schema_error_threshold, OLD.default_ttl, OLD.auto_recover)
		IS DISTINCT FROM
		(NEW.name, NEW.disabled, NEW.disabled_by, NEW.disabled_reason, NEW.opened_at,
		 NEW.disabled_until, NEW.incident_id, NEW.drift_threshold, NEW.failure_threshold,
		 NEW.schema_error_threshold, NEW.default_ttl, NEW.auto_recover))
	EXECUTE FUNCTION cbshm.breaker_after();
-- cbshm.quiet is set by write_counters() alone; who sets it otherwise only delays what others see of
-- his own counters.
CREATE TRIGGER breaker_counted AFTER UPDATE ON cbshm.breaker
	FOR EACH ROW WHEN (
		OLD.version <> NEW.version
		AND (OLD.name, OLD.disabled, OLD.disabled_by, OLD.disabled_reason, OLD.opened_at,
		     OLD.disabled_until, OLD.incident_id, OLD.drift_threshold,
		     OLD.failure_threshold, OLD.schema_error_threshold, OLD.default_ttl,
		     OLD.auto_recover)
		IS NOT DISTINCT FROM
		    (NEW.name, NEW.disabled, NEW.disabled_by, NEW.disabled_reason, NEW.opened_at,
		     NEW.disabled_until, NEW.incident_id, NEW.drift_threshold,
		     NEW.failure_threshold, NEW.schema_error_threshold, NEW.default_ttl,
		     NEW.auto_recover)
		AND current_setting('cbshm.quiet', true) IS DISTINCT FROM 'on')
	EXECUTE FUNCTION cbshm.breaker_counted();

CREATE OR REPLACE FUNCTION cbshm.write_counters(names text[], failures int[],
						failed_at timestamptz[]) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
	PERFORM set_config('cbshm.quiet', 'on', true);
	UPDATE cbshm.breaker AS w SET
		consecutive_failures = u.failures,
		last_failure_at = u.failed_at
	FROM unnest(names, failures, failed_at) AS u(name, failures, failed_at)
	WHERE w.name = u.name;
	PERFORM set_config('cbshm.quiet', '', true);
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA cbshm FROM PUBLIC;
