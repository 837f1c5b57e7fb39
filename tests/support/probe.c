/*
 * probe.c - an engine for the tests to command: one line in, one line out
 *
 * SPDX-License-Identifier: ISC
 *
 * A process of its own that links libcbshm and keeps its handles open, so that tests can look at a
 * breaker through the same mapping before, while and after agents and servers die.
 *
 *	check NAME                     -> enabled|disabled EPOCH BASIS
 *	state NAME                     -> version=N disabled=0|1 failures=N by=... reason=... (or error)
 *	spin NAME COUNT                -> disabled N            (COUNT checks, nothing else)
 *	watch NAME MILLISECONDS        -> N T:D:EPOCH ...       (N checks; every change with its CLOCK_REALTIME in microseconds)
 *	pace NAME MILLISECONDS         -> N MICROSECONDS        (a check every millisecond: how many, and the slowest)
 *	drift NAME SCORE [DETAILS]     -> ok INCIDENT-or-- | error CODE MESSAGE
 *	schema-error NAME COUNT        -> likewise
 *	disable NAME FOR_US REASON     -> ok 0|1 INCIDENT-or-- | error CODE MESSAGE
 *	enable NAME [BY]               -> ok 0|1 | error CODE MESSAGE
 *	fetch NAME                     -> as state, from the database
 *	timeout MILLISECONDS           -> ok                    (for the writes that follow)
 *	status                         -> 0 or a negative code
 *	policy NAME static|open|closed US -> ok              (the handle's stale policy)
 *	wait NAME|* MILLISECONDS       -> changed | error ... (since the last wait for it; at once at first)
 *	subscribe [NAME...]            -> ok                    (all without names)
 *	event MILLISECONDS             -> state NAME D VERSION | unknown NAME | complete | lost ERROR | error ...
 *	                                  (waits in poll() for the descriptor, not in the library)
 *	health                         -> agent=0|1 hung=0|1 database=0|1 restored=0|1 heartbeat=US epoch=N breakers=N
 */
#include "config.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cbshm.h"

#define MAX_HANDLES 16384
#define MAX_CHANGES 64

static struct cbshm *client;
static struct cbshm_breaker *handles[MAX_HANDLES];
static uint64_t seen[MAX_HANDLES], seen_all;
static size_t handle_count;
static struct cbshm_call call;

static struct cbshm_breaker *handle(const char *name)
{
	for (size_t i = handle_count; i-- > 0;)
		if (strcmp(cbshm_breaker_name(handles[i]), name) == 0)
			return handles[i];
	if (handle_count == MAX_HANDLES ||
	    cbshm_breaker_open(client, name, &handles[handle_count]) != 0) {
		printf("error 0 no handle\n");
		return NULL;
	}
	return handles[handle_count++];
}

static int64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static const char *word(char **line)
{
	char *start = *line ? *line : (char *)"";
	char *end = strchr(start, ' ');

	*line = end ? end + 1 : start + strlen(start);
	if (end)
		*end = '\0';
	return start;
}

static void print_error(int error)
{
	printf("error %d %s\n", error, call.message[0] ? call.message : cbshm_strerror(error));
}

static void do_check(char *line)
{
	struct cbshm_breaker *breaker = handle(word(&line));

	if (breaker) {
		struct cbshm_decision decision = cbshm_check(breaker);
		printf("%s %" PRIu32 " %u\n", decision.disabled ? "disabled" : "enabled",
		       decision.epoch, decision.basis);
	}
}

static void print_state(int error, const struct cbshm_state *state)
{
	if (error)
		print_error(error);
	else
		printf("version=%" PRIu64 " disabled=%d row=%d failures=%" PRIu32
		       " incident=%s until=%" PRId64 " by=%s reason=%s\n",
		       state->version, state->disabled, state->row_disabled,
		       state->consecutive_failures, state->incident_id, state->disabled_until,
		       state->disabled_by, state->disabled_reason);
}

static void do_state(char *line)
{
	struct cbshm_breaker *breaker = handle(word(&line));
	struct cbshm_state state;

	if (breaker) {
		call.message[0] = '\0';
		int error = cbshm_get_state(breaker, &state);
		print_state(error, &state);
	}
}

static void do_fetch(char *line)
{
	struct cbshm_state state;
	int error = cbshm_fetch_state(client, word(&line), &call, &state);

	print_state(error, &state);
}

static void do_spin(char *line)
{
	struct cbshm_breaker *breaker = handle(word(&line));
	long count = atol(word(&line));
	long disabled = 0;

	if (breaker) {
		for (long i = 0; i < count; i++)
			disabled += cbshm_is_disabled(breaker);
		printf("disabled %ld\n", disabled);
	}
}

static void do_watch(char *line)
{
	struct cbshm_breaker *breaker = handle(word(&line));
	int64_t end = now_us() + atol(word(&line)) * 1000;
	struct change {
		int64_t time;
		struct cbshm_decision decision;
	} changes[MAX_CHANGES];
	int count = 0;
	long checks = 0;

	if (!breaker)
		return;
	for (int64_t now = 0; now < end;) {
		struct cbshm_decision decision = cbshm_check(breaker);
		checks++;
		now = now_us();
		if ((count == 0 || changes[count - 1].decision.disabled != decision.disabled) &&
		    count < MAX_CHANGES)
			changes[count++] = (struct change){now, decision};
	}
	printf("%ld", checks);
	for (int i = 0; i < count; i++)
		printf(" %" PRId64 ":%u:%" PRIu32, changes[i].time, changes[i].decision.disabled,
		       changes[i].decision.epoch);
	printf("\n");
}

static void do_pace(char *line)
{
	struct cbshm_breaker *breaker = handle(word(&line));
	long count = atol(word(&line));
	int64_t slowest = 0;

	if (!breaker)
		return;
	for (long i = 0; i < count; i++) {
		int64_t before = now_us();
		cbshm_check(breaker);
		int64_t took = now_us() - before;
		if (took > slowest)
			slowest = took;
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	printf("%ld %" PRId64 "\n", count, slowest);
}

static void print_report(int error, const char *tripped)
{
	if (error)
		print_error(error);
	else
		printf("ok %s\n", tripped[0] ? tripped : "-");
}

static void do_drift(char *line)
{
	char tripped[CBSHM_UUID_SIZE] = "";
	const char *name = word(&line);
	double score = strtod(word(&line), NULL);
	int error = cbshm_report_drift(client, name, score, 1, *line ? line : NULL, &call, tripped);

	print_report(error, tripped);
}

static void do_schema_error(char *line)
{
	char tripped[CBSHM_UUID_SIZE] = "";
	const char *name = word(&line);
	int64_t count = atoll(word(&line));
	int error = cbshm_report_schema_error(client, name, count, NULL, &call, tripped);

	print_report(error, tripped);
}

static void do_disable(char *line)
{
	char incident[CBSHM_UUID_SIZE] = "";
	bool changed = false;
	const char *name = word(&line);
	int64_t for_us = atoll(word(&line));
	int error = cbshm_disable(client, name, line, NULL, CBSHM_UNTIL_DEFAULT, for_us, &call,
				  &changed, incident);

	if (error)
		print_error(error);
	else
		printf("ok %d %s\n", changed, incident[0] ? incident : "-");
}

static void do_enable(char *line)
{
	bool changed = false;
	const char *name = word(&line);
	int error = cbshm_enable(client, name, *line ? line : NULL, NULL, &call, &changed);

	if (error)
		print_error(error);
	else
		printf("ok %d\n", changed);
}

static void do_timeout(char *line)
{
	call.timeout_ms = atoi(line);
	printf("ok\n");
}

static void do_status(char *line)
{
	(void)line;
	printf("%d\n", cbshm_segment_status(client));
}

static void do_policy(char *line)
{
	static const char *const names[] = {"static", "open", "closed"};
	struct cbshm_breaker *breaker = handle(word(&line));
	const char *name = word(&line);
	int error = CBSHM_ERR_INVALID;

	if (!breaker)
		return;
	for (int i = 0; i < 3; i++)
		if (strcmp(names[i], name) == 0)
			error = cbshm_breaker_set_stale_policy(breaker, i, atoll(word(&line)));
	call.message[0] = '\0';
	if (error)
		print_error(error);
	else
		printf("ok\n");
}

static void do_wait(char *line)
{
	const char *name = word(&line);
	int error;

	if (strcmp(name, "*") == 0) {
		error = cbshm_wait(client, NULL, 0, &seen_all, atoi(line));
	} else {
		struct cbshm_breaker *breaker = handle(name);
		size_t i = 0;

		if (!breaker)
			return;
		while (handles[i] != breaker)
			i++;
		error = cbshm_wait(client, &breaker, 1, &seen[i], atoi(line));
	}
	call.message[0] = '\0';
	if (error)
		print_error(error);
	else
		printf("changed\n");
}

static struct cbshm_subscription *subscription;

static void do_subscribe(char *line)
{
	const char *names[64];
	size_t count = 0;

	for (const char *name = word(&line); *name && count < 64; name = word(&line))
		names[count++] = name;
	cbshm_subscription_close(subscription);
	call.message[0] = '\0';
	int error = cbshm_subscribe(client, count ? names : NULL, count, &subscription);
	if (error)
		print_error(error);
	else
		printf("ok\n");
}

static int next_event(int timeout_ms, struct cbshm_event *event)
{
	struct pollfd descriptor = {cbshm_subscription_fd(subscription), POLLIN, 0};
	const int64_t end = now_us() + timeout_ms * INT64_C(1000);
	int error;

	do {
		int64_t left = end - now_us();

		poll(&descriptor, 1, left > 0 ? (int)(left / 1000) + 1 : 0);
		error = cbshm_subscription_next(subscription, 0, event);
	} while (error == CBSHM_ERR_TIMEOUT && now_us() < end);
	return error;
}

static void do_event(char *line)
{
	struct cbshm_event event;
	int error = next_event(atoi(line), &event);

	call.message[0] = '\0';
	if (error)
		print_error(error);
	else if (event.kind == CBSHM_EVENT_STATE)
		printf("state %s %d %" PRIu64 "\n", event.state.name, event.state.disabled,
		       event.state.version);
	else if (event.kind == CBSHM_EVENT_UNKNOWN)
		printf("unknown %s\n", event.state.name);
	else if (event.kind == CBSHM_EVENT_COMPLETE)
		printf("complete\n");
	else
		printf("lost %d %s\n", event.error, event.message);
}

static void do_health(char *line)
{
	struct cbshm_health health;
	int error = cbshm_health(client, &health);

	(void)line;
	call.message[0] = '\0';
	if (error)
		print_error(error);
	else
		printf("agent=%d hung=%d database=%d restored=%d heartbeat=%" PRId64
		       " epoch=%" PRIu64 " breakers=%" PRIu32 "\n",
		       health.agent_alive, health.agent_hung, health.database_live, health.restored,
		       health.heartbeat_age_us, health.boot_epoch, health.breakers);
}

static const struct {
	const char *name;
	void (*run)(char *line);
} commands[] = {
	{"check", do_check},     {"state", do_state},   {"spin", do_spin},
	{"watch", do_watch},     {"drift", do_drift},   {"schema-error", do_schema_error},
	{"disable", do_disable}, {"enable", do_enable}, {"fetch", do_fetch},
	{"timeout", do_timeout}, {"status", do_status}, {"health", do_health},
	{"policy", do_policy},   {"wait", do_wait},     {"subscribe", do_subscribe},
	{"event", do_event},     {"pace", do_pace},
};

static void run(char *line)
{
	const char *name = word(&line);

	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (strcmp(commands[i].name, name) == 0) {
			commands[i].run(line);
			return;
		}
	printf("error 0 no such command\n");
}

int main(void)
{
	char line[65536];
	int error = cbshm_open(NULL, &client);

	if (error) {
		fprintf(stderr, "probe: %s\n", cbshm_strerror(error));
		return 1;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = '\0';
		run(line);
		fflush(stdout);
	}
	cbshm_subscription_close(subscription);
	for (size_t i = 0; i < handle_count; i++)
		cbshm_breaker_close(handles[i]);
	cbshm_close(client);
	return 0;
}
