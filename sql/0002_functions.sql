-- 0002_functions.sql - what is done to breakers, and what can be asked about them
--
-- SPDX-License-Identifier: ISC
--
-- cbshm.apply() is the state machine: every report, disable and enable, single or in a batch, goes
-- through it. It locks the row, decides, and writes the row once; what follows from the change
-- is done by the triggers of 0001_schema.sql.
--
-- What others may call is SECURITY DEFINER and has its search_path pinned; the rest only ever runs
-- below one of those.

-- ---- JSON, as io.cbshm has it ---------------------------------------------------------------

CREATE FUNCTION cbshm.incident_json(i cbshm.incident) RETURNS jsonb
LANGUAGE sql STABLE AS $$
	SELECT jsonb_build_object(
		'id', i.id,
		'breaker', i.breaker,
		'timestamp', cbshm.rfc3339(i."timestamp"),
		'reason', i.reason,
		'severity', i.severity,
		'drift_score', i.drift_score,
		'sample_count', i.sample_count,
		'details', i.details,
		'resolved', i.resolved,
		'resolved_at', cbshm.rfc3339(i.resolved_at),
		'resolved_by', i.resolved_by,
		'resolution_notes', i.resolution_notes,
		'alert_sent', i.alert_sent,
		'alert_sent_at', cbshm.rfc3339(i.alert_sent_at))
	WHERE i.id IS NOT NULL
$$;

-- The policy in force for a breaker; name null: the fleet's. Null for an unknown breaker.
CREATE FUNCTION cbshm.policy_json(name text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT jsonb_build_object(
		'drift_threshold', coalesce(b.drift_threshold, s.drift_threshold),
		'failure_threshold', coalesce(b.failure_threshold, s.failure_threshold),
		'schema_error_threshold',
		coalesce(b.schema_error_threshold, s.schema_error_threshold),
		'default_ttl_seconds',
		extract(epoch FROM coalesce(b.default_ttl, s.default_ttl))::float8,
		'auto_recover', coalesce(b.auto_recover, s.auto_recover))
	FROM cbshm.settings s LEFT JOIN cbshm.breaker b ON b.name = policy_json.name
	WHERE policy_json.name IS NULL OR b.name IS NOT NULL
$$;

CREATE FUNCTION cbshm.state_json(name text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT jsonb_build_object(
		'name', b.name,
		'is_open', b.disabled,
		'opened_at', cbshm.rfc3339(b.opened_at),
		'reason', b.disabled_reason,
		'incident_id', b.incident_id,
		'consecutive_failures', b.consecutive_failures,
		'last_failure_at', cbshm.rfc3339(b.last_failure_at),
		'disabled_until', cbshm.rfc3339(b.disabled_until),
		'disabled_by', b.disabled_by,
		'version', b.version,
		'updated_at', cbshm.rfc3339(b.updated_at),
		'policy', cbshm.policy_json(b.name))
	FROM cbshm.breaker b
	WHERE b.name = state_json.name
$$;

-- ---- what is wrong with a request -----------------------------------------------------------

-- The text as a JSON object; null if it is none. The block that catches the error writes nothing,
-- so it costs no transaction id.
CREATE FUNCTION cbshm.json_object(said text) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
	parsed jsonb;
BEGIN
	IF said IS NULL THEN
		RETURN NULL;
	END IF;
	parsed := said::jsonb;
	RETURN CASE WHEN jsonb_typeof(parsed) = 'object' THEN parsed END;
EXCEPTION WHEN data_exception OR program_limit_exceeded OR statement_too_complex THEN
	RETURN NULL;
END
$$;

-- Why a text of people (a name, an actor, a reason) cannot be taken; null if it can.
CREATE FUNCTION cbshm.text_problem(field text, said text, max int, may_break boolean) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE
	WHEN coalesce(octet_length(said), 0) NOT BETWEEN 1 AND max THEN
		format('%s must be 1 to %s bytes long; it has %s', field, max,
		       coalesce(octet_length(said), 0))
	WHEN said ~ '[\u0001-\u0008\u000b-\u001f\u007f-\u009f]'
	     OR said ~ '[\u0009\u000a]' AND NOT may_break THEN
		format('%s must not contain control characters', field)
	END
$$;

CREATE FUNCTION cbshm.report_problem(kind text, score float8, count bigint, details text,
				     OUT field text, OUT message text)
LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF kind = 'report_drift' AND (score BETWEEN 0 AND 1) IS NOT TRUE THEN
		field := 'drift_score';
		message := format('drift_score must be a number from 0 to 1; it is %s',
				  coalesce(score::text, 'missing'));
	ELSIF kind = 'report_drift' AND (count BETWEEN 1 AND 9007199254740991) IS NOT TRUE THEN
		field := 'sample_count';
		message := format('sample_count must be from 1 to 9007199254740991; it is %s',
				  coalesce(count::text, 'missing'));
	ELSIF kind = 'report_schema_error'
	      AND (count BETWEEN 0 AND 9007199254740991) IS NOT TRUE THEN
		field := 'count';
		message := format('count must be from 0 to 9007199254740991; it is %s',
				  coalesce(count::text, 'missing'));
	ELSIF octet_length(details) > 65536 THEN
		field := 'details';
		message := format('details may take 65536 bytes; they take %s',
				  octet_length(details));
	ELSIF details IS NOT NULL AND cbshm.json_object(details) IS NULL THEN
		field := 'details';
		message := 'details must be a JSON object';
	END IF;
END
$$;

-- Whether the end that somebody asks for has come already.
CREATE FUNCTION cbshm.until_problem(until timestamptz) RETURNS text
LANGUAGE sql VOLATILE AS $$
	SELECT format('until must be in the future; it is %s, and the database''s clock says %s',
		      CASE WHEN isfinite(until) THEN cbshm.rfc3339(until) ELSE until::text END,
		      cbshm.rfc3339(clock_timestamp()))
	WHERE until <= clock_timestamp()
$$;

CREATE FUNCTION cbshm.disable_problem(reason text, until timestamptz, ttl interval,
				      OUT field text, OUT message text)
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
	message := cbshm.text_problem('reason', reason, 1024, true);
	IF message IS NOT NULL THEN
		field := 'reason';
	ELSIF until IS NOT NULL AND ttl IS NOT NULL THEN
		field := 'ttl_seconds';
		message := 'until and ttl cannot both be given';
	ELSIF (ttl > interval '0' AND ttl <= interval '3650 days') IS FALSE THEN
		field := 'ttl_seconds';
		message := format('ttl must be more than 0 and at most 3650 days; it is %s', ttl);
	ELSIF until <> 'infinity' AND until >= '10000-01-01 00:00:00+00' THEN
		field := 'until';
		message := 'until must be before the year 10000, or infinity';
	ELSE
		message := cbshm.until_problem(until);
		field := CASE WHEN message IS NOT NULL THEN 'until' END;
	END IF;
END
$$;

-- What is wrong with one request of apply(); nulls if nothing is. A request that has been answered
-- before is only wrong if it was another one: its `until` may have passed since.
CREATE FUNCTION cbshm.problem(kind text, name text, score float8, count bigint, details text,
			      reason text, actor text, until timestamptz, ttl interval,
			      request_id uuid, OUT field text, OUT message text)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	earlier cbshm.request;
BEGIN
	IF (kind IN ('report_drift', 'report_schema_error', 'disable', 'enable')) IS NOT TRUE THEN
		field := 'kind';
		message := format('there is no kind of request "%s"', kind);
		RETURN;
	END IF;
	message := cbshm.text_problem('name', name, 128, false);
	IF message IS NOT NULL THEN
		field := 'name';
	ELSIF kind IN ('report_drift', 'report_schema_error') THEN
		SELECT p.field, p.message INTO field, message
		FROM cbshm.report_problem(kind, score, count, details) p;
	ELSIF actor IS NOT NULL AND cbshm.text_problem('by', actor, 128, false) IS NOT NULL THEN
		field := 'by';
		message := cbshm.text_problem('by', actor, 128, false);
	ELSIF request_id IS NOT NULL THEN
		SELECT * INTO earlier FROM cbshm.request q WHERE q.request_id = problem.request_id;
		IF (earlier.kind, earlier.name) <> (problem.kind, problem.name) THEN
			field := 'request_id';
			message := cbshm.request_problem(earlier);
		END IF;
	END IF;
	IF message IS NOT NULL OR earlier.request_id IS NOT NULL THEN
		RETURN;
	ELSIF kind = 'disable' THEN
		SELECT p.field, p.message INTO field, message
		FROM cbshm.disable_problem(reason, until, ttl) p;
	ELSIF kind = 'enable' AND reason IS NOT NULL THEN
		message := cbshm.text_problem('reason', reason, 1024, true);
		field := CASE WHEN message IS NOT NULL THEN 'reason' END;
	END IF;
END
$$;

CREATE FUNCTION cbshm.request_problem(earlier cbshm.request) RETURNS text
LANGUAGE sql STABLE AS $$
	SELECT format('request_id %s belongs to another request (%s of "%s"); make a new one',
		      earlier.request_id, earlier.kind, earlier.name)
$$;

-- ---- writing one row ------------------------------------------------------------------------

-- The one UPDATE. `context` is for the triggers: see cbshm.context().
CREATE FUNCTION cbshm.write(b cbshm.breaker, context jsonb) RETURNS cbshm.breaker
LANGUAGE plpgsql AS $$
DECLARE
	written cbshm.breaker;
BEGIN
	PERFORM set_config('cbshm.context',
			   (context || jsonb_build_object('name', b.name))::text, true);
	UPDATE cbshm.breaker AS w SET
		disabled = b.disabled,
		disabled_by = b.disabled_by,
		disabled_reason = b.disabled_reason,
		disabled_until = b.disabled_until,
		consecutive_failures = b.consecutive_failures,
		last_failure_at = b.last_failure_at
	WHERE w.name = b.name
	RETURNING w.* INTO STRICT written;
	PERFORM set_config('cbshm.context', '', true);
	RETURN written;
END
$$;

-- Creates a breaker, closed, unless it is there. Waits for somebody else who is just creating it.
CREATE FUNCTION cbshm.create_breaker(name text, actor text, proof text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('cbshm.context', jsonb_build_object(
		'name', create_breaker.name,
		'by', cbshm.claimed_by(actor, cbshm.json_object(proof)),
		'proof', cbshm.json_object(proof))::text, true);
	INSERT INTO cbshm.breaker (name) VALUES (create_breaker.name)
	ON CONFLICT ON CONSTRAINT breaker_pkey DO NOTHING;
	PERFORM set_config('cbshm.context', '', true);
END
$$;

-- Who a request says it comes from: who it names, else the user that the agent knows, else the
-- database's.
CREATE FUNCTION cbshm.claimed_by(actor text, proof jsonb) RETURNS text
LANGUAGE sql STABLE AS $$
	SELECT coalesce(actor, CASE WHEN cbshm.is_agent() THEN nullif(proof ->> 'user', '') END,
			session_user)
$$;

-- How long an opening lasts if nobody says; null: until a person closes it.
CREATE FUNCTION cbshm.default_until(b cbshm.breaker) RETURNS timestamptz
LANGUAGE sql VOLATILE AS $$
	SELECT clock_timestamp()
		+ nullif(make_interval(secs => extract(epoch FROM coalesce(b.default_ttl,
									   s.default_ttl))::float8),
			 interval '0')
	FROM cbshm.settings s
$$;

CREATE FUNCTION cbshm.is_due(b cbshm.breaker) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
	SELECT b.disabled AND coalesce(b.disabled_until <= clock_timestamp(), false)
		AND coalesce(b.auto_recover, s.auto_recover)
	FROM cbshm.settings s
$$;

CREATE FUNCTION cbshm.close_expired(b cbshm.breaker, proof text) RETURNS cbshm.breaker
LANGUAGE plpgsql AS $$
BEGIN
	b.disabled := false;
	RETURN cbshm.write(b, jsonb_build_object(
		'action', 'recover',
		'by', 'system-auto-recover',
		'notes', 'Auto-recovered after TTL expired',
		'proof', cbshm.json_object(proof)));
END
$$;

-- ---- the operations on a locked row ---------------------------------------------------------

-- Reports have crossed a threshold. b carries the counters as they are to be.
CREATE FUNCTION cbshm.trip(b cbshm.breaker, severity text, reason text, score float8, count bigint,
			   details text, proof text) RETURNS cbshm.breaker
LANGUAGE plpgsql AS $$
BEGIN
	b.disabled := true;
	b.disabled_by := 'circuit_breaker';
	b.disabled_reason := reason;
	b.disabled_until := cbshm.default_until(b);
	RETURN cbshm.write(b, jsonb_build_object(
		'action', 'trip',
		'by', b.disabled_by,
		'severity', severity,
		'score', score,
		'samples', count,
		'details', details::jsonb,
		'ttl_is_default', true,
		'proof', cbshm.json_object(proof)));
END
$$;

-- What only counts is not written yet: see flush().
CREATE FUNCTION cbshm.drift(b cbshm.breaker, fleet cbshm.settings, score float8, count bigint,
			    details text, proof text) RETURNS cbshm.breaker
LANGUAGE plpgsql AS $$
DECLARE
	threshold float8 := coalesce(b.drift_threshold, fleet.drift_threshold);
BEGIN
	IF score > threshold THEN
		b.consecutive_failures := least(b.consecutive_failures, 2147483646) + 1;
		b.last_failure_at := clock_timestamp();
		IF NOT b.disabled AND b.consecutive_failures
		   >= coalesce(b.failure_threshold, fleet.failure_threshold) THEN
			RETURN cbshm.trip(b, 'P1',
				format('Drift exceeded threshold: %s > %s',
				       to_char(score, 'FM0.0000'), threshold),
				score, count, details, proof);
		END IF;
	ELSE
		b.consecutive_failures := 0;
	END IF;
	RETURN b;
END
$$;

CREATE FUNCTION cbshm.schema_error(b cbshm.breaker, fleet cbshm.settings, count bigint,
				   details text, proof text) RETURNS cbshm.breaker
LANGUAGE plpgsql AS $$
DECLARE
	threshold int := coalesce(b.schema_error_threshold, fleet.schema_error_threshold);
BEGIN
	IF count >= threshold AND NOT b.disabled THEN
		RETURN cbshm.trip(b, 'P3',
			format('Schema error threshold exceeded: %s >= %s', count, threshold),
			1.0, count, details, proof);
	END IF;
	RETURN b;
END
$$;

-- Writes what drift() has only counted.
CREATE FUNCTION cbshm.flush(b cbshm.breaker, written cbshm.breaker) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	IF (b.consecutive_failures, b.last_failure_at)
	   IS DISTINCT FROM (written.consecutive_failures, written.last_failure_at) THEN
		PERFORM cbshm.write(b, '{}');
	END IF;
END
$$;

-- Opens by hand, or moves an open one on to another incident, or returns it as it was.
CREATE FUNCTION cbshm.open_by_hand(b cbshm.breaker, reason text, actor text, until timestamptz,
				   ttl interval, request_id uuid, proof text) RETURNS cbshm.breaker
LANGUAGE plpgsql AS $$
DECLARE
	left_out boolean := until IS NULL AND ttl IS NULL;
	ends timestamptz := CASE
		WHEN left_out THEN cbshm.default_until(b)
		WHEN until IS NOT NULL THEN nullif(until, 'infinity')
		ELSE clock_timestamp() + make_interval(secs => extract(epoch FROM ttl)::float8) END;
BEGIN
	IF b.disabled AND b.disabled_reason = reason
	   AND (b.disabled_until IS NOT DISTINCT FROM ends
		OR left_out AND EXISTS (SELECT FROM cbshm.incident i
					WHERE i.id = b.incident_id AND i.ttl_is_default)) THEN
		RETURN b;
	END IF;
	b.disabled := true;
	b.disabled_by := cbshm.claimed_by(actor, cbshm.json_object(proof));
	b.disabled_reason := reason;
	b.disabled_until := ends;
	RETURN cbshm.write(b, jsonb_build_object(
		'action', 'disable',
		'by', b.disabled_by,
		'severity', 'P2',
		'details', jsonb_build_object('manual_disable', true),
		'ttl_is_default', left_out,
		'request_id', request_id,
		'proof', cbshm.json_object(proof)));
END
$$;

CREATE FUNCTION cbshm.close_by_hand(b cbshm.breaker, actor text, reason text, request_id uuid,
				    proof text) RETURNS cbshm.breaker
LANGUAGE plpgsql AS $$
BEGIN
	IF NOT b.disabled THEN
		RETURN b;
	END IF;
	b.disabled := false;
	RETURN cbshm.write(b, jsonb_build_object(
		'action', 'enable',
		'by', cbshm.claimed_by(actor, cbshm.json_object(proof)),
		'notes', coalesce(reason, 'Manual reset'),
		'request_id', request_id,
		'proof', cbshm.json_object(proof)));
END
$$;

-- The incident that a change of a row has begun; null if none.
CREATE FUNCTION cbshm.begun(was cbshm.breaker, is_now cbshm.breaker) RETURNS jsonb
LANGUAGE sql STABLE AS $$
	SELECT cbshm.incident_json(i) FROM cbshm.incident i
	WHERE i.id = is_now.incident_id AND is_now.incident_id IS DISTINCT FROM was.incident_id
$$;

-- ---- requests that may be repeated ----------------------------------------------------------

-- The answer that a request with this id has had before; nulls if it is the first, which then is
-- remembered. Of two sessions that come with one id at once, the second waits for the first.
CREATE FUNCTION cbshm.claim_request(request_id uuid, kind text, name text) RETURNS cbshm.request
LANGUAGE plpgsql AS $$
DECLARE
	earlier cbshm.request;
BEGIN
	INSERT INTO cbshm.request (request_id, kind, name)
	VALUES (claim_request.request_id, claim_request.kind, claim_request.name)
	ON CONFLICT ON CONSTRAINT request_pkey DO NOTHING;
	IF NOT FOUND THEN
		SELECT * INTO STRICT earlier FROM cbshm.request q
		WHERE q.request_id = claim_request.request_id;
	END IF;
	RETURN earlier;
END
$$;

-- Each batch that brings request ids takes away more old ones than it brings.
CREATE FUNCTION cbshm.forget_requests(brought int) RETURNS void
LANGUAGE sql VOLATILE AS $$
	DELETE FROM cbshm.request WHERE request_id IN (
		SELECT q.request_id FROM cbshm.request q
		WHERE q."time" < clock_timestamp() - interval '1 day'
		ORDER BY q."time" LIMIT 2 * brought + 8 FOR UPDATE SKIP LOCKED)
$$;

-- A disable or an enable, unless its request id says that it has been carried out before.
CREATE FUNCTION cbshm.by_hand(INOUT b cbshm.breaker, kind text, reason text, actor text,
			      until timestamptz, ttl interval, request_id uuid, proof text,
			      OUT field text, OUT message text, OUT changed boolean,
			      OUT incident jsonb)
LANGUAGE plpgsql AS $$
DECLARE
	was cbshm.breaker := b;
	earlier cbshm.request;
BEGIN
	-- The row may have been waited for longer than `until` allows.
	message := cbshm.until_problem(until);
	IF message IS NOT NULL AND NOT EXISTS (SELECT FROM cbshm.request q
					       WHERE q.request_id = by_hand.request_id) THEN
		field := 'until';
		RETURN;
	END IF;
	message := NULL;
	IF request_id IS NOT NULL THEN
		earlier := cbshm.claim_request(request_id, kind, b.name);
	END IF;
	IF (earlier.kind, earlier.name) <> (kind, b.name) THEN
		field := 'request_id';
		message := cbshm.request_problem(earlier);
	ELSIF earlier.request_id IS NOT NULL THEN
		changed := earlier.changed;
		incident := earlier.incident;
	ELSE
		IF kind = 'disable' THEN
			b := cbshm.open_by_hand(b, reason, actor, until, ttl, request_id, proof);
			incident := cbshm.begun(was, b);
		ELSE
			b := cbshm.close_by_hand(b, actor, reason, request_id, proof);
		END IF;
		changed := b.version <> was.version;
		UPDATE cbshm.request AS q SET changed = by_hand.changed, incident = by_hand.incident
		WHERE q.request_id = by_hand.request_id;
	END IF;
END
$$;

-- ---- apply ----------------------------------------------------------------------------------

-- Creates the breakers of these names that are missing, in the order given.
CREATE FUNCTION cbshm.create_breakers(names text[], actors text[], proofs text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
	r record;
BEGIN
	FOR r IN
		SELECT * FROM unnest(names, actors, proofs) WITH ORDINALITY
			AS u(name, actor, proof, n)
		WHERE NOT EXISTS (SELECT FROM cbshm.breaker b WHERE b.name = u.name)
		ORDER BY u.n
	LOOP
		PERFORM cbshm.create_breaker(r.name, r.actor, r.proof);
	END LOOP;
END
$$;

-- Creates and locks the rows of these names, which come sorted, each once; says which it got.
-- Creation goes first: whoever waits for a creator then holds no existing row that the creator
-- may be waiting for.
CREATE FUNCTION cbshm.lock_breakers(names text[], actors text[], proofs text[], wait boolean)
RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
	locked text[];
BEGIN
	LOOP
		PERFORM cbshm.create_breakers(names, actors, proofs);
		IF wait THEN
			SELECT array_agg(l.name) INTO locked
			FROM (SELECT b.name FROM cbshm.breaker b WHERE b.name = ANY (names)
			      ORDER BY b.name FOR UPDATE) l;
		ELSE
			SELECT array_agg(l.name) INTO locked
			FROM (SELECT b.name FROM cbshm.breaker b WHERE b.name = ANY (names)
			      ORDER BY b.name FOR UPDATE SKIP LOCKED) l;
		END IF;
		-- A row that is missing although it was waited for has been deleted meanwhile.
		IF NOT wait OR cardinality(names) = coalesce(cardinality(locked), 0) THEN
			RETURN coalesce(locked, '{}');
		END IF;
	END LOOP;
END
$$;

-- Locks the rows that the sound requests of a batch are about.
CREATE FUNCTION cbshm.lock_batch(name text[], actor text[], proof text[], message text[],
				 wait boolean) RETURNS text[]
LANGUAGE sql VOLATILE AS $$
	SELECT cbshm.lock_breakers(coalesce(array_agg(d.name ORDER BY d.name), '{}'),
				   array_agg(d.actor ORDER BY d.name),
				   array_agg(d.proof ORDER BY d.name), coalesce(wait, false))
	FROM (SELECT DISTINCT ON (u.name COLLATE "C") u.name COLLATE "C" AS name, u.actor, u.proof
	      FROM unnest(name, actor, proof, message) WITH ORDINALITY
		AS u(name, actor, proof, message, n)
	      WHERE u.message IS NULL
	      ORDER BY u.name COLLATE "C", u.n) d
$$;

-- Many requests, in one transaction: see cbshm-sql(7). They are taken breaker by breaker, those of
-- one breaker in the order of the arrays, so that a row is read once, and written once for any
-- number of drift reports that only count.
CREATE FUNCTION cbshm.apply(kind text[], name text[], score float8[], count bigint[],
			    details text[], reason text[], actor text[], until timestamptz[],
			    ttl interval[], request_id uuid[], proof text[], wait boolean)
RETURNS TABLE ("position" int, outcome text, field text, message text, changed boolean,
	       incident jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
	fields text[];
	messages text[];
	locked text[];
	is_locked boolean;
	fleet cbshm.settings;
	b cbshm.breaker;       -- the row as the requests have made it so far
	was cbshm.breaker;     -- the row before the request at hand
	written cbshm.breaker; -- the row as the table has it
	done record;
	r record;
BEGIN
	IF (cardinality(kind) = ALL (ARRAY[cardinality(name), cardinality(score),
		cardinality(count), cardinality(details), cardinality(reason),
		cardinality(actor), cardinality(until), cardinality(ttl),
		cardinality(request_id), cardinality(proof)])) IS NOT TRUE THEN
		RAISE EXCEPTION 'the arrays given to cbshm.apply() must be of the same length'
			USING ERRCODE = 'invalid_parameter_value';
	END IF;
	SELECT array_agg(p.field ORDER BY u.n), array_agg(p.message ORDER BY u.n)
	INTO fields, messages
	FROM unnest(kind, name, score, count, details, reason, actor, until, ttl, request_id)
		WITH ORDINALITY AS u(kind, name, score, count, details, reason, actor, until, ttl,
				     request_id, n),
		cbshm.problem(u.kind, u.name, u.score, u.count, u.details, u.reason, u.actor,
			      u.until, u.ttl, u.request_id) p;
	locked := cbshm.lock_batch(name, actor, proof, messages, wait);
	SELECT * INTO STRICT fleet FROM cbshm.settings;

	FOR r IN
		SELECT * FROM unnest(kind, name, score, count, details, reason, actor, until, ttl,
				     request_id, proof, fields, messages)
			WITH ORDINALITY AS u(kind, name, score, count, details, reason, actor,
					     until, ttl, request_id, proof, field, message, n)
		ORDER BY u.message IS NOT NULL, u.name COLLATE "C", u.n
	LOOP
		"position" := r.n;
		field := r.field;
		message := r.message;
		changed := NULL;
		incident := NULL;
		IF message IS NOT NULL THEN
			outcome := 'invalid';
			RETURN NEXT;
			CONTINUE;
		END IF;
		IF r.name IS DISTINCT FROM b.name THEN
			PERFORM cbshm.flush(b, written);
			SELECT * INTO b FROM cbshm.breaker t WHERE t.name = r.name;
			b.name := r.name;
			written := b;
			is_locked := r.name = ANY (locked);
		END IF;
		IF NOT is_locked THEN
			outcome := 'locked';
			RETURN NEXT;
			CONTINUE;
		END IF;

		-- A TTL that has passed has ended the opening for every reader, even if no agent
		-- has committed that yet: a report or a disable finds the breaker closed.
		IF r.kind <> 'enable' AND b.disabled_until IS NOT NULL AND cbshm.is_due(b) THEN
			b := cbshm.close_expired(b, r.proof);
			written := b;
		END IF;
		was := b;
		IF r.kind = 'report_drift' THEN
			b := cbshm.drift(b, fleet, r.score, r.count, r.details, r.proof);
		ELSIF r.kind = 'report_schema_error' THEN
			b := cbshm.schema_error(b, fleet, r.count, r.details, r.proof);
		ELSE
			SELECT * INTO done FROM cbshm.by_hand(b, r.kind, r.reason, r.actor, r.until,
							      r.ttl, r.request_id, r.proof);
			b := done.b;
			field := done.field;
			message := done.message;
			changed := done.changed;
			incident := done.incident;
		END IF;
		IF r.kind IN ('report_drift', 'report_schema_error') THEN
			changed := b.disabled AND NOT was.disabled;
			IF changed THEN
				incident := cbshm.begun(was, b);
			END IF;
		END IF;
		IF b.version <> written.version THEN
			written := b;
		END IF;
		outcome := CASE WHEN message IS NULL THEN 'ok' ELSE 'invalid' END;
		RETURN NEXT;
	END LOOP;
	PERFORM cbshm.flush(b, written);
	IF cardinality(array_remove(request_id, NULL)) > 0 THEN
		PERFORM cbshm.forget_requests(cardinality(request_id));
	END IF;
END
$$;

-- ---- the operations, for callers from SQL ---------------------------------------------------

-- One request, waiting for its row; what is wrong with it is an error, its field in the detail.
CREATE FUNCTION cbshm.apply_one(kind text, name text, score float8 DEFAULT NULL,
				count bigint DEFAULT NULL, details text DEFAULT NULL,
				reason text DEFAULT NULL, actor text DEFAULT NULL,
				until timestamptz DEFAULT NULL, ttl interval DEFAULT NULL,
				request_id uuid DEFAULT NULL,
				OUT changed boolean, OUT incident jsonb)
LANGUAGE plpgsql AS $$
DECLARE
	done record;
BEGIN
	SELECT * INTO STRICT done FROM cbshm.apply(
		ARRAY[kind], ARRAY[name], ARRAY[score], ARRAY[count], ARRAY[details],
		ARRAY[reason], ARRAY[actor], ARRAY[until], ARRAY[ttl], ARRAY[request_id],
		ARRAY[NULL::text], true);
	IF done.outcome <> 'ok' THEN
		RAISE EXCEPTION '%', done.message
			USING ERRCODE = 'invalid_parameter_value', DETAIL = done.field;
	END IF;
	changed := done.changed;
	incident := done.incident;
END
$$;

CREATE FUNCTION cbshm.report_drift(name text, score float8, samples bigint,
				   details jsonb DEFAULT NULL) RETURNS jsonb
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT incident FROM cbshm.apply_one('report_drift', name, score => score, count => samples,
					     details => details::text)
$$;

CREATE FUNCTION cbshm.report_schema_error(name text, count bigint, details jsonb DEFAULT NULL)
RETURNS jsonb
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT incident FROM cbshm.apply_one('report_schema_error', name, count => count,
					     details => details::text)
$$;

CREATE FUNCTION cbshm.disable(name text, reason text, by text DEFAULT NULL,
			      until timestamptz DEFAULT NULL, ttl interval DEFAULT NULL,
			      request_id uuid DEFAULT NULL,
			      OUT changed boolean, OUT incident jsonb)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT * FROM cbshm.apply_one('disable', name, reason => reason, actor => by,
				      until => until, ttl => ttl, request_id => request_id)
$$;

CREATE FUNCTION cbshm.enable(name text, by text DEFAULT NULL, reason text DEFAULT NULL,
			     request_id uuid DEFAULT NULL) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT changed FROM cbshm.apply_one('enable', name, reason => reason, actor => by,
					    request_id => request_id)
$$;

CREATE FUNCTION cbshm.reset(name text, by text DEFAULT NULL, reason text DEFAULT NULL,
			    request_id uuid DEFAULT NULL) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT cbshm.enable(name, by, reason, request_id)
$$;

-- The first look takes no lock: most callers come for nothing, and must not queue up for the row.
CREATE FUNCTION cbshm.recover(name text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	b cbshm.breaker;
BEGIN
	SELECT * INTO b FROM cbshm.breaker t WHERE t.name = recover.name;
	IF cbshm.is_due(b) IS NOT TRUE THEN
		RETURN false;
	END IF;
	SELECT * INTO b FROM cbshm.breaker t WHERE t.name = recover.name FOR UPDATE;
	IF cbshm.is_due(b) IS NOT TRUE THEN
		RETURN false;
	END IF;
	PERFORM cbshm.close_expired(b, NULL);
	RETURN true;
END
$$;

-- ---- questions ------------------------------------------------------------------------------

CREATE FUNCTION cbshm.get_state(name text)
RETURNS TABLE (is_open boolean, opened_at timestamptz, reason text, incident_id uuid,
	       consecutive_failures int, last_failure_at timestamptz, disabled_until timestamptz,
	       disabled_by text, version bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT b.disabled, b.opened_at, b.disabled_reason, b.incident_id, b.consecutive_failures,
		b.last_failure_at, b.disabled_until, b.disabled_by, b.version
	FROM cbshm.breaker b
	WHERE b.name = get_state.name
$$;

-- The query is put together so that each of its four forms finds its own index.
CREATE FUNCTION cbshm.newest_incidents(name text, include_resolved boolean, "limit" int)
RETURNS SETOF cbshm.incident
LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF ("limit" BETWEEN 1 AND 1000) IS NOT TRUE THEN
		RAISE EXCEPTION 'limit must be from 1 to 1000; it is %',
			coalesce("limit"::text, 'null')
			USING ERRCODE = 'invalid_parameter_value', DETAIL = 'limit';
	END IF;
	RETURN QUERY EXECUTE 'SELECT * FROM cbshm.incident i WHERE true'
		|| CASE WHEN name IS NULL THEN '' ELSE ' AND i.breaker = $1' END
		|| CASE WHEN include_resolved THEN '' ELSE ' AND i.resolved_at IS NULL' END
		|| ' ORDER BY i."timestamp" DESC LIMIT $2'
		USING name, "limit";
END
$$;

CREATE FUNCTION cbshm.get_incidents(name text DEFAULT NULL, include_resolved boolean DEFAULT false,
				    "limit" int DEFAULT 10)
RETURNS TABLE (id uuid, breaker text, "timestamp" timestamptz, reason text, severity text,
	       drift_score float8, sample_count bigint, details jsonb, resolved boolean,
	       resolved_at timestamptz, resolved_by text, resolution_notes text,
	       alert_sent boolean, alert_sent_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT i.id, i.breaker, i."timestamp", i.reason, i.severity, i.drift_score, i.sample_count,
		i.details, i.resolved, i.resolved_at, i.resolved_by, i.resolution_notes,
		i.alert_sent, i.alert_sent_at
	FROM cbshm.newest_incidents(name, include_resolved, "limit") i
$$;

CREATE FUNCTION cbshm.incidents_json(name text, include_resolved boolean, "limit" int) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(jsonb_agg(cbshm.incident_json(i) ORDER BY i."timestamp" DESC), '[]')
	FROM cbshm.newest_incidents(name, include_resolved, "limit") i
$$;

-- ---- policy ---------------------------------------------------------------------------------

-- Why a field of a policy cannot have this value; null if it can. JSON null is seen to elsewhere.
CREATE FUNCTION cbshm.policy_problem(field text, value jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
	number numeric := CASE WHEN jsonb_typeof(value) = 'number' THEN value::numeric END;
BEGIN
	IF field = 'drift_threshold' AND (number BETWEEN 0 AND 1) IS NOT TRUE THEN
		RETURN format('drift_threshold must be a number from 0 to 1; it is %s', value);
	ELSIF field IN ('failure_threshold', 'schema_error_threshold')
	      AND (number BETWEEN 1 AND 2147483647 AND number = trunc(number)) IS NOT TRUE THEN
		RETURN format('%s must be a whole number from 1 to 2147483647; it is %s', field,
			      value);
	ELSIF field = 'default_ttl_seconds'
	      AND (number = 0 OR number BETWEEN 0.000001 AND 315360000) IS NOT TRUE THEN
		RETURN format('default_ttl_seconds must be 0 (an opening does not end by itself) '
			      'or up to 315360000; it is %s', value);
	ELSIF field = 'auto_recover' AND jsonb_typeof(value) <> 'boolean' THEN
		RETURN format('auto_recover must be true or false; it is %s', value);
	ELSIF field NOT IN ('drift_threshold', 'failure_threshold', 'schema_error_threshold',
			    'default_ttl_seconds', 'auto_recover') THEN
		RETURN format('a policy has no field "%s"', field);
	END IF;
	RETURN NULL;
END
$$;

CREATE FUNCTION cbshm.check_policy(name text, changes jsonb, actor text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
	field text;
	message text;
BEGIN
	IF name IS NOT NULL THEN
		field := 'name';
		message := cbshm.text_problem('name', name, 128, false);
	END IF;
	IF message IS NULL AND actor IS NOT NULL THEN
		field := 'by';
		message := cbshm.text_problem('by', actor, 128, false);
	END IF;
	IF message IS NULL AND jsonb_typeof(changes) IS DISTINCT FROM 'object' THEN
		field := 'changes';
		message := 'changes must be a JSON object';
	END IF;
	IF message IS NULL THEN
		SELECT c.key, p.problem INTO field, message
		FROM jsonb_each(changes) c, LATERAL (SELECT CASE
			WHEN c.value <> 'null' THEN cbshm.policy_problem(c.key, c.value)
			WHEN cbshm.policy_problem(c.key, '{}') LIKE 'a policy has no%'
			THEN cbshm.policy_problem(c.key, '{}')
			WHEN check_policy.name IS NULL
			THEN format('%s of the fleet cannot follow the fleet: give a value', c.key)
			END AS problem) p
		WHERE p.problem IS NOT NULL ORDER BY c.key LIMIT 1;
	END IF;
	IF message IS NOT NULL THEN
		RAISE EXCEPTION '%', message
			USING ERRCODE = 'invalid_parameter_value', DETAIL = field;
	END IF;
END
$$;

-- A small number of seconds must not come out as an error of underflow: hence round().
CREATE FUNCTION cbshm.policy_columns(changes jsonb, OUT drift_threshold float8,
				     OUT failure_threshold int, OUT schema_error_threshold int,
				     OUT default_ttl interval, OUT auto_recover boolean)
LANGUAGE sql IMMUTABLE AS $$
	SELECT round((changes ->> 'drift_threshold')::numeric, 100)::float8,
		(changes ->> 'failure_threshold')::numeric::int,
		(changes ->> 'schema_error_threshold')::numeric::int,
		make_interval(secs => round((changes ->> 'default_ttl_seconds')::numeric,
					    6)::float8),
		(changes ->> 'auto_recover')::boolean
$$;

CREATE FUNCTION cbshm.set_fleet_policy(changes jsonb) RETURNS void
LANGUAGE sql VOLATILE AS $$
	UPDATE cbshm.settings AS s SET
		drift_threshold = coalesce(p.drift_threshold, s.drift_threshold),
		failure_threshold = coalesce(p.failure_threshold, s.failure_threshold),
		schema_error_threshold = coalesce(p.schema_error_threshold,
						  s.schema_error_threshold),
		default_ttl = coalesce(p.default_ttl, s.default_ttl),
		auto_recover = coalesce(p.auto_recover, s.auto_recover)
	FROM cbshm.policy_columns(changes) p
$$;

CREATE FUNCTION cbshm.set_breaker_policy(name text, changes jsonb) RETURNS void
LANGUAGE sql VOLATILE AS $$
	UPDATE cbshm.breaker AS b SET
		drift_threshold = CASE WHEN changes ? 'drift_threshold'
			THEN p.drift_threshold ELSE b.drift_threshold END,
		failure_threshold = CASE WHEN changes ? 'failure_threshold'
			THEN p.failure_threshold ELSE b.failure_threshold END,
		schema_error_threshold = CASE WHEN changes ? 'schema_error_threshold'
			THEN p.schema_error_threshold ELSE b.schema_error_threshold END,
		default_ttl = CASE WHEN changes ? 'default_ttl_seconds'
			THEN p.default_ttl ELSE b.default_ttl END,
		auto_recover = CASE WHEN changes ? 'auto_recover'
			THEN p.auto_recover ELSE b.auto_recover END
	FROM cbshm.policy_columns(changes) p
	WHERE b.name = set_breaker_policy.name
$$;

-- name null: the fleet's defaults. A field that is null in changes follows the fleet again; no
-- field at all only reads.
CREATE FUNCTION cbshm.set_policy_json(name text, changes jsonb, actor text DEFAULT NULL,
				      proof text DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cbshm.check_policy(name, changes, actor);
	IF changes = '{}' THEN
		RETURN cbshm.policy_json(name);
	END IF;
	IF name IS NOT NULL THEN
		PERFORM cbshm.lock_breakers(ARRAY[name], ARRAY[actor], ARRAY[proof], true);
	END IF;
	PERFORM set_config('cbshm.context', jsonb_build_object(
		'name', name,
		'by', cbshm.claimed_by(actor, cbshm.json_object(proof)),
		'proof', cbshm.json_object(proof))::text, true);
	IF name IS NULL THEN
		PERFORM cbshm.set_fleet_policy(changes);
	ELSE
		PERFORM cbshm.set_breaker_policy(name, changes);
	END IF;
	PERFORM set_config('cbshm.context', '', true);
	RETURN cbshm.policy_json(name);
END
$$;

-- The same with a parameter for each field. null leaves a field as it is; follow_fleet names those
-- that are to follow the fleet's default again.
CREATE FUNCTION cbshm.set_policy(name text, drift_threshold float8 DEFAULT NULL,
				 failure_threshold int DEFAULT NULL,
				 schema_error_threshold int DEFAULT NULL,
				 default_ttl interval DEFAULT NULL,
				 auto_recover boolean DEFAULT NULL,
				 follow_fleet text[] DEFAULT '{}', by text DEFAULT NULL)
RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	changes jsonb := jsonb_strip_nulls(jsonb_build_object(
		'drift_threshold', drift_threshold,
		'failure_threshold', failure_threshold,
		'schema_error_threshold', schema_error_threshold,
		'default_ttl_seconds', extract(epoch FROM default_ttl),
		'auto_recover', auto_recover));
	field text;
BEGIN
	FOREACH field IN ARRAY coalesce(follow_fleet, '{}') LOOP
		field := CASE field WHEN 'default_ttl' THEN 'default_ttl_seconds' ELSE field END;
		IF changes ? field THEN
			RAISE EXCEPTION '% cannot be set and follow the fleet at once', field
				USING ERRCODE = 'invalid_parameter_value', DETAIL = field;
		END IF;
		changes := changes || jsonb_build_object(field, NULL);
	END LOOP;
	RETURN cbshm.set_policy_json(name, changes, by);
END
$$;

-- ---- agents ---------------------------------------------------------------------------------

CREATE FUNCTION cbshm.heartbeat(host text, instance text, agent_version text, applied bigint)
RETURNS timestamptz
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	INSERT INTO cbshm.agent AS a (host, instance, version, applied)
	VALUES (heartbeat.host, heartbeat.instance, agent_version, heartbeat.applied)
	ON CONFLICT ON CONSTRAINT agent_pkey DO UPDATE SET
		version = excluded.version,
		applied = excluded.applied,
		last_seen_at = clock_timestamp()
	RETURNING clock_timestamp()
$$;
