-- 0003_roles.sql - who owns cbshm, and who may do what
--
-- SPDX-License-Identifier: ISC
--
-- Roles belong to the whole cluster: those that another database has made already are taken as they
-- are. Login users become members of cbshm_agent or cbshm_reader; nobody logs in as cbshm_owner.

DO $$
DECLARE
	missing text;
BEGIN
	FOREACH missing IN ARRAY '{cbshm_owner,cbshm_agent,cbshm_reader}'::text[] LOOP
		IF to_regrole(missing) IS NULL THEN
			EXECUTE format('CREATE ROLE %I NOLOGIN', missing);
		END IF;
	END LOOP;
EXCEPTION
WHEN insufficient_privilege THEN
	RAISE EXCEPTION 'role "%" does not exist, and "%" may not create it', missing, current_user
		USING ERRCODE = 'insufficient_privilege',
		HINT = 'Let an administrator run: CREATE ROLE cbshm_owner NOLOGIN; '
			'CREATE ROLE cbshm_agent NOLOGIN; CREATE ROLE cbshm_reader NOLOGIN; '
			'GRANT cbshm_owner TO ' || quote_ident(current_user) || ';';
WHEN duplicate_object OR unique_violation THEN
	RAISE EXCEPTION 'role "%" is being created by somebody else', missing
		USING ERRCODE = 'serialization_failure', HINT = 'Try again.';
END
$$;

-- To give something to cbshm_owner, one has to be a member, and it has to be allowed to have it.
DO $$
BEGIN
	IF NOT pg_has_role(current_user, 'cbshm_owner', 'USAGE') THEN
		EXECUTE format('GRANT cbshm_owner TO %I', current_user);
	END IF;
	EXECUTE format('GRANT CREATE ON DATABASE %I TO cbshm_owner', current_database());
	ALTER SCHEMA cbshm OWNER TO cbshm_owner;
	EXECUTE format('REVOKE CREATE ON DATABASE %I FROM cbshm_owner', current_database());
EXCEPTION WHEN insufficient_privilege THEN
	RAISE EXCEPTION '"%" cannot give the schema cbshm to cbshm_owner: %', current_user, SQLERRM
		USING ERRCODE = 'insufficient_privilege',
		HINT = format('Migrate as a superuser, or as the owner of the database after '
			      'GRANT cbshm_owner TO %I;', current_user);
END
$$;

DO $$
DECLARE
	alter_owner text;
BEGIN
	FOR alter_owner IN
		SELECT format('ALTER %s %s OWNER TO cbshm_owner',
			      CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, c.oid::regclass)
		FROM pg_catalog.pg_class c
		WHERE c.relnamespace = 'cbshm'::regnamespace AND c.relkind IN ('r', 'v')
		UNION ALL
		SELECT format('ALTER FUNCTION %s OWNER TO cbshm_owner', p.oid::regprocedure)
		FROM pg_catalog.pg_proc p
		WHERE p.pronamespace = 'cbshm'::regnamespace
	LOOP
		EXECUTE alter_owner;
	END LOOP;
END
$$;

REVOKE ALL ON SCHEMA cbshm FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA cbshm FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA cbshm FROM PUBLIC;

-- The agent writes through functions only, and reads what it mirrors.
GRANT USAGE ON SCHEMA cbshm TO cbshm_agent;
GRANT SELECT ON cbshm.mirror, cbshm.schema_version TO cbshm_agent;
GRANT EXECUTE ON FUNCTION
	cbshm.apply,
	cbshm.recover,
	cbshm.state_json,
	cbshm.incidents_json,
	cbshm.set_policy_json,
	cbshm.heartbeat
TO cbshm_agent;

GRANT USAGE ON SCHEMA cbshm TO cbshm_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA cbshm TO cbshm_reader;
GRANT EXECUTE ON FUNCTION
	cbshm.get_state,
	cbshm.get_incidents,
	cbshm.state_json,
	cbshm.incidents_json,
	cbshm.policy_json
TO cbshm_reader;
