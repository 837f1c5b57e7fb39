-- 0011_barrier_seal.sql - a barrier is sealed, too
--
-- SPDX-License-Identifier: ISC
--
-- Else anybody who may connect to the database could announce a number that was never handed out, and agents would
-- acknowledge by it what they are still to apply.

-- What is made here belongs to the owner of all the rest.
SET LOCAL ROLE cbshm_owner;

CREATE OR REPLACE FUNCTION cbshm.announce_barrier(OUT barrier bigint, OUT moment timestamptz)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	said text;
BEGIN
	PERFORM cbshm.forget_agents();
	barrier := nextval('cbshm.barrier');
	moment := clock_timestamp();
	said := 'b ' || barrier;
	PERFORM pg_notify('cbshm', said || E'\x01' || cbshm.seal(said));
END
$$;
