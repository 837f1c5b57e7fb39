-- 0012_batches.sql - what a batch of reports costs
--
-- SPDX-License-Identifier: ISC
--
-- With many clients waiting, how many reports a second are durable is how short a transaction is. Most of one went into
-- what PostgreSQL makes ready for each UPDATE, used or not: the expressions of all CHECK constraints, and the conditions
-- of all triggers that the assigned columns call for. So the rules of the CHECK constraints are kept by the triggers, which
-- now are asked for by the columns they are about; and report() numbers the versions of what it counts itself, reads good
-- reports on quiet breakers without a lock, and returns the rows, so that nothing has to be asked for after it.

-- What is made here belongs to the owner of all the rest.
SET LOCAL ROLE cbshm_owner;

-- ---- what a breaker cannot be ---------------------------------------------------------------

ALTER TABLE cbshm.breaker
	DROP CONSTRAINT name_of_1_to_128_bytes,
	DROP CONSTRAINT name_without_control_characters,
	DROP CONSTRAINT disabled_by_of_1_to_128_bytes,
	DROP CONSTRAINT disabled_by_without_control_characters,
	DROP CONSTRAINT disabled_reason_of_1_to_1024_bytes,
	DROP CONSTRAINT disabled_reason_without_control_characters,
	DROP CONSTRAINT disabled_until_before_year_10000,
	DROP CONSTRAINT last_failure_at_before_year_10000,
	DROP CONSTRAINT consecutive_failures_at_least_0,
	DROP CONSTRAINT drift_threshold_from_0_to_1,
	DROP CONSTRAINT failure_threshold_at_least_1,
	DROP CONSTRAINT schema_error_threshold_at_least_1,
	DROP CONSTRAINT default_ttl_from_0_to_3650_days,
	DROP CONSTRAINT open_or_closed_as_a_whole;

-- The rule that a row breaks, the first in the order of their names; null if none. As with CHECK, null breaks nothing.
CREATE FUNCTION cbshm.broken_rule(b cbshm.breaker) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	RETURN CASE
	WHEN b.consecutive_failures < 0 THEN 'consecutive_failures_at_least_0'
	WHEN b.default_ttl NOT BETWEEN interval '0' AND interval '3650 days'
	THEN 'default_ttl_from_0_to_3650_days'
	WHEN octet_length(b.disabled_by) NOT BETWEEN 1 AND 128 THEN 'disabled_by_of_1_to_128_bytes'
	WHEN b.disabled_by ~ '[\u0001-\u001f\u007f-\u009f]'
	THEN 'disabled_by_without_control_characters'
	WHEN octet_length(b.disabled_reason) NOT BETWEEN 1 AND 1024
	THEN 'disabled_reason_of_1_to_1024_bytes'
	WHEN b.disabled_reason ~ '[\u0001-\u0008\u000b-\u001f\u007f-\u009f]'
	THEN 'disabled_reason_without_control_characters'
	WHEN NOT isfinite(b.disabled_until) OR b.disabled_until >= '10000-01-01 00:00:00+00'
	THEN 'disabled_until_before_year_10000'
	WHEN b.drift_threshold NOT BETWEEN 0 AND 1 THEN 'drift_threshold_from_0_to_1'
	WHEN b.failure_threshold < 1 THEN 'failure_threshold_at_least_1'
	WHEN NOT isfinite(b.last_failure_at) OR b.last_failure_at >= '10000-01-01 00:00:00+00'
	THEN 'last_failure_at_before_year_10000'
	WHEN octet_length(b.name) NOT BETWEEN 1 AND 128 THEN 'name_of_1_to_128_bytes'
	WHEN b.name ~ '[\u0001-\u001f\u007f-\u009f]' THEN 'name_without_control_characters'
	WHEN b.schema_error_threshold < 1 THEN 'schema_error_threshold_at_least_1'
	END;
END
$$;

-- Said as a CHECK constraint says it, for programs that look at the name of the constraint.
CREATE FUNCTION cbshm.check_breaker(b cbshm.breaker) RETURNS void
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
	broken text := cbshm.broken_rule(b);
BEGIN
	IF broken IS NOT NULL THEN
		RAISE EXCEPTION 'new row for relation "breaker" violates check constraint "%"', broken
			USING ERRCODE = 'check_violation', SCHEMA = 'cbshm', TABLE = 'breaker',
			CONSTRAINT = broken;
	END IF;
END
$$;

-- ---- the triggers ---------------------------------------------------------------------------

-- As in 0001, and checks the row. A version is the owner's to set, see outlive() and report(): there it does not come here.
CREATE OR REPLACE FUNCTION cbshm.breaker_before() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	moment timestamptz := clock_timestamp();
	was cbshm.breaker; -- all null for a new row
BEGIN
	IF TG_OP = 'UPDATE' THEN
		was := OLD;
	END IF;
	NEW.version := was.version;
	NEW.created_at := coalesce(was.created_at, moment);
	NEW.updated_at := was.updated_at;
	NEW.opened_at := was.opened_at;
	NEW.incident_id := was.incident_id;
	IF NEW.disabled THEN
		NEW.disabled_by := coalesce(NEW.disabled_by, session_user);
		NEW.disabled_reason := coalesce(NEW.disabled_reason, 'No reason given');
		NEW.disabled_until := nullif(NEW.disabled_until, 'infinity');
		IF was.disabled IS NOT TRUE
		   OR (NEW.name, NEW.disabled_reason, NEW.disabled_until)
		      IS DISTINCT FROM (was.name, was.disabled_reason, was.disabled_until) THEN
			NEW.opened_at := moment;
			NEW.incident_id := gen_random_uuid();
		END IF;
	ELSE
		NEW.disabled_by := NULL;
		NEW.disabled_reason := NULL;
		NEW.disabled_until := NULL;
		NEW.opened_at := NULL;
		NEW.incident_id := NULL;
		IF was.disabled THEN
			NEW.consecutive_failures := 0;
		END IF;
	END IF;
	IF NEW.name IS DISTINCT FROM was.name THEN
		SELECT 1 + greatest(max(t.version), was.version, 0) INTO NEW.version
		FROM cbshm.tombstone t WHERE t.name = NEW.name;
	ELSIF NEW IS DISTINCT FROM OLD THEN
		NEW.version := was.version + 1;
	ELSE
		RETURN NEW;
	END IF;
	NEW.updated_at := moment;
	PERFORM cbshm.check_breaker(NEW);
	RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION cbshm.breaker_counts() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF (OLD.consecutive_failures, OLD.last_failure_at)
	   IS DISTINCT FROM (NEW.consecutive_failures, NEW.last_failure_at) THEN
		NEW.version := OLD.version + 1;
		NEW.updated_at := clock_timestamp();
		PERFORM cbshm.check_breaker(NEW);
	END IF;
	RETURN NEW;
END
$$;

-- Tells of a row whose counters alone have changed; of the others breaker_after_update does.
CREATE OR REPLACE FUNCTION cbshm.breaker_counted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF OLD.version <> NEW.version
	   AND (OLD.name, OLD.disabled, OLD.disabled_by, OLD.disabled_reason, OLD.opened_at,
		OLD.disabled_until, OLD.incident_id, OLD.drift_threshold, OLD.failure_threshold,
		OLD.schema_error_threshold, OLD.default_ttl, OLD.auto_recover)
	       IS NOT DISTINCT FROM
	       (NEW.name, NEW.disabled, NEW.disabled_by, NEW.disabled_reason, NEW.opened_at,
		NEW.disabled_until, NEW.incident_id, NEW.drift_threshold, NEW.failure_threshold,
		NEW.schema_error_threshold, NEW.default_ttl, NEW.auto_recover) THEN
		PERFORM pg_notify('cbshm', format('n %s %s', NEW.version, NEW.name));
	END IF;
	RETURN NULL;
END
$$;

-- What a statement does not assign, it does not change: so triggers name the columns they are about, and others cost
-- nothing. breaker_before_version is for who assigns nothing else; breaker_before_update comes before it and leaves it
-- nothing to find but a version that has risen, which then rises to the same. Triggers fire in the order of their names.
DROP TRIGGER breaker_before_update ON cbshm.breaker;
CREATE TRIGGER breaker_before_update BEFORE UPDATE OF
	name, disabled, disabled_by, disabled_reason, opened_at, disabled_until, incident_id,
	drift_threshold, failure_threshold, schema_error_threshold, default_ttl, auto_recover,
	created_at ON cbshm.breaker
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
CREATE TRIGGER breaker_before_version BEFORE UPDATE OF version, updated_at ON cbshm.breaker
	FOR EACH ROW WHEN (current_user <> 'cbshm_owner')
	EXECUTE FUNCTION cbshm.breaker_before();
DROP TRIGGER breaker_counts ON cbshm.breaker;
CREATE TRIGGER breaker_counts BEFORE UPDATE OF consecutive_failures, last_failure_at ON cbshm.breaker
	FOR EACH ROW WHEN (OLD.version = NEW.version)
	EXECUTE FUNCTION cbshm.breaker_counts();
DROP TRIGGER breaker_after_update ON cbshm.breaker;
CREATE TRIGGER breaker_after_update AFTER UPDATE OF
	name, disabled, disabled_by, disabled_reason, opened_at, disabled_until, incident_id,
	drift_threshold, failure_threshold, schema_error_threshold, default_ttl, auto_recover
	ON cbshm.breaker
	FOR EACH ROW WHEN (
		(OLD.name, OLD.disabled, OLD.disabled_by, OLD.disabled_reason, OLD.opened_at,
		 OLD.disabled_until, OLD.incident_id, OLD.drift_threshold, OLD.failure_threshold,
		 OLD.schema_error_threshold, OLD.default_ttl, OLD.auto_recover)
		IS DISTINCT FROM
		(NEW.name, NEW.disabled, NEW.disabled_by, NEW.disabled_reason, NEW.opened_at,
		 NEW.disabled_until, NEW.incident_id, NEW.drift_threshold, NEW.failure_threshold,
		 NEW.schema_error_threshold, NEW.default_ttl, NEW.auto_recover))
	EXECUTE FUNCTION cbshm.breaker_after();
-- cbshm.quiet is set by report() alone; who sets it otherwise only delays what others see of his own counters.
DROP TRIGGER breaker_counted ON cbshm.breaker;
CREATE TRIGGER breaker_counted AFTER UPDATE OF
	consecutive_failures, last_failure_at, version, updated_at ON cbshm.breaker
	FOR EACH ROW WHEN (current_setting('cbshm.quiet', true) IS DISTINCT FROM 'on')
	EXECUTE FUNCTION cbshm.breaker_counted();

CREATE OR REPLACE FUNCTION cbshm.outlive(b cbshm.breaker) RETURNS cbshm.breaker
LANGUAGE plpgsql AS $$
DECLARE
	moved cbshm.breaker;
BEGIN
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		-- The snapshot may be too old to show their tombstone. The conflict shows it, as
		-- an error: could not serialize access.
		INSERT INTO cbshm.tombstone (name, version) VALUES (b.name, b.version - 1)
		ON CONFLICT (name) DO NOTHING;
	END IF;
	UPDATE cbshm.breaker AS w SET version = t.version + 1, updated_at = clock_timestamp()
	FROM cbshm.tombstone t
	WHERE w.name = b.name AND t.name = b.name AND t.version >= b.version
	RETURNING w.* INTO moved;
	RETURN CASE WHEN FOUND THEN moved ELSE b END;
END
$$;

-- ---- what a report does ---------------------------------------------------------------------

-- Counts the reports first to last on a row, in their order: drift with its score, a schema error without one. Stops behind
-- a report that opens the breaker and says which. Nothing opens one that is open.
CREATE FUNCTION cbshm.count_reports(b cbshm.breaker, fleet cbshm.settings, score float8[],
				    count bigint[], first int, last int,
				    OUT failures bigint, OUT has_failed boolean, OUT tripped int)
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
	threshold float8 := coalesce(b.drift_threshold, fleet.drift_threshold);
	failures_max bigint := CASE WHEN NOT b.disabled
		THEN coalesce(b.failure_threshold, fleet.failure_threshold) END;
	errors_max bigint := CASE WHEN NOT b.disabled
		THEN coalesce(b.schema_error_threshold, fleet.schema_error_threshold) END;
BEGIN
	failures := b.consecutive_failures;
	has_failed := false;
	FOR i IN first..last LOOP
		IF score[i] > threshold THEN
			failures := least(failures, 2147483646) + 1;
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
END
$$;

-- The same, and leaves it in the row. Writes nothing; trip_by() opens the breaker where it has stopped.
CREATE OR REPLACE FUNCTION cbshm.fold(INOUT b cbshm.breaker, fleet cbshm.settings, score float8[],
				      count bigint[], first int, last int, OUT tripped int)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	counted record := cbshm.count_reports(b, fleet, score, count, first, last);
BEGIN
	tripped := counted.tripped;
	b.consecutive_failures := counted.failures;
	IF counted.has_failed THEN
		b.last_failure_at := clock_timestamp();
	END IF;
END
$$;

-- ---- batches of reports ---------------------------------------------------------------------

-- A row as agents copy it.
CREATE FUNCTION cbshm.mirrored(b cbshm.breaker, fleet cbshm.settings) RETURNS cbshm.mirror
LANGUAGE sql STABLE AS $$
	SELECT (b.name, b.version, b.disabled, b.disabled_by, b.disabled_reason, b.opened_at,
		b.disabled_until, b.incident_id, b.consecutive_failures, b.last_failure_at,
		b.updated_at,
		coalesce(b.drift_threshold, fleet.drift_threshold),
		coalesce(b.failure_threshold, fleet.failure_threshold),
		coalesce(b.schema_error_threshold, fleet.schema_error_threshold),
		(extract(epoch FROM coalesce(b.default_ttl, fleet.default_ttl)) * 1000000)::bigint,
		coalesce(b.auto_recover, fleet.auto_recover))::cbshm.mirror
$$;

-- The rows that only count, in one UPDATE, by whoever holds their locks: that is report(), whose agent tells of them, hence
-- quiet.
DROP FUNCTION cbshm.write_counters;
CREATE FUNCTION cbshm.write_counters(names text[], failures int[], has_failed boolean[],
				     fleet cbshm.settings) RETURNS SETOF cbshm.mirror
LANGUAGE plpgsql AS $$
DECLARE
	said text := set_config('cbshm.quiet', 'on', true);
BEGIN
	RETURN QUERY
		UPDATE cbshm.breaker AS w SET
			consecutive_failures = u.failures,
			last_failure_at = CASE WHEN u.has_failed THEN clock_timestamp()
					       ELSE w.last_failure_at END,
			version = w.version + 1,
			updated_at = clock_timestamp()
		FROM unnest(names, failures, has_failed) AS u(name, failures, has_failed)
		WHERE w.name = u.name
		RETURNING (cbshm.mirrored(w, fleet)).*;
	said := set_config('cbshm.quiet', '', true);
END
$$;

-- The reports first to last on a locked row that has expired, or that some of them open: which ones, and the incidents.
-- What was counted after that is in b, and yet to be written.
CREATE FUNCTION cbshm.report_openings(INOUT b cbshm.breaker, fleet cbshm.settings, score float8[],
				      count bigint[], details text[], prover int[], proof text[],
				      first int, last int, OUT positions int[],
				      OUT incidents jsonb[], OUT written cbshm.breaker)
LANGUAGE plpgsql AS $$
DECLARE
	folded record;
BEGIN
	IF b.disabled_until <= clock_timestamp()
	   AND coalesce(b.auto_recover, fleet.auto_recover) THEN
		b := cbshm.close_expired(b, proof[prover[first]]);
	END IF;
	LOOP
		written := b;
		folded := cbshm.fold(b, fleet, score, count, first, last);
		b := folded.b;
		EXIT WHEN folded.tripped IS NULL;
		b := cbshm.trip_by(b, fleet, score[folded.tripped], count[folded.tripped],
				   details[folded.tripped], proof[prover[folded.tripped]]);
		positions := positions || folded.tripped;
		incidents := incidents || cbshm.begun(written, b);
		first := folded.tripped + 1;
	END LOOP;
END
$$;

-- Reports in one transaction: see cbshm-sql(7). Those of name[k] end at last[k]; details is null if there are none at all.
-- Each statement is planned once, for arrays of any length, and finds rows by their names, however few the table had then: a
-- million may come before anybody analyzes it. (What that makes a plan seem to cost would have it compiled.) Few expressions:
-- every transaction makes each of them ready anew.
DROP FUNCTION cbshm.report;
CREATE FUNCTION cbshm.report(name text[], last int[], score float8[], count bigint[],
			     details text[], prover int[], proof text[], wait boolean)
RETURNS TABLE ("position" int, outcome text, field text, message text, changed boolean,
	       incident jsonb, is_now cbshm.mirror)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_variable
DECLARE
	fleet cbshm.settings;
	dealt int[] := '{}'; -- the names that are done
	counted text[];      -- the rows that are yet to be written
	failures int[];
	has_failed boolean[];
	openings record;
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
	IF NOT ((0 <= ALL (score) AND 1 >= ALL (score)) IS NOT FALSE
		AND (9007199254740991 >= ALL (count) AND 0 <= ALL (count)) IS TRUE
		AND (1 <= ALL (count) OR NOT cbshm.has_empty_drift(score, count))
		AND (details IS NULL OR cbshm.are_json_objects(details))) THEN
		RETURN QUERY SELECT * FROM cbshm.report_singly(name, last, score, count, details,
							       prover, proof, wait);
		RETURN;
	END IF;
	SELECT * INTO STRICT fleet FROM cbshm.settings;

	-- A good report on a quiet breaker changes nothing, and needs no lock: it has been applied to the row as it was when
	-- it was read, whatever others were about to do. Not in a snapshot that is older than the report; nor tried where all
	-- but certainly one is bad.
	IF (fleet.drift_threshold >= ALL (score)) IS NOT FALSE
	   AND current_setting('transaction_isolation') = 'read committed' THEN
		FOR r IN
			SELECT u.n::int AS n, cbshm.mirrored(t, fleet) AS is_now
			FROM unnest(name) WITH ORDINALITY AS u(name, n)
			     JOIN cbshm.breaker t ON t.name = u.name,
			     cbshm.count_reports(t, fleet, score, count,
						 coalesce(last[u.n - 1], 0) + 1, last[u.n]) f
			WHERE f.failures = t.consecutive_failures AND NOT f.has_failed
			      AND f.tripped IS NULL
			      AND (t.disabled_until <= clock_timestamp()) IS NOT TRUE
		LOOP
			dealt := dealt || r.n;
			is_now := r.is_now;
			RETURN NEXT;
		END LOOP;
		-- What was read may have been committed for this server only, by one that was ended while it waited for a
		-- synchronous standby. With this, our commit waits until the standby has it.
		IF cardinality(dealt) > 0 AND current_setting('synchronous_standby_names') <> '' THEN
			PERFORM pg_logical_emit_message(true, 'cbshm', '');
		END IF;
		IF cardinality(dealt) = cardinality(name) THEN
			RETURN;
		END IF;
	END IF;

	IF wait THEN
		PERFORM cbshm.prepare_reported(name, last, prover, proof, true);
	END IF;
	LOOP
		FOR r IN
			SELECT u.n::int AS n, l.t AS breaker, l.f,
				(l.t).name AS name, (l.f).failures AS failures,
				(l.f).has_failed AS has_failed,
				(l.f).tripped IS NOT NULL
				OR coalesce((l.t).disabled_until <= clock_timestamp(), false) AS moves,
				(l.f).failures <> (l.t).consecutive_failures OR (l.f).has_failed AS counts
			FROM unnest(name) WITH ORDINALITY AS u(name, n),
			     LATERAL (SELECT t, cbshm.count_reports(
						t, fleet, score, count,
						coalesce(last[u.n - 1], 0) + 1, last[u.n]) AS f
				      FROM cbshm.breaker t WHERE t.name = u.name
				      FOR UPDATE SKIP LOCKED) l
			WHERE u.n <> ALL (dealt)
		LOOP
			dealt := dealt || r.n;
			IF NOT r.moves AND r.counts THEN
				counted := counted || r.name;
				failures := failures || r.failures::int;
				has_failed := has_failed || r.has_failed;
				CONTINUE;
			END IF;
			openings := cbshm.report_openings(
				r.breaker, fleet, score, count, details, prover, proof,
				coalesce(last[r.n - 1], 0) + 1, last[r.n]);
			RETURN QUERY
				SELECT o.n, 'ok', NULL::text, NULL::text, true, o.incident,
					NULL::cbshm.mirror
				FROM unnest(openings.positions, openings.incidents) AS o(n, incident);
			IF ((openings.b).consecutive_failures, (openings.b).last_failure_at)
			   IS DISTINCT FROM ((openings.written).consecutive_failures,
					     (openings.written).last_failure_at) THEN
				counted := counted || (openings.b).name;
				failures := failures || (openings.b).consecutive_failures;
				has_failed := has_failed
					|| ((openings.b).last_failure_at
					    IS DISTINCT FROM (openings.written).last_failure_at);
			ELSE
				is_now := cbshm.mirrored(openings.b, fleet);
				RETURN NEXT;
			END IF;
		END LOOP;
		EXIT WHEN cardinality(dealt) = cardinality(name)
			OR NOT cbshm.prepare_reported(name, last, prover, proof, false);
	END LOOP;
	IF counted IS NOT NULL THEN
		RETURN QUERY
			SELECT NULL::int, NULL::text, NULL::text, NULL::text, NULL::boolean,
				NULL::jsonb, w::cbshm.mirror
			FROM cbshm.write_counters(counted, failures, has_failed, fleet) w;
	END IF;
	IF cardinality(dealt) < cardinality(name) THEN
		RETURN QUERY
			SELECT i, CASE WHEN p.message IS NULL THEN 'locked' ELSE 'invalid' END,
				CASE WHEN p.message IS NOT NULL THEN 'name' END, p.message,
				NULL::boolean, NULL::jsonb, NULL::cbshm.mirror
			FROM generate_subscripts(name, 1) k,
			     LATERAL (SELECT cbshm.text_problem('name', name[k], 128, false)
				      AS message) p,
			     generate_series(coalesce(last[k - 1], 0) + 1, last[k]) i
			WHERE k <> ALL (dealt);
	END IF;
END
$$;

-- The same reports through apply(), which finds the bad ones and refuses them alone.
DROP FUNCTION cbshm.report_singly;
CREATE FUNCTION cbshm.report_singly(name text[], last int[], score float8[], count bigint[],
				    details text[], prover int[], proof text[], wait boolean)
RETURNS TABLE ("position" int, outcome text, field text, message text, changed boolean,
	       incident jsonb, is_now cbshm.mirror)
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
	RETURN QUERY
		SELECT a.*, NULL::cbshm.mirror
		FROM (SELECT array_agg(CASE WHEN u.score IS NULL THEN 'report_schema_error'
					    ELSE 'report_drift' END ORDER BY u.n) AS kind,
			     array_agg(name[1 + width_bucket(u.n::int - 1, last)] ORDER BY u.n)
				AS name,
			     array_agg(details[u.n] ORDER BY u.n) AS details,
			     array_agg(proof[u.prover] ORDER BY u.n) AS proof,
			     array_agg(NULL::text) AS nothing
		      FROM unnest(score, prover) WITH ORDINALITY AS u(score, prover, n)) r,
		     cbshm.apply(r.kind, r.name, score, count, r.details, r.nothing, r.nothing,
				 r.nothing::timestamptz[], r.nothing::interval[],
				 r.nothing::uuid[], r.proof, wait) a
		WHERE (a.outcome, a.changed) IS DISTINCT FROM ('ok', false);
	-- In a statement of its own, which sees what that one has done.
	RETURN QUERY
		SELECT NULL::int, NULL::text, NULL::text, NULL::text, NULL::boolean, NULL::jsonb, m
		FROM cbshm.mirror m WHERE m.name = ANY (report_singly.name);
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA cbshm FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cbshm.report TO cbshm_agent;
