-- 0013_short_turns.sql - nothing that agents do by the way takes long
--
-- SPDX-License-Identifier: ISC
--
-- While a statement runs, the session that listens hears of no change.

-- What is made here belongs to the owner of all the rest.
SET LOCAL ROLE cbshm_owner;

-- ---- alerts that nobody sends ---------------------------------------------------------------

-- As in 0004, but at most a hundred of them, taken from the beginning of the index, however long it has grown since anybody
-- analyzed the table: as long as it returns more than 0 it is to be asked again.
CREATE OR REPLACE FUNCTION cbshm.alerts_skipped(patience interval) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
DECLARE
	moment timestamptz := clock_timestamp();
	ids bigint[] := ARRAY(
		SELECT l.id FROM cbshm.alert_queue l
		WHERE l.status = 'pending' AND l.next_attempt_at <= moment - patience
		ORDER BY l.next_attempt_at, l.id LIMIT 100 FOR UPDATE SKIP LOCKED);
BEGIN
	UPDATE cbshm.alert_queue q SET
		status = 'skipped',
		last_error = 'no Alertmanager is configured',
		resend_at = CASE WHEN q.kind = 'disable' AND (
					SELECT i.resolved_at IS NULL FROM cbshm.incident i
					WHERE i.id = q.incident_id)
				 THEN moment END,
		leased_by = NULL,
		leased_until = NULL
	WHERE q.id = ANY (ids);
	RETURN cardinality(ids);
END
$$;

-- ---- alerts that are sent -------------------------------------------------------------------

-- As in 0004. An incident has few alerts: they are looked up by the incident, never by going through the queue from its
-- beginning, which is what a plan for min(id) does as long as nobody has analyzed the table.
CREATE OR REPLACE FUNCTION cbshm.lease_incidents(moment timestamptz, max int) RETURNS uuid[]
LANGUAGE sql VOLATILE AS $$
	SELECT array_agg(l.incident_id) FROM (
		SELECT h.incident_id FROM cbshm.alert_queue h
		WHERE h.id = ANY (ARRAY(
			SELECT (SELECT min(f.id + 0) FROM cbshm.alert_queue f
				WHERE f.incident_id = d.incident_id)
			FROM cbshm.incidents_due(moment, max) d (incident_id)))
		      AND (h.leased_until IS NULL OR h.leased_until <= moment)
		ORDER BY h.id LIMIT max FOR UPDATE SKIP LOCKED) l
$$;

-- As in 0004, but at most so many of them that it does not take long: as long as it returns more than 0 it is to be asked
-- again. What is due already is not due once more.
DROP FUNCTION cbshm.alerts_wake;
CREATE FUNCTION cbshm.alerts_wake(away interval) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
DECLARE
	moment timestamptz := clock_timestamp();
	put_off bigint[] := ARRAY(
		SELECT l.id FROM cbshm.alert_queue l
		WHERE l.status = 'pending' AND l.next_attempt_at > moment
		      AND l.attempts > 0 AND l.leased_by IS NULL
		ORDER BY l.next_attempt_at, l.id LIMIT 200 FOR UPDATE SKIP LOCKED);
	to_repeat bigint[] := ARRAY(
		SELECT l.id FROM cbshm.alert_queue l
		WHERE l.resend_at > moment AND l.leased_by IS NULL
		      AND (l.sent_at IS NULL OR l.sent_at < moment - away)
		ORDER BY l.resend_at LIMIT 200 FOR UPDATE SKIP LOCKED);
BEGIN
	UPDATE cbshm.alert_queue q SET next_attempt_at = moment WHERE q.id = ANY (put_off);
	UPDATE cbshm.alert_queue q SET resend_at = moment WHERE q.id = ANY (to_repeat);
	RETURN cardinality(put_off) + cardinality(to_repeat);
END
$$;

-- As in 0004, but what another agent has locked is waited for: whoever looks for something to lease locks for a moment also what
-- has just been leased. What a person has locked is passed over after a moment.
CREATE OR REPLACE FUNCTION cbshm.leased_alerts(agent text, ids bigint[])
RETURNS SETOF cbshm.alert_queue
LANGUAGE plpgsql VOLATILE SET lock_timeout = '50ms' AS $$
BEGIN
	BEGIN
		PERFORM FROM cbshm.alert_queue q
		WHERE q.id = ANY (ids) AND q.leased_by = agent
		ORDER BY q.id FOR UPDATE;
	EXCEPTION WHEN lock_not_available THEN
		NULL;
	END;
	RETURN QUERY
		SELECT * FROM cbshm.alert_queue q
		WHERE q.id = ANY (ids) AND q.leased_by = agent
		ORDER BY q.id FOR UPDATE SKIP LOCKED;
END
$$;

-- Rows are found by their keys, however few the queue had when the statement was planned; and by walking the index, which
-- passes by what is gone, where a bitmap would collect it again and again until the next VACUUM.
ALTER FUNCTION cbshm.claim_alerts SET enable_seqscan = off;
ALTER FUNCTION cbshm.claim_alerts SET enable_bitmapscan = off;
ALTER FUNCTION cbshm.claim_alerts SET enable_hashjoin = off;
ALTER FUNCTION cbshm.claim_alerts SET enable_mergejoin = off;
ALTER FUNCTION cbshm.alerts_sent SET enable_seqscan = off;
ALTER FUNCTION cbshm.alerts_sent SET enable_bitmapscan = off;
ALTER FUNCTION cbshm.alerts_sent SET enable_hashjoin = off;
ALTER FUNCTION cbshm.alerts_sent SET enable_mergejoin = off;
ALTER FUNCTION cbshm.alerts_put_off SET enable_seqscan = off;
ALTER FUNCTION cbshm.alerts_put_off SET enable_bitmapscan = off;
ALTER FUNCTION cbshm.alerts_put_off SET enable_hashjoin = off;
ALTER FUNCTION cbshm.alerts_put_off SET enable_mergejoin = off;
ALTER FUNCTION cbshm.alerts_release SET enable_seqscan = off;
ALTER FUNCTION cbshm.alerts_release SET enable_bitmapscan = off;

-- ---- rows that no trigger has seen ----------------------------------------------------------

-- default_ttl of a row that was written past the triggers may be more microseconds than a bigint holds: that is 100,000 days, and
-- less than nothing is nothing, so that neither the agents' loads nor the reports on other breakers fail.
CREATE OR REPLACE VIEW cbshm.mirror AS
SELECT b.name,
	b.version,
	b.disabled,
	b.disabled_by,
	b.disabled_reason,
	b.opened_at,
	b.disabled_until,
	b.incident_id,
	b.consecutive_failures,
	b.last_failure_at,
	b.updated_at,
	coalesce(b.drift_threshold, s.drift_threshold) AS drift_threshold,
	coalesce(b.failure_threshold, s.failure_threshold) AS failure_threshold,
	coalesce(b.schema_error_threshold, s.schema_error_threshold) AS schema_error_threshold,
	(extract(epoch FROM greatest('0', least('100000 days', coalesce(b.default_ttl, s.default_ttl))))
	 * 1000000)::bigint AS default_ttl_us,
	coalesce(b.auto_recover, s.auto_recover) AS auto_recover
FROM cbshm.breaker b CROSS JOIN cbshm.settings s;

CREATE OR REPLACE FUNCTION cbshm.mirrored(b cbshm.breaker, fleet cbshm.settings) RETURNS cbshm.mirror
LANGUAGE sql STABLE AS $$
	SELECT (b.name, b.version, b.disabled, b.disabled_by, b.disabled_reason, b.opened_at,
		b.disabled_until, b.incident_id, b.consecutive_failures, b.last_failure_at,
		b.updated_at,
		coalesce(b.drift_threshold, fleet.drift_threshold),
		coalesce(b.failure_threshold, fleet.failure_threshold),
		coalesce(b.schema_error_threshold, fleet.schema_error_threshold),
		(extract(epoch FROM greatest('0', least('100000 days',
			coalesce(b.default_ttl, fleet.default_ttl)))) * 1000000)::bigint,
		coalesce(b.auto_recover, fleet.auto_recover))::cbshm.mirror
$$;

-- ---- rights -----------------------------------------------------------------------------------

REVOKE ALL ON FUNCTION cbshm.alerts_wake FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cbshm.alerts_wake TO cbshm_agent;
