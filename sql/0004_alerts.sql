-- 0004_alerts.sql - how alerts leave the queue
--
-- SPDX-License-Identifier: ISC
--
-- Agents claim what is due by a lease, send it, and tell what became of it; no transaction stays open
-- while they send. An incident's alerts are claimed together and in their order: as long as one of them
-- is leased, its others are not handed out. So a closing never overtakes its opening, nor does a
-- repetition of the opening come after the closing.
--
-- Alertmanager keeps alerts in memory and forgets one that nobody repeats. resend_at says when an alert
-- that has been dealt with is to be sent once more: an opening again and again while its breaker is open
-- (even if it had failed or was skipped), a closing once, in case a stale opening was still on its way.

-- What is made here belongs to the owner of all the rest.
SET LOCAL ROLE cbshm_owner;

ALTER TABLE cbshm.alert_queue ADD COLUMN resend_at timestamptz;
CREATE INDEX alert_queue_resend ON cbshm.alert_queue (resend_at) WHERE resend_at IS NOT NULL;
CREATE INDEX alert_queue_leased ON cbshm.alert_queue (leased_by) WHERE leased_by IS NOT NULL;

-- Nobody wants to hear now of what was over before anybody could deliver it.
UPDATE cbshm.alert_queue q
SET status = 'skipped', last_error = 'was over before alerts were delivered'
FROM cbshm.incident i
WHERE i.id = q.incident_id AND i.resolved_at IS NOT NULL AND q.status = 'pending';

-- ---- what may become of an alert --------------------------------------------------------------

CREATE FUNCTION cbshm.alert_queue_moves() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF (OLD.status, NEW.status) NOT IN (('pending', 'sent'), ('pending', 'failed'),
					    ('pending', 'skipped'), ('failed', 'pending'),
					    ('failed', 'sent'), ('failed', 'skipped'),
					    ('skipped', 'sent')) THEN
		RAISE EXCEPTION 'alert % cannot become % after it was %', OLD.id, NEW.status,
			OLD.status;
	END IF;
	RETURN NEW;
END
$$;

CREATE TRIGGER alert_queue_moves BEFORE UPDATE OF status ON cbshm.alert_queue
	FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status)
	EXECUTE FUNCTION cbshm.alert_queue_moves();

-- 2^attempts seconds, at most 300; between half of that and the whole, so that not everything that
-- failed together comes back together.
CREATE FUNCTION cbshm.alert_backoff(attempts int) RETURNS interval
LANGUAGE sql VOLATILE AS $$
	SELECT make_interval(secs => least(300, 2 ^ least(attempts, 9)) * (0.5 + random() / 2))
$$;

-- ---- for the agents ---------------------------------------------------------------------------

-- The incidents that have something to be sent, oldest first; the same one may come twice.
CREATE FUNCTION cbshm.incidents_due(moment timestamptz, max int) RETURNS SETOF uuid
LANGUAGE sql STABLE AS $$
	(SELECT incident_id FROM cbshm.alert_queue
	 WHERE status = 'pending' AND next_attempt_at <= moment
	 ORDER BY next_attempt_at, id LIMIT max)
	UNION ALL
	(SELECT incident_id FROM cbshm.alert_queue
	 WHERE resend_at <= moment ORDER BY resend_at LIMIT max)
$$;

-- Leases incidents that have something due, whoever else is at it: the first alert of an incident is
-- its lock and carries its lease. What others hold is passed over.
CREATE FUNCTION cbshm.lease_incidents(moment timestamptz, max int) RETURNS uuid[]
LANGUAGE sql VOLATILE AS $$
	SELECT array_agg(l.incident_id) FROM (
		SELECT h.incident_id FROM cbshm.alert_queue h
		WHERE h.id = ANY (ARRAY(
			SELECT (SELECT min(f.id) FROM cbshm.alert_queue f
				WHERE f.incident_id = d.incident_id)
			FROM cbshm.incidents_due(moment, max) d (incident_id)))
		      AND (h.leased_until IS NULL OR h.leased_until <= moment)
		ORDER BY h.id LIMIT max FOR UPDATE SKIP LOCKED) l
$$;

-- Hands out what is due of at most max incidents, in the order in which it is to be sent. `agent` must be
-- a name that no other process has. Until the lease ends the agent says alerts_sent() or
-- alerts_put_off() of each, and alerts_release() after the last; else they are handed out again.
CREATE FUNCTION cbshm.claim_alerts(agent text, max int, lease interval)
RETURNS TABLE (id bigint, incident_id uuid, breaker text, kind text, repeated boolean, payload jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
	moment timestamptz := clock_timestamp();
	incidents uuid[] := cbshm.lease_incidents(moment, max);
BEGIN
	-- A statement of its own: it sees the closings that were committed before the locks were ours.
	RETURN QUERY
	WITH looked AS (
		SELECT q.id, q.incident_id, q.status = 'pending' AS fresh,
			coalesce(q.status <> 'pending' AND q.resend_at <= moment
				 AND (q.kind = 'enable' OR i.resolved_at IS NULL), false) AS again,
			q.kind = 'disable' AND i.resolved_at IS NOT NULL AS over
		FROM cbshm.alert_queue q JOIN cbshm.incident i ON i.id = q.incident_id
		WHERE q.incident_id = ANY (incidents)
	), mine AS (
		SELECT *, bool_or(fresh OR again) OVER (PARTITION BY incident_id) AS held FROM looked
	), leased AS (
		UPDATE cbshm.alert_queue q SET
			leased_by = CASE WHEN m.held THEN agent END,
			leased_until = CASE WHEN m.held THEN moment + lease END,
			next_attempt_at = CASE WHEN m.fresh THEN moment + lease
					       ELSE q.next_attempt_at END,
			resend_at = CASE WHEN m.again THEN moment + lease
					 WHEN NOT m.over THEN q.resend_at END
		FROM mine m WHERE q.id = m.id
		RETURNING q.id, q.incident_id, q.breaker, q.kind, q.payload, m.fresh, m.again
	)
	SELECT l.id, l.incident_id, l.breaker, l.kind, l.again, l.payload
	FROM leased l WHERE l.fresh OR l.again ORDER BY l.id;
END
$$;

-- Those of the alerts that are still leased by the agent, locked.
CREATE FUNCTION cbshm.leased_alerts(agent text, ids bigint[]) RETURNS SETOF cbshm.alert_queue
LANGUAGE sql VOLATILE AS $$
	SELECT * FROM cbshm.alert_queue q
	WHERE q.id = ANY (ids) AND q.leased_by = agent
	ORDER BY q.id FOR UPDATE SKIP LOCKED
$$;

-- Alertmanager has taken them. An incident that somebody holds locked is told at the next occasion: nobody
-- waits for a person's open transaction. Returns how many are marked.
CREATE FUNCTION cbshm.alerts_sent(agent text, ids bigint[], resend interval) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	moment timestamptz := clock_timestamp();
	taken uuid[];
	closed uuid[];
BEGIN
	WITH told AS (
		UPDATE cbshm.alert_queue q SET
			status = 'sent',
			attempts = q.attempts + CASE WHEN q.status = 'pending' THEN 1 ELSE 0 END,
			sent_at = moment,
			last_error = NULL,
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
	WHERE q.incident_id = ANY (closed) AND q.kind = 'disable' AND q.status = 'pending';
	UPDATE cbshm.incident i SET alert_sent = true, alert_sent_at = moment
	WHERE i.id IN (SELECT l.id FROM cbshm.incident l
		       WHERE l.id = ANY (taken) AND NOT l.alert_sent FOR NO KEY UPDATE SKIP LOCKED);
	RETURN coalesce(cardinality(taken), 0);
END
$$;

-- They could not be delivered. New ones are tried again later and later, and have failed after the tenth
-- time; what only was to be repeated is repeated later. Returns what has failed for good.
CREATE FUNCTION cbshm.alerts_put_off(agent text, ids bigint[], error text)
RETURNS TABLE (id bigint, breaker text, kind text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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
			leased_by = NULL,
			leased_until = NULL
		FROM cbshm.leased_alerts(agent, ids) l WHERE q.id = l.id
		RETURNING q.id, q.breaker, q.kind, q.status, l.status AS was
	)
	SELECT p.id, p.breaker, p.kind FROM put_off p
	WHERE p.status = 'failed' AND p.was = 'pending' ORDER BY p.id;
END
$$;

-- Gives back whatever the agent holds; what it has said nothing of is due at once.
CREATE FUNCTION cbshm.alerts_release(agent text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	UPDATE cbshm.alert_queue q SET
		next_attempt_at = CASE WHEN q.next_attempt_at = q.leased_until THEN clock_timestamp()
				       ELSE q.next_attempt_at END,
		resend_at = CASE WHEN q.resend_at = q.leased_until THEN clock_timestamp()
				 ELSE q.resend_at END,
		leased_by = NULL,
		leased_until = NULL
	WHERE q.id IN (SELECT l.id FROM cbshm.alert_queue l
		       WHERE l.leased_by = alerts_release.agent FOR UPDATE SKIP LOCKED)
$$;

-- Alertmanager answers again after `away`, in which it may have been started anew and know nothing: what
-- was put off is due now, and so are the open breakers that it was not told of since.
CREATE FUNCTION cbshm.alerts_wake(away interval) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	UPDATE cbshm.alert_queue q SET
		next_attempt_at = CASE WHEN q.status = 'pending' THEN clock_timestamp()
				       ELSE q.next_attempt_at END,
		resend_at = CASE WHEN q.resend_at IS NOT NULL THEN clock_timestamp() END
	WHERE q.id IN (
		SELECT l.id FROM cbshm.alert_queue l
		WHERE l.leased_by IS NULL
		      AND (l.status = 'pending' AND l.attempts > 0
			   AND l.next_attempt_at > clock_timestamp()
			   OR l.resend_at > clock_timestamp()
			   AND (l.sent_at IS NULL OR l.sent_at < clock_timestamp() - away))
		FOR UPDATE SKIP LOCKED)
$$;

-- For an agent that knows no Alertmanager: nobody has taken for a while what was due, so nobody else knows
-- one either. Those of open breakers are sent if somebody comes to know one. Returns how many.
CREATE FUNCTION cbshm.alerts_skipped(patience interval) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	WITH skipped AS (
		UPDATE cbshm.alert_queue q SET
			status = 'skipped',
			last_error = 'no Alertmanager is configured',
			resend_at = CASE WHEN q.kind = 'disable' AND i.resolved_at IS NULL
					 THEN clock_timestamp() END,
			leased_by = NULL,
			leased_until = NULL
		FROM cbshm.incident i
		WHERE i.id = q.incident_id AND q.id IN (
			SELECT l.id FROM cbshm.alert_queue l
			WHERE l.status = 'pending' AND l.next_attempt_at <= clock_timestamp() - patience
			ORDER BY l.next_attempt_at, l.id LIMIT 1000 FOR UPDATE SKIP LOCKED)
		RETURNING q.id)
	SELECT count(*) FROM skipped
$$;

-- Milliseconds until something is due; 0 if something is, null if there is nothing to wait for.
CREATE FUNCTION cbshm.alerts_due(with_repetitions boolean) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT greatest(0, ceil(extract(epoch FROM due - clock_timestamp()) * 1000))::bigint
	FROM (SELECT least(
		(SELECT min(next_attempt_at) FROM cbshm.alert_queue WHERE status = 'pending'),
		CASE WHEN with_repetitions THEN
			(SELECT min(resend_at) FROM cbshm.alert_queue WHERE resend_at IS NOT NULL)
		END) AS due) d
	WHERE due IS NOT NULL
$$;

-- ---- for admins -------------------------------------------------------------------------------

-- Has all that failed tried again, from the first attempt on; except openings whose closing has been dealt
-- with. Returns how many.
CREATE FUNCTION cbshm.alerts_retry() RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	retried bigint;
BEGIN
	WITH decided AS (
		UPDATE cbshm.alert_queue q SET
			status = CASE WHEN q.kind = 'disable' AND EXISTS (
					SELECT FROM cbshm.alert_queue c
					WHERE c.incident_id = q.incident_id AND c.kind = 'enable'
					      AND c.status IN ('sent', 'skipped'))
				 THEN 'skipped' ELSE 'pending' END,
			attempts = 0,
			next_attempt_at = clock_timestamp(),
			resend_at = NULL
		WHERE q.id IN (SELECT l.id FROM cbshm.alert_queue l WHERE l.status = 'failed'
			       FOR UPDATE SKIP LOCKED)
		RETURNING q.status)
	SELECT count(*) INTO retried FROM decided WHERE status = 'pending';
	PERFORM pg_notify('cbshm', 'a');
	RETURN retried;
END
$$;

-- Removes what has failed; but not an opening whose breaker is open or whose closing is still to be sent.
-- Returns how many.
CREATE FUNCTION cbshm.alerts_purge() RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	WITH purged AS (
		DELETE FROM cbshm.alert_queue q WHERE q.id IN (
			SELECT l.id FROM cbshm.alert_queue l
			JOIN cbshm.incident i ON i.id = l.incident_id
			WHERE l.status = 'failed'
			      AND (l.kind = 'enable' OR i.resolved_at IS NOT NULL AND NOT EXISTS (
				SELECT FROM cbshm.alert_queue c
				WHERE c.incident_id = l.incident_id AND c.status = 'pending'))
			FOR UPDATE OF l SKIP LOCKED)
		RETURNING q.id)
	SELECT count(*) FROM purged
$$;

-- ---- an alert that Alertmanager takes -----------------------------------------------------------

-- It refuses one that ends before it starts, as when the server's clock was set back in between.
CREATE OR REPLACE FUNCTION cbshm.queue_alert(i cbshm.incident) RETURNS void
LANGUAGE sql AS $$
	INSERT INTO cbshm.alert_queue (incident_id, breaker, kind, payload)
	SELECT i.id, i.breaker,
		CASE WHEN i.resolved_at IS NULL THEN 'disable' ELSE 'enable' END,
		CASE WHEN i.resolved_at < i."timestamp"
		     THEN p || jsonb_build_object('endsAt', p -> 'startsAt') ELSE p END
	FROM cbshm.alert_payload(i) p
$$;

-- ---- rights -----------------------------------------------------------------------------------

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA cbshm FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	cbshm.claim_alerts,
	cbshm.alerts_sent,
	cbshm.alerts_put_off,
	cbshm.alerts_release,
	cbshm.alerts_wake,
	cbshm.alerts_skipped,
	cbshm.alerts_due,
	cbshm.alerts_retry,
	cbshm.alerts_purge
TO cbshm_agent;
