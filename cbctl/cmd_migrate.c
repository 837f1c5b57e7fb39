/*
 * cmd_migrate.c - cbctl migrate: makes the database's schema, or brings it up to date
 *
 * SPDX-License-Identifier: ISC
 *
 * The only command that talks to Postgres itself. Each file runs in one transaction together with its line in
 * cbshm.schema_version, under an advisory lock, so that it is applied wholly and once, however many run this.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libpq-fe.h>

#include "cbctl/migrations.h"
#include "cbctl/output.h"
#include "cbctl/segment.h"

#define SERVER_VERSION_MIN 130000
#define LOCK_TIMEOUT       "3s" /* while a migration waits, all writes wait behind it */
#define LOCK_KEY           "4846527719005841767" /* "CBSHMmig" as a number: one that nobody else takes */

enum { CONNINFO, SQL };

static const struct option options[] = {
	[CONNINFO] = {"conninfo", "CONNINFO"},
	[SQL] = {"sql", "DIRECTORY"},
	{NULL, NULL},
};

struct migrating {
	PGconn *connection;
	const char *directory;
	struct migrations migrations;
	int version;     /* of the database */
	cJSON *applied;  /* with --json */
	cJSON *document; /* likewise */
};

/* ---- errors ----------------------------------------------------------------------------- */

/* A libpq message on one line: without its last newlines, and with a blank for each break within. */
static const char *trimmed(const char *text)
{
	char line[1024];
	size_t used = 0;

	for (; *text != '\0' && used < sizeof(line) - 1; text++) {
		if (strchr("\n\t ", *text) == NULL)
			line[used++] = *text;
		else if (used > 0 && line[used - 1] != ' ')
			line[used++] = ' ';
	}
	while (used > 0 && line[used - 1] == ' ')
		used--;
	return formatted("%.*s", (int)used, line);
}

static int lost_or_refused(PGconn *connection, const PGresult *result, const char *what)
{
	const char *message =
		result != NULL ? PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY) : NULL;

	if (PQstatus(connection) != CONNECTION_OK)
		return fail(STATUS_DOWN, "database_down",
			    "the connection to Postgres was lost (%s): run it again, it goes on "
			    "where it was: %s",
			    what, trimmed(PQerrorMessage(connection)));
	return fail(STATUS_OTHER, "database", "%s: %s", what,
		    message != NULL ? message : trimmed(PQerrorMessage(connection)));
}

static int line_of(const char *text, const char *position)
{
	int line = 1;

	/* The position is counted in characters. */
	for (long left = position != NULL ? strtol(position, NULL, 10) - 1 : 0;
	     left > 0 && *text != '\0'; text++) {
		line += *text == '\n';
		left -= ((unsigned char)text[1] & 0xc0) != 0x80;
	}
	return line;
}

/* What to do about it, if the server has no hint of its own. */
static const char *hint_for(const char *state)
{
	if (strcmp(state, "55P03") == 0) /* lock_not_available */
		return "somebody holds a lock for longer than " LOCK_TIMEOUT
		       "; pg_stat_activity shows sessions that are idle in transaction; end them, "
		       "and run this again";
	return NULL;
}

static int file_failed(const struct migrating *migrating, const struct migration *migration,
		       const char *text, const PGresult *result)
{
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	const char *field = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	const char *state = field != NULL ? field : "?";
	const char *detail = PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL);
	const char *hint = PQresultErrorField(result, PG_DIAG_MESSAGE_HINT);
	const char *position = PQresultErrorField(result, PG_DIAG_STATEMENT_POSITION);

	if (PQstatus(migrating->connection) != CONNECTION_OK || message == NULL)
		return lost_or_refused(migrating->connection, result, migration->file);
	if (hint == NULL)
		hint = hint_for(state);
	return fail(strcmp(state, "42501") == 0 ? STATUS_DENIED : STATUS_OTHER, "database",
		    "%s failed%s and nothing of it was applied: %s (SQLSTATE %s)%s%s%s%s",
		    migration->file,
		    position != NULL ? formatted(" in line %d", line_of(text, position)) : "",
		    message, state, detail != NULL ? "; " : "", detail != NULL ? detail : "",
		    hint != NULL ? "; hint: " : "", hint != NULL ? hint : "");
}

static void print_notice(void *arg, const PGresult *result)
{
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);

	(void)arg;
	if (message != NULL)
		warn("Postgres says: %s", message);
}

/* ---- statements ------------------------------------------------------------------------- */

/* Runs a statement that returns one value or none; *value lives until the end. 0 or an exit status. */
static int query(PGconn *connection, const char *sql, const char *what, const char **value)
{
	PGresult *result = PQexec(connection, sql);
	const ExecStatusType state = PQresultStatus(result);
	int error = 0;

	if (state != PGRES_TUPLES_OK && state != PGRES_COMMAND_OK)
		error = lost_or_refused(connection, result, what);
	else if (value != NULL)
		*value = PQntuples(result) > 0 && !PQgetisnull(result, 0, 0)
				 ? formatted("%s", PQgetvalue(result, 0, 0))
				 : NULL;
	PQclear(result);
	return error;
}

/* Whether libpq understands it; a text without "=" is the name of a database, or a URI. */
static bool is_conninfo(const char *text)
{
	PQconninfoOption *parsed;
	bool is_one;

	if (text == NULL || strchr(text, '=') == NULL)
		return true;
	parsed = PQconninfoParse(text, NULL);
	is_one = parsed != NULL;
	PQconninfoFree(parsed);
	return is_one;
}

static int open_connection(struct migrating *migrating, const char *conninfo)
{
	/* Of several servers the one that takes writes, unless the conninfo says otherwise. */
	const char *names[] = {"target_session_attrs", "dbname", "fallback_application_name",
			       "client_encoding", NULL};
	const char *values[] = {"read-write", conninfo != NULL ? conninfo : "", "cbctl migrate",
				"UTF8", NULL};

	/* An empty dbname is no conninfo: the PG* environment counts. */
	migrating->connection = PQconnectdbParams(names, values, 1);
	if (migrating->connection == NULL)
		return fail(STATUS_OTHER, "memory", "out of memory");
	if (!is_conninfo(conninfo))
		return fail_usage(&command_migrate, "--conninfo: %s",
				  trimmed(PQerrorMessage(migrating->connection)));
	if (PQstatus(migrating->connection) != CONNECTION_OK)
		return fail(STATUS_DOWN, "database_down",
			    "%s; which database is meant is said with --conninfo or the PG* "
			    "environment variables",
			    trimmed(PQerrorMessage(migrating->connection)));
	PQsetNoticeReceiver(migrating->connection, print_notice, NULL);
	return query(migrating->connection, "SET client_min_messages = warning",
		     "cannot set up the session", NULL);
}

static int check_server(struct migrating *migrating)
{
	const int version = PQserverVersion(migrating->connection);
	const char *encoding = PQparameterStatus(migrating->connection, "server_encoding");

	if (version < SERVER_VERSION_MIN)
		return fail(STATUS_OTHER, "database",
			    "the server is PostgreSQL %d.%d; cbshm needs 13 or newer",
			    version / 10000, version % 10000);
	if (encoding == NULL || strcmp(encoding, "UTF8") != 0)
		return fail(
			STATUS_OTHER, "database",
			"the database %s has the encoding %s; cbshm needs UTF8: CREATE DATABASE "
			"... ENCODING 'UTF8' TEMPLATE template0",
			PQdb(migrating->connection), encoding != NULL ? encoding : "unknown");
	return 0;
}

static int lock(struct migrating *migrating)
{
	const char *got;
	int error =
		query(migrating->connection, "SELECT pg_catalog.pg_try_advisory_lock(" LOCK_KEY ")",
		      "cannot lock", &got);

	if (error != 0 || strcmp(got, "t") == 0)
		return error;
	warn("another cbctl migrate is at work on this database; waiting for it");
	return query(migrating->connection, "SELECT pg_catalog.pg_advisory_lock(" LOCK_KEY ")",
		     "cannot lock", NULL);
}

static int read_version(struct migrating *migrating)
{
	const char *value;
	int error = query(migrating->connection,
			  "SELECT pg_catalog.to_regclass('cbshm.schema_version')",
			  "cannot look for the schema", &value);

	migrating->version = 0;
	if (error != 0 || value == NULL)
		return error;
	error = query(migrating->connection, "SELECT max(version) FROM cbshm.schema_version",
		      "cannot read the schema's version", &value);
	if (error == 0 && value != NULL)
		migrating->version = atoi(value);
	return error;
}

/* ---- applying --------------------------------------------------------------------------- */

static int record(struct migrating *migrating, const struct migration *migration)
{
	const char *version = formatted("%d", migration->version);
	const char *values[] = {version, migration->file};
	PGresult *result =
		PQexecParams(migrating->connection,
			     "INSERT INTO cbshm.schema_version (version, applied_at, file) "
			     "VALUES ($1, pg_catalog.clock_timestamp(), $2)",
			     2, NULL, values, NULL, NULL, 0);
	int error = 0;

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		error = lost_or_refused(migrating->connection, result, migration->file);
	PQclear(result);
	return error;
}

static int run_file(struct migrating *migrating, const struct migration *migration)
{
	char *text = migration_read(migrating->directory, migration);
	PGresult *result;
	int error = 0;

	if (text == NULL)
		return fail(STATUS_OTHER, "migrations", "cannot read %s/%s: %s",
			    migrating->directory, migration->file, strerror(errno));
	result = PQexec(migrating->connection, text);
	if (PQresultStatus(result) != PGRES_COMMAND_OK &&
	    PQresultStatus(result) != PGRES_TUPLES_OK &&
	    PQresultStatus(result) != PGRES_EMPTY_QUERY)
		error = file_failed(migrating, migration, text, result);
	else if (PQtransactionStatus(migrating->connection) != PQTRANS_INTRANS)
		error = fail(STATUS_OTHER, "migrations",
			     "%s ends the transaction it runs in; migrations must not",
			     migration->file);
	PQclear(result);
	free(text);
	return error;
}

static int apply(struct migrating *migrating, const struct migration *migration)
{
	int error =
		query(migrating->connection, "BEGIN; SET LOCAL lock_timeout = '" LOCK_TIMEOUT "'",
		      "cannot begin", NULL);

	if (error == 0)
		error = run_file(migrating, migration);
	if (error == 0)
		error = record(migrating, migration);
	if (error == 0)
		error = query(migrating->connection, "COMMIT", "cannot commit", NULL);
	if (error != 0)
		return error; /* what was not committed ends with the connection */
	migrating->version = migration->version;
	if (migrating->applied != NULL) {
		cJSON *entry = json_object(migrating->applied, NULL);

		json_whole(entry, "version", migration->version);
		json_text(entry, "file", migration->file);
	} else {
		printf("applied %s\n", clean(migration->file));
		fflush(stdout);
	}
	return 0;
}

static int migrate(struct migrating *migrating)
{
	const struct migrations *migrations = &migrating->migrations;
	const int known = (int)migrations->count;
	const int before = migrating->version;

	if (migrating->version > known)
		return fail(STATUS_OTHER, "schema_newer",
			    "the schema of database %s is version %d, and this cbctl %s knows only "
			    "%d: use the newer cbctl; nothing was changed",
			    PQdb(migrating->connection), migrating->version, PACKAGE_VERSION,
			    known);
	for (int i = migrating->version; i < known; i++) {
		const int error = apply(migrating, &migrations->list[i]);

		if (error != 0)
			return error;
	}
	if (migrating->applied == NULL)
		printf("%s: version %d\n",
		       before == known ? "schema is up to date" : "schema is now up to date",
		       known);
	return 0;
}

static int run_connected(struct migrating *migrating)
{
	int error = check_server(migrating);

	if (error == 0)
		error = lock(migrating);
	if (error == 0)
		error = read_version(migrating);
	if (error == 0 && output_is_json()) {
		migrating->document = json_object(NULL, NULL);
		migrating->applied = json_array(migrating->document, "applied");
	}
	if (error == 0)
		error = migrate(migrating);
	if (error == 0 && migrating->document != NULL) {
		json_whole(migrating->document, "version", migrating->version);
		json_print(migrating->document);
	} else {
		cJSON_Delete(migrating->document);
	}
	return error;
}

static int run(struct cbctl *cbctl, const struct parsed *parsed)
{
	const char *environment = getenv("CBSHM_SQL_DIR");
	struct migrating migrating = {.directory = parsed->values[SQL]};
	char message[1024];
	int error;

	(void)cbctl;
	if (migrating.directory == NULL)
		migrating.directory =
			environment != NULL && environment[0] != '\0' ? environment : CBSHM_SQL_DIR;
	if (!migrations_find(migrating.directory, &migrating.migrations, message, sizeof(message)))
		return fail(STATUS_OTHER, "migrations", "%s", message);
	error = open_connection(&migrating, parsed->values[CONNINFO]);
	if (error == 0)
		error = run_connected(&migrating);
	PQfinish(migrating.connection);
	migrations_free(&migrating.migrations);
	return error;
}

const struct command command_migrate = {
	.name = "migrate",
	.arguments = "[--conninfo CONNINFO] [--sql DIRECTORY]",
	.summary = "make the database's schema, or bring it up to date",
	.help = "Applies the migrations that the database does not have yet, each in one\n"
		"transaction. May be repeated; refuses a database whose schema is newer.\n"
		"Needs PostgreSQL 13 or newer, and a user who may create schemas and roles.\n"
		"\n"
		"  --conninfo CONNINFO  which database, as for psql; else the PG* environment\n"
		"  --sql DIRECTORY      where the migrations are; else $CBSHM_SQL_DIR, else\n"
		"                       " CBSHM_SQL_DIR "\n"
		"\n"
		"Example:\n"
		"  cbctl migrate --conninfo \"host=db.example dbname=cbshm user=postgres\"\n",
	.options = options,
	.least = 0,
	.most = 0,
	.run = run,
};
