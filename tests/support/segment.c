/*
 * segment.c - segments, rows and readers for tests
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include "tests/support/segment.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NAMES_MAX 256

static char names[NAMES_MAX][64];
static int names_used;
static pid_t names_owner;

static void die(const char *what, const char *why)
{
	printf("Bail out! %s: %s\n", what, why);
	fflush(stdout);
	_exit(99);
}

static void remove_all(void)
{
	if (getpid() != names_owner)
		return;
	for (int i = 0; i < names_used; i++)
		scratch_remove(names[i]);
}

const char *scratch_segment(void)
{
	if (names_owner != getpid()) {
		names_owner = getpid();
		names_used = 0;
		atexit(remove_all);
	}
	if (names_used == NAMES_MAX)
		die("scratch_segment", "too many");
	snprintf(names[names_used], sizeof(names[0]), "/cbshm-test-%d-%d", (int)getpid(),
		 names_used);
	scratch_remove(names[names_used]);
	return names[names_used++];
}

const char *scratch_path(const char *name, const char *suffix)
{
	static char paths[8][256];
	static int next;
	char *path = paths[next++ % 8];

	snprintf(path, sizeof(paths[0]), "%s%s%s", SEGMENT_DIRECTORY, name, suffix);
	return path;
}

void scratch_remove(const char *name)
{
	unlink(scratch_path(name, ""));
	unlink(scratch_path(name, ".lock"));
	unlink(scratch_path(name, ".new"));
}

static int64_t clock_us(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

int64_t scratch_now(void)
{
	return clock_us(CLOCK_REALTIME);
}

struct segment_writer *scratch_writer(const char *name, uint32_t capacity)
{
	struct segment_options options = {
		.name = name, .capacity = capacity, .mode = 0644, .group = (gid_t)-1};
	struct segment_writer *writer;
	char message[256];

	if (segment_writer_open(&options, &writer, message, sizeof(message)) != 0)
		die("segment_writer_open", message);
	segment_writer_set_clock(writer, clock_us(CLOCK_REALTIME) - clock_us(CLOCK_BOOTTIME), 0);
	return writer;
}

struct cbshm *scratch_client(const char *name)
{
	struct cbshm_options options = {.size = sizeof(options), .segment = name};
	struct cbshm *client;
	int error = cbshm_open(&options, &client);

	if (error)
		die("cbshm_open", cbshm_strerror(error));
	return client;
}

struct cbshm_breaker *scratch_breaker(struct cbshm *client, const char *name)
{
	struct cbshm_breaker *breaker;
	int error = cbshm_breaker_open(client, name, &breaker);

	if (error)
		die("cbshm_breaker_open", cbshm_strerror(error));
	return breaker;
}

struct breaker_row row_closed(const char *name, uint64_t version)
{
	return (struct breaker_row){
		.name = name,
		.version = version,
		.disabled_by = "",
		.disabled_reason = "",
		.opened_at = CBSHM_NO_TIME,
		.disabled_until = CBSHM_NO_TIME,
		.last_failure_at = CBSHM_NO_TIME,
		.updated_at = scratch_now(),
		.drift_threshold = 0.2,
		.failure_threshold = 3,
		.schema_error_threshold = 5,
		.default_ttl = INT64_C(86400000000),
		.auto_recover = true,
	};
}

struct breaker_row row_open(const char *name, uint64_t version)
{
	struct breaker_row row = row_closed(name, version);

	row.disabled = true;
	row.disabled_by = "somebody";
	row.disabled_reason = "some reason";
	row.opened_at = row.updated_at;
	memset(row.incident_id, 0x5a, sizeof(row.incident_id));
	return row;
}

void put(struct segment_writer *writer, struct breaker_row row)
{
	int changed = segment_writer_put(writer, &row, false);

	if (changed < 0)
		die("segment_writer_put", strerror(-changed));
	segment_writer_publish(writer);
}

void pattern_fill(struct pattern *pattern, const char *name, uint64_t version)
{
	struct breaker_row *row = &pattern->row;
	int64_t v = (int64_t)version;

	*row = (struct breaker_row){
		.name = name,
		.version = version,
		.disabled = version % 2,
		.disabled_by = "",
		.disabled_reason = "",
		.opened_at = 3 * v + 1,
		.disabled_until = CBSHM_NO_TIME,
		.last_failure_at = 5 * v + 2,
		.updated_at = 7 * v + 3,
		.consecutive_failures = (uint32_t)version ^ 0x55u,
		.drift_threshold = (double)v / 2,
		.failure_threshold = (uint32_t)version + 11,
		.schema_error_threshold = (uint32_t)version + 13,
		.default_ttl = 11 * v,
		.auto_recover = version % 3 == 0,
	};
	if (!row->disabled)
		return;
	for (int i = 0; i < 16; i++)
		row->incident_id[i] = (uint8_t)(version + (unsigned int)i + 1);
	/* Texts of many lengths, every part of which tells the version. */
	int length = snprintf(pattern->by, sizeof(pattern->by), "%s:", name);
	for (uint64_t i = 0; i < 1 + version % 3 && length < 60; i++)
		length += snprintf(pattern->by + length, sizeof(pattern->by) - (size_t)length,
				   "%llu.", (unsigned long long)version);
	length = snprintf(pattern->reason, sizeof(pattern->reason), "%s:", name);
	for (uint64_t i = 0; i < 1 + version % 11 && length < 220; i++)
		length +=
			snprintf(pattern->reason + length, sizeof(pattern->reason) - (size_t)length,
				 "%llu.", (unsigned long long)version);
	row->disabled_by = pattern->by;
	row->disabled_reason = pattern->reason;
}

static bool same_incident(const char *text, const uint8_t id[16])
{
	char expected[CBSHM_UUID_SIZE] = "";

	for (int i = 0, at = 0; i < 16; i++)
		at += snprintf(expected + at, sizeof(expected) - (size_t)at,
			       i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", id[i]);
	return strcmp(text, expected) == 0;
}

const char *pattern_wrong(const struct cbshm_state *state)
{
	struct pattern pattern;
	const struct breaker_row *row = &pattern.row;

	pattern_fill(&pattern, state->name, state->version);
	if (state->row_disabled != row->disabled || state->disabled != row->disabled)
		return "disabled";
	if (state->opened_at != row->opened_at)
		return "opened_at";
	if (state->last_failure_at != row->last_failure_at)
		return "last_failure_at";
	if (state->updated_at != row->updated_at)
		return "updated_at";
	if (state->consecutive_failures != row->consecutive_failures)
		return "consecutive_failures";
	if (state->policy.drift_threshold != row->drift_threshold ||
	    state->policy.failure_threshold != row->failure_threshold ||
	    state->policy.schema_error_threshold != row->schema_error_threshold ||
	    state->policy.default_ttl_us != row->default_ttl ||
	    state->policy.auto_recover != row->auto_recover)
		return "policy";
	if (strcmp(state->disabled_by, row->disabled_by) != 0)
		return "disabled_by";
	if (strcmp(state->disabled_reason, row->disabled_reason) != 0)
		return "disabled_reason";
	if (row->disabled ? !same_incident(state->incident_id, row->incident_id)
			  : state->incident_id[0] != '\0')
		return "incident_id";
	return NULL;
}

struct segment_view scratch_map(const char *name)
{
	struct cbshm_segment_header header;
	struct segment_view view = {.base = NULL};
	struct stat status;
	int fd = open(scratch_path(name, ""), O_RDWR | O_CLOEXEC);

	if (fd < 0 || pread(fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header) ||
	    fstat(fd, &status) < 0 ||
	    segment_validate(&header, (uint64_t)status.st_size, &view.layout) != NULL)
		die("scratch_map", "no segment");
	view.base = mmap(NULL, view.layout.total_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (view.base == MAP_FAILED)
		die("scratch_map", "mmap");
	return view;
}

void scratch_unmap(struct segment_view *view)
{
	munmap(view->base, view->layout.total_size);
	view->base = NULL;
}
