/*
 * report.c - what a report that nobody waits for costs its caller, beside a write() to a pipe and a push into a ring
 *
 * SPDX-License-Identifier: ISC
 *
 *	report [--repetitions N] [--iterations N] [--json FILE]
 *
 * Every call is timed on its own, in rounds of --iterations calls; a round yields the time of the middle one, or the time that one in a thousand
 * takes longer than. The agent is a process that answers each report at once, so that the caller's side is what is measured; it and
 * the event loop have the second processor. What a round leaves behind is cleared away before the next one.
 *
 * The times include what the timing itself takes, which the last row tells.
 */
#include "config.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cbshm.h"
#include "tests/bench/measure.h"
#include "tests/support/child.h"

#define ANSWER    "{\"parameters\":{\"incident\":null}}"
#define CLIENTS   8
#define RING_SIZE 1048576
#define TEXT      64 /* bytes of what the peers move: as much as a report in the buffer */

static struct {
	struct cbshm *looped, *passing;
	int pipe_ends[2];
	struct {
		uint64_t end;
		unsigned char memory[RING_SIZE];
	} ring;
	double *samples;
} bench;

/* ---- the agent -------------------------------------------------------------------------- */

static void answer(int fd)
{
	static char text[65536], answers[65536 * 4];
	const ssize_t n = recv(fd, text, sizeof(text), 0);
	size_t used = 0;

	if (n <= 0)
		_exit(0);
	for (ssize_t i = 0; i < n; i++) {
		if (text[i] == '\0' && used + sizeof(ANSWER) <= sizeof(answers)) {
			memcpy(answers + used, ANSWER, sizeof(ANSWER));
			used += sizeof(ANSWER);
		}
	}
	for (size_t at = 0; at < used;) {
		const ssize_t sent = send(fd, answers + at, used - at, MSG_NOSIGNAL);

		if (sent <= 0)
			_exit(0);
		at += (size_t)sent;
	}
}

static void serve(int listener)
{
	struct pollfd fds[CLIENTS + 1] = {{.fd = listener, .events = POLLIN}};
	nfds_t count = 1;

	for (;;) {
		poll(fds, count, -1);
		for (nfds_t i = 1; i < count; i++) {
			if (fds[i].revents)
				answer(fds[i].fd);
		}
		if (fds[0].revents && count <= CLIENTS)
			fds[count++] = (struct pollfd){.fd = accept(listener, NULL, NULL),
						       .events = POLLIN};
	}
}

static void start_agent(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) != 0 ||
	    listen(listener, CLIENTS) != 0) {
		perror(path);
		exit(2);
	}
	if (child_fork() == 0) {
		stay_on(1);
		serve(listener);
	}
	close(listener);
}

/* ---- the subjects ----------------------------------------------------------------------- */

static void must(int error)
{
	if (error != 0) {
		fprintf(stderr, "%s\n", cbshm_strerror(error));
		exit(2);
	}
}

static void report_looped(void)
{
	must(cbshm_report_drift_async(bench.looped, "costsim_v2", 0.25, 1000, NULL));
}

static void report_details(void)
{
	must(cbshm_report_drift_async(bench.looped, "costsim_v2", 0.25, 1000,
				      "{\"worst\": \"order 17\"}"));
}

static void clear_looped(void)
{
	must(cbshm_flush(bench.looped, NULL, NULL));
}

static void report_passing(void)
{
	must(cbshm_report_drift_async(bench.passing, "costsim_v2", 0.25, 1000, NULL));
}

static void clear_passing(void)
{
	must(cbshm_flush(bench.passing, NULL, NULL));
}

static void write_pipe(void)
{
	static const char text[TEXT];

	if (write(bench.pipe_ends[1], text, sizeof(text)) != sizeof(text))
		must(CBSHM_ERR_SYSTEM);
}

static void clear_pipe(void)
{
	char text[65536];

	while (read(bench.pipe_ends[0], text, sizeof(text)) > 0) {
	}
}

static void push_ring(void)
{
	static const char text[TEXT];

	memcpy(bench.ring.memory + (bench.ring.end & (RING_SIZE - 1)), text, sizeof(text));
	__atomic_store_n(&bench.ring.end, bench.ring.end + sizeof(text), __ATOMIC_RELEASE);
}

static void nothing(void)
{
	FORGET();
}

struct side {
	void (*call)(void), (*clear)(void);
};

static const struct side looped = {report_looped, clear_looped},
			 passing = {report_passing, clear_passing},
			 details = {report_details, clear_looped}, piped = {write_pipe, clear_pipe},
			 pushed = {push_ring, nothing}, none = {nothing, nothing};

static const struct {
	const char *key, *title, *beside_title;
	const struct side *run, *beside;
	double quantile;
} measurements[] = {
	{"report_loop", "report, an event loop", "write() to a pipe", &looped, &piped, 0.5},
	{"report_loop_ring", "report, an event loop", "push into a ring", &looped, &pushed, 0.5},
	{"report_loop_p999", "the same, p99.9", "write() to a pipe, p99.9", &looped, &piped, 0.999},
	{"report_details", "report with details, a loop", "write() to a pipe", &details, &piped,
	 0.5},
	{"report_passing", "report, no event loop", "write() to a pipe", &passing, &piped, 0.5},
	{"report_passing_p999", "the same, p99.9", "write() to a pipe, p99.9", &passing, &piped,
	 0.999},
	{"report_timing", "push into a ring", "nothing", &pushed, &none, 0.5},
};

#define MEASUREMENTS (sizeof(measurements) / sizeof(measurements[0]))

/* ---- rounds ----------------------------------------------------------------------------- */

static double round_of(const struct side *side, size_t calls, double which)
{
	for (size_t i = 0; i < calls; i++) {
		const int64_t from = monotonic_ns();

		side->call();
		bench.samples[i] = (double)(monotonic_ns() - from);
	}
	side->clear();
	sort_values(bench.samples, calls);
	return quantile(bench.samples, calls, which);
}

static void measure_rounds(struct pair *pairs, int rounds, size_t calls)
{
	for (size_t m = 0; m < MEASUREMENTS; m++) {
		struct pair *pair = &pairs[m];

		for (int r = -1; r < rounds; r++) { /* the first one only warms up */
			double run = 0, beside;

			if (r % 2 == 0)
				run = round_of(measurements[m].run, calls,
					       measurements[m].quantile);
			beside = round_of(measurements[m].beside, calls, measurements[m].quantile);
			if (r % 2 != 0)
				run = round_of(measurements[m].run, calls,
					       measurements[m].quantile);
			if (r < 0)
				continue;
			pair->run.ns[r] = run;
			pair->beside.ns[r] = beside;
			pair->ratio[r] = run / beside;
		}
		sort_values(pair->run.ns, (size_t)rounds);
		sort_values(pair->beside.ns, (size_t)rounds);
		sort_values(pair->ratio, (size_t)rounds);
	}
}

static void *loop(void *arg)
{
	struct pollfd poll_fd = {.fd = cbshm_fd(bench.looped), .events = POLLIN};

	stay_on(1);
	while (poll(&poll_fd, 1, -1) >= 0)
		cbshm_dispatch(bench.looped);
	return arg;
}

static struct cbshm *open_client(const char *path)
{
	struct cbshm_options options = {.size = sizeof(options),
					.segment = "/cbshm-bench-none",
					.socket = path,
					.report_buffer = 4 << 20};
	struct cbshm *client = NULL;
	/* An empty one, so that the agent is not asked for it: it answers reports and nothing else. */
	int fd = shm_open(options.segment, O_RDWR | O_CREAT, 0600);

	must(fd < 0 ? CBSHM_ERR_SYSTEM : cbshm_open(&options, &client));
	close(fd);
	shm_unlink(options.segment);
	return client;
}

static void set_up(size_t calls)
{
	char directory[] = "/tmp/cbshm-bench-XXXXXX", path[64];
	pthread_t thread;

	if (mkdtemp(directory) == NULL || pipe2(bench.pipe_ends, O_NONBLOCK | O_CLOEXEC) != 0)
		must(CBSHM_ERR_SYSTEM);
	fcntl(bench.pipe_ends[1], F_SETPIPE_SZ, RING_SIZE);
	snprintf(path, sizeof(path), "%s/socket", directory);
	start_agent(path);
	bench.samples = bench_memory(calls, sizeof(double));
	bench.looped = open_client(path);
	bench.passing = open_client(path);
	if (pthread_create(&thread, NULL, loop, NULL) != 0)
		must(CBSHM_ERR_SYSTEM);
	stay_on(0);
	for (int i = 0; i < 2; i++) { /* both are connected */
		report_looped();
		clear_looped();
		report_passing();
		clear_passing();
	}
	unlink(path);
	rmdir(directory);
}

int main(int argc, char **argv)
{
	struct bench_options options = {.repetitions = 201, .iterations = 1000};
	struct pair pairs[MEASUREMENTS];

	if (!bench_options_parse(&options, argc, argv))
		return 2;
	if (options.iterations > 10000) {
		fputs("at most 10000 iterations fit into the buffers\n", stderr);
		return 2;
	}
	set_up(options.iterations);
	for (size_t m = 0; m < MEASUREMENTS; m++) {
		const size_t rounds = (size_t)options.repetitions;

		pairs[m] = (struct pair){.key = measurements[m].key,
					 .title = measurements[m].title,
					 .beside_title = measurements[m].beside_title,
					 .run.ns = bench_memory(rounds, sizeof(double)),
					 .beside.ns = bench_memory(rounds, sizeof(double)),
					 .ratio = bench_memory(rounds, sizeof(double))};
	}
	measure_rounds(pairs, options.repetitions, options.iterations);
	print_table(pairs, MEASUREMENTS, options.repetitions);
	if (options.json &&
	    print_json(options.json, "report", pairs, MEASUREMENTS, options.repetitions, "") != 0)
		return 2;
	return 0; /* the loop and the agent end with the process */
}
