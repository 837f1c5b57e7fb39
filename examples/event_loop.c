/*
 * event_loop.c - drift reports from a program with an event loop, which never waits for the agent
 *
 * SPDX-License-Identifier: ISC
 *
 * An example to copy from, not a part of cbshm. Its loop is poll(2): one descriptor for its own work, which is to read lines of
 * "NAME SCORE" from standard input, and one for the reports. At the end it waits for what is under way, for 5 seconds at most.
 *
 *	printf 'costsim_v2 0.25\ncostsim_v2 0.1\n' | event_loop
 */
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cbshm.h>

struct input {
	char text[65536];
	size_t used;
	bool ended;
};

static void report(struct cbshm *client, const char *line)
{
	char name[CBSHM_NAME_MAX + 1];
	double score;
	int error;

	if (sscanf(line, "%128s %lf", name, &score) != 2) {
		fprintf(stderr, "not NAME SCORE: %s\n", line);
		return;
	}
	error = cbshm_report_drift_async(client, name, score, 1, NULL);
	/* CBSHM_ERR_FULL is counted, too; a program with other work would leave it at that. */
	if (error != 0)
		fprintf(stderr, "%s: %s\n", line, cbshm_strerror(error));
}

/* A part of the input that fits; the beginning of a line stays for the next time. */
static void read_some(struct input *input, struct cbshm *client)
{
	const ssize_t n = read(STDIN_FILENO, input->text + input->used,
			       sizeof(input->text) - 1 - input->used);
	char *line = input->text, *end;

	if (n <= 0) {
		input->ended = true;
		return;
	}
	input->used += (size_t)n;
	input->text[input->used] = '\0';
	while ((end = strchr(line, '\n')) != NULL) {
		*end = '\0';
		report(client, line);
		line = end + 1;
	}
	input->used -= (size_t)(line - input->text);
	memmove(input->text, line, input->used);
	if (input->used == sizeof(input->text) - 1)
		input->used = 0; /* that is no line */
}

static void run(struct cbshm *client, int reports)
{
	static struct input input;
	struct pollfd fds[] = {{.fd = STDIN_FILENO, .events = POLLIN},
			       {.fd = reports, .events = POLLIN}};

	while (!input.ended) {
		if (poll(fds, 2, -1) < 0)
			continue; /* a signal */
		if (fds[0].revents != 0)
			read_some(&input, client);
		if (fds[1].revents != 0)
			cbshm_dispatch(client);
	}
}

static int finish(struct cbshm *client)
{
	struct cbshm_report_stats stats = {.size = sizeof(stats)};
	struct cbshm_call call = {.timeout_ms = 5000};

	if (cbshm_flush(client, &call, NULL) != 0)
		fprintf(stderr, "%s\n", call.message);
	if (cbshm_get_report_stats(client, &stats) != 0)
		return 1;
	printf("queued %" PRIu64 " acknowledged %" PRIu64 " failed %" PRIu64 " unknown %" PRIu64
	       " pending %" PRIu64 " dropped %" PRIu64 "\n",
	       stats.queued, stats.acknowledged, stats.failed, stats.unknown, stats.pending,
	       stats.dropped);
	return stats.acknowledged == stats.queued && stats.dropped == 0 ? 0 : 1;
}

int main(void)
{
	struct cbshm *client;
	int error = cbshm_open(NULL, &client);
	int reports, status;

	if (error != 0) {
		fprintf(stderr, "cannot open cbshm: %s\n", cbshm_strerror(error));
		return 1;
	}
	reports = cbshm_fd(client);
	if (reports < 0) {
		fprintf(stderr, "no descriptor for reports: %s\n", cbshm_strerror(reports));
		return 1;
	}
	run(client, reports);
	status = finish(client);
	cbshm_close(client);
	return status;
}
