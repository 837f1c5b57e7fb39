/*
 * async.c - the reports of cbshm.h that nobody waits for
 *
 * SPDX-License-Identifier: ISC
 *
 * Checks the arguments as write.c does, but without words: there is nobody to read them in the middle of a hot path.
 */
#include "config.h"

#include <string.h>

#include "cbshm.h"
#include "libcbshm/arguments.h"
#include "libcbshm/client.h"
#include "libcbshm/error.h"
#include "libcbshm/name.h"
#include "libcbshm/process.h"
#include "libcbshm/reports.h"

static struct reports *reports_of(struct cbshm *client)
{
	struct process *process = client != NULL ? process_of(client) : NULL;

	return process != NULL ? process->reports : NULL;
}

static int queue(struct cbshm *client, struct report *report, const char *name, const char *details)
{
	struct cbshm_call ignored;
	struct reports *reports;
	int error;

	if (client == NULL)
		return CBSHM_ERR_INVALID;
	report->name = name;
	report->name_length = name_length(name);
	if (report->name_length == 0)
		return CBSHM_ERR_INVALID;
	if (details != NULL) {
		error = check_details(details, &ignored);
		if (error != 0)
			return error;
		report->details = details;
		report->details_length = strlen(details);
	}
	reports = reports_of(client);
	return reports != NULL ? reports_push(reports, report) : CBSHM_ERR_MEMORY;
}

int cbshm_report_drift_async(struct cbshm *client, const char *name, double score, int64_t samples,
			     const char *details)
{
	struct report report = {.kind = REPORT_DRIFT, .score = score, .number = samples};

	if (!(score >= 0 && score <= 1) || samples < 1 || samples > ARGUMENT_COUNT_MAX)
		return CBSHM_ERR_INVALID;
	return queue(client, &report, name, details);
}

int cbshm_report_schema_error_async(struct cbshm *client, const char *name, int64_t count,
				    const char *details)
{
	struct report report = {.kind = REPORT_SCHEMA_ERROR, .number = count};

	if (count < 0 || count > ARGUMENT_COUNT_MAX)
		return CBSHM_ERR_INVALID;
	return queue(client, &report, name, details);
}

int cbshm_flush(struct cbshm *client, struct cbshm_call *call, uint64_t *failed)
{
	struct cbshm_call spare = {0};
	struct reports *reports;
	uint64_t lost = 0;
	int64_t deadline;
	int error;

	if (call == NULL)
		call = &spare;
	call->message[0] = '\0';
	if (client == NULL)
		return call_fail(call, CBSHM_ERR_INVALID, "client must be one of cbshm_open()");
	error = call_deadline(call, &deadline);
	if (error != 0)
		return error;
	reports = reports_of(client);
	if (reports == NULL)
		return call_fail_memory(call);
	error = reports_flush(reports, deadline, call, &lost);
	if (failed != NULL)
		*failed = lost;
	return error;
}

int cbshm_get_report_stats(struct cbshm *client, struct cbshm_report_stats *stats)
{
	struct cbshm_report_stats all = {.size = sizeof(all)};
	struct reports *reports;

	if (client == NULL || stats == NULL || stats->size < sizeof(stats->size))
		return CBSHM_ERR_INVALID;
	reports = reports_of(client);
	if (reports == NULL)
		return CBSHM_ERR_MEMORY;
	reports_get_stats(reports, &all);
	if (stats->size < all.size)
		all.size = stats->size;
	memcpy(stats, &all, all.size);
	return 0;
}

int cbshm_fd(struct cbshm *client)
{
	struct reports *reports;

	if (client == NULL)
		return CBSHM_ERR_INVALID;
	reports = reports_of(client);
	return reports != NULL ? reports_fd(reports) : CBSHM_ERR_MEMORY;
}

int cbshm_dispatch(struct cbshm *client)
{
	struct reports *reports;

	if (client == NULL)
		return CBSHM_ERR_INVALID;
	reports = reports_of(client);
	return reports != NULL ? reports_dispatch(reports) : CBSHM_ERR_MEMORY;
}
