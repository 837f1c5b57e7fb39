/*
 * snapshot.c - keeps the mirror on disk, for the reboot after which the database is not there
 *
 * SPDX-License-Identifier: ISC
 *
 * When: a second after a decision, a minute after anything else, every ten minutes for its age; later if writing takes long, so
 * that it never takes more than a few percent of the time. Only while the mirror is live: what is not confirmed does not
 * replace what was.
 *
 * How: a fork of this process reads the segment as any reader does, and writes. The agent has one thread of its own and
 * the child needs nothing that another (of the resolver) might have locked but malloc(3), which the C library sees to.
 */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <event2/event.h>
#include <libpq-fe.h>

#include "agent/agent.h"
#include "agent/config.h"
#include "agent/database.h"
#include "agent/log.h"
#include "agent/snapshot.h"
#include "agent/snapshot_file.h"
#include "agent/text.h"
#include "libcbshm/hash.h"

/* Microseconds from a change to its snapshot, and at least so many times as long as the last one took. */
#define AFTER_DECISION INT64_C(1000000)
#define TIMES_DECISION 20
#define AFTER_CHANGE   INT64_C(60000000)
#define TIMES_CHANGE   200
#define AFTER_NOTHING  INT64_C(600000000)
#define TIMES_NOTHING  2000
#define FAILED_PAUSE   INT64_C(10000000)
/* How long one may take before it is ended; a file system that hangs must not keep later ones from being written. */
#define TAKES_AT_MOST INT64_C(10000000)
#define TIMES_AT_MOST 20

struct outcome {
	int error;
	uint64_t entries;
	char message[256];
};

struct snapshot {
	struct agent *agent;
	char restored[96]; /* the identity of the database that was restored; "" */
	struct event *tick;
	struct event *ended; /* of the child's pipe */
	int pipe;            /* -1: no child */
	pid_t child;
	bool hung; /* it has been killed; a process that the kernel does not let go may be there for long */
	int64_t started, took; /* microseconds of CLOCK_MONOTONIC; 0: none yet */
	int64_t written;
	struct segment_changes begun, done; /* as of the one under way, and of the last good one */
	bool failed;                        /* the last one; the log has it */
	int64_t good_at;                    /* microseconds of CLOCK_REALTIME; 0: none */
	uint64_t failures;
};

static int64_t clock_us(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* ---- which database --------------------------------------------------------------------- */

/*
 * What of the configuration says where the database is. The snapshot is needed when that cannot be asked, so this is all that can
 * be compared then.
 */
static uint64_t target_of(const struct config *config)
{
	static const char *const keywords[] = {"service", "host", "hostaddr", "port", "dbname"};
	static const char *const variables[] = {"PGSERVICE", "PGHOST", "PGHOSTADDR", "PGPORT",
						"PGDATABASE"};
	static const uint64_t key[2] = {0, 0};
	PQconninfoOption *options = PQconninfoParse(config->conninfo, NULL);
	struct text text = {0};
	uint64_t hash;

	for (size_t i = 0; i < sizeof(keywords) / sizeof(*keywords); i++) {
		const char *value = NULL;

		for (PQconninfoOption *o = options; o != NULL && o->keyword != NULL; o++) {
			if (strcmp(o->keyword, keywords[i]) == 0)
				value = o->val;
		}
		if (value == NULL)
			value = getenv(variables[i]);
		text_format(&text, "%s=%s\n", keywords[i], value != NULL ? value : "");
	}
	hash = hash_siphash(key, text.data, text.length);
	free(text.data);
	PQconninfoFree(options);
	return hash;
}

/* ---- restoring -------------------------------------------------------------------------- */

struct restoring {
	struct snapshot *snapshot;
	struct segment_writer *segment;
	int64_t confirmed_at;
	uint64_t disabled;
	uint64_t left_out;
};

static void restore_breaker(void *arg, const struct breaker_row *row)
{
	struct restoring *restoring = arg;

	if (segment_writer_put(restoring->segment, row, true) < 0)
		restoring->left_out++;
	else
		restoring->disabled += row->disabled;
}

/*
 * The database's clock as far as this host can know it: its own wall clock, corrected by what was measured last. A wall clock
 * that is behind the snapshot is wrong (a machine without a battery); then no time has passed, as
 * a TTL that ends too late does less harm than one too early.
 */
static void restore_clock(struct segment_writer *segment, const struct snapshot_about *about)
{
	int64_t wall = clock_us(CLOCK_REALTIME);

	if (wall < about->confirmed_at)
		wall = about->confirmed_at;
	segment_writer_set_clock(segment, wall + about->clock_offset - clock_us(CLOCK_BOOTTIME), 0);
}

static void restore_about(void *arg, const struct snapshot_about *about)
{
	struct restoring *restoring = arg;

	restoring->confirmed_at = about->confirmed_at;
	strcpy(restoring->snapshot->restored, about->identity);
	restore_clock(restoring->segment, about);
	segment_writer_set_restored(restoring->segment, about->confirmed_at);
}

static void log_restored(const char *path, const struct restoring *restoring)
{
	const int64_t age = clock_us(CLOCK_REALTIME) - restoring->confirmed_at;

	log_problem(LOG_LEVEL_WARNING, "snapshot_restored",
		    "the segment was made anew and holds what was last known; it counts as stale "
		    "until the database confirms it",
		    "path=%s breakers=%u disabled=%ju left_out=%ju age_seconds=%jd",
		    LOG_VALUE(path), segment_writer_breakers(restoring->segment),
		    (uintmax_t)restoring->disabled, (uintmax_t)restoring->left_out,
		    (intmax_t)(age / 1000000));
}

void snapshot_restore(struct segment_writer *segment, void *arg)
{
	struct snapshot *snapshot = arg;
	const struct config *config = snapshot->agent->config;
	struct restoring restoring = {.snapshot = snapshot, .segment = segment};
	const struct snapshot_reader reader = {restore_about, restore_breaker, &restoring};
	char message[512];
	int error;

	if (*config->snapshot == '\0')
		return;
	error = snapshot_file_read(config->snapshot, target_of(config), &reader,
				   &(struct segment_message){message, sizeof(message)});
	if (error == 0)
		log_restored(config->snapshot, &restoring);
	else if (error == -ENOENT)
		log_event(LOG_LEVEL_INFO, "snapshot_none", "path=%s", LOG_VALUE(config->snapshot));
	else
		log_problem(LOG_LEVEL_WARNING, "snapshot_ignored",
			    "breakers are unknown, and so closed, until the database answers; the "
			    "next snapshot replaces this one",
			    "reason=%s", LOG_VALUE(message));
}

/* ---- writing ---------------------------------------------------------------------------- */

/* The server's system identifier, which a dump that is loaded elsewhere does not take along. "": not known. */
static void identify(const struct database *database, char identity[96])
{
	const char *incarnation = database_incarnation(database);

	snprintf(identity, 96, "%.*s", (int)strcspn(incarnation, "/"), incarnation);
}

/* It could not be asked when the snapshot was restored. What is not in it has been removed by now. */
static void compare_database(struct snapshot *snapshot)
{
	char identity[96];

	identify(snapshot->agent->database, identity);
	if (*snapshot->restored != '\0' && *identity != '\0' &&
	    strcmp(identity, snapshot->restored) != 0)
		log_problem(LOG_LEVEL_WARNING, "snapshot_of_another_database",
			    "what was restored is replaced: find out which breakers engines have "
			    "obeyed meanwhile",
			    "restored=%s connected=%s", LOG_VALUE(snapshot->restored),
			    LOG_VALUE(identity));
	*snapshot->restored = '\0';
}

static void write_now(const struct snapshot *snapshot, struct outcome *outcome)
{
	const struct agent *agent = snapshot->agent;
	struct snapshot_about about = {
		.confirmed_at = clock_us(CLOCK_REALTIME),
		.clock_offset = segment_writer_clock_offset(agent->segment),
		.target = target_of(agent->config),
	};

	identify(agent->database, about.identity);
	memset(outcome, 0, sizeof(*outcome));
	outcome->error = snapshot_file_write(
		agent->config->snapshot, segment_writer_view(agent->segment), &about,
		&(struct segment_message){outcome->message, sizeof(outcome->message)});
	outcome->entries = about.entries;
}

static void take_outcome(struct snapshot *snapshot, const struct outcome *outcome)
{
	const struct config *config = snapshot->agent->config;

	snapshot->took = clock_us(CLOCK_MONOTONIC) - snapshot->started;
	snapshot->written = clock_us(CLOCK_MONOTONIC);
	snapshot->failures += outcome->error != 0;
	if (outcome->error == 0) {
		snapshot->done = snapshot->begun;
		snapshot->good_at = clock_us(CLOCK_REALTIME);
		log_event(snapshot->failed ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG, "snapshot_written",
			  "path=%s breakers=%ju milliseconds=%jd", LOG_VALUE(config->snapshot),
			  (uintmax_t)outcome->entries, (intmax_t)(snapshot->took / 1000));
	} else if (!snapshot->failed) {
		log_problem(LOG_LEVEL_ERROR, "snapshot_failed",
			    "make room, or let cbagent's user write there ([segment] snapshot); it "
			    "is tried again",
			    "reason=%s", LOG_VALUE(outcome->message));
	}
	snapshot->failed = outcome->error != 0;
}

/* What the parent's handlers would do here, to descriptors that are others now. Every signal is blocked. */
static void forget_signals(void)
{
	sigset_t none;

	for (int number = 1; number < NSIG; number++)
		signal(number, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Nothing of the parent's is kept open: neither its lock, nor a client's connection. */
static void be_child(struct snapshot *snapshot, int pipe, pid_t parent)
{
	struct outcome outcome;

	forget_signals();
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent || dup2(pipe, STDERR_FILENO + 1) < 0 ||
	    syscall(SYS_close_range, STDERR_FILENO + 2, ~0U, 0) < 0)
		_exit(1);
	umask(0077);
	write_now(snapshot, &outcome);
	_exit(write(STDERR_FILENO + 1, &outcome, sizeof(outcome)) == (ssize_t)sizeof(outcome) ? 0
											      : 1);
}

static void on_ended(evutil_socket_t fd, short what, void *arg)
{
	struct snapshot *snapshot = arg;
	struct outcome outcome;
	ssize_t count = read(fd, &outcome, sizeof(outcome));

	(void)what;
	if (count < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (count != (ssize_t)sizeof(outcome)) {
		outcome = (struct outcome){.error = -EIO};
		strcpy(outcome.message,
		       snapshot->hung ? "it took too long" : "the process that wrote it has died");
	}
	event_free(snapshot->ended);
	snapshot->ended = NULL;
	close(snapshot->pipe);
	snapshot->pipe = -1;
	while (waitpid(snapshot->child, NULL, 0) < 0 && errno == EINTR)
		;
	take_outcome(snapshot, &outcome);
}

/* NULL: it runs. */
static const char *start_child(struct snapshot *snapshot)
{
	const pid_t parent = getpid();
	sigset_t all, before;
	int ends[2];

	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
		return strerror(errno);
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	snapshot->hung = false;
	snapshot->child = fork();
	if (snapshot->child == 0)
		be_child(snapshot, ends[1], parent);
	int error = errno;
	sigprocmask(SIG_SETMASK, &before, NULL);
	close(ends[1]);
	if (snapshot->child < 0) {
		close(ends[0]);
		return strerror(error);
	}
	snapshot->pipe = ends[0];
	snapshot->ended = event_new(snapshot->agent->base, snapshot->pipe, EV_READ | EV_PERSIST,
				    on_ended, snapshot);
	event_add(snapshot->ended, NULL);
	return NULL;
}

static int64_t longer(int64_t least, int64_t times)
{
	return least > times ? least : times;
}

static bool is_due(const struct snapshot *snapshot)
{
	const struct segment_changes now = segment_writer_changes(snapshot->agent->segment);
	const int64_t since = clock_us(CLOCK_MONOTONIC) - snapshot->written;

	if (database_state(snapshot->agent->database) != DATABASE_LIVE)
		return false;
	if (snapshot->failed)
		return since >= FAILED_PAUSE;
	if (snapshot->written == 0 || now.decisions != snapshot->done.decisions)
		return since >= longer(AFTER_DECISION, TIMES_DECISION * snapshot->took);
	if (now.all != snapshot->done.all)
		return since >= longer(AFTER_CHANGE, TIMES_CHANGE * snapshot->took);
	return since >= longer(AFTER_NOTHING, TIMES_NOTHING * snapshot->took);
}

static void begin(struct snapshot *snapshot)
{
	snapshot->started = clock_us(CLOCK_MONOTONIC);
	snapshot->begun = segment_writer_changes(snapshot->agent->segment);
}

/* Its end is told by the pipe, as always. */
static void end_if_hung(struct snapshot *snapshot)
{
	const int64_t since = clock_us(CLOCK_MONOTONIC) - snapshot->started;

	if (snapshot->hung || since < longer(TAKES_AT_MOST, TIMES_AT_MOST * snapshot->took))
		return;
	log_problem(LOG_LEVEL_ERROR, "snapshot_hangs",
		    "see to the file system of [segment] snapshot; until it writes again, a reboot "
		    "without the database finds the last snapshot",
		    "path=%s seconds=%jd", LOG_VALUE(snapshot->agent->config->snapshot),
		    (intmax_t)(since / 1000000));
	snapshot->hung = snapshot->failed = true;
	kill(snapshot->child, SIGKILL);
}

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
	struct snapshot *snapshot = arg;
	struct outcome outcome = {.error = -EAGAIN};
	const char *wrong;

	(void)fd;
	(void)what;
	if (snapshot->pipe >= 0)
		end_if_hung(snapshot);
	if (snapshot->pipe >= 0 || !is_due(snapshot))
		return;
	compare_database(snapshot);
	begin(snapshot);
	wrong = start_child(snapshot);
	if (wrong == NULL)
		return;
	snprintf(outcome.message, sizeof(outcome.message), "no process to write it: %s", wrong);
	take_outcome(snapshot, &outcome);
}

/* ---- life ------------------------------------------------------------------------------- */

struct snapshot *snapshot_new(struct agent *agent)
{
	struct snapshot *snapshot = memory_new(1, sizeof(*snapshot));

	snapshot->agent = agent;
	snapshot->pipe = -1;
	return snapshot;
}

void snapshot_start(struct snapshot *snapshot)
{
	if (*snapshot->agent->config->snapshot == '\0')
		return;
	snapshot->tick = event_new(snapshot->agent->base, -1, EV_PERSIST, on_tick, snapshot);
	event_add(snapshot->tick, &(struct timeval){.tv_sec = 1});
}

int64_t snapshot_written_at(const struct snapshot *snapshot)
{
	return snapshot->good_at;
}

uint64_t snapshot_failures(const struct snapshot *snapshot)
{
	return snapshot->failures;
}

/* It has nothing that is worth waiting for; nor is one that hung waited for, init sees to it. */
static void kill_child(struct snapshot *snapshot)
{
	if (snapshot->pipe < 0)
		return;
	kill(snapshot->child, SIGKILL);
	while (waitpid(snapshot->child, NULL, snapshot->hung ? WNOHANG : 0) < 0 && errno == EINTR)
		;
	event_free(snapshot->ended);
	close(snapshot->pipe);
	snapshot->pipe = -1;
}

void snapshot_finish(struct snapshot *snapshot)
{
	struct outcome outcome;

	if (snapshot == NULL || snapshot->tick == NULL)
		return;
	const bool hangs = snapshot->pipe >= 0 && snapshot->hung;

	kill_child(snapshot);
	if (hangs || database_state(snapshot->agent->database) != DATABASE_LIVE)
		return;
	begin(snapshot);
	write_now(snapshot, &outcome);
	take_outcome(snapshot, &outcome);
}

void snapshot_free(struct snapshot *snapshot)
{
	if (snapshot == NULL)
		return;
	kill_child(snapshot);
	if (snapshot->tick != NULL)
		event_free(snapshot->tick);
	free(snapshot);
}
