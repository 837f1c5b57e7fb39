-- 0013_short_turns.sql - agents deal with alerts a bit at a time
--
-- SPDX-License-Identifier: ISC
--
-- While a statement runs, the session that listens hears of no change. So rows are found by their keys, however few the queue had
-- when the statement was planned; by walking the index, which passes by what is gone, where a bitmap would collect it again and
-- again until the next VACUUM; and whoever keeps rows or a table locked holds up only what he has locked.

-- What is made here belongs to the owner of all the rest.
SET LOCAL ROLE cbshm_owner;

-- ---- alerts that nobody sends ---------------------------------------------------------------

-- As in 0004, but nothing as long as something is to be tried later, or repeated that was sent: that is an agent's that knows
-- an Alertmanager, and has not come to the others yet; and at most a hundred of them, taken from the beginning of the index, however
-- long it has grown since anybody analyzed the table: as long as it returns more than 0 it is to be asked again.
CREATE OR REPLACE FUNCTION cbshm.alerts_skipped(patience interval) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms'
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
DECLARE
	moment timestamptz := clock_timestamp();
	ids bigint[];
BEGIN
	IF EXISTS (SELECT FROM cbshm.alert_queue l
		   WHERE l.status = 'pending' AND l.next_attempt_at > moment
			 AND l.next_attempt_at < moment + interval '10 min')
	   OR EXISTS (SELECT FROM cbshm.alert_queue l
		      WHERE l.resend_at > moment AND l.resend_at <= moment + interval '1 hour'
			    AND l.status = 'sent') THEN
		RETURN 0;
	END IF;
	ids := ARRAY(SELECT l.id FROM cbshm.alert_queue l
		     WHERE l.status = 'pending' AND l.next_attempt_at <= moment - patience
		     ORDER BY l.next_attempt_at, l.id LIMIT 100 FOR UPDATE SKIP LOCKED);
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

-- It may be what Alertmanager cannot bear: 1 = it has failed while Alertmanager seemed to answer, perhaps because of others; 2 = and
-- again, by itself. Then it is sent by itself, and after those that are no suspects.
ALTER TABLE cbshm.alert_queue ADD COLUMN suspicion smallint NOT NULL DEFAULT 0;
CREATE INDEX alert_queue_fresh ON cbshm.alert_queue (id) WHERE status = 'pending' AND attempts = 0;

-- As in 0004, and those first that have not been tried, however many others wait.
CREATE OR REPLACE FUNCTION cbshm.incidents_due(moment timestamptz, max int) RETURNS SETOF uuid
LANGUAGE sql STABLE AS $$
	(SELECT incident_id FROM cbshm.alert_queue
	 WHERE status = 'pending' AND attempts = 0 AND next_attempt_at <= moment ORDER BY id LIMIT max)
	UNION ALL
	(SELECT incident_id FROM cbshm.alert_queue
	 WHERE status = 'pending' AND next_attempt_at <= moment
	 ORDER BY next_attempt_at, id LIMIT max)
	UNION ALL
	(SELECT incident_id FROM cbshm.alert_queue
	 WHERE resend_at <= moment ORDER BY resend_at LIMIT max)
$$;

-- As in 0004, but what is locked or leased does not stand in the way of what is not. An incident has few alerts: they are looked up
-- by the incident, never by going through the queue from its beginning, which is what a plan for min(id) does as long as
-- nobody has analyzed the table. What has not been tried comes first, then what has waited longest; suspects by chance, so that none
-- of them keeps another from being sent.
CREATE OR REPLACE FUNCTION cbshm.lease_incidents(moment timestamptz, max int) RETURNS uuid[]
LANGUAGE sql VOLATILE AS $$
	SELECT array_agg(l.incident_id) FROM (
		SELECT h.incident_id FROM cbshm.alert_queue h
		WHERE h.id = ANY (ARRAY(
			SELECT (SELECT min(f.id + 0) FROM cbshm.alert_queue f
				WHERE f.incident_id = d.incident_id)
			FROM (SELECT DISTINCT i FROM cbshm.incidents_due(moment, 5 * max) i) d (incident_id)))
		      AND (h.leased_until IS NULL OR h.leased_until <= moment)
		ORDER BY (SELECT CASE
				WHEN max(f.suspicion) > 0 THEN ROW (max(f.suspicion) + 1, NULL::timestamptz,
								    md5(h.incident_id::text || moment::text))
				ELSE ROW (CASE WHEN bool_or(f.status = 'pending' AND f.attempts = 0) THEN 0 ELSE 1 END,
					  min(CASE WHEN f.status = 'pending' THEN f.next_attempt_at
					      ELSE f.resend_at END), NULL::text) END
			  FROM cbshm.alert_queue f WHERE f.incident_id = h.incident_id), h.id
		LIMIT max FOR UPDATE SKIP LOCKED) l
$$;

-- As in 0004, but an incident of which somebody has locked any alert is left for later, not waited for; if that is so with all that
-- come first, those behind them are looked at, up to 25 times as many as are asked for. The alerts of an incident follow each other.
DROP FUNCTION cbshm.claim_alerts;
CREATE FUNCTION cbshm.claim_alerts(agent text, max int, lease interval)
RETURNS TABLE (id bigint, incident_id uuid, breaker text, kind text, repeated boolean, payload jsonb, suspect boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms' SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
	moment timestamptz := clock_timestamp();
	incidents uuid[];
	mine bigint[];
	many int;
BEGIN
	FOREACH many IN ARRAY ARRAY[max, 5 * max] LOOP
		incidents := cbshm.lease_incidents(moment, many);
		-- A statement of its own: it sees the closings that were committed before the locks were ours.
		mine := ARRAY(SELECT q.id FROM cbshm.alert_queue q
			      WHERE q.incident_id = ANY (incidents) FOR UPDATE SKIP LOCKED);
		incidents := ARRAY(SELECT q.incident_id FROM cbshm.alert_queue q
				   WHERE q.incident_id = ANY (incidents)
				   GROUP BY q.incident_id HAVING bool_and(q.id = ANY (mine))
				   ORDER BY array_position(incidents, q.incident_id) LIMIT max);
		EXIT WHEN cardinality(incidents) > 0;
	END LOOP;
	RETURN QUERY
	WITH looked AS (
		SELECT q.id, q.incident_id, q.status = 'pending' AS fresh,
			coalesce(q.status <> 'pending' AND q.resend_at <= moment
				 AND (q.kind = 'enable' OR i.resolved_at IS NULL), false) AS again,
			q.kind = 'disable' AND i.resolved_at IS NOT NULL AS over,
			q.suspicion
		FROM cbshm.alert_queue q JOIN cbshm.incident i ON i.id = q.incident_id
		WHERE q.incident_id = ANY (incidents) AND q.id = ANY (mine)
	), mine AS (
		SELECT *, bool_or(fresh OR again) OVER incident AS held,
			max(suspicion) OVER incident > 0 AS suspect
		FROM looked WINDOW incident AS (PARTITION BY incident_id)
	), leased AS (
		UPDATE cbshm.alert_queue q SET
			leased_by = CASE WHEN m.held THEN agent END,
			leased_until = CASE WHEN m.held THEN moment + lease END,
			next_attempt_at = CASE WHEN m.fresh THEN moment + lease
					       ELSE q.next_attempt_at END,
			resend_at = CASE WHEN m.again THEN moment + lease
					 WHEN NOT m.over THEN q.resend_at END
		FROM mine m WHERE q.id = m.id
		RETURNING q.id, q.incident_id, q.breaker, q.kind, q.payload, m.fresh, m.again, m.suspect
	)
	SELECT l.id, l.incident_id, l.breaker, l.kind, l.again, l.payload, l.suspect
	FROM leased l WHERE l.fresh OR l.again ORDER BY array_position(incidents, l.incident_id), l.id;
END
$$;

-- As in 0004. The alerts of a closing are looked up by the incident: coalesce() keeps the index of all that is pending out.
CREATE OR REPLACE FUNCTION cbshm.alerts_sent(agent text, ids bigint[], resend interval) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms' SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
	moment timestamptz := clock_timestamp();
	taken uuid[];
	closed uuid[];
BEGIN
	WITH told AS (
		UPDATE cbshm.alert_queue q SET
			status = 'sent',
			attempts = least(q.attempts, 1000) + CASE WHEN q.status = 'pending' THEN 1 ELSE 0 END,
			sent_at = moment,
			last_error = NULL,
			suspicion = 0,
			resend_at = CASE WHEN q.kind = 'disable' OR q.status = 'pending'
					 THEN moment + resend END,
			leased_by = NULL,
			leased_until = NULL
		FROM cbshm.leased_alerts(agent, ids) l WHERE q.id = l.id
		RETURNING q.incident_id, q.kind
	)
	SELECT array_agg(incident_id), array_agg(incident_id) FILTER (WHERE kind = 'enable')
	INTO taken, closed FROM told;
	-- An opening that was refused must not come after its closing.
	UPDATE cbshm.alert_queue q
	SET status = 'skipped', leased_by = NULL, leased_until = NULL, resend_at = NULL
	WHERE q.incident_id = ANY (closed) AND q.kind = 'disable' AND coalesce(q.status) = 'pending';
	UPDATE cbshm.incident i SET alert_sent = true, alert_sent_at = moment
	WHERE i.id IN (SELECT l.id FROM cbshm.incident l
		       WHERE l.id = ANY (taken) AND NOT l.alert_sent FOR NO KEY UPDATE SKIP LOCKED);
	RETURN coalesce(cardinality(taken), 0);
END
$$;

-- As in 0004. Without a suspicion (Alertmanager is down) it stays what it was.
DROP FUNCTION cbshm.alerts_put_off;
CREATE FUNCTION cbshm.alerts_put_off(agent text, ids bigint[], error text, suspicion int DEFAULT NULL)
RETURNS TABLE (id bigint, breaker text, kind text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms' SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
	max_attempts constant int := 10;
	moment timestamptz := clock_timestamp();
BEGIN
	RETURN QUERY
	WITH put_off AS (
		UPDATE cbshm.alert_queue q SET
			status = CASE WHEN l.status <> 'pending' THEN l.status
				      WHEN l.attempts + 1 < max_attempts THEN 'pending'
				      ELSE 'failed' END,
			attempts = l.attempts + CASE WHEN l.status = 'pending' THEN 1 ELSE 0 END,
			next_attempt_at = moment + cbshm.alert_backoff(l.attempts + 1),
			resend_at = CASE WHEN l.status <> 'pending'
					 THEN moment + cbshm.alert_backoff(5)
					 WHEN l.attempts + 1 >= max_attempts AND l.kind = 'disable'
					 THEN moment + cbshm.alert_backoff(max_attempts) END,
			last_error = left(error, 1000),
			suspicion = coalesce(alerts_put_off.suspicion, l.suspicion),
			leased_by = NULL,
			leased_until = NULL
		FROM cbshm.leased_alerts(agent, ids) l WHERE q.id = l.id
		RETURNING q.id, q.breaker, q.kind, q.status, l.status AS was
	)
	SELECT p.id, p.breaker, p.kind FROM put_off p
	WHERE p.status = 'failed' AND p.was = 'pending' ORDER BY p.id;
END
$$;

-- As in 0004, also if somebody has put an alert off for ever, or before all time.
CREATE OR REPLACE FUNCTION cbshm.alerts_due(with_repetitions boolean) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT ceil(extract(epoch FROM least(greatest(due, moment), moment + interval '1 day') - moment) * 1000)::bigint
	FROM (SELECT clock_timestamp() AS moment, least(
		(SELECT min(next_attempt_at) FROM cbshm.alert_queue WHERE status = 'pending'),
		CASE WHEN with_repetitions THEN
			(SELECT min(resend_at) FROM cbshm.alert_queue WHERE resend_at IS NOT NULL)
		END) AS due) d
	WHERE due IS NOT NULL
$$;

-- What alerts_wake of 0004, which agents of before go on to call, does at once: here at most so many of them that it does not take
-- long. To be asked again with the position that it returns, until that is null: the first one is -infinity. What is to be repeated
-- is gone through in the order of resend_at; what has been sent since, or is leased, stays behind the position, and what somebody
-- has put off for ever is left alone. What has failed by itself waits ten seconds, lest it bring Alertmanager down once a second. An
-- attempt that this brings about is not one of those that an alert has.
CREATE FUNCTION cbshm.alerts_wake_some(away interval, INOUT "position" timestamptz)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms'
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
DECLARE
	pause constant interval := '10 s';
	moment timestamptz := clock_timestamp();
	put_off bigint[] := ARRAY(
		SELECT l.id FROM cbshm.alert_queue l
		WHERE l.status = 'pending' AND l.next_attempt_at > moment
		      AND l.attempts > 0 AND l.leased_by IS NULL
		      AND (l.suspicion < 2 OR l.next_attempt_at > moment + pause)
		ORDER BY l.next_attempt_at, l.id LIMIT 200 FOR UPDATE SKIP LOCKED);
	to_repeat bigint[];
	looked_at bigint;
	last timestamptz;
BEGIN
	UPDATE cbshm.alert_queue q SET
		next_attempt_at = CASE WHEN q.suspicion < 2 THEN moment ELSE moment + pause END,
		attempts = q.attempts - 1
	WHERE q.id = ANY (put_off);
	SELECT array_agg(r.id) FILTER (WHERE r.leased_by IS NULL
				       AND (r.suspicion < 2 OR r.resend_at > moment + pause)
				       AND (r.sent_at IS NULL OR r.sent_at < moment - away)),
		count(*), max(r.resend_at)
	INTO to_repeat, looked_at, last
	FROM (SELECT q.id, q.leased_by, q.suspicion, q.sent_at, q.resend_at FROM cbshm.alert_queue q
	      WHERE q.resend_at > greatest(moment, "position") AND q.resend_at < 'infinity'
	      ORDER BY q.resend_at FETCH FIRST 200 ROWS WITH TIES) r;
	UPDATE cbshm.alert_queue q
	SET resend_at = CASE WHEN q.suspicion < 2 THEN moment ELSE moment + pause END
	WHERE q.id = ANY (ARRAY(SELECT l.id FROM cbshm.alert_queue l
				WHERE l.id = ANY (to_repeat) AND l.leased_by IS NULL
				FOR UPDATE SKIP LOCKED));
	"position" := CASE WHEN looked_at >= 200 THEN last
			   WHEN cardinality(put_off) = 200 THEN "position" END;
END
$$;

-- As in 0004, but what another agent has locked is waited for: whoever looks for something to lease locks for a moment also what
-- has just been leased. What a person has locked is passed over after the lock_timeout of the two that call it.
CREATE OR REPLACE FUNCTION cbshm.leased_alerts(agent text, ids bigint[])
RETURNS SETOF cbshm.alert_queue
LANGUAGE plpgsql VOLATILE AS $$
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

ALTER FUNCTION cbshm.alerts_release SET lock_timeout = '50ms' SET enable_seqscan = off
	SET enable_bitmapscan = off;

-- ---- rows that no trigger has seen ----------------------------------------------------------

-- default_ttl of a row that was written past the triggers may be more microseconds than a bigint holds: that is 100,000 days, and
-- less than nothing is one microsecond (0 would be for ever), so that neither the agents' loads nor the reports on other
-- breakers fail.
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
	CASE WHEN coalesce(b.default_ttl, s.default_ttl) < '0' THEN 1
	ELSE (extract(epoch FROM least('100000 days', coalesce(b.default_ttl, s.default_ttl)))
	      * 1000000)::bigint END AS default_ttl_us,
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
		CASE WHEN coalesce(b.default_ttl, fleet.default_ttl) < '0' THEN 1
		ELSE (extract(epoch FROM least('100000 days',
			coalesce(b.default_ttl, fleet.default_ttl))) * 1000000)::bigint END,
		coalesce(b.auto_recover, fleet.auto_recover))::cbshm.mirror
$$;

-- ---- rights -----------------------------------------------------------------------------------

REVOKE ALL ON FUNCTION cbshm.claim_alerts, cbshm.alerts_put_off, cbshm.alerts_wake_some FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cbshm.claim_alerts, cbshm.alerts_put_off, cbshm.alerts_wake_some TO cbshm_agent;
