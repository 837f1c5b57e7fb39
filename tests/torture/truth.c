/*
 * truth.c - what may be true of a breaker at this moment, and readers that hold every answer against it
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include "tests/torture/truth.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/support/child.h"
#include "tests/support/segment.h"

#define MS              INT64_C(1000000)
#define THREADS_MAX     16
#define CHECKS          4 /* of one breaker, for each record */
#define LOOKS_PER_FORK  2000
#define LOOKS_PER_LIST  8
#define SIGNAL_EVERY_US 500
#define PAUSE_NS        100000

/*
 * `changes` rises before anything here changes for the worse, and after it has changed for the better: as long as it stays
 * the same, so does everything else.
 */
struct truth_entry {
	_Alignas(64) uint64_t changes;
	uint64_t low, high; /* the versions that may be seen */
	uint32_t there, gone;
};

struct truth {
	struct truth_entry entries[TRUTH_BREAKERS];
	uint64_t policy_low, policy_high;
	uint32_t stop;
	struct tally tallies[READERS_MAX][THREADS_MAX + 1];
};

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
/* Of freed memory AddressSanitizer keeps 256 MiB, and fork(2) copies them: that was two thirds of crash_points. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "quarantine_size_mb=2";
}
#endif

static struct truth *truth;
static char names[TRUTH_BREAKERS][16];

#define LOAD(at)         __atomic_load_n(&(at), __ATOMIC_SEQ_CST)
#define STORE(at, value) __atomic_store_n(&(at), (value), __ATOMIC_SEQ_CST)
#define COUNT(at, n)     __atomic_store_n(&(at), (at) + (n), __ATOMIC_RELAXED)

static int64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t truth_now(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

void truth_create(void)
{
	truth = mmap(NULL, sizeof(*truth), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	if (truth == MAP_FAILED) {
		puts("Bail out! no shared memory");
		exit(99);
	}
	for (unsigned int i = 0; i < TRUTH_BREAKERS; i++) {
		truth->entries[i].gone = 1;
		snprintf(names[i], sizeof(names[i]), "truth-%u", i);
	}
	truth->policy_low = truth->policy_high = 1;
}

uint64_t truth_version(unsigned int breaker)
{
	return LOAD(truth->entries[breaker].high);
}

bool truth_is_there(unsigned int breaker)
{
	return LOAD(truth->entries[breaker].there) && !LOAD(truth->entries[breaker].gone);
}

static void changes(struct truth_entry *entry)
{
	STORE(entry->changes, entry->changes + 1);
}

/* ---- what follows from a version -------------------------------------------------------- */

#define TTL_NONE    0
#define TTL_AHEAD   1
#define TTL_PASSED  2
#define TTL_USELESS 3 /* passed, without auto_recover */
#define YEAR_2100   INT64_C(4102444800000000)

struct expected {
	bool row_disabled, disabled, auto_recover;
	int64_t disabled_until;
	uint64_t seed;
	char block[16]; /* the texts are repetitions of it */
	size_t actor_length, reason_length;
	uint8_t incident_id[16];
};

static void hex(char *to, const uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		to[2 * i] = "0123456789abcdef"[bytes[i] >> 4];
		to[2 * i + 1] = "0123456789abcdef"[bytes[i] & 15];
	}
}

static int ttl_of(uint64_t version)
{
	return (int)(version >> 1) % 4;
}

static bool is_disabled(uint64_t version)
{
	return version % 2 && ttl_of(version) != TTL_PASSED;
}

static void expect(struct expected *expected, unsigned int breaker, uint64_t version)
{
	uint64_t seed = (version * TRUTH_BREAKERS + breaker) * UINT64_C(0x9e3779b97f4a7c15);
	uint64_t two[2] = {seed, ~seed};
	int ttl = ttl_of(version);

	memset(expected, 0, sizeof(*expected));
	expected->seed = seed;
	expected->row_disabled = version % 2;
	expected->disabled = is_disabled(version);
	expected->auto_recover = ttl != TTL_USELESS;
	expected->disabled_until = CBSHM_NO_TIME;
	if (!expected->row_disabled)
		return;
	if (ttl == TTL_AHEAD)
		expected->disabled_until = YEAR_2100 + (int64_t)version;
	else if (ttl != TTL_NONE)
		expected->disabled_until = (int64_t)version;
	hex(expected->block, (const uint8_t *)&seed, 8);
	expected->actor_length = 1 + seed % (CBSHM_ACTOR_SIZE - 1);
	expected->reason_length = 1 + (seed >> 8) % (CBSHM_REASON_SIZE - 1);
	memcpy(expected->incident_id, two, sizeof(two));
}

/* `to` has room for what is written beyond the length. */
static void repeat(char *to, const char block[16], size_t length)
{
	for (size_t i = 0; i < length; i += 16)
		memcpy(&to[i], block, 16);
	to[length] = '\0';
}

static bool repeats(const char *text, const char block[16], size_t length)
{
	size_t i = 0;

	for (; i + 16 <= length; i += 16) {
		if (memcmp(&text[i], block, 16) != 0)
			return false;
	}
	return memcmp(&text[i], block, length - i) == 0 && text[length] == '\0';
}

static bool same_incident(const char *text, const struct expected *expected)
{
	char digits[32];

	if (!expected->row_disabled)
		return text[0] == '\0';
	hex(digits, expected->incident_id, 16);
	return memcmp(text, digits, 8) == 0 && text[8] == '-' &&
	       memcmp(text + 9, digits + 8, 4) == 0 && text[13] == '-' &&
	       memcmp(text + 14, digits + 12, 4) == 0 && text[18] == '-' &&
	       memcmp(text + 19, digits + 16, 4) == 0 && text[23] == '-' &&
	       memcmp(text + 24, digits + 20, 12) == 0 && text[36] == 0;
}

struct row {
	struct breaker_row row;
	char by[CBSHM_ACTOR_SIZE + 16], reason[CBSHM_REASON_SIZE + 16];
};

static void row_fill(struct row *row, unsigned int breaker, uint64_t version, uint64_t policy)
{
	struct expected expected;

	expect(&expected, breaker, version);
	repeat(row->by, expected.block, expected.actor_length);
	repeat(row->reason, expected.block, expected.reason_length);
	row->row = (struct breaker_row){
		.name = names[breaker],
		.version = version,
		.disabled = expected.row_disabled,
		.disabled_by = row->by,
		.disabled_reason = row->reason,
		.opened_at = (int64_t)(expected.seed >> 1),
		.disabled_until = expected.disabled_until,
		.last_failure_at = (int64_t)(expected.seed >> 2),
		.updated_at = (int64_t)(expected.seed >> 3),
		.consecutive_failures = (uint32_t)(expected.seed >> 4),
		.drift_threshold = (double)policy / 4,
		.failure_threshold = (uint32_t)policy + 11,
		.schema_error_threshold = (uint32_t)policy + 13,
		.default_ttl = (int64_t)policy * 17,
		.auto_recover = expected.auto_recover,
	};
	memcpy(row->row.incident_id, expected.incident_id, sizeof(row->row.incident_id));
}

static const char *record_wrong(unsigned int breaker, const struct cbshm_state *state)
{
	uint64_t policy = (uint64_t)(state->policy.drift_threshold * 4);
	struct expected expected;

	expect(&expected, breaker, state->version);
	if (state->row_disabled != expected.row_disabled)
		return "row_disabled";
	if (state->disabled != expected.disabled)
		return "disabled";
	if (state->flags != 0)
		return "flags";
	if (state->opened_at != (int64_t)(expected.seed >> 1))
		return "opened_at";
	if (state->disabled_until != expected.disabled_until)
		return "disabled_until";
	if (state->last_failure_at != (int64_t)(expected.seed >> 2))
		return "last_failure_at";
	if (state->updated_at != (int64_t)(expected.seed >> 3))
		return "updated_at";
	if (expected.disabled_until == CBSHM_NO_TIME
		    ? state->remaining_us != CBSHM_NO_TIME
		    : (state->remaining_us != 0) != (expected.disabled_until >= YEAR_2100))
		return "remaining_us";
	if (state->consecutive_failures != (uint32_t)(expected.seed >> 4))
		return "consecutive_failures";
	if (!same_incident(state->incident_id, &expected))
		return "incident_id";
	if (!repeats(state->disabled_by, expected.block, expected.actor_length))
		return "disabled_by";
	if (!repeats(state->disabled_reason, expected.block, expected.reason_length))
		return "disabled_reason";
	if (state->policy.failure_threshold != (uint32_t)policy + 11 ||
	    state->policy.schema_error_threshold != (uint32_t)policy + 13 ||
	    state->policy.default_ttl_us != (int64_t)policy * 17 ||
	    state->policy.auto_recover != expected.auto_recover)
		return "policy";
	return NULL;
}

/* ---- changes ---------------------------------------------------------------------------- */

static int must(int result, const char *what)
{
	if (result < 0) {
		printf("# %s: %s\n", what, strerror(-result));
		fflush(stdout);
		_exit(98);
	}
	return result;
}

int truth_put(struct segment_writer *writer, unsigned int breaker, uint64_t version)
{
	struct truth_entry *entry = &truth->entries[breaker];
	struct row row;

	row_fill(&row, breaker, version, LOAD(truth->policy_high));
	if (version > entry->high)
		STORE(entry->high, version);
	STORE(entry->there, 1);
	changes(entry);
	int changed = must(segment_writer_put(writer, &row.row, false), "segment_writer_put()");
	segment_writer_publish(writer);
	STORE(entry->low, version);
	STORE(entry->gone, 0);
	changes(entry);
	return changed;
}

void truth_burst(struct segment_writer *writer, unsigned int breaker, unsigned int count)
{
	struct truth_entry *entry = &truth->entries[breaker];
	uint64_t first = entry->high + 1;
	struct row row;

	STORE(entry->high, entry->high + count);
	STORE(entry->there, 1);
	changes(entry);
	for (unsigned int i = 0; i < count; i++) {
		row_fill(&row, breaker, first + i, truth->policy_high);
		must(segment_writer_put(writer, &row.row, false), "segment_writer_put()");
	}
	segment_writer_publish(writer);
	STORE(entry->low, entry->high);
	STORE(entry->gone, 0);
	changes(entry);
}

static void may_go(struct truth_entry *entry)
{
	STORE(entry->gone, 1);
	changes(entry);
}

static void has_gone(struct truth_entry *entry)
{
	STORE(entry->there, 0);
	changes(entry);
}

int truth_remove(struct segment_writer *writer, unsigned int breaker)
{
	may_go(&truth->entries[breaker]);
	int removed =
		must(segment_writer_remove(writer, names[breaker]), "segment_writer_remove()");
	segment_writer_publish(writer);
	has_gone(&truth->entries[breaker]);
	return removed;
}

/* After a kill a breaker may be of a version below `high`: its row is then put again, as a reload does it. */
static void put_again(struct segment_writer *writer, unsigned int breaker)
{
	struct truth_entry *entry = &truth->entries[breaker];
	struct row row;

	row_fill(&row, breaker, entry->high, LOAD(truth->policy_high));
	must(segment_writer_put(writer, &row.row, true), "segment_writer_put()");
	STORE(entry->low, entry->high);
	STORE(entry->gone, 0);
	changes(entry);
}

void truth_policy(struct segment_writer *writer)
{
	STORE(truth->policy_high, truth->policy_high + 1);
	for (unsigned int i = 0; i < TRUTH_BREAKERS; i++) {
		if (LOAD(truth->entries[i].there))
			put_again(writer, i);
	}
	segment_writer_publish(writer);
	STORE(truth->policy_low, truth->policy_high);
}

void truth_load(struct segment_writer *writer, uint32_t breakers)
{
	segment_writer_load_begin(writer);
	for (unsigned int i = 0; i < TRUTH_BREAKERS; i++) {
		struct truth_entry *entry = &truth->entries[i];

		if (breakers >> i & 1) {
			STORE(entry->there, 1);
			changes(entry);
			put_again(writer, i);
		} else {
			may_go(entry);
		}
	}
	segment_writer_load_end(writer);
	segment_writer_publish(writer);
	for (unsigned int i = 0; i < TRUTH_BREAKERS; i++) {
		if (!(breakers >> i & 1))
			has_gone(&truth->entries[i]);
	}
}

/* ---- witnesses -------------------------------------------------------------------------- */

struct witness {
	struct cbshm *client;
	struct cbshm_breaker *handles[TRUTH_BREAKERS];
	uint64_t newest[TRUTH_BREAKERS];
	uint64_t policy; /* likewise */
	int64_t before;  /* the end of the last read */
	int64_t cpu;     /* processor time of the thread, at the last look */
	long sleeps;
};

/* What may be true, at the beginning of a read. */
struct frame {
	uint64_t changes, low;
	uint32_t there, gone;
};

static struct frame frame_begin(const struct truth_entry *entry)
{
	struct frame frame = {.changes = LOAD(entry->changes)};

	frame.low = LOAD(entry->low);
	frame.there = LOAD(entry->there);
	frame.gone = LOAD(entry->gone);
	return frame;
}

static __attribute__((format(printf, 2, 3))) void wrong(struct tally *tally, const char *format,
							...)
{
	va_list args;

	if (tally->wrong[0])
		return;
	va_start(args, format);
	vsnprintf(tally->wrong, sizeof(tally->wrong), format, args);
	va_end(args);
}

static void check_presence(struct tally *tally, unsigned int breaker, const struct frame *frame,
			   bool found)
{
	const struct truth_entry *entry = &truth->entries[breaker];

	if (LOAD(entry->changes) != frame->changes)
		return;
	if (found && !frame->there)
		wrong(tally, "truth-%u is still there", breaker);
	if (!found && !frame->gone)
		wrong(tally, "truth-%u was not found", breaker);
}

static void check_version(struct tally *tally, unsigned int breaker, const struct frame *frame,
			  uint64_t version, const char *what)
{
	uint64_t high = LOAD(truth->entries[breaker].high);

	if (version < frame->low)
		wrong(tally, "truth-%u: %s of version %llu, after %llu had been published", breaker,
		      what, (unsigned long long)version, (unsigned long long)frame->low);
	if (version > high)
		wrong(tally, "truth-%u: %s of version %llu, which never was: %llu is the newest",
		      breaker, what, (unsigned long long)version, (unsigned long long)high);
}

static bool check_decision(struct tally *tally, unsigned int breaker, const struct frame *frame,
			   struct cbshm_decision decision)
{
	bool found = decision.basis == CBSHM_BASIS_SEGMENT;

	if (decision.basis == CBSHM_BASIS_NO_SEGMENT)
		wrong(tally, "truth-%u: there is no segment", breaker);
	check_presence(tally, breaker, frame, found);
	if (!found && decision.disabled)
		wrong(tally, "truth-%u: disabled, and not there", breaker);
	if (found && decision.disabled != is_disabled(decision.epoch))
		wrong(tally, "truth-%u: decision %u of version %u", breaker,
		      (unsigned int)decision.disabled, (unsigned int)decision.epoch);
	if (found)
		check_version(tally, breaker, frame, decision.epoch, "a decision");
	return found;
}

static void check_record(struct tally *tally, unsigned int breaker, const struct frame *frame,
			 const struct cbshm_state *state)
{
	const char *field = record_wrong(breaker, state);
	uint64_t policy = (uint64_t)(state->policy.drift_threshold * 4);

	if (field)
		wrong(tally, "truth-%u: %s of version %llu is wrong", breaker, field,
		      (unsigned long long)state->version);
	check_version(tally, breaker, frame, state->version, "a record");
	if (policy > LOAD(truth->policy_high))
		wrong(tally, "truth-%u: policy %llu never was", breaker,
		      (unsigned long long)policy);
}

static long sleeps(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_nvcsw;
}

/*
 * One read has ended. If it took long, was it for lack of a processor? Then the thread has neither computed nor slept
 * for that time.
 */
static void stamp(struct witness *witness, struct tally *tally)
{
	int64_t now = truth_now();
	int64_t took = now - witness->before;

	if (took > MS) {
		int64_t cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
		long slept = sleeps();

		if (cpu - witness->cpu > MS || slept != witness->sleeps)
			COUNT(tally->waited, 1);
		else
			COUNT(tally->late, 1);
		witness->cpu = cpu;
		witness->sleeps = slept;
		now = truth_now();
	} else if ((uint64_t)took > tally->longest) {
		tally->longest = (uint64_t)took;
	}
	witness->before = now;
}

static void stamp_anew(struct witness *witness)
{
	witness->cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
	witness->sleeps = sleeps();
	witness->before = truth_now();
}

static void look_at_record(struct witness *witness, struct tally *tally, unsigned int breaker)
{
	struct frame frame = frame_begin(&truth->entries[breaker]);
	struct cbshm_state state;

	witness->before = truth_now();
	int error = cbshm_get_state(witness->handles[breaker], &state);
	stamp(witness, tally);
	COUNT(tally->records, 1);
	if (error == CBSHM_ERR_BUSY) {
		COUNT(tally->busy, 1);
		return;
	}
	if (error && error != CBSHM_ERR_NOT_FOUND)
		wrong(tally, "truth-%u: %s", breaker, cbshm_strerror(error));
	check_presence(tally, breaker, &frame, error == 0);
	if (error) {
		COUNT(tally->absent, 1);
		return;
	}
	check_record(tally, breaker, &frame, &state);
	if (state.version < witness->newest[breaker])
		wrong(tally, "truth-%u: version %llu after %llu", breaker,
		      (unsigned long long)state.version,
		      (unsigned long long)witness->newest[breaker]);
	witness->newest[breaker] = state.version;
}

static void look_at_decision(struct witness *witness, struct tally *tally, unsigned int breaker)
{
	struct frame frame = frame_begin(&truth->entries[breaker]);

	witness->before = truth_now();
	struct cbshm_decision decision = cbshm_check(witness->handles[breaker]);
	stamp(witness, tally);
	COUNT(tally->checks, 1);
	if (!check_decision(tally, breaker, &frame, decision)) {
		COUNT(tally->absent, 1);
		return;
	}
	if (decision.epoch < witness->newest[breaker])
		wrong(tally, "truth-%u: decision of version %u after %llu", breaker,
		      (unsigned int)decision.epoch, (unsigned long long)witness->newest[breaker]);
	witness->newest[breaker] = decision.epoch;
}

void witness_look(struct witness *witness, struct tally *tally)
{
	stamp_anew(witness);
	for (unsigned int i = 0; i < TRUTH_BREAKERS; i++) {
		look_at_record(witness, tally, i);
		for (int k = 0; k < CHECKS; k++)
			look_at_decision(witness, tally, i);
	}
}

void witness_glance(const struct witness *witness, unsigned int breaker, struct tally *tally)
{
	const struct truth_entry *entry = &truth->entries[breaker];
	struct frame frame = frame_begin(entry);
	struct cbshm_state state;

	check_decision(tally, breaker, &frame, cbshm_check(witness->handles[breaker]));
	COUNT(tally->signals, 1);
	if (cbshm_get_state(witness->handles[breaker], &state) == 0)
		check_record(tally, breaker, &frame, &state);
}

struct list {
	struct tally *tally;
	struct frame frames[TRUTH_BREAKERS];
	uint32_t seen;
};

static int list_one(const struct cbshm_state *state, void *arg)
{
	struct list *list = arg;
	unsigned int breaker;

	if (strncmp(state->name, "filler", 6) == 0)
		return 0; /* nothing is said of these */
	COUNT(list->tally->records, 1);
	if (sscanf(state->name, "truth-%u", &breaker) != 1 || breaker >= TRUTH_BREAKERS) {
		wrong(list->tally, "a breaker '%s' never was", state->name);
		return 0;
	}
	list->seen |= 1u << breaker;
	check_presence(list->tally, breaker, &list->frames[breaker], true);
	check_record(list->tally, breaker, &list->frames[breaker], state);
	return 0;
}

void witness_list(struct witness *witness, struct tally *tally)
{
	struct list list = {.tally = tally};

	for (unsigned int i = 0; i < TRUTH_BREAKERS; i++)
		list.frames[i] = frame_begin(&truth->entries[i]);
	if (cbshm_foreach(witness->client, list_one, &list) != 0)
		wrong(tally, "cbshm_foreach()");
	for (unsigned int i = 0; i < TRUTH_BREAKERS; i++) {
		if (!(list.seen >> i & 1))
			check_presence(tally, i, &list.frames[i], false);
	}
}

struct witness *witness_open(const char *segment)
{
	struct witness *witness = calloc(1, sizeof(*witness));

	if (!witness)
		abort();
	witness->client = scratch_client(segment);
	for (unsigned int i = 0; i < TRUTH_BREAKERS; i++)
		witness->handles[i] = scratch_breaker(witness->client, names[i]);
	stamp_anew(witness);
	return witness;
}

void witness_close(struct witness *witness)
{
	cbshm_close(witness->client);
	free(witness);
}

/* ---- readers ---------------------------------------------------------------------------- */

static pid_t readers[READERS_MAX];
static unsigned int reader_count;

/* Of one reader's process. */
static struct witness *handler_witness;
static struct tally *handler_tally;

struct reader_thread {
	pthread_t thread;
	struct witness *witness;
	struct tally *tally;
	enum readers_manner manner;
};

/* The handler may run in several threads at once; what they count is one number among many then. */
static void on_signal(int signal)
{
	static uint32_t next;
	int saved = errno;

	(void)signal;
	errno = 4711;
	witness_glance(handler_witness,
		       __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED) % TRUTH_BREAKERS,
		       handler_tally);
	if (errno != 4711)
		wrong(handler_tally, "errno was changed in a handler");
	errno = saved;
}

/* A child that is a copy of this thread, handles, mappings and all. */
static void fork_and_look(struct witness *witness, struct tally *tally)
{
	int status;
	pid_t child = child_fork();

	if (child == 0) {
		static struct tally own;

		for (int i = 0; i < 20 && !own.wrong[0]; i++) {
			witness_look(witness, &own);
			witness_list(witness, &own);
		}
		if (own.wrong[0])
			wrong(tally, "in a child: %.120s", own.wrong);
		_exit(own.wrong[0] != '\0');
	}
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		continue;
	if (status != 0)
		wrong(tally, "a child ended with %#x", (unsigned int)status);
	COUNT(tally->forks, 1);
	stamp_anew(witness);
}

static void *read_on(void *arg)
{
	struct reader_thread *self = arg;

	for (uint64_t i = 1; !LOAD(truth->stop) && !self->tally->wrong[0]; i++) {
		witness_look(self->witness, self->tally);
		COUNT(self->tally->looks, 1);
		if (i % LOOKS_PER_LIST == 0)
			witness_list(self->witness, self->tally);
		if (self->manner == READERS_UPSET && i % LOOKS_PER_FORK == 0)
			fork_and_look(self->witness, self->tally);
		if (self->manner == READERS_CALM)
			nanosleep(&(struct timespec){0, PAUSE_NS}, NULL);
	}
	return NULL;
}

static void be_interrupted(void)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
	struct itimerval often = {{0, SIGNAL_EVERY_US}, {0, SIGNAL_EVERY_US}};

	sigemptyset(&action.sa_mask);
	sigaction(SIGPROF, &action, NULL);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_PROF, &often, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
}

/* Threads share one client and its handles; each has its own memory of what it saw. */
static int reader(const char *segment, struct tally *tallies, unsigned int threads,
		  enum readers_manner manner)
{
	struct reader_thread all[THREADS_MAX];
	struct witness *witness = witness_open(segment);
	bool bad = false;

	handler_witness = witness;
	handler_tally = &tallies[threads];
	if (manner == READERS_UPSET)
		be_interrupted();
	for (unsigned int i = 0; i < threads; i++) {
		all[i] = (struct reader_thread){.witness = malloc(sizeof(*witness)),
						.tally = &tallies[i],
						.manner = manner};
		*all[i].witness = *witness;
		if (pthread_create(&all[i].thread, NULL, read_on, &all[i]) != 0)
			abort();
	}
	for (unsigned int i = 0; i < threads; i++) {
		pthread_join(all[i].thread, NULL);
		bad |= tallies[i].wrong[0] != '\0';
	}
	return bad || handler_tally->wrong[0];
}

void readers_start(const char *segment, unsigned int processes, unsigned int threads,
		   enum readers_manner manner)
{
	memset(truth->tallies, 0, sizeof(truth->tallies));
	STORE(truth->stop, 0);
	fflush(stdout);
	for (reader_count = 0; reader_count < processes; reader_count++) {
		readers[reader_count] = child_fork();
		if (readers[reader_count] == 0)
			_exit(reader(segment, truth->tallies[reader_count], threads, manner));
	}
}

void readers_sum(struct tally *sum)
{
	memset(sum, 0, sizeof(*sum));
	for (unsigned int i = 0; i < reader_count; i++) {
		for (unsigned int k = 0; k <= THREADS_MAX; k++) {
			const struct tally *tally = &truth->tallies[i][k];

			sum->checks += tally->checks;
			sum->records += tally->records;
			sum->absent += tally->absent;
			sum->busy += tally->busy;
			sum->signals += tally->signals;
			sum->forks += tally->forks;
			sum->late += tally->late;
			sum->waited += tally->waited;
			if (tally->longest > sum->longest)
				sum->longest = tally->longest;
			if (tally->wrong[0] && !sum->wrong[0])
				memcpy(sum->wrong, tally->wrong, sizeof(sum->wrong));
		}
	}
}

void readers_pass(void)
{
	for (unsigned int i = 0; i < reader_count; i++) {
		for (unsigned int k = 0; k < THREADS_MAX; k++) {
			struct tally *tally = &truth->tallies[i][k];
			uint64_t looks = LOAD(tally->looks);

			while (looks && LOAD(tally->looks) < looks + 2 && !tally->wrong[0])
				sched_yield();
		}
	}
}

void readers_stop(struct tally *sum)
{
	bool died = false;
	int status;

	STORE(truth->stop, 1);
	for (unsigned int i = 0; i < reader_count; i++) {
		waitpid(readers[i], &status, 0);
		died |= !WIFEXITED(status);
	}
	readers_sum(sum);
	if (died)
		wrong(sum, "a reader died of a signal");
}

void tally_print(const struct tally *tally)
{
	printf("# readers: %llu checks and %llu records, each compared; %llu not there, %llu busy; "
	       "%llu in signal "
	       "handlers; %llu forks\n",
	       (unsigned long long)tally->checks, (unsigned long long)tally->records,
	       (unsigned long long)tally->absent, (unsigned long long)tally->busy,
	       (unsigned long long)tally->signals, (unsigned long long)tally->forks);
	printf("# reads that took over 1 ms: %llu waited, %llu had no processor; the longest other "
	       "%.1f us\n",
	       (unsigned long long)tally->waited, (unsigned long long)tally->late,
	       (double)tally->longest / 1000);
	if (tally->wrong[0])
		printf("# WRONG: %s\n", tally->wrong);
	fflush(stdout);
}
