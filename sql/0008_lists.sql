-- 0008_lists.sql - the audit log and the alert queue, as io.cbshm has them
--
-- SPDX-License-Identifier: ISC

-- What is made here belongs to the owner of all the rest.
SET LOCAL ROLE cbshm_owner;

-- Entries of the audit log, newest first: of one breaker or of all, the fleet's policy included. The query is put
-- together so that each form finds its own index.
CREATE FUNCTION cbshm.log_json(name text, since timestamptz, "limit" int) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	entries jsonb;
BEGIN
	EXECUTE 'SELECT coalesce(jsonb_agg(jsonb_build_object('
		'''id'', l.id, ''time'', cbshm.rfc3339(l."time"), ''breaker'', l.breaker, '
		'''version'', l.version, ''action'', l.action, ''old_values'', l.old_values, '
		'''new_values'', l.new_values, ''actor'', l.actor, ''proof'', l.proof, '
		'''request_id'', l.request_id) ORDER BY l.id DESC), ''[]'') '
		'FROM (SELECT * FROM cbshm.audit_log a WHERE true'
		|| CASE WHEN name IS NULL THEN '' ELSE ' AND a.breaker = $1' END
		|| CASE WHEN since IS NULL THEN '' ELSE ' AND a."time" >= $2' END
		|| ' ORDER BY a.id DESC LIMIT $3) l'
	INTO entries USING name, since, "limit";
	RETURN entries;
END
$$;

-- Alerts: those first that have failed, then those that are still to be sent, the oldest first; with `everything` then
-- also those that have been dealt with, the newest first.
CREATE FUNCTION cbshm.alerts_json(everything boolean, "limit" int) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	WITH picked AS (
		(SELECT 0 AS place, q.id AS rank, q AS alert FROM cbshm.alert_queue q
		 WHERE q.status = 'failed' ORDER BY q.id LIMIT "limit")
		UNION ALL
		(SELECT 1, q.id, q FROM cbshm.alert_queue q
		 WHERE q.status = 'pending' ORDER BY q.id LIMIT "limit")
		UNION ALL
		(SELECT 2, -q.id, q FROM cbshm.alert_queue q
		 WHERE everything AND q.status IN ('sent', 'skipped')
		 ORDER BY q.id DESC LIMIT "limit")
		ORDER BY place, rank LIMIT "limit"
	)
	SELECT coalesce(jsonb_agg(jsonb_build_object(
		'id', (alert).id,
		'incident_id', (alert).incident_id,
		'breaker', (alert).breaker,
		'kind', (alert).kind,
		'status', (alert).status,
		'attempts', (alert).attempts,
		'created_at', cbshm.rfc3339((alert).created_at),
		'next_attempt_at', CASE WHEN (alert).status = 'pending'
					THEN cbshm.rfc3339((alert).next_attempt_at) END,
		'sent_at', cbshm.rfc3339((alert).sent_at),
		'last_error', (alert).last_error) ORDER BY place, rank), '[]')
	FROM picked
$$;

-- ---- rights -----------------------------------------------------------------------------------

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA cbshm FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	cbshm.log_json,
	cbshm.alerts_json
TO cbshm_agent, cbshm_reader;
