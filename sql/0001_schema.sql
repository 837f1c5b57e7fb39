-- 0001_schema.sql - the tables of cbshm, and the triggers that every write to a breaker passes
--
-- SPDX-License-Identifier: ISC
--
-- What follows from a change of a breaker's row (version, incident, alert, audit, notification)
-- happens here, in triggers, so that it happens whoever makes the change: the functions of
-- 0002_functions.sql, psql, or another service's ORM. Who may do what is in 0003_roles.sql.

DO $$
BEGIN
	IF current_setting('server_version_num')::int < 130000 THEN
		RAISE EXCEPTION 'cbshm needs PostgreSQL 13 or newer; this server is %',
			current_setting('server_version');
	END IF;
	IF getdatabaseencoding() <> 'UTF8' THEN
		RAISE EXCEPTION 'cbshm needs a database whose encoding is UTF8; this one has %',
			getdatabaseencoding()
			USING HINT = 'Create it with: CREATE DATABASE ... '
				'ENCODING ''UTF8'' TEMPLATE template0';
	END IF;
END
$$;

CREATE SCHEMA cbshm;
COMMENT ON SCHEMA cbshm IS 'Circuit breakers mirrored into shared memory; see cbshm-sql(7)';

CREATE TABLE cbshm.schema_version (
	version int PRIMARY KEY,
	applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	file text NOT NULL
);

-- ---- tables -------------------------------------------------------------------------------

-- The fleet's defaults: one row, changed live.
CREATE TABLE cbshm.settings (
	id boolean PRIMARY KEY DEFAULT true,
	drift_threshold float8 NOT NULL DEFAULT 0.2,
	failure_threshold int NOT NULL DEFAULT 3,
	schema_error_threshold int NOT NULL DEFAULT 5,
	default_ttl interval NOT NULL DEFAULT interval '24 hours',
	auto_recover boolean NOT NULL DEFAULT true,
	version bigint NOT NULL DEFAULT 1,
	updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	CONSTRAINT settings_is_one_row CHECK (id),
	CONSTRAINT drift_threshold_from_0_to_1 CHECK (drift_threshold BETWEEN 0 AND 1),
	CONSTRAINT failure_threshold_at_least_1 CHECK (failure_threshold >= 1),
	CONSTRAINT schema_error_threshold_at_least_1 CHECK (schema_error_threshold >= 1),
	CONSTRAINT default_ttl_from_0_to_3650_days
		CHECK (default_ttl BETWEEN interval '0' AND interval '3650 days')
);
INSERT INTO cbshm.settings DEFAULT VALUES;
-- Unless the planner knows that it is one row, it takes the view below for far larger than it is.
ANALYZE cbshm.settings;

-- One row a breaker. Names sort by bytes: that is the order in which rows are locked.
-- The room left in each page lets counters change without touching an index.
CREATE TABLE cbshm.breaker (
	name text COLLATE "C" PRIMARY KEY,
	disabled boolean NOT NULL DEFAULT false,
	disabled_by text,
	disabled_reason text,
	opened_at timestamptz,
	disabled_until timestamptz,
	incident_id uuid,
	consecutive_failures int NOT NULL DEFAULT 0,
	last_failure_at timestamptz,
	version bigint NOT NULL DEFAULT 1,
	drift_threshold float8,
	failure_threshold int,
	schema_error_threshold int,
	default_ttl interval,
	auto_recover boolean,
	created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	CONSTRAINT name_of_1_to_128_bytes CHECK (octet_length(name) BETWEEN 1 AND 128),
	CONSTRAINT name_without_control_characters
		CHECK (name !~ '[\u0001-\u001f\u007f-\u009f]'),
	CONSTRAINT disabled_by_of_1_to_128_bytes
		CHECK (octet_length(disabled_by) BETWEEN 1 AND 128),
	CONSTRAINT disabled_by_without_control_characters
		CHECK (disabled_by !~ '[\u0001-\u001f\u007f-\u009f]'),
	CONSTRAINT disabled_reason_of_1_to_1024_bytes
		CHECK (octet_length(disabled_reason) BETWEEN 1 AND 1024),
	CONSTRAINT disabled_reason_without_control_characters
		CHECK (disabled_reason !~ '[\u0001-\u0008\u000b-\u001f\u007f-\u009f]'),
	CONSTRAINT disabled_until_before_year_10000
		CHECK (isfinite(disabled_until) AND disabled_until < '10000-01-01 00:00:00+00'),
	CONSTRAINT last_failure_at_before_year_10000
		CHECK (isfinite(last_failure_at) AND last_failure_at < '10000-01-01 00:00:00+00'),
	CONSTRAINT consecutive_failures_at_least_0 CHECK (consecutive_failures >= 0),
	CONSTRAINT drift_threshold_from_0_to_1 CHECK (drift_threshold BETWEEN 0 AND 1),
	CONSTRAINT failure_threshold_at_least_1 CHECK (failure_threshold >= 1),
	CONSTRAINT schema_error_threshold_at_least_1 CHECK (schema_error_threshold >= 1),
	CONSTRAINT default_ttl_from_0_to_3650_days
		CHECK (default_ttl BETWEEN interval '0' AND interval '3650 days'),
	CONSTRAINT open_or_closed_as_a_whole CHECK (
		CASE WHEN disabled
		THEN num_nulls(disabled_by, disabled_reason, opened_at, incident_id) = 0
		ELSE num_nonnulls(disabled_by, disabled_reason, opened_at, disabled_until,
				  incident_id) = 0
		END)
) WITH (fillfactor = 80);
CREATE INDEX breaker_open ON cbshm.breaker (disabled_until) WHERE disabled;

-- The last version of names that have been deleted: versions of a name never go back.
CREATE TABLE cbshm.tombstone (
	name text COLLATE "C" PRIMARY KEY,
	version bigint NOT NULL
);

-- The durable record of one opening.
CREATE TABLE cbshm.incident (
	id uuid PRIMARY KEY,
	breaker text COLLATE "C" NOT NULL,
	version bigint NOT NULL,
	"timestamp" timestamptz NOT NULL,
	reason text NOT NULL,
	severity text NOT NULL CHECK (severity IN ('P1', 'P2', 'P3')),
	drift_score float8,
	sample_count bigint,
	details jsonb,
	opened_by text NOT NULL,
	disabled_until timestamptz,
	-- Whether whoever opened it left the end to the policy: a repeated disable() compares this.
	ttl_is_default boolean NOT NULL,
	-- What reported it; a label of its alerts, which must be the same at both ends.
	instance text NOT NULL,
	resolved boolean NOT NULL GENERATED ALWAYS AS (resolved_at IS NOT NULL) STORED,
	resolved_at timestamptz,
	resolved_by text,
	resolution_notes text,
	alert_sent boolean NOT NULL DEFAULT false,
	alert_sent_at timestamptz
);
CREATE UNIQUE INDEX incident_open ON cbshm.incident (breaker) WHERE resolved_at IS NULL;
CREATE INDEX incident_open_newest ON cbshm.incident ("timestamp" DESC) WHERE resolved_at IS NULL;
CREATE INDEX incident_breaker_newest ON cbshm.incident (breaker, "timestamp" DESC);
CREATE INDEX incident_newest ON cbshm.incident ("timestamp" DESC);

-- The outbox: what Alertmanager has to be told. payload is one alert of its API v2.
CREATE TABLE cbshm.alert_queue (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	incident_id uuid NOT NULL REFERENCES cbshm.incident (id) ON DELETE CASCADE,
	breaker text COLLATE "C" NOT NULL,
	kind text NOT NULL CHECK (kind IN ('disable', 'enable')),
	status text NOT NULL DEFAULT 'pending'
		CHECK (status IN ('pending', 'sent', 'failed', 'skipped')),
	attempts int NOT NULL DEFAULT 0 CHECK (attempts >= 0),
	next_attempt_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	leased_by text,
	leased_until timestamptz,
	last_error text,
	payload jsonb NOT NULL,
	created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	sent_at timestamptz
) WITH (fillfactor = 80);
CREATE INDEX alert_queue_due ON cbshm.alert_queue (next_attempt_at, id) WHERE status = 'pending';
CREATE INDEX alert_queue_failed ON cbshm.alert_queue (id) WHERE status = 'failed';
CREATE INDEX alert_queue_incident ON cbshm.alert_queue (incident_id);

-- Every change of decision or policy. breaker is null for the fleet's defaults.
CREATE TABLE cbshm.audit_log (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	"time" timestamptz NOT NULL DEFAULT clock_timestamp(),
	breaker text COLLATE "C",
	version bigint NOT NULL,
	action text NOT NULL,
	old_values jsonb NOT NULL,
	new_values jsonb NOT NULL,
	actor text NOT NULL,
	proof jsonb NOT NULL,
	request_id uuid
);
CREATE INDEX audit_log_breaker ON cbshm.audit_log (breaker, id);
CREATE INDEX audit_log_time ON cbshm.audit_log ("time");

-- The answers to requests that may be repeated; kept for a day.
CREATE TABLE cbshm.request (
	request_id uuid PRIMARY KEY,
	kind text NOT NULL,
	name text COLLATE "C" NOT NULL,
	"time" timestamptz NOT NULL DEFAULT clock_timestamp(),
	changed boolean,
	incident jsonb
);
CREATE INDEX request_time ON cbshm.request ("time");

-- The agents, one a host.
CREATE TABLE cbshm.agent (
	host text NOT NULL,
	instance text NOT NULL,
	version text NOT NULL,
	applied bigint NOT NULL,
	first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	last_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (host, instance)
) WITH (fillfactor = 50);

-- What the agents copy into shared memory, the policy as it is in force.
CREATE VIEW cbshm.mirror AS
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
	(extract(epoch FROM coalesce(b.default_ttl, s.default_ttl)) * 1000000)::bigint
		AS default_ttl_us,
	coalesce(b.auto_recover, s.auto_recover) AS auto_recover
FROM cbshm.breaker b CROSS JOIN cbshm.settings s;

-- ---- what a change carries along ------------------------------------------------------------

-- 2030-01-31T18:00:00.000000Z, whatever the session's time zone is.
CREATE FUNCTION cbshm.rfc3339(moment timestamptz) RETURNS text
LANGUAGE sql STABLE AS $$
	SELECT to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$$;

-- The functions of 0002 tell the triggers what the row itself cannot: who asks, how bad it is, the
-- scores. They do so in a setting that lives as long as their one UPDATE; "name" binds it to
-- one breaker (JSON null: to the fleet). Plain SQL sets nothing, and gets {}.
CREATE FUNCTION cbshm.context(about text) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
	said text := current_setting('cbshm.context', true);
BEGIN
	IF coalesce(said, '') = '' OR said::jsonb ->> 'name' IS DISTINCT FROM about THEN
		RETURN '{}';
	END IF;
	RETURN said::jsonb;
END
$$;

-- Is the session an agent's, that may say for whom it speaks?
CREATE FUNCTION cbshm.is_agent() RETURNS boolean
LANGUAGE sql STABLE AS $$
	SELECT coalesce(pg_has_role(session_user, to_regrole('cbshm_agent'), 'MEMBER'), false)
$$;

-- Who is proven to have asked: what the agent has from the kernel, else what the database itself
-- knows of the session.
CREATE FUNCTION cbshm.proof(claimed jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF jsonb_typeof(claimed) = 'object' AND cbshm.is_agent() THEN
		RETURN claimed || jsonb_build_object('session_user', session_user);
	END IF;
	RETURN jsonb_strip_nulls(jsonb_build_object(
		'session_user', session_user,
		'client_addr', host(inet_client_addr()),
		'application_name', current_setting('application_name'),
		'backend_pid', pg_backend_pid()));
END
$$;

-- ---- incidents and alerts -------------------------------------------------------------------

-- One alert as Alertmanager's API v2 takes it. Both ends of an incident have the same labels:
-- by them Alertmanager knows which alert to resolve.
CREATE FUNCTION cbshm.alert_payload(i cbshm.incident) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
	description text := i.reason;
BEGIN
	IF i.drift_score IS NOT NULL THEN
		description := format('%s; drift score %s, %s samples', description, i.drift_score,
				      i.sample_count);
	END IF;
	description := format('%s; opened by %s, %s', description, i.opened_by,
			      coalesce('until ' || cbshm.rfc3339(i.disabled_until),
				       'until somebody closes it'));
	IF i.resolved_at IS NOT NULL THEN
		description := format('%s; closed by %s: %s', description, i.resolved_by,
				      i.resolution_notes);
	END IF;
	RETURN jsonb_strip_nulls(jsonb_build_object(
		'labels', jsonb_build_object(
			'alertname', 'CircuitBreakerOpen',
			'severity', lower(i.severity),
			'component', 'cbshm',
			'circuit_breaker', i.breaker,
			'instance', i.instance,
			'incident_id', i.id),
		'annotations', jsonb_build_object(
			'summary', format('Circuit breaker %s is %s', i.breaker,
					  CASE WHEN i.resolved_at IS NULL THEN 'open'
					       ELSE 'closed' END),
			'description', description),
		'startsAt', cbshm.rfc3339(i."timestamp"),
		'endsAt', cbshm.rfc3339(i.resolved_at)));
END
$$;

CREATE FUNCTION cbshm.queue_alert(i cbshm.incident) RETURNS void
LANGUAGE sql AS $$
	INSERT INTO cbshm.alert_queue (incident_id, breaker, kind, payload)
	VALUES (i.id, i.breaker, CASE WHEN i.resolved_at IS NULL THEN 'disable' ELSE 'enable' END,
		cbshm.alert_payload(i))
$$;

-- Begins the incident that an open row names.
CREATE FUNCTION cbshm.begin_incident(b cbshm.breaker, context jsonb, proof jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
	i cbshm.incident;
BEGIN
	INSERT INTO cbshm.incident (id, breaker, version, "timestamp", reason, severity,
				    drift_score, sample_count, details, opened_by,
				    disabled_until, ttl_is_default, instance)
	VALUES (b.incident_id, b.name, b.version, b.opened_at, b.disabled_reason,
		coalesce(context ->> 'severity', 'P2'),
		(context ->> 'score')::float8,
		(context ->> 'samples')::bigint,
		CASE WHEN context ? 'severity' THEN nullif(context -> 'details', 'null')
		     ELSE '{"manual_disable": true}' END,
		b.disabled_by, b.disabled_until,
		coalesce((context ->> 'ttl_is_default')::boolean, false),
		coalesce(proof ->> 'agent', proof ->> 'host', proof ->> 'client_addr',
			 current_database()))
	RETURNING * INTO i;
	PERFORM cbshm.queue_alert(i);
END
$$;

CREATE FUNCTION cbshm.resolve_incident(id uuid, moment timestamptz, who text, notes text)
RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
	i cbshm.incident;
BEGIN
	UPDATE cbshm.incident SET resolved_at = moment, resolved_by = who, resolution_notes = notes
	WHERE incident.id = resolve_incident.id AND resolved_at IS NULL
	RETURNING * INTO i;
	IF FOUND THEN
		PERFORM cbshm.queue_alert(i);
	END IF;
END
$$;

-- ---- the breaker's triggers -----------------------------------------------------------------

-- Before a row is written: whatever the writer said, it becomes a whole open or a whole closed
-- row with its next version; or stays exactly what it was. version, created_at, updated_at,
-- opened_at and incident_id are never taken from the writer (an ORM writes back what it once read).
CREATE FUNCTION cbshm.breaker_before() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	moment timestamptz := clock_timestamp();
	was cbshm.breaker; -- all null for a new row
	outlived bigint;   -- the version to go beyond, when outlive() asks for that
BEGIN
	IF TG_OP = 'UPDATE' THEN
		was := OLD;
		IF NEW.version > OLD.version THEN
			SELECT t.version INTO outlived FROM cbshm.tombstone t
			WHERE t.name = OLD.name AND t.version >= OLD.version;
		END IF;
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
	ELSIF NEW IS DISTINCT FROM OLD OR outlived IS NOT NULL THEN
		NEW.version := coalesce(outlived, was.version) + 1;
	ELSE
		RETURN NEW;
	END IF;
	NEW.updated_at := moment;
	RETURN NEW;
END
$$;

-- The columns whose changes the audit log tells; {} for no row.
CREATE FUNCTION cbshm.audited(b cbshm.breaker) RETURNS jsonb
LANGUAGE sql STABLE AS $$
	SELECT coalesce(jsonb_strip_nulls(to_jsonb(b)) - '{version,consecutive_failures,
		last_failure_at,created_at,updated_at}'::text[], '{}')
$$;

CREATE FUNCTION cbshm.audit(breaker text, version bigint, action text, was jsonb, becomes jsonb,
			    actor text, proof jsonb, request_id uuid) RETURNS void
LANGUAGE sql AS $$
	INSERT INTO cbshm.audit_log (breaker, version, action, old_values, new_values, actor, proof,
				     request_id)
	SELECT $1, $2, $3,
		coalesce(jsonb_object_agg(key, o.value) FILTER (WHERE o.value IS NOT NULL), '{}'),
		coalesce(jsonb_object_agg(key, n.value) FILTER (WHERE n.value IS NOT NULL), '{}'),
		$6, $7, $8
	FROM jsonb_each(was) o FULL JOIN jsonb_each(becomes) n USING (key)
	WHERE o.value IS DISTINCT FROM n.value
$$;

-- After a change of decision or policy, creation (`was` null) and deletion (`is_now` null)
-- included: incidents, alerts, audit.
CREATE FUNCTION cbshm.record_change(was cbshm.breaker, is_now cbshm.breaker, what text)
RETURNS void
LANGUAGE plpgsql SET timezone = 'UTC' AS $$
DECLARE
	breaker text := coalesce(is_now.name, was.name);
	context jsonb := cbshm.context(breaker);
	proof jsonb := cbshm.proof(context -> 'proof');
	ends boolean := was.incident_id IS NOT NULL
		AND was.incident_id IS DISTINCT FROM is_now.incident_id;
	begins boolean := is_now.incident_id IS NOT NULL
		AND is_now.incident_id IS DISTINCT FROM was.incident_id;
	actor text := coalesce(context ->> 'by', CASE WHEN begins THEN is_now.disabled_by END,
			       session_user);
	notes text;
	action text;
BEGIN
	IF ends THEN
		notes := CASE WHEN begins THEN 'Superseded by incident ' || is_now.incident_id
			      WHEN is_now.name IS NULL THEN 'Breaker ' || what || 'd'
			      ELSE coalesce(context ->> 'notes', 'Manual reset') END;
		PERFORM cbshm.resolve_incident(was.incident_id,
					       coalesce(is_now.updated_at, clock_timestamp()),
					       actor, notes);
	END IF;
	IF begins THEN
		PERFORM cbshm.begin_incident(is_now, context, proof);
	END IF;
	action := CASE WHEN what IS NOT NULL THEN what
		       WHEN begins OR ends
		       THEN coalesce(context ->> 'action',
				     CASE WHEN begins THEN 'disable' ELSE 'enable' END)
		       WHEN was.name IS NULL THEN 'create'
		       WHEN was.disabled_by IS DISTINCT FROM is_now.disabled_by THEN 'change'
		       ELSE 'policy' END;
	PERFORM cbshm.audit(breaker, coalesce(is_now.version, was.version), action,
			    cbshm.audited(was), cbshm.audited(is_now), actor, proof,
			    (context ->> 'request_id')::uuid);
END
$$;

CREATE FUNCTION cbshm.bury(was cbshm.breaker, what text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO cbshm.tombstone AS t (name, version) VALUES (was.name, was.version)
	ON CONFLICT (name) DO UPDATE SET version = greatest(t.version, excluded.version);
	PERFORM cbshm.record_change(was, NULL, what);
	PERFORM pg_notify('cbshm', format('d %s %s', was.version, was.name));
END
$$;

-- A row that has just got its name. Between the moment at which its version was chosen and now,
-- others may have created and deleted a row of that name: then it moves beyond their versions.
CREATE FUNCTION cbshm.outlive(b cbshm.breaker) RETURNS cbshm.breaker
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
	UPDATE cbshm.breaker AS w SET version = t.version + 1
	FROM cbshm.tombstone t
	WHERE w.name = b.name AND t.name = b.name AND t.version >= b.version
	RETURNING w.* INTO moved;
	RETURN CASE WHEN FOUND THEN moved ELSE b END;
END
$$;

CREATE FUNCTION cbshm.welcome(b cbshm.breaker, what text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	b := cbshm.outlive(b);
	PERFORM cbshm.record_change(NULL, b, what);
	PERFORM pg_notify('cbshm', format('c %s %s', b.version, b.name));
END
$$;

CREATE FUNCTION cbshm.breaker_after() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	counted cbshm.breaker;
BEGIN
	IF TG_OP = 'INSERT' THEN
		PERFORM cbshm.welcome(NEW, NULL);
	ELSIF TG_OP = 'DELETE' THEN
		PERFORM cbshm.bury(OLD, 'delete');
	ELSIF OLD.name <> NEW.name THEN
		PERFORM cbshm.bury(OLD, 'rename');
		PERFORM cbshm.welcome(NEW, 'rename');
	ELSIF OLD.version <> NEW.version THEN
		counted := OLD;
		counted.consecutive_failures := NEW.consecutive_failures;
		counted.last_failure_at := NEW.last_failure_at;
		counted.version := NEW.version;
		counted.updated_at := NEW.updated_at;
		IF counted IS DISTINCT FROM NEW THEN
			PERFORM cbshm.record_change(OLD, NEW, NULL);
			PERFORM pg_notify('cbshm', format('c %s %s', NEW.version, NEW.name));
		ELSE
			PERFORM pg_notify('cbshm', format('n %s %s', NEW.version, NEW.name));
		END IF;
	END IF;
	RETURN NULL;
END
$$;

CREATE FUNCTION cbshm.refuse() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RAISE EXCEPTION '% of %.% is refused', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
		USING ERRCODE = 'insufficient_privilege', HINT = TG_ARGV[0];
END
$$;

CREATE TRIGGER breaker_before BEFORE INSERT OR UPDATE ON cbshm.breaker
	FOR EACH ROW EXECUTE FUNCTION cbshm.breaker_before();
CREATE TRIGGER breaker_after AFTER INSERT OR UPDATE OR DELETE ON cbshm.breaker
	FOR EACH ROW EXECUTE FUNCTION cbshm.breaker_after();
CREATE TRIGGER breaker_truncate BEFORE TRUNCATE ON cbshm.breaker
	FOR EACH STATEMENT EXECUTE FUNCTION cbshm.refuse(
		'Agents learn of every row: use DELETE FROM cbshm.breaker.');

-- ---- the fleet's defaults -------------------------------------------------------------------

CREATE FUNCTION cbshm.settings_before() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	NEW.version := OLD.version;
	NEW.updated_at := OLD.updated_at;
	IF NEW IS DISTINCT FROM OLD THEN
		NEW.version := OLD.version + 1;
		NEW.updated_at := clock_timestamp();
	END IF;
	RETURN NEW;
END
$$;

CREATE FUNCTION cbshm.settings_after() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	context jsonb := cbshm.context(NULL);
	unaudited text[] := '{id,version,updated_at}';
BEGIN
	IF OLD.version <> NEW.version THEN
		PERFORM cbshm.audit(NULL, NEW.version, 'policy', to_jsonb(OLD) - unaudited,
				    to_jsonb(NEW) - unaudited,
				    coalesce(context ->> 'by', session_user),
				    cbshm.proof(context -> 'proof'), NULL);
		PERFORM pg_notify('cbshm', 's');
	END IF;
	RETURN NULL;
END
$$;

CREATE TRIGGER settings_before BEFORE UPDATE ON cbshm.settings
	FOR EACH ROW EXECUTE FUNCTION cbshm.settings_before();
CREATE TRIGGER settings_after AFTER UPDATE ON cbshm.settings
	FOR EACH ROW EXECUTE FUNCTION cbshm.settings_after();
CREATE TRIGGER settings_stay BEFORE DELETE OR TRUNCATE ON cbshm.settings
	FOR EACH STATEMENT EXECUTE FUNCTION cbshm.refuse(
		'Every policy rests on this row: use UPDATE cbshm.settings.');

-- ---- the audit log only grows ---------------------------------------------------------------

-- Rows never change. Old ones may be removed by the table's owner, as whom nobody can log in.
CREATE FUNCTION cbshm.audit_log_stays() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF TG_OP = 'DELETE' AND current_user =
	   (SELECT pg_get_userbyid(c.relowner) FROM pg_class c WHERE c.oid = TG_RELID) THEN
		RETURN NULL;
	END IF;
	RAISE EXCEPTION '% of cbshm.audit_log is refused', TG_OP
		USING ERRCODE = 'insufficient_privilege',
		HINT = 'To remove old rows: SET ROLE cbshm_owner; '
			'DELETE FROM cbshm.audit_log WHERE ...';
END
$$;

CREATE TRIGGER audit_log_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON cbshm.audit_log
	FOR EACH STATEMENT EXECUTE FUNCTION cbshm.audit_log_stays();
