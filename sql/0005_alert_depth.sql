-- 0005_alert_depth.sql - how long the alert queue is, for the agents' metrics
--
-- SPDX-License-Identifier: ISC

SET LOCAL ROLE cbshm_owner;

-- Of the alerts that are still to be delivered: how many wait, how many an agent has at this moment, how long the oldest
-- has been there (0: there is none). And how many have failed.
CREATE FUNCTION cbshm.alerts_depth(OUT pending bigint, OUT leased bigint, OUT failed bigint,
				   OUT oldest_pending_seconds float8)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT count(*) FILTER (WHERE q.leased_until IS NULL OR q.leased_until <= clock_timestamp()),
		count(*) FILTER (WHERE q.leased_until > clock_timestamp()),
		(SELECT count(*) FROM cbshm.alert_queue f WHERE f.status = 'failed'),
		greatest(0, coalesce(extract(epoch FROM clock_timestamp() - min(q.created_at)), 0))::float8
	FROM cbshm.alert_queue q WHERE q.status = 'pending'
$$;

REVOKE ALL ON FUNCTION cbshm.alerts_depth FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cbshm.alerts_depth TO cbshm_agent;
