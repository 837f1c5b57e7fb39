-- 0007_reports.sql - many reports on a breaker cost hardly more than one
--
-- SPDX-License-Identifier: ISC
--
-- cbshm.report() is apply() for batches that hold reports and nothing else: names and proofs come once
-- each, the reports of one breaker are folded in a loop that touches no table, and all rows that
-- only count are written by one UPDATE. What a report does is said in one place, fold(), for both.

-- What is made here belongs to the owner of all the rest.
SET LOCAL ROLE cbshm_owner;

-- ---- what a report does -----------------------------------------------------------------------

-- Counts the reports first to last on a locked row, in their order: drift with its score, a schema error
-- without one. Stops behind a report that opens the breaker and says which; trip_by() opens it then.
-- Writes nothing.
CREATE FUNCTION cbshm.fold(INOUT b cbshm.breaker, fleet cbshm.settings, score float8[],
			   count bigint[], first int, last int, OUT tripped int)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	threshold float8 := coalesce(b.drift_threshold, fleet.drift_threshold);
	-- null while it is open: then nothing reaches them
	failures_max bigint := CASE WHEN NOT b.disabled
		THEN coalesce(b.failure_threshold, fleet.failure_threshold) END;
	errors_max bigint := CASE WHEN NOT b.disabled
		THEN coalesce(b.schema_error_threshold, fleet.schema_error_threshold) END;
	failures bigint := b.consecutive_failures;
	has_failed boolean := false;
BEGIN
	FOR i IN first..last LOOP
		IF score[i] > threshold THEN
			failures := failures + 1;
			has_failed := true;
			IF failures >= failures_max THEN
				tripped := i;
				EXIT;
			END IF;
		ELSIF score[i] IS NOT NULL THEN
			failures := 0;
		ELSIF count[i] >= errors_max THEN
			tripped := i;
			EXIT;
		END IF;
	END LOOP;
	b.consecutive_failures := least(failures, 2147483647);
	IF has_failed THEN
		b.last_failure_at := clock_timestamp();
	END IF;
END
$$;

-- Opens the breaker for the report at which fold() has stopped.
CREATE FUNCTION cbshm.trip_by(b cbshm.breaker, fleet cbshm.settings, score float8, count bigint,
			      details text, proof text) RETURNS cbshm.breaker
LANGUAGE plpgsql AS $$
BEGIN
	IF score IS NULL THEN
		RETURN cbshm.trip(b, 'P3',
			format('Schema error threshold exceeded: %s >= %s', count,
			       coalesce(b.schema_error_threshold, fleet.schema_error_threshold)),
			1.0, count, details, proof);
	END IF;
	RETURN cbshm.trip(b, 'P1',
		format('Drift exceeded threshold: %s > %s', to_char(score, 'FM0.0000'),
		       coalesce(b.drift_threshold, fleet.drift_threshold)),
		score, count, details, proof);
END
$$;

-- Many requests, in one transaction: see cbshm-sql(7). They are taken breaker by breaker, those of
-- one breaker in the order of the arrays, so that a row is read once, and written once for any
-- number of drift reports that only count.
CREATE OR REPLACE FUNCTION cbshm.apply(kind text[], name text[], score float8[], count bigint[],
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
	folded record;
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
		IF r.kind IN ('report_drift', 'report_schema_error') THEN
			folded := cbshm.fold(b, fleet, ARRAY[CASE r.kind WHEN 'report_drift'
							     THEN r.score END],
					     ARRAY[r.count], 1, 1);
			b := folded.b;
			changed := folded.tripped IS NOT NULL;
			IF changed THEN
				b := cbshm.trip_by(b, fleet, CASE r.kind WHEN 'report_drift'
							     THEN r.score END,
						   r.count, r.details, r.proof);
				incident := cbshm.begun(was, b);
			END IF;
		ELSE
			SELECT * INTO done FROM cbshm.by_hand(b, r.kind, r.reason, r.actor, r.until,
							      r.ttl, r.request_id, r.proof);
			b := done.b;
			field := done.field;
			message := done.message;
			changed := done.changed;
			incident := done.incident;
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

DROP FUNCTION cbshm.drift;
DROP FUNCTION cbshm.schema_error;

-- ---- batches of reports -----------------------------------------------------------------------

-- Are these JSON objects, or null? The block that catches the error writes nothing, so it costs no
-- transaction id.
CREATE FUNCTION cbshm.are_json_objects(said text[]) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
	RETURN (SELECT coalesce(bool_and(octet_length(s) <= 65536
					 AND jsonb_typeof(s::jsonb) = 'object'), true)
		FROM unnest(said) s WHERE s IS NOT NULL);
EXCEPTION WHEN data_exception OR program_limit_exceeded OR statement_too_complex THEN
	RETURN false;
END
$$;

-- Is there a drift report of no samples at all? (A schema error may count none.)
CREATE FUNCTION cbshm.has_empty_drift(score float8[], count bigint[]) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	RETURN EXISTS (SELECT FROM unnest(score, count) AS u(score, count)
		       WHERE u.score IS NOT NULL AND u.count < 1);
END
$$;

-- The same reports through apply(), which finds the bad ones and refuses them alone.
CREATE FUNCTION cbshm.report_singly(name text[], last int[], score float8[], count bigint[],
				    details text[], prover int[], proof text[], wait boolean)
RETURNS TABLE ("position" int, outcome text, field text, message text, changed boolean,
	       incident jsonb)
LANGUAGE sql VOLATILE AS $$
	SELECT a.*
	FROM (SELECT array_agg(CASE WHEN u.score IS NULL THEN 'report_schema_error'
				    ELSE 'report_drift' END ORDER BY u.n) AS kind,
		     array_agg(name[1 + width_bucket(u.n::int - 1, last)] ORDER BY u.n) AS name,
		     array_agg(details[u.n] ORDER BY u.n) AS details,
		     array_agg(proof[u.prover] ORDER BY u.n) AS proof,
		     array_agg(NULL::text) AS nothing
	      FROM unnest(score, prover) WITH ORDINALITY AS u(score, prover, n)) r,
	     cbshm.apply(r.kind, r.name, score, count, r.details, r.nothing, r.nothing,
			 r.nothing::timestamptz[], r.nothing::interval[], r.nothing::uuid[],
			 r.proof, wait) a
	WHERE (a.outcome, a.changed) IS DISTINCT FROM ('ok', false)
$$;

-- The rows that only count, in one UPDATE. It finds them by their names, however few the planner takes the
-- table's rows for; nothing else runs below these settings.
CREATE FUNCTION cbshm.write_counters(names text[], failures int[], failed_at timestamptz[])
RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
	UPDATE cbshm.breaker AS w SET
		consecutive_failures = u.failures,
		last_failure_at = u.failed_at
	FROM unnest(names, failures, failed_at) AS u(name, failures, failed_at)
	WHERE w.name = u.name;
END
$$;

-- Creates the breakers that are missing, if their names are sound; with `wait`, waits for all rows.
-- False: there was nothing to do.
CREATE FUNCTION cbshm.prepare_reported(name text[], last int[], prover int[], proof text[],
				       wait boolean) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
	names text[];
	proofs text[];
BEGIN
	SELECT array_agg(u.name ORDER BY u.n),
		array_agg(proof[prover[coalesce(last[u.n - 1], 0) + 1]] ORDER BY u.n)
	INTO names, proofs
	FROM unnest(name) WITH ORDINALITY AS u(name, n)
	WHERE cbshm.text_problem('name', u.name, 128, false) IS NULL
	      AND (wait OR NOT EXISTS (SELECT FROM cbshm.breaker b WHERE b.name = u.name));
	IF names IS NULL THEN
		RETURN false;
	END IF;
	PERFORM cbshm.lock_breakers(names, array_fill(NULL::text, ARRAY[cardinality(names)]),
				    proofs, wait);
	RETURN true;
END
$$;

-- Reports in one transaction: see cbshm-sql(7). Those of name[k] end at last[k]; details is null if
-- there are none at all. Tells only of the reports whose answer is not just that they were counted.
-- Each statement is planned once, for arrays of any length.
CREATE FUNCTION cbshm.report(name text[], last int[], score float8[], count bigint[],
			     details text[], prover int[], proof text[], wait boolean)
RETURNS TABLE ("position" int, outcome text, field text, message text, changed boolean,
	       incident jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_variable
DECLARE
	is_sound boolean;
	b cbshm.breaker;       -- the row as the reports have made it so far
	was cbshm.breaker;     -- the row before it was opened
	written cbshm.breaker; -- the row as the table has it
	found int[] := '{}';
	counted text[]; -- what is left to be written
	failures int[];
	failed_at timestamptz[];
	first int;
	folded record;
	r record;
BEGIN
	IF (cardinality(name) = cardinality(last) AND cardinality(score) = cardinality(count)
	    AND cardinality(score) = cardinality(prover)
	    AND cardinality(score) = coalesce(cardinality(details), cardinality(score))
	    AND coalesce(last[cardinality(last)], 0) = cardinality(score)) IS NOT TRUE THEN
		RAISE EXCEPTION 'the arrays given to cbshm.report() do not fit together'
			USING ERRCODE = 'invalid_parameter_value';
	END IF;
	-- What report_problem() says of each, of all at once.
	is_sound := (0 <= ALL (score) AND 1 >= ALL (score)) IS NOT FALSE
		AND (9007199254740991 >= ALL (count) AND 0 <= ALL (count)) IS TRUE
		AND (1 <= ALL (count) OR NOT cbshm.has_empty_drift(score, count))
		AND (details IS NULL OR cbshm.are_json_objects(details));
	IF NOT is_sound THEN
		RETURN QUERY SELECT * FROM cbshm.report_singly(name, last, score, count, details,
							       prover, proof, wait);
		RETURN;
	END IF;
	IF wait THEN
		PERFORM cbshm.prepare_reported(name, last, prover, proof, true);
	END IF;

	LOOP
		counted := '{}';
		failures := '{}';
		failed_at := '{}';
		FOR r IN
			SELECT u.n::int AS n, l.t AS breaker, s AS fleet
			FROM cbshm.settings s, unnest(name) WITH ORDINALITY AS u(name, n),
			     LATERAL (SELECT t FROM cbshm.breaker t WHERE t.name = u.name
				      FOR UPDATE SKIP LOCKED) l
			WHERE u.n <> ALL (found)
		LOOP
			b := r.breaker;
			found := found || r.n;
			first := coalesce(last[r.n - 1], 0) + 1;
			IF b.disabled_until IS NOT NULL AND cbshm.is_due(b) THEN
				b := cbshm.close_expired(b, proof[prover[first]]);
			END IF;
			written := b;
			LOOP
				folded := cbshm.fold(b, r.fleet, score, count, first, last[r.n]);
				b := folded.b;
				EXIT WHEN folded.tripped IS NULL;
				"position" := folded.tripped;
				was := b;
				b := cbshm.trip_by(b, r.fleet, score["position"], count["position"],
						   details["position"], proof[prover["position"]]);
				written := b;
				outcome := 'ok';
				changed := true;
				incident := cbshm.begun(was, b);
				RETURN NEXT;
				first := "position" + 1;
			END LOOP;
			IF (b.consecutive_failures, b.last_failure_at) IS DISTINCT FROM
			   (written.consecutive_failures, written.last_failure_at) THEN
				counted := counted || b.name;
				failures := failures || b.consecutive_failures;
				failed_at := failed_at || b.last_failure_at;
			END IF;
		END LOOP;
		IF cardinality(counted) > 0 THEN
			PERFORM cbshm.write_counters(counted, failures, failed_at);
		END IF;
		EXIT WHEN cardinality(found) = cardinality(name)
			OR NOT cbshm.prepare_reported(name, last, prover, proof, false);
	END LOOP;
	IF cardinality(found) < cardinality(name) THEN
		RETURN QUERY
			SELECT i, CASE WHEN p.message IS NULL THEN 'locked' ELSE 'invalid' END,
				CASE WHEN p.message IS NOT NULL THEN 'name' END, p.message,
				NULL::boolean, NULL::jsonb
			FROM generate_subscripts(name, 1) k,
			     LATERAL (SELECT cbshm.text_problem('name', name[k], 128, false)
				      AS message) p,
			     generate_series(coalesce(last[k - 1], 0) + 1, last[k]) i
			WHERE k <> ALL (found);
	END IF;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA cbshm FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cbshm.report TO cbshm_agent;
