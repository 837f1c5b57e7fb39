-- 0006_fleet.sql - how one agent learns what all the others have applied; and lists for operators
--
-- SPDX-License-Identifier: ISC
--
-- A barrier is a number, handed out in order and announced on the channel that also tells of changes. What
-- was committed before a number was handed out is told of before the number is. So an agent that has
-- applied all it has heard before the number, or all that it has read after it could read the number,
-- has applied everything that was committed before, whatever it was; it says so by acknowledging the number.
-- The greater number includes the smaller: however many wait, an agent acknowledges once.

-- What is made here belongs to the owner of all the rest.
SET LOCAL ROLE cbshm_owner;

-- A sequence: handing out a number locks nothing. It never goes back behind what was acknowledged, not even
-- after a crash or a failover: its steps are in the log before the acknowledgements are.
CREATE SEQUENCE cbshm.barrier;
DO $$
BEGIN
	PERFORM nextval('cbshm.barrier');
END
$$;

ALTER TABLE cbshm.agent
	ADD COLUMN acknowledged bigint NOT NULL DEFAULT 0,
	ADD COLUMN acknowledged_at timestamptz;

-- ---- for the agents ---------------------------------------------------------------------------

-- An agent beats every 2 s.
CREATE FUNCTION cbshm.is_live(a cbshm.agent) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
	SELECT a.last_seen_at > clock_timestamp() - interval '10 s'
$$;

-- Those that were not seen for a day are not expected to come back. Whoever stops in order has removed itself.
CREATE FUNCTION cbshm.forget_agents() RETURNS void
LANGUAGE sql VOLATILE AS $$
	DELETE FROM cbshm.agent WHERE (host, instance) IN (
		SELECT a.host, a.instance FROM cbshm.agent a
		WHERE a.last_seen_at < clock_timestamp() - interval '1 day' FOR UPDATE SKIP LOCKED)
$$;

-- The number that an agent acknowledges when it has applied what is committed by now.
CREATE FUNCTION cbshm.announce_barrier(OUT barrier bigint, OUT moment timestamptz)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cbshm.forget_agents();
	barrier := nextval('cbshm.barrier');
	moment := clock_timestamp();
	PERFORM pg_notify('cbshm', 'b ' || barrier);
END
$$;

-- For an agent that may not have heard it. To be asked before the rows, in a statement of its own.
CREATE FUNCTION cbshm.last_barrier() RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT last_value FROM cbshm.barrier
$$;

CREATE FUNCTION cbshm.acknowledge_barrier(host text, instance text, barrier bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	UPDATE cbshm.agent a SET
		acknowledged = barrier,
		acknowledged_at = clock_timestamp(),
		last_seen_at = clock_timestamp()
	WHERE a.host = acknowledge_barrier.host AND a.instance = acknowledge_barrier.instance
$$;

-- An agent that stops in order is waited for no more.
CREATE FUNCTION cbshm.remove_agent(host text, instance text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	DELETE FROM cbshm.agent a
	WHERE a.host = remove_agent.host AND a.instance = remove_agent.instance
$$;

-- ---- questions --------------------------------------------------------------------------------

CREATE FUNCTION cbshm.agent_json(a cbshm.agent, barrier bigint) RETURNS jsonb
LANGUAGE sql VOLATILE AS $$
	SELECT jsonb_build_object(
		'host', a.host,
		'instance', a.instance,
		'version', a.version,
		'first_seen_at', cbshm.rfc3339(a.first_seen_at),
		'last_seen_at', cbshm.rfc3339(a.last_seen_at),
		'live', cbshm.is_live(a),
		'behind', a.acknowledged < barrier,
		'applied', a.applied)
$$;

-- Where the agents stand with a barrier that was announced at a moment: those that are alive are counted, those that
-- are not are named, since engines on their hosts may still go by an earlier state.
CREATE FUNCTION cbshm.fleet_json(barrier bigint, moment timestamptz) RETURNS jsonb
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	WITH agents AS MATERIALIZED (
		SELECT a, a.host, a.instance, a.acknowledged_at, cbshm.is_live(a) AS live,
			a.acknowledged >= barrier AS in_force
		FROM cbshm.agent a
	), named AS (
		SELECT live, cbshm.agent_json(a, barrier) AS agent FROM (
			(SELECT * FROM agents WHERE live AND NOT in_force
			 ORDER BY host, instance LIMIT 50)
			UNION ALL
			(SELECT * FROM agents WHERE NOT live
			 ORDER BY host, instance LIMIT 50)) n
	)
	SELECT jsonb_build_object(
		'hosts', count(*) FILTER (WHERE live),
		'in_force', count(*) FILTER (WHERE live AND in_force),
		'slowest_ms', max(greatest(0, extract(epoch FROM acknowledged_at - moment) * 1000))
			      FILTER (WHERE live AND in_force)::float8,
		'behind', (SELECT coalesce(jsonb_agg(agent), '[]') FROM named WHERE live),
		'silent', (SELECT coalesce(jsonb_agg(agent), '[]') FROM named WHERE NOT live))
	FROM agents
$$;

-- Agents, those first that are not alive or behind.
CREATE FUNCTION cbshm.agents_json("limit" int) RETURNS jsonb
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	WITH last AS MATERIALIZED (SELECT cbshm.last_barrier() AS barrier)
	SELECT coalesce(jsonb_agg(agent), '[]') FROM (
		SELECT cbshm.agent_json(a, barrier) AS agent FROM cbshm.agent a, last
		ORDER BY cbshm.is_live(a) AND a.acknowledged >= barrier, a.host, a.instance
		LIMIT "limit") n
$$;

-- ---- rights -----------------------------------------------------------------------------------

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA cbshm FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	cbshm.announce_barrier,
	cbshm.last_barrier,
	cbshm.acknowledge_barrier,
	cbshm.remove_agent,
	cbshm.fleet_json,
	cbshm.agents_json
TO cbshm_agent;
GRANT EXECUTE ON FUNCTION
	cbshm.fleet_json,
	cbshm.agents_json
TO cbshm_reader;
