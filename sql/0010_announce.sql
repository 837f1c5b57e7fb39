-- 0010_announce.sql - the notification of a changed decision brings the row along
--
-- SPDX-License-Identifier: ISC
--
-- So no agent has to ask for it: a decision reaches every host as fast as the notification does, and a thousand agents cost
-- the server a thousand messages instead of a thousand queries. What mere counters do is asked for, once a second.

-- What is made here belongs to the owner of all the rest.
SET LOCAL ROLE cbshm_owner;

-- Anybody who may connect to the database may notify. So that nobody but the triggers can put a row into segments, what they
-- say is sealed with a key that only the agents are given. An old notification that somebody repeats does no harm: its version is old.
CREATE TABLE cbshm.secret (
	key bytea NOT NULL
);
INSERT INTO cbshm.secret
VALUES (sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')));

CREATE FUNCTION cbshm.seal(said text) RETURNS text
LANGUAGE sql STABLE AS $$
	SELECT encode(sha256(s.key || sha256(s.key || convert_to(said, 'UTF8'))), 'hex')
	FROM cbshm.secret s
$$;

-- Microseconds since the Unix epoch; '' = null.
CREATE FUNCTION cbshm.microseconds(moment timestamptz) RETURNS text
LANGUAGE sql STABLE AS $$
	SELECT coalesce((extract(epoch FROM moment) * 1000000)::bigint::text, '')
$$;

-- 'c VERSION NAME', and behind it, each after a character that no text of a breaker may hold, the version of the
-- settings, what cbshm.mirror shows of the row, and last the seal of all that. The policy in it is that of these settings:
-- an agent that has loaded others asks for the row after all.
CREATE FUNCTION cbshm.announce(b cbshm.breaker) RETURNS void
LANGUAGE plpgsql SET extra_float_digits = 1 AS $$
DECLARE
	s cbshm.settings;
	said text;
BEGIN
	SELECT * INTO STRICT s FROM cbshm.settings;
	said := concat_ws(E'\x01',
		format('c %s %s', b.version, b.name),
		s.version,
		b.disabled::int,
		coalesce(b.disabled_by, ''),
		coalesce(b.disabled_reason, ''),
		cbshm.microseconds(b.opened_at),
		cbshm.microseconds(b.disabled_until),
		coalesce(b.incident_id::text, ''),
		b.consecutive_failures,
		cbshm.microseconds(b.last_failure_at),
		cbshm.microseconds(b.updated_at),
		coalesce(b.drift_threshold, s.drift_threshold),
		coalesce(b.failure_threshold, s.failure_threshold),
		coalesce(b.schema_error_threshold, s.schema_error_threshold),
		(extract(epoch FROM coalesce(b.default_ttl, s.default_ttl)) * 1000000)::bigint,
		coalesce(b.auto_recover, s.auto_recover)::int);
	PERFORM pg_notify('cbshm', said || E'\x01' || cbshm.seal(said));
END
$$;

CREATE OR REPLACE FUNCTION cbshm.welcome(b cbshm.breaker, what text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	b := cbshm.outlive(b);
	PERFORM cbshm.record_change(NULL, b, what);
	PERFORM cbshm.announce(b);
END
$$;

CREATE OR REPLACE FUNCTION cbshm.breaker_after() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF TG_OP = 'INSERT' THEN
		PERFORM cbshm.welcome(NEW, NULL);
	ELSIF TG_OP = 'DELETE' THEN
		PERFORM cbshm.bury(OLD, 'delete');
	ELSIF OLD.name <> NEW.name THEN
		PERFORM cbshm.bury(OLD, 'rename');
		PERFORM cbshm.welcome(NEW, 'rename');
	ELSIF OLD.version <> NEW.version THEN
		PERFORM cbshm.record_change(OLD, NEW, NULL);
		PERFORM cbshm.announce(NEW);
	END IF;
	RETURN NULL;
END
$$;

-- For an agent to know whether the policy in a notification is the one that it has loaded.
CREATE FUNCTION cbshm.settings_version() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT version FROM cbshm.settings
$$;

CREATE FUNCTION cbshm.announcement_key() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT encode(key, 'hex') FROM cbshm.secret
$$;

REVOKE ALL ON FUNCTION cbshm.seal, cbshm.microseconds, cbshm.announce, cbshm.settings_version,
	cbshm.announcement_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION cbshm.settings_version, cbshm.announcement_key TO cbshm_agent;
