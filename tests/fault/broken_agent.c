/*
 * broken_agent.c - cbagent with a fault in it, for the judge of a run to find
 *
 * SPDX-License-Identifier: ISC
 *
 * The agent's own code, but for the calls that the linker leads here (ld's --wrap). CBSHM_BROKEN names the fault.
 */
#include <config.h>

#include <libpq-fe.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "agent/mirror.h"
#include "agent/segment_writer.h"

int __real_segment_writer_put(struct segment_writer *, const struct breaker_row *, bool);
int __wrap_segment_writer_put(struct segment_writer *, const struct breaker_row *, bool);
void __real_mirror_apply(struct mirror *, const PGresult *, unsigned);
void __wrap_mirror_apply(struct mirror *, const PGresult *, unsigned);
char *__real_PQgetvalue(const PGresult *, int, int);
char *__wrap_PQgetvalue(const PGresult *, int, int);
char *__real_PQcmdStatus(PGresult *);
char *__wrap_PQcmdStatus(PGresult *);
int __real_PQsendQueryParams(PGconn *, const char *, int, const Oid *, const char *const *,
			     const int *, const int *, int);
int __wrap_PQsendQueryParams(PGconn *, const char *, int, const Oid *, const char *const *,
			     const int *, const int *, int);

static bool is_broken(const char *fault)
{
	const char *chosen = getenv("CBSHM_BROKEN");

	return chosen != NULL && strcmp(chosen, fault) == 0;
}

/* Every other time. */
static bool breaks(const char *fault)
{
	static unsigned turn;

	return is_broken(fault) && turn++ % 2 == 0;
}

/* Takes disabled for enabled. */
int __wrap_segment_writer_put(struct segment_writer *writer, const struct breaker_row *row,
			      bool force)
{
	struct breaker_row misread = *row;

	if (row->disabled && breaks("misreads"))
		misread.disabled = false;
	return __real_segment_writer_put(writer, &misread, force);
}

/* Answers before the segment shows what was written, which comes by notification. */
void __wrap_mirror_apply(struct mirror *mirror, const PGresult *rows, unsigned moment)
{
	if (!breaks("answers-early"))
		__real_mirror_apply(mirror, rows, moment);
}

/* Believes of each transaction that was lost with its connection that it was not committed. */
char *__wrap_PQgetvalue(const PGresult *result, int row, int column)
{
	static char aborted[] = "aborted";

	if (is_broken("repeats") && strcmp(PQfname(result, column), "pg_xact_status") == 0)
		return aborted;
	return __real_PQgetvalue(result, row, column);
}

/* Does not look how a transaction has ended; and some end as they do in a server that is short of something. */
int __wrap_PQsendQueryParams(PGconn *pg, const char *command, int count, const Oid *types,
			     const char *const *values, const int *lengths, const int *formats,
			     int format)
{
	if (strcmp(command, "COMMIT") == 0 && breaks("believes"))
		command = "ROLLBACK";
	return __real_PQsendQueryParams(pg, command, count, types, values, lengths, formats,
					format);
}

char *__wrap_PQcmdStatus(PGresult *result)
{
	static char commit[] = "COMMIT";

	return is_broken("believes") ? commit : __real_PQcmdStatus(result);
}
