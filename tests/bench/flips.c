/*
 * flips.c - reads of a breaker that another process flips as fast as it can, beside reads of one at rest
 *
 * SPDX-License-Identifier: ISC
 *
 *	flips [--repetitions N] [--iterations N] [--reads N] [--json FILE]
 *
 * First every read is timed on its own, in rounds that are by turns disturbed and not; what a round yields is the
 * time that one read in a thousand takes longer than. Then --reads reads, half of them checks and half whole records, are
 * looked at while the flipping goes on: every field of a row follows from its version, so a torn one is seen.
 *
 * A word that another processor has just written must be fetched from there, whoever reads it and however: the last
 * rows show that for a bare load of the same word. Exits with 1 if anything was torn.
 */
#include "config.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/bench/measure.h"
#include "tests/support/child.h"
#include "tests/support/segment.h"

#define LETTERS 26
#define KINDS   4

/* Shared by the two processes. */
struct control {
	bool flip;
	uint64_t flips;
};

static char texts[LETTERS][CBSHM_REASON_SIZE];

static uint32_t actor_length(uint64_t version)
{
	return 1 + (uint32_t)(version % 71);
}

static uint32_t reason_length(uint64_t version)
{
	return 1 + (uint32_t)(version % 239);
}

static void fill_texts(void)
{
	for (int i = 0; i < LETTERS; i++)
		memset(texts[i], 'a' + i, CBSHM_REASON_SIZE - 1);
}

/* ---- the writer ------------------------------------------------------------------------- */

static void flip(struct segment_writer *writer, uint64_t version)
{
	struct breaker_row row = row_closed("flipping", version);
	char by[CBSHM_ACTOR_SIZE], reason[CBSHM_REASON_SIZE];
	int64_t v = (int64_t)version;

	row.opened_at = 3 * v + 1;
	row.last_failure_at = 5 * v + 2;
	row.updated_at = 7 * v + 3;
	row.consecutive_failures = (uint32_t)version ^ 0x55u;
	row.failure_threshold = (uint32_t)version + 11;
	row.default_ttl = 11 * v;
	if (version % 2) {
		row.disabled = true;
		memcpy(by, texts[version % LETTERS], sizeof(by));
		memcpy(reason, texts[version % LETTERS], sizeof(reason));
		by[actor_length(version)] = reason[reason_length(version)] = '\0';
		row.disabled_by = by;
		row.disabled_reason = reason;
		memset(row.incident_id, (int)(1 + version % 255), sizeof(row.incident_id));
	}
	if (segment_writer_put(writer, &row, false) != 1)
		_exit(2);
}

static void write_for_ever(const char *name, struct control *control)
{
	struct segment_writer *writer;
	uint64_t version;

	if (!stay_on(1))
		fputs("one processor only: reads and flips take turns\n", stderr);
	writer = scratch_writer(name, 16);
	version = segment_writer_version(writer, "flipping");
	for (;;) {
		if (!__atomic_load_n(&control->flip, __ATOMIC_ACQUIRE)) {
			usleep(100);
			continue;
		}
		for (int i = 0; i < 64; i++)
			flip(writer, ++version);
		__atomic_fetch_add(&control->flips, 64, __ATOMIC_RELEASE);
	}
}

static uint64_t flips(const struct control *control)
{
	return __atomic_load_n(&control->flips, __ATOMIC_ACQUIRE);
}

/* Returns when it is so. */
static void set_flipping(struct control *control, bool flipping)
{
	uint64_t before = flips(control);

	__atomic_store_n(&control->flip, flipping, __ATOMIC_RELEASE);
	if (!flipping)
		usleep(1000);
	while (flipping && flips(control) == before)
		usleep(100);
}

/* ---- single reads ----------------------------------------------------------------------- */

/* Ends what came before and begins what follows. */
static inline uint64_t tick(void)
{
#if defined(__x86_64__)
	unsigned int processor;
	uint64_t now;

	__builtin_ia32_lfence();
	now = __builtin_ia32_rdtscp(&processor);
	__builtin_ia32_lfence();
	return now;
#else
	return (uint64_t)monotonic_ns();
#endif
}

static double ns_per_tick(void)
{
	int64_t from = monotonic_ns();
	uint64_t ticks = tick();

	while (monotonic_ns() - from < 20000000)
		continue;
	return (double)(monotonic_ns() - from) / (double)(tick() - ticks);
}

struct reader {
	const struct cbshm_breaker *breaker;
	size_t count; /* of reads in a round */
	double scale;
	double *times;
};

static inline uint64_t read_once(const struct cbshm_breaker *breaker, int kind)
{
	static struct cbshm_state state;

	if (kind == 0)
		return cbshm_is_disabled(breaker);
	if (kind == 1)
		return cbshm_get_state(breaker, &state) == 0 ? state.version : 0;
	if (kind == 2)
		return __atomic_load_n(breaker->word, __ATOMIC_ACQUIRE);
	return 0;
}

static void time_reads(const struct reader *reader, int kind)
{
	for (size_t i = 0; i < reader->count; i++) {
		uint64_t from = tick();
		uint64_t value = read_once(reader->breaker, kind);

		__asm__ volatile("" : : "r"(value)); /* used, as far as the compiler knows */
		reader->times[i] = (double)(tick() - from) * reader->scale;
	}
}

/*
 * The time that one read in a thousand takes longer than. Under flips, a round in which the writer had no processor is
 * done again.
 */
static double slowest(const struct reader *reader, const struct control *control, int kind,
		      bool flipping)
{
	for (int i = 0; i < 100; i++) {
		uint64_t before = flips(control);

		time_reads(reader, kind);
		if (!flipping || flips(control) - before >= reader->count / 50)
			break;
	}
	sort_values(reader->times, reader->count);
	return quantile(reader->times, reader->count, 0.999);
}

static void measure_rounds(const struct reader *reader, struct control *control, struct pair *pairs,
			   int rounds)
{
	for (int k = 0; k < KINDS; k++) {
		pairs[k].run.ns = bench_memory((size_t)rounds, sizeof(double));
		pairs[k].beside.ns = bench_memory((size_t)rounds, sizeof(double));
		pairs[k].ratio = bench_memory((size_t)rounds, sizeof(double));
	}
	for (int r = 0; r < rounds; r++) {
		set_flipping(control, false);
		for (int k = 0; k < KINDS; k++)
			pairs[k].beside.ns[r] = slowest(reader, control, k, false);
		set_flipping(control, true);
		for (int k = 0; k < KINDS; k++) {
			pairs[k].run.ns[r] = slowest(reader, control, k, true);
			pairs[k].ratio[r] = pairs[k].run.ns[r] / pairs[k].beside.ns[r];
		}
	}
	for (int k = 0; k < KINDS; k++) {
		sort_values(pairs[k].run.ns, (size_t)rounds);
		sort_values(pairs[k].beside.ns, (size_t)rounds);
		sort_values(pairs[k].ratio, (size_t)rounds);
	}
}

/* ---- torn reads ------------------------------------------------------------------------- */

struct tally {
	uint64_t reads, torn, busy, flips;
	double seconds;
};

static bool is_text(const char *text, uint32_t length, uint64_t version)
{
	return memcmp(text, texts[version % LETTERS], length) == 0 && text[length] == '\0';
}

static bool is_whole(const struct cbshm_state *state)
{
	uint64_t version = state->version;
	int64_t v = (int64_t)version;
	bool open = version % 2;

	if (state->row_disabled != open || state->disabled != open ||
	    state->opened_at != 3 * v + 1 || state->last_failure_at != 5 * v + 2 ||
	    state->updated_at != 7 * v + 3 ||
	    state->consecutive_failures != ((uint32_t)version ^ 0x55u) ||
	    state->policy.failure_threshold != (uint32_t)version + 11 ||
	    state->policy.default_ttl_us != 11 * v)
		return false;
	if (!open)
		return !state->disabled_by[0] && !state->disabled_reason[0] &&
		       !state->incident_id[0];
	char high = "0123456789abcdef"[(1 + version % 255) >> 4];
	return is_text(state->disabled_by, actor_length(version), version) &&
	       is_text(state->disabled_reason, reason_length(version), version) &&
	       state->incident_id[0] == high && state->incident_id[34] == high;
}

/* A check and a record: whole, and the record not older than the decision. */
static void look(const struct cbshm_breaker *breaker, struct tally *tally)
{
	struct cbshm_decision decision = cbshm_check(breaker);
	struct cbshm_state state;
	int error = cbshm_get_state(breaker, &state);

	tally->torn +=
		decision.basis != CBSHM_BASIS_SEGMENT || decision.disabled != decision.epoch % 2;
	if (error == CBSHM_ERR_BUSY)
		tally->busy++;
	else if (error || !is_whole(&state) || state.version < decision.epoch)
		tally->torn++;
	tally->reads += 2;
}

static struct tally look_for_torn(const struct cbshm_breaker *breaker, struct control *control,
				  uint64_t reads)
{
	struct tally tally = {0};
	int64_t from = monotonic_ns();
	uint64_t before = flips(control);

	set_flipping(control, true);
	while (tally.reads < reads)
		look(breaker, &tally);
	tally.flips = flips(control) - before;
	tally.seconds = (double)(monotonic_ns() - from) / 1e9;
	return tally;
}

int main(int argc, char **argv)
{
	struct bench_options options = {.repetitions = 31, .iterations = 100000, .reads = 20000000};
	struct pair pairs[KINDS] = {
		{.key = "flips_check", .title = "check, p99.9"},
		{.key = "flips_state", .title = "state, p99.9"},
		{.key = "flips_bare", .title = "bare load, p99.9"},
		{.key = "flips_nothing", .title = "nothing but timing, p99.9"},
	};
	char extra[256];

	if (!bench_options_parse(&options, argc, argv))
		return 2;
	struct control *control = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE,
				       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (control == MAP_FAILED)
		return 2;
	fill_texts();
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	flip(writer, 1);
	segment_writer_close(writer);
	pid_t child = child_fork();
	if (child < 0)
		return 2;
	if (child == 0)
		write_for_ever(name, control);

	/* On one processor neither would ever disturb the other. */
	stay_on(0);
	struct cbshm *client = scratch_client(name);
	struct reader reader = {scratch_breaker(client, "flipping"), options.iterations,
				ns_per_tick(),
				bench_memory((size_t)options.iterations, sizeof(double))};
	for (int k = 0; k < KINDS; k++)
		pairs[k].beside_title = "at rest";
	measure_rounds(&reader, control, pairs, options.repetitions);
	struct tally tally = look_for_torn(reader.breaker, control, options.reads);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);

	print_table(pairs, KINDS, options.repetitions);
	printf("\n%llu reads, %.0f flips a second: %llu torn, %llu busy\n",
	       (unsigned long long)tally.reads, (double)tally.flips / tally.seconds,
	       (unsigned long long)tally.torn, (unsigned long long)tally.busy);
	snprintf(extra, sizeof(extra),
		 "\"reads\": %llu, \"torn\": %llu, \"busy\": %llu, \"flips_per_second\": %.0f, ",
		 (unsigned long long)tally.reads, (unsigned long long)tally.torn,
		 (unsigned long long)tally.busy, (double)tally.flips / tally.seconds);
	cbshm_close(client);
	if (options.json &&
	    print_json(options.json, "flips", pairs, KINDS, options.repetitions, extra) != 0)
		return 2;
	return tally.torn != 0;
}
